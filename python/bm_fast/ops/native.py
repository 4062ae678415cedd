"""The only importer of the compiled module, and the choice between it and ``reference``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_why_missing: ImportError | None = None
try:
    from bm_fast import _C as _C
except ImportError as error:
    _C, _why_missing = None, error  # type: ignore[assignment]


def is_native() -> bool:
    """Whether the compiled module runs, as BM_FAST_BACKEND asks; ImportError where it is wanted and missing."""
    choice = os.environ.get("BM_FAST_BACKEND", "native")
    if choice not in ("native", "reference"):
        raise ValueError(f"BM_FAST_BACKEND: expected 'native' or 'reference', got {choice!r}")
    if choice == "native" and _C is None:
        raise ImportError(
            "the compiled module bm_fast._C cannot be loaded; reinstall, or set BM_FAST_BACKEND=reference"
        ) from _why_missing
    return choice == "native"


def address(tensor: Tensor | None) -> int:
    """Where a tensor begins; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def value_addresses(values: Sequence[Tensor]) -> list[tuple[int, bool]]:
    """Address of each tensor, and whether it is real."""
    return [(value.data_ptr(), value.dtype is torch.float32) for value in values]


def info() -> dict[str, Any]:
    """What runs here: backend, instruction sets (compiled, usable on this processor, in use) and GPU."""
    native = is_native()
    return {
        "backend": "native" if native else "reference",
        "isas_compiled": list(_C.compiled_isas()) if native else [],
        "isas_usable": list(_C.usable_isas()) if native else [],
        "isa": _C.isa() if native else None,
        "gpu": _C.gpu() if native else "none: plain torch",
    }
