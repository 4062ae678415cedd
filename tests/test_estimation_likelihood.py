"""Likelihoods, pseudo-likelihoods and reconstructions against enumeration."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from bm_fast import RBM, Coupling, Graph, Kind, Layer, Machine, chain_graph
from bm_fast.estimation import (
    AISEstimate,
    MeanLogLikelihood,
    exact_log_z,
    log_likelihood,
    mean_log_likelihood,
    pseudo_log_likelihood,
    reconstruction_error,
)
from bm_fast.estimation.tempering import TemperedLogZ
from enumeration import (
    GRAPHS,
    all_states,
    enumerate_gaussian,
    enumerate_machine,
    gaussian_parameters,
    machine,
    two_pathways,
)

pytestmark = pytest.mark.usefixtures("backend")


def rbm_machine(seed: int = 6) -> Machine:
    return machine(chain_graph((7, 5)), seed)


def visible_marginal(built: Machine) -> torch.Tensor:
    """p(v) of every state of layer 0, float64 ``[2^n_visible]``."""
    truth, n_visible = enumerate_machine(built), built.graph.layers[0].units
    numbers = truth.numbers([truth.states[:, :n_visible]])
    return torch.zeros(2**n_visible, dtype=torch.float64).index_add_(0, numbers, truth.p)


def test_log_likelihood_of_every_state() -> None:
    built = rbm_machine()
    found = log_likelihood(built, all_states(7), exact_log_z(built))
    assert found.dtype is torch.float64
    assert torch.allclose(found, visible_marginal(built).log(), atol=1e-5)


def test_log_likelihood_with_two_hidden_layers() -> None:
    """A star of layers is an RBM in two pieces."""
    graph = Graph((Layer("v", 4), Layer("left", 2), Layer("right", 3)), (Coupling(0, 1), Coupling(2, 0)))
    built = machine(graph, seed=2)
    found = log_likelihood(built, all_states(4), exact_log_z(built))
    assert torch.allclose(found, visible_marginal(built).log(), atol=1e-5)


def test_log_likelihood_of_gaussian_units() -> None:
    built = machine(chain_graph((3, 4), Kind.GAUSSIAN))
    truth = enumerate_gaussian(built)
    v = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(truth.mean, truth.variance.sqrt())
    log_p = (truth.p.log() + normal.log_prob(v.double()[:, None]).sum(-1)).logsumexp(1)
    assert torch.allclose(log_likelihood(built, v, truth.log_z), log_p, atol=1e-5)


def test_mean_log_likelihood_joins_both_errors() -> None:
    built, v = rbm_machine(), all_states(7)[:50]
    log_z = exact_log_z(built)
    each = log_likelihood(built, v, log_z)
    known = mean_log_likelihood(built, v, log_z)
    assert known.mean == pytest.approx(each.mean().item())
    assert known.standard_error == known.case_error == pytest.approx(each.std().item() / math.sqrt(50))
    estimate = AISEstimate.from_log_weights(log_z + torch.linspace(-1, 1, 100).double(), 10)
    estimated = mean_log_likelihood(built, v.numpy(), estimate)
    assert estimated.mean == pytest.approx(known.mean + log_z - estimate.log_z)
    assert estimated.standard_error == pytest.approx(math.hypot(known.case_error, estimate.standard_error))
    assert str(MeanLogLikelihood(-86.345, 0.3, 0.4)) == "-86.34 ± 0.50 nats (cases 0.30, log Z 0.40)"
    assert mean_log_likelihood(built, v[:1], log_z).case_error == math.inf


def test_mean_log_likelihood_hands_on_what_is_said_of_log_z() -> None:
    built, v = rbm_machine(), all_states(7)[:50]
    few = AISEstimate.from_log_weights(torch.zeros(5, dtype=torch.float64), 10)
    doubtful = mean_log_likelihood(built, v, few)
    assert not doubtful.trustworthy
    assert doubtful.reason == few.reason
    assert "; log Z NOT TRUSTWORTHY)" in str(doubtful)
    tempered = TemperedLogZ(1.5, 0.25, 1.0, 0.5, 2.0, 0.5, torch.ones(3), True, "")
    sound = mean_log_likelihood(built, v, tempered)
    assert sound.trustworthy
    assert (sound.mean, sound.log_z_error) == (pytest.approx(mean_log_likelihood(built, v, 1.5).mean), 0.25)


def exact_pseudo(built: Machine) -> torch.Tensor:
    """Σ_i log p(v_i | rest) of every state, from the enumerated marginal."""
    p, states = visible_marginal(built), all_states(7)
    numbers = torch.arange(len(p))
    pairs = [p[numbers] / (p[numbers] + p[numbers ^ (1 << i)]) for i in range(states.shape[1])]
    return torch.stack(pairs).log().sum(0)


def test_pseudo_log_likelihood_of_every_state() -> None:
    built = rbm_machine()
    found = pseudo_log_likelihood(built, all_states(7))
    assert found.dtype is torch.float64
    assert torch.allclose(found, exact_pseudo(built), atol=1e-9)


def test_pseudo_log_likelihood_over_several_chunks() -> None:
    built = rbm_machine()
    found = pseudo_log_likelihood(built, all_states(7).repeat(5, 1).float())
    assert torch.allclose(found, exact_pseudo(built).repeat(5), atol=1e-9)


def test_stochastic_pseudo_log_likelihood_has_the_exact_mean() -> None:
    """20,000 draws of the flipped unit for one case; 5 standard errors."""
    built = rbm_machine()
    v = all_states(7)[[77]].repeat(20_000, 1)
    found = pseudo_log_likelihood(built, v, method="stochastic", seed=3)
    error = found.std().item() / math.sqrt(len(found))
    assert found.unique().numel() == 7  # one value for each unit
    assert abs(found.mean().item() - exact_pseudo(built)[77].item()) < 5 * error
    assert torch.equal(found, pseudo_log_likelihood(built, v, method="stochastic", seed=3))
    assert not torch.equal(found, pseudo_log_likelihood(built, v, method="stochastic", seed=4))


def test_pseudo_log_likelihood_of_huge_weights_stays_finite() -> None:
    built = machine(chain_graph((7, 5)), coupling_sd=2000.0)
    for method in ("exact", "stochastic"):
        found = pseudo_log_likelihood(built, all_states(7), method=method)  # type: ignore[arg-type]
        assert bool(torch.isfinite(found).all())
        assert bool((found <= 0).all())


def test_pseudo_log_likelihood_refuses() -> None:
    with pytest.raises(ValueError, match="pseudo-likelihood needs Bernoulli visible units, got GAUSSIAN ones"):
        pseudo_log_likelihood(RBM(3, 2, Kind.GAUSSIAN), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="method: expected 'exact' or 'stochastic', got 'both'"):
        pseudo_log_likelihood(RBM(3, 2), torch.zeros(1, 3), method="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("visible", [Kind.BERNOULLI, Kind.GAUSSIAN])
def test_reconstruction_error(visible: Kind) -> None:
    built = machine(chain_graph((4, 3), visible), seed=1)
    weight = built.parameters.weight(0).double()
    b, c = (bias.double() for bias in built.parameters.biases)
    v = all_states(4).float() if visible is Kind.BERNOULLI else torch.randn(16, 4)
    field = b + torch.sigmoid(c + v.double() @ weight) @ weight.T
    mean = torch.sigmoid(field) if visible is Kind.BERNOULLI else field / gaussian_parameters(built)[3]
    found = reconstruction_error(built, v)
    assert found.dtype is torch.float64
    assert torch.allclose(found, (v.double() - mean).square().mean(1), rtol=1e-5)


Measure = Callable[[RBM, object], object]
MEASURES: dict[str, Measure] = {
    "log_likelihood": lambda rbm, v: log_likelihood(rbm, v, 1.0),  # type: ignore[type-var]
    "pseudo_log_likelihood": pseudo_log_likelihood,  # type: ignore[dict-item]
    "reconstruction_error": reconstruction_error,  # type: ignore[dict-item]
}


@pytest.mark.parametrize("measure", MEASURES)
def test_numpy_in_numpy_out(measure: str) -> None:
    rbm, v = RBM(4, 3, seed=1, weight_scale=1.0), all_states(4)
    found = MEASURES[measure](rbm, v.numpy())
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.float64
    assert found.tolist() == pytest.approx(MEASURES[measure](rbm, v).tolist())  # type: ignore[attr-defined]
    assert found.tolist() == pytest.approx(MEASURES[measure](rbm, v.float()).tolist())  # type: ignore[attr-defined]


BAD_VALUES = {
    "grey": (torch.full((2, 4), 0.5), "v: expected 0 or 1 for Bernoulli units, .*binarise the data first"),
    "range": (torch.full((2, 4), 3.0), "v: expected values from 0 to 1, got 3 to 3"),
    "NaN": (torch.full((2, 4), math.nan), "v: expected values from 0 to 1, got nan to nan"),
    "width": (torch.zeros(2, 5), r"v: expected shape \[n, 4\] with n >= 1, got \[2, 5\]"),
    "empty": (torch.zeros(0, 4), r"v: expected shape \[n, 4\] with n >= 1, got \[0, 4\]"),
    "dtype": (torch.zeros(2, 4).double(), "v: expected torch.uint8 or torch.float32 for Bernoulli units"),
    "type": ([[0, 1, 0, 1]], "v: expected a torch tensor or a numpy array, got list"),
}


@pytest.mark.parametrize("what", BAD_VALUES)
@pytest.mark.parametrize("measure", MEASURES)
def test_bad_values(measure: str, what: str) -> None:
    values, message = BAD_VALUES[what]
    with pytest.raises(ValueError, match=message):
        MEASURES[measure](RBM(4, 3), values)


@pytest.mark.parametrize("log_z", [math.nan, math.inf])
def test_bad_log_z(log_z: float) -> None:
    with pytest.raises(ValueError, match="log_z: expected a finite number"):
        log_likelihood(RBM(4, 3), torch.zeros(1, 4), log_z)


def test_log_z_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match="log_z: expected a number or an estimate, got str"):
        log_likelihood(RBM(4, 3), torch.zeros(1, 4), "1.5")  # type: ignore[arg-type]


@pytest.mark.parametrize("graph", [GRAPHS["dbm3"], two_pathways(), GRAPHS["semi_restricted"]])
def test_deep_machines_have_no_closed_likelihood(graph: Graph) -> None:
    built = machine(graph)
    v = torch.zeros(1, graph.layers[0].units)
    for measure in MEASURES.values():
        with pytest.raises(ValueError, match="joins two hidden layers"):
            measure(built, v)  # type: ignore[arg-type]
