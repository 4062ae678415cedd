"""Whether chains have forgotten where they began, and what they are worth: split R-hat, effective sample sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.chains import Chains
from bm_fast.machines import Model, as_machine
from bm_fast.ops import Machine
from bm_fast.program import gibbs_program
from bm_fast.tempering import integrated_autocorrelation

if TYPE_CHECKING:
    from xarray import DataTree

LARGEST_R_HAT = 1.1
"""Split R-hat above which chains still differ from each other, or from themselves earlier."""

MOST_STUCK = 0.1
"""Share of the chains that may keep all units of a layer as they are, beyond which they are called stuck."""


@dataclass(frozen=True, repr=False)
class LayerHealth:
    """Of the units of one layer, those that never changed in any chain left out of the first two.

    r_hat: split R-hat of each unit, float64 ``[units]``; NaN for units that never changed.
    effective_sample_size: of each unit's mean over all chains and samples, ``[units]``; NaN likewise.
    frozen: units that had one value in all chains and samples.
    stuck: share of the chains in which no unit of the layer ever changed, be they all in one state or in many.
    autocorrelation: integrated autocorrelation time of the layer's mean activity, in samples; inf if it never changed.
    """

    name: str
    r_hat: Tensor
    effective_sample_size: Tensor
    frozen: int
    stuck: float
    autocorrelation: float

    @property
    def worst_r_hat(self) -> float:
        """The largest split R-hat of a unit; NaN where all are frozen."""
        moving = self.r_hat[~self.r_hat.isnan()]
        return float(moving.max()) if len(moving) else math.nan

    @property
    def faults(self) -> tuple[str, ...]:
        """What speaks against the chains; empty where nothing does."""
        found = []
        if self.worst_r_hat > LARGEST_R_HAT:
            found.append("NOT CONVERGED")
        if self.stuck > MOST_STUCK:
            found.append(f"STUCK: {self.stuck:.0%} of the chains never changed")
        return tuple(found)

    def __str__(self) -> str:
        moving = self.effective_sample_size[~self.effective_sample_size.isnan()]
        text = f"{self.name}: all {self.frozen} units are frozen"
        if len(moving):
            text = (
                f"{self.name}: R-hat {self.worst_r_hat:.3f} at worst, effective sample size {float(moving.min()):.0f} "
                f"at least, {self.frozen} of {len(self.r_hat)} units frozen, autocorrelation of the activity "
                f"{self.autocorrelation:.1f} samples"
            )
        return "; ".join([text, *self.faults])

    def __repr__(self) -> str:
        """The figures in short, so that what ``chain_health`` gives can be printed as it is."""
        return f"<{self}>"


def chain_health(model: Model, chains: Chains, n_samples: int = 100, sweeps: int = 1) -> list[LayerHealth]:
    """Runs chains on and measures each layer, from ``n_samples`` states of all chains, ``sweeps`` sweeps apart.

    The states are held for that: n_samples · chains · units bytes (four times as many for Gaussian layers). Chains that
    began far from each other show best what they have not yet forgotten; all of them in one mode look healthy.
    """
    machine, n_samples = as_machine(model), whole_number("n_samples", n_samples, 4, 2**20)
    samples = [torch.empty(n_samples, *layer.shape, dtype=layer.dtype, device=layer.device) for layer in chains.layers]
    for k in _draws(machine, chains, n_samples, sweeps):
        for held, state in zip(samples, chains.layers, strict=True):
            held[k] = state
    health = []
    for layer, held in zip(machine.graph.layers, samples, strict=True):
        r_hat = torch.cat([split_r_hat(part) for part in torch.split(held, 64, 2)])
        size = torch.cat([effective_sample_size(part) for part in torch.split(held, 64, 2)])
        stuck = float((held == held[0]).all(0).all(1).double().mean())
        autocorrelation = integrated_autocorrelation(held.mean(2, dtype=torch.float64))
        health.append(LayerHealth(layer.name, r_hat, size, int(r_hat.isnan().sum()), stuck, autocorrelation))
    return health


def to_arviz(model: Model, chains: Chains, n_samples: int = 100, sweeps: int = 1) -> DataTree:
    """Runs chains on, and hands energies and activities to ArviZ: an xarray ``DataTree`` with a group "posterior".

    Its variables, each ``[chain, draw]``: "energy", and for each layer "activity_NAME", the mean over its units. All of
    ArviZ's diagnostics and pictures take it, ``arviz_stats.summary`` and ``arviz_plots.plot_trace`` for instance. Only
    these figures are held, not the states. Needs ``bm_fast[arviz]``.
    """
    try:
        from arviz_base import from_dict
    except ImportError as error:
        raise ImportError(
            "to_arviz: the package arviz-base is missing; install it with pip install 'bm_fast[arviz]'"
        ) from error
    machine, n_samples = as_machine(model), whole_number("n_samples", n_samples, 1, 2**20)
    names = ["energy", *(f"activity_{layer.name}" for layer in machine.graph.layers)]
    series = torch.empty(len(names), chains.n_chains, n_samples, dtype=torch.float64)
    for k in _draws(machine, chains, n_samples, sweeps):
        series[0, :, k] = machine.energy(chains.layers)
        for held, state in zip(series[1:], chains.layers, strict=True):
            held[:, k] = state.mean(1, dtype=torch.float64)
    tree: DataTree = from_dict({"posterior": {name: held.numpy() for name, held in zip(names, series, strict=True)}})
    return tree


def _draws(machine: Machine, chains: Chains, n_samples: int, sweeps: int) -> Iterator[int]:
    """The number of each sample, once the chains are there."""
    sweeps = whole_number("sweeps", sweeps, 1, 2**32 // n_samples)
    program = gibbs_program(machine.graph)
    for k in range(n_samples):
        machine.sweep(program, chains, sweeps)
        yield k


def split_r_hat(values: Tensor) -> Tensor:
    """Split R-hat: sqrt of the pooled variance over the mean variance within half-chains, float64 ``[quantities]``.

    values: ``[n_samples, n_chains, quantities]``, at least 4 samples. Near 1 where all halves of all chains have the
    same mean; NaN for a quantity that never changes, inf where it only differs between halves.

    Source: Gelman et al., Bayesian data analysis (2013), section 11.4.
    """
    halves = _halves(values)
    n = halves.shape[0]
    within = halves.var(0).mean(0)
    between = halves.mean(0).var(0)
    return (((n - 1) / n * within + between) / within).sqrt()


def effective_sample_size(values: Tensor) -> Tensor:
    """Independent draws that the mean over all chains and samples is worth, float64 ``[quantities]``.

    n_samples n_chains / τ with τ = 1 + 2 Σ ρ over pairs of lags until a pair's sum is not positive any more (Geyer),
    and ρ from the variance within chains relative to that of all, so that chains in different modes count for little.
    At most the number of draws; NaN for a quantity that never changes.

    values: ``[n_samples, n_chains, quantities]``, at least 4 samples.

    Source: Gelman et al., Bayesian data analysis (2013), section 11.5; Geyer, Statistical Science 7 (1992).
    """
    halves = _halves(values)
    n, m, _ = halves.shape
    within = halves.var(0).mean(0)
    total = (n - 1) / n * within + halves.mean(0).var(0)
    centred = halves - halves.mean(0)
    length = 2 ** math.ceil(math.log2(2 * n))
    power = torch.fft.rfft(centred, n=length, dim=0).abs().square().mean(1)
    covariance = torch.fft.irfft(power, n=length, dim=0)[:n] / (n - 1)
    rho = 1 - (within - covariance) / total
    pairs = rho[: n - n % 2].view(n // 2, 2, -1).sum(1)
    positive = (pairs > 0).long().cumprod(0)
    tau = (2 * (pairs * positive).sum(0) - 1).clamp(min=1)
    size: Tensor = m * n / tau
    return size


def _halves(values: Tensor) -> Tensor:
    """Halves of the chains as chains of their own, float64 ``[n_samples // 2, 2 n_chains, quantities]``."""
    if values.dim() != 3 or len(values) < 4:
        raise ValueError(
            f"values: expected [n_samples, n_chains, quantities] with at least 4 samples, got {list(values.shape)}"
        )
    half = len(values) // 2
    return torch.cat([values[:half], values[-half:]], 1).double()
