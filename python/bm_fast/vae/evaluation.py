"""How good a model is: bounds of the log-likelihood for any number of samples, active units, spread of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from bm_fast.arguments import count
from bm_fast.arrays import Array, given_kind
from bm_fast.vae.model import VAE

_ROWS = {"cpu": 2048, "cuda": 65_536}
"""Samples that are decoded at once: on a CPU as many as are fastest with the networks of the paper."""

_IMAGES = 4
"""Data rows in a chunk with many samples: they share one run of the recognition network."""


@dataclass(frozen=True)
class Bound:
    """L_k averaged over data rows; standard_error: of that mean, over the rows."""

    k: int
    mean: float
    standard_error: float

    def __str__(self) -> str:
        return f"L_{self.k} = {self.mean:.2f} ± {self.standard_error:.2f} nats"


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found.

    bounds: L_k by k. effective_sample_size: (Σ w)² / Σ w² of the largest k, mean over the rows; near 1 one sample
    makes up the whole estimate. active_units: of each stochastic layer, from the one next to the data up.
    """

    bounds: dict[int, Bound]
    effective_sample_size: float
    active_units: tuple[int, ...]


def log_likelihood(model: VAE, x: Array, k: int = 5000, seed: int = 0, progress: bool = False) -> Array:
    """One draw of log (1/k) Σᵢ wᵢ for each row, float64 ``[n]``: a lower bound of log p(x) on average.

    x: 0/1 (or real) ``[n, n_visible]``. Memory grows with k by 32 bytes a sample. seed: decides the samples.
    FloatingPointError names the first row whose bound is not finite.
    """
    parts = [_log_mean(log_w) for log_w in _all_log_weights(model, x, k, seed, progress)]
    return given_kind(_all_finite(torch.cat(parts)), x)


def evaluate(
    model: VAE,
    x: Tensor | NDArray[np.generic],
    ks: Sequence[int] = (1, 5, 50, 5000),
    seed: int = 0,
    progress: bool = False,
) -> Evaluation:
    """L_k for each of ``ks``, effective sample size and active units, all from the same max(ks) samples of each row.

    A smaller k uses all samples as well, in as many groups as there are; FloatingPointError as ``log_likelihood``.
    """
    if not ks:
        raise ValueError("ks: expected at least one number of samples, got none")
    for k in ks:
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"ks: expected whole numbers of at least 1, got {k!r}")
    found: dict[int, list[Tensor]] = {k: [] for k in ks}
    sizes = []
    for log_w in _all_log_weights(model, x, max(ks), seed, progress):
        for k, parts in found.items():
            whole = log_w[: len(log_w) // k * k].reshape(-1, k, log_w.shape[1])
            parts.append((whole.logsumexp(1) - math.log(k)).mean(0))
        sizes.append((2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).exp())
    bounds = {k: _bound(k, _all_finite(torch.cat(parts))) for k, parts in sorted(found.items())}
    return Evaluation(bounds, float(torch.cat(sizes).mean()), active_units(model, x, seed=seed))


@torch.no_grad()
def active_units(
    model: VAE, x: Tensor | NDArray[np.generic], threshold: float = 0.01, n_samples: int = 50, seed: int = 0
) -> tuple[int, ...]:
    """How many units of each layer the model uses: those with Var_x(E_q[h | x]) > threshold.

    The expectation is exact for h¹. Above it is a mean over ``n_samples`` samples of the layers below, and the
    variance the covariance of two such means, which their noise does not inflate. Source: Burda et al. (2016), 5.2.
    """
    count("n_samples", n_samples)
    values = model.rows(x)
    generator = torch.Generator(values.device).manual_seed(seed)
    means: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.latents]
    for part in torch.split(values, max(1, _at_once(values) // n_samples)):
        given: tuple[Tensor, Tensor] = (part, part)
        for layer, network in enumerate(model.recognition):
            halves, drawn = [], []
            for half in given:
                mean, log_scale = network(half)
                shape = (n_samples, *mean.shape) if layer == 0 else mean.shape
                noise = torch.randn(shape, generator=generator, device=part.device)
                halves.append(mean if layer == 0 else mean.mean(0))
                drawn.append(mean + log_scale.exp() * noise)
            means[layer].append((halves[0], halves[1]))
            given = (drawn[0], drawn[1])
    counts = []
    for layer_means in means:
        first, second = (torch.cat(half).double() for half in zip(*layer_means, strict=True))
        covariance = ((first - first.mean(0)) * (second - second.mean(0))).mean(0)
        counts.append(int((covariance > threshold).sum()))
    return tuple(counts)


@torch.no_grad()
def _all_log_weights(
    model: VAE, x: Tensor | NDArray[np.generic], k: int, seed: int, progress: bool
) -> Iterator[Tensor]:
    """Log weights of some rows after the other, float64 ``[k, rows]``."""
    count("k", k)
    values = model.rows(x)
    generator = torch.Generator(values.device).manual_seed(seed)
    at_once = _at_once(values)
    images = max(_IMAGES, at_once // k)
    samples = max(1, at_once // images)
    with tqdm(total=len(values), unit="row", disable=not progress) as bar:
        for part in torch.split(values, images):
            log_w = torch.empty(k, len(part), dtype=torch.float64, device=values.device)
            for chunk in torch.split(log_w, samples):
                chunk.copy_(model.log_weights_and_samples(part, len(chunk), generator)[0])
            yield log_w
            bar.update(len(part))


def _at_once(values: Tensor) -> int:
    """How many samples to decode at once, where ``values`` are."""
    return _ROWS.get(values.device.type, _ROWS["cpu"])


def _log_mean(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def _all_finite(bounds: Tensor) -> Tensor:
    bad = torch.nonzero(~torch.isfinite(bounds))
    if len(bad):
        raise FloatingPointError(f"x: the bound of row {int(bad[0])} is {float(bounds[bad[0]])}")
    return bounds


def _bound(k: int, values: Tensor) -> Bound:
    error = float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return Bound(k, float(values.mean()), error)
