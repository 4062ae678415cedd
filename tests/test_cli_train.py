"""The command train: what it writes, refuses, resumes and never loses."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast.cli import console, evaluate, main, sample, vae
from bm_fast.cli.learning import optimiser
from bm_fast.cli.train import DEFAULTS
from bm_fast.data import NAMES, load
from bm_fast.rbm import RBM
from bm_fast.training import ProgressBar, Trainer
from cli_calls import TINY, call, snapshot


def test_train_writes_all_that_it_names(tmp_path, capsys):
    code, result, errors = call(capsys, "train", "digits", *TINY, "--output", tmp_path / "run")
    assert code == 0
    assert sorted(result["files"]) == sorted(str(path) for path in (tmp_path / "run").iterdir())
    assert {Path(f).name for f in result["files"]} == {
        "checkpoint.safetensors",
        "configuration.json",
        "learning_curve.csv",
        "learning_curve.png",
        "filters.png",
    }
    assert str(tmp_path / "run") in errors
    configuration = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert configuration["settings"] == result["settings"]
    assert configuration["settings"]["hidden"] == [8]
    assert configuration["data"] == {
        "name": "digits",
        "protocol": "dynamic",
        "shape": [8, 8],
        "rows": {"train": 1197, "valid": 300, "test": 300},
    }
    assert configuration["version"] == console.version()
    with (tmp_path / "run" / "learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["update"] for row in rows] == ["3", "6"]
    assert float(rows[1]["pseudo_log_likelihood_valid"]) == result["last"]["pseudo_log_likelihood_valid"]
    assert math.isfinite(float(rows[1]["free_energy_gap"]))


def test_train_on_data_of_ones_own_and_with_every_option(tmp_path, capsys):
    np.save(tmp_path / "own.npy", np.random.default_rng(0).integers(0, 2, (50, 12), dtype=np.uint8))
    code, result, _ = call(
        capsys,
        *("train", tmp_path / "own.npy", "--hidden", 3, "--estimator", "cd", "--sweeps", 2, "--epochs", 2),
        *("--batch-size", 20, "--learning-rate", 0.01, "--schedule", "hyperbolic", "--momentum", 0.5),
        *("--weight-decay", 0.001, "--no-centred", "--seed", 7, "--threads", 1, "--output", tmp_path / "run"),
    )
    assert code == 0
    assert result["settings"] == {
        "model": "rbm",
        "data": str(tmp_path / "own.npy"),
        "hidden": [3],
        "estimator": "cd",
        "sweeps": 2,
        "chains": 100,
        "epochs": 2,
        "batch_size": 20,
        "learning_rate": 0.01,
        "schedule": "hyperbolic",
        "momentum": 0.5,
        "weight_decay": 0.001,
        "centred": False,
        "seed": 7,
    }
    assert result["last"]["learning_rate"] == pytest.approx(0.001)
    assert result["updates"] == 6
    assert "filters.png" not in {path.name for path in (tmp_path / "run").iterdir()}  # no image, no filters


@pytest.mark.parametrize(
    ("rows", "model", "batch", "epochs"),
    [
        (1000, "rbm", 100, 250),
        (1000, "dbm", 100, 250),
        (10, "rbm", 100, 500),
        (1001, "rbm", 4, 20),
        (1001, "dbm", 4, 50),
    ],
)
def test_small_data_get_more_epochs_where_none_are_asked_for(rows, model, batch, epochs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: None)
    np.save(tmp_path / "own.npy", np.zeros((rows, 4), np.uint8))
    arguments = ["train", tmp_path / "own.npy", "--model", model, "--hidden", 3, "--batch-size", batch, "--output"]
    settings = call(capsys, *arguments, tmp_path / "run")[1]["settings"]
    assert settings["epochs"] == epochs
    if model == "dbm":
        assert settings["pretraining_epochs"] == [max(20, min(500, -(-1000 // -(-rows // batch))))]
    written = json.loads((tmp_path / "run" / "configuration.json").read_text())["settings"]
    assert written == settings
    settings = call(capsys, *arguments, tmp_path / "few", "--epochs", 2)[1]["settings"]
    assert settings["epochs"] == 2


def test_train_refuses_to_overwrite(trained, tmp_path, capsys):
    before = snapshot(trained)
    code, result, errors = call(capsys, "train", "digits", *TINY, "--output", trained)
    assert code == 2
    assert "already holds checkpoint.safetensors" in result["error"]
    assert errors.count("\n") == 1
    assert "--overwrite" in errors
    assert snapshot(trained) == before


def test_the_refusal_lists_all_that_overwriting_removes(trained, tmp_path, capsys):
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    for name in ("evaluation.json", "samples.png", "notes.txt", "rbm1.safetensors"):
        (tmp_path / name).touch()
    arguments = ("train", "digits", *TINY, "--output", tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    error = call(capsys, *arguments)[1]["error"]
    listed, advice = error.removeprefix(f"{tmp_path} already holds ").split("; ")
    assert set(listed.split(", ")) == before - {"notes.txt"}
    assert advice == "choose another --output, or add --overwrite, which removes these files"
    assert {path.name for path in tmp_path.iterdir()} == before
    _, result, _ = call(capsys, *arguments, "--overwrite")
    left = {path.name for path in tmp_path.iterdir()} - {Path(f).name for f in result["files"]}
    assert left == {"notes.txt"}


def test_train_overwrites_when_told(tmp_path, capsys):
    for seed in (1, 2):
        code, result, _ = call(
            capsys, "train", "digits", *TINY, "--seed", seed, "--output", tmp_path / "run", "--overwrite"
        )
        assert code == 0
    assert json.loads((tmp_path / "run" / "configuration.json").read_text())["settings"]["seed"] == 2
    assert result["updates"] == 6


def test_resume_goes_on_with_the_settings_of_the_run(tmp_path, capsys):
    run = tmp_path / "run"
    call(capsys, "train", "digits", *TINY, "--output", run)
    code, result, _ = call(capsys, "train", "--resume", run, "--epochs", 4)
    assert (code, result["updates"], result["settings"]["hidden"]) == (0, 12, [8])
    with (run / "learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    # the linear schedule now ends at epoch 4; the third epoch did not run at the old rate of zero
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.025, 0, 0.0125, 0])
    assert rows[2]["pseudo_log_likelihood_valid"] != rows[1]["pseudo_log_likelihood_valid"]
    code, result, _ = call(capsys, "train", "--resume", run / "checkpoint.safetensors")
    assert (code, result["updates"]) == (0, 12)  # all epochs are done


@pytest.mark.parametrize("epochs", [[], ["--epochs", 1], ["--epochs", 2]])
def test_resume_of_a_finished_run_says_so_and_leaves_it_true(epochs, trained, tmp_path, capsys):
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "learning_curve.png").unlink()
    before = snapshot(tmp_path)
    code, result, errors = call(capsys, "train", "--resume", tmp_path, *epochs)
    assert code == 0
    assert "Nothing is left to train: 2 epochs done." in errors
    assert (result["settings"]["epochs"], result["updates"]) == (2, 6)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.pop("learning_curve.png")  # the picture that was missing is there again, and the only one drawn
    assert after == before
    assert [Path(file).name for file in result["files"]] == ["learning_curve.png"]
    assert call(capsys, "train", "--resume", tmp_path, *epochs)[1]["files"] == []


def test_resume_of_an_interrupted_run_with_fewer_epochs_than_are_done(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ProgressBar, "on_epoch", lambda _, progress: signal.raise_signal(signal.SIGINT))
    assert call(capsys, "train", "digits", *TINY, "--epochs", 3, "--output", tmp_path)[0] == 130
    monkeypatch.undo()
    code, result, errors = call(capsys, "train", "--resume", tmp_path, "--epochs", 1)
    assert (code, result["settings"]["epochs"], result["updates"]) == (0, 3, 3)
    assert "Nothing is left to train: 1 of 3 epochs done." in errors
    assert json.loads((tmp_path / "configuration.json").read_text())["settings"]["epochs"] == 3
    assert call(capsys, "train", "--resume", tmp_path)[1]["updates"] == 9


def test_overwriting_keeps_the_data_that_the_new_run_learns_from(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    np.save(tmp_path / "run" / "samples.npy", load("digits").test[:50].numpy())
    data = tmp_path / "run" / "samples.npy"
    code, _, errors = call(capsys, "train", str(data), *TINY, "--output", tmp_path / "run", "--overwrite")
    assert (code, data.is_file()) == (0, True), errors


def test_overwriting_removes_what_the_older_run_left_and_nothing_else(trained, tmp_path, capsys):
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    of_others = {*vae.PICTURES, vae.RESULT, evaluate.WEIGHTS, evaluate.WEIGHTS_PICTURE, evaluate.TEMPERING_PICTURE}
    of_others |= {evaluate.RESULT, sample.SAMPLES, sample.PICTURE, "rbm1.safetensors", "filters2.png"}
    own = {"notes.txt", "my_samples.png", "rbm.safetensors", "samples.csv"}
    for name in of_others | own:
        (tmp_path / name).write_text(name)
    code, result, errors = call(capsys, "train", "digits", *TINY, "--output", tmp_path, "--overwrite")
    assert code == 0
    assert {path.name for path in tmp_path.iterdir()} == {Path(f).name for f in result["files"]} | own
    assert f"Removed with the older results: {', '.join(sorted(of_others))}" in errors
    (tmp_path / "configuration.json").unlink()  # no run any more: the rest may be anybody's
    (tmp_path / "samples.png").touch()
    call(capsys, "train", "digits", *TINY, "--output", tmp_path, "--overwrite")
    assert (tmp_path / "samples.png").exists()


def test_resume_refuses_other_settings_and_other_folders(trained, tmp_path, capsys):
    before = snapshot(trained)
    code, result, _ = call(capsys, "train", "--resume", trained, "--hidden", 9, "--output", tmp_path)
    assert code == 2
    assert "leave out --hidden, --output" in result["error"]
    assert call(capsys, "train", "digits", "--resume", trained)[0] == 2
    assert call(capsys, "train", "--resume", tmp_path / "none")[0] == 2
    code, result, _ = call(capsys, "train", "--resume", tmp_path)
    assert code == 2
    assert "no configuration.json of a run" in result["error"]
    assert snapshot(trained) == before


def test_resume_from_a_damaged_checkpoint_changes_nothing(tmp_path, capsys):
    run = tmp_path / "run"
    call(capsys, "train", "digits", *TINY, "--output", run)
    checkpoint = run / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    before = snapshot(run)
    code, result, _ = call(capsys, "train", "--resume", run, "--epochs", 9)
    assert code == 2
    assert "checkpoint.safetensors" in result["error"]
    assert snapshot(run) == before


@contextmanager
def largest_file(n_bytes):
    """Makes the system refuse longer files, as a full disk refuses them."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(
    "arguments", [["--resume", "RUN", "--epochs", 3], ["digits", "--output", "RUN", "--overwrite"]]
)
def test_a_full_disk_costs_no_older_run(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    call(capsys, "train", "digits", *TINY, "--output", run)
    before = snapshot(run)
    with largest_file(200):
        code, result, _ = call(capsys, "train", *[run if a == "RUN" else a for a in arguments])
    assert code == 1
    assert "cannot save configuration.json" in result["error"]
    assert snapshot(run) == before
    assert call(capsys, "train", "--resume", run, "--epochs", 3)[1]["updates"] == 9


def test_resume_writes_no_configuration_that_is_there_already(tmp_path, capsys):
    call(capsys, "train", "digits", *TINY, "--output", tmp_path)
    file = tmp_path / "configuration.json"
    before = file.stat()
    code, result, _ = call(capsys, "train", "--resume", tmp_path)
    assert code == 0
    assert str(file) not in result["files"]
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_rate_that_drives_the_weights_off_the_grid_is_named(tmp_path, capsys):
    arguments = ("train", "digits", *TINY, "--learning-rate", 1e30, "--epochs", 1, "--batch-size", 2000)
    code, result, _ = call(capsys, *arguments, "--output", tmp_path)
    assert code == 1
    assert "after update 1: weights[0]: expected weights of at most" in result["error"]
    assert "a lower learning rate may help" in result["error"]
    assert not (tmp_path / "checkpoint.safetensors").exists()


@pytest.mark.parametrize("name", ["learning_curve.csv", "filters.png"])
def test_a_curve_or_picture_that_cannot_be_written_costs_no_checkpoint(name, tmp_path, capsys, monkeypatch):
    replace = os.replace

    def full(source, target):
        if Path(target).name == name:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    code, result, _ = call(capsys, "train", "digits", *TINY, "--output", tmp_path / "run")
    assert code == 1
    assert f"cannot save {name} (No space left on device)" in result["error"]
    assert RBM.load(tmp_path / "run" / "checkpoint.safetensors").n_hidden == 8
    assert not list((tmp_path / "run").glob(".*"))


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.mark.parametrize("moment", ["before the configuration", "after the configuration", "in training"])
def test_an_overwriting_run_that_dies_mixes_nothing(moment, tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    call(capsys, "train", "digits", *TINY, "--seed", 1, "--output", run)
    replace = os.replace

    def die(*_, **__):
        raise Killed

    def die_at_the_configuration(source, target):
        if moment.startswith("after"):
            replace(source, target)
        raise Killed

    if moment == "in training":
        monkeypatch.setattr(Trainer, "fit", die)
    else:
        monkeypatch.setattr(os, "replace", die_at_the_configuration)
    with pytest.raises(Killed):
        main(["train", "digits", *TINY, "--seed", "2", "--output", str(run), "--overwrite"])
    monkeypatch.undo()
    capsys.readouterr()
    seed = json.loads((run / "configuration.json").read_text())["settings"]["seed"]
    assert seed == (1 if moment.startswith("before") else 2)
    assert [path.name for path in run.iterdir()] == ["configuration.json"]
    code, result, _ = call(capsys, "train", "--resume", run)
    assert code == 2
    assert "no checkpoint file" in result["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data: expected digits, mnist"),
        (["nist"], f"data: expected one of {', '.join(NAMES)}, or a path"),
        (["digits", "--estimator", "cd", "--chains", "5"], "--chains: has a meaning only with"),
        (["digits", "--hidden", "8", "4"], "--hidden: expected one number for an RBM, got 8 4; deep is --model dbm"),
        (["digits", "--iterations", "5", "--pretraining-epochs", "1"], "--pretraining-epochs, --iterations: not for"),
        (["digits", "--model", "dbm", "--estimator", "cd"], "--estimator: not for --model dbm"),
        (
            ["digits", "--model", "dbm", "--hidden", "8", "4", "--pretraining-epochs", "1", "2", "3"],
            "--pretraining-epochs: expected 1 or 2 numbers, got 1 2 3",
        ),
    ],
)
def test_train_usage_errors(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, result, _ = call(capsys, "train", *arguments)
    assert code == 2
    assert message in result["error"]
    assert list(tmp_path.iterdir()) == []


def test_weight_decay_pulls_at_the_weights_and_leaves_the_biases():
    rbm = RBM(5, 3, seed=0)
    rbm.initialise_biases(torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0]], dtype=torch.uint8))
    before = {name: parameter.detach().clone() for name, parameter in rbm.named_parameters()}
    sgd, _ = optimiser(rbm, {**DEFAULTS["rbm"], "weight_decay": 0.5, "learning_rate": 0.1})
    for parameter in rbm.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sgd.step()
    after = dict(rbm.named_parameters())
    assert torch.allclose(after["weight"], before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(after["visible_bias"], before["visible_bias"])
    assert torch.equal(after["hidden_bias"], before["hidden_bias"])
