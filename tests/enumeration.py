"""Enumerated truth about tiny machines, in float64, and the yardstick for samples drawn from them.

Everything here is written out state by state from the definition of the energy, for the weights that are really
sampled (W_q 2^-f). Nothing is shared with the package beyond the parameters, so that a test has two independent sides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bm_fast import Coupling, Graph, Kind, Layer, Machine, chain_graph

# --- tiny machines ----------------------------------------------------------------------------------------------------


def machine(graph: Graph, seed: int = 0, coupling_sd: float = 0.8, bias_sd: float = 0.5) -> Machine:
    """A machine with normal parameters: couplings strong enough that wrong kernels show, weak enough to mix."""
    g = torch.Generator().manual_seed(seed)
    weights = [
        coupling_sd * torch.randn(graph.layers[c.lower].units, graph.layers[c.upper].units, generator=g)
        for c in graph.couplings
    ]
    biases = [bias_sd * torch.randn(layer.units, generator=g) for layer in graph.layers]
    precisions = [
        0.5 + 1.5 * torch.rand(layer.units, generator=g) if layer.kind is Kind.GAUSSIAN else None
        for layer in graph.layers
    ]
    return Machine.build(graph, weights, biases, precisions)


def two_pathways() -> Graph:
    """Image and text layers, a hidden layer for each, and a joint layer on top: the multimodal tree in small."""
    units = {"image": 3, "image_hidden": 2, "text": 2, "text_hidden": 2, "joint": 2}
    couplings = (Coupling(0, 1), Coupling(2, 3), Coupling(1, 4), Coupling(3, 4))
    return Graph(tuple(Layer(name, n) for name, n in units.items()), couplings)


def semi_restricted() -> Graph:
    """Two visible layers that are coupled to each other and to a hidden one: three colours."""
    layers = (Layer("left", 3), Layer("right", 3), Layer("hidden", 4))
    return Graph(layers, (Coupling(0, 1), Coupling(0, 2), Coupling(2, 1)))


def potts() -> Graph:
    """Two softmax layers that are coupled to each other and, one of them, to a binary layer."""
    layers = (Layer("visible", 4), Layer("left", 3, Kind.SOFTMAX), Layer("right", 4, Kind.SOFTMAX))
    return Graph(layers, (Coupling(0, 1), Coupling(1, 2)))


BINARY = {
    "rbm": chain_graph((5, 4)),
    "dbm3": chain_graph((4, 3, 3)),
    "dbm4": chain_graph((3, 3, 2, 2)),
    "tree": two_pathways(),
    "semi_restricted": semi_restricted(),
}
"""Bernoulli graphs of at most 2,048 states."""

GRAPHS = {**BINARY, "labelled": chain_graph((4, 4), n_classes=3), "potts": potts()}
"""These, and graphs with softmax layers."""


# --- enumeration ------------------------------------------------------------------------------------------------------


def all_states(n_units: int) -> Tensor:
    """All binary states, uint8 ``[2^n, n]``; unit u of state k is bit u of k."""
    return (torch.arange(2**n_units)[:, None] >> torch.arange(n_units) & 1).to(torch.uint8)


def states_of(graph: Graph) -> Tensor:
    """All states of the layers side by side, uint8 ``[n_states, units]``: any of binary ones, one unit of softmax."""
    sizes = [layer.units for layer in graph.layers]
    states = all_states(sum(sizes))
    for i, layer in enumerate(graph.layers):
        if layer.kind is Kind.SOFTMAX:
            states = states[states.split(sizes, 1)[i].sum(1) == 1]
    return states


@dataclass(frozen=True)
class Truth:
    """The distribution of a machine's layers: states ``[n_states, units]``, log Z, probabilities."""

    graph: Graph
    states: Tensor
    log_z: float
    p: Tensor

    def layers(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The given states, cut into layers (uint8, contiguous)."""
        parts = self.states[rows].split([layer.units for layer in self.graph.layers], 1)
        return tuple(part.contiguous() for part in parts)

    def numbers(self, layers: Sequence[Tensor]) -> Tensor:
        """Which state each chain is in, int64 ``[n_chains]``."""
        return torch.searchsorted(_codes(self.states), _codes(torch.cat(list(layers), 1)))

    def draw(self, n: int, generator: torch.Generator, p: Tensor | None = None) -> tuple[Tensor, ...]:
        """Independent exact draws, by default from the whole distribution."""
        p = self.p if p is None else p
        return self.layers(torch.multinomial(p, n, replacement=True, generator=generator))

    def given(self, values: Tensor, held: Tensor) -> Tensor:
        """Probabilities of all states given the units that ``held`` (bool ``[units]``) marks; ``[n_states]``."""
        agrees = (self.states[:, held] == values[held]).all(1)
        p = torch.where(agrees, self.p, 0.0)
        return p / p.sum()


def _codes(states: Tensor) -> Tensor:
    """Units as the bits of a number, int64 ``[n]``."""
    return (states.long() << torch.arange(states.shape[1])).sum(1)


def energies(machine: Machine, states: Tensor, beta: float = 1.0, base: Sequence[Tensor] | None = None) -> Tensor:
    """beta E + (1 - beta) E_base of 0/1 states ``[n, units]``, float64; without base: beta E."""
    parameters = machine.parameters
    layers = states.double().split([layer.units for layer in machine.graph.layers], 1)
    energy = torch.zeros(len(states), dtype=torch.float64)
    for i, coupling in enumerate(machine.graph.couplings):
        weight = parameters.weights[i].double() / 2.0 ** parameters.fraction_bits[i]
        energy -= torch.einsum("ni,ij,nj->n", layers[coupling.lower], weight, layers[coupling.upper])
    for layer, bias in zip(layers, parameters.biases, strict=True):
        energy -= layer @ bias.double()
    energy *= beta
    if base is not None:
        for layer, bias in zip(layers, base, strict=True):
            energy -= (1 - beta) * (layer @ bias.double())
    return energy


def enumerate_machine(machine: Machine, beta: float = 1.0, base: Sequence[Tensor] | None = None) -> Truth:
    """Exact truth about a machine without real units at inverse temperature beta, on the path from ``base``."""
    states = states_of(machine.graph)
    log_p = -energies(machine, states, beta, base)
    log_z = torch.logsumexp(log_p, 0).item()
    return Truth(machine.graph, states, log_z, (log_p - log_z).exp())


@dataclass(frozen=True)
class GaussianTruth:
    """An RBM with Gaussian visible units: p(h) by enumeration, v given h normal."""

    hidden: Tensor
    log_z: float
    p: Tensor
    mean: Tensor
    """E[v | h], ``[n_states, n_visible]``."""
    variance: Tensor

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Exact draws: v float32, h uint8."""
        rows = torch.multinomial(self.p, n, replacement=True, generator=generator)
        noise = torch.randn(n, len(self.variance), generator=generator, dtype=torch.float64)
        return (self.mean[rows] + noise * self.variance.sqrt()).float(), self.hidden[rows]

    def moments(self) -> dict[str, Tensor]:
        """Exact E[v], E[h], E[v h], E[v v], each float64."""
        h = self.hidden.double()
        weighted = self.p[:, None] * self.mean
        return {
            "v": weighted.sum(0),
            "h": self.p @ h,
            "vh": weighted.T @ h,
            "vv": weighted.T @ self.mean + self.variance.diag(),
        }


def gaussian_truth(weight: Tensor, b: Tensor, c: Tensor, precision: Tensor) -> GaussianTruth:
    """Of exp(vᵀWh + bᵀv + cᵀh - Σ precision v² / 2), all float64."""
    hidden = all_states(len(c))
    h = hidden.double()
    field = b + h @ weight.T
    log_p = h @ c + (field.square() / (2 * precision) + (2 * math.pi / precision).log() / 2).sum(1)
    log_z = torch.logsumexp(log_p, 0).item()
    return GaussianTruth(hidden, log_z, (log_p - log_z).exp(), field / precision, 1 / precision)


def gaussian_parameters(machine: Machine) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, visible bias, hidden bias and precision of a Gaussian RBM, float64."""
    parameters = machine.parameters
    weight = parameters.weights[0].double() / 2.0 ** parameters.fraction_bits[0]
    precision = parameters.precisions[0]
    assert precision is not None
    return weight, parameters.biases[0].double(), parameters.biases[1].double(), precision.double()


def enumerate_gaussian(machine: Machine, beta: float = 1.0, base: Sequence[Tensor] | None = None) -> GaussianTruth:
    """Exact truth about a Gaussian RBM. Without a base beta scales the precision too; with one it stays."""
    weight, b, c, precision = gaussian_parameters(machine)
    if base is None:
        return gaussian_truth(beta * weight, beta * b, beta * c, beta * precision)
    base_b, base_c = (x.double() for x in base)
    return gaussian_truth(beta * weight, beta * b + (1 - beta) * base_b, beta * c + (1 - beta) * base_c, precision)


# --- yardsticks -------------------------------------------------------------------------------------------------------

DRIFT_BOUND = 1.3
"""Largest total variation, in units of its floor, that exact samples are allowed. See ``variation_ratio``."""


def variation_ratio(p: Tensor, numbers: Tensor) -> float:
    """Total variation between the frequencies of states and p, over its floor Σ sqrt(p (1 - p) / n) / 2.

    Exact samples have expectation sqrt(2 / pi) = 0.80 (each frequency is nearly normal). Many states average out: for
    the graphs above the standard deviation is 0.02 to 0.07, so a false alarm lies seven of them away.
    """
    n = len(numbers)
    frequency = torch.bincount(numbers, minlength=len(p)).double() / n
    floor = (p * (1 - p) / n).sqrt().sum()
    return ((frequency - p).abs().sum() / floor).item()


def largest_z(samples: Tensor, expected: Tensor) -> float:
    """Largest |mean - expected| in standard errors, over the columns of independent samples ``[n, columns]``."""
    samples = samples.double()
    error = samples.std(0) / math.sqrt(len(samples))
    return ((samples.mean(0) - expected).abs() / error.clamp(min=1e-12)).max().item()
