"""Every state of a tiny machine, written out from the definition of the energy, in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bm_fast.graph import Graph, Kind
from bm_fast.parameters import Parameters

MAX_UNITS = 16
"""Units of all layers together: 65,536 states, each of which has a probability of its own."""


@dataclass(frozen=True)
class Enumeration:
    """The distribution of a machine of Bernoulli units over its 2^n states; state k has unit u on where bit u of k is.

    states: uint8 ``[2^n, n]``, the layers one after the other. energies: float64 ``[2^n]``. p: float64 ``[2^n]``.
    """

    graph: Graph
    states: Tensor
    energies: Tensor
    log_z: float
    p: Tensor

    @classmethod
    def of(cls, parameters: Parameters) -> Enumeration:
        """From the weights that are really sampled; nothing of the kernels is used."""
        graph = parameters.graph
        kinds = {layer.kind for layer in graph.layers}
        n_units = sum(layer.units for layer in graph.layers)
        if kinds != {Kind.BERNOULLI}:
            raise ValueError(f"model: enumeration needs Bernoulli units, got {sorted(kind.name for kind in kinds)}")
        if n_units > MAX_UNITS:
            raise ValueError(f"model: expected at most {MAX_UNITS} units in all layers together, got {n_units}")
        device = parameters.biases[0].device
        states = (torch.arange(2**n_units, device=device)[:, None] >> torch.arange(n_units, device=device) & 1).byte()
        layers = torch.split(states.double(), [layer.units for layer in graph.layers], 1)
        energies = torch.zeros(len(states), dtype=torch.float64, device=device)
        for i, coupling in enumerate(graph.couplings):
            energies -= ((layers[coupling.lower] @ parameters.weight(i).double()) * layers[coupling.upper]).sum(1)
        for layer, bias in zip(layers, parameters.biases, strict=True):
            energies -= layer @ bias.double()
        return cls._of_energies(graph, states, energies)

    @classmethod
    def _of_energies(cls, graph: Graph, states: Tensor, energies: Tensor) -> Enumeration:
        log_z = float((-energies).logsumexp(0))
        return cls(graph, states, energies, log_z, (-energies - log_z).exp())

    def tempered(self, beta: float, base: Sequence[Tensor] | None) -> Enumeration:
        """The distribution ∝ exp(-beta E - (1 - beta) E_base), E_base = -Σ base·h; base None: without that part."""
        energies = beta * self.energies
        if base is not None:
            energies -= (1 - beta) * (self.states.double() @ torch.cat(list(base)).double())
        return self._of_energies(self.graph, self.states, energies)

    def layers(self, numbers: Tensor) -> tuple[Tensor, ...]:
        """The states with these numbers, per layer uint8 ``[n, units]``."""
        parts = torch.split(self.states[numbers], [layer.units for layer in self.graph.layers], 1)
        return tuple(part.contiguous() for part in parts)

    def numbers(self, layers: Sequence[Tensor]) -> Tensor:
        """Which state each chain is in, int64 ``[n_chains]``."""
        units = torch.cat(list(layers), 1).long()
        return (units << torch.arange(units.shape[1], device=units.device)).sum(1)

    def draw(self, n: int, seed: int) -> tuple[Tensor, ...]:
        """Independent exact draws, per layer uint8 ``[n, units]``."""
        generator = torch.Generator(self.p.device).manual_seed(seed)
        return self.layers(torch.multinomial(self.p, n, replacement=True, generator=generator))

    def log_visible(self) -> Tensor:
        """log p(v) of every state of layer 0, float64 ``[2^n_visible]``; state k has unit u on where bit u of k is."""
        return (-self.energies).view(-1, 2 ** self.graph.layers[0].units).logsumexp(0) - self.log_z

    def with_visible(self, v: Tensor) -> Tensor:
        """The mean over the rows of v, 0/1 ``[n, n_visible]``, of p(all units | v), float64 ``[2^n]``."""
        n_visible = self.graph.layers[0].units
        numbers = (v.long() << torch.arange(n_visible, device=v.device)).sum(1)
        share = torch.bincount(numbers, minlength=2**n_visible).double() / len(v)
        joint = self.p.view(-1, 2**n_visible)
        return (joint / joint.sum(0) * share).flatten()

    def moments(self, p: Tensor) -> list[Tensor]:
        """Means of lower·upperᵀ of each coupling, then of each layer, under p ``[2^n]``; float64."""
        states = self.states.double()
        sizes = [layer.units for layer in self.graph.layers]
        pairs = torch.split(states.T @ (p[:, None] * states), sizes)
        couplings = [torch.split(pairs[c.lower], sizes, 1)[c.upper] for c in self.graph.couplings]
        return [*couplings, *torch.split(p @ states, sizes)]
