"""The command evaluate: figures, verdicts and refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast import data
from bm_fast.cli import evaluate
from bm_fast.estimation import AISEstimate
from bm_fast.rbm import RBM
from cli_calls import call


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
    (tmp_path / "tempering.png").touch()  # beside no older evaluation, so it may be anybody's
    _, result, _ = call(capsys, "evaluate", trained, "--split", "valid", "--seed", 3, "--output", tmp_path)
    rbm = RBM.load(trained / "checkpoint.safetensors")
    images = data.load("digits", "fixed-sample", seed=3).split("valid")
    each = -rbm.free_energy(images) - result["log_z"]
    assert result["log_likelihood"] == pytest.approx(each.mean().item(), abs=1e-9)
    assert result["standard_error"] == pytest.approx(each.std().item() / math.sqrt(300), rel=1e-9)
    assert (tmp_path / "tempering.png").exists()


def test_evaluate_by_a_bracket_agrees_with_exact(trained, tmp_path, capsys):
    _, exact, _ = call(capsys, "evaluate", trained, "--output", tmp_path / "exact")
    arguments = ("evaluate", trained, "--method", "bracket", "--runs", 40, "--rounds", 200)
    code, result, text = call(capsys, *arguments, "--output", tmp_path / "bracket")
    assert code == 0
    assert result["trustworthy"], result["reason"]
    assert (result["method"], result["base"], result["runs"], result["rounds"]) == ("bracket", "data", 40, 200)
    # the seed is fixed; over seeds, fewer than one in 10^6 lies beyond 5 standard errors
    assert abs(result["log_z"] - exact["log_z"]) < 5 * result["log_z_standard_error"] < 0.5
    low, high = result["bracket"]
    errors = math.hypot(*(result[side]["log_z_standard_error"] for side in ("forward", "reverse")))
    assert low - 5 * errors < exact["log_likelihood"] < high + 5 * errors
    assert high - low < 0.5
    assert result["standard_error"] > result["standard_error_from_cases"] == exact["standard_error_from_cases"]
    assert {path.name for path in (tmp_path / "bracket").iterdir()} == {"evaluation.json", "tempering.png"}
    assert text.count("log-likelihood = ") == 1  # one headline, the details after it
    headline, *details = text[text.index("log-likelihood = ") :].splitlines()
    crossed = "" if low <= high else ", ends crossed within their errors"
    assert headline.endswith(f"per case, bracket {min(low, high):.2f} to {max(low, high):.2f}{crossed}")
    assert [line.split(":")[0].strip() for line in details[1:5]] == [
        *("tempering", "forward annealing", "reverse annealing", "ladders")
    ]
    _, uniform, _ = call(capsys, *arguments, "--base", "uniform", "--output", tmp_path / "uniform")
    assert uniform["base"] == "uniform"
    assert uniform["log_z"] != result["log_z"]
    code, _, text = call(capsys, "evaluate", trained, "--output", tmp_path / "bracket", "--overwrite")
    assert code == 0
    assert [path.name for path in (tmp_path / "bracket").iterdir()] == ["evaluation.json"]
    assert "Removed with the older results: tempering.png" in text


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
        (["--method", "bracket", "--base", "both"], "--base: expected data or uniform for a bracket"),
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
    assert code == 2
    assert "has no test split" in result["error"]
    code, result, _ = call(capsys, *arguments, "--split", "train")
    assert (code, result["protocol"], result["method"]) == (0, "binary", "exact")
