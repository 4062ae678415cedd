"""Trains a machine, restricted or deep, and keeps everything about the run in one folder.

Each update takes a batch of data and the estimator's chains, and moves the parameters by a (centred) stochastic
gradient of the log-likelihood, or for a deep machine of its variational bound. A deep machine begins with a stack of
RBMs, trained one on the other, unless --pretraining-epochs is 0. The folder gets the checkpoint, the learning curve as
a table and as a picture, the filters, and the configuration. Ctrl-C finishes the update, saves, and exits with 130;
--resume goes on to the same bits as a run that was never interrupted.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from bm_fast import checkpoints
from bm_fast.cli.common import (
    CHECKPOINT,
    CONFIGURATION,
    Output,
    commit,
    left_by_a_run,
    load_data,
    read_configuration,
    refusing,
)
from bm_fast.cli.console import SEED, Console, Result, UsageError, counted, plain, real, version, whole
from bm_fast.cli.devices import add_device
from bm_fast.cli.learning import CURVE, CURVE_PICTURE, draw, new_model, new_trainer, pretrain
from bm_fast.data import NAMES, SPLITS, Dataset
from bm_fast.dbm import DBM
from bm_fast.graph import Kind
from bm_fast.model import BoltzmannModel
from bm_fast.training import History

EXAMPLES = """\
examples:
  bm-fast train digits --hidden 64 --output runs/digits
  bm-fast train mnist --hidden 500 --learning-rate 0.05 --schedule linear --epochs 30 --output runs/mnist
  bm-fast train mnist --model dbm --hidden 500 1000 --output runs/mnist-dbm
  bm-fast train digits --model dbm --labels --output runs/classes     learns the classes as well; half a minute
  bm-fast train my.npy --estimator cd --sweeps 5       data of your own: [n, units], 0/1 or grey levels from 0 to 1
  bm-fast train --resume runs/mnist --epochs 60        30 epochs more, with the settings of the run"""

_COMMON: Result = {
    "chains": 100,
    "batch_size": 100,
    "centred": True,
    "seed": 0,
}
DEFAULTS: dict[str, Result] = {
    "rbm": {
        "hidden": [100],
        "estimator": "pcd",
        "sweeps": 1,
        "epochs": 20,
        "learning_rate": 0.05,
        "schedule": "linear",
        "momentum": 0.0,
        "weight_decay": 0.0,
        **_COMMON,
    },
    "dbm": {
        "hidden": [100, 50],
        "labels": False,
        "pretraining_epochs": [20],
        "iterations": 10,
        "sweeps": 5,
        "epochs": 50,
        "learning_rate": 0.05,
        "schedule": "hyperbolic",
        "momentum": 0.5,
        "weight_decay": 2e-4,
        **_COMMON,
    },
}
"""Settings of each model beside the model itself and the data; of small data the epochs are more (``_enough``)."""

_ENOUGH_UPDATES = {"epochs": 2500, "pretraining_epochs": 1000}
_MOST_EPOCHS = 500

_SETTINGS = tuple(dict.fromkeys(name for settings in DEFAULTS.values() for name in settings))
_NUMBERED = re.compile(r"rbm\d+\.safetensors|filters\d*\.png")
"""Files of which a run has as many as its machine has hidden layers."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command; a setting that is left out stays None, so that --resume can tell."""

    def setting(name: str, text: str, **how: Any) -> None:
        key = name.lstrip("-").replace("-", "_")
        defaults = {model: _shown(settings[key]) for model, settings in DEFAULTS.items() if key in settings}
        if len(set(defaults.values())) == 1 and len(defaults) == len(DEFAULTS):
            shown = defaults["rbm"]
        elif len(defaults) == 1:
            ((model, shown),) = defaults.items()
            text = f"{text}; {model} alone"
        else:
            shown = "; ".join(f"{model}: {default}" for model, default in defaults.items())
        if key in _ENOUGH_UPDATES:
            shown += f"; of small data more, up to {_MOST_EPOCHS}, to make {_ENOUGH_UPDATES[key]:,} updates"
        parser.add_argument(name, default=None, help=f"{text} (default: {shown})", **how)

    parser.add_argument("data", nargs="?", help=f"{', '.join(NAMES)}, or a .npy or .npz file of your own")
    parser.add_argument("--model", choices=tuple(DEFAULTS), help="rbm: one hidden layer; dbm: deep (default: rbm)")
    setting("--hidden", "hidden units, of each layer from below", type=whole(1, 65_536), nargs="+", metavar="N")
    parser.add_argument(
        "--labels",
        action="store_const",
        const=True,
        help="a layer of labels on top, which learns the classes of the training rows (dbm); evaluate then classifies "
        "(on the shipped digits, which it sees in black and white, it errs at some 20 %%), and sample --classes draws "
        "images of each class",
    )
    setting("--estimator", "pcd: chains go on for ever; cd: they restart at the data", choices=("cd", "pcd"))
    setting(
        "--pretraining-epochs",
        "passes of the RBM that starts each layer, one number for all or one for each; 0: start from small weights",
        type=whole(0),
        nargs="+",
        metavar="N",
    )
    setting("--iterations", "most iterations of mean field per update", type=whole(1), metavar="N")
    setting("--sweeps", "Gibbs sweeps per update", type=whole(1), metavar="K")
    setting("--chains", "persistent chains (not for cd)", type=whole(1), metavar="N")
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
    add_device(parser)
    parser.add_argument("--output", metavar="FOLDER", help="folder for the results (default: train-output)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an older run in that folder, and what was made of it"
    )


def run(options: argparse.Namespace, console: Console) -> Result:
    settings = _resumed_settings(options) if options.resume else _new_settings(options)
    dataset = load_data(settings["data"])
    if not options.resume:
        settings = _enough(settings, options, len(dataset.train))
    folder = Path(_run_folder(options.resume) if options.resume else options.output or "train-output")
    names = (CHECKPOINT, CONFIGURATION, CURVE, CURVE_PICTURE, *_numbered_files(folder))
    model = new_model(settings, dataset).to(options.device)  # begins with the same numbers on any device
    dataset = dataset.to(options.device)
    stale = set() if options.resume else {*names, *left_by_a_run(folder, settings["data"])} - {CONFIGURATION}
    output = Output(folder, names, overwrite=options.overwrite or bool(options.resume), stale=stale)
    history = History()
    # a deep run that was stopped in its stack of RBMs has no checkpoint of the whole yet
    resume = bool(options.resume) and (settings["model"] == "rbm" or (folder / CHECKPOINT).exists())
    done = _epochs_done(folder / CHECKPOINT) if resume else 0
    epochs = max(options.epochs or settings["epochs"], done)
    if epochs > done:
        settings = {**settings, "epochs": epochs}
    with refusing():  # a checkpoint that is damaged, or of another run
        trainer = new_trainer(model, dataset, settings, output, history, resume=resume)
    if epochs == done:
        of_all = f"{done} of " if done < settings["epochs"] else ""
        console.say(
            f"Nothing is left to train: {of_all}{counted(max(done, settings['epochs']), 'epoch')} done. --epochs takes "
            "the number of all epochs, with those that are done"
        )
        output.written.remove(CHECKPOINT)  # nothing of it changes
    else:
        console.say(
            f"{settings['model'].upper()} with {_units(model)} on "
            f"{counted(len(dataset.train), 'row')} of {settings['data']} ({dataset.protocol}); "
            f"{counted(epochs, 'epoch')}, results in {output.folder}"
        )
        _write_configuration(output, settings, dataset, stale)
    started = time.monotonic()
    try:
        if isinstance(model, DBM) and not resume and any(settings["pretraining_epochs"]):
            pretrain(model, dataset, settings, output, console)
        if epochs > done:
            labels = dataset.train_labels if settings.get("labels") else None
            trainer.fit(dataset.train, epochs=epochs, validation=dataset.valid, labels=labels)
    except KeyboardInterrupt:
        if trainer.update:
            draw(output, history, model, dataset.shape)
        where = f"epoch {trainer.epoch + 1}" if trainer.update else "pretraining"
        raise KeyboardInterrupt(
            f"interrupted in {where} and saved; go on with: bm-fast train --resume {output.folder}"
        ) from None
    draw(output, history, model, dataset.shape, again=epochs > done)
    last = history.rows[-1] if history.rows else {}
    seconds = time.monotonic() - started
    took = f", this call took {seconds:.1f} s" if epochs > done else ""
    console.say(f"\n{counted(trainer.update, 'update')} done{took}")
    for name, value in last.items():
        if name.startswith(("pseudo", "free")):
            console.say(f"  {name.replace('_', ' ')}: {value:.2f} nats")
        elif name.startswith(("reconstruction", "classification", "unconverged")):
            console.say(f"  {name.replace('_', ' ')}: {value:.4f}")
    output.announce(console)
    return {"settings": settings, "updates": trainer.update, "seconds": seconds, "last": last, "files": output.files}


def _numbered_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if _NUMBERED.fullmatch(path.name))


def _units(model: BoltzmannModel) -> str:
    units = "-".join(str(layer.units) for layer in model.graph.layers if layer.kind is not Kind.SOFTMAX) + " units"
    return f"{units} and {model.n_classes} classes" if isinstance(model, DBM) and model.n_classes else units


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _new_settings(options: argparse.Namespace) -> Result:
    if options.data is None:
        raise UsageError(f"data: expected {', '.join(NAMES)}, or a path to a .npy or .npz file; or --resume a run")
    model = options.model or "rbm"
    given = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    foreign = [f"--{name.replace('_', '-')}" for name in given if name not in DEFAULTS[model]]
    if foreign:
        (other,) = (name for name in DEFAULTS if name != model)
        raise UsageError(f"{', '.join(foreign)}: not for --model {model}, but for --model {other}")
    settings = {"model": model, "data": _from_anywhere(options.data), **DEFAULTS[model], **given}
    n_hidden = len(settings["hidden"])
    if model == "rbm":
        if n_hidden != 1:
            raise UsageError(
                f"--hidden: expected one number for an RBM, got {_shown(settings['hidden'])}; deep is --model dbm"
            )
        if settings["estimator"] == "cd" and "chains" in given:
            raise UsageError(
                "--chains: has a meaning only with --estimator pcd; cd runs one chain for each row of a batch"
            )
        return settings
    epochs = settings["pretraining_epochs"]
    if len(epochs) not in (1, n_hidden):
        raise UsageError(f"--pretraining-epochs: expected 1 or {n_hidden} numbers, got {_shown(epochs)}")
    return {**settings, "pretraining_epochs": epochs * n_hidden if len(epochs) == 1 else epochs}


def _enough(settings: Result, options: argparse.Namespace, n_rows: int) -> Result:
    """The settings with more epochs of small data, where the user has named none.

    An epoch of the shipped digits is 12 updates, one of MNIST 600: as many epochs are no measure of both, and the
    weights of a machine begin so small that it learns next to nothing in its first hundreds of updates.
    """
    batches: int = math.ceil(n_rows / settings["batch_size"])

    def at_least(epochs: int, updates: int) -> int:
        return max(epochs, min(_MOST_EPOCHS, math.ceil(updates / batches)))

    more = {}
    for name, updates in _ENOUGH_UPDATES.items():
        if name in settings and getattr(options, name) is None:
            given = settings[name]
            more[name] = [at_least(n, updates) for n in given] if isinstance(given, list) else at_least(given, updates)
    return {**settings, **more}


def _from_anywhere(source: str) -> str:
    """A path in full, so that the run can be resumed from any folder; names, right or wrong, as they are."""
    return str(Path(source).resolve()) if source.endswith((".npy", ".npz")) else source


def _resumed_settings(options: argparse.Namespace) -> Result:
    fixed = [name for name in ("model", *_SETTINGS, "data", "output") if name != "epochs"]
    given = [f"--{name.replace('_', '-')}" for name in fixed if getattr(options, name) is not None]
    if given:
        raise UsageError(f"--resume: takes all settings from the run; leave out {', '.join(given)}")
    folder = _run_folder(options.resume)
    settings: Result | None = read_configuration(folder).get("settings")
    if settings is not None and settings.get("model") == "dbm":
        settings = {"labels": False, **settings}  # older runs had no labels
    model = {} if settings is None else DEFAULTS.get(settings.get("model", ""), {})
    if settings is None or set(settings) != {"model", "data", *model}:
        raise UsageError(f"--resume: no {CONFIGURATION} of a run in {folder}")
    return settings


@refusing()
def _epochs_done(checkpoint: Path) -> int:
    epoch, _batch, _update = checkpoints.entry(checkpoints.load(checkpoint), "trainer", checkpoint)["counts"]
    return int(epoch)


def _run_folder(resume: str) -> Path:
    path = Path(resume)
    if not path.exists():
        raise UsageError(f"--resume: no folder or checkpoint {resume!r}")
    return path if path.is_dir() else path.parent


def _write_configuration(output: Output, settings: Result, dataset: Dataset, stale: Collection[str]) -> None:
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
