"""Parallel tempering as a transition operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.chains import Chains
from bm_fast.ops import EnergyGap, Machine, temper
from bm_fast.tempering.adaptation import equal_rejection
from bm_fast.tempering.ladders import Betas, Ladders, start
from bm_fast.tempering.operators import BetaOperator, Replicas, check_continued, refuse_begun
from bm_fast.tempering.report import FEWEST_ATTEMPTS, TemperingReport, bottleneck


class Tempering(BetaOperator):
    """Parallel tempering: each chain is the target of a ladder, whose other rungs the operator keeps.

    A call runs ``rounds`` rounds of ``sweeps`` sweeps and one round of swaps. A swap can bring a whole new state to the
    target, so chains reach modes that sweeps at beta = 1 alone would never find. It costs as many sweeps as there are
    rungs.

    Chains at sweep 0 begin new ladders, which start at fair coins whatever the states of the chains, so one operator
    can serve one training after the other.

    betas: a number of rungs (default 10) or betas, as for ``tempering.start``.
    base: per layer float32 ``[units]``, the biases at beta = 0; None: no base.
    adapt_every: calls after which the betas move to equal rejection, by the swaps since the last time; 0: never. Each
        adaptation waits twice as long as the one before, so that the transitions settle. It begins the next call, and
        is all that waits for a GPU.

    Source: Desjardins et al., Tempered Markov chain Monte Carlo for training of RBMs (2010); Cho, Raiko and Ilin
    (2010).
    """

    def __init__(
        self,
        betas: Betas = 10,
        *,
        rounds: int = 1,
        sweeps: int = 1,
        base: Sequence[Tensor] | None = None,
        adapt_every: int = 100,
    ) -> None:
        super().__init__(betas, base, sweeps)
        self.rounds = whole_number("rounds", rounds, 1, 2**32)
        self.adapt_every = whole_number("adapt_every", adapt_every, 0, 2**32)
        self.ladders: Ladders | None = None
        self._calls, self._wait = 0, self.adapt_every
        self._advice: str | None = None
        self._seen: Sequence[Tensor] = ()  # attempts and acceptances when it was given

    @property
    def acceptance(self) -> Tensor | None:
        """Mean probability with which neighbouring rungs swapped since the betas last moved, float64 ``[n_rungs - 1]``.

        NaN for a pair that was not tried; None before the first call.
        """
        return None if self.ladders is None else self.ladders.rungs.acceptances / self.ladders.rungs.attempts

    def advise(self) -> str | None:
        """Which rungs hardly swap, and what to do; None where all swap, or were not tried often enough to tell.

        By the swaps since it last could tell, or since the betas moved if that was later. Waits for a GPU.
        """
        if self.ladders is not None:
            counted = self._counted(self.ladders)
            attempts, acceptances = (now - seen for now, seen in zip(counted, self._seen, strict=True))
            if bool((attempts >= FEWEST_ATTEMPTS).all()):
                found = bottleneck(self.ladders.betas, attempts, acceptances / attempts)
                self._advice, self._seen = None if found is None else f"{found}; {self._remedy}", counted
        return self._advice

    @property
    def _remedy(self) -> str:
        sooner = " sooner" if self.adapt_every else ""
        return (
            f"use more rungs, let the betas adapt{sooner} (adapt_every), or take a base that is closer to the machine"
        )

    @staticmethod
    def _counted(ladders: Ladders) -> tuple[Tensor, ...]:
        return ladders.rungs.attempts.clone(), ladders.rungs.acceptances.clone()

    def advance(self, machine: Machine, chains: Chains) -> None:
        """Runs the ladders and gives the chains the states of their targets; ``chains.sweep`` advances too.

        ValueError for chains that have been moved by anything but this operator.
        """
        self.prepare(machine, chains)
        ladders = self._ladders_of(chains)
        gap = EnergyGap(machine, ladders.base)
        try:
            temper(gap, ladders.chains, ladders.rungs, ladders.betas, self.rounds, sweeps=self.sweeps)
        finally:  # Ctrl-C ends it after some of the rounds
            for layer, state in zip(chains.layers, ladders.at_target(), strict=True):
                layer.copy_(state)
            chains.sweep = ladders.chains.sweep
        self._calls += 1

    def prepare(self, machine: Machine, chains: Chains) -> None:
        """Begins ladders for chains at sweep 0, and adapts the betas where it is time."""
        if chains.sweep == 0:
            first = chains.first_chain  # ladders of chains that are split over several objects stay apart
            self.ladders = start(
                machine, chains.n_chains, self.betas, base=self.base, seed=chains.seed, first_ladder=first
            )
            self._calls, self._wait = 0, self.adapt_every
            self._advice, self._seen = None, self._counted(self.ladders)
        # two rounds try all pairs: of one that was not tried nothing is known, and it would get no betas at all
        elif self.adapt_every and self._calls >= self._wait and self._calls * self.rounds > 1:
            self._adapt(self._ladders_of(chains))

    @property
    def counts(self) -> tuple[int, ...]:
        """Rounds of swaps, sweeps of the ladders, and calls since the betas were adapted."""
        held = self.ladders
        return (0, 0, self._calls) if held is None else (held.rungs.round, held.chains.sweep, self._calls)

    @counts.setter
    def counts(self, counts: tuple[int, ...]) -> None:
        if self.ladders is not None:
            self.ladders.rungs.round, self.ladders.chains.sweep, self._calls = counts

    def fixed(self) -> object:
        """Numbers of sweeps and rounds, and where the ladders are."""
        held = self.ladders
        tensors = () if held is None else (*held.chains.layers, *held.rungs.parts, held.betas, *(held.base or ()))
        return self.rounds, self.sweeps, [tensor.data_ptr() for tensor in tensors]

    def _ladders_of(self, chains: Chains) -> Ladders:
        if self.ladders is None:
            refuse_begun(chains, "ladders")
        check_continued(chains, self.ladders.chains, self.ladders.n_ladders)
        return self.ladders

    def _adapt(self, ladders: Ladders) -> None:
        rungs = ladders.rungs
        acceptance = rungs.acceptances / rungs.attempts
        report = TemperingReport(
            ladders.betas, ladders.n_ladders, rungs.round, rungs.attempts, acceptance, int(rungs.trips.sum()), None
        )
        ladders.betas.copy_(equal_rejection(report, ladders.n_rungs))  # recordings read them where they are
        rungs.attempts.zero_()
        rungs.acceptances.zero_()
        self._seen = self._counted(ladders)
        self._calls, self._wait = 0, 2 * self._wait

    def replicas(self, machine: Machine) -> list[Replicas]:
        """The chains of each rung, over all ladders."""
        held = self.ladders
        return [] if held is None else self.replicas_on(machine, held.betas, held.chains, held.rungs.rungs)

    def settings(self) -> dict[str, Any]:
        """What the operator was made with."""
        return {**super().settings(), "rounds": self.rounds, "adapt_every": self.adapt_every}

    def state_dict(self) -> dict[str, Any]:
        """The ladders, how far the next adaptation is, and what ``advise`` goes by."""
        held = None if self.ladders is None else self.ladders.state_dict()
        return {"ladders": held, "calls": self._calls, "wait": self._wait, "seen": self._seen, "advice": self._advice}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up what ``state_dict`` gave."""
        held = state["ladders"]
        self.ladders = None if held is None else Ladders.from_state_dict(held)
        self._calls, self._wait = state["calls"], state["wait"]
        self._seen, self._advice = state["seen"], state["advice"]
