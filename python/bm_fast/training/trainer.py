"""The training loop: one snapshot of the parameters, both phases, a gradient, one step of a torch optimiser."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bm_fast import arrays, checkpoints, ops
from bm_fast.chains import Chains
from bm_fast.checkpoints import CheckpointError
from bm_fast.dbm import DBM
from bm_fast.graph import Kind
from bm_fast.model import VISIBLE, BoltzmannModel
from bm_fast.ops import Machine
from bm_fast.rbm import RBM
from bm_fast.training.batches import ArrayBatches, Batches, Data, as_binary, is_grey, make_batches
from bm_fast.training.callbacks import Callback, Outcome, Progress
from bm_fast.training.deep import DBMLearner, MeanFieldPCD
from bm_fast.training.estimators import CD, PCD
from bm_fast.training.learner import Learner, RBMLearner
from bm_fast.training.tempered import PersistentChains

Binarise = Literal["dynamic", "none"]

GAP_ROWS = 1000
"""Most rows of each data set from which the free energy gap is computed: cheap beside any epoch that has more."""

Estimator = CD | PCD | MeanFieldPCD | PersistentChains

_ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "CD": CD,
    "PCD": PCD,
    "MeanFieldPCD": MeanFieldPCD,
    "PersistentChains": PersistentChains.from_settings,
}


class TrainingError(RuntimeError):
    """Training cannot go on: a parameter is not finite any more or has left the integer grid."""


class Trainer:
    """Maximises the log-likelihood of an RBM, or the bound of a DBM, by stochastic gradients; see docs/training.md.

    Each update takes one snapshot of the parameters on the integer grid, fills ``.grad`` with the gradient of the
    negative log-likelihood per data row, and calls ``optimizer.step()``.

    optimizer: any torch optimiser over parameters of ``model``; momentum and weight decay are its business.
    estimator: ``CD(sweeps)``, ``PCD(n_chains, sweeps)`` or ``PersistentChains(n_chains, operator)`` for an RBM,
        ``MeanFieldPCD(n_chains, sweeps)`` for a DBM.
    batch_size: rows per update; the last batch of an epoch has what is left over.
    seed: decides the order of the rows, the binarisation and every chain.
    centred: use the centred gradient.
    scheduler: a torch scheduler of this optimiser, stepped after each epoch.
    binarise: "dynamic" draws 0/1 from float32 data in each epoch anew; "none" demands 0/1. Default: "dynamic" for
        Bernoulli and "none" for Gaussian visible units.
    callbacks: called in this order.

    epoch, batch, update: epochs done, batches done in the present epoch, updates done in all.
    last_batch: states of the last data rows; the next update overwrites them.
    """

    def __init__(
        self,
        model: BoltzmannModel,
        optimizer: Optimizer,
        estimator: Estimator,
        batch_size: int = 100,
        seed: int = 0,
        centred: bool = True,
        scheduler: LRScheduler | None = None,
        binarise: Binarise | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        _check_optimiser(model, optimizer, scheduler)
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size: expected a whole number of at least 1, got {batch_size!r}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: expected 0 to 2^64 - 1, got {seed}")
        if binarise not in (None, "dynamic", "none"):
            raise ValueError(f"binarise: expected 'dynamic' or 'none', got {binarise!r}")
        if binarise == "dynamic" and model.visible is not Kind.BERNOULLI:
            raise ValueError(f"binarise: expected 'none' for {model.visible.name} visible units, got 'dynamic'")
        default: Binarise = "dynamic" if model.visible is Kind.BERNOULLI else "none"
        self.model, self.optimizer, self.estimator, self.scheduler = model, optimizer, estimator, scheduler
        self.batch_size, self.seed, self.centred = batch_size, seed, centred
        self.binarise: Binarise = binarise or default
        self.callbacks = tuple(callbacks)
        self.epoch = self.batch = self.update = 0
        self._learner = _learner(model, estimator, batch_size, seed, centred)
        self._generator = torch.Generator().manual_seed(seed)
        self._order: Tensor | None = None  # what the batches of the present epoch follow from
        self._data: str | None = None  # which data that is the order of
        self._resumed = False
        self.last_batch: Tensor | None = None

    @property
    def chains(self) -> Chains:
        """The chains of the model phase."""
        return self._learner.chains

    def reconstruction_error(self) -> float | None:
        """Mean square per unit between the last batch and what its hidden means give back; None before an update."""
        rows = self.last_batch
        return None if rows is None else float((self._learner.reconstruct(rows) - rows).square().mean())

    # --- the loop ---------------------------------------------------------------------------------------------------

    def fit(
        self,
        train: Data,
        epochs: int,
        validation: Tensor | NDArray[np.generic] | None = None,
    ) -> None:
        """Trains until ``epochs`` epochs are done in all, those before a resume or an earlier call included.

        train: ``[n, n_visible]`` torch or numpy, uint8 0/1 or float32, or a DataLoader of such batches (or of tuples
            that begin with one).
        validation: rows like those of train, for the metric "free_energy_gap" after each epoch: the mean free energy
            of up to 1,000 validation rows minus that of as many training rows (of the last batch of a DataLoader).
            It grows when the model overfits (Hinton 2010, section 6).

        Ctrl-C finishes the update, lets the callbacks save, and raises KeyboardInterrupt; ``fit`` can then go on. A
        second Ctrl-C interrupts at once. TrainingError names the parameter and the update if one is not finite.
        """
        layer = self.model.graph.layers[VISIBLE]
        if not isinstance(epochs, int) or epochs < 0:
            raise ValueError(f"epochs: expected a whole number of at least 0, got {epochs!r}")
        must_be_binary = self.binarise == "none" and layer.kind is Kind.BERNOULLI
        batches = make_batches(train, layer, self.batch_size, self.model.device, self._generator, binary=must_be_binary)
        held_out = None if validation is None else arrays.rows("validation", validation, layer, self.model.device)
        if held_out is not None and must_be_binary:
            held_out = as_binary("validation", held_out)
        self._take_up_order(batches)
        if isinstance(batches, ArrayBatches):
            self._learner.start_at(batches.data.mean(0, dtype=torch.float32))
        progress = Progress(self, epochs, batches.n_batches, held_out)
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
                for callback in after_update:
                    callback.on_update(progress)
                if progress.stop_reason is not None:
                    return "stopped"
                if interrupted():
                    return "interrupted"
            if self.batch == 0:
                raise ValueError("train: expected a DataLoader that yields at least one batch, got none")
            self.epoch, self.batch, self._order = self.epoch + 1, 0, batches.order
            self.check_finite()
            self._schedule()
            progress.metrics = self._learner.metrics()
            if progress.validation is not None:
                progress.metrics["free_energy_gap"] = self._free_energy_gap(batches, progress.validation)
            for callback in self.callbacks:
                callback.on_epoch(progress)
            if progress.stop_reason is not None:
                return "stopped"
            if interrupted():
                return "interrupted"
        return "done"

    def _step(self, values: Tensor, numbers: Tensor) -> None:
        n_data = len(values)
        data = self._learner.batch(n_data)
        self._draw(values, numbers, self.epoch, data)
        self._learner.fill_gradient(self._machine(), n_data)
        self.optimizer.step()
        self.last_batch = data
        self.batch += 1
        self.update += 1

    def _schedule(self) -> None:
        if self.scheduler is None:
            return
        with warnings.catch_warnings():
            # torch misses an optimiser step before this one where the last batch of the epoch was before a resume
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            self.scheduler.step()

    def _draw(self, values: Tensor, numbers: Tensor, epoch: int, out: Tensor) -> None:
        """Writes the states that the visible units take for these data rows."""
        if not is_grey(values, self.model.graph.layers[VISIBLE]):
            out.copy_(values)
        elif self.binarise == "none":
            out.copy_(as_binary("train", values))
        else:
            ops.bernoulli(values, numbers, out, seed=self.seed, sweep=epoch)

    def _machine(self) -> Machine:
        try:
            return self.model.machine()
        except ValueError as error:
            self.check_finite()
            raise TrainingError(f"after update {self.update}: {error}; a lower learning rate may help") from error

    def check_finite(self) -> None:
        """TrainingError naming the first parameter that is not finite, and the update after which it was found."""
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise TrainingError(
                    f"after update {self.update}: parameter {name!r} is not finite any more; "
                    "a lower learning rate may help"
                )

    def _free_energy_gap(self, batches: Batches, validation: Tensor) -> float:
        train = batches.data if isinstance(batches, ArrayBatches) else self.last_batch
        assert train is not None  # an epoch has at least one batch
        return self._mean_free_energy(validation) - self._mean_free_energy(train)

    def _mean_free_energy(self, values: Tensor) -> float:
        values = values[:: -(-len(values) // GAP_ROWS)].contiguous()  # spread: the rows may be sorted by class
        states = torch.empty_like(values, dtype=self.chains.layers[VISIBLE].dtype)
        self._draw(values, torch.arange(len(values), device=values.device), 0, states)
        return float(self._learner.free_energy(states).mean())

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
        ``checkpoints.save``. The file also serves ``load`` of the model.
        """
        self.check_finite()
        state = {
            "settings": {
                "estimator": {"name": type(self.estimator).__name__, **_settings(self.estimator)},
                "batch_size": self.batch_size,
                "seed": self.seed,
                "centred": self.centred,
                "binarise": self.binarise,
            },
            "parts": _parts(self.model, self.optimizer, self.scheduler, self.callbacks),
            "counts": (self.epoch, self.batch, self.update),
            "order": self._order,
            "data": self._data,
            **self._learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "callbacks": [callback.state_dict() for callback in _stateful(self.callbacks)],
        }
        checkpoints.save(path, {self.model.name: self.model.settings(), "trainer": state})

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        model: BoltzmannModel,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> Trainer:
        """The trainer that ``save`` wrote, in new objects: ``fit`` with the same data goes on to the same bits.

        model, optimizer, scheduler, callbacks: made as for the first run, the parameters of the optimiser in the same
            groups and order; parameters, hyper-parameters and states are then those of the file, as are estimator,
            batch size, seed, centring and binarisation.

        CheckpointError if the file is damaged or was written with other parts; nothing is changed in that case.
        ValueError if optimizer or scheduler do not belong to model.
        """
        _check_optimiser(model, optimizer, scheduler)
        state = checkpoints.load(path)
        saved, held = (checkpoints.entry(state, name, path) for name in (model.name, "trainer"))
        for part, given in _parts(model, optimizer, scheduler, callbacks).items():
            if given != held["parts"][part]:
                raise CheckpointError(f"{os.fspath(path)!r}: expected {part} {held['parts'][part]}, got {given}")
        settings = dict(held["settings"])
        estimator = dict(settings.pop("estimator"))
        made = _ESTIMATORS[estimator.pop("name")](**estimator)
        trainer = cls(model, optimizer, made, scheduler=scheduler, callbacks=callbacks, **settings)
        model.load_state_dict(saved["parameters"])
        optimizer.load_state_dict(held["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(held["scheduler"])
        for callback, kept in zip(_stateful(callbacks), held["callbacks"], strict=True):
            callback.load_state_dict(kept)
        trainer.epoch, trainer.batch, trainer.update = held["counts"]
        trainer._order, trainer._data, trainer._resumed = held["order"], held["data"], True
        trainer._learner.load_state_dict(held)
        return trainer


def _settings(estimator: Estimator) -> dict[str, Any]:
    return estimator.settings() if isinstance(estimator, PersistentChains) else asdict(estimator)


def _learner(model: BoltzmannModel, estimator: Estimator, batch_size: int, seed: int, centred: bool) -> Learner:
    if isinstance(model, RBM) and isinstance(estimator, (CD, PCD, PersistentChains)):
        return RBMLearner(model, estimator, batch_size, seed, centred)
    if isinstance(model, DBM) and isinstance(estimator, MeanFieldPCD):
        return DBMLearner(model, estimator, batch_size, seed, centred)
    raise ValueError(
        "estimator: expected CD, PCD or PersistentChains for an RBM and MeanFieldPCD for a DBM, "
        f"got {type(estimator).__name__} for {type(model).__name__}"
    )


def _stateful(callbacks: Sequence[Callback]) -> list[Callback]:
    return [callback for callback in callbacks if type(callback).state_dict is not Callback.state_dict]


def _parts(
    model: BoltzmannModel, optimizer: Optimizer, scheduler: LRScheduler | None, callbacks: Sequence[Callback]
) -> dict[str, Any]:
    """What must be the same where training resumes."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    # torch keeps momenta by position alone, and would give those of one parameter to another of the same shape
    groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
    return {
        "model": {name: value for name, value in model.settings().items() if name != "parameters"},
        "optimizer": [type(optimizer).__name__, groups],
        "scheduler": None if scheduler is None else type(scheduler).__name__,
        "callbacks with a state": [type(callback).__name__ for callback in _stateful(callbacks)],
    }


def _check_optimiser(model: BoltzmannModel, optimizer: Optimizer, scheduler: LRScheduler | None) -> None:
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
