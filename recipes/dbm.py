"""Trains and measures a deep Boltzmann machine: greedy stack, joint training, bound by AIS, pictures.

    python recipes/dbm.py digits         64-100-50 on the digits that come with the package: about a minute
    python recipes/dbm.py mnist          784-500-1000
    python recipes/dbm.py mnist3         784-500-500-1000
    python recipes/dbm.py ocr-letters    128-500-1000

Every part is saved in runs/dbm-NAME after each epoch, and the same command goes on where an interrupted one stopped.
Results go to recipes/results/dbm-NAME.json, pictures to the folder of that name. --device cuda computes on a GPU. With
--epochs of one's own it is a trial: run, record and pictures lie in runs/dbm-NAME-epochs-..., recorded results stay.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from common import SEED, fit, place, provenance, stack, write_record
from torch import Tensor

from bm_fast import DBM, plots
from bm_fast.cli.devices import add_device
from bm_fast.data import load
from bm_fast.data.dataset import Dataset
from bm_fast.estimation import ais, base_biases, mean_variational_bound
from bm_fast.program import full_update
from bm_fast.training import MeanFieldPCD, stack_estimator, stitch


@dataclass(frozen=True)
class Recipe:
    """hidden: units; epochs: of each RBM, then of the joint training, whose rate falls linearly to zero.

    with_validation: learns from the validation images too, as published figures do.
    """

    data: str
    hidden: tuple[int, ...]
    epochs: tuple[int, ...]
    rbm_rate: float = 0.05
    rate: float = 0.05
    weight_decay: float = 5e-5
    with_validation: bool = False
    n_betas: int = 100_000


RECIPES = {
    "digits": Recipe("digits", (100, 50), (30, 30, 150), rate=0.02, weight_decay=2e-4, n_betas=5_000),
    "mnist": Recipe("mnist", (500, 1000), (20, 20, 300), with_validation=True),
    # at a rate of 0.05 the first epoch already leaves the units of the upper layers on, or off, for all images
    "mnist3": Recipe("mnist", (500, 500, 1000), (20, 20, 20, 60), rate=0.01, weight_decay=2e-4, with_validation=True),
    "ocr-letters": Recipe("ocr-letters", (500, 1000), (20, 20, 100)),
}


def draw(dbm: DBM, dataset: Dataset, test: Tensor, folder: Path) -> None:
    """Samples, completions of lower halves, and filters of each layer carried down to the pixels."""
    shape = dataset.shape
    assert shape is not None
    chains = dbm.sample(dbm.chains(100, SEED, test[:100].contiguous()), 1000)
    means = dbm.machine().layer_means(full_update(dbm.graph, 0), chains.layers)
    plots.save(plots.image_grid(means, shape, title="samples after 1,000 sweeps"), folder / "samples.png")
    known = torch.arange(dataset.n_units, device=dbm.device) < dataset.n_units // 2
    halves = test[:10] * known.float()
    rows = torch.cat([test[:10].float(), halves, dbm.complete(test[:10].contiguous(), known, sweeps=500)])
    figure = plots.image_grid(rows, shape, columns=10, title="case, upper half, completion")
    plots.save(figure, folder / "completions.png")
    filters = torch.eye(dataset.n_units, device=dbm.device)
    for level, weight in enumerate(dbm.weights, 1):
        filters = filters @ weight.detach()
        figure = plots.filters(filters, shape, title=f"filters of hidden layer {level}")
        plots.save(figure, folder / f"filters{level}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--epochs", type=int, nargs="+", help="of each RBM, then of the joint training")
    add_device(parser)
    options = parser.parse_args()
    recipe = RECIPES[options.recipe]
    epochs = None if options.epochs is None else tuple(options.epochs)
    if epochs is not None and len(epochs) != len(recipe.epochs):
        parser.error(f"--epochs: expected {len(recipe.epochs)} numbers, got {len(epochs)}")
    here = place(f"dbm-{options.recipe}", None if epochs == recipe.epochs else epochs)
    recipe = replace(recipe, epochs=epochs or recipe.epochs)
    dataset = load(recipe.data).to(options.device)
    binary = dataset if dataset.train.dtype is torch.uint8 else dataset.binarised(SEED)
    test = binary.split("test")
    train = (dataset.with_validation() if recipe.with_validation else dataset).train
    began, source = time.monotonic(), provenance(options.device)
    n_rbms = len(recipe.hidden)
    estimators = [stack_estimator(level, n_rbms) for level in range(n_rbms)]
    rates = {"rate": recipe.rbm_rate, "weight_decay": 1e-3}
    dbm = stitch(stack(recipe.hidden, estimators, train, recipe.epochs, here.run, **rates, centred=False))
    history = fit(
        dbm,
        MeanFieldPCD(100, sweeps=5, iterations=10),
        train,
        recipe.epochs[-1],
        here.run / "dbm.safetensors",
        rate=recipe.rate,
        weight_decay=recipe.weight_decay,
        centred=True,
        factor=lambda epoch: max(0.0, 1 - epoch / recipe.epochs[-1]),
        validation=None if recipe.with_validation else dataset.valid,
    )
    log_z = ais(dbm, n_runs=100, betas=recipe.n_betas, base=base_biases(dbm, train), seed=SEED, progress=True)
    bounds = {split: mean_variational_bound(dbm, binary.split(split), log_z) for split in ("train", "test")}
    print(log_z)
    for split, bound in bounds.items():
        print(f"bound on the {split} log-likelihood ({binary.protocol}): {bound}")
    draw(dbm, dataset, test, here.pictures)
    figures = {
        "recipe": asdict(recipe),
        "protocol": binary.protocol,
        "log_z": str(log_z),
        "bound": {split: str(bound) for split, bound in bounds.items()},
    }
    write_record(here.record, source, began, figures, history)
    print("results in", here.record)


if __name__ == "__main__":
    main()
