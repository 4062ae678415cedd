"""Finished runs of several kinds, as the command compare takes them: a model, its data, and how it was trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bm_fast import checkpoints
from bm_fast.cli.common import CHECKPOINTS, CONFIGURATION, open_checkpoint, read_configuration, refusing
from bm_fast.cli.console import Console, Result, UsageError
from bm_fast.cli.vae import training_data
from bm_fast.data import Dataset
from bm_fast.dbm import DBM
from bm_fast.graph import Kind
from bm_fast.model import BoltzmannModel
from bm_fast.rbm import RBM
from bm_fast.training.batches import ArrayBatches
from bm_fast.vae import VAE

_STACK = "rbm[0-9]*.safetensors"
"""Checkpoints of the machines that a deep one began with, in its folder."""

_FROM_LOADER = "a DataLoader"


@dataclass(frozen=True)
class Contender:
    """A trained model, the data it was trained on, and what its checkpoints tell of the training.

    planned: epochs that the run was to have; None where no configuration says so.
    """

    name: str
    path: Path
    model: BoltzmannModel | VAE
    dataset: Dataset
    trainer: Result
    seconds: float
    planned: int | None

    def to(self, device: torch.device) -> Contender:
        """This one, to be measured on a device."""
        return replace(self, model=self.model.to(device), dataset=self.dataset.to(device))

    @property
    def kind(self) -> str:
        """RBM, DBM, VAE (p trained on the variational bound) or IWAE (on one of several samples)."""
        if not isinstance(self.model, VAE):
            return self.model.name.upper()
        estimator = self.trainer["settings"]["estimator"]
        several = estimator["m"] * estimator["k"] if estimator["name"] == "PIWAE" else estimator["k"]
        variational = estimator["name"] in ("ELBO", "STL") or several == 1 or estimator.get("beta") == 1
        return "VAE" if variational else "IWAE"

    @property
    def layers(self) -> str:
        if isinstance(self.model, VAE):
            between = zip(self.model.hidden, self.model.latents, strict=True)
            return " / ".join([str(self.model.n_visible), *("-".join(map(str, (*h, n))) for h, n in between)])
        units = "-".join(str(layer.units) for layer in self.model.graph.layers if layer.kind is not Kind.SOFTMAX)
        labelled = isinstance(self.model, DBM) and self.model.n_classes
        return f"{units} and {self.model.n_classes} classes" if labelled else units

    @property
    def training(self) -> Result:
        epochs, _, updates = self.trainer["counts"]
        return {
            "protocol": self.dataset.protocol,
            "estimator": self.trainer["settings"]["estimator"],
            "rows": len(self.dataset.train),
            "epochs": epochs,
            "planned_epochs": self.planned,
            "updates": updates,
            "seconds": self.seconds,
        }


@refusing()
def load(source: str, data: str | None, console: Console) -> Contender:
    """A run from its folder or checkpoint. UsageError where it cannot be compared, and why."""
    path, state = open_checkpoint(source)
    kinds: dict[str, type[RBM | DBM | VAE]] = {kind.name: kind for kind in (RBM, DBM, VAE)}
    kind = next((kinds[name] for name in kinds if name in state), None)
    if kind is None:
        raise UsageError(f"{path}: expected a checkpoint of an {', '.join(kinds)}, it holds {sorted(state)}")
    if "trainer" not in state:
        raise UsageError(f"{path}: holds a model without its training; expected the checkpoint of a trainer")
    model, trainer = kind.load(path), state["trainer"]
    if model.visible not in (Kind.BERNOULLI, "bernoulli"):
        raise UsageError(f"{path}: expected binary visible units, whose likelihoods compare, got {model.visible}")
    settings = read_configuration(path.parent).get("settings", {})
    if data is None and "data" not in settings:
        raise UsageError(f"{path}: no {CONFIGURATION} lies beside it; name the data of its training as --data")
    told = "data" in settings
    dataset = training_data(settings if told else {"data": data})
    dataset = _with_rows_seen(path, dataset, trainer["data"], told=told, is_vae=kind is VAE)
    stack = sorted(path.parent.glob(_STACK)) if kind is DBM else []
    seconds = [_seconds(trainer), *(_seconds(checkpoints.load(part).get("trainer", {})) for part in stack)]
    if stack:
        console.say(f"{path}: its training includes {', '.join(part.name for part in stack)}")
    name = path.parent.name if path.name in CHECKPOINTS else path.stem
    return Contender(name, path, model, dataset, trainer, sum(seconds), settings.get("epochs"))


def _with_rows_seen(path: Path, dataset: Dataset, trained_on: str, *, told: bool, is_vae: bool) -> Dataset:
    """The data set whose training rows the trainer saw: this one, or it with the validation rows; else UsageError.

    Where the run itself has told which data it took, less will do: the number of rows, all that older checkpoints kept,
    or batches of a DataLoader, which are not known.
    """

    def description(of: Dataset) -> str:
        rows = of.train.float() if is_vae else of.train
        return ArrayBatches(rows, 1, torch.Generator()).description

    expected = description(dataset)
    number = expected.partition(" (")[0]
    seen = trained_on.partition(" with labels")[0]  # what is compared is the likelihood of the images alone
    if seen in ((expected, number, _FROM_LOADER) if told else (expected,)):
        return dataset
    if dataset.valid is not None and seen == description(dataset.with_validation()):
        return dataset.with_validation()
    raise UsageError(
        f"{path}: was trained on {trained_on}, but the training rows of {dataset.name} by the protocol "
        f"{dataset.protocol!r} are {expected}: the data are other ones, or have changed since"
    )


def _seconds(trainer: Result) -> float:
    """Of the learning curve that the trainer kept; nan where it kept none."""
    curves = [state["rows"] for state in trainer.get("callbacks", []) if state.get("rows")]
    return float(curves[0][-1]["seconds"]) if curves else math.nan


def check_alike(contenders: Sequence[Contender]) -> None:
    """UsageError unless all are of one data set and protocol, the same test images, and have names of their own."""
    first = contenders[0]
    for other in contenders[1:]:
        for what, ours, theirs in (
            ("data", first.dataset.name, other.dataset.name),
            ("protocols", first.dataset.protocol, other.dataset.protocol),
        ):
            if ours != theirs:
                raise UsageError(
                    f"RUN: expected runs of one data set and protocol, got {what} {ours!r} of {first.path} and "
                    f"{theirs!r} of {other.path}; likelihoods do not compare across them"
                )
        images, others = first.dataset.test, other.dataset.test
        if images is not None and (others is None or not torch.equal(images, others)):  # two files of one name
            raise UsageError(
                f"RUN: expected runs of the same test images as {first.path}, but those of {other.path} are other ones"
            )
    names = [contender.name for contender in contenders]
    double = sorted({name for name in names if names.count(name) > 1})
    if double:
        raise UsageError(f"RUN: expected runs with names of their own, got {', '.join(double)} more than once")
