"""Exact log Z of small machines: enumerate one colour of the graph, sum the other out."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bm_fast.estimation._machine import Model, as_machine
from bm_fast.estimation._softplus import softplus_sums
from bm_fast.graph import Graph, Kind
from bm_fast.parameters import Parameters

MAX_ENUMERATED_UNITS = 25
"""2^25 states of a 784-unit layer take 15 to 30 seconds; each further unit doubles that."""

_LOW_UNITS, _HIGH_ROWS = 10, 128  # a block of 2^17 states: its float64 arrays stay in the second-level cache


def exact_log_z(model: Model, *, progress: bool = False) -> float:
    """log Σ_x exp(-E(x)) over all states, in float64, for the weights that are really sampled (W_q 2^-f).

    Of the graph's colours one is summed out in closed form, and every state of all other layers is enumerated: the
    smaller layer of an RBM, the even or the odd layers of a deep machine or a tree. Gaussian layers are always summed
    out. The enumerated units are split in a low and a high half, whose fields are added instead of recomputed; memory
    stays at some ten megabytes.

    progress: shows a bar if it takes longer than a second.
    ValueError: more than 25 units to enumerate, or Gaussian layers in different colours. For those use ``ais``.
    """
    parameters = as_machine(model).parameters
    graph = parameters.graph
    summed = _summed_colour(graph)
    kept = [i for i in range(len(graph.layers)) if i not in summed]
    n_units = sum(graph.layers[i].units for i in kept)
    if n_units > MAX_ENUMERATED_UNITS:
        raise ValueError(
            f"model: exact log Z would enumerate the {n_units} units of {[graph.layers[i].name for i in kept]}, "
            f"the limit is {MAX_ENUMERATED_UNITS}; estimate it with ais"
        )
    bias, among = _enumerated_energy(parameters, kept)
    weights = {layer: _weights_to(parameters, layer, kept) for layer in summed}
    n_low = min(n_units, _LOW_UNITS)
    low = _states(0, 1 << n_low, n_low, bias.device)
    low_terms = low @ bias[:n_low] + _quadratic(low, among[:n_low, :n_low])
    n_high_states = 1 << (n_units - n_low)
    blocks = []
    with tqdm(
        total=1 << n_units,
        desc="exact log Z",
        unit=" states",
        unit_scale=True,
        leave=False,
        delay=1.0,
        disable=not progress,
    ) as bar:
        for start in range(0, n_high_states, _HIGH_ROWS):
            high = _states(start, min(start + _HIGH_ROWS, n_high_states), n_units - n_low, bias.device)
            high_terms = high @ bias[n_low:] + _quadratic(high, among[n_low:, n_low:])
            log_p = low_terms[:, None] + high_terms + low @ (among[:n_low, n_low:] @ high.T)
            for layer, weight in weights.items():
                from_low = low @ weight[:n_low] + parameters.biases[layer].double()
                log_p += _summed_out(parameters, layer, from_low, high @ weight[n_low:])
            blocks.append(log_p.flatten().logsumexp(0).item())
            bar.update(log_p.numel())
    return torch.tensor(blocks, dtype=torch.float64).logsumexp(0).item()


def _summed_colour(graph: Graph) -> tuple[int, ...]:
    gaussian = {i for i, layer in enumerate(graph.layers) if layer.kind is Kind.GAUSSIAN}
    colours = [colour for colour in graph.colours() if gaussian <= set(colour)]
    if not colours:
        names = [graph.layers[i].name for i in sorted(gaussian)]
        raise ValueError(f"model: the Gaussian layers {names} have different colours and cannot all be summed out")
    return max(colours, key=lambda colour: sum(graph.layers[i].units for i in colour))


def _states(start: int, stop: int, n_units: int, device: torch.device) -> Tensor:
    """Binary states number ``start`` to ``stop``, float64 ``[stop - start, n_units]``; unit u is bit u."""
    numbers = torch.arange(start, stop, device=device)[:, None]
    return (numbers >> torch.arange(n_units, device=device) & 1).double()


def _offsets(graph: Graph, kept: list[int]) -> dict[int, int]:
    """Where the units of each enumerated layer begin."""
    sizes = [graph.layers[layer].units for layer in kept]
    return {layer: sum(sizes[:k]) for k, layer in enumerate(kept)}


def _enumerated_energy(parameters: Parameters, kept: list[int]) -> tuple[Tensor, Tensor]:
    """Biases ``[n]`` of the enumerated units and the couplings among them, ``[n, n]`` above the diagonal."""
    offsets = _offsets(parameters.graph, kept)
    empty = torch.zeros(0, dtype=torch.float64, device=parameters.biases[0].device)
    bias = torch.cat([empty, *(parameters.biases[layer].double() for layer in kept)])
    among = bias.new_zeros(len(bias), len(bias))
    for i, coupling in enumerate(parameters.graph.couplings):
        if coupling.lower in offsets and coupling.upper in offsets:
            row, column, weight = offsets[coupling.lower], offsets[coupling.upper], parameters.weight(i).double()
            if row > column:
                row, column, weight = column, row, weight.T
            among[row : row + weight.shape[0], column : column + weight.shape[1]] = weight
    return bias, among


def _weights_to(parameters: Parameters, layer: int, kept: list[int]) -> Tensor:
    """Weights from all enumerated units to one summed layer, float64 ``[n, units]``."""
    graph = parameters.graph
    offsets, n_units = _offsets(graph, kept), sum(graph.layers[other].units for other in kept)
    weights = parameters.biases[layer].new_zeros(n_units, graph.layers[layer].units, dtype=torch.float64)
    for i, other in graph.neighbours(layer):
        weight = parameters.weight(i).double()
        rows = slice(offsets[other], offsets[other] + graph.layers[other].units)
        weights[rows] = weight.T if graph.couplings[i].lower == layer else weight
    return weights


def _quadratic(states: Tensor, among: Tensor) -> Tensor:
    return ((states @ among) * states).sum(1)


def _summed_out(parameters: Parameters, layer: int, low: Tensor, high: Tensor) -> Tensor:
    """log of the sum (or integral) over a layer whose fields are ``low_n + high_m``, float64 ``[n, m]``."""
    precision = parameters.precisions[layer]
    if precision is None:
        return softplus_sums(low, high)
    precision = precision.double()
    squares = (low.square() / precision).sum(1)[:, None] + (high.square() / precision).sum(1)
    return squares / 2 + (low / precision) @ high.T + (2 * math.pi / precision).log().sum() / 2
