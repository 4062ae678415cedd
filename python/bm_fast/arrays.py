"""Rows of data at the user's edge: torch or numpy in, checked, and the same kind out."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bm_fast.graph import Kind, Layer

Array = TypeVar("Array", Tensor, NDArray[np.generic])
"""A torch tensor or a numpy array; a function that takes one gives back the same kind."""


def tensor(name: str, values: Tensor | NDArray[np.generic]) -> Tensor:
    """``values`` as a tensor that shares their memory; a read-only array is copied. ValueError for anything else."""
    if isinstance(values, Tensor):
        return values.detach()
    if isinstance(values, np.ndarray):
        if values.dtype not in (np.uint8, np.float32, np.bool_):
            raise ValueError(
                f"{name}: expected float32 or uint8, got {values.dtype}; convert it yourself, as in x.astype('float32')"
            )
        if not values.flags.c_contiguous:
            raise ValueError(f"{name}: expected a contiguous array, got strides {values.strides}")
        return torch.from_numpy(values if values.flags.writeable else values.copy())
    raise ValueError(f"{name}: expected a torch tensor or a numpy array, got {type(values).__name__}")


def given_kind(result: Tensor, values: Array) -> Array:
    """``result`` as numpy, without its gradient, where ``values`` is numpy."""
    return result.detach().cpu().numpy() if isinstance(values, np.ndarray) else result


def labels(
    name: str,
    values: Tensor | NDArray[np.generic],
    n: int,
    n_classes: int,
    device: torch.device,
    *,
    unknown: bool = False,
) -> Tensor:
    """Classes of n cases, int64 ``[n]`` on ``device``, checked: 0 to n_classes - 1, or -1 where ``unknown`` is allowed.

    A tensor must be on ``device``; a numpy array is copied to it. ValueError names the argument, what was expected and
    what came.
    """
    if not isinstance(values, (Tensor, np.ndarray)):
        raise ValueError(f"{name}: expected a torch tensor or a numpy array, got {type(values).__name__}")
    if values.dtype not in (torch.int64, np.int64) or tuple(values.shape) != (n,):
        raise ValueError(f"{name}: expected int64 [{n}], got {values.dtype} {list(values.shape)}")
    if n < 1:
        raise ValueError(f"{name}: expected at least one label, got none")
    checked = values.detach() if isinstance(values, Tensor) else torch.from_numpy(values.copy()).to(device)
    if checked.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, where the model is, got one on {checked.device}")
    low, high = (int(end) for end in torch.aminmax(checked))
    if low < (-1 if unknown else 0) or high >= n_classes:
        least = "-1 (unknown)" if unknown else "0"
        raise ValueError(f"{name}: expected {least} to {n_classes - 1}, got {low} to {high}")
    return checked


def one_hot(classes: Tensor, n_classes: int) -> Tensor:
    """States of a softmax layer that hold these classes, uint8 ``[n, n_classes]``; -1 turns no unit on."""
    return (classes[:, None] == torch.arange(n_classes, device=classes.device)).to(torch.uint8)


def rows(name: str, values: Tensor | NDArray[np.generic], layer: Layer, device: torch.device) -> Tensor:
    """Values of one layer, ``[n, units]``, checked: n >= 1, contiguous, in the units' range.

    Bernoulli layers take uint8 0/1, or float32 probabilities in [0, 1]; Gaussian layers finite float32. A tensor must
    be on ``device``; a numpy array is copied to it.
    ValueError names the argument, what was expected and what came.
    """
    checked = tensor(name, values)
    if isinstance(values, np.ndarray):
        checked = checked.to(device)
    dtypes = (torch.float32,) if layer.kind is Kind.GAUSSIAN else (torch.uint8, torch.float32)
    if checked.dtype not in dtypes:
        raise ValueError(
            f"{name}: expected {' or '.join(str(d) for d in dtypes)} for {layer.kind.name.capitalize()} units, "
            f"got {checked.dtype}"
        )
    if checked.dim() != 2 or checked.shape[0] < 1 or checked.shape[1] != layer.units:
        raise ValueError(f"{name}: expected shape [n, {layer.units}] with n >= 1, got {list(checked.shape)}")
    if checked.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, where the model is, got one on {checked.device}")
    if not checked.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {checked.stride()}")
    low, high = (float(end) for end in torch.aminmax(checked))  # NaN comes through and fails both comparisons
    if layer.kind is Kind.GAUSSIAN:
        if not (low > -float("inf") and high < float("inf")):
            raise ValueError(f"{name}: expected finite values, got {low} to {high}")
    elif not (low >= 0 and high <= 1):
        hint = "; divide grey levels by 255 first" if checked.dtype is torch.uint8 else ""
        raise ValueError(f"{name}: expected values from 0 to 1, got {low:g} to {high:g}{hint}")
    return checked
