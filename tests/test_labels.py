"""Label layers of deep machines: inference, classification and conditional samples against enumeration; errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import DBM, RBM, Kind, MeanFieldNotConverged
from bm_fast.estimation import ais, base_biases, exact_log_likelihood, exact_log_z, variational_bound
from bm_fast.mean_field import upward_program
from bm_fast.program import Input
from enumeration import DRIFT_BOUND, all_states, enumerate_machine, variation_ratio
from test_dbm import dbm

K = 3
SHAPES = [(4, 5), (4, 3, 3), (3, 3, 2, 2)]


def labelled(units: tuple[int, ...] = (4, 3, 3), sd: float = 0.8) -> DBM:
    return dbm(units, sd, n_classes=K)


def joint(model: DBM) -> tuple[Tensor, Tensor]:
    """All visible states, and the exact log Σ_h exp(-E(v, h, y)) of each with each class, float64 ``[2^n, K]``."""
    truth = enumerate_machine(model.machine())
    n = model.n_visible
    v = truth.states[:, :n].long() @ (1 << torch.arange(n))
    y = truth.states[:, -K:].long().argmax(1)
    totals = torch.zeros(2**n * K, dtype=torch.float64).index_add(0, v * K + y, truth.p)
    return all_states(n), totals.view(-1, K).log() + truth.log_z


# --- inference --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", SHAPES)
def test_bounds_with_and_without_labels_lie_below_the_exact_likelihood(units: tuple[int, ...], backend: str) -> None:
    model = labelled(units)
    v, exact = joint(model)
    for y in range(K):
        labels = torch.full((len(v),), y)
        bound = -model.variational_free_energy(v, 300, 1e-6, labels=labels)
        assert bool((bound <= exact[:, y] + 1e-5).all())
        assert bool((bound > exact[:, y] - 0.5).all())
        if len(units) == 2:
            torch.testing.assert_close(bound, exact[:, y], rtol=0, atol=1e-5)
    bound = -model.variational_free_energy(v, 300, 1e-6)
    assert bool((bound <= exact.logsumexp(1) + 1e-5).all())
    assert bool((bound > exact.logsumexp(1) - 1).all())


@pytest.mark.parametrize("units", SHAPES)
def test_classes_have_their_exact_probabilities(units: tuple[int, ...], backend: str) -> None:
    """Exact with one hidden layer; otherwise within what the bounds of tiny machines leave open."""
    model = labelled(units)
    v, exact = joint(model)
    p = exact.softmax(1)
    atol = 1e-6 if len(units) == 2 else 0.15
    torch.testing.assert_close(model.label_probabilities(v, 300, 1e-6), p, rtol=0, atol=atol)
    torch.testing.assert_close(model.label_means(v, 300, 1e-6).double(), p, rtol=0, atol=0.25)
    assert (model.predict(v, 300, 1e-6) == p.argmax(1)).float().mean() > (0.99 if len(units) == 2 else 0.85)
    if len(units) == 2:
        torch.testing.assert_close(-model.class_free_energies(v), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("ask", [DBM.predict, DBM.label_probabilities, DBM.class_free_energies])
def test_classes_that_do_not_converge_are_reported_once(ask: Callable[..., Tensor]) -> None:
    model = labelled((6, 7, 5), sd=2.0)
    with pytest.warns(MeanFieldNotConverged, match=r"\d+\.\d% of 64 cases") as warned:
        ask(model, all_states(6), iterations=3, tolerance=1e-6)
    assert [warning.filename for warning in warned] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask(model, all_states(6), iterations=3, tolerance=0)


def test_log_z_and_likelihood_count_the_labels() -> None:
    model = labelled()
    v, exact = joint(model)
    log_z = enumerate_machine(model.machine()).log_z
    assert exact_log_z(model) == pytest.approx(log_z, abs=1e-10)
    likelihood = exact_log_likelihood(model, v, log_z)
    torch.testing.assert_close(likelihood, exact.logsumexp(1) - log_z, rtol=0, atol=1e-5)
    assert bool((variational_bound(model, v, log_z) <= likelihood + 1e-5).all())
    labels = torch.eye(K)[torch.arange(16) % K]
    estimate = ais(model, 400, betas=200, base=base_biases(model, {0: v, 3: labels}))
    assert abs(estimate.log_z - log_z) < 5 * estimate.standard_error < 0.2  # a false alarm in 10^6 runs


def test_the_first_pass_doubles_for_layers_that_are_not_yet_known_but_not_for_labels() -> None:
    """As in the released code of 2009: below the top doubled, the top and the labels as they are."""
    graph = labelled((4, 3, 3, 2)).graph
    for clamped in ((0,), (0, 4)):
        program = upward_program(graph, clamped)
        inputs = {update.layer: [(i.coupling, i.scale) for i in update.inputs] for block in program for update in block}
        top = [(2, 1.0)] if clamped == (0,) else [(2, 1.0), (3, 1.0)]
        assert inputs == {1: [(0, 2.0)], 2: [(1, 2.0)], 3: top} | ({} if 4 in clamped else {4: [(3, 1.0)]})
    assert upward_program(graph, (4,))[0][0].inputs == (Input(3, True),)


def test_other_uses_leave_the_labels_out() -> None:
    model = labelled((4, 3, 2))
    v = all_states(4)
    posterior = model.mean_field(v)
    assert [layer.shape[1] for layer in posterior.layers] == [4, 3, 2, K]
    assert torch.equal(model.features(v), torch.cat(posterior.layers[1:3], 1))
    assert model.reconstruct(v).shape == (16, 4)
    network = model.to_mlp(n_classes=K)
    assert network(model.mlp_inputs(v)).shape == (16, K)
    assert model.units == (4, 3, 2)
    assert dbm().n_classes is None


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", [(4, 4), (3, 3, 2)])
def test_samples_given_a_label_have_their_exact_law(units: tuple[int, ...], backend: str) -> None:
    """Chains begin anywhere, and 60 sweeps forget it. The yardstick of the no-drift tests, seven deviations off."""
    model, n = labelled(units, sd=0.4), 6000
    labels = torch.arange(n) % K
    chains = model.labelled_chains(labels, seed=3)
    model.sample(chains, 60, hold=["labels"])
    truth = enumerate_machine(model.machine())
    assert torch.equal(chains.layers[-1].argmax(1), labels)
    for y in range(K):
        held = torch.zeros(truth.states.shape[1], dtype=torch.bool)
        held[-K:] = True
        values = torch.zeros_like(held, dtype=torch.uint8)
        values[-K + y] = 1
        numbers = truth.numbers([layer[labels == y] for layer in chains.layers])
        assert variation_ratio(truth.given(values, held), numbers) < DRIFT_BOUND


def test_without_holding_it_the_label_is_drawn_too() -> None:
    model = labelled()
    chains = model.labelled_chains(torch.zeros(200, dtype=torch.int64), seed=1)
    model.sample(chains, 5)
    assert bool((chains.layers[-1].sum(0) > 0).all())


# --- files and arrays -------------------------------------------------------------------------------------------------


def test_files_keep_the_labels(tmp_path: Path) -> None:
    model = labelled()
    model.save(tmp_path / "dbm.safetensors")
    loaded = DBM.load(tmp_path / "dbm.safetensors")
    assert loaded.n_classes == K
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    assert "n_classes=3" in repr(loaded)
    assert "n_classes" not in dbm().shape()


def test_numpy_in_numpy_out() -> None:
    model, v = labelled(), all_states(4).numpy()
    labels = np.zeros(16, dtype=np.int64)
    for method in (model.label_means, model.label_probabilities, model.predict, model.class_free_energies):
        result = method(v)
        assert isinstance(result, np.ndarray)
        assert np.array_equal(result, method(torch.from_numpy(v)).numpy())
    assert isinstance(model.variational_free_energy(v, labels=labels), np.ndarray)
    assert torch.equal(model.labelled_chains(labels, 0).layers[-1], torch.tensor([1, 0, 0]).byte().expand(16, K))


def test_gaussian_visible_units_take_labels() -> None:
    model = dbm((3, 4), visible=Kind.GAUSSIAN, n_classes=K)
    v = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    free = torch.stack([model.variational_free_energy(v, 300, 1e-6, labels=torch.full((6,), y)) for y in range(K)], 1)
    torch.testing.assert_close(model.class_free_energies(v), free, rtol=0, atol=1e-4)


# --- errors -----------------------------------------------------------------------------------------------------------

V = all_states(4)
BAD_LABELS = {
    "range": (torch.full((16,), K), "labels: expected 0 to 2, got 3 to 3"),
    "unknown": (torch.full((16,), -1), "labels: expected 0 to 2, got -1 to -1"),
    "dtype": (torch.zeros(16), r"labels: expected int64 \[16\], got torch.float32 \[16\]"),
    "length": (torch.zeros(15, dtype=torch.int64), r"labels: expected int64 \[16\], got torch.int64 \[15\]"),
    "shape": (torch.zeros(16, 1, dtype=torch.int64), r"labels: expected int64 \[16\], got torch.int64 \[16, 1\]"),
    "list": ([0] * 16, "labels: expected a torch tensor or a numpy array, got list"),
    "numpy": (np.zeros(16, dtype=np.int32), r"labels: expected int64 \[16\], got int32 \[16\]"),
    "device": (torch.zeros(16, dtype=torch.int64, device="meta"), "labels: expected a tensor on cpu"),
}


@pytest.mark.parametrize("bad", BAD_LABELS)
def test_bad_labels_are_named(bad: str) -> None:
    labels, message = BAD_LABELS[bad]
    with pytest.raises(ValueError, match=message):
        labelled().mean_field(V, labels=labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dbm().predict(V), r"model: expected one with labels, as DBM\(units, n_classes=10\) makes"),
        (lambda: dbm().label_means(V), "model: expected one with labels"),
        (lambda: dbm().mean_field(V, labels=torch.zeros(16, dtype=torch.int64)), "model: expected one with labels"),
        (lambda: dbm().labelled_chains(torch.zeros(2, dtype=torch.int64), 0), "model: expected one with labels"),
        (lambda: labelled().labelled_chains(torch.zeros(0, dtype=torch.int64), 0), "n_chains: expected 1 to"),
        (
            lambda: labelled().mean_field(V[:0], labels=torch.zeros(0, dtype=torch.int64)),
            "labels: expected at least one",
        ),
        (lambda: (m := dbm()).sample(m.chains(2, 0), 1, hold=["labels"]), "hold: no layer 'labels'; the layers are"),
        (lambda: DBM((4, 3), n_classes=1), "units of layer 'labels': expected at least 2 softmax units, got 1"),
        (lambda: DBM((4, 3), Kind.SOFTMAX), "visible: expected BERNOULLI or GAUSSIAN, got SOFTMAX"),
        (lambda: RBM(4, 3, Kind.SOFTMAX), "visible: expected BERNOULLI or GAUSSIAN, got SOFTMAX"),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
