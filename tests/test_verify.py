"""verify: it passes what is right, at the stated rate, and catches what is broken."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from bm_fast import DBM, RBM, Chains, Kind, Machine, chain_graph
from bm_fast.estimation import AISEstimate, Verification, ais, exact_log_z, verify
from bm_fast.estimation._checks import Fit, chi_squared_tail, dependence, student_tails
from bm_fast.estimation._enumeration import Enumeration
from bm_fast.estimation.verification import _rungs_check
from bm_fast.model import BoltzmannModel
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
from bm_fast.training import CD, PCD, Trainer
from bm_fast.training.trainer import Estimator
from enumeration import BINARY, enumerate_machine, machine


def rbm() -> RBM:
    model = RBM(4, 3, seed=2, weight_scale=0.9)
    with torch.no_grad():
        model.visible_bias.copy_(torch.tensor([0.4, -0.3, 0.2, -0.6]))
    return model


class Estimate(NamedTuple):
    """The least that an estimator of log Z gives."""

    log_z: float
    standard_error: float


def failures(found: Verification) -> list[str]:
    return [f"{check.subject}: {check.what}" for check in found.checks if not check.passed]


def training(estimator: Estimator, epochs: int = 1) -> object:
    """A gradient estimator for ``verify``: that of a trainer whose steps have length zero."""

    def gradient(model: BoltzmannModel, v: Tensor, seed: int) -> None:
        optimizer = SGD(model.parameters(), lr=0.0)
        Trainer(model, optimizer, estimator, batch_size=len(v), seed=seed, centred=False).fit(v, epochs)

    return gradient


DATA = torch.tensor([[0, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1], [0, 1, 1, 0]], dtype=torch.uint8)

# --- what is right ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BINARY)
def test_machines_of_every_graph_pass(name: str) -> None:
    """With fixed seeds; over seeds, a false alarm once in a thousand."""
    found = verify(machine(BINARY[name], coupling_sd=0.6), n_chains=5000, n_calls=30)
    assert found.passed, str(found)
    text = str(found)
    assert "FAILED" not in text
    assert re.search(r"all \d+ checks passed; chance alone fails any of them with probability 0.001", text)


def known(machine: Machine, seed: int) -> Estimate:
    """An estimator of log Z whose errors are what they say."""
    noise = torch.randn(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Estimate(exact_log_z(machine) + 0.1 * float(noise), 0.1)


def test_false_alarms_are_as_rare_as_stated() -> None:
    """100 runs at a rate of 20%: 20 are expected; 7 or fewer and 34 or more happen once in 2,000 such tests each."""
    built = machine(BINARY["rbm"], coupling_sd=0.4)
    settings = {"n_chains": 2000, "n_calls": 2, "operator": Gibbs(8), "estimator": known, "false_alarms": 0.2}
    failed = [not verify(built, **settings, seed=1000 * k).passed for k in range(100)]  # type: ignore[arg-type]
    assert 7 < sum(failed) < 34


def test_states_that_are_hardly_ever_drawn_raise_no_alarm() -> None:
    """Eight of 16 states expect 0.02 draws together, so that 11 of 500 samples have one or more of them.

    At a level of 1/1000 half an alarm is expected; six or more happen once in 70,000 such tests.
    """
    model = RBM(2, 2, weight_scale=0)
    with torch.no_grad():
        model.hidden_bias.copy_(torch.tensor([0.0, 13.0]))
    truth = Enumeration.of(model.machine().parameters)
    assert sum(Fit.of(truth, truth.draw(10_000, k)).p_value < 1e-3 for k in range(500)) < 6


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
    what = f"{type(operator).__name__}: exact draws on all its rungs are exact after 10 calls: the worst of {parts} is "
    assert what in str(found)
    assert "DBM: weights 1 on the integer grid" in str(found)


def test_tempered_transitions_pass() -> None:
    assert verify(rbm(), operator=TemperedTransitions(3), n_chains=5000, estimator=known).passed


def test_an_unbiased_gradient_passes() -> None:
    found = verify(rbm(), gradient=training(PCD(2000, sweeps=30)), v=DATA, n_chains=2000, estimator=known)
    assert found.passed, str(found)
    assert len(found.checks) == len(verify(rbm(), n_chains=500, estimator=known).checks) + 1


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
        assert "Pair: exact draws on all its rungs are exact after 10 calls" in failures(found)


def test_chains_of_an_operators_own_raise_false_alarms_as_rarely_as_stated() -> None:
    """60 runs at a rate of 20%, of which two fifths are that check's: 4.8 are expected, 15 or more once in 10,000."""
    built, level = machine(BINARY["rbm"], coupling_sd=0.4), 0.08
    truth = Enumeration.of(built.parameters)
    failed = 0
    for seed in range(60):
        operator, chains = Tempering(3), built.chains(1000, seed)
        for _ in range(5):
            operator.advance(built, chains)
        failed += not _rungs_check(operator, built, truth, chains, 1000 * seed, level).passed
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
    ],
)
def test_broken_operators_are_caught(operator: object, caught: list[str]) -> None:
    found = verify(rbm(), operator=operator, estimator=known)
    assert [re.sub(r".*: (\w+) .*", r"\1", failure) for failure in failures(found)] == caught
    assert f"FAILED  {type(operator).__name__}: " in str(found)
    assert f"{len(caught)} of {len(found.checks)} checks failed" in str(found)


def test_broken_estimators_of_log_z_are_caught() -> None:
    def shifted(machine: Machine, seed: int) -> AISEstimate:
        estimate = ais(machine, 100, betas=100, seed=seed)
        return AISEstimate.from_log_weights(estimate.log_weights + 0.1, 100)

    def overconfident(machine: Machine, seed: int) -> AISEstimate:
        weights = ais(machine, 100, betas=20, seed=seed).log_weights
        return AISEstimate.from_log_weights(weights.repeat(4), 20)

    def undecided(machine: Machine, seed: int) -> AISEstimate:
        return AISEstimate.from_log_weights(torch.full((20,), torch.nan, dtype=torch.float64), 20)

    assert "shifted: log Z 5." in failures(verify(rbm(), estimator=shifted, n_chains=2000))[0]
    assert failures(verify(rbm(), estimator=overconfident, n_chains=2000)) == ["overconfident: its standard errors"]
    assert len(failures(verify(rbm(), estimator=undecided, n_chains=2000))) == 2


def test_biased_gradients_are_caught() -> None:
    expected = ["gradient: gradient of -log p(v)"]
    assert failures(verify(rbm(), gradient=training(CD(1)), v=DATA.repeat(500, 1), estimator=known)) == expected

    def halved(model: BoltzmannModel, v: Tensor, seed: int) -> None:
        training(PCD(2000, sweeps=30))(model, v, seed)  # type: ignore[operator]
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.grad.mul_(0.5)

    assert failures(verify(rbm(), gradient=halved, v=DATA, estimator=known)) == ["halved: gradient of -log p(v)"]


@pytest.mark.parametrize(
    ("operation", "caught"),
    [
        ("energy", ["energies of all states"]),
        ("layer_means", ["means of layer 'visible' given the others", "means of layer 'hidden' given the others"]),
        ("free_energy", ["log density without visible", "log p(v) of every v"]),
    ],
)
def test_wrong_figures_of_a_machine_are_caught(
    operation: str, caught: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each off by one part in a thousand; the estimator of log Z is one that uses none of them."""
    original = getattr(Machine, operation)

    def off(self: Machine, *arguments: object, **named: object) -> Tensor:
        return original(self, *arguments, **named) * 1.001

    monkeypatch.setattr(Machine, operation, off)
    found = verify(machine(BINARY["rbm"]), estimator=known, n_chains=2000)
    assert failures(found) == [f"Machine: {what}" for what in caught]


def test_what_is_not_a_number_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Machine, "energy", lambda self, layers: torch.full((len(layers[0]),), torch.nan).double())
    assert failures(verify(rbm(), estimator=known, n_chains=500)) == ["RBM: energies of all states"]


def test_a_model_whose_machine_is_another_is_caught() -> None:
    class Stale(RBM):
        """Keeps the machine of its first parameters."""

        def machine(self) -> Machine:
            if not hasattr(self, "kept"):
                self.kept = super().machine()
            return self.kept

    model = Stale(4, 3, seed=2, weight_scale=0.9)
    assert verify(model, estimator=known).passed
    with torch.no_grad():
        model.weight[0, 0] += 0.01
    assert failures(verify(model, estimator=known)) == ["Stale: weights 0 on the integer grid"]


# --- its parts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BINARY)
def test_enumeration_agrees_with_that_of_the_tests(name: str) -> None:
    built = machine(BINARY[name])
    mine, other = Enumeration.of(built.parameters), enumerate_machine(built)
    assert mine.log_z == pytest.approx(other.log_z, abs=1e-12)
    torch.testing.assert_close(mine.p, other.p, rtol=0, atol=1e-15)
    assert torch.equal(mine.states, other.states)
    numbers = torch.tensor([0, 5, len(mine.p) - 1])
    assert torch.equal(mine.numbers(mine.layers(numbers)), numbers)


def test_p_values() -> None:
    """χ² with 4 degrees of freedom in closed form; t from tables (two-sided 0.001 at 19: 3.883; 1e-6 at 99: 5.227)."""
    assert chi_squared_tail(6.0, 4) == pytest.approx((1 + 3) * 2.718281828**-3, rel=1e-6)
    assert student_tails(3.883, 19) == pytest.approx(1e-3, rel=0.03)
    assert student_tails(-3.883, 19) == pytest.approx(1e-3, rel=0.03)
    assert student_tails(float("inf"), 19) == 0


def test_dependence_is_seen_and_chance_is_not() -> None:
    """One unit of three is kept half of the time; independent ones have a p-value below 1/100 once in 100."""
    generator = torch.Generator().manual_seed(0)
    before, after = ((torch.rand(4000, 3, generator=generator) < 0.3).byte() for _ in range(2))
    assert dependence((before,), (after,))[1] > 0.01
    kept = after.clone()
    kept[:2000, 1] = before[:2000, 1]
    r, p = dependence((before,), (kept,))
    assert r == pytest.approx(0.5, abs=0.05)
    assert p < 1e-100
    rare = (torch.rand(4000, 1, generator=generator) < 0.001).byte()
    assert dependence((rare,), (rare,)) == (0.0, 1.0)


def test_states_are_counted_apart_but_for_rare_ones() -> None:
    """Fair coins: 32 states of 62.5 expected draws each; a rare unit's 16 states of 0.8 draws are counted together.

    Where they make no 5 draws together, one of the other states joins them.
    """
    fair = Machine.build(chain_graph((3, 2)), [torch.zeros(3, 2)], [torch.zeros(3), torch.zeros(2)])
    assert "with 31 degrees of freedom" in str(verify(fair, estimator=known, n_chains=2000))
    for rare_bias, freedom in ((-5.0, 16), (-8.0, 15)):
        bias = torch.tensor([rare_bias, 0.0, 0.0])
        rare = Machine.build(chain_graph((3, 2)), [torch.zeros(3, 2)], [bias, torch.zeros(2)])
        assert f"with {freedom} degrees of freedom" in str(verify(rare, estimator=known, n_chains=2000))


def test_p_values_of_estimates_that_are_all_off_alike() -> None:
    """Half a standard error each: √20 / 2 together, and squares of a quarter."""
    built = machine(BINARY["rbm"])

    def off(machine: Machine, seed: int) -> Estimate:
        return Estimate(exact_log_z(machine) + 0.05, 0.1)

    mean, spread = verify(built, estimator=off, n_chains=500).checks[-2:]
    assert mean.p_value == pytest.approx(math.erfc(math.sqrt(20) / 2 / math.sqrt(2)), rel=1e-3)
    assert "20 estimates, off by +0.0500 on average, +2.2 of its standard errors" in mean.evidence
    assert spread.p_value == pytest.approx(2 * (1 - chi_squared_tail(5.0, 20)), rel=1e-2)
    assert "0.25" in spread.evidence


def test_the_p_value_of_the_worst_component_counts_them_all() -> None:
    """Noise of ±1 on all 19 components, 0.8 more on the first: Student's t of 0.8 √19 with 19 degrees of freedom."""
    model = rbm()
    truth = Enumeration.of(model.machine().parameters)
    data, own = truth.moments(truth.with_visible(DATA)), truth.moments(truth.p)

    def noisy(model: BoltzmannModel, v: Tensor, seed: int) -> None:
        parameters = [*model.coupling_weights, *model.layer_biases]
        for parameter, a, b in zip(parameters, data, own, strict=True):
            parameter.grad = (b - a).float() + (-1) ** seed
        assert parameters[0].grad is not None
        parameters[0].grad[0, 0] += 0.8

    check = verify(model, estimator=known, gradient=noisy, v=DATA, n_chains=500).checks[-1]
    assert check.p_value == pytest.approx(19 * student_tails(0.8 * math.sqrt(19), 19), rel=1e-3)
    assert check.passed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": RBM(10, 7)}, "model: expected at most 16 units in all layers together, got 17"),
        ({"model": RBM(3, 2, visible=Kind.GAUSSIAN)}, r"model: enumeration needs Bernoulli units, got \['BERNOULLI', "),
        ({"repeats": 5}, "repeats: expected at least 10"),
        ({"false_alarms": 0.0}, "false_alarms: expected a probability"),
        ({"n_chains": 0}, "n_chains: expected a whole number"),
        ({"n_chains": 4}, "n_chains: expected so many that two states at least are seen often, got 4"),
        ({"gradient": training(PCD(10))}, "v: expected the data of the gradient"),
        ({"v": DATA}, "v: expected the data of the gradient"),
        ({"gradient": training(PCD(10)), "v": torch.full((2, 4), 0.5)}, "v: expected 0 or 1"),
        (
            {"gradient": lambda model, v, seed: None, "v": DATA},
            "gradient: expected .grad of 3 parameters, got that of 0",
        ),
        ({"model": machine(chain_graph((4, 3))), "gradient": training(PCD(10)), "v": DATA}, "model: a gradient needs"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    given = {"model": rbm(), "estimator": known, "n_chains": 500, "n_calls": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        verify(given.pop("model"), **given)  # type: ignore[arg-type]
