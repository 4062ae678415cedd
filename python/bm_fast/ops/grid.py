"""Putting weights on the integer grid."""

from __future__ import annotations

import torch
from torch import Tensor

from bm_fast.ops.backends import backend
from bm_fast.ops.checks import check


def quantise(weight: Tensor, name: str = "weight") -> tuple[Tensor, int]:
    """``(W_q, f)`` of float32 weights: W_q = round(weight 2^f), int16, halves to even, on the finest grid that fits.

    ValueError for non-finite or too large weights.
    """
    check(name, weight, torch.float32, tuple(weight.shape), weight.device)
    return backend(name, weight).quantise(weight, name)
