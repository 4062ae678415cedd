"""The benchmark runs, finds the same moments in every library, and saves what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bm_fast import DBM, RBM

RUN = Path(__file__).parents[1] / "bench" / "run.py"


def test_the_kernels_of_a_sweep_are_timed_and_saved(tmp_path: Path) -> None:
    command = [sys.executable, str(RUN.with_name("kernels.py")), "softmax", "--calls", "1"]
    command += ["--name", str(tmp_path / "small")]
    table = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split("|") for line in table.splitlines() if line.endswith("% |")]
    assert [int(row[1]) for row in rows] == [32, 100, 256]
    assert all(float(row[2]) > 0 and float(row[3]) > 0 for row in rows)
    saved = json.loads((tmp_path / "small.json").read_text())
    assert [f"{row['without']:.2f}, {row['with']:.2f}" for row in saved["least_ms_a_sweep"]] == [
        f"{float(row[2]):.2f}, {float(row[3]):.2f}" for row in rows
    ]
    assert saved["settings"]["what"] == "softmax"
    assert "processor" in saved["environment"]


def test_a_small_run_saves_its_table(tmp_path: Path) -> None:
    small = (
        "--models 6-4 5-4-3 --chains 8 --batches 50 --cases 9 --deep-batches 8 --threads 1 --calls 2 --seconds 0.001"
    )
    libraries = ["bm_fast", "torch", "torch-bf16", "numpy", "scikit-learn"]
    command = [sys.executable, str(RUN), *small.split(), "--libraries", *libraries, "--name", str(tmp_path / "small")]
    subprocess.run(command, check=True, capture_output=True)
    saved = json.loads((tmp_path / "small.json").read_text())
    cases = [(row["workload"], row["model"], row["library"]) for row in saved["results"]]
    assert cases == [
        *(("gibbs", "6-4", library) for library in libraries),
        *(("gibbs", "5-4-3", library) for library in libraries[:-1]),
        *(("pcd", "784-500", library) for library in ("bm_fast", "torch", "scikit-learn")),
        *(("mean field", "784-500-1000", library) for library in ("bm_fast", "torch", "torch-bf16")),
        *(("dbm", "784-500-1000", library) for library in ("bm_fast", "torch")),
    ]
    assert all(0 < row["least"] <= row["ms"] <= row["most"] for row in saved["results"])
    assert "scikit-learn: not run, samples machines of two layers only" in saved["notes"]
    table = (tmp_path / "small.md").read_text()
    assert table.count("| bm_fast |") == 5
    assert saved["environment"]["processor"] in table


def test_mean_field_and_updates_of_a_trained_machine_are_timed(tmp_path: Path) -> None:
    checkpoint = tmp_path / "dbm.safetensors"
    DBM((64, 6, 5), weight_scale=1.0).save(checkpoint)
    small = (
        "--models --batches --deep-batches 8 --cases 9 --threads 1 --calls 1 --seconds 0.001 --libraries bm_fast torch"
    )
    trained = ["--checkpoint", str(checkpoint), "--data", "digits", "--name", str(tmp_path / "small")]
    subprocess.run([sys.executable, str(RUN), *small.split(), *trained], check=True, capture_output=True)
    rows = json.loads((tmp_path / "small.json").read_text())["results"]
    assert [(row["workload"], row["model"], row["library"]) for row in rows] == [
        (workload, "64-6-5", library)
        for workload in ("mean field, trained", "mean field, to rest", "dbm, trained")
        for library in ("bm_fast", "torch")
    ]


def test_a_checkpoint_takes_the_place_of_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    from samplers import Problem

    trained = RBM(6, 4, weight_scale=1.0, seed=3)
    trained.save(tmp_path / "trained.safetensors")
    problem = Problem.of(str(tmp_path / "trained.safetensors"), 9)
    assert problem.units == (6, 4)
    assert torch.equal(problem.weights[0], trained.weight)
    for bias, expected in zip(problem.biases, (trained.visible_bias, trained.hidden_bias), strict=True):
        assert torch.equal(bias, expected)
    assert problem.visible.shape == (9, 6)
    assert torch.equal(Problem.of("6-4", 9).weights[0], Problem.random((6, 4), 9).weights[0])


def test_annealing_is_that_of_its_rivals(tmp_path: Path) -> None:
    """All estimate log Z of one small machine, 2,000 runs each, whose errors are below 0.01."""
    small = "--units 6 4 --runs 2000 --every 200 --threads 1 --calls 1 --seconds 0.001"
    command = [sys.executable, str(RUN.with_name("annealing.py")), *small.split(), "--name", str(tmp_path / "small")]
    subprocess.run(command, check=True, capture_output=True)
    saved = json.loads((tmp_path / "small.json").read_text())
    ours, *rivals = saved["results"]
    assert [row["contender"] for row in saved["results"]] == ["bm_fast", "torch", "torch, rand < p"]
    for rival in rivals:
        assert ours["log_z"] == pytest.approx(rival["log_z"], abs=0.06)
    assert all(0 < row["least"] <= row["median"] <= row["most"] for row in saved["results"])
    assert saved["settings"]["betas"] == 74


def test_ladders_are_timed_beside_plain_chains(tmp_path: Path) -> None:
    small = "--units 6 4 --rungs 4 --chains 8 16 --sweeps 1 2 --calls 2 --seconds 0.001"
    command = [sys.executable, str(RUN.with_name("tempering.py")), *small.split(), "--name", str(tmp_path / "small")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    rows = json.loads((tmp_path / "small.json").read_text())["results"]
    assert [(row["chains"], row["sweeps"]) for row in rows] == [(8, 1), (8, 2), (16, 1), (16, 2)]
    for row, line in zip(rows, printed, strict=True):
        assert row["ratio"] == pytest.approx(row["ladders"]["median"] / row["plain chains"]["median"])
        assert row["swaps"] == pytest.approx(row["ladders"]["median"] / row["chains without swaps"]["median"])
        assert f"{row['chains']} chains" in line
        assert line.endswith(f"ratios {row['ratio']:.3f} to plain chains, {row['swaps']:.3f} to chains without swaps")
    refused = subprocess.run([*command, "--chains", "10"], check=False, capture_output=True, text=True)
    assert "--chains: expected multiples of 4 rungs, got 10" in refused.stderr


def test_the_moment_check_sees_a_wrong_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RUN.parent))
    from samplers import Problem, Torch, disagreement

    class AllAtOnce(Torch):
        """Draws all layers from the old state: their means come out nearly right, their correlations do not."""

        def sweep(self, states: list[Tensor]) -> list[Tensor]:
            drawn = []
            for i in range(len(states)):
                self.order = [i]
                drawn.append(super().sweep(states)[i])
            return drawn

    weak = Problem.random((30, 20, 10), 16_000)
    problem = replace(weak, weights=tuple(3 * weight for weight in weak.weights))
    torch.manual_seed(0)
    right, again, wrong = Torch(problem), Torch(problem), AllAtOnce(problem)
    for sampler in (right, again, wrong):
        sampler.run(20)
    assert disagreement(right.layers(), again.layers()) < 2
    assert disagreement(right.layers(), wrong.layers()) > 2
