"""Likelihoods of deep machines: exact ones and bounds against enumeration, for chains and trees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import Kind, Machine, MeanFieldNotConverged, chain_graph
from bm_fast.estimation import (
    ais,
    exact_log_likelihood,
    exact_log_z,
    log_likelihood,
    mean_variational_bound,
    variational_bound,
)
from enumeration import GRAPHS, all_states, enumerate_machine, machine
from test_dbm import dbm


def exact(built: Machine) -> tuple[Tensor, Tensor]:
    """All states of layer 0 and log p of each, by adding up the enumerated probabilities."""
    truth = enumerate_machine(built)
    n = built.graph.layers[0].units
    numbers = truth.states[:, :n].long() @ (1 << torch.arange(n))
    return all_states(n), torch.zeros(2**n, dtype=torch.float64).index_add(0, numbers, truth.p).log()


@pytest.mark.parametrize("name", GRAPHS)
def test_exact_likelihood_and_its_bound(name: str) -> None:
    built = machine(GRAPHS[name])
    v, expected = exact(built)
    log_z = exact_log_z(built)
    torch.testing.assert_close(exact_log_likelihood(built, v, log_z), expected, rtol=0, atol=1e-11)
    bound = variational_bound(built, v, log_z, iterations=1000, damping=0.3)
    assert bool((bound <= expected + 1e-6).all())
    assert bool((bound > expected - 1.5).all())


def test_gaussian_visible_units_against_the_closed_form() -> None:
    """With one hidden layer p(v) has a closed form, which the bound reaches."""
    built = machine(chain_graph((3, 4), Kind.GAUSSIAN))
    v = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    log_z = exact_log_z(built)
    expected = log_likelihood(built, v, log_z)
    torch.testing.assert_close(exact_log_likelihood(built, v, log_z), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(variational_bound(built, v, log_z), expected, rtol=0, atol=1e-4)


def test_mean_bound_carries_both_errors() -> None:
    model = dbm((6, 5, 4))
    v = all_states(6).numpy()
    estimate = ais(model, n_runs=50, betas=200, seed=0)
    bound = mean_variational_bound(model, v, estimate)
    each = variational_bound(model, v, estimate)
    assert isinstance(each, np.ndarray)
    assert bound.mean == pytest.approx(each.mean())
    assert bound.case_error == pytest.approx(each.std(ddof=1) / 8)
    assert bound.log_z_error == estimate.standard_error > 0
    assert mean_variational_bound(model, v, exact_log_z(model)).log_z_error == 0


def test_errors_name_the_argument() -> None:
    model = dbm((4, 3, 3))
    with pytest.raises(ValueError, match="v: expected 0 or 1 for Bernoulli units"):
        variational_bound(model, torch.full((2, 4), 0.5), 0.0)
    with pytest.raises(ValueError, match="log_z: expected a finite number, got inf"):
        exact_log_likelihood(model, torch.zeros(2, 4), float("inf"))
    with pytest.raises(ValueError, match="exact log Z would enumerate the 30 units"):
        exact_log_likelihood(dbm((4, 30, 31)), torch.zeros(1, 4), 0.0)
    with pytest.warns(MeanFieldNotConverged, match=r"% of 2 cases"):
        variational_bound(dbm((4, 6, 5), sd=2.0), torch.eye(4)[:2], 0.0, iterations=1, tolerance=1e-6)
