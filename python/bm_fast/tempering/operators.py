"""Transition operators: ways to move chains that leave a machine's distribution alone, for learning to choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, runtime_checkable

from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.chains import Chains
from bm_fast.ops import Machine
from bm_fast.program import gibbs_program
from bm_fast.tempering.ladders import Betas, ladder_betas


class Operator(Protocol):
    """Moves chains of a machine whose parameters may change a little from call to call."""

    def advance(self, machine: Machine, chains: Chains) -> None:
        """Moves the chains in place by transitions that leave the machine's distribution invariant."""

    def settings(self) -> dict[str, Any]:
        """What the operator was made with, for checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """What it keeps from call to call, for checkpoints."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` gave."""


class Recordable(Operator, Protocol):
    """An operator whose calls on an ``ops.LiveMachine`` do not wait for a GPU, so that they can be recorded.

    counts: whole numbers on the host that each call advances, the number of the next round of swaps first; a call that
        is replayed advances them by as much as when it was recorded.
    """

    counts: tuple[int, ...]

    def prepare(self, machine: Machine, chains: Chains) -> None:
        """All that the next ``advance`` has to decide on the host; waits for a GPU where there is something."""

    def fixed(self) -> object:
        """What a recording of ``advance`` holds for ever, to be compared: where there is memory, and settings."""


@runtime_checkable
class Watched(Operator, Protocol):
    """An operator that sees for itself whether its chains get from one end of its ladder to the other."""

    def advise(self) -> str | None:
        """What was wrong in the time before this call, and what to do about it; None where nothing was.

        It looks back to the call before, or further where too little has happened since to tell. May wait for a GPU.
        """


@dataclass(frozen=True)
class Replicas:
    """Chains of an operator's own that should all have one distribution, ∝ exp(-beta E - (1 - beta) E_base).

    An operator that keeps such chains from call to call, and does not start from the states that it is given, lists
    them in a method ``replicas(machine)``, so that ``estimation.verify`` can start them at exact draws as well.

    name: which ones, for messages.
    machine, beta, base: what E and E_base = -Σ base·h are; base None: no base.
    chains, rows: these rows of the operator's chains themselves, int64 ``[n]``; what is written there, it goes on from.
    """

    name: str
    machine: Machine
    beta: float
    base: tuple[Tensor, ...] | None
    chains: Chains
    rows: Tensor


class Gibbs:
    """Plain block Gibbs sampling: ``sweeps`` sweeps."""

    def __init__(self, sweeps: int = 1) -> None:
        self.sweeps = whole_number("sweeps", sweeps, 1, 2**32)

    counts: tuple[int, ...] = (0,)

    def prepare(self, machine: Machine, chains: Chains) -> None:
        """Nothing to decide."""

    def fixed(self) -> object:
        """The number of sweeps."""
        return self.sweeps

    def advance(self, machine: Machine, chains: Chains) -> None:
        """``sweeps`` sweeps of every chain."""
        machine.sweep(gibbs_program(machine.graph), chains, self.sweeps)

    def settings(self) -> dict[str, Any]:
        """What the operator was made with."""
        return {"sweeps": self.sweeps}

    def state_dict(self) -> dict[str, Any]:
        """Nothing: chains hold all of it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to take up."""


class BetaOperator:
    """What operators on a ladder of betas have in common.

    betas, base: as for ``tempering.start``. sweeps: at each beta.
    """

    def __init__(self, betas: Betas, base: Sequence[Tensor] | None, sweeps: int) -> None:
        self.betas = ladder_betas(betas)
        self.base = None if base is None else tuple(base)
        self.sweeps = whole_number("sweeps", sweeps, 1, 2**32)

    def settings(self) -> dict[str, Any]:
        """What the operator was made with."""
        return {"betas": self.betas, "base": self.base, "sweeps": self.sweeps}

    def replicas_on(self, machine: Machine, betas: Tensor, chains: Chains, rungs: Tensor) -> list[Replicas]:
        """The replicas of each beta, of chains that are each on one of the rungs, ``[n_chains]``."""
        return [
            Replicas(f"beta = {beta:.4g}", machine, beta, self.base, chains, (rungs == i).nonzero()[:, 0])
            for i, beta in enumerate(betas.tolist())
        ]


def refuse_begun(chains: Chains, begins: str) -> NoReturn:
    """ValueError for chains that have been moved before the operator had any state; begins: what it would begin."""
    raise ValueError(f"chains: expected some at sweep 0, which begin {begins}, got sweep {chains.sweep}")


def check_continued(chains: Chains, own: Chains, n_chains: int | None = None) -> None:
    """ValueError unless ``chains`` are those that an operator moved last, beside ``own``.

    n_chains: how many it moved, if not as many as its own.
    """
    expected, got = (
        f"{n} with seed {state.seed} at sweep {state.sweep}"
        for n, state in ((n_chains or own.n_chains, own), (chains.n_chains, chains))
    )
    if got != expected:
        raise ValueError(f"chains: expected those that this operator moved last, {expected}, got {got}")
