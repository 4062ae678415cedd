"""Sums of softplus over all pairs of two sets of fields: the inner loop of enumeration and of pseudo-likelihood."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

LARGEST_EXPONENT = 700.0
"""exp of this is still a float64; the largest that is lies at 709.8."""

BLOCK = 2**15
"""Pairs at a time on a processor: three float64 arrays of them stay in the second-level cache."""


def softplus_sums(a: Tensor, b: Tensor) -> Tensor:
    """Σ_u log(1 + exp(a_nu + b_mu)) for every pair of rows, float64 ``[n, m]``; a ``[n, units]``, b ``[m, units]``.

    exp(a + b) = exp(a) exp(b), so a pair costs one multiplication and one multiply-add per unit, and one logarithm for
    as many units as a float64 holds the product of: many times faster than a softplus each, and exact to float64
    rounding. Units whose fields leave the range of exp take the softplus itself.
    """
    half = LARGEST_EXPONENT / 2
    narrow = ((a.abs().amax(0) < half) & (b.abs().amax(0) < half)).tolist()
    # log(1 + e^x) <= max(x, 0) + log 2 bounds what a unit adds to the exponent of the product
    growth = ((a.amax(0) + b.amax(0)).clamp(min=0) + math.log(2)).tolist()
    units = list(zip(narrow, growth, strict=True))
    rows_at_once = max(1, BLOCK // len(b)) if a.device.type == "cpu" else len(a)
    with _one_thread():
        exp_b = b.T.exp().contiguous()
        return torch.cat([_block(rows, b, exp_b, units) for rows in torch.split(a, rows_at_once)])


@contextmanager
def _one_thread() -> Iterator[None]:
    """The operations are many and short: a second thread gains little, and on a busy machine each waits long for it."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _block(a: Tensor, b: Tensor, exp_b: Tensor, units: list[tuple[bool, float]]) -> Tensor:
    total = a.new_zeros(a.shape[0], b.shape[0])
    product, factor = torch.ones_like(total), torch.empty_like(total)
    exp_a = a.T.exp().contiguous()
    room = LARGEST_EXPONENT
    for unit, (is_narrow, needed) in enumerate(units):
        if not is_narrow:
            total += torch.nn.functional.softplus(a[:, unit, None] + b[:, unit], threshold=40)
            continue
        if needed > room:
            total += product.log_()
            product.fill_(1)
            room = LARGEST_EXPONENT
        torch.mul(exp_a[unit, :, None], exp_b[unit], out=factor)
        product.addcmul_(product, factor)
        room -= needed
    return total.add_(product.log_())
