"""Omniglot in two forms: the originals of Lake et al. (2015) as PNG files, and a MATLAB file of Burda et al. (2016)."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SHUFFLE_SEED, _HELD_OUT = 123, 1345
_SIDE = 28
_ORIGINAL_SIDE = 105


def average_originals(archives: Sequence[Path]) -> NDArray[np.uint8]:
    """Grey levels ``[n, 28, 28]``, 255 = full ink, of the drawings in zip files, in the order of their names' numbers.

    A name like 0709_03.png says which of the 1,623 characters it is, and which of its 20 drawers drew it. Each level is
    the exact average over an area of 3.75 x 3.75 pixels of the 105 x 105, white paper and black ink, rounded.
    ValueError says what is wrong with an archive.
    """
    from matplotlib.image import imread  # here and not above: it takes a third of a second

    found: dict[str, NDArray[np.uint8]] = {}
    for path in archives:
        try:
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".png"):
                        paper = imread(io.BytesIO(archive.read(name)), format="png")
                        found[PurePosixPath(name).stem] = _averages(paper)
        except Exception as error:  # zipfile, zlib and the reader of PNGs let errors of many kinds through
            raise ValueError(f"{path}: damaged, or no archive of drawings: {error}") from error
    if not found:
        raise ValueError(f"{' and '.join(map(str, archives))}: no PNG files in them")
    return np.stack([found[name] for name in sorted(found)])


def _averages(paper: NDArray[Any]) -> NDArray[np.uint8]:
    if paper.shape != (_ORIGINAL_SIDE, _ORIGINAL_SIDE):
        raise ValueError(f"expected images of {_ORIGINAL_SIDE} x {_ORIGINAL_SIDE}, got {list(paper.shape)}")
    ink = (paper < 0.5).astype(np.float32)
    quarters = _OVERLAPS @ ink @ _OVERLAPS.T  # whole numbers up to 15 * 15
    return np.rint(quarters * (255 / 225)).astype(np.uint8)


def _overlaps() -> NDArray[np.float32]:
    """How many quarters of each old pixel lie within each new one, ``[28, 105]``: a new one has 15."""
    new = np.arange(4 * _ORIGINAL_SIDE).reshape(_SIDE, 15)
    return np.stack([np.bincount(row // 4, minlength=_ORIGINAL_SIDE) for row in new]).astype(np.float32)


_OVERLAPS = _overlaps()


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
