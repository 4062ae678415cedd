"""Softmax layers on the CUDA kernels, emulated on the host: draws, means, mean field, energies, labels of machines."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from bm_fast import DBM, Chains, Graph, Kind, Layer, Machine, chain_graph, ops, reference
from bm_fast.program import full_update, gibbs_program
from cuda_devices import Gpu, assert_same, emulation, gpu, with_hopper
from cuda_runner import ORDERS, operate, taken
from engine_cases import annealed, categories, make_machine, run, tempered
from test_cuda_real import (
    FIRST_CHAIN,
    FIRST_SWEEP,
    SEED,
    RealCase,
    case,
    mean_field_by_layer_means,
    mean_field_by_runner,
)

__all__ = ["emulation", "gpu"]  # fixtures


def labelled(*units: int, n_classes: int = 10, device: torch.device | str = "cpu", scale: float = 0.4) -> Machine:
    return make_machine(chain_graph(units, n_classes=n_classes), scale=scale, device=device)


# --- the kernels, in every order of lanes ----------------------------------------------------------------------------

SWEEPS: dict[str, Callable[[], RealCase]] = {
    "labels": lambda: case(labelled(70, 33), 19, ()),
    "held": lambda: case(labelled(131, 67), 70, (), "base clamp"),
    "two classes": lambda: case(labelled(9, 5, n_classes=2), 1, (), "beta"),
    "letters": lambda: case(labelled(128, 64, n_classes=26), 64, (), "beta clamp"),
    "many classes": lambda: case(labelled(20, 7, n_classes=300), 33, (), "base clamp"),
    "a layer that feeds another": lambda: case(make_machine(categories()), 45, (), "base clamp"),
    "deep": lambda: case(labelled(8, 520, n_classes=70, scale=0.1), 5, ()),  # stages of one buffer go round
    "alone": lambda: case(make_machine(Graph((Layer("class", 65, Kind.SOFTMAX),), ())), 9, (), "clamp"),
}


@cache
def of(name: str) -> RealCase:
    return SWEEPS[name]()


def swept_by_runner(program: list[str], folder: Path, c: RealCase, n_sweeps: int, order: str) -> list[Tensor]:
    """Of each layer states and means; updates of binary layers take the kernel for real inputs here."""
    data = operate(program, folder, "real_sweep", *c.arguments(), SEED, FIRST_CHAIN, FIRST_SWEEP, n_sweeps, order=order)
    return taken(data, *((dtype, v.shape) for v in c.values for dtype in (torch.uint8, torch.float32)))


def swept_by_reference(c: RealCase, n_sweeps: int) -> list[Tensor]:
    layers, means = [v.clone() for v in c.values], {i: torch.zeros(v.shape) for i, v in enumerate(c.values)}
    options: dict[str, Any] = {"beta": None, "base": None, "clamp": {}} | c.options
    reference.sweep(
        c.machine.parameters,
        c.program,
        layers,
        n_sweeps,
        seed=SEED,
        first_chain=FIRST_CHAIN,
        first_sweep=FIRST_SWEEP,
        means=means,
        **options,
    )
    return [t for i, layer in enumerate(layers) for t in (layer, means[i])]


@pytest.mark.parametrize("name", SWEEPS)
def test_the_reference_and_the_processor_agree_on_the_cases(name: str) -> None:
    c = of(name)
    chains = Chains(tuple(v.clone() for v in c.values), SEED, FIRST_SWEEP, FIRST_CHAIN)
    means = {i: torch.zeros(v.shape) for i, v in enumerate(c.values)}
    c.machine.sweep(c.program, chains, 2, means=means, **c.options)
    assert_same([t for i, layer in enumerate(chains.layers) for t in (layer, means[i])], swept_by_reference(c, 2))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_have_the_bits_of_the_reference(plain: list[str], tmp_path: Path, name: str, order: str) -> None:
    assert_same(swept_by_runner(plain, tmp_path, of(name), 2, order), swept_by_reference(of(name), 2))


def test_masks_of_the_cases_hold_units_that_are_on_and_units_that_are_off() -> None:
    """In some chains, not in others: what the sweeps above are to show."""
    for name in ("held", "letters", "many classes"):
        kept = ((of(name).options["clamp"][2] != 0) & (of(name).values[2] == 1)).any(1)
        assert bool(kept.any() and not kept.all())


MEAN_FIELD: dict[str, Callable[[], RealCase]] = {
    "labels": lambda: case(
        labelled(70, 65, 33, scale=0.2), 37, (1, 2, 3), program=gibbs_program(chain_graph((1, 1, 1), n_classes=2), [0])
    ),
    "many classes": lambda: case(
        labelled(20, 9, n_classes=300, scale=0.2),
        5,
        (1, 2),
        program=gibbs_program(chain_graph((1, 1), n_classes=2), [0]),
    ),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("name", MEAN_FIELD)
def test_mean_field(plain: list[str], tmp_path: Path, name: str, damping: float, order: str) -> None:
    """Chains settle, not all at once."""
    c = MEAN_FIELD[name]()
    got = mean_field_by_runner(plain, tmp_path, c, 8, damping, 0.03, order)
    wanted = mean_field_by_layer_means(c, 8, damping, 0.03)
    assert name != "labels" or len(wanted[-1].unique()) > 1
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)


@pytest.mark.parametrize("order", ["fair", "random:3"])
def test_sanitizers_find_nothing(sanitized: list[str], tmp_path: Path, order: str) -> None:
    for name in ("a layer that feeds another", "many classes"):
        assert_same(swept_by_runner(sanitized, tmp_path, of(name), 1, order), swept_by_reference(of(name), 1))
    mean_field_by_runner(sanitized, tmp_path, MEAN_FIELD["labels"](), 1, 0.3, 0.0, order)


# --- from Python -----------------------------------------------------------------------------------------------------

Case = Callable[[torch.device], list[Tensor]]
CASES: dict[str, Case] = {
    "labels": lambda device: run(labelled(40, 33, device=device), 11, 3),
    "options": lambda device: run(labelled(40, 33, device=device), 45, 2, options="base clamp"),
    "deep": lambda device: run(labelled(70, 33, 66, n_classes=26, device=device), 13, 3, options="beta"),
    "two softmax layers": lambda device: run(make_machine(categories(), device=device), 13, 3, options="base clamp"),
    "visible and labels alone": lambda device: run(make_machine(pair(), device=device), 13, 3, options="clamp"),
    "many chains": lambda device: run(labelled(70, 66, 65, device=device), 256, 2, options="base clamp"),
}


def pair() -> Graph:
    """Two layers, whose weights would stay in a cluster if both were of Bernoulli units."""
    return Graph((Layer("visible", 70), Layer("labels", 10, Kind.SOFTMAX)), chain_graph((1, 1)).couplings)


@with_hopper
@pytest.mark.parametrize("name", CASES)
def test_python_gets_the_bits_of_the_processor(gpu: Gpu, name: str) -> None:
    """First states, states after some sweeps, their means and energies."""
    wanted = CASES[name](torch.device("cpu"))
    with gpu as device:
        assert_same(CASES[name](device), wanted)


@pytest.mark.parametrize("name", ["visible and labels alone", "many chains"])
def test_layers_beside_labels_still_stream(emulation: ModuleType, name: str) -> None:
    """On a device for the Hopper kernels that does not promise to run blocks at the same time."""
    wanted = CASES[name](torch.device("cpu"))
    with Gpu("cpu", emulation, 90, cooperative=False) as device:
        assert_same(CASES[name](device), wanted)


def means_and_free_energies(machine: Machine, options: str) -> list[Tensor]:
    """Of states, of each layer; labels are summed out beside the layer below, and beside others."""
    g, device = torch.Generator().manual_seed(3), machine.device
    states = [t.to(device) for t in case(make_machine(machine.graph), 19, ()).values]
    base = [torch.randn(layer.units, generator=g).to(device) for layer in machine.graph.layers] if options else None
    beta, betas = torch.rand(19, generator=g).to(device) if options else None, torch.tensor([0.0, 0.3, 1.0]).to(device)
    updates = [[full_update(machine.graph, layer) for layer in colour] for colour in machine.graph.colours()]
    return [
        *(machine.layer_means(full_update(machine.graph, i), states, beta=beta, base=base) for i in range(len(states))),
        machine.energy(states),
        *(machine.free_energy(colour, states, betas=betas, base=base) for colour in updates),
        ops.EnergyGap(machine, base).of(states),
    ]


@pytest.mark.parametrize("options", ["", "base"])
@pytest.mark.parametrize("graph", [chain_graph((40, 33), n_classes=26), categories()], ids=["labels", "two layers"])
def test_means_energies_and_gaps_are_those_of_the_processor(gpu: Gpu, graph: Graph, options: str) -> None:
    wanted = means_and_free_energies(make_machine(graph), options)
    with gpu as device:
        assert_same(means_and_free_energies(make_machine(graph, device=device), options), wanted)


def test_free_energies_of_extreme_fields(gpu: Gpu) -> None:
    with gpu as device:
        biases = [torch.zeros(2, device=device), torch.tensor([3e38, 1e38, 3e38], device=device)]
        graph = Graph((Layer("v", 2), Layer("class", 3, Kind.SOFTMAX)), chain_graph((1, 1)).couplings)
        built = Machine.build(graph, [torch.ones(2, 3, device=device)], biases)
        values = tuple(torch.zeros(1, n, dtype=torch.uint8, device=device) for n in (2, 3))
        betas = torch.tensor([0.0, 1.0, 100.0], device=device)
        found = built.free_energy((full_update(graph, 1),), values, betas=betas)[:, 0].tolist()
    assert found == pytest.approx([-torch.tensor(3.0).log().item(), -3e38, -torch.inf], rel=1e-6)


@pytest.mark.parametrize("with_base", [False, True])
def test_tempering_has_the_bits_of_the_processor(gpu: Gpu, with_base: bool) -> None:
    wanted = tempered(labelled(40, 33), 2, with_base=with_base)
    with gpu as device:
        assert_same(tempered(labelled(40, 33, device=device), 2, with_base=with_base), wanted)


def test_annealing_has_the_states_of_the_processor(gpu: Gpu) -> None:
    """Weights differ by roundings of the fields (docs/numbers.md)."""
    states, log_weights = annealed(labelled(40, 33), 9)
    with gpu as device:
        got, got_weights = annealed(labelled(40, 33, device=device), 9)
    assert_same(got, states)
    torch.testing.assert_close(got_weights.cpu(), log_weights, rtol=1e-5, atol=1e-5)


def uses(device: torch.device) -> list[Tensor]:
    """What a machine with labels is for; chains are drawn and held, the rest is mean field."""
    model = DBM((12, 9, 7), seed=3, weight_scale=0.3, n_classes=5).to(device)
    v = (torch.rand(14, 12, generator=torch.Generator().manual_seed(3)) < 0.4).to(torch.uint8).to(device)
    labels = (torch.arange(14) % 5).to(device)
    chains = model.labelled_chains(labels, seed=3)
    model.sample(chains, 3, hold=["labels"])
    return [
        *chains.layers,
        model.predict(v),
        model.label_means(v),
        model.label_probabilities(v, 50, 1e-6),
        model.variational_free_energy(v, 50, 1e-6, labels=labels),
    ]


def test_machines_with_labels_do_what_they_do_on_the_processor(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:  # processors may take products of eight bits
        patch.setenv("BM_FAST_BACKEND", "reference")
        wanted = uses(torch.device("cpu"))
    with gpu as device:
        got = uses(device)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=2e-5 if b.is_floating_point() else 0)
