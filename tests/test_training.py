"""The trainer: what it learns, in which order it sees data, and what its callbacks see."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bm_fast import RBM, Kind
from bm_fast.rbm import VISIBLE
from bm_fast.training import CD, PCD, Callback, Progress, Trainer
from bm_fast.training.estimators import Estimator
from enumeration import all_states, enumerate_gaussian

N_VISIBLE, N_HIDDEN = 8, 4


def patterns(n: int = 53, noise: float = 0.1, seed: int = 0) -> Tensor:
    """Noisy copies of three patterns, uint8 ``[n, 8]``."""
    g = torch.Generator().manual_seed(seed)
    prototypes = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0], [1, 0, 1, 0, 1, 0, 1, 0]])
    flips = torch.rand(n, N_VISIBLE, generator=g) < noise
    return (prototypes[torch.arange(n) % 3] ^ flips).to(torch.uint8)


def trainer_of(
    rbm: RBM | None = None, estimator: Estimator | None = None, rate: float = 0.05, **settings: Any
) -> Trainer:
    rbm = RBM(N_VISIBLE, N_HIDDEN, seed=1) if rbm is None else rbm
    settings = {"batch_size": 10, **settings}
    return Trainer(rbm, SGD(rbm.parameters(), lr=rate, momentum=0.5), estimator or PCD(20), **settings)


def mean_log_likelihood(rbm: RBM, v: Tensor) -> float:
    """Exact, from free energies of all visible states (Bernoulli)."""
    log_z = torch.logsumexp(-rbm.free_energy(all_states(rbm.n_visible)), 0)
    return float((-rbm.free_energy(v) - log_z).mean())


class Record(Callback):
    """Collects what a function of the trainer gives after each update, and the order of all calls."""

    def __init__(self, look: Callable[[Trainer], Any] = lambda trainer: None) -> None:
        self.look = look
        self.seen: list[Any] = []
        self.calls: list[str] = []

    def on_start(self, progress: Progress) -> None:
        self.calls.append("start")

    def on_update(self, progress: Progress) -> None:
        self.calls.append("update")
        self.seen.append(self.look(progress.trainer))

    def on_epoch(self, progress: Progress) -> None:
        self.calls.append("epoch")

    def on_end(self, progress: Progress) -> None:
        self.calls.append(progress.outcome)


def last_batch(trainer: Trainer) -> Tensor:
    assert trainer.last_batch is not None
    return trainer.last_batch.clone()


def assert_same_parameters(a: RBM, b: RBM) -> None:
    for (name, p), (_, q) in zip(a.named_parameters(), b.named_parameters(), strict=True):
        assert torch.equal(p, q), name


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [CD(1), CD(3), PCD(20, 1), PCD(7, 2)], ids=str)
@pytest.mark.parametrize("centred", [False, True])
def test_learning_raises_the_exact_likelihood(estimator: Estimator, centred: bool) -> None:
    data = patterns()
    trainer = trainer_of(estimator=estimator, rate=0.1, centred=centred, seed=2)
    before = mean_log_likelihood(trainer.model, data)
    trainer.fit(data, 25)
    after = mean_log_likelihood(trainer.model, data)
    assert before == pytest.approx(-N_VISIBLE * math.log(2), abs=0.05)
    assert after > before + 0.9  # independent units with the right means would gain 0.35


def test_learning_a_gaussian_machine() -> None:
    """Two clusters: training finds means, variance and both modes, by the exact likelihood."""
    g = torch.Generator().manual_seed(0)
    side = torch.randint(2, (60, 1), generator=g).float() * 2 - 1
    data = 2 * side + 0.5 * torch.randn(60, 3, generator=g)
    rbm = RBM(3, 2, Kind.GAUSSIAN, seed=1)
    rbm.initialise_biases(data)

    def likelihood() -> float:
        return float(-rbm.free_energy(data).mean()) - enumerate_gaussian(rbm.machine()).log_z

    before = likelihood()
    trainer = trainer_of(rbm, CD(2), rate=0.02)
    assert trainer.binarise == "none"
    trainer.fit(data, 40)
    assert likelihood() > before + 1.0  # 1.0 nat is what a product of normals cannot reach


def test_grey_data_are_learnt_as_probabilities() -> None:
    """Visible means of a trained machine approach the grey levels."""
    grey = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9, 0.2, 0.8, 0.4]).expand(50, -1).contiguous()
    trainer = trainer_of(rate=0.2)
    trainer.fit(grey, 40)
    states = all_states(N_VISIBLE)
    p = torch.softmax(-trainer.model.free_energy(states), 0)
    assert (p @ states.double() - grey[0]).abs().max().item() < 0.12  # binomial noise of 50 draws: 0.07


def test_weight_decay_is_the_optimisers() -> None:
    """One update by hand: torch.optim sees the gradient in .grad and its own groups."""
    data = patterns(10)
    rbm = RBM(N_VISIBLE, N_HIDDEN, seed=1, weight_scale=0.3)
    groups = [
        {"params": [rbm.weight], "weight_decay": 0.5},
        {"params": [rbm.visible_bias, rbm.hidden_bias], "weight_decay": 0.0},
    ]
    start = {name: p.detach().clone() for name, p in rbm.named_parameters()}
    Trainer(rbm, SGD(groups, lr=0.1), CD(1), batch_size=10).fit(data, 1)
    for name, p in rbm.named_parameters():
        assert p.grad is not None
        decay = 0.5 if name == "weight" else 0.0
        torch.testing.assert_close(p.detach(), start[name] - 0.1 * (p.grad + decay * start[name]))


# --- batches ----------------------------------------------------------------------------------------------------------


def test_an_epoch_has_every_row_once_in_an_order_of_its_own() -> None:
    data = all_states(N_VISIBLE)[:53].contiguous()
    orders = []
    for estimator, batch_size in ((PCD(5), 10), (CD(2), 10), (PCD(5), 17)):
        record = Record(last_batch)
        trainer_of(estimator=estimator, rate=0, batch_size=batch_size, seed=3, callbacks=[record]).fit(data, 2)
        orders.append(torch.cat(record.seen))
        assert [len(batch) for batch in record.seen[: len(record.seen) // 2]][-1] == 53 % batch_size
    assert all(torch.equal(order, orders[0]) for order in orders)
    first, second = orders[0].split(53)
    for epoch in (first, second):
        assert torch.equal(epoch.unique(dim=0), data.unique(dim=0))
    assert not torch.equal(first, second)
    assert not torch.equal(first, data)


def test_the_ragged_last_batch_is_divided_by_its_own_size() -> None:
    data = patterns(23)
    trainer = trainer_of(estimator=PCD(7), rate=0, centred=False)
    trainer.fit(data, 1)
    assert len(last_batch(trainer)) == 3
    rbm = trainer.model
    expected = {}
    for sign, rows in ((-1, last_batch(trainer)), (1, trainer.chains.layers[VISIBLE])):
        means = rbm.hidden_means(rows)
        for name, term in (("weight", rows.float().T @ means), ("visible_bias", rows.float().sum(0))):
            expected[name] = expected.get(name, 0) + sign * term / len(rows)
    for name, value in expected.items():
        torch.testing.assert_close(rbm.get_parameter(name).grad, value, rtol=1e-5, atol=1e-6)


def test_fewer_rows_than_a_batch() -> None:
    trainer = trainer_of(batch_size=100)
    trainer.fit(patterns(7), 3)
    assert (trainer.epoch, trainer.update) == (3, 3)


def test_binarisation_depends_on_row_and_epoch_only() -> None:
    """Rows with ids in their first columns, grey in the rest: the same bits whatever the batch size and the order."""
    n = 32
    ids = all_states(5).float()
    data = torch.cat((ids, torch.full((n, 3), 0.5)), 1)

    def drawn(batch_size: int, epochs: int) -> dict[int, list[int]]:
        record = Record(last_batch)
        trainer_of(rate=0, batch_size=batch_size, seed=4, callbacks=[record]).fit(data, epochs)
        rows = torch.cat(record.seen)[-n:]
        return {int((row[:5] << torch.arange(5)).sum()): row[5:].tolist() for row in rows}

    assert drawn(10, 1) == drawn(32, 1) == drawn(7, 1)
    assert drawn(10, 2) == drawn(7, 2)
    assert drawn(10, 1) != drawn(10, 2)


def test_zeros_and_ones_are_the_same_in_every_form() -> None:
    data = patterns()
    trainers = []
    for train, binarise in ((data, "dynamic"), (data.float(), "dynamic"), (data.float().numpy(), "none")):
        trainer = trainer_of(binarise=binarise)
        trainer.fit(train, 2)
        trainers.append(trainer)
    for trainer in trainers[1:]:
        assert_same_parameters(trainer.model, trainers[0].model)


def test_a_loader_gives_its_own_batches() -> None:
    data = patterns(25)
    for loader in (
        DataLoader(TensorDataset(data, torch.arange(25)), batch_size=10),
        DataLoader(data, batch_size=10),  # type: ignore[arg-type]
    ):
        record = Record(last_batch)
        trainer = trainer_of(rate=0, callbacks=[record])
        trainer.fit(loader, 2)
        assert torch.equal(torch.cat(record.seen), torch.cat((data, data)))
        assert (trainer.epoch, trainer.update) == (2, 6)


class Stream(IterableDataset[Tensor]):
    """Rows without a known length."""

    def __iter__(self) -> Any:
        return iter(patterns(12).float())


def test_a_loader_without_a_length() -> None:
    trainer = trainer_of()
    trainer.fit(DataLoader(Stream(), batch_size=5), 2)
    assert (trainer.epoch, trainer.update) == (2, 6)


def test_epochs_are_counted_over_calls() -> None:
    whole, parts = trainer_of(), trainer_of()
    whole.fit(patterns(), 4)
    parts.fit(patterns(), 1)
    parts.fit(patterns(), 4)
    parts.fit(patterns(), 3)
    assert parts.epoch == 4
    assert_same_parameters(whole.model, parts.model)


def test_the_scheduler_steps_after_each_epoch() -> None:
    rates = []
    rbm = RBM(N_VISIBLE, N_HIDDEN)
    optimizer = SGD(rbm.parameters(), lr=0.8)
    record = Record(lambda trainer: rates.append(trainer.optimizer.param_groups[0]["lr"]))
    Trainer(rbm, optimizer, PCD(5), 30, scheduler=StepLR(optimizer, 1, 0.5), callbacks=[record]).fit(patterns(), 3)
    assert rates == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]


def test_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(1)
    first = trainer_of()
    before = torch.get_rng_state()
    first.fit(patterns().float(), 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = trainer_of()
    second.fit(patterns().float(), 2)
    assert_same_parameters(first.model, second.model)


# --- callbacks --------------------------------------------------------------------------------------------------------


def test_callbacks_are_called_in_order_and_at_the_end_of_everything() -> None:
    record = Record()
    trainer_of(batch_size=30, callbacks=[record]).fit(patterns(), 2)
    assert record.calls == ["start", *["update", "update", "epoch"] * 2, "done"]


@pytest.mark.parametrize("when", ["on_update", "on_epoch"])
def test_a_callback_can_end_training(when: str) -> None:
    class Stop(Callback):
        pass

    def stop(_: Callback, progress: Progress) -> None:
        progress.stop_reason = "enough"

    setattr(Stop, when, stop)
    record = Record()
    trainer = trainer_of(batch_size=30, callbacks=[Stop(), record])
    trainer.fit(patterns(), 5)
    assert record.calls[-1] == "stopped"
    assert (trainer.epoch, trainer.update) == ((0, 1) if when == "on_update" else (1, 2))


def test_errors_reach_callbacks_and_caller() -> None:
    record = Record(lambda trainer: 1 / (2 - trainer.update))
    with pytest.raises(ZeroDivisionError):
        trainer_of(callbacks=[record]).fit(patterns(), 5)
    assert record.calls == ["start", "update", "update", "failed"]


def test_the_free_energy_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    """On evenly spread rows where there are many: here every second row of the training data."""
    monkeypatch.setattr("bm_fast.training.trainer.GAP_ROWS", 30)
    train, valid = patterns(40), patterns(30, seed=9)
    gaps: list[float] = []

    class Gap(Callback):
        def on_epoch(self, progress: Progress) -> None:
            rbm = progress.trainer.model
            expected = rbm.free_energy(valid).mean() - rbm.free_energy(train[::2].contiguous()).mean()
            assert progress.metrics["free_energy_gap"] == pytest.approx(float(expected), abs=1e-9)
            gaps.append(float(expected))

    trainer_of(callbacks=[Gap()]).fit(train, 3, validation=valid.numpy())
    assert len(gaps) == 3


def test_the_free_energy_gap_of_a_loader_uses_the_last_batch() -> None:
    metrics: dict[str, float] = {}

    class Keep(Callback):
        def on_epoch(self, progress: Progress) -> None:
            metrics.update(progress.metrics)

    trainer = trainer_of(callbacks=[Keep()])
    valid = patterns(30, seed=9)
    trainer.fit(DataLoader(TensorDataset(patterns(25)), batch_size=10), 1, validation=valid)
    rbm = trainer.model
    expected = rbm.free_energy(valid).mean() - rbm.free_energy(patterns(25)[20:]).mean()
    assert metrics["free_energy_gap"] == pytest.approx(float(expected), abs=1e-9)
