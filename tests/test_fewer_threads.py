"""Where OpenMP gives a call fewer threads than it asks for: one does the work of several, and all of it counts."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from conftest import needs_native

SET_UP = """
import hashlib, torch
from bm_fast.graph import chain_graph
from bm_fast.ops import Machine
from bm_fast.program import full_update, gibbs_program

torch.set_num_threads(2)
graph = chain_graph((784, 500))
generator = torch.Generator().manual_seed(0)
weights = torch.randn(784, 500, generator=generator) / 100
biases = [torch.zeros(784), torch.zeros(500)]

def refused(act):
    try:
        act()
    except ValueError as error:
        return str(error)
    raise SystemExit("nothing was refused")
"""
WEIGHTS = """
weights[0, 0] = float("nan")
print(refused(lambda: Machine.build(graph, [weights], biases)))
weights[0, 0] = 5
print(Machine.build(graph, [weights], biases).parameters.weight(0)[0, 0].item())
"""
STATES = """
machine = Machine.build(graph, [weights], biases)
chains = machine.chains(64, seed=0)
chains.layers[0][0, 0] = 7
print(refused(lambda: machine.sweep(gibbs_program(graph), chains, 1)))
values = [torch.rand(64, 784, generator=generator), torch.zeros(64, 500)]
values[0][0, 0] = float("nan")
print(refused(lambda: machine.layer_means(full_update(graph, 1), values)))
"""
SWEEPS = """
machine = Machine.build(graph, [weights], biases)
chains = machine.chains(200, seed=0)
machine.sweep(gibbs_program(graph), chains, 5)
print(*(hashlib.sha256(layer.numpy().tobytes()).hexdigest() for layer in chains.layers))
"""


def outcome(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SET_UP + program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_native
@pytest.mark.parametrize(
    ("program", "expected"),
    [
        pytest.param(WEIGHTS, r"weights\[0\]: .*\n5\.0\n", id="weights"),
        pytest.param(STATES, r".*expected 0 or 1, got 7\n.*expected finite numbers, .*\n", id="states"),
        pytest.param(SWEEPS, r"[0-9a-f]{64} [0-9a-f]{64}\n", id="sweeps"),
    ],
)
def test_fewer_threads_find_and_do_the_same(program: str, expected: str) -> None:
    usual = outcome(program)
    assert re.fullmatch(expected, usual)
    assert outcome(program, OMP_THREAD_LIMIT="1") == usual
