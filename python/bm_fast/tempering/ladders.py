"""Ladders of chains, and runs of parallel tempering on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from bm_fast.arguments import whole_number
from bm_fast.chains import Chains
from bm_fast.machines import Model, as_machine
from bm_fast.ops import EnergyGap, Machine, Rungs, temper
from bm_fast.rungs import check_permutations
from bm_fast.tempering.report import PoorMixing, TemperingReport


@dataclass
class Ladders:
    """The state of parallel tempering: many ladders, each with one chain on every rung.

    Rung i has the distribution ∝ exp(-beta_i E - (1 - beta_i) E_base), E_base = -Σ base·h (plus the quadratic term of
    Gaussian layers); the last rung, beta = 1, is the machine. Swaps exchange the rungs of two chains, so a chain's
    states stay where they are. Chains, rungs and their counters are the whole state: a copy goes on to the same bits.

    chains: ``[n_ladders * n_rungs]`` chains, ladder after ladder.
    rungs: the rung of each chain, and what swaps did so far.
    betas: float32 ``[n_rungs]``, strictly rising to 1.
    base: per layer float32 ``[units]``; None: no base, beta scales the whole energy.
    """

    chains: Chains
    rungs: Rungs
    betas: Tensor
    base: tuple[Tensor, ...] | None

    @property
    def n_rungs(self) -> int:
        return len(self.betas)

    @property
    def n_ladders(self) -> int:
        return self.chains.n_chains // self.n_rungs

    def at_rung(self, rung: int) -> tuple[Tensor, ...]:
        """States of the chains on one rung, per layer ``[n_ladders, units]``, copied; -1 is the target."""
        rung = whole_number("rung", rung, -self.n_rungs, self.n_rungs - 1) % self.n_rungs
        is_there = self.rungs.rungs.view(self.n_ladders, self.n_rungs) == rung
        first = torch.arange(0, self.chains.n_chains, self.n_rungs, device=is_there.device)
        chosen = first + is_there.to(torch.uint8).argmax(1)  # not by ``nonzero``, which waits for a GPU
        return tuple(layer[chosen] for layer in self.chains.layers)

    def at_target(self) -> tuple[Tensor, ...]:
        """Samples of the machine: states of the chains on the last rung, per layer ``[n_ladders, units]``, copied."""
        return self.at_rung(-1)

    def clone(self) -> Ladders:
        """An independent copy that would go on in the same way."""
        return Ladders(self.chains.clone(), self.rungs.clone(), self.betas.clone(), self.base)

    def state_dict(self) -> dict[str, Any]:
        """Everything, for ``checkpoints.save``."""
        return {
            "chains": self.chains.state_dict(),
            "rungs": vars(self.rungs),
            "betas": self.betas,
            "base": self.base,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Ladders:
        """The ladders that ``state_dict`` described; ValueError where one of them holds a rung twice."""
        check_permutations(Rungs(**state["rungs"]))
        return cls(
            Chains.from_state_dict(state["chains"]),
            Rungs(**state["rungs"]),
            state["betas"],
            None if state["base"] is None else tuple(state["base"]),
        )


Betas = int | Sequence[float] | Tensor | NDArray[np.generic]


def start(
    model: Model,
    n_ladders: int,
    betas: Betas = 16,
    *,
    base: Sequence[Tensor] | None = None,
    seed: int = 0,
    first_ladder: int = 0,
) -> Ladders:
    """Ladders at round 0, their chains at fair coins (Gaussian layers: zero).

    betas: a number of equidistant ones from 0 to 1, or values that rise strictly to 1;
        ``adapted_betas`` finds good ones.
    base: per layer float32 ``[units]``, the biases at beta = 0; ``estimation.base_biases`` makes them from data.
    first_ladder: number of the first ladder, for ladders that are split over several objects.
    ValueError for fewer than two rungs, for betas that do not rise strictly or do not end at 1, and for a beta of 0
        without a base where the graph has a Gaussian layer.
    """
    machine = as_machine(model)
    values = ladder_betas(betas).to(machine.device)
    machine.check_path(values, base)
    n_rungs = len(values)
    first_ladder = whole_number("first_ladder", first_ladder, 0, 2**31 // n_rungs)
    rungs = Rungs.start(n_ladders, n_rungs, machine.device)
    chains = machine.chains(n_ladders * n_rungs, seed, first_ladder * n_rungs)
    return Ladders(chains, rungs, values, None if base is None else tuple(base))


def run(
    model: Model,
    ladders: Ladders,
    rounds: int,
    *,
    sweeps: int = 1,
    keep_gaps: bool = False,
    progress: bool | Callable[[int], None] = False,
) -> TemperingReport:
    """Runs parallel tempering in place: ``rounds`` times ``sweeps`` sweeps of all chains and one round of swaps.

    keep_gaps: the report then holds E - E_base on every rung after every round, 8 bytes each; for log Z and
        autocorrelations.
    progress: True for a bar, or a function that is called now and then with the number of rounds done.

    Ctrl-C stops within a second: the ladders then hold a whole number of rounds (``ladders.rungs.round``) and can go
    on.
    Warns with ``PoorMixing`` where rungs hardly swap or no chain travels; the report says what to do.
    """
    report = run_quietly(as_machine(model), ladders, rounds, sweeps, keep_gaps, progress)
    for advice in report.advice:
        warnings.warn(f"parallel tempering: {advice}", PoorMixing, stacklevel=2)
    return report


def run_quietly(
    machine: Machine,
    ladders: Ladders,
    rounds: int,
    sweeps: int,
    keep_gaps: bool,
    progress: bool | Callable[[int], None] = False,
) -> TemperingReport:
    """``run`` without a warning."""
    rounds = whole_number("rounds", rounds, 1, 2**32)
    before = ladders.rungs.clone()
    shape = (rounds, ladders.n_ladders, ladders.n_rungs)
    gaps = torch.empty(shape, dtype=torch.float64, device=machine.device) if keep_gaps else None
    gap = EnergyGap(machine, ladders.base)

    def go(report: Callable[[int], None] | None) -> None:
        temper(gap, ladders.chains, ladders.rungs, ladders.betas, rounds, sweeps=sweeps, trace=gaps, progress=report)

    if progress is True:
        with tqdm(total=rounds, unit="round", desc="tempering", leave=False, delay=1.0) as bar:
            go(lambda n: bar.update(n - bar.n))
    else:
        go(progress if callable(progress) else None)
    attempts = ladders.rungs.attempts - before.attempts
    return TemperingReport(
        ladders.betas.clone(),
        ladders.n_ladders,
        rounds,
        attempts,
        (ladders.rungs.acceptances - before.acceptances) / attempts,
        int((ladders.rungs.trips - before.trips).sum()),
        gaps,
    )


def ladder_betas(betas: Betas) -> Tensor:
    """Betas of a ladder as float32 ``[n_rungs]``; ValueError unless at least two that rise strictly to 1."""
    if isinstance(betas, Integral) and not isinstance(betas, bool):
        if betas < 2:
            raise ValueError(f"betas: expected at least 2 rungs, got {betas}; one rung is plain Gibbs sampling")
        return torch.linspace(0, 1, int(betas), dtype=torch.float64).float()
    expected = f"betas: expected a whole number of rungs or a sequence of betas, got {betas!r}"
    try:
        values = torch.as_tensor(betas).to(torch.float32, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(expected) from error
    if values.dim() == 0:
        raise ValueError(expected)
    if values.dim() != 1 or len(values) < 2:
        raise ValueError(
            f"betas: expected one dimension and at least 2 rungs, got {list(values.shape)}; one rung is plain Gibbs "
            "sampling"
        )
    shown = [f"{beta:g}" for beta in values.tolist()]
    if not (float(values[0]) >= 0 and bool((values[1:] > values[:-1]).all())):
        raise ValueError(f"betas: expected values of at least 0 that rise strictly, got {shown}")
    if float(values[-1]) != 1:
        raise ValueError(f"betas: expected a last value of 1, which is the machine itself, got {shown}")
    return values
