"""A comparison with enumeration, and the statistics behind those into which chance enters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bm_fast.estimation._enumeration import Enumeration

_FEWEST_EXPECTED = 5.0
"""Draws of a cell of the χ² test; rarer states are counted together."""

_FEWEST_JOINT = 50.0
"""Chains that two traits share by chance, at least, for their number to be taken as normal."""


@dataclass(frozen=True)
class Check:
    """One comparison with enumeration.

    subject, what: of which part of the machinery, and what about it.
    evidence: the figures, as text.
    p_value: probability of so large a deviation by chance if all is right; None where nothing is left to chance.
    passed: whether the error is within rounding, or the p-value above the level of the test.
    """

    subject: str
    what: str
    evidence: str
    p_value: float | None
    passed: bool

    def __str__(self) -> str:
        return f"{'ok    ' if self.passed else 'FAILED'}  {self.subject}: {self.what}: {self.evidence}"


@dataclass(frozen=True)
class Fit:
    """Pearson's χ² test of independent states against the enumerated probabilities.

    freedom: its degrees of freedom; 0 where states are too few to be compared, and the p-value is 1.
    distance: total variation.
    """

    chi_squared: float
    freedom: int
    p_value: float
    distance: float

    @classmethod
    def of(cls, truth: Enumeration, layers: Sequence[Tensor]) -> Fit:
        """States per layer, ``[n, units]``. States that are no states fit with probability 0."""
        if any(len(layer) > 0 and int(layer.max()) > 1 for layer in layers):
            return cls(math.inf, 1, 0.0, 1.0)
        n = len(layers[0])
        expected, order = (n * truth.p).sort()
        cells = _cells(expected)
        seen = torch.bincount(truth.numbers(layers), minlength=len(truth.p)).double()[order]
        distance = float((seen - expected).abs().sum()) / (2 * max(n, 1))
        expected, seen = (expected.new_zeros(int(cells[-1]) + 1).index_add(0, cells, part) for part in (expected, seen))
        freedom = len(expected) - 1
        chi_squared = float(((seen - expected).square() / expected.clamp(min=1e-300)).sum())
        return cls(chi_squared, freedom, chi_squared_tail(chi_squared, freedom) if freedom else 1.0, distance)

    def __str__(self) -> str:
        if self.chi_squared == math.inf:
            return "some units are neither 0 nor 1"
        return (
            f"χ² {self.chi_squared:.1f} with {self.freedom} degrees of freedom, total variation {self.distance:.4f}, "
            f"p = {self.p_value:.2g}"
        )


def _cells(expected: Tensor) -> Tensor:
    """The cell of each state, int64 ``[states]``; expected draws of each rise, and so do the cells.

    Rare states of similar probability share one: of those in a stretch of ten draws the least expects five, since the
    states that it ends with expect no less than those that the one before ended with. What is left over at the end
    joins a neighbour.
    """
    n_rare = int((expected < _FEWEST_EXPECTED).sum())
    before = expected.cumsum(0) - expected
    stretch = (before[:n_rare] / (2 * _FEWEST_EXPECTED)).long()
    rare = torch.unique_consecutive(stretch, return_inverse=True)[1]
    n_shared = int(rare[-1]) + 1 if n_rare else 0
    cells = torch.cat([rare, n_shared + torch.arange(len(expected) - n_rare, device=expected.device)])
    if n_shared and float(expected[cells == n_shared - 1].sum()) < _FEWEST_EXPECTED:
        cells[cells >= max(n_shared - 1, 1)] -= 1
    return cells


def dependence(before: Sequence[Tensor], after: Sequence[Tensor]) -> tuple[float, float]:
    """Largest correlation of a unit's states before and after, and the p-value of independence (Bonferroni).

    Units that are nearly always on, or off, are left out: their counts are not normal. Whether units of a machine are
    like that ``can_tell_dependence`` says.
    """
    first, second = (torch.cat(list(layers), 1).double() for layers in (before, after))
    n = len(first)
    told = _are_told(n, first.mean(0), second.mean(0))
    if not bool(told.any()):
        return 0.0, 1.0
    first, second = (part[:, told] - part[:, told].mean(0) for part in (first, second))
    r = (first * second).mean(0) / (first.square().mean(0) * second.square().mean(0)).sqrt()
    largest = float(r.abs().max())
    return largest, min(1.0, int(told.sum()) * math.erfc(largest * math.sqrt(n / 2)))


def can_tell_dependence(truth: Enumeration, n: int) -> bool:
    """Whether n chains of this distribution show it, where a unit's states depend on earlier ones."""
    means = truth.p @ truth.states.double()
    return bool(_are_told(n, means, means).any())


def _are_told(n: int, first: Tensor, second: Tensor) -> Tensor:
    """The units whose rarer states meet often enough by chance, given their means before and after; bool."""
    rarer = [torch.minimum(mean, 1 - mean).clamp(min=0) for mean in (first, second)]
    return n * rarer[0] * rarer[1] >= _FEWEST_JOINT


def chi_squared_tail(value: float, freedom: int) -> float:
    """Probability of at least ``value``."""
    half = torch.tensor([freedom / 2, value / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def student_tails(t: float, freedom: int) -> float:
    """Two-sided p-value of Student's t, by Wallace's normal approximation (1959), good to some percent far out."""
    if not math.isfinite(t):
        return 0.0
    z = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.erfc(z / math.sqrt(2))


def shown(p: float, level: float) -> str:
    """A p-value beside the level of its test."""
    return f"p = {p:.2g} (fails below {level:.1g})"
