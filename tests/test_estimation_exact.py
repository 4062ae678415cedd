"""Exact log Z and free energies against enumeration of every state in float64."""

from __future__ import annotations

import math

import pytest
import torch

from bm_fast import RBM, Coupling, Graph, Kind, Layer, Machine, chain_graph
from bm_fast.estimation import exact_log_z, log_likelihood
from bm_fast.estimation._softplus import softplus_sums
from bm_fast.program import full_update
from enumeration import (
    GRAPHS,
    all_states,
    energies,
    enumerate_gaussian,
    enumerate_machine,
    gaussian_parameters,
    machine,
    states_of,
)


@pytest.mark.parametrize("name", GRAPHS)
def test_log_z_is_that_of_all_states(name: str) -> None:
    built = machine(GRAPHS[name], seed=3)
    assert exact_log_z(built) == pytest.approx(enumerate_machine(built).log_z, abs=1e-12)


@pytest.mark.parametrize("units", [(3, 8), (8, 3), (1, 1), (6, 6)])
def test_log_z_enumerates_either_layer(units: tuple[int, int]) -> None:
    built = machine(chain_graph(units), seed=4)
    assert exact_log_z(built) == pytest.approx(enumerate_machine(built).log_z, abs=1e-12)


@pytest.mark.parametrize("units", [(3, 6), (6, 3)])
def test_log_z_integrates_gaussian_layers(units: tuple[int, int]) -> None:
    built = machine(chain_graph(units, Kind.GAUSSIAN), seed=4)
    assert exact_log_z(built) == pytest.approx(enumerate_gaussian(built).log_z, abs=1e-12)


@pytest.mark.parametrize("coupling", [Coupling(0, 1), Coupling(1, 0)])
def test_log_z_with_couplings_among_the_enumerated_layers(coupling: Coupling) -> None:
    """Twelve enumerated units, two more than the low half holds: couplings run within it and between the halves."""
    layers = (Layer("left", 5), Layer("right", 7), Layer("hidden", 6))
    built = machine(Graph(layers, (coupling, Coupling(0, 2), Coupling(2, 1))), seed=1, coupling_sd=0.5)
    assert exact_log_z(built) == pytest.approx(enumerate_machine(built).log_z, abs=1e-11)


def test_log_z_of_uncoupled_layers() -> None:
    built = machine(Graph((Layer("a", 3), Layer("b", 2)), ()), seed=2)
    assert exact_log_z(built) == pytest.approx(enumerate_machine(built).log_z, abs=1e-12)


def test_log_z_over_several_blocks_of_states() -> None:
    """Coupled in pairs, the units factorise: log Z = Σ log(1 + e^b + e^c + e^(b + c + w)). 2^18 states."""
    n = 18
    rbm = RBM(n, n, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        rbm.weight.copy_(torch.randint(-64, 65, (n,), generator=generator).float().diag() / 16)  # on the grid
        rbm.visible_bias.normal_(generator=generator)
        rbm.hidden_bias.normal_(generator=generator)
    b, c, w = rbm.visible_bias.double(), rbm.hidden_bias.double(), rbm.weight.double().diag()
    pairs = torch.stack((torch.zeros_like(b), b, c, b + c + w)).logsumexp(0)
    assert exact_log_z(rbm) == pytest.approx(pairs.sum().item(), rel=1e-13)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_log_z_with_fields_beyond_the_range_of_exp(scale: float) -> None:
    built = machine(chain_graph((6, 5)), coupling_sd=scale, bias_sd=scale)
    assert exact_log_z(built) == pytest.approx(enumerate_machine(built).log_z, rel=1e-13)


def test_log_z_is_that_of_the_weights_on_the_grid() -> None:
    """Beside a weight of 200 the grid has steps of 1/128: a weight of 0.003 is not sampled, and not counted."""
    zeros = torch.zeros(1), torch.zeros(2)
    built = Machine.build(chain_graph((1, 2)), [torch.tensor([[200.0, 0.003]])], zeros)
    assert exact_log_z(built) == pytest.approx(200 + math.log(2) + math.log1p(3 * math.exp(-200)), abs=1e-12)


def test_log_z_refuses_more_than_the_limit() -> None:
    with pytest.raises(ValueError, match=r"would enumerate the 26 units of \['hidden'\], the limit is 25; .*ais"):
        exact_log_z(RBM(30, 26))


def test_log_z_refuses_gaussian_layers_of_different_colours() -> None:
    layers = (Layer("a", 2, Kind.GAUSSIAN), Layer("b", 2), Layer("c", 2), Layer("d", 2, Kind.GAUSSIAN))
    built = machine(Graph(layers, tuple(Coupling(i, i + 1) for i in range(3))))
    with pytest.raises(ValueError, match=r"Gaussian layers \['a', 'd'\] have different colours"):
        exact_log_z(built)


def test_log_z_refuses_what_is_no_model() -> None:
    with pytest.raises(TypeError, match="model: expected a Machine or a model with a machine"):
        exact_log_z(3)  # type: ignore[arg-type]


def test_softplus_sums() -> None:
    """Ordinary fields, fields that fill a product at once, and fields that no product holds."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([1.0, 0.01, 20.0, *[70.0] * 12, 3000.0, 1.0]).double()
    a = torch.randn(300, 17, generator=generator, dtype=torch.float64) * scale
    b = torch.randn(130, 17, generator=generator, dtype=torch.float64) * scale
    expected = torch.logaddexp(a[:, None] + b[None], torch.zeros((), dtype=torch.float64)).sum(-1)
    assert torch.allclose(softplus_sums(a, b), expected, rtol=1e-13, atol=1e-13)


def test_softplus_sums_restore_the_number_of_threads() -> None:
    torch.set_num_threads(2)
    softplus_sums(torch.zeros(1, 1).double(), torch.zeros(1, 1).double())
    assert torch.get_num_threads() == 2


BETAS = torch.tensor([0.0, 0.25, 1.0, 1.75])


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("name", [name for name in GRAPHS if name != "semi_restricted"])
def test_free_energy_sums_out_either_colour(name: str, with_base: bool) -> None:
    graph = GRAPHS[name]
    built, sizes = machine(graph), [layer.units for layer in graph.layers]
    generator = torch.Generator().manual_seed(2)
    base = [torch.randn(n, generator=generator) for n in sizes] if with_base else None
    states = states_of(graph)
    layers = [part.contiguous() for part in states.split(sizes, 1)]
    for colour in graph.colours():
        kept = torch.cat([torch.full((n,), i not in colour) for i, n in enumerate(sizes)])
        # states that agree in the kept units share a free energy
        kept_numbers = (states[:, kept].long() << torch.arange(int(kept.sum()))).sum(1)
        found = built.free_energy([full_update(graph, i) for i in colour], layers, betas=BETAS, base=base)
        for k, beta in enumerate(BETAS.tolist()):
            weights = (-energies(built, states, beta, base)).exp()
            summed = torch.zeros(2 ** int(kept.sum()), dtype=torch.float64).index_add_(0, kept_numbers, weights)
            assert torch.allclose(found[k], -summed.log()[kept_numbers], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("with_base", [False, True])
def test_free_energy_of_gaussian_units(with_base: bool) -> None:
    built = machine(chain_graph((3, 4), Kind.GAUSSIAN))
    weight, b, c, precision = gaussian_parameters(built)
    base = [torch.tensor([0.5, -1.0, 0.2]), torch.tensor([0.1, 0.0, -0.4, 1.0])] if with_base else None
    betas = torch.tensor([0.3, 1.0, 1.5])
    v, h = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)), all_states(4)
    base_b, base_c = (x.double() for x in base) if base else (0.0 * b, 0.0 * c)
    over_h = built.free_energy([full_update(built.graph, 1)], [v, h], betas=betas, base=base)
    over_v = built.free_energy([full_update(built.graph, 0)], [v, h], betas=betas, base=base)
    for k, beta in enumerate(betas.double()):
        start = 1 - beta if with_base else 0.0
        curvature = precision * (1.0 if with_base else beta)
        visible, hidden = beta * b + start * base_b, beta * c + start * base_c
        quadratic = (v.double().square() * curvature).sum(1) / 2
        joint = (v.double() @ visible - quadratic)[:, None] + (beta * (v.double() @ weight) + hidden) @ h.double().T
        assert torch.allclose(over_h[k], -joint.logsumexp(1), rtol=1e-5, atol=1e-5)
        truth = enumerate_gaussian(built, beta.item(), base)
        # p(h) = exp(-F(h)) / Z
        assert torch.allclose(over_v[k], -truth.p.log() - truth.log_z, rtol=1e-5, atol=1e-5)


# --- published maxima -------------------------------------------------------------------------------------------------


def bars_and_stripes(n: int, duplicates: bool) -> torch.Tensor:
    """All images of full rows and all of full columns; blank and full images occur in both."""
    lines = all_states(n)
    rows = lines[:, :, None].expand(-1, n, n).flatten(1)
    columns = lines[:, None, :].expand(-1, n, n).flatten(1)
    both = torch.cat((rows, columns))
    return both if duplicates else both.unique(dim=0)


def labelled_shifter(n: int) -> torch.Tensor:
    """Every pattern, the pattern shifted by one to the left, not at all or to the right, and which of these it was."""
    patterns = all_states(n)
    shifts = [torch.cat((patterns, patterns.roll(shift, 1)), 1) for shift in (-1, 0, 1)]
    labels = torch.eye(3, dtype=torch.uint8)
    return torch.cat([torch.cat((s, label.expand(len(s), -1)), 1) for s, label in zip(shifts, labels, strict=True)])


def memory_of(patterns: torch.Tensor, sharpness: float = 40.0, height: float = 16.0) -> RBM:
    """An RBM that is all but the empirical distribution: one hidden unit for each distinct pattern x.

    Its field height - sharpness · (Hamming distance to x) + log(count) lifts that one state and no other
    (Le Roux and Bengio, Neural Computation 2008).
    """
    distinct, counts = patterns.unique(dim=0, return_counts=True)
    rbm = RBM(patterns.shape[1], len(distinct))
    with torch.no_grad():
        rbm.weight.copy_((2 * distinct.float() - 1).T * sharpness)
        rbm.hidden_bias.copy_(height + counts.log() - sharpness * distinct.sum(1))
    return rbm


PUBLISHED = {
    "bars and stripes 3x3": (bars_and_stripes(3, duplicates=True), -41.589),
    "bars and stripes 3x3, distinct": (bars_and_stripes(3, duplicates=False), -2.6391 * 14),
    "bars and stripes 4x4": (bars_and_stripes(4, duplicates=True), -108.131),
    "bars and stripes 4x4, distinct": (bars_and_stripes(4, duplicates=False), -3.4012 * 30),
    "labelled shifter, 4 bits": (labelled_shifter(4), -185.82),
    "shifting bar": (torch.eye(9, dtype=torch.uint8), -19.775),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_perfect_memory_reaches_the_published_maximum(name: str) -> None:
    """The largest log-likelihoods that any model can have on these sets, by exact log Z of a machine that has them."""
    patterns, maximum = PUBLISHED[name]
    rbm = memory_of(patterns)
    total = log_likelihood(rbm, patterns, exact_log_z(rbm)).sum().item()
    assert total == pytest.approx(maximum, abs=0.02)
