"""Coupled adaptive simulated tempering: walkers that wander between temperatures, coupled to chains at the target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.chains import Chains
from bm_fast.ops import EnergyGap, Machine
from bm_fast.program import gibbs_program
from bm_fast.tempering.decisions import chosen
from bm_fast.tempering.ladders import Betas
from bm_fast.tempering.operators import BetaOperator, Replicas, check_continued, refuse_begun

_LEAST_SHARE = 0.1  # of the visits that each rung would have if all had as many, below which walkers miss it
_FEWEST_VISITS = 20  # of a rung, if all had as many, before anything is said about one

_FIRST_WALKER = 2**30
"""Index of the first walker's random numbers beyond that of the first chain's: none are shared."""


@dataclass
class Walkers:
    """Simulated tempering: each walker is a state and a rung, p(x, k) ∝ exp(-beta_k E - (1 - beta_k) E_base - w_k).

    With w_k = log Z_k every rung has the same probability, and given its rung a walker has that rung's distribution.

    chains: ``[n_walkers]``. rungs: int64 ``[n_walkers]``.
    log_weights: float64 ``[n_rungs]``, the w_k; w_0 = 0.
    visits: float64 ``[n_rungs]``, expected visits of all walkers.
    from_base: bool ``[n_walkers]``, whether the walker was on rung 0 since it last was at the target.
    trips: arrivals at the target from rung 0.
    rounds: moves between rungs so far.
    """

    chains: Chains
    rungs: Tensor
    log_weights: Tensor
    visits: Tensor
    from_base: Tensor
    trips: int = 0
    rounds: int = 0

    def clone(self) -> Walkers:
        """An independent copy that would go on in the same way."""
        rungs, log_weights, visits, from_base = (
            part.clone() for part in (self.rungs, self.log_weights, self.visits, self.from_base)
        )
        return Walkers(self.chains.clone(), rungs, log_weights, visits, from_base, self.trips, self.rounds)

    @classmethod
    def start(cls, machine: Machine, n_walkers: int, n_rungs: int, seed: int, first_chain: int) -> Walkers:
        """Fair coins, all on rung 0."""
        device = machine.device
        rungs = torch.zeros(n_walkers, dtype=torch.int64, device=device)
        zeros = torch.zeros(n_rungs, dtype=torch.float64, device=device)
        return cls(machine.chains(n_walkers, seed, first_chain), rungs, zeros, zeros.clone(), rungs == 0)

    def step(self, gap: EnergyGap, betas: Tensor, sweeps: int, rate: float) -> Tensor:
        """Some sweeps on the present rungs, then a new rung for each walker; bool ``[n_walkers]``: at the target now.

        The rung is drawn from its distribution given the state, p(k | x) ∝ exp(-beta_k D(x) - w_k) with D = E - E_base.
        Then w_k grows by max(rate, 1 / rounds) (n_rungs p_k - 1), p_k the mean of p(k | x) over the walkers; by nothing
        for rate 0.
        """
        machine = gap.machine
        beta = betas[self.rungs]
        machine.sweep(gibbs_program(machine.graph), self.chains, sweeps, beta=beta, base=gap.base)
        log_p = -gap.of(self.chains.layers)[:, None] * betas.double() - self.log_weights
        self.rungs = chosen(log_p, self.chains)
        occupied = log_p.softmax(1)
        self.rounds += 1
        self.visits += occupied.sum(0)
        if rate > 0:
            self.log_weights += max(rate, 1 / self.rounds) * (len(betas) * occupied.mean(0) - 1)
            self.log_weights -= self.log_weights[0].clone()
        at_target = self.rungs == len(betas) - 1
        self.trips += int((at_target & self.from_base).sum())
        self.from_base = (self.from_base | (self.rungs == 0)) & ~at_target
        return at_target


class CoupledTempering(BetaOperator):
    """Coupled adaptive simulated tempering (CAST): each chain has a walker, which wanders between temperatures.

    A round is ``sweeps`` sweeps of chain and walker and a move of the walker to another rung (``Walkers.step``). A
    walker that is then at the target, beta = 1, exchanges its state with its chain: both have the machine's
    distribution, so this leaves it alone, and brings the chain states from far away. A call costs
    2 ``rounds`` ``sweeps`` sweeps of each chain, whatever the number of rungs.

    The weights w_k, which keep walkers from gathering on few rungs, adapt all the time (Wang-Landau), so that they
    follow a machine that learns; they approach log Z_k up to a constant. While they adapt, the distribution is exact
    only up to the size of their steps; ``rate = 0`` holds them where they are.

    Simulated tempering alone would be no operator: whether a walker is at the target depends on its state's future, so
    the last states that walkers had there are not samples of the machine.

    Chains at sweep 0 begin new walkers, which start at fair coins on the first rung.

    betas: a number of rungs (default 10) or betas, as for ``tempering.start``.
    base: per layer float32 ``[units]``, the biases at beta = 0; None: no base.
    rate: least rate of adaptation; it begins at 1 and falls as 1 / rounds until there.

    Source: Salakhutdinov, Learning deep Boltzmann machines using adaptive MCMC (ICML 2010); Marinari and Parisi, EPL 19
    (1992) for simulated tempering; Wang and Landau, PRL 86 (2001), and Tan, J. Comput. Graph. Stat. 26 (2017), for the
    weights; Chodera and Shirts, J. Chem. Phys. 135 (2011), for drawing rungs given states.
    """

    def __init__(
        self,
        betas: Betas = 10,
        *,
        rounds: int = 1,
        sweeps: int = 1,
        base: Sequence[Tensor] | None = None,
        rate: float = 0.1,
    ) -> None:
        super().__init__(betas, base, sweeps)
        self.rounds = whole_number("rounds", rounds, 1, 2**32)
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: expected 0 to 1, got {rate}")
        self.rate = rate
        self.walkers: Walkers | None = None
        self._advice: str | None = None
        self._seen = torch.zeros(())  # visits when it was given

    def advise(self) -> str | None:
        """Which rungs walkers hardly visit, and what to do; None where they spread, or moved too seldom to tell.

        By expected visits since it last could tell: a rung that walkers might have drawn at any time is not missed.
        """
        if self.walkers is not None:
            visits = self.walkers.visits - self._seen
            even = float(visits.mean())
            if even >= _FEWEST_VISITS:
                self._advice, self._seen = self._about(visits / even), self.walkers.visits.clone()
        return self._advice

    def _about(self, share: Tensor) -> str | None:
        missed, worst = int((share < _LEAST_SHARE).sum()), int(share.argmin())
        if missed == 0:
            return None
        return (
            f"walkers are on {missed} of {len(share)} rungs less than {_LEAST_SHARE:.0%} as often as on the average "
            f"rung, at beta {float(self.betas[worst]):.4g} {float(share[worst]):.1%}; use more rungs or rounds, adapt "
            "the weights faster (rate), or take a base that is closer to the machine"
        )

    def advance(self, machine: Machine, chains: Chains) -> None:
        """Runs chains and walkers; Ctrl-C leaves a whole number of rounds.

        ValueError for chains that have been moved by anything but this operator.
        """
        if chains.sweep == 0:
            first = chains.first_chain + _FIRST_WALKER
            self.walkers = Walkers.start(machine, chains.n_chains, len(self.betas), chains.seed, first)
            self._advice, self._seen = None, self.walkers.visits.clone()
        if self.walkers is None:
            refuse_begun(chains, "walkers")
        check_continued(chains, self.walkers.chains)
        gap, betas = EnergyGap(machine, self.base), self.betas.to(machine.device)
        program = gibbs_program(machine.graph)
        for _ in range(self.rounds):
            slow, fast = chains.clone(), self.walkers.clone()
            machine.sweep(program, slow, self.sweeps)
            meets = fast.step(gap, betas, self.sweeps, self.rate)[:, None]
            for state, mine, walkers in zip(chains.layers, slow.layers, fast.chains.layers, strict=True):
                state.copy_(torch.where(meets, walkers, mine))
                walkers.copy_(torch.where(meets, mine, walkers))
            chains.sweep, self.walkers = slow.sweep, fast

    def replicas(self, machine: Machine) -> list[Replicas]:
        """The walkers that are on each rung now."""
        held = self.walkers
        return [] if held is None else self.replicas_on(machine, self.betas, held.chains, held.rungs)

    def settings(self) -> dict[str, Any]:
        """What the operator was made with."""
        return {**super().settings(), "rounds": self.rounds, "rate": self.rate}

    def state_dict(self) -> dict[str, Any]:
        """The walkers, with their weights, and what ``advise`` goes by."""
        walkers = self.walkers
        held = None if walkers is None else {**vars(walkers), "chains": walkers.chains.state_dict()}
        return {"walkers": held, "seen": self._seen, "advice": self._advice}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` gave."""
        held = state["walkers"]
        self.walkers = None if held is None else Walkers(**{**held, "chains": Chains.from_state_dict(held["chains"])})
        self._seen, self._advice = state["seen"], state["advice"]
