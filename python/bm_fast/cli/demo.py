"""Trains a machine on the handwritten digits that come with the package, says how good it is, and draws pictures.

The progress bar shows the log-likelihood of validation digits while the machine learns. At the end comes that of test
digits, with its standard error: exact where the hidden units can be enumerated, and by annealed importance sampling
(AIS) in any case. The data are 1,797 images of 8 x 8 grey levels; each level is the probability of a black pixel.
It runs on one thread unless --threads asks for more: so small a machine gains nothing from a second.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch

from bm_fast import plots
from bm_fast.cli.common import Output, binary_split
from bm_fast.cli.console import SEED, Console, Result, whole
from bm_fast.cli.learning import CURVE_PICTURE, FILTERS, draw, optimiser
from bm_fast.cli.sample import snapshots
from bm_fast.data import Dataset, load
from bm_fast.estimation import UntrustworthyEstimate, ais, exact_log_z, mean_log_likelihood
from bm_fast.rbm import RBM
from bm_fast.training import PCD, Callback, Evaluate, History, Progress, ProgressBar, Trainer

EXAMPLES = """\
examples:
  bm-fast demo
  bm-fast demo --hidden 16        small enough for an exact likelihood, beside which AIS can be judged"""

SAMPLES, DIGITS, MODEL = "samples_over_sweeps.png", "digits.png", "model.safetensors"
FILES = (SAMPLES, FILTERS, CURVE_PICTURE, DIGITS, MODEL)
"""What the demo writes, and replaces when it runs again."""

_FEW_HIDDEN = 20
_SETTINGS: Result = {"learning_rate": 0.5, "schedule": "linear", "momentum": 0.0, "weight_decay": 1e-4}
_LIVE_FIGURES, _LIVE_BETAS, _TEST_BETAS = 40, 500, 5000
_SWEEPS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--hidden", type=whole(1, 2000), default=64, metavar="N", help="hidden units (default: 64)")
    parser.add_argument("--epochs", type=whole(1), default=200, metavar="N", help="passes (default: 200)")
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="seed of everything random (default: 0)")
    parser.add_argument(
        "--output",
        default="demo-output",
        metavar="FOLDER",
        help="folder for the pictures; those of an earlier demo there are replaced (default: demo-output)",
    )


def run(options: argparse.Namespace, console: Console) -> Result:
    started = time.monotonic()
    if options.threads is None:
        torch.set_num_threads(1)  # a second one loses much where the computer is busy
    output = Output(options.output, FILES, overwrite=True)
    digits = load("digits")
    console.say(f"Training an RBM with 64 visible and {options.hidden} hidden units on {len(digits.train):,} digits")
    rbm = RBM(digits.n_units, options.hidden, seed=options.seed)
    rbm.initialise_biases(digits.train)
    history = History()
    trainer = _trainer(rbm, digits, history, options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrustworthyEstimate)  # the live figure is a rough one
            trainer.fit(digits.train, epochs=options.epochs)
    except KeyboardInterrupt:
        rbm.save(output.path(MODEL))
        draw(output, history, rbm, digits.shape)
        raise KeyboardInterrupt(
            f"interrupted in epoch {trainer.epoch + 1}; what was learnt so far is in {output.folder}"
        ) from None
    result = {"hidden": options.hidden, "epochs": options.epochs, "training_seconds": time.monotonic() - started}
    result |= _measure(rbm, digits, options.seed, console)
    _pictures(rbm, digits, history, options.seed, output)
    output.announce(console)
    seconds = time.monotonic() - started
    console.say(f"All of it took {seconds:.1f} s")
    return {**result, "seconds": seconds, "files": output.files}


def _trainer(rbm: RBM, digits: Dataset, history: History, options: argparse.Namespace) -> Trainer:
    sgd, schedule = optimiser(rbm, {**_SETTINGS, "epochs": options.epochs})
    valid, _ = binary_split(digits, "valid", options.seed)

    def log_likelihood(rbm: RBM) -> float:
        if rbm.n_hidden <= _FEW_HIDDEN:
            log_z = exact_log_z(rbm)
        else:
            log_z = ais(rbm, 100, betas=_LIVE_BETAS, seed=options.seed).log_z
        return mean_log_likelihood(rbm, valid, log_z).mean

    every = max(1, options.epochs // _LIVE_FIGURES)
    return Trainer(
        rbm,
        sgd,
        PCD(n_chains=100, sweeps=1),
        batch_size=50,
        seed=options.seed,
        scheduler=schedule,
        callbacks=[Evaluate({"log_likelihood_valid": log_likelihood}, every), history, _LastFigures(), ProgressBar()],
    )


class _LastFigures(Callback):
    """Leaves the last figures in the progress bar until there are new ones."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def on_epoch(self, progress: Progress) -> None:
        self._last |= progress.metrics
        progress.metrics = dict(self._last)


def _measure(rbm: RBM, digits: Dataset, seed: int, console: Console) -> Result:
    """Prints and returns the test log-likelihood."""
    test, protocol = binary_split(digits, "test", seed)
    console.say(f"\nLog-likelihood of {len(test)} test digits, in nats per digit (protocol: {protocol}):")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustworthyEstimate)  # the verdict is printed
        estimate = ais(rbm, 100, betas=_TEST_BETAS, seed=seed, progress=True)
    best = by_ais = mean_log_likelihood(rbm, test, estimate)
    if rbm.n_hidden <= _FEW_HIDDEN:
        log_z = exact_log_z(rbm)
        best = mean_log_likelihood(rbm, test, log_z)
        console.say(f"  exact   {best}; log Z = {log_z:.3f}")
    console.say(f"  AIS     {by_ais}; {estimate}")
    return {
        "protocol": protocol,
        "cases": len(test),
        "log_likelihood": best.mean,
        "standard_error": best.standard_error,
        "method": "ais" if best is by_ais else "exact",
        "ais_log_likelihood": by_ais.mean,
        "ais_log_z": estimate.log_z,
        "ais_log_z_standard_error": estimate.standard_error,
        "ais_trustworthy": estimate.trustworthy,
    }


def _pictures(rbm: RBM, digits: Dataset, history: History, seed: int, output: Output) -> None:
    rbm.save(output.path(MODEL))
    assert digits.shape is not None
    shown, states = snapshots(rbm, rbm.chains(16, seed), _SWEEPS)
    title = "Samples over sweeps: 16 chains from noise to digits"
    with output.writing(SAMPLES) as path:
        plots.save(plots.samples_over_sweeps(states, shown, digits.shape, title=title), path)
    draw(output, history, rbm, digits.shape)
    with output.writing(DIGITS) as path:
        plots.save(plots.image_grid(digits.split("test")[:100], digits.shape, title="Test digits"), path)
