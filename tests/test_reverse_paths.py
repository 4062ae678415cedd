"""RAISE against the model that annealing defines, and averaged moments against exact ones and exact log Z."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import DBM, RBM, Kind, Machine, chain_graph
from bm_fast.estimation import (
    MomentAveragedPath,
    adaptive_betas,
    ais,
    exact_log_likelihood,
    exact_log_z,
    log_likelihood,
    moment_averaged_path,
    raise_log_likelihood,
    reverse_ais,
)
from enumeration import GRAPHS, all_states, energies, enumerate_machine, machine

BETAS = [0.0, 0.4, 0.7, 1.0]


# --- RAISE ------------------------------------------------------------------------------------------------------------


def annealing_model(built: Machine, base: list[Tensor], kept: int) -> Tensor:
    """Exact p(v) of what annealing up draws, float64 ``[2^n_visible]``: written out as products of matrices.

    Layer ``kept`` begins at p_0, makes a Gibbs sweep of the RBM at each beta between the ends, and v is drawn from it.
    """
    sizes = [layer.units for layer in built.graph.layers]
    states = all_states(sum(sizes))

    def joint(beta: float) -> Tensor:
        log_p = -energies(built, states, beta, base)
        p = (log_p - log_p.logsumexp(0)).exp().view(2 ** sizes[1], 2 ** sizes[0])  # [h, v]
        return p if kept == 1 else p.T  # [kept, summed]

    q = joint(BETAS[0]).sum(1)
    for beta in BETAS[1:-1]:
        p = joint(beta)
        q = (q @ (p / p.sum(1, keepdim=True))) @ (p / p.sum(0)).T
    if kept == 0:
        return q
    p = joint(1.0)
    return q @ (p / p.sum(1, keepdim=True))


@pytest.mark.parametrize(("units", "kept"), [((4, 2), 1), ((3, 4), 0)])
def test_weights_have_the_probability_under_the_annealing_model_as_mean(units: tuple[int, int], kept: int) -> None:
    """For every v, whichever layer is summed out of the densities; 4.5 standard errors of 20,000 runs each.

    A false alarm in one of 10,000 tests.
    """
    built = machine(chain_graph(units), coupling_sd=1.0)
    base = [torch.linspace(-0.5, 0.5, n) for n in units]
    expected = annealing_model(built, base, kept)
    assert float(expected.sum()) == pytest.approx(1)
    truth = enumerate_machine(built).p.view(2 ** units[1], -1).sum(0)
    assert float((expected - truth).abs().max()) > 0.005, "the annealing model must not be the machine itself"
    v = all_states(units[0])
    weights = raise_log_likelihood(built, v.repeat_interleave(20_000, 0), 1, betas=BETAS, base=base, seed=1).exp()
    each = weights.view(len(v), -1)
    error = each.std(1) / math.sqrt(each.shape[1])
    assert float(((each.mean(1) - expected).abs() / error).max()) < 4.5
    assert float((error / expected).max()) < 0.05


@pytest.mark.parametrize("n_betas", [5, 40])
def test_it_is_below_the_exact_likelihood_of_the_machines_own_samples(n_betas: int) -> None:
    """On average, by more than the noise over a coarse schedule, and nearly reaches it over a fine one."""
    built = machine(chain_graph((8, 6)), coupling_sd=1.0)
    truth = enumerate_machine(built)
    v = truth.draw(2000, torch.Generator().manual_seed(1))[0]
    exact = exact_log_likelihood(built, v[:200].contiguous(), exact_log_z(built))
    short = exact - raise_log_likelihood(built, v[:200].contiguous(), 5, betas=n_betas, seed=2)
    error = float(short.std()) / math.sqrt(len(short))
    assert float(short.mean()) > (5 * error if n_betas == 5 else -3 * error)
    assert float(short.mean()) < (2.0 if n_betas == 5 else 0.1)


def test_runs_and_betas_raise_it_and_numpy_is_given_back() -> None:
    rbm = RBM(10, 6, seed=1, weight_scale=1.0)
    v = all_states(10)
    few, many, fine = (raise_log_likelihood(rbm, v, n, betas=b, seed=3) for n, b in ((1, 4), (50, 4), (50, 60)))
    assert float((many - few).mean()) > 0.1
    exact = log_likelihood(rbm, v, exact_log_z(rbm))
    assert float((fine - exact).abs().mean()) < float((many - exact).abs().mean()) / 3
    assert float((many - exact).max()) > 0.5  # improbable cases are more probable when annealing is coarse
    from_numpy = raise_log_likelihood(rbm, v.numpy(), 2, betas=4, seed=3)
    assert isinstance(from_numpy, np.ndarray)
    assert from_numpy.tolist() == raise_log_likelihood(rbm, v, 2, betas=4, seed=3).tolist()


def test_deep_machines_are_refused() -> None:
    with pytest.raises(ValueError, match="model: coupling 1 joins two hidden layers"):
        raise_log_likelihood(DBM((4, 3, 2)), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="n_runs: expected a whole number of at least 1, got 0"):
        raise_log_likelihood(RBM(4, 3), torch.zeros(1, 4), 0)


# --- averaged moments -------------------------------------------------------------------------------------------------


def path_of(built: Machine, n_samples: int = 2000, n_updates: int = 300) -> MomentAveragedPath:
    samples = enumerate_machine(built).draw(n_samples, torch.Generator().manual_seed(1))
    base = [torch.linspace(-1, 1, layer.units) for layer in built.graph.layers]
    return moment_averaged_path(built, samples, base=base, n_knots=5, n_updates=n_updates, seed=3)


@pytest.mark.parametrize("name", ["rbm", "dbm3", "semi_restricted"])
def test_weights_along_averaged_moments_have_mean_z(name: str) -> None:
    """Both ways over few betas; 4.5 standard errors, one false alarm in 25,000 tests of all."""
    built = machine(GRAPHS[name], coupling_sd=0.6)
    truth, path, betas = enumerate_machine(built), path_of(built, n_updates=50), [0, 0.15, 0.3, 0.5, 0.7, 0.85, 1]
    samples = truth.draw(10_000, torch.Generator().manual_seed(2))
    forward = ais(built, 10_000, betas=betas, path=path, seed=4).log_weights - truth.log_z
    reverse = reverse_ais(built, samples, betas=betas, path=path, seed=4).log_weights + truth.log_z
    for log_weights in (forward, reverse):
        weights = log_weights.exp()
        error = float(weights.std()) / 100
        assert error < 0.03
        assert abs(float(weights.mean()) - 1) < 4.5 * error


def test_moments_run_linearly_between_the_ends() -> None:
    """Exact moments of the fitted machines; the deviations of the fit are far smaller than those of the other path."""
    built = machine(chain_graph((6, 4)), coupling_sd=1.5, bias_sd=1.0)
    path = path_of(built, 20_000)

    def moments(at: Machine) -> Tensor:
        truth = enumerate_machine(at)
        states = truth.states.double()
        return (states.T @ (truth.p[:, None] * states))[:6, 6:]

    first, last = moments(path.machine_at(0.0)), moments(path.machine_at(1.0))
    assert path.machine_at(1.0) is built
    halfway = (first + last) / 2
    assert float((moments(path.machine_at(0.5)) - halfway).abs().max()) < 0.04
    base = [torch.linspace(-1, 1, n) for n in (6, 4)]
    weights = [built.parameters.weight(0) / 2]
    biases = [(a + b) / 2 for a, b in zip(built.parameters.biases, base, strict=True)]
    geometric = moments(Machine.build(built.graph, weights, biases))
    assert float((geometric - halfway).abs().max()) > 0.06


def test_an_adaptive_schedule_follows_the_path() -> None:
    built = machine(GRAPHS["rbm"])
    path = path_of(built, n_updates=50)
    betas = adaptive_betas(built, path=path, drop=1e-3, seed=1)
    estimate = ais(built, 200, betas="adaptive", path=path, seed=1)
    assert estimate.n_betas > len(betas) > 10
    assert abs(estimate.log_z - exact_log_z(built)) < 5 * estimate.standard_error


def test_bad_paths_are_refused() -> None:
    built, other = machine(GRAPHS["rbm"]), machine(GRAPHS["rbm"], seed=1)
    path = path_of(built, n_updates=2)
    with pytest.raises(ValueError, match="path: expected one that ends at the model"):
        ais(other, path=path)
    with pytest.raises(ValueError, match="base: expected None beside a path"):
        ais(built, path=path, base=[torch.zeros(5), torch.zeros(4)])
    with pytest.raises(ValueError, match="knots: expected a first machine without weights"):
        MomentAveragedPath([built, built])
    with pytest.raises(ValueError, match="knots: expected at least two machines with one graph, got 1"):
        MomentAveragedPath([built])
    samples = enumerate_machine(built).draw(10, torch.Generator().manual_seed(1))
    for arguments, message in (
        ({"n_knots": 2}, "n_knots: expected at least 3"),
        ({"learning_rate": 0.0}, "learning_rate: expected a finite number above 0"),
        ({"n_updates": 0}, "n_updates: expected a whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            moment_averaged_path(built, samples, **arguments)  # type: ignore[arg-type]
    gaussian = RBM(3, 2, visible=Kind.GAUSSIAN)
    with pytest.raises(ValueError, match="model: averaged moments need Bernoulli units"):
        moment_averaged_path(gaussian, gaussian.chains(4, seed=0).layers)
