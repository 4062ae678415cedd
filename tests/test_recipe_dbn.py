"""The recipe of a belief net: it learns, draws and records, and the same command goes on where it stopped."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The recipe, its results in a folder of the test's own."""
    monkeypatch.syspath_prepend(str(RECIPES))
    module = importlib.import_module("dbn")
    monkeypatch.setattr(sys.modules["common"], "FOLDER", tmp_path)
    yield module
    for name in ("dbn", "common"):
        del sys.modules[name]


def test_digits_in_small_and_again_from_their_checkpoints(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(recipe.RECIPES["digits"], hidden=(12, 8), epochs=(2, 2, 2), n_betas=20, n_samples=2)
    monkeypatch.setitem(recipe.RECIPES, "digits", small)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(sys, "argv", ["dbn.py", "digits"])
    records = []
    for _ in range(2):  # the second call has nothing left to train
        recipe.main()
        records.append(json.loads((tmp_path / "results" / "dbn-digits.json").read_text()))
    assert "fine-tuned" in capsys.readouterr().out
    for stage in ("greedy", "fine-tuned"):
        assert records[0][stage] == records[1][stage]
        assert "nats" in records[0][stage]["test"]
    assert records[0]["greedy"] != records[0]["fine-tuned"]
    assert [row["epoch"] for row in records[0]["history"]] == [1, 2] == [row["epoch"] for row in records[1]["history"]]
    assert records[0]["command"] == "python recipes/dbn.py digits"
    pictures = {path.name for path in (tmp_path / "results" / "dbn-digits").glob("*.png")}
    assert pictures == {"samples.png", "filters1.png", "filters2.png"}
    monkeypatch.setitem(recipe.RECIPES, "digits", replace(small, epochs=(1, 2, 2)))
    with pytest.raises(SystemExit, match="has 2 epochs behind it, not 1"):
        recipe.main()
