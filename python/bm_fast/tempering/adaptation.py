"""Betas of a ladder, adapted until every pair of neighbouring rungs rejects equally often."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from bm_fast.arguments import whole_number
from bm_fast.chains import Chains
from bm_fast.machines import Model, as_machine
from bm_fast.ops import Machine, Rungs
from bm_fast.rungs import MAX_RUNGS
from bm_fast.tempering.ladders import Ladders, run_quietly, start
from bm_fast.tempering.report import TemperingReport

_PILOT_CHAINS = 2**30  # about the index of the first pilot chain: random numbers that no run of the same seed draws
_FIRST_ROUNDS, _FIRST_RUNGS, _MOST_RUNGS = 8, 16, 64


def adapted_betas(
    model: Model,
    n_rungs: int | None = None,
    *,
    base: Sequence[Tensor] | None = None,
    n_ladders: int = 8,
    doublings: int = 6,
    sweeps: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Betas from 0 to 1 between which swaps are rejected equally often, float32 ``[n_rungs]``.

    Pilot ladders run in rounds of doubling length, 8, 16, … ``8 · 2^(doublings - 1)`` rounds of swaps. After each, the
    barrier up to beta, Λ(beta) = Σ of the rejections below, is interpolated between the rungs, and the next betas lie
    at equal steps of it. Rejections of neighbours add up whatever the ladder is, so this settles quickly.

    n_rungs: None for 2 Λ + 1 rungs, at least 3 and at most 64: then every second swap is taken.
    base: as for ``start``; without one, a graph with a Gaussian layer cannot go down to beta = 0.

    Source: Syed, Bouchard-Côté, Deligiannidis and Doucet, Non-reversible parallel tempering, JRSS B 84 (2022).
    """
    machine = as_machine(model)
    doublings = whole_number("doublings", doublings, 1, 24)
    first = _FIRST_RUNGS if n_rungs is None else whole_number("n_rungs", n_rungs, 2, MAX_RUNGS)
    ladders = start(machine, n_ladders, first, base=base, seed=seed, first_ladder=_PILOT_CHAINS // first)
    bar = tqdm(range(doublings), desc="adapting betas", leave=False, delay=1.0, disable=not progress)
    for k in bar:
        report = run_quietly(machine, ladders, _FIRST_ROUNDS << k, sweeps, False)
        count = min(max(math.ceil(2 * report.barrier) + 1, 3), _MOST_RUNGS) if n_rungs is None else first
        ladders = _moved(machine, ladders, equal_rejection(report, count))
    return ladders.betas


def equal_rejection(report: TemperingReport, n_rungs: int) -> Tensor:
    """Betas at equal steps of the barrier that a run has shown, float32 ``[n_rungs]``."""
    rejection = report.rejection.cpu().numpy() + 1e-6  # where nothing is rejected, betas are spread evenly
    barrier = np.concatenate([[0.0], np.cumsum(rejection)])
    betas = np.interp(np.linspace(0, barrier[-1], n_rungs), barrier, report.betas.double().cpu().numpy()).astype(
        np.float32
    )
    betas[0], betas[-1] = float(report.betas[0]), float(report.betas[-1])
    for i in range(1, n_rungs):  # steps below the grid of float32 would make two rungs one
        betas[i] = max(betas[i], np.nextafter(betas[i - 1], np.float32(2)))
    if betas[-1] != float(report.betas[-1]):
        raise ValueError(f"n_rungs: {n_rungs} rungs are too many for float32 betas of this machine")
    return torch.from_numpy(betas).to(report.betas.device)


def _moved(machine: Machine, old: Ladders, betas: Tensor) -> Ladders:
    """Ladders on new betas: with the same number of rungs the same ones, else chains from the nearest old rungs."""
    if len(betas) == old.n_rungs:
        return Ladders(old.chains, old.rungs, betas, old.base)
    nearest = (betas[:, None] - old.betas).abs().argmin(1)
    order = old.rungs.rungs.view(old.n_ladders, -1).argsort(1)  # [ladder, rung]
    chosen = (order[:, nearest] + torch.arange(old.n_ladders, device=machine.device)[:, None] * old.n_rungs).flatten()
    chains = Chains(
        tuple(layer[chosen] for layer in old.chains.layers),
        old.chains.seed,
        old.chains.sweep,
        _PILOT_CHAINS // len(betas) * len(betas),
    )
    rungs = Rungs.start(old.n_ladders, len(betas), machine.device)
    rungs.round = old.rungs.round
    return Ladders(chains, rungs, betas, old.base)
