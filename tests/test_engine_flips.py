"""Sums that chains keep from one sweep to the next, and that only the units that flipped change: the same bits."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import Chains, Graph, Kind, Machine, chain_graph, ops
from bm_fast.parameters import MAX_WEIGHT
from bm_fast.program import Input, Program, Update, gibbs_program
from conftest import needs_native
from engine_cases import calm, categories, tree
from test_engine_units import COMPILER, SOURCES, address

pytestmark = needs_native

SWEEPS = 21  # kernels are chosen after 1, 2 and 4 of them


def full_size(graph: Graph, bias: float, scale: float = 0.05) -> Machine:
    """Weights of either sign, all of the largest size on their grid; units of layer 0 are mostly on."""
    g = torch.Generator().manual_seed(7)
    weights = [
        scale * (torch.randint(0, 2, (graph.layers[c.lower].units, graph.layers[c.upper].units), generator=g) * 2.0 - 1)
        for c in graph.couplings
    ]
    return Machine.build(graph, weights, [torch.full((layer.units,), bias) for layer in graph.layers])


def flipped_and_on(machine: Machine, chains: Chains, program: Program, n_sweeps: int) -> tuple[float, float]:
    """Units that flip in the last of some sweeps, and that are on after it, as shares of all."""
    machine.sweep(program, chains, n_sweeps - 1)
    before = chains.clone()
    machine.sweep(program, chains, 1)
    now, old = (torch.cat([layer.float() for layer in c.layers], 1) for c in (chains, before))
    return float((now != old).float().mean()), float(now.mean())


def assert_as_reference(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, n_chains: int, run: Callable[[Machine, Chains], list[Tensor]]
) -> None:
    results = []
    for backend in ("native", "reference"):
        monkeypatch.setenv("BM_FAST_BACKEND", backend)
        here = Machine(machine.parameters)
        chains = here.chains(n_chains, seed=2**63 + 5, first_chain=5)
        results.append([*chains.layers, *run(here, chains)])
    for i, (got, expected) in enumerate(zip(*results, strict=True)):
        assert torch.equal(got, expected), f"result {i}"


GRAPHS = {
    "single units": chain_graph((1, 1)),
    "ragged": chain_graph((65, 129)),
    "wide": chain_graph((300, 3)),
    "deep": chain_graph((40, 33, 17)),
    "tree": tree(),
    "softmax": categories(),
    "labels": chain_graph((40, 33), n_classes=10),
}


@pytest.mark.parametrize("n_chains", [1, 13, 130])
@pytest.mark.parametrize("graph", GRAPHS)
def test_sweeps_that_flip_few_units_have_the_bits_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, graph: str, n_chains: int
) -> None:
    machine = calm(GRAPHS[graph])
    program = gibbs_program(machine.graph)
    flipped, on = flipped_and_on(machine, machine.chains(130, seed=1), program, 8)
    assert flipped < 0.6 * on, "no sums are kept"

    def run(machine: Machine, chains: Chains) -> list[Tensor]:
        means = {i: torch.zeros(n_chains, layer.units) for i, layer in enumerate(machine.graph.layers)}
        machine.sweep(program, chains, SWEEPS, means=means)
        return list(means.values())

    assert_as_reference(monkeypatch, machine, n_chains, run)


@pytest.mark.parametrize("graph", GRAPHS)
def test_short_calls_of_chains_at_rest_have_the_bits_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, graph: str
) -> None:
    """As updates of training make them; sums are kept after the first sweep of each call of at least three."""
    machine, n_chains = calm(GRAPHS[graph]), 13
    program = gibbs_program(machine.graph)

    def run(machine: Machine, chains: Chains) -> list[Tensor]:
        means = {i: torch.zeros(n_chains, layer.units) for i, layer in enumerate(machine.graph.layers)}
        for n_sweeps in (8, 3, 1, 4, 2, 5, 6):
            machine.sweep(program, chains, n_sweeps, means=means)
        return list(means.values())

    assert_as_reference(monkeypatch, machine, n_chains, run)


def test_real_inputs_beside_binary_ones() -> None:
    """One call of many sweeps against calls of one, which keep nothing."""
    machine = calm(chain_graph((40, 33, 17), Kind.GAUSSIAN))
    program = gibbs_program(machine.graph)
    together = machine.chains(20, seed=5)
    apart = together.clone()
    machine.sweep(program, together, SWEEPS)
    for _ in range(SWEEPS):
        machine.sweep(program, apart, 1)
    for a, b in zip(together.layers, apart.layers, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("n_chains", [9, 60])
def test_full_size_weights_of_both_signs_at_many_flips(monkeypatch: pytest.MonkeyPatch, n_chains: int) -> None:
    """More flips than what 16-bit accumulators hold at once, in layers most of whose units are on."""
    machine = full_size(chain_graph((1500, 40)), bias=1.8)
    program = gibbs_program(machine.graph)
    assert int(machine.parameters.weights[0].abs().min()) >= MAX_WEIGHT / 2
    flipped, on = flipped_and_on(machine, machine.chains(9, seed=1), program, 8)
    assert 255 / 1500 < flipped < 0.6 * on

    def run(machine: Machine, chains: Chains) -> list[Tensor]:
        machine.sweep(program, chains, 9)
        return []

    assert_as_reference(monkeypatch, machine, n_chains, run)


def test_a_chain_where_everything_flips_beside_others_where_nothing_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden units become what the visible ones are not, and these then follow them; all but one chain are held."""
    n, n_chains = 70, 7
    machine = Machine.build(
        chain_graph((n, n)), [-40 * torch.eye(n)], [torch.full((n,), -20.0), torch.full((n,), 20.0)]
    )
    program: Program = ((Update(1, (Input(0, False),)),), (Update(0, (Input(0, True, -1.0),)),))
    held = torch.ones(n_chains, n, dtype=torch.uint8)
    held[3] = 0

    def run(machine: Machine, chains: Chains) -> list[Tensor]:
        before = chains.layers[0].clone()
        machine.sweep(program, chains, SWEEPS, clamp={0: held, 1: held})
        assert torch.equal(chains.layers[0][3], 1 - before[3])
        return []

    assert_as_reference(monkeypatch, machine, n_chains, run)


@pytest.mark.parametrize("options", ["clamp", "beta", "base clamp", "layer"])
@pytest.mark.parametrize("n_chains", [11, 70])
def test_clamps_and_temperatures(monkeypatch: pytest.MonkeyPatch, options: str, n_chains: int) -> None:
    machine = calm(tree())
    g = torch.Generator().manual_seed(1)
    program = gibbs_program(machine.graph, clamped=(2,) if options == "layer" else ())
    clamp = {
        i: (torch.rand(n_chains, machine.graph.layers[i].units, generator=g) < 0.4).to(torch.uint8) for i in (0, 4)
    }
    base = [torch.randn(layer.units, generator=g) for layer in machine.graph.layers]
    beta = torch.linspace(0.2, 1.2, n_chains)

    def run(machine: Machine, chains: Chains) -> list[Tensor]:
        machine.sweep(
            program,
            chains,
            SWEEPS,
            beta=beta if "beta" in options or "base" in options else None,
            base=base if "base" in options else None,
            clamp=clamp if "clamp" in options else {},
        )
        return []

    assert_as_reference(monkeypatch, machine, n_chains, run)


@pytest.mark.parametrize("threads", [1, 3])
def test_any_split_of_chains_and_sweeps_over_calls_gives_the_same_bits(threads: int) -> None:
    torch.set_num_threads(threads)
    machine = calm(chain_graph((300, 200)))
    program = gibbs_program(machine.graph)
    whole = machine.chains(140, seed=3)
    parts = whole.clone()
    machine.sweep(program, whole, 40)
    for start, stop in ((0, 1), (1, 64), (64, 140)):
        part = parts.select(start, stop)
        for n_sweeps in (1, 3, 28, 8):
            machine.sweep(program, part, n_sweeps)
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("sweeps", [1, 3])
def test_tempering(monkeypatch: pytest.MonkeyPatch, sweeps: int, with_base: bool) -> None:
    """Many sweeps of chains that hardly flip, with gaps of energies between them."""
    machine = calm(tree())
    g, n_rungs = torch.Generator().manual_seed(4), 5
    base = [torch.randn(layer.units, generator=g) for layer in machine.graph.layers] if with_base else None

    def run(machine: Machine, chains: Chains) -> list[Tensor]:
        rungs, betas = ops.Rungs.start(4, n_rungs), torch.linspace(0.3, 1, n_rungs)
        trace = torch.zeros(30, 4, n_rungs, dtype=torch.float64)
        ops.temper(ops.EnergyGap(machine, base), chains, rungs, betas, 30, sweeps=sweeps, trace=trace)
        return [rungs.rungs, rungs.trips, rungs.attempts, rungs.acceptances, trace]

    assert_as_reference(monkeypatch, machine, 4 * n_rungs, run)


@pytest.mark.parametrize("n_chains", [7, 90])
def test_annealing(n_chains: int) -> None:
    """Steps of one call against a call for each step, which keeps nothing."""
    machine = calm(tree())
    base = [torch.zeros(layer.units) for layer in machine.graph.layers]
    betas, program = torch.linspace(0.2, 1, 60), gibbs_program(machine.graph)
    together, weights = machine.chains(n_chains, seed=6), torch.zeros(n_chains, dtype=torch.float64)
    apart, separate = together.clone(), weights.clone()
    ops.anneal(machine, program, together, betas, weights, base=base)
    for k in range(len(betas) - 1):
        ops.anneal(machine, program, apart, betas[k : k + 2].clone(), separate, base=base)
    for a, b in zip(together.layers, apart.layers, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(weights, separate)


# --- rows to add and rows to take away --------------------------------------------------------------------------------

WRAPPERS = """
#include "cpu/kernels/fields.h"
using namespace bm::cpu;
using namespace bm::cpu::base;
extern "C" int run(int32_t* sums, uint8_t* old, const int16_t* rows, const uint8_t* state, int inputs, int outputs) {
  int32_t n_on;
  uint16_t* lists = new uint16_t[2 * padded(inputs)];
  const WeightsView weights = {inputs, outputs, padded(outputs), rows};
  const RowLists changes = list_changes(lists, lists + padded(inputs), old, state, inputs, n_on);
  update_sums(sums, weights, changes);
  delete[] lists;
  return n_on;
}
"""


def compiled(folder: Path, mistake: tuple[str, str] | None = None) -> ctypes.CDLL:
    """The functions of one header; a mistake is what stands in it and what replaces that."""
    header = (SOURCES / "cpu/kernels/fields.h").read_text()
    if mistake is not None:
        assert header.count(mistake[0]) == 1, "the header has changed"
        header = header.replace(*mistake)
    source, library = folder / "rows.cpp", folder / "rows.so"
    source.write_text(WRAPPERS.replace('#include "cpu/kernels/fields.h"', header))
    assert COMPILER
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-shared", "-fPIC", f"-I{SOURCES}", "-DBM_ISA=base"]
    subprocess.run([COMPILER, *flags, str(source), "-o", str(library)], check=True, timeout=120)
    return ctypes.CDLL(str(library))


def sums_are_right(library: ctypes.CDLL) -> bool:
    """Sums of a chain's rows as its states change, at most and at least of what accumulators have to hold."""
    inputs, outputs = 600, 7
    rng = np.random.default_rng(0)
    weights = np.zeros((inputs, 64), dtype=np.int16)
    weights[:, :outputs] = rng.choice([-MAX_WEIGHT, MAX_WEIGHT, -1, -256, 255, 0], (inputs, outputs))
    weights[:, 0], weights[:, 1] = MAX_WEIGHT, -MAX_WEIGHT
    weights[:, 2], weights[:, 3] = -1, 255  # of low bytes 255
    old, sums = np.zeros(640, dtype=np.uint8), np.zeros(64, dtype=np.int32)
    states = [np.full(inputs, k) for k in (1, 0, 1)]  # 600 rows of one sign
    states += [np.arange(inputs) % 2, np.arange(1, inputs + 1) % 2]  # 300 to add and 300 to take away
    states += [(rng.random(inputs) < share) for share in (0.5, 0.5, 0.9, 0.1, 0.1)]
    states += [states[-1]]  # nothing flips
    for state in states:
        now = state.astype(np.uint8)
        n_on = library.run(*(address(a) for a in (sums, old, weights, now)), inputs, outputs)
        expected = weights[now == 1].sum(0, dtype=np.int64)
        if n_on != now.sum() or not np.array_equal(old[:inputs], now) or not np.array_equal(sums, expected):
            return False
    return True


needs_compiler = pytest.mark.skipif(not (COMPILER and SOURCES.is_dir()), reason="no C++ compiler, or no sources")


@needs_compiler
def test_sums_follow_the_changes_exactly(tmp_path: Path) -> None:
    assert sums_are_right(compiled(tmp_path))


MISTAKES = {
    "more rows than accumulators hold": ("kMaxRows = 255;", "kMaxRows = 300;"),
    "low bytes of rows taken away are not bounded from below": ("-255 * n_removed", "0 * n_removed"),
    "states are not brought up to date": ("    old[u] = state[u];\n", ""),
    "what turned off is added": ("state[u] < old[u]", "state[u] > old[u]"),
}


@needs_compiler
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(tmp_path: Path, mistake: str) -> None:
    assert not sums_are_right(compiled(tmp_path, MISTAKES[mistake]))
