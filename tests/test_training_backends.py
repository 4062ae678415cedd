"""The trainer gives the same bits on the reference and on the compiled backend, on one thread and on two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from bm_fast import RBM
from bm_fast.training import CD, PCD, Trainer
from conftest import needs_native

pytestmark = needs_native


def trained(estimator: Any, threads: int = 1) -> list[Tensor]:
    """Parameters, offsets and chains after two ragged epochs of grey data, with centring and momentum."""
    torch.set_num_threads(threads)
    grey = torch.rand(25, 37, generator=torch.Generator().manual_seed(0))
    rbm = RBM(37, 18, seed=1, weight_scale=0.3)
    trainer = Trainer(rbm, SGD(rbm.parameters(), lr=0.1, momentum=0.9), estimator, 10, seed=2)
    trainer.fit(grey, 2)
    return [*(p.detach() for p in rbm.parameters()), *trainer.chains.layers]


@pytest.mark.parametrize("estimator", [CD(2), PCD(13, 2)], ids=str)
def test_reference_and_native_train_to_the_same_bits(estimator: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BM_FAST_BACKEND", "native")
    native = trained(estimator)
    two_threads = trained(estimator, threads=2)
    monkeypatch.setenv("BM_FAST_BACKEND", "reference")
    reference = trained(estimator)
    for a, b, c in zip(native, reference, two_threads, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
