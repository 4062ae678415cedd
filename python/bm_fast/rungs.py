"""Which chain of a ladder is at which inverse temperature: the state of replica exchange."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.chains import MAX_CHAINS

MAX_RUNGS = 2**16


@dataclass
class Rungs:
    """On which rung of its ladder each chain is, and what has come of swaps so far.

    Each run of ``n_rungs`` chains is a ladder; a swap exchanges the rungs of two of its chains, never their states.

    rungs: int32 ``[n_chains]``; of each ladder a permutation of 0..n_rungs - 1.
    attempts: int64 ``[n_rungs - 1]``, tries of each pair of neighbouring rungs.
    acceptances: float64 ``[n_rungs - 1]``, the sum of the probabilities with which they were taken.
    heading: uint8 ``[n_chains]``, the end at which a chain was last: 1 rung 0, 2 the last rung, 0 neither yet.
    trips: int64 ``[n_chains]``, arrivals at the last rung from rung 0.
    round: rounds of swaps done; its parity chooses the pairs.
    """

    rungs: Tensor
    attempts: Tensor
    acceptances: Tensor
    heading: Tensor
    trips: Tensor
    round: int = 0

    @classmethod
    def start(cls, n_ladders: int, n_rungs: int, device: torch.device | str = "cpu") -> Rungs:
        """Chain i of each ladder on rung i, nothing counted."""
        n_rungs = whole_number("n_rungs", n_rungs, 2, MAX_RUNGS)
        n_ladders = whole_number("n_ladders", n_ladders, 1, MAX_CHAINS // n_rungs)
        n_chains = n_ladders * n_rungs
        rungs = cls(
            torch.arange(n_rungs, dtype=torch.int32, device=device).repeat(n_ladders),
            torch.zeros(n_rungs - 1, dtype=torch.int64, device=device),
            torch.zeros(n_rungs - 1, dtype=torch.float64, device=device),
            torch.zeros(n_chains, dtype=torch.uint8, device=device),
            torch.zeros(n_chains, dtype=torch.int64, device=device),
        )
        rungs.heading[rungs.rungs == 0] = 1
        rungs.heading[rungs.rungs == n_rungs - 1] = 2
        return rungs

    @property
    def n_rungs(self) -> int:
        return self.attempts.shape[0] + 1

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of the fields."""
        return self.rungs, self.attempts, self.acceptances, self.heading, self.trips

    def clone(self) -> Rungs:
        """An independent copy."""
        rungs, attempts, acceptances, heading, trips = (part.clone() for part in self.parts)
        return Rungs(rungs, attempts, acceptances, heading, trips, self.round)


def check_permutations(rungs: Rungs) -> None:
    """ValueError where a ladder holds a rung twice: kernels follow rungs as addresses. Waits for a GPU."""
    table = rungs.rungs.view(-1, rungs.n_rungs).sort(1).values
    if not bool((table == torch.arange(rungs.n_rungs, device=table.device)).all()):
        raise ValueError(f"rungs: expected a permutation of 0 to {rungs.n_rungs - 1} in each ladder")
