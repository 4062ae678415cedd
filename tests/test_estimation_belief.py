"""Likelihoods of deep belief nets: exact ones and bounds against enumeration, where the bound is tight, errors."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from belief_exact import dbn, enumerate_dbn
from bm_fast import DBN, RBM, Kind
from bm_fast.estimation import (
    AISEstimate,
    ais,
    base_biases,
    dbn_bound,
    exact_dbn_log_likelihood,
    exact_log_z,
    log_likelihood,
    mean_dbn_bound,
)
from enumeration import all_states

SHAPES = [(4, 3, 3), (3, 3, 2, 2), (2, 3, 2, 2, 2)]


def tied(rbm: RBM) -> DBN:
    """The belief net of an RBM and its own transpose: both have the same p(h¹), so that q is the posterior."""
    transposed = RBM(rbm.n_hidden, rbm.n_visible)
    with torch.no_grad():
        transposed.weight.copy_(rbm.weight.T)
        transposed.visible_bias.copy_(rbm.hidden_bias)
        transposed.hidden_bias.copy_(rbm.visible_bias)
    return DBN.from_rbms([rbm, transposed])


def strong_rbm(n_visible: int = 6, n_hidden: int = 5) -> RBM:
    rbm = RBM(n_visible, n_hidden, seed=4, weight_scale=1.5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for bias in (rbm.visible_bias, rbm.hidden_bias):
            bias.copy_(torch.randn(bias.shape, generator=generator))
    return rbm


@pytest.mark.parametrize("units", SHAPES)
def test_exact_likelihood_is_that_of_enumeration(units: tuple[int, ...], backend: str) -> None:
    model, v = dbn(units), all_states(units[0])
    exact = exact_dbn_log_likelihood(model, v, exact_log_z(model.top))
    torch.testing.assert_close(exact, enumerate_dbn(model).log_visible(), rtol=0, atol=1e-6)
    assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-6)


def test_enumeration_in_blocks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, v = dbn((4, 5, 4, 3)), all_states(4)
    whole = exact_dbn_log_likelihood(model, v, 0.0)
    monkeypatch.setattr("bm_fast.estimation.belief._BLOCK", 40)
    torch.testing.assert_close(exact_dbn_log_likelihood(model, v, 0.0), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("recognition", ["samples", "means"])
@pytest.mark.parametrize("units", SHAPES)
def test_bound_is_that_of_enumeration_and_lies_below_the_likelihood(
    units: tuple[int, ...], recognition: Literal["samples", "means"]
) -> None:
    """Of 4 to 16 cases each mean over 2,000 samples, 5 standard errors: a false alarm in 10^5 seeds."""
    model, v = dbn(units), all_states(units[0])
    truth, log_z = enumerate_dbn(model, recognition), exact_log_z(model.top)
    exact, bound = truth.log_visible(), truth.bound()
    runs = [dbn_bound(model, v, log_z, n_samples=100, recognition=recognition, seed=s) for s in range(20)]
    each = torch.stack(runs)
    error = each.std(0) / math.sqrt(len(each))
    assert bool(((each.mean(0) - bound).abs() < 5 * error).all())
    assert float(error.max()) < 0.15
    assert bool((bound < exact - 0.01).all())
    assert bool((each.mean(0) < exact).all())


def test_with_two_hidden_layers_both_recognitions_are_the_same() -> None:
    model, v = dbn((4, 3, 3)), all_states(4)
    samples, means = (dbn_bound(model, v, 0.0, recognition=name) for name in ("samples", "means"))
    assert torch.equal(samples, means)


@pytest.mark.parametrize("n_samples", [1, 3])
def test_bound_of_a_tied_stack_is_the_likelihood_of_the_rbm(n_samples: int) -> None:
    """Where q is the true posterior every single sample gives log p(v), exactly."""
    rbm = strong_rbm()
    model, v = tied(rbm), all_states(6)
    expected = log_likelihood(rbm, v, exact_log_z(rbm))
    log_z = exact_log_z(model.top)
    torch.testing.assert_close(exact_dbn_log_likelihood(model, v, log_z), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(dbn_bound(model, v, log_z, n_samples=n_samples), expected, rtol=0, atol=1e-6)


def test_bound_with_ais_on_the_top_rbm() -> None:
    """Four standard errors of log Z: a false alarm in 16,000 seeds."""
    model, v = tied(strong_rbm()), all_states(6)
    base = base_biases(model.top, model.hidden_means(v)[0])
    estimate = ais(model.top, n_runs=200, betas=500, base=base, seed=1)
    bound = mean_dbn_bound(model, v, estimate)
    exact = mean_dbn_bound(model, v, exact_log_z(model.top))
    assert bound.log_z_error == estimate.standard_error > 0
    assert exact.log_z_error == 0
    assert bound.case_error == pytest.approx(exact.case_error)
    assert abs(bound.mean - exact.mean) < 4 * estimate.standard_error + 1e-3


def test_errors_of_the_mean_bound_are_calibrated() -> None:
    """200 times 500 cases and log Z by 100 runs of AIS; the truth is the bound's mean over p(v), by enumeration.

    The mean of 200 z-scores has a standard error of 0.07, their standard deviation one of 0.05: the bounds are five of
    them. Of 200 values 0.6 lie beyond three errors; more than three do for one in 300 choices of the seeds. Bounds of
    single cases are skewed, so that errors from 100 cases would not be normal yet.
    """
    model, v = dbn((4, 3, 3)), all_states(4)
    truth = enumerate_dbn(model)
    p = truth.log_visible().exp()
    expected = float(p @ truth.bound())
    log_weights = ais(model.top, 20_000, betas=30, seed=6).log_weights
    generator = torch.Generator().manual_seed(2)
    z = []
    for seed, part in enumerate(log_weights.split(100)):
        cases = v[torch.multinomial(p, 500, replacement=True, generator=generator)]
        found = mean_dbn_bound(model, cases, AISEstimate.from_log_weights(part, 30), n_samples=2, seed=seed)
        assert found.log_z_error > 0.1 * found.case_error, "log Z is too exact for this test to see its error"
        z.append((found.mean - expected) / found.standard_error)
    scores = torch.tensor(z)
    assert abs(float(scores.mean())) < 0.4
    assert 0.75 < float(scores.std()) < 1.25
    assert int((scores.abs() > 3).sum()) <= 3


def test_mean_bound_is_over_the_cases_and_keeps_its_numbers() -> None:
    model, v = dbn((4, 3, 2, 2)), all_states(4).numpy()
    each = dbn_bound(model, v, 1.5, n_samples=2, seed=3)
    assert isinstance(each, np.ndarray)
    mean = mean_dbn_bound(model, v, 1.5, n_samples=2, seed=3)
    assert mean.mean == pytest.approx(each.mean())
    assert mean.case_error == pytest.approx(each.std(ddof=1) / 4)
    np.testing.assert_allclose(dbn_bound(model, v[:7], 1.5, n_samples=2, seed=3), each[:7], rtol=1e-12)
    assert np.abs(dbn_bound(model, v, 1.5, n_samples=2, seed=4) - each).max() > 0.01


def test_many_cases_are_taken_in_parts() -> None:
    """A case draws by its number, so that parts of 1,024 are those of one piece."""
    model = dbn((4, 3, 2))
    v = all_states(4).repeat(100, 1)
    whole = dbn_bound(model, v, 0.0, n_samples=1)
    assert whole.shape == (1600,)
    torch.testing.assert_close(dbn_bound(model, v[:1100], 0.0, n_samples=1), whole[:1100], rtol=1e-12, atol=0)
    assert len(whole.unique()) > 50, "cases with the same v draw by numbers of their own"


def gaussian_log_p(model: DBN, v: Tensor) -> Tensor:
    """log p(v), v real: a mixture of normals over all states of h¹, whose chances come from enumeration."""
    generative = model.machines().generative.parameters
    weight, states = generative.weight(0).double(), all_states(model.units[1]).double()
    log_chances = -model.top.free_energy(all_states(model.units[1])) - exact_log_z(model.top)
    precision = generative.precisions[0]
    assert precision is not None
    means = (states @ weight.T + generative.biases[0].double()) / precision.double()
    log_p = Normal(means, precision.double().rsqrt()).log_prob(v.double()[:, None]).sum(2)
    return (log_p + log_chances).logsumexp(1)


def test_gaussian_visible_units() -> None:
    """Against mixtures of torch's normals; the bound of 2,000 samples lies below but for 5 standard errors."""
    model = dbn((3, 4, 3), visible=Kind.GAUSSIAN)
    v = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    log_z = exact_log_z(model.top)
    expected = gaussian_log_p(model, v)
    torch.testing.assert_close(exact_dbn_log_likelihood(model, v, log_z), expected, rtol=0, atol=1e-5)
    each = torch.stack([dbn_bound(model, v, log_z, n_samples=100, seed=s) for s in range(20)])
    assert bool((each.mean(0) < expected + 5 * each.std(0) / math.sqrt(20)).all())
    assert bool((each.mean(0) > expected - 5).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dbn_bound(dbn(), torch.full((2, 4), 0.5), 0.0), "v: expected 0 or 1 for Bernoulli units"),
        (lambda: dbn_bound(dbn(), torch.zeros(2, 5), 0.0), r"v: expected shape \[n, 4\]"),
        (lambda: dbn_bound(dbn(), all_states(4), math.inf), "log_z: expected a finite number, got inf"),
        (lambda: dbn_bound(dbn(), all_states(4), 0.0, n_samples=0), "n_samples: expected a whole number of at least 1"),
        (lambda: dbn_bound(dbn(), all_states(4), 0.0, seed=-1), "seed: expected 0 to"),
        (
            lambda: dbn_bound(dbn(), all_states(4), 0.0, recognition="mean"),  # type: ignore[arg-type]
            "recognition: expected 'samples' or 'means', got 'mean'",
        ),
        (lambda: exact_dbn_log_likelihood(dbn(), torch.full((2, 4), 0.5), 0.0), "v: expected 0 or 1"),
        (lambda: exact_dbn_log_likelihood(dbn(), all_states(4), math.nan), "log_z: expected a finite number, got nan"),
        (
            lambda: exact_dbn_log_likelihood(DBN((4, 26, 3)), all_states(4), 0.0),
            r"dbn: the exact likelihood would enumerate the 26 units of \['hidden1'\], the limit is 25",
        ),
        (
            lambda: exact_dbn_log_likelihood(DBN((4, 3, 13, 13, 2)), all_states(4), 0.0),
            r"the 26 units of \['hidden2', 'hidden3'\]",
        ),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
