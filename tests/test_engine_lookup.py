"""The lookup kernel against the rows kernel, which has other arithmetic: calls with few chains never use lookups.

Nor do sweeps of many chains where draws could take rounded sums, as long as the tables that these need do not pay.
"""

from __future__ import annotations

import pytest
import torch

from bm_fast import ops
from bm_fast.chains import Chains
from bm_fast.graph import Coupling, Graph, Kind, Layer, chain_graph
from bm_fast.ops import EnergyGap, Machine, temper
from bm_fast.program import Input, Program, Update, gibbs_program
from bm_fast.rungs import Rungs
from engine_cases import FAR

pytestmark = pytest.mark.skipif(ops.info()["isa"] != "avx512", reason="the lookup kernel needs AVX-512")

FEW = 20  # chains per call that the rows kernel gets
SHORT = 7  # sweeps of a call in which kernels are chosen again twice at most
IN_REGISTERS = (28, 31, 32, 56, 61, 63, 64)  # some numbers of chains for which tables are made in registers


def build_tables(machine: Machine, program: Program) -> None:
    """By calls of one sweep, as kernels are chosen again after the first, of as many chains as pay for them."""
    for _ in range(4):
        machine.sweep(program, machine.chains(1024, seed=0), 1)
    assert machine._impl._compiled.has_lookup_tables()


def machine_of(graph: Graph, scale: float = 0.3, seed: int = 0) -> Machine:
    g = torch.Generator().manual_seed(seed)
    weights = [
        scale * torch.randn(graph.layers[c.lower].units, graph.layers[c.upper].units, generator=g)
        for c in graph.couplings
    ]
    biases = [torch.randn(layer.units, generator=g) for layer in graph.layers]
    for bias in biases:
        bias[1:2] = FAR
    return Machine.build(graph, weights, biases)


def assert_same_path(
    machine: Machine,
    program: Program,
    n_chains: int,
    n_sweeps: int = SHORT,
    beta: torch.Tensor | None = None,
    base: list[torch.Tensor] | None = None,
    clamp: dict[int, torch.Tensor] | None = None,
    wants_means: bool = False,
) -> None:
    """One call for all chains (lookups) and a call for every FEW chains (rows) give the same bits."""
    assert n_sweeps <= SHORT
    assert n_chains in IN_REGISTERS or n_chains >= 72, "no lookups: rows would be compared with rows"
    build_tables(machine, program)
    all_at_once = machine.chains(n_chains, seed=5, first_chain=7)
    for layer, states in zip(machine.graph.layers, all_at_once.layers, strict=True):
        if layer.kind is Kind.BERNOULLI:
            states[::2] = 1  # tables in registers are for states that are mostly on
    in_parts = all_at_once.clone()
    layers = [update.layer for block in program for update in block] if wants_means else []
    means, part_means = ({i: torch.zeros(n_chains, machine.graph.layers[i].units) for i in layers} for _ in range(2))
    machine.sweep(program, all_at_once, n_sweeps, beta=beta, base=base, clamp=clamp, means=means)
    for start in range(0, n_chains, FEW):
        cut = slice(start, start + FEW)
        machine.sweep(
            program,
            part(in_parts, cut),
            n_sweeps,
            beta=None if beta is None else beta[cut],
            base=base,
            clamp={i: mask[cut] for i, mask in (clamp or {}).items()},
            means={i: mean[cut] for i, mean in part_means.items()},
        )
    for i, layer in enumerate(machine.graph.layers):
        assert torch.equal(all_at_once.layers[i], in_parts.layers[i]), layer.name
    for i in layers:
        assert torch.equal(means[i], part_means[i]), machine.graph.layers[i].name
        assert float(means[i].max()) > 0


def part(chains: Chains, cut: slice) -> Chains:
    return chains.select(cut.start, min(cut.stop, chains.n_chains))


@pytest.mark.parametrize("n_chains", [28, 32, 56, 63, 64, 72, 127, 128, 129, 200, 257, 321])
@pytest.mark.parametrize("sizes", [(2, 1), (4, 5), (15, 16), (31, 61), (64, 66), (130, 76)])
def test_ragged_sizes(sizes: tuple[int, int], n_chains: int) -> None:
    machine = machine_of(chain_graph(sizes))
    assert_same_path(machine, gibbs_program(machine.graph), n_chains)


@pytest.mark.parametrize("n_chains", [31, 61, 203])
def test_every_option_on_a_tree_of_layers(n_chains: int) -> None:
    graph = Graph(
        (Layer("image", 37), Layer("image1", 21), Layer("joint", 18), Layer("text1", 9), Layer("text", 44)),
        (Coupling(0, 1), Coupling(1, 2), Coupling(3, 2), Coupling(4, 3)),
    )
    machine = machine_of(graph)
    g = torch.Generator().manual_seed(1)
    beta = torch.rand(n_chains, generator=g)
    base = [torch.randn(layer.units, generator=g) for layer in graph.layers]
    clamp = {i: (torch.rand(n_chains, graph.layers[i].units, generator=g) < 0.3).to(torch.uint8) for i in (0, 2, 4)}
    program = gibbs_program(graph, clamped=(3,))
    assert_same_path(machine, program, n_chains, beta=beta)
    assert_same_path(machine, program, n_chains, beta=beta, base=base, clamp=clamp, wants_means=True)


def small_machine(graph: Graph, seed: int = 0) -> Machine:
    """With fields of size one, so that the high limbs of sums do for nearly all draws."""
    g, sizes = torch.Generator().manual_seed(seed), [layer.units for layer in graph.layers]
    weights = [max(sizes) ** -0.5 * torch.randn(sizes[c.lower], sizes[c.upper], generator=g) for c in graph.couplings]
    return Machine.build(graph, weights, [0.5 * torch.randn(n, generator=g) for n in sizes])


@pytest.mark.parametrize("n_chains", [128, 200, 600])
@pytest.mark.parametrize("n_classes", [None, 10])
@pytest.mark.parametrize("units", [(203, 97), (151, 90, 64)])
def test_plain_chains_by_high_limbs(units: tuple[int, ...], n_classes: int | None, n_chains: int) -> None:
    machine, g = small_machine(chain_graph(units, n_classes=n_classes)), torch.Generator().manual_seed(1)
    sizes = [layer.units for layer in machine.graph.layers]
    beta = torch.rand(n_chains, generator=g)
    base = [torch.randn(n, generator=g) for n in sizes]
    clamp = {i: (torch.rand(n_chains, sizes[i], generator=g) < 0.3).to(torch.uint8) for i in (0, len(units) - 1)}
    program = gibbs_program(machine.graph)
    assert_same_path(machine, program, n_chains, n_sweeps=2)
    assert_same_path(machine, program, n_chains, n_sweeps=2, beta=beta, base=base, clamp=clamp, wants_means=True)


def test_calls_of_one_sweep_build_tables_once_those_before_would_have_paid() -> None:
    machine = small_machine(chain_graph((203, 97)))
    chains, calls = machine.chains(256, seed=0), 0
    while not machine._impl._compiled.has_lookup_tables() and calls < 50:
        machine.sweep(gibbs_program(machine.graph), chains, 1)
        calls += 1
    assert 1 < calls < 50


def test_long_calls_of_chains_that_flip_few_units_build_no_tables() -> None:
    """Calls of one sweep, which cannot tell that few flip, do."""
    machine = small_machine(chain_graph((203, 97)))
    program, cold = gibbs_program(machine.graph), torch.full((256,), 30.0)
    chains = machine.chains(256, seed=0)
    machine.sweep(program, chains, 100, beta=cold)
    long, short = Machine(machine.parameters), Machine(machine.parameters)
    long.sweep(program, chains, 200, beta=cold)
    assert not long._impl._compiled.has_lookup_tables()
    for _ in range(20):
        short.sweep(program, chains, 1, beta=cold)
    assert short._impl._compiled.has_lookup_tables()


def test_scaled_and_left_out_inputs() -> None:
    graph = chain_graph((20, 30, 10))
    doubled: Program = (
        (Update(1, (Input(0, False, 2.0),)),),
        (Update(0, (Input(0, True, 0.5),)), Update(2, (Input(1, False),))),
    )
    assert_same_path(machine_of(graph), doubled, 96)
    assert_same_path(machine_of(graph), doubled, 61)


def test_threads_with_a_block_of_chains_each() -> None:
    torch.set_num_threads(2)
    machine = machine_of(chain_graph((300, 200)), scale=0.1)
    assert_same_path(machine, gibbs_program(machine.graph), 128)


@pytest.mark.parametrize("n_chains", [32, 63, 75])
@pytest.mark.parametrize("fan_in", [511, 512, 513, 1275, 1300, 5000, 65_536])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_that_overflow_16_bits_are_carried_in_time(fan_in: int, sign: int, n_chains: int) -> None:
    """Weights of one sign and full size: field sums reach fan_in * 32639, far beyond what 16 bits of a limb hold."""
    graph = chain_graph((fan_in, 5))
    weight = sign * torch.linspace(0.9, 1.0, fan_in * 5).reshape(fan_in, 5)
    bias = -sign * weight.sum(0) * 0.75  # three quarters of the inputs are on: fields lie around zero
    machine = Machine.build(graph, (weight,), (torch.zeros(fan_in), bias))
    hidden_only = ((Update(1, (Input(0, False),)),),)
    assert_same_path(machine, hidden_only, n_chains, wants_means=True)


@pytest.mark.parametrize("n_chains", [32, 64, 128, 200])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("size", "fan_in"), [(32_639, 1300), (63 * 512 - 1, 1300), (3, 65_535)])
def test_limbs_are_exact_where_all_inputs_are_on(n_chains: int, sign: int, size: int, fan_in: int) -> None:
    """The largest sums of limbs: full-size weights, and weights with the largest rest after division by 512.

    Of small ones, five of which have the largest rest after division by 16, high limbs alone would add up in 16 bits.
    """
    weight = torch.full((fan_in, 5), float(sign * size))
    weight[0] = 32_639.0  # which sets the grid: one
    scale = 2.0**-20
    bias = (-weight.double().sum(0) * scale).float()
    bias[-1] = FAR
    machine = Machine.build(chain_graph((fan_in, 5)), (weight,), (torch.zeros(fan_in), bias))
    assert int(machine.parameters.weights[0][1, 1]) == sign * size
    chains = machine.chains(n_chains, seed=1)
    chains.layers[0].fill_(1)
    means, few = torch.zeros(n_chains, 5), torch.zeros(FEW, 5)
    program: Program = ((Update(1, (Input(0, False, scale),)),),)
    build_tables(machine, program)
    machine.sweep(program, chains, 1, means={1: means})
    machine.sweep(program, part(chains, slice(0, FEW)), 1, means={1: few})
    assert torch.equal(means, few[:1].expand(n_chains, 5))
    assert 0.49 < float(means[:, :-1].min()) <= float(means[:, :-1].max()) < 0.51


def test_comparison_sees_one_grid_step() -> None:
    """The smallest possible mistake, one weight off by one step, changes bits: the comparison above can fail."""
    graph = chain_graph((60, 50))
    machine = machine_of(graph)
    machine.parameters.weights[0][13, 7] += 1
    wrong = Machine(machine.parameters)
    machine.parameters.weights[0][13, 7] -= 1
    right = Machine(machine.parameters)
    means = {1: torch.zeros(128, 50)}, {1: torch.zeros(128, 50)}
    for which, mean in zip((wrong, right), means, strict=True):
        program: Program = ((Update(1, (Input(0, False),)),),)
        build_tables(which, program)
        which.sweep(program, which.chains(128, seed=5), 1, means=mean)
    assert not torch.equal(means[0][1], means[1][1])


def assert_same_tempering(
    machine: Machine,
    base: list[torch.Tensor] | None,
    n_ladders: int,
    calls: list[tuple[tuple[float, float], int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calls of so many rounds and sweeps with ladders of 16 rungs give the bits of the reference."""
    runs = []
    for backend in ("native", "reference"):
        monkeypatch.setenv("BM_FAST_BACKEND", backend)
        here = Machine(machine.parameters)
        chains, rungs, gap = here.chains(16 * n_ladders, seed=3), Rungs.start(n_ladders, 16), EnergyGap(here, base)
        for layer, states in zip(machine.graph.layers[1:], chains.layers[1:], strict=True):
            if layer.kind is Kind.BERNOULLI:
                states.fill_(1)
        traces = [torch.empty(rounds, n_ladders, 16, dtype=torch.float64) for _, rounds, _ in calls]
        for ((coldest, hottest), rounds, sweeps), trace in zip(calls, traces, strict=True):
            temper(gap, chains, rungs, torch.linspace(hottest, coldest, 16), rounds, sweeps=sweeps, trace=trace)
        assert backend != "native" or here._impl._compiled.has_lookup_tables()
        runs.append([*chains.layers, rungs.rungs, *traces])
    for got, expected in zip(*runs, strict=True):
        assert torch.equal(got, expected)


def standard_normal(machine: Machine) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(6)
    return [torch.randn(layer.units, generator=g) for layer in machine.graph.layers]


@pytest.mark.parametrize("rest", [0, 15])
@pytest.mark.parametrize("step", [3_008, 25_600])
@pytest.mark.parametrize("with_base", [False, True])
def test_draws_without_low_limbs(rest: int, step: int, with_base: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums whose low limbs are none or the most there can be, as one input of each group of five alone has weights.

    What is left out is then close to what may be left out, 0.04 of a field: bounds a twentieth below that let some of
    260,000 draws of the first layer pass that are wrong. Sums of high limbs fit 16 bits with small steps; with large
    ones they are added up in nine runs of 18 groups and each divided by 8, which leaves out up to 7 of it.
    """
    n_lower, n_upper = 64, 800
    steps = torch.zeros(n_lower, n_upper)
    steps[:, ::5] = step + rest
    if step == 25_600 and rest:
        steps[:, ::90] += 16 * 7
    steps[0, 0] = 25_600  # the grid is given by the largest weight
    bias = torch.linspace(-1, 1, n_lower) - steps.sum(1) * 2.0**-15
    machine = Machine.build(chain_graph((n_lower, n_upper)), [steps * 2.0**-15], [bias, torch.full((n_upper,), 2.0)])
    calls = [((1.0, 0.9), 1, 1), ((1.0, 0.1), 1, 1)]
    assert_same_tempering(machine, standard_normal(machine) if with_base else None, 256, calls, monkeypatch)


@pytest.mark.parametrize("units", [(203, 97), (784, 33), (150, 91, 64), (81, 70, 66, 90), (34, 41)])
@pytest.mark.parametrize("n_classes", [None, 10])
@pytest.mark.parametrize("with_base", [False, True])
def test_tempering_by_high_limbs(
    units: tuple[int, ...], n_classes: int | None, with_base: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """384 chains fill two tiles of three blocks; the last case has more tiles than go together."""
    machine = small_machine(chain_graph(units, n_classes=n_classes), seed=2)
    calls, n_ladders = [((1.0, 0.3), 3, 1), ((1.0, 0.0), 2, 3)], 210 if max(units) < 64 else 24
    assert_same_tempering(machine, standard_normal(machine) if with_base else None, n_ladders, calls, monkeypatch)


def test_scales_beyond_the_range_of_floats_at_infinite_temperature() -> None:
    """High limbs count 16 times as much as sums, which here is no float any more; a chain without inputs is a coin."""
    graph = chain_graph((20, 30))
    machine = Machine.build(graph, [torch.ones(20, 30)], [torch.zeros(20), torch.zeros(30)])
    bits = machine.parameters.fraction_bits[0]
    program: Program = ((Update(1, (Input(0, False, 3e37 * 2.0**bits),)),),)
    chains = machine.chains(1024, seed=1)
    chains.layers[0].copy_((torch.arange(1024) % 2).to(torch.uint8)[:, None])
    few = part(chains.clone(), slice(0, FEW))
    beta = torch.zeros(1024)
    machine.sweep(program, chains, 1, beta=beta)
    assert machine._impl._compiled.has_lookup_tables()
    machine.sweep(program, few, 1, beta=beta[:FEW])
    assert torch.equal(chains.layers[1][:FEW], few.layers[1])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("units", [(785, 500), (9, 33), (33, 34), (20, 35), (19, 36), (12, 35, 18), (12, 34, 18, 33)])
def test_gaps_of_tempering_are_those_of_its_states(units: tuple[int, ...], threads: int) -> None:
    """With tables of both kinds, whose tiles of four units the last layer fills or not."""
    machine = machine_of(chain_graph(units))
    build_tables(machine, gibbs_program(machine.graph))
    gap = EnergyGap(machine, [torch.full((n,), 0.5) for n in units])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for n_rungs in (*IN_REGISTERS, 75):  # of one ladder
            betas = torch.linspace(0, 1, threads * n_rungs)
            chains, rungs = machine.chains(len(betas), seed=3), Rungs.start(1, len(betas))
            for states in chains.layers:
                states[::2] = 1
            trace = torch.empty(1, 1, len(betas), dtype=torch.float64)
            temper(gap, chains, rungs, betas, 1, sweeps=2, trace=trace)
            assert torch.equal(trace[0, 0], gap.of(chains.layers)), n_rungs
    finally:
        torch.set_num_threads(before)
