"""Measures a trained machine: the mean log-likelihood of test data, with its standard error.

log Z is exact, by enumeration, where the smaller layer has few enough units; otherwise it is estimated by annealed
importance sampling (AIS), whose error is part of the result, or from both sides, by parallel tempering with annealing
in both directions. Estimates come with a verdict: one whose weights have collapsed is named as not trustworthy. Grey
data are binarised once with a seed, and the protocol is part of the result: likelihoods compare only within one
protocol.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import numpy as np
import torch
from torch import Tensor

from bm_fast import plots
from bm_fast.cli.common import SEED, Console, Output, Result, UsageError, binary_split, load_data, load_model, whole
from bm_fast.data import NAMES, SPLITS, Dataset
from bm_fast.estimation import (
    MAX_ENUMERATED_UNITS,
    AISEstimate,
    MeanLogLikelihood,
    UntrustworthyEstimate,
    ais,
    base_biases,
    estimate_log_likelihood,
    exact_log_z,
    mean_log_likelihood,
    pseudo_log_likelihood,
    reconstruction_error,
)
from bm_fast.rbm import RBM

NAME = "evaluate"
SUMMARY = "log-likelihood of test data with its standard error; exact, or by annealed importance sampling"
EXAMPLES = """\
examples:
  bm-fast evaluate runs/mnist                              the test split of the data of the run
  bm-fast evaluate runs/mnist --runs 500 --betas adaptive
  bm-fast evaluate runs/mnist --method bracket             from below and from above, in minutes
  bm-fast evaluate runs/small --method exact --json        log Z by enumeration, result for a program"""

RESULT, WEIGHTS, WEIGHTS_PICTURE = "evaluation.json", "log_weights.npy", "log_weights.png"
TEMPERING_PICTURE = "tempering.png"
_FEW_ENUMERATED_UNITS = 20
_BASES = ("uniform", "data")
_PSEUDO_ROWS = 1000
_AGREEMENT = 4
"""Joint standard errors by which two estimates may differ; honest ones do by chance once in 15,000 times."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder of a training run, or a checkpoint file")
    parser.add_argument(
        "--data", help=f"{', '.join(NAMES)}, or a .npy or .npz file (default: those of the training run)"
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="which part of the data (default: test)")
    parser.add_argument(
        "--method",
        choices=("auto", "exact", "ais", "bracket"),
        default="auto",
        help=f"how log Z is found; exact takes up to {MAX_ENUMERATED_UNITS} units in the smaller layer; bracket finds "
        "it from both sides, by parallel tempering and by AIS forward and in reverse "
        f"(default: exact up to {_FEW_ENUMERATED_UNITS}, else AIS)",
    )
    parser.add_argument(
        "--runs", type=whole(1), default=100, metavar="N", help="AIS runs; ladders of a bracket (default: 100)"
    )
    parser.add_argument(
        "--betas",
        metavar="SCHEDULE",
        help="of AIS: salakhutdinov-murray (14,503 betas), adaptive, or a number of equal steps "
        "(default: salakhutdinov-murray; adaptive for a bracket)",
    )
    parser.add_argument(
        "--rounds",
        type=whole(1),
        default=2000,
        metavar="N",
        help="bracket: rounds of swaps that are measured, after half as many (default: 2000)",
    )
    parser.add_argument(
        "--base",
        choices=("both", *_BASES),
        default="both",
        help="AIS starts at independent units with the rates of the training data (data) or at fair coins (uniform); "
        "both: the higher log Z counts, for either is too low on average, and bases that disagree are not trusted "
        "(default: both; a bracket has one base, by default the data)",
    )
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="of AIS and of the binarisation (default: 0)")
    parser.add_argument(
        "--output",
        default="evaluate-output",
        metavar="FOLDER",
        help="folder for the results (default: evaluate-output)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older evaluation in that folder")


def run(options: argparse.Namespace, console: Console) -> Result:
    trained = load_model(options.checkpoint)
    rbm = trained.rbm
    source = options.data or trained.configuration.get("settings", {}).get("data")
    if source is None:
        raise UsageError("--data: the data of the training run are not known; name the data")
    dataset = load_data(source)
    if dataset.n_units != rbm.n_visible:
        raise UsageError(f"--data: expected {rbm.n_visible} units as the machine has, got {dataset.n_units}")
    images, protocol = binary_split(dataset, options.split, options.seed)
    smaller = min(rbm.n_visible, rbm.n_hidden)
    exact = options.method == "exact" or (options.method == "auto" and smaller <= _FEW_ENUMERATED_UNITS)
    if exact and smaller > MAX_ENUMERATED_UNITS:
        raise UsageError(
            f"--method: exact enumerates up to {MAX_ENUMERATED_UNITS} units, the smaller layer has {smaller}"
        )
    bracket = options.method == "bracket"
    betas = _betas(options.betas or ("adaptive" if bracket else "salakhutdinov-murray"))
    pictures = () if exact else (TEMPERING_PICTURE,) if bracket else (WEIGHTS, WEIGHTS_PICTURE)
    output = Output(options.output, (RESULT, *pictures), overwrite=options.overwrite)
    started = time.monotonic()
    result: Result = {"data": dataset.name, "split": options.split, "cases": len(images), "protocol": protocol}
    if exact:
        exact_value = exact_log_z(rbm, progress=True)
        result |= {"method": "exact", "log_z": exact_value, "trustworthy": True, "reason": ""}
        console.say(f"log Z = {exact_value:.4f}, exact")
        likelihood = mean_log_likelihood(rbm, images, exact_value)
    elif bracket:
        likelihood, found = _bracket(rbm, dataset, images, betas, options, output, console)
        result |= found
    else:
        bases = _BASES if options.base == "both" else (options.base,)
        estimates = {name: _estimate(rbm, dataset, name, betas, options, console) for name in bases}
        best = max(bases, key=lambda name: (estimates[name].trustworthy, estimates[name].log_z))
        log_z = estimates[best]
        result |= {"method": "ais", "runs": options.runs, "base": best, **_figures(log_z)}
        result["bases"] = {name: _figures(estimate) for name, estimate in estimates.items()}
        result |= _verdict(estimates, best)
        with output.writing(WEIGHTS) as path:
            np.save(path, log_z.log_weights.cpu().numpy())
        with output.writing(WEIGHTS_PICTURE) as path:
            plots.save(plots.ais_weights(log_z), path)
        likelihood = mean_log_likelihood(rbm, images, log_z)
    result |= {
        "log_likelihood": likelihood.mean,
        "standard_error": likelihood.standard_error,
        "standard_error_from_cases": likelihood.case_error,
        "pseudo_log_likelihood": pseudo_log_likelihood(rbm, images[:_PSEUDO_ROWS].contiguous()).mean().item(),
        "reconstruction_error": reconstruction_error(rbm, images).mean().item(),
        "seconds": time.monotonic() - started,
    }
    console.say(
        f"log-likelihood = {likelihood} per case\n"
        f"  {len(images):,} {options.split} cases of {dataset.name}, protocol: {protocol}\n"
        f"  pseudo-log-likelihood {result['pseudo_log_likelihood']:.2f} nats (up to {_PSEUDO_ROWS:,} cases), "
        f"reconstruction error {result['reconstruction_error']:.4f} per unit"
    )
    if not result["trustworthy"]:
        console.say(f"WARNING: do not trust this figure: {result['reason']}")
    output.write_json(RESULT, result)
    output.announce(console)
    return {**result, "files": output.files}


def _estimate(
    rbm: RBM, dataset: Dataset, base: str, betas: str | int, options: argparse.Namespace, console: Console
) -> AISEstimate:
    biases = base_biases(rbm, dataset.train) if base == "data" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustworthyEstimate)  # the verdict is part of the result
        estimate = ais(rbm, options.runs, betas=betas, base=biases, seed=options.seed, progress=True)
    console.say(f"from {'the rates of the data' if base == 'data' else 'fair coins'}: {estimate}")
    return estimate


def _bracket(
    rbm: RBM,
    dataset: Dataset,
    images: Tensor,
    betas: str | int,
    options: argparse.Namespace,
    output: Output,
    console: Console,
) -> tuple[MeanLogLikelihood, Result]:
    coins = [torch.zeros(layer.units) for layer in rbm.graph.layers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustworthyEstimate)  # the verdict is part of the result
        estimate = estimate_log_likelihood(
            rbm,
            images,
            base=coins if options.base == "uniform" else base_biases(rbm, dataset.train),
            n_runs=options.runs,
            rounds=options.rounds,
            betas=betas,
            seed=options.seed,
            progress=True,
        )
    console.say(f"{estimate}")
    for part in ("report", "tempered", "forward", "reverse"):
        console.say(f"{part}: {getattr(estimate, part)}")
    with output.writing(TEMPERING_PICTURE) as path:
        plots.save(plots.tempering(estimate.report), path)
    found = {
        "method": "bracket",
        "base": "uniform" if options.base == "uniform" else "data",
        "runs": options.runs,
        "rounds": options.rounds,
        "bracket": estimate.bracket,
        "log_z": estimate.tempered.log_z,
        "log_z_standard_error": estimate.standard_error,
        "forward": _figures(estimate.forward),
        "reverse": _figures(estimate.reverse),
        "barrier": estimate.report.barrier,
        "round_trips": estimate.report.trips,
        "autocorrelation": estimate.report.autocorrelation,
        "trustworthy": estimate.trustworthy,
        "reason": estimate.reason,
    }
    return MeanLogLikelihood(estimate.mean, estimate.case_error, estimate.standard_error), found


def _figures(estimate: AISEstimate) -> Result:
    return {
        "log_z": estimate.log_z,
        "log_z_standard_error": estimate.standard_error,
        "log_z_interval": estimate.interval,
        "effective_sample_size": estimate.effective_sample_size,
        "betas": estimate.n_betas,
        "trustworthy": estimate.trustworthy,
        "reason": estimate.reason,
    }


def _verdict(estimates: dict[str, AISEstimate], best: str) -> Result:
    """How far the bases are apart, and what that says of the estimate: well-behaved weights may have missed a mode."""
    if len(estimates) == 1:
        return {}
    (other,) = (name for name in estimates if name != best)
    high, low = estimates[best], estimates[other]
    difference = high.log_z - low.log_z
    joint = math.hypot(high.standard_error, low.standard_error)
    verdict: Result = {"bases_difference": {"log_z": difference, "standard_error": joint}}
    # collapsed weights give too low a log Z, so a collapsed estimate below the other is no evidence against it
    if abs(difference) > _AGREEMENT * joint and (low.trustworthy or difference < 0):
        apart = (
            f"the bases disagree: log Z is {high.log_z:.2f} from {best} and {low.log_z:.2f} from {other}, more than "
            f"{_AGREEMENT} joint standard errors ({joint:.2g} each) apart"
        )
        verdict |= {"trustworthy": False, "reason": "; ".join(filter(None, (high.reason, apart)))}
    return verdict


def _betas(text: str) -> str | int:
    if text in ("salakhutdinov-murray", "adaptive"):
        return text
    if text.isdigit() and int(text) >= 2:
        return int(text)
    raise UsageError(f"--betas: expected salakhutdinov-murray, adaptive, or a number of at least 2, got {text!r}")
