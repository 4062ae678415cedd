"""What learning needs beside sweeps: weights on the integer grid, sums over rows, binary draws from probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from bm_fast.parameters import fraction_bits, largest_size
from bm_fast.reference.arithmetic import Purpose, fma, random_words, uniform


def quantise(weight: Tensor, name: str) -> tuple[Tensor, int]:
    """``(W_q, f)`` of float weights; halves round to even. ValueError for non-finite or too large weights."""
    bits = fraction_bits(largest_size(weight), name)
    return (weight * 2.0**bits).round().to(torch.int16), bits


def statistics(lower: Tensor, upper: Tensor, out: Tensor) -> None:
    """out = Σ over chains of lowerᵀ upper, float32 ``[units of lower, units of upper]``.

    Inputs are uint8 0/1 or float32 ``[n_chains, units]``. Chains are added in order, one fma each, so that the result
    has the same bits everywhere.
    """
    out.zero_()
    for a, b in zip(lower.float(), upper.float(), strict=True):
        out.copy_(fma(a[:, None], b[None, :], out))


def gradient(
    visible: Tensor,
    means: Tensor,
    signs: Tensor,
    phases: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """The gradient of an RBM from the rows of both phases; arguments and formulas as in ``ops.gradient``."""
    weight, visible_out, hidden_out = out
    visible_out.copy_(phases[0][1] - phases[0][0])
    hidden_out.copy_(phases[1][1] - phases[1][0])
    if offsets is None:
        statistics(visible, means * signs[:, None], weight)
        return
    weight.copy_(-(offsets[0][:, None] * hidden_out))
    for v, m in zip(visible.float(), (means - offsets[1]) * signs[:, None], strict=True):
        weight.copy_(fma(v[:, None], m, weight))
    for bias, (values, offset), (others, other_offset) in (
        (visible_out, (visible, offsets[0]), (means, offsets[1])),
        (hidden_out, (means, offsets[1]), (visible, offsets[0])),
    ):
        factors = _offset_products(others.float(), other_offset) * signs
        sums = torch.empty(1, len(bias))
        statistics(factors[:, None], values, sums)
        total = torch.zeros(())
        for factor in factors:
            total = total + factor
        bias.sub_(fma(-offset, total, sums[0]))


def _offset_products(values: Tensor, offset: Tensor) -> Tensor:
    """Σ over units of (value - offset) offset, ``[n_chains]``: 16 sums of every 16th unit, added by halves."""
    lanes = torch.zeros(len(values), 16)
    for first in range(0, len(offset), 16):
        part = offset[first : first + 16]
        n = len(part)
        lanes[:, :n] = fma(values[:, first : first + 16] - part, part, lanes[:, :n])
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def bernoulli(
    probabilities: Tensor, rows: Tensor, out: Tensor, *, seed: int, sweep: int, layer: int, purpose: Purpose
) -> None:
    """Draws uint8 0/1 with the given probabilities, float32 ``[n, units]``: on where u <= p (u is above 0, up to 1).

    rows: int64 ``[n]``, the chain part of the counter; a row of data keeps its random numbers in any batch.
    """
    words = random_words(probabilities.shape[1], rows, sweep, layer, purpose, seed)
    out.copy_(uniform(words) <= probabilities)
