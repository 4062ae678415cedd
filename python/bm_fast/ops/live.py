"""A machine over parameters that change where they are, as training changes them on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bm_fast.graph import Graph
from bm_fast.ops import cuda
from bm_fast.ops.machine import Machine
from bm_fast.ops.native import is_native
from bm_fast.parameters import Parameters

_NUMBERS = 2**32  # of sweeps, in 32 bits


class LiveMachine(Machine):
    """The machine of float parameters as they are at each ``refresh``, for sweeps and means on a GPU.

    What it computes has the bits of a ``Machine`` built at that moment, but nothing waits for the device, not even to
    learn the grid or whether weights fit it: ``take_refusal`` tells that later. Nor are states, betas, a base or rungs
    looked at: whoever makes them checks them. Sweeps and rounds of swaps are numbered on the device, so that all calls
    can be recorded into a CUDA graph that goes on with ever new random numbers: ``start_at`` sets the numbers, and
    ``chains.sweep`` and ``rungs.round`` only follow on the host.

    weights, biases, precisions: as for ``Machine.build``, contiguous; used where they are.
    """

    def __init__(
        self, graph: Graph, weights: Sequence[Tensor], biases: Sequence[Tensor], precisions: Sequence[Tensor | None]
    ) -> None:
        self.graph, self.device = graph, biases[0].device
        # programs are checked against the coarsest grid, 1: the device alone knows the real one
        self.parameters = Parameters(graph, tuple(weights), (0,) * len(weights), tuple(biases), tuple(precisions))
        self._counters = torch.zeros(2, dtype=torch.int32, device=self.device)
        self._impl = self._live = cuda.Machine(self.parameters, self._counters)

    def refresh(self) -> None:
        """Takes up the present parameters."""
        self._live.refresh()

    def start_at(self, sweep: int, swap_round: int = 0) -> None:
        """Gives the next sweep, and the next round of swaps, this number."""
        for counter, number in zip(self._counters, (sweep, swap_round), strict=True):
            counter.fill_(number - _NUMBERS if number >= _NUMBERS // 2 else number)

    def _may_look(self) -> bool:
        return False

    def take_refusal(self) -> bool:
        """Whether weights were not finite or beyond the largest grid since the last time; waits for the device."""
        refused = bool(self._live.refused)
        self._live.refused.zero_()
        return refused


def can_live(device: torch.device) -> bool:
    """Whether there are live machines for tensors on a device."""
    return is_native() and cuda.serves(device)
