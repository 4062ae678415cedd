"""The command line as a program: every command in a process of its own, exit codes, JSON, Ctrl-C."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast.cli import main
from bm_fast.cli.console import version
from bm_fast.rbm import RBM

COMMAND = [sys.executable, "-m", "bm_fast"]
TINY = ["--hidden", "6", "--batch-size", "300", "--chains", "10", "--threads", "1"]
PATIENCE = 120.0


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def result_of(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """The one JSON object on standard output."""
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert isinstance(result, dict)
    return result


def interrupted(tmp_path: Path, arguments: list[str], sign: str) -> tuple[str, float]:
    """Runs a command, presses Ctrl-C once its standard error holds ``sign``.

    Returns standard error, and the seconds until the command ended with 130.
    """
    log = tmp_path / "stderr"
    with log.open("w") as stream:
        process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=stream)
        try:
            give_up = time.monotonic() + PATIENCE
            while sign not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < give_up
                time.sleep(0.02)
            pressed = time.monotonic()
            process.send_signal(signal.SIGINT)
            process.wait(timeout=PATIENCE)
        finally:
            process.kill()
            process.wait()
    errors = log.read_text()
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    return errors, time.monotonic() - pressed


def test_the_way_from_training_to_a_likelihood(tmp_path):
    run_folder = tmp_path / "run"
    result = result_of(run("train", "digits", *TINY, "--epochs", 2, "--output", run_folder, "--json"))
    assert result["updates"] == 8
    text = run("sample", run_folder, "--sweeps", 20, "--output", tmp_path / "samples", "--threads", 1).stdout
    assert "samples.npy, samples.png" in text
    result = result_of(run("evaluate", run_folder, "--output", tmp_path / "evaluation", "--json"))
    assert result["method"] == "exact"
    done = run("evaluate", run_folder, "--output", tmp_path / "evaluation", code=2)
    assert done.stdout == ""
    assert done.stderr.startswith("bm-fast: ")


def test_demo_bench_and_wrong_usage(tmp_path):
    text = run("demo", "--hidden", 4, "--epochs", 1, "--output", tmp_path / "demo").stdout
    assert "Log-likelihood of 300 test digits" in text
    assert f"Written to {tmp_path / 'demo'}" in text
    run("frobnicate", code=2)
    if (Path(__file__).parents[1] / "bench" / "run.py").is_file():
        assert "--libraries" in run("bench", "--", "--help").stdout


def test_the_installed_script_is_the_same_command():
    script = shutil.which("bm-fast", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("bm_fast is not installed: no script bm-fast beside the interpreter")
    done = subprocess.run([script, "info", "--json"], capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert result_of(done)["version"] == version()


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["--help"]])
def test_a_reader_that_goes_away_is_no_error(arguments):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=PATIENCE, env=buffered
        )
    finally:
        os.close(writer)
    assert done.returncode == 0, done.stderr
    assert "Broken" not in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["frobnicate"]])
def test_what_needs_no_torch_does_not_wait_for_it(arguments):
    program = (
        "import sys; from bm_fast.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE).returncode == 0


def test_ctrl_c_while_torch_is_loaded(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(
        "import sys, time; print('loading', file=sys.stderr, flush=True); time.sleep(60)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    errors, seconds = interrupted(tmp_path, ["train", "digits", "--output", str(tmp_path / "run")], "loading")
    assert errors == "loading\nbm-fast: interrupted\n"
    assert seconds < 15
    assert not (tmp_path / "run").exists()


def test_training_interrupted_and_resumed_ends_at_the_same_bits(tmp_path):
    settings = ["train", "digits", *TINY, "--epochs", "60"]
    errors, seconds = interrupted(tmp_path, [*settings, "--output", str(tmp_path / "broken")], "epoch=1/60")
    assert seconds < 15  # mostly spent on the pictures
    assert f"go on with: bm-fast train --resume {tmp_path / 'broken'}" in errors
    curve = tmp_path / "broken" / "learning_curve.csv"
    assert len(curve.read_text().splitlines()) < 61
    assert main(["train", "--resume", str(tmp_path / "broken")]) == 0
    assert main([*settings, "--output", str(tmp_path / "whole")]) == 0
    broken, whole = (RBM.load(tmp_path / name / "checkpoint.safetensors") for name in ("broken", "whole"))
    for name, parameter in whole.named_parameters():
        assert torch.equal(parameter, dict(broken.named_parameters())[name]), name
    assert len(curve.read_text().splitlines()) == 61


def test_sampling_is_interrupted_soon_and_keeps_its_states(tmp_path):
    RBM(64, 30).save(tmp_path / "model.safetensors")
    out = tmp_path / "out"
    arguments = ["sample", str(tmp_path / "model.safetensors"), "--sweeps", "2000000000", "--output", str(out)]
    errors, seconds = interrupted(tmp_path, arguments, "sweep/s")
    assert seconds < 5
    assert "interrupted after" in errors
    assert np.load(out / "samples.npy").shape == (64, 64)


def test_demo_is_interrupted_and_keeps_what_it_learnt(tmp_path):
    out = tmp_path / "out"
    arguments = ["demo", "--hidden", "4", "--epochs", "1000000", "--output", str(out)]
    errors, seconds = interrupted(tmp_path, arguments, "epoch=1/")
    assert seconds < 15
    assert "interrupted in epoch" in errors
    assert RBM.load(out / "model.safetensors").n_hidden == 4
