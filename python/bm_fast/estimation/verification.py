"""Checks by enumeration of a machine, and of what a user runs on it: transition operator, estimators of log Z and of
the gradient. The evidence is a table of what was compared with what, and how likely chance alone explains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bm_fast.arguments import count
from bm_fast.chains import Chains
from bm_fast.estimation._checks import (
    Check,
    Fit,
    can_tell_dependence,
    chi_squared_tail,
    dependence,
    shown,
    student_tails,
)
from bm_fast.estimation._enumeration import Enumeration
from bm_fast.estimation._exact_checks import EXACT, model_checks
from bm_fast.estimation._machine import visible_values
from bm_fast.estimation.ais import ais
from bm_fast.machines import Model, as_machine
from bm_fast.model import BoltzmannModel
from bm_fast.ops import Machine
from bm_fast.tempering import Gibbs, Replicas

_CALLS_AT_REST = 10  # after which chains of an operator's own are looked at, if they began at exact draws
_SEED = 2**62  # of the exact draws, far from the seeds that users choose


class LogZEstimate(Protocol):
    """What an estimator of log Z gives: ``AISEstimate`` and ``TemperedLogZ`` do."""

    @property
    def log_z(self) -> float: ...

    @property
    def standard_error(self) -> float: ...


class MovesChains(Protocol):
    """The part of ``tempering.Operator`` that is checked."""

    def advance(self, machine: Machine, chains: Chains) -> None: ...


@runtime_checkable
class KeepsChains(Protocol):
    """An operator that moves chains of its own, and copies some of them over those it is given."""

    def advance(self, machine: Machine, chains: Chains) -> None: ...

    def replicas(self, machine: Machine) -> Sequence[Replicas]: ...


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found; printed, it is the evidence.

    false_alarms: probability that a check fails by chance though all is right, over all of them.
    """

    checks: tuple[Check, ...]
    false_alarms: float

    @property
    def passed(self) -> bool:
        """Whether all checks passed."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        failed = sum(not check.passed for check in self.checks)
        verdict = f"{failed} of {len(self.checks)} checks failed" if failed else f"all {len(self.checks)} checks passed"
        return "\n".join(
            [
                *map(str, self.checks),
                f"{verdict}; chance alone fails any of them with probability {self.false_alarms:g}",
            ]
        )


def verify(
    model: Model,
    *,
    operator: MovesChains | None = None,
    estimator: Callable[[Machine, int], LogZEstimate] | None = None,
    gradient: Callable[[BoltzmannModel, Tensor, int], object] | None = None,
    v: Tensor | NDArray[np.generic] | None = None,
    n_chains: int = 20_000,
    n_calls: int = 50,
    repeats: int = 20,
    false_alarms: float = 1e-3,
    seed: int = 0,
) -> Verification:
    """Compares a small machine, and what runs on it, with all of its states written out; ``print`` shows the evidence.

    Model: energies, free energies, conditional means, log Z and log-likelihoods, to rounding.
    Operator: chains that all begin in the least probable state must have reached the machine's distribution after
        ``n_calls`` calls of ``advance``; exact draws from it must still have it after one more, and not depend on where
        the chains were before they were put there. An operator that moves chains of its own lists them in a method
        ``replicas`` (``tempering.Replicas``): those of every rung are then put at exact draws too, and must have the
        rung's distribution ten calls later; hold what adapts (``adapt_every=0``, ``rate=0``). χ² tests over all states.
        Default ``tempering.Gibbs()``; any object with a method ``advance`` will do.
    Estimator of log Z: ``estimator(machine, seed)`` is called ``repeats`` times. (estimate - exact) / standard error
        must be standard normal in mean and spread. Default: AIS with 100 runs over 100 betas.
    Gradient: only where one is given. ``gradient(model, v, seed)`` puts into ``.grad`` an estimate of the gradient of
        the mean of -log p(v), as a ``Trainer`` does; its mean over ``repeats`` calls with seeds seed, seed + 1… must be
        the exact one in every component. An estimator that is biased by design fails: CD, or a DBM's mean field.

    model: at most 16 Bernoulli units in all layers together; an ``RBM`` or ``DBM`` for a gradient.
    v: the data of the gradient, 0/1 ``[n, units]``.
    n_chains: independent ones; the more, the smaller an error that is found. An operator that lets chains depend on
        each other makes the χ² tests stricter than they should be.
    false_alarms: probability with which chance alone fails any of the checks; it is divided among them.

    Passing is no proof for large machines: it shows that nothing is wrong with the rule, not that chains mix.
    """
    machine = as_machine(model)
    operator = Gibbs() if operator is None else operator
    estimator = _annealing if estimator is None else estimator
    if isinstance(operator, type) or not callable(getattr(operator, "advance", None)):
        raise _not_what("operator", "an object with a method advance(machine, chains), such as Gibbs()", operator)
    if not callable(estimator):
        raise _not_what("estimator", "a function of machine and seed that gives an estimate of log Z", estimator)
    if gradient is not None and not callable(gradient):
        raise _not_what("gradient", "a function of model, v and seed that fills .grad", gradient)
    truth = Enumeration.of(machine.parameters)
    n_chains, n_calls = count("n_chains", n_chains), count("n_calls", n_calls)
    if count("repeats", repeats) < 10:
        raise ValueError(f"repeats: expected at least 10 to measure a spread, got {repeats}")
    if not 0 < false_alarms < 1:
        raise ValueError(f"false_alarms: expected a probability between 0 and 1, got {false_alarms}")
    if gradient is not None and not isinstance(model, BoltzmannModel):
        raise ValueError(f"model: a gradient needs one with parameters, such as an RBM; got {type(model).__name__}")
    if (gradient is None) != (v is None):
        raise ValueError("v: expected the data of the gradient, together with the gradient")
    data = None if v is None else visible_values(machine, v)
    level = false_alarms / (5 if gradient is None else 6)
    checks = model_checks(model, machine, truth)
    checks += _operator_checks(operator, machine, truth, n_chains, n_calls, seed, level)
    checks += _log_z_checks(estimator, machine, truth, repeats, seed, level)
    if gradient is not None and data is not None and isinstance(model, BoltzmannModel):
        checks.append(_gradient_check(gradient, model, data, truth, repeats, seed, level))
    return Verification(tuple(checks), false_alarms)


def _not_what(argument: str, expected: str, got: object) -> TypeError:
    return TypeError(f"{argument}: expected {expected}, got {got!r}")


# --- what chance enters -----------------------------------------------------------------------------------------------


def _operator_checks(
    operator: MovesChains, machine: Machine, truth: Enumeration, n_chains: int, n_calls: int, seed: int, level: float
) -> list[Check]:
    subject = type(operator).__name__
    chains = machine.chains(n_chains, seed)
    _put(chains, truth.layers(truth.p.argmin().expand(n_chains)))
    for _ in range(n_calls):
        operator.advance(machine, chains)
    what = f"reaches the machine's distribution in {n_calls} calls from its least probable state"
    reaches = _fits(subject, what, truth, chains.layers, level)
    if not can_tell_dependence(truth, n_chains):
        raise ValueError(
            f"n_chains: expected so many that some unit is often on and often off, else no dependence on earlier "
            f"states would show, got {n_chains}"
        )
    before = tuple(layer.clone() for layer in chains.layers)
    _start_exactly(operator, machine, truth, chains, seed)
    operator.advance(machine, chains)
    r, p = dependence(before, chains.layers)
    evidence = f"correlation with what was there before is {r:.4f} at most, {shown(p, level)}"
    if p < level:
        evidence += (
            "; an operator that moves chains of its own lists these chains themselves in replicas(machine), see "
            "tempering.Replicas"
        )
    goes_on = Check(subject, "goes on from the states that it is given", evidence, p, p >= level)
    if isinstance(operator, KeepsChains):
        return [reaches, goes_on, _rungs_check(operator, machine, truth, chains, level)]
    return [reaches, goes_on, _fits(subject, "leaves exact draws from it alone", truth, chains.layers, level)]


def _start_exactly(operator: MovesChains, machine: Machine, truth: Enumeration, chains: Chains, seed: int) -> None:
    """Puts the chains at exact draws, and those of the operator's own at draws from their own distributions.

    By now the operator has come to rest, so that which of its chains are on which rung is as likely as it should be.
    """
    _put(chains, truth.draw(chains.n_chains, _draw_seed(seed)))
    for i, part in enumerate(operator.replicas(machine) if isinstance(operator, KeepsChains) else ()):
        draws = _distribution(part, machine, truth).draw(max(len(part.rows), 1), _draw_seed(seed + 1 + i))
        for own, drawn in zip(part.chains.layers, draws, strict=True):
            own[part.rows] = drawn[: len(part.rows)]


def _rungs_check(operator: KeepsChains, machine: Machine, truth: Enumeration, chains: Chains, level: float) -> Check:
    """Whether chains of an operator's own that began at exact draws, one call ago, still have their distributions."""
    for _ in range(_CALLS_AT_REST - 1):
        operator.advance(machine, chains)
    subject, what = type(operator).__name__, f"leaves exact draws on all its rungs alone in {_CALLS_AT_REST} calls"
    fits = [("what it copies out", Fit.of(truth, chains.layers))]
    for part in operator.replicas(machine):
        if len(part.rows) == 0:
            return Check(subject, what, f"none of its chains is at {part.name}, which shows nothing of it", None, False)
        states = tuple(own[part.rows] for own in part.chains.layers)
        fits.append((part.name, Fit.of(_distribution(part, machine, truth), states)))
        if fits[-1][1].freedom == 0:
            raise _too_few(len(part.rows), f" at {part.name}")
    name, worst = min(fits, key=lambda named: named[1].p_value)
    p = min(1.0, len(fits) * worst.p_value)
    evidence = f"the worst of {len(fits)} is {name}, {worst}; of all {shown(p, level)}"
    return Check(subject, what, evidence, p, p >= level)


def _distribution(part: Replicas, machine: Machine, truth: Enumeration) -> Enumeration:
    of_machine = truth if part.machine is machine else Enumeration.of(part.machine.parameters)
    return of_machine.tempered(part.beta, part.base)


def _draw_seed(seed: int) -> int:
    return _SEED + seed % _SEED


def _put(chains: Chains, states: Sequence[Tensor]) -> None:
    for layer, state in zip(chains.layers, states, strict=True):
        layer.copy_(state)


def _fits(subject: str, what: str, truth: Enumeration, layers: Sequence[Tensor], level: float) -> Check:
    fit = Fit.of(truth, layers)
    if fit.freedom == 0:
        raise _too_few(len(layers[0]))
    return Check(subject, what, f"{fit} (fails below {level:.1g})", fit.p_value, fit.p_value >= level)


def _too_few(n_chains: int, where: str = "") -> ValueError:
    return ValueError(f"n_chains: expected so many that two states at least are seen often, got {n_chains}{where}")


def _annealing(machine: Machine, seed: int) -> LogZEstimate:
    return ais(machine, 100, betas=100, seed=seed)


def _estimated(estimator: Callable[[Machine, int], LogZEstimate], machine: Machine, seed: int) -> LogZEstimate:
    estimate = estimator(machine, seed)
    if not (hasattr(estimate, "log_z") and hasattr(estimate, "standard_error")):
        expected = "a function that gives an object with log_z and standard_error, such as an AISEstimate"
        raise TypeError(f"estimator: expected {expected}, got one that gives {estimate!r}")
    return estimate


def _log_z_checks(
    estimator: Callable[[Machine, int], LogZEstimate],
    machine: Machine,
    truth: Enumeration,
    repeats: int,
    seed: int,
    level: float,
) -> list[Check]:
    estimates = [_estimated(estimator, machine, seed + k) for k in range(repeats)]
    difference = torch.tensor([float(each.log_z) for each in estimates], dtype=torch.float64) - truth.log_z
    errors = torch.tensor([float(each.standard_error) for each in estimates], dtype=torch.float64)
    # errors below rounding, as of a machine without couplings, say nothing
    z = difference / errors.clamp(min=EXACT * max(1.0, abs(truth.log_z)))
    name = getattr(estimator, "__name__", type(estimator).__name__)
    subject = "annealed importance sampling" if estimator is _annealing else name
    offset = float(z.sum()) / math.sqrt(repeats)
    p = math.erfc(abs(offset) / math.sqrt(2)) if math.isfinite(offset) else 0.0
    mean = (
        f"{repeats} estimates, off by {float(difference.mean()):+.4f} on average, {offset:+.1f} of its standard "
        f"errors, {shown(p, level)}"
    )
    squares = float(z.square().sum())
    exceeding = chi_squared_tail(squares, repeats) if math.isfinite(squares) else 0.0
    both = 2 * min(exceeding, 1 - exceeding)
    # errors that are too large are harmless only where there is nothing to measure
    spread = f"mean square of (estimate - exact) / error {squares / repeats:.2f}, {shown(both, level)}"
    exact = bool((difference.abs() <= EXACT * max(1.0, abs(truth.log_z))).all())
    return [
        Check(subject, f"log Z {truth.log_z:.4f}", mean, p, p >= level),
        Check(subject, "its standard errors", spread, both, exact or both >= level),
    ]


def _gradient_check(
    gradient: Callable[[BoltzmannModel, Tensor, int], object],
    model: BoltzmannModel,
    v: Tensor,
    truth: Enumeration,
    repeats: int,
    seed: int,
    level: float,
) -> Check:
    """Student's t of every component, the smallest p-value times their number (Bonferroni)."""
    parameters = [*model.coupling_weights, *model.layer_biases]
    of_data, of_machine = truth.moments(truth.with_visible(v)), truth.moments(truth.p)
    exact = torch.cat([(b - a).flatten() for a, b in zip(of_data, of_machine, strict=True)])
    each = torch.zeros(repeats, len(exact), dtype=torch.float64, device=exact.device)
    for k in range(repeats):
        for parameter in parameters:
            parameter.grad = None
        gradient(model, v, seed + k)
        filled = [parameter.grad.double().flatten() for parameter in parameters if parameter.grad is not None]
        if len(filled) < len(parameters):
            raise ValueError(f"gradient: expected .grad of {len(parameters)} parameters, got that of {len(filled)}")
        each[k] = torch.cat(filled)
    off = each.mean(0) - exact
    error = each.std(0) / math.sqrt(repeats)
    t = off / error.clamp(min=EXACT / math.sqrt(repeats))
    worst = int(t.abs().nan_to_num(nan=math.inf).argmax())
    p = min(1.0, len(exact) * student_tails(float(t[worst]), repeats - 1))
    evidence = (
        f"mean of {repeats} estimates, {len(exact)} components, the worst off by {float(off[worst]):+.4f} from "
        f"{float(exact[worst]):+.4f}, {float(t[worst]):+.1f} of its standard errors, {shown(p, level)}"
    )
    return Check(getattr(gradient, "__name__", "gradient"), "gradient of -log p(v)", evidence, p, p >= level)
