"""Legal and hostile arguments for the compiled module: an error or a result, never a crash and never a stray byte.

``make sanitize`` runs this file under AddressSanitizer and UBSan, once per instruction set. Buffers have exactly the
size that the operation needs, so that one byte too many is seen. Hypothesis draws the same examples every time.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from bm_fast import _C, Chains, Coupling, Graph, Kind, Layer, Machine, ops
from bm_fast.program import Input, Program, Update, full_update, gibbs_program

settings.register_profile(
    "binding", max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("binding")

REFUSED = (ValueError, TypeError, OverflowError)
SIZES = st.sampled_from([1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129])
INT64 = st.sampled_from([-(2**63), -(2**31), -1, 2**31, 2**63 - 1])


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """A chain or a tree of two to four layers; layer 0 may be of any kind."""
    sizes = draw(st.lists(SIZES, min_size=2, max_size=4))
    kinds = [draw(st.sampled_from(Kind)), *([Kind.BERNOULLI] * (len(sizes) - 1))]
    if kinds[0] is Kind.SOFTMAX:
        sizes[0] = max(sizes[0], 2)
    layers = tuple(Layer(f"layer{i}", n, kind) for i, (n, kind) in enumerate(zip(sizes, kinds, strict=True)))
    tree = draw(st.booleans())
    couplings = tuple(Coupling(0 if tree else i - 1, i) for i in range(1, len(sizes)))
    graph = Graph(layers, couplings)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([0.0, 0.1, 3.0, 1000.0]))

    def normal(*shape: int) -> Tensor:
        return scale * torch.randn(*shape, generator=generator)

    return Machine.build(
        graph,
        [normal(sizes[c.lower], sizes[c.upper]) for c in couplings],
        [normal(n) for n in sizes],
        [torch.ones(n) if kind is Kind.GAUSSIAN else None for n, kind in zip(sizes, kinds, strict=True)],
    )


def plain(update: Update) -> tuple[int, list[tuple[int, bool, float]]]:
    return update.layer, [(source.coupling, source.transposed, source.scale) for source in update.inputs]


def is_possible(chains: Chains) -> bool:
    return all(
        bool(torch.isfinite(layer).all()) if layer.dtype is torch.float32 else int(layer.max()) <= 1
        for layer in chains.layers
    )


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


# --- hostile structure, given to the compiled module itself -----------------------------------------------------------


class Legal:
    """Arguments of the compiled module that work, and buffers of exactly their size: tests spoil one at a time."""

    def __init__(self) -> None:
        self.units, self.n_chains = (9, 5), 4
        self.weights = torch.ones(9, 5, dtype=torch.int16)
        self.biases = [torch.zeros(n) for n in self.units]
        self.states = [torch.zeros(self.n_chains, n, dtype=torch.uint8) for n in self.units]
        self.means = torch.zeros(self.n_chains, 5)
        self.beta, self.energies = torch.ones(self.n_chains), torch.zeros(self.n_chains, dtype=torch.float64)
        self.sweeps_done = torch.zeros(1, dtype=torch.int64)
        self.upward = (1, [(0, False, 1.0)])
        self.values = [(state.data_ptr(), False) for state in self.states]
        self.layers = [(f"layer{n}", n, 0, b.data_ptr(), 0) for n, b in zip(self.units, self.biases, strict=True)]
        self.couplings = [(0, 1, self.weights.data_ptr(), 10)]

    def machine(self, **spoiled: Any) -> Any:
        return _C.Machine(
            **{"layers": self.layers, "couplings": self.couplings, "are_values": False, "threads": 2} | spoiled
        )

    def sweep(self, **spoiled: Any) -> None:
        arguments: dict[str, Any] = {
            "program": [[self.upward], [(0, [(0, True, 1.0)])]],
            "states": [state.data_ptr() for state in self.states],
            "n_chains": self.n_chains,
            "n_sweeps": 2,
            "seed": 0,
            "first_chain": 0,
            "first_sweep": 0,
            "beta": self.beta.data_ptr(),
            "base": [bias.data_ptr() for bias in self.biases],
            "clamp": [0, 0],
            "means": [0, self.means.data_ptr()],
            "threads": 2,
            "sweeps_done": self.sweeps_done.data_ptr(),
            "progress": lambda done: None,
        }
        self.machine().sweep(**arguments | spoiled)

    def rungs(self) -> tuple[int, int, int, int, int]:
        self.rung_tensors = (
            torch.arange(self.n_chains, dtype=torch.int32),
            torch.zeros(self.n_chains - 1, dtype=torch.int64),
            torch.zeros(self.n_chains - 1, dtype=torch.float64),
            torch.zeros(self.n_chains, dtype=torch.uint8),
            torch.zeros(self.n_chains, dtype=torch.int64),
        )
        a, b, c, d, e = (tensor.data_ptr() for tensor in self.rung_tensors)
        return a, b, c, d, e

    def temper(self, **spoiled: Any) -> None:
        betas = torch.linspace(0, 1, self.n_chains)
        grid = [torch.zeros(n, dtype=torch.int64) for n in self.units]
        arguments: dict[str, Any] = {
            "program": [[self.upward], [(0, [(0, True, 1.0)])]],
            "states": [state.data_ptr() for state in self.states],
            "rungs": self.rungs(),
            "n_chains": self.n_chains,
            "n_rungs": self.n_chains,
            "n_rounds": 2,
            "sweeps_per_round": 1,
            "seed": 0,
            "first_chain": 0,
            "first_sweep": 0,
            "first_round": 0,
            "betas": betas.data_ptr(),
            "base": [bias.data_ptr() for bias in self.biases],
            "biases": [biases.data_ptr() for biases in grid],
            "bias_bits": 40,
            "means": [0, self.means.data_ptr()],
            "trace": 0,
            "threads": 2,
            "rounds_done": self.sweeps_done.data_ptr(),
            "progress": lambda done: None,
        }
        self.machine().temper(**arguments | spoiled)

    def gap(self, **spoiled: Any) -> None:
        grid = [torch.zeros(n, dtype=torch.int64) for n in self.units]
        arguments: dict[str, Any] = {
            "biases": [biases.data_ptr() for biases in grid],
            "bias_bits": 40,
            "has_base": True,
            "values": self.values,
            "n_chains": self.n_chains,
            "out": self.energies.data_ptr(),
            "threads": 2,
        }
        self.machine().gap(**arguments | spoiled)

    def swap(self, **spoiled: Any) -> None:
        betas = torch.linspace(0, 1, self.n_chains)
        arguments: dict[str, Any] = {
            "rungs": self.rungs(),
            "gaps": self.energies.data_ptr(),
            "betas": betas.data_ptr(),
            "n_rungs": self.n_chains,
            "n_chains": self.n_chains,
            "seed": 0,
            "first_ladder": 0,
            "round": 0,
        }
        _C.swap(**arguments | spoiled)

    def layer_means(self, **spoiled: Any) -> None:
        arguments: dict[str, Any] = {
            "update": self.upward,
            "values": self.values,
            "n_chains": self.n_chains,
            "out": self.means.data_ptr(),
            "beta": 0,
            "base": [],
            "threads": 2,
        }
        self.machine().layer_means(**arguments | spoiled)

    def mean_field(self, **spoiled: Any) -> None:
        changes, performed = torch.zeros(self.n_chains), torch.zeros(self.n_chains, dtype=torch.int32)
        arguments: dict[str, Any] = {
            "program": [[self.upward]],
            "values": [self.values[0], (self.means.data_ptr(), True)],
            "n_cases": self.n_chains,
            "start": [(1, 1.0)],
            "iterations": 2,
            "tolerance": 0.1,
            "damping": 0.0,
            "changes": changes.data_ptr(),
            "performed": performed.data_ptr(),
            "threads": 2,
        }
        self.machine().mean_field(**arguments | spoiled)

    def energy(self, **spoiled: Any) -> None:
        arguments: dict[str, Any] = {
            "values": self.values,
            "n_chains": self.n_chains,
            "out": self.energies.data_ptr(),
            "threads": 2,
        }
        self.machine().energy(**arguments | spoiled)

    def free_energy(self, **spoiled: Any) -> None:
        arguments: dict[str, Any] = {
            "updates": [self.upward],
            "values": self.values,
            "n_chains": self.n_chains,
            "betas": self.beta.data_ptr(),
            "n_betas": 1,
            "base": [],
            "out": self.energies.data_ptr(),
            "threads": 2,
        }
        self.machine().free_energy(**arguments | spoiled)

    def gradient(self, **spoiled: Any) -> None:
        visible, hidden = self.units
        sizes = {
            "hidden": self.n_chains * hidden,
            "signs": self.n_chains,
            "visible_means": 2 * visible,
            "hidden_means": 2 * hidden,
            "visible_offsets": visible,
            "hidden_offsets": hidden,
            "weight_out": visible * hidden,
            "visible_out": visible,
            "hidden_out": hidden,
        }
        buffers = {name: torch.zeros(size) for name, size in sizes.items()}
        arguments: dict[str, Any] = {
            "visible": self.states[0].data_ptr(),
            "visible_real": False,
            "n_visible": visible,
            "n_hidden": hidden,
            "n_chains": self.n_chains,
            "threads": 2,
            **{name: buffer.data_ptr() for name, buffer in buffers.items()},
        }
        _C.gradient(**arguments | spoiled)

    def read_weights(self, **spoiled: Any) -> None:
        out = torch.zeros(9, 5, dtype=torch.int16)
        self.machine().read_weights(**{"coupling": 0, "out": out.data_ptr()} | spoiled)
        assert torch.equal(out, self.weights)


BUFFER = torch.zeros(200)
HERE = BUFFER.data_ptr()
BAD_COUNTS = [0, -1, -(2**31), 2**40, 2**63, 1.5, None]
BAD_LISTS = [[], [0], [0, 0], [0, 0, 0], None, "ab"]
BAD_UPDATES: list[Any] = [
    (2, []),
    (-1, []),
    (2**40, []),
    (1, [(1, False, 1.0)]),
    (1, [(-1, False, 1.0)]),
    (1, [(0, True, 1.0)]),
    (1, [(0, False, math.nan)]),
    (1, [(0, False)]),
    (1, None),
    None,
]
SPOILED: list[tuple[str, dict[str, Any]]] = [
    *(("machine", {"threads": bad}) for bad in BAD_COUNTS),
    *(("machine", {"layers": bad}) for bad in ([], None, [None])),
    *(
        ("machine", {"layers": [("a", *fields), ("b", 5, 0, HERE, 0)], "couplings": []})
        for fields in (
            (0, 0, HERE, 0),
            (-1, 0, HERE, 0),
            (2**40, 0, HERE, 0),
            (9, 0, 0, 0),
            (9, 3, HERE, 0),
            (9, 1, HERE, 0),
        )
    ),
    *(
        ("machine", {"couplings": [fields]})
        for fields in (
            (0, 2, HERE, 10),
            (-1, 1, HERE, 10),
            (1, 1, HERE, 10),
            (0, 1, 0, 10),
            (0, 1, HERE, -200),
            (0, 1, HERE, 200),
        )
    ),
    *(("sweep", {name: bad}) for name in ("n_chains", "threads") for bad in BAD_COUNTS),
    *(("sweep", {"n_sweeps": bad}) for bad in (-1, -(2**63), 2**63, 1.5, None)),
    *(("sweep", {name: bad}) for name in ("seed", "first_chain", "first_sweep") for bad in (-1, 2**64, 1.5, None)),
    *(("sweep", {name: bad}) for name in ("states", "base") for bad in BAD_LISTS if bad != [] or name == "states"),
    *(("sweep", {name: bad}) for name in ("clamp", "means") for bad in BAD_LISTS if bad != [0, 0]),
    *(("sweep", {"program": [[bad]]}) for bad in BAD_UPDATES),
    ("sweep", {"program": [[(1, [(0, False, 1.0)]), (0, [(0, True, 1.0)])]]}),
    ("sweep", {"program": None}),
    ("sweep", {"progress": None}),
    *(("temper", {name: bad}) for name in ("n_chains", "n_rungs", "threads") for bad in BAD_COUNTS),
    *(("temper", {"n_rounds": bad}) for bad in (-1, -(2**63), 2**63, 1.5, None)),
    *(("temper", {"sweeps_per_round": bad}) for bad in (0, -1, 2**32, 2**63, 1.5, None)),
    *(("temper", {name: bad}) for name in ("first_sweep", "first_round") for bad in (-1, 2**33, 1.5, None)),
    *(("temper", {name: bad}) for name in ("states", "biases") for bad in BAD_LISTS),
    *(("temper", {"program": [[bad]]}) for bad in BAD_UPDATES),
    *(("temper", {"bias_bits": bad}) for bad in (-201, 201, 1.5, None)),
    *(("temper", {"rungs": bad}) for bad in (None, (0, 0, 0, 0, 0), (HERE, HERE))),
    *(("temper", {name: 0}) for name in ("betas", "rounds_done")),
    *(("gap", {"biases": bad}) for bad in BAD_LISTS),
    *(("gap", {"bias_bits": bad}) for bad in (-201, 201, 1.5, None)),
    *(("gap", {name: bad}) for name in ("n_chains", "threads") for bad in BAD_COUNTS),
    ("gap", {"out": 0}),
    *(("swap", {name: bad}) for name in ("n_chains", "n_rungs") for bad in BAD_COUNTS),
    *(("swap", {name: 0}) for name in ("gaps", "betas")),
    *(("swap", {"rungs": bad}) for bad in (None, (0, 0, 0, 0, 0), (HERE, HERE))),
    ("swap", {"n_rungs": 2}),
    *(("layer_means", {"update": bad}) for bad in BAD_UPDATES),
    *(("layer_means", {"values": bad}) for bad in ([], [(0, False)], [(0, False)] * 2, [(0, True)] * 3, None)),
    *(("layer_means", {name: bad}) for name in ("n_chains", "threads") for bad in BAD_COUNTS),
    *(("layer_means", {"base": bad}) for bad in BAD_LISTS if bad != []),
    ("layer_means", {"out": 0}),
    *(("read_weights", {"coupling": bad}) for bad in (-1, 1, 2**40, None)),
    ("read_weights", {"out": 0}),
    *(("mean_field", {"program": [[bad]]}) for bad in BAD_UPDATES),
    *(("mean_field", {"values": bad}) for bad in ([], [(0, True)] * 2, [(HERE, False)] * 2, None)),
    *(("mean_field", {name: bad}) for name in ("n_cases", "threads") for bad in BAD_COUNTS),
    *(("mean_field", {"start": bad}) for bad in ([(0, 1.0)], [(2, 1.0)], [(1, 1.0)] * 2, [(1, 1e39)], [1], None)),
    *(("mean_field", {"iterations": bad}) for bad in (0, -1, 2**31, 1.5, None)),
    *(("mean_field", {name: 0}) for name in ("changes", "performed")),
    *(("energy", {"values": bad}) for bad in ([], [(0, False)], [(0, False)] * 2, None)),
    *(("energy", {name: bad}) for name in ("n_chains", "threads") for bad in BAD_COUNTS),
    ("energy", {"out": 0}),
    *(("free_energy", {"updates": [bad]}) for bad in BAD_UPDATES),
    *(("free_energy", {"values": bad}) for bad in ([], [(0, False)], [(0, False)] * 2, None)),
    *(("free_energy", {"n_betas": bad}) for bad in (0, -1, 2**63, 1.5, None)),
    *(("free_energy", {name: 0}) for name in ("betas", "out")),
    *(("gradient", {name: bad}) for name in ("n_visible", "n_hidden", "n_chains", "threads") for bad in BAD_COUNTS),
    *(("gradient", {name: 0}) for name in ("visible", "hidden", "signs", "visible_means", "hidden_means")),
    *(("gradient", {name: 0}) for name in ("visible_offsets", "hidden_offsets")),
    *(("gradient", {name: 0}) for name in ("weight_out", "visible_out", "hidden_out")),
]


@pytest.mark.parametrize(("operation", "spoiled"), SPOILED)
def test_the_compiled_module_refuses_hostile_structure(operation: str, spoiled: dict[str, Any]) -> None:
    legal = Legal()
    getattr(legal, operation)()  # what is not spoiled works
    before = [state.clone() for state in legal.states]
    with pytest.raises(REFUSED):
        getattr(legal, operation)(**spoiled)
    for now, then in zip(legal.states, before, strict=True):
        assert torch.equal(now, then)


@given(
    sizes=st.tuples(SIZES, SIZES, st.integers(1, 70)),
    real=st.tuples(st.booleans(), st.booleans()),
    threads=st.integers(1, 5),
)
def test_functions_of_the_compiled_module_stay_inside_their_buffers(
    sizes: tuple[int, int, int], real: tuple[bool, bool], threads: int
) -> None:
    lower, upper, n = sizes
    a, b = (np.zeros((n, k), dtype=np.float32 if r else np.uint8) for k, r in zip((lower, upper), real, strict=True))
    out = np.full((lower, upper), np.nan, dtype=np.float32)
    _C.statistics(a.ctypes.data, real[0], lower, b.ctypes.data, real[1], upper, n, out.ctypes.data, threads)
    assert (out == 0).all()
    weights, integers = np.ones(lower, dtype=np.float32), np.zeros(lower, dtype=np.int16)
    assert _C.largest_weight(weights.ctypes.data, lower, threads) == 1
    _C.quantise(weights.ctypes.data, lower, 10, integers.ctypes.data, threads)
    assert (integers == 1024).all()


def test_a_machine_outlives_what_it_was_built_from() -> None:
    legal = Legal()
    machine = legal.machine()
    del legal.weights, legal.biases
    gc.collect()
    machine.energy(legal.values, legal.n_chains, legal.energies.data_ptr(), 1)
    assert bool((legal.energies == 0).all())
