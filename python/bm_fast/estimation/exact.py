"""Exact log Z of small machines: enumerate one colour of the graph, sum the other out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NoReturn

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
    stays at some ten megabytes. Softmax layers that are not summed out are held at each of their units in turn.

    progress: shows a bar if it takes longer than a second.
    ValueError: more than 2^25 states to enumerate, or Gaussian layers in different colours. For those use ``ais``.
    """
    parameters = as_machine(model).parameters
    return log_z_with_biases(parameters, [bias.double() for bias in parameters.biases], progress=progress)


def log_z_with_biases(parameters: Parameters, biases: Sequence[Tensor], *, progress: bool = False) -> float:
    """``exact_log_z`` with biases of float64 in the place of the machine's own."""
    graph = parameters.graph
    summed = _summed_colour(graph)
    kept = [i for i in range(len(graph.layers)) if i not in summed]
    held = [i for i in kept if graph.layers[i].kind is Kind.SOFTMAX]
    n_units = _enumerated_units(graph, summed)
    if n_units > MAX_ENUMERATED_UNITS:
        raise ValueError(
            f"model: exact log Z would enumerate the {n_units:g} units of {[graph.layers[i].name for i in kept]}, "
            f"the limit is {MAX_ENUMERATED_UNITS}; estimate it with ais"
        )
    binary = [i for i in kept if i not in held]
    sums = []
    with tqdm(
        total=round(2**n_units),
        desc="exact log Z",
        unit=" states",
        unit_scale=True,
        leave=False,
        delay=1.0,
        disable=not progress,
    ) as bar:
        for units in itertools.product(*(range(graph.layers[i].units) for i in held)):
            beside, constant = _with_held(parameters, biases, dict(zip(held, units, strict=True)))
            sums += [constant + block for block in _block_sums(parameters, beside, summed, binary, bar)]
    return torch.tensor(sums, dtype=torch.float64).logsumexp(0).item()


def _block_sums(
    parameters: Parameters, biases: list[Tensor], summed: tuple[int, ...], kept: list[int], bar: tqdm[NoReturn]
) -> Iterator[float]:
    """log Σ exp(-E) over blocks of the states of the Bernoulli layers ``kept``, the layers ``summed`` summed out."""
    bias, among = _enumerated_energy(parameters, biases, kept)
    weights = {layer: _weights_to(parameters, layer, kept) for layer in summed}
    n_units = len(bias)
    n_low = min(n_units, _LOW_UNITS)
    low = binary_states(0, 1 << n_low, n_low, bias.device)
    low_terms = low @ bias[:n_low] + _quadratic(low, among[:n_low, :n_low])
    n_high_states = 1 << (n_units - n_low)
    for start in range(0, n_high_states, _HIGH_ROWS):
        high = binary_states(start, min(start + _HIGH_ROWS, n_high_states), n_units - n_low, bias.device)
        high_terms = high @ bias[n_low:] + _quadratic(high, among[n_low:, n_low:])
        log_p = low_terms[:, None] + high_terms + low @ (among[:n_low, n_low:] @ high.T)
        for layer, weight in weights.items():
            log_p += _summed_out(parameters, layer, low @ weight[:n_low] + biases[layer], high @ weight[n_low:])
        yield log_p.flatten().logsumexp(0).item()
        bar.update(log_p.numel())


def _enumerated_units(graph: Graph, summed: Collection[int]) -> float:
    """log2 of the number of states of the layers that are not summed out."""
    kept = [layer for i, layer in enumerate(graph.layers) if i not in summed]
    return sum(math.log2(layer.units) if layer.kind is Kind.SOFTMAX else layer.units for layer in kept)


def _with_held(
    parameters: Parameters, biases: Sequence[Tensor], units: Mapping[int, int]
) -> tuple[list[Tensor], float]:
    """Biases of all layers beside softmax layers held at these units, and -E of the held layers alone."""
    biases = list(biases)
    constant = sum(float(biases[layer][unit]) for layer, unit in units.items())
    for i, coupling in enumerate(parameters.graph.couplings):
        lower, upper, weight = coupling.lower, coupling.upper, parameters.weight(i).double()
        if lower in units and upper in units:
            constant += float(weight[units[lower], units[upper]])
        elif lower in units:
            biases[upper] = biases[upper] + weight[units[lower]]
        elif upper in units:
            biases[lower] = biases[lower] + weight[:, units[upper]]
    return biases, constant


def _summed_colour(graph: Graph) -> tuple[int, ...]:
    gaussian = {i for i, layer in enumerate(graph.layers) if layer.kind is Kind.GAUSSIAN}
    colours = [colour for colour in graph.colours() if gaussian <= set(colour)]
    if not colours:
        names = [graph.layers[i].name for i in sorted(gaussian)]
        raise ValueError(f"model: the Gaussian layers {names} have different colours and cannot all be summed out")
    return min(colours, key=lambda colour: _enumerated_units(graph, colour))


def binary_states(start: int, stop: int, n_units: int, device: torch.device) -> Tensor:
    """Binary states number ``start`` to ``stop``, float64 ``[stop - start, n_units]``; unit u is bit u."""
    numbers = torch.arange(start, stop, device=device)[:, None]
    return (numbers >> torch.arange(n_units, device=device) & 1).double()


def _offsets(graph: Graph, kept: list[int]) -> dict[int, int]:
    """Where the units of each enumerated layer begin."""
    sizes = [graph.layers[layer].units for layer in kept]
    return {layer: sum(sizes[:k]) for k, layer in enumerate(kept)}


def _enumerated_energy(parameters: Parameters, biases: list[Tensor], kept: list[int]) -> tuple[Tensor, Tensor]:
    """Biases ``[n]`` of the enumerated units and the couplings among them, ``[n, n]`` above the diagonal."""
    offsets = _offsets(parameters.graph, kept)
    empty = torch.zeros(0, dtype=torch.float64, device=parameters.biases[0].device)
    bias = torch.cat([empty, *(biases[layer] for layer in kept)])
    among = bias.new_zeros(len(bias), len(bias))
    for i, coupling in enumerate(parameters.graph.couplings):
        if coupling.lower in offsets and coupling.upper in offsets:
            row, column, weight = offsets[coupling.lower], offsets[coupling.upper], parameters.weight(i).double()
            if row > column:
                row, column, weight = column, row, weight.T
            among[row : row + weight.shape[0], column : column + weight.shape[1]] = weight
    return bias, among


def _weights_to(parameters: Parameters, layer: int, kept: list[int]) -> Tensor:
    """Weights from the enumerated units of Bernoulli layers to one summed layer, float64 ``[n, units]``."""
    graph = parameters.graph
    offsets, n_units = _offsets(graph, kept), sum(graph.layers[other].units for other in kept)
    weights = parameters.biases[layer].new_zeros(n_units, graph.layers[layer].units, dtype=torch.float64)
    for i, other in graph.neighbours(layer):
        if other not in offsets:
            continue
        weight = parameters.weight(i).double()
        rows = slice(offsets[other], offsets[other] + graph.layers[other].units)
        weights[rows] = weight.T if graph.couplings[i].lower == layer else weight
    return weights


def _quadratic(states: Tensor, among: Tensor) -> Tensor:
    return ((states @ among) * states).sum(1)


def _summed_out(parameters: Parameters, layer: int, low: Tensor, high: Tensor) -> Tensor:
    """log of the sum (or integral) over a layer whose fields are ``low_n + high_m``, float64 ``[n, m]``."""
    precision = parameters.precisions[layer]
    if parameters.graph.layers[layer].kind is Kind.SOFTMAX:
        total = low[:, 0, None] + high[:, 0]
        for unit in range(1, low.shape[1]):
            total = torch.logaddexp(total, low[:, unit, None] + high[:, unit])
        return total
    if precision is None:
        return softplus_sums(low, high)
    precision = precision.double()
    squares = (low.square() / precision).sum(1)[:, None] + (high.square() / precision).sum(1)
    return squares / 2 + (low / precision) @ high.T + (2 * math.pi / precision).log().sum() / 2
