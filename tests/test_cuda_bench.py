"""bench/gpu.py and gpu.sh without a GPU: the whole table, at small sizes, with emulated kernels and no recordings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cuda_devices import Gpu, emulation, gpu
from cuda_runner import ROOT

__all__ = ["emulation", "gpu"]  # fixtures

SMALL = {
    "DEVICE": "cpu",
    "PRODUCT_SIZE": 8,
    "COPY_SIZE": 64,
    "SWEEPS": (((20, 9), 3), ((9, 5, 4), 2)),
    "MEAN_FIELD_UNITS": (9, 5, 4),
    "MEAN_FIELD_CASES": 3,
    "MEAN_FIELD_ITERATIONS": 2,
    "EPOCH_ROWS": 20,
    "EPOCH_HIDDEN": 5,
    "EPOCH_BATCH": 10,
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> object:
    """The module, with small sizes and torch's part of CUDA replaced by nothing."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import gpu as bench  # type: ignore[import-not-found]
    import timing  # type: ignore[import-not-found]

    for name, value in SMALL.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(timing, "REST", 0.0)
    monkeypatch.setattr(timing, "MAX_REPETITIONS", 1)
    stream = SimpleNamespace(wait_stream=lambda _other: None)
    for name, replaced in {
        "Stream": lambda: stream,
        "current_stream": lambda: stream,
        "stream": lambda _stream: nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None),
        "graph": lambda _graph: nullcontext(),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "get_device_name": lambda: "no GPU",
    }.items():
        monkeypatch.setattr(torch.cuda, name, replaced)
    monkeypatch.setattr(torch, "compile", lambda work, dynamic: work)
    return bench


@pytest.mark.parametrize("gpu", ["emulated"], indirect=True)
def test_the_table_is_made_and_saved(
    gpu: Gpu, bench: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "new" / "result.json")])
    with gpu:
        status = bench.main()  # type: ignore[attr-defined]
    said = capsys.readouterr().out
    assert status == 0, said
    saved = json.loads((tmp_path / "new" / "result.json").read_text())
    assert saved["device"] == "no GPU"
    made = {(row["task"], row["contender"]) for row in saved["rows"]}
    assert len(made) == len(saved["rows"]) == 4 + 6 + 2 * 7
    assert all(row["ms"] > 0 for row in saved["rows"])
    assert {task for task, name in made if name == "bm_fast"} == {task for task, _ in made}


@pytest.mark.parametrize("gpu", ["emulated"], indirect=True)
def test_what_fails_is_named_and_stops_nothing(
    gpu: Gpu, bench: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path / "result.json")])
    monkeypatch.setattr(bench, "epoch", fails)
    monkeypatch.setattr(torch, "compile", fails)
    with gpu:
        assert bench.main() == 1  # type: ignore[attr-defined]
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    errors = {(row["task"], row.get("contender")): row["error"] for row in rows if "error" in row}
    names = ["20-9, 3 chains", "9-5-4, 2 chains"]
    assert errors == {
        ("epoch", None): "RuntimeError: out of order",
        **{(name, "torch.compile fp32"): "RuntimeError: out of order" for name in names},
    }
    assert len(rows) == 1 + 6 + 2 * 7


# --- bench/gpu.sh -----------------------------------------------------------------------------------------------------


def script(*arguments: str, cwd: Path, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    """Its run where torch sees no GPU, whether there is one or not."""
    words = ["bash", str(ROOT / "bench" / "gpu.sh"), *arguments]
    hidden = {**os.environ, "PYTHON": python, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=hidden)


def test_the_script_explains_itself(tmp_path: Path) -> None:
    told = script("--help", cwd=tmp_path)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("Builds, tests, times")
    assert "bench/gpu.sh [result.json]" in told.stdout
    assert "pipefail" not in told.stdout
    refused = script("--fast", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "expected a file for the result, got --fast" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_the_script_says_that_there_is_no_gpu_before_it_builds(tmp_path: Path) -> None:
    refused = script(str(tmp_path / "new" / "result.json"), cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert re.fullmatch(r"bench/gpu\.sh: .* cannot use a GPU: \w+Error: [^\n]+\n", refused.stderr)
    assert not list(tmp_path.iterdir())


def test_a_build_that_fails_is_named_by_the_script(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ]\n')  # torch finds a GPU, pip fails
    python.chmod(0o755)
    failed = script(str(tmp_path / "result.json"), cwd=tmp_path, python=str(python))
    assert failed.returncode == 1
    assert failed.stdout.splitlines()[-1] == "failed: build"
    assert (tmp_path / "result.log").read_text() == failed.stdout
