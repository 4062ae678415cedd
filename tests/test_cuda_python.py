"""Operations on tensors of a GPU, emulated and real, beside those of the processor."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from bm_fast import Graph, Kind, Layer, Machine, chain_graph, ops
from bm_fast.program import Input, Program, Update, full_update, gibbs_program
from cuda_devices import Gpu, assert_same, emulation, gpu, with_hopper
from engine_cases import make_machine, run, tree

__all__ = ["emulation", "gpu"]  # fixtures


# --- the same bits as the processor's ---------------------------------------------------------------------------------

SCALED: Program = ((Update(1, (Input(0, False, 2.0),)),), (Update(0, (Input(0, True, 0.3),)),))

Case = Callable[[torch.device], list[Tensor]]
CASES: dict[str, Case] = {
    "rbm": lambda device: run(make_machine(chain_graph((131, 67)), device=device), 70, 3),
    "one unit": lambda device: run(make_machine(chain_graph((1, 1)), device=device), 1, 3),
    "options": lambda device: run(make_machine(tree(), device=device), 13, 2, options="base clamp"),
    "beta": lambda device: run(make_machine(chain_graph((40, 33, 17)), device=device), 11, 3, options="beta"),
    "scaled inputs": lambda device: run(make_machine(chain_graph((131, 67)), device=device), 9, 3, program=SCALED),
    "clamped layer": lambda device: run(
        make_machine(chain_graph((131, 67)), device=device), 9, 2, program=gibbs_program(chain_graph((2, 2)), (0,))
    ),
    "no couplings": lambda device: run(make_machine(Graph((Layer("alone", 70),), ()), device=device), 9, 2),
    "no sweeps": lambda device: run(make_machine(chain_graph((9, 7)), device=device), 3, 0),
    # from 256 chains on
    "many chains": lambda device: run(make_machine(chain_graph((70, 66, 65)), device=device), 257, 2, options="beta"),
    "many chains, a small layer": lambda device: run(make_machine(chain_graph((70, 9, 65)), device=device), 256, 2),
    "many chains, no couplings": lambda device: run(make_machine(Graph((Layer("a", 70),), ()), device=device), 256, 2),
    "many chains, options": lambda device: run(
        make_machine(chain_graph((64, 65, 4)), device=device), 256, 2, options="base clamp"
    ),
}


@with_hopper
@pytest.mark.parametrize("name", CASES)
def test_sweeps_have_the_bits_of_the_processor(gpu: Gpu, name: str) -> None:
    """First states, states after some sweeps, their means and energies."""
    wanted = CASES[name](torch.device("cpu"))
    with gpu as device:
        assert_same(CASES[name](device), wanted)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("many chains")])
def test_streamed_sweeps_have_the_bits_of_the_processor(emulation: ModuleType, name: str) -> None:
    """On a device that does not promise to run blocks at the same time."""
    wanted = CASES[name](torch.device("cpu"))
    with Gpu("cpu", emulation, 90, cooperative=False) as device:
        assert_same(CASES[name](device), wanted)


@pytest.mark.parametrize(
    ("units", "n_chains", "cooperative", "reads_hopper"),
    [
        ((13, 7), 3, False, True),
        ((70, 66, 65), 3, True, True),
        ((70, 66, 65), 256, False, True),
        ((70, 66, 65), 255, False, False),
    ],
    ids=["resident", "persistent", "streamed", "few chains"],
)
def test_only_weights_of_the_chosen_kernel_are_read(
    emulation: ModuleType, units: tuple[int, ...], n_chains: int, cooperative: bool, reads_hopper: bool
) -> None:
    wanted = run(make_machine(chain_graph(units)), n_chains, 2)[: len(units)]
    with Gpu("cpu", emulation, 90, cooperative=cooperative) as device:
        machine = make_machine(chain_graph(units), device=device)
        held = machine._impl._memory._held  # type: ignore[attr-defined]
        portable, hopper = held[::2], held[1::2]
        assert len(portable) == len(hopper) == 2 * (len(units) - 1)
        for weights in portable if reads_hopper else hopper:
            weights.zero_()
        assert_same(run(machine, n_chains, 2)[: len(units)], wanted)


def test_sweeps_may_be_split_over_calls_and_chains(gpu: Gpu) -> None:
    wanted = run(make_machine(tree()), 13, 4)[: len(tree().layers)]
    with gpu as device:
        machine = make_machine(tree(), device=device)
        chains = machine.chains(13, seed=2**63 + 12345, first_chain=77)
        machine.sweep(gibbs_program(tree()), chains, 1)
        for part in (chains.select(0, 5), chains.select(5, 13)):
            machine.sweep(gibbs_program(tree()), part, 1)
            machine.sweep(gibbs_program(tree()), part, 2)
            assert part.sweep == 4
        assert_same(list(chains.layers), wanted)


def means_and_free_energies(machine: Machine, options: str) -> list[Tensor]:
    g, device = torch.Generator().manual_seed(3), machine.device
    layers = machine.graph.layers
    states = [(torch.rand(9, layer.units, generator=g) < 0.4).to(torch.uint8).to(device) for layer in layers]
    base = [torch.randn(layer.units, generator=g).to(device) for layer in layers] if "base" in options else None
    beta = torch.rand(9, generator=g).to(device) if options else None
    betas = torch.tensor([0.0, 0.3, 1.0]).to(device)
    colour = machine.graph.colours()[1]
    updates = [full_update(machine.graph, layer) for layer in colour]
    return [
        *(machine.layer_means(full_update(machine.graph, i), states, beta=beta, base=base) for i in range(len(layers))),
        machine.energy(states),
        machine.free_energy(updates, states, betas=betas, base=base),
        machine.free_energy(updates, states),
    ]


@pytest.mark.parametrize("options", ["", "beta", "base"])
@pytest.mark.parametrize("graph", [chain_graph((131, 67)), tree()], ids=["rbm", "tree"])
def test_means_and_free_energies_are_those_of_the_processor(gpu: Gpu, graph: Graph, options: str) -> None:
    wanted = means_and_free_energies(make_machine(graph), options)
    with gpu as device:
        assert_same(means_and_free_energies(make_machine(graph, device=device), options), wanted)


@pytest.mark.parametrize("units", [1, 3, 130])
def test_draws_have_the_bits_of_the_processor(gpu: Gpu, units: int) -> None:
    g = torch.Generator().manual_seed(3)
    grey = torch.rand(7, units, generator=g)
    grey[0, 0], grey[1, 0] = 0, 1
    rows = torch.tensor([5, 0, 2**32 - 1, 3, 4, 1, 2])
    wanted = ops.bernoulli(grey, rows, seed=9, sweep=4, layer=1)
    with gpu as device:
        assert_same([ops.bernoulli(grey.to(device), rows.to(device), seed=9, sweep=4, layer=1)], [wanted])


@pytest.mark.parametrize("units", [3, 130])
def test_statistics_have_the_bits_of_the_processor(gpu: Gpu, units: int) -> None:
    g = torch.Generator().manual_seed(3)
    binary = [(torch.rand(70, n, generator=g) < 0.3).to(torch.uint8) for n in (units, 67)]
    real = [torch.randn(70, n, generator=g) for n in (units, 67)]
    for lower in (binary[0], real[0]):
        for upper in (binary[1], real[1]):
            wanted = ops.statistics(lower, upper)
            with gpu as device:
                assert_same([ops.statistics(lower.to(device), upper.to(device))], [wanted])


def test_integers_on_the_grid_are_those_of_the_processor(gpu: Gpu) -> None:
    g = torch.Generator().manual_seed(3)
    for scale in (1e-9, 0.01, 1.0, 1e4 / 4):
        weights = scale * torch.randn(13, 7, generator=g)
        wanted, bits = ops.quantise(weights)
        with gpu as device:
            got, got_bits = ops.quantise(weights.to(device))
        assert_same([got], [wanted])
        assert got_bits == bits
    with gpu as device, pytest.raises(ValueError, match="weight: expected finite weights, got nan"):
        ops.quantise(torch.tensor([[float("nan")]], device=device))


# --- real values: within the tolerances of docs/numbers.md ------------------------------------------------------------


@pytest.mark.parametrize("options", ["", "beta", "base clamp"])
def test_gaussian_layers_agree_with_the_processor(gpu: Gpu, options: str) -> None:
    """Three sweeps: a hidden unit would decide differently in about one case of 10^5."""
    graph = chain_graph((70, 33), Kind.GAUSSIAN)
    wanted = run(make_machine(graph, scale=0.1), 13, 3, options=options)
    with gpu as device:
        got = run(make_machine(graph, scale=0.1, device=device), 13, 3, options=options)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-5, atol=1e-5)


def real_means(device: torch.device) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    machine = make_machine(chain_graph((131, 67)), device=device)
    values = [torch.rand(9, n, generator=g).to(device) for n in (131, 67)]
    up, down = full_update(machine.graph, 1), full_update(machine.graph, 0)
    betas = torch.tensor([0.3, 1.0]).to(device)
    return [
        machine.layer_means(up, values),
        machine.layer_means(down, values, beta=torch.linspace(0, 1, 9).to(device)),
        machine.free_energy((up,), values, betas=betas),
    ]


def test_real_inputs_agree_with_the_processor(gpu: Gpu) -> None:
    wanted = real_means(torch.device("cpu"))
    with gpu as device:
        got = real_means(device)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=2e-6, atol=2e-6)


def mean_field(device: torch.device, tolerance: float) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    machine = make_machine(chain_graph((70, 33, 17)), device=device)
    values = [torch.rand(9, layer.units, generator=g).to(device) for layer in machine.graph.layers]
    program = gibbs_program(machine.graph, clamped=(0,))
    convergence = machine.mean_field(program, values, 20, tolerance=tolerance, damping=0.2)
    return [*values, convergence.changes, convergence.iterations]


@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_mean_field_agrees_with_the_reference(gpu: Gpu, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # processors may take products of eight bits
        patch.setenv("BM_FAST_BACKEND", "reference")
        wanted = mean_field(torch.device("cpu"), tolerance)
    with gpu as device:
        got = mean_field(device, tolerance)
    assert torch.equal(got[-1].cpu(), wanted[-1])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=2e-5)


def tempering(device: torch.device) -> list[Tensor]:
    machine = make_machine(chain_graph((13, 7)), device=device)
    base = [torch.linspace(-1, 1, layer.units).to(device) for layer in machine.graph.layers]
    gap = ops.EnergyGap(machine, base)
    chains, rungs = machine.chains(6, seed=1), ops.Rungs.start(2, 3, device)
    betas = torch.tensor([0.0, 0.4, 1.0]).to(device)
    for _ in range(5):
        machine.sweep(gibbs_program(machine.graph), chains, 1, beta=betas[rungs.rungs.long()], base=base)
        ops.swap(rungs, gap.of(chains.layers), betas, seed=1)
    return [*chains.layers, rungs.rungs, rungs.attempts, rungs.acceptances, rungs.heading, rungs.trips]


@with_hopper
def test_replica_exchange_has_the_bits_of_the_processor(gpu: Gpu) -> None:
    wanted = tempering(torch.device("cpu"))
    with gpu as device:
        assert_same(tempering(device), wanted)


def test_rungs_that_are_no_permutation_are_refused(gpu: Gpu) -> None:
    with gpu as device:
        rungs, betas = ops.Rungs.start(1, 3, device), torch.tensor([0.0, 0.4, 1.0]).to(device)
        rungs.rungs[0] = 2
        with pytest.raises(ValueError, match="rungs: expected a permutation of 0 to 2 in each ladder"):
            ops.swap(rungs, torch.zeros(3, dtype=torch.float64, device=device), betas, seed=1)
