"""Data of the user's own: a .npy file with one array, or a .npz file with one array per split."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bm_fast.data.dataset import SPLITS, Dataset

_LABELS = tuple(f"{split}_labels" for split in SPLITS)


def load_file(path: str | os.PathLike[str]) -> Dataset:
    """Loads a .npy file (the training split) or a .npz file with ``train`` and, where wanted, ``valid`` and ``test``.

    Images are ``[n, units]`` or ``[n, rows, columns]``: bool or uint8 with values 0 and 1 (protocol "binary"), or
    float32 or float64 from 0 to 1 (grey levels, held as float32; protocol "dynamic"). A .npz file may hold labels as
    well: ``train_labels`` ..., whole numbers ``[n]``. ValueError names the file, the array, what was expected and what
    came. Pickled objects are refused.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{path}: expected a .npy or .npz file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open("rb") as stream:
            if not stream.read(6).startswith((b"\x93NUMPY", b"PK")):  # which numpy takes for a pickle
                raise ValueError("the content is neither that of a .npy nor that of a .npz")
            stream.seek(0)
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray) != (path.suffix == ".npy"):
                raise ValueError("the content is that of a .npy with the name of a .npz, or the other way round")
            arrays = {"train": loaded} if path.suffix == ".npy" else {key: loaded[key] for key in loaded.files}
    except Exception as error:  # numpy, zipfile and zlib let errors of many kinds through for damaged files
        raise ValueError(f"{path}: damaged, or not a numpy file of plain numbers: {error}") from error
    unknown = set(arrays) - set(SPLITS) - set(_LABELS)
    if "train" not in arrays or unknown:
        known, got = ", ".join(SPLITS + _LABELS), ", ".join(arrays) or "none"
        raise ValueError(f"{path}: expected an array 'train' and others out of {known}, got {got}")
    images = {split: _images(f"{path}: {split}", arrays[split]) for split in SPLITS if split in arrays}
    train = images["train"]
    for split, other in images.items():
        if other.shape[1] != train.shape[1] or other.dtype is not train.dtype:
            raise ValueError(
                f"{path}: {split}: expected {train.dtype} with {train.shape[1]} units as in train, "
                f"got {other.dtype} with {other.shape[1]}"
            )
    labels = {}
    for split, key in zip(SPLITS, _LABELS, strict=True):
        if key in arrays:
            if split not in images:
                raise ValueError(f"{path}: {key}: labels without images; expected an array {split!r} as well")
            labels[key] = _labels(f"{path}: {key}", arrays[key], len(images[split]))
    shape = arrays["train"].shape[1:] if arrays["train"].ndim == 3 else None
    protocol = "binary" if train.dtype is torch.uint8 else "dynamic"
    return Dataset(path.name, train, images.get("valid"), images.get("test"), shape, protocol, **labels)


def _images(name: str, array: NDArray[Any]) -> Tensor:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ValueError(f"{name}: expected [n, units] or [n, rows, columns] without zeros, got {list(array.shape)}")
    if array.dtype == np.bool_:
        array = array.view(np.uint8)
    if array.dtype not in (np.uint8, np.float32, np.float64):
        raise ValueError(f"{name}: expected bool, uint8, float32 or float64, got {array.dtype}")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 1):  # NaN fails as well
        expected = "0 or 1; divide grey levels by 255" if array.dtype == np.uint8 else "from 0 to 1"
        raise ValueError(f"{name}: expected values {expected}, got {low} to {high}")
    flat = np.ascontiguousarray(array.reshape(len(array), -1))
    return torch.from_numpy(flat if array.dtype == np.uint8 else flat.astype(np.float32))


def _labels(name: str, array: NDArray[Any], n: int) -> Tensor:
    if array.shape != (n,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name}: expected {n} whole numbers, got {array.dtype} {list(array.shape)}")
    return torch.from_numpy(array.astype(np.int64))
