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
def stitch(rbms: Sequence[RBM]) -> DBM:
    """The deep machine of a stack of modified RBMs, bottom first.

    ValueError names the RBM whose visible units do not fit the hidden units below it.
    """
    check_stack(rbms)
    bottom, top = rbms[0], rbms[-1]
    dbm = DBM((bottom.n_visible, *(rbm.n_hidden for rbm in rbms)), bottom.visible).to(bottom.device)
    for weight, rbm in zip(dbm.weights, rbms, strict=True):
        weight.copy_(rbm.weight)
    dbm.biases[0].copy_(bottom.visible_bias)
    for bias, below, above in zip(list(dbm.biases)[1:-1], rbms[:-1], rbms[1:], strict=True):
        bias.copy_((below.hidden_bias + above.visible_bias) / 2)
    dbm.biases[-1].copy_(top.hidden_bias)
    if dbm.log_precision is not None and bottom.log_precision is not None:
        dbm.log_precision.copy_(bottom.log_precision)
    return dbm


def _momentum(rbm: RBM) -> Optimizer:
    decayed: dict[str, Any] = {"params": [rbm.weight], "weight_decay": 1e-3}
    others = [parameter for parameter in rbm.parameters() if parameter is not rbm.weight]
    return SGD([decayed, {"params": others}], lr=0.05, momentum=0.5)


def pretrain(
    units: Sequence[int],
    train: Tensor | NDArray[np.generic],
    epochs: Sequence[int],
    *,
    visible: Kind = Kind.BERNOULLI,
    sweeps: int = 1,
    batch_size: int = 100,
    seed: int = 0,
    weight_scale: float = 0.01,
    optimizer: Callable[[RBM], Optimizer] = _momentum,
    callbacks: Callable[[int], Sequence[Callback]] = lambda level: (),
) -> DBM:
    """Trains a stack of modified RBMs greedily by CD and stitches it into a DBM.

    units: as for ``DBM``. train: rows as for ``Trainer.fit``, no DataLoader. epochs: of each RBM, bottom first.
    optimizer: makes that of each RBM; default: SGD with rate 0.05, momentum 0.5, and weight decay 0.001 on the weights.
    callbacks: those of the RBM at a level; ``Checkpoint`` there keeps each RBM.

    To resume in the middle, or to train each RBM in a way of its own, use the parts: ``stack_estimator``, ``lift`` and
    ``stitch``.
    """
    n_rbms = len(units) - 1
    estimators = [stack_estimator(level, n_rbms, sweeps) for level in range(n_rbms)]
    return stitch(
        _train_stack(
            units,
            train,
            epochs,
            estimators,
            visible=visible,
            centred=False,
            batch_size=batch_size,
            seed=seed,
            weight_scale=weight_scale,
            optimizer=optimizer,
            callbacks=callbacks,
        )
    )


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
    optimizer: Callable[[RBM], Optimizer] = _momentum,
    callbacks: Callable[[int], Sequence[Callback]] = lambda level: (),
) -> DBN:
    """Trains a stack of RBMs greedily and makes a deep belief net of it (``DBN.from_rbms``).

    Plain RBMs, each on the hidden units of the one below: a layer of a belief net has its parents on one side only, so
    nothing is doubled. estimator, centred: as for ``Trainer``, of each RBM. All others as for ``pretrain``; there too,
    to resume in the middle, use the parts: ``lift`` and ``DBN.from_rbms``.

    Source: Hinton, Osindero and Teh, A fast learning algorithm for deep belief nets (2006).
    """
    DBN(units, visible)  # all of it is checked before any of it is trained
    return DBN.from_rbms(
        _train_stack(
            units,
            train,
            epochs,
            [estimator] * (len(units) - 1),
            visible=visible,
            centred=centred,
            batch_size=batch_size,
            seed=seed,
            weight_scale=weight_scale,
            optimizer=optimizer,
            callbacks=callbacks,
        )
    )


def _train_stack(
    units: Sequence[int],
    train: Tensor | NDArray[np.generic],
    epochs: Sequence[int],
    estimators: Sequence[CD | PCD],
    *,
    visible: Kind,
    centred: bool,
    batch_size: int,
    seed: int,
    weight_scale: float,
    optimizer: Callable[[RBM], Optimizer],
    callbacks: Callable[[int], Sequence[Callback]],
) -> list[RBM]:
    """RBMs, bottom first, each trained by its estimator on the hidden means of the one below."""
    n_rbms = len(units) - 1
    if n_rbms < 1 or len(epochs) != n_rbms:
        raise ValueError(
            f"epochs: expected one number for each RBM of a stack over {len(units)} layers, got {list(epochs)}"
        )
    for number in epochs:
        check_epochs(number)
    chain_graph(units, visible)  # all of it is checked before any of it is trained
    rbms: list[RBM] = []
    data: Tensor | NDArray[np.generic] = train
    for level, (below, above) in enumerate(itertools.pairwise(units)):
        if level > 0:
            data = lift(rbms[-1], estimators[level - 1], data)
        kind = visible if level == 0 else Kind.BERNOULLI
        rbm = RBM(below, above, kind, seed=seed + level, weight_scale=weight_scale)
        rbm.initialise_biases(data)
        trainer = Trainer(
            rbm,
            optimizer(rbm),
            estimators[level],
            batch_size=batch_size,
            seed=seed + level,
            centred=centred,
            callbacks=callbacks(level),
        )
        trainer.fit(data, epochs[level])
        rbms.append(rbm)
    return rbms
