"""Up-down learning of belief nets: gradients against enumeration, resuming, Ctrl-C, divergence, errors by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from belief_exact import Truth, bernoulli_log_p, dbn, enumerate_dbn
from bm_fast import DBM, DBN, RBM, Kind
from bm_fast.checkpoints import CheckpointError
from bm_fast.estimation import exact_dbn_log_likelihood, exact_log_z
from bm_fast.tempering import Tempering
from bm_fast.training import (
    CD,
    PCD,
    Callback,
    Checkpoint,
    History,
    PersistentChains,
    Progress,
    Trainer,
    TrainingError,
    UpDown,
    pretrain_dbn,
)
from bm_fast.training.updown import DBNLearner
from enumeration import all_states
from test_training_deep import bars

N_ROWS = 40_000


def on_grid(model: DBN) -> DBN:
    """Weights rounded so that the float parameters are those that are sampled."""
    with torch.no_grad():
        for weight in (*model.generative_weights, *model.recognition_weights, model.top.weight):
            weight.copy_((weight * 2**10).round() / 2**10)
    return model


def drawn(truth: Truth, chances: Tensor, n: int) -> tuple[Tensor, ...]:
    return truth.layers(torch.multinomial(chances, n, replacement=True, generator=torch.Generator().manual_seed(5)))


def log_joint(p: dict[str, Tensor], layers: list[Tensor]) -> Tensor:
    """log of Z p(v, h¹ … hᴸ) of each state, differentiable in the generative parameters; float64."""
    total = (
        ((layers[-2] @ p["top.weight"]) * layers[-1]).sum(1)
        + layers[-2] @ p["top.visible_bias"]
        + layers[-1] @ p["top.hidden_bias"]
    )
    for i in range(len(layers) - 2):
        fields = layers[i + 1] @ p[f"generative_weights.{i}"].T + p[f"generative_biases.{i}"]
        total = total + bernoulli_log_p(layers[i], fields)
    return total


def log_recognition(p: dict[str, Tensor], layers: list[Tensor]) -> Tensor:
    """log q of the hidden layers below the top one, given v."""
    total = torch.zeros(len(layers[0]), dtype=torch.float64)
    for i in range(1, len(layers) - 1):
        fields = layers[i - 1] @ p[f"recognition_weights.{i - 1}"] + p[f"recognition_biases.{i - 1}"]
        total = total + bernoulli_log_p(layers[i], fields)
    return total


@pytest.mark.parametrize("units", [(4, 3, 3), (3, 3, 2, 2)])
def test_gradient_is_that_of_wake_top_and_sleep(units: tuple[int, ...]) -> None:
    """Against autograd of the enumerated expectations, with chains that start at exact draws.

    A statistic of 0/1 units over 40,000 rows has a standard error of at most 0.0025 in each phase: 5 of them.
    """
    model = on_grid(dbn(units))
    truth = enumerate_dbn(model)
    data = torch.rand(2 ** units[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data /= data.sum()
    wake = data[truth.visible] * truth.log_q.exp()  # v from the data, h from q; the top layer from its posterior
    learner = DBNLearner(model, UpDown(PCD(N_ROWS, 2)), N_ROWS, seed=3, centred=False)
    learner.batch(N_ROWS).copy_(drawn(truth, wake, N_ROWS)[0])
    for state, exact in zip(learner.chains.layers, drawn(truth, truth.log_p.exp(), N_ROWS)[-2:], strict=True):
        state.copy_(exact)
    learner.fill_gradient(learner.snapshot(), N_ROWS)

    p = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    layers = list(truth.states.double().split(list(units), 1))
    top = all_states(sum(units[-2:])).double().split(list(units[-2:]), 1)
    log_z = torch.logsumexp(log_joint(p, list(top)), 0)
    wake_loss = -(wake @ log_joint(p, layers) - log_z)
    sleep_loss = -(truth.log_p.exp() @ log_recognition(p, layers))
    (wake_loss + sleep_loss).backward()
    compared = 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert p[name].grad is not None
        torch.testing.assert_close(parameter.grad.double(), p[name].grad, rtol=0, atol=0.0125)
        compared += int((p[name].grad.abs() > 0.0125).sum())
    assert compared > 20, "gradients too small to be told from nothing"


def test_dreams_of_cd_begin_at_the_data() -> None:
    """With CD the sleep phase follows from the states that CD has left, not from chains of its own."""
    model = on_grid(dbn((4, 3, 3)))
    rows = all_states(4).repeat(50, 1)
    learner = DBNLearner(model, UpDown(CD(1)), len(rows), seed=3, centred=False)
    learner.batch(len(rows)).copy_(rows)
    learner.fill_gradient(learner.snapshot(), len(rows))
    assert torch.equal(learner._sleep.layers[1], learner.chains.layers[0])
    assert torch.equal(learner._top.batch(len(rows)), learner._wake.layers[1])


def test_precision_gradient_of_gaussian_units() -> None:
    model = dbn((3, 4, 2), sd=0.3, visible=Kind.GAUSSIAN)
    v = 2 * torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    learner = DBNLearner(model, UpDown(CD(1)), 200, seed=0, centred=True)
    learner.batch(200).copy_(v)
    learner.fill_gradient(learner.snapshot(), 200)
    assert model.log_precision is not None
    h = learner._wake.layers[1].double()
    p = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    precision = p["log_precision"].exp()
    means = (h @ p["generative_weights.0"].T + p["generative_biases.0"]) / precision
    loss = -torch.distributions.Normal(means, precision.rsqrt()).log_prob(v.double()).sum(1).mean()
    loss.backward()
    for name in ("log_precision", "generative_weights.0", "generative_biases.0"):
        grad = model.get_parameter(name).grad
        assert grad is not None
        torch.testing.assert_close(grad.double(), p[name].grad, rtol=1e-3, atol=2e-3)


# --- training ---------------------------------------------------------------------------------------------------------


def pretrained(epochs: int = 30, **settings: object) -> DBN:
    return pretrain_dbn((9, 6, 4), bars(), (epochs, epochs), batch_size=20, weight_scale=0.1, **settings)  # type: ignore[arg-type]


def mean_log_p(model: DBN) -> float:
    return float(exact_dbn_log_likelihood(model, bars(6).to(torch.uint8), exact_log_z(model.top)).mean())


def test_a_greedy_stack_learns_and_fine_tuning_improves_it() -> None:
    """Independent units have -5.7 nats, six patterns -1.79 at best."""
    model = pretrained()
    greedy = mean_log_p(model)
    assert greedy > -5.2
    history = History()
    trainer = Trainer(
        model, SGD(model.parameters(), lr=0.1), UpDown(PCD(100, 5)), batch_size=20, seed=1, callbacks=[history]
    )
    trainer.fit(bars(), 40, validation=bars(60))
    assert mean_log_p(model) > max(greedy + 0.3, -4.0)
    assert "free_energy_gap" in history.rows[-1]
    assert 0 < trainer.reconstruction_error() < 0.3  # type: ignore[operator]
    assert not torch.equal(model.generative_weights[0], model.recognition_weights[0])


def test_greedy_levels_see_the_hidden_means_below() -> None:
    first, second = RBM(9, 6, seed=0, weight_scale=1.0), RBM(6, 4)
    first.initialise_biases(bars())
    second.initialise_biases(first.hidden_means(bars()))
    model = pretrain_dbn((9, 6, 4), bars(), (0, 0), weight_scale=1.0, estimator=PCD(10))
    torch.testing.assert_close(model.top.visible_bias, second.visible_bias)
    torch.testing.assert_close(model.generative_weights[0], first.weight)


ESTIMATORS = [CD(2), PCD(7, 2), PersistentChains(5, Tempering(3))]


class At(Callback):
    """Does something once, after a given update."""

    def __init__(self, update: int, act: object) -> None:
        self.update, self.act = update, act

    def on_update(self, progress: Progress) -> None:
        if progress.trainer.update == self.update:
            self.act(progress.trainer)  # type: ignore[operator]


def started(estimator: UpDown, callbacks: list[Callback] | None = None, visible: Kind = Kind.BERNOULLI) -> Trainer:
    model = dbn((9, 6, 4), sd=0.1, visible=visible)
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.5)
    return Trainer(model, optimizer, estimator, batch_size=40, seed=4, callbacks=callbacks or [])


def resumed(path: Path, visible: Kind = Kind.BERNOULLI, callbacks: list[Callback] | None = None) -> Trainer:
    model = DBN((9, 6, 4), visible, seed=77)
    return Trainer.resume(path, model, SGD(model.parameters(), lr=9.0, momentum=0.1), callbacks=callbacks or [])


def assert_same(a: Trainer, b: Trainer) -> None:
    for (name, p), (_, q) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        assert torch.equal(p, q), name
    assert all(torch.equal(x, y) for x, y in zip(a.chains.layers, b.chains.layers, strict=True))
    assert (a.epoch, a.batch, a.update) == (b.epoch, b.batch, b.update)


@pytest.mark.parametrize("top", ESTIMATORS, ids=lambda top: type(top).__name__)
@pytest.mark.parametrize("update", [1, 10, 13])
def test_resuming_anywhere_gives_the_same_bits(top: CD | PCD | PersistentChains, update: int, tmp_path: Path) -> None:
    path, grey = tmp_path / "run.safetensors", 0.1 + 0.8 * bars(390)  # the last batch of an epoch is a ragged one
    unbroken = started(UpDown(top), [At(update, lambda trainer: trainer.save(path))])
    unbroken.fit(grey, 3, validation=grey[:30])
    again = resumed(path)
    assert again.update == update
    assert isinstance(again.estimator, UpDown)
    assert type(again.estimator.top) is type(top)
    again.fit(grey, 3, validation=grey[:30])
    assert_same(again, unbroken)
    assert DBN.load(path).units == (9, 6, 4)


def test_gaussian_nets_resume_too(tmp_path: Path) -> None:
    path, data = tmp_path / "run.safetensors", torch.randn(100, 9, generator=torch.Generator().manual_seed(0))
    unbroken = started(UpDown(PCD(6)), [At(4, lambda trainer: trainer.save(path))], Kind.GAUSSIAN)
    unbroken.fit(data, 2, validation=data[:10])
    again = resumed(path, Kind.GAUSSIAN)
    again.fit(data, 2, validation=data[:10])
    assert_same(again, unbroken)


def test_ctrl_c_saves_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    unbroken = started(UpDown())
    unbroken.fit(bars(), 2)
    stopped = started(UpDown(), [Checkpoint(path), At(13, lambda _: os.kill(os.getpid(), signal.SIGINT))])
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(bars(), 2)
    assert stopped.update == 13
    again = resumed(path)
    again.fit(bars(), 2)
    assert_same(again, unbroken)


def test_threads_change_nothing() -> None:
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(started(UpDown(PCD(20))))
        results[-1].fit(bars(), 2)
    assert_same(*results)


def test_divergence_stops_and_names_parameter_and_update(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    trainer = started(UpDown(), [Checkpoint(path)])
    trainer.fit(bars(), 1)
    good = path.read_bytes()
    trainer.optimizer.param_groups[0]["lr"] = 1e38
    with pytest.raises(TrainingError, match=r"after update \d+: .*(weight|bias)"):
        trainer.fit(bars(), 3)
    assert path.read_bytes() == good


def test_weights_beyond_the_grid_stop_training() -> None:
    trainer = started(UpDown())
    with torch.no_grad():
        trainer.model.get_parameter("recognition_weights.0")[2, 1] = 1e6
    with pytest.raises(TrainingError, match=r"after update 0: recognition weights\[0\]: expected weights of at most"):
        trainer.fit(bars(), 1)


def test_only_chosen_parameters_learn() -> None:
    model = dbn((9, 6, 4), sd=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    generative = [p for name, p in model.named_parameters() if not name.startswith("recognition")]
    Trainer(model, SGD(generative, lr=0.1), UpDown(CD(1)), batch_size=40).fit(bars(), 1)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("recognition"), name


def test_a_file_of_another_net_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    started(UpDown()).save(path)
    other = DBN((9, 5, 4))
    with pytest.raises(CheckpointError, match="expected model"):
        Trainer.resume(path, other, SGD(other.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: UpDown(CD(1, up=2.0)), "top: expected CD without scaled inputs"),
        (lambda: UpDown("CD"), "top: expected CD, PCD or PersistentChains, got str"),  # type: ignore[arg-type]
        (
            lambda: Trainer(m := dbn(), SGD(m.parameters(), lr=1), PCD()),
            "MeanFieldPCD for a DBM and UpDown for a DBN, got PCD for DBN",
        ),
        (lambda: Trainer(m := DBM((4, 3)), SGD(m.parameters(), lr=1), UpDown()), "got UpDown for DBM"),
        (lambda: started(UpDown()).fit(torch.zeros(3, 8), 1), r"train: expected shape \[n, 9\]"),
        (lambda: started(UpDown()).fit(torch.full((3, 9), float("nan")), 1), "train: expected values from 0 to 1"),
        (lambda: pretrain_dbn((9, 6), bars(), (1,)), "units: expected .* at least two hidden layers"),
        (lambda: pretrain_dbn((9, 6, 4), bars(), (1,)), "epochs: expected one number for each RBM of a stack"),
        (lambda: pretrain_dbn((9, 6, 0), bars(), (1, 1)), "hidden2"),
        (lambda: pretrain_dbn((8, 6, 4), bars(), (1, 1)), r"data: expected shape \[n, 8\]"),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
