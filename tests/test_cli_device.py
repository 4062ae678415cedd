"""The option --device: what it takes, what it refuses and why, and that recipes hand it on."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from bm_fast import DBM, RBM, ops
from bm_fast.cli import devices, main
from bm_fast.ops import native
from bm_fast.vae import VAE
from cli_calls import call

ROOT = Path(__file__).parents[1]
NO_TORCH = f"this PyTorch ({torch.__version__}) is built without CUDA"


NO_DRIVER = "no NVIDIA driver"


@pytest.fixture(params=[(f"none: {NO_DRIVER}", False), (f"none: {NO_DRIVER}", True), ("a GPU", False), ("a GPU", True)])
def here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Why GPU 0 cannot be used by kernels: the driver, PyTorch, both, or nothing; there is no GPU 1."""
    found, has_torch = request.param
    monkeypatch.setattr(native, "gpu", lambda index: found)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: has_torch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    reasons = [NO_DRIVER] * (found != "a GPU") + [NO_TORCH] * (not has_torch)
    return "; ".join(reasons) or None


def test_a_device_says_why_it_cannot_be_used(here: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert ops.why_not(torch.device("cpu")) is None
    assert ops.why_not(torch.device("cuda", 0)) == here
    if here is None:
        assert ops.why_not(torch.device("cuda", 1)) == "PyTorch finds no GPU number 1, it has 1"
    # autoencoders need PyTorch alone
    assert ops.why_not(torch.device("cuda", 0), kernels=False) == (None if torch.backends.cuda.is_built() else NO_TORCH)
    assert call(capsys, "info")[1]["device_cuda"] == (here or "usable")


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "vae", "compare"])
def test_a_gpu_that_is_not_there_is_refused_before_any_work(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "gpu", lambda index: "none: no NVIDIA driver")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([command, "digits", "--device", "cuda:1"])
    why = NO_TORCH if command == "vae" else f"{NO_DRIVER}; {NO_TORCH}"
    assert f"argument --device: cuda:1 cannot be used: {why}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", [RBM(3, 2), DBM([3, 2, 2]), VAE(3, [2], [[2]])], ids=["rbm", "dbm", "vae"])
def test_a_model_says_why_it_cannot_be_loaded_there(
    model: RBM | DBM | VAE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "gpu", lambda index: f"none: {NO_DRIVER}")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    model.save(tmp_path / "model.safetensors")
    why = NO_TORCH if isinstance(model, VAE) else f"{NO_DRIVER}; {NO_TORCH}"
    with pytest.raises(RuntimeError, match=re.escape(f"device: cuda:1 cannot be used: {why}")):
        type(model).load(tmp_path / "model.safetensors", device="cuda:1")


@pytest.mark.parametrize(("text", "device"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:12", "cuda:12")])
def test_names_of_devices(text: str, device: str) -> None:
    assert devices.parse(text) == torch.device(device)


@pytest.mark.parametrize("text", ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cpu:0", "CUDA"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"expected cpu, cuda or cuda:N, got {text!r}")):
        devices.parse(text)


@pytest.mark.parametrize(
    "script",
    [
        ("mnist.sh", "short"),
        ("iwae.sh", "full-2", "mnist", "50"),
        ("comparison.sh", "digits"),
        ("comparison.sh", "mnist"),
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("device", [["--device", "cuda:1"], ["--device=cuda:1"], []], ids=["two words", "one", "none"])
def test_recipes_hand_the_device_to_every_command(script: tuple[str, ...], device: list[str], tmp_path: Path) -> None:
    """Commands that only note their arguments take the place of the real ones."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "recipes").mkdir()
    for recipe in (ROOT / "recipes").glob("*.sh"):
        shutil.copy(recipe, tmp_path / "recipes")
    for name in ("bm-fast", "python"):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/said\n')
        command.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    name, *arguments = script
    words = [str(tmp_path / "recipes" / name), *arguments, *device, "--last", "3"]
    subprocess.run(words, env=environment, check=True)
    said = (tmp_path / "said").read_text().splitlines()
    assert len(said) >= (1 if name == "iwae.sh" else 4)
    assert all(line.count(" ".join(device)) == 1 for line in said if device)
    assert all(("--device" in line) == bool(device) for line in said)
    assert sum("--last 3" in line for line in said) == 1
    assert all("recipes/results" not in line for line in said)  # another setting makes a trial
    if name != "comparison.sh":  # which asks for the recipes' own runs where they are missing
        assert not (tmp_path / "recipes" / "results").exists()
