"""Legal and hostile arguments for annealing, of the public operation and of the compiled module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bm_fast import Machine, ops
from bm_fast.estimation._path import summed_and_sweep
from fuzz_cases import BAD_COUNTS, BAD_LISTS, BAD_UPDATES, REFUSED, Legal, is_possible, machines


@given(data=st.data(), machine=machines(), n_chains=st.integers(1, 300), threads=st.integers(1, 5))
def test_annealing_stays_inside_its_buffers(data: st.DataObject, machine: Machine, n_chains: int, threads: int) -> None:
    torch.set_num_threads(threads)
    chains = machine.chains(n_chains, seed=data.draw(st.integers(0, 2**64 - 1)))
    base = [torch.randn(layer.units) for layer in machine.graph.layers]
    betas = torch.rand(data.draw(st.integers(1, 4)))
    log_weights = torch.zeros(n_chains, dtype=torch.float64)
    ops.anneal(machine, summed_and_sweep(machine.graph)[1], chains, betas, log_weights, base=base)
    assert chains.sweep == len(betas) - 1
    assert is_possible(chains)
    assert bool(torch.isfinite(log_weights).all())


class Annealing(Legal):
    """Adds to the legal calls one that anneals."""

    def anneal(self, **spoiled: Any) -> None:
        betas, log_weights = torch.rand(3), torch.zeros(self.n_chains, dtype=torch.float64)
        base, done = [torch.zeros(n) for n in self.units], torch.zeros(1, dtype=torch.int64)
        arguments: dict[str, Any] = {
            "program": [[self.upward], [(0, [(0, True, 1.0)])]],
            "states": [state.data_ptr() for state in self.states],
            "n_chains": self.n_chains,
            "n_steps": 2,
            "seed": 1,
            "first_chain": 0,
            "first_sweep": 0,
            "betas": betas.data_ptr(),
            "base": [biases.data_ptr() for biases in base],
            "log_weights": log_weights.data_ptr(),
            "threads": 2,
            "steps_done": done.data_ptr(),
            "progress": lambda steps: None,
        }
        self.machine().anneal(**arguments | spoiled)


SPOILED: list[dict[str, Any]] = [
    *({name: bad} for name in ("n_chains", "threads") for bad in BAD_COUNTS),
    *({"n_steps": bad} for bad in (-1, -(2**63), 2**63, 1.5, None)),
    *({name: bad} for name in ("seed", "first_chain", "first_sweep") for bad in (-1, 2**64, 1.5, None)),
    *({name: bad} for name in ("states", "base") for bad in BAD_LISTS),
    *({"program": [[bad]]} for bad in BAD_UPDATES),
    {"program": []},
    {"program": None},
    {"progress": None},
    *({name: 0} for name in ("betas", "log_weights", "steps_done")),
    *({name: math.nan} for name in ("betas", "log_weights", "steps_done")),
]


@pytest.mark.parametrize("spoiled", SPOILED)
def test_the_compiled_module_refuses_hostile_structure(spoiled: dict[str, Any]) -> None:
    legal = Annealing()
    legal.anneal()  # what is not spoiled works
    before = [state.clone() for state in legal.states]
    with pytest.raises(REFUSED):
        legal.anneal(**spoiled)
    for now, then in zip(legal.states, before, strict=True):
        assert torch.equal(now, then)
