"""Inverse temperatures for annealed importance sampling: chosen, published, or adapted to the machine."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from bm_fast.arguments import count
from bm_fast.estimation._machine import Model, as_machine
from bm_fast.estimation._path import Path, path_of

PUBLISHED = "salakhutdinov-murray"
"""14,503 betas: steps of 1e-3 to 0.5, 1e-4 to 0.9, 1e-5 to 1 (Salakhutdinov and Murray, ICML 2008, and their code)."""

ADAPTIVE = "adaptive"
"""The schedule of ``adaptive_betas`` with its default arguments."""

_PILOT_CHAINS = 2**30  # index of the first pilot chain: random numbers that no estimate of the same seed draws
_MAX_ADAPTIVE = 200_000


Schedule = str | int | Sequence[float] | Tensor | NDArray[np.generic]
"""``PUBLISHED``, ``ADAPTIVE``, a number of equidistant betas, or betas that rise from 0 to 1."""


def schedule_betas(betas: Schedule, path: Path, seed: int, progress: bool) -> Tensor:
    """The betas of an estimate along a path, float32 ``[n]``."""
    if isinstance(betas, str) and betas == ADAPTIVE:
        return adaptive_betas(path.machine, path=path, seed=seed, progress=progress)
    return fixed_betas(betas)


def fixed_betas(betas: Schedule) -> Tensor:
    """A schedule as float32 ``[n]`` from 0 to 1: ``PUBLISHED``, n equal steps from a number, or the given betas.

    A beta may be repeated: it then gets another sweep. ValueError where betas fall, or do not run from 0 to 1.
    """
    if isinstance(betas, str):
        if betas != PUBLISHED:
            raise ValueError(f"betas: expected {PUBLISHED!r}, {ADAPTIVE!r}, a number or a sequence, got {betas!r}")
        parts = ((0, 500, 1000), (5000, 9000, 10_000), (90_000, 100_000, 100_000))
        return torch.cat([torch.arange(a, b + 1, dtype=torch.float64) / d for a, b, d in parts]).float()
    if isinstance(betas, int):
        if betas < 2:
            raise ValueError(f"betas: expected at least 2, got {betas}")
        return torch.linspace(0, 1, betas, dtype=torch.float64).float()
    try:
        values = torch.as_tensor(betas).to(torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"betas: expected {PUBLISHED!r}, {ADAPTIVE!r}, a number or a sequence, got {betas!r}"
        ) from error
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(f"betas: expected one dimension and at least 2 values, got {list(values.shape)}")
    if not bool((values[1:] >= values[:-1]).all()) or values[0] != 0 or values[-1] != 1:
        raise ValueError(f"betas: expected values that rise from 0 to 1, got {_abridged(values)}")
    return values


def adaptive_betas(
    model: Model,
    *,
    drop: float = 1e-4,
    n_runs: int = 100,
    base: Sequence[Tensor] | None = None,
    path: Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    """Betas between which the effective sample size falls by the same fraction ``drop``; float32 ``[n]``.

    Pilot runs walk from the base to the machine. At each beta the next one is where the conditional effective sample
    size of one step, (Σ w)² / (n Σ w²), has fallen to 1 - drop (Zhou, Johansen and Aston, JCGS 2016). All pilots count
    alike here: importance weights could have collapsed onto one of them, which would hide every further fall.
    The pilots' random numbers are not those of an estimate with the same seed, so the estimate stays unbiased.

    drop: about the variance that one step adds to the log weights.
    base, path: as for ``ais``.
    """
    if not 0 < drop < 1:
        raise ValueError(f"drop: expected a fraction between 0 and 1, got {drop}")
    if count("n_runs", n_runs) < 10:
        raise ValueError(f"n_runs: expected at least 10 pilot runs to measure their spread, got {n_runs}")
    path = path_of(as_machine(model), base, path)
    chains = path.start(n_runs, seed, first_chain=_PILOT_CHAINS)
    betas, step = [0.0], 1e-3
    with tqdm(total=1.0, desc="adapting betas", leave=False, delay=1.0, disable=not progress) as bar:
        while betas[-1] < 1:
            step = _next_step(path, chains.layers, betas[-1], step, drop)
            now = torch.tensor(betas[-1], dtype=torch.float32)
            following = torch.maximum(now + step, torch.nextafter(now, torch.tensor(2.0))).clamp(max=1)
            betas.append(following.item())
            if len(betas) > _MAX_ADAPTIVE:
                raise RuntimeError(f"drop: {drop} needs more than {_MAX_ADAPTIVE} betas for this machine; raise it")
            if betas[-1] < 1:
                path.move(chains, betas[-1])
            bar.update(betas[-1] - betas[-2])
    return torch.tensor(betas, dtype=torch.float32)


def _next_step(path: Path, layers: Sequence[Tensor], beta: float, step: float, drop: float) -> float:
    """The step that lowers the conditional effective sample size by ``drop``; at most four times ``step``."""
    steps = [min(step * factor, 1 - beta) for factor in (0.25, 0.5, 1.0, 2.0, 4.0)]
    log_p = path.log_density(layers, [beta, *(beta + s for s in steps)])
    log_w = log_p[1:] - log_p[0]
    log_ess = 2 * log_w.logsumexp(1) - (2 * log_w).logsumexp(1)
    fall = -torch.expm1(log_ess - torch.tensor(float(log_w.shape[1])).log())
    good = list(itertools.takewhile(lambda i: fall[i] <= drop, range(len(steps))))  # of a few chains it may fall again
    if len(good) == len(steps):
        return steps[-1]
    # the fall grows with the square of a small step
    anchor = good[-1] if good else 0
    size = max(float(fall[anchor]), 1e-12)
    longest = steps[anchor + 1] if good else steps[0]
    return min(steps[anchor] * math.sqrt(drop / size), longest)


def _abridged(values: Tensor) -> str:
    numbers = [f"{value:g}" for value in values.tolist()]
    return ", ".join(numbers if len(numbers) <= 6 else [*numbers[:3], "...", *numbers[-2:]])
