"""Deep Boltzmann machines: bounds against enumeration, completion, files, errors by name."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import DBM, RBM, Kind, MeanFieldNotConverged, mean_field
from bm_fast.checkpoints import CheckpointError
from bm_fast.estimation import ais, exact_log_z
from enumeration import all_states, enumerate_machine


def dbm(
    units: tuple[int, ...] = (4, 3, 3),
    sd: float = 0.8,
    seed: int = 0,
    visible: Kind = Kind.BERNOULLI,
    n_classes: int | None = None,
) -> DBM:
    """A DBM with normal weights and biases."""
    model = DBM(units, visible, seed=seed, weight_scale=sd, n_classes=n_classes)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for bias in model.biases:
            bias.copy_(0.5 * torch.randn(bias.shape, generator=generator))
    return model


def log_sums(model: DBM) -> tuple[Tensor, Tensor]:
    """All visible states, and the exact log Σ_h exp(-E(v, h)) of each."""
    truth = enumerate_machine(model.machine())
    n = model.n_visible
    numbers = truth.states[:, :n].long() @ (1 << torch.arange(n))
    totals = torch.zeros(2**n, dtype=torch.float64).index_add(0, numbers, truth.p)
    return all_states(n), totals.log() + truth.log_z


@pytest.mark.parametrize("units", [(4, 3, 3), (3, 3, 2, 2), (3, 2, 2, 2, 2)])
def test_bound_lies_below_the_exact_likelihood_and_near_it(units: tuple[int, ...], backend: str) -> None:
    model = dbm(units)
    v, exact = log_sums(model)
    bound = -model.variational_free_energy(v, iterations=200, tolerance=1e-5)
    assert bool((bound <= exact + 1e-6).all())
    assert bool((bound > exact - 0.5).all())


def test_bound_is_exact_for_one_hidden_layer() -> None:
    model = dbm((4, 5))
    v, exact = log_sums(model)
    torch.testing.assert_close(-model.variational_free_energy(v), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_bound_rises_with_every_iteration(damping: float) -> None:
    """Each update maximises the bound over its layer. Damped updates go part of the way up a concave function."""
    model = dbm((6, 7, 5, 4), sd=1.5)
    machine = model.machine()
    v = all_states(6)
    bounds = torch.stack(
        [
            -mean_field.free_energy(machine, mean_field.infer(machine, {0: v}, k, 0.0, damping).layers)
            for k in range(1, 12)
        ]
    )
    assert bool((bounds.diff(dim=0) > -1e-3).all())
    assert bool((bounds[-1] > bounds[0] + 1e-3).any())


def test_bound_of_gaussian_units() -> None:
    """One hidden layer: the bound is the free energy of the RBM with the same parameters."""
    model = dbm((3, 4), visible=Kind.GAUSSIAN)
    rbm = RBM(3, 4, visible=Kind.GAUSSIAN)
    with torch.no_grad():
        assert model.log_precision is not None
        model.log_precision.copy_(torch.tensor([0.3, -0.2, 0.1]))
    rbm.load_state_dict(
        {
            "weight": model.weights[0],
            "visible_bias": model.biases[0],
            "hidden_bias": model.biases[1],
            "log_precision": model.log_precision,
        }
    )
    v = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.variational_free_energy(v), rbm.free_energy(v), rtol=1e-5, atol=1e-5)


def test_cases_that_do_not_converge_are_reported() -> None:
    model = dbm((6, 7, 5), sd=2.0)
    v = all_states(6)
    with pytest.warns(
        MeanFieldNotConverged, match=r"mean field: \d+\.\d% of 64 cases still changed by more than 1e-06"
    ) as warned:
        posterior = model.mean_field(v, iterations=3, tolerance=1e-6)
    assert warned[0].filename == __file__
    assert 0 < posterior.unconverged <= 1
    assert posterior.unconverged == 1 - posterior.converged.float().mean().item()
    assert bool((posterior.iterations[~posterior.converged] == 3).all())
    assert bool((posterior.changes[~posterior.converged] > 1e-6).all())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed = model.mean_field(v, iterations=3, tolerance=0)  # a fixed number was asked for
    assert fixed.unconverged == 1


def test_damping_settles_cases_that_swing() -> None:
    """Strong negative couplings between layers updated in turn still settle; their means agree with the undamped."""
    model = dbm((5, 6, 6), sd=1.0)
    plain = model.mean_field(all_states(5), iterations=500, tolerance=1e-6)
    damped = model.mean_field(all_states(5), iterations=500, tolerance=1e-6, damping=0.5)
    assert plain.unconverged == damped.unconverged == 0
    assert float(damped.iterations.float().mean()) > float(plain.iterations.float().mean())


def test_exact_log_z_and_ais_agree_with_enumeration() -> None:
    """Four standard errors: a false alarm in 16,000 seeds."""
    model = dbm((4, 3, 3))
    truth = enumerate_machine(model.machine())
    assert exact_log_z(model) == pytest.approx(truth.log_z, abs=1e-9)
    estimate = ais(model, n_runs=200, betas=300, seed=1)
    assert abs(estimate.log_z - truth.log_z) < 4 * estimate.standard_error + 1e-3


def test_completion_samples_the_open_units_given_the_others() -> None:
    """2,000 chains against the enumerated conditional means; 5 standard errors over 2 units: once in 10^6 seeds."""
    model, n = dbm((4, 3, 3)), 2000
    truth = enumerate_machine(model.machine())
    values, known = torch.tensor([1, 0, 1, 0], dtype=torch.uint8), torch.tensor([True, True, False, False])
    held = torch.zeros(10, dtype=torch.bool)
    held[:2] = True
    p = truth.given(torch.cat([values, values.new_zeros(6)]), held)
    expected = p @ truth.states[:, :4].double()
    sample = model.complete(values.repeat(n, 1), known, sweeps=30, what="states")
    assert sample.dtype is torch.uint8
    assert bool((sample[:, :2] == values[:2]).all())
    error = (expected[2:] * (1 - expected[2:]) / n).sqrt()
    assert bool(((sample[:, 2:].double().mean(0) - expected[2:]).abs() < 5 * error).all())
    means = model.complete(values.repeat(n, 1), known, sweeps=30)
    assert bool((means[:, :2] == values[:2]).all())
    assert bool(((means[:, 2:].double().mean(0) - expected[2:]).abs() < 5 * error).all())


def test_features_and_reconstruction_keep_the_kind_of_array() -> None:
    model = dbm((4, 3, 2))
    v = all_states(4)
    features = model.features(v.numpy())
    assert isinstance(features, np.ndarray)
    assert features.shape == (16, 5)
    np.testing.assert_array_equal(features, torch.cat(model.mean_field(v).layers[1:], 1).numpy())
    assert model.reconstruct(v).shape == (16, 4)


def test_save_and_load(tmp_path: Path) -> None:
    model = dbm((4, 3, 2), visible=Kind.GAUSSIAN)
    model.save(tmp_path / "dbm.safetensors")
    loaded = DBM.load(tmp_path / "dbm.safetensors")
    assert loaded.units == (4, 3, 2)
    assert loaded.visible is Kind.GAUSSIAN
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(CheckpointError, match=r"holds no 'rbm', only \['dbm'\]"):
        RBM.load(tmp_path / "dbm.safetensors")


def test_sampling_keeps_clamped_units() -> None:
    model = dbm((4, 3, 3))
    v = torch.tensor([[1, 0, 1, 1]], dtype=torch.uint8).repeat(10, 1)
    chains = model.sample(model.chains(10, 0, v), 5, clamp=torch.tensor([True, False, True, False]))
    assert bool((chains.layers[0][:, [0, 2]] == 1).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DBM((5,)), r"units: expected those of the visible and of at least one hidden layer, got \[5\]"),
        (lambda: DBM(5), "units: expected those of the visible and of at least one hidden layer, got 5"),
        (lambda: DBM((5, 4), seed=1.5), "seed: expected a whole number, 0 to .*, got 1.5"),
        (lambda: DBM((5, 0, 3)), r"units of layer 'hidden1': expected a whole number of at least 1, got 0"),
        (lambda: DBM((5, 3), weight_scale=math.nan), "weight_scale: expected a finite number"),
        (lambda: dbm().mean_field(torch.zeros(2, 5)), r"v: expected shape \[n, 4\]"),
        (lambda: dbm().mean_field(torch.full((2, 4), 2.0)), "v: expected values from 0 to 1"),
        (lambda: dbm().mean_field(torch.zeros(2, 4), iterations=0), "iterations: expected 1 to"),
        (
            lambda: dbm().complete(torch.zeros(2, 4, dtype=torch.uint8), torch.ones(5)),
            r"mask: .* got torch.float32 \[5\]",
        ),
        (
            lambda: dbm().complete(torch.zeros(2, 4, dtype=torch.uint8), torch.ones(3, 4, dtype=torch.bool)),
            r"mask: expected bool or uint8 \[4\] or \[2, 4\], got torch.bool \[3, 4\]",
        ),
        (
            lambda: dbm().complete(torch.zeros(2, 4, dtype=torch.uint8), torch.ones(4, dtype=torch.bool), sweeps=0),
            "sweeps: expected 1 to",
        ),
        (
            lambda: dbm().complete(torch.zeros(2, 4), torch.ones(4, dtype=torch.bool)),
            r"v: expected torch.uint8 \[2, 4\], got torch.float32",
        ),
        (lambda: dbm().complete([[0, 1, 0, 1]], torch.ones(4)), "v: expected a torch tensor or a numpy array"),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
