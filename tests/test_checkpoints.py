"""Checkpoint files: what goes in comes back, damage is noticed, and nothing that fails costs the old file."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bm_fast import checkpoints
from bm_fast.checkpoints import CheckpointError

STATE: dict[str, Any] = {
    "numbers": {"step": 3, "seed": 2**64 - 1, "rate": 0.1, "flag": True, "nothing": None, "text": "σ"},
    "state": {0: {"momentum": torch.arange(6.0).reshape(2, 3)}, 1: {"momentum": None}},
    "tuple": (1, [2.5, (torch.tensor(7),)]),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "empty": torch.zeros(0, 3),
    "nested": {"bytes": torch.ones(2, dtype=torch.bool)},
}


def same(a: Any, b: Any) -> bool:
    """Equality that tells tuples from lists, whole from real numbers, and looks into tensors."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A checkpoint that is there already."""
    path = tmp_path / "run.safetensors"
    checkpoints.save(path, {"old": torch.ones(3)})
    return path


def assert_untouched(path: Path) -> None:
    assert torch.equal(checkpoints.load(path)["old"], torch.ones(3))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_everything_comes_back(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a", STATE)
    assert same(checkpoints.load(tmp_path / "a"), STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_numbers_that_are_no_ordinary_json(tmp_path: Path) -> None:
    checkpoints.save(tmp_path / "a", {"inf": math.inf, "nan": math.nan, "tiny": 5e-324})
    back = checkpoints.load(tmp_path / "a")
    assert back["inf"] == math.inf
    assert math.isnan(back["nan"])
    assert back["tiny"] == 5e-324


def test_views_of_one_memory_are_stored_apart(tmp_path: Path) -> None:
    memory = torch.arange(12.0).reshape(3, 4)
    checkpoints.save(tmp_path / "a", {"rows": memory[1:], "columns": memory[:, 1], "all": memory})
    back = checkpoints.load(tmp_path / "a")
    assert torch.equal(back["rows"], memory[1:])
    assert torch.equal(back["columns"], memory[:, 1])


def test_keys_with_dots_do_not_collide(tmp_path: Path) -> None:
    one, two, three = torch.ones(2), torch.zeros(3), torch.arange(4)
    state = {"a.b": one, "a": {"b": two}, "": {"a": {"b": three}}, 1: one, "1": two}
    checkpoints.save(tmp_path / "a", state)
    assert same(checkpoints.load(tmp_path / "a"), state)


def test_a_new_file_replaces_the_old_one(old: Path) -> None:
    checkpoints.save(old, {"new": 1})
    assert checkpoints.load(old) == {"new": 1}


# --- damage -----------------------------------------------------------------------------------------------------------


def test_every_damaged_byte_is_noticed(old: Path) -> None:
    good = old.read_bytes()
    for position in range(len(good)):
        old.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        with pytest.raises(CheckpointError):
            checkpoints.load(old)


def test_every_truncation_is_noticed(old: Path) -> None:
    good = old.read_bytes()
    for length in range(len(good)):
        old.write_bytes(good[:length])
        with pytest.raises(CheckpointError, match="damaged, truncated"):
            checkpoints.load(old)


def test_foreign_files_are_named_as_such(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="no checkpoint of bm_fast"):
        checkpoints.load(tmp_path / "foreign")
    save_file({"weight": torch.ones(2)}, tmp_path / "newer", {"bm_fast": str(checkpoints.FORMAT + 1)})
    with pytest.raises(CheckpointError, match="has format 2; this bm_fast reads formats up to 1"):
        checkpoints.load(tmp_path / "newer")
    (tmp_path / "text").write_text("not a checkpoint at all, but long enough to have a header")
    with pytest.raises(CheckpointError, match="no safetensors file"):
        checkpoints.load(tmp_path / "text")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        checkpoints.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        checkpoints.load(tmp_path)


# --- failing to save --------------------------------------------------------------------------------------------------


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Makes the system refuse longer files, as a full disk refuses them: in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_costs_nothing(old: Path) -> None:
    with largest_file(10_000), pytest.raises(OSError, match=r"cannot save the checkpoint .*run\.safetensors"):
        checkpoints.save(old, {"new": torch.zeros(10_000)})
    assert_untouched(old)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_errors_of_the_system_cost_nothing(call: str, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(PermissionError, match=r"cannot save the checkpoint \(Permission denied\)"):
        checkpoints.save(old, {"new": 1})
    monkeypatch.undo()
    assert_untouched(old)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_ctrl_c_while_saving_costs_nothing(call: str, old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(old, {"new": 1})
    monkeypatch.undo()
    assert_untouched(old)


def test_a_file_in_place_is_saved_even_if_its_folder_cannot_be_synchronised(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checkpoints, "_sync_folder", refuse)
    checkpoints.save(old, {"new": 1})
    assert checkpoints.load(old) == {"new": 1}


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_without_permission(mode: int, old: Path) -> None:
    user = os.geteuid()
    old.parent.chmod(mode)
    if user == 0:  # root may write everywhere
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=r"cannot save the checkpoint \(Permission denied\)"):
            checkpoints.save(old, {"new": 1})
    finally:
        if user == 0:
            os.seteuid(0)
        old.parent.chmod(0o700)
    assert_untouched(old)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot save the checkpoint .*absent/run"):
        checkpoints.save(tmp_path / "absent" / "run", {"new": 1})


def test_what_cannot_be_stored_is_named(old: Path) -> None:
    with pytest.raises(TypeError, match=r"state\['a.b.1'\]: a checkpoint cannot hold a function"):
        checkpoints.save(old, {"a": {"b": [1, lambda: 0]}})
    assert_untouched(old)


def test_all_tensors_of_an_entry_move_together() -> None:
    state = {"a": [torch.zeros(2), 3, None], "b": {"c": (torch.ones(1), "text")}}
    moved = checkpoints.moved(state, torch.device("meta"))
    assert [type(moved["a"]), type(moved["b"]["c"])] == [list, tuple]
    assert moved["a"][0].is_meta
    assert moved["b"]["c"][0].is_meta
    assert (moved["a"][1:], moved["b"]["c"][1]) == ([3, None], "text")
