"""Bounds of autoencoders against exact values; false-alarm rates stand beside the statistical tests."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bm_fast.vae import VAE, active_units, evaluate, log_likelihood
from bm_fast.vae.networks import bernoulli_log_probability, tanh
from vae_exact import exact_bound, linear_gaussian, linear_gaussian_log_likelihood, posterior_model, tiny

SEED = 4


def rows(n: int, units: int = 5) -> torch.Tensor:
    return 0.8 * torch.randn(n, units, generator=torch.Generator().manual_seed(SEED))


@pytest.mark.parametrize("n_layers", [1, 2])
def test_bounds_rise_with_k_to_the_exact_log_likelihood(n_layers):
    model, x = linear_gaussian(n_layers), rows(100)
    exact = float(linear_gaussian_log_likelihood(model, x).mean())
    found = evaluate(model, x, ks=(1, 5, 50, 2000)).bounds
    assert found[1].mean <= found[5].mean <= found[50].mean <= found[2000].mean
    assert found[5].mean - found[1].mean > 0.1
    # from 200,000 samples: the noise of L_50 is far below its distance to log p(x)
    assert exact - found[50].mean > 0.005
    assert abs(exact - found[2000].mean) < 0.04
    assert float(log_likelihood(model, x, 2000).mean()) == pytest.approx(found[2000].mean)  # of the same samples


def test_every_bound_is_exact_where_q_is_the_posterior():
    model, x = posterior_model(), rows(20)
    exact = linear_gaussian_log_likelihood(model, x)
    for k in (1, 7, 1000):
        torch.testing.assert_close(log_likelihood(model, x, k), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_bounds_agree_with_quadrature(visible, n_layers):
    """Six standard errors of each mean, and what quadrature is off by: false alarms below 1e-8."""
    model = tiny(visible, n_layers)
    x = torch.tensor([[1.0, 0.0, 1.0]])
    many, generator = x.expand(100_000, -1), torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        draws = {
            1: [model.elbo(many, 1, generator, form="kl"), model.elbo(many, 1, generator, form="importance")],
            2: [model.iwae_bound(many, 2, generator)],
        }
    for k, estimates in draws.items():
        exact = float(exact_bound(model, x, k)[0].detach())
        for values in estimates:
            error = float(values.double().std()) / math.sqrt(len(values))
            assert abs(float(values.double().mean()) - exact) < 6 * error + 5e-4


def test_a_bound_of_one_sample_is_the_variational_bound():
    model, x = tiny("bernoulli", 2), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    same = (torch.Generator().manual_seed(SEED) for _ in range(3))
    elbo = model.elbo(x, 1, next(same), form="importance")
    assert torch.equal(model.iwae_bound(x, 1, next(same)), elbo)
    torch.testing.assert_close(log_likelihood(model, x, 1, SEED), elbo.detach().double())


def test_log_likelihood_does_not_depend_on_how_samples_are_grouped_in_memory(monkeypatch):
    model, x = linear_gaussian(), rows(9)
    many = [log_likelihood(model, x, 5000)]
    monkeypatch.setattr("bm_fast.vae.evaluation._ROWS", {"cpu": 37})
    monkeypatch.setattr("bm_fast.vae.evaluation._IMAGES", 2)
    many.append(log_likelihood(model, x, 5000))
    torch.testing.assert_close(*many, rtol=0, atol=0.2)  # other samples, the same quantity
    assert not torch.equal(*many)


def test_memory_of_the_log_likelihood_does_not_grow_with_k(monkeypatch):
    model, x, seen = VAE(6, (3,), [[4]]), torch.zeros(3, 6), []
    original = VAE.log_weights_and_samples

    def spy(self, x, k, *rest):
        seen.append(k * len(x))
        return original(self, x, k, *rest)

    monkeypatch.setattr(VAE, "log_weights_and_samples", spy)
    log_likelihood(model, x, 5000)
    assert sum(seen) == 15_000
    assert max(seen) <= 2048


def test_log_likelihood_repeats_with_its_seed():
    model, x = tiny("bernoulli", 1), torch.tensor([[1.0, 0.0, 1.0]])
    first = log_likelihood(model, x, 10, seed=1)
    assert torch.equal(first, log_likelihood(model, x.to(torch.uint8), 10, seed=1))
    assert np.array_equal(first.numpy(), log_likelihood(model, x.numpy(), 10, seed=1))
    assert not torch.equal(first, log_likelihood(model, x, 10, seed=2))


def test_effective_sample_size_is_all_samples_at_the_posterior_and_few_far_from_it():
    model, x = posterior_model(), rows(10)
    assert evaluate(model, x, ks=(100,)).effective_sample_size == pytest.approx(100, rel=1e-3)
    with torch.no_grad():
        model.recognition[0].mean.bias.add_(3)
    assert evaluate(model, x, ks=(100,)).effective_sample_size < 40


def test_active_units_are_those_whose_posterior_mean_follows_the_data():
    model = VAE(4, (3, 2), [[], []], visible="gaussian", seed=0)
    with torch.no_grad():
        for network in model.recognition:
            network.mean.weight.zero_()
        model.recognition[0].mean.weight[1, 0] = 1.0
        model.recognition[1].mean.weight[0, 1] = 0.5  # follows the unit that follows the data
        model.recognition[1].mean.weight[1, 2] = 5.0  # follows a unit that is nothing but noise
    assert active_units(model, rows(2000, 4)) == (1, 1)


@pytest.mark.parametrize("pixels", [1, 16, 40, 784])
@pytest.mark.parametrize("scale", [0.1, 5.0, 200.0])
def test_bernoulli_output_is_that_of_torch_at_any_logit(pixels, scale):
    """float32 against float64, relative to the sum of absolute terms; the largest logits underflow every product."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.bernoulli(torch.full((3, pixels), 0.4), generator=generator)
    features = torch.randn(2, 3, 7, generator=generator)
    weight, bias = (scale * torch.randn(pixels, 7, generator=generator), torch.randn(pixels, generator=generator))
    share = torch.rand(2, 3, generator=generator)
    inputs = [t.requires_grad_() for t in (features, weight, bias)]
    ours = bernoulli_log_probability(x, *inputs)
    gradients = torch.autograd.grad(ours, inputs, share)
    wide = [t.detach().double().requires_grad_() for t in inputs]
    logits = wide[0] @ wide[1].T + wide[2]
    exact = torch.distributions.Bernoulli(logits=logits).log_prob(x.double().expand_as(logits)).sum(-1)
    torch.testing.assert_close(ours.double(), exact, rtol=2e-5, atol=1e-5)
    for found, expected in zip(gradients, torch.autograd.grad(exact, wide, share.double()), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * (1 + scale))


def test_tanh_is_that_of_torch():
    values = torch.linspace(-12, 12, 10_001, requires_grad=True)
    wide = values.detach().double().requires_grad_()
    torch.testing.assert_close(tanh(values).double(), torch.tanh(wide), rtol=0, atol=2e-7)
    (found,) = torch.autograd.grad(tanh(values).sum(), values)
    (expected,) = torch.autograd.grad(torch.tanh(wide).sum(), wide)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_numpy_in_numpy_out(visible):
    model, x = tiny(visible, 2), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    top = torch.tensor([[0.3], [-2.0]])
    for method, given in (
        (lambda v, g: model.log_weights(v, 3, g, route="path"), x),
        (lambda v, g: model.elbo(v, 2, g), x),
        (lambda v, g: model.iwae_bound(v, 2, g), x),
        (lambda v, _: log_likelihood(model, v, 2), x),
        (lambda v, _: model.reconstruct(v), x),
        (lambda v, _: model.posterior(v)[1][0], x),
        (lambda v, _: model.posterior(v)[0][1], x),
        (model.decode, top),
    ):
        expected = method(given, torch.Generator().manual_seed(SEED))
        assert isinstance(expected, torch.Tensor)
        found = method(given.numpy(), torch.Generator().manual_seed(SEED))
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, expected.detach().numpy())


def test_samples_of_a_linear_gaussian_model_have_its_covariance():
    """Means of x given h¹: their covariance is W (A Aᵀ + S) Wᵀ; off by more than 0.1 with probability below 1e-6."""
    model = linear_gaussian(2)
    torch.manual_seed(SEED)
    weight, prior = model.observation.output.weight.detach().double(), model.priors[0]
    inner = prior.mean.weight.detach().double()
    covariance = inner @ inner.T + torch.diag((2 * prior.log_scale.bias.detach().double()).exp())
    for generator in (torch.Generator().manual_seed(SEED), None):
        drawn = model.sample(100_000, generator).double()
        torch.testing.assert_close(drawn.T.cov(), weight @ covariance @ weight.T, rtol=0, atol=0.1)


def test_reconstruction_goes_through_the_means():
    model, x = tiny("gaussian", 2), torch.tensor([[0.3, -0.2, 1.0]])
    (mean, scale), (top, _) = model.posterior(x)
    assert mean.shape == scale.shape == top.shape == (1, 1)
    torch.testing.assert_close(model.reconstruct(x), model.observation.means(mean).detach())
    assert torch.equal(model.decode(top), model.decode(top))
    assert not torch.equal(model.decode(top, torch.Generator().manual_seed(1)), model.decode(top))


def test_biases_start_at_the_data():
    x = (torch.rand(500, 4, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.0, 0.2, 0.7, 1.0])).float()
    model = VAE(4, (2,), [[3]])
    model.initialise_biases(x)
    expected = torch.logit(x.mean(0).clamp(0.001, 0.999))
    torch.testing.assert_close(model.observation.output.bias.detach(), expected)
    model = VAE(4, (2,), [[3]], visible="gaussian")
    model.initialise_biases(rows(500, 4) + 2)
    torch.testing.assert_close(model.observation.output.bias.detach(), (rows(500, 4) + 2).mean(0))
    torch.testing.assert_close(model.observation.log_scale.detach().exp(), rows(500, 4).std(0, correction=0))
