"""Annealed importance sampling in reverse, from samples of the machine down to the base: the other side of log Z."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from bm_fast.arguments import count
from bm_fast.arrays import Array, given_kind
from bm_fast.chains import Chains
from bm_fast.estimation._machine import Model, as_machine, hidden_updates, visible_values
from bm_fast.estimation._path import Path, anneal, path_of
from bm_fast.estimation.ais import AISEstimate, UntrustworthyEstimate
from bm_fast.estimation.likelihood import log_likelihood
from bm_fast.estimation.schedule import PUBLISHED, Schedule, schedule_betas

_REVERSE_CHAINS = 3 * 2**29  # index of the first chain: random numbers that no forward run of the same seed draws


def reverse_ais(
    model: Model,
    samples: Sequence[Tensor],
    *,
    betas: Schedule = PUBLISHED,
    base: Sequence[Tensor] | None = None,
    path: Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> AISEstimate:
    """Estimates log Z from samples of the machine, one run from each down to independent units; they are not changed.

    A run's weight Π_k p_k(x_k+1) / p_k+1(x_k+1) / Z_base has expectation 1 / Z if its start is a sample of the machine,
    so -log of the mean weight lies above log Z on average (Jensen), where ``ais`` lies below: together they are a
    bracket. ``log_weights`` are those of 1 / Z. How good the bracket is depends on the samples, which may be exact or
    come from ``tempering.Ladders.at_target``: data, or chains that miss a mode, make it meaningless.

    samples: states of all layers, ``[n_runs, units]`` as in ``Chains.layers``.
    betas, base, path, progress: as for ``ais``.

    Source: Burda, Grosse and Salakhutdinov, Accurate and conservative estimates of MRF log-likelihood using reverse
    annealing (2015), who anneal from the data; Grosse, Ghahramani and Adams (2015) for exact samples.
    """
    machine = as_machine(model)
    machine.energy(samples)  # checks them
    path = path_of(machine, base, path)
    schedule = schedule_betas(betas, path, seed, progress)
    chains = Chains(tuple(layer.clone() for layer in samples), seed, 0, _REVERSE_CHAINS)
    log_weights = _descend(path, chains, schedule, progress)
    inverse = AISEstimate.from_log_weights(log_weights, len(schedule))
    low, high = inverse.interval
    estimate = replace(inverse, log_z=-inverse.log_z, interval=(-high, -low))
    if not estimate.trustworthy:
        warnings.warn(f"log Z by reverse AIS: {estimate.reason}", UntrustworthyEstimate, stacklevel=2)
    return estimate


def raise_log_likelihood(
    model: Model,
    v: Array,
    n_runs: int = 10,
    *,
    betas: Schedule = PUBLISHED,
    base: Sequence[Tensor] | None = None,
    path: Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Array:
    """A cautious log-likelihood of each case without log Z, float64 ``[n]``: RAISE, the reverse AIS estimator.

    Annealing up from the base, as ``ais`` does, defines a model of its own: whatever its last step draws. Runs from the
    case down to the base are importance samples of how it could have been drawn, and

        log (1/n_runs) Σ_runs exp(-F(v)) Π_k p_k(x_k+1) / p_k+1(x_k+1) / Z_base

    is at most the log-probability of v under that model, in expectation (Jensen). On average over samples of the
    machine that cannot be above their log-likelihood under the machine; for data it is as a rule below, but not for
    every case: coarse annealing makes improbable cases more probable. More betas narrow both gaps, more runs the first.
    No samples of the machine are needed, and no mode that was missed makes the figure too high.

    v: uint8 or float32 ``[n, units]`` of layer 0, exactly 0 or 1 for Bernoulli units.
    n_runs: for each case; n · n_runs chains are annealed at once.
    betas, base, path, progress: as for ``ais``.
    ValueError where hidden layers are coupled to each other: they cannot be drawn exactly given v.

    Source: Burda, Grosse and Salakhutdinov, Accurate and conservative estimates of MRF log-likelihood using reverse
    annealing (AISTATS 2015).
    """
    count("n_runs", n_runs)
    machine = as_machine(model)
    values = visible_values(machine, v)
    hidden = hidden_updates(machine.graph)
    above_log_z = log_likelihood(machine, values, 0.0)
    path = path_of(machine, base, path)
    schedule = schedule_betas(betas, path, seed, progress)
    chains = machine.chains(len(values) * n_runs, seed, _REVERSE_CHAINS)
    chains.layers[0].copy_(values.repeat_interleave(n_runs, 0))
    machine.sweep((hidden,), chains, 1)
    log_weights = _descend(path, chains, schedule, progress).view(-1, n_runs)
    return given_kind(above_log_z + log_weights.logsumexp(1) - math.log(n_runs), v)


def _descend(path: Path, chains: Chains, schedule: Tensor, progress: bool) -> Tensor:
    """Anneals chains down to the base, in place; log Π_k p_k / p_k+1 - log Z_base of each, float64 ``[n]``."""
    return anneal(path, chains, schedule.flip(0), "reverse AIS", progress) - path.base_log_z()
