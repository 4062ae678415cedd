"""The state of many Markov chains: units, sweeps done, and what numbers their random draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bm_fast.graph import Graph, Kind

MAX_CHAINS = 2**31


@dataclass
class Chains:
    """States of all layers of many chains.

    Chain i draws its random numbers by (seed, first_chain + i, sweep) alone: its path is the same on any device and
    number of threads, whether it runs in one call or in many, and beside whichever other chains.

    layers: per layer uint8 0/1 (Bernoulli, softmax) or float32 (Gaussian), ``[n_chains, units]``; updated in place.
    seed: 64-bit key of the random numbers.
    sweep: sweeps done so far.
    first_chain: index of the first chain, for chains that are split over several objects.
    """

    layers: tuple[Tensor, ...]
    seed: int
    sweep: int = 0
    first_chain: int = 0

    @property
    def n_chains(self) -> int:
        return self.layers[0].shape[0]

    def clone(self) -> Chains:
        """An independent copy that would go on in the same way."""
        return Chains(tuple(layer.clone() for layer in self.layers), self.seed, self.sweep, self.first_chain)

    def select(self, start: int, stop: int) -> Chains:
        """Chains ``start`` to ``stop`` as views: running them changes these units too, but not this ``sweep``."""
        return Chains(
            tuple(layer[start:stop] for layer in self.layers), self.seed, self.sweep, self.first_chain + start
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything, for ``checkpoints.save``."""
        return {**vars(self), "seed": str(self.seed)}  # 64 bits, which not every reader of JSON keeps

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Chains:
        """The chains that ``state_dict`` described."""
        return cls(tuple(state["layers"]), int(state["seed"]), state["sweep"], state["first_chain"])


def empty_layers(graph: Graph, n_chains: int, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
    """Zero states of every layer, in the dtype of its kind."""
    return tuple(
        torch.zeros(
            n_chains, layer.units, dtype=torch.float32 if layer.kind is Kind.GAUSSIAN else torch.uint8, device=device
        )
        for layer in graph.layers
    )


def join(parts: Sequence[Chains]) -> Chains:
    """Consecutive parts of one set of chains as one object (copied); they must have done the same sweeps."""
    first = parts[0]
    following = first.first_chain
    for part in parts:
        if (part.seed, part.sweep, part.first_chain) != (first.seed, first.sweep, following):
            raise ValueError(
                f"parts: expected seed {first.seed}, sweep {first.sweep} and first chain {following}, "
                f"got {part.seed}, {part.sweep} and {part.first_chain}"
            )
        following += part.n_chains
    layers = tuple(torch.cat([part.layers[i] for part in parts]) for i in range(len(first.layers)))
    return Chains(layers, first.seed, first.sweep, first.first_chain)
