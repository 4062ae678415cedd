"""Parts of a variational autoencoder: perceptrons, Gaussian layers, and the two observation models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_GROUP = 16
"""Pixels whose probabilities are multiplied before one logarithm is taken of all."""

_LEAST_PRODUCT = 1e-30
"""Products below this may have lost digits to underflow (float32 is normal down to 1.2e-38)."""


def tanh(values: Tensor) -> Tensor:
    """tanh; on the CPU as 2σ(2x) - 1, since torch's σ is several times as fast there, to an absolute error of 2e-7."""
    if values.device.type != "cpu" or values.dtype is not torch.float32:
        return torch.tanh(values)
    result: Tensor = _TanhBySigmoid.apply(values)  # type: ignore[no-untyped-call]
    return result


class _TanhBySigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        result = (2 * values).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        passed: Tensor = gradients[0] * (1 - result.square())
        return passed


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": tanh,
    "relu": torch.relu,
    "softplus": functional.softplus,
    "elu": functional.elu,
}


class Perceptron(nn.Module):
    """Linear layers, each followed by the activation: ``[..., n_in]`` to ``[..., sizes[-1]]``.

    Weights are uniform with variance 2 / (n_in + n_out), biases zero. Source: Glorot and Bengio (2010).
    """

    def __init__(self, n_in: int, sizes: Sequence[int], activation: str, generator: torch.Generator) -> None:
        super().__init__()
        ends = (n_in, *sizes)
        self.linears = nn.ModuleList(linear(a, b, generator) for a, b in zip(ends[:-1], sizes, strict=True))
        self.n_out = ends[-1]
        self._activation = ACTIVATIONS[activation]

    def forward(self, values: Tensor) -> Tensor:
        for part in self.linears:
            values = self._activation(part(values))
        return values


class Gaussian(nn.Module):
    """A Gaussian with independent units whose mean and log standard deviation are computed from what is given.

    Source: Kingma and Welling, Auto-encoding variational Bayes (2014), appendix C.2.
    """

    def __init__(
        self, n_in: int, hidden: Sequence[int], units: int, activation: str, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.body = Perceptron(n_in, hidden, activation, generator)
        self.mean = linear(self.body.n_out, units, generator)
        self.log_scale = linear(self.body.n_out, units, generator)

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(given)
        return self.mean(features), self.log_scale(features)


class Observation(nn.Module):
    """p(x | h): a perceptron and its linear output, the logits of Bernoulli or the means of Gaussian pixels.

    log_scale: float32 ``[n_visible]``, log standard deviations of Gaussian pixels; None for Bernoulli pixels.
    """

    def __init__(
        self,
        n_in: int,
        hidden: Sequence[int],
        n_visible: int,
        activation: str,
        bernoulli: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.body = Perceptron(n_in, hidden, activation, generator)
        self.output = linear(self.body.n_out, n_visible, generator)
        self.log_scale = None if bernoulli else nn.Parameter(torch.zeros(n_visible))

    def means(self, h: Tensor) -> Tensor:
        """E(x | h), ``[..., n_visible]``."""
        output: Tensor = self.output(self.body(h))
        return output.sigmoid() if self.log_scale is None else output

    def log_probability(self, x: Tensor, h: Tensor) -> Tensor:
        """log p(x | h), ``[k, n]``, for x ``[n, n_visible]`` and h ``[k, n, units]``."""
        features = self.body(h)
        if self.log_scale is None:
            return bernoulli_log_probability(x, features, self.output.weight, self.output.bias)
        deviations = (x - self.output(features)) * torch.exp(-self.log_scale)
        constant = self.log_scale.sum() + 0.5 * math.log(2 * math.pi) * x.shape[1]
        total: Tensor = -0.5 * deviations.square().sum(-1) - constant
        return total


def bernoulli_log_probability(x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Σ log P(x | logits = features weightᵀ + bias) over the pixels, ``[k, n]``.

    x: 0/1 ``[n, n_visible]``; features: ``[k, n, m]``; weight: ``[n_visible, m]``; bias: ``[n_visible]``.
    """
    if torch.is_autocast_enabled(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
        features, weight, bias = features.to(dtype), weight.to(dtype), bias.to(dtype)
    result: Tensor = _BernoulliOutput.apply(x, features, weight, bias)  # type: ignore[no-untyped-call]
    return result


class _BernoulliOutput(torch.autograd.Function):
    """The widest layer of the model, which decides the speed of training: one buffer of its size, few passes over it.

    With signs s = 2x - 1 the probability of a pixel is q = σ(s logit), to full relative precision on both sides, and
    the gradient of log q by the logit is s (1 - q). Products of a few q need one logarithm; where such a product is
    near underflow, log σ is taken pixel by pixel instead.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        k, n, m = features.shape
        signs = (2 * x - 1).to(weight.dtype)
        rows = features.reshape(k * n, m)
        logits = torch.addmm(bias, rows, weight.T).view(k, n, -1).mul_(signs)
        probabilities = logits.sigmoid_().float()
        total = _log_products(probabilities)
        if total is None:
            logits = torch.addmm(bias, rows, weight.T).view(k, n, -1).mul_(signs)
            total = functional.logsigmoid(logits.float()).sum(-1)
        ctx.save_for_backward(signs, probabilities, features, weight)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor | None, Tensor | None, Tensor | None]:
        signs, probabilities, features, weight = ctx.saved_tensors
        _, of_features, of_weight, of_bias = ctx.needs_input_grad
        k, n, m = features.shape
        delta = signs * gradients[0].unsqueeze(-1)
        delta = delta.addcmul_(delta, probabilities, value=-1).to(weight.dtype).view(k * n, -1)
        return (
            None,
            (delta @ weight).view(k, n, m) if of_features else None,
            delta.T @ features.reshape(k * n, m) if of_weight else None,
            delta.sum(0) if of_bias else None,
        )


def _log_products(probabilities: Tensor) -> Tensor | None:
    """Σ log over the last axis by products of groups; None where a product is too small to be exact."""
    k, n, pixels = probabilities.shape
    whole = pixels - pixels % _GROUP
    products = probabilities[..., :whole].reshape(k, n, _GROUP, whole // _GROUP).prod(-2) if whole else None
    rest = probabilities[..., whole:].prod(-1, keepdim=True)
    if products is None:
        products = rest
    elif whole < pixels:
        products = torch.cat([products, rest], dim=-1)
    if not bool(products.min() > _LEAST_PRODUCT):  # NaN fails as well
        return None
    return products.log_().sum(-1)


def linear(n_in: int, n_out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer with weights by Glorot and Bengio (2010) and biases of zero."""
    made: nn.Linear = nn.utils.skip_init(nn.Linear, n_in, n_out)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        nn.init.xavier_uniform_(made.weight, generator=generator)
        made.bias.zero_()
    return made
