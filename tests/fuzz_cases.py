"""What the fuzz tests share: machines of many shapes, and legal calls of the compiled module, to be spoiled.

Buffers have exactly the size that an operation needs, so that sanitizers see one byte too many. Hypothesis draws the
same examples every time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from bm_fast import _C, Chains, Coupling, Graph, Kind, Layer, Machine

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


def is_possible(chains: Chains) -> bool:
    return all(
        bool(torch.isfinite(layer).all()) if layer.dtype is torch.float32 else int(layer.max()) <= 1
        for layer in chains.layers
    )


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
