"""Transition operators: ways to move chains that leave a machine's distribution alone, for learning to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, Protocol

from bm_fast.arguments import whole_number
from bm_fast.chains import Chains
from bm_fast.ops import Machine
from bm_fast.program import gibbs_program


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


class Gibbs:
    """Plain block Gibbs sampling: ``sweeps`` sweeps."""

    def __init__(self, sweeps: int = 1) -> None:
        self.sweeps = whole_number("sweeps", sweeps, 1, 2**32)

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
