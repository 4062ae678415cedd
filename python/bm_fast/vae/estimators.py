"""Gradient estimators: how k weighted samples become a step for the model p and one for the recognition network q.

With w̃ = w / Σ w over the samples of a data row, all of them add up gradients of log w:

    estimator    weight for p            weight for q            route to q
    ELBO         1 / k                   1 / k                   everything
    STL          1 / k                   1 / k                   samples alone
    IWAE         w̃                       w̃                       everything
    DReG         w̃                       w̃²                      samples alone
    MIWAE        w̃ in m groups / m       the same                everything
    PIWAE        w̃                       w̃ in m groups / m       everything
    CIWAE        β / k + (1 - β) w̃       the same                everything
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bm_fast.arguments import count
from bm_fast.vae.model import VAE, Form


class Estimator(Protocol):
    """What turns a batch into gradients; a dataclass, so that a checkpoint can hold it."""

    @property
    def n_samples(self) -> int:
        """Samples of q for each data row."""

    def backward(self, model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Adds the gradient of minus the mean bound to ``.grad``; returns the bounds, ``[n]``.

        x: 0/1 (or real) float32 ``[n, n_visible]`` on the device of the model.
        """


@dataclass(frozen=True)
class _Samples:
    """k samples of each row."""

    k: int

    def __post_init__(self) -> None:
        count("k", self.k)

    @property
    def n_samples(self) -> int:
        return self.k


@dataclass(frozen=True)
class _Groups:
    """m groups of k samples of each row."""

    m: int
    k: int

    def __post_init__(self) -> None:
        count("m", self.m)
        count("k", self.k)

    @property
    def n_samples(self) -> int:
        return self.m * self.k


@dataclass(frozen=True)
class ELBO(_Samples):
    """The variational bound of Kingma and Welling (2014), averaged over k samples.

    form: "kl" computes the Kullback-Leibler divergence of the top layer in closed form, "importance" samples it.
    """

    k: int = 1
    form: Form = "kl"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("kl", "importance"):
            raise ValueError(f"form: expected 'kl' or 'importance', got {self.form!r}")

    def backward(self, model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        bounds = model.log_weights_and_samples(x, self.k, generator, self.form)[0].mean(0)
        return _descend(bounds)


@dataclass(frozen=True)
class STL(_Samples):
    """The variational bound without the score of q, "sticking the landing": Roeder, Wu and Duvenaud (2017).

    Unbiased, since the score has mean zero; its variance goes to zero as q becomes the true posterior.
    """

    k: int = 1

    def backward(self, model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return _descend(model.log_weights_and_samples(x, self.k, generator, route="path")[0].mean(0))


@dataclass(frozen=True)
class IWAE(_Samples):
    """The importance-weighted bound L_k of Burda, Grosse and Salakhutdinov (2016)."""

    def backward(self, model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return _descend(_bound(model.log_weights_and_samples(x, self.k, generator)[0]))


@dataclass(frozen=True)
class DReG(_Samples):
    """L_k with the doubly reparameterised gradient of Tucker, Lawson, Gu and Maddison (2019).

    Unbiased as ``IWAE`` is, but the signal that reaches q does not drown in noise as k grows.
    """

    def backward(self, model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        log_w, samples = model.log_weights_and_samples(x, self.k, generator, route="path")
        normalised = log_w.detach().softmax(0)
        again = normalised.unsqueeze(-1)
        for h in samples:  # what leaves p for q carries one w̃ already
            if h.requires_grad:
                h.register_hook(lambda gradient: gradient * again)  # type: ignore[no-untyped-call]
        bounds = _bound(log_w)
        _descend(bounds)
        return bounds.detach()


@dataclass(frozen=True)
class MIWAE(_Groups):
    """The mean of m independent draws of L_k: Rainforth et al., Tighter variational bounds are not better (2018)."""

    def backward(self, model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        log_w = model.log_weights_and_samples(x, self.n_samples, generator)[0]
        return _descend(_bound_in_groups(log_w, self.m))


@dataclass(frozen=True)
class PIWAE(_Groups):
    """p climbs L_{mk} and q the mean of m draws of L_k, on the same samples: Rainforth et al. (2018)."""

    def backward(self, model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        log_w = model.log_weights_and_samples(x, self.n_samples, generator)[0]
        bounds = _bound(log_w)
        of_q = _trained(model.recognition)
        of_p = [*_trained(model.priors), *_trained(model.observation)]
        if of_p:
            (-bounds.mean()).backward(inputs=of_p, retain_graph=True)  # type: ignore[no-untyped-call]
        if of_q:
            (-_bound_in_groups(log_w, self.m).mean()).backward(inputs=of_q)  # type: ignore[no-untyped-call]
        return bounds.detach()


@dataclass(frozen=True)
class CIWAE(_Samples):
    """β times the variational bound plus 1 - β times L_k, on the same samples: Rainforth et al. (2018)."""

    beta: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta: expected a number from 0 to 1, got {self.beta}")

    def backward(self, model: VAE, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        log_w = model.log_weights_and_samples(x, self.k, generator)[0]
        return _descend(self.beta * log_w.mean(0) + (1 - self.beta) * _bound(log_w))


ESTIMATORS: dict[str, type] = {kind.__name__: kind for kind in (ELBO, STL, IWAE, DReG, MIWAE, PIWAE, CIWAE)}


def _bound(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def _bound_in_groups(log_w: Tensor, m: int) -> Tensor:
    groups = log_w.reshape(m, -1, log_w.shape[1])
    return (groups.logsumexp(1) - math.log(groups.shape[1])).mean(0)


def _trained(part: nn.Module) -> list[nn.Parameter]:
    """Its parameters but for frozen ones."""
    return [parameter for parameter in part.parameters() if parameter.requires_grad]


def _descend(bounds: Tensor) -> Tensor:
    (-bounds.mean()).backward()  # type: ignore[no-untyped-call]
    return bounds.detach()
