"""The numbers a machine is run with: biases in float32 and couplings on an integer grid.

Sampling uses the weights W_q 2^-f with W_q = round(W 2^f) a 16-bit integer, the same W_q in both directions of a
coupling. Sums of W_q over binary units are exact integers, so they cannot depend on the order, the instruction set or
the device that adds them. docs/numbers.md states the whole contract.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bm_fast.graph import Graph, Kind

MAX_WEIGHT = 32_639
"""Largest |W_q|: 127 · 256 + 127, so that W_q splits into two signed 8-bit limbs."""

MAX_FRACTION_BITS = 30
"""Finest grid. Weights below 2^-15 do not fill 16 bits any more, which costs them relative precision only."""

MAX_BIAS_BITS = 40
"""Finest grid of biases in energy gaps: a float32 bias above 2^-16 in size is on it exactly."""


@dataclass(frozen=True)
class Parameters:
    """A snapshot of a model's parameters as the kernels use them.

    weights: per coupling, int16 ``[units of lower, units of upper]``; the weight is ``weights * 2**-fraction_bits``.
    biases: per layer, float32 ``[units]``.
    precisions: per layer, float32 ``[units]`` for Gaussian layers (1 / variance at beta = 1), None for others.
    """

    graph: Graph
    weights: Sequence[Tensor]
    fraction_bits: tuple[int, ...]
    biases: tuple[Tensor, ...]
    precisions: tuple[Tensor | None, ...]

    def weight(self, coupling: int) -> Tensor:
        """The weights that are really sampled, float32 ``[units of lower, units of upper]``; exact."""
        return self.weights[coupling].float() * 2.0 ** -self.fraction_bits[coupling]


@dataclass(frozen=True)
class GapBiases:
    """Biases less those of a base as whole numbers on a grid of their own, from which energy gaps are made.

    base: per layer float32 ``[units]``; None: no base.
    """

    parameters: Parameters
    base: Sequence[Tensor] | None

    @cached_property
    def _differences(self) -> list[Tensor]:
        biases = [bias.double() for bias in self.parameters.biases]
        if self.base is None:
            return biases
        return [bias - other.double() for bias, other in zip(biases, self.base, strict=True)]

    @cached_property
    def bits(self) -> int:
        """g of the grid 2^-g, on which the sum over all units stays below 2^62."""
        n_units = sum(layer.units for layer in self.parameters.graph.layers)
        largest = max(float(difference.abs().max()) for difference in self._differences)
        return min(MAX_BIAS_BITS, 62 - math.frexp(n_units * largest)[1])

    @cached_property
    def whole(self) -> list[Tensor]:
        """Per layer int64 ``[units]``: round((bias - base) 2^g), halves to even."""
        return [(difference * 2.0**self.bits).round().long() for difference in self._differences]


def largest_size(values: Tensor) -> float:
    """The largest |x| of floats, NaN where there is one; waits for a GPU."""
    return float(values.abs().max())


def fraction_bits(largest: float, name: str = "weight") -> int:
    """Bits f of the finest grid 2^-f on which a coupling with this largest |W| still fits into W_q.

    ValueError for non-finite or too large weights.
    """
    if not math.isfinite(largest):
        raise ValueError(f"{name}: expected finite weights, got {largest}")
    if largest > MAX_WEIGHT:
        raise ValueError(f"{name}: expected weights of at most {MAX_WEIGHT} in size, got {largest:g}")
    if largest == 0:
        return MAX_FRACTION_BITS
    bits = math.floor(math.log2(MAX_WEIGHT / largest))
    while largest * 2.0**bits > MAX_WEIGHT:  # log2 may round up
        bits -= 1
    return min(bits, MAX_FRACTION_BITS)


def snapshot(
    graph: Graph,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    precisions: Sequence[Tensor | None] | None,
    quantise: Callable[[Tensor, str], tuple[Tensor, int]],
    largest_size: Callable[[Tensor], float] = largest_size,
) -> Parameters:
    """Checks float parameters against the graph and puts them on the integer grid; the tensors are copied.

    quantise: from contiguous float weights and a name for errors to ``(W_q, f)``. largest_size: of contiguous floats.
    """
    precisions = precisions if precisions is not None else [None] * len(graph.layers)
    for what, values, expected in (
        ("weights", weights, len(graph.couplings)),
        ("biases", biases, len(graph.layers)),
        ("precisions", precisions, len(graph.layers)),
    ):
        if len(values) != expected:
            raise ValueError(f"{what}: expected {expected} tensors for this graph, got {len(values)}")
    device = biases[0].device
    quantised, bits = [], []
    for i, (coupling, weight) in enumerate(zip(graph.couplings, weights, strict=True)):
        name = f"weights[{i}]"
        _check(name, weight, (graph.layers[coupling.lower].units, graph.layers[coupling.upper].units), device)
        integers, f = quantise(weight.detach().contiguous(), name)
        quantised.append(integers)
        bits.append(f)
    own_biases: list[Tensor] = []
    own_precisions: list[Tensor | None] = []
    for i, (layer, bias, precision) in enumerate(zip(graph.layers, biases, precisions, strict=True)):
        _check(f"biases[{i}]", bias, (layer.units,), device)
        own_biases.append(bias.detach().clone().contiguous())
        if not math.isfinite(largest_size(own_biases[-1])):
            raise ValueError(f"biases[{i}] of layer {layer.name!r}: expected finite values, got NaN or infinity")
        if (precision is not None) != (layer.kind is Kind.GAUSSIAN):
            raise ValueError(
                f"precisions[{i}]: layer {layer.name!r} is {layer.kind.name}; only Gaussian layers have one"
            )
        if precision is not None:
            _check(f"precisions[{i}]", precision, (layer.units,), device)
            if not bool((torch.isfinite(precision) & (precision > 0)).all()):
                raise ValueError(f"precisions[{i}] of layer {layer.name!r}: expected finite values above 0")
        own_precisions.append(None if precision is None else precision.detach().clone())
    return Parameters(graph, tuple(quantised), tuple(bits), tuple(own_biases), tuple(own_precisions))


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    if tensor.dtype is not torch.float32 or tensor.shape != shape or tensor.device != device:
        raise ValueError(
            f"{name}: expected float32 {list(shape)} on {device}, "
            f"got {tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        )
