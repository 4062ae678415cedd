"""Measures a trained machine: the mean log-likelihood of test data, with its standard error; of a deep machine a bound.

log Z is exact, by enumeration, where the smaller layer has few enough units; otherwise it is estimated by annealed
importance sampling (AIS), whose error is part of the result, or from both sides, by parallel tempering with annealing
in both directions. A machine with labels also classifies the cases. Estimates come with a verdict: one whose weights
have collapsed is named as not trustworthy. Grey data are binarised once with a seed, and the protocol is part of the
result: likelihoods compare only within one protocol.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bm_fast import plots
from bm_fast.cli.common import Output, binary_split, load_data, load_model
from bm_fast.cli.console import SEED, Console, Result, UsageError, counted, whole
from bm_fast.cli.devices import add_device
from bm_fast.data import NAMES, SPLITS, Dataset
from bm_fast.dbm import DBM
from bm_fast.estimation import (
    MAX_ENUMERATED_UNITS,
    AISEstimate,
    LogLikelihoodEstimate,
    MeanLogLikelihood,
    UntrustworthyEstimate,
    ais,
    base_biases,
    estimate_log_likelihood,
    exact_log_likelihood,
    exact_log_z,
    mean_log_likelihood,
    mean_variational_bound,
    pseudo_log_likelihood,
    reconstruction_error,
)
from bm_fast.graph import Graph, Kind, chain_graph
from bm_fast.mean_field import MeanFieldNotConverged
from bm_fast.model import VISIBLE, BoltzmannModel
from bm_fast.program import full_update

EXAMPLES = """\
examples:
  bm-fast evaluate runs/mnist                              the test split of the data of the run
  bm-fast evaluate runs/mnist --runs 500 --betas adaptive
  bm-fast evaluate runs/mnist --method bracket             from below and from above, in minutes
  bm-fast evaluate runs/small --method exact --json        log Z by enumeration, result for a program"""

RESULT, WEIGHTS, WEIGHTS_PICTURE = "evaluation.json", "log_weights.npy", "log_weights.png"
TEMPERING_PICTURE = "tempering.png"
_FEW_ENUMERATED_UNITS = 20
_MOST_EXACT_STATES = 2**25
"""Of the hidden layers, summed over all cases, for an exact likelihood of a deep machine: seconds to minutes."""
_ITERATIONS = 100
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
        "--runs", type=whole(1, 2**20), default=100, metavar="N", help="AIS runs; ladders of a bracket (default: 100)"
    )
    parser.add_argument(
        "--betas",
        metavar="SCHEDULE",
        help="of AIS: salakhutdinov-murray (14,503 betas), adaptive, or a number of equal steps "
        "(default: salakhutdinov-murray; adaptive for a bracket)",
    )
    parser.add_argument(
        "--rounds",
        type=whole(2),
        default=2000,
        metavar="N",
        help="bracket: rounds of swaps that are measured, after half as many (default: 2000)",
    )
    parser.add_argument(
        "--base",
        choices=("both", *_BASES),
        help="AIS starts at independent units with the rates of the training data (data) or at fair coins (uniform); "
        "both: the higher log Z counts, for either is too low on average, and bases that disagree are not trusted "
        "(default: both; a bracket has one base, by default the data)",
    )
    parser.add_argument("--seed", type=SEED, default=0, metavar="N", help="of AIS and of the binarisation (default: 0)")
    add_device(parser)
    parser.add_argument(
        "--output", metavar="FOLDER", help="folder for the results (default: that of the run or checkpoint)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an older evaluation in that folder")


def run(options: argparse.Namespace, console: Console) -> Result:
    trained = load_model(options.checkpoint, options.device)
    model = trained.model
    deep = model if isinstance(model, DBM) and len(model.graph.layers) > 2 else None
    source = options.data or trained.configuration.get("settings", {}).get("data")
    if source is None:
        raise UsageError("--data: the data of the training run are not known; name the data")
    dataset = load_data(source).to(options.device)
    if dataset.n_units != model.n_visible:
        raise UsageError(f"--data: expected {model.n_visible} units as the machine has, got {dataset.n_units}")
    images, protocol = binary_split(dataset, options.split, options.seed)
    smaller = _enumerated_units(model.graph)
    exact = options.method == "exact" or (options.method == "auto" and smaller <= _FEW_ENUMERATED_UNITS)
    if exact and smaller > MAX_ENUMERATED_UNITS:
        what = "smaller layer has" if deep is None else "smaller of the odd and the even layers have"
        raise UsageError(f"--method: exact enumerates up to {MAX_ENUMERATED_UNITS} units, the {what} {smaller}")
    bracket = options.method == "bracket"
    if bracket and options.base == "both":
        raise UsageError("--base: expected data or uniform for a bracket, which has one base, got both")
    betas = _betas(options.betas or ("adaptive" if bracket else "salakhutdinov-murray"))
    pictures = () if exact else (TEMPERING_PICTURE,) if bracket else (WEIGHTS, WEIGHTS_PICTURE)
    folder = Path(options.output or trained.path.parent)
    is_there = (folder / RESULT).exists()
    older = {WEIGHTS, WEIGHTS_PICTURE, TEMPERING_PICTURE} - {*pictures} if is_there else set()
    output = Output(folder, (RESULT, *pictures), overwrite=options.overwrite, stale=older)
    started = time.monotonic()
    bracketed, details = "", list[str]()
    result: Result = {"data": dataset.name, "split": options.split, "cases": len(images), "protocol": protocol}
    if exact:
        exact_value = exact_log_z(model, progress=True)
        result |= {"method": "exact", "log_z": exact_value, "trustworthy": True, "reason": ""}
        details.append(f"log Z = {exact_value:.4f}, exact")
        likelihood = _likelihood(model, images, exact_value, deep=deep is not None)
    elif bracket:
        estimate = _bracket(model, dataset, images, betas, options)
        with output.writing(TEMPERING_PICTURE) as path:
            plots.save(plots.tempering(estimate.report), path)
        result |= _of_bracket(estimate, options)
        likelihood = MeanLogLikelihood(estimate.mean, estimate.case_error, estimate.standard_error, estimate.reason)
        bracketed = f", {estimate.bracketed}"
        details += [
            f"tempering: {estimate.tempered}",
            f"forward annealing: {estimate.forward}",
            f"reverse annealing: {estimate.reverse}",
            *f"ladders: {estimate.report}".splitlines(),
        ]
    else:
        bases = _BASES if options.base in (None, "both") else (options.base,)
        estimates = {name: _estimate(model, dataset, name, betas, options, console) for name in bases}
        best = max(bases, key=lambda name: (estimates[name].trustworthy, estimates[name].log_z))
        log_z = estimates[best]
        result |= {"method": "ais", "runs": options.runs, "base": best, **_figures(log_z)}
        result["bases"] = {name: _figures(estimate) for name, estimate in estimates.items()}
        result |= _verdict(estimates, best)
        with output.writing(WEIGHTS) as path:
            np.save(path, log_z.log_weights.cpu().numpy())
        with output.writing(WEIGHTS_PICTURE) as path:
            plots.save(plots.ais_weights(log_z), path)
        likelihood = _likelihood(model, images, log_z, deep=deep is not None)
    result |= {
        "log_likelihood" if deep is None else "variational_bound": likelihood.mean,
        "standard_error": likelihood.standard_error,
        "standard_error_from_cases": likelihood.case_error,
    }
    console.say(
        f"{'' if deep is None else 'lower bound of the '}log-likelihood = {likelihood} per case{bracketed}\n"
        f"  {counted(len(images), f'{options.split} case')} of {dataset.name}, protocol: {protocol}"
    )
    for line in details:
        console.say(f"  {line}")
    result |= _of_shallow(model, images, console) if deep is None else _of_deep(deep, images, result, console)
    if deep is not None and deep.n_classes is not None:
        result |= _of_classes(deep, images, getattr(dataset, f"{options.split}_labels"), console)
    result["seconds"] = time.monotonic() - started
    if not result["trustworthy"]:
        console.say(f"WARNING: do not trust this figure: {result['reason']}")
    output.write_json(RESULT, result, older)
    output.announce(console)
    return {**result, "files": output.files}


def _enumerated_units(graph: Graph) -> int:
    """Units that ``exact_log_z`` enumerates: all but those of the colour that it sums out; n classes count log2 n."""
    colours = [
        sum(math.log2(layer.units) if layer.kind is Kind.SOFTMAX else layer.units for layer in layers)
        for layers in ([graph.layers[i] for i in colour] for colour in graph.colours())
    ]
    return math.ceil(sum(colours) - max(colours))


def _likelihood(model: BoltzmannModel, images: Tensor, log_z: float | AISEstimate, *, deep: bool) -> MeanLogLikelihood:
    """The log-likelihood, or where hidden layers are coupled to each other its variational bound."""
    if not deep:
        return mean_log_likelihood(model, images, log_z)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldNotConverged)  # any means give a bound; the share is in the result
        return mean_variational_bound(model, images, log_z, iterations=_ITERATIONS)


def _of_shallow(model: BoltzmannModel, images: Tensor, console: Console) -> Result:
    """What needs no log Z."""
    pseudo = pseudo_log_likelihood(model, images[:_PSEUDO_ROWS].contiguous()).mean().item()
    error = reconstruction_error(model, images).mean().item()
    console.say(
        f"  pseudo-log-likelihood {pseudo:.2f} nats (up to {_PSEUDO_ROWS:,} cases), "
        f"reconstruction error {error:.4f} per unit"
    )
    return {"pseudo_log_likelihood": pseudo, "reconstruction_error": error}


def _of_deep(dbm: DBM, images: Tensor, result: Result, console: Console) -> Result:
    """How well mean field explains the cases, and their exact likelihood where it is cheap."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldNotConverged)
        posterior = dbm.mean_field(images, _ITERATIONS)
    means = dbm.machine().layer_means(full_update(dbm.graph, VISIBLE), posterior.layers)
    error = (means - images).square().mean().item()
    found = {"reconstruction_error": error, "unconverged": posterior.unconverged}
    console.say(
        f"  reconstruction error {error:.4f} per unit; mean field of {posterior.unconverged:.1%} of the cases "
        f"did not come to rest in {_ITERATIONS} iterations"
    )
    hidden = chain_graph(dbm.units[1:], n_classes=dbm.n_classes)
    if result["method"] == "exact" and len(images) << _enumerated_units(hidden) <= _MOST_EXACT_STATES:
        each = exact_log_likelihood(dbm, images, result["log_z"])
        exact = MeanLogLikelihood.of(each, result["log_z"])
        found |= {"log_likelihood": exact.mean, "log_likelihood_standard_error": exact.standard_error}
        console.say(f"  log-likelihood = {exact} per case, exact")
    return found


def _of_classes(dbm: DBM, images: Tensor, labels: Tensor | None, console: Console) -> Result:
    """How often the machine takes a case for one of another class, among those whose class is known."""
    known = torch.zeros(0, dtype=torch.int64) if labels is None else torch.nonzero(labels >= 0)[:, 0]
    if labels is None or len(known) == 0:
        console.say("  no classification error: the data have no labels of these cases")
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeanFieldNotConverged)
        classes = dbm.predict(images[known].contiguous(), _ITERATIONS)
    error = (classes != labels[known]).double().mean().item()
    standard_error = math.sqrt(error * (1 - error) / len(known))
    console.say(
        f"  classification error {error:.2%} ± {standard_error:.2%} of {counted(len(known), 'case')} with a label"
    )
    return {"classification_error": error, "classification_standard_error": standard_error, "classified": len(known)}


def _estimate(
    model: BoltzmannModel, dataset: Dataset, base: str, betas: str | int, options: argparse.Namespace, console: Console
) -> AISEstimate:
    biases = base_biases(model, dataset.train) if base == "data" else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustworthyEstimate)  # the verdict is part of the result
        estimate = ais(model, options.runs, betas=betas, base=biases, seed=options.seed, progress=True)
    console.say(f"from {'the rates of the data' if base == 'data' else 'fair coins'}: {estimate}")
    return estimate


def _bracket(
    model: BoltzmannModel,
    dataset: Dataset,
    images: Tensor,
    betas: str | int,
    options: argparse.Namespace,
) -> LogLikelihoodEstimate:
    coins = [torch.zeros(layer.units, device=model.device) for layer in model.graph.layers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustworthyEstimate)  # the verdict is part of the result
        warnings.simplefilter("ignore", MeanFieldNotConverged)  # and so is the share
        return estimate_log_likelihood(
            model,
            images,
            base=coins if options.base == "uniform" else base_biases(model, dataset.train),
            n_runs=options.runs,
            rounds=options.rounds,
            betas=betas,
            seed=options.seed,
            progress=True,
        )


def _of_bracket(estimate: LogLikelihoodEstimate, options: argparse.Namespace) -> Result:
    return {
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
