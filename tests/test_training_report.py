"""The report on a training run: what it calls dead, saturated, stuck and large, and that it survives a checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from bm_fast import DBM, RBM, plots
from bm_fast.model import BoltzmannModel
from bm_fast.tempering import Gibbs, Tempering
from bm_fast.training import PCD, MeanFieldPCD, PersistentChains, Progress, Trainer, TrainingReport
from bm_fast.training.health import _stuck


def rows(n: int = 200, units: int = 12) -> Tensor:
    return (torch.rand(n, units, generator=torch.Generator().manual_seed(0)) < 0.4).to(torch.uint8)


def run(
    model: BoltzmannModel, estimator: Any = None, rate: float = 0.0, epochs: int = 2, centred: bool = True
) -> TrainingReport:
    report = TrainingReport()
    optimizer = SGD(model.parameters(), lr=rate)
    estimator = estimator or PCD(40)
    Trainer(model, optimizer, estimator, 50, callbacks=[report], centred=centred).fit(rows(), epochs)
    return report


def test_a_run_without_faults(tmp_path: Path) -> None:
    report = run(RBM(12, 8, seed=1), rate=0.05, epochs=3)
    assert [row["epoch"] for row in report.rows] == [1, 2, 3]
    assert report.faults == ()
    assert report.rows[-1]["typical weight"] != report.rows[0]["typical weight"]
    assert "FAULT" not in str(report)
    assert str(report).startswith("after epoch 3:\n  dead hidden 0.0%")
    panels = report.curves()
    assert list(panels) == ["share of hidden units", "share of chains", "weights"]
    assert panels["weights"]["largest weight"] == ([1, 2, 3], [row["largest weight"] for row in report.rows])
    assert plots.save(plots.learning_curve(panels), tmp_path / "report.png").exists()


def test_dead_and_saturated_units_are_counted() -> None:
    rbm = RBM(12, 8, seed=1)
    with torch.no_grad():
        rbm.hidden_bias[:2] = -9
        rbm.hidden_bias[2:5] = 9
        rbm.hidden_bias[5] = -6
        rbm.weight[0, 5] = 14  # on or off with visible unit 0
    report = run(rbm)
    row = report.rows[-1]
    assert (row["dead hidden"], row["saturated hidden"]) == (2 / 8, 3 / 8)
    assert row["decided hidden"] == 6 / 8
    assert "25% of the units of 'hidden' are off" in report.faults[0]
    assert "38% of the units of 'hidden' are on" in report.faults[1]
    assert "FAULT: 25% of the units" in str(report)


def test_stuck_chains_and_large_weights_are_seen() -> None:
    """All units on or all off: block Gibbs sampling never crosses between the two."""
    rbm = RBM(12, 6, seed=1)
    with torch.no_grad():
        rbm.weight.fill_(4)
        rbm.visible_bias.fill_(-12)
        rbm.hidden_bias.fill_(-24)
    report = run(rbm, PCD(100, sweeps=5))
    assert report.rows[0]["stuck chains"] < 0.6  # from fair coins to either mode
    assert report.rows[1]["stuck chains"] > 0.9
    assert "of the chains hardly moved" in report.faults[-1]
    assert "use tempered chains (PersistentChains), more sweeps" in report.faults[-1]
    with torch.no_grad():
        rbm.weight[0, 0] = 30
    assert "the largest weight is 30" in run(rbm).faults[-1]


def test_advice_about_stuck_chains_depends_on_what_moves_them() -> None:
    frozen, deep = RBM(12, 6, seed=1), DBM((12, 6, 4), seed=1)
    for model in (frozen, deep):
        with torch.no_grad():
            model.layer_biases[0].fill_(-40)
    tempered = Tempering([0.9, 1.0], sweeps=2)
    assert "; Tempering needs more rungs, rounds or sweeps" in run(frozen, PersistentChains(20, tempered)).faults[-1]
    assert "; use tempered chains (PersistentChains)" in run(frozen, PersistentChains(20, Gibbs())).faults[-1]
    assert "; use tempered chains (MeanFieldPCD(operator=Tempering()))" in run(deep, MeanFieldPCD(20)).faults[-1]


def test_free_chains_are_not_stuck_and_those_that_all_froze_in_one_state_are() -> None:
    assert run(RBM(12, 6, seed=1)).rows[-1]["stuck chains"] == 0
    frozen = RBM(12, 6, seed=1)
    with torch.no_grad():
        frozen.visible_bias.fill_(-40)
    report = run(frozen)
    assert report.rows[0]["stuck chains"] < 0.01  # from fair coins
    assert report.rows[-1]["stuck chains"] == 1
    assert "100% of the chains hardly moved" in str(report)


def test_every_hidden_layer_of_a_deep_machine_is_looked_at() -> None:
    dbm = DBM((12, 6, 4), seed=1)
    with torch.no_grad():
        dbm.layer_biases[2][0] = -30
    report = run(dbm, MeanFieldPCD(20, sweeps=1))
    top = dbm.graph.layers[2].name
    assert report.rows[-1][f"dead {top}"] == 1 / 4
    assert report.rows[-1][f"dead {dbm.graph.layers[1].name}"] == 0


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    whole = run(RBM(12, 8, seed=1), rate=0.05, epochs=4)
    rbm, report = RBM(12, 8, seed=1), TrainingReport()
    trainer = Trainer(rbm, SGD(rbm.parameters(), lr=0.05), PCD(40), 50, callbacks=[report])
    trainer.fit(rows(), 2)
    trainer.save(tmp_path / "run.safetensors")
    rbm, resumed = RBM(12, 8), TrainingReport()
    trainer = Trainer.resume(tmp_path / "run.safetensors", rbm, SGD(rbm.parameters(), lr=0.05), callbacks=[resumed])
    assert (resumed.rows, resumed.faults) == (report.rows, report.faults)
    trainer.fit(rows(), 4)
    assert resumed.rows == whole.rows


def test_other_models_are_refused_and_no_epoch_is_no_fault() -> None:
    report = TrainingReport()
    assert (str(report), report.faults) == ("no epoch yet", ())
    trainer: Any = SimpleNamespace(model=torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="TrainingReport is about Boltzmann machines, the model is of type Linear"):
        report.on_start(Progress(trainer, 1, None, None))


def test_a_quarter_of_the_distance_between_two_chains_decides() -> None:
    """Two chains differ in 8 units: to have changed 1 of them is to be stuck, to have changed 2 is not."""
    now = torch.tensor([[0] * 8, [1] * 8], dtype=torch.uint8)
    before = now.clone()
    before[0, 0], before[1, :2] = 1, 0
    assert _stuck(before, now) == 0.5
