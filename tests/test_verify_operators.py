"""verify on transition operators: right ones pass, those with chains of their own too, and broken ones are caught."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bm_fast import DBM, Chains, Machine
from bm_fast.estimation import verify
from bm_fast.estimation._enumeration import Enumeration
from bm_fast.estimation.verification import MovesChains, _rungs_check, _start_exactly
from bm_fast.program import full_update, gibbs_program
from bm_fast.tempering import (
    CoupledTempering,
    Gibbs,
    Operator,
    Replicas,
    TemperedTransitions,
    Tempering,
    TrajectoryTempering,
)
from enumeration import BINARY, machine
from verify_cases import failures, known, rbm

# --- what is right ----------------------------------------------------------------------------------------------------

BASE = tuple(torch.linspace(-1, 1, n) for n in (3, 3, 2))


@pytest.mark.parametrize(
    ("operator", "parts"),
    [
        (Tempering(4), 5),
        (Tempering(3, base=BASE), 4),
        (CoupledTempering(3), 4),
        (TrajectoryTempering([DBM((3, 3, 2)), DBM((3, 3, 2), seed=1, weight_scale=0.4)]), 4),
    ],
)
def test_operators_with_chains_of_their_own_and_a_deep_model_pass(operator: Operator, parts: int) -> None:
    model = DBM((3, 3, 2), seed=1, weight_scale=0.7)
    found = verify(model, operator=operator, n_chains=5000, estimator=known)
    assert found.passed, str(found)
    what = f"{type(operator).__name__}: leaves exact draws on all its rungs alone in 10 calls: the worst of {parts} is "
    assert what in str(found)
    assert "DBM: weights 1 on the integer grid" in str(found)


def test_tempered_transitions_pass() -> None:
    assert verify(rbm(), operator=TemperedTransitions(3), n_chains=5000, estimator=known).passed


# --- what is broken ---------------------------------------------------------------------------------------------------


class AllAtOnce:
    """Updates both layers from the old state, the classic mistake."""

    def advance(self, machine: Machine, chains: Chains) -> None:
        old = chains.clone()
        for layer in (0, 1):
            part = old.clone()
            machine.sweep(((full_update(machine.graph, layer),),), part, 1)
            chains.layers[layer].copy_(part.layers[layer])
        chains.sweep += 1


class SameRandomNumbers(Gibbs):
    """Never counts its sweeps, so every call draws with the same random numbers."""

    def advance(self, machine: Machine, chains: Chains) -> None:
        super().advance(machine, chains)
        chains.sweep = 0


class Warm(Gibbs):
    """Samples at another temperature."""

    def advance(self, machine: Machine, chains: Chains) -> None:
        machine.sweep(gibbs_program(machine.graph), chains, 1, beta=torch.full((chains.n_chains,), 0.9))


class Stuck(Gibbs):
    """Leaves the distribution alone, and every chain where it is."""

    def advance(self, machine: Machine, chains: Chains) -> None:
        pass


class Twos(Gibbs):
    """Writes what is no state."""

    def advance(self, machine: Machine, chains: Chains) -> None:
        chains.layers[0].fill_(2)


class Unlisted(Gibbs):
    """Has chains of its own, which it does not list, and copies them over those that it is given."""

    def advance(self, machine: Machine, chains: Chains) -> None:
        if chains.sweep == 0:
            self.own = chains.clone()
        super().advance(machine, self.own)
        for state, own in zip(chains.layers, self.own.layers, strict=True):
            state.copy_(own)
        chains.sweep = self.own.sweep


class Copies(Tempering):
    """Lists copies of its chains, so that what is put there has no effect."""

    def replicas(self, machine: Machine) -> list[Replicas]:
        return [replace(part, chains=part.chains.clone()) for part in super().replicas(machine)]


class Pair(Gibbs):
    """Parallel tempering of the chains with others at half the energy, and a rule by which the two swap.

    A rule gives the logarithm of the acceptance probability for the states of the lower and of the upper chains.
    """

    def __init__(self, rule: Callable[[Machine, Chains, Chains], Tensor]) -> None:
        super().__init__()
        self.rule = rule

    def advance(self, machine: Machine, chains: Chains) -> None:
        if chains.sweep == 0:
            self.low = machine.chains(chains.n_chains, chains.seed, chains.n_chains)
        program, half = gibbs_program(machine.graph), torch.full((chains.n_chains,), 0.5)
        machine.sweep(program, self.low, 1, beta=half)
        machine.sweep(program, chains, 1)
        coins = torch.rand(len(half), generator=torch.Generator().manual_seed(chains.sweep), dtype=torch.float64)
        taken = (coins.log() < self.rule(machine, self.low, chains))[:, None]
        for lower, upper in zip(self.low.layers, chains.layers, strict=True):
            before = lower.clone()
            lower.copy_(torch.where(taken, upper, before))
            upper.copy_(torch.where(taken, before, upper))

    def replicas(self, machine: Machine) -> list[Replicas]:
        return [Replicas("half the energy", machine, 0.5, None, self.low, torch.arange(self.low.n_chains))]


class Nowhere(Pair):
    """Lists a temperature at which it has no chains."""

    def replicas(self, machine: Machine) -> list[Replicas]:
        empty = Replicas("a quarter of the energy", machine, 0.25, None, self.low, torch.arange(0))
        return [*super().replicas(machine), empty]


class SameNames(Pair):
    """Lists its chains at another temperature too, under one name."""

    def replicas(self, machine: Machine) -> list[Replicas]:
        (right,) = super().replicas(machine)
        return [replace(right, beta=0.9), right]


def joint_energies(machine: Machine, low: Chains, high: Chains) -> Tensor:
    return 0.5 * (machine.energy(high.layers) - machine.energy(low.layers))


def free_energies(machine: Machine, low: Chains, high: Chains) -> Tensor:
    """The known trap: free energies of the machine itself, where both rungs need their own."""
    low_f, high_f = (machine.free_energy(gibbs_program(machine.graph)[0], side.layers)[0] for side in (low, high))
    return 0.5 * (high_f - low_f)


def backwards(machine: Machine, low: Chains, high: Chains) -> Tensor:
    return -joint_energies(machine, low, high)


def test_the_right_rule_of_swaps_passes_and_wrong_ones_are_caught() -> None:
    """The right one with a fixed seed; over seeds, a false alarm once in a thousand."""
    right = verify(rbm(), operator=Pair(joint_energies), estimator=known)
    assert right.passed, str(right)
    for wrong in (free_energies, backwards):
        found = verify(rbm(), operator=Pair(wrong), estimator=known)
        assert "Pair: leaves exact draws on all its rungs alone in 10 calls" in failures(found)


@pytest.mark.parametrize(
    ("operator", "evidence"),
    [
        (Nowhere(joint_energies), "none of its chains is at a quarter of the energy, which shows nothing of it"),
        (SameNames(joint_energies), "the worst of 3 is half the energy, χ²"),
    ],
)
def test_every_listed_part_must_show_its_distribution(operator: Pair, evidence: str) -> None:
    found = verify(rbm(), operator=operator, n_chains=5000, estimator=known)
    assert failures(found) == [f"{type(operator).__name__}: leaves exact draws on all its rungs alone in 10 calls"]
    assert evidence in str(found)


def test_rungs_with_a_few_chains_are_no_evidence() -> None:
    with pytest.raises(ValueError, match=r"n_chains: expected so many that two states at least .* \d at beta = "):
        verify(rbm(), operator=CoupledTempering(30), n_chains=300, estimator=known)


def test_chains_of_an_operators_own_raise_false_alarms_as_rarely_as_stated() -> None:
    """60 runs at a level of 8%: 4.8 are expected, 15 or more once in 10,000."""
    built, level = machine(BINARY["rbm"], coupling_sd=0.4), 0.08
    truth = Enumeration.of(built.parameters)
    failed = 0
    for seed in range(60):
        operator, chains = Tempering(3), built.chains(1000, seed)
        for _ in range(5):
            operator.advance(built, chains)
        _start_exactly(operator, built, truth, chains, 1000 * seed)
        operator.advance(built, chains)
        failed += not _rungs_check(operator, built, truth, chains, level).passed
    assert failed < 15


@pytest.mark.parametrize(
    ("operator", "caught"),
    [
        (AllAtOnce(), ["reaches", "leaves"]),
        (SameRandomNumbers(), ["reaches", "goes"]),
        (Warm(), ["reaches", "leaves"]),
        (Stuck(), ["reaches"]),
        (Twos(), ["reaches", "leaves"]),
        (Unlisted(), ["goes"]),
        (Copies(3), ["goes"]),
    ],
)
def test_broken_operators_are_caught(operator: MovesChains, caught: list[str]) -> None:
    found = verify(rbm(), operator=operator, estimator=known)
    assert [re.sub(r".*: (\w+) .*", r"\1", failure) for failure in failures(found)] == caught
    assert f"FAILED  {type(operator).__name__}: " in str(found)
    assert f"{len(caught)} of {len(found.checks)} checks failed" in str(found)
