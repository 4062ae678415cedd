"""The compiled kernels give the bits of the reference: on every instruction set and for any split of the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from bm_fast import Kind, Machine, chain_graph, ops
from bm_fast.program import full_update, gibbs_program
from conftest import needs_native
from engine_cases import gradient, make_machine, run, tree

pytestmark = needs_native

HERE = Path(__file__).parent
COMPILED = ops.info()["isas_compiled"]
USABLE = ops.info()["isas_usable"]
TABLES = 130  # chains with which sweeps by tables are worth it


@cache
def digests_of(isa: str) -> dict[str, str]:
    """Digests by a process that is told to use one instruction set, or the reference."""
    choice = {"BM_FAST_BACKEND": "reference"} if isa == "reference" else {"BM_FAST_ISA": isa}
    environment = os.environ | {"BM_FAST_BACKEND": "native", "OMP_NUM_THREADS": "1"} | choice
    command = [sys.executable, str(HERE / "engine_cases.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    answer = json.loads(done.stdout)
    assert answer["isa"] == (None if isa == "reference" else isa)
    return dict(answer["digests"])


@pytest.mark.parametrize("isa", USABLE)
def test_every_instruction_set_gives_the_bits_of_the_reference(isa: str) -> None:
    expected, got = digests_of("reference"), digests_of(isa)
    assert expected.keys() == got.keys()
    assert len(got) > 25
    exact = [name for name in expected if not name.startswith("real")]
    assert [name for name in exact if got[name] != expected[name]] == []


@pytest.mark.parametrize("isa", USABLE)
def test_instruction_sets_agree_on_real_units_too(isa: str) -> None:
    expected, got = digests_of(USABLE[0]), digests_of(isa)
    assert [name for name in expected if got[name] != expected[name]] == []


@pytest.mark.parametrize("isa", ["sse9", "", "AVX2", *(isa for isa in COMPILED if isa not in USABLE)])
def test_an_instruction_set_that_cannot_be_used_is_an_error(isa: str) -> None:
    environment = os.environ | {"BM_FAST_ISA": isa, "BM_FAST_BACKEND": "native"}
    code = "import torch; from bm_fast import ops; ops.statistics(torch.ones(2, 2), torch.ones(2, 2))"
    if isa == "sse9":  # where threads lay weights down, out of which no error may come
        code = """
import torch
from bm_fast import _C
t = torch.zeros(9)
layers = [("a", 3, 0, t.data_ptr(), 0), ("b", 3, 0, t.data_ptr(), 0)]
_C.Machine(layers, [(0, 1, t.data_ptr(), 4)], True, 2)"""
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ValueError: BM_FAST_ISA: " in done.stderr


# --- splits of the work -----------------------------------------------------------------------------------------------


def shared_work() -> list[torch.Tensor]:
    """Every operation on enough work for four threads: small ones run on one, whatever is asked for."""
    machine = make_machine(chain_graph((300, 513)))
    chains = machine.chains(300, seed=9)
    means = {1: torch.zeros(300, 513)}
    machine.sweep(gibbs_program(machine.graph, last=1), chains, 1, means=means)  # rows
    machine.sweep(gibbs_program(machine.graph), chains, 4)  # tables, where the instruction set has them
    up = full_update(machine.graph, 1)
    return [
        *chains.layers,
        means[1],
        machine.layer_means(up, chains.layers),
        machine.energy(chains.layers),
        machine.free_energy((up,), chains.layers),
        ops.statistics(chains.layers[0], means[1]),
        ops.statistics(*chains.layers),
        *gradient(chains.layers[0], means[1], (torch.full((300,), 0.2), torch.full((513,), 0.4))),
        ops.bernoulli(means[1], torch.arange(300), seed=3),
    ]


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_threads_that_share_work_change_nothing(threads: int) -> None:
    torch.set_num_threads(1)
    alone = shared_work()
    torch.set_num_threads(threads)
    for i, (one, many) in enumerate(zip(alone, shared_work(), strict=True)):
        assert torch.equal(one, many), f"result {i}"


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("cuts", [(1,), (3, 4), (64,), (50, 65, 129)])
def test_any_split_of_the_chains_over_calls_gives_the_same_bits(cuts: tuple[int, ...], kind: Kind) -> None:
    machine = make_machine(chain_graph((35, 21), kind), scale=0.2)
    program = gibbs_program(machine.graph)
    whole = machine.chains(TABLES, seed=3)
    parts = whole.clone()
    machine.sweep(program, whole, 12)
    for start, stop in zip((0, *cuts), (*cuts, TABLES), strict=True):
        machine.sweep(program, parts.select(start, stop), 12)
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("n_chains", [7, TABLES])
def test_any_split_of_the_sweeps_over_calls_gives_the_same_bits(n_chains: int, kind: Kind) -> None:
    machine = make_machine(chain_graph((35, 21), kind), scale=0.2)
    program = gibbs_program(machine.graph)
    whole = machine.chains(n_chains, seed=3)
    parts = whole.clone()
    machine.sweep(program, whole, 12)
    for n_sweeps in (1, 0, 3, 8):
        machine.sweep(program, parts, n_sweeps)
    assert parts.sweep == whole.sweep == 12
    for a, b in zip(whole.layers, parts.layers, strict=True):
        assert torch.equal(a, b)


def test_a_chain_does_not_depend_on_the_chains_beside_it() -> None:
    machine = make_machine(tree())
    program = gibbs_program(machine.graph)
    together = machine.chains(20, seed=1)
    alone = machine.chains(1, seed=1, first_chain=13)
    together.layers[0][:13] = 1
    machine.sweep(program, together, 5)
    machine.sweep(program, alone, 5)
    for a, b in zip(together.layers, alone.layers, strict=True):
        assert torch.equal(a[13:14], b)


# --- the comparison can fail ------------------------------------------------------------------------------------------


def test_one_weight_off_by_one_grid_step_is_noticed() -> None:
    machine = make_machine(chain_graph((64, 65)))
    weights = machine.parameters.weights[0].clone()
    weights[17, 40] += 1 if weights[17, 40] < 0 else -1
    parameters = machine.parameters
    other = Machine(
        type(parameters)(
            parameters.graph, (weights,), parameters.fraction_bits, parameters.biases, parameters.precisions
        )
    )
    expected, got = run(machine, 9, 1), run(other, 9, 1)
    assert not all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


def test_another_layer_number_gives_other_random_numbers() -> None:
    """The same machine with its layers swapped is the same distribution, drawn with other numbers."""
    machine = make_machine(chain_graph((40, 40)))
    first, second = (
        ops.bernoulli(torch.full((50, 40), 0.5), torch.arange(50), seed=1, layer=layer) for layer in (0, 1)
    )
    # 2,000 fair coins each: fewer than 850 or more than 1,150 agreements happen by chance once in 10^11
    assert 850 < int((first == second).sum()) < 1150
    chains = machine.chains(50, seed=1)
    assert 850 < int((chains.layers[0] == chains.layers[1]).sum()) < 1150


# --- real-valued units ------------------------------------------------------------------------------------------------


def test_real_inputs_agree_with_the_reference_within_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = make_machine(chain_graph((300, 70)), scale=0.1)
    g = torch.Generator().manual_seed(0)
    values = (torch.rand(40, 300, generator=g), torch.zeros(40, 70))
    update = full_update(machine.graph, 1)
    got = machine.layer_means(update, values)
    monkeypatch.setenv("BM_FAST_BACKEND", "reference")
    expected = Machine(machine.parameters).layer_means(update, values)
    # a sum of 300 products in float is off by a few roundings of its largest partial sum
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-6)
    assert not torch.equal(got, torch.zeros_like(got))


def test_gaussian_layers_agree_with_the_reference_within_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real units within rounding; binary units flip only in a thin band round the threshold, to both sides alike."""
    n_chains = 2000
    machine = make_machine(chain_graph((60, 40), Kind.GAUSSIAN), scale=0.2)
    program = gibbs_program(machine.graph)
    beta = torch.linspace(0.3, 1.2, n_chains)
    results = []
    for backend in ("native", "reference"):
        monkeypatch.setenv("BM_FAST_BACKEND", backend)
        here = Machine(machine.parameters)
        chains = here.chains(n_chains, seed=2)
        means = {i: torch.zeros(n_chains, layer.units) for i, layer in enumerate(here.graph.layers)}
        here.sweep(program, chains, 1, beta=beta, means=means)
        here.sweep(program[:1], chains, 1, beta=beta)
        free = here.free_energy((full_update(here.graph, 0),), chains.layers, betas=torch.tensor([0.5, 1.0]))
        results.append((chains.layers, means, here.energy(chains.layers), free))
    (got, got_means, got_energy, got_free), (expected, means, energy, free) = results
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got_means[0], means[0], rtol=1e-5, atol=1e-5)
    flips = got[1].int() - expected[1].int()
    # 80,000 decisions, each within 1e-5 of its threshold with a chance of about 1e-5: about one flip
    assert int(flips.abs().sum()) <= 12
    assert abs(int(flips.sum())) <= 8
    same = (flips == 0).all(1)
    torch.testing.assert_close(got_energy[same], energy[same], rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(got_free[:, same], free[:, same], rtol=1e-5, atol=1e-3)
