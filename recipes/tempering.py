"""Transition operators compared: what learning reaches with the same number of Gibbs updates.

    python recipes/tempering.py                     all data sets, one seed
    python recipes/tempering.py bars modes --seeds 1 2 3

Small machines whose modes are far apart on purpose, and small RBMs on OCR letters and MNIST, all with exact
likelihoods. Every method makes the same 200 sweeps of a chain per update (tempered transitions 190; parallel trajectory
tempering 20 for each machine that it has kept and 20 for the present one, which the record counts). Results are joined
with those in recipes/results/tempering.json, from which the table and the picture beside it are made; those of other
settings are refused. --device cuda computes on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import provenance
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from bm_fast import RBM, plots
from bm_fast.cli.devices import add_device
from bm_fast.data import load
from bm_fast.estimation import exact_log_z, mean_log_likelihood
from bm_fast.tempering import CoupledTempering, TemperedTransitions, Tempering, TrajectoryTempering
from bm_fast.training import PCD, FastPCD, PersistentChains, Trainer

RESULTS = Path(__file__).parent / "results"
LOOKS = 10
BELOW = "nats below the optimum"

Estimator = PCD | FastPCD | PersistentChains

METHODS: dict[str, Callable[[float], Estimator]] = {
    "PCD": lambda rate: PCD(200),
    "fast PCD": lambda rate: FastPCD(200, rate=rate),
    "parallel tempering": lambda rate: PersistentChains(20, Tempering(10)),
    "tempered transitions": lambda rate: PersistentChains(10, TemperedTransitions(10)),
    "coupled tempering": lambda rate: PersistentChains(100, CoupledTempering(10)),
    "trajectory tempering": lambda rate: PersistentChains(20, TrajectoryTempering()),
}


@dataclass(frozen=True)
class Task:
    """What to learn, and how far a model is.

    train: rows, float32 rates (drawn anew for every update) or 0/1.
    score: a figure of a trained RBM, named by ``unit``.
    rate: constant for the first 40% of the epochs, then falling to zero.
    """

    about: str
    train: Tensor
    hidden: int
    batch: int
    epochs: int
    rate: float
    score: Callable[[RBM], float]
    unit: str = BELOW


def all_states(n: int) -> Tensor:
    return (torch.arange(2**n)[:, None] >> torch.arange(n) & 1).to(torch.uint8)


def patterns(about: str, cases: Tensor, epochs: int, rate: float) -> Task:
    """Some cases, equally probable: the optimum is minus the logarithm of their number."""

    def missed(rbm: RBM) -> float:
        return -math.log(len(cases)) - mean_log_likelihood(rbm, cases, exact_log_z(rbm)).mean

    return Task(about, cases, 16, len(cases), epochs, rate, missed)


def bars(device: torch.device) -> Task:
    lines = torch.tensor(list(itertools.product([0, 1], repeat=3)), dtype=torch.uint8)
    rows, columns = lines[:, :, None].expand(-1, 3, 3), lines[:, None, :].expand(-1, 3, 3)
    cases = torch.cat([rows, columns]).reshape(-1, 9).unique(dim=0)
    return patterns("bars and stripes: 14 patterns of 3 × 3 pixels", cases.to(device), 5000, 0.5)


def shifting(device: torch.device) -> Task:
    """A bar as wide as half a ring: all neighbours differ by four pixels, and opposite bars by all of them."""
    ring = torch.arange(16)
    cases = torch.stack([(ring - shift).remainder(16) < 8 for shift in range(0, 16, 2)]).to(torch.uint8)
    about = "shifting bars: 8 of a ring of 16 pixels on, shifted by 2 pixels at a time"
    return patterns(about, cases.to(device), 5000, 0.5)


def modes(device: torch.device) -> Task:
    """A mixture of two products, which one hidden unit represents exactly: the optimum is its entropy."""
    n, flipped = 16, 0.02
    states = all_states(n).to(device)
    on = states.double().sum(1)
    each = torch.stack([on, n - on]) * math.log(flipped) + torch.stack([n - on, on]) * math.log(1 - flipped)
    log_p = each.logsumexp(0) - math.log(2)

    def missed(rbm: RBM) -> float:
        return float(log_p.exp() @ (log_p + rbm.free_energy(states))) + exact_log_z(rbm)

    rates = torch.cat([torch.full((50, n), rate, device=device) for rate in (flipped, 1 - flipped)])
    return Task("two far modes: 16 pixels, all on or all off, 2% of them flipped", rates, 8, 100, 2000, 0.1, missed)


def images(name: str, epochs: int, device: torch.device) -> Task:
    """Exact test likelihood of an RBM with 12 hidden units; grey levels are drawn anew for training."""
    data = load(name).to(device)
    test = (data if data.train.dtype is torch.uint8 else data.binarised(0)).split("test")

    def likelihood(rbm: RBM) -> float:
        return mean_log_likelihood(rbm, test, exact_log_z(rbm)).mean

    about = f"{name}, 12 hidden units, {epochs} epochs"
    return Task(about, data.train, 12, 100, epochs, 0.05, likelihood, "nats, test log-likelihood")


TASKS: dict[str, Callable[[torch.device], Task]] = {
    "modes": modes,
    "bars": bars,
    "shifting": shifting,
    "ocr-letters": lambda device: images("ocr-letters", 10, device),
    "mnist": lambda device: images("mnist", 10, device),
}


def settings_of(task: Task) -> dict[str, Any]:
    """What runs have in common that stand in one row of the table."""
    return {name: getattr(task, name) for name in ("about", "unit", "hidden", "batch", "epochs", "rate")}


def learn(task: Task, estimator: Estimator, seed: int) -> dict[str, Any]:
    """The figure after each tenth of the training."""
    rbm = RBM(task.train.shape[1], task.hidden, seed=seed).to(task.train.device)
    rbm.initialise_biases(task.train)
    optimizer = SGD(rbm.parameters(), lr=task.rate)
    falling = LambdaLR(optimizer, lambda epoch: min(1.0, (task.epochs - epoch) / (0.6 * task.epochs) + 0.01))
    trainer = Trainer(rbm, optimizer, estimator, task.batch, seed, scheduler=falling)
    looks = sorted({math.ceil(task.epochs * k / LOOKS) for k in range(1, LOOKS + 1)})
    updates, scores, machines, seconds = [], [], [], 0.0
    for epochs in looks:
        began = time.process_time()
        trainer.fit(task.train, epochs)
        seconds += time.process_time() - began
        updates.append(trainer.update)
        scores.append(round(task.score(rbm), 4))
        if isinstance(estimator, PersistentChains) and isinstance(estimator.operator, TrajectoryTempering):
            machines.append(len(estimator.operator.kept) + 1)
    run = {"updates": updates, "scores": scores, "cpu_seconds": round(seconds, 1)}
    return {**run, "machines": machines} if machines else run


def write(results: dict[str, Any], folder: Path) -> None:
    """The record, its table and its picture."""
    (folder / "tempering.json").write_text(json.dumps(results, indent=1) + "\n")
    lines = [
        "| data | seeds | " + " | ".join(METHODS) + " |",
        "|---|---|" + "---:|" * len(METHODS),
    ]
    panels, machines = {}, []
    for held in results.values():
        seeds = sorted({seed for runs in held["runs"].values() for seed in runs}, key=int)
        cells, curves = [], {}
        for method in METHODS:
            runs = [run for seed in seeds if (run := held["runs"].get(method, {}).get(seed))]
            cells.append(", ".join(f"{run['scores'][-1]:.3f}".replace("-", "−") for run in runs))
            machines += [run["machines"][-1] for run in runs if "machines" in run]
            middle = [statistics.median(each) for each in zip(*(run["scores"] for run in runs), strict=True)]
            curves[method] = (runs[0]["updates"] if runs else [], middle)
        lines.append(f"| {held['about']}; {held['unit']} | {', '.join(seeds)} | " + " | ".join(cells) + " |")
        name = held["about"].split(":")[0].split(",")[0]
        panels[f"{name}{f', median of {len(seeds)} seeds' if len(seeds) > 1 else ''}\n{held['unit']}"] = curves
    lines += ["", "Every method makes 200 sweeps of a chain per update, tempered transitions 190."]
    if machines:
        lines[-1] += (
            f" Trajectory tempering makes 20 for each machine on its path, which were {min(machines)} to "
            f"{max(machines)} in the end."
        )
    (folder / "tempering.md").write_text("\n".join(lines) + "\n")
    figure = plots.learning_curve(panels, x="update")
    for axes in figure.axes:
        if axes.get_ylabel().endswith(BELOW):
            axes.set_yscale("log")
    plots.save(figure, folder / "tempering.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    add_device(parser)
    options = parser.parse_args()
    unknown = [name for name in options.tasks if name not in TASKS]
    if unknown:
        parser.error(f"TASK: expected some of {', '.join(TASKS)}, got {', '.join(unknown)}")
    RESULTS.mkdir(exist_ok=True)
    record = RESULTS / "tempering.json"
    results = json.loads(record.read_text()) if record.exists() else {}
    source = provenance(options.device)  # before results change the files
    tasks = {name: TASKS[name](options.device) for name in options.tasks or TASKS}
    for name, task in tasks.items():
        other = {
            key: of
            for key, value in settings_of(task).items()
            if (of := results.get(name, {}).get(key, value)) != value
        }
        if other:
            said = ", ".join(f"{key} {of!r} in place of {getattr(task, key)!r}" for key, of in other.items())
            parser.error(f"{name}: the runs in {record} have {said}; move it away to start a new one")
    for name, task in tasks.items():
        held = results[name] = {**settings_of(task), "runs": results.get(name, {}).get("runs", {})}
        for method, seed in itertools.product(options.methods, options.seeds):
            run = learn(task, METHODS[method](task.rate), seed)
            held["runs"].setdefault(method, {})[str(seed)] = {**run, **source}
            print(f"{name:12s} {method:22s} seed {seed}  {run['scores'][-1]:9.3f} {task.unit}", flush=True)
            write(results, RESULTS)


if __name__ == "__main__":
    main()
