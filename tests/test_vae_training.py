"""Training of autoencoders: it learns, it resumes to the bit, it stops where a bound is not finite."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bm_fast import RBM
from bm_fast.checkpoints import CheckpointError
from bm_fast.data import load
from bm_fast.training import CD, Callback, Checkpoint, EarlyStopping, Evaluate, History, TrainingError
from bm_fast.training import Trainer as RBMTrainer
from bm_fast.vae import CIWAE, ELBO, IWAE, PIWAE, STL, VAE, DReG, Trainer, burda_schedule, evaluate
from vae_exact import linear_gaussian, linear_gaussian_log_likelihood

GREY = load("digits").train[:60]
BINARY = (GREY > 0.5).to(torch.uint8)


def made(estimator=None, **settings):
    model = VAE(64, (6, 3), [[10], [5]], seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    return Trainer(model, optimizer, estimator or DReG(4), 25, scheduler=scheduler, **settings)


def resumed(path, callbacks=(), estimator=None):
    model = VAE(64, (6, 3), [[10], [5]], seed=99)
    optimizer = torch.optim.Adam(model.parameters(), lr=77.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    return Trainer.resume(path, model, optimizer, scheduler, callbacks, estimator)


def same_parameters(a: VAE, b: VAE) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


class InterruptAt(Callback):
    def __init__(self, update: int) -> None:
        self.at = update

    def on_update(self, progress):
        if progress.trainer.update == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def test_training_reaches_the_likelihood_of_the_true_model():
    """Rows of a linear-Gaussian model: what is learnt comes within 0.1 nat of log p(x) of the model they are from."""
    true = linear_gaussian(seed=5)
    generator = torch.Generator().manual_seed(0)
    x = true.sample(4000, generator)
    x = x + true.observation.log_scale.detach().exp() * torch.randn(x.shape, generator=generator)
    model = VAE(5, (2,), [[]], visible="gaussian")
    model.initialise_biases(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    trainer = Trainer(model, optimizer, IWAE(10), batch_size=400)
    trainer.fit(x, epochs=20)
    exact = float(linear_gaussian_log_likelihood(true, x).mean())
    assert evaluate(model, x, ks=(50,)).bounds[50].mean > exact - 0.1


def test_metrics_are_those_of_the_epoch():
    history = History()
    trainer = made(callbacks=[history])
    trainer.fit(GREY, epochs=3, validation=GREY[:10])
    assert [row["epoch"] for row in history.rows] == [1, 2, 3]
    assert history.rows[-1]["bound"] > history.rows[0]["bound"]
    assert history.rows[-1]["validation_bound"] > history.rows[0]["validation_bound"]
    assert trainer.update == 9
    assert history.rows[-1]["learning_rate"] == pytest.approx(1e-3 / 8)


@pytest.mark.parametrize("estimator", [ELBO(2), IWAE(4), DReG(4), PIWAE(2, 2), CIWAE(4, 0.5)], ids=str)
@pytest.mark.parametrize("mixed_precision", [False, True])
def test_resumed_training_has_the_same_bits(tmp_path, estimator, mixed_precision):
    whole = made(estimator, mixed_precision=mixed_precision)
    whole.fit(GREY, epochs=4)
    part = made(estimator, mixed_precision=mixed_precision)
    part.fit(GREY, epochs=2)
    part.save(tmp_path / "run.safetensors")
    again = resumed(tmp_path / "run.safetensors")
    assert again.estimator == estimator
    again.fit(GREY, epochs=4)
    assert same_parameters(again.model, whole.model)


@dataclass(frozen=True)
class Halved:
    """An estimator of the user's own: the gradient of IWAE times ``share``."""

    k: int
    share: float

    @property
    def n_samples(self) -> int:
        return self.k

    def backward(self, model, x, generator=None):
        bounds = model.iwae_bound(x, self.k, generator)
        (-self.share * bounds.mean()).backward()
        return bounds.detach()


def test_an_estimator_of_ones_own_resumes_to_the_same_bits(tmp_path):
    path = tmp_path / "run.safetensors"
    whole, part = made(Halved(3, 0.5)), made(Halved(3, 0.5))
    whole.fit(GREY, epochs=2)
    part.fit(GREY, epochs=1)
    part.save(path)
    with pytest.raises(CheckpointError, match=r"trained with Halved, none of ELBO, .*; give an estimator"):
        resumed(path)
    with pytest.raises(
        CheckpointError, match=r"expected the estimator \{'name': 'Halved', 'k': 3, 'share': 0\.5\}, got"
    ):
        resumed(path, estimator=Halved(3, 0.25))
    again = resumed(path, estimator=Halved(3, 0.5))
    again.fit(GREY, epochs=2)
    assert same_parameters(again.model, whole.model)


@pytest.mark.parametrize("estimator", [ELBO(2), STL(2), IWAE(4), DReG(4), PIWAE(2, 2), CIWAE(4, 0.5)], ids=str)
@pytest.mark.parametrize("frozen", ["recognition.0", "observation", "recognition", "p"])
def test_parts_may_be_frozen(estimator, frozen):
    trainer = made(estimator)
    parts = (
        (trainer.model.priors, trainer.model.observation) if frozen == "p" else (trainer.model.get_submodule(frozen),)
    )
    for part in parts:
        part.requires_grad_(False)
    still = {id(parameter) for part in parts for parameter in part.parameters()}
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.fit(GREY, epochs=1)
    for old, parameter in zip(before, trainer.model.parameters(), strict=True):
        assert torch.equal(old, parameter) == (id(parameter) in still)


@pytest.mark.parametrize("update", [1, 4, 6])
def test_ctrl_c_saves_and_goes_on_to_the_same_bits(tmp_path, update):
    path, history = tmp_path / "run.safetensors", History()
    whole = made(callbacks=[history])
    whole.fit(GREY, epochs=3, validation=GREY[:10])
    stopped = made(callbacks=[History(), Checkpoint(path), InterruptAt(update)])
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(GREY, epochs=3, validation=GREY[:10])
    assert stopped.update == update
    going_on = History()
    again = resumed(path, [going_on])
    again.fit(GREY, epochs=3, validation=GREY[:10])
    assert same_parameters(again.model, whole.model)
    assert [row["bound"] for row in going_on.rows] == [row["bound"] for row in history.rows]
    assert [row["validation_bound"] for row in going_on.rows] == [row["validation_bound"] for row in history.rows]


def test_a_bound_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer = made(callbacks=[Checkpoint(path)])
    trainer.fit(GREY, epochs=1)
    good = path.read_bytes()
    with torch.no_grad():
        trainer.model.recognition[0].log_scale.bias.fill_(200.0)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(TrainingError, match=r"update 4, epoch 2: the bound of training row \d+ is (nan|-inf|inf)"):
        trainer.fit(GREY, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert path.read_bytes() == good


@pytest.mark.parametrize("name", ["recognition.1.log_scale.bias", "observation.output.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_stops_training_and_keeps_the_last_checkpoint(tmp_path, name, value):
    path = tmp_path / "run.safetensors"
    trainer = made(callbacks=[Checkpoint(path)])
    trainer.fit(GREY, epochs=1)
    good = path.read_bytes()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    spoilt = trainer.model.get_parameter(name)
    spoilt.register_hook(lambda gradient: gradient.flatten().index_fill(0, torch.tensor([1]), value).view_as(gradient))
    with pytest.raises(TrainingError, match=rf"update 4, epoch 2: the gradient of parameter '{name}' is not finite"):
        trainer.fit(GREY, epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert trainer.update == 3
    assert path.read_bytes() == good


def test_finite_gradients_whose_sum_overflows_are_no_error():
    trainer = made()
    weight = trainer.model.observation.output.weight
    weight.register_hook(lambda gradient: torch.full_like(gradient, 3e38))
    trainer.fit(GREY, epochs=1)
    assert trainer.update == 3


def test_a_parameter_that_is_not_finite_is_never_saved(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer = made()
    trainer.save(path)
    good = path.read_bytes()
    with torch.no_grad():
        trainer.model.observation.output.bias[3] = float("nan")
    with pytest.raises(TrainingError, match=r"'observation\.output\.bias' is not finite"):
        trainer.save(path)
    assert path.read_bytes() == good


def test_binary_data_are_taken_as_they_are_and_grey_levels_drawn_anew(monkeypatch):
    seen = []
    monkeypatch.setattr(IWAE, "backward", lambda self, model, x, generator: (seen.append(x.clone()), -x.sum(1))[1])
    made(IWAE(2)).fit(BINARY, epochs=1)
    assert torch.equal(torch.cat(seen).sum(0), BINARY.float().sum(0))
    seen.clear()
    made(IWAE(2)).fit(GREY, epochs=200)
    drawn = torch.cat(seen)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert not torch.equal(torch.cat(seen[:3]).sum(0), torch.cat(seen[3:6]).sum(0))
    # the share of each unit is off by less than 6 standard errors: false alarms below 1e-6
    expected = GREY.mean(0)
    error = (GREY * (1 - GREY)).mean(0).sqrt() / len(drawn) ** 0.5
    assert bool(((drawn.mean(0) - expected).abs() <= 6 * error + 1e-6).all())


def test_early_stopping_brings_back_the_model_with_the_best_validation_bound():
    stopping = EarlyStopping("validation_bound", patience=2)
    trainer = made(callbacks=[Evaluate({"first": lambda model: model.latents[0]}), stopping])
    trainer.optimizer.param_groups[0]["lr"] = 0.3  # far too high: the bound falls soon
    trainer.scheduler = None
    trainer.fit(GREY, epochs=60, validation=GREY[:30])
    assert trainer.epoch < 60
    assert stopping.best_epoch == trainer.epoch - 2
    assert all(torch.equal(p, stopping.best_parameters[name]) for name, p in trainer.model.named_parameters())
    with pytest.raises(ValueError, match=r"expected one of \['bound'\] .* got 'validation_bound'"):
        made(callbacks=[EarlyStopping("validation_bound")]).fit(GREY, epochs=1)


def loader(data: torch.Tensor, batch_size: int = 25) -> DataLoader:
    generator = torch.Generator().manual_seed(7)
    return DataLoader(TensorDataset(data, torch.arange(len(data))), batch_size, shuffle=True, generator=generator)


@pytest.mark.parametrize("data", [GREY, BINARY], ids=["grey", "binary"])
def test_a_data_loader_trains_and_resumes_to_the_same_bits_within_an_epoch(tmp_path, data):
    path, history = tmp_path / "run.safetensors", History()
    whole = made(callbacks=[history])
    whole.fit(loader(data), epochs=3, validation=data[:10])
    assert whole.update == 9
    assert history.rows[-1]["bound"] > history.rows[0]["bound"]
    stopped = made(callbacks=[History(), Checkpoint(path), InterruptAt(5)])
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(loader(data), epochs=3, validation=data[:10])
    again = resumed(path, [History()])
    again.fit(loader(data), epochs=3, validation=data[:10])
    assert same_parameters(again.model, whole.model)


def test_a_data_loader_in_the_order_of_an_array_trains_like_it(monkeypatch):
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    a, b = made(), made()
    a.fit(GREY, epochs=2)
    b.fit(DataLoader(GREY, 25), epochs=2)
    assert same_parameters(a.model, b.model)


def test_data_loaders_whose_batches_do_not_fit():
    with pytest.raises(ValueError, match="train: batch 0 has 30 rows, the trainer was made for batch_size=25"):
        made().fit(loader(GREY, 30), epochs=1)
    with pytest.raises(ValueError, match=r"train: batch 0: expected shape \[n, 64\]"):
        made().fit(loader(GREY[:, :60].contiguous()), epochs=1)
    with pytest.raises(ValueError, match="train: batch 0: expected 0 and 1 only, got 0"):
        made(binarise="none").fit(loader(GREY), epochs=1)
    with pytest.raises(ValueError, match="expected a DataLoader that yields at least one batch, got none"):
        made().fit(DataLoader(GREY, 100, drop_last=True), epochs=1)


def test_numpy_data_train_like_torch_data():
    a, b = made(), made()
    a.fit(GREY, epochs=1)
    b.fit(GREY.numpy(), epochs=1, validation=np.asarray(GREY[:5]))
    assert same_parameters(a.model, b.model)


def test_model_comes_back_from_its_file_and_from_a_checkpoint(tmp_path):
    model = VAE(64, (6, 3), [[10], []], "relu", "gaussian", seed=4)
    model.save(tmp_path / "model.safetensors")
    back = VAE.load(tmp_path / "model.safetensors")
    assert back.extra_repr() == model.extra_repr()
    assert back.activation == "relu"
    assert same_parameters(back, model)
    trainer = made()
    trainer.save(tmp_path / "run.safetensors")
    assert same_parameters(VAE.load(tmp_path / "run.safetensors"), trainer.model)


def test_resume_refuses_other_parts_and_other_data(tmp_path):
    path = tmp_path / "run.safetensors"
    trainer = made()
    trainer.fit(GREY, epochs=1)
    trainer.save(path)
    other = VAE(64, (6,), [[10]])
    with pytest.raises(CheckpointError, match="expected model"):
        Trainer.resume(path, other, torch.optim.Adam(other.parameters()))
    model = VAE(64, (6, 3), [[10], [5]])
    with pytest.raises(CheckpointError, match="expected optimizer"):
        Trainer.resume(path, model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="with which this training began"):
        resumed(path).fit(GREY[:50], epochs=2)
    RBMTrainer(rbm := RBM(64, 2), torch.optim.SGD(rbm.parameters(), lr=0.1), CD(1)).save(path)
    with pytest.raises(CheckpointError, match="holds no 'vae'"):
        resumed(path)
    with pytest.raises(CheckpointError, match="holds no 'vae'"):
        VAE.load(path)


def test_schedule_of_burda_has_3280_epochs():
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = burda_schedule(optimizer)
    rates = [1e-3 * scheduler.lr_lambdas[0](epoch) for epoch in range(3280)]
    assert [rates.count(rate) for rate in sorted(set(rates), reverse=True)] == [3**i for i in range(8)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-4)
    assert sorted(set(rates))[1] == pytest.approx(1e-3 * 10 ** (-6 / 7))
    assert [burda_schedule(optimizer, 4).lr_lambdas[0](epoch) for epoch in range(4)] == [1.0, 0.1, 0.1, 0.1]


def test_example_of_the_documentation_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parent.parent / "docs" / "vae.md").read_text()
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    exec(code.replace("epochs=50", "epochs=1").replace("k=5000", "k=5"), {})
