"""Tempered transitions: a whole excursion to high temperature and back is one proposal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bm_fast.chains import Chains
from bm_fast.ops import EnergyGap, Machine
from bm_fast.program import Program, gibbs_program
from bm_fast.tempering.decisions import accepted
from bm_fast.tempering.ladders import Betas
from bm_fast.tempering.operators import BetaOperator


class TemperedTransitions(BetaOperator):
    """Tempered transitions: each chain climbs down a ladder of betas and up again, and keeps what it finds, or not.

    A call makes ``sweeps`` plain sweeps, then an excursion: from the target beta_n = 1 to beta_0, where barriers are
    low, ``sweeps`` sweeps on each rung, and back in the mirrored order of updates. With D = E - E_base, x_i the state
    in which the chain leaves rung i and y_i that in which it comes back, the end is kept with probability

        min(1, exp(Σ_i (beta_i - beta_i-1) (D(x_i) - D(y_i)))),

    else the chain stays where it was. A call costs ``sweeps`` (2 n_rungs - 1) sweeps of each chain; unlike parallel
    tempering it keeps no other states.

    betas: a number of rungs (default 10) or betas, as for ``tempering.start``. They need not begin at 0, and many that
        lie close to each other are accepted more often.
    base: per layer float32 ``[units]``, the biases at beta = 0; None: no base.
    attempts, acceptances: excursions so far, and the sum of the probabilities with which they were kept.

    Source: Neal, Sampling from multimodal distributions using tempered transitions, Statistics and Computing 6 (1996);
    Salakhutdinov, Learning in Markov random fields using tempered transitions (2009).
    """

    def __init__(self, betas: Betas = 10, *, sweeps: int = 1, base: Sequence[Tensor] | None = None) -> None:
        super().__init__(betas, base, sweeps)
        self.attempts, self.acceptances = 0, 0.0

    @property
    def acceptance(self) -> float | None:
        """Mean probability with which excursions were kept; None before the first."""
        return self.acceptances / self.attempts if self.attempts else None

    def advance(self, machine: Machine, chains: Chains) -> None:
        """One excursion of every chain; Ctrl-C leaves the chains as they were."""
        down = gibbs_program(machine.graph)
        up = mirrored(down)
        gap = EnergyGap(machine, self.base)
        trial = chains.clone()
        machine.sweep(down, trial, self.sweeps)
        stay = trial.clone()
        betas = self.betas.to(machine.device)
        steps = betas.double().diff()
        log_ratio = torch.zeros(chains.n_chains, dtype=torch.float64, device=machine.device)
        for rung in reversed(range(len(steps))):
            log_ratio += steps[rung] * gap.of(trial.layers)
            self._sweep(machine, down, trial, betas[rung])
        for rung in range(len(steps)):
            self._sweep(machine, up, trial, betas[rung])
            log_ratio -= steps[rung] * gap.of(trial.layers)
        keep = accepted(log_ratio, trial)[:, None]
        for state, end, start in zip(chains.layers, trial.layers, stay.layers, strict=True):
            state.copy_(torch.where(keep, end, start))
        chains.sweep = trial.sweep
        self.attempts += chains.n_chains
        self.acceptances += float(log_ratio.clamp(max=0).exp().sum())

    def _sweep(self, machine: Machine, program: Program, chains: Chains, beta: Tensor) -> None:
        machine.sweep(program, chains, self.sweeps, beta=beta.expand(chains.n_chains).contiguous(), base=self.base)

    def state_dict(self) -> dict[str, Any]:
        """What was counted; chains hold all the rest."""
        return {"attempts": self.attempts, "acceptances": self.acceptances}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` gave."""
        self.attempts, self.acceptances = state["attempts"], state["acceptances"]


def mirrored(program: Program) -> Program:
    """The reversal of a sweep: p(x) T(x, y) = p(y) T'(y, x) with T' the same blocks in the other order."""
    return tuple(reversed(program))
