"""Checkpoints of training that do not fit, and broken models: named, and what was good stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from bm_fast import RBM, Kind, checkpoints
from bm_fast.checkpoints import CheckpointError
from bm_fast.training import (
    PCD,
    Callback,
    Checkpoint,
    History,
    Progress,
    Trainer,
    TrainingError,
)
from test_training_resume import EPOCHS, ROWS, SaveAt, adam, assert_same, grey, milestones, momentum, new, resume, start


def test_a_broken_model_never_replaces_a_good_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"

    class Break(Callback):
        def on_update(self, progress: Progress) -> None:
            if progress.trainer.update == 9:
                with torch.no_grad():
                    progress.trainer.model.weight[2, 3] = float("nan")

    trainer = start(PCD(7), momentum, [Break(), Checkpoint(path, every_updates=1)])
    with pytest.raises(TrainingError, match="after update 9: parameter 'weight' is not finite"):
        trainer.fit(grey(), EPOCHS)
    resumed = resume(path, momentum)
    assert resumed.update == 8
    resumed.fit(grey(), EPOCHS)
    unbroken = start(PCD(7), momentum)
    unbroken.fit(grey(), EPOCHS)
    assert_same(resumed, unbroken)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    start(PCD(7), momentum, [History(), SaveAt(9, tmp_path / "run")]).fit(grey(), 2)
    return tmp_path / "run"


def wide_optimiser(rbm: RBM) -> tuple[RBM, Optimizer]:
    groups = [{"params": [rbm.weight]}, {"params": [rbm.visible_bias, rbm.hidden_bias]}]
    return rbm, SGD(groups, lr=0.1)


def swapped_optimiser(rbm: RBM) -> tuple[RBM, Optimizer]:
    return rbm, SGD([rbm.weight, rbm.hidden_bias, rbm.visible_bias], lr=0.1)


OTHER_PARTS: list[tuple[Callable[[], tuple[RBM, Optimizer]], str]] = [
    (lambda: (r := RBM(8, 6), momentum(r)), "expected model .*'n_hidden': 5.*, got .*'n_hidden': 6"),
    (lambda: (r := RBM(8, 5, Kind.GAUSSIAN), momentum(r)), "expected model .*BERNOULLI.*, got .*GAUSSIAN"),
    (lambda: (r := new(), adam(r)), "expected optimizer .*SGD.*, got .*Adam"),
    (
        lambda: wide_optimiser(new()),
        r"expected optimizer .*\[\['weight', .*\]\]\], got .*\[\['weight'\], \['visible_bias', 'hidden_bias'\]\]",
    ),
    (
        lambda: swapped_optimiser(new()),
        "expected .*'weight', 'visible_bias', 'hidden_bias'.*, got .*'weight', 'hidden_bias', 'visible_bias'",
    ),
]


@pytest.mark.parametrize(("make", "message"), OTHER_PARTS)
def test_other_parts_are_refused_and_left_alone(
    make: Callable[[], tuple[RBM, Optimizer]], message: str, saved: Path
) -> None:
    rbm, optimizer = make()
    before = {name: p.detach().clone() for name, p in rbm.named_parameters()}
    with pytest.raises(CheckpointError, match=message):
        Trainer.resume(saved, rbm, optimizer, milestones(optimizer), [History()])
    assert all(torch.equal(p, before[name]) for name, p in rbm.named_parameters())
    assert not optimizer.state


def test_other_schedulers_and_callbacks_are_refused(saved: Path) -> None:
    rbm = new()
    optimizer = momentum(rbm)
    with pytest.raises(CheckpointError, match="expected scheduler MultiStepLR, got None"):
        Trainer.resume(saved, rbm, optimizer, None, [History()])
    with pytest.raises(CheckpointError, match="expected scheduler MultiStepLR, got StepLR"):
        Trainer.resume(saved, rbm, optimizer, StepLR(optimizer, 1), [History()])
    with pytest.raises(CheckpointError, match=r"expected callbacks with a state \['History'\], got \[\]"):
        Trainer.resume(saved, rbm, optimizer, milestones(optimizer), [])


def test_a_model_is_no_training_checkpoint(tmp_path: Path) -> None:
    new().save(tmp_path / "model")
    rbm = new()
    with pytest.raises(CheckpointError, match="holds no 'trainer', only \\['rbm'\\]"):
        Trainer.resume(tmp_path / "model", rbm, momentum(rbm))


def test_a_training_checkpoint_is_a_model(saved: Path) -> None:
    rbm = new()
    optimizer = momentum(rbm)
    Trainer.resume(saved, rbm, optimizer, milestones(optimizer), [History()])
    loaded = RBM.load(saved)
    assert all(torch.equal(p, q) for p, q in zip(loaded.parameters(), rbm.parameters(), strict=True))


def one_value_changed() -> Tensor:
    values = grey()
    values[-1, -1] = 1 - values[-1, -1]
    return values


@pytest.mark.parametrize(
    "other",
    [grey(ROWS + 1), DataLoader(TensorDataset(grey()), batch_size=10), one_value_changed(), grey().flip(0)],
    ids=["longer", "loader", "one value", "other order"],
)
def test_other_data_are_refused(other: Any, saved: Path) -> None:
    resumed = resume(saved, momentum, [History()])
    message = rf"train: expected an array of {ROWS} rows \(CRC-32 \w{{8}}\), with which this training began"
    with pytest.raises(ValueError, match=message):
        resumed.fit(other, EPOCHS)
    resumed.fit(grey(), EPOCHS)


def test_schedulers_that_cannot_be_stored_cost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "run"
    checkpoints.save(path, {"old": 1})

    class Odd(Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"handle": object()}

    with pytest.raises(TypeError, match="a checkpoint cannot hold a object"):
        start(PCD(7), momentum, [Odd()]).save(path)
    assert checkpoints.load(path) == {"old": 1}
