"""Hostile structure, given to the compiled module itself: an error, never a crash and never a stray byte.

``make sanitize`` runs this file under AddressSanitizer and UBSan, once per instruction set.
"""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bm_fast import _C
from fuzz_cases import BAD_COUNTS, BAD_LISTS, BAD_UPDATES, HERE, REFUSED, SIZES, Legal

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
