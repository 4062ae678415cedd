"""Energies, free energies, gaps and parallel tempering on a GPU: emulated, and on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bm_fast import Graph, Kind, Layer, Machine, chain_graph, ops
from bm_fast.graph import Coupling
from bm_fast.ops import cuda
from bm_fast.program import full_update
from cuda_devices import Gpu, assert_same, emulation, gpu, with_hopper
from engine_cases import make_machine, tempered, tree

__all__ = ["emulation", "gpu"]  # fixtures


# --- real values: within the tolerances of docs/numbers.md -----------------------------------------------------------

GRAPHS = {
    "visible": chain_graph((70, 33), Kind.GAUSSIAN),
    "deep": chain_graph((70, 33, 65), Kind.GAUSSIAN),
    "above": Graph((Layer("bits", 70), Layer("numbers", 33, Kind.GAUSSIAN)), (Coupling(0, 1),)),
    "one unit": chain_graph((1, 1), Kind.GAUSSIAN),
}
N_CHAINS = 35
BETAS = (0.25, 0.5, 1.0)


def states_of(graph: Graph, seed: int = 5) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    noise = [torch.randn(N_CHAINS, layer.units, generator=g) for layer in graph.layers]
    return [
        3 * x if layer.kind is Kind.GAUSSIAN else (x > 0).to(torch.uint8)
        for x, layer in zip(noise, graph.layers, strict=True)
    ]


def base_of(graph: Graph, device: torch.device) -> list[Tensor]:
    g = torch.Generator().manual_seed(6)
    return [torch.randn(layer.units, generator=g).to(device) for layer in graph.layers]


def energies(machine: Machine, states: list[Tensor], with_base: bool) -> list[Tensor]:
    """Energies, gaps, and the free energies that sum each end of the first coupling out."""
    device, graph = machine.device, machine.graph
    there, base = [state.to(device) for state in states], base_of(graph, device) if with_base else None
    betas = torch.tensor(BETAS, device=device)
    out = [machine.energy(there), ops.EnergyGap(machine, base).of(there)]
    summed = [(0, 2) if len(graph.layers) == 3 else (0,), (1,)]
    for layers in summed:
        updates = [full_update(graph, layer) for layer in layers]
        out.append(machine.free_energy(updates, there, betas=betas, base=base))
    return out


@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_energies_of_real_layers_agree_with_the_reference(
    gpu: Gpu, name: str, with_base: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = states_of(GRAPHS[name])
    with monkeypatch.context() as patch:
        patch.setenv("BM_FAST_BACKEND", "reference")
        wanted = energies(make_machine(GRAPHS[name], scale=0.2), states, with_base)
    with gpu as device:
        machine = make_machine(GRAPHS[name], scale=0.2, device=device)
        assert isinstance(machine._impl, cuda.Machine)
        got = energies(machine, states, with_base)
    for a, b in zip(got, wanted, strict=True):
        largest = float(b.abs().max())  # a sum of terms of both signs has errors of the size of its terms
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-6 * largest)


def test_probabilities_have_free_energies_too(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real values of a binary layer add their biases alone."""
    graph = tree()
    g = torch.Generator().manual_seed(7)
    values = [torch.rand(N_CHAINS, layer.units, generator=g) for layer in graph.layers]
    values[2] = (values[2] < 0.5).to(torch.uint8)
    hidden = [full_update(graph, layer) for layer in (1, 3)]
    got = list[Tensor]()
    for backend, place in (("reference", None), ("native", gpu)):
        with monkeypatch.context() as patch:
            patch.setenv("BM_FAST_BACKEND", backend)
            with place or Gpu("cpu") as device:
                machine = make_machine(graph, device=device)
                there = [value.to(device) for value in values]
                got.append(machine.free_energy(hidden, there, betas=torch.tensor(BETAS, device=device)).cpu())
    torch.testing.assert_close(got[1], got[0], rtol=1e-5, atol=1e-5)


# --- parallel tempering in one call ----------------------------------------------------------------------------------


@with_hopper
@pytest.mark.parametrize(
    ("make", "n_ladders", "with_base"),
    [
        (lambda device: make_machine(chain_graph((33, 20)), device=device), 3, False),
        (lambda device: make_machine(chain_graph((33, 20)), device=device), 3, True),
        (lambda device: make_machine(tree(), device=device), 2, True),
    ],
    ids=["rbm", "rbm with a base", "tree"],
)
def test_tempering_has_the_bits_of_the_processor(
    gpu: Gpu, make: Callable[[torch.device], Machine], n_ladders: int, with_base: bool
) -> None:
    wanted = tempered(make(torch.device("cpu")), n_ladders, with_base=with_base)
    with gpu as device:
        machine = make(device)
        assert isinstance(machine._impl, cuda.Machine)
        assert_same(tempered(machine, n_ladders, with_base=with_base), wanted)


@pytest.mark.parametrize("with_base", [False, True])
def test_tempering_of_gaussian_layers_agrees_with_the_processor(gpu: Gpu, with_base: bool) -> None:
    """Six rounds: a decision that depends on the last bits of a real number comes in about one run of 10^3."""
    graph = chain_graph((20, 9), Kind.GAUSSIAN)
    wanted = tempered(make_machine(graph, scale=0.1), 2, with_base=with_base)
    with gpu as device:
        got = tempered(make_machine(graph, scale=0.1, device=device), 2, with_base=with_base)
    for a, b in zip(got, wanted, strict=True):
        a = a.cpu()
        if b.dtype is torch.int64 and b.numel() > 14:  # gaps and acceptances as integers
            a, b = a.view(torch.float64), b.view(torch.float64)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_tempering_may_be_split_and_interrupted(gpu: Gpu) -> None:
    """Ctrl-C leaves whole rounds, from which another call goes on to the same bits."""
    graph, n_rounds = chain_graph((9, 7)), 60

    def go(device: torch.device, rounds: tuple[int, ...], stop_at: int = -1) -> list[Tensor]:
        machine = make_machine(graph, device=device)
        chains, rungs = machine.chains(6, seed=1), ops.Rungs.start(2, 3, device)
        gap, betas = ops.EnergyGap(machine), torch.tensor([0.1, 0.4, 1.0]).to(device)
        means = {1: torch.zeros(6, 7, device=device)}
        told = list[int]()

        def progress(done: int) -> None:
            told.append(done)
            if done == stop_at:
                raise KeyboardInterrupt

        if stop_at > 0:
            with pytest.raises(KeyboardInterrupt):
                ops.temper(gap, chains, rungs, betas, rounds[0], progress=progress)
            assert rungs.round == stop_at == told[-1]
            rounds = (n_rounds - stop_at,)
        for n in rounds:
            ops.temper(gap, chains, rungs, betas, n, means=means)
        assert (rungs.round, chains.sweep) == (n_rounds, n_rounds)
        return [*chains.layers, *rungs.parts, means[1]]

    wanted = go(torch.device("cpu"), (n_rounds,))
    with gpu as device:
        assert_same(go(device, (n_rounds,)), wanted)
        assert_same(go(device, (7, n_rounds - 7)), wanted)
        assert_same(go(device, (10 * n_rounds,), stop_at=50), wanted)


def test_a_lack_of_memory_leaves_ladders_as_they_were(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever piece of memory it is that cannot be had."""
    take, left = cuda.Memory.take, 0

    def run_out(memory: cuda.Memory, n_bytes: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise torch.OutOfMemoryError(f"Tried to allocate {n_bytes} bytes, 5 are free")
        return take(memory, n_bytes)

    with gpu as device:
        machine = make_machine(chain_graph((33, 20)), device=device)
        chains, rungs = machine.chains(6, seed=1), ops.Rungs.start(2, 3, device)
        gap, betas = ops.EnergyGap(machine), torch.tensor([0.1, 0.4, 1.0]).to(device)
        before = [part.clone() for part in (*chains.layers, *rungs.parts)]
        monkeypatch.setattr(cuda.Memory, "take", run_out)
        for n_pieces in range(100):
            left = n_pieces
            try:
                ops.temper(gap, chains, rungs, betas, 2)
                break
            except torch.OutOfMemoryError:
                assert (chains.sweep, rungs.round) == (0, 0)
                for part, old in zip((*chains.layers, *rungs.parts), before, strict=True):
                    assert torch.equal(part, old)
        assert n_pieces > 5
        assert (chains.sweep, rungs.round) == (2, 2)


def test_ladders_that_hold_a_rung_twice_are_refused(gpu: Gpu) -> None:
    with gpu as device:
        machine = make_machine(chain_graph((5, 4)), device=device)
        chains, rungs = machine.chains(3, seed=1), ops.Rungs.start(1, 3, device)
        rungs.rungs[0] = 2
        with pytest.raises(ValueError, match="rungs: expected a permutation of 0 to 2 in each ladder"):
            ops.temper(ops.EnergyGap(machine), chains, rungs, torch.tensor([0.0, 0.4, 1.0]).to(device), 1)
        assert chains.sweep == 0
