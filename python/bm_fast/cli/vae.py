"""Trains a variational or importance-weighted autoencoder, measures it, and draws what it has learnt.

Adam climbs the bound in small batches; 0/1 are drawn from grey levels at each presentation, or once: --protocol. The
folder gets the checkpoint, the learning curve, the configuration, the evaluation on the test split, and pictures.
Ctrl-C finishes the update, saves, and exits with 130; --resume goes on to the same bits as a run that was never
interrupted; a finished run is measured again, and pictures that are missing are drawn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from bm_fast import plots
from bm_fast.cli.common import (
    CHECKPOINT,
    CONFIGURATION,
    Output,
    binary_split,
    commit,
    left_by_a_run,
    load_data,
    read_configuration,
    refusing,
    spread,
)
from bm_fast.cli.console import SEED, Console, Result, UsageError, counted, real, version, whole
from bm_fast.cli.devices import add_device
from bm_fast.cli.learning import going_on
from bm_fast.data import NAMES, SPLITS, Dataset
from bm_fast.training import Checkpoint, History, ProgressBar
from bm_fast.vae import ELBO, IWAE, STL, VAE, DReG, Trainer, burda_schedule, evaluate, pictures

EXAMPLES = """\
examples:
  bm-fast vae digits --epochs 50 --output runs/vae-digits                       a minute or two
  bm-fast vae mnist --estimator dreg --k 50 --epochs 121 --output runs/iwae     hours
  bm-fast vae mnist --layers 200-200-100 100-100-50 --schedule burda --epochs 3280 --output runs/iwae-2
  bm-fast vae --resume runs/iwae"""

CURVE_PICTURE, RESULT = "learning_curve.png", "evaluation.json"
PICTURES = ("samples.png", "reconstructions.png", "traversals.png", "latent_map.png", "latent_plane.png")
PROTOCOLS = ("dynamic", "fixed-sample", "fixed-larochelle", "binary")

DEFAULTS: Result = {
    "protocol": None,
    "layers": ["200-200-50"],
    "estimator": "iwae",
    "k": 50,
    "epochs": 20,
    "batch_size": 20,
    "learning_rate": 1e-3,
    "schedule": "linear",
    "hold_out": 0,
    "mixed_precision": False,
    "seed": 0,
}

_ESTIMATORS = {"elbo": ELBO, "stl": STL, "iwae": IWAE, "dreg": DReG}
_DRAWN_ROWS, _MAP_ROWS = 10, 5000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command; a setting that is left out stays None, so that --resume can tell."""

    def setting(name: str, text: str, **how: Any) -> None:
        default = DEFAULTS[name.lstrip("-").replace("-", "_")]
        shown = " ".join(default) if isinstance(default, list) else "no" if default is False else default
        parser.add_argument(name, default=None, help=f"{text} (default: {shown})", **how)

    parser.add_argument("data", nargs="?", help=f"{', '.join(NAMES)}, or a .npy or .npz file of your own")
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="how data become binary, out of what they allow: dynamic draws grey levels at each presentation, "
        "fixed-sample once with seed 0 (default: as the data come)",
    )
    setting(
        "--layers",
        "for each stochastic layer, seen from the data: hidden sizes, and its units last",
        nargs="+",
        metavar="SIZES",
    )
    setting("--estimator", "gradient: of the variational or the importance-weighted bound", choices=tuple(_ESTIMATORS))
    setting("--k", "samples for each row", type=whole(1), metavar="K")
    setting("--epochs", "passes through the data", type=whole(1), metavar="N")
    setting("--batch-size", "rows per update", type=whole(1), metavar="N")
    setting("--learning-rate", "Adam's rate at the start", type=real(0, above=True), metavar="RATE")
    setting(
        "--schedule",
        "linear: to zero at the last epoch; burda: stages of 1, 3, 9, ... epochs, the last at a tenth of the rate",
        choices=("linear", "burda"),
    )
    setting("--hold-out", "train on train and valid, but for the last N rows; 0: on train", type=whole(0), metavar="N")
    setting("--mixed-precision", "train with products in bfloat16", action=argparse.BooleanOptionalAction)
    setting("--seed", "decides initial weights, order, binarisation and samples", type=SEED, metavar="N")
    parser.add_argument("--test-k", type=whole(1), default=5000, help="samples of the evaluation (default: 5000)")
    parser.add_argument(
        "--test-rows", type=whole(1), metavar="N", help="rows of the evaluation, spread over the split (default: all)"
    )
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder, with its settings")
    add_device(parser, kernels=False)
    parser.add_argument("--output", metavar="FOLDER", help="folder for the results (default: vae-output)")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an older run in that folder, and what was made of it"
    )


def run(options: argparse.Namespace, console: Console) -> Result:
    settings = _resumed_settings(options) if options.resume else _new_settings(options)
    dataset = training_data(settings)
    model = new_model(settings, dataset).to(options.device)  # begins with the same numbers on any device
    dataset = dataset.to(options.device)
    names = (CHECKPOINT, CONFIGURATION, CURVE_PICTURE, RESULT, *PICTURES)
    folder = Path(options.resume or options.output or "vae-output")
    stale = set() if options.resume else {*names, *left_by_a_run(folder, options.data)} - {CONFIGURATION}
    output = Output(folder, names, overwrite=options.overwrite or bool(options.resume), stale=stale)
    history = History()
    with refusing(), going_on():
        trainer = _trainer(model, settings, output, history, resume=bool(options.resume))
    console.say(
        f"{_kind(settings)} of {model.n_visible} visible units, stochastic layers {' / '.join(settings['layers'])}, on "
        f"{counted(len(dataset.train), 'row')} of {settings['data']} ({dataset.protocol}); "
        f"{counted(settings['epochs'], 'epoch')} with {settings['estimator']}, k = {settings['k']}, results in "
        f"{output.folder}"
    )
    is_finished = trainer.epoch >= settings["epochs"]
    if is_finished:
        console.say(f"Nothing is left to train: {counted(trainer.epoch, 'epoch')} done. It is measured again")
    program = {"version": version(), "commit": commit(), "torch": torch.__version__}
    configuration = {
        **program,
        "settings": settings,
        "data": {
            "name": dataset.name,
            "protocol": dataset.protocol,
            "shape": dataset.shape,
            "rows": {split: len(dataset.split(split)) for split in SPLITS if getattr(dataset, split) is not None},
        },
    }
    if options.resume:
        configuration = read_configuration(output.folder)
    else:
        output.write_json(CONFIGURATION, configuration, stale)
    started = time.monotonic()
    try:
        trainer.fit(dataset.train, settings["epochs"], dataset.valid)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted in epoch {trainer.epoch + 1} and saved; go on with: bm-fast vae --resume {output.folder}"
        ) from None
    seconds = time.monotonic() - started
    split = "test" if dataset.test is not None else "train"
    images, protocol = binary_split(dataset, split, seed=0)
    rows = spread(min(options.test_rows or len(images), len(images)), len(images))
    images = images[rows]
    ks = sorted({k for k in (1, 5, 50) if k < options.test_k} | {options.test_k})
    found = evaluate(model, images, ks, progress=True)
    result: Result = {
        "settings": settings,
        "trained_by": {name: configuration.get(name) for name in program},
        "measured_by": program,
        "rows": len(images),
        "split": split,
        "protocol": protocol,
        "bounds": {str(k): {"mean": b.mean, "standard_error": b.standard_error} for k, b in found.bounds.items()},
        "effective_sample_size": found.effective_sample_size,
        "active_units": found.active_units,
        "updates": trainer.update,
        "seconds": history.rows[-1]["seconds"] if history.rows else seconds,
        "last": history.rows[-1] if history.rows else {},
    }
    for bound in found.bounds.values():
        console.say(str(bound))
    console.say(
        f"  {counted(len(images), f'{split} case')} of {dataset.name}, protocol: {protocol}\n"
        f"  active units {_listed(found.active_units)} of {_listed(model.latents)}; effective sample size "
        f"{found.effective_sample_size:.1f} of {options.test_k}"
    )
    output.write_json(RESULT, result)
    labels: Tensor | None = getattr(dataset, f"{split}_labels")
    _draw(
        output, model, history, dataset.shape, images, None if labels is None else labels[rows], again=not is_finished
    )
    output.announce(console)
    return {**result, "files": output.files}


def _draw(
    output: Output,
    model: VAE,
    history: History,
    shape: tuple[int, int] | None,
    images: Tensor,
    labels: Tensor | None,
    *,
    again: bool,
) -> None:
    """The pictures of a run; ``again``: those that are there already too."""
    figures = {}
    series = {
        name: ([row["epoch"] for row in history.rows], [row[key] for row in history.rows])
        for name, key in (("training", "bound"), ("validation", "validation_bound"))
        if history.rows and key in history.rows[0]
    }
    if series:
        figures[CURVE_PICTURE] = plots.learning_curve({"bound (nats)": series})
    if shape is not None:
        figures["samples.png"] = pictures.samples(model, shape)
        figures["reconstructions.png"] = pictures.reconstructions(model, images[:_DRAWN_ROWS], shape)
        figures["traversals.png"] = pictures.traversals(model, images[:_MAP_ROWS], shape)
        if model.latents[-1] == 2:
            figures["latent_plane.png"] = pictures.latent_plane(model, shape)
    if model.latents[-1] >= 2:
        shown = None if labels is None else labels[:_MAP_ROWS]
        figures["latent_map.png"] = pictures.latent_map(model, images[:_MAP_ROWS], shown)
    for name, figure in figures.items():
        if not again and (output.folder / name).exists():
            continue
        with output.writing(name) as path:
            plots.save(figure, path)


def new_model(settings: Result, dataset: Dataset) -> VAE:
    """The model that the settings describe, its output biases at the rates of the data."""
    sizes = [_sizes(text) for text in settings["layers"]]
    model = VAE(dataset.n_units, [s[-1] for s in sizes], [s[:-1] for s in sizes], seed=settings["seed"])
    model.initialise_biases(dataset.train)
    return model


def _trainer(model: VAE, settings: Result, output: Output, history: History, *, resume: bool) -> Trainer:
    adam = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"], eps=1e-4, fused=True)
    epochs = settings["epochs"]
    if settings["schedule"] == "burda":
        schedule = burda_schedule(adam, epochs)
    else:
        schedule = LambdaLR(adam, lambda epoch: max(0.0, 1 - epoch / epochs))
    callbacks = [history, ProgressBar(), Checkpoint(output.path(CHECKPOINT))]
    if resume:
        return Trainer.resume(output.path(CHECKPOINT), model, adam, schedule, callbacks)
    return Trainer(
        model,
        adam,
        _ESTIMATORS[settings["estimator"]](settings["k"]),
        batch_size=settings["batch_size"],
        seed=settings["seed"],
        scheduler=schedule,
        callbacks=callbacks,
        mixed_precision=settings["mixed_precision"],
    )


def training_data(settings: Result) -> Dataset:
    """The data of a run by its protocol, the last rows of train and valid held out as valid where it says so."""
    dataset, hold_out = load_data(settings["data"], settings.get("protocol")), settings.get("hold_out", 0)
    if hold_out == 0:
        return dataset
    rows = dataset.train if dataset.valid is None else torch.cat([dataset.train, dataset.valid])
    if hold_out >= len(rows):
        raise UsageError(f"--hold-out: expected fewer than the {len(rows):,} rows of train and valid, got {hold_out}")
    return replace(
        dataset, train=rows[:-hold_out], valid=rows[-hold_out:].clone(), train_labels=None, valid_labels=None
    )


def _kind(settings: Result) -> str:
    return "VAE" if settings["estimator"] in ("elbo", "stl") or settings["k"] == 1 else "IWAE"


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))


def _sizes(text: str) -> list[int]:
    parts = text.split("-")
    if not all(part.isdigit() and int(part) for part in parts):
        raise UsageError(f"--layers: expected sizes like 200-200-50, the units of the layer last, got {text!r}")
    return [int(part) for part in parts]


def _new_settings(options: argparse.Namespace) -> Result:
    if options.data is None:
        raise UsageError(f"data: expected {', '.join(NAMES)}, or a path to a .npy or .npz file; or --resume a run")
    for text in options.layers or ():
        _sizes(text)
    given = {name: getattr(options, name) for name in DEFAULTS}
    source = str(Path(options.data).resolve()) if options.data.endswith((".npy", ".npz")) else options.data
    return {"data": source, **{name: DEFAULTS[name] if value is None else value for name, value in given.items()}}


def _resumed_settings(options: argparse.Namespace) -> Result:
    given = [f"--{n.replace('_', '-')}" for n in (*DEFAULTS, "data", "output") if getattr(options, n) is not None]
    if given:
        raise UsageError(f"--resume: takes all settings from the run; leave out {', '.join(given)}")
    settings: Result = read_configuration(Path(options.resume)).get("settings", {})
    if set(settings) | {"protocol"} != {"data", *DEFAULTS}:  # older runs had no choice of protocol
        raise UsageError(f"--resume: no {CONFIGURATION} of an autoencoder in {options.resume}")
    return settings
