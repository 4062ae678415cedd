"""Sums over chains, which gradients are made of."""

from __future__ import annotations

import torch
from torch import Tensor

from bm_fast.ops.backends import backend
from bm_fast.ops.checks import check, check_matrix


def statistics(lower: Tensor, upper: Tensor, out: Tensor | None = None) -> Tensor:
    """Σ over chains of lowerᵀ upper, float32 ``[units of lower, units of upper]``, the same bits on every backend.

    lower, upper: uint8 0/1 or float32 ``[n_chains, units]``. Chains are added in order, one fma each.
    """
    both = (torch.uint8, torch.float32)
    check_matrix("lower", lower)
    check_matrix("upper", upper)
    chosen = backend("lower", lower)
    check("lower", lower, both, tuple(lower.shape), lower.device)
    check("upper", upper, both, (lower.shape[0], upper.shape[1]), lower.device)
    shape = (lower.shape[1], upper.shape[1])
    out = torch.empty(shape, device=lower.device) if out is None else out
    check("out", out, torch.float32, shape, lower.device)
    chosen.statistics(lower, upper, out)
    return out
