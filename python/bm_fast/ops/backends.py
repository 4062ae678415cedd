"""Which backend serves a tensor. Each is a module with the same functions, whose arguments have been checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from bm_fast.graph import Graph
from bm_fast.ops import cpu, cuda, plain
from bm_fast.ops.native import is_native
from bm_fast.parameters import GapBiases, Parameters
from bm_fast.program import Program, Update
from bm_fast.reference import Purpose
from bm_fast.rungs import Rungs


class Runner(Protocol):
    """A machine of a backend."""

    def sweep(
        self,
        program: Program,
        layers: Sequence[Tensor],
        n_sweeps: int,
        *,
        seed: int,
        first_chain: int,
        first_sweep: int,
        beta: Tensor | None,
        base: Sequence[Tensor] | None,
        clamp: Mapping[int, Tensor],
        means: Mapping[int, Tensor],
        done: Tensor,
        progress: Callable[[int], None],
    ) -> None:
        """done: int64 ``[1]``, the sweeps done so far, written before ``progress`` is called."""

    def layer_means(
        self,
        update: Update,
        values: Sequence[Tensor],
        out: Tensor,
        *,
        beta: Tensor | None,
        base: Sequence[Tensor] | None,
    ) -> None: ...

    def mean_field(
        self,
        program: Program,
        values: Sequence[Tensor],
        *,
        start: Program,
        iterations: int,
        tolerance: float,
        damping: float,
        changes: Tensor,
        performed: Tensor,
    ) -> None: ...

    def energy(self, layers: Sequence[Tensor]) -> Tensor: ...

    def gap(self, biases: GapBiases, layers: Sequence[Tensor]) -> Tensor: ...

    def free_energy(
        self, updates: Sequence[Update], values: Sequence[Tensor], *, betas: Tensor, base: Sequence[Tensor] | None
    ) -> Tensor: ...


class Backend(Protocol):
    """What the modules ``cpu``, ``cuda`` and ``plain`` have in common."""

    def Machine(self, parameters: Parameters) -> Runner: ...

    def build(
        self,
        graph: Graph,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        precisions: Sequence[Tensor | None] | None,
    ) -> tuple[Parameters, Runner]:
        """From float parameters; arguments and errors as in ``parameters.snapshot``."""

    def quantise(self, weight: Tensor, name: str) -> tuple[Tensor, int]: ...

    def statistics(self, lower: Tensor, upper: Tensor, out: Tensor) -> None: ...

    def gradient(
        self,
        visible: Tensor,
        means: Tensor,
        signs: Tensor,
        phases: tuple[Tensor, Tensor],
        offsets: tuple[Tensor, Tensor] | None,
        out: tuple[Tensor, Tensor, Tensor],
    ) -> None: ...

    def bernoulli(
        self,
        probabilities: Tensor,
        rows: Tensor,
        out: Tensor,
        *,
        seed: int,
        sweep: int,
        layer: int,
        purpose: Purpose,
    ) -> None: ...

    def swap(self, rungs: Rungs, gaps: Tensor, betas: Tensor, *, seed: int, first_ladder: int) -> None: ...


def backend(name: str, tensor: Tensor) -> Backend:
    """The backend for a tensor; ValueError, naming the argument, where none serves its device."""
    native = is_native()
    if native and cuda.serves(tensor.device):
        return cuda
    if not tensor.is_cpu:
        served = "the CPU and on CUDA devices" if native else "the CPU"
        raise ValueError(f"{name}: bm_fast runs on {served}, got a tensor on {tensor.device}")
    return cpu if native else plain
