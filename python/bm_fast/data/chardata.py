"""The Omniglot images of Burda, Grosse and Salakhutdinov (2016): a MATLAB file that its authors publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SHUFFLE_SEED, _HELD_OUT = 123, 1345
_SIDE = 28


def read_chardata(path: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Grey levels of training, validation and test images, float32 ``[n, 784]``, split as the paper's program does.

    The training images are shuffled by numpy's ``RandomState(123)``, and the last 1,345 of them are held out. Images
    stand in the file column by column. ValueError says what is wrong with the file. ImportError: scipy reads MATLAB
    files, and is no dependency of this package.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(f"{path}: reading a MATLAB file needs scipy; install it with pip install scipy") from error
    try:
        content = loadmat(path, variable_names=["data", "testdata"])
    except Exception as error:  # scipy lets errors of many kinds through for damaged files
        raise ValueError(f"damaged, or no MATLAB file: {error}") from error
    train, test = _images("data", content, _HELD_OUT + 1), _images("testdata", content, 1)
    order = np.random.RandomState(_SHUFFLE_SEED).permutation(len(train))
    shuffled = train[torch.from_numpy(order)]
    return shuffled[:-_HELD_OUT], shuffled[-_HELD_OUT:], test


def _images(name: str, content: dict[str, Any], least: int) -> Tensor:
    if name not in content:
        raise ValueError(f"it holds no array {name!r}")
    array: NDArray[Any] = content[name]
    if array.ndim != 2 or array.shape[0] != _SIDE**2 or array.shape[1] < least:
        raise ValueError(f"{name}: expected [{_SIDE**2}, n] with n >= {least}, got {list(array.shape)}")
    if not np.issubdtype(array.dtype, np.number) or not (array.min() >= 0 and array.max() <= 1):
        raise ValueError(f"{name}: expected numbers from 0 to 1")
    by_column = array.T.astype(np.float32).reshape(-1, _SIDE, _SIDE)
    return torch.from_numpy(np.ascontiguousarray(by_column.transpose(0, 2, 1)).reshape(-1, _SIDE**2))
