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


def gradient(
    visible: Tensor,
    means: Tensor,
    signs: Tensor,
    phases: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Writes the gradient of an RBM, ordinary or centred, to ``out``: of weight, visible bias and hidden bias.

    With s, v and m the sign, states and hidden means of a row, μ and λ the offsets (zero where there are none), and d
    the difference of the means of both phases:

        g_W = Σ s v (m - λ)ᵀ - μ d_hᵀ    g_b = d_v - Σ s p (v - μ)    g_c = d_h - Σ s q (m - λ)
        with  p = (m - λ)·λ  and  q = (v - μ)·μ  of each row, so that the sums are g_W λ and g_Wᵀ μ

    visible: uint8 0/1 or float32 ``[n, n_visible]``. means: float32 ``[n, n_hidden]``. signs: float32 ``[n]``, which
    add up to 0. phases: float32 ``[2, n_visible]`` and ``[2, n_hidden]``, means of data and model. offsets: float32
    ``[n_visible]`` and ``[n_hidden]``. The same bits everywhere on the CPU; on CUDA devices, those of centring differ
    by roundings.
    """
    check_matrix("visible", visible)
    check_matrix("means", means)
    (n, n_visible), n_hidden, device = visible.shape, means.shape[1], visible.device
    check("visible", visible, (torch.uint8, torch.float32), (n, n_visible), device)
    shapes = ((n_visible,), (n_hidden,))
    named = [("means", means, (n, n_hidden)), ("signs", signs, (n,))]
    named += [(f"phases[{i}]", phase, (2, *shapes[i])) for i, phase in enumerate(phases)]
    named += [(f"offsets[{i}]", offset, shapes[i]) for i, offset in enumerate(offsets or ())]
    named += [
        (f"out[{i}]", to, shape)
        for i, (to, shape) in enumerate(zip(out, ((n_visible, n_hidden), *shapes), strict=True))
    ]
    for name, tensor, shape in named:
        check(name, tensor, torch.float32, shape, device)
    backend("visible", visible).gradient(visible, means, signs, phases, offsets, out)
