"""Random draws that need no machine."""

from __future__ import annotations

import torch
from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.ops.backends import backend
from bm_fast.ops.checks import MAX_SEED, MAX_WORD, check, check_matrix, may_look
from bm_fast.reference import Purpose


def bernoulli(
    probabilities: Tensor,
    rows: Tensor,
    out: Tensor | None = None,
    *,
    seed: int,
    sweep: int = 0,
    layer: int = 0,
    purpose: Purpose = Purpose.BINARISE,
    are_known: bool = False,
) -> Tensor:
    """Draws uint8 0/1 with the given probabilities, float32 ``[n, units]``.

    rows: int64 ``[n]`` from 0 to 2^32 - 1, the chain part of the random counter: a row of data keeps its numbers in
    any batch. ValueError for rows out of range, and for probabilities that are not between 0 and 1.
    are_known: the caller has seen that they are, so nothing waits for a GPU.
    """
    check_matrix("probabilities", probabilities)
    chosen = backend("probabilities", probabilities)
    shape, device = tuple(probabilities.shape), probabilities.device
    check("probabilities", probabilities, torch.float32, shape, device)
    check("rows", rows, torch.int64, (shape[0],), device)
    seed = whole_number("seed", seed, 0, MAX_SEED)
    sweep = whole_number("sweep", sweep, 0, MAX_WORD)
    layer = whole_number("layer", layer, 0, 2**16 - 1)
    out = torch.empty(shape, dtype=torch.uint8, device=device) if out is None else out
    check("out", out, torch.uint8, shape, device)
    if out.numel() and not are_known and may_look(device):
        first, last = (int(row) for row in rows.aminmax())
        if not (first >= 0 and last <= MAX_WORD):
            raise ValueError(f"rows: expected 0 to {MAX_WORD}, got {first} to {last}")
        low, high = (float(p) for p in probabilities.aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(f"probabilities: expected values from 0 to 1, got {low} to {high}")
    chosen.bernoulli(probabilities, rows, out, seed=seed, sweep=sweep, layer=layer, purpose=purpose)
    return out
