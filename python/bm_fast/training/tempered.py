"""Persistent chains that any transition operator moves: plain Gibbs sampling, or tempering of some kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bm_fast.arguments import count
from bm_fast.chains import Chains
from bm_fast.graph import chain_graph
from bm_fast.ops import Machine
from bm_fast.program import full_update
from bm_fast.rbm import HIDDEN
from bm_fast.tempering import (
    CoupledTempering,
    Gibbs,
    Operator,
    TemperedTransitions,
    Tempering,
    TrajectoryTempering,
)
from bm_fast.training.estimators import Persistent
from bm_fast.training.gradient import Block

_HIDDEN_UPDATE = full_update(chain_graph((1, 1)), HIDDEN)  # programs name layers only, so one serves every size
_OPERATORS: dict[str, Callable[..., Operator]] = {
    operator.__name__: operator
    for operator in (CoupledTempering, Gibbs, TemperedTransitions, Tempering, TrajectoryTempering)
}


def operator_settings(operator: Operator) -> dict[str, Any]:
    """What a checkpoint holds of how an operator was made."""
    return {"name": type(operator).__name__, **operator.settings()}


def operator_from(settings: Mapping[str, Any]) -> Operator:
    """The operator that ``operator_settings`` described; ValueError where it is none of this package."""
    arguments = dict(settings)
    name = arguments.pop("name")
    if name not in _OPERATORS:
        raise ValueError(
            f"operator: expected one of {sorted(_OPERATORS)} to resume with, got {name!r}; with an operator of your "
            "own give Trainer.resume the estimator"
        )
    return _OPERATORS[name](**arguments)


@dataclass
class PersistentChains(Persistent):
    """As ``PCD``, with a transition operator of choice: the model phase is ``n_chains`` chains that it moves on.

    With ``tempering.Tempering`` the chains are targets of ladders and cross between modes, which plain Gibbs sampling
    may never do: then the gradient pushes the machine away from the modes its chains are stuck in, and back.

    Source: Younes (1989) for learning with any Markov chain; Desjardins et al. (2010) and Salakhutdinov (2009, 2010)
    for tempered ones.
    """

    n_chains: int = 100
    operator: Operator = field(default_factory=Tempering)

    def __post_init__(self) -> None:
        count("n_chains", self.n_chains)

    def settings(self) -> dict[str, Any]:
        """What a checkpoint holds of the estimator; with an operator of this package it can be made from it again."""
        return {"n_chains": self.n_chains, "operator": operator_settings(self.operator)}

    @classmethod
    def from_settings(cls, n_chains: int, operator: Mapping[str, Any]) -> PersistentChains:
        """The estimator that ``settings`` described."""
        return cls(n_chains, operator_from(operator))

    def run(self, machine: Machine, chains: Chains, block: Block) -> None:
        """Fills the hidden means of ``block`` for its data; its model rows are the states of ``chains`` afterwards."""
        machine.layer_means(_HIDDEN_UPDATE, (block.data, block.data_means), out=block.data_means)
        self.operator.advance(machine, chains)
        # of the states after the last swap: those that the operator drew from belong to other temperatures
        machine.layer_means(_HIDDEN_UPDATE, chains.layers, out=block.model_means)
