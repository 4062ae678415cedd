"""What arguments must be: each check raises ValueError with the name of the argument, and none converts anything."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SEED = 2**64 - 1
MAX_WORD = 2**32 - 1  # of the random counter


def may_look(device: torch.device) -> bool:
    """Whether numbers on a device can be looked at now: while a CUDA graph is recorded there are none yet."""
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def check(
    name: str,
    tensor: Tensor,
    dtypes: torch.dtype | tuple[torch.dtype, ...],
    shape: tuple[int, ...],
    device: torch.device,
) -> None:
    """ValueError, naming the argument, unless the tensor is contiguous and of this dtype, shape and device."""
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,)
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: expected a torch tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes or tensor.shape != shape or tensor.device != device or not tensor.is_contiguous():
        raise ValueError(
            f"{name}: expected a contiguous {' or '.join(str(d) for d in dtypes)} tensor {list(shape)} on {device}, "
            f"got {'' if tensor.is_contiguous() else 'non-contiguous '}{tensor.dtype} {list(tensor.shape)} "
            f"on {tensor.device}"
        )


def check_matrix(name: str, tensor: Tensor) -> None:
    """ValueError unless a tensor has two dimensions."""
    if not isinstance(tensor, Tensor) or tensor.dim() != 2:
        got = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name}: expected a torch tensor of two dimensions, got {got}")
