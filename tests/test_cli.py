"""The command line within this process: results, refusals and exit codes of every command."""

from __future__ import annotations

import csv
import json
import math
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast import data
from bm_fast.cli import bench, common, evaluate, main
from bm_fast.cli.sample import moments_until
from bm_fast.estimation import AISEstimate
from bm_fast.rbm import RBM
from bm_fast.training import Trainer

TINY = ["--hidden", "8", "--epochs", "2", "--batch-size", "400", "--chains", "10"]


def call(capsys, *arguments):
    """Exit code, parsed standard output of a command with --json, and its standard error."""
    code = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 1, lines
    result = json.loads(lines[0])
    assert result["exit_code"] == code
    return code, result, captured.err


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "digits", *TINY, "--output", str(folder)]) == 0
    return folder


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- train ------------------------------------------------------------------------------------------------------------


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
    assert configuration["settings"]["hidden"] == 8
    assert configuration["data"] == {
        "name": "digits",
        "protocol": "dynamic",
        "shape": [8, 8],
        "rows": {"train": 1197, "valid": 300, "test": 300},
    }
    assert configuration["version"] == common.version()
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
        "data": str(tmp_path / "own.npy"),
        "hidden": 3,
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


def test_train_refuses_to_overwrite(trained, tmp_path, capsys):
    before = snapshot(trained)
    code, result, errors = call(capsys, "train", "digits", *TINY, "--output", trained)
    assert code == 1
    assert "already holds checkpoint.safetensors" in result["error"]
    assert errors.count("\n") == 1
    assert "--overwrite" in errors
    assert snapshot(trained) == before


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
    assert (code, result["updates"], result["settings"]["hidden"]) == (0, 12, 8)
    with (run / "learning_curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"]
    # the linear schedule now ends at epoch 4; the third epoch did not run at the old rate of zero
    assert [float(row["learning_rate"]) for row in rows] == pytest.approx([0.025, 0, 0.0125, 0])
    assert rows[2]["pseudo_log_likelihood_valid"] != rows[1]["pseudo_log_likelihood_valid"]
    code, result, _ = call(capsys, "train", "--resume", run / "checkpoint.safetensors")
    assert (code, result["updates"]) == (0, 12)  # all epochs are done


def test_resume_refuses_other_settings_and_other_folders(trained, tmp_path, capsys):
    before = snapshot(trained)
    code, result, _ = call(capsys, "train", "--resume", trained, "--hidden", 9, "--output", tmp_path)
    assert code == 2
    assert "leave out --hidden, --output" in result["error"]
    assert call(capsys, "train", "digits", "--resume", trained)[0] == 2
    assert call(capsys, "train", "--resume", tmp_path / "none")[0] == 1
    code, result, _ = call(capsys, "train", "--resume", tmp_path)
    assert code == 1
    assert "no configuration.json of a run" in result["error"]
    assert snapshot(trained) == before


def test_resume_from_a_damaged_checkpoint_changes_nothing(tmp_path, capsys):
    run = tmp_path / "run"
    call(capsys, "train", "digits", *TINY, "--output", run)
    checkpoint = run / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    before = snapshot(run)
    code, result, _ = call(capsys, "train", "--resume", run, "--epochs", 9)
    assert code == 1
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
    assert code == 1
    assert "no checkpoint file" in result["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data: expected digits, mnist"),
        (["nist"], "data: expected one of digits, mnist, binarized-mnist, ocr-letters, or a path"),
        (["digits", "--estimator", "cd", "--chains", "5"], "--chains: has a meaning only with"),
    ],
)
def test_train_usage_errors(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, result, _ = call(capsys, "train", *arguments)
    assert code == 2
    assert message in result["error"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digits", "--hidden", "0"], "--hidden: expected a whole number from 1 to 65536, got '0'"),
        (["train", "digits", "--epochs", "x"], "--epochs: expected a whole number"),
        (["train", "digits", "--learning-rate", "0"], "--learning-rate: expected a number above 0, got '0'"),
        (["train", "digits", "--learning-rate", "nan"], "expected a number above 0"),
        (["train", "digits", "--momentum", "1"], "at least 0 and at most 0.9999"),
        (["train", "digits", "--seed", "-1"], "--seed: expected a whole number"),
        (["train", "digits", "--estimator", "pt"], "invalid choice"),
        (["sample", "x", "--shape", "28"], "--shape: expected rows x columns, as in 28x28, got '28'"),
        (["sample", "x", "--beta", "-1"], "--beta: expected a number of at least 0"),
        (["sample"], "required: checkpoint"),
        (["evaluate", "x", "--split", "all"], "invalid choice"),
        (["frobnicate"], "invalid choice"),
        ([], "required: command"),
        (["info", "--threads", "0"], "--threads: expected a whole number from 1"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_failures_exit_with_1_and_one_line(tmp_path, capsys):
    for arguments in (
        ["train", str(tmp_path / "none.npy")],
        ["sample", str(tmp_path / "none")],
        ["evaluate", str(tmp_path), "--data", "digits"],
    ):
        assert main(arguments) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("bm-fast: ")
        assert captured.err.count("\n") == 1
        assert str(tmp_path) in captured.err
    (tmp_path / "file").touch()
    assert main(["train", "digits", "--output", str(tmp_path / "file" / "run")]) == 1
    assert "cannot make the output folder" in capsys.readouterr().err


def test_bad_data_are_named_with_their_file(tmp_path, capsys):
    np.save(tmp_path / "bad.npy", np.array([[0.5, np.nan]]))
    code, result, _ = call(capsys, "train", tmp_path / "bad.npy", "--output", tmp_path / "run")
    assert code == 1
    assert "bad.npy: train: expected values from 0 to 1, got nan" in result["error"]
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(FileNotFoundError):
        main(["sample", str(tmp_path / "none"), "--debug"])


# --- sample -----------------------------------------------------------------------------------------------------------


def test_sample_writes_states_and_a_picture(trained, tmp_path, capsys):
    arguments = ["sample", trained, "--chains", 20, "--sweeps", 30, "--seed", 5, "--output", tmp_path / "out"]
    code, result, _ = call(capsys, *arguments)
    assert code == 0
    assert (result["chains"], result["sweeps"], result["beta"]) == (20, 30, 1.0)
    states = np.load(tmp_path / "out" / "samples.npy")
    rbm = RBM.load(trained / "checkpoint.safetensors")
    expected = rbm.sample(rbm.chains(20, 5), 30).layers[0]
    assert np.array_equal(states, expected.numpy())  # looking at the chains on their way does not change them
    assert (tmp_path / "out" / "samples.png").stat().st_size > 1000
    before = snapshot(tmp_path / "out")
    assert call(capsys, *arguments)[0] == 1
    assert snapshot(tmp_path / "out") == before
    assert call(capsys, *arguments, "--overwrite")[0] == 0


def test_sample_at_another_temperature_from_a_bare_model(trained, tmp_path, capsys):
    rbm = RBM.load(trained / "checkpoint.safetensors")
    rbm.save(tmp_path / "model.safetensors")
    arguments = ["sample", tmp_path / "model.safetensors", "--chains", 10, "--sweeps", 5, "--beta", 0.5]
    code, result, errors = call(capsys, *arguments, "--output", tmp_path / "a")
    assert code == 0
    assert [Path(f).name for f in result["files"]] == ["samples.npy"]
    assert "give it as --shape" in errors
    expected = rbm.sample(rbm.chains(10, 0), 5, beta=0.5).layers[0]
    assert np.array_equal(np.load(tmp_path / "a" / "samples.npy"), expected.numpy())
    assert call(capsys, *arguments, "--shape", "8x8", "--output", tmp_path / "b")[0] == 0
    assert (tmp_path / "b" / "samples.png").exists()
    code, result, _ = call(capsys, *arguments, "--shape", "9x9", "--output", tmp_path / "c")
    assert code == 2
    assert "expected rows x columns = 64 visible units, got 9x9" in result["error"]


@pytest.mark.parametrize(
    ("side", "kept"),
    [
        ("top", np.s_[:, :4]),
        ("bottom", np.s_[:, 4:]),
        ("left", np.s_[:, :, :4]),
        ("right", np.s_[:, :, 4:]),
    ],
)
def test_sample_keeps_the_clamped_half(side, kept, trained, tmp_path, capsys):
    code, _, _ = call(
        capsys, "sample", trained, "--clamp", side, "--chains", 30, "--sweeps", 3, "--output", tmp_path / "out"
    )
    assert code == 0
    states = np.load(tmp_path / "out" / "samples.npy").reshape(-1, 8, 8)
    images = data.load("digits", "fixed-sample", seed=0).split("test")[:30].numpy().reshape(-1, 8, 8)
    assert np.array_equal(states[kept], images[kept])
    assert not np.array_equal(states, images)


def test_sample_clamp_errors(trained, tmp_path, capsys):
    out = ["--output", tmp_path / "out"]
    code, result, _ = call(capsys, "sample", trained, "--clamp", "top", "--chains", 301, *out)
    assert code == 2
    assert "at most the 300 test images" in result["error"]
    RBM(64, 4).save(tmp_path / "model.safetensors")
    code, result, _ = call(capsys, "sample", tmp_path / "model.safetensors", "--clamp", "top", *out)
    assert code == 2
    assert "give --data and --shape" in result["error"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sweeps", "moments"),
    [(0, [0]), (1, [0, 1]), (7, [0, 1, 2, 5, 7]), (100, [0, 1, 2, 5, 10, 20, 50, 100])],
)
def test_moments(sweeps, moments):
    assert moments_until(sweeps) == moments


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_by_ais_agrees_with_exact(trained, tmp_path, capsys):
    code, exact, _ = call(capsys, "evaluate", trained, "--output", tmp_path / "exact")
    assert code == 0
    assert (exact["method"], exact["cases"], exact["protocol"]) == ("exact", 300, "fixed-sample, seed 0")
    assert [Path(f).name for f in exact["files"]] == ["evaluation.json"]
    code, estimated, _ = call(
        capsys, "evaluate", trained, "--method", "ais", "--betas", 300, "--output", tmp_path / "ais"
    )
    assert code == 0
    assert estimated["trustworthy"]
    # the seed is fixed; over seeds, fewer than one in 10^6 lies beyond 5 standard errors
    assert abs(estimated["log_z"] - exact["log_z"]) < 5 * estimated["log_z_standard_error"]
    difference = exact["log_likelihood"] - estimated["log_likelihood"]
    assert difference == pytest.approx(estimated["log_z"] - exact["log_z"], abs=1e-9)
    assert estimated["standard_error"] > estimated["standard_error_from_cases"]
    assert len(np.load(tmp_path / "ais" / "log_weights.npy")) == 100
    kept = json.loads((tmp_path / "ais" / "evaluation.json").read_text())
    assert kept["log_likelihood"] == estimated["log_likelihood"]
    assert (tmp_path / "ais" / "log_weights.png").exists()


def test_evaluate_measures_what_it_says(trained, tmp_path, capsys):
    _, result, _ = call(capsys, "evaluate", trained, "--split", "valid", "--seed", 3, "--output", tmp_path)
    rbm = RBM.load(trained / "checkpoint.safetensors")
    images = data.load("digits", "fixed-sample", seed=3).split("valid")
    each = -rbm.free_energy(images) - result["log_z"]
    assert result["log_likelihood"] == pytest.approx(each.mean().item(), abs=1e-9)
    assert result["standard_error"] == pytest.approx(each.std().item() / math.sqrt(300), rel=1e-9)


def test_evaluate_counts_the_base_that_gives_the_higher_log_z(trained, tmp_path, capsys):
    common = ("evaluate", trained, "--method", "ais", "--runs", 20, "--betas", 50)
    _, both, _ = call(capsys, *common, "--output", tmp_path / "both")
    alone = {
        base: call(capsys, *common, "--base", base, "--output", tmp_path / base)[1] for base in ("uniform", "data")
    }
    assert {base: figures["log_z"] for base, figures in both["bases"].items()} == {
        base: result["log_z"] for base, result in alone.items()
    }
    assert all(result["trustworthy"] for result in alone.values())
    assert both["log_z"] == max(result["log_z"] for result in alone.values())
    assert both["log_likelihood"] == alone[both["base"]]["log_likelihood"]
    assert alone["uniform"]["log_z"] != alone["data"]["log_z"]


def test_evaluate_warns_of_estimates_that_are_not_to_be_trusted(tmp_path, capsys):
    RBM(64, 100, weight_scale=1.0).save(tmp_path / "model.safetensors")
    code, result, errors = call(
        capsys,
        *("evaluate", tmp_path / "model.safetensors", "--data", "digits", "--base", "uniform"),
        *("--runs", 20, "--betas", 5, "--output", tmp_path / "out"),
    )
    assert code == 0
    assert result["trustworthy"] is False
    assert result["reason"]
    assert "WARNING: do not trust this figure" in errors
    assert result["log_z_interval"][0] is None or math.isfinite(result["log_z_interval"][0])  # JSON has no infinity


@pytest.mark.parametrize(
    ("uniform", "rates", "best", "reasons"),
    [
        ((10.0, 0.3, ""), (11.9, 0.4, ""), "data", []),
        ((10.0, 0.3, ""), (12.1, 0.4, ""), "data", ["the bases disagree"]),
        ((12.1, 0.3, ""), (10.0, 0.4, ""), "uniform", ["the bases disagree"]),
        ((10.0, 0.3, ""), (11.0, 0.4, "collapsed"), "uniform", []),
        ((12.0, 0.3, ""), (5.0, 0.4, "collapsed"), "uniform", []),
        ((10.0, 0.3, ""), (15.0, 0.4, "collapsed"), "uniform", ["the bases disagree"]),
        ((10.0, 0.3, "collapsed"), (15.0, 0.4, "collapsed"), "data", ["collapsed"]),
    ],
)
def test_evaluate_compares_the_bases(uniform, rates, best, reasons, trained, tmp_path, capsys, monkeypatch):
    def estimate(rbm, dataset, base, *_):
        log_z, error, reason = {"uniform": uniform, "data": rates}[base]
        interval = (log_z - 3 * error, log_z + 3 * error)
        return AISEstimate(log_z, error, interval, 50.0, torch.full((20,), log_z).double(), 50, not reason, reason)

    monkeypatch.setattr(evaluate, "_estimate", estimate)
    code, result, errors = call(capsys, "evaluate", trained, "--method", "ais", "--output", tmp_path / "out")
    assert code == 0
    assert result["base"] == best
    assert result["trustworthy"] is not bool(reasons)
    assert all(reason in result["reason"] for reason in reasons)
    assert ("do not trust" in errors) is bool(reasons)
    difference = (uniform[0] - rates[0]) * (1 if best == "uniform" else -1)
    assert result["bases_difference"] == pytest.approx({"log_z": difference, "standard_error": 0.5})
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["reason"] == result["reason"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--betas", "many"], "--betas: expected salakhutdinov-murray, adaptive, or a number"),
        (["--betas", "1"], "--betas: expected"),
        (["--method", "exact"], "--method: exact enumerates up to 25 units, the smaller layer has 30"),
        (["--data", "nist"], "data: expected one of"),
        (["--data", "OWN"], "--data: expected 64 units as the machine has, got 3"),
        ([], "the data of the training run are not known"),
    ],
)
def test_evaluate_usage_errors(arguments, message, tmp_path, capsys):
    RBM(64, 30).save(tmp_path / "model.safetensors")
    np.save(tmp_path / "own.npy", np.zeros((4, 3), np.uint8))
    if arguments and arguments[0] != "--data":
        arguments = [*arguments, "--data", "digits"]
    arguments = [tmp_path / "own.npy" if a == "OWN" else a for a in arguments]
    code, result, _ = call(capsys, "evaluate", tmp_path / "model.safetensors", *arguments, "--output", tmp_path / "out")
    assert code == 2
    assert message in result["error"]
    assert not (tmp_path / "out").exists()


def test_evaluate_needs_a_test_split(tmp_path, capsys):
    RBM(3, 2).save(tmp_path / "model.safetensors")
    np.save(tmp_path / "own.npy", np.zeros((4, 3), np.uint8))
    arguments = ["evaluate", tmp_path / "model.safetensors", "--data", tmp_path / "own.npy", "--output", tmp_path / "o"]
    code, result, _ = call(capsys, *arguments)
    assert code == 1
    assert "has no test split" in result["error"]
    code, result, _ = call(capsys, *arguments, "--split", "train")
    assert (code, result["protocol"], result["method"]) == (0, "binary", "exact")


# --- info, bench, demo ------------------------------------------------------------------------------------------------


def test_info_says_what_runs(capsys):
    code, result, _ = call(capsys, "info", "--threads", 1)
    assert code == 0
    assert result["backend"] in ("native", "reference")
    assert result["threads"] == 1
    assert result["torch"] == torch.__version__
    assert main(["info"]) == 0
    assert "instruction set" in capsys.readouterr().out


def test_bench_says_where_the_benchmark_is_when_it_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench.bm_fast, "__file__", str(tmp_path / "a" / "b" / "c" / "__init__.py"))
    code, result, _ = call(capsys, "bench")
    assert code == 1
    assert "bench/run.py" in result["error"]


def test_bench_passes_arguments_on_and_reports_failure(tmp_path, capsys, monkeypatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "ops.h").touch()
    (tmp_path / "bench" / "run.py").write_text("import sys; sys.exit(int(sys.argv[2]))")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench.bm_fast, "__file__", str(tmp_path / "a" / "b" / "c" / "__init__.py"))
    code = main(["bench", "--json", "--", "--code", "0"])
    result = json.loads(capsys.readouterr().out)
    assert code == 0
    assert result["arguments"] == ["--code", "0"]
    assert main(["bench", "--", "--code", "3"]) == 1
    assert "failed with exit code 3" in capsys.readouterr().err


@pytest.mark.parametrize(("hidden", "method"), [(4, "exact"), (24, "ais")])
def test_demo_measures_and_draws_and_may_run_again(hidden, method, tmp_path, capsys):
    for _ in range(2):
        code, result, errors = call(
            capsys, "demo", "--hidden", hidden, "--epochs", 2, "--output", tmp_path / "demo", "--threads", 1
        )
        assert code == 0, result
    assert result["method"] == method
    assert {Path(f).name for f in result["files"]} == {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"samples_over_sweeps.png", "filters.png", "learning_curve.png"} <= {Path(f).name for f in result["files"]}
    assert -45 < result["log_likelihood"] < -20  # independent units with the rates of the data reach about -27
    assert result["standard_error"] > 0
    assert abs(result["ais_log_likelihood"] - result["log_likelihood"]) < 0.1
    assert "log_likelihood_valid=" in errors  # the live figure
    assert str(tmp_path / "demo") in errors


def test_plain_json_has_no_infinity():
    given = {"a": float("inf"), 1: [float("nan"), 2.0], "p": Path("x"), "t": (True, None, "s")}
    assert common.plain(given) == {"a": None, "1": [None, 2.0], "p": "x", "t": [True, None, "s"]}
