"""Mean field and updates of a Bernoulli DBM in bm_fast and torch, behind the interface of trainers.py.

Every library computes the fields of the data once and makes all iterations, whatever has come to rest. With a tolerance
bm_fast leaves out each case that has come to rest, and torch stops once all have. Weights and data are random, or those
of a trained machine; updates take the centred gradient with as many chains as a batch has rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from samplers import Problem
from trainers import LEARNING_RATE, WARMING, Fitted, Trainer, random_rows, shuffled, visible_biases

ITERATIONS, SWEEPS = 10, 5
OFFSET_RATE = 0.01


def torch_mean_field(
    rows: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], tolerance: float = 0.0
) -> list[Tensor]:
    """Means of all hidden layers after a first pass up, below the top with doubled input, and all iterations.

    tolerance: above 0 they end once no mean of any case has changed by more.
    """
    fixed = rows @ weights[0]
    means = [torch.sigmoid(torch.add(biases[1], fixed, alpha=2.0 if len(weights) > 1 else 1.0))]
    for i in range(1, len(weights)):
        top = i == len(weights) - 1
        means.append(torch.sigmoid(torch.addmm(biases[i + 1], means[-1], weights[i], alpha=1.0 if top else 2.0)))
    order = [*range(0, len(means), 2), *range(1, len(means), 2)]
    for _ in range(ITERATIONS):
        before = list(means)
        for i in order:
            field = biases[1] + fixed if i == 0 else torch.addmm(biases[i + 1], means[i - 1], weights[i])
            means[i] = torch.sigmoid(field.addmm_(means[i + 1], weights[i + 1].t()) if i + 1 < len(means) else field)
        if tolerance > 0 and all(bool((a - b).abs().max() <= tolerance) for a, b in zip(means, before, strict=True)):
            break
    return means


def trained(checkpoint: Path, data: str, split: str, n_cases: int | None = None) -> Problem:
    """A DBM of Bernoulli layers that was saved, and the first cases of the data set that it was trained on."""
    from bm_fast import DBM
    from bm_fast.data import load

    dbm = DBM.load(checkpoint)
    if dbm.log_precision is not None or dbm.n_classes is not None:
        raise ValueError(f"--checkpoint {checkpoint}: expected a DBM of Bernoulli layers without labels")
    dataset = load(data)
    images = dataset.split(split)
    cases = dataset.binarised().split(split) if images.is_floating_point() else images
    weights, biases = (tuple(value.detach().clone() for value in values) for values in (dbm.weights, dbm.biases))
    return Problem(dbm.units, weights, biases, cases[:n_cases].float())


def untrained(units: tuple[int, ...]) -> Problem:
    """Small random weights, and rows with as many ones as digits have."""
    rows = random_rows(units[0])
    weights = tuple(torch.randn(a, b) * 0.01 for a, b in itertools.pairwise(units))
    return Problem(units, weights, (visible_biases(units[0]), *(torch.zeros(n) for n in units[1:])), rows)


# --- mean field -------------------------------------------------------------------------------------------------------


class BmFastMeanField(Trainer):
    def __init__(self, problem: Problem, tolerance: float = 0.0) -> None:
        from bm_fast.graph import chain_graph
        from bm_fast.ops import Machine

        self.machine = Machine.build(chain_graph(problem.units), problem.weights, problem.biases)
        self.rows, self.tolerance = problem.visible.to(torch.uint8), tolerance

    def run(self, n_updates: int) -> None:
        """Infers so many times."""
        from bm_fast import mean_field

        for _ in range(n_updates):
            mean_field.settle(self.machine, {0: self.rows}, ITERATIONS, self.tolerance)


class TorchMeanField(Trainer):
    def __init__(
        self,
        problem: Problem,
        tolerance: float = 0.0,
        dtype: torch.dtype = torch.float32,
        *,
        compiled: bool = False,
    ) -> None:
        self.arguments = (
            problem.visible.to(dtype),
            [weight.to(dtype) for weight in problem.weights],
            [bias.to(dtype) for bias in problem.biases],
            tolerance,
        )
        self.infer = torch.compile(torch_mean_field) if compiled else torch_mean_field

    def run(self, n_updates: int) -> None:
        with torch.no_grad():
            for _ in range(n_updates):
                self.infer(*self.arguments)


# --- updates ----------------------------------------------------------------------------------------------------------


class BmFastUpdate(Fitted):
    """With torch's SGD."""

    def __init__(self, problem: Problem, batch: int) -> None:
        from bm_fast import DBM
        from bm_fast.training import MeanFieldPCD
        from bm_fast.training import Trainer as DBMTrainer

        dbm = DBM(problem.units)
        with torch.no_grad():
            for own, given in zip((*dbm.weights, *dbm.biases), (*problem.weights, *problem.biases), strict=True):
                own.copy_(given)
        optimizer = torch.optim.SGD(dbm.parameters(), lr=LEARNING_RATE)
        estimator = MeanFieldPCD(n_chains=batch, sweeps=SWEEPS, iterations=ITERATIONS, tolerance=0.0)
        trainer = DBMTrainer(dbm, optimizer, estimator, batch_size=batch)
        super().__init__(trainer, problem.visible.to(torch.uint8))
        self.run(WARMING)


class TorchUpdate(Trainer):
    """Parameters are updated in place; the last layers drawn give their means to the gradient."""

    def __init__(self, problem: Problem, batch: int, *, compiled: bool = False) -> None:
        self.weights = [weight.clone() for weight in problem.weights]
        self.biases = [bias.clone() for bias in problem.biases]
        self.offsets = [torch.zeros(n) for n in problem.units]
        self.batches = shuffled(problem.visible, batch)
        self.chains = [torch.zeros(batch, n) for n in problem.units]
        self.step = torch.compile(self.update) if compiled else self.update
        self.run(WARMING)

    def sweep(self, chains: list[Tensor], *, last: bool) -> tuple[list[Tensor], list[Tensor]]:
        """Even layers first, then odd ones; states, and what the gradient takes of each layer."""
        chains, model = list(chains), list(chains)
        for i in [*range(0, len(chains), 2), *range(1, len(chains), 2)]:
            field = self.biases[i]
            if i > 0:
                field = torch.addmm(field, chains[i - 1], self.weights[i - 1])
            if i < len(self.weights):
                field = torch.addmm(field, chains[i + 1], self.weights[i].t())
            model[i] = torch.sigmoid(field)
            chains[i] = torch.bernoulli(model[i])
        return chains, [means if last and i % 2 else chains[i] for i, means in enumerate(model)]

    def update(self, rows: Tensor, chains: list[Tensor]) -> list[Tensor]:
        data = [rows, *torch_mean_field(rows, self.weights, self.biases)]
        for i in range(SWEEPS):
            chains, model = self.sweep(chains, last=i == SWEEPS - 1)
        for offset, means in zip(self.offsets, data, strict=True):
            offset.lerp_(means.mean(0), OFFSET_RATE)
        centred_data = [means - offset for means, offset in zip(data, self.offsets, strict=True)]
        centred_model = [means - offset for means, offset in zip(model, self.offsets, strict=True)]
        steps = [a.sum(0) - b.sum(0) for a, b in zip(data, model, strict=True)]
        rate = LEARNING_RATE / len(rows)
        for i, weight in enumerate(self.weights):
            step = centred_data[i].t() @ centred_data[i + 1]
            step.addmm_(centred_model[i].t(), centred_model[i + 1], alpha=-1)
            steps[i].addmv_(step, self.offsets[i + 1], alpha=-1)
            steps[i + 1].addmv_(step.t(), self.offsets[i], alpha=-1)
            weight.add_(step, alpha=rate)
        for bias, step in zip(self.biases, steps, strict=True):
            bias.add_(step, alpha=rate)
        return chains

    def run(self, n_updates: int) -> None:
        with torch.no_grad():
            for _ in range(n_updates):
                self.chains = self.step(next(self.batches), self.chains)


MEAN_FIELD: dict[str, Callable[[Problem, float], Trainer]] = {
    "bm_fast": BmFastMeanField,
    "torch": TorchMeanField,
    "torch-bf16": lambda problem, tolerance: TorchMeanField(problem, tolerance, torch.bfloat16),
    "torch-compile": lambda problem, tolerance: TorchMeanField(problem, tolerance, compiled=True),
}

DEEP_TRAINERS: dict[str, Callable[[Problem, int], Trainer]] = {
    "bm_fast": BmFastUpdate,
    "torch": TorchUpdate,
    "torch-compile": lambda problem, batch: TorchUpdate(problem, batch, compiled=True),
}
