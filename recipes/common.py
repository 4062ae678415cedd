"""What recipes share: where they keep things, training that goes on from its checkpoint, stacks of RBMs, records."""

from __future__ import annotations

import itertools
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from bm_fast import RBM
from bm_fast.cli.common import commit
from bm_fast.model import LayeredModel
from bm_fast.training import (
    CD,
    PCD,
    Checkpoint,
    History,
    MeanFieldPCD,
    ProgressBar,
    Trainer,
    UpDown,
    lift,
)

FOLDER = Path(__file__).parent
SEED, BATCH = 0, 100


@dataclass(frozen=True)
class Place:
    """Where a recipe keeps the checkpoints of its run, its record, and the pictures beside that."""

    run: Path
    record: Path
    pictures: Path


def place(name: str, epochs: Sequence[int] | None = None) -> Place:
    """The place of a recipe's own run, or of a trial with other numbers of epochs, with its folders made.

    Records of trials stay in their run folder: those in ``results`` are of the recipes' own settings.
    """
    if epochs is None:
        run, results = Path("runs") / name, FOLDER / "results"
        places = Place(run, results / f"{name}.json", results / name)
    else:
        run = Path("runs") / "-".join([name, "epochs", *map(str, epochs)])
        places = Place(run, run / "record.json", run / "pictures")
    for folder in (run, places.record.parent, places.pictures):
        folder.mkdir(parents=True, exist_ok=True)
    return places


def fit(
    model: LayeredModel,
    estimator: CD | PCD | MeanFieldPCD | UpDown,
    train: Tensor,
    epochs: int,
    path: Path,
    *,
    rate: float,
    weight_decay: float,
    centred: bool,
    factor: Callable[[int], float] | None = None,
    validation: Tensor | None = None,
) -> History:
    """Trains ``model`` in place, from the checkpoint where there is one; weights alone decay.

    factor: of the rate after so many epochs; None: it stays.
    """
    weights = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    biases = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    optimizer = SGD([{"params": weights, "weight_decay": weight_decay}, {"params": biases}], lr=rate, momentum=0.5)
    scheduler = None if factor is None else LambdaLR(optimizer, factor)
    history = History()
    callbacks = [history, ProgressBar(), Checkpoint(path)]
    if path.exists():
        trainer = Trainer.resume(path, model, optimizer, scheduler, callbacks)
        if trainer.epoch > epochs:
            raise SystemExit(f"{path} has {trainer.epoch} epochs behind it, not {epochs}: move it away to start anew")
        if factor is not None:  # the schedule may have another length now; the saved rate is that of the old one
            for group in optimizer.param_groups:
                group["lr"] = rate * factor(trainer.epoch)
    else:
        trainer = Trainer(model, optimizer, estimator, BATCH, SEED, centred, scheduler, callbacks=callbacks)
    trainer.fit(train, epochs, validation=validation)
    return history


def stack(
    hidden: Sequence[int],
    estimators: Sequence[CD | PCD],
    train: Tensor,
    epochs: Sequence[int],
    run: Path,
    *,
    rate: float,
    weight_decay: float,
    centred: bool,
) -> list[RBM]:
    """RBMs, bottom first, each trained on the hidden means of the one below."""
    rbms: list[RBM] = []
    data = train
    for level, (below, above) in enumerate(itertools.pairwise((train.shape[1], *hidden))):
        if level > 0:
            data = lift(rbms[-1], estimators[level - 1], data)
        rbm = RBM(below, above, seed=SEED + level).to(train.device)
        rbm.initialise_biases(data)
        path = run / f"rbm{level + 1}.safetensors"
        fit(rbm, estimators[level], data, epochs[level], path, rate=rate, weight_decay=weight_decay, centred=centred)
        rbms.append(rbm)
    return rbms


def provenance(device: torch.device) -> dict[str, Any]:
    """Where figures come from: the command of this process, and what it ran on."""
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if device.type == "cuda":
        machine += f", {torch.cuda.get_device_name(device)}"
    return {
        "command": shlex.join(["python", f"recipes/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit(),
        "machine": machine,
    }


def write_record(path: Path, source: dict[str, Any], began: float, figures: dict[str, Any], history: History) -> None:
    """Writes ``figures``, how they came about, and some twenty epochs of ``history``.

    source: ``provenance``, before anything was written. began: by ``time.monotonic``. The history of joint training has
    its seconds, over all calls that took part.
    """
    step = max(1, len(history.rows) // 20)
    rows = history.rows[::-step][::-1]  # the last one among them
    record = {
        **source,
        "seed": SEED,
        "seconds_of_this_call": round(time.monotonic() - began),
        "processor_seconds_of_this_call": round(time.process_time()),
        **figures,
        "history": [{key: float(f"{value:.4g}") for key, value in row.items()} for row in rows],
    }
    path.write_text(json.dumps(record, indent=2) + "\n")
