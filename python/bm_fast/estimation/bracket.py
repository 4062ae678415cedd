"""One call for the log-likelihood of a machine: three estimates of log Z that must agree, and a verdict."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.estimation._machine import hidden_layers_are_independent, visible_values
from bm_fast.estimation.ais import AISEstimate, UntrustworthyEstimate, ais, base_biases
from bm_fast.estimation.deep import variational_bound
from bm_fast.estimation.likelihood import log_likelihood
from bm_fast.estimation.reverse import reverse_ais
from bm_fast.estimation.schedule import ADAPTIVE, Schedule, adaptive_betas
from bm_fast.estimation.tempering import FEWEST_AUTOCORRELATIONS, TemperedLogZ, tempered_log_z
from bm_fast.machines import Model, as_machine
from bm_fast.tempering import PoorMixing, TemperingReport, adapted_betas, run, start

WIDEST_BRACKET = 1.0
"""Nats between the ends of a bracket beyond which it is not trusted."""

_DROP = 3e-5  # finer steps than ``adaptive_betas`` takes by itself: there are fewer runs than usual, each way


@dataclass(frozen=True)
class LogLikelihoodEstimate:
    """Mean log-likelihood in nats per case, or a lower bound of it, with log Z from both sides.

    mean: with log Z by parallel tempering (Bennett's acceptance ratio).
    is_bound: True for a machine whose hidden layers are coupled to each other: ``mean`` and the bracket are then of the
        variational bound by mean field, which lies below the log-likelihood by an amount that they say nothing about.
    standard_error: of that log Z; case_error: from the finite number of cases.
    bracket: mean log-likelihoods by reverse and by forward annealing, in this order. Reverse annealing overestimates
        log Z on average and forward annealing underestimates it, so the truth lies between but for their errors, which
        can also turn a narrow bracket round; ``bracketed`` says so.
    tempered, forward, reverse, report: the estimates of log Z, and the run of parallel tempering behind them.
    trustworthy: False where anything speaks against the figures; ``reason`` says all of it.
    """

    mean: float
    is_bound: bool
    standard_error: float
    case_error: float
    bracket: tuple[float, float]
    tempered: TemperedLogZ
    forward: AISEstimate
    reverse: AISEstimate
    report: TemperingReport
    trustworthy: bool
    reason: str

    @property
    def bracketed(self) -> str:
        """The bracket in words, from low to high, and what it means where its ends have crossed."""
        low, high = sorted(self.bracket)
        text = f"bracket {low:.2f} to {high:.2f}"
        if self.bracket == (low, high):
            return text
        agree = _crossing(self.forward, self.reverse) is None
        return f"{text}, ends crossed {'within their errors' if agree else 'BEYOND THEIR ERRORS'}"

    def __str__(self) -> str:
        what = "lower bound " if self.is_bound else ""
        text = (
            f"{what}{self.mean:.2f} ± {self.standard_error:.2f} nats ({self.bracketed}; cases ± {self.case_error:.2f})"
        )
        return text if self.trustworthy else f"{text}; NOT TRUSTWORTHY: {self.reason}"


def estimate_log_likelihood(
    model: Model,
    v: Tensor | NDArray[np.generic],
    *,
    base: Sequence[Tensor] | None = None,
    n_runs: int = 64,
    rounds: int = 2000,
    sweeps: int = 1,
    betas: Schedule = ADAPTIVE,
    seed: int = 0,
    progress: bool = False,
) -> LogLikelihoodEstimate:
    """Mean log p(v) over cases with a bracket, and a verdict on whether to believe it; of any graph.

    Where hidden layers are coupled to each other, as in a DBM, log p(v) has no closed form even with log Z, and its
    ``variational_bound`` takes its place, in which labels are inferred too; the result says so in ``is_bound``.
    Ladders of parallel tempering are adapted, run half of ``rounds`` to forget their start, and then ``rounds`` rounds
    whose energies give log Z. Annealing goes up from the base, and down from the ladders' samples of the machine. The
    verdict asks that log Z by tempering lies in the bracket, within three standard errors, that the bracket is narrower
    than 1 nat and its ends have not crossed by more than their errors, that neighbouring rungs overlap, that chains
    travel between base and machine and forget where they were in a third of the run, that there is enough of it to
    measure errors, and that no weights have collapsed.
    A mode that neither tempering nor annealing has found can still be missing: no estimate of this kind sees it.

    v: cases of layer 0 as for ``log_likelihood``, exactly 0 or 1 for Bernoulli units.
    base: biases at beta = 0; default ``base_biases(model, v)``.
    n_runs: ladders, and annealing runs each way. rounds, sweeps: of parallel tempering, and sweeps between swaps.
    betas: of annealing, as for ``ais``; "adaptive" takes finer steps here.

    Warns with ``UntrustworthyEstimate`` where the verdict is no.
    """
    machine = as_machine(model)
    n_runs, rounds = whole_number("n_runs", n_runs, 1, 2**20), whole_number("rounds", rounds, 2, 2**32)
    is_bound = not hidden_layers_are_independent(machine.graph)
    above_log_z = variational_bound if is_bound else log_likelihood
    values = visible_values(machine, v)
    each = above_log_z(machine, values, 0.0)
    base = base_biases(machine, values) if base is None else list(base)
    with warnings.catch_warnings():  # all of it is in the verdict
        warnings.simplefilter("ignore", PoorMixing)
        warnings.simplefilter("ignore", UntrustworthyEstimate)
        rungs = adapted_betas(machine, base=base, seed=seed, progress=progress)
        ladders = start(machine, n_runs, rungs, base=base, seed=seed)
        run(machine, ladders, rounds // 2, sweeps=sweeps, progress=progress)
        report = run(machine, ladders, rounds, sweeps=sweeps, keep_gaps=True, progress=progress)
        tempered = tempered_log_z(machine, ladders, report)
        # random numbers of their own: ladders and annealing runs of one seed would share them
        up_seed, down_seed = ((seed + k) % 2**64 for k in (1, 2))
        schedule = betas
        if isinstance(betas, str) and betas == ADAPTIVE:
            schedule = adaptive_betas(machine, drop=_DROP, base=base, seed=up_seed, progress=progress)
        forward = ais(machine, n_runs, betas=schedule, base=base, seed=up_seed, progress=progress)
        reverse = reverse_ais(
            machine, ladders.at_target(), betas=schedule, base=base, seed=down_seed, progress=progress
        )
    reason = "; ".join(_doubts(tempered, forward, reverse, report))
    mean = float(each.mean())
    estimate = LogLikelihoodEstimate(
        mean - tempered.log_z,
        is_bound,
        tempered.standard_error,
        float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.inf,
        (mean - reverse.log_z, mean - forward.log_z),
        tempered,
        forward,
        reverse,
        report,
        not reason,
        reason,
    )
    if reason:
        warnings.warn(f"log-likelihood: {reason}", UntrustworthyEstimate, stacklevel=2)
    return estimate


def _doubts(tempered: TemperedLogZ, forward: AISEstimate, reverse: AISEstimate, report: TemperingReport) -> list[str]:
    doubts = list(report.advice)
    # infinite where the energy there has one value only, which is no fault as long as chains travel
    slow = report.autocorrelation if report.autocorrelation not in (None, math.inf) else None
    if slow is not None and report.rounds < FEWEST_AUTOCORRELATIONS * slow:
        doubts.append(
            f"{report.rounds} rounds are few beside an autocorrelation of {slow:.0f} rounds at the "
            "target; use more rounds, or more sweeps between swaps"
        )
    for name, estimate in (("tempering", tempered), ("forward annealing", forward), ("reverse annealing", reverse)):
        if not estimate.trustworthy:
            doubts.append(f"{name}: {estimate.reason}")
    width = reverse.log_z - forward.log_z
    if width > WIDEST_BRACKET:
        doubts.append(
            f"forward and reverse annealing differ by {width:.1f} nats; use more betas, or more rounds and sweeps for "
            "better samples of the machine"
        )
    crossing = _crossing(forward, reverse)
    if crossing is not None:
        doubts.append(crossing)
    for name, estimate in (("forward", forward), ("reverse", reverse)):
        error = math.hypot(tempered.standard_error, estimate.standard_error)
        difference = tempered.log_z - estimate.log_z
        beyond = -difference if name == "forward" else difference
        if beyond > 3 * error + 0.01:
            doubts.append(f"log Z by tempering lies {beyond:.2f} nats outside the bracket, beyond {name} annealing")
    return doubts


def _crossing(forward: AISEstimate, reverse: AISEstimate) -> str | None:
    """That the two contradict each other, being on each other's side by more than three joint standard errors."""
    beyond = forward.log_z - reverse.log_z
    if beyond <= 3 * math.hypot(forward.standard_error, reverse.standard_error) + 0.01:
        return None
    return (
        f"forward annealing gives a log Z {beyond:.2f} nats above that of reverse annealing, beyond their errors: they "
        "contradict each other"
    )
