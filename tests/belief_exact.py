"""Enumerated truth about tiny belief nets, in float64, written out from the definition of each conditional."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bm_fast import DBN, Kind, Machine
from enumeration import all_states, enumerate_machine


def dbn(units: tuple[int, ...] = (4, 3, 3), sd: float = 0.8, seed: int = 0, visible: Kind = Kind.BERNOULLI) -> DBN:
    """A DBN with normal parameters, those of the recognition net near the generative ones but not the same."""
    model = DBN(units, visible, seed=seed, weight_scale=sd)
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for bias in (*model.layer_biases, *model.recognition_biases):
            bias.copy_(0.5 * torch.randn(bias.shape, generator=generator))
        for weight in model.recognition_weights:
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        if model.log_precision is not None:
            model.log_precision.copy_(0.3 * torch.randn(model.n_visible, generator=generator))
    return model


def weight_and_biases(machine: Machine, coupling: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Of one coupling, as they are sampled; float64."""
    p = machine.parameters
    weight = p.weights[coupling].double() / 2.0 ** p.fraction_bits[coupling]
    return weight, (p.biases[coupling].double(), p.biases[coupling + 1].double())


def bernoulli_log_p(states: Tensor, fields: Tensor) -> Tensor:
    p = torch.sigmoid(fields)
    return torch.where(states > 0, p, 1 - p).log().sum(1)


@dataclass(frozen=True)
class Truth:
    """All states of a Bernoulli belief net ``[n_states, units]``, log p of each, log q of its hidden layers given v.

    visible: number of the visible state of each.
    """

    states: Tensor
    visible: Tensor
    log_p: Tensor
    log_q: Tensor
    units: tuple[int, ...]

    def layers(self, rows: Tensor | slice = slice(None)) -> tuple[Tensor, ...]:
        parts = self.states[rows].split(list(self.units), 1)
        return tuple(part.contiguous() for part in parts)

    def log_visible(self) -> Tensor:
        """log p(v) of all visible states, in the order of ``all_states``."""
        totals = torch.zeros(2 ** self.units[0], dtype=torch.float64)
        return totals.index_add(0, self.visible, self.log_p.exp()).log()

    def bound(self) -> Tensor:
        """Σ_h q (log p - log q) of all visible states; q takes the top layer from its true posterior."""
        totals = torch.zeros(2 ** self.units[0], dtype=torch.float64)
        return totals.index_add(0, self.visible, self.log_q.exp() * (self.log_p - self.log_q))


def enumerate_dbn(model: DBN, recognition: str = "samples") -> Truth:
    """Exact truth about a Bernoulli belief net."""
    units, machines = model.units, model.machines()
    states = all_states(sum(units))
    layers = states.double().split(list(units), 1)
    top = enumerate_machine(model.top.machine())
    numbers = top.numbers((states[:, -sum(units[-2:]) : -units[-1]], states[:, -units[-1] :]))
    log_p = top.p[numbers].log()
    weight, (_, bias) = weight_and_biases(model.top.machine(), 0)
    log_q = bernoulli_log_p(layers[-1], layers[-2] @ weight + bias)
    given = layers[0]
    for i in range(len(units) - 2):
        weight, (bias, _) = weight_and_biases(machines.generative, i)
        log_p = log_p + bernoulli_log_p(layers[i], layers[i + 1] @ weight.T + bias)
        weight, (_, bias) = weight_and_biases(machines.recognition, i)
        fields = given @ weight + bias
        log_q = log_q + bernoulli_log_p(layers[i + 1], fields)
        given = layers[i + 1] if recognition == "samples" else torch.sigmoid(fields)
    visible = states[:, : units[0]].long() @ (1 << torch.arange(units[0]))
    return Truth(states, visible, log_p, log_q, units)
