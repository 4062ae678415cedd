"""The one call for a likelihood: its bracket against exact values, and what makes it say no."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import DBM, RBM, Kind
from bm_fast.estimation import (
    UntrustworthyEstimate,
    estimate_log_likelihood,
    exact_log_likelihood,
    exact_log_z,
    log_likelihood,
    mean_log_likelihood,
    mean_variational_bound,
)
from bm_fast.estimation.bracket import _doubts
from enumeration import GRAPHS, all_states, machine


@pytest.fixture(scope="module")
def trained() -> tuple[RBM, Tensor]:
    """An RBM with two kinds of patterns in it, and cases of both."""
    generator = torch.Generator().manual_seed(0)
    patterns = (torch.rand(4, 16, generator=generator) < 0.5).float()
    cases = patterns[torch.randint(4, (300,), generator=generator)]
    cases = torch.where(torch.rand(cases.shape, generator=generator) < 0.1, 1 - cases, cases)
    rbm = RBM(16, 8, seed=1)
    with torch.no_grad():
        for j in range(4):
            rbm.weight[:, j] = 3 * (2 * patterns[j] - 1)
            rbm.hidden_bias[j] = -3 * float(patterns[j].sum()) + 1
    return rbm, cases


def test_the_bracket_holds_the_exact_likelihood(trained: tuple[RBM, Tensor]) -> None:
    rbm, cases = trained
    exact = float(log_likelihood(rbm, cases, exact_log_z(rbm)).mean())
    estimate = estimate_log_likelihood(rbm, cases, rounds=400, seed=1)
    assert estimate.trustworthy, estimate.reason
    assert abs(estimate.mean - exact) < 4 * estimate.standard_error
    low, high = estimate.bracket
    slack = 4 * math.hypot(estimate.forward.standard_error, estimate.reverse.standard_error)
    assert low - slack < exact < high + slack
    assert high - low < 0.5
    text = str(estimate)
    assert f"{estimate.mean:.2f} ± {estimate.standard_error:.2f} nats" in text
    assert "NOT" not in text


def test_a_machine_that_cannot_be_measured_is_reported() -> None:
    """Strong random couplings and hardly any effort: the verdict is no, with reasons."""
    rbm = RBM(300, 200, seed=1, weight_scale=1.0)
    cases = (torch.rand(50, 300, generator=torch.Generator().manual_seed(0)) < 0.5).to(torch.uint8)
    with pytest.warns(UntrustworthyEstimate, match="log-likelihood: "):
        estimate = estimate_log_likelihood(rbm, cases, n_runs=8, rounds=5, betas=20)
    assert not estimate.trustworthy
    assert "NOT TRUSTWORTHY" in str(estimate)
    assert "differ by" in estimate.reason or "collapsed" in estimate.reason or "worth" in estimate.reason


def test_estimates_that_contradict_each_other_are_reported(trained: tuple[RBM, Tensor]) -> None:
    rbm, cases = trained
    good = estimate_log_likelihood(rbm, cases, rounds=200, seed=1)
    for shift, end in ((2, "reverse"), (-2, "forward")):
        wrong = replace(good.tempered, log_z=good.tempered.log_z + shift)
        doubts = [doubt for doubt in _doubts(wrong, good.forward, good.reverse, good.report) if "outside" in doubt]
        assert len(doubts) == 1
        assert f"outside the bracket, beyond {end} annealing" in doubts[0]
    assert good.report.gaps is not None
    slow = replace(good.report, gaps=good.report.gaps[:1] + torch.linspace(0, 1, 200)[:, None, None])
    doubts = _doubts(good.tempered, good.forward, good.reverse, slow)
    assert any("rounds are few beside an autocorrelation" in doubt for doubt in doubts)
    wide = replace(good.reverse, log_z=good.forward.log_z + 3)
    assert any("differ by 3.0 nats" in doubt for doubt in _doubts(good.tempered, good.forward, wide, good.report))


def test_a_bracket_whose_ends_have_crossed_says_what_that_means(trained: tuple[RBM, Tensor]) -> None:
    rbm, cases = trained
    good = estimate_log_likelihood(rbm, cases, rounds=200, seed=1)
    joint = math.hypot(good.forward.standard_error, good.reverse.standard_error)
    mean = good.mean + good.tempered.log_z
    for shift, said in (
        (-1.0, ""),
        (2.0, ", ends crossed within their errors"),
        (9.0, ", ends crossed BEYOND THEIR ERRORS"),
    ):
        forward = replace(good.forward, log_z=good.reverse.log_z + shift * joint + 0.01 * math.copysign(1, shift))
        ends = (mean - good.reverse.log_z, mean - forward.log_z)
        estimate = replace(good, forward=forward, bracket=ends)
        assert estimate.bracketed == f"bracket {min(ends):.2f} to {max(ends):.2f}{said}"
        assert estimate.bracketed in str(estimate)
        # log Z of tempering lies between: no other rule sees the two ends alone
        doubts = _doubts(replace(good.tempered, log_z=forward.log_z), forward, good.reverse, good.report)
        assert any("contradict each other" in doubt for doubt in doubts) == ("BEYOND" in said)


# --- deep machines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dbm3", "tree", "semi_restricted"])
def test_the_bracket_of_a_deep_machine_holds_its_bound(name: str) -> None:
    """The bracket is of the variational bound, which lies below the exact likelihood; the same cases for both."""
    built = machine(GRAPHS[name], coupling_sd=0.6)
    v = all_states(built.graph.layers[0].units)
    exact_z = exact_log_z(built)
    bound = mean_variational_bound(built, v, exact_z)
    estimate = estimate_log_likelihood(built, v, rounds=300, seed=2)
    assert estimate.is_bound
    assert estimate.trustworthy, estimate.reason
    assert abs(estimate.mean - bound.mean) < 4 * estimate.standard_error
    assert estimate.case_error == pytest.approx(bound.case_error)
    low, high = estimate.bracket
    slack = 4 * math.hypot(estimate.forward.standard_error, estimate.reverse.standard_error)
    assert low - slack < bound.mean < high + slack
    assert high - low < 0.3
    assert estimate.mean - 4 * estimate.standard_error < float(exact_log_likelihood(built, v, exact_z).mean())
    assert str(estimate).startswith("lower bound -")


def test_the_bracket_of_a_machine_with_labels_and_of_one_with_gaussian_units() -> None:
    """The labels are inferred; both machines are small enough for exact figures."""
    dbm, v = DBM((6, 5, 4), seed=1, weight_scale=0.8, n_classes=3), all_states(6)
    estimate = estimate_log_likelihood(dbm, v, rounds=300, seed=1)
    bound = mean_variational_bound(dbm, v, exact_log_z(dbm)).mean
    assert estimate.trustworthy, estimate.reason
    assert estimate.is_bound
    assert abs(estimate.mean - bound) < 4 * estimate.standard_error < 0.2
    assert bound < float(exact_log_likelihood(dbm, v, exact_log_z(dbm)).mean())
    rbm = RBM(6, 4, visible=Kind.GAUSSIAN, seed=1, weight_scale=0.5)
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0))
    estimate = estimate_log_likelihood(rbm, x, rounds=300, seed=1)
    assert estimate.trustworthy, estimate.reason
    assert not estimate.is_bound
    exact = mean_log_likelihood(rbm, x, exact_log_z(rbm)).mean
    assert abs(estimate.mean - exact) < 4 * estimate.standard_error < 0.2


@pytest.mark.parametrize("bias", [0.0, 60.0])
def test_machines_of_independent_units_are_trusted(bias: float) -> None:
    """Fair coins, or units that are always on: the energy at the target has one value, and all is known exactly."""
    rbm = RBM(8, 4, weight_scale=0)
    with torch.no_grad():
        rbm.visible_bias.fill_(bias)
    v, coins = torch.ones(5, 8, dtype=torch.uint8), [torch.zeros(8), torch.zeros(4)]
    estimate = estimate_log_likelihood(rbm, v, base=coins, rounds=100)
    assert estimate.trustworthy, estimate.reason
    assert estimate.mean == pytest.approx(mean_log_likelihood(rbm, v, exact_log_z(rbm)).mean, abs=0.05)
    assert "the energy at the target never changed" in str(estimate.report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"v": torch.zeros(0, 4)}, r"v: expected shape \[n, 4\] with n >= 1, got \[0, 4\]"),
        ({"v": torch.zeros(3, 5)}, r"v: expected shape \[n, 4\]"),
        ({"v": torch.full((3, 4), 0.5)}, "v: expected 0 or 1 for Bernoulli units"),
        ({"n_runs": 0}, "n_runs: expected 1 to"),
        ({"rounds": 1}, "rounds: expected 2 to"),
        ({"betas": [0.0, 0.6, 0.4, 1.0]}, "betas: expected values that rise from 0 to 1"),
        ({"betas": 1}, "betas: expected at least 2"),
        ({"base": [torch.zeros(4)]}, "base: expected one tensor for each of 2 layers, got 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    given = {"v": torch.zeros(3, 4), "rounds": 20, **arguments}
    with pytest.raises(ValueError, match=message):
        estimate_log_likelihood(RBM(4, 3), **given)


def test_a_model_and_numpy_cases_are_taken() -> None:
    dbm = DBM((6, 5, 4), seed=1, weight_scale=0.5)
    v = all_states(6)
    from_tensor, from_numpy = (estimate_log_likelihood(dbm, cases, rounds=50, seed=1) for cases in (v, v.numpy()))
    assert from_tensor.mean == from_numpy.mean
    assert from_tensor.is_bound
    rbm = estimate_log_likelihood(RBM(6, 5, seed=1), np.zeros((3, 6), np.uint8), rounds=50)
    assert not rbm.is_bound
    assert "bound" not in str(rbm)
