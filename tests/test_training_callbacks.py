"""What runs beside training: early stopping brings the best model back, figures and curves are those of the model."""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR

from bm_fast import RBM
from bm_fast.training import (
    PCD,
    Callback,
    Checkpoint,
    EarlyStopping,
    Evaluate,
    History,
    Progress,
    ProgressBar,
    StopOnOverfitting,
    TensorBoard,
    Trainer,
)


def data(n: int = 30, seed: int = 0) -> Tensor:
    return torch.randint(2, (n, 6), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def trainer_of(callbacks: Sequence[Callback], rate: float = 0.1) -> Trainer:
    rbm = RBM(6, 3, seed=1)
    optimizer = SGD(rbm.parameters(), lr=rate)
    return Trainer(rbm, optimizer, PCD(5), 10, scheduler=StepLR(optimizer, 1, 0.5), callbacks=callbacks)


def weights_of(trainer: Trainer) -> Tensor:
    return trainer.model.weight.detach().clone()


class Weights(Callback):
    """The weights after each epoch."""

    def __init__(self) -> None:
        self.after: list[Tensor] = []

    def on_epoch(self, progress: Progress) -> None:
        self.after.append(weights_of(progress.trainer))


def figures(values: Sequence[float], every: int = 1) -> Evaluate:
    """An evaluation that gives these values one after the other."""
    left = iter(values)
    return Evaluate({"figure": lambda rbm: next(left)}, every)


# --- early stopping ---------------------------------------------------------------------------------------------------


def test_early_stopping_ends_training_and_brings_the_best_model_back() -> None:
    weights, stopping = Weights(), EarlyStopping("figure", patience=2)
    trainer = trainer_of([figures([-5, -3, -2, -4, math.nan]), weights, stopping])
    trainer.fit(data(), 20)
    assert trainer.epoch == 5
    assert (stopping.best, stopping.best_epoch) == (-2, 3)
    assert torch.equal(weights_of(trainer), weights.after[2])
    assert not torch.equal(weights_of(trainer), weights.after[4])


def test_after_the_last_epoch_the_latest_model_stays_and_the_best_one_is_at_hand() -> None:
    weights, stopping = Weights(), EarlyStopping("figure", patience=5)
    trainer = trainer_of([figures([1, 3, 2]), weights, stopping])
    trainer.fit(data(), 3)
    assert torch.equal(weights_of(trainer), weights.after[2])
    trainer.model.load_state_dict(stopping.best_parameters)
    assert torch.equal(weights_of(trainer), weights.after[1])


def test_a_stop_by_another_callback_leaves_the_latest_model() -> None:
    class Stop(Callback):
        def on_epoch(self, progress: Progress) -> None:
            if progress.trainer.epoch == 2:
                progress.stop_reason = "enough"

    weights = Weights()
    trainer = trainer_of([figures([2, 1]), weights, EarlyStopping("figure"), Stop()])
    trainer.fit(data(), 5)
    assert torch.equal(weights_of(trainer), weights.after[1])


def test_epochs_without_the_metric_do_not_count() -> None:
    stopping = EarlyStopping("figure", patience=2)
    trainer = trainer_of([figures([1, 0, 0], every=3), stopping])
    trainer.fit(data(), 20)
    assert (trainer.epoch, stopping.best_epoch) == (9, 3)


def test_interrupted_training_keeps_the_latest_model() -> None:
    class Press(Callback):
        def on_epoch(self, progress: Progress) -> None:
            if progress.trainer.epoch == 2:
                raise KeyboardInterrupt

    weights = Weights()
    trainer = trainer_of([figures([2, 1]), weights, EarlyStopping("figure"), Press()])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(data(), 5)
    assert torch.equal(weights_of(trainer), weights.after[1])


def test_a_metric_that_nobody_adds_is_an_error_before_training() -> None:
    trainer = trainer_of([figures([1, 2]), History(), EarlyStopping("likelihood")])
    message = r"metric: expected one of \['figure', 'free_energy_gap'\].*, got 'likelihood'"
    with pytest.raises(ValueError, match=message):
        trainer.fit(data(), 2, validation=data(8, seed=2))
    assert trainer.update == 0


def test_a_metric_that_is_added_too_late_is_an_error_before_training() -> None:
    trainer = trainer_of([EarlyStopping("figure"), figures([1, 2])])
    with pytest.raises(ValueError, match=r"metric: expected one of \[\] from .* before EarlyStopping, got 'figure'"):
        trainer.fit(data(), 2)
    assert trainer.update == 0


def test_a_metric_that_never_comes_is_an_error_and_the_model_is_saved(tmp_path: Path) -> None:
    """The names that a callback of the user's adds are not known beforehand."""
    path = tmp_path / "run"
    trainer = trainer_of([Weights(), EarlyStopping("likelihood"), Checkpoint(path, every_epochs=100)])
    with pytest.raises(ValueError, match=r"metric: no epoch had a usable 'likelihood'; the last one had \[\]"):
        trainer.fit(data(), 2)
    assert torch.equal(RBM.load(path).weight, weights_of(trainer))


def test_a_metric_of_the_users_own_callback_may_come_late() -> None:
    class Late(Callback):
        def on_epoch(self, progress: Progress) -> None:
            if progress.trainer.epoch >= 2:
                progress.metrics["late"] = -progress.trainer.epoch

    stopping = EarlyStopping("late", patience=2)
    trainer = trainer_of([Late(), stopping])
    trainer.fit(data(), 10)
    assert (trainer.epoch, stopping.best_epoch) == (4, 2)


class Fail(Callback):
    """Fails at the end, or after the first epoch as well."""

    def __init__(self, message: str, early: bool = False) -> None:
        self.message, self.early, self.ends = message, early, 0

    def on_epoch(self, progress: Progress) -> None:
        if self.early:
            raise RuntimeError(f"{self.message} in an epoch")

    def on_end(self, progress: Progress) -> None:
        self.ends += 1
        raise RuntimeError(self.message)


def test_all_callbacks_end_and_the_first_error_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "run"
    fails = [Fail("first"), Fail("second")]
    trainer = trainer_of([*fails, Checkpoint(path, every_epochs=100)])
    with pytest.raises(RuntimeError, match=r"^first\n") as caught:
        trainer.fit(data(), 2)
    assert [fail.ends for fail in fails] == [1, 1]
    assert caught.value.__notes__ == ["on_end of Fail failed as well: RuntimeError('second')"]
    assert torch.equal(RBM.load(path).weight, weights_of(trainer))


def test_the_error_that_ended_training_comes_before_those_of_the_end() -> None:
    fail = Fail("first", early=True)
    with pytest.raises(RuntimeError, match=r"^first in an epoch\n") as caught:
        trainer_of([fail]).fit(data(), 2)
    assert fail.ends == 1
    assert caught.value.__notes__ == ["on_end of Fail failed as well: RuntimeError('first')"]


def test_overfitting_stops_at_the_limit() -> None:
    """Twelve rows, known by heart soon: the gap of the last good epoch is below the limit, the others above."""
    gaps: list[float] = []

    class Gaps(Callback):
        def on_epoch(self, progress: Progress) -> None:
            gaps.append(progress.metrics["free_energy_gap"])

    weights, stopping = Weights(), StopOnOverfitting(limit=0.3, patience=2)
    rbm = RBM(6, 20, seed=1)
    trainer = Trainer(rbm, SGD(rbm.parameters(), lr=0.5), PCD(20), 10, callbacks=[Gaps(), weights, stopping])
    trainer.fit(data(12), 400, validation=data(40, seed=5))
    assert trainer.epoch < 400
    assert gaps[-3] <= 0.3 < min(gaps[-2:])
    assert stopping.best == gaps[-3]
    assert torch.equal(weights_of(trainer), weights.after[-3])


def test_overfitting_needs_validation_rows() -> None:
    with pytest.raises(ValueError, match="validation: StopOnOverfitting needs validation rows in fit"):
        trainer_of([StopOnOverfitting(1.0)]).fit(data(), 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EarlyStopping("x", patience=0), "patience: expected a whole number of at least 1, got 0"),
        (lambda: StopOnOverfitting(math.nan), "limit: expected a finite number of nats, got nan"),
        (lambda: Checkpoint("x", every_epochs=0), "every_epochs: expected a whole number"),
        (lambda: Checkpoint("x", every_updates=0), "every_updates: expected a whole number"),
    ],
)
def test_bad_settings_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# --- figures ----------------------------------------------------------------------------------------------------------


def test_history_is_the_learning_curve() -> None:
    history = History()
    trainer = trainer_of([Evaluate({"bias": lambda rbm: float(rbm.hidden_bias.sum())}, every=2), history], rate=0.8)
    trainer.fit(data(), 4, validation=data(8, seed=2))
    assert [(row["epoch"], row["update"]) for row in history.rows] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    assert [row["learning_rate"] for row in history.rows] == [0.4, 0.2, 0.1, 0.05]
    assert ["bias" in row for row in history.rows] == [False, True, False, True]
    assert history.rows[-1]["bias"] == float(trainer.model.hidden_bias.detach().sum())
    assert all("free_energy_gap" in row for row in history.rows)
    assert 0 < history.rows[0]["seconds"] < history.rows[-1]["seconds"]


@pytest.mark.parametrize("scalar", [np.float32, torch.tensor])
def test_figures_may_be_scalars_of_numpy_and_torch(scalar: Callable[[float], Any], tmp_path: Path) -> None:
    class Add(Callback):
        def on_epoch(self, progress: Progress) -> None:
            progress.metrics["figure"] = scalar(1.5)

    history, stopping = History(), EarlyStopping("figure")
    trainer_of([Add(), history, stopping, Checkpoint(tmp_path / "run")]).fit(data(), 2)
    assert [row["figure"] for row in history.rows] == [1.5, 1.5]
    assert all(type(value) is float for value in (stopping.best, history.rows[0]["figure"]))


def test_the_progress_bar_shows_live_figures(capfd: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of([figures([0.125, 0.25]), ProgressBar(seconds=0)])
    trainer.fit(data(), 2)
    shown = capfd.readouterr().err
    assert "6/6" in shown
    assert "epoch=2/2" in shown
    assert "figure=0.25" in shown
    rows = data()
    error = (trainer.model.reconstruct(rows) - rows).square().mean()
    assert float(shown.rsplit("reconstruction=", 1)[1][:6]) == pytest.approx(float(error), abs=0.05)


def test_the_progress_bar_begins_where_training_does(capfd: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of([ProgressBar()])
    trainer.fit(data(), 1)
    capfd.readouterr()
    trainer.fit(data(), 2)
    first = capfd.readouterr().err.split("\r")[1]
    assert "3/6" in first


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra bm_fast[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_of([figures([0.125, 0.25]), TensorBoard(tmp_path)], rate=0.8)
    trainer.fit(data(), 2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("figure")] == [(3, 0.125), (6, 0.25)]
    assert [e.value for e in events.Scalars("learning_rate")] == pytest.approx([0.4, 0.2])


def test_a_missing_tensorboard_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ordinary = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return ordinary(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'bm_fast\[tensorboard\]'"):
        TensorBoard(tmp_path)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_checkpoints_come_at_their_times_and_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "run"
    saved: list[tuple[int, int]] = []

    class Watch(Callback):
        def on_update(self, progress: Progress) -> None:
            self.look(progress)

        def on_epoch(self, progress: Progress) -> None:
            self.look(progress)

        def on_end(self, progress: Progress) -> None:
            self.look(progress)

        def look(self, progress: Progress) -> None:
            if path.exists():
                path.unlink()
                saved.append((progress.trainer.epoch, progress.trainer.update))

    trainer_of([Checkpoint(path, every_epochs=2, every_updates=4), Watch()]).fit(data(), 3)
    assert saved == [(1, 4), (2, 6), (2, 8), (3, 9)]


def test_a_checkpoint_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot save the checkpoint"):
        trainer_of([Checkpoint(tmp_path / "absent" / "run")]).fit(data(), 1)
