"""Learning with tempered chains: the optimum where plain chains provably stay behind, and exact resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bm_fast import RBM
from bm_fast.estimation import exact_log_z, log_likelihood
from bm_fast.tempering import Gibbs, Tempering
from bm_fast.training import PCD, PersistentChains, Trainer


def two_far_modes(n: int = 16) -> Tensor:
    """All units on or all off, with single flips: 2 (n + 1) equally probable cases, so the optimum is -log(2 n + 2)."""
    off = torch.cat([torch.zeros(1, n), torch.eye(n)])
    return torch.cat([off, 1 - off]).to(torch.uint8)


def mean_log_likelihood(rbm: RBM, cases: Tensor) -> float:
    return float(log_likelihood(rbm, cases, exact_log_z(rbm)).mean())


def test_plain_operator_learns_like_pcd() -> None:
    cases = two_far_modes(8)
    results = []
    for estimator in (PCD(20, 2), PersistentChains(20, Gibbs(2))):
        rbm = RBM(8, 4, seed=1)
        Trainer(rbm, torch.optim.SGD(rbm.parameters(), lr=0.05), estimator, batch_size=9).fit(cases, epochs=100)
        results.append(mean_log_likelihood(rbm, cases))
    assert results[0] == pytest.approx(results[1], abs=0.15)


@pytest.mark.parametrize(
    "estimator", [PersistentChains(20, Tempering(5, adapt_every=7)), PersistentChains(20, Gibbs())]
)
def test_resuming_goes_on_to_the_same_bits(estimator: PersistentChains, tmp_path: Path) -> None:
    cases = two_far_modes(8)
    results = []
    for interrupted in (False, True):
        rbm = RBM(8, 4, seed=1)
        optimizer = torch.optim.SGD(rbm.parameters(), lr=0.05, momentum=0.5)
        fresh = PersistentChains.from_settings(**estimator.settings())
        trainer = Trainer(rbm, optimizer, fresh, batch_size=5)
        trainer.fit(cases, epochs=6)
        if interrupted:
            trainer.save(tmp_path / "run.safetensors")
            rbm = RBM(8, 4)
            optimizer = torch.optim.SGD(rbm.parameters(), lr=1.0)
            trainer = Trainer.resume(tmp_path / "run.safetensors", rbm, optimizer)
        trainer.fit(cases, epochs=12)
        results.append([parameter.detach().clone() for parameter in rbm.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="n_chains: expected a whole number of at least 1, got 0"):
        PersistentChains(0)
    with pytest.raises(ValueError, match="operator: expected one of"):
        PersistentChains.from_settings(3, {"name": "Other"})
