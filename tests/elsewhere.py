"""A second device for tests: its tensors lie on the processor, but mix with others no more than those of a GPU do.

Importing registers the device type ``elsewhere`` with torch, where it stays. Every operation on its tensors is torch's
own on the tensors that they wrap; one that gets a tensor of the processor as well raises, numbers of no dimension and
indices excepted, as on a GPU, and so does ``numpy()``. Addresses are those of the wrapped tensors, so that kernels
emulated on the host can serve the device; ``BACKEND`` serves it with the processor's own, which is faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from bm_fast.ops import cpu
from bm_fast.parameters import Parameters
from bm_fast.rungs import Rungs

_setup_privateuseone_for_python_backend("elsewhere")
torch.elsewhere.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]
DEVICE = torch.device("elsewhere", 0)

_ANYTHING, _ATEN = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_SIZED_LATER = ("arange", "arange.start", "arange.start_step", "eye", "eye.m")  # by torch, in a tensor made empty
_MIXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten._to_copy.default,
    torch.ops.aten.copy_.default,
    torch.ops.aten._copy_from.default,
}


_tensor = torch.tensor


class Generator(torch.Generator):
    """Takes the place of torch's: one of the processor serves any device."""

    def __new__(cls, device: object = None) -> Generator:
        return super().__new__(cls)


def tensor(data: Any, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Tensor:
    """Takes the place of torch's, which does not ask a device of Python's."""
    return _tensor(data, dtype=dtype).to(device)


class Elsewhere(Tensor):
    """A tensor of the device, around one of the processor."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        wrapper: Elsewhere = Tensor._make_wrapper_subclass(cls, held.size(), **layout, device=DEVICE)
        wrapper.held = held
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, *args, **(kwargs or {}))

    def __getitem__(self, index: Any) -> Any:
        parts = index if isinstance(index, tuple) else (index,)
        return super().__getitem__(tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts))

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Elsewhere({self.held})"


def _run(op: Any, *args: Any, **kwargs: Any) -> Any:
    """The operation on what tensors of the device wrap."""
    wrappers: dict[int, Elsewhere] = {}

    def inner(value: Any) -> Any:
        if isinstance(value, Elsewhere):
            wrappers[id(value.held)] = value
            return value.held
        if isinstance(value, Tensor) and value.dim() > 0 and op not in _MIXED:
            raise RuntimeError(f"{op}: expected all tensors to be on {DEVICE}, got one on {value.device}")
        return torch.device("cpu") if isinstance(value, torch.device) else value

    def outer(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        known = wrappers.get(id(value))
        return Elsewhere(value) if known is None else known

    target = kwargs.get("device")
    result = op(*tree_map(inner, args), **tree_map(inner, kwargs))
    if op is torch.ops.aten.copy_.default:  # onto either device
        return args[0]
    return result if target is not None and target.type == "cpu" else tree_map(outer, result)


_ANYTHING.fallback(_run, "PrivateUse1")
for _name in _SIZED_LATER:
    _overload = _name.partition(".")
    _ATEN.impl(
        _name, partial(_run, getattr(getattr(torch.ops.aten, _overload[0]), _overload[2] or "default")), "PrivateUse1"
    )


# --- operations on machines -----------------------------------------------------------------------------------------


class Served:
    """Functions of the processor's backend, or of a machine of it, for tensors of the device."""

    def __init__(self, of: Any) -> None:
        self._of = of

    @staticmethod
    def serves(device: torch.device) -> bool:
        return device == DEVICE

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._of, name)
        return lambda *args, **kwargs: _there(function(*_here(args), **_here(kwargs)))


def _moved(parameters: Parameters, move: Callable[[Any], Any]) -> Parameters:
    parts = {name: tuple(map(move, getattr(parameters, name))) for name in ("weights", "biases", "precisions")}
    return replace(parameters, **parts)


def _here(value: Any) -> Any:
    def move(part: Any) -> Any:
        if isinstance(part, Elsewhere):
            return part.held
        if isinstance(part, Rungs):
            return Rungs(*map(move, part.parts), part.round)
        return _moved(part, move) if isinstance(part, Parameters) else part

    return tree_map(move, value)


def _there(value: Any) -> Any:
    def move(part: Any) -> Any:
        if isinstance(part, Tensor):
            return Elsewhere(part)
        if isinstance(part, cpu.Machine):
            return Served(part)
        return _moved(part, move) if isinstance(part, Parameters) else part

    return tree_map(move, value)


BACKEND = Served(cpu)
