"""Softmax layers: the law of their draws, means, held units, sums over them, and errors by name."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bm_fast import Coupling, Graph, Kind, Layer, Machine, chain_graph, ops, reference
from bm_fast.program import full_update, gibbs_program
from bm_fast.reference import choose, softmax, softmax_terms, uniform
from enumeration import energies, machine, states_of

N_WORDS = 2**24  # uniforms that there are


def alone(fields: Tensor) -> Machine:
    """A softmax layer without couplings."""
    return Machine.build(Graph((Layer("class", len(fields), Kind.SOFTMAX),), ()), [], [fields])


def fields(units: int, sd: float = 1.5, seed: int = 0) -> Tensor:
    return sd * torch.randn(units, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("units", [2, 10, 64, 65, 300])
def test_probabilities_of_all_random_words_are_the_softmax(units: int) -> None:
    """A unit turns on for all words between two thresholds, which bisection finds: exact, not a sample."""
    x = fields(units)
    _, sums = softmax_terms(x[None])
    below = torch.zeros(units, dtype=torch.int64)  # words that draw a unit beyond each
    first, last = torch.zeros_like(below), torch.full_like(below, N_WORDS)
    while bool((first < last).any()):
        middle = (first + last) // 2
        beyond = sums[0] < uniform(middle << 8) * sums[0, -1]
        last, first = torch.where(beyond, middle, last), torch.where(beyond, first, torch.minimum(middle + 1, last))
    p = torch.diff(first.double() / N_WORDS, prepend=torch.zeros(1))
    assert p.sum() == 1
    torch.testing.assert_close(p, x.double().softmax(0), rtol=0, atol=units * 2.0**-23)
    torch.testing.assert_close(softmax(x[None])[0].double(), x.double().softmax(0), rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("units", [3, 10, 70])
def test_draws_have_the_frequencies_of_the_softmax(units: int, backend: str) -> None:
    """Pearson's statistic of 20,000 draws is chi-squared; 6 standard deviations by the Wilson-Hilferty cube root.

    The seeds are fixed; a false alarm has a chance below 10^-8.
    """
    built, n = alone(fields(units)), 20_000
    chains = built.chains(n, seed=4)
    started = chains.layers[0].double().sum(0)
    built.sweep(gibbs_program(built.graph), chains, 1)
    drawn = chains.layers[0].double().sum(0)
    for counts, p in ((started, torch.full((units,), 1 / units)), (drawn, built.parameters.biases[0].softmax(0))):
        expected = n * p.double()
        statistic, freedom = ((counts - expected).square() / expected).sum().item(), units - 1
        z = ((statistic / freedom) ** (1 / 3) - 1 + 2 / (9 * freedom)) / math.sqrt(2 / (9 * freedom))
        assert counts.sum() == n
        assert abs(z) < 6


def test_extreme_fields_still_turn_exactly_one_unit_on(backend: str) -> None:
    built = alone(torch.tensor([3e38, -3e38, 3e38, 0.0]))
    chains = built.chains(500, seed=1)
    built.sweep(gibbs_program(built.graph), chains, 2, beta=torch.full((500,), 1e10))
    counts = chains.layers[0].sum(0).tolist()
    assert counts[1] == counts[3] == 0
    assert counts[0] + counts[2] == 500
    assert min(counts[0], counts[2]) > 150  # of 250 each, 9 standard deviations


def test_the_word_decides_alone() -> None:
    x = fields(5).expand(2, 5)
    words = torch.tensor([0, 2**32 - 1])
    assert choose(x, words).tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]
    held = torch.tensor([[True, False, False, False, True]]).expand(2, 5)
    assert choose(x, words, held).tolist() == [[0, 1, 0, 0, 0], [0, 0, 0, 1, 0]]


def test_held_units_leave_the_choice_among_the_others(backend: str) -> None:
    """One that is on keeps the layer; one that is off is never chosen; the means are those of the choice."""
    built, n = alone(fields(4)), 4000
    mask = torch.tensor([1, 0, 1, 0], dtype=torch.uint8).repeat(n, 1)
    chains = built.chains(n, seed=2)
    before, means = chains.layers[0].clone(), torch.zeros(n, 4)
    built.sweep(gibbs_program(built.graph), chains, 3, clamp={0: mask}, means={0: means})
    kept = (before * mask).sum(1) == 1
    assert bool(kept.any() and not kept.all())
    assert torch.equal(chains.layers[0][kept], before[kept])
    assert torch.equal(means[kept], before[kept].float())
    free = chains.layers[0][~kept]
    assert not bool(free[:, [0, 2]].any())
    assert not torch.equal(free, before[~kept])
    expected = torch.zeros(4)
    expected[[1, 3]] = built.parameters.biases[0][[1, 3]].softmax(0)
    torch.testing.assert_close(means[~kept], expected.expand(int((~kept).sum()), 4), rtol=1e-6, atol=1e-7)


def test_means_and_energies_against_enumeration(backend: str) -> None:
    built = machine(chain_graph((3, 4), n_classes=5))
    states = states_of(built.graph)
    layers = tuple(part.contiguous() for part in states.split([3, 4, 5], 1))
    torch.testing.assert_close(built.energy(layers), energies(built, states), rtol=1e-12, atol=1e-12)
    means = built.layer_means(full_update(built.graph, 2), layers)
    x = layers[1].double() @ built.parameters.weight(1).double() + built.parameters.biases[2].double()
    torch.testing.assert_close(means.double(), x.softmax(1), rtol=0, atol=1e-6)
    assert float((means.double().sum(1) - 1).abs().max()) < 1e-6


def test_free_energy_of_extreme_fields(backend: str) -> None:
    """Fields that overflow count as the largest that there is, alike on all backends."""
    graph = Graph((Layer("v", 2), Layer("class", 3, Kind.SOFTMAX)), (Coupling(0, 1),))
    built = Machine.build(graph, [torch.ones(2, 3)], [torch.zeros(2), torch.tensor([3e38, 1e38, 3e38])])
    values = (torch.zeros(1, 2, dtype=torch.uint8), torch.zeros(1, 3, dtype=torch.uint8))
    found = built.free_energy((full_update(graph, 1),), values, betas=torch.tensor([0.0, 1.0, 100.0]))
    assert found[:, 0].tolist() == pytest.approx([-math.log(3), -3e38, -math.inf], rel=1e-6)


@pytest.mark.parametrize("n_chains", [3, 45, 64, 130])
@pytest.mark.parametrize("units", [2, 65, 1000])
def test_all_kernels_choose_as_the_reference_does(units: int, n_chains: int) -> None:
    """Ties, beta of 0 and 10^30, masks that leave one unit or none, and many classes: the same bits."""
    generator = torch.Generator().manual_seed(units)
    graph = Graph((Layer("v", 30), Layer("class", units, Kind.SOFTMAX)), (Coupling(0, 1),))
    for sd in (0.0, 1.0, 50.0):
        weight = sd * torch.randn(30, units, generator=generator)
        built = Machine.build(graph, [weight], [torch.zeros(30), torch.zeros(units)])
        beta = torch.rand(n_chains, generator=generator)
        beta[0], beta[1] = 0.0, 1e30
        mask = (torch.rand(n_chains, units, generator=generator) < 0.5).to(torch.uint8)
        mask[:2], mask[1, -1], mask[2] = 1, 0, 0
        chains = built.chains(n_chains, seed=7)
        expected, means = chains.clone(), [torch.zeros(n_chains, units) for _ in range(2)]
        program = gibbs_program(graph)
        built.sweep(program, chains, 8, beta=beta, clamp={1: mask}, means={1: means[0]})
        reference.sweep(
            built.parameters, program, expected.layers, 8, seed=7, first_chain=0, first_sweep=0, beta=beta, base=None,
            clamp={1: mask}, means={1: means[1]},
        )  # fmt: skip
        assert bool((chains.layers[1].sum(1) == 1).all())
        assert all(torch.equal(a, b) for a, b in zip(chains.layers, expected.layers, strict=True))
        assert torch.equal(*means)


def test_mean_field_takes_softmax_layers(backend: str) -> None:
    """At rest the means are those given the others' means, on all kernels."""
    built = machine(chain_graph((70, 40), n_classes=10), coupling_sd=0.1)
    values = [torch.rand(9, n, generator=torch.Generator().manual_seed(n)) for n in (70, 40, 10)]
    program = gibbs_program(built.graph, clamped=[0])
    built.mean_field(program, values, 200, tolerance=1e-6)
    assert float((values[2].sum(1) - 1).abs().max()) < 1e-5
    for i in (1, 2):
        means = built.layer_means(full_update(built.graph, i), values)
        torch.testing.assert_close(values[i], means, rtol=0, atol=1e-4)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_a_layer_needs_two_units() -> None:
    with pytest.raises(ValueError, match="units of layer 'a': expected at least 2 softmax units, got 1"):
        Layer("a", 1, Kind.SOFTMAX)


@pytest.mark.parametrize("on", [0, 2])
def test_states_have_one_unit_on(on: int) -> None:
    built = machine(chain_graph((3, 4), n_classes=5))
    chains = built.chains(6, seed=0)
    chains.layers[2][3] = 0
    chains.layers[2][3, :on] = 1
    message = rf"chains.layers\[2\] \(labels\): expected exactly one softmax unit on, got {on}"
    with pytest.raises(ValueError, match=message):
        built.sweep(gibbs_program(built.graph), chains, 1)
    with pytest.raises(ValueError, match="expected exactly one softmax unit on"):
        built.energy(chains.layers)
    with pytest.raises(ValueError, match="expected exactly one softmax unit on"):
        ops.EnergyGap(built).of(chains.layers)
