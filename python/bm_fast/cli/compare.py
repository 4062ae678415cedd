"""Compares trained models of several kinds: RBM, DBM, VAE and IWAE, on the same test images by one protocol.

Each run is a folder (or checkpoint) of train, of vae, or of the library's trainers. Every model is measured here, on
the same images, which are binarised once with --seed; the page says of each figure what it is: exact, an estimate with
a bracket, or a bound. Runs of different data or protocols are refused, and so are runs whose training rows are not
those that the data have now. The folder gets the table as a page (comparison.md) and for programs (comparison.json),
and one picture with samples of all models.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings

import torch
from torch import Tensor

from bm_fast import plots
from bm_fast.cli.common import Output, binary_split, commit, spread
from bm_fast.cli.console import SEED, Console, Result, UsageError, counted, version, whole
from bm_fast.cli.contenders import Contender, check_alike, load
from bm_fast.cli.devices import add_device
from bm_fast.data import NAMES, Dataset
from bm_fast.estimation import (
    UntrustworthyEstimate,
    base_biases,
    estimate_log_likelihood,
    exact_log_z,
    mean_log_likelihood,
    mean_variational_bound,
)
from bm_fast.mean_field import MeanFieldNotConverged
from bm_fast.model import VISIBLE, BoltzmannModel
from bm_fast.program import full_update
from bm_fast.vae import VAE, evaluate

EXAMPLES = """\
examples:
  bm-fast compare runs/mnist runs/mnist-dbm runs/vae runs/iwae --output comparison
  bm-fast compare runs/mnist runs/iwae --rows 1000                 1,000 test images spread over the split
  bm-fast compare runs/rbm runs/dbm/dbm.safetensors --data mnist   runs that keep no configuration"""

PAGE, RESULT, PICTURE = "comparison.md", "comparison.json", "samples.png"

_FEW_ENUMERATED_UNITS = 20

_EXACT = "log-likelihood, exact"
_BRACKETED = "log-likelihood with an estimated log Z"
_EXACT_BOUND = "variational lower bound of the log-likelihood, with an exact log Z"
_ESTIMATED_BOUND = "variational lower bound of the log-likelihood, with an estimated log Z"
_IMPORTANCE = "importance-weighted lower bound of the log-likelihood"

_MEANINGS = {
    _EXACT: "log Z by enumeration; the error is that of the finite number of images.",
    _BRACKETED: "log Z by parallel tempering. With log Z by reverse annealing it is too low on average, by forward "
    "annealing too high on average: the two are a bracket, but for their errors, by which they may cross.",
    _EXACT_BOUND: "mean field gives a bound for each image, log Z is enumerated. The log-likelihood is higher by an "
    "unknown amount.",
    _ESTIMATED_BOUND: "mean field gives a bound for each image, parallel tempering gives log Z. The bracket by "
    "annealing is of log Z alone: it does not contain the log-likelihood, which is higher than the bound by an unknown "
    "amount.",
    _IMPORTANCE: "L_k, the mean of log (1/k) Σ wᵢ over k samples of the recognition network: below the log-likelihood "
    "on average, for any k, by an unknown amount that falls with k. The column L_1 is the variational bound.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run, or a checkpoint file; two or more")
    parser.add_argument("--data", help=f"{', '.join(NAMES)}, or a file: the data of runs that keep no configuration")
    parser.add_argument("--rows", type=whole(2), metavar="N", help="test images, spread over the split (default: all)")
    parser.add_argument("--k", type=whole(1), default=5000, help="samples for each image (VAE, IWAE; default: 5000)")
    parser.add_argument(
        "--ladders",
        type=whole(2, 2**20),
        default=64,
        metavar="N",
        help="ladders of tempering, and annealing runs each way (RBM, DBM; default: 64)",
    )
    parser.add_argument(
        "--rounds", type=whole(2), default=2000, metavar="N", help="rounds of tempering (RBM, DBM; default: 2000)"
    )
    parser.add_argument(
        "--samples",
        type=whole(1, 40),
        default=12,
        metavar="N",
        help="of each model, at most as many as images (default: 12)",
    )
    parser.add_argument(
        "--sweeps", type=whole(1), default=1000, metavar="N", help="from fair coins to a sample (default: 1000)"
    )
    parser.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help="of binarisation, estimates and samples (default: 0)"
    )
    add_device(parser)
    parser.add_argument("--output", default="comparison", metavar="FOLDER", help="for the page (default: comparison)")
    parser.add_argument("--overwrite", action="store_true", help="replace an older comparison in that folder")


def run(options: argparse.Namespace, console: Console) -> Result:
    if len(options.runs) < 2:
        raise UsageError(f"RUN: expected two runs or more to compare, got {options.runs}")
    contenders = [load(source, options.data, console) for source in options.runs]
    check_alike(contenders)
    dataset = contenders[0].dataset
    images, protocol = binary_split(dataset, "test", options.seed)
    n_rows = min(options.rows or len(images), len(images))
    rows = spread(n_rows, len(images))
    images = images[rows].to(options.device)
    names = (PAGE, RESULT, *([PICTURE] if dataset.shape else []))
    stale = () if dataset.shape else (PICTURE,)
    output = Output(options.output, names, overwrite=options.overwrite, stale=stale)
    console.say(f"{len(images):,} test images of {dataset.name}, protocol: {protocol}")
    contenders = [contender.to(options.device) for contender in contenders]
    measured = []
    for contender in contenders:
        figures = measure(contender, images, options)
        console.say(f"{contender.name}, {contender.kind} {contender.layers}: {_shown(figures)}, {figures['what']}")
        measured.append({"run": contender.name, "kind": contender.kind, "layers": contender.layers, **figures})
        measured[-1]["parameters"] = sum(parameter.numel() for parameter in contender.model.parameters())
        measured[-1]["training"] = contender.training
    result: Result = {
        "version": version(),
        "commit": commit(),
        "torch": torch.__version__,
        "data": dataset.name,
        "protocol": {"training": dataset.protocol, "test": protocol},
        "rows": len(images),
        "of_rows": len(dataset.split("test")),
        "seed": options.seed,
        "models": measured,
    }
    if dataset.shape is not None:
        n_samples = min(options.samples, len(images))  # the picture has as many of each model as test images
        shown = {"data": dataset.split("test")[rows[:n_samples]].float()}
        shown |= {c.name: samples(c.model, n_samples, options.sweeps, options.seed) for c in contenders}
        with output.writing(PICTURE) as path:
            plots.save(plots.labelled_rows(shown, dataset.shape, title="Test images, and samples of each model"), path)
    with output.writing(PAGE) as path:
        path.write_text(page(result, options, picture=dataset.shape is not None))
    output.write_json(RESULT, result, stale)
    output.announce(console)
    return {**result, "files": output.files}


# --- measuring ------------------------------------------------------------------------------------------------------


def measure(contender: Contender, images: Tensor, options: argparse.Namespace) -> Result:
    """The likelihood of the images in nats per image, or a bound of it; "what" says which it is."""
    began = time.monotonic()
    if isinstance(contender.model, VAE):
        found = _measure_vae(contender.model, images, options)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UntrustworthyEstimate)  # the verdict is part of the result
            warnings.simplefilter("ignore", MeanFieldNotConverged)  # any means give a bound
            found = _measure_machine(contender.model, contender.dataset, images, options)
    return {**found, "seconds_of_measuring": time.monotonic() - began}


def _measure_vae(model: VAE, images: Tensor, options: argparse.Namespace) -> Result:
    found = evaluate(model, images, sorted({1, options.k}), options.seed, progress=True)
    bound = found.bounds[options.k]
    return {
        "mean": bound.mean,
        "standard_error": bound.standard_error,
        "bracket": None,
        "what": _IMPORTANCE,
        "k": options.k,
        "variational_bound": found.bounds[1].mean,
        "effective_sample_size": found.effective_sample_size,
        "trustworthy": True,
        "reason": "",
    }


def _measure_machine(model: BoltzmannModel, dataset: Dataset, images: Tensor, options: argparse.Namespace) -> Result:
    sizes = [sum(model.graph.layers[i].units for i in colour) for colour in model.graph.colours()]
    if sum(sizes) - max(sizes) <= _FEW_ENUMERATED_UNITS:
        log_z = exact_log_z(model, progress=True)
        deep = len(model.graph.layers) > 2
        likelihood = (mean_variational_bound if deep else mean_log_likelihood)(model, images, log_z)
        return {
            "mean": likelihood.mean,
            "standard_error": likelihood.standard_error,
            "bracket": None,
            "what": _EXACT_BOUND if deep else _EXACT,
            "trustworthy": True,
            "reason": "",
        }
    estimate = estimate_log_likelihood(
        model,
        images,
        base=base_biases(model, dataset.train),
        n_runs=options.ladders,
        rounds=options.rounds,
        seed=options.seed,
        progress=True,
    )
    return {
        "mean": estimate.mean,
        "standard_error": math.hypot(estimate.standard_error, estimate.case_error),
        "bracket": estimate.bracket,
        "what": _ESTIMATED_BOUND if estimate.is_bound else _BRACKETED,
        "log_z": estimate.tempered.log_z,
        "log_z_standard_error": estimate.standard_error,
        "trustworthy": estimate.trustworthy,
        "reason": estimate.reason,
    }


@torch.no_grad()
def samples(model: BoltzmannModel | VAE, n: int, sweeps: int, seed: int) -> Tensor:
    """Means of the visible units for n samples of the model, ``[n, n_visible]``."""
    if isinstance(model, VAE):
        return model.sample(n, torch.Generator(model.device).manual_seed(seed))
    chains = model.sample(model.chains(n, seed), sweeps)
    return model.machine().layer_means(full_update(model.graph, VISIBLE), chains.layers)


# --- the page -------------------------------------------------------------------------------------------------------


def page(result: Result, options: argparse.Namespace, *, picture: bool) -> str:
    """The table in Markdown, with what each kind of figure means."""
    rows = result["models"]
    of_all = "all" if result["rows"] == result["of_rows"] else f"{result['rows']:,} of the {result['of_rows']:,}"
    lines = [
        f"# Comparison on {result['data']}",
        "",
        f"Nats per image on {of_all} test images. Training protocol: {result['protocol']['training']}. Test protocol: "
        f"{result['protocol']['test']}; the same binary images for every model. bm_fast {result['version']}"
        + (f", commit {result['commit']}." if result["commit"] else "."),
        "",
        "| run | model | nats | by reverse, forward annealing | L_1 | what it is | parameters | training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        bracket = "" if row["bracket"] is None else "{:.2f}, {:.2f}".format(*sorted(row["bracket"]))
        bound = f"{row['variational_bound']:.2f}" if "variational_bound" in row else ""
        cells = (row["run"], f"{row['kind']} {row['layers']}", f"**{_shown(row)}**", bracket, bound)
        lines.append(f"| {' | '.join(cells)} | {_kind_of(row)} | {row['parameters']:,} | {_training(row)} |")
    lines += ["", "What the figures are:", ""]
    lines += [f"- {what}: {_MEANINGS[what]}" for what in dict.fromkeys(row["what"] for row in rows)]
    lines += [
        "",
        "Errors are standard errors, of the mean over the images and of log Z together; the images are the same, so "
        "that differences between models are known better than that. A model with the lower bound need not be the "
        "worse one. Times are those that the runs took, on whatever machine, with whatever else ran on it.",
    ]
    doubts = [f"- {row['run']}: {row['reason']}" for row in rows if not row["trustworthy"]]
    if doubts:
        lines += ["", "NOT TRUSTWORTHY:", "", *doubts]
    if picture:
        lines += [
            "",
            f"![samples]({PICTURE})",
            "",
            f"Machines: probabilities of the pixels after {options.sweeps:,} sweeps from fair coins. Autoencoders: "
            "probabilities of the pixels for hidden units drawn from their prior.",
        ]
    return "\n".join(lines) + "\n"


def _shown(row: Result) -> str:
    return f"{row['mean']:.2f} ± {row['standard_error']:.2f}" + ("" if row["trustworthy"] else " (not trustworthy)")


def _kind_of(row: Result) -> str:
    return f"{row['what']}, k = {row['k']}" if "k" in row else str(row["what"])


def _training(row: Result) -> str:
    training = row["training"]
    estimator = training["estimator"]
    settings = ", ".join(f"{name} = {estimator[name]}" for name in ("m", "k", "beta") if name in estimator)
    name = estimator["name"] + (f" with {settings}" if "k" in estimator else "")
    planned = training["planned_epochs"] or training["epochs"]
    epochs = (
        counted(training["epochs"], "epoch")
        if training["epochs"] >= planned
        else f"{training['epochs']} of {counted(planned, 'epoch')}"
    )
    time_taken = "time not recorded" if math.isnan(training["seconds"]) else f"{training['seconds']:,.0f} s"
    return f"{name}, {training['rows']:,} images, {epochs}, {time_taken}"
