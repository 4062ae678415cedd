"""Early stopping: training ends when the model gets no better, and the best parameters come back.

They come back only where the callback itself ended training. After the last epoch the parameters stay as they are,
since momenta, chains and offsets belong to them, and a checkpoint of that moment is one to go on from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from torch import Tensor

from bm_fast.arguments import count
from bm_fast.training.callbacks import Callback, Evaluate, Progress


class _Stopping(Callback):
    """Keeps the parameters of the last good epoch and stops after ``patience`` others in a row.

    best, best_epoch: figure and number of that epoch. best_parameters: for ``model.load_state_dict``.
    """

    def __init__(self, metric: str, patience: int) -> None:
        count("patience", patience)
        self.metric, self.patience = metric, patience
        self.best: float | None = None
        self.best_epoch = 0
        self.best_parameters: dict[str, Tensor] = {}
        self._waited = 0
        self._stopped = False

    def is_good(self, value: float) -> bool:
        """Whether an epoch with this figure is one to come back to."""
        raise NotImplementedError

    def on_start(self, progress: Progress) -> None:
        self._stopped = False
        names = progress.trainer.metric_names(progress.validation)
        for callback in takewhile(lambda c: c is not self, progress.trainer.callbacks):
            if not type(callback).on_epoch.__module__.startswith("bm_fast."):
                return  # a callback of the user's, which may add any name at any time
            if isinstance(callback, Evaluate):
                names |= callback.metrics.keys()
        if self.metric not in names:
            raise ValueError(
                f"metric: expected one of {sorted(names)} from validation rows and the callbacks before "
                f"{type(self).__name__}, got {self.metric!r}"
            )

    def on_epoch(self, progress: Progress) -> None:
        if self.metric not in progress.metrics:
            return
        value, trainer = float(progress.metrics[self.metric]), progress.trainer
        if self.is_good(value):
            self.best, self.best_epoch, self._waited = value, trainer.epoch, 0
            self.best_parameters = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
            return
        self._waited += 1
        if self._waited >= self.patience:
            self._stopped = True
            progress.stop_reason = (
                f"{self.metric} is {value:.4g} after epoch {trainer.epoch}; "
                f"the last good epoch was {self.best_epoch} with {self.best}"
            )

    def on_end(self, progress: Progress) -> None:
        if progress.outcome == "done" and self.best is None and progress.trainer.epoch > 0:
            raise ValueError(
                f"metric: no epoch had a usable {self.metric!r}; the last one had {sorted(progress.metrics)}"
            )
        if progress.outcome == "stopped" and self._stopped and self.best_parameters:
            progress.trainer.model.load_state_dict(self.best_parameters)

    def state_dict(self) -> dict[str, Any]:
        return {
            "best": self.best,
            "best_epoch": self.best_epoch,
            "waited": self._waited,
            "parameters": self.best_parameters,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self._waited, self.best_parameters = state["waited"], dict(state["parameters"])


class EarlyStopping(_Stopping):
    """Stops when ``metric`` (higher is better) has not risen for ``patience`` evaluations, and takes the best model.

    metric: a name in ``Progress.metrics``, such as a validation log-likelihood from ``Evaluate``; epochs without it do
        not count. A value that is not a number counts as no better.

    best, best_epoch, best_parameters: figure, number and parameters of the best epoch. Where ``fit`` ends without being
    stopped, the model keeps the parameters of the last epoch;
    ``model.load_state_dict(stopping.best_parameters)`` brings the best ones back.

    ``fit`` raises ValueError before the first update if none of the callbacks before this one adds the metric, and at
    its end if no epoch had it.
    """

    def __init__(self, metric: str, patience: int = 5) -> None:
        super().__init__(metric, patience)

    def is_good(self, value: float) -> bool:
        return not math.isnan(value) and (self.best is None or value > self.best)


class StopOnOverfitting(_Stopping):
    """Stops when the free energy gap of the validation rows has been above ``limit`` nats for ``patience`` epochs.

    The gap is near zero at first and grows as the model begins to know the training rows by heart, so it is compared
    with a limit, not with its own best value. When it stops, the model of the last epoch within the limit comes back;
    best, best_epoch and best_parameters are those of that epoch, as in ``EarlyStopping``.

    Source: Hinton, A practical guide to training RBMs (2010), section 6.
    """

    def __init__(self, limit: float, patience: int = 3) -> None:
        if not math.isfinite(limit):
            raise ValueError(f"limit: expected a finite number of nats, got {limit}")
        super().__init__("free_energy_gap", patience)
        self.limit = limit

    def on_start(self, progress: Progress) -> None:
        if progress.validation is None:
            raise ValueError("validation: StopOnOverfitting needs validation rows in fit")
        super().on_start(progress)

    def is_good(self, value: float) -> bool:
        return value <= self.limit
