"""Deep machines on the command line: train, resume, sample, evaluate and info."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast import DBM, DBN, RBM, checkpoints, data
from bm_fast.cli import main
from bm_fast.estimation import exact_log_likelihood, exact_log_z, variational_bound
from bm_fast.training import Callback, ProgressBar, lift, stack_estimator, stitch
from cli_calls import call, interrupted_at, snapshot

DEEP = [
    *("digits", "--model", "dbm", "--hidden", "6", "4", "--pretraining-epochs", "1", "2"),
    *("--epochs", "2", "--batch-size", "400", "--chains", "10"),
]
FILES = {
    "checkpoint.safetensors",
    "configuration.json",
    "filters.png",
    "filters2.png",
    "learning_curve.csv",
    "learning_curve.png",
    "rbm1.safetensors",
    "rbm2.safetensors",
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a deep machine, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "deep"
    assert main(["train", *DEEP, "--output", str(folder)]) == 0
    return folder


def checkpoint(run: Path) -> bytes:
    return (run / "checkpoint.safetensors").read_bytes()


def parameters(run: Path) -> dict[str, torch.Tensor]:
    return DBM.load(run / "checkpoint.safetensors").state_dict()


def test_train_writes_all_that_it_names(deep, tmp_path, capsys):
    code, result, errors = call(capsys, "train", *DEEP, "--output", tmp_path / "run")
    assert code == 0
    assert {Path(f).name for f in result["files"]} == FILES == {path.name for path in (tmp_path / "run").iterdir()}
    assert result["settings"] == json.loads((deep / "configuration.json").read_text())["settings"]
    assert (result["settings"]["model"], result["settings"]["hidden"]) == ("dbm", [6, 4])
    assert result["settings"]["pretraining_epochs"] == [1, 2]
    assert result["updates"] == 6
    assert {"reconstruction_error_valid", "unconverged", "free_energy_gap"} <= set(result["last"])
    assert "RBM 2 of 2, 6-4, 2 epochs" in errors
    for name, value in parameters(deep).items():
        assert torch.equal(value, parameters(tmp_path / "run")[name])


def test_the_machine_begins_as_the_stack_of_rbms(tmp_path, capsys, monkeypatch):
    begun = []
    monkeypatch.setattr(ProgressBar, "on_start", lambda _, progress: begun.append(progress.trainer.model))
    monkeypatch.setattr(ProgressBar, "on_update", Callback.on_update)
    monkeypatch.setattr(ProgressBar, "on_epoch", Callback.on_epoch)
    monkeypatch.setattr(ProgressBar, "on_end", Callback.on_end)
    arguments = [*DEEP, "--learning-rate", "1e-30", "--weight-decay", "0"]
    assert call(capsys, "train", *arguments, "--output", tmp_path)[0] == 0
    *rbms, dbm = begun
    assert [type(model) for model in begun] == [RBM, RBM, DBM]
    expected = stitch(rbms).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in dbm.state_dict().items())
    kept = RBM.load(tmp_path / "rbm2.safetensors")
    assert torch.equal(kept.weight, rbms[1].weight)
    assert lift(rbms[0], stack_estimator(0, 2), data.load("digits").train).shape == (1197, kept.n_visible)


def test_without_pretraining(tmp_path, capsys):
    code, result, _ = call(
        capsys, "train", *DEEP[:6], *("--pretraining-epochs", 0, "--epochs", 1), "--output", tmp_path
    )
    assert code == 0
    assert {Path(f).name for f in result["files"]} == FILES - {"rbm1.safetensors", "rbm2.safetensors"}


@pytest.mark.parametrize("stop_at", [2, 5, 13])
def test_an_interrupted_run_goes_on_to_the_same_bits(stop_at, deep, tmp_path, capsys, monkeypatch):
    """In the first RBM, in the second, and in the joint training (3 + 6 + 6 updates)."""
    updates = interrupted_at(monkeypatch, stop_at)
    run = tmp_path / "run"
    code, result, _ = call(capsys, "train", *DEEP, "--output", run)
    assert code == 130
    where = "pretraining" if stop_at < 10 else "epoch 2"
    assert f"interrupted in {where} and saved; go on with: bm-fast train --resume {run}" in result["error"]
    code, result, _ = call(capsys, "train", "--resume", run)
    assert (code, result["updates"], len(updates)) == (0, 6, 15)
    assert all(torch.equal(value, parameters(run)[name]) for name, value in parameters(deep).items())
    assert {path.name for path in run.iterdir()} == FILES


def test_resume_goes_on_with_more_epochs(deep, tmp_path, capsys):
    for path in deep.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    code, result, _ = call(capsys, "train", "--resume", tmp_path, "--epochs", 3)
    assert (code, result["updates"], result["settings"]["epochs"]) == (0, 9, 3)
    code, result, _ = call(capsys, "train", "--resume", tmp_path, "--model", "rbm")
    assert code == 2
    assert "leave out --model" in result["error"]


def test_a_stack_that_an_older_version_left_goes_on_or_says_why_not(deep, tmp_path, capsys):
    """Its RBMs kept no learning curve, and still older ones not the names of the parameters."""
    for name in ("configuration.json", "rbm1.safetensors"):
        shutil.copy(deep / name, tmp_path)
    state = checkpoints.load(tmp_path / "rbm1.safetensors")
    state["trainer"] |= {"callbacks": [], "parts": {**state["trainer"]["parts"], "callbacks with a state": []}}
    checkpoints.save(tmp_path / "rbm1.safetensors", state)
    shutil.copytree(tmp_path, tmp_path / "oldest")
    assert call(capsys, "train", "--resume", tmp_path)[0] == 0
    expected = DBM.load(deep / "checkpoint.safetensors").state_dict()
    found = DBM.load(tmp_path / "checkpoint.safetensors").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
    state["trainer"]["parts"]["optimizer"] = ["SGD", [1, 2]]
    checkpoints.save(tmp_path / "oldest" / "rbm1.safetensors", state)
    code, result, _ = call(capsys, "train", "--resume", tmp_path / "oldest")
    assert code == 2
    assert "rbm1.safetensors': expected optimizer ['SGD', [1, 2]], got" in result["error"]
    assert "If an older version of bm_fast left it, train anew" in result["error"]


def test_overwriting_leaves_nothing_of_a_deeper_run(deep, tmp_path, capsys):
    for path in deep.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = snapshot(tmp_path)
    shallow = ["digits", "--hidden", "3", "--epochs", "1"]
    code, result, _ = call(capsys, "train", *shallow, "--output", tmp_path)
    assert code == 2
    assert "rbm2.safetensors" in result["error"]
    assert snapshot(tmp_path) == before
    code, result, _ = call(capsys, "train", *shallow, "--output", tmp_path, "--overwrite")
    assert code == 0
    assert sorted(result["files"]) == sorted(str(path) for path in tmp_path.iterdir())


def test_sample_draws_from_the_deep_machine(deep, tmp_path, capsys):
    code, result, _ = call(
        capsys, "sample", deep, "--chains", 20, "--sweeps", 30, "--seed", 5, "--output", tmp_path / "out"
    )
    assert code == 0
    assert {Path(f).name for f in result["files"]} == {"samples.npy", "samples.png"}
    dbm = DBM.load(deep / "checkpoint.safetensors")
    expected = dbm.sample(dbm.chains(20, 5), 30).layers[0]
    assert np.array_equal(np.load(tmp_path / "out" / "samples.npy"), expected.numpy())
    code, _, _ = call(
        capsys, "sample", deep, "--clamp", "top", "--chains", 30, "--sweeps", 3, "--output", tmp_path / "c"
    )
    assert code == 0
    states = np.load(tmp_path / "c" / "samples.npy").reshape(-1, 8, 8)
    images = data.load("digits", "fixed-sample", seed=0).split("test")[:30].numpy().reshape(-1, 8, 8)
    assert np.array_equal(states[:, :4], images[:, :4])


def test_evaluate_measures_bound_and_exact_likelihood(deep, tmp_path, capsys):
    code, result, errors = call(capsys, "evaluate", deep, "--split", "valid", "--output", tmp_path)
    assert code == 0
    dbm = DBM.load(deep / "checkpoint.safetensors")
    images = data.load("digits", "fixed-sample", seed=0).split("valid")
    log_z = exact_log_z(dbm)
    assert (result["method"], result["log_z"]) == ("exact", pytest.approx(log_z, abs=1e-9))
    bounds, exact = variational_bound(dbm, images, log_z), exact_log_likelihood(dbm, images, log_z)
    assert result["variational_bound"] == pytest.approx(bounds.mean().item(), abs=1e-4)
    assert result["log_likelihood"] == pytest.approx(exact.mean().item(), abs=1e-9)
    assert result["log_likelihood_standard_error"] == pytest.approx(exact.std().item() / math.sqrt(300), rel=1e-9)
    assert result["variational_bound"] <= result["log_likelihood"]
    difference = (dbm.reconstruct(images) - images).square().mean().item()
    assert result["reconstruction_error"] == pytest.approx(difference, rel=1e-3)
    assert result["unconverged"] == 0
    assert "lower bound of the log-likelihood" in errors


def test_evaluate_by_ais_agrees_with_exact(deep, tmp_path, capsys):
    _, exact, _ = call(capsys, "evaluate", deep, "--output", tmp_path / "exact")
    code, result, _ = call(
        capsys, "evaluate", deep, "--method", "ais", "--betas", 300, "--output", tmp_path / "estimated"
    )
    assert code == 0
    # the seed is fixed; over seeds, fewer than one in 10^6 lies beyond 5 standard errors
    assert abs(result["log_z"] - exact["log_z"]) < 5 * result["log_z_standard_error"]
    assert result["trustworthy"]
    difference = exact["variational_bound"] - result["variational_bound"]
    assert difference == pytest.approx(result["log_z"] - exact["log_z"], abs=1e-9)
    assert "log_likelihood" not in result


def test_evaluate_by_a_bracket_agrees_with_exact(deep, tmp_path, capsys):
    _, exact, _ = call(capsys, "evaluate", deep, "--output", tmp_path / "exact")
    arguments = ("evaluate", deep, "--method", "bracket", "--runs", 40, "--rounds", 100)
    code, result, errors = call(capsys, *arguments, "--output", tmp_path / "bracket")
    assert code == 0
    assert result["trustworthy"], result["reason"]
    # the seed is fixed; over seeds, fewer than one in 10^6 lies beyond 5 standard errors
    assert abs(result["variational_bound"] - exact["variational_bound"]) < 5 * result["log_z_standard_error"] < 0.5
    low, high = result["bracket"]
    assert low - 0.1 < exact["variational_bound"] < high + 0.1
    assert "log_likelihood" not in result
    assert "lower bound" in errors


def test_evaluate_names_the_layers_that_are_too_large(tmp_path, capsys):
    DBM((64, 30, 9)).save(tmp_path / "model.safetensors")
    arguments = ["evaluate", tmp_path / "model.safetensors", "--data", "digits", "--method", "exact"]
    code, result, _ = call(capsys, *arguments, "--output", tmp_path / "out")
    assert code == 2
    assert "enumerates up to 25 units, the smaller of the odd and the even layers have 30" in result["error"]


def test_info_describes_machines(deep, trained, tmp_path, capsys):
    code, result, _ = call(capsys, "info", deep)
    assert code == 0
    assert (result["model"], [layer["units"] for layer in result["layers"]]) == ("dbm", [64, 6, 4])
    assert result["parameters"] == 64 * 6 + 6 * 4 + 64 + 6 + 4
    assert result["configuration"]["settings"]["hidden"] == [6, 4]
    assert main(["info", str(deep)]) == 0
    assert "64 bernoulli - 6 bernoulli - 4 bernoulli" in capsys.readouterr().out
    assert call(capsys, "info", trained)[1]["model"] == "rbm"
    DBM((5, 4)).save(tmp_path / "model.safetensors")
    assert call(capsys, "info", tmp_path / "model.safetensors")[1]["configuration"] == {}
    assert call(capsys, "info", tmp_path)[1]["model"] == "dbm"  # a folder without settings, as the demo leaves it
    DBN((5, 4, 3)).save(tmp_path / "other.safetensors")
    assert call(capsys, "info", tmp_path / "other.safetensors")[1]["layers"][2] == {"kind": "bernoulli", "units": 3}
    code, result, _ = call(capsys, "sample", tmp_path / "other.safetensors")
    assert (code, "holds a belief net, and this command takes" in result["error"]) == (2, True)
    checkpoints.save(tmp_path / "thing.safetensors", {"thing": 1})
    code, result, _ = call(capsys, "info", tmp_path / "thing.safetensors")
    assert (code, "expected a model out of rbm, dbm, dbn, vae, it holds ['thing']" in result["error"]) == (2, True)
    code, result, _ = call(capsys, "info", tmp_path / "none")
    assert code == 2
    assert "no checkpoint file" in result["error"]


def test_info_is_in_words_and_tells_of_runs_without_a_configuration(deep, tmp_path, capsys):
    assert main(["info", str(deep)]) == 0
    text = capsys.readouterr().out
    lines = {line[:18].strip(): line[19:] for line in text.splitlines()}
    assert lines["gradient"] == "chains 10, sweeps 5, iterations 10, tolerance 0.001"
    assert lines["batches"] == "400 rows, dynamic binarisation, centred gradient"
    assert lines["optimiser"].startswith("SGD, rate 0.05 at first, ")
    assert lines["optimiser"].endswith(" at last, momentum 0.5, weight decay 0.0002")
    assert lines["pretraining epochs"] == "1, 2"
    assert "reconstruction error valid 0." in lines["last figures"]
    shutil.copy(deep / "checkpoint.safetensors", tmp_path / "dbm.safetensors")  # as recipes leave it
    assert main(["info", str(tmp_path)]) == 0
    alone = {line[:18].strip(): line[19:] for line in capsys.readouterr().out.splitlines()}
    assert alone["data"].startswith("1197 rows (CRC-32 ")
    missing = {"pretraining epochs", "schedule", "trained by"}
    assert {**lines, "checkpoint": "", "data": ""} == {
        **{name: lines[name] for name in missing},
        **alone,
        "checkpoint": "",
        "data": "",
    }
    assert not any(character in line for name, line in lines.items() if name != "checkpoint" for character in "[]{}'")
    result = call(capsys, "info", tmp_path)[1]
    assert result["settings"]["estimator"]["n_chains"] == 10
    assert result["optimiser"]["momentum"] == 0.5


def test_info_describes_a_stack_that_is_still_in_training(deep, tmp_path, capsys):
    """What the folder holds is the RBM, whose settings are not those of joint training."""
    for name in ("configuration.json", "rbm1.safetensors"):
        shutil.copy(deep / name, tmp_path)
    code, result, _ = call(capsys, "info", tmp_path)
    assert (code, result["model"], result["epochs"], result["configuration"]) == (0, "rbm", 1, {})
