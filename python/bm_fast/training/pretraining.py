"""Where a deep model begins: a stack of RBMs, each trained on the hidden units of the one below.

Plain RBMs make a deep belief net, modified ones a deep Boltzmann machine. A hidden layer of a deep machine gets input
from below and from above; the RBMs of the stack get it from one side only. So they are trained with inputs doubled
wherever the deep machine will have a second neighbour:

    bottom RBM      P(h | v) = σ(2 Wᵀv + c)        E(v | h) from W h + b
    RBMs between    P(h | v) = σ(2 Wᵀv + c)        P(v | h) = σ(2 W h + b)
    top RBM         P(h | v) = σ(Wᵀv + c)          P(v | h) = σ(2 W h + b)

Training the RBMs between with plain inputs and halving their weights afterwards gives the same machine. Of a layer that
two RBMs share, half the field of each makes the field in the deep machine: weights are taken as they are, and the two
biases averaged.

Source: Salakhutdinov and Hinton, Deep Boltzmann machines (AISTATS 2009), section 3.1; Hinton and Salakhutdinov, A
better way to pretrain deep Boltzmann machines (2012) for why the doubling is only an approximation.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import SGD, Optimizer

from bm_fast import arrays
from bm_fast.dbm import DBM
from bm_fast.dbn import DBN
from bm_fast.graph import Kind, chain_graph
from bm_fast.model import BoltzmannModel
from bm_fast.program import Input, Update
from bm_fast.rbm import HIDDEN, RBM, VISIBLE, check_stack
from bm_fast.training.callbacks import Callback
from bm_fast.training.estimators import CD, PCD
from bm_fast.training.loop import check_epochs
from bm_fast.training.trainer import Trainer


def stack_estimator(level: int, n_rbms: int, sweeps: int = 1) -> CD:
    """CD with the inputs of RBM number ``level`` (0 at the bottom) of a stack of ``n_rbms``."""
    if not 0 <= level < n_rbms:
        raise ValueError(f"level: expected 0 to {n_rbms - 1} in a stack of {n_rbms}, got {level}")
    return CD(sweeps, up=1.0 if level == n_rbms - 1 else 2.0, down=1.0 if level == 0 else 2.0)


def lift(rbm: RBM, estimator: CD | PCD, v: Tensor | NDArray[np.generic]) -> Tensor:
    """Means of the hidden units given v with the inputs of ``estimator``: data of the next RBM, which draws them."""
    values = arrays.rows("v", v, rbm.graph.layers[VISIBLE], rbm.device)
    scale = estimator.up if isinstance(estimator, CD) else 1.0
    update = Update(HIDDEN, (Input(0, transposed=False, scale=scale),))
    unread = values.new_zeros((len(values), rbm.n_hidden), dtype=torch.uint8)
    return rbm.machine().layer_means(update, (values, unread))


@torch.no_grad()
def stitch(rbms: Sequence[RBM], labelled: DBM | None = None) -> DBM:
    """The deep machine of a stack of modified RBMs, bottom first.

    labelled: an RBM with labels above them, a DBM of one hidden layer; rbms may then be empty.
    ValueError names the RBM whose visible units do not fit the hidden units below it.
    """
    if labelled is None:
        check_stack(rbms)
        dbm = DBM((rbms[0].n_visible, *(rbm.n_hidden for rbm in rbms)), rbms[0].visible).to(rbms[0].device)
    else:
        dbm = _above(rbms, labelled)
    stack: list[RBM | DBM] = [*rbms] if labelled is None else [*rbms, labelled]
    for weight, level in zip(dbm.weights, stack, strict=False):
        weight.copy_(level.coupling_weights[0])
    for bias, below, above in zip(list(dbm.biases)[1:], stack, stack[1:], strict=False):
        bias.copy_((below.layer_biases[HIDDEN] + above.layer_biases[VISIBLE]) / 2)
    dbm.biases[0].copy_(stack[0].layer_biases[VISIBLE])
    dbm.biases[len(stack)].copy_(stack[-1].layer_biases[HIDDEN])
    if labelled is not None:
        dbm.weights[-1].copy_(labelled.weights[-1])
        dbm.biases[-1].copy_(labelled.biases[-1])
    if dbm.log_precision is not None and stack[0].log_precision is not None:
        dbm.log_precision.copy_(stack[0].log_precision)
    return dbm


def _above(rbms: Sequence[RBM], labelled: DBM) -> DBM:
    """A new machine of the shape of a stack with an RBM with labels on top."""
    if labelled.n_classes is None or len(labelled.units) != 2:
        raise ValueError(f"labelled: expected one hidden layer and labels, got {labelled.extra_repr()}")
    if not rbms:
        return DBM(labelled.units, labelled.visible, n_classes=labelled.n_classes).to(labelled.device)
    check_stack(rbms)
    n_below = rbms[-1].n_hidden
    if labelled.n_visible != n_below or labelled.visible is not Kind.BERNOULLI:
        raise ValueError(
            f"labelled: expected {n_below} Bernoulli visible units, as many as rbms[{len(rbms) - 1}] has hidden ones, "
            f"got {labelled.n_visible} {labelled.visible.name.capitalize()} ones"
        )
    units = (rbms[0].n_visible, *(rbm.n_hidden for rbm in rbms), labelled.units[1])
    return DBM(units, rbms[0].visible, n_classes=labelled.n_classes).to(labelled.device)


def _momentum(model: BoltzmannModel) -> Optimizer:
    weights = list(model.coupling_weights)
    others = [parameter for parameter in model.parameters() if all(parameter is not weight for weight in weights)]
    decayed: dict[str, Any] = {"params": weights, "weight_decay": 1e-3}
    return SGD([decayed, {"params": others}], lr=0.05, momentum=0.5)


def pretrain(
    units: Sequence[int],
    train: Tensor | NDArray[np.generic],
    epochs: Sequence[int],
    *,
    labels: Tensor | NDArray[np.generic] | None = None,
    n_classes: int | None = None,
    visible: Kind = Kind.BERNOULLI,
    sweeps: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    weight_scale: float = 0.01,
    optimizer: Callable[[BoltzmannModel], Optimizer] = _momentum,
    callbacks: Callable[[int], Sequence[Callback]] = lambda level: (),
) -> DBM:
    """Trains a stack of modified RBMs greedily by CD and stitches it into a DBM, on the device of the data.

    units: as for ``DBM``. train: rows as for ``Trainer.fit``, no DataLoader. epochs: of each RBM, bottom first.
    labels, n_classes: labels of the rows as for ``Trainer.fit``, which join the top RBM, their inputs as they are.
    optimizer: makes that of each RBM; default: SGD with rate 0.05, momentum 0.5, and weight decay 0.001 on the weights.
        An RBM with labels is a DBM of one hidden layer.
    callbacks: those of the RBM at a level; ``Checkpoint`` there keeps each RBM.

    To resume in the middle, or to train each RBM in a way of its own, use the parts: ``stack_estimator``, ``lift`` and
    ``stitch``.
    """
    n_rbms = len(units) - 1
    estimators = [stack_estimator(level, n_rbms, sweeps) for level in range(n_rbms)]
    levels = _Levels(estimators, epochs, False, batch_size, seed, optimizer, callbacks)
    levels.check(units, visible)  # all of it is checked before any of it is trained
    if labels is None or n_classes is None:
        if labels is not None or n_classes is not None:
            raise ValueError(f"n_classes: expected a number beside labels, and only there, got {n_classes}")
        return stitch(_train_stack(units, train, levels, visible, weight_scale))
    arrays.labels("labels", labels, len(train), n_classes, _device_of(train), unknown=True)
    rbms = _train_stack(units[:-1], train, levels, visible, weight_scale)
    data = train
    for rbm, estimator in zip(rbms, estimators, strict=False):
        data = lift(rbm, estimator, data)
    kind = Kind.BERNOULLI if rbms else visible
    labelled = DBM(units[-2:], kind, seed + n_rbms - 1, weight_scale, n_classes).to(_device_of(train))
    levels.train(n_rbms - 1, labelled, data, labels)
    return stitch(rbms, labelled)


def pretrain_dbn(
    units: Sequence[int],
    train: Tensor | NDArray[np.generic],
    epochs: Sequence[int],
    *,
    visible: Kind = Kind.BERNOULLI,
    estimator: CD | PCD = CD(1),  # noqa: B008 - frozen
    centred: bool = True,
    batch_size: int = 100,
    seed: int = 0,
    weight_scale: float = 0.01,
    optimizer: Callable[[BoltzmannModel], Optimizer] = _momentum,
    callbacks: Callable[[int], Sequence[Callback]] = lambda level: (),
) -> DBN:
    """Trains a stack of RBMs greedily and makes a deep belief net of it (``DBN.from_rbms``), on the device of the data.

    Plain RBMs, each on the hidden units of the one below: a layer of a belief net has its parents on one side only, so
    nothing is doubled. estimator, centred: as for ``Trainer``, of each RBM. All others as for ``pretrain``; there too,
    to resume in the middle, use the parts: ``lift`` and ``DBN.from_rbms``.

    Source: Hinton, Osindero and Teh, A fast learning algorithm for deep belief nets (2006).
    """
    DBN(units, visible)  # all of it is checked before any of it is trained
    levels = _Levels([estimator] * (len(units) - 1), epochs, centred, batch_size, seed, optimizer, callbacks)
    levels.check(units, visible)
    return DBN.from_rbms(_train_stack(units, train, levels, visible, weight_scale))


@dataclass(frozen=True)
class _Levels:
    """How each RBM of a stack is trained, bottom first; fields as for ``pretrain_dbn``."""

    estimators: Sequence[CD | PCD]
    epochs: Sequence[int]
    centred: bool
    batch_size: int
    seed: int
    optimizer: Callable[[BoltzmannModel], Optimizer]
    callbacks: Callable[[int], Sequence[Callback]]

    def check(self, units: Sequence[int], visible: Kind) -> None:
        n_rbms = len(units) - 1
        if n_rbms < 1 or len(self.epochs) != n_rbms:
            raise ValueError(
                f"epochs: expected one number for each RBM of a stack over {len(units)} layers, got {list(self.epochs)}"
            )
        for number in self.epochs:
            check_epochs(number)
        chain_graph(units, visible)

    def train(
        self,
        level: int,
        model: RBM | DBM,
        data: Tensor | NDArray[np.generic],
        labels: Tensor | NDArray[np.generic] | None = None,
    ) -> None:
        model.initialise_biases(data)
        trainer = Trainer(
            model,
            self.optimizer(model),
            self.estimators[level],
            batch_size=self.batch_size,
            seed=self.seed + level,
            centred=self.centred,
            callbacks=self.callbacks(level),
        )
        trainer.fit(data, self.epochs[level], labels=labels)


def _device_of(data: Tensor | NDArray[np.generic]) -> torch.device:
    """Where the models of a stack are made: beside tensors; for numpy arrays on the processor."""
    return data.device if isinstance(data, Tensor) else torch.device("cpu")


def _train_stack(
    units: Sequence[int], train: Tensor | NDArray[np.generic], levels: _Levels, visible: Kind, weight_scale: float
) -> list[RBM]:
    """RBMs over these layers, bottom first, each trained on the hidden means of the one below."""
    rbms: list[RBM] = []
    data: Tensor | NDArray[np.generic] = train
    for level, (below, above) in enumerate(itertools.pairwise(units)):
        if level > 0:
            data = lift(rbms[-1], levels.estimators[level - 1], data)
        kind = visible if level == 0 else Kind.BERNOULLI
        rbm = RBM(below, above, kind, seed=levels.seed + level, weight_scale=weight_scale)
        rbms.append(rbm.to(_device_of(train)))
        levels.train(level, rbms[-1], data)
    return rbms
