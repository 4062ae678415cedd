"""Recipes with other settings than their own: they leave the recorded results alone, and join no others to them."""

from __future__ import annotations

import importlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

RECIPES = Path(__file__).parents[1] / "recipes"

Load = Callable[[str], ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a recipe, its runs and results in a folder of the test's own."""
    monkeypatch.syspath_prepend(str(RECIPES))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    imported = []

    def named(name: str) -> ModuleType:
        module = importlib.import_module(name)
        imported.append(name)
        monkeypatch.setattr(sys.modules["common"], "FOLDER", tmp_path)
        return module

    yield named
    for name in (*imported, "common"):
        sys.modules.pop(name, None)


def call(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
    module.main()


def test_a_trial_of_a_deep_machine_has_a_place_of_its_own(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load("dbm")
    small = replace(recipe.RECIPES["digits"], hidden=(5, 4), epochs=(1, 1, 2), n_betas=20)
    monkeypatch.setitem(recipe.RECIPES, "digits", small)
    call(recipe, monkeypatch, "digits", "--epochs", "1", "1", "2")  # the recipe's own, in words
    record = tmp_path / "results" / "dbm-digits.json"
    before = record.read_bytes()
    own = {path: path.read_bytes() for path in (tmp_path / "runs" / "dbm-digits").iterdir()}
    call(recipe, monkeypatch, "digits", "--epochs", "1", "1", "1")
    trial = tmp_path / "runs" / "dbm-digits-epochs-1-1-1"
    assert "results in runs/dbm-digits-epochs-1-1-1/record.json" in capsys.readouterr().out
    assert json.loads((trial / "record.json").read_text())["recipe"]["epochs"] == [1, 1, 1]
    assert (trial / "pictures" / "samples.png").exists()
    assert (record.read_bytes(), {path: path.read_bytes() for path in own}) == (before, own)
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"dbm-digits", "dbm-digits.json"}


def test_the_table_of_operators_joins_runs_of_equal_settings_only(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load("tempering")
    monkeypatch.setattr(recipe, "RESULTS", tmp_path / "results")
    modes = recipe.TASKS["modes"]
    monkeypatch.setitem(recipe.TASKS, "modes", lambda device: replace(modes(device), hidden=4, epochs=2))
    arguments = ("modes", "--methods", "PCD", "parallel tempering")
    call(recipe, monkeypatch, *arguments)
    call(recipe, monkeypatch, *arguments, "--seeds", "2")  # joined
    record = tmp_path / "results" / "tempering.json"
    held = json.loads(record.read_text())["modes"]
    assert (held["epochs"], held["hidden"], sorted(held["runs"]["PCD"])) == (2, 4, ["1", "2"])
    command = held["runs"]["parallel tempering"]["1"]["command"]
    assert shlex.split(command) == ["python", "recipes/tempering.py", *arguments]
    before = {path: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    monkeypatch.setitem(recipe.TASKS, "modes", lambda device: replace(modes(device), hidden=5, epochs=2))
    with pytest.raises(SystemExit, match="2"):
        call(recipe, monkeypatch, *arguments)
    assert f"modes: the runs in {record} have hidden 4 in place of 5; move it away" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before


def test_the_recorded_comparison_of_operators_is_of_the_settings_of_the_recipe(load: Load) -> None:
    recipe = load("tempering")
    held = json.loads((RECIPES / "results" / "tempering.json").read_text())
    for name in ("modes", "bars", "shifting"):  # the others need data that are not part of the package
        task = recipe.TASKS[name]("cpu")
        assert {key: held[name][key] for key in recipe.settings_of(task)} == recipe.settings_of(task)
        assert [next(iter(runs.values()))["updates"][-1] for runs in held[name]["runs"].values()] == [task.epochs] * 6


def test_the_picture_of_tempering_says_what_is_drawn_of_several_seeds(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tempering, labels = load("tempering"), []
    monkeypatch.setattr(tempering.plots, "save", lambda figure, _: labels.extend(a.get_ylabel() for a in figure.axes))
    runs = [{str(seed): {"updates": [1, 2], "scores": [2.0, 1.0]} for seed in range(n)} for n in (3, 1)]
    results = {
        name: {"about": f"{name}, small", "unit": tempering.BELOW, "runs": {"PCD": held}}
        for name, held in zip(("flips", "digits"), runs, strict=True)
    }
    tempering.write(results, tmp_path)
    assert labels == [f"flips, median of 3 seeds\n{tempering.BELOW}", f"digits\n{tempering.BELOW}"]
