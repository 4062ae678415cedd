"""From the settings of ``train`` to models and trainers, and from what they learn to curves and pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bm_fast import checkpoints, plots
from bm_fast.checkpoints import CheckpointError
from bm_fast.cli.common import CHECKPOINT, Output, binary_split
from bm_fast.cli.console import Console, Result, UsageError, counted
from bm_fast.data import Dataset
from bm_fast.dbm import DBM
from bm_fast.estimation import pseudo_log_likelihood
from bm_fast.graph import Kind
from bm_fast.model import BoltzmannModel
from bm_fast.rbm import RBM
from bm_fast.training import (
    CD,
    PCD,
    Callback,
    Checkpoint,
    Evaluate,
    History,
    MeanFieldPCD,
    Progress,
    ProgressBar,
    Trainer,
    lift,
    stack_estimator,
    stitch,
)

CURVE, CURVE_PICTURE, FILTERS = "learning_curve.csv", "learning_curve.png", "filters.png"

_QUALITY_ROWS, _QUALITY_TERMS = 1000, 100_000_000
_HYPERBOLIC_END = 0.1
_STACK: Result = {"learning_rate": 0.05, "schedule": "constant", "momentum": 0.5, "weight_decay": 1e-3}
"""How the RBMs that start a deep machine learn (Salakhutdinov and Hinton, 2009)."""


@contextmanager
def going_on() -> Iterator[None]:
    """Adds to the error of a checkpoint that training cannot go on from what helps then."""
    try:
        yield
    except CheckpointError as error:
        raise UsageError(
            f"--resume: training cannot go on from this checkpoint: {error}. If an older version of bm_fast left it, "
            "train anew, with the settings in configuration.json and --overwrite"
        ) from error


def new_model(settings: Result, dataset: Dataset) -> BoltzmannModel:
    """The machine that the settings describe, its visible biases at the rates of the data."""
    hidden, seed = settings["hidden"], settings["seed"]
    model: BoltzmannModel = (
        RBM(dataset.n_units, hidden[0], seed=seed)
        if settings["model"] == "rbm"
        else DBM((dataset.n_units, *hidden), seed=seed, n_classes=_n_classes(dataset) if settings["labels"] else None)
    )
    model.initialise_biases(dataset.train)
    return model


def _n_classes(dataset: Dataset) -> int:
    if dataset.train_labels is None:
        raise UsageError(
            f"--labels: expected data with labels of the training rows, got {dataset.name}, which has none"
        )
    low, high = (int(end) for end in torch.aminmax(dataset.train_labels))
    if low < -1 or high < 1:
        raise UsageError(
            f"--labels: expected classes from 0 up, at least two of them (-1: unknown), got {low} to {high} in the "
            f"training rows of {dataset.name}"
        )
    return high + 1


def optimiser(model: BoltzmannModel, settings: Result) -> tuple[Optimizer, LambdaLR]:
    """SGD, with weight decay on the weights alone, and the schedule of its rate over the epochs."""
    weights = list(model.coupling_weights)
    biases = [parameter for parameter in model.parameters() if all(parameter is not weight for weight in weights)]
    groups = [{"params": weights, "weight_decay": settings["weight_decay"]}, {"params": biases}]
    sgd = SGD(groups, lr=settings["learning_rate"], momentum=settings["momentum"])
    epochs = settings["epochs"]
    factors = {
        "constant": lambda epoch: 1.0,
        "linear": lambda epoch: max(0.0, 1 - epoch / epochs),
        "hyperbolic": lambda epoch: 1 / (1 + (1 / _HYPERBOLIC_END - 1) * epoch / epochs),
    }
    return sgd, LambdaLR(sgd, factors[settings["schedule"]])


def new_trainer(
    model: BoltzmannModel, dataset: Dataset, settings: Result, output: Output, history: History, *, resume: bool
) -> Trainer:
    """The trainer of a run, which saves and measures after each epoch; with ``resume`` from its checkpoint."""
    sgd, schedule = optimiser(model, settings)
    callbacks = [
        Evaluate(_quality(dataset, settings)),
        history,
        ProgressBar(),
        Checkpoint(output.path(CHECKPOINT)),
        CurveFile(output, history),  # after the checkpoint, which a failure here must not cost
    ]
    if resume:
        with going_on():
            trainer = Trainer.resume(output.path(CHECKPOINT), model, sgd, schedule, callbacks)
        # the schedule may have another length now; the saved rate is that of the old one
        for group, rate, factor in zip(sgd.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = rate * factor(schedule.last_epoch)
        return trainer
    return Trainer(
        model,
        sgd,
        _estimator(settings),
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        centred=settings["centred"],
        scheduler=schedule,
        callbacks=callbacks,
    )


def pretrain(dbm: DBM, dataset: Dataset, settings: Result, output: Output, console: Console) -> None:
    """Gives ``dbm`` the parameters of a stack of modified RBMs.

    Each RBM is saved after every epoch, and goes on from its file where there is one. Labels join the top one.
    """
    data, rbms, labelled = dataset.train, list[RBM](), None
    n_rbms = len(dbm.units) - 1
    for level, (below, above) in enumerate(pairwise(dbm.units)):
        epochs, seed = settings["pretraining_epochs"][level], settings["seed"] + level
        with_labels = dbm.n_classes is not None and level == n_rbms - 1
        which = f"RBM {level + 1} of {n_rbms}, {below}-{above}{' and the labels' if with_labels else ''}"
        console.say(f"pretraining: {which}, {counted(epochs, 'epoch')}")
        rbm = DBM((below, above), seed=seed, n_classes=dbm.n_classes) if with_labels else RBM(below, above, seed=seed)
        rbm.to(data.device).initialise_biases(data)
        estimator = stack_estimator(level, n_rbms)
        sgd, schedule = optimiser(rbm, {**_STACK, "epochs": epochs})
        path = output.path(f"rbm{level + 1}.safetensors")
        callbacks = [History(), ProgressBar(), Checkpoint(path)]  # the history tells how long it took
        if path.exists():
            with going_on():
                trainer_state = checkpoints.entry(checkpoints.load(path), "trainer", path)
                if not trainer_state["parts"]["callbacks with a state"]:  # older versions kept no time
                    del callbacks[0]
                trainer = Trainer.resume(path, rbm, sgd, schedule, callbacks)
        else:
            trainer = Trainer(rbm, sgd, estimator, settings["batch_size"], seed, False, schedule, callbacks=callbacks)
        trainer.fit(data, epochs, labels=dataset.train_labels if with_labels else None)
        if isinstance(rbm, DBM):
            labelled = rbm
        else:
            data = lift(rbm, estimator, data)
            rbms.append(rbm)
    dbm.load_state_dict(stitch(rbms, labelled).state_dict())


def _estimator(settings: Result) -> CD | PCD | MeanFieldPCD:
    if settings["model"] == "dbm":
        return MeanFieldPCD(settings["chains"], settings["sweeps"], settings["iterations"])
    return PCD(settings["chains"], settings["sweeps"]) if settings["estimator"] == "pcd" else CD(settings["sweeps"])


def _quality(dataset: Dataset, settings: Result) -> dict[str, Callable[[Any], float]]:
    """The figure of each epoch, of some validation rows (training rows where there are none).

    RBM: the pseudo-log-likelihood. It is exact, and rows are few enough for it to stay cheap beside the epoch: the
    stochastic variant, with one unit of each row, is off by several nats. DBM, which has none in closed form: the mean
    square per unit between the rows and what the mean-field means of their hidden units give back; with labels also
    the share of the rows to whose class mean field does not give the highest probability.
    """
    split = "train" if dataset.valid is None else "valid"
    rows = binary_split(dataset, split, settings["seed"])[0]
    if settings["model"] == "dbm":
        rows, iterations = rows[:_QUALITY_ROWS].contiguous(), settings["iterations"]

        def error(dbm: DBM) -> float:
            return (dbm.reconstruct(rows, iterations, tolerance=0) - rows).square().mean().item()

        figures: dict[str, Callable[[Any], float]] = {f"reconstruction_error_{split}": error}
        labels: torch.Tensor | None = getattr(dataset, f"{split}_labels")
        if settings["labels"] and labels is not None and bool((labels[: len(rows)] >= 0).any()):
            classes = labels[: len(rows)]

            def wrong(dbm: DBM) -> float:
                means = dbm.label_means(rows, iterations, tolerance=0)
                return (means.argmax(1) != classes)[classes >= 0].float().mean().item()

            figures[f"classification_error_{split}"] = wrong
        return figures
    n_rows = max(1, min(_QUALITY_ROWS, _QUALITY_TERMS // (dataset.n_units * settings["hidden"][0])))
    rows = rows[:n_rows].contiguous()
    return {f"pseudo_log_likelihood_{split}": lambda rbm: pseudo_log_likelihood(rbm, rows).mean().item()}


class CurveFile(Callback):
    """Keeps the learning curve on disk while training goes on."""

    def __init__(self, output: Output, history: History) -> None:
        self._output, self._history = output, history

    def on_epoch(self, progress: Progress) -> None:
        rows = self._history.rows
        names = list(dict.fromkeys(name for row in rows for name in row))
        with self._output.writing(CURVE) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


def filter_names(n_hidden_layers: int) -> list[str]:
    """The pictures of filters, one for each hidden layer."""
    return [FILTERS, *(f"filters{level}.png" for level in range(2, n_hidden_layers + 1))]


def draw(
    output: Output, history: History, model: BoltzmannModel, shape: tuple[int, int] | None, *, again: bool = True
) -> None:
    """The pictures of a run: learning curve, and filters where the units are an image.

    Filters of higher layers are carried down to the visible units by the weights between. again: draw those that are
    there already too.
    """

    def wanted(name: str) -> bool:
        return again or not (output.folder / name).exists()

    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, quantity, series in (
        ("pseudo_log_likelihood_train", "pseudo-log-likelihood (nats)", "training"),
        ("pseudo_log_likelihood_valid", "pseudo-log-likelihood (nats)", "validation"),
        ("log_likelihood_valid", "log-likelihood (nats)", "validation"),
        ("reconstruction_error_train", "reconstruction error per unit", "training"),
        ("reconstruction_error_valid", "reconstruction error per unit", "validation"),
        ("classification_error_train", "classification error", "training"),
        ("classification_error_valid", "classification error", "validation"),
        ("free_energy_gap", "free energy, validation − training (nats)", ""),
    ):
        points = [(row["epoch"], row[name]) for row in history.rows if name in row]
        if points:
            panels.setdefault(quantity, {})[series] = ([x for x, _ in points], [y for _, y in points])
    if panels and wanted(CURVE_PICTURE):
        with output.writing(CURVE_PICTURE) as path:
            plots.save(plots.learning_curve(panels), path)
    if shape is not None:
        hidden = [layer for layer in model.graph.layers[1:] if layer.kind is not Kind.SOFTMAX]
        weights: Sequence[torch.Tensor] = [weight.detach() for weight in model.coupling_weights[: len(hidden)]]
        filters = torch.eye(model.n_visible, device=model.device)
        for level, (name, weight) in enumerate(zip(filter_names(len(weights)), weights, strict=True), 1):
            filters = filters @ weight
            if not wanted(name):
                continue
            title = f"Filters of hidden layer {level}" if len(weights) > 1 else ""
            with output.writing(name) as path:
                plots.save(plots.filters(filters, shape, title=title), path)
