"""The lookup kernel where memory is short: errors, other kernels in its place, and a limit of its tables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bm_fast import ops

pytestmark = pytest.mark.skipif(ops.info()["isa"] != "avx512", reason="the lookup kernel needs AVX-512")

UNDER_A_LIMIT = """
import resource, torch
from bm_fast import Machine, chain_graph
from bm_fast.program import Input, Update, gibbs_program
from engine_cases import FAR, make_machine

MIB = 2**20
torch.set_num_threads(1)

def size(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

def limit(extra):  # address space beyond what is in use now; None: no limit
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard if extra is None else size("VmSize:") + extra, hard))

def same(a, b):
    return a.sweep == b.sweep and all(torch.equal(x, y) for x, y in zip(a.layers, b.layers))
"""


def run_under_a_limit(code: str) -> str:
    # a fixed threshold returns freed memory to the system, so that each attempt has what the limit says
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT + code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_too_little_memory_is_an_error_that_leaves_chains_as_they_were() -> None:
    """The limit rises until the call fits, in steps smaller than any of its larger allocations."""
    out = run_under_a_limit("""
machine = make_machine(chain_graph((1000, 1000)), scale=0.05, far=True)
program = gibbs_program(machine.graph)
machine.sweep(program, machine.chains(1024, seed=1), 1)  # builds the tables
chains = machine.chains(20_000, seed=2)
clamp = {i: torch.zeros_like(chains.layers[i]) for i in (0, 1)}
before = chains.clone()
errors = 0
for extra in range(4, 200, 2):
    limit(extra * MIB)
    try:
        machine.sweep(program, chains, 1, clamp=clamp)
    except MemoryError:
        errors += 1
        limit(None)
        assert same(chains, before)
    else:
        break
limit(None)
machine.sweep(program, before, 1, clamp=clamp)
assert chains.sweep == 1 and same(chains, before)
print(errors)
""")
    assert int(out) >= 20  # 40 MB of states, 11 MB in the layout of the kernel


def test_without_memory_for_tables_another_kernel_gives_the_same_bits() -> None:
    out = run_under_a_limit("""
machine = make_machine(chain_graph((1500, 1500)), scale=0.05, far=True)  # tables of 86 MB
program = gibbs_program(machine.graph)
chains = machine.chains(256, seed=2)
twin = chains.clone()
limit(60 * MIB)
machine.sweep(program, chains, 7)
used = size("VmPeak:")
limit(None)
machine.sweep(program, twin, 7)
assert same(chains, twin)
print(size("VmPeak:") - used)
""")
    assert int(out) > 30e6  # the second call did build tables


def test_tables_beyond_the_largest_size_are_not_built() -> None:
    out = run_under_a_limit("""
n = 7600  # tables of 2.2 GB
machine = Machine.build(chain_graph((n, n)), [torch.zeros(n, n)], [torch.zeros(n), torch.full((n,), FAR)])
chains = machine.chains(1024, seed=2)
chains.layers[0].fill_(1)
before = size("VmHWM:")
machine.sweep(((Update(1, (Input(0, False),)),),), chains, 1)
print(size("VmHWM:") - before)
""")
    assert int(out) < 400e6
