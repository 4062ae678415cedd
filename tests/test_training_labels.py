"""Learning with labels: gradients against enumeration, unknown labels, CD, pretraining, resuming, errors by name."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from bm_fast import DBM, RBM
from bm_fast.checkpoints import CheckpointError
from bm_fast.data import load
from bm_fast.estimation import exact_log_z
from bm_fast.model import BoltzmannModel
from bm_fast.training import CD, Checkpoint, MeanFieldPCD, Trainer, robbins_monro
from bm_fast.training.deep import DBMLearner, labelled_rbm_learner
from bm_fast.training.pretraining import lift, pretrain, stack_estimator, stitch
from enumeration import all_states, enumerate_machine, states_of
from test_labels import K, labelled
from test_pretraining import rbm
from test_training_deep import bars, expected_energy, on_grid

N_CHAINS = 40_000


def pattern_labels(n: int = 400, known: float = 1.0) -> Tensor:
    """Which of three pairs of a row and a column each row of ``bars`` shows; -1 for the rows beyond a share of each."""
    labels = torch.arange(n) % 6 % K
    return torch.where(torch.arange(n) % 7 < 7 * known, labels, -1)


def filled(model: DBM, v: Tensor, labels: Tensor, estimator: MeanFieldPCD) -> DBMLearner:
    """A learner after one gradient, its chains having started at exact draws."""
    learner = DBMLearner(model, estimator, len(v), seed=3, centred=False)
    drawn = enumerate_machine(model.machine()).draw(estimator.n_chains, torch.Generator().manual_seed(5))
    for state, start in zip(learner.chains.layers, drawn, strict=True):
        state.copy_(start)
    learner.batch(len(v)).copy_(v)
    learner.take_labels(labels)
    learner.fill_gradient(model.machine(), len(v))
    return learner


def log_z_of(p: dict[str, Tensor], model: DBM) -> Tensor:
    states = states_of(model.graph).double().split([layer.units for layer in model.graph.layers], 1)
    return torch.logsumexp(-expected_energy(p, list(states)), 0)


@pytest.mark.parametrize("known", ["all", "some", "none"])
@pytest.mark.parametrize("units", [(4, 3), (4, 3, 3)])
def test_gradient_is_that_of_the_bound_of_the_joint_likelihood(units: tuple[int, ...], known: str) -> None:
    """Against autograd of F_Q + log Z; statistics of 0/1 units have a standard error below 0.0025 here: 5 of them.

    With one hidden layer and known labels it is the gradient of the exact log p(v, y).
    """
    model = on_grid(labelled(units))
    v = all_states(4)
    labels = torch.arange(16) % K
    if known != "all":
        labels = torch.full((16,), -1) if known == "none" else torch.where(torch.arange(16) % 3 == 1, -1, labels)
    filled(model, v, labels, MeanFieldPCD(N_CHAINS, sweeps=2, iterations=300, tolerance=1e-6))
    p = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    expected = log_z_of(p, model)
    for group in (labels >= 0, labels < 0):
        if not bool(group.any()):
            continue
        given = labels[group] if bool((labels[group] >= 0).all()) else None
        means = [layer.double() for layer in model.mean_field(v[group], 300, 1e-6, labels=given).layers]
        expected = expected + expected_energy(p, means).sum() / 16
    expected.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), p[name].grad, rtol=0, atol=0.0125)
    if len(units) == 2 and known == "all":
        q = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
        y = torch.eye(K, dtype=torch.float64)[labels]
        fields = q["biases.1"] + v.double() @ q["weights.0"] + y @ q["weights.1"].T
        free = -(v.double() @ q["biases.0"]) - y @ q["biases.2"] - torch.nn.functional.softplus(fields).sum(1)
        (free.mean() + log_z_of(q, model)).backward()
        for name, value in q.items():
            torch.testing.assert_close(p[name].grad, value.grad, rtol=0, atol=1e-4)


def test_many_sweeps_of_cd_reach_the_exact_gradient() -> None:
    """From 20,000 rows 25 sweeps forget where they began; 5 standard errors of 0.0035 each, both phases."""
    model = on_grid(labelled((4, 3), sd=0.4))
    n = 20_000
    v, labels = all_states(4)[torch.arange(n) % 16].contiguous(), torch.arange(n) % K
    learner = labelled_rbm_learner(model, CD(25), n, seed=2, centred=False)
    learner.batch(n).copy_(v)
    learner.take_labels(labels)
    learner.fill_gradient(model.machine(), n)
    p = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    y = torch.eye(K, dtype=torch.float64)[labels]
    fields = p["biases.1"] + v.double() @ p["weights.0"] + y @ p["weights.1"].T
    free = -(v.double() @ p["biases.0"]) - y @ p["biases.2"] - torch.nn.functional.softplus(fields).sum(1)
    (free.mean() + log_z_of(p, model)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), p[name].grad, rtol=0, atol=0.0175)


def test_cd_begins_at_the_batch_and_doubles_the_visible_input_alone(backend: str) -> None:
    """Visible units and labels given one hidden state, over 6,000 chains; 5 standard errors."""
    model, n = labelled((4, 3)), 6000
    learner = labelled_rbm_learner(model, CD(1, down=2.0), n, seed=2, centred=False)
    v, y = torch.tensor([1, 0, 1, 1], dtype=torch.uint8), 2
    learner.batch(n).copy_(v)
    learner.take_labels(torch.full((n,), y))
    learner.fill_gradient(model.machine(), n)
    weight, label_weight = model.weights[0].detach(), model.weights[1].detach()
    hidden = torch.sigmoid(v.float() @ weight + label_weight[:, y] + model.biases[1].detach())
    states = all_states(3).float()
    p = torch.where(states > 0, hidden, 1 - hidden).prod(1)
    visible = torch.sigmoid(2 * states @ weight.T + model.biases[0].detach())
    labels = torch.softmax(states @ label_weight + model.biases[2].detach(), 1)
    for layer, means in ((0, visible), (2, labels)):
        expected = (p[:, None] * means).sum(0)
        error = (expected * (1 - expected) / n).sqrt()
        assert bool(((learner.chains.layers[layer].float().mean(0) - expected).abs() < 5 * error).all())


def test_chains_of_cd_begin_at_the_rows_of_smaller_batches_too() -> None:
    model = labelled((4, 3))
    learner = labelled_rbm_learner(model, CD(1), 5, seed=2, centred=False)
    rows = [all_states(4)[[3, 9]].clone(), torch.zeros(2, 3), torch.tensor([[0.2, 0.7, 0.1], [1.0, 0.0, 0.0]])]
    chains = model.chains(5, seed=0)
    learner._restart.begin(model.machine(), chains, rows)  # type: ignore[union-attr]
    assert torch.equal(chains.layers[0], rows[0][[0, 1, 0, 1, 0]])
    assert chains.layers[2].argmax(1).tolist() == [1, 0, 1, 0, 1]


# --- the trainer ------------------------------------------------------------------------------------------------------


def trained(
    epochs: int, callbacks: tuple[object, ...] = (), known: float = 1.0, units: tuple[int, ...] = (9, 10)
) -> tuple[DBM, Trainer]:
    model = DBM(units, seed=1, weight_scale=0.1, n_classes=K)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.5)
    trainer = Trainer(
        model,
        optimizer,
        MeanFieldPCD(60, sweeps=5),
        batch_size=20,
        seed=4,
        scheduler=robbins_monro(optimizer, 20),
        callbacks=callbacks,  # type: ignore[arg-type]
    )
    trainer.fit(bars(), epochs, validation=bars(60), labels=pattern_labels(known=known))
    return model, trainer


@pytest.mark.parametrize("known", [1.0, 0.5])
def test_training_learns_the_joint_distribution(known: float) -> None:
    """Six patterns with their class have log 1/6 = -1.79 at best; independent units have -6.8."""
    model, _ = trained(60, known=known)
    log_joint = -model.class_free_energies(bars(6))[torch.arange(6), pattern_labels(6)]
    assert (log_joint - exact_log_z(model)).mean() > -2.6
    assert torch.equal(model.predict(bars(6)), pattern_labels(6))


@pytest.mark.parametrize("known", [1.0, 0.5])
def test_resuming_gives_the_same_bits(known: float, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole, unbroken = trained(4, known=known, units=(9, 6, 4))
    trained(2, (Checkpoint(path),), known, (9, 6, 4))
    model = DBM((9, 6, 4), n_classes=K)
    optimizer = SGD(model.parameters(), lr=0.3, momentum=0.1)
    resumed = Trainer.resume(path, model, optimizer, robbins_monro(optimizer, 20))
    with pytest.raises(ValueError, match=r"train: expected an array .* with labels \(CRC-32 .*\), with which this"):
        resumed.fit(bars(), 4, labels=(pattern_labels(known=known) + 1) % K)
    resumed.fit(bars(), 4, validation=bars(60), labels=pattern_labels(known=known))
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(unbroken.chains.layers, resumed.chains.layers, strict=True):
        assert torch.equal(a, b)
    other = DBM((9, 6, 4), n_classes=K + 1)
    with pytest.raises(CheckpointError, match="expected model"):
        Trainer.resume(path, other, SGD(other.parameters(), lr=0.1))


def test_a_loader_brings_labels_in_its_batches() -> None:
    models = []
    for as_loader in (False, True):
        model = DBM((9, 6), seed=1, weight_scale=0.1, n_classes=K)
        trainer = Trainer(model, SGD(model.parameters(), lr=0.1), MeanFieldPCD(20), batch_size=60)
        if as_loader:
            trainer.fit(DataLoader(TensorDataset(bars(60), pattern_labels(60)), batch_size=60), 1)
        else:
            trainer.fit(bars(60).numpy(), 1, labels=pattern_labels(60).numpy())
        models.append(model)
    # one batch with the same rows in another order
    assert not torch.equal(models[0].weights[1], DBM((9, 6), seed=1, weight_scale=0.1, n_classes=K).weights[1])
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02)


# --- pretraining ------------------------------------------------------------------------------------------------------


def test_stitching_takes_the_labels_of_the_top_as_they_are() -> None:
    rbms, top = [rbm(5, 4, 1), rbm(4, 4, 2)], labelled((4, 3))
    dbm = stitch(rbms, top)
    assert dbm.units == (5, 4, 4, 3)
    assert dbm.n_classes == K
    assert torch.equal(dbm.weights[2], top.weights[0])
    assert torch.equal(dbm.weights[3], top.weights[1])
    assert torch.equal(dbm.biases[4], top.biases[2])
    assert torch.equal(dbm.biases[3], top.biases[1])
    torch.testing.assert_close(dbm.biases[2], (rbms[1].hidden_bias + top.biases[0]) / 2)
    alone = stitch([], top)
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), top.parameters(), strict=True))


def momentum(model: BoltzmannModel, rate: float = 0.2) -> SGD:
    return SGD(model.parameters(), lr=rate, momentum=0.5)


def test_pretraining_is_its_parts() -> None:
    units, data, labels = (9, 12, 8), bars(), pattern_labels()
    dbm = pretrain(units, data, (2, 2), labels=labels, n_classes=K, batch_size=40, optimizer=momentum, seed=2)
    bottom = RBM(9, 12, seed=2)
    bottom.initialise_biases(data)
    estimators = [stack_estimator(level, 2) for level in range(2)]
    Trainer(bottom, momentum(bottom), estimators[0], 40, seed=2, centred=False).fit(data, 2)
    lifted = lift(bottom, estimators[0], data)
    top = DBM((12, 8), seed=3, n_classes=K)
    top.initialise_biases(lifted)
    Trainer(top, momentum(top), estimators[1], 40, seed=3, centred=False).fit(lifted, 2, labels=labels)
    for a, b in zip(dbm.parameters(), stitch([bottom], top).parameters(), strict=True):
        assert torch.equal(a, b)
    assert pretrain((9, 4), data, (1,), labels=labels.numpy(), n_classes=K).units == (9, 4)


def test_a_pretrained_machine_classifies() -> None:
    labels = pattern_labels()
    dbm = pretrain((9, 12, 8), bars(), (30, 60), labels=labels, n_classes=K, batch_size=20, optimizer=momentum, seed=2)
    assert torch.equal(dbm.predict(bars(6)), pattern_labels(6))
    assert torch.equal(dbm.label_means(bars(6)).argmax(1), pattern_labels(6))


def test_an_rbm_with_labels_classifies_the_digits() -> None:
    """92 % of the validation images; guessing has 10 %, and 300 images a standard error of 1.6 %."""
    digits = load("digits")
    assert digits.valid is not None
    assert digits.valid_labels is not None
    rbm = pretrain(
        (64, 60),
        digits.train,
        (20,),
        labels=digits.train_labels,
        n_classes=10,
        batch_size=20,
        optimizer=partial(momentum, rate=0.1),
    )
    assert (rbm.predict(digits.valid) == digits.valid_labels).float().mean() > 0.87


# --- errors -----------------------------------------------------------------------------------------------------------


def fit(labels: object, model: DBM | RBM | None = None, data: object = None) -> None:
    model = DBM((9, 4), n_classes=K) if model is None else model
    estimator = CD() if isinstance(model, RBM) else MeanFieldPCD(10)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), estimator, batch_size=40)
    trainer.fit(bars(40) if data is None else data, 1, labels=labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit(None), r"labels: expected int64 \[40\], -1 where a class is unknown, got None"),
        (lambda: fit(torch.full((40,), -2)), r"labels: expected -1 \(unknown\) to 2, got -2 to -2"),
        (lambda: fit(torch.full((40,), K)), r"labels: expected -1 \(unknown\) to 2, got 3 to 3"),
        (lambda: fit(torch.zeros(40, dtype=torch.int32)), r"labels: expected int64 \[40\], got torch.int32 \[40\]"),
        (lambda: fit(np.zeros(39, dtype=np.int64)), r"labels: expected int64 \[40\], got int64 \[39\]"),
        (lambda: fit(pattern_labels(40), RBM(9, 4)), "labels: expected None for a model without labels, got Tensor"),
        (lambda: fit(pattern_labels(40), DBM((9, 4))), "labels: expected None for a model without labels, got Tensor"),
        (
            lambda: fit(pattern_labels(40), data=DataLoader(bars(40), batch_size=40)),
            "labels: expected None beside a DataLoader, whose batches have them",
        ),
        (
            lambda: fit(None, data=DataLoader(bars(40), batch_size=40)),
            "train: labels of batch 0: expected batches of values and labels for a model with 3 classes",
        ),
        (
            lambda: fit(None, data=DataLoader(TensorDataset(bars(40), pattern_labels(40) + 1), batch_size=40)),
            r"train: labels of batch 0: expected -1 \(unknown\) to 2, got 1 to 3",
        ),
        (
            lambda: Trainer(m := labelled((4, 3)), SGD(m.parameters(), lr=1), CD(up=2.0), centred=False),
            "up: expected 1 for an RBM with labels, got 2.0",
        ),
        (
            lambda: Trainer(m := labelled((4, 3)), SGD(m.parameters(), lr=1), CD(down=2.0)),
            "centred: expected False for CD with scaled inputs",
        ),
        (lambda: Trainer(m := labelled(), SGD(m.parameters(), lr=1), CD()), "estimator: expected .* got CD for DBM"),
        (lambda: stitch([rbm(4, 3, 1)], labelled((4, 3))), r"labelled: expected 3 Bernoulli visible units, as many as"),
        (lambda: stitch([], labelled()), r"labelled: expected one hidden layer and labels, got \(4, 3, 3\)"),
        (lambda: pretrain((9, 4), bars(), (1,), n_classes=K), "n_classes: expected a number beside labels, and only"),
        (lambda: pretrain((9, 4), bars(), (1,), labels=pattern_labels()), "n_classes: expected .* got None"),
        (
            lambda: pretrain((9, 6, 4), bars(), (1, 1), labels=pattern_labels(9), n_classes=K),
            r"labels: expected int64 \[400\], got torch.int64 \[9\]",
        ),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
