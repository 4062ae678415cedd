"""The machine that the recipes left in recipes/results: it loads, and measures as the records beside it say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bm_fast import RBM
from bm_fast.data import load
from bm_fast.estimation import mean_log_likelihood, pseudo_log_likelihood

RESULTS = Path(__file__).parents[1] / "recipes" / "results"


@pytest.fixture(scope="module")
def long() -> RBM:
    return RBM.load(RESULTS / "mnist-long.safetensors")


def record(name: str) -> dict[str, float]:
    return json.loads((RESULTS / name).read_text())


def test_the_long_machine_loads(long: RBM) -> None:
    assert (long.n_visible, long.n_hidden) == (784, 500)


def test_the_long_machine_measures_as_recorded(long: RBM, data_folder: Path) -> None:
    if not (data_folder / "mnist").is_dir():
        pytest.skip("BM_FAST_DATA names no folder with mnist/")
    test = load("mnist", "fixed-sample").test
    bracket, evaluation = record("mnist-long.bracket.json"), record("mnist-long.evaluate.json")
    likelihood = mean_log_likelihood(long, test, bracket["log_z"])
    assert likelihood.mean == pytest.approx(bracket["log_likelihood"], abs=1e-3)
    pseudo = pseudo_log_likelihood(long, test[:1000])
    assert pseudo.mean().item() == pytest.approx(evaluation["pseudo_log_likelihood"], abs=1e-3)
