"""What a run of parallel tempering shows about itself: swaps, round trips, barrier, autocorrelation, and advice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LEAST_ACCEPTANCE = 0.1
"""Mean probability of a swap below which a pair of rungs is called a bottleneck."""

FEWEST_ATTEMPTS = 20
"""Tries of a pair before anything is said about it."""


class PoorMixing(RuntimeWarning):
    """Tempering that does not carry chains between the ends of its ladders, in a run or in an epoch of training."""


def bottleneck(betas: Tensor, attempts: Tensor, acceptance: Tensor) -> str | None:
    """How many neighbouring rungs hardly swap, and the worst of them; None where all do or too little was tried."""
    tried = attempts >= FEWEST_ATTEMPTS
    slow = [i for i in range(len(attempts)) if tried[i] and acceptance[i] < LEAST_ACCEPTANCE]
    if not slow:
        return None
    worst = min(slow, key=lambda i: float(acceptance[i]))
    low, high = (f"{float(beta):.4g}" for beta in betas[worst : worst + 2])
    return (
        f"{len(slow)} of {len(attempts)} pairs of rungs swap less than {LEAST_ACCEPTANCE:.0%} of the time, "
        f"beta {low} and {high} {float(acceptance[worst]):.1%}"
    )


@dataclass(frozen=True)
class TemperingReport:
    """What was counted in one run; see ``run``.

    betas: float32 ``[n_rungs]``.
    attempts: int64 ``[n_rungs - 1]``, tries of each pair of neighbouring rungs.
    acceptance: float64 ``[n_rungs - 1]``, mean probability with which they were taken; NaN where there was none.
    trips: arrivals of a chain at the target that came from the base; each belongs to one round trip.
    gaps: float64 ``[rounds, n_ladders, n_rungs]``, E - E_base on each rung before each round of swaps; None if not
        kept.
    """

    betas: Tensor
    n_ladders: int
    rounds: int
    attempts: Tensor
    acceptance: Tensor
    trips: int
    gaps: Tensor | None

    @property
    def n_rungs(self) -> int:
        return len(self.betas)

    @property
    def rejection(self) -> Tensor:
        """1 - acceptance, float64 ``[n_rungs - 1]``; 0 where no swap was tried."""
        return 1 - self.acceptance.nan_to_num(nan=1.0)

    @property
    def barrier(self) -> float:
        """Λ, the sum of the rejections: the global communication barrier between base and target.

        It hardly depends on the ladder. About 2 Λ rungs are best, with which every second swap is taken.
        """
        return float(self.rejection.sum())

    @property
    def predicted_trips(self) -> float:
        """Round trips if successive visits were independent: n_ladders rounds / (2 + 2 Σ r / (1 - r))."""
        odds = self.rejection / (1 - self.rejection).clamp(min=1e-12)
        return self.n_ladders * self.rounds / (2 + 2 * float(odds.sum()))

    @cached_property
    def autocorrelation(self) -> float | None:
        """Integrated autocorrelation time of the gap at the target, in rounds; None where gaps were not kept."""
        return None if self.gaps is None else integrated_autocorrelation(self.gaps[:, :, -1])

    @property
    def advice(self) -> tuple[str, ...]:
        """What is wrong with the run, and what to do about it; empty where nothing speaks against it."""
        advice = []
        found = bottleneck(self.betas, self.attempts, self.acceptance)
        if found is not None:
            advice.append(
                f"{found}; adapt the betas (adapted_betas), use more rungs, or a base that is closer to the machine"
            )
        if self.trips == 0 and self.predicted_trips >= 10:
            advice.append(
                f"no chain went from the base to the target in {self.rounds} rounds, where "
                f"{self.predicted_trips:.0f} were expected from the swaps; use more sweeps between swaps, or "
                "more rounds"
            )
        return tuple(advice)

    def __str__(self) -> str:
        rate = self.acceptance.nan_to_num(nan=1.0)
        parts = [
            f"{self.n_ladders} ladders of {self.n_rungs} rungs, {self.rounds} rounds",
            f"swaps taken {float(rate.mean()):.0%} on average, {float(rate.min()):.0%} at least",
            f"barrier {self.barrier:.2f}",
            f"round trips {self.trips} (predicted {self.predicted_trips:.0f})",
        ]
        if self.autocorrelation is not None:
            moved = self.autocorrelation < math.inf
            parts.append(
                f"autocorrelation {self.autocorrelation:.1f} rounds"
                if moved
                else "the energy at the target never changed"
            )
        return "; ".join(parts) + "".join(f"\nPOOR MIXING: {advice}" for advice in self.advice)


def integrated_autocorrelation(values: Tensor) -> float:
    """τ = 1 + 2 Σ_t ρ(t) of stationary series, in steps: n / τ steps are worth as many independent draws.

    values: ``[n_steps, n_chains]`` or ``[n_steps]``. Correlations are those about the mean of all chains, averaged over
    the chains; the sum ends at the first lag beyond 5 τ (Sokal). inf where the series never change, and a lower bound
    where they are shorter than about 50 τ.

    Source: Sokal, Monte Carlo methods in statistical mechanics (1997).
    """
    if values.dim() not in (1, 2) or len(values) < 2 or values.numel() == 0:
        raise ValueError(
            f"values: expected [n_steps] or [n_steps, n_chains], 2 steps at least, got {list(values.shape)}"
        )
    series = values.double().reshape(len(values), -1)
    n = len(series)
    centred = series - series.mean()
    size = 2 ** math.ceil(math.log2(2 * n))
    power = torch.fft.rfft(centred, n=size, dim=0).abs().square().mean(1)
    covariance = torch.fft.irfft(power, n=size)[:n] / torch.arange(n, 0, -1, dtype=torch.float64, device=series.device)
    if float(covariance[0]) <= 1e-24 * float(series.square().mean().clamp(min=1e-300)):
        return math.inf
    tau = 2 * (covariance / covariance[0]).cumsum(0) - 1
    beyond = torch.arange(n, device=series.device) >= 5 * tau
    window = int(beyond.int().argmax()) if bool(beyond.any()) else n - 1
    return max(float(tau[window]), 1.0)
