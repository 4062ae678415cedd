"""Trains and measures a deep belief net: greedy stack, up-down fine-tuning, bound by AIS before and after, pictures.

    python recipes/dbn.py digits    64-100-100 on the digits that come with the package: about half a minute
    python recipes/dbn.py mnist     784-500-2000, the sizes of Salakhutdinov and Murray (2008)

Every part is saved in runs/dbn-NAME after each epoch, and the same command goes on where an interrupted one stopped.
Results go to recipes/results/dbn-NAME.json, pictures to the folder of that name. --device cuda computes on a GPU.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from common import SEED, fit, place, provenance, stack, write_record

from bm_fast import DBN, plots
from bm_fast.cli.devices import add_device
from bm_fast.data import load
from bm_fast.data.dataset import Dataset
from bm_fast.estimation import ais, base_biases, mean_dbn_bound
from bm_fast.training import PCD, UpDown


@dataclass(frozen=True)
class Recipe:
    """hidden: units; epochs: of each RBM, then of fine-tuning; half_life: of its rate, in epochs."""

    data: str
    hidden: tuple[int, ...]
    epochs: tuple[int, ...]
    rbm_rate: float = 0.1
    rate: float = 0.05
    half_life: float = 50
    weight_decay: float = 2e-4
    sweeps: int = 5
    n_betas: int = 20_000
    n_samples: int = 20


RECIPES = {
    "digits": Recipe("digits", (100, 100), (300, 300, 300), n_betas=5_000),
    "mnist": Recipe("mnist", (500, 2000), (50, 50, 50), rate=0.02, half_life=10),
}


def measure(dbn: DBN, dataset: Dataset, binary: Dataset, recipe: Recipe) -> dict[str, str]:
    """log Z of the top RBM, and the bound on training and test data."""
    data = dbn.hidden_means(dataset.train)[-2]
    log_z = ais(dbn.top, 100, betas=recipe.n_betas, base=base_biases(dbn.top, data), seed=SEED, progress=True)
    figures = {"log_z": str(log_z)}
    for name in ("train", "test"):
        figures[name] = str(mean_dbn_bound(dbn, binary.split(name), log_z, n_samples=recipe.n_samples))
    return figures


def draw(dbn: DBN, dataset: Dataset, folder: Path) -> None:
    """Samples, and filters of each layer carried down to the pixels by the generative weights."""
    shape = dataset.shape
    assert shape is not None
    chains = dbn.sample(dbn.chains(100, SEED), 5000, progress=True)
    means = dbn.visible_means(chains.layers[1])
    plots.save(plots.image_grid(means, shape, title="samples after 5,000 sweeps"), folder / "samples.png")
    filters = torch.eye(dataset.n_units, device=dbn.device)
    for level, weight in enumerate((*dbn.generative_weights, dbn.top.weight), 1):
        filters = filters @ weight.detach()
        plots.save(plots.filters(filters, shape, title=f"filters of layer {level}"), folder / f"filters{level}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES)
    add_device(parser)
    options = parser.parse_args()
    recipe, here = RECIPES[options.recipe], place(f"dbn-{options.recipe}")
    dataset = load(recipe.data).to(options.device)
    binary = dataset if dataset.train.dtype is torch.uint8 else dataset.binarised(SEED)
    began, source = time.monotonic(), provenance(options.device)
    estimator = PCD(100, recipe.sweeps)
    estimators = [estimator] * len(recipe.hidden)
    rates = {"rate": recipe.rbm_rate, "weight_decay": recipe.weight_decay}
    rbms = stack(recipe.hidden, estimators, dataset.train, recipe.epochs, here.run, **rates, centred=True)
    dbn = DBN.from_rbms(rbms)
    greedy = measure(dbn, dataset, binary, recipe)
    history = fit(
        dbn,
        UpDown(estimator),
        dataset.train,
        recipe.epochs[-1],
        here.run / "dbn.safetensors",
        rate=recipe.rate,
        weight_decay=recipe.weight_decay,
        centred=True,
        factor=lambda epoch: 1 / (1 + epoch / recipe.half_life),
        validation=dataset.valid,
    )
    tuned = measure(dbn, dataset, binary, recipe)
    for stage, figures in (("greedy", greedy), ("fine-tuned", tuned)):
        print(f"{stage}: {figures}")
    draw(dbn, dataset, here.pictures)
    figures = {"recipe": asdict(recipe), "protocol": binary.protocol, "greedy": greedy, "fine-tuned": tuned}
    write_record(here.record, source, began, figures, history)
    print("results in", here.record)


if __name__ == "__main__":
    main()
