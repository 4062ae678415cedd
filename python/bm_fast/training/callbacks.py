"""What happens beside training: progress bar, metrics, learning curve, early stopping, checkpoints, TensorBoard.

A callback is called with one ``Progress`` object. Callbacks run in the order in which the trainer got them, so whoever
reads a metric comes after ``Evaluate``, and ``Checkpoint`` after whatever changes parameters.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bm_fast.arguments import count

if TYPE_CHECKING:
    from bm_fast.training.loop import Loop

Outcome = Literal["running", "done", "stopped", "interrupted", "failed"]

Metric = Callable[[Any], float]


@dataclass
class Progress:
    """Where a call of ``fit`` stands.

    epochs: epochs that are to be done in all. n_batches: per epoch, None where a loader does not know.
    validation: the rows given to ``fit``. metrics: figures of the last epoch, by name; callbacks may add to them.
    stop_reason: set it to end training after this update or epoch. outcome: how the call ended.
    """

    trainer: Loop
    epochs: int
    n_batches: int | None
    validation: Tensor | None
    metrics: dict[str, float] = field(default_factory=dict)
    stop_reason: str | None = None
    outcome: Outcome = "running"

    @property
    def learning_rate(self) -> float:
        """That of the optimiser's first parameter group."""
        return float(self.trainer.optimizer.param_groups[0]["lr"])


class Callback:
    """Base of all callbacks; every method may be left out.

    A callback with a state that training depends on defines ``state_dict`` and ``load_state_dict``: numbers, strings,
    tensors, lists and mappings of them; checkpoints then hold it.
    """

    def on_start(self, progress: Progress) -> None:
        """``fit`` begins."""

    def on_update(self, progress: Progress) -> None:
        """An update is done: the optimiser has stepped, and ``.grad`` is what it stepped by."""

    def on_epoch(self, progress: Progress) -> None:
        """An epoch is done, the scheduler has stepped, and ``progress.metrics`` are those of this epoch."""

    def on_end(self, progress: Progress) -> None:
        """``fit`` ends; ``progress.outcome`` says how. Called after errors too, also those of other callbacks."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint is to hold."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` gave."""


class ProgressBar(Callback):
    """A bar over all updates with the epoch, the reconstruction error of the last batch, and the last metrics.

    The reconstruction error (mean square per unit) is refreshed about every ``seconds``; it shows that training moves,
    not how good the model is.
    """

    def __init__(self, seconds: float = 1.0) -> None:
        self._seconds = seconds
        self._shown = 0.0
        self._bar: Any = None

    def on_start(self, progress: Progress) -> None:
        trainer = progress.trainer
        total = None if progress.n_batches is None else progress.epochs * progress.n_batches
        self._bar = tqdm(total=total, initial=trainer.update, unit="update", mininterval=0.2)

    def on_update(self, progress: Progress) -> None:
        self._bar.update()
        if time.monotonic() - self._shown >= self._seconds:
            self._show(progress)

    def on_epoch(self, progress: Progress) -> None:
        self._show(progress)

    def on_end(self, progress: Progress) -> None:
        self._bar.close()

    def _show(self, progress: Progress) -> None:
        trainer = progress.trainer
        figures = {"epoch": f"{trainer.epoch}/{progress.epochs}"}
        error = trainer.reconstruction_error()
        if error is not None:
            figures["reconstruction"] = f"{error:.4f}"
        figures |= {name: f"{value:.4g}" for name, value in progress.metrics.items()}
        self._bar.set_postfix(figures)
        self._shown = time.monotonic()


class Evaluate(Callback):
    """Computes figures of the model after every ``every``-th epoch: name -> function of the model.

    >>> Evaluate({"log_likelihood": lambda rbm: ...}, every=5)  # doctest: +SKIP
    """

    def __init__(self, metrics: Mapping[str, Metric], every: int = 1) -> None:
        self.metrics = dict(metrics)
        self._every = count("every", every)

    def on_epoch(self, progress: Progress) -> None:
        if progress.trainer.epoch % self._every == 0:
            with torch.no_grad():
                progress.metrics |= {name: float(f(progress.trainer.model)) for name, f in self.metrics.items()}


class History(Callback):
    """The learning curve: one row per epoch with epoch, update, seconds, learning_rate and the metrics."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self._began = 0.0

    def on_start(self, progress: Progress) -> None:
        before = self.rows[-1]["seconds"] if self.rows else 0.0
        self._began = time.monotonic() - before

    def on_epoch(self, progress: Progress) -> None:
        trainer = progress.trainer
        row = {"epoch": trainer.epoch, "update": trainer.update, "seconds": time.monotonic() - self._began}
        metrics = {name: float(value) for name, value in progress.metrics.items()}  # numpy and torch scalars too
        self.rows.append({**row, "learning_rate": progress.learning_rate, **metrics})

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.rows = list(state["rows"])


class Checkpoint(Callback):
    """Saves the trainer to ``path`` every so many epochs (and updates), on Ctrl-C, and when ``fit`` ends well.

    The file is replaced atomically; after an error the last good one stays.
    """

    def __init__(self, path: str | os.PathLike[str], every_epochs: int = 1, every_updates: int | None = None) -> None:
        self.path = path
        self._every_epochs = count("every_epochs", every_epochs)
        self._every_updates = None if every_updates is None else count("every_updates", every_updates)

    def on_update(self, progress: Progress) -> None:
        if self._every_updates is not None and progress.trainer.update % self._every_updates == 0:
            progress.trainer.save(self.path)

    def on_epoch(self, progress: Progress) -> None:
        if progress.trainer.epoch % self._every_epochs == 0:
            progress.trainer.save(self.path)

    def on_end(self, progress: Progress) -> None:
        if progress.outcome != "failed":
            progress.trainer.save(self.path)


class TensorBoard(Callback):
    """Writes learning rate and metrics of each epoch to a TensorBoard folder; needs ``bm_fast[tensorboard]``."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard: the package tensorboard is missing; install it with pip install 'bm_fast[tensorboard]'"
            ) from error
        self._writer: Any = SummaryWriter(os.fspath(folder))

    def on_epoch(self, progress: Progress) -> None:
        for name, value in {"learning_rate": progress.learning_rate, **progress.metrics}.items():
            self._writer.add_scalar(name, value, progress.trainer.update)

    def on_end(self, progress: Progress) -> None:
        self._writer.flush()
