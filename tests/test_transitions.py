"""Tempered transitions and coupled simulated tempering: no drift, broken rules that drift, and exact resuming.

Everything starts exactly at its distribution, so slow mixing can neither hide a fault nor raise an alarm; the yardstick
and its false-alarm rate are those of test_no_drift.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bm_fast import Chains, Graph, Machine, chain_graph, checkpoints, ops
from bm_fast.tempering import CoupledTempering, Gibbs, Operator, TemperedTransitions, Walkers, coupled, transitions
from bm_fast.tempering.decisions import chosen
from engine_cases import make_machine
from enumeration import DRIFT_BOUND, GRAPHS, Truth, enumerate_machine, machine, variation_ratio
from test_swap import base_of
from test_tempering import share_on, two_modes

BETAS = torch.tensor([0.0, 0.35, 0.7, 1.0])
LOG_SHARES = torch.tensor([0.0, -0.8, 0.6, 0.2], dtype=torch.float64)
"""Walkers on each rung, up to a constant: not equally many, so that a rule without weights is not right by chance."""

N_CHAINS = 20_001


@dataclass
class Case:
    """An operator and chains at the machine's distribution; walkers, where it has any, at theirs."""

    machine: Machine
    operator: Operator
    chains: Chains
    truths: list[Truth]

    def ratios(self) -> list[float]:
        """Total variation over its floor: of the chains, and of (rung, state) of the walkers."""
        target = self.truths[-1]
        ratios = [variation_ratio(target.p, target.numbers(self.chains.layers))]
        if isinstance(self.operator, CoupledTempering):
            walkers = self.operator.walkers
            assert walkers is not None
            numbers = target.numbers(walkers.chains.layers) + len(target.p) * walkers.rungs
            ratios.append(variation_ratio(joint(self.truths), numbers))
        return ratios

    def drift(self, calls: int = 5) -> float:
        """The largest ratio over some calls."""
        worst = 0.0
        for _ in range(calls):
            self.operator.advance(self.machine, self.chains)
            worst = max(worst, *self.ratios())
        return worst


def joint(truths: Sequence[Truth]) -> Tensor:
    """p(x, k) of walkers, rung after rung."""
    return torch.cat([share * truth.p for share, truth in zip(LOG_SHARES.softmax(0), truths, strict=True)])


def excursions(graph: Graph, with_base: bool, n_chains: int = N_CHAINS) -> Case:
    built, base = machine(graph), base_of(graph) if with_base else None
    truth = enumerate_machine(built)
    chains = Chains(truth.draw(n_chains, torch.Generator().manual_seed(1)), seed=7)
    return Case(built, TemperedTransitions(BETAS, base=base), chains, [truth])


def walks(graph: Graph, with_base: bool, n_chains: int = N_CHAINS) -> Case:
    built, base = machine(graph), base_of(graph) if with_base else None
    truths = [enumerate_machine(built, float(beta), base) for beta in BETAS]
    generator = torch.Generator().manual_seed(1)
    rows = torch.multinomial(joint(truths), n_chains, replacement=True, generator=generator)
    n_states = len(truths[0].p)
    chains = Chains(truths[-1].draw(n_chains, generator), seed=7, sweep=1)  # sweep 0 would begin new walkers
    operator = CoupledTempering(BETAS, base=base, rate=0.0)
    walkers = Walkers.start(built, n_chains, len(BETAS), chains.seed, 2**30)
    walkers.chains = Chains(truths[0].layers(rows % n_states), chains.seed, 1, 2**30)
    walkers.rungs = rows // n_states
    walkers.log_weights = torch.tensor([truth.log_z for truth in truths], dtype=torch.float64) - LOG_SHARES
    operator.walkers = walkers
    return Case(built, operator, chains, truths)


@pytest.mark.parametrize("with_base", [False, True], ids=["no base", "base"])
@pytest.mark.parametrize("case", [excursions, walks])
@pytest.mark.parametrize("name", GRAPHS)
def test_stays_at_p(name: str, case: Callable[..., Case], with_base: bool) -> None:
    at_p = case(GRAPHS[name], with_base)
    assert max(at_p.ratios()) < DRIFT_BOUND, "the chains did not start at p: the test itself is at fault"
    before = at_p.chains.clone()
    assert at_p.drift() < DRIFT_BOUND
    moved = torch.stack([(a != b).any(1) for a, b in zip(before.layers, at_p.chains.layers, strict=True)]).any(0)
    assert float(moved.double().mean()) > 0.7, "chains that stay where they are would pass"


def test_several_sweeps_and_a_ladder_that_stays_warm() -> None:
    at_p = excursions(GRAPHS["rbm"], False)
    at_p.operator = TemperedTransitions([0.5, 0.8, 1.0], sweeps=2)
    assert at_p.drift() < DRIFT_BOUND
    assert at_p.chains.sweep == 5 * 2 * 5
    at_p = walks(GRAPHS["rbm"], False)
    assert isinstance(at_p.operator, CoupledTempering)
    at_p.operator.sweeps, at_p.operator.rounds = 2, 3
    assert at_p.drift() < DRIFT_BOUND
    assert at_p.chains.sweep == 1 + 5 * 2 * 3


# --- broken rules -----------------------------------------------------------------------------------------------------


class EnergyAlone(ops.EnergyGap):
    """Forgets that the path begins at a base."""

    def of(self, layers: Sequence[Tensor]) -> Tensor:
        return self.machine.energy(layers)


def takes_all(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(transitions, "accepted", lambda log_ratio, chains: torch.ones_like(log_ratio, dtype=torch.bool))


def forgets_the_base(patch: pytest.MonkeyPatch) -> None:
    for module in (transitions, coupled):
        patch.setattr(module, "EnergyGap", EnergyAlone)


def meets_below_the_target(patch: pytest.MonkeyPatch) -> None:
    step = Walkers.step

    def changed(self: Walkers, *arguments: object) -> Tensor:
        step(self, *arguments)  # type: ignore[arg-type]
        return self.rungs == len(BETAS) - 2

    patch.setattr(Walkers, "step", changed)


def forgets_weights(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(coupled, "chosen", lambda log_p, chains: chosen(log_p - LOG_SHARES, chains))


BROKEN = {
    "takes every excursion": (excursions, takes_all),
    "excursions forget the base": (excursions, forgets_the_base),
    "walkers forget the base": (walks, forgets_the_base),
    "walkers meet chains below the target": (walks, meets_below_the_target),
    "walkers forget their weights": (walks, forgets_weights),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_rules_drift(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, patch = BROKEN[broken]
    at_p = case(GRAPHS["dbm3"], True, 4 * N_CHAINS)
    patch(monkeypatch)
    assert at_p.drift() > DRIFT_BOUND


# --- walkers ----------------------------------------------------------------------------------------------------------


def test_weights_approach_log_z_of_every_rung() -> None:
    built = machine(GRAPHS["rbm"])
    log_z = torch.tensor([enumerate_machine(built, float(beta)).log_z for beta in BETAS], dtype=torch.float64)
    operator, chains = CoupledTempering(BETAS, rate=0.0), built.chains(2000, seed=1)
    operator.rate = 1e-3
    for _ in range(150):
        operator.advance(built, chains)
    walkers = operator.walkers
    assert walkers is not None
    # one standard deviation is about 0.01
    assert torch.allclose(walkers.log_weights, log_z - log_z[0], atol=0.06)
    assert float(walkers.visits.sum()) == pytest.approx(150 * 2000)
    assert walkers.trips > 1000


@pytest.mark.parametrize(
    "operator", [TemperedTransitions(20), CoupledTempering(8)], ids=["tempered transitions", "coupled tempering"]
)
def test_operators_find_the_other_mode_where_gibbs_sampling_stays(operator: Operator) -> None:
    built = two_modes()
    for moved_by, low, high in ((Gibbs(300), 1.0, 1.0), (operator, 0.3, 0.7)):
        chains = built.chains(200, seed=1)
        for layer in chains.layers:
            layer.fill_(1)
        for _ in range(150):
            moved_by.advance(built, chains)
        # by symmetry each mode has half of the chains: 200 fair coins leave 0.3 to 0.7 once in 10^8
        assert low <= share_on(chains.layers) <= high


# --- resuming and bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: TemperedTransitions(6), lambda: CoupledTempering(6, rounds=2)])
def test_an_operator_resumes_from_its_state(make: Callable[[], Operator], tmp_path: Path) -> None:
    built, ends = two_modes(), []
    for interrupted in (False, True):
        operator, chains = make(), built.chains(20, seed=2**64 - 3)
        for k in range(8):
            operator.advance(built, chains)
            if interrupted and k == 3:
                held = {"settings": operator.settings(), "state": operator.state_dict()}
                checkpoints.save(tmp_path / "operator.safetensors", held)
                loaded = checkpoints.load(tmp_path / "operator.safetensors")
                operator = type(operator)(**loaded["settings"])
                operator.load_state_dict(loaded["state"])
        ends.append((chains.layers, operator.state_dict()))
    assert checkpoints.same(*ends)


def test_an_interrupted_call_changes_nothing() -> None:
    built = make_machine(chain_graph((6, 5)))
    for operator, module in ((TemperedTransitions(4), transitions), (CoupledTempering(4), coupled)):
        chains = built.chains(5, seed=1)
        operator.advance(built, chains)
        before = copy.deepcopy((chains.state_dict(), operator.state_dict()))

        def interrupt(*_: object) -> Tensor:
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            for rule in ("accepted", "chosen"):
                patch.setattr(module, rule, interrupt, raising=False)
            with pytest.raises(KeyboardInterrupt):
                operator.advance(built, chains)
        assert checkpoints.same((chains.state_dict(), operator.state_dict()), before)
        operator.advance(built, chains)


def test_bad_input_is_refused() -> None:
    built = two_modes()
    for make in (TemperedTransitions, CoupledTempering):
        with pytest.raises(ValueError, match="betas: expected at least 2 rungs, got 1"):
            make(1)
        with pytest.raises(ValueError, match="sweeps: expected 1 to"):
            make(4, sweeps=0)
        with pytest.raises(ValueError, match="base"):
            make(4, base=[torch.zeros(3)]).advance(built, built.chains(2, seed=1))
    with pytest.raises(ValueError, match="rate: expected 0 to 1, got 2"):
        CoupledTempering(4, rate=2)
    chains = built.chains(4, seed=1)
    Gibbs(3).advance(built, chains)
    operator = CoupledTempering(4)
    with pytest.raises(ValueError, match="chains: expected some at sweep 0, which begin walkers, got sweep 3"):
        operator.advance(built, chains)
    operator.advance(built, built.chains(5, seed=2))
    with pytest.raises(ValueError, match=r"expected those .*, 5 with seed 2 at sweep 1, got 4 with seed 1 at sweep 3"):
        operator.advance(built, chains)
