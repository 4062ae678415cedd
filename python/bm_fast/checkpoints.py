"""Checkpoint files: tensors and settings in one safetensors file, written so that a crash cannot damage the old one.

The metadata of the file holds the format version, what the file describes, the settings as JSON, and a SHA-256 sum of
all of it. Nothing is pickled: a checkpoint from a stranger can be wrong, but cannot run code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

FORMAT = 1
"""Version of the layout; a file of a newer version is refused."""


class CheckpointError(ValueError):
    """A file is not a checkpoint of bm_fast, is damaged, or does not fit what it is loaded into."""


def save(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Writes ``state`` atomically: a nested mapping of tensors, numbers, strings, lists and further mappings.

    The file appears under ``path`` complete or not at all; on any error (full disk, no permission) an older file of
    that name stays as it was. OSError says what the system refused, TypeError which entry cannot be stored.
    """
    tensors: dict[str, Tensor] = {}
    settings = json.dumps(_pack(state, "", tensors))
    metadata = {"bm_fast": str(FORMAT), "state": settings, "sha256": _digest(settings, tensors)}
    with replacing(path, "the checkpoint") as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata))


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], what: str) -> Iterator[Path]:
    """Gives the path of a temporary file, which takes the place of ``path`` once the block has written it.

    Whatever ends the block early, Ctrl-C included, removes the temporary file and leaves the old one as it was. An
    OSError is raised again with ``what`` and ``path`` in its message.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")  # writers may choose by the suffix
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"cannot save {what} ({reason})", str(path)) from error
        raise
    with contextlib.suppress(OSError):  # the file is in place; only its surviving a power cut is less certain
        _sync_folder(path.parent)


def load(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> dict[str, Any]:
    """The state that ``save`` wrote, its tensors on ``device``.

    FileNotFoundError, or CheckpointError for a damaged, truncated or foreign file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no checkpoint file {os.fspath(path)!r}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise CheckpointError(f"{os.fspath(path)!r} is damaged, truncated or no safetensors file: {error}") from error
    version = metadata.get("bm_fast")
    if version is None:
        raise CheckpointError(f"{os.fspath(path)!r} is a safetensors file, but no checkpoint of bm_fast")
    if not version.isdigit() or not 1 <= int(version) <= FORMAT:
        raise CheckpointError(f"{os.fspath(path)!r} has format {version}; this bm_fast reads formats up to {FORMAT}")
    settings = metadata.get("state", "")
    if metadata.get("sha256") != _digest(settings, tensors):
        raise CheckpointError(f"{os.fspath(path)!r} is damaged: its contents do not match their SHA-256 sum")
    state: dict[str, Any] = _unpack(json.loads(settings), {name: t.to(device) for name, t in tensors.items()})
    return state


def moved(value: Any, device: torch.device) -> Any:
    """An entry with all of its tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: moved(part, device) for name, part in value.items()}
    return type(value)(moved(part, device) for part in value) if isinstance(value, (list, tuple)) else value


def entry(state: Mapping[str, Any], name: str, path: str | os.PathLike[str]) -> Any:
    """``state[name]``, or a CheckpointError that says what the file lacks."""
    if name not in state:
        raise CheckpointError(f"{os.fspath(path)!r} holds no {name!r}, only {sorted(state)}")
    return state[name]


def same(a: Any, b: Any) -> bool:
    """Whether two values that ``save`` can store are equal, tensors bit by bit; lists count as tuples."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype is b.dtype and torch.equal(a.cpu(), b.cpu())
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def _pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """``value`` as JSON can hold it; tensors go to ``tensors`` under the path that leads to them."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        while where in tensors:  # {"a.b": ...} beside {"a": {"b": ...}}: the path is a name for readers, not an address
            where += "'"
        tensors[where] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": where}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_pack(item, f"{where}.{i}", tensors) for i, item in enumerate(value)]}
    if isinstance(value, Mapping):  # pairs, because JSON would turn the whole-number keys of optimisers into strings
        pairs = [[key, _pack(item, f"{where}.{key}" if where else str(key), tensors)] for key, item in value.items()]
        return {"mapping": pairs}
    raise TypeError(f"state[{where!r}]: a checkpoint cannot hold a {type(value).__name__}")


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "mapping":
        return {key: _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def _digest(settings: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(settings.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself survive a power cut, where the system allows it."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
