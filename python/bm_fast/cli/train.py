"""Trains a restricted Boltzmann machine and keeps everything about the run in one folder.

Each update takes a batch of data and the estimator's chains, and moves the parameters by a (centred) stochastic
gradient of the log-likelihood. The folder gets the checkpoint, the learning curve as a table and as a picture, the
filters, and the configuration. Ctrl-C finishes the update, saves, and exits with 130; --resume goes on to the same bits
as a run that was never interrupted.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bm_fast import plots
from bm_fast.cli.common import (
    CHECKPOINT,
    CONFIGURATION,
    SEED,
    Console,
    Output,
    Result,
    UsageError,
    binary_split,
    commit,
    load_data,
    plain,
    read_configuration,
    real,
    version,
    whole,
)
from bm_fast.data import NAMES, SPLITS, Dataset
from bm_fast.estimation import pseudo_log_likelihood
from bm_fast.rbm import RBM
from bm_fast.training import CD, PCD, Callback, Checkpoint, Evaluate, History, Progress, ProgressBar, Trainer

NAME = "train"
SUMMARY = "train a machine; writes a checkpoint, the learning curve and the configuration"
EXAMPLES = """\
examples:
  bm-fast train digits --hidden 64 --epochs 50 --output runs/digits
  bm-fast train mnist --hidden 500 --learning-rate 0.05 --schedule linear --epochs 30 --output runs/mnist
  bm-fast train my.npy --estimator cd --sweeps 5       data of your own: [n, units], 0/1 or grey levels from 0 to 1
  bm-fast train --resume runs/mnist --epochs 60        30 epochs more, with the settings of the run"""

CURVE, CURVE_PICTURE, FILTERS = "learning_curve.csv", "learning_curve.png", "filters.png"

DEFAULTS: Result = {
    "hidden": 100,
    "estimator": "pcd",
    "sweeps": 1,
    "chains": 100,
    "epochs": 20,
    "batch_size": 100,
    "learning_rate": 0.05,
    "schedule": "linear",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "centred": True,
    "seed": 0,
}

_QUALITY_ROWS, _QUALITY_TERMS = 1000, 100_000_000
_HYPERBOLIC_END = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command; a setting that is left out stays None, so that --resume can tell."""

    def setting(name: str, text: str, **how: Any) -> None:
        default = DEFAULTS[name.lstrip("-").replace("-", "_")]
        parser.add_argument(name, default=None, help=f"{text} (default: {default})", **how)

    parser.add_argument("data", nargs="?", help=f"{', '.join(NAMES)}, or a .npy or .npz file of your own")
    setting("--hidden", "hidden units", type=whole(1, 65_536), metavar="N")
    setting("--estimator", "pcd: chains go on for ever; cd: they restart at the data", choices=("cd", "pcd"))
    setting("--sweeps", "Gibbs sweeps per update", type=whole(1), metavar="K")
    setting("--chains", "persistent chains (pcd)", type=whole(1), metavar="N")
    setting("--epochs", "passes through the data, those before --resume included", type=whole(1), metavar="N")
    setting("--batch-size", "rows per update", type=whole(1), metavar="N")
    setting("--learning-rate", "step size at the start", type=real(0, above=True), metavar="RATE")
    setting(
        "--schedule",
        "constant; linear: to zero at the last epoch; hyperbolic: rate / (1 + 9 epoch / epochs), to a tenth",
        choices=("constant", "linear", "hyperbolic"),
    )
    setting("--momentum", "share of the last step that is added to the next", type=real(0, 0.9999), metavar="M")
    setting("--weight-decay", "pull of the weights towards zero (not the biases)", type=real(0), metavar="L2")
    setting("--centred", "subtract the data means in the gradient", action=argparse.BooleanOptionalAction)
    setting("--seed", "decides initial weights, order, binarisation and chains", type=SEED, metavar="N")
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="go on with the run in this folder (or its checkpoint); only --epochs may change",
    )
    parser.add_argument("--output", metavar="FOLDER", help="folder for the results (default: train-output)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older run in that folder")


def run(options: argparse.Namespace, console: Console) -> Result:
    settings = _resumed_settings(options) if options.resume else _new_settings(options)
    dataset = load_data(settings["data"])
    names = (CHECKPOINT, CONFIGURATION, CURVE, CURVE_PICTURE, *([FILTERS] if dataset.shape else []))
    folder = _run_folder(options.resume) if options.resume else options.output or "train-output"
    output = Output(folder, names, overwrite=options.overwrite or bool(options.resume))
    history = History()
    rbm = RBM(dataset.n_units, settings["hidden"], seed=settings["seed"])
    trainer = _trainer(rbm, dataset, settings, output, history, resume=bool(options.resume))
    console.say(
        f"RBM with {dataset.n_units} visible and {settings['hidden']} hidden units on {len(dataset.train):,} rows of "
        f"{settings['data']} ({dataset.protocol}); {settings['epochs']} epochs, results in {output.folder}"
    )
    stale = () if options.resume else [name for name in names if name != CONFIGURATION]
    _write_configuration(output, settings, dataset, stale)
    started = time.monotonic()
    try:
        trainer.fit(dataset.train, epochs=settings["epochs"], validation=dataset.valid)
    except KeyboardInterrupt:
        draw(output, history, rbm, dataset.shape)
        raise KeyboardInterrupt(
            f"interrupted in epoch {trainer.epoch + 1} and saved; go on with: bm-fast train --resume {output.folder}"
        ) from None
    draw(output, history, rbm, dataset.shape)
    last = history.rows[-1] if history.rows else {}
    seconds = time.monotonic() - started
    console.say(f"\n{trainer.update:,} updates done, this call took {seconds:.1f} s")
    for name, value in last.items():
        if name.startswith(("pseudo", "free")):
            console.say(f"  {name.replace('_', ' ')}: {value:.2f} nats")
    output.announce(console)
    return {"settings": settings, "updates": trainer.update, "seconds": seconds, "last": last, "files": output.files}


def draw(output: Output, history: History, rbm: RBM, shape: tuple[int, int] | None) -> None:
    """The pictures of a run: learning curve, and filters where the units are an image."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, quantity, series in (
        ("pseudo_log_likelihood_train", "pseudo-log-likelihood (nats)", "training"),
        ("pseudo_log_likelihood_valid", "pseudo-log-likelihood (nats)", "validation"),
        ("log_likelihood_valid", "log-likelihood (nats)", "validation"),
        ("free_energy_gap", "free energy, validation − training (nats)", "gap"),
    ):
        points = [(row["epoch"], row[name]) for row in history.rows if name in row]
        if points:
            panels.setdefault(quantity, {})[series] = ([x for x, _ in points], [y for _, y in points])
    if panels:
        with output.writing(CURVE_PICTURE) as path:
            plots.save(plots.learning_curve(panels), path)
    if shape is not None:
        with output.writing(FILTERS) as path:
            plots.save(plots.filters(rbm.weight, shape), path)


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


def optimiser(rbm: RBM, settings: Result) -> tuple[Optimizer, LambdaLR]:
    """SGD, with weight decay on the weights alone, and the schedule of its rate over the epochs."""
    biases = [parameter for name, parameter in rbm.named_parameters() if name != "weight"]
    groups = [{"params": [rbm.weight], "weight_decay": settings["weight_decay"]}, {"params": biases}]
    sgd = SGD(groups, lr=settings["learning_rate"], momentum=settings["momentum"])
    epochs = settings["epochs"]
    factors = {
        "constant": lambda epoch: 1.0,
        "linear": lambda epoch: max(0.0, 1 - epoch / epochs),
        "hyperbolic": lambda epoch: 1 / (1 + (1 / _HYPERBOLIC_END - 1) * epoch / epochs),
    }
    return sgd, LambdaLR(sgd, factors[settings["schedule"]])


def _trainer(
    rbm: RBM, dataset: Dataset, settings: Result, output: Output, history: History, *, resume: bool
) -> Trainer:
    rbm.initialise_biases(dataset.train)
    sgd, schedule = optimiser(rbm, settings)
    callbacks = [
        Evaluate(_quality(dataset, settings["hidden"], settings["seed"])),
        history,
        ProgressBar(),
        Checkpoint(output.path(CHECKPOINT)),
        CurveFile(output, history),  # after the checkpoint, which a failure here must not cost
    ]
    if resume:
        trainer = Trainer.resume(output.path(CHECKPOINT), rbm, sgd, schedule, callbacks)
        # the schedule may have another length now; the saved rate is that of the old one
        for group, rate, factor in zip(sgd.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = rate * factor(schedule.last_epoch)
        return trainer
    estimator = (
        PCD(settings["chains"], settings["sweeps"]) if settings["estimator"] == "pcd" else CD(settings["sweeps"])
    )
    return Trainer(
        rbm,
        sgd,
        estimator,
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        centred=settings["centred"],
        scheduler=schedule,
        callbacks=callbacks,
    )


def _quality(dataset: Dataset, n_hidden: int, seed: int) -> dict[str, Callable[[RBM], float]]:
    """The figure of each epoch: pseudo-log-likelihood of some validation rows (training rows where there are none).

    It is exact, and rows are few enough for it to stay cheap beside the epoch: the stochastic variant, with one unit of
    each row, is off by several nats.
    """
    split = "train" if dataset.valid is None else "valid"
    n_rows = max(1, min(_QUALITY_ROWS, _QUALITY_TERMS // (dataset.n_units * n_hidden)))
    rows = binary_split(dataset, split, seed)[0][:n_rows].contiguous()
    return {f"pseudo_log_likelihood_{split}": lambda rbm: pseudo_log_likelihood(rbm, rows).mean().item()}


def _new_settings(options: argparse.Namespace) -> Result:
    if options.data is None:
        raise UsageError(f"data: expected {', '.join(NAMES)}, or a path to a .npy or .npz file; or --resume a run")
    settings = {
        name: default if getattr(options, name) is None else getattr(options, name)
        for name, default in DEFAULTS.items()
    }
    if settings["estimator"] == "cd" and options.chains is not None:
        raise UsageError("--chains: has a meaning only with --estimator pcd; cd runs one chain for each row of a batch")
    return {"data": _from_anywhere(options.data), **settings}


def _from_anywhere(source: str) -> str:
    """A path in full, so that the run can be resumed from any folder; names, right or wrong, as they are."""
    return str(Path(source).resolve()) if source.endswith((".npy", ".npz")) else source


def _resumed_settings(options: argparse.Namespace) -> Result:
    fixed = [name for name in (*DEFAULTS, "data", "output") if name != "epochs"]
    given = [f"--{name.replace('_', '-')}" for name in fixed if getattr(options, name) is not None]
    if given:
        raise UsageError(f"--resume: takes all settings from the run; leave out {', '.join(given)}")
    folder = _run_folder(options.resume)
    settings = read_configuration(folder).get("settings")
    if settings is None or set(settings) != {"data", *DEFAULTS}:
        raise FileNotFoundError(f"--resume: no {CONFIGURATION} of a run in {folder}")
    return settings if options.epochs is None else {**settings, "epochs": options.epochs}


def _run_folder(resume: str) -> Path:
    path = Path(resume)
    if not path.exists():
        raise FileNotFoundError(f"--resume: no folder or checkpoint {resume!r}")
    return path if path.is_dir() else path.parent


def _write_configuration(output: Output, settings: Result, dataset: Dataset, stale: Sequence[str]) -> None:
    """Writes what is not there already; the ``stale`` files of another run go before its configuration does."""
    sizes = {split: len(getattr(dataset, split)) for split in SPLITS if getattr(dataset, split) is not None}
    configuration = {
        "version": version(),
        "commit": commit(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "settings": settings,
        "data": {"name": dataset.name, "protocol": dataset.protocol, "shape": dataset.shape, "rows": sizes},
    }
    same = json.loads(json.dumps(plain(configuration))) == read_configuration(output.folder)
    if stale or not same:
        output.write_json(CONFIGURATION, configuration, stale)
