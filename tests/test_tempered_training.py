"""Learning with tempered chains: the optimum where plain chains provably stay behind, and exact resuming."""

from __future__ import annotations

import itertools
import math
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


def bars_and_stripes(n: int = 3) -> Tensor:
    """The distinct patterns of n x n pixels whose rows, or whose columns, are all on or all off."""
    lines = torch.tensor(list(itertools.product([0, 1], repeat=n)), dtype=torch.uint8)
    rows, columns = lines[:, :, None].expand(-1, n, n), lines[:, None, :].expand(-1, n, n)
    return torch.cat([rows, columns]).reshape(-1, n * n).unique(dim=0)


def learnt(estimator: PCD | PersistentChains) -> float:
    """Mean log-likelihood of bars and stripes after training, exact."""
    cases, epochs = bars_and_stripes(), 5000
    rbm = RBM(9, 16, seed=1)
    rbm.initialise_biases(cases)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.5)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: min(1.0, (epochs - e) / (0.6 * epochs) + 0.01))
    Trainer(rbm, optimizer, estimator, batch_size=14, scheduler=decay).fit(cases, epochs)
    return mean_log_likelihood(rbm, cases)


def test_tempered_chains_reach_the_optimum_where_plain_ones_do_not() -> None:
    """Bars and stripes: 14 patterns far apart, between which sweeps rarely go once they are learnt; optimum -log 14.

    Both do the same number of Gibbs updates: 20 ladders of 10 rungs, and 200 plain chains.
    """
    optimum = -math.log(14)
    assert len(bars_and_stripes()) == 14
    assert learnt(PersistentChains(20, Tempering(10))) > optimum - 0.05
    assert learnt(PCD(200, 1)) < optimum - 1


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
