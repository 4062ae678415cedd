"""Single operations of the CUDA kernels, emulated on the host, beside those of the processor."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import ops
from bm_fast.parameters import MAX_WEIGHT
from cuda_runner import ORDERS, operate


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- quantisation ----------------------------------------------------------------------------------------------------

WEIGHTS = {
    "one": torch.tensor([[-0.3]]),
    "zero": torch.zeros(3, 5),
    "small": normal(130, 65, scale=1e-7),
    "usual": normal(257, 70, scale=0.1),
    "many": normal(300, 131, scale=40.0),
    "halves": torch.cat((torch.arange(-300, 300) / 2, torch.tensor([0.75, MAX_WEIGHT - 1.0]))).view(43, 14),
    "largest": torch.tensor([[1.0, -MAX_WEIGHT], [0.5, 1.5]]),
    "largest of a finer grid": torch.tensor([[-1.0, 3.25, MAX_WEIGHT / 8]]),
    "beyond a finer grid": torch.tensor([[-1.0, 3.25, np.nextafter(np.float32(MAX_WEIGHT / 8), np.float32(1e9))]]),
}


def quantised(
    program: list[str], folder: Path, weights: Tensor, integers: Tensor, order: str
) -> tuple[float, int, bytes]:
    """The grid, whether the weights are refused, and whether both directions are those of the integers."""
    out = operate(program, folder, "quantise", *weights.shape, weights, integers, order=order)
    grid, refused = np.frombuffer(out, np.float32, 1)[0], np.frombuffer(out, np.uint32, 1, 4)[0]
    return float(grid), int(refused), bytes(out[8:])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_quantised_as_on_the_processor(plain: list[str], tmp_path: Path, name: str, order: str) -> None:
    integers, bits = ops.quantise(WEIGHTS[name])
    assert quantised(plain, tmp_path, WEIGHTS[name], integers, order) == (2.0**-bits, 0, b"\1\1")


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan, MAX_WEIGHT + 1.0])
def test_weights_that_do_not_fit_are_reported(plain: list[str], tmp_path: Path, wrong: float) -> None:
    weights = normal(30, 20)
    weights[29, 18] = wrong
    assert quantised(plain, tmp_path, weights, torch.zeros(30, 20, dtype=torch.int16), "fair")[1] == 1


def test_sanitizers_find_nothing_in_quantisation(sanitized: list[str], tmp_path: Path) -> None:
    integers, bits = ops.quantise(WEIGHTS["usual"])
    assert quantised(sanitized, tmp_path, WEIGHTS["usual"], integers, "random:3") == (2.0**-bits, 0, b"\1\1")
