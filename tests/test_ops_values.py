"""What the operations compute, against formulas in float64 that share no code with them; both backends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bm_fast import Coupling, Graph, Kind, Layer, Machine, chain_graph, ops, reference
from bm_fast.parameters import MAX_FRACTION_BITS, MAX_WEIGHT
from bm_fast.program import full_update
from engine_cases import make_machine, tree

pytestmark = pytest.mark.usefixtures("backend")


def states_of(machine: Machine, n_chains: int, seed: int = 0) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(n_chains, layer.units, generator=g)
        if layer.kind is Kind.GAUSSIAN
        else (torch.rand(n_chains, layer.units, generator=g) < 0.4).to(torch.uint8)
        for layer in machine.graph.layers
    )


def energy_by_hand(machine: Machine, states: tuple[Tensor, ...]) -> Tensor:
    p, v = machine.parameters, [state.double() for state in states]
    total = torch.zeros(len(v[0]), dtype=torch.float64)
    for state, bias, precision in zip(v, p.biases, p.precisions, strict=True):
        total -= state @ bias.double()
        if precision is not None:
            total += 0.5 * state.square() @ precision.double()
    for i, coupling in enumerate(machine.graph.couplings):
        total -= torch.einsum("ni,ij,nj->n", v[coupling.lower], p.weight(i).double(), v[coupling.upper])
    return total


@pytest.mark.parametrize("graph", [chain_graph((1, 1)), chain_graph((150, 67)), chain_graph((30, 20, 65)), tree()])
def test_energy_of_binary_states(graph: Graph) -> None:
    machine = make_machine(graph)
    states = states_of(machine, 19)
    torch.testing.assert_close(machine.energy(states), energy_by_hand(machine, states), rtol=1e-12, atol=1e-10)


def test_energy_of_gaussian_states() -> None:
    machine = make_machine(chain_graph((150, 67), Kind.GAUSSIAN), scale=0.1)
    states = states_of(machine, 19)
    torch.testing.assert_close(machine.energy(states), energy_by_hand(machine, states), rtol=1e-5, atol=1e-4)


def test_energy_where_the_gaussian_layer_is_the_upper_end() -> None:
    graph = Graph((Layer("h", 40), Layer("v", 33, Kind.GAUSSIAN)), (Coupling(0, 1),))
    machine = make_machine(graph, scale=0.2)
    states = states_of(machine, 19)
    torch.testing.assert_close(machine.energy(states), energy_by_hand(machine, states), rtol=1e-6, atol=1e-5)


def test_means_are_the_logistic_function_of_the_field() -> None:
    machine = make_machine(chain_graph((150, 67)))
    states = states_of(machine, 19)
    beta = torch.linspace(0, 2, 19)
    base = [torch.linspace(-1, 1, 150), torch.linspace(-2, 2, 67)]
    weight, bias = machine.parameters.weight(0).double(), machine.parameters.biases[1].double()
    field = states[0].double() @ weight + bias
    update = full_update(machine.graph, 1)
    cases = (
        (field, {}),
        (beta[:, None] * field, {"beta": beta}),
        (beta[:, None] * field + (1 - beta[:, None]) * base[1], {"beta": beta, "base": base}),
    )
    for x, arguments in cases:
        got = machine.layer_means(update, states, **arguments)
        torch.testing.assert_close(got.double(), torch.sigmoid(x), rtol=0, atol=3e-6)


def test_means_of_a_layer_read_its_inputs_only() -> None:
    machine = make_machine(chain_graph((15, 6)))
    states = states_of(machine, 4)
    update = full_update(machine.graph, 1)
    expected = machine.layer_means(update, states)
    for other in (torch.full((4, 6), float("nan")), torch.full((4, 6), 200, dtype=torch.uint8)):
        assert torch.equal(machine.layer_means(update, (states[0], other)), expected)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("units", [1, 7, 67, 1000])
def test_free_energy_sums_out_a_binary_layer(units: int, with_base: bool) -> None:
    machine = make_machine(chain_graph((50, units)))
    states = states_of(machine, 11)
    base = [torch.linspace(-1, 1, 50), torch.linspace(-2, 2, units)]
    betas = torch.tensor([0.0, 0.3, 1.0, 7.0])
    got = machine.free_energy((full_update(machine.graph, 1),), states, betas=betas, base=base if with_base else None)
    p, v = machine.parameters, states[0].double()
    field = v @ p.weight(0).double() + p.biases[1]
    for k, beta in enumerate(betas.double()):
        base_field, base_bias = (base[1], base[0].double()) if with_base else (0, torch.zeros(50, dtype=torch.float64))
        x = beta * field + (1 - beta) * base_field
        expected = -torch.logaddexp(x, torch.zeros(())).sum(1) - v @ (beta * p.biases[0] + (1 - beta) * base_bias)
        # fields are float32: a relative error of 1e-7 each
        torch.testing.assert_close(got[k], expected, rtol=3e-7, atol=1e-5)


def test_free_energy_of_extreme_fields() -> None:
    graph = chain_graph((1, 5))
    biases = [torch.zeros(1), torch.tensor([-1e30, -800.0, 0.0, 800.0, 30000.0])]
    machine = Machine.build(graph, [torch.zeros(1, 5)], biases)
    states = (torch.zeros(1, 1, dtype=torch.uint8), torch.zeros(1, 5, dtype=torch.uint8))
    got = machine.free_energy((full_update(graph, 1),), states)
    assert got.item() == pytest.approx(-(torch.log(torch.tensor(2.0)).item() + 30800), rel=1e-9)


def test_free_energy_sums_out_a_gaussian_layer() -> None:
    """Against numerical integration over the one Gaussian unit."""
    graph = chain_graph((1, 3), Kind.GAUSSIAN)
    machine = make_machine(graph)
    states = (torch.zeros(8, 1), torch.tensor([[i & 1, i >> 1 & 1, i >> 2] for i in range(8)], dtype=torch.uint8))
    v = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    p = machine.parameters
    assert p.precisions[0] is not None
    for beta in (0.4, 1.0):
        exponent = -0.5 * p.precisions[0].double() * v**2 + p.biases[0] * v
        field = states[1].double() @ p.weight(0).double().T
        upper = states[1].double() @ p.biases[1].double()
        expected = -torch.logsumexp(beta * (exponent + field * v + upper[:, None]), 1) - torch.log(v[1] - v[0])
        got = machine.free_energy((full_update(graph, 0),), states, betas=torch.tensor([beta]))
        torch.testing.assert_close(got[0], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 70, 5), (64, 8, 64), (65, 131, 67), (700, 20, 129)])
@pytest.mark.parametrize("real", [(False, False), (False, True), (True, False), (True, True)])
def test_statistics_are_sums_over_chains(sizes: tuple[int, int, int], real: tuple[bool, bool]) -> None:
    n, lower, upper = sizes
    g = torch.Generator().manual_seed(0)
    a, b = (
        torch.randn(n, units, generator=g) if r else (torch.rand(n, units, generator=g) < 0.3).to(torch.uint8)
        for units, r in zip((lower, upper), real, strict=True)
    )
    out = torch.full((lower, upper), float("nan"))
    assert ops.statistics(a, b, out) is out
    expected = a.double().T @ b.double()
    if any(real):
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)
    else:
        assert torch.equal(out.double(), expected)


@pytest.mark.parametrize("sizes", [(9, 6, 5), (210, 131, 67), (450, 515, 33)])
@pytest.mark.parametrize("n_states", [1, 8, 205, 450])
def test_real_rows_that_end_in_states_are_added_like_any_other(sizes: tuple[int, int, int], n_states: int) -> None:
    """Bit for bit: such rows may be added by lists of those that are 1."""
    n, lower, upper = sizes
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(n, lower, generator=g), torch.randn(n, upper, generator=g)
    a[-n_states:] = (a[-n_states:] > 0.3).float()
    expected = torch.empty(lower, upper)
    reference.statistics(a, b, expected)
    assert torch.equal(ops.statistics(a, b), expected)


@pytest.mark.parametrize(
    "sizes", [(1, 3, 5), (9, 6, 5), (64, 131, 67), (201, 131, 67), (450, 1030, 33), (1700, 70, 33)]
)
def test_rows_of_units_that_are_on_are_added_in_the_order_of_the_chains(sizes: tuple[int, int, int]) -> None:
    """Bit for bit, with units that are never on beside some that always are."""
    n, lower, upper = sizes
    g = torch.Generator().manual_seed(0)
    a = (torch.rand(n, lower, generator=g) < torch.linspace(0, 1, lower)).to(torch.uint8)
    b = torch.randn(n, upper, generator=g)
    expected = torch.empty(lower, upper)
    for values in (b, (b > 0).to(torch.uint8)):
        reference.statistics(a, values, expected)
        assert torch.equal(ops.statistics(a, values), expected)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (9, 2, 70), (200, 2, 131), (20_000, 1, 515), (20_000, 2, 515)])
@pytest.mark.parametrize("real", [False, True])
def test_sums_of_one_layer_weighted_in_one_or_two_ways(sizes: tuple[int, int, int], real: bool) -> None:
    """Bit for bit, though they have a kernel of their own; the largest keep several threads busy."""
    n, lower, upper = sizes
    g = torch.Generator().manual_seed(0)
    weights, values = torch.randn(n, lower, generator=g), torch.randn(n, upper, generator=g)
    b = values if real else (values > 0.3).to(torch.uint8)
    expected = torch.empty(lower, upper)
    reference.statistics(weights, b, expected)
    assert torch.equal(ops.statistics(weights, b), expected)


def test_bernoulli_draws_with_the_given_probabilities() -> None:
    p = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]).expand(40_000, 5).contiguous()
    mean = ops.bernoulli(p, torch.arange(40_000), seed=3).float().mean(0)
    assert mean[0] == 0
    assert mean[4] == 1
    # five standard deviations: one false alarm in a million seeds, and the seed is fixed
    assert bool(((mean - p[0]).abs() <= 5 * (p[0] * (1 - p[0]) / 40_000).sqrt()).all())


def test_a_row_of_data_keeps_its_random_numbers_in_any_batch() -> None:
    p = torch.rand(10, 70, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(100, 110)
    whole = ops.bernoulli(p, rows, seed=3, sweep=2)
    order = torch.tensor([7, 2, 9])
    assert torch.equal(ops.bernoulli(p[order], rows[order], seed=3, sweep=2), whole[order])
    assert not torch.equal(ops.bernoulli(p, rows, seed=3, sweep=1), whole)


# --- the integer grid -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-12, 1e-4, 0.1, 1.0, 77.0, 7000.0])
def test_the_grid_is_the_finest_that_fits(scale: float) -> None:
    weights = scale * torch.randn(131, 67, generator=torch.Generator().manual_seed(0))
    integers, bits = ops.quantise(weights)
    assert integers.dtype is torch.int16
    largest = float(weights.abs().max())
    assert largest * 2.0**bits <= MAX_WEIGHT
    assert bits == MAX_FRACTION_BITS or largest * 2.0 ** (bits + 1) > MAX_WEIGHT
    assert float((integers.double() * 2.0**-bits - weights.double()).abs().max()) <= 2.0 ** -(bits + 1)


def test_halves_round_to_even() -> None:
    weights = torch.tensor([[MAX_WEIGHT, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.49999997]])
    integers, bits = ops.quantise(weights)
    assert bits == 0
    assert integers.tolist() == [[MAX_WEIGHT, 0, 2, 2, 0, -2, -2, 0]]


def test_zero_weights_take_the_finest_grid() -> None:
    integers, bits = ops.quantise(torch.zeros(3, 5))
    assert bits == MAX_FRACTION_BITS
    assert not bool(integers.any())
