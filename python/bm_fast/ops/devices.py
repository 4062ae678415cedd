"""Whether a device can be used, and why not."""

from __future__ import annotations

import torch

from bm_fast.ops import native


def why_not(device: torch.device, *, kernels: bool = True) -> str | None:
    """Why a GPU cannot be used, of the driver as of PyTorch; None where it can, and for all other devices.

    kernels: whether those of bm_fast are needed as well.
    """
    if device.type != "cuda":
        return None
    index = device.index or 0
    found = native.gpu(index) if kernels else ""
    reasons = [found.removeprefix("none: ")] if found.startswith("none: ") else []
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        reasons.append(f"this PyTorch ({torch.__version__}) is built without CUDA")
    elif not reasons and not torch.cuda.is_available():
        reasons.append("PyTorch finds no GPU")
    elif not reasons and index >= torch.cuda.device_count():
        reasons.append(f"PyTorch finds no GPU number {index}, it has {torch.cuda.device_count()}")
    return "; ".join(reasons) or None


def usable(device: torch.device | str, *, kernels: bool = True) -> torch.device:
    """The device itself; RuntimeError, with the reasons, where ``why_not`` has any."""
    device = torch.device(device)
    reasons = why_not(device, kernels=kernels)
    if reasons is not None:
        raise RuntimeError(f"device: {device} cannot be used: {reasons}")
    return device
