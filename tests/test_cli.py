"""The command line within this process: arguments, exit codes, and the commands info, bench and demo."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast.cli import COMMANDS, bench, common, console, main
from cli_calls import call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "digits", "--hidden", "0"], "--hidden: expected a whole number from 1 to 65536, got '0'"),
        (["train", "digits", "--epochs", "x"], "--epochs: expected a whole number"),
        (["train", "digits", "--learning-rate", "0"], "--learning-rate: expected a number above 0, got '0'"),
        (["train", "digits", "--learning-rate", "nan"], "expected a number above 0"),
        (
            ["train", "digits", "--learning-rate", "1e300"],
            "expected a number above 0 and at most 3.40282e+38, got '1e300'",
        ),
        (["train", "digits", "--momentum", "1"], "at least 0 and at most 0.9999"),
        (["train", "digits", "--seed", "-1"], "--seed: expected a whole number"),
        (["train", "digits", "--estimator", "pt"], "invalid choice"),
        (["sample", "x", "--shape", "28"], "--shape: expected rows x columns, as in 28x28, got '28'"),
        (["sample", "x", "--beta", "-1"], "--beta: expected a number of at least 0"),
        (["sample"], "required: checkpoint"),
        (["evaluate", "x", "--split", "all"], "invalid choice"),
        (["evaluate", "x", "--rounds", "1"], "--rounds: expected a whole number from 2"),
        (["evaluate", "x", "--runs", "1048577"], "--runs: expected a whole number from 1 to 1048576, got '1048577'"),
        (["compare", "x", "y", "--rounds", "1"], "--rounds: expected a whole number from 2"),
        (["compare", "x", "y", "--ladders", "1048577"], "--ladders: expected a whole number from 2 to 1048576"),
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


def test_every_command_explains_itself(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    top = capsys.readouterr().out
    for name, summary in COMMANDS.items():
        assert f"  {name} " in top
        assert summary.split()[0] in top
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        assert stopped.value.code == 0
        text = capsys.readouterr().out
        assert f"usage: bm-fast {name}" in text
        assert "examples:" in text
        assert "--json" in text


def test_what_cannot_be_used_exits_with_2_and_one_line(tmp_path, capsys):
    for arguments in (
        ["train", str(tmp_path / "none.npy")],
        ["sample", str(tmp_path / "none")],
        ["evaluate", str(tmp_path), "--data", "digits"],
    ):
        assert main(arguments) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("bm-fast: ")
        assert captured.err.count("\n") == 1
        assert str(tmp_path) in captured.err
    (tmp_path / "file").touch()
    assert main(["train", "digits", "--output", str(tmp_path / "file" / "run")]) == 2
    assert "cannot make the output folder" in capsys.readouterr().err


def test_what_fails_without_fault_of_the_command_line_exits_with_1(tmp_path, capsys, monkeypatch):
    def unreachable(*_):
        raise ConnectionError("no server answers")

    monkeypatch.setattr(common.data, "load", unreachable)
    assert call(capsys, "train", "mnist", "--output", tmp_path / "run")[:2] == (
        1,
        {"error": "no server answers", "exit_code": 1},
    )
    assert not (tmp_path / "run").exists()


def test_bad_data_are_named_with_their_file(tmp_path, capsys):
    np.save(tmp_path / "bad.npy", np.array([[0.5, np.nan]]))
    code, result, _ = call(capsys, "train", tmp_path / "bad.npy", "--output", tmp_path / "run")
    assert code == 2
    assert "bad.npy: train: expected values from 0 to 1, got nan" in result["error"]
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(console.UsageError) as stopped:
        main(["sample", str(tmp_path / "none"), "--debug"])
    assert isinstance(stopped.value.__cause__, FileNotFoundError)


def test_info_says_what_runs(capsys):
    code, result, _ = call(capsys, "info", "--threads", 1)
    assert code == 0
    assert result["backend"] in ("native", "reference")
    assert result["threads"] == 1
    assert result["torch"] == torch.__version__
    assert main(["info"]) == 0
    assert "instruction set" in capsys.readouterr().out


def test_commit_is_that_of_the_checkout_or_the_one_that_was_installed(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=A", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.setattr(common.bm_fast, "__file__", str(package / "__init__.py"))
    git("init")
    assert common.commit() is None  # a package beside somebody's project is not of its commit
    (package / "commit.txt").write_text("0123456789ab\n")
    assert common.commit() == "0123456789ab"
    git("add", "package/__init__.py")
    git("commit", "-m", "first")
    head = next((tmp_path / ".git" / "refs" / "heads").iterdir()).read_text()[:12]
    assert common.commit() == head
    (package / "__init__.py").write_text("changed = True")
    assert common.commit() == f"{head}-dirty"
    (package / "commit.txt").write_text("")
    monkeypatch.setenv("PATH", "")  # no git at all
    assert common.commit() is None


def test_bench_says_where_the_benchmark_is_when_it_is_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench.bm_fast, "__file__", str(tmp_path / "a" / "b" / "c" / "__init__.py"))
    code, result, _ = call(capsys, "bench")
    assert code == 2
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


def test_counted():
    assert [console.counted(n, "epoch") for n in (0, 1, 2000)] == ["0 epochs", "1 epoch", "2,000 epochs"]


def test_plain_json_has_no_infinity():
    given = {"a": float("inf"), 1: [float("nan"), 2.0], "p": Path("x"), "t": (True, None, "s")}
    assert console.plain(given) == {"a": None, "1": [None, 2.0], "p": "x", "t": [True, None, "s"]}


def test_help_says_defaults_in_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    told = {}
    for command in ("train", "vae", "demo"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        told[command] = capsys.readouterr().out
    assert "rbm alone (default: pcd)" in told["train"]
    assert "subtract the data means in the gradient (default: yes)" in told["train"]
    assert "(default: rbm: 20; dbm: 50; of small data more, up to 500, to make 2,500 updates)" in told["train"]
    assert "train with products in bfloat16 (default: no)" in told["vae"]
    assert "order, binarisation and samples (default: 0)" in told["vae"]
    assert "threads to use (default: as many as torch uses)" in told["train"]
    assert "threads to use (default: 1)" in told["demo"]
