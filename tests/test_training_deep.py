"""Learning deep machines: gradients against enumeration, centring, sparsity, resuming, errors by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from bm_fast import DBM, RBM, Kind
from bm_fast.checkpoints import CheckpointError
from bm_fast.estimation import exact_log_z
from bm_fast.training import CD, Checkpoint, History, MeanFieldPCD, Trainer, TrainingError, robbins_monro
from bm_fast.training.deep import DBMLearner
from enumeration import all_states, enumerate_machine
from test_dbm import dbm, log_sums

N_CHAINS = 40_000


def on_grid(model: DBM) -> DBM:
    """Weights rounded so that the float parameters are the model that is sampled."""
    with torch.no_grad():
        for weight in model.weights:
            weight.copy_((weight * 2**10).round() / 2**10)
    for i, weight in enumerate(model.weights):
        assert torch.equal(model.machine().parameters.weight(i), weight.detach())
    return model


def expected_energy(p: dict[str, Tensor], layers: list[Tensor]) -> Tensor:
    """E of each case, differentiable in the parameters; float64."""
    total = torch.zeros(len(layers[0]), dtype=torch.float64)
    for i, layer in enumerate(layers):
        total = total - layer @ p[f"biases.{i}"]
    for i in range(len(layers) - 1):
        total = total - ((layers[i] @ p[f"weights.{i}"]) * layers[i + 1]).sum(1)
    return total


def filled(model: DBM, estimator: MeanFieldPCD, v: Tensor, centred: bool = False) -> DBMLearner:
    """A learner after one gradient, its chains having started at exact draws."""
    learner = DBMLearner(model, estimator, len(v), seed=3, centred=centred)
    truth = enumerate_machine(model.machine())
    drawn = truth.draw(estimator.n_chains, torch.Generator().manual_seed(5))
    for state, start in zip(learner.chains.layers, drawn, strict=True):
        state.copy_(start)
    learner.batch(len(v)).copy_(v)
    learner.fill_gradient(model.machine(), len(v))
    return learner


@pytest.mark.parametrize("units", [(5, 3), (4, 3, 3), (3, 3, 2, 2)])
def test_gradient_is_that_of_the_bound(units: tuple[int, ...]) -> None:
    """Against autograd of F_Q + log Z. A statistic of 0/1 units has a standard error of at most 0.0025 here: 5 of them.

    With one hidden layer mean field is exact, and the gradient is that of the exact likelihood.
    """
    model = on_grid(dbm(units))
    v = all_states(units[0])[1::3].contiguous()
    estimator = MeanFieldPCD(N_CHAINS, sweeps=2, iterations=200, tolerance=1e-6)
    filled(model, estimator, v)
    p = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
    means = [layer.double() for layer in model.mean_field(v, 200, 1e-6).layers]
    states = all_states(sum(units)).double()
    log_z = torch.logsumexp(-expected_energy(p, list(states.split(list(units), 1))), 0)
    (expected_energy(p, means).mean() + log_z).backward()
    if len(units) == 2:
        exact = {name: value.grad for name, value in p.items()}
        q = {name: value.detach().double().requires_grad_() for name, value in model.named_parameters()}
        h = all_states(units[1]).double()
        fields = q["biases.1"] + v.double() @ q["weights.0"]
        free = -(v.double() @ q["biases.0"]) - torch.nn.functional.softplus(fields).sum(1)
        log_zq = torch.logsumexp(
            h @ q["biases.1"] + torch.nn.functional.softplus(q["biases.0"] + h @ q["weights.0"].T).sum(1), 0
        )
        (free.mean() + log_zq).backward()
        for name, value in q.items():
            torch.testing.assert_close(exact[name], value.grad, rtol=0, atol=1e-4)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad.double(), p[name].grad, rtol=0, atol=0.0125)


def test_centred_gradient_is_a_step_in_the_centred_parameters() -> None:
    """With b' = b + Σ W c the loss has gradients g_W - c g_bᵀ - g_b cᵀ and g_b; the step is mapped back to (W, b)."""
    units = (4, 3, 2)
    model = dbm(units)
    v = all_states(4)
    estimator = MeanFieldPCD(50, sweeps=1, iterations=5)
    filled(model, estimator, v)
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    centred = filled(model, estimator, v, centred=True)
    offsets = centred.offsets
    assert all(bool((offset > 0).all()) for offset in offsets)
    biases = [plain[f"biases.{i}"].clone() for i in range(3)]
    for i in range(2):
        g = plain[f"weights.{i}"].clone()
        g -= torch.outer(offsets[i], plain[f"biases.{i + 1}"]) + torch.outer(plain[f"biases.{i}"], offsets[i + 1])
        torch.testing.assert_close(model.weights[i].grad, g, rtol=1e-4, atol=1e-6)
        biases[i] -= g @ offsets[i + 1]
        biases[i + 1] -= offsets[i] @ g
    for bias, expected in zip(model.biases, biases, strict=True):
        torch.testing.assert_close(bias.grad, expected, rtol=1e-4, atol=1e-6)


def test_precision_gradient_of_gaussian_units() -> None:
    model = dbm((3, 4, 2), sd=0.1, visible=Kind.GAUSSIAN)
    v = 2 * torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    learner = DBMLearner(model, MeanFieldPCD(4000, sweeps=3), 200, seed=0, centred=True)
    learner.batch(200).copy_(v)
    learner.fill_gradient(model.machine(), 200)
    assert model.log_precision is not None
    model_squares = learner.chains.layers[0].square().mean(0)
    expected = (v.square().mean(0) - model_squares) / 2  # precision 1
    torch.testing.assert_close(model.log_precision.grad, expected, rtol=1e-4, atol=1e-5)


def test_sparsity_adds_the_excess_activity() -> None:
    model, v = dbm((4, 3, 2)), all_states(4)
    filled(model, MeanFieldPCD(20, sweeps=1), v)
    plain = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    learner = filled(model, MeanFieldPCD(20, sweeps=1, sparsity=(0.2, 0.1), sparsity_cost=0.5), v)
    means = [layer.float().mean(0) for layer in learner._rows.block(16).data]
    excess = [0.5 * (means[1] - 0.2), 0.5 * (means[2] - 0.1)]
    added = [p.grad - before for p, before in zip(model.parameters(), plain, strict=True) if p.grad is not None]
    expected = [
        torch.outer(means[0], excess[0]),
        torch.outer(means[1], excess[1]) + torch.outer(excess[0], means[2]),
        torch.zeros(4),
        excess[0],
        excess[1],
    ]
    for a, b in zip(added, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_averages_follow_the_batches_slowly_and_survive_a_checkpoint() -> None:
    """From the first batch on, 0.01 of the newest for offsets and 0.1 for activities; the figures of the epoch too."""
    model = dbm((4, 3, 2))
    estimator = MeanFieldPCD(20, sweeps=1, iterations=1, sparsity=(0.2, 0.1))
    learner = filled(model, estimator, all_states(4), centred=True)
    first = [layer.float().mean(0) for layer in learner._rows.block(16).data]
    learner.batch(16).fill_(1)
    learner.fill_gradient(model.machine(), 16)
    second = [layer.float().mean(0) for layer in learner._rows.block(16).data]
    for offset, a, b in zip(learner.offsets, first, second, strict=True):
        torch.testing.assert_close(offset, 0.99 * a + 0.01 * b)
    for activity, a, b in zip(learner.activity, first[1:], second[1:], strict=True):
        torch.testing.assert_close(activity, 0.9 * a + 0.1 * b)
    loaded = DBMLearner(model, estimator, 16, seed=3, centred=True)
    loaded.load_state_dict(learner.state_dict())
    figures = learner.metrics()
    assert figures["unconverged"] > 0, "the case must have something to lose"
    assert loaded.metrics() == figures
    for a, b in zip([*learner.offsets, *learner.activity], [*loaded.offsets, *loaded.activity], strict=True):
        assert torch.equal(a, b)


def bars(n: int = 400) -> Tensor:
    """Rows of 3 x 3 pixels with one row or column on."""
    pictures = torch.zeros(6, 3, 3)
    for i in range(3):
        pictures[i, i], pictures[3 + i, :, i] = 1, 1
    return pictures.flatten(1)[torch.arange(n) % 6]


def trained(
    epochs: int, callbacks: tuple[object, ...] = (), sparsity: tuple[float, ...] = (), batch_size: int = 40
) -> tuple[DBM, Trainer]:
    model = DBM((9, 6, 4), seed=1, weight_scale=0.1)
    optimizer = SGD(model.parameters(), lr=0.2, momentum=0.5)
    estimator = MeanFieldPCD(50, sweeps=2, iterations=10, sparsity=sparsity)
    trainer = Trainer(
        model,
        optimizer,
        estimator,
        batch_size=batch_size,
        seed=4,
        scheduler=robbins_monro(optimizer, 20),
        callbacks=callbacks,
    )  # type: ignore[arg-type]
    trainer.fit(bars(), epochs, validation=bars(60))
    return model, trainer


def test_training_raises_the_exact_likelihood() -> None:
    """Six patterns have log 1/6 = -1.79 at best; independent units have -5.7."""
    history = History()
    model, _ = trained(50, (history,), batch_size=20)
    states, exact = log_sums(model)
    numbers = bars(6).long() @ (1 << torch.arange(9))
    assert (exact[numbers] - exact_log_z(model)).mean() > -3.0
    assert bool((states[numbers] == bars(6)).all())
    assert {"unconverged", "free_energy_gap"} <= history.rows[-1].keys()
    assert 0 <= history.rows[-1]["unconverged"] <= 1


def test_resuming_gives_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole, unbroken = trained(4, sparsity=(0.3, 0.3))
    trained(2, (Checkpoint(path),), sparsity=(0.3, 0.3))
    model = DBM((9, 6, 4))
    optimizer = SGD(model.parameters(), lr=0.3, momentum=0.1)
    resumed = Trainer.resume(path, model, optimizer, robbins_monro(optimizer, 20))
    resumed.fit(bars(), 4, validation=bars(60))
    for a, b in zip(whole.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(unbroken.chains.layers, resumed.chains.layers, strict=True):
        assert torch.equal(a, b)
    assert DBM.load(path).units == (9, 6, 4)
    other = DBM((9, 6, 5))
    with pytest.raises(CheckpointError, match="expected model"):
        Trainer.resume(path, other, SGD(other.parameters(), lr=0.1))


def test_divergence_stops_and_names_parameter_and_update(tmp_path: Path) -> None:
    model = DBM((9, 6, 4), seed=1)
    path = tmp_path / "run.safetensors"
    trainer = Trainer(
        model, SGD(model.parameters(), lr=0.1), MeanFieldPCD(20), batch_size=40, callbacks=[Checkpoint(path)]
    )
    trainer.fit(bars(), 1)
    good = path.read_bytes()
    trainer.optimizer.param_groups[0]["lr"] = 1e38
    with pytest.raises(TrainingError, match=r"after update \d+: .*(weights|biases)"):
        trainer.fit(bars(), 3)
    assert path.read_bytes() == good


def test_threads_change_nothing() -> None:
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(trained(2)[0])
    for a, b in zip(results[0].parameters(), results[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_robbins_monro_halves_the_rate() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.8)
    scheduler = robbins_monro(optimizer, 3)
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[0] == 0.8
    assert rates[3] == pytest.approx(0.4)
    assert rates[6] == pytest.approx(0.8 / 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MeanFieldPCD(sweeps=0), "sweeps: expected a whole number of at least 1, got 0"),
        (lambda: MeanFieldPCD(damping=1.0), "damping: expected 0 to below 1"),
        (lambda: MeanFieldPCD(sparsity=(0.2, 1.0)), "sparsity: expected targets between 0 and 1"),
        (lambda: MeanFieldPCD(sparsity_cost=-1), "sparsity_cost: expected a finite number"),
        (lambda: robbins_monro(SGD([torch.zeros(1)], lr=1), 0), "half_life: expected a finite number of epochs"),
        (
            lambda: Trainer(m := dbm(), SGD(m.parameters(), lr=1), MeanFieldPCD(sparsity=(0.1,))),
            "sparsity: expected a target for each of 2 hidden layers, got 1",
        ),
        (
            lambda: Trainer(m := dbm(), SGD(m.parameters(), lr=1), CD()),
            "estimator: expected .* for an RBM, MeanFieldPCD for a DBM and UpDown for a DBN, got CD for DBM",
        ),
        (
            lambda: Trainer(m := RBM(3, 2), SGD(m.parameters(), lr=1), MeanFieldPCD()),
            "got MeanFieldPCD for RBM",
        ),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
