"""A report on a training run: chains that stick, units that are always on or off, weights that grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bm_fast import mean_field
from bm_fast.model import VISIBLE, BoltzmannModel
from bm_fast.rbm import RBM
from bm_fast.tempering import Gibbs, Operator
from bm_fast.training.callbacks import Callback, Progress

OFF, ON = 0.01, 0.99
"""Means of a hidden unit below and above which it counts as off or on for a case."""

STUCK = 0.25
"""A chain is stuck when it has moved since the epoch before by less than this share of what lies between two chains."""

LARGE_WEIGHT = 10.0
"""A weight beyond this decides a unit by itself, to one part in 20,000."""

MANY = 0.1
"""Share of a layer's units, or of the chains, beyond which the report calls it a fault."""

_ITERATIONS = 10  # of mean field, for machines with several hidden layers


class TrainingReport(Callback):
    """Looks at the machine after every epoch, by the last batch and the chains; ``print`` it for the verdict.

    rows: one for each epoch, by name:
        "dead LAYER", "saturated LAYER": shares of the hidden units whose mean given the data is below 0.01, or above
            0.99, for every row of the last batch. Such a unit says nothing about the data; with few rows in a batch
            sparse units count as dead.
        "decided LAYER": share of all means of the layer that are below 0.01 or above 0.99.
        "stuck chains": share of the chains whose visible state moved less than a quarter as far since the epoch before
            as two chains lie apart (squared distance), or not at all. Of persistent chains; those of CD start again at
            the data.
        "typical weight", "largest weight": root mean square and largest size over all couplings.
    faults: what is wrong after the last epoch, and what to try; empty where nothing speaks against it. Here are also
        rungs of tempered chains that hardly swap (``Trainer.mixing_advice``).
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.faults: tuple[str, ...] = ()
        self._before: Tensor | None = None

    def on_start(self, progress: Progress) -> None:
        trainer: Any = progress.trainer
        if not isinstance(trainer.model, BoltzmannModel):
            name = type(trainer.model).__name__
            raise ValueError(f"callbacks: TrainingReport is about Boltzmann machines, the model is of type {name}")
        if self._before is None:
            self._before = trainer.chains.layers[VISIBLE].clone()

    @torch.no_grad()
    def on_epoch(self, progress: Progress) -> None:
        trainer: Any = progress.trainer
        model, batch, state = trainer.model, trainer.last_batch, trainer.chains.layers[VISIBLE]
        row: dict[str, float] = {"epoch": trainer.epoch}
        means = mean_field.infer(model.machine(), {VISIBLE: batch}, _ITERATIONS, 0.0).layers
        for layer, values in list(zip(model.graph.layers, means, strict=True))[VISIBLE + 1 :]:
            row[f"dead {layer.name}"] = float((values < OFF).all(0).float().mean())
            row[f"saturated {layer.name}"] = float((values > ON).all(0).float().mean())
            row[f"decided {layer.name}"] = float(((values < OFF) | (values > ON)).float().mean())
        row["stuck chains"] = _stuck(self._before, state)
        self._before = state.clone()
        weights = torch.cat([weight.flatten() for weight in model.coupling_weights])
        row["typical weight"] = float(weights.square().mean().sqrt())
        row["largest weight"] = float(weights.abs().max())
        self.rows.append(row)
        found = [*_faults(row, _remedy(model, trainer.operator)), trainer.mixing_advice]
        self.faults = tuple(fault for fault in found if fault is not None)

    def curves(self) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
        """What ``plots.learning_curve`` draws: hidden units, chains, and weights over the epochs."""
        epochs = [row["epoch"] for row in self.rows]
        panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {"share of hidden units": {}}
        for name in self.rows[0] if self.rows else ():
            series = epochs, [row[name] for row in self.rows]
            if name.startswith(("dead ", "saturated ", "decided ")):
                panels["share of hidden units"][name] = series
            elif name == "stuck chains":
                panels["share of chains"] = {name: series}
            elif name.endswith(" weight"):
                panels.setdefault("weights", {})[name] = series
        return panels

    def __str__(self) -> str:
        if not self.rows:
            return "no epoch yet"
        first, last = self.rows[0], self.rows[-1]
        lines = [f"after epoch {last['epoch']:g}:"]
        for name, value in last.items():
            if name.endswith(" weight"):
                lines.append(f"  {name} {value:.3g} (after epoch {first['epoch']:g}: {first[name]:.3g})")
            elif name != "epoch":
                lines.append(f"  {name} {value:.1%}")
        return "\n".join([*lines, *(f"FAULT: {fault}" for fault in self.faults)])

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "faults": self.faults, "before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows, self.faults, self._before = list(state["rows"]), tuple(state["faults"]), state["before"]


def _faults(row: Mapping[str, float], remedy: str) -> list[str]:
    """What the figures of an epoch show; remedy: for stuck chains."""
    found = []
    for name, share in row.items():
        if name.startswith("dead ") and share > MANY:
            found.append(
                f"{share:.0%} of the units of {name[5:]!r} are off for every row of the batch; begin with smaller "
                "weights or a lower learning rate, or use fewer units"
            )
        elif name.startswith("saturated ") and share > MANY:
            found.append(
                f"{share:.0%} of the units of {name[10:]!r} are on for every row of the batch; centre the "
                "gradient, or begin with smaller weights"
            )
    if row["stuck chains"] > MANY:
        found.append(
            f"{row['stuck chains']:.0%} of the chains hardly moved in the last epoch, so the gradient is about the "
            f"modes they are in; {remedy}"
        )
    if row["largest weight"] > LARGE_WEIGHT:
        found.append(
            f"the largest weight is {row['largest weight']:.3g}, which decides a unit by itself; use weight decay "
            "or a lower learning rate"
        )
    return found


def _remedy(model: BoltzmannModel, operator: Operator | None) -> str:
    """What to do about chains that stick, which this operator moves."""
    if operator is None or isinstance(operator, Gibbs):
        tempered = "PersistentChains" if isinstance(model, RBM) else "MeanFieldPCD(operator=Tempering())"
        return f"use tempered chains ({tempered}), more sweeps or a lower learning rate"
    return f"{type(operator).__name__} needs more rungs, rounds or sweeps, or training a lower learning rate"


def _stuck(before: Tensor | None, now: Tensor) -> float:
    """Share of chains that moved less than ``STUCK`` of the mean squared distance between two chains, or not at all.

    Chains that all froze in one state have no distance between them, and none to move by.
    """
    assert before is not None  # on_start
    states = now.double()
    moved = (states - before.to(now.device).double()).square().sum(1)
    apart = 2 * states.var(0, correction=0).sum() * len(states) / max(len(states) - 1, 1)  # between two different ones
    return float(((moved < STUCK * apart) | (moved == 0)).double().mean())
