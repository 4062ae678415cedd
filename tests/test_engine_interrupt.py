"""Long calls: Ctrl-C ends them within a second with a valid state, progress is told, memory does not grow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bm_fast import chain_graph, ops
from bm_fast.program import gibbs_program
from conftest import needs_native
from engine_cases import make_machine

pytestmark = needs_native

HERE = Path(__file__).parent

LONG_CALL = """
import sys, time, torch
from engine_cases import make_machine
from bm_fast import chain_graph, ops
from bm_fast.program import gibbs_program

sizes, n_chains = ({visible}, {hidden}), {n_chains}
torch.set_num_threads(2)
machine = make_machine(chain_graph(sizes), scale=0.05)
program = gibbs_program(machine.graph)
chains = machine.chains(n_chains, seed=4)
before = chains.clone()
print("running", flush=True)
try:
    machine.sweep(program, chains, 10**8)
except KeyboardInterrupt:
    print(time.time(), chains.sweep, flush=True)
machine.sweep(program, before, chains.sweep)
assert all(torch.equal(a, b) for a, b in zip(chains.layers, before.layers)), "not the state after these sweeps"
machine.sweep(program, before, 0)
print("valid", flush=True)
"""


def interrupt(isa: str | None, after: float, code: str = LONG_CALL, **sizes: int) -> tuple[float, int]:
    """Seconds from SIGINT to KeyboardInterrupt, and the work done by then, of a call that would run for hours."""
    environment = os.environ | {"PYTHONPATH": str(HERE)} | ({} if isa is None else {"BM_FAST_ISA": isa})
    with subprocess.Popen(
        [sys.executable, "-c", code.format(**sizes)], env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "running\n"
        time.sleep(after)
        sent = time.time()
        child.send_signal(signal.SIGINT)
        stopped, sweeps = child.stdout.readline().split()
        assert child.stdout.readline() == "valid\n"
        assert child.wait(timeout=60) == 0
    return float(stopped) - sent, int(sweeps)


@pytest.mark.parametrize("n_chains", [20, 512])
def test_ctrl_c_ends_a_long_call_within_a_second(n_chains: int) -> None:
    seconds, sweeps = interrupt(None, 0.7, visible=784, hidden=500, n_chains=n_chains)
    assert seconds < 1
    assert sweeps > 0


def test_ctrl_c_ends_even_one_long_sweep() -> None:
    seconds, sweeps = interrupt("base", 0.3, visible=3000, hidden=3000, n_chains=20_000)
    assert seconds < 1
    assert sweeps == 0


LONG_TEMPERING = """
import time, torch
from engine_cases import make_machine
from bm_fast import chain_graph, ops

torch.set_num_threads(2)
machine = make_machine(chain_graph(({visible}, {hidden})), scale=0.05)
betas = torch.linspace(0, 1, {n_rungs})
gap = ops.EnergyGap(machine)
chains, rungs = machine.chains({n_ladders} * {n_rungs}, seed=4), ops.Rungs.start({n_ladders}, {n_rungs})
before, at_start = chains.clone(), rungs.clone()
print("running", flush=True)
try:
    ops.temper(gap, chains, rungs, betas, 10**8)
except KeyboardInterrupt:
    print(time.time(), rungs.round, flush=True)
assert chains.sweep == rungs.round
ops.temper(gap, before, at_start, betas, rungs.round)
assert all(torch.equal(a, b) for a, b in zip(chains.layers, before.layers)), "not the state after these rounds"
assert torch.equal(rungs.rungs, at_start.rungs) and torch.equal(rungs.acceptances, at_start.acceptances)
print("valid", flush=True)
"""


LONG_ANNEALING = """
import time, torch
from engine_cases import make_machine
from bm_fast import chain_graph, ops
from bm_fast.program import gibbs_program

torch.set_num_threads(2)
machine = make_machine(chain_graph(({visible}, {hidden})), scale=0.05)
program, base = gibbs_program(machine.graph), [torch.zeros({visible}), torch.zeros({hidden})]
betas = torch.linspace(0, 1, 10**7)
chains, weights = machine.chains({n_chains}, seed=4), torch.zeros({n_chains}, dtype=torch.float64)
before, expected = chains.clone(), weights.clone()
print("running", flush=True)
try:
    ops.anneal(machine, program, chains, betas, weights, base=base)
except KeyboardInterrupt:
    print(time.time(), chains.sweep, flush=True)
ops.anneal(machine, program, before, betas[: chains.sweep + 1].clone(), expected, base=base)
assert all(torch.equal(a, b) for a, b in zip(chains.layers, before.layers)), "not the state after these steps"
assert torch.equal(weights, expected), "not the weights after these steps"
print("valid", flush=True)
"""


@pytest.mark.parametrize("n_chains", [20, 512])
def test_ctrl_c_ends_annealing_within_a_second(n_chains: int) -> None:
    seconds, steps = interrupt(None, 0.7, LONG_ANNEALING, visible=784, hidden=500, n_chains=n_chains)
    assert seconds < 1
    assert steps > 0


@pytest.mark.parametrize("n_ladders", [2, 20])
def test_ctrl_c_ends_tempering_within_a_second(n_ladders: int) -> None:
    seconds, rounds = interrupt(None, 0.7, LONG_TEMPERING, visible=784, hidden=500, n_ladders=n_ladders, n_rungs=10)
    assert seconds < 1
    assert rounds > 0


LONG_MEAN_FIELD = """
import time, torch
from engine_cases import make_machine
from bm_fast import chain_graph
from bm_fast.program import gibbs_program

torch.set_num_threads(2)
machine = make_machine(chain_graph((3, {below}, {above})), scale=0.05)
program = gibbs_program(machine.graph, clamped=[0])
data = torch.ones({n_cases}, 3, dtype=torch.uint8)
print("running", flush=True)
try:
    machine.mean_field(program, [data, torch.rand({n_cases}, {below}), torch.rand({n_cases}, {above})], {iterations})
except KeyboardInterrupt:
    print(time.time(), 0, flush=True)
values = [data[:1], torch.rand(1, {below}), torch.rand(1, {above})]
machine.mean_field(program, values, 2)
print("valid", flush=True)
"""


@pytest.mark.parametrize("isa", [None, "base"])
@pytest.mark.parametrize(("below", "above", "n_cases", "iterations"), [(784, 500, 100, 10**9), (3000, 2000, 1024, 100)])
def test_ctrl_c_ends_mean_field_within_a_second(
    isa: str | None, below: int, above: int, n_cases: int, iterations: int
) -> None:
    sizes = {"below": below, "above": above, "n_cases": n_cases, "iterations": iterations}
    seconds, _ = interrupt(isa, 0.3, LONG_MEAN_FIELD, **sizes)
    assert seconds < 1


def test_progress_is_told_of_whole_sweeps_up_to_the_last() -> None:
    machine = make_machine(chain_graph((300, 200)))
    chains = machine.chains(300, seed=0)
    told: list[int] = []
    machine.sweep(gibbs_program(machine.graph), chains, 1500, progress=told.append)
    assert told[-1] == 1500
    assert told == sorted(set(told))
    assert len(told) > 1


def test_an_error_in_progress_passes_through_and_leaves_a_valid_state() -> None:
    machine = make_machine(chain_graph((300, 200)))
    program = gibbs_program(machine.graph)
    chains = machine.chains(300, seed=0)
    expected = chains.clone()

    def fail(done: int) -> None:
        raise RuntimeError(f"stop at {done}")

    with pytest.raises(RuntimeError, match="stop at"):
        machine.sweep(program, chains, 10**6, progress=fail)
    assert 0 < chains.sweep < 10**6
    machine.sweep(program, expected, chains.sweep)
    for a, b in zip(chains.layers, expected.layers, strict=True):
        assert torch.equal(a, b)


STATM = Path("/proc/self/statm")
reads_memory = pytest.mark.skipif(not STATM.exists(), reason="a process learns its memory from /proc, which Linux has")


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@reads_memory
def test_memory_does_not_grow_with_the_number_of_sweeps() -> None:
    machine = make_machine(chain_graph((100, 80)))
    program = gibbs_program(machine.graph)
    chains = machine.chains(1000, seed=0)
    machine.sweep(program, chains, 20)
    before = resident_bytes()
    machine.sweep(program, chains, 2000)
    # one state of all layers and sweeps would be 360 MB
    assert resident_bytes() - before < 8e6


@reads_memory
def test_memory_does_not_grow_with_the_number_of_rounds() -> None:
    machine = make_machine(chain_graph((100, 80)))
    chains, rungs = machine.chains(1000, seed=0), ops.Rungs.start(100, 10)
    gap, betas = ops.EnergyGap(machine), torch.linspace(0, 1, 10)
    ops.temper(gap, chains, rungs, betas, 20)
    before = resident_bytes()
    told: list[int] = []
    ops.temper(gap, chains, rungs, betas, 2000, progress=told.append)
    assert resident_bytes() - before < 8e6
    assert told[-1] == 2000
    assert told == sorted(set(told))
