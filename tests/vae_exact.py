"""Exact bounds and likelihoods of small autoencoders, from formulas that share no code with bm_fast.vae."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Bernoulli, MultivariateNormal, Normal

from bm_fast.vae import VAE


def tiny(visible: str, n_layers: int, seed: int = 3) -> VAE:
    """A nonlinear model with one unit in each stochastic layer, smooth enough for quadrature with few nodes."""
    model = _shaken(VAE(3, [1] * n_layers, [[2]] * n_layers, visible=visible, seed=seed), 0.25, seed)
    with torch.no_grad():
        for network in (*model.recognition, *model.priors):
            network.log_scale.weight.mul_(0.3)
        for network in model.recognition:
            network.log_scale.bias.sub_(0.6)
        for network in model.priors:
            network.log_scale.bias.add_(0.4)
    return model


def linear_gaussian(n_layers: int = 1, seed: int = 0) -> VAE:
    """A model whose log p(x) has a closed form: all maps are linear, and no scale depends on its input."""
    latents = (2, 2)[:n_layers]
    model = _shaken(VAE(5, latents, [[]] * n_layers, visible="gaussian", seed=seed), 0.1, seed)
    with torch.no_grad():
        for network in model.priors:
            network.log_scale.weight.zero_()
        for network in model.recognition:  # not the posterior, but near enough for weights of finite variance
            network.log_scale.weight.mul_(0.1)
            network.mean.weight.mul_(0.3)
    return model


def linear_gaussian_log_likelihood(model: VAE, x: Tensor) -> Tensor:
    """log p(x), float64 ``[n]``: every layer of a linear model is Gaussian, from the top down."""
    mean = torch.zeros(model.latents[-1], dtype=torch.float64)
    covariance = torch.eye(model.latents[-1], dtype=torch.float64)
    stages = [(part.mean, part.log_scale.bias) for part in reversed(model.priors)]
    stages.append((model.observation.output, model.observation.log_scale))
    for linear, log_scale in stages:
        weight, bias = linear.weight.detach().double(), linear.bias.detach().double()
        mean = weight @ mean + bias
        covariance = weight @ covariance @ weight.T + torch.diag((2 * log_scale.detach().double()).exp())
    return MultivariateNormal(mean, covariance).log_prob(x.double())


def posterior_model() -> VAE:
    """A linear-Gaussian model with one hidden unit whose q is the true posterior."""
    model = VAE(5, (1,), [[]], visible="gaussian", seed=1)
    weight = model.observation.output.weight.detach().double()
    precision = (-2 * model.observation.log_scale.detach().double()).exp()
    variance = 1 / (1 + (weight[:, 0].square() * precision).sum())
    gain = variance * weight[:, 0] * precision
    network = model.recognition[0]
    with torch.no_grad():
        network.mean.weight.copy_(gain)
        network.mean.bias.copy_(-(gain * model.observation.output.bias.double()).sum())
        network.log_scale.weight.zero_()
        network.log_scale.bias.copy_(0.5 * variance.log())
    return model


def exact_bound(model: VAE, x: Tensor, k: int, nodes: int = 24) -> tuple[Tensor, VAE]:
    """L_k averaged over the rows of x by Gauss-Hermite quadrature, and the float64 copy of the model it depends on."""
    exact = copy.deepcopy(model).double()
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    weights = weights / weights.sum()
    n_layers = len(model.latents)
    noise = torch.tensor(list(itertools.product(points, repeat=n_layers)))
    chances = torch.tensor(list(itertools.product(weights, repeat=n_layers))).prod(1)
    total = torch.zeros((), dtype=torch.float64)
    for row in x.double():
        log_w = _log_weights(exact, row, noise)
        joint, density = log_w, chances  # over tuples of samples, one more axis for each of them
        for _ in range(k - 1):
            joint = torch.logaddexp(joint.unsqueeze(-1), log_w)
            density = density.unsqueeze(-1) * chances
        total = total + (density * (joint - np.log(k))).sum() / len(x)
    return total, exact


def _log_weights(model: VAE, row: Tensor, noise: Tensor) -> Tensor:
    log_q, samples, given = torch.zeros(len(noise), dtype=torch.float64), [], row.expand(len(noise), -1)
    for layer, network in enumerate(model.recognition):
        mean, log_scale = network(given)
        given = mean + log_scale.exp() * noise[:, layer : layer + 1]
        log_q = log_q + Normal(mean, log_scale.exp()).log_prob(given).sum(1)
        samples.append(given)
    log_p = Normal(0, 1).log_prob(samples[-1]).sum(1)
    for layer, network in enumerate(model.priors):
        mean, log_scale = network(samples[layer + 1])
        log_p = log_p + Normal(mean, log_scale.exp()).log_prob(samples[layer]).sum(1)
    output = model.observation.output(model.observation.body(samples[0]))
    if model.observation.log_scale is None:
        return log_p - log_q + Bernoulli(logits=output).log_prob(row).sum(1)
    return log_p - log_q + Normal(output, model.observation.log_scale.exp()).log_prob(row).sum(1)


def _shaken(model: VAE, scale: float, seed: int) -> VAE:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model
