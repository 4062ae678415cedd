"""Sums of softplus over all pairs of two sets of fields: the inner loop of enumeration and of pseudo-likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_EXPONENT = 700.0
"""exp of this is still a float64; the largest that is lies at 709.8."""


def softplus_sums(a: Tensor, b: Tensor) -> Tensor:
    """Σ_u log(1 + exp(a_nu + b_mu)) for every pair of rows, float64 ``[n, m]``; a ``[n, units]``, b ``[m, units]``.

    exp(a + b) = exp(a) exp(b), so a pair costs one multiplication and one fused multiply-add per unit, and one
    logarithm for as many units as a float64 holds the product of: several times faster than a softplus each, and
    exact to float64 rounding. Units whose fields leave the range of exp take the softplus itself.
    """
    total = a.new_zeros(a.shape[0], b.shape[0])
    product, factor = torch.ones_like(total), torch.empty_like(total)
    half = LARGEST_EXPONENT / 2
    narrow = ((a.abs().amax(0) < half) & (b.abs().amax(0) < half)).tolist()
    # log(1 + e^x) <= max(x, 0) + log 2 bounds what a unit adds to the exponent of the product
    growth = ((a.amax(0) + b.amax(0)).clamp(min=0) + math.log(2)).tolist()
    exp_a, exp_b = a.T.exp().contiguous(), b.T.exp().contiguous()
    room = LARGEST_EXPONENT
    for unit, (is_narrow, needed) in enumerate(zip(narrow, growth, strict=True)):
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
