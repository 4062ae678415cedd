"""Putting weights on the integer grid."""

from __future__ import annotations

import torch
from torch import Tensor

from bm_fast import reference
from bm_fast.ops.checks import check, require_cpu
from bm_fast.ops.native import _C, is_native
from bm_fast.parameters import fraction_bits


def quantise(weight: Tensor, name: str = "weight") -> tuple[Tensor, int]:
    """``(W_q, f)`` of float32 weights: W_q = round(weight 2^f), int16, halves to even, on the finest grid that fits.

    ValueError for non-finite or too large weights.
    """
    require_cpu(name, weight)
    check(name, weight, torch.float32, tuple(weight.shape), weight.device)
    if not is_native():
        return reference.quantise(weight, name)
    threads = torch.get_num_threads()
    bits = fraction_bits(_C.largest_weight(weight.data_ptr(), weight.numel(), threads), name)
    out = torch.empty_like(weight, dtype=torch.int16)
    _C.quantise(weight.data_ptr(), weight.numel(), bits, out.data_ptr(), threads)
    return out, bits
