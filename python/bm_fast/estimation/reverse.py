"""Annealed importance sampling in reverse, from samples of the machine down to the base: the other side of log Z."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from bm_fast.chains import Chains
from bm_fast.estimation._path import AnnealingPath
from bm_fast.estimation.ais import AISEstimate, UntrustworthyEstimate
from bm_fast.estimation.schedule import ADAPTIVE, PUBLISHED, adaptive_betas, fixed_betas
from bm_fast.machines import Model, as_machine

_REVERSE_CHAINS = 3 * 2**29  # index of the first chain: random numbers that no forward run of the same seed draws


def reverse_ais(
    model: Model,
    samples: Sequence[Tensor],
    *,
    betas: str | int | Sequence[float] | Tensor | NDArray[np.generic] = PUBLISHED,
    base: Sequence[Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> AISEstimate:
    """Estimates log Z from samples of the machine, one run from each down to independent units; they are not changed.

    A run's weight Π_k p_k(x_k+1) / p_k+1(x_k+1) / Z_base has expectation 1 / Z if its start is a sample of the machine,
    so -log of the mean weight lies above log Z on average (Jensen), where ``ais`` lies below: together they are a
    bracket. ``log_weights`` are those of 1 / Z. How good the bracket is depends on the samples, which may be exact or
    come from ``tempering.Ladders.at_target``: data, or chains that miss a mode, make it meaningless.

    samples: states of all layers, ``[n_runs, units]`` as in ``Chains.layers``.
    betas, base, progress: as for ``ais``.

    Source: Burda, Grosse and Salakhutdinov, Accurate and conservative estimates of MRF log-likelihood using reverse
    annealing (2015), who anneal from the data; Grosse, Ghahramani and Adams (2015) for exact samples.
    """
    machine = as_machine(model)
    machine.energy(samples)  # checks them
    if isinstance(betas, str) and betas == ADAPTIVE:
        schedule = adaptive_betas(machine, base=base, seed=seed, progress=progress)
    else:
        schedule = fixed_betas(betas)
    path = AnnealingPath(machine, base)
    chains = Chains(tuple(layer.clone() for layer in samples), seed, 0, _REVERSE_CHAINS)
    log_weights = torch.full((chains.n_chains,), -path.base_log_z(), dtype=torch.float64, device=machine.device)
    falling = schedule.flip(0)
    steps = list(zip(falling[:-1].tolist(), falling[1:].tolist(), strict=True))
    bar = tqdm(steps, desc="reverse AIS", unit=" betas", leave=False, delay=1.0, disable=not progress)
    for k, (beta, following) in enumerate(bar):
        if k > 0:
            path.move(chains, beta)
        now, then = path.log_density(chains.layers, (beta, following))
        log_weights += then - now
    inverse = AISEstimate.from_log_weights(log_weights, len(schedule))
    low, high = inverse.interval
    estimate = replace(inverse, log_z=-inverse.log_z, interval=(-high, -low))
    if not estimate.trustworthy:
        warnings.warn(f"log Z by reverse AIS: {estimate.reason}", UntrustworthyEstimate, stacklevel=2)
    return estimate
