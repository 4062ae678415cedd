"""Samples images from a trained machine by block Gibbs sampling, many chains at once.

Chains start at fair coins, run, and are shown on their way: the picture has one row for each of a few moments, and
shows the probabilities from which the units are drawn. The final states are kept as an array. With --clamp a part of
each image is taken from the test split of the data and kept; the chains fill in the rest. With --classes the labels of
a machine that has learnt them are held, so that each chain draws images of one class, and the picture has one column
for each class, with its number above it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from bm_fast import plots
from bm_fast.arrays import one_hot
from bm_fast.chains import Chains
from bm_fast.cli.common import Output, Trained, binary_split, load_data, load_model
from bm_fast.cli.console import SEED, Console, Result, UsageError, counted, image_shape, real, whole
from bm_fast.cli.devices import add_device
from bm_fast.data import Dataset
from bm_fast.dbm import DBM
from bm_fast.graph import LABELS
from bm_fast.model import VISIBLE, BoltzmannModel
from bm_fast.program import full_update

EXAMPLES = """\
examples:
  bm-fast sample runs/mnist --chains 64 --sweeps 1000 --output samples
  bm-fast sample runs/mnist --beta 0.8                    a warmer machine: more variety, less sharpness
  bm-fast sample runs/mnist --clamp top                   complete the lower halves of test images
  bm-fast sample runs/classes --classes                   images of each class, of a machine that learnt labels"""

SAMPLES, PICTURE = "samples.npy", "samples.png"
_SHOWN_CHAINS, _MOST_SHOWN_CLASSES = 16, 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="folder of a training run, or a checkpoint file")
    parser.add_argument("--sweeps", type=whole(0), default=1000, metavar="N", help="Gibbs sweeps (default: 1000)")
    parser.add_argument(
        "--chains", type=whole(1), default=64, metavar="N", help="chains, one sample each (default: 64)"
    )
    parser.add_argument("--beta", type=real(0), default=1.0, help="inverse temperature (default: 1)")
    parser.add_argument(
        "--seed",
        type=SEED,
        default=0,
        metavar="N",
        help="of the chains, and of the binarisation of --clamp (default: 0)",
    )
    parser.add_argument(
        "--clamp", choices=("top", "bottom", "left", "right"), help="keep this half of test images and sample the rest"
    )
    parser.add_argument(
        "--classes",
        action="store_true",
        help="hold the labels of a machine that has them: chain k draws class k modulo their number, and each "
        "class has a chain",
    )
    parser.add_argument("--data", help="data whose test images --clamp takes (default: those of the training run)")
    parser.add_argument(
        "--shape",
        type=image_shape,
        metavar="ROWSxCOLUMNS",
        help="shape of an image (default: that of the training run)",
    )
    add_device(parser)
    parser.add_argument(
        "--output", metavar="FOLDER", help="folder for the results (default: that of the run or checkpoint)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace older samples in that folder")


def run(options: argparse.Namespace, console: Console) -> Result:
    trained = load_model(options.checkpoint, options.device)
    model = trained.model
    n_classes = _n_classes(model) if options.classes else None
    dataset = _data_to_clamp(options, trained) if options.clamp else None
    shape = options.shape or trained.shape or (dataset.shape if dataset else None)
    if shape is not None and shape[0] * shape[1] != model.n_visible:
        raise UsageError(
            f"--shape: expected rows x columns = {model.n_visible} visible units, got {shape[0]}x{shape[1]}"
        )
    n_chains = max(options.chains, n_classes or 0)
    start, mask = _clamped(options, model, dataset, shape, n_chains) if dataset else (None, None)
    output = Output(options.output or trained.path.parent, (SAMPLES, PICTURE), overwrite=options.overwrite)
    chains = model.chains(n_chains, options.seed, start)
    if n_classes:
        chains.layers[-1].copy_(one_hot(torch.arange(chains.n_chains) % n_classes, n_classes))
    started = time.monotonic()
    try:
        shown, states = snapshots(
            model,
            chains,
            options.sweeps,
            beta=options.beta,
            clamp=mask,
            hold=[LABELS] if n_classes else (),
            n_shown=min(n_classes, _MOST_SHOWN_CLASSES) if n_classes else _SHOWN_CHAINS,
        )
    except KeyboardInterrupt:
        _save_states(output, chains)
        raise KeyboardInterrupt(
            f"interrupted after {chains.sweep:,} sweeps; the states at that moment are in {output.path(SAMPLES)}"
        ) from None
    seconds = time.monotonic() - started
    _save_states(output, chains)
    work = f"{counted(n_chains, 'chain')}, {counted(options.sweeps, 'sweep')}"
    console.say(f"{work} at beta {options.beta:g} in {seconds:.1f} s")
    if shape:
        title = "Probabilities of the units over sweeps"
        names = [str(k) for k in range(states.shape[1])] if n_classes else []
        if n_classes:
            title = "Samples of each class over sweeps" + (f", {len(names)} of {n_classes}" * (len(names) < n_classes))
        picture = plots.samples_over_sweeps(states, shown, shape, title=title, names=names)
        with output.writing(PICTURE) as path:
            plots.save(picture, path)
    else:
        output.remove([PICTURE])
        console.say("No picture: the shape of an image is not known; give it as --shape ROWSxCOLUMNS")
    output.announce(console)
    return {
        "chains": n_chains,
        "sweeps": options.sweeps,
        "beta": options.beta,
        "seed": options.seed,
        "clamp": options.clamp,
        "classes": n_classes,
        "seconds": seconds,
        "files": output.files,
    }


def _n_classes(model: BoltzmannModel) -> int:
    if not isinstance(model, DBM) or model.n_classes is None:
        raise UsageError(
            "--classes: expected a machine with labels, as train --model dbm --labels makes, got one without"
        )
    return model.n_classes


def _save_states(output: Output, chains: Chains) -> None:
    with output.writing(SAMPLES) as path:
        np.save(path, chains.layers[VISIBLE].cpu().numpy())


def snapshots(
    model: BoltzmannModel,
    chains: Chains,
    sweeps: int,
    *,
    beta: float = 1.0,
    clamp: Tensor | None = None,
    hold: Collection[str] = (),
    n_shown: int = _SHOWN_CHAINS,
) -> tuple[list[int], Tensor]:
    """Runs the chains and looks at the first of them after 0, 1, 2, 5, 10, 20, 50 ... sweeps and at the end.

    Returns those moments and the means of the visible units from which the chains drew, ``[n_times, n_shown, units]``;
    at sweep 0, and where units are clamped, the states themselves.
    """
    moments = moments_until(sweeps)
    n_shown = min(chains.n_chains, n_shown)
    pictures = []
    with tqdm(total=sweeps, unit="sweep", desc="sampling", delay=1.0) as bar:
        for moment in moments:
            started_at = chains.sweep

            def show(done: int, before: int = started_at) -> None:
                bar.update(before + done - bar.n)

            model.sample(chains, moment - started_at, beta=beta, clamp=clamp, progress=show, hold=hold)
            visible = chains.layers[VISIBLE][:n_shown].float()
            if moment > 0:
                shown = chains.select(0, n_shown)
                means = model.machine().layer_means(
                    full_update(model.graph, VISIBLE),
                    shown.layers,
                    beta=torch.full((n_shown,), beta, device=model.device),
                )
                visible = means if clamp is None else torch.where(clamp.bool(), visible, means)
            pictures.append(visible)
    return moments, torch.stack(pictures)


def moments_until(sweeps: int) -> list[int]:
    """0, 1, 2, 5, 10, 20, 50 ... up to ``sweeps``, which ends the list."""
    return [0, *(m * 10**e for e in range(10) for m in (1, 2, 5) if m * 10**e < sweeps), *([sweeps] if sweeps else [])]


def _data_to_clamp(options: argparse.Namespace, trained: Trained) -> Dataset:
    source = options.data or trained.configuration.get("settings", {}).get("data")
    if source is None:
        raise UsageError("--clamp: the data of the training run are not known; name them with --data")
    dataset = load_data(source)
    if dataset.n_units != trained.model.n_visible:
        raise UsageError(f"--data: expected {trained.model.n_visible} units, got {dataset.n_units}")
    return dataset


def _clamped(
    options: argparse.Namespace, model: BoltzmannModel, dataset: Dataset, shape: tuple[int, int] | None, n_chains: int
) -> tuple[Tensor, Tensor]:
    """Test images, one for each chain, and a mask of the half that is kept."""
    if shape is None:
        raise UsageError("--clamp: the shape of an image is not known; give it as --shape ROWSxCOLUMNS")
    images = binary_split(dataset, "test", options.seed)[0].to(options.device)
    if n_chains > len(images):
        raise UsageError(f"--chains: expected at most the {len(images)} test images, got {n_chains}")
    rows, columns = shape
    mask = torch.zeros(rows, columns, dtype=torch.uint8, device=options.device)
    {
        "top": mask[: rows // 2],
        "bottom": mask[rows - rows // 2 :],
        "left": mask[:, : columns // 2],
        "right": mask[:, columns - columns // 2 :],
    }[options.clamp].fill_(1)
    noise = model.chains(n_chains, options.seed).layers[VISIBLE]
    keep = mask.flatten()
    return torch.where(keep.bool(), images[:n_chains], noise), keep
