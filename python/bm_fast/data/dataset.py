"""A data set in memory, and how its grey levels become binary units."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "valid", "test")
_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (or any vectors) in up to three splits.

    train, valid, test: ``[n, units]``, uint8 0/1 (binary) or float32 in [0, 1] (grey levels); None for a missing split.
    train_labels, valid_labels, test_labels: int64 ``[n]`` or None.
    shape: ``(rows, columns)`` of one image, row by row along the units; None where the units are no image.
    protocol: "dynamic" (grey levels are probabilities, sampled anew at each presentation), "fixed-sample" (sampled once
    with a seed), "fixed-larochelle" (the files of Larochelle and Murray), or "binary" (binary at the source); where
    figures depend upon more than that, in brackets upon what. Likelihoods compare only within one protocol.
    """

    name: str
    train: Tensor
    valid: Tensor | None
    test: Tensor | None
    shape: tuple[int, int] | None
    protocol: str
    train_labels: Tensor | None = None
    valid_labels: Tensor | None = None
    test_labels: Tensor | None = None

    @property
    def n_units(self) -> int:
        return self.train.shape[1]

    def split(self, name: str) -> Tensor:
        """The images of "train", "valid" or "test"; ValueError where the data set has no such split."""
        if name not in SPLITS:
            raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {name!r}")
        images: Tensor | None = getattr(self, name)
        if images is None:
            raise ValueError(f"split: data {self.name!r} has no {name} split")
        return images

    def with_validation(self) -> Dataset:
        """Validation rows and labels join those of training, behind them, and leave no validation split."""
        train = torch.cat([self.train, self.split("valid")])
        labels = self.train_labels
        if labels is not None and self.valid_labels is not None:
            labels = torch.cat([labels, self.valid_labels])
        return replace(self, train=train, train_labels=labels, valid=None, valid_labels=None)

    def to(self, device: torch.device | str) -> Dataset:
        """This data set with all of its tensors on a device."""
        moved: dict[str, Any] = {n: value.to(device) for n, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def binarised(self, seed: int = 0) -> Dataset:
        """This data set by the protocol "fixed-sample": every split sampled once, each from its own random numbers."""
        if self.train.dtype is torch.uint8:
            raise ValueError(f"binarised: data {self.name!r} is binary already (protocol {self.protocol!r})")
        valid = None if self.valid is None else binarise(self.valid, seed, 1)
        test = None if self.test is None else binarise(self.test, seed, 2)
        protocol = self.protocol.replace("dynamic", f"fixed-sample, seed {seed}", 1)
        return replace(self, protocol=protocol, train=binarise(self.train, seed, 0), valid=valid, test=test)


def binarise(grey: Tensor, seed: int = 0, stream: int = 0) -> Tensor:
    """Samples each unit once with its grey level as the probability of 1; uint8 of the same shape.

    grey: float32 ``[n, units]`` in [0, 1]. The result depends on (grey, seed, stream) alone: uniform numbers are
    the top 24 bits of successive words of Philox4x64-10 with key (seed, stream), and a unit is 1 where its number is
    below its grey level.
    """
    if grey.dtype is not torch.float32 or grey.dim() != 2:
        raise ValueError(f"grey: expected float32 [n, units], got {grey.dtype} {list(grey.shape)}")
    if not bool(((grey >= 0) & (grey <= 1)).all()):
        raise ValueError(f"grey: expected values from 0 to 1, got {float(grey.min())} to {float(grey.max())}")
    for name, value in (("seed", seed), ("stream", stream)):
        if not 0 <= value < 2**64:
            raise ValueError(f"{name}: expected 0 to 2^64 - 1, got {value}")
    words = np.random.Philox(key=np.array([seed, stream], dtype=np.uint64))
    binary = torch.empty(grey.shape, dtype=torch.uint8)
    for start in range(0, len(grey), _ROWS_AT_A_TIME):
        part = grey[start : start + _ROWS_AT_A_TIME]
        uniform = (words.random_raw(part.numel()) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        binary[start : start + len(part)] = torch.from_numpy(uniform).view(part.shape) < part.cpu()
    return binary.to(grey.device)
