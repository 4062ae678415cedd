"""The stack of modified RBMs: its conditionals, its stitching, what it is worth, errors by name."""

from __future__ import annotations

import pytest
import torch

from bm_fast import RBM, Kind
from bm_fast.chains import Chains
from bm_fast.estimation import exact_log_z
from bm_fast.training import CD, History, MeanFieldPCD, Trainer
from bm_fast.training.gradient import Rows
from bm_fast.training.pretraining import lift, pretrain, stack_estimator, stitch
from test_dbm import log_sums
from test_training_deep import bars


def rbm(n_visible: int, n_hidden: int, seed: int, visible: Kind = Kind.BERNOULLI) -> RBM:
    model = RBM(n_visible, n_hidden, visible, seed=seed, weight_scale=0.5)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for bias in (model.visible_bias, model.hidden_bias):
            bias.copy_(torch.randn(bias.shape, generator=generator))
    return model


def test_inputs_are_doubled_where_the_deep_machine_has_a_second_neighbour() -> None:
    estimators = [stack_estimator(level, 3, sweeps=2) for level in range(3)]
    assert [(e.up, e.down, e.sweeps) for e in estimators] == [(2, 1, 2), (2, 2, 2), (1, 2, 2)]
    assert stack_estimator(0, 1) == CD(1)


@pytest.mark.parametrize(("up", "down"), [(2.0, 1.0), (1.0, 2.0)])
def test_chains_follow_the_scaled_conditionals(up: float, down: float, backend: str) -> None:
    """Means of the data and, over 4,000 chains from one state, the visible units they go to; 5 standard errors."""
    model, n = rbm(3, 2, seed=1), 4000
    rows = Rows(model, n, n)
    block = rows.block(n, n)
    v = torch.tensor([1, 0, 1], dtype=torch.uint8)
    block.data.copy_(v)
    machine = model.machine()
    start = machine.chains(n, seed=2)
    CD(1, up, down).run(machine, Chains((rows.model_visible, start.layers[1]), 2), block)
    hidden = torch.sigmoid(up * v.float() @ model.weight + model.hidden_bias).detach()
    torch.testing.assert_close(block.data_means, hidden.expand(n, -1), rtol=0, atol=1e-3)
    states = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    p = torch.stack([torch.where(h > 0, hidden, 1 - hidden).prod() for h in states])
    expected = (p[:, None] * torch.sigmoid(down * states @ model.weight.T + model.visible_bias)).sum(0).detach()
    error = (expected * (1 - expected) / n).sqrt()
    assert bool(((block.visible[n:].float().mean(0) - expected).abs() < 5 * error).all())


def test_half_of_both_fields_makes_that_of_the_stitched_machine() -> None:
    rbms = [rbm(4, 3, 1, Kind.GAUSSIAN), rbm(3, 5, 2), rbm(5, 2, 3)]
    assert rbms[0].log_precision is not None
    with torch.no_grad():
        rbms[0].log_precision.copy_(torch.tensor([0.5, -0.2, 0.1, 1.0]))
    dbm = stitch(rbms)
    assert dbm.log_precision is not None
    assert torch.equal(dbm.log_precision, rbms[0].log_precision)
    assert dbm.units == (4, 3, 5, 2)
    assert dbm.visible is Kind.GAUSSIAN
    h1, h2, h3 = torch.rand(1, 3), torch.rand(1, 5), torch.rand(1, 2)
    from_below = 2 * h1 @ rbms[1].weight + rbms[1].hidden_bias
    from_above = 2 * h3 @ rbms[2].weight.T + rbms[2].visible_bias
    field = h1 @ dbm.weights[1] + h3 @ dbm.weights[2].T + dbm.biases[2]
    torch.testing.assert_close(field, (from_below + from_above) / 2)
    torch.testing.assert_close(h2 @ dbm.weights[2] + dbm.biases[3], h2 @ rbms[2].weight + rbms[2].hidden_bias)
    assert torch.equal(dbm.biases[0], rbms[0].visible_bias)


def test_lifting_doubles_the_input() -> None:
    model = rbm(4, 3, 1)
    v = torch.rand(5, 4)
    expected = torch.sigmoid(2 * v @ model.weight + model.hidden_bias)
    torch.testing.assert_close(lift(model, stack_estimator(0, 2), v), expected.detach(), rtol=0, atol=1e-3)


def test_the_next_rbm_begins_at_the_hidden_units_with_doubled_inputs() -> None:
    """Untrained, the second RBM has the visible biases of its data, of which the stitched machine has half."""
    first, second = RBM(9, 6, seed=0, weight_scale=1.0), RBM(6, 4)
    first.initialise_biases(bars())
    second.initialise_biases(lift(first, stack_estimator(0, 2), bars()))
    dbm = pretrain((9, 6, 4), bars(), (0, 0), weight_scale=1.0)
    torch.testing.assert_close(dbm.biases[1], second.visible_bias / 2)


def test_a_pretrained_machine_knows_the_data_and_learns_on() -> None:
    """Independent units have -5.7 nats, six patterns -1.79 at best."""
    histories = [History(), History()]
    dbm = pretrain((9, 6, 4), bars(), (40, 40), batch_size=20, callbacks=lambda level: (histories[level],))
    assert [len(history.rows) for history in histories] == [40, 40]
    numbers = bars(6).long() @ (1 << torch.arange(9))
    before = float((log_sums(dbm)[1][numbers] - exact_log_z(dbm)).mean())
    assert before > -5.5
    trainer = Trainer(dbm, torch.optim.SGD(dbm.parameters(), lr=0.1, momentum=0.5), MeanFieldPCD(100), batch_size=20)
    trainer.fit(bars(), 40)
    assert float((log_sums(dbm)[1][numbers] - exact_log_z(dbm)).mean()) > max(before, -3.5)


def test_wrong_layers_and_epochs_are_found_before_anything_is_trained() -> None:
    history = History()
    for units, epochs, message in (((9, 6, 0), (1, 1), "hidden2"), ((9, 6, 4), (1, -1), "epochs: .* got -1")):
        with pytest.raises(ValueError, match=message):
            pretrain(units, bars(), epochs, callbacks=lambda level: (history,))
    assert not history.rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stitch([]), "rbms: expected at least one RBM, got none"),
        (
            lambda: stitch([RBM(4, 3), RBM(5, 2)]),
            r"rbms\[1\]: expected 3 Bernoulli visible units, as many as rbms\[0\] has hidden ones, got 5 Bernoulli",
        ),
        (lambda: stitch([RBM(4, 3), RBM(3, 2, Kind.GAUSSIAN)]), r"rbms\[1\]: .* got 3 Gaussian ones"),
        (lambda: stack_estimator(2, 2), "level: expected 0 to 1 in a stack of 2, got 2"),
        (lambda: pretrain((9, 6, 4), bars(), (1,)), r"epochs: expected one number for each RBM .* 3 layers, got \[1\]"),
        (lambda: pretrain((8, 6), bars(), (1,)), r"data: expected shape \[n, 8\]"),
        (lambda: CD(1, up=0.0), "up: expected a finite factor above 0, got 0.0"),
        (
            lambda: Trainer(m := RBM(3, 2), torch.optim.SGD(m.parameters(), lr=1), CD(1, up=2.0)),
            "centred: expected False for CD with scaled inputs",
        ),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
