"""verify: it passes what is right, at the stated rate, and catches what is broken."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from bm_fast import RBM, Kind, Machine, chain_graph
from bm_fast.estimation import AISEstimate, ais, exact_log_z, verify
from bm_fast.estimation._checks import Fit, chi_squared_tail, dependence, student_tails
from bm_fast.estimation._enumeration import Enumeration
from bm_fast.model import BoltzmannModel
from bm_fast.tempering import Gibbs
from bm_fast.training import CD, PCD, Trainer
from bm_fast.training.trainer import Estimator
from enumeration import BINARY, enumerate_machine, machine
from verify_cases import Estimate, failures, known, rbm


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


def test_an_unbiased_gradient_passes() -> None:
    found = verify(rbm(), gradient=training(PCD(2000, sweeps=30)), v=DATA, n_chains=2000, estimator=known)
    assert found.passed, str(found)
    assert len(found.checks) == len(verify(rbm(), n_chains=500, estimator=known).checks) + 1


# --- what is broken ---------------------------------------------------------------------------------------------------


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


def test_units_that_hardly_ever_change_are_no_evidence() -> None:
    """On in 2% of the draws: whether an operator starts from what it is given cannot be told from 20,000 chains."""
    model = RBM(3, 2, weight_scale=0.1)
    with torch.no_grad():
        for bias in model.layer_biases:
            bias.fill_(-4.0)
    with pytest.raises(ValueError, match="n_chains: expected so many that some unit is often on"):
        verify(model, estimator=known)


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operator": 3}, r"operator: expected an object with a method advance\(machine, chains\), .* got 3$"),
        ({"operator": 0}, "operator: expected an object with a method advance"),
        ({"operator": Gibbs}, r"operator: expected an object with .*, such as Gibbs\(\), got <class "),
        ({"estimator": 3.0}, r"estimator: expected a function of machine and seed .*, got 3\.0$"),
        ({"estimator": lambda machine, seed: 3.0}, r"with log_z and standard_error, .*, got one that gives 3\.0$"),
        ({"gradient": 3, "v": DATA}, "gradient: expected a function of model, v and seed that fills .grad, got 3"),
    ],
)
def test_arguments_of_other_types(arguments: dict[str, object], message: str) -> None:
    given = {"estimator": known, "n_chains": 500, "n_calls": 2, **arguments}
    with pytest.raises(TypeError, match=message):
        verify(rbm(), **given)  # type: ignore[arg-type]
