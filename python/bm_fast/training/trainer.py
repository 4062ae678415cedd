"""The training loop: one snapshot of the parameters, both phases, a gradient, one step of a torch optimiser."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from bm_fast import arrays, checkpoints, ops
from bm_fast.arguments import count, whole_number
from bm_fast.chains import Chains
from bm_fast.checkpoints import CheckpointError
from bm_fast.dbm import DBM
from bm_fast.dbn import DBN
from bm_fast.graph import Kind
from bm_fast.model import VISIBLE, BoltzmannModel, LayeredModel
from bm_fast.rbm import RBM
from bm_fast.tempering import Operator, PoorMixing
from bm_fast.tempering.operators import Watched
from bm_fast.training.batches import ArrayBatches, Batches, Data, as_binary, is_grey, make_batches
from bm_fast.training.callbacks import Callback
from bm_fast.training.captured import CapturedUpdates, operator_of, recordable_operator, why_not
from bm_fast.training.deep import DBMLearner, MeanFieldPCD, labelled_rbm_learner
from bm_fast.training.estimators import CD, PCD, FastPCD
from bm_fast.training.learner import Learner, RBMLearner
from bm_fast.training.loop import Loop, TrainingError, check_epochs
from bm_fast.training.tempered import PersistentChains
from bm_fast.training.updown import DBNLearner, UpDown

Binarise = Literal["dynamic", "none"]

GAP_ROWS = 1000
"""Most rows of each data set from which the free energy gap is computed: cheap beside any epoch that has more."""

LOOK_EVERY = 1000
"""Updates on a GPU after which the trainer looks whether the parameters are good, beside after each epoch."""

Estimator = CD | PCD | FastPCD | MeanFieldPCD | PersistentChains | UpDown

_ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "CD": CD,
    "PCD": PCD,
    "FastPCD": FastPCD,
    "MeanFieldPCD": MeanFieldPCD.from_settings,
    "PersistentChains": PersistentChains.from_settings,
    "UpDown": UpDown,
}


class Trainer(Loop):
    """Maximises the log-likelihood of an RBM, or a bound of a deep model's, by stochastic gradients (docs/training.md).

    Each update takes one snapshot of the parameters on the integer grid, fills ``.grad`` with the gradient of the
    negative log-likelihood per data row, and calls ``optimizer.step()``.

    optimizer: any torch optimiser over parameters of ``model``; momentum and weight decay are its business.
    estimator: ``CD(sweeps)``, ``PCD(n_chains, sweeps)``, ``FastPCD(n_chains)`` or
        ``PersistentChains(n_chains, operator)`` for an RBM, ``MeanFieldPCD(n_chains, sweeps)`` for a DBM,
        ``UpDown(top)`` for a DBN; ``CD(sweeps)`` also for a DBM of one hidden layer with labels.
    batch_size: rows per update; the last batch of an epoch has what is left over.
    seed: decides the order of the rows, the binarisation and every chain.
    centred: use the centred gradient; of a DBN for the top RBM.
    scheduler: a torch scheduler of this optimiser, stepped after each epoch.
    binarise: "dynamic" draws 0/1 from float32 data in each epoch anew; "none" demands 0/1. Default: "dynamic" for
        Bernoulli and "none" for Gaussian visible units.
    callbacks: called in this order.

    epoch, batch, update: epochs done, batches done in the present epoch, updates done in all.
    last_batch: states of the last data rows; the next update overwrites them.
    mixing_advice: what the operator that moves the chains found wrong when the last epoch ended, such as rungs
        that hardly swap, and what to do; None where it found nothing. One with which ``fit`` ends is also a
        ``tempering.PoorMixing`` warning, once for each trainer.
    why_not_captured: why updates are launched one by one; None where a GPU replays them as CUDA graphs.
    """

    model: LayeredModel

    def __init__(
        self,
        model: LayeredModel,
        optimizer: Optimizer,
        estimator: Estimator,
        batch_size: int = 100,
        seed: int = 0,
        centred: bool = True,
        scheduler: LRScheduler | None = None,
        binarise: Binarise | None = None,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        super().__init__(model, optimizer, scheduler, callbacks)
        count("batch_size", batch_size)
        whole_number("seed", seed, 0, 2**64 - 1)
        if binarise not in (None, "dynamic", "none"):
            raise ValueError(f"binarise: expected 'dynamic' or 'none', got {binarise!r}")
        if binarise == "dynamic" and model.visible is not Kind.BERNOULLI:
            raise ValueError(f"binarise: expected 'none' for {model.visible.name} visible units, got 'dynamic'")
        default: Binarise = "dynamic" if model.visible is Kind.BERNOULLI else "none"
        self.estimator, self.batch_size, self.seed, self.centred = estimator, batch_size, seed, centred
        self.binarise: Binarise = binarise or default
        self._learner: Learner[Any] = _learner(model, estimator, batch_size, seed, centred)
        self.why_not_captured = why_not(model, estimator)
        self._captured: CapturedUpdates | None = None
        if isinstance(model, BoltzmannModel) and self.why_not_captured is None:
            self._captured = CapturedUpdates(model, optimizer, self._learner, recordable_operator(estimator))
        self._generator = torch.Generator().manual_seed(seed)
        self.last_batch: Tensor | None = None
        self.mixing_advice: str | None = None
        self._has_warned = False
        self._batches: Batches | None = None  # of the present epoch

    @property
    def chains(self) -> Chains:
        """The chains of the model phase."""
        return self._learner.chains

    @property
    def operator(self) -> Operator | None:
        """What moves these chains, where that is an operator of ``bm_fast.tempering`` or one like them."""
        return operator_of(self.estimator.top if isinstance(self.estimator, UpDown) else self.estimator)

    def reconstruction_error(self) -> float | None:
        """Mean square per unit between the last batch and what its hidden means give back; None before an update."""
        rows = self.last_batch
        if rows is None:
            return None
        self._snapshot()  # says what is wrong with the parameters, and after which update
        return float((self._learner.reconstruct(rows) - rows).square().mean())

    # --- the loop ---------------------------------------------------------------------------------------------------

    def fit(
        self,
        train: Data,
        epochs: int,
        validation: Tensor | NDArray[np.generic] | None = None,
        labels: Tensor | NDArray[np.generic] | None = None,
    ) -> None:
        """Trains until ``epochs`` epochs are done in all, those before a resume or an earlier call included.

        train: ``[n, n_visible]`` torch or numpy, uint8 0/1 or float32, or a DataLoader of such batches (or of tuples
            that begin with one, followed by its labels where the model has them).
        validation: rows like those of train, for the metric "free_energy_gap" after each epoch: the mean free energy
            of up to 1,000 validation rows minus that of as many training rows (of the last batch of a DataLoader).
            It grows when the model overfits (Hinton 2010, section 6).
        labels: class of each row of train for a model with labels, int64 ``[n]``, -1 where unknown. Known ones are
            clamped in the data phase; the others are inferred like hidden units.

        Ctrl-C finishes the update, lets the callbacks save, and raises KeyboardInterrupt; ``fit`` can then go on. A
        second Ctrl-C interrupts at once. TrainingError names the parameter and the update if one is not finite.
        """
        layer = self.model.graph.layers[VISIBLE]
        check_epochs(epochs)
        must_be_binary = self.binarise == "none" and layer.kind is Kind.BERNOULLI
        batches = make_batches(
            train,
            layer,
            self.batch_size,
            self.model.device,
            self._generator,
            binary=must_be_binary,
            labels=labels,
            n_classes=self.model.n_classes if isinstance(self.model, DBM) else None,
        )
        held_out = None if validation is None else arrays.rows("validation", validation, layer, self.model.device)
        if held_out is not None and must_be_binary:
            held_out = as_binary("validation", held_out)
        self._take_up_order(batches)
        if isinstance(batches, ArrayBatches):
            self._learner.start_at(batches.data)
        self._batches = batches
        self._fit(batches, epochs, held_out)
        if self.mixing_advice is not None and not self._has_warned:  # not before: operators may still adapt
            self._has_warned = True
            warnings.warn(f"after epoch {self.epoch}: {self.mixing_advice}", PoorMixing, stacklevel=2)

    def _step(self, values: Tensor, numbers: Tensor) -> None:
        n_data = len(values)
        data = self._learner.batch(n_data)
        self._draw(values, numbers, self.epoch, data)
        n_labelled, batches = 0, self._batches
        if isinstance(self._learner, DBMLearner) and batches is not None and batches.labels is not None:
            n_labelled = self._learner.take_labels(batches.labels, are_known=batches.all_labelled)
        if self._captured is None:
            self._learner.fill_gradient(self._snapshot(), n_data)
            self.optimizer.step()
        else:
            if self.update % LOOK_EVERY == LOOK_EVERY - 1:
                self.check_finite()
            self._captured.run(n_data, n_labelled)
        self.last_batch = data

    def _measure(self, batches: Batches, validation: Tensor | None) -> dict[str, float]:
        self._snapshot()  # parameters off the grid end training here, and not in whatever measures the model next
        operator = self.operator
        if isinstance(operator, Watched):
            advice = operator.advise()
            self.mixing_advice = None if advice is None else f"{type(operator).__name__}: {advice}"
        metrics = self._learner.metrics()
        if validation is not None:
            metrics["free_energy_gap"] = self._free_energy_gap(batches, validation)
        return metrics

    def metric_names(self, validation: Tensor | None) -> set[str]:
        return set() if validation is None else {"free_energy_gap"}

    def _draw(self, values: Tensor, numbers: Tensor, epoch: int, out: Tensor) -> None:
        """Writes the states that the visible units take for these data rows."""
        if not is_grey(values, self.model.graph.layers[VISIBLE]):
            out.copy_(values)
        elif self.binarise == "none":
            out.copy_(as_binary("train", values))
        else:
            ops.bernoulli(values, numbers, out, seed=self.seed, sweep=epoch, are_known=True)

    def _snapshot(self) -> Any:
        try:
            return self._learner.snapshot()
        except ValueError as error:
            self.check_finite()
            raise TrainingError(f"after update {self.update}: {error}; a lower learning rate may help") from error

    def check_finite(self) -> None:
        """Also looks whether weights have left the grid, where updates do not wait for the answer."""
        super().check_finite()
        if self._captured is not None and self._captured.take_refusal():
            self._snapshot()  # says which, unless they have come back
            raise TrainingError(
                f"after update {self.update}: weights were beyond the integer grid; a lower learning rate may help"
            )

    def _free_energy_gap(self, batches: Batches, validation: Tensor) -> float:
        train = batches.data if isinstance(batches, ArrayBatches) else self.last_batch
        assert train is not None  # an epoch has at least one batch
        return self._mean_free_energy(validation) - self._mean_free_energy(train)

    def _mean_free_energy(self, values: Tensor) -> float:
        values = values[:: -(-len(values) // GAP_ROWS)].contiguous()  # spread: the rows may be sorted by class
        states = torch.empty_like(values, dtype=self._learner.batch(1).dtype)
        self._draw(values, torch.arange(len(values), device=values.device), 0, states)
        return float(self._learner.free_energy(states).mean())

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {
            "estimator": _described(self.estimator),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "centred": self.centred,
            "binarise": self.binarise,
        }

    def _state(self) -> dict[str, Any]:
        return {**self._learner.state_dict(), "last_batch": self.last_batch}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self._learner.load_state_dict(state)
        rows = state["last_batch"]  # what an epoch that ends right after resuming is measured with
        self.last_batch = None if rows is None else rows.to(self.model.device)

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        model: LayeredModel,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        callbacks: Sequence[Callback] = (),
        estimator: Estimator | None = None,
    ) -> Trainer:
        """The trainer that ``save`` wrote, in new objects: ``fit`` with the same data goes on to the same bits.

        model, optimizer, scheduler, callbacks: made as for the first run, the parameters of the optimiser in the same
            groups and order; parameters, hyper-parameters and states are then those of the file, as are estimator,
            batch size, seed, centring and binarisation.
        estimator: only where the first run's had an operator that is none of ``bm_fast.tempering``: one made with the
            same settings.

        CheckpointError if the file is damaged or was written with other parts; nothing is changed in that case.
        ValueError if optimizer or scheduler do not belong to model.
        """
        saved, held = cls._read(path, model, optimizer, scheduler, callbacks)
        settings = dict(held["settings"])
        kept = settings.pop("estimator")
        if estimator is None:
            estimator = _made(checkpoints.moved(kept, model.device))
        elif not checkpoints.same(_described(estimator), kept):
            raise CheckpointError(f"{os.fspath(path)!r}: expected the estimator {kept}, got {_described(estimator)}")
        trainer = cls(model, optimizer, estimator, scheduler=scheduler, callbacks=callbacks, **settings)
        trainer._restore(saved, held)
        return trainer


def _described(estimator: Estimator) -> dict[str, Any]:
    """What a checkpoint holds of an estimator."""
    if isinstance(estimator, UpDown):
        settings = {"top": _described(estimator.top)}
    else:
        settings = asdict(estimator) if isinstance(estimator, (CD, PCD)) else estimator.settings()
    return {"name": type(estimator).__name__, **settings}


def _made(described: Mapping[str, Any]) -> Estimator:
    """The estimator that ``_described`` described."""
    settings = dict(described)
    make = _ESTIMATORS[settings.pop("name")]
    if make is UpDown:
        settings["top"] = _made(settings["top"])
    return make(**settings)


def _learner(model: LayeredModel, estimator: Estimator, batch_size: int, seed: int, centred: bool) -> Learner[Any]:
    if isinstance(model, RBM) and isinstance(estimator, (CD, PCD, FastPCD, PersistentChains)):
        return RBMLearner(model, estimator, batch_size, seed, centred)
    if isinstance(model, DBM) and isinstance(estimator, MeanFieldPCD):
        return DBMLearner(model, estimator, batch_size, seed, centred)
    if isinstance(model, DBM) and isinstance(estimator, CD) and model.n_classes is not None and len(model.units) == 2:
        return labelled_rbm_learner(model, estimator, batch_size, seed, centred)
    if isinstance(model, DBN) and isinstance(estimator, UpDown):
        return DBNLearner(model, estimator, batch_size, seed, centred)
    raise ValueError(
        "estimator: expected CD, PCD, FastPCD or PersistentChains for an RBM, MeanFieldPCD for a DBM and UpDown for "
        f"a DBN, got {type(estimator).__name__} for {type(model).__name__}"
    )
