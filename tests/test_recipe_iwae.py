"""The recipes for autoencoders: each one asks for what its name says, and starts."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from bm_fast.checkpoints import load
from bm_fast.cli import main
from bm_fast.cli import vae as command
from bm_fast.cli.vae import Trainer as CommandTrainer
from bm_fast.data import Dataset

RECIPE = Path(__file__).parent.parent / "recipes" / "iwae.sh"
EPOCHS = {"short": 10, "two-hours": 60, "full": 3280}
NAMES = [f"{name}{layers}" for name in EPOCHS for layers in ("", "-2")]
DATA = ("mnist", "omniglot", "omniglot-chardata")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The recipe beside a bm-fast that only prints what it is asked for."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "recipes").mkdir()
    for name in ("iwae.sh", "arguments.sh"):
        shutil.copy(RECIPE.with_name(name), folder / "recipes")
    (folder / "bm-fast").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit "${CODE:-0}"\n')
    (folder / "bm-fast").chmod(0o755)
    return folder


def asked(checkout: Path, *arguments: str, code: int = 0) -> tuple[str, list[str]]:
    """Name of the result, and what bm-fast was asked for."""
    environment = {**os.environ, "PATH": f"{checkout}:{os.environ['PATH']}", "CODE": str(code)}
    script = [str(checkout / "recipes" / "iwae.sh"), *arguments]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    (result,) = (path for folder in ("recipes/results", "runs") for path in (checkout / folder).rglob("*.json"))
    words = result.read_text().splitlines()
    result.unlink()
    assert words[0] == "vae"
    assert words[-1] == "--json"
    within = result.relative_to(checkout)
    return result.name if within.parts[0] == "recipes" else str(within), words[1:-1]


@pytest.fixture(scope="module")
def requests(checkout) -> dict[tuple[str, str, int], list[str]]:
    found = {}
    for name, data, k in itertools.product(NAMES, DATA, (1, 5, 50)):
        result, found[name, data, k] = asked(checkout, name, data, str(k))
        parts = [f"iwae-{name}", *([data] if data != "mnist" else []), *([f"k{k}"] if k != 50 else [])]
        assert result == "-".join(parts) + ".json"
    return found


def test_every_recipe_starts_with_its_settings(requests, tmp_path, monkeypatch, capsys):
    """Two updates on noise in place of the data; recipes for Omniglot are those for MNIST but for the rows held out."""
    noise = torch.rand(430, 784, generator=torch.Generator().manual_seed(0))
    made = Dataset("noise", noise, noise[:30], noise[:30], (28, 28), "dynamic")
    monkeypatch.setattr(command, "load_data", lambda source, protocol: made)
    step = CommandTrainer._step

    def two(self, values, numbers):
        step(self, values, numbers)
        if self.update == 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(CommandTrainer, "_step", two)
    for (name, data, k), words in requests.items():
        assert words[0] == data
        if data != "mnist":
            assert [*words[1:-2], "--hold-out", "400"] == requests[name, "mnist", k][1:-2]
            if (name, data, k) != ("short", "omniglot", 5):
                continue
        output = tmp_path / f"{name}-{data}-{k}"
        assert main(["vae", *words, "--output", str(output), "--json"]) == 130
        capsys.readouterr()
        settings = json.loads((output / "configuration.json").read_text())["settings"]
        kind = name.removesuffix("-2")
        assert settings["epochs"] == EPOCHS[kind]
        assert settings["schedule"] == ("burda" if kind == "full" else "linear")
        assert settings["mixed_precision"] == (kind == "two-hours")
        assert settings["hold_out"] == (400 if data == "mnist" else 0)
        held = load(output / "checkpoint.safetensors")
        assert held["vae"]["latents"] == ((100, 50) if name.endswith("-2") else (50,))
        assert held["trainer"]["counts"][2] == 2
        estimator = {"name": "ELBO", "k": 1, "form": "kl"} if k == 1 else {"name": "DReG", "k": k}
        assert held["trainer"]["settings"]["estimator"] == estimator


def test_a_recipe_goes_on_with_a_run_and_records_it_under_its_name(checkout):
    words = ["--resume", "runs/iwae-short-k5"]
    assert asked(checkout, *words) == ("iwae-short-k5.json", words)
    same = ["--threads", "1", "--overwrite"]
    assert asked(checkout, "short", *same) == ("iwae-short.json", [*requests_of_short(), *same])


def test_a_trial_leaves_the_recorded_results_alone(checkout):
    trial = "runs/iwae-short-trial"
    assert asked(checkout, "short", "--epochs", "1") == (
        f"{trial}/record.json",
        [*requests_of_short()[:-1], trial, "--epochs", "1"],
    )
    assert asked(checkout, "--resume", trial) == (f"{trial}/record.json", ["--resume", trial])
    words = ["--resume", "runs/iwae-short-k5", "--test-rows", "10"]  # measured in another way than the recipe does
    assert asked(checkout, *words) == ("runs/iwae-short-k5/record.json", words)


def requests_of_short() -> list[str]:
    settings = ["--epochs", "10", "--layers", "200-200-50", "--estimator", "dreg", "--k", "50", "--hold-out", "400"]
    return ["mnist", *settings, "--output", "runs/iwae-short"]


def test_a_recipe_that_fails_keeps_the_older_result(checkout):
    results = checkout / "recipes" / "results"
    results.mkdir(exist_ok=True)
    (results / "iwae-short.json").write_text("vae\nolder\n--json\n")
    assert asked(checkout, "short", code=3) == ("iwae-short.json", ["older"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which recipe: short, two-hours, full"),
        (["long"], "unknown recipe long: short, two-hours"),
        (["short", "letters"], "unknown data letters: mnist, omniglot"),
        (["short", "mnist", "7"], "k: expected 1, 5 or 50, got 7"),
        (["--resume"], "--resume: which run"),
    ],
)
def test_recipes_that_do_not_exist(checkout, arguments, message):
    script = [str(checkout / "recipes" / "iwae.sh"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
