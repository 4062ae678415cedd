"""Checkpoints of training: kill -9, Ctrl-C and resume give the bits of an unbroken run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LRScheduler, MultiStepLR
from torch.utils.data import DataLoader, TensorDataset

from bm_fast import RBM, Kind
from bm_fast.training import (
    CD,
    PCD,
    Callback,
    Checkpoint,
    EarlyStopping,
    Evaluate,
    History,
    Progress,
    Trainer,
)

EPOCHS = 4
ROWS = 53  # six batches of ten an epoch, the last one ragged


def grey(n: int = ROWS, units: int = 8) -> Tensor:
    """Grey levels, so that binarisation draws too."""
    return torch.rand(n, units, generator=torch.Generator().manual_seed(0))


def momentum(rbm: RBM) -> Optimizer:
    return SGD(rbm.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-3)


def adam(rbm: RBM) -> Optimizer:
    return Adam(rbm.parameters(), lr=0.02)


def milestones(optimizer: Optimizer) -> LRScheduler:
    return MultiStepLR(optimizer, [1, 3], 0.5)


def loader(own_generator: bool) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(11) if own_generator else None
    return DataLoader(TensorDataset(grey()), batch_size=10, shuffle=True, generator=generator)


def new(kind: Kind = Kind.BERNOULLI) -> RBM:
    return RBM(8, 5, kind, seed=1, weight_scale=0.1)


def start(estimator: Any, make: Callable[[RBM], Optimizer], callbacks: Any = (), rbm: RBM | None = None) -> Trainer:
    rbm = new() if rbm is None else rbm
    optimizer = make(rbm)
    return Trainer(rbm, optimizer, estimator, 10, seed=5, scheduler=milestones(optimizer), callbacks=callbacks)


def resume(path: Path, make: Callable[[RBM], Optimizer], callbacks: Any = (), rbm: RBM | None = None) -> Trainer:
    """Resumes with objects of other parameters and settings than those in the file."""
    rbm = RBM(8, 5, seed=99) if rbm is None else rbm
    optimizer = make(rbm)
    for group in optimizer.param_groups:
        group["lr"] = 123.0
    return Trainer.resume(path, rbm, optimizer, MultiStepLR(optimizer, [77], 0.1), callbacks)


def assert_same(a: Trainer, b: Trainer) -> None:
    """The same bits in everything that goes on: parameters, optimiser, chains, counts."""
    for (name, p), (_, q) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    assert all(torch.equal(x, y) for x, y in zip(a.chains.layers, b.chains.layers, strict=True))
    assert (a.chains.sweep, a.chains.seed) == (b.chains.sweep, b.chains.seed)
    assert (a.epoch, a.batch, a.update) == (b.epoch, b.batch, b.update)
    state, other = a.optimizer.state_dict(), b.optimizer.state_dict()
    assert state["param_groups"] == other["param_groups"]
    for key, values in state["state"].items():
        for name, value in values.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other["state"][key][name])), name


class SaveAt(Callback):
    """Saves once, after a given update."""

    def __init__(self, update: int, path: Path) -> None:
        self.update, self.path = update, path

    def on_update(self, progress: Progress) -> None:
        if progress.trainer.update == self.update:
            progress.trainer.save(self.path)


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [CD(2), PCD(7, 2)], ids=str)
@pytest.mark.parametrize("make", [momentum, adam])
@pytest.mark.parametrize("update", [1, 6, 8, 12, 24])
def test_resuming_anywhere_gives_the_same_bits(
    estimator: Any, make: Callable[[RBM], Optimizer], update: int, tmp_path: Path
) -> None:
    """In an epoch, after its last batch and before its end, and after the last update of all."""
    path = tmp_path / "run"
    unbroken = start(estimator, make, [SaveAt(update, path)])
    unbroken.fit(grey(), EPOCHS)
    resumed = resume(path, make)
    assert resumed.update == update
    resumed.fit(grey(), EPOCHS)
    assert_same(resumed, unbroken)


def test_gaussian_machines_resume_too(tmp_path: Path) -> None:
    data = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(0))
    unbroken = start(PCD(6), adam, [SaveAt(9, tmp_path / "run")], new(Kind.GAUSSIAN))
    unbroken.fit(data, EPOCHS)
    resumed = resume(tmp_path / "run", adam, rbm=RBM(8, 5, Kind.GAUSSIAN, seed=3))
    resumed.fit(data, EPOCHS)
    assert_same(resumed, unbroken)


@pytest.mark.parametrize("own_generator", [True, False])
@pytest.mark.parametrize("update", [8, 12])
def test_loaders_resume_with_the_state_of_their_generator(own_generator: bool, update: int, tmp_path: Path) -> None:
    torch.manual_seed(21)
    unbroken = start(PCD(7), momentum, [SaveAt(update, tmp_path / "run")])
    unbroken.fit(loader(own_generator), EPOCHS)
    torch.manual_seed(22)
    resumed = resume(tmp_path / "run", momentum)
    resumed.fit(loader(own_generator), EPOCHS)
    assert_same(resumed, unbroken)


def test_the_free_energy_gap_after_resuming_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    """Of a loader the trainer knows the last batch alone, which the file must hold for an epoch that is over."""
    histories = History(), History()
    unbroken = start(PCD(7), momentum, [SaveAt(6, tmp_path / "run"), histories[0]])
    unbroken.fit(loader(True), EPOCHS, validation=grey())
    resumed = resume(tmp_path / "run", momentum, [histories[1]])
    assert resumed.batch == 6
    resumed.fit(loader(True), EPOCHS, validation=grey())
    gaps = [[row["free_energy_gap"] for row in history.rows] for history in histories]
    assert gaps[0] == gaps[1]


@pytest.mark.parametrize("source", [grey, lambda: loader(True), lambda: loader(False)], ids=["array", "own", "global"])
def test_resuming_between_epochs_gives_the_same_bits(source: Callable[[], Any], tmp_path: Path) -> None:
    path = tmp_path / "run"
    torch.manual_seed(21)
    unbroken = start(PCD(7), momentum)
    unbroken.fit(source(), EPOCHS)
    torch.manual_seed(21)
    start(PCD(7), momentum, [Checkpoint(path)]).fit(source(), 2)
    torch.manual_seed(22)
    resumed = resume(path, momentum)
    assert (resumed.epoch, resumed.batch) == (2, 0)
    resumed.fit(source(), EPOCHS)
    assert_same(resumed, unbroken)


def test_the_state_of_callbacks_comes_back(tmp_path: Path) -> None:
    """Early stopping remembers its best model and patience, the history its rows."""
    figures = iter([1.0, 3.0, 2.0, 2.5, 0.0, 0.0, 0.0, 0.0])
    path = tmp_path / "run"

    def callbacks() -> list[Callback]:
        return [Evaluate({"figure": lambda _: next(figures)}), EarlyStopping("figure", 3), History()]

    first = callbacks()
    trainer = start(PCD(5), momentum, [*first, SaveAt(18, path)])  # the last update of epoch 3 of 4
    trainer.fit(grey(), 3)
    best = first[1]
    assert isinstance(best, EarlyStopping)
    second = callbacks()
    figures = iter([2.5, 0.0, 0.0])
    resumed = resume(path, momentum, second)
    resumed.fit(grey(), 10)
    stopping, history = second[1], second[2]
    assert isinstance(stopping, EarlyStopping)
    assert isinstance(history, History)
    assert (stopping.best, stopping.best_epoch, resumed.epoch) == (3.0, 2, 5)
    assert [row["epoch"] for row in history.rows] == [1, 2, 3, 4, 5]
    seconds = [row["seconds"] for row in history.rows]
    assert seconds == sorted(seconds)
    assert all(torch.equal(p, best.best_parameters[name]) for name, p in resumed.model.named_parameters())


def test_early_stopping_that_does_not_stop_leaves_no_trace(tmp_path: Path) -> None:
    """The figure is best in the second epoch, yet epochs 4 to 8 begin with the parameters of the fourth."""
    path = tmp_path / "run"

    def callbacks(figures: list[float]) -> tuple[EarlyStopping, list[Callback]]:
        left, stopping = iter(figures), EarlyStopping("figure", patience=100)
        return stopping, [Evaluate({"figure": lambda _: next(left)}), stopping, Checkpoint(path)]

    figures = [1.0, 3.0, 2.0, 2.5, 0.0, 0.5, 0.0, 1.0]
    first, whole = callbacks(figures)
    unbroken = start(PCD(7), momentum, whole)
    unbroken.fit(grey(), 8)
    start(PCD(7), momentum, callbacks(figures[:4])[1]).fit(grey(), 4)
    second, rest = callbacks(figures[4:])
    resumed = resume(path, momentum, rest)
    resumed.fit(grey(), 8)
    assert_same(resumed, unbroken)
    assert resumed._learner.offsets is not None
    assert unbroken._learner.offsets is not None
    assert torch.equal(resumed._learner.offsets.visible, unbroken._learner.offsets.visible)
    assert torch.equal(resumed._learner.offsets.hidden, unbroken._learner.offsets.hidden)
    assert (second.best, second.best_epoch) == (first.best, first.best_epoch) == (3.0, 2)
    assert all(torch.equal(p, first.best_parameters[name]) for name, p in second.best_parameters.items())


# --- kill -9 and Ctrl-C -----------------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from test_training_resume import *

class Kill(Callback):
    def on_update(self, progress):
        if progress.trainer.update == 9:
            os.kill(os.getpid(), signal.SIGKILL)

path = Path(sys.argv[1])
trainer = start(PCD(7, 2), momentum, [Kill(), Checkpoint(path, every_updates=2)])
trainer.fit(grey(), EPOCHS)
"""


def test_kill_9_and_resume_give_the_bits_of_an_unbroken_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-c", KILLED, str(path)]
    killed = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = resume(path, momentum)
    assert (resumed.epoch, resumed.batch, resumed.update) == (1, 2, 8)
    resumed.fit(grey(), EPOCHS)
    unbroken = start(PCD(7, 2), momentum)
    unbroken.fit(grey(), EPOCHS)
    assert_same(resumed, unbroken)


class Press(Callback):
    """Presses Ctrl-C in the course of an update, as often as told."""

    def __init__(self, update: int, times: int = 1) -> None:
        self.update, self.times = update, times

    def on_update(self, progress: Progress) -> None:
        if progress.trainer.update == self.update:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


def test_ctrl_c_finishes_the_update_saves_and_raises(tmp_path: Path) -> None:
    path = tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    unbroken = start(PCD(7), momentum)
    unbroken.fit(grey(), EPOCHS)
    trainer = start(PCD(7), momentum, [Press(9), Checkpoint(path)])
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(grey(), EPOCHS)
    assert signal.getsignal(signal.SIGINT) is handler
    assert trainer.update == 9
    resumed = resume(path, momentum)
    assert resumed.update == 9
    resumed.fit(grey(), EPOCHS)
    assert_same(resumed, unbroken)
    trainer.fit(grey(), EPOCHS)  # and the interrupted one can go on as well
    assert_same(trainer, unbroken)


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    seen: list[str] = []

    class Last(Callback):
        def on_update(self, progress: Progress) -> None:
            seen.append("update")

        def on_end(self, progress: Progress) -> None:
            seen.append(progress.outcome)

    with pytest.raises(KeyboardInterrupt):
        start(PCD(7), momentum, [Press(1, times=2), Last()]).fit(grey(), EPOCHS)
    assert seen == ["failed"]
