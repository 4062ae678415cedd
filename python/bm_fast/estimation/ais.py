"""Annealed importance sampling (Neal, 2001) of log Z, with error bars and a verdict on whether to believe them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bm_fast import arrays
from bm_fast.arguments import count
from bm_fast.estimation._machine import Model, as_machine
from bm_fast.estimation._path import Path, anneal, path_of
from bm_fast.estimation.schedule import PUBLISHED, Schedule, schedule_betas
from bm_fast.graph import Kind

MIN_EFFECTIVE_SAMPLES = 10
"""The least effective sample size that is trusted. It keeps the standard error of log Z below 0.32, so that the
interval of three standard errors stays above Z = 0, and any one weight below a third of the sum."""

MIN_EFFECTIVE_FRACTION = 0.05
"""The least share of the runs that is trusted: below it the weights' tail is too heavy to measure their spread."""

_SMOOTHING = 0.05  # five pseudo-observations of each unit for every hundred cases


class UntrustworthyEstimate(RuntimeWarning):
    """An estimate of log Z whose importance weights have collapsed."""


@dataclass(frozen=True)
class AISEstimate:
    """An estimate of log Z from importance weights, and how far to trust it.

    log_z: log of the mean weight. Its expectation lies below log Z (Jensen), so likelihoods come out too high.
    standard_error: of log_z, by the delta method: sd(w) / (mean(w) sqrt(n)).
    interval: log of the mean weight -+ three standard errors (Salakhutdinov and Murray, 2008); may begin at -inf.
    effective_sample_size: (Σ w)² / Σ w², between 1 and the number of runs.
    log_weights: float64 ``[n_runs]``; their mean is another, lower estimate.
    trustworthy: False when the weights have collapsed; ``reason`` says in what way, and is empty otherwise.
    """

    log_z: float
    standard_error: float
    interval: tuple[float, float]
    effective_sample_size: float
    log_weights: Tensor
    n_betas: int
    trustworthy: bool
    reason: str

    @classmethod
    def from_log_weights(cls, log_weights: Tensor, n_betas: int) -> AISEstimate:
        """Statistics and verdict of weights whose expectation is Z; float64 ``[n_runs]``, at least one."""
        if log_weights.dim() != 1 or len(log_weights) == 0:
            raise ValueError(f"log_weights: expected [n_runs], one at least, got {list(log_weights.shape)}")
        n_runs = len(log_weights)
        log_mean = log_weights.logsumexp(0) - math.log(n_runs)
        relative = (log_weights - log_mean).exp()  # mean 1; no overflow: at most n_runs
        error = relative.std().item() / math.sqrt(n_runs) if n_runs > 1 else math.inf
        effective = (relative.sum().square() / relative.square().sum()).item()
        log_z = log_mean.item()
        low = log_z + math.log1p(-3 * error) if 3 * error < 1 else -math.inf
        reason = _distrust(log_weights, effective)
        return cls(
            log_z, error, (low, log_z + math.log1p(3 * error)), effective, log_weights, n_betas, not reason, reason
        )

    def __str__(self) -> str:
        text = (
            f"log Z = {self.log_z:.2f} ± {self.standard_error:.2f} ({len(self.log_weights)} runs, {self.n_betas} "
            f"betas, effective sample size {self.effective_sample_size:.1f})"
        )
        return text if self.trustworthy else f"{text}; NOT TRUSTWORTHY: {self.reason}"


def ais(
    model: Model,
    n_runs: int = 100,
    *,
    betas: Schedule = PUBLISHED,
    base: Sequence[Tensor] | None = None,
    path: Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> AISEstimate:
    """Estimates log Z by annealing ``n_runs`` chains at once from independent units to the machine.

    A run's weight Z_base Π_k p_k+1(x_k) / p_k(x_k) has expectation Z exactly, for any schedule and with one Gibbs sweep
    between betas; a finer schedule makes it vary less. The result depends on the arguments and the seed alone.

    betas: "salakhutdinov-murray" (14,503 of them), "adaptive", a number of equidistant ones, or values that rise from
        0 to 1.
    base: per layer float32 ``[units]``, the biases at beta = 0; ``base_biases`` makes them from data. Default zero.
    path: other distributions on the way, such as those of ``moment_averaged_path``. Default: geometric, energies are
        interpolated.
    progress: shows a bar if it takes longer than a second.

    Warns with ``UntrustworthyEstimate`` when the weights have collapsed. Well-behaved weights do not prove that every
    mode was found: a machine that mixes badly can fool any estimate of this kind.

    Source: Neal, Annealed importance sampling, Statistics and Computing 11 (2001); Salakhutdinov and Murray, On the
    quantitative analysis of deep belief networks (ICML 2008), for machines of this kind.
    """
    count("n_runs", n_runs)
    machine = as_machine(model)
    path = path_of(machine, base, path)
    schedule = schedule_betas(betas, path, seed, progress)
    chains = path.start(n_runs, seed)
    log_weights = path.base_log_z() + anneal(path, chains, schedule, "AIS", progress)
    estimate = AISEstimate.from_log_weights(log_weights, len(schedule))
    if not estimate.trustworthy:
        warnings.warn(f"log Z by AIS: {estimate.reason}", UntrustworthyEstimate, stacklevel=2)
    return estimate


def base_biases(
    model: Model, data: Tensor | NDArray[np.generic] | Mapping[int, Tensor | NDArray[np.generic]]
) -> list[Tensor]:
    """Biases of independent units that fit the data, one float32 ``[units]`` per layer: the start for ``ais``.

    Bernoulli units: the logit of the smoothed rate (mean + 0.05) / 1.05, which is kept as far below 1 as above 0
    (Salakhutdinov and Murray, 2008, add five counts per hundred cases). Softmax units: the log of rates smoothed
    towards equal ones. Gaussian units: precision · mean. Layers without data: zero.

    data: ``[n, units]`` of layer 0, grey levels in 0..1 allowed; or a mapping from layer to such data.
    """
    machine = as_machine(model)
    parameters = machine.parameters
    base = [torch.zeros_like(bias) for bias in parameters.biases]
    for i, values in (data if isinstance(data, Mapping) else {0: data}).items():
        if not 0 <= i < len(base):
            raise ValueError(f"data: no layer {i} in a graph of {len(base)}")
        mean = arrays.rows("data", values, machine.graph.layers[i], machine.device).mean(0, dtype=torch.float64)
        precision = parameters.precisions[i]
        if precision is not None:
            base[i] = (precision.double() * mean).float()
            continue
        if machine.graph.layers[i].kind is Kind.SOFTMAX:
            base[i] = ((mean + _SMOOTHING / len(mean)) / (1 + _SMOOTHING)).log().float()
            continue
        rate = ((mean + _SMOOTHING) / (1 + _SMOOTHING)).clamp(max=1 / (1 + _SMOOTHING))
        base[i] = rate.logit().float()
    return base


def _distrust(log_weights: Tensor, effective: float) -> str:
    """Why not to trust the mean of these weights; empty when nothing speaks against it."""
    n_runs = len(log_weights)
    if not bool(torch.isfinite(log_weights).all()):
        return "some log weights are not finite"
    if n_runs < MIN_EFFECTIVE_SAMPLES:
        return f"{n_runs} runs are too few to judge the spread of their weights; use more runs"
    if effective < MIN_EFFECTIVE_SAMPLES or effective < MIN_EFFECTIVE_FRACTION * n_runs:
        share = (log_weights - log_weights.logsumexp(0)).exp().max().item()
        cure = "more betas or another base"
        if effective >= MIN_EFFECTIVE_FRACTION * n_runs:  # a fair share of the runs counts, there are just few of them
            cure = f"at least {math.ceil(MIN_EFFECTIVE_SAMPLES * n_runs / effective)} runs, or more betas"
        return (
            f"{n_runs} runs are worth {effective:.1f} independent ones, and the largest weight makes up {share:.0%} "
            f"of the sum; use {cure}"
        )
    return ""
