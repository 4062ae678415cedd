"""The only importer of the compiled modules: which there are, which runs, and how arguments are passed to them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bm_fast.parameters import Parameters
from bm_fast.program import Program
from bm_fast.rungs import Rungs

_why_missing: ImportError | None = None
try:
    from bm_fast import _C as _C
except ImportError as error:
    _C, _why_missing = None, error  # type: ignore[assignment]

PlainProgram = list[list[tuple[int, list[tuple[int, bool, float]]]]]


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


def cuda_module() -> Any:
    """The compiled module for GPUs; None where the package was built without CUDA."""
    try:
        from bm_fast import _cuda
    except ImportError:
        return None
    return _cuda


def gpu(device: int) -> str:
    """What a CUDA device is, or "none: " and why the kernels cannot run on it."""
    if not is_native():
        return "none: plain torch"
    compiled = cuda_module()
    return "none: built without CUDA" if compiled is None else str(compiled.gpu(device))


def info() -> dict[str, Any]:
    """What runs here: backend, instruction sets (compiled, usable on this processor, in use) and GPU."""
    native = is_native()
    return {
        "backend": "native" if native else "reference",
        "isas_compiled": list(_C.compiled_isas()) if native else [],
        "isas_usable": list(_C.usable_isas()) if native else [],
        "isa": _C.isa() if native else None,
        "gpu": gpu(_current_gpu()),
    }


def _current_gpu() -> int:
    """torch's, without waking its driver."""
    return torch.cuda.current_device() if torch.cuda.is_initialized() else 0  # type: ignore[no-untyped-call]


# --- arguments --------------------------------------------------------------------------------------------------------


def address(tensor: Tensor | None) -> int:
    """Where a tensor begins; 0 for None."""
    return 0 if tensor is None else tensor.data_ptr()


def addresses(tensors: Sequence[Tensor] | None) -> list[int]:
    """Where each tensor begins; nothing for None."""
    return [] if tensors is None else [tensor.data_ptr() for tensor in tensors]


def rung_addresses(rungs: Rungs) -> tuple[int, int, int, int, int]:
    """Where each tensor begins, in the order of the fields."""
    a, b, c, d, e = addresses(rungs.parts)
    return a, b, c, d, e


def value_addresses(values: Sequence[Tensor]) -> list[tuple[int, bool]]:
    """Address of each tensor, and whether it is real."""
    return [(value.data_ptr(), value.dtype is torch.float32) for value in values]


def plain(program: Program) -> PlainProgram:
    """A program in tuples."""
    return [[update.plain for update in block] for block in program]


def plain_layers(parameters: Parameters) -> list[tuple[str, int, int, int, int]]:
    """Layers in tuples: name, units, kind, address of biases and of precisions."""
    return [
        (layer.name, layer.units, int(layer.kind), address(bias), address(precision))
        for layer, bias, precision in zip(
            parameters.graph.layers, parameters.biases, parameters.precisions, strict=True
        )
    ]
