"""Updates of a Bernoulli RBM by persistent contrastive divergence in several libraries, behind one small interface.

Every library trains on the same random rows with the ordinary gradient, one Gibbs sweep per update, and as many chains
as a batch has rows. Visible biases begin at the log-odds of the data, as is usual (Hinton, A practical guide to
training RBMs, 2010, section 8.1), and a few updates are not timed: with biases of 0 it takes hundreds of updates until
chains have come to where they then stay, and how long an update takes bm_fast depends on where they are. scikit-learn's
own class begins with biases of 0; what it takes depends on no states.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bm_fast.training import Trainer as BmFastTrainer

N_ROWS, LEARNING_RATE = 60_000, 0.01
WARMING = 20  # updates that let chains leave their start


@functools.cache
def random_rows(n_visible: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(N_ROWS, n_visible, generator=generator) < 0.15).float()


def visible_biases(n_visible: int) -> Tensor:
    return torch.logit(random_rows(n_visible).mean(0))


def shuffled(rows: Tensor, batch: int) -> Iterator[Tensor]:
    """Batches without end, in a new order in each pass."""
    while True:
        for index in torch.randperm(len(rows)).split(batch):
            yield rows[index]


class Trainer:
    """One library set up for one model and batch size."""

    def run(self, n_updates: int) -> None:
        raise NotImplementedError


class Fitted(Trainer):
    """Trainer.fit of bm_fast; a call makes one epoch on as many rows as it needs, after whole passes."""

    def __init__(self, trainer: BmFastTrainer, rows: Tensor) -> None:
        self.trainer, self.rows = trainer, rows

    def run(self, n_updates: int) -> None:
        epochs, left = divmod(n_updates * self.trainer.batch_size, len(self.rows))
        if epochs:
            self.trainer.fit(self.rows, epochs=self.trainer.epoch + epochs)
        if left:
            self.trainer.fit(self.rows[:left], epochs=self.trainer.epoch + 1)


class BmFast(Fitted):
    """With torch's SGD."""

    def __init__(self, n_visible: int, n_hidden: int, batch: int) -> None:
        from bm_fast import RBM
        from bm_fast.training import PCD
        from bm_fast.training import Trainer as RBMTrainer

        rbm = RBM(n_visible, n_hidden)
        with torch.no_grad():
            rbm.visible_bias.copy_(visible_biases(n_visible))
        optimizer = torch.optim.SGD(rbm.parameters(), lr=LEARNING_RATE)
        trainer = RBMTrainer(rbm, optimizer, PCD(n_chains=batch), batch_size=batch, centred=False)
        super().__init__(trainer, random_rows(n_visible).to(torch.uint8))
        self.run(WARMING)


class Torch(Trainer):
    """Four products for the states and means, two for the gradient, parameters updated in place."""

    def __init__(self, n_visible: int, n_hidden: int, batch: int, *, compiled: bool = False) -> None:
        self.weight = torch.randn(n_visible, n_hidden) * 0.01
        self.visible_bias, self.hidden_bias = visible_biases(n_visible), torch.zeros(n_hidden)
        self.batches = shuffled(random_rows(n_visible), batch)
        self.chains = torch.zeros(batch, n_visible)
        self.step = torch.compile(self.update) if compiled else self.update
        self.run(WARMING)

    def update(self, rows: Tensor, chains: Tensor) -> Tensor:
        data_means = torch.sigmoid(torch.addmm(self.hidden_bias, rows, self.weight))
        hidden = torch.bernoulli(torch.sigmoid(torch.addmm(self.hidden_bias, chains, self.weight)))
        chains = torch.bernoulli(torch.sigmoid(torch.addmm(self.visible_bias, hidden, self.weight.t())))
        model_means = torch.sigmoid(torch.addmm(self.hidden_bias, chains, self.weight))
        rate = LEARNING_RATE / len(rows)
        self.weight.addmm_(rows.t(), data_means, alpha=rate).addmm_(chains.t(), model_means, alpha=-rate)
        self.visible_bias.add_(rows.sum(0) - chains.sum(0), alpha=rate)
        self.hidden_bias.add_(data_means.sum(0) - model_means.sum(0), alpha=rate)
        return chains

    def run(self, n_updates: int) -> None:
        with torch.no_grad():
            for _ in range(n_updates):
                self.chains = self.step(next(self.batches), self.chains)


class ScikitLearn(Trainer):
    """BernoulliRBM.fit on as many rows as the updates need; its products are three, since it keeps hidden states.

    Each call draws its first weights anew, about 2 % of half a second.
    """

    def __init__(self, n_visible: int, n_hidden: int, batch: int) -> None:
        from sklearn.neural_network import BernoulliRBM

        self.model = BernoulliRBM(n_hidden, learning_rate=LEARNING_RATE, batch_size=batch, n_iter=1, random_state=0)
        self.rows, self.batch = random_rows(n_visible).numpy(), batch

    def run(self, n_updates: int) -> None:
        self.model.n_iter, left = divmod(n_updates * self.batch, len(self.rows))
        if self.model.n_iter:
            self.model.fit(self.rows)
        if left:
            self.model.n_iter = 1
            self.model.fit(self.rows[:left])


class Rbms(Trainer):
    """fit_batch_pcd and torch's SGD; the package's own loop writes to a file in every update."""

    def __init__(self, n_visible: int, n_hidden: int, batch: int) -> None:
        from rbms.bernoulli_bernoulli.classes import BBRBM
        from rbms.training.pcd import fit_batch_pcd

        weight = torch.randn(n_visible, n_hidden) * 0.01
        self.model = BBRBM(weight, visible_biases(n_visible), torch.zeros(n_hidden))
        self.model.init_grad()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE, maximize=True)
        self.batches, self.weights = shuffled(random_rows(n_visible), batch), torch.ones(batch)
        self.chains, self.fit_batch = self.model.init_chains(batch), fit_batch_pcd
        self.run(WARMING)

    def run(self, n_updates: int) -> None:
        with torch.no_grad():
            for _ in range(n_updates):
                self.optimizer.zero_grad(set_to_none=False)
                batch = (next(self.batches), self.weights)
                self.chains, _ = self.fit_batch(batch, self.chains, self.model, 1, 1.0, centered=False)
                self.optimizer.step()


TRAINERS: dict[str, Callable[[int, int, int], Trainer]] = {
    "bm_fast": BmFast,
    "torch": Torch,
    "torch-compile": lambda n_visible, n_hidden, batch: Torch(n_visible, n_hidden, batch, compiled=True),
    "scikit-learn": ScikitLearn,
    "rbms": Rbms,
}
