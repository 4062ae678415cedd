"""What a trainer needs of a way of learning: from the states of a batch to gradients, and the state between updates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from bm_fast import checkpoints
from bm_fast.chains import Chains
from bm_fast.model import VISIBLE
from bm_fast.ops import Machine
from bm_fast.rbm import HIDDEN, RBM
from bm_fast.training.batches import column_means
from bm_fast.training.estimators import CD, Estimator, FastPCD
from bm_fast.training.gradient import Gradient, Offsets, Rows
from bm_fast.training.tempered import PersistentChains

Snapshot = TypeVar("Snapshot")
"""The parameters of an update on the integer grid: a machine, or several."""


class Learner(Protocol[Snapshot]):
    """The gradient of one model by one estimator, with its chains and averages.

    chains: those of the model phase.
    """

    chains: Chains

    def snapshot(self) -> Snapshot:
        """The present parameters; ValueError if they are not finite or leave the grid."""

    def batch(self, n_data: int) -> Tensor:
        """Where the states of the next ``n_data`` data rows go, ``[n_data, n_visible]`` in the dtype of the units."""

    def start_at(self, data: Tensor) -> None:
        """Tells the data set ``[n, n_visible]`` before the first update."""

    def fill_gradient(self, machine: Snapshot, n_data: int) -> None:
        """Writes the gradient of the negative log-likelihood into ``.grad``; ``batch(n_data)`` holds the data."""

    def free_energy(self, v: Tensor) -> Tensor:
        """-log Σ_h exp(-E(v, h)) of states ``[n, n_visible]``, or an upper bound of it; float64 ``[n]``."""

    def reconstruct(self, v: Tensor) -> Tensor:
        """Mean of v given the hidden means of v, float32 ``[n, n_visible]``."""

    def metrics(self) -> dict[str, float]:
        """Figures of the epoch that ends, which then begins anew."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint is to hold."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` gave."""


class RBMLearner:
    """For an RBM: the hidden units are independent given the visible ones, so the data phase is exact."""

    def __init__(
        self, rbm: RBM, estimator: Estimator | PersistentChains, batch_size: int, seed: int, centred: bool
    ) -> None:
        if centred and isinstance(estimator, CD) and estimator.modified:
            raise ValueError("centred: expected False for CD with scaled inputs, which changes what centring means")
        self._rbm, self._estimator = rbm, estimator
        n_chains = estimator.n_chains_for(batch_size)
        self._rows = Rows(rbm, batch_size, n_chains)
        self._gradient = Gradient(rbm)
        self.offsets = Offsets(rbm) if centred else None
        start = rbm.machine().chains(n_chains, seed)
        self._rows.model_visible.copy_(start.layers[VISIBLE])
        self.chains = Chains((self._rows.model_visible, start.layers[HIDDEN]), seed)

    def snapshot(self) -> Machine:
        return self._rbm.machine()

    def batch(self, n_data: int) -> Tensor:
        return self._rows.block(n_data, self._estimator.n_model(n_data)).data

    def start_at(self, data: Tensor) -> None:
        if self.offsets is not None and not self.offsets.visible_known:
            self.offsets.start_at(column_means(data))

    def fill_gradient(self, machine: Machine, n_data: int) -> None:
        block = self._rows.block(n_data, self._estimator.n_model(n_data))
        self._estimator.run(machine, self.chains, block)
        precision = None if self._rbm.log_precision is None else machine.parameters.precisions[VISIBLE]
        self._gradient.fill(block, precision, self.offsets)
        if isinstance(self._estimator, FastPCD):
            self._estimator.follow(self._gradient.out)

    def free_energy(self, v: Tensor) -> Tensor:
        return self._rbm.free_energy(v)

    def reconstruct(self, v: Tensor) -> Tensor:
        return self._rbm.reconstruct(v)

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        state = {**chains_state(self.chains), "offsets": None if self.offsets is None else vars(self.offsets)}
        if isinstance(self._estimator, PersistentChains):
            state["operator"] = self._estimator.operator.state_dict()
        elif isinstance(self._estimator, FastPCD):
            state.update(self._estimator.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_chains(self.chains, state)
        if self.offsets is not None:
            self.offsets.load(**state["offsets"])
        if isinstance(self._estimator, PersistentChains):
            self._estimator.operator.load_state_dict(checkpoints.moved(state["operator"], self._rbm.device))
        elif isinstance(self._estimator, FastPCD):
            self._estimator.load_state_dict(checkpoints.moved(state, self._rbm.device))


def chains_state(chains: Chains) -> dict[str, Any]:
    """What a checkpoint holds of chains whose seed and shape follow from its settings."""
    return {"chains": {"layers": chains.layers, "sweep": chains.sweep}}


@torch.no_grad()
def load_chains(chains: Chains, state: Mapping[str, Any]) -> None:
    """Takes up what ``chains_state`` gave."""
    for layer, kept in zip(chains.layers, state["chains"]["layers"], strict=True):
        layer.copy_(kept)
    chains.sweep = state["chains"]["sweep"]
