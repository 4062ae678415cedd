"""One call that anneals: the states of separate sweeps, and weights that are those of float64 within roundings."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from bm_fast import Chains, Kind, Machine, chain_graph, ops
from bm_fast.estimation._path import summed_and_sweep
from bm_fast.program import gibbs_program
from engine_cases import make_machine, tree

GRAPHS = {
    "rbm": chain_graph((130, 67)),
    "single units": chain_graph((1, 1)),
    "ragged": chain_graph((9, 257)),
    "deep": chain_graph((40, 33, 17, 5)),
    "tree": tree(),
    "labels summed out": chain_graph((40, 33), n_classes=10),
    "labels kept": chain_graph((40, 33), n_classes=10),
    "gaussian summed out": chain_graph((70, 33), Kind.GAUSSIAN),
    "gaussian kept": chain_graph((70, 33), Kind.GAUSSIAN),
}
SCHEDULES = {
    "fine": torch.linspace(0, 1, 40),
    "falling": torch.linspace(1, 0, 7),
    "in one step": torch.tensor([0.0, 1.0]),
    "nowhere": torch.tensor([0.25, 0.25]),
}


def base_of(machine: Machine) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(layer.units, generator=generator) for layer in machine.graph.layers]


def log_partition(machine: Machine, layer: int, field: Tensor) -> Tensor:
    """log of the sum, or integral, over the states of the layer's units with these fields."""
    kind, precision = machine.graph.layers[layer].kind, machine.parameters.precisions[layer]
    if kind is Kind.SOFTMAX:
        return field.logsumexp(1)
    if precision is not None:
        return (field.square() / precision.double() + (2 * math.pi / precision.double()).log()).sum(1) / 2
    return torch.logaddexp(field, torch.zeros((), dtype=torch.float64)).sum(1)


def field_of(machine: Machine, layer: int, layers: tuple[Tensor, ...]) -> Tensor:
    """From the formula, in float64."""
    parameters = machine.parameters
    field = parameters.biases[layer].double().expand(len(layers[0]), -1).clone()
    for c, coupling in enumerate(machine.graph.couplings):
        weight = parameters.weights[c].double() * 2.0 ** -parameters.fraction_bits[c]
        if coupling.upper == layer:
            field += layers[coupling.lower].double() @ weight
        elif coupling.lower == layer:
            field += layers[coupling.upper].double() @ weight.T
    return field


def log_density(machine: Machine, summed: set[int], layers: tuple[Tensor, ...], beta: float) -> Tensor:
    """From the formula, in float64 throughout."""
    parameters, base = machine.parameters, base_of(machine)
    total = torch.zeros(len(layers[0]), dtype=torch.float64)
    for i, layer in enumerate(layers):
        bias, state = parameters.biases[i].double(), layer.double()
        if i not in summed:
            total += state @ (beta * bias + (1 - beta) * base[i].double())
            precision = parameters.precisions[i]
            total -= 0 if precision is None else state.square() @ precision.double() / 2
            continue
        field = field_of(machine, i, layers)
        total += log_partition(machine, i, beta * field + (1 - beta) * base[i].double())
    return total


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", GRAPHS)
def test_states_are_those_of_sweeps_and_weights_those_of_float64(name: str, schedule: str) -> None:
    """A unit's share of a weight is off by 3e-7 (2 + |field|) of it, or by a rounding of the tempered field."""
    machine, betas = make_machine(GRAPHS[name]), SCHEDULES[schedule]
    program = gibbs_program(machine.graph) if "kept" in name else summed_and_sweep(machine.graph)[1]
    summed = {update.layer for update in program[0]}
    chains = machine.chains(13, seed=2**63 + 7, first_chain=5)
    separate = chains.clone()
    given = torch.linspace(-3, 3, 13, dtype=torch.float64)
    log_weights = given.clone()
    ops.anneal(machine, program, chains, betas, log_weights, base=base_of(machine))
    expected, moved = given.clone(), torch.zeros(13, dtype=torch.float64)
    for beta, following in pairwise(betas.tolist()):
        densities = [log_density(machine, summed, separate.layers, b) for b in (beta, following)]
        expected += densities[1] - densities[0]
        moved += abs(densities[1] - densities[0]) + 1e-3
        machine.sweep(program, separate, 1, beta=torch.full((13,), following), base=base_of(machine))
    assert chains.sweep == separate.sweep
    for layer, other in zip(chains.layers, separate.layers, strict=True):
        assert torch.equal(layer, other)
    assert ((log_weights - expected).abs() < 1e-5 * moved).all()


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("step", [1e-6, -1e-6, 1e-3, 0.3, -0.5])
def test_one_unit_adds_what_it_should_whatever_its_field_and_the_step(beta: float, step: float) -> None:
    """Within 3e-7 (2 + |field|) of the difference of its fields (numbers.md): fields from -300 to 300, some tiny."""
    if ops.info()["backend"] == "reference":
        pytest.skip("the reference takes differences of rounded energies")
    graph = chain_graph((22, 1))
    weight = torch.tensor([sign * 150 * 2.0**-k for k in range(11) for sign in (1, -1)])[:, None]
    machine = Machine.build(graph, [weight], [torch.zeros(22), torch.zeros(1)])
    v = torch.randint(0, 2, (4096, 22), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    field = v.double() @ (machine.parameters.weights[0].double() * 2.0 ** -machine.parameters.fraction_bits[0])[:, 0]
    chains = Chains((v, torch.zeros(4096, 1, dtype=torch.uint8)), seed=0)
    betas, log_weights = torch.tensor([beta, beta + step]), torch.zeros(4096, dtype=torch.float64)
    program = gibbs_program(graph, last=0)  # the one unit first: it is summed out
    ops.anneal(machine, program, chains, betas, log_weights, base=[torch.zeros(22), torch.zeros(1)])
    low, high = betas.double()[:, None] * field
    expected = torch.nn.functional.softplus(high, threshold=700) - torch.nn.functional.softplus(low, threshold=700)
    largest = torch.maximum(low.abs(), high.abs())
    assert largest.max() > 100 * max(abs(beta), abs(beta + step))
    assert ((log_weights - expected).abs() <= 3e-7 * (2 + largest) * (high - low).abs() + 1e-30).all()


WHOLE_RUNS = {
    "fine": torch.linspace(0, 1, 301),
    "coarse": torch.linspace(0, 1, 31),
    "falling": torch.linspace(1, 0, 31),
    "tiny steps": torch.linspace(0.5, 0.5001, 301),
}
LARGEST_ERROR = 3e-8
"""Of a whole run's weight, relative to all that its units gain and lose on the way: three times what is found."""


def error_of_a_run(units: tuple[int, ...], scale: float, betas: Tensor) -> Tensor:
    """Largest error of a chain's weight relative to Σ |gain| over steps and summed units; float64 beside the run."""
    machine = make_machine(chain_graph(units), scale=scale)
    program, base, n_chains = summed_and_sweep(machine.graph)[1], base_of(machine), 13
    summed = {update.layer for update in program[0]}
    chains, separate = machine.chains(n_chains, seed=5), machine.chains(n_chains, seed=5)
    log_weights, expected, moved = torch.zeros(3, n_chains, dtype=torch.float64).unbind()
    ops.anneal(machine, program, chains, betas, log_weights, base=base)
    for beta, following in pairwise(betas.tolist()):
        for i, state in enumerate(separate.layers):
            own = base[i].double()
            if i not in summed:
                expected += (following - beta) * (state.double() @ (machine.parameters.biases[i].double() - own))
                continue
            field = field_of(machine, i, separate.layers)
            fields = torch.stack([b * field + (1 - b) * own for b in (beta, following)])
            now, then = torch.logaddexp(fields, torch.zeros((), dtype=torch.float64))
            expected += (then - now).sum(1)
            moved += (then - now).abs().sum(1)
        machine.sweep(program, separate, 1, beta=torch.full((n_chains,), following), base=base)
    assert all(torch.equal(layer, other) for layer, other in zip(chains.layers, separate.layers, strict=True))
    return ((log_weights - expected).abs() / moved).max()


@pytest.mark.parametrize("units", [(40, 33), (40, 33, 17)])
@pytest.mark.parametrize("scale", [0.01, 0.3, 3.0])
@pytest.mark.parametrize("schedule", WHOLE_RUNS)
def test_errors_of_steps_do_not_add_up_over_a_whole_run(schedule: str, scale: float, units: tuple[int, ...]) -> None:
    """Whatever the size of steps and weights: were errors ten times as large, 21 of these 24 runs would fail."""
    if ops.info()["backend"] == "reference":
        pytest.skip("the reference takes differences of rounded energies")
    assert error_of_a_run(units, scale, WHOLE_RUNS[schedule]) < LARGEST_ERROR


def test_roundings_of_the_fields_would_be_seen_in_a_whole_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bound above can tell: the reference takes differences of energies whose fields are rounded first."""
    monkeypatch.setenv("BM_FAST_BACKEND", "reference")
    assert error_of_a_run((40, 33), 0.3, WHOLE_RUNS["tiny steps"]) > 10 * LARGEST_ERROR


def test_interrupt_after_a_sweep_of_the_steps_loses_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where steps are separate calls, Ctrl-C during a sweep is raised when that sweep is done."""
    monkeypatch.setenv("BM_FAST_BACKEND", "reference")
    machine = make_machine(chain_graph((9, 7)))
    program, base, betas = summed_and_sweep(machine.graph)[1], base_of(machine), torch.linspace(0, 1, 8)
    expected, interrupted = machine.chains(5, seed=2), machine.chains(5, seed=2)
    weights, expected_weights = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    ops.anneal(machine, program, expected, betas[:4].clone(), expected_weights, base=base)
    sweep, calls = Machine.sweep, 0

    def interrupting(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        sweep(*arguments, **options)
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Machine, "sweep", interrupting)
    with pytest.raises(KeyboardInterrupt):
        ops.anneal(machine, program, interrupted, betas, weights, base=base)
    assert interrupted.sweep == expected.sweep
    assert torch.equal(interrupted.layers[0], expected.layers[0])
    assert torch.equal(weights, expected_weights)


@pytest.mark.parametrize("n_chains", [13, 100, 257])
def test_any_number_of_threads_and_any_split_gives_the_same_bits(n_chains: int) -> None:
    machine = make_machine(chain_graph((300, 513)))
    program, base = summed_and_sweep(machine.graph)[1], base_of(machine)
    betas = torch.linspace(0, 1, 61)

    def annealed(threads: int, *ends: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        chains, log_weights = machine.chains(n_chains, seed=9), torch.zeros(n_chains, dtype=torch.float64)
        for first, last in pairwise((0, *ends, 60)):
            ops.anneal(machine, program, chains, betas[first : last + 1].clone(), log_weights, base=base)
        return [*chains.layers, log_weights]

    expected = annealed(1)
    for threads, ends in ((2, ()), (5, ()), (1, (1, 30, 30)), (3, (17,))):
        for one, other in zip(annealed(threads, *ends), expected, strict=True):
            assert torch.equal(one, other)


def test_chains_do_not_depend_on_those_beside_them() -> None:
    machine = make_machine(chain_graph((70, 33)))
    program, betas = summed_and_sweep(machine.graph)[1], torch.linspace(0, 1, 20)
    whole = machine.chains(200, seed=4)
    part = Chains(tuple(layer[60:71].clone() for layer in whole.layers), 4, 0, 60)
    weights, of_part = torch.zeros(200, dtype=torch.float64), torch.zeros(11, dtype=torch.float64)
    ops.anneal(machine, program, whole, betas, weights, base=base_of(machine))
    ops.anneal(machine, program, part, betas, of_part, base=base_of(machine))
    assert torch.equal(of_part, weights[60:71])
    assert all(torch.equal(layer[60:71], other) for layer, other in zip(whole.layers, part.layers, strict=True))


@pytest.mark.usefixtures("backend")
def test_progress_is_told_up_to_the_last_step() -> None:
    machine = make_machine(chain_graph((20, 9)))
    chains, told = machine.chains(5, seed=0), list[int]()
    program, log_weights = summed_and_sweep(machine.graph)[1], torch.zeros(5, dtype=torch.float64)
    arguments = (machine, program, chains)
    ops.anneal(*arguments, torch.linspace(0, 1, 301), log_weights, base=base_of(machine), progress=told.append)
    assert told[-1] == chains.sweep == 300
    assert told == sorted(set(told))
    ops.anneal(*arguments, torch.ones(1), log_weights, base=base_of(machine), progress=told.append)  # no step
    assert told[-1] == chains.sweep == 300


ERRORS: list[tuple[dict[str, Any], str]] = [
    ({"program": ()}, "program: expected an update of layer 0"),
    ({"program": gibbs_program(chain_graph((20, 9)), clamped=(0,))}, "program: expected an update of layer 0"),
    ({"betas": torch.empty(0)}, "betas: expected at least one"),
    ({"betas": torch.tensor([0.0, -0.5])}, "betas: expected finite values of at least 0"),
    ({"betas": torch.tensor([0.0, math.nan])}, "betas: expected finite values of at least 0"),
    ({"betas": torch.zeros(2, dtype=torch.float64)}, "betas: "),
    ({"betas": [0.0, 1.0]}, "betas: "),
    ({"log_weights": torch.zeros(5)}, "log_weights: "),
    ({"log_weights": torch.zeros(4, dtype=torch.float64)}, "log_weights: "),
    ({"base": [torch.zeros(20)]}, "base: expected one tensor for each of 2 layers"),
    ({"base": [torch.zeros(20), torch.full((9,), math.inf)]}, r"base\[1\]: expected finite"),
]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("changed", "message"), ERRORS)
def test_errors_name_the_argument_and_change_nothing(changed: dict[str, Any], message: str) -> None:
    machine = make_machine(chain_graph((20, 9)))
    chains = machine.chains(5, seed=0)
    before, log_weights = chains.clone(), torch.zeros(5, dtype=torch.float64)
    arguments = {
        "program": summed_and_sweep(machine.graph)[1],
        "betas": torch.tensor([0.0, 1.0]),
        "log_weights": log_weights,
        "base": base_of(machine),
        **changed,
    }
    with pytest.raises((ValueError, TypeError), match=message):
        ops.anneal(machine, chains=chains, **arguments)
    assert chains.sweep == 0
    assert all(torch.equal(layer, other) for layer, other in zip(chains.layers, before.layers, strict=True))
    assert not log_weights.any()


def test_a_first_block_that_a_coupling_does_not_lead_to_is_refused() -> None:
    machine = make_machine(chain_graph((5, 4, 3, 2)))
    program = tuple((update,) for block in gibbs_program(machine.graph) for update in block)
    with pytest.raises(ValueError, match="program: expected a first block that every coupling leads to, got layers"):
        ops.anneal(
            machine,
            program,
            machine.chains(2, seed=0),
            torch.tensor([0.0, 1.0]),
            torch.zeros(2, dtype=torch.float64),
            base=base_of(machine),
        )
