"""The recipe that fine-tunes classifiers: its split of labels, its protocol, and going on after an interruption."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bm_fast import DBM
from bm_fast.data import load

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The recipe, its results and networks in a folder of the test's own."""
    monkeypatch.syspath_prepend(str(RECIPES))
    module = importlib.import_module("classify")
    monkeypatch.setattr(sys.modules["common"], "FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "SAVE_EVERY", 0.0)
    dbm = DBM((64, 20, 10), seed=0, weight_scale=0.3)
    dbm.initialise_biases(load("digits").train)
    dbm.save(tmp_path / "dbm.safetensors")
    yield module
    for name in ("classify", "common"):
        del sys.modules[name]


def call(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["classify.py", "digits", "--dbm", "dbm.safetensors", *arguments])
    recipe.main()


def result(name: str, epochs: int) -> dict:
    found = json.loads(Path(f"runs/classify-{name}-epochs-{epochs}/record.json").read_text())
    del found["processor_seconds_of_learning"]
    return found


def test_an_interrupted_recipe_goes_on_to_the_same_result(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    call(recipe, monkeypatch, "--epochs", "3")
    whole = result("digits", 3)
    for start in recipe.STARTS:
        assert 0 < whole["test_error"][start] < 0.92
        assert whole["found"]["all"][start]["epochs"] == 3
    assert "test error" in Path("runs/classify-digits-epochs-3/record.log").read_text()
    (tmp_path / "again").mkdir()
    (tmp_path / "dbm.safetensors").rename(tmp_path / "again" / "dbm.safetensors")
    monkeypatch.chdir(tmp_path / "again")
    passes, one_pass = [], recipe.Task._pass

    def stop(*arguments):
        passes.append(arguments)
        if len(passes) == 5:  # in the second setting, after an epoch that was saved
            raise KeyboardInterrupt
        return one_pass(*arguments)

    monkeypatch.setattr(recipe.Task, "_pass", stop)
    with pytest.raises(SystemExit, match="the same command goes on"):
        call(recipe, monkeypatch, "--epochs", "3")
    call(recipe, monkeypatch, "--epochs", "3")
    assert result("digits", 3) == whole
    n_settings, n_refits = (
        len(recipe.ALL_LABELS["digits"].settings),
        sum(f["epochs"] for f in whole["found"]["all"].values()),
    )
    assert len(passes) == 2 * n_settings * 3 + n_refits + 1


def test_networks_of_other_settings_are_left_alone(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    call(recipe, monkeypatch, "--epochs", "1")
    run = Path("runs/classify-digits-epochs-1")
    kept = {path.name: path.read_bytes() for path in run.glob("*.safetensors")}
    with pytest.raises(SystemExit, match="move it away to start anew"):
        call(recipe, monkeypatch, "--epochs", "1", "--bfloat16")
    assert {path.name: path.read_bytes() for path in run.glob("*.safetensors")} == kept


def test_lbfgs_learns(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    call(recipe, monkeypatch, "--epochs", "15", "--optimizer", "lbfgs")
    assert result("digits-lbfgs", 15)["test_error"]["machine"] < 0.2


def test_test_rows_are_looked_at_once_and_last(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, rows = [], recipe.Task.rows

    def note(task, v, labels):
        seen.append(len(v))
        return rows(task, v, labels)

    monkeypatch.setattr(recipe.Task, "rows", note)
    monkeypatch.setattr(recipe, "DRAWS", 2)
    call(recipe, monkeypatch, "--epochs", "1", "--labels", "50")
    assert seen == [50, 50, 300]
    assert set(result("digits-50", 1)["found"]) == {"draw0", "draw1"}


def test_few_labels_are_balanced_and_held_out_in_turn(recipe: ModuleType) -> None:
    labels = load("digits").train_labels
    index = recipe.few(labels, 70, 10, seed=3)
    assert len(index.unique()) == 70
    assert labels[index].bincount().tolist() == [7] * 10
    assert not torch.equal(index, recipe.few(labels, 70, 10, seed=4))
    rows = recipe.Rows(index[:, None], labels[index])
    folds = recipe.cross_validation(rows, 10)
    assert len(folds) == recipe.FOLDS
    assert torch.cat([held.x for _, held in folds]).flatten().sort().values.equal(index.sort().values)
    for train, held in folds:
        assert not set(train.x.flatten().tolist()) & set(held.x.flatten().tolist())
        counts = held.labels.bincount(minlength=10)
        assert counts.max() - counts.min() == 0


@pytest.mark.parametrize("labels", ["55", "40", "0"])
def test_numbers_of_labels_that_cannot_be_balanced(
    labels: str, recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call(recipe, monkeypatch, "--labels", labels)
    assert "--labels: expected a multiple of 10, at least 50" in capsys.readouterr().err
