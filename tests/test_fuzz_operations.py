"""Legal and hostile arguments of the public operations: an error or a result, never a crash and never a stray byte.

``make sanitize`` runs this file under AddressSanitizer and UBSan, once per instruction set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bm_fast import Chains, Coupling, Graph, Kind, Layer, Machine, ops
from bm_fast.program import Input, Program, Update, full_update, gibbs_program
from fuzz_cases import INT64, REFUSED, is_possible, machines

# --- legal arguments --------------------------------------------------------------------------------------------------


@given(data=st.data(), machine=machines(), n_chains=st.integers(1, 500), threads=st.integers(1, 5))
def test_sweeps_stay_inside_their_buffers(data: st.DataObject, machine: Machine, n_chains: int, threads: int) -> None:
    torch.set_num_threads(threads)
    chains = machine.chains(n_chains, seed=data.draw(st.integers(0, 2**64 - 1)))
    sizes = [layer.units for layer in machine.graph.layers]
    beta = torch.rand(n_chains) + 0.1 if data.draw(st.booleans()) else None
    base = [torch.randn(n) for n in sizes] if beta is not None and data.draw(st.booleans()) else None
    some = st.sets(st.integers(0, len(sizes) - 1))
    clamp = {i: torch.randint(0, 2, (n_chains, sizes[i]), dtype=torch.uint8) for i in data.draw(some)}
    means = {i: torch.full((n_chains, sizes[i]), math.nan) for i in data.draw(some)}
    n_sweeps = data.draw(st.integers(0, 3))
    machine.sweep(gibbs_program(machine.graph), chains, n_sweeps, beta=beta, base=base, clamp=clamp, means=means)
    assert chains.sweep == n_sweeps
    assert is_possible(chains)
    if n_sweeps:
        assert all(bool(torch.isfinite(mean).all()) for mean in means.values())


@given(data=st.data(), machine=machines(), n_chains=st.integers(1, 150), threads=st.integers(1, 5))
def test_other_operations_stay_inside_their_buffers(
    data: st.DataObject, machine: Machine, n_chains: int, threads: int
) -> None:
    torch.set_num_threads(threads)
    chains = machine.chains(n_chains, seed=0)
    graph = machine.graph
    real = data.draw(st.sets(st.integers(0, len(graph.layers) - 1)))
    values = [layer.float() if i in real else layer for i, layer in enumerate(chains.layers)]
    updated = data.draw(st.integers(0, len(graph.layers) - 1))
    assert bool(torch.isfinite(machine.layer_means(full_update(graph, updated), values)).all())
    assert bool(torch.isfinite(machine.energy(chains.layers)).all())
    for colour in graph.colours():
        summed_out = [full_update(graph, layer) for layer in colour]
        betas = torch.linspace(0.1, 1, data.draw(st.integers(1, 3)))
        assert bool(torch.isfinite(machine.free_energy(summed_out, values, betas=betas)).all())
    statistics = ops.statistics(values[0], values[1])
    assert statistics.shape == (graph.layers[0].units, graph.layers[1].units)
    drawn = ops.bernoulli(torch.rand(n_chains, graph.layers[0].units), torch.arange(n_chains), seed=1)
    assert int(drawn.max()) <= 1


@given(data=st.data(), machine=machines(), n_ladders=st.integers(1, 9), n_rungs=st.integers(2, 14))
def test_swaps_stay_inside_their_buffers(data: st.DataObject, machine: Machine, n_ladders: int, n_rungs: int) -> None:
    torch.set_num_threads(data.draw(st.integers(1, 5)))
    chains = machine.chains(n_ladders * n_rungs, seed=data.draw(st.integers(0, 2**64 - 1)))
    sizes = [layer.units for layer in machine.graph.layers]
    base = [torch.randn(n) for n in sizes] if data.draw(st.booleans()) else None
    gaps = ops.EnergyGap(machine, base).of(chains.layers)
    assert bool(torch.isfinite(gaps).all())
    rungs = ops.Rungs.start(n_ladders, n_rungs)
    for _ in range(3):
        ops.swap(rungs, gaps, torch.linspace(0, 1, n_rungs), seed=chains.seed)
    assert torch.equal(rungs.rungs.view(n_ladders, n_rungs).sort(1).values, torch.arange(n_rungs).expand(n_ladders, -1))
    assert int(rungs.attempts.sum()) == n_ladders * (n_rungs // 2 + (n_rungs - 1) // 2 + n_rungs // 2)


# --- hostile arguments of the public operations -----------------------------------------------------------------------


def damaged_tensors(good: Tensor) -> list[Any]:
    """What no operation may take for ``good``."""
    wider = torch.cat([good, good], dim=-1)
    return [
        None,
        good.numpy(),
        good.tolist(),
        good.double(),
        good.to(torch.int8),
        good.bool(),
        good[:0],
        good[:-1],
        wider,
        wider[..., ::2],
        good[..., None],
        good.flatten()[0],
        good.to("meta"),
        good.to_sparse(),
    ]


def unit_machine(kind: Kind = Kind.BERNOULLI) -> Machine:
    graph = Graph((Layer("visible", 9, kind), Layer("hidden", 5)), (Coupling(0, 1),))
    precisions = [torch.ones(9) if kind is Kind.GAUSSIAN else None, None]
    return Machine.build(graph, [torch.randn(9, 5)], [torch.randn(9), torch.randn(5)], precisions)


DAMAGES = range(len(damaged_tensors(torch.ones(4, 3))))


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("argument", ["state", "beta", "base", "clamp", "means"])
def test_sweep_refuses_damaged_tensors(argument: str, damage: int) -> None:
    machine = unit_machine()
    chains = machine.chains(4, seed=0)
    before = chains.clone()
    arguments: dict[str, Any] = {
        "beta": torch.ones(4),
        "base": [torch.zeros(9), torch.zeros(5)],
        "clamp": {0: torch.zeros(4, 9, dtype=torch.uint8)},
        "means": {1: torch.zeros(4, 5)},
    }
    if argument == "state":
        bad = damaged_tensors(chains.layers[0])[damage]
        chains = Chains((bad, chains.layers[1]), 0)
    elif argument == "beta":
        arguments["beta"] = damaged_tensors(arguments["beta"])[damage]
        if arguments["beta"] is None:
            arguments["base"] = [None, None]
    elif argument == "base":
        arguments["base"][0] = damaged_tensors(arguments["base"][0])[damage]
    else:
        (key,) = arguments[argument]
        arguments[argument] = {key: damaged_tensors(arguments[argument][key])[damage]}
    with pytest.raises(REFUSED):
        machine.sweep(gibbs_program(machine.graph), chains, 1, **arguments)
    untouched = chains.layers[1:] if argument == "state" else chains.layers
    for now, then in zip(untouched[::-1], before.layers[::-1], strict=False):
        assert torch.equal(now, then)
    assert chains.sweep == 0


@pytest.mark.parametrize("damage", DAMAGES)
def test_other_operations_refuse_damaged_tensors(damage: int) -> None:
    machine = unit_machine()
    states = machine.chains(4, seed=0).layers
    bad = damaged_tensors(states[0])[damage]
    update = full_update(machine.graph, 1)
    grey = damaged_tensors(torch.rand(4, 9))[damage]
    rows = damaged_tensors(torch.arange(4)[:, None].flatten())[damage]
    out = damaged_tensors(torch.zeros(4, 5))[damage]
    calls: list[Callable[[], object]] = [
        lambda: machine.layer_means(update, (bad, states[1])),
        lambda: machine.energy((bad, states[1])),
        lambda: machine.free_energy((update,), (bad, states[1])),
        lambda: ops.bernoulli(torch.rand(4, 9), rows, seed=0),
    ]
    if out is not None:
        calls.append(lambda: machine.layer_means(update, states, out=out))
        calls.append(lambda: ops.statistics(states[0], states[1], damaged_tensors(torch.zeros(9, 5))[damage]))
    if not (isinstance(grey, Tensor) and grey.shape == (4, 18)):  # twice as wide is as good
        calls.append(lambda: ops.bernoulli(grey, torch.arange(4), seed=0))
    for call in calls:
        with pytest.raises(REFUSED):
            call()


@pytest.mark.parametrize("value", [2, 7, 128, 255])
def test_states_that_no_unit_can_have_are_refused(value: int) -> None:
    machine = unit_machine()
    for row in (0, 149):
        chains = machine.chains(150, seed=0)
        chains.layers[0][row, 8] = value
        with pytest.raises(ValueError, match=f"'visible': expected 0 or 1, got {value}"):
            machine.sweep(gibbs_program(machine.graph), chains, 1)
        with pytest.raises(ValueError, match="expected 0 or 1"):
            machine.energy(chains.layers)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    machine = unit_machine(Kind.GAUSSIAN)
    chains = machine.chains(150, seed=0)
    chains.layers[0][149, 8] = value
    with pytest.raises(ValueError, match="'visible': expected finite numbers"):
        machine.sweep(gibbs_program(machine.graph), chains, 1)
    with pytest.raises(ValueError, match="expected finite numbers"):
        machine.layer_means(full_update(machine.graph, 1), chains.layers)
    with pytest.raises(ValueError, match="expected finite numbers"):
        ops.statistics(chains.layers[0], chains.layers[1])


HOSTILE_PROGRAMS: list[Program] = [
    ((Update(2, ()),),),
    ((Update(-1, ()),),),
    ((Update(1, (Input(1, False),)),),),
    ((Update(1, (Input(-1, False),)),),),
    ((Update(1, (Input(0, True),)),),),
    ((Update(0, (Input(0, False),)),),),
    ((Update(0, (Input(0, True),)), Update(1, (Input(0, False),))),),
    ((Update(1, ()),), (Update(1, ()),)),
]


@pytest.mark.parametrize("program", HOSTILE_PROGRAMS)
def test_programs_that_do_not_fit_are_refused(program: Program) -> None:
    machine = unit_machine()
    with pytest.raises(ValueError, match="program"):
        machine.sweep(program, machine.chains(3, seed=0), 1)


@given(
    numbers=st.fixed_dictionaries(
        {
            "n_sweeps": st.just(1) | INT64 | st.floats(),
            "seed": st.just(0) | INT64 | st.just(2**64),
            "sweep": st.just(0) | INT64 | st.just(2**32),
            "first_chain": st.just(0) | INT64 | st.just(2**32),
        }
    ).filter(lambda numbers: numbers != {"n_sweeps": 1, "seed": 0, "sweep": 0, "first_chain": 0})
)
def test_hostile_numbers_are_refused_or_harmless(numbers: dict[str, Any]) -> None:
    machine = unit_machine()
    chains = machine.chains(3, seed=0)
    chains.seed, chains.sweep, chains.first_chain = numbers["seed"], numbers["sweep"], numbers["first_chain"]

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    try:
        machine.sweep(gibbs_program(machine.graph), chains, numbers["n_sweeps"], progress=stop)
    except (*REFUSED, KeyboardInterrupt):
        pass
    assert is_possible(chains)
