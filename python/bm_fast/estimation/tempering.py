"""log Z from the energies on the rungs of parallel tempering: stepping stones and Bennett's acceptance ratio."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bm_fast.estimation._checks import student_tails
from bm_fast.estimation._path import AnnealingPath
from bm_fast.machines import Model, as_machine
from bm_fast.tempering import Ladders, TemperingReport, integrated_autocorrelation

_GROUPS = 20  # independent parts of a run from which errors are measured, at least
_DRIFT_LEVEL = 1e-3  # how rarely a run that is at rest is taken for one that drifts
_NO_DRIFT = 1e-6  # nats, of which roundings make more than chance does where energies hardly vary
MIN_OVERLAP = 0.03
"""Least overlap of neighbouring rungs that is trusted; samples of one rung then tell nothing about the next."""

FEWEST_TRIPS = 5
"""Arrivals at the target from the base, for each ladder, below which chains may still be where they began."""

FEWEST_AUTOCORRELATIONS = 3.0
"""Autocorrelation times of the energy that a run, or a part of it from which errors are measured, must span."""


@dataclass(frozen=True)
class TemperedLogZ:
    """log Z by the ratios of neighbouring rungs' Z; all with standard errors that count autocorrelation.

    log_z, standard_error: by Bennett's acceptance ratio, which uses the samples of both rungs of each pair.
    upward, upward_error: stepping stones from each rung's samples to the next rung; too low on average.
    downward, downward_error: the same from the upper rung's samples to the lower; too high on average.
    overlaps: float64 ``[n_rungs - 1]``, how far the densities p and q of neighbouring rungs are the same, 0 to 1: the
        integral of 2 p q / (p + q).
    trustworthy: False where rungs do not overlap, where hardly a chain travelled (not asked of trajectories), where the
        run is too short, or has too few parts, to measure its error, or where its beginning differs from its end;
        ``reason`` says which.
    """

    log_z: float
    standard_error: float
    upward: float
    upward_error: float
    downward: float
    downward_error: float
    overlaps: Tensor
    trustworthy: bool
    reason: str

    def __str__(self) -> str:
        text = (
            f"log Z = {self.log_z:.2f} ± {self.standard_error:.2f} (stepping stones {self.upward:.2f} ± "
            f"{self.upward_error:.2f} upward, {self.downward:.2f} ± {self.downward_error:.2f} downward)"
        )
        return text if self.trustworthy else f"{text}; NOT TRUSTWORTHY: {self.reason}"


def tempered_log_z(model: Model, ladders: Ladders, report: TemperingReport) -> TemperedLogZ:
    """log Z from a run of ``tempering.run`` with ``keep_gaps=True`` on ladders that begin at beta = 0.

    With D = E - E_base and w = (beta' - beta) D for neighbouring rungs beta < beta':

        Z' / Z = ⟨exp(-w)⟩ on beta = 1 / ⟨exp(w)⟩ on beta'                                     (stepping stones)
        Σ 1 / (1 + exp(w + c)) on beta = Σ 1 / (1 + exp(-w - c)) on beta',  c = log Z' / Z      (Bennett)

    and log Z = log Z_base + Σ log Z' / Z. Errors are those of the sum over all pairs, from the spread of the estimating
    functions between ladders, or between stretches of the run if there are fewer than 20 ladders; stretches count as
    independent, so that they must be long beside the autocorrelation of the energies.

    Run the ladders before, without keeping gaps, until they have forgotten where they began. The verdict asks for five
    trips from the base to the target in each ladder, and that log Z of the first quarter of the run is that of its last
    half: chains of separate modes look healthy rung by rung while the modes still have the shares that they began with.

    Source: Bennett, J. Comput. Phys. 22 (1976); Xie et al., Systematic Biology 60 (2011) for stepping stones;
    Shirts and Chodera, J. Chem. Phys. 129 (2008).
    """
    if report.gaps is None:
        raise ValueError("report: expected a run with keep_gaps=True, got one whose gaps were not kept")
    if float(report.betas[0]) != 0:
        raise ValueError(f"ladders: expected a first beta of 0, where Z is known, got {float(report.betas[0]):g}")
    machine = as_machine(model)
    if ladders.base is None and any(precision is not None for precision in machine.parameters.precisions):
        raise ValueError("ladders: expected a base, without which a Gaussian layer has no distribution at beta = 0")
    base_log_z = AnnealingPath(machine, ladders.base).base_log_z()
    _check_finite("report.gaps", report.gaps)
    gaps = _groups(report.gaps)  # [groups, samples, rungs]
    steps = report.betas.double().diff()
    lower, upper = gaps[:, :, :-1] * steps, gaps[:, :, 1:] * steps
    kept = report.gaps
    return _summed(
        base_log_z,
        lower,
        upper,
        lambda overlaps, terms: _distrust(report, overlaps) or _unmeasured(kept) or _drifting(terms, kept),
    )


def trajectory_log_z(first_log_z: float, energies: Tensor) -> TemperedLogZ:
    """log Z of the last machine from a run of ``run_trajectory`` with ``keep_energies=True``.

    Stepping stones and Bennett's acceptance ratio as in ``tempered_log_z``, with w = E' - E of neighbouring machines.

    first_log_z: of the first machine; ``exact_log_z`` where it is small, else an estimate, whose error comes on top.
    energies: float64 ``[rounds, 2, n_machines - 1, n_chains]``, as ``run_trajectory`` returns them.

    Run the replicas before, without keeping energies, until they have forgotten where they began.

    Source: Béreux, Decelle, Furtlehner, Rosset and Seoane, Fast training and sampling of Restricted Boltzmann Machines
    (ICLR 2025).
    """
    if energies.dim() != 4 or energies.shape[1] != 2 or 0 in energies.shape:
        raise ValueError(f"energies: expected [rounds, 2, n_machines - 1, n_chains], got {list(energies.shape)}")
    _check_finite("energies", energies)
    if not math.isfinite(first_log_z):
        raise ValueError(f"first_log_z: expected a finite number, got {first_log_z}")
    lower, upper = (_groups(energies[:, side].transpose(1, 2)) for side in (0, 1))

    def distrust(overlaps: Tensor, terms: Tensor) -> str:
        worst = int(overlaps.argmin())
        if float(overlaps[worst]) < MIN_OVERLAP:
            return (
                f"samples of machines {worst} and {worst + 1} overlap by {float(overlaps[worst]):.1%} only; put "
                "machines between them"
            )
        series = energies.permute(0, 3, 1, 2).flatten(2)
        return _unmeasured(series) or _drifting(terms, series)

    return _summed(first_log_z, lower, upper, distrust)


def _check_finite(name: str, energies: Tensor) -> None:
    if not bool(energies.isfinite().all()):
        raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")


def _summed(base_log_z: float, lower: Tensor, upper: Tensor, distrust: Callable[[Tensor, Tensor], str]) -> TemperedLogZ:
    """From w of every pair on its lower and on its upper end, float64 ``[groups, samples, pairs]``."""
    up, up_influence = _log_mean(-lower)
    down, down_influence = _log_mean(upper)
    bennett, terms, overlaps = _bennett(lower, upper, (up - down) / 2)
    reason = distrust(overlaps, terms)
    return TemperedLogZ(
        base_log_z + float(bennett.sum()),
        _error(terms.mean(1)),
        base_log_z + float(up.sum()),
        _error(up_influence),
        base_log_z - float(down.sum()),
        _error(down_influence),
        overlaps,
        not reason,
        reason,
    )


def _groups(gaps: Tensor) -> Tensor:
    """Parts of the samples that are independent, or nearly so: ladders, cut in time if there are few of them."""
    rounds, n_ladders, n_rungs = gaps.shape
    pieces, length = _pieces(rounds, n_ladders)
    cut = gaps[rounds - pieces * length :].view(pieces, length, n_ladders, n_rungs)
    return cut.transpose(1, 2).reshape(pieces * n_ladders, length, n_rungs)


def _pieces(rounds: int, n_ladders: int) -> tuple[int, int]:
    """Into how many stretches each ladder's run is cut, and their length in rounds."""
    pieces = min(max(1, math.ceil(_GROUPS / n_ladders)), rounds)
    return pieces, rounds // pieces


def _log_mean(log_values: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean over all samples ``[pairs]``, and the influence of each group on their sum ``[groups]``."""
    log_mean = log_values.flatten(0, 1).logsumexp(0) - math.log(log_values.shape[0] * log_values.shape[1])
    return log_mean, ((log_values - log_mean).exp().mean(1) - 1).sum(1)


def _bennett(lower: Tensor, upper: Tensor, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log Z'/Z of each pair by bisection, what samples add to their sum ``[groups, samples]``, and the overlaps."""
    low, high = start.clone(), start.clone()
    both = torch.cat([lower, upper], 1).flatten(0, 1)
    low, high = torch.minimum(-both.amax(0), low) - 1, torch.maximum(-both.amin(0), high) + 1
    for _ in range(100):
        c = (low + high) / 2
        # falls with c: lower samples count as the next rung's, upper ones as the previous rung's
        balance = torch.sigmoid(-lower - c).sum((0, 1)) - torch.sigmoid(upper + c).sum((0, 1))
        low, high = torch.where(balance > 0, c, low), torch.where(balance > 0, high, c)
        if float((high - low).max()) < 1e-10:
            break
    c = (low + high) / 2
    forward, backward = torch.sigmoid(-lower - c), torch.sigmoid(upper + c)
    slope = (forward * (1 - forward)).mean((0, 1)) + (backward * (1 - backward)).mean((0, 1))
    terms = ((forward - backward) / slope.clamp(min=1e-300)).sum(2)
    return c, terms, 2 * slope


def _error(influence: Tensor) -> float:
    """Standard error from the spread of what each group contributes."""
    return float(influence.std()) / math.sqrt(len(influence)) if len(influence) > 1 else math.inf


def _distrust(report: TemperingReport, overlaps: Tensor) -> str:
    worst = int(overlaps.argmin())
    if float(overlaps[worst]) < MIN_OVERLAP:
        low, high = (f"{float(beta):.4g}" for beta in report.betas[worst : worst + 2])
        return (
            f"samples at beta {low} and {high} overlap by {float(overlaps[worst]):.1%} only; adapt the betas, use more "
            "rungs or another base"
        )
    if report.trips < max(10, FEWEST_TRIPS * report.n_ladders):
        return (
            f"{report.trips} chains only of {report.n_ladders} ladders went from the base to the target, so modes may "
            "be missing, or have the shares that they began with; use more rounds or more sweeps between swaps"
        )
    return ""


def _unmeasured(series: Tensor) -> str:
    """Why the parts of a run do not tell its error; series: energies ``[rounds, n_ladders, quantities]``."""
    rounds, n_ladders, _ = series.shape
    pieces, length = _pieces(rounds, n_ladders)
    if pieces * n_ladders < _GROUPS:
        return f"{pieces * n_ladders} parts of the run are too few to measure its error; use more rounds"
    if pieces == 1:
        return ""
    times = [integrated_autocorrelation(quantity) for quantity in series.unbind(2)]
    slowest = max((time for time in times if time < math.inf), default=0.0)  # inf: it has one value only
    if length < FEWEST_AUTOCORRELATIONS * slowest:
        return (
            f"its error is measured from stretches of {length} rounds, which are short beside an autocorrelation of "
            f"{slowest:.0f} rounds; use more rounds, or at least {_GROUPS} ladders"
        )
    return ""


def _drifting(terms: Tensor, series: Tensor) -> str:
    """Whether log Z of the first quarter differs from that of the last half: ladders agree on it where it does.

    terms: what each sample adds to log Z, ``[groups, samples]``; series: as for ``_unmeasured``.
    """
    n_ladders, n_samples = series.shape[1], terms.shape[1]
    if n_ladders < _GROUPS or n_samples < 8:
        return ""
    change = terms[:, n_samples // 2 :].mean(1) - terms[:, : n_samples // 4].mean(1)
    size, error = float(change.mean()), float(change.std()) / math.sqrt(n_ladders)
    if abs(size) < _NO_DRIFT or error == 0 or student_tails(size / error, n_ladders - 1) >= _DRIFT_LEVEL:
        return ""
    return (
        f"log Z of the last half of the run is {size:+.2f} ± {error:.2f} off that of its first quarter: chains have "
        "not forgotten where they began; run them for longer before this run"
    )
