"""How the trainer refuses bad data and settings, and how it stops where parameters leave what can be run."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import LBFGS, SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, TensorDataset

from bm_fast import DBM, DBN, RBM, Kind
from bm_fast.training import CD, PCD, Callback, Evaluate, MeanFieldPCD, Progress, Trainer, TrainingError, UpDown
from test_training import N_HIDDEN, N_VISIBLE, assert_same_parameters, patterns, trainer_of


def test_divergence_names_parameter_and_update() -> None:
    rbm = RBM(N_VISIBLE, N_HIDDEN, seed=1)
    trainer = Trainer(rbm, SGD(rbm.parameters(), lr=1e35, weight_decay=1e10), PCD(5), batch_size=10)
    with pytest.raises(TrainingError, match=r"after update \d+: parameter 'weight' is not finite any more"):
        trainer.fit(patterns(), 5)


def test_leaving_the_grid_names_coupling_and_update() -> None:
    rbm = RBM(N_VISIBLE, N_HIDDEN, seed=1)
    trainer = Trainer(rbm, SGD(rbm.parameters(), lr=1e7), PCD(5), batch_size=10)
    with pytest.raises(TrainingError, match=r"after update 1: weights\[0\]: expected weights of at most 32639"):
        trainer.fit(patterns(), 5)


@pytest.mark.parametrize("epochs", [1, 3])
def test_divergence_in_the_last_update_is_noticed_too(epochs: int) -> None:
    class Break(Callback):
        def on_update(self, progress: Progress) -> None:
            if progress.trainer.update == 6 * epochs:
                with torch.no_grad():
                    progress.trainer.model.hidden_bias[0] = math.nan

    with pytest.raises(TrainingError, match=rf"after update {6 * epochs}: parameter 'hidden_bias'"):
        trainer_of(callbacks=[Break()]).fit(patterns(), epochs)


MODELS: list[Callable[[], tuple[RBM | DBM | DBN, PCD | MeanFieldPCD | UpDown]]] = [
    lambda: (RBM(N_VISIBLE, N_HIDDEN), PCD(5)),
    lambda: (DBM((N_VISIBLE, N_HIDDEN, 3)), MeanFieldPCD(5, sweeps=1)),
    lambda: (DBN((N_VISIBLE, N_HIDDEN, 3)), UpDown(PCD(5))),
]


@pytest.mark.parametrize("make", MODELS, ids=["rbm", "dbm", "dbn"])
@pytest.mark.parametrize("damage", [Tensor.half, lambda grad: grad[..., :1], lambda grad: grad.repeat(2, 1).T])
@pytest.mark.parametrize("which", [0, -1])
def test_gradients_that_a_callback_has_made_unfit_are_refused(
    which: int, damage: Callable[[Tensor], Tensor], make: Callable[[], Any]
) -> None:
    """The memory of gradients is used again in the next update, whatever lies behind ``.grad`` by then."""
    model, estimator = make()
    name, parameter = list(model.named_parameters())[which]

    class Damage(Callback):
        def on_update(self, progress: Progress) -> None:
            assert parameter.grad is not None
            parameter.grad.data = damage(parameter.grad)

    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), estimator, batch_size=10, callbacks=[Damage()])
    expected = (
        f"{name.removeprefix('top.')}.grad: expected a contiguous torch.float32 tensor {list(parameter.shape)} on"
    )
    with pytest.raises(ValueError, match="^" + re.escape(expected)):
        trainer.fit(patterns(), 1)
    assert trainer.update == 1


@pytest.mark.parametrize("make", MODELS, ids=["rbm", "dbm", "dbn"])
def test_parameters_that_have_been_replaced_are_noticed(make: Callable[[], Any]) -> None:
    """Gradients and the optimiser would go on with those that the model has no more."""
    model, estimator = make()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), estimator, batch_size=10)
    trainer.fit(patterns(), 1)
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)
    name = next(iter(dict(model.named_parameters())))
    expected = rf"^model: expected the parameters .* got another tensor as '{name}'; make a new"
    with pytest.raises(ValueError, match=expected):
        trainer.fit(patterns(), 2)
    with pytest.raises(ValueError, match=expected):
        trainer.save("nowhere")


@pytest.mark.parametrize("make", MODELS, ids=["rbm", "dbm", "dbn"])
def test_parameters_that_a_callback_has_replaced_are_noticed(make: Callable[[], Any]) -> None:
    model, estimator = make()

    class Replace(Callback):
        def on_update(self, progress: Progress) -> None:
            model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)

    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), estimator, batch_size=10, callbacks=[Replace()])
    with pytest.raises(
        ValueError, match=r"^model: expected the parameters that this trainer was made with, got another"
    ):
        trainer.fit(patterns(), 2)
    assert trainer.epoch <= 1


RBM_4_3 = RBM(4, 3)
BAD_PARTS: list[tuple[dict[str, Any], str]] = [
    ({"optimizer": SGD}, "optimizer: expected an optimiser of torch.optim over parameters of model, got <class"),
    ({"optimizer": LBFGS(RBM_4_3.parameters())}, "optimizer: expected one that steps without a closure, got LBFGS"),
    ({"scheduler": "linear"}, "scheduler: expected one of torch.optim.lr_scheduler or None, got 'linear'"),
    ({"callbacks": Callback()}, "callbacks: expected a list of Callback objects, got <"),
    ({"callbacks": [Callback]}, "callbacks: expected a list of Callback objects, got [<class"),
    ({"callbacks": [print]}, "callbacks: expected a list of Callback objects, got [<built-in function print>]"),
]


@pytest.mark.parametrize(("parts", "expected"), BAD_PARTS)
def test_parts_of_a_trainer_are_checked(parts: dict[str, Any], expected: str) -> None:
    given = {"optimizer": SGD(RBM_4_3.parameters(), lr=0.1), "estimator": PCD(5), **parts}
    with pytest.raises(ValueError, match="^" + re.escape(expected)):
        Trainer(RBM_4_3, **given)


GOOD = patterns(5).float()
BAD_DATA: list[tuple[Any, str]] = [
    (GOOD * math.nan, "train: expected values from 0 to 1, got nan"),
    (GOOD + 1, "train: expected values from 0 to 1, got 1 to 2"),
    (patterns(5) * 255, "train: .* divide grey levels by 255"),
    (GOOD.double(), "train: expected torch.uint8 or torch.float32"),
    (GOOD[:, :5].contiguous(), r"train: expected shape \[n, 8\]"),
    (GOOD[:0], r"train: expected shape \[n, 8\] with n >= 1, got \[0, 8\]"),
    (GOOD[::2], "train: expected a contiguous tensor"),
    (np.zeros((5, 8)), "train: expected float32 or uint8, got float64"),
    (GOOD.to("meta"), "train: expected a tensor on cpu"),
    ("digits", "train: expected a torch tensor or a numpy array, got str"),
    (DataLoader(TensorDataset(GOOD * math.inf), batch_size=5), "train: batch 0: expected values from 0 to 1"),
    (DataLoader(TensorDataset(GOOD[:, :3]), batch_size=5), r"train: batch 0: expected shape \[n, 8\]"),
    (DataLoader(TensorDataset(patterns(30)), batch_size=11), "train: batch 0 has 11 rows, .* batch_size=10"),
    (DataLoader(TensorDataset(GOOD), batch_size=9, drop_last=True), "train: expected a DataLoader that yields"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_DATA)
def test_bad_data_are_named_and_change_nothing(bad: Any, message: str) -> None:
    trainer = trainer_of()
    before = RBM(N_VISIBLE, N_HIDDEN, seed=1)
    with pytest.raises(ValueError, match=message):
        trainer.fit(bad, 1)
    assert_same_parameters(trainer.model, before)
    assert trainer.update == 0
    trainer.fit(patterns(), 1)


def test_bad_validation_rows_are_named_before_training() -> None:
    trainer = trainer_of(binarise="none")
    with pytest.raises(ValueError, match="validation: expected values from 0 to 1"):
        trainer.fit(patterns(), 1, validation=patterns().float() * 3)
    with pytest.raises(ValueError, match="validation: expected 0 and 1 only"):
        trainer.fit(patterns(), 1, validation=patterns().float() / 2)
    assert trainer.update == 0


def test_grey_levels_need_dynamic_binarisation() -> None:
    grey = torch.full((20, N_VISIBLE), 0.5)
    for train in (grey, DataLoader(TensorDataset(grey), batch_size=10)):
        with pytest.raises(ValueError, match="train: expected 0 and 1 only with binarise='none'"):
            trainer_of(binarise="none").fit(train, 1)


def test_bad_settings_are_named() -> None:
    rbm, other = RBM(N_VISIBLE, N_HIDDEN), RBM(N_VISIBLE, N_HIDDEN)
    optimizer = SGD(rbm.parameters(), lr=0.1)
    foreign = SGD(other.parameters(), lr=0.1)
    for settings, message in (
        ({"batch_size": 0}, "batch_size: expected a whole number of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size: .* got 2.5"),
        ({"seed": -1}, f"seed: expected 0 to {2**64 - 1}, got -1"),
        ({"binarise": "static"}, "binarise: expected 'dynamic' or 'none', got 'static'"),
        ({"optimizer": foreign}, "optimizer: expected parameters of model only"),
        ({"scheduler": StepLR(foreign, 1)}, "scheduler: expected a scheduler of the given optimizer"),
        ({"scheduler": ReduceLROnPlateau(optimizer)}, "scheduler: .* got ReduceLROnPlateau"),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(**{"model": rbm, "optimizer": optimizer, "estimator": PCD(5), **settings})
    gaussian = RBM(N_VISIBLE, N_HIDDEN, Kind.GAUSSIAN)
    with pytest.raises(ValueError, match="binarise: expected 'none' for GAUSSIAN visible units"):
        Trainer(gaussian, SGD(gaussian.parameters(), lr=0.1), PCD(5), binarise="dynamic")
    with pytest.raises(ValueError, match="epochs: expected a whole number of at least 0, got -1"):
        trainer_of().fit(patterns(), -1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CD(0), "sweeps: expected a whole number of at least 1, got 0"),
        (lambda: PCD(0), "n_chains: expected a whole number of at least 1, got 0"),
        (lambda: PCD(5, 1.5), "sweeps: expected a whole number of at least 1, got 1.5"),  # type: ignore[arg-type]
        (lambda: Evaluate({}, every=0), "every: expected a whole number of at least 1, got 0"),
    ],
)
def test_bad_counts_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
