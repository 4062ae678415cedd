"""Random numbers, and functions of a unit's field that have the same bits on every backend (docs/numbers.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor


class Purpose(IntEnum):
    """What random numbers are for: part of their counter, so that no two uses share numbers."""

    GIBBS = 0
    INITIAL = 1
    BINARISE = 2
    SWAP = 3
    DECISION = 4


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` of float32 tensors with one rounding.

    The product is exact in float64. The sum is rounded to odd there, after which rounding to float32 is correct
    (Boldo and Melquiond, 2008: a round-to-odd step with two spare bits makes double rounding harmless).
    """
    product = a.double() * b.double()
    addend = c.double().expand_as(product)
    total = product + addend
    high = total - product
    error = (product - (total - high)) + (addend - high)
    bits = total.view(torch.int64)
    step = torch.where((error > 0) == (total > 0), 1, -1)
    inexact_even = ((error > 0) | (error < 0)) & (bits & 1 == 0)  # it is NaN beside an infinite total
    return torch.where(inexact_even, bits + step, bits).view(torch.float64).float()


def philox(counter: Sequence[Tensor | int], seed: int) -> Tensor:
    """Philox4x32-10 (Salmon et al., SC 2011) of broadcastable counter words; int64 ``[..., 4]`` in 0..2^32-1."""
    mask = 0xFFFFFFFF
    words = (torch.as_tensor(c, dtype=torch.int64) for c in counter)
    c0, c1, c2, c3 = torch.broadcast_tensors(*words)  # type: ignore[no-untyped-call]
    key0, key1 = seed & mask, seed >> 32 & mask
    for _ in range(10):
        # int64 products wrap, but their 64 bits are those of the unsigned product
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (product1 >> 32 & mask) ^ c1 ^ key0,
            product1 & mask,
            (product0 >> 32 & mask) ^ c3 ^ key1,
            product0 & mask,
        )
        key0, key1 = (key0 + 0x9E3779B9) & mask, (key1 + 0xBB67AE85) & mask
    return torch.stack((c0, c1, c2, c3), -1)


def random_words(units: int, chains: Tensor, sweep: int, layer: int, purpose: Purpose, seed: int) -> Tensor:
    """One 32-bit number per chain and unit, int64 ``[n_chains, units]``; unit u takes word u % 4 of group u // 4."""
    groups = torch.arange((units + 3) // 4)
    words = philox((groups[None, :], chains[:, None], sweep, layer | purpose << 16), seed)
    return words.flatten(1)[:, :units]


def uniform(words: Tensor) -> Tensor:
    """The top 24 bits of each word as float32 at the middle of their cell: (k + 1/2) 2^-24, rounded."""
    k = (words >> 8).float()
    return fma(k, torch.tensor(2.0**-24), torch.tensor(2.0**-25))


# 2^r on [-1/2, 1/2], highest power first: minimax for the relative error, 9e-8 before rounding
EXP2 = (0.00132647, 0.00967151, 0.05550734, 0.24022242, 0.69314698, 1.0)
LOG2_E = 1.44269504
MAGIC = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer
CLAMP = 64.0


def exp_minus(x: Tensor) -> Tensor:
    """exp(-x) of float32 fields by the polynomial that all backends share; exponents are clamped to 2^±64."""
    t = (x * torch.tensor(-LOG2_E)).clamp(-CLAMP, CLAMP)
    shifted = t + torch.tensor(MAGIC)
    r = t - (shifted - torch.tensor(MAGIC))
    p = torch.full_like(r, EXP2[0])
    for coefficient in EXP2[1:]:
        p = fma(p, r, torch.tensor(coefficient))
    exponent = shifted.view(torch.int32) << 23
    return (p.view(torch.int32) + exponent).view(torch.float32)


def decide(x: Tensor, words: Tensor) -> Tensor:
    """Whether a unit with field x turns on: u < 1 / (1 + exp(-x)), tested as u exp(-x) + u < 1. uint8."""
    u = uniform(words)
    return (fma(u, exp_minus(x), u) < 1).to(torch.uint8)


def acceptance(log_ratio: Tensor) -> Tensor:
    """min(1, exp(log_ratio)) of float64 log ratios as float32, by the same polynomial."""
    return torch.where(log_ratio >= 0, torch.ones(()), exp_minus(-log_ratio.float()))


def accept(log_ratio: Tensor, words: Tensor) -> Tensor:
    """Whether a Metropolis move is taken: u < exp(log_ratio), tested as u exp(-log_ratio) < 1 below 0. bool."""
    return (log_ratio >= 0) | (uniform(words) * exp_minus(log_ratio.float()) < 1)


def softmax_terms(x: Tensor, held: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """exp(x_j - max x) of fields ``[n, units]``, 0 for ``held`` units, and their cumulative sums in order; float32."""
    free = x if held is None else torch.where(held, -torch.inf, x)
    largest = free.amax(1, keepdim=True)
    # a field that equals the largest has the term 1 even where both are infinite
    terms = exp_minus(torch.where(x < largest, largest - x, torch.zeros(())))
    terms = terms if held is None else torch.where(held, 0, terms)
    sums = [terms[:, 0]]
    for term in terms.T[1:]:
        sums.append(sums[-1] + term)
    return terms, torch.stack(sums, 1)


def softmax(x: Tensor, held: Tensor | None = None) -> Tensor:
    """Probabilities of the units of a softmax layer with these fields, float32 ``[n, units]``; 0 for ``held`` ones."""
    terms, sums = softmax_terms(x, held)
    return terms / sums[:, -1:]


def choose(x: Tensor, words: Tensor, held: Tensor | None = None) -> Tensor:
    """States of a softmax layer with these fields, uint8 ``[n, units]``, by one random word for each row ``[n]``.

    The unit that is on is the first whose cumulative sum reaches u times the sum of all.
    """
    _, sums = softmax_terms(x, held)
    chosen = (sums < uniform(words)[:, None] * sums[:, -1:]).sum(1)
    return torch.nn.functional.one_hot(chosen, x.shape[1]).to(torch.uint8)


def logistic(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) from the same polynomial; one rounding per operation."""
    return 1 / (1 + exp_minus(x))


def normals(words: Tensor) -> Tensor:
    """Standard normals by Box and Muller, float32: words 0 and 1 of four give the first two, 2 and 3 the others."""
    chains, units = words.shape
    pairs = torch.nn.functional.pad(words, (0, -units % 4)).view(chains, -1, 2)
    u = uniform(pairs).double()
    radius, angle = (-2 * u[..., 0].log()).sqrt(), 2 * math.pi * u[..., 1]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(1)[:, :units].float()
