"""Draws by rounded sums against the rows kernel, whose sums are exact: calls with few chains never round."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from bm_fast import Coupling, Graph, Kind, Layer, Machine, chain_graph, ops
from bm_fast.chains import Chains
from bm_fast.parameters import MAX_WEIGHT
from bm_fast.program import Input, Program, Update, gibbs_program
from conftest import needs_native
from engine_cases import FAR, make_machine, tree

pytestmark = needs_native

FEW = 4  # chains per call that the rows kernel gets: rounding takes more than 0.15 + 4 / FEW of the inputs
ROUNDED = 48  # chains per call that the rounded kernel gets whatever tables would save
SWEEPS = 3


def machine_of(weights: list[Tensor], biases: list[Tensor]) -> Machine:
    return Machine.build(chain_graph([len(bias) for bias in biases]), weights, biases)


def assert_rounded(machine: Machine) -> None:
    """Draws came from no lookups, which would have run in place of the rounded kernel."""
    assert not machine._impl._compiled.has_lookup_tables()


def sweep_in_parts(machine: Machine, program: Program, chains: Chains) -> None:
    for start in range(0, chains.n_chains, ROUNDED):
        machine.sweep(program, chains.select(start, min(start + ROUNDED, chains.n_chains)), 1)


def assert_same_path(
    machine: Machine,
    n_chains: int,
    n_sweeps: int = SWEEPS,
    *,
    program: Program | None = None,
    beta: Tensor | None = None,
    base: list[Tensor] | None = None,
    clamp: dict[int, Tensor] | None = None,
    states: list[Tensor] | None = None,
    wants_means: bool = False,
) -> tuple[Tensor, ...]:
    """One call for all chains and a call for every FEW of them give the same bits; returns the states of all."""
    program = gibbs_program(machine.graph) if program is None else program
    together = machine.chains(n_chains, seed=5, first_chain=7)
    if states is not None:
        for own, given in zip(together.layers, states, strict=True):
            own.copy_(given)
    apart = together.clone()
    updated = [update.layer for block in program for update in block] if wants_means else []
    means, own_means = ({i: torch.zeros(n_chains, machine.graph.layers[i].units) for i in updated} for _ in range(2))
    machine.sweep(program, together, n_sweeps, beta=beta, base=base, clamp=clamp, means=means)
    for start in range(0, n_chains, FEW):
        cut = slice(start, min(start + FEW, n_chains))
        machine.sweep(
            program,
            apart.select(cut.start, cut.stop),
            n_sweeps,
            beta=None if beta is None else beta[cut],
            base=base,
            clamp={i: mask[cut] for i, mask in (clamp or {}).items()},
            means={i: mean[cut] for i, mean in own_means.items()},
        )
    for i, layer in enumerate(machine.graph.layers):
        assert torch.equal(together.layers[i], apart.layers[i]), layer.name
    for i in updated:
        assert torch.equal(means[i], own_means[i]), machine.graph.layers[i].name
    assert_rounded(machine)
    return together.layers


@pytest.mark.parametrize("n_chains", [16, 61, 128, 129, 300])
@pytest.mark.parametrize("sizes", [(1, 1), (4, 5), (47, 49), (48, 64), (130, 76), (97, 300, 65), (785, 501)])
def test_ragged_sizes(sizes: tuple[int, ...], n_chains: int) -> None:
    assert_same_path(make_machine(chain_graph(sizes), scale=2 * max(sizes) ** -0.5), n_chains)


@pytest.mark.parametrize("n_chains", [40, 203])
@pytest.mark.parametrize("options", ["", "beta", "base", "clamp", "means", "base clamp means"])
def test_every_option_on_a_tree_of_layers(options: str, n_chains: int) -> None:
    machine, g = make_machine(tree()), torch.Generator().manual_seed(1)
    layers = machine.graph.layers
    draw = torch.rand(n_chains, generator=g) * 1.9 + 0.1
    assert_same_path(
        machine,
        n_chains,
        beta=draw if "beta" in options or "base" in options else None,
        base=[torch.randn(layer.units, generator=g) for layer in layers] if "base" in options else None,
        clamp={i: (torch.rand(n_chains, layers[i].units, generator=g) < 0.3).to(torch.uint8) for i in (0, 2, 4)}
        if "clamp" in options
        else None,
        wants_means="means" in options,
    )


def test_layers_of_every_kind_beside_each_other() -> None:
    """A binary layer between a Gaussian, a softmax and a binary one: no sum that leads to it is rounded, others are."""
    layers = (Layer("real", 30, Kind.GAUSSIAN), Layer("middle", 40), Layer("labels", 10, Kind.SOFTMAX),
              Layer("upper", 50), Layer("top", 60))  # fmt: skip
    graph = Graph(layers, (Coupling(0, 1), Coupling(1, 2), Coupling(1, 3), Coupling(3, 4)))
    assert_same_path(make_machine(graph, scale=0.2), 128)


@pytest.mark.parametrize("scale", [-0.7, 0.3, 2.0])
def test_scaled_inputs(scale: float) -> None:
    machine = make_machine(chain_graph((80, 60, 50)), scale=0.1)
    program: Program = (
        (Update(1, (Input(0, False, scale), Input(1, True))),),
        (Update(0, (Input(0, True, scale),)), Update(2, (Input(1, False),))),
    )
    assert_same_path(machine, 100, program=program)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads(threads: int) -> None:
    torch.set_num_threads(threads)
    assert_same_path(make_machine(chain_graph((400, 300)), scale=0.1), 300)


def test_layers_with_many_units_on_beside_layers_with_few() -> None:
    """One of the two inputs of the middle layer is rounded, neither, or both."""
    machine = make_machine(chain_graph((90, 80, 70)), scale=0.2)
    g = torch.Generator().manual_seed(2)
    for shares in ((0.9, 0.5, 0.05), (0.05, 0.5, 0.9), (0.1, 0.1, 0.1), (1.0, 1.0, 1.0)):
        states = [
            (torch.rand(99, layer.units, generator=g) < share).to(torch.uint8)
            for layer, share in zip(machine.graph.layers, shares, strict=True)
        ]
        assert_same_path(machine, 99, 1, states=states)


# --- the limits of what may be off ------------------------------------------------------------------------------------

UP: Program = ((Update(1, (Input(0, False),)),),)


def on_one_side(weights: Tensor, step: float) -> Machine:
    """Fields around zero where all inputs but the last are on; weights: [inputs, units] in steps of the grid."""
    grid = torch.zeros(len(weights) + 1, weights.shape[1] + 1)
    grid[:-1, :-1] = weights
    grid[-1, -1] = MAX_WEIGHT  # which alone sets the grid
    spread = torch.linspace(-1, 1, grid.shape[1])
    return machine_of([grid * step], [torch.zeros(len(grid)), spread - (weights_on(grid) * step).float()])


def assert_same_as_exact(machine: Machine, program: Program, states: list[Tensor]) -> None:
    """A sweep of layer 1 gives the bits of one by exact sums, to which a far bias of its last unit leads."""
    far = [bias.clone() for bias in machine.parameters.biases]
    far[1][-1] = FAR
    drawn = []
    for which in (machine, Machine(dataclasses.replace(machine.parameters, biases=tuple(far)))):
        chains = which.chains(len(states[0]), seed=6)
        for own, given in zip(chains.layers, states, strict=True):
            own.copy_(given)
        sweep_in_parts(which, program, chains)
        drawn.append(chains.layers[1][:, :-1])
    assert_rounded(machine)
    assert torch.equal(*drawn)
    assert 0.2 < float(drawn[0].double().mean()) < 0.8


def weights_on(grid: Tensor) -> Tensor:
    return grid[:-1].double().sum(0)


def all_on_but_the_last(machine: Machine, n_chains: int) -> list[Tensor]:
    n_inputs, n_units = (layer.units for layer in machine.graph.layers)
    states = [torch.ones(n_chains, n_inputs, dtype=torch.uint8), torch.zeros(n_chains, n_units, dtype=torch.uint8)]
    states[0][:, -1] = 0
    return states


@pytest.mark.parametrize("fan_in", [48, 480, 4800])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_that_are_off_by_as_much_as_can_be(fan_in: int, sign: int) -> None:
    """Weights that are the same from every input, of all rests in the divisions by powers of two.

    Some sums are then off by as much as the bound says, 0.06 of a field with 4,800 inputs: bounds a twentieth below
    that let some of 1,000,000 draws pass that are wrong.
    """
    weights = (sign * (1000 + torch.arange(256))).repeat(fan_in, 1).float()
    machine = on_one_side(weights, 2.0**-18 * 4800 / fan_in)
    assert_same_as_exact(machine, UP, all_on_but_the_last(machine, 4096))


@pytest.mark.parametrize("fan_in", [47, 48, 96, 192, 384, 1536])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("weight", [22_667, 23_500, 32_639])
def test_rounded_sums_fit_16_bits(fan_in: int, sign: int, weight: int) -> None:
    """Of 48 weights, in steps of the rounding, slightly above 32,767 by the next finer one."""
    machine = on_one_side(torch.full((fan_in, 70), float(sign * weight)), 2.0**-20 * 48 / fan_in)
    assert_same_path(machine, 100, 1, program=UP, states=all_on_but_the_last(machine, 100))


def test_fields_that_cancel() -> None:
    """A bias of 10,000 and one exact input that takes it away: what floats lose exceeds what rounding of sums does."""
    g = torch.Generator().manual_seed(3)
    lower, middle, upper = 500, 257, 40
    weights = [1e-4 * torch.randn(lower, middle, generator=g), torch.zeros(middle, upper)]
    weights[1][:, 0] = -1e4
    biases = [torch.zeros(lower), 1e4 + torch.linspace(-1, 1, middle), torch.zeros(upper)]
    machine = machine_of(weights, biases)
    states = [torch.ones(4096, n, dtype=torch.uint8) for n in (lower, middle, upper)]
    states[0] = (torch.rand(4096, lower, generator=g) < 0.6).to(torch.uint8)
    states[2][:, 1:] = 0
    program: Program = ((Update(1, (Input(0, False), Input(1, True))),),)
    assert_same_as_exact(machine, program, states)


@pytest.mark.parametrize("beta", [0.0, 1e-3, 0.3, 3.0])
def test_inverse_temperatures_scale_what_may_be_off(beta: float) -> None:
    machine = make_machine(chain_graph((500, 400)), scale=0.03)
    assert_same_path(machine, 100, 10, beta=torch.full((100,), beta))


@pytest.mark.parametrize("scale", [1.0, 2.0**-10, 2.0**-22])
def test_tempering_of_fields_of_any_size(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums that are off by as much as can be, by hundreds of a field or little: bounds hold at the betas of rungs."""
    machine = on_one_side((1000 + torch.arange(256)).repeat(480, 1).float(), scale)
    runs = []
    for backend in ("native", "reference"):
        monkeypatch.setenv("BM_FAST_BACKEND", backend)
        here = Machine(machine.parameters)
        chains = here.chains(40, seed=3)
        for own, given in zip(chains.layers, all_on_but_the_last(here, 40), strict=True):
            own.copy_(given)
        ops.temper(ops.EnergyGap(here), chains, ops.Rungs.start(10, 4), torch.linspace(0.25, 1, 4), 1)
        runs.append(chains.layers)
    for got, expected in zip(*runs, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("scale", [1e30, 1e35, 2e35, 2.0**-149, 5 * 2.0**-149])
def test_scales_at_the_ends_of_the_range_of_floats(scale: float) -> None:
    """Inverse temperatures make up for them: fields are 0, or of order 1 where floats have lost most digits."""
    g = torch.Generator().manual_seed(5)
    weights = torch.randint(-30_000, 30_000, (500, 300), generator=g).to(torch.int16)
    machine = machine_of([torch.ones(500, 300)], [torch.zeros(500), torch.zeros(300)])
    machine = Machine(dataclasses.replace(machine.parameters, weights=(weights,), fraction_bits=(0,)))
    beta = torch.full((200,), 0.0 if scale > 1 else 1e37)
    program: Program = ((Update(1, (Input(0, False, scale),)),),)
    assert_same_path(machine, 200, 1, program=program, beta=beta)


@pytest.mark.parametrize("bias", [20.0, 60.0, 1e4])
def test_fields_beyond_the_range_of_exponentials(bias: float) -> None:
    """exp is clamped at 64 powers of two; beyond that fields are certain, and rounded sums are as well."""
    g = torch.Generator().manual_seed(4)
    biases = [bias * torch.randn(n, generator=g) for n in (200, 150)]
    assert_same_path(machine_of([0.05 * torch.randn(200, 150, generator=g)], biases), 100)


@pytest.mark.parametrize("fan_in", [3000, 5120])
def test_many_inputs(fan_in: int) -> None:
    assert_same_path(make_machine(chain_graph((fan_in, 70)), scale=0.01), 40)


def test_comparison_sees_one_grid_step() -> None:
    """The smallest possible mistake, one weight off by one step, changes draws: the comparisons above can fail."""
    machine = make_machine(chain_graph((60, 50)))
    machine.parameters.weights[0][13] += 1
    wrong = Machine(machine.parameters)
    machine.parameters.weights[0][13] -= 1
    right = Machine(machine.parameters)
    drawn = []
    for which in (wrong, right):
        chains = which.chains(40_000, seed=5)  # a few of whose 2,000,000 draws fall within the step
        sweep_in_parts(which, gibbs_program(which.graph), chains)
        assert_rounded(which)
        drawn.append(chains.layers[1])
    assert not torch.equal(*drawn)
