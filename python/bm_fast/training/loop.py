"""What all trainers share: epochs and updates, callbacks, Ctrl-C, and checkpoints that training resumes from exactly.

A trainer says what one update is, and what a checkpoint must hold for it besides model, optimiser and counts.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bm_fast import checkpoints
from bm_fast.checkpoints import CheckpointError
from bm_fast.training.batches import Batches
from bm_fast.training.callbacks import Callback, Outcome, Progress


class TrainingError(RuntimeError):
    """Training cannot go on: a parameter or a bound is not finite, or a parameter has left the integer grid."""


def check_epochs(epochs: int) -> None:
    """ValueError unless it is a number of epochs."""
    if not isinstance(epochs, int) or epochs < 0:
        raise ValueError(f"epochs: expected a whole number of at least 0, got {epochs!r}")


class Loop(ABC):
    """Base of trainers: runs updates over epochs and keeps count.

    model: a torch module with ``settings()`` and the ``name`` under which checkpoints hold it.
    optimizer: any torch optimiser over parameters of the model.
    scheduler: one of this optimiser, stepped after each epoch. callbacks: called in this order.

    epoch, batch, update: epochs done, batches done in the present epoch, updates done in all.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        callbacks: Sequence[Callback],
    ) -> None:
        _check_optimiser(model, optimizer, scheduler)
        if isinstance(callbacks, Callback) or not all(isinstance(callback, Callback) for callback in callbacks):
            raise ValueError(f"callbacks: expected a list of Callback objects, got {callbacks!r}")
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self._named_parameters = list(model.named_parameters())
        self.callbacks = tuple(callbacks)
        self.epoch = self.batch = self.update = 0
        self._order: Tensor | None = None  # what the batches of the present epoch follow from
        self._data: str | None = None  # which data that is the order of
        self._resumed = False

    @abstractmethod
    def _step(self, values: Tensor, numbers: Tensor) -> None:
        """One update from rows of data and their numbers; TrainingError where it cannot be done."""

    @abstractmethod
    def _measure(self, batches: Batches, validation: Tensor | None) -> dict[str, float]:
        """Metrics of the epoch that has just ended."""

    @abstractmethod
    def metric_names(self, validation: Tensor | None) -> set[str]:
        """Names of metrics that callbacks can count on."""

    @abstractmethod
    def reconstruction_error(self) -> float | None:
        """Mean square per unit between the last batch and what the model makes of it; None before an update."""

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """Arguments of the constructor, as a checkpoint holds them."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What updates depend on besides parameters, optimiser, scheduler, order and counts, for a checkpoint."""

    @abstractmethod
    def _load_state(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``_state`` gave, from among the other entries."""

    # --- the loop ---------------------------------------------------------------------------------------------------

    def _fit(self, batches: Batches, epochs: int, validation: Tensor | None) -> None:
        """Trains until ``epochs`` epochs are done in all, in the order that has been taken up.

        After a Ctrl-C callbacks save; then KeyboardInterrupt.
        """
        self._check_parameters()
        progress = Progress(self, epochs, batches.n_batches, validation)
        first: BaseException | None = None
        for callback in self.callbacks:
            callback.on_start(progress)
        try:
            with _finish_update_first() as interrupted:
                progress.outcome = self._run(batches, progress, interrupted)
        except BaseException as error:
            progress.outcome, first = "failed", error
        for callback in self.callbacks:  # all of them: a checkpoint is saved though an earlier callback fails
            try:
                callback.on_end(progress)
            except Exception as error:
                if first is None:
                    first = error
                else:
                    first.add_note(f"on_end of {type(callback).__name__} failed as well: {error!r}")
        if first is not None:
            raise first
        if progress.outcome == "interrupted":
            raise KeyboardInterrupt

    def _run(self, batches: Batches, progress: Progress, interrupted: Callable[[], bool]) -> Outcome:
        after_update = [c for c in self.callbacks if type(c).on_update is not Callback.on_update]
        while self.epoch < progress.epochs:
            if self.batch == 0:
                self._order = batches.order
            for values, numbers in batches.epoch(self.batch):
                self._step(values, numbers)
                self.batch += 1
                self.update += 1
                for callback in after_update:
                    callback.on_update(progress)
                if progress.stop_reason is not None:
                    return "stopped"
                if interrupted():
                    return "interrupted"
            if self.batch == 0:
                raise ValueError("train: expected a DataLoader that yields at least one batch, got none")
            self.epoch, self.batch, self._order = self.epoch + 1, 0, batches.order
            self._check_parameters()
            self.check_finite()
            self._schedule()
            progress.metrics = self._measure(batches, progress.validation)
            for callback in self.callbacks:
                callback.on_epoch(progress)
            if progress.stop_reason is not None:
                return "stopped"
            if interrupted():
                return "interrupted"
        return "done"

    def _check_parameters(self) -> None:
        """ValueError unless the model still has the parameters that gradients go to."""
        now = dict(self.model.named_parameters())
        for name, parameter in self._named_parameters:
            if now.get(name) is not parameter:
                raise ValueError(
                    f"model: expected the parameters that this trainer was made with, got another tensor as {name!r}; "
                    "make a new trainer"
                )

    def _schedule(self) -> None:
        if self.scheduler is None:
            return
        with warnings.catch_warnings():
            # torch misses an optimiser step before this one where the last batch of the epoch was before a resume
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()

    def check_finite(self) -> None:
        """TrainingError naming the first parameter that is not finite, and the update after which it was found."""
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise TrainingError(
                    f"after update {self.update}: parameter {name!r} is not finite any more; "
                    "a lower learning rate may help"
                )

    def _take_up_order(self, batches: Batches) -> None:
        """Goes on with the order of the batches where a checkpoint or an interrupted call left it."""
        data = batches.description
        if self._order is not None and (self._resumed or self.batch > 0):
            if data != self._data:
                raise ValueError(f"train: expected {self._data}, with which this training began, got {data}")
            batches.restore(self._order)
        self._data, self._resumed = data, False

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes everything that training depends on to a safetensors file, atomically.

        TrainingError if a parameter is not finite: a good checkpoint is never replaced by a bad one. Other errors as in
        ``checkpoints.save``. The file also serves the model's ``load``.
        """
        self._check_parameters()
        self.check_finite()
        held = {
            "settings": self._settings(),
            "parts": _parts(self.model, self.optimizer, self.scheduler, self.callbacks),
            "counts": (self.epoch, self.batch, self.update),
            "order": self._order,
            "data": self._data,
            **self._state(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "callbacks": [callback.state_dict() for callback in _stateful(self.callbacks)],
        }
        checkpoints.save(path, {str(self.model.name): _settings_of(self.model), "trainer": held})

    @staticmethod
    def _read(
        path: str | os.PathLike[str],
        model: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        callbacks: Sequence[Callback],
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What ``save`` wrote of the model and of its training; CheckpointError where the parts are other ones."""
        _check_optimiser(model, optimizer, scheduler)
        state = checkpoints.load(path)
        saved, held = (checkpoints.entry(state, name, path) for name in (str(model.name), "trainer"))
        for part, given in _parts(model, optimizer, scheduler, callbacks).items():
            if given != held["parts"][part]:
                raise CheckpointError(f"{os.fspath(path)!r}: expected {part} {held['parts'][part]}, got {given}")
        return saved, held

    def _restore(self, saved: Mapping[str, Any], held: Mapping[str, Any]) -> None:
        """Takes up everything that ``_read`` gave."""
        self.model.load_state_dict(saved["parameters"])
        self.optimizer.load_state_dict(held["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(held["scheduler"])
        for callback, kept in zip(_stateful(self.callbacks), held["callbacks"], strict=True):
            callback.load_state_dict(kept)
        self.epoch, self.batch, self.update = held["counts"]
        self._order, self._data, self._resumed = held["order"], held["data"], True
        self._load_state(held)


def _parts(
    model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None, callbacks: Sequence[Callback]
) -> dict[str, Any]:
    """What must be the same where training resumes."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # torch keeps momenta by position alone, and would give those of one parameter to another of the same shape
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    return {
        "model": {name: value for name, value in _settings_of(model).items() if name != "parameters"},
        "optimizer": [type(optimizer).__name__, groups],
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "callbacks with a state": [type(callback).__name__ for callback in _stateful(callbacks)],
    }


def _settings_of(model: nn.Module) -> dict[str, Any]:
    settings: dict[str, Any] = model.settings()  # type: ignore[operator]
    return settings


def _stateful(callbacks: Sequence[Callback]) -> list[Callback]:
    return [callback for callback in callbacks if type(callback).state_dict is not Callback.state_dict]


def _check_optimiser(model: nn.Module, optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer: expected an optimiser of torch.optim over parameters of model, got {optimizer!r}")
    if isinstance(optimizer, LBFGS):
        raise ValueError("optimizer: expected one that steps without a closure, got LBFGS")
    if not (scheduler is None or isinstance(scheduler, LRScheduler)):
        raise ValueError(f"scheduler: expected one of torch.optim.lr_scheduler or None, got {scheduler!r}")
    own = {id(parameter) for parameter in model.parameters()}
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not all(id(parameter) in own for parameter in held):
        raise ValueError("optimizer: expected parameters of model only, got a tensor that is none of them")
    if scheduler is None:
        return
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError("scheduler: expected one that steps by epochs alone, got ReduceLROnPlateau")
    if scheduler.optimizer is not optimizer:
        raise ValueError("scheduler: expected a scheduler of the given optimizer, got one of another")


@contextmanager
def _finish_update_first() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag that the loop reads after each update; a second one acts as usual."""
    seen = False
    if threading.current_thread() is not threading.main_thread():  # only the main thread receives signals
        yield lambda: False
        return
    usual = signal.getsignal(signal.SIGINT)

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        seen = True
        signal.signal(signal.SIGINT, usual)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, usual)
