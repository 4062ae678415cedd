"""Training of autoencoders: bounds of minibatches, one gradient estimator, one step of a torch optimiser."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader

from bm_fast import checkpoints, data
from bm_fast.arguments import count
from bm_fast.checkpoints import CheckpointError
from bm_fast.training.batches import ArrayBatches, Batches, Data, LoaderBatches
from bm_fast.training.callbacks import Callback
from bm_fast.training.loop import Loop, TrainingError, check_epochs
from bm_fast.vae.estimators import ESTIMATORS, Estimator
from bm_fast.vae.evaluation import log_likelihood
from bm_fast.vae.model import VAE

Binarise = Literal["dynamic", "none"]

VALIDATION_ROWS = 1000
"""Most rows of which the validation bound is computed: cheap beside any epoch that has more."""


class Trainer(Loop):
    """Maximises a bound of the log-likelihood of a ``VAE`` by stochastic gradients; see docs/vae.md.

    optimizer: any torch optimiser over parameters of ``model``; ``torch.optim.Adam(..., fused=True)`` is the fastest.
    estimator: the bound and its gradient, such as ``IWAE(k=50)``.
    batch_size: rows per update; the last batch of an epoch has what is left over.
    seed: decides the order of the rows, the binarisation and the samples.
    scheduler: a torch scheduler of this optimiser, stepped after each epoch.
    binarise: "dynamic" draws 0/1 from float32 data at each presentation anew; "none" demands 0/1. Default: "dynamic"
        for Bernoulli and "none" for Gaussian pixels.
    callbacks: called in this order.
    mixed_precision: matrix products in bfloat16 during training. Bounds that are reported after it are float32.

    epoch, batch, update: epochs done, batches done in the present epoch, updates done in all.
    Metrics of an epoch: "bound", its mean over the epoch's presentations, and "validation_bound".
    """

    model: VAE

    def __init__(
        self,
        model: VAE,
        optimizer: Optimizer,
        estimator: Estimator,
        batch_size: int = 20,
        seed: int = 0,
        scheduler: LRScheduler | None = None,
        binarise: Binarise | None = None,
        callbacks: Sequence[Callback] = (),
        mixed_precision: bool = False,
    ) -> None:
        super().__init__(model, optimizer, scheduler, callbacks)
        count("batch_size", batch_size)
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed: expected 0 to 2^63 - 1, got {seed}")
        if not is_dataclass(type(estimator)):
            raise ValueError(
                f"estimator: expected a dataclass, whose settings a checkpoint can hold, got {type(estimator).__name__}"
            )
        if binarise not in (None, "dynamic", "none"):
            raise ValueError(f"binarise: expected 'dynamic' or 'none', got {binarise!r}")
        if binarise == "dynamic" and model.visible == "gaussian":
            raise ValueError("binarise: expected 'none' for Gaussian pixels, got 'dynamic'")
        self.estimator, self.batch_size, self.seed = estimator, batch_size, seed
        self.binarise: Binarise = binarise or ("dynamic" if model.visible == "bernoulli" else "none")
        self.mixed_precision = mixed_precision
        self._shuffle = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(model.device).manual_seed(seed + 1)
        self._sum, self._rows = 0.0, 0  # of the bounds of the present epoch
        self._last_batch: Tensor | None = None

    def fit(
        self,
        train: Data,
        epochs: int,
        validation: Tensor | NDArray[np.generic] | None = None,
    ) -> None:
        """Trains until ``epochs`` epochs are done in all, those before a resume or an earlier call included.

        train: ``[n, n_visible]`` torch or numpy, uint8 0/1 or float32, or a DataLoader of such batches (or of tuples
            that begin with one).
        validation: rows like those of train, for the metric "validation_bound" after each epoch: L_k of up to 1,000 of
            them with the estimator's number of samples, grey levels binarised once and the samples the same each time.

        Ctrl-C finishes the update, lets the callbacks save, and raises KeyboardInterrupt; ``fit`` can then go on. A
        second Ctrl-C interrupts at once. TrainingError names the update, and the row whose bound or the parameter whose
        gradient is not finite; that update is not made.
        """
        check_epochs(epochs)
        grey = self.binarise == "dynamic"
        batches: Batches
        if isinstance(train, DataLoader):
            batches = LoaderBatches(train, lambda name, rows: self.model.rows(rows, name, grey=grey), self.batch_size)
        else:
            batches = ArrayBatches(self.model.rows(train, "train", grey=grey), self.batch_size, self._shuffle)
        held_out = None if validation is None else self._held_out(self.model.rows(validation, "validation", grey=grey))
        self._take_up_order(batches)
        self._fit(batches, epochs, held_out)

    def _held_out(self, rows: Tensor) -> Tensor:
        rows = rows[:: -(-len(rows) // VALIDATION_ROWS)].contiguous()  # spread: the rows may be sorted by class
        return data.binarise(rows, self.seed, 1).float() if self.binarise == "dynamic" else rows

    def _step(self, values: Tensor, numbers: Tensor) -> None:
        x = torch.bernoulli(values, generator=self._noise) if self.binarise == "dynamic" else values
        self.model.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.mixed_precision):
            bounds = self.estimator.backward(self.model, x, self._noise)
        total = float(bounds.sum(dtype=torch.float64))
        if not math.isfinite(total):
            row = int(torch.nonzero(~torch.isfinite(bounds))[0])
            raise TrainingError(
                f"update {self.update + 1}, epoch {self.epoch + 1}: the bound of training row {int(numbers[row])} is "
                f"{float(bounds[row])}; a lower learning rate may help"
            )
        self._check_gradients()
        self.optimizer.step()
        self._sum, self._rows = self._sum + total, self._rows + len(bounds)
        self._last_batch = x

    def _check_gradients(self) -> None:
        """TrainingError naming the first parameter whose gradient is not finite."""
        gradients = [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]
        # one number of all, for a GPU to hand over; where finite gradients overflow it, the search below finds none
        if not gradients or math.isfinite(float(torch.stack([gradient.sum() for gradient in gradients]).sum())):
            return
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise TrainingError(
                    f"update {self.update + 1}, epoch {self.epoch + 1}: the gradient of parameter {name!r} is not "
                    "finite, though the bounds are; a lower learning rate may help"
                )

    def _measure(self, batches: Batches, validation: Tensor | None) -> dict[str, float]:
        metrics = {"bound": self._sum / self._rows}
        self._sum, self._rows = 0.0, 0
        if validation is not None:
            try:
                bounds = log_likelihood(self.model, validation, self.estimator.n_samples, self.seed)
            except FloatingPointError as error:
                raise TrainingError(f"after update {self.update}: validation: {error}") from error
            metrics["validation_bound"] = float(bounds.mean())
        return metrics

    def metric_names(self, validation: Tensor | None) -> set[str]:
        return {"bound"} if validation is None else {"bound", "validation_bound"}

    def reconstruction_error(self) -> float | None:
        x = self._last_batch
        return None if x is None else float((self.model.reconstruct(x) - x).square().mean())

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        return {
            "estimator": _described(self.estimator),
            "batch_size": self.batch_size,
            "seed": self.seed,
            "binarise": self.binarise,
            "mixed_precision": self.mixed_precision,
        }

    def _state(self) -> dict[str, Any]:
        return {"noise": self._noise.get_state(), "sum": self._sum, "rows": self._rows}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        kept, present = state["noise"], self._noise.get_state()
        if len(kept) == len(present):
            self._noise.set_state(kept)
        else:  # of another kind of device, whose generators draw other numbers: those of this update, from here on
            self._noise.manual_seed((self.seed + 1 + self.update) % 2**63)
        self._sum, self._rows = state["sum"], state["rows"]

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        model: VAE,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        callbacks: Sequence[Callback] = (),
        estimator: Estimator | None = None,
    ) -> Trainer:
        """Goes on where ``save`` left: same bits as an uninterrupted run with the same data, build and threads.

        On another kind of device noise is drawn anew from there on: that of this seed and update.

        model, optimizer, scheduler, callbacks: made as for the first run; their states come from the file.
        estimator: only where the first run's was one of your own: one made with the same settings.

        Errors as in ``checkpoints.load``; CheckpointError as well for a file whose model or parts are other ones.
        """
        saved, held = cls._read(path, model, optimizer, scheduler, callbacks)
        settings = dict(held["settings"])
        kept = settings.pop("estimator")
        if estimator is None:
            estimator = _made(kept, path)
        elif not checkpoints.same(_described(estimator), kept):
            raise CheckpointError(f"{os.fspath(path)!r}: expected the estimator {kept}, got {_described(estimator)}")
        trainer = cls(model, optimizer, estimator, scheduler=scheduler, callbacks=callbacks, **settings)
        trainer._restore(saved, held)
        return trainer


def _described(estimator: Estimator) -> dict[str, Any]:
    """What a checkpoint holds of an estimator."""
    return {"name": type(estimator).__name__, **asdict(cast(Any, estimator))}


def _made(described: Mapping[str, Any], path: str | os.PathLike[str]) -> Estimator:
    """The estimator that a checkpoint holds; CheckpointError for one that is not of this package."""
    settings = dict(described)
    name = settings.pop("name")
    if name not in ESTIMATORS:
        raise CheckpointError(
            f"{os.fspath(path)!r}: trained with {name}, none of {', '.join(ESTIMATORS)}; give an estimator with the "
            "same settings"
        )
    estimator: Estimator = ESTIMATORS[name](**settings)
    return estimator


def burda_schedule(optimizer: Optimizer, epochs: int = 3280) -> LambdaLR:
    """The learning rates of Burda et al. (2016), for an optimiser whose rate is the first of them.

    n stages, of which stage i = 1 … n has 3^(i-1) epochs at the rate times 10^(-(i-1)/(n-1)).
    epochs: of all stages, (3^n - 1) / 2; the paper's 3,280 are 8 of them.
    """
    ends = [1]
    while ends[-1] < epochs:
        ends.append(3 * ends[-1] + 1)
    if ends[-1] != epochs:
        raise ValueError(f"epochs: expected those of whole stages, 1, 4, 13, 40, 121, 364, 1093 or 3280, got {epochs}")

    def factor(epoch: int) -> float:
        stage = sum(epoch >= end for end in ends[:-1])
        return float(10.0 ** (-stage / max(1, len(ends) - 1)))

    return LambdaLR(optimizer, factor)
