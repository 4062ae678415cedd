"""Where the model phase of the gradient comes from: chains that restart at the data (CD) or go on for ever (PCD).

The log-likelihood gradient is ⟨v hᵀ⟩ under the data minus ⟨v hᵀ⟩ under the model. An estimator runs the chains of one
update and leaves both phases in a block of rows: visible states, and the means of the hidden units given them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bm_fast.arguments import count
from bm_fast.chains import Chains
from bm_fast.graph import chain_graph
from bm_fast.ops import Machine
from bm_fast.program import Input, Program, Update, full_update, gibbs_program
from bm_fast.rbm import HIDDEN, VISIBLE
from bm_fast.training.gradient import Block
from bm_fast.training.loop import TrainingError

_ANY_RBM = chain_graph((1, 1))  # programs name layers and couplings only, so one serves machines of every size
_HIDDEN_UPDATE = full_update(_ANY_RBM, HIDDEN)
_SWEEP = gibbs_program(_ANY_RBM, last=HIDDEN)


@dataclass(frozen=True)
class CD:
    """Contrastive divergence: chains start at the data rows of the batch and run ``sweeps`` sweeps.

    up, down: factors of the inputs of the hidden and of the visible units, biases left as they are. They differ from 1
        in the stack of modified RBMs that starts a deep machine (``bm_fast.training.pretraining``).

    Source: Hinton, Training products of experts by minimizing contrastive divergence (2002).
    """

    sweeps: int = 1
    up: float = 1.0
    down: float = 1.0

    def __post_init__(self) -> None:
        count("sweeps", self.sweeps)
        for name, value in (("up", self.up), ("down", self.down)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a finite factor above 0, got {value}")

    @property
    def modified(self) -> bool:
        """Whether inputs are scaled, so that the RBM is not a Boltzmann machine any more."""
        return (self.up, self.down) != (1, 1)

    def n_chains_for(self, batch_size: int) -> int:
        """Chains needed for batches of at most ``batch_size`` rows."""
        return batch_size

    def n_model(self, n_data: int) -> int:
        """Chains that an update with ``n_data`` data rows uses."""
        return n_data

    def run(self, machine: Machine, chains: Chains, block: Block) -> None:
        """Fills the hidden means of ``block`` for its data; its model rows are the states of ``chains`` afterwards."""
        used = chains.select(0, block.n_data)
        used.layers[VISIBLE].copy_(block.data)
        start, sweep = _scaled(self.up, self.down)
        machine.sweep(start, used, 1, means={HIDDEN: block.data_means})
        machine.sweep(sweep, used, self.sweeps, means={HIDDEN: block.model_means})
        chains.sweep = used.sweep


class Persistent:
    """Estimators whose ``n_chains`` chains go on from update to update."""

    n_chains: int

    def n_chains_for(self, batch_size: int) -> int:
        """Chains needed, whatever the batches are."""
        return self.n_chains

    def n_model(self, n_data: int) -> int:
        """Chains that every update uses."""
        return self.n_chains


@dataclass(frozen=True)
class PCD(Persistent):
    """Persistent contrastive divergence: ``n_chains`` chains go on from update to update, ``sweeps`` sweeps each.

    Source: Tieleman, Training RBMs using approximations to the likelihood gradient (2008); Younes (1989).
    """

    n_chains: int = 100
    sweeps: int = 1

    def __post_init__(self) -> None:
        count("n_chains", self.n_chains)
        count("sweeps", self.sweeps)

    def run(self, machine: Machine, chains: Chains, block: Block) -> None:
        """Fills the hidden means of ``block`` for its data; its model rows are the states of ``chains`` afterwards."""
        machine.layer_means(_HIDDEN_UPDATE, (block.data, block.data_means), out=block.data_means)
        machine.sweep(_SWEEP, chains, self.sweeps, means={HIDDEN: block.model_means})


@dataclass
class FastPCD(Persistent):
    """PCD with fast weights: chains run on the parameters plus a fast copy, which learns at a high rate and decays.

    After each update, with g the gradient of the negative log-likelihood:

        fast ← decay · fast - rate · g

    Where chains linger, the fast weights raise the energy until they leave, so chains mix faster than the machine
    itself would; the model phase is then no longer that of the machine, but of one that is near by.

    rate: of the fast weights; the one for the parameters may fall, this one stays.
    fast: per parameter (weight, visible bias, hidden bias); empty before the first update. Chains at sweep 0 begin
        without them.

    Source: Tieleman and Hinton, Using fast weights to improve persistent contrastive divergence (ICML 2009), whose
    decay is 19/20.
    """

    n_chains: int = 100
    sweeps: int = 1
    rate: float = 0.05
    decay: float = 0.95
    fast: tuple[Tensor, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        count("n_chains", self.n_chains)
        count("sweeps", self.sweeps)
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate: expected a finite learning rate above 0, got {self.rate}")
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay: expected 0 to below 1, got {self.decay}")

    def settings(self) -> dict[str, Any]:
        """What the estimator was made with."""
        return {"n_chains": self.n_chains, "sweeps": self.sweeps, "rate": self.rate, "decay": self.decay}

    def run(self, machine: Machine, chains: Chains, block: Block) -> None:
        """Fills the hidden means of ``block`` for its data; its model rows are the states of ``chains`` afterwards."""
        machine.layer_means(_HIDDEN_UPDATE, (block.data, block.data_means), out=block.data_means)
        if chains.sweep == 0:
            self.fast = ()
        parameters = machine.parameters
        if self.fast:
            weight, *biases = self.fast
            shifted = [bias + fast for bias, fast in zip(parameters.biases, biases, strict=True)]
            try:
                machine = Machine.build(machine.graph, [parameters.weight(0) + weight], shifted, parameters.precisions)
            except ValueError as error:
                raise TrainingError(
                    f"FastPCD: rate {self.rate:g} took parameters and fast weights together off the integer grid "
                    f"({error}); a lower rate may help"
                ) from error
        machine.sweep(_SWEEP, chains, self.sweeps, means={HIDDEN: block.model_means})

    @torch.no_grad()
    def follow(self, gradient: Sequence[Tensor]) -> None:
        """Moves the fast weights by the gradient in weight, visible bias and hidden bias that this update has."""
        if not self.fast:
            self.fast = tuple(torch.zeros_like(values) for values in gradient)
        for fast, values in zip(self.fast, gradient, strict=True):
            fast.mul_(self.decay).add_(values, alpha=-self.rate)

    def state_dict(self) -> dict[str, Any]:
        """The fast weights."""
        return {"fast": self.fast}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` gave."""
        self.fast = tuple(values.clone() for values in state["fast"])


Estimator = CD | PCD | FastPCD


@functools.cache
def _scaled(up: float, down: float) -> tuple[Program, Program]:
    """Drawing the hidden units, and a sweep that ends on them, with scaled inputs."""
    hidden = Update(HIDDEN, (Input(0, transposed=False, scale=up),))
    visible = Update(VISIBLE, (Input(0, transposed=True, scale=down),))
    return ((hidden,),), ((visible,), (hidden,))
