"""Replica exchange: swaps leave every rung at its own distribution, a wrong rule does not, and all backends agree.

Chains start exactly at the distribution of their rung, so slow mixing can neither hide a fault nor raise an alarm; the
yardstick and its false-alarm rate are those of test_no_drift.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from bm_fast import Chains, Graph, Kind, Machine, chain_graph, ops, reference
from bm_fast.ops import EnergyGap, Rungs, swap, temper
from bm_fast.program import gibbs_program
from conftest import needs_native
from engine_cases import make_machine, tree
from enumeration import DRIFT_BOUND, GRAPHS, Truth, energies, enumerate_machine, machine, variation_ratio

BETAS = torch.tensor([0.0, 0.35, 0.7, 1.0])
"""Two rungs strictly inside (0, 1): with rungs 0 and 1 alone some wrong rules are right."""


def base_of(graph: Graph) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(layer.units, generator=generator) for layer in graph.layers]


class Ladders:
    """Many ladders whose chains start at the exact distribution of their rung."""

    def __init__(self, graph: Graph, n_ladders: int, with_base: bool) -> None:
        self.machine = machine(graph)
        self.base = base_of(graph) if with_base else None
        self.truths: list[Truth] = [enumerate_machine(self.machine, float(beta), self.base) for beta in BETAS]
        generator = torch.Generator().manual_seed(1)
        rows = torch.stack(
            [torch.multinomial(t.p, n_ladders, replacement=True, generator=generator) for t in self.truths], 1
        )
        self.chains = Chains(self.truths[0].layers(rows.flatten()), seed=7)
        self.rungs = Rungs.start(n_ladders, len(BETAS))
        self.gap = EnergyGap(self.machine, self.base)

    def step(self, exchange: Callable[..., None] = swap) -> None:
        beta = BETAS[self.rungs.rungs.long()].contiguous()
        self.machine.sweep(gibbs_program(self.machine.graph), self.chains, 1, beta=beta, base=self.base)
        exchange(self.rungs, self.gap.of(self.chains.layers), BETAS, seed=self.chains.seed)

    def ratios(self) -> list[float]:
        """Total variation of each rung from its exact distribution, over its floor."""
        numbers = self.truths[0].numbers(self.chains.layers)
        return [variation_ratio(truth.p, numbers[self.rungs.rungs == i]) for i, truth in enumerate(self.truths)]

    def drift(self, exchange: Callable[..., None] = swap, rounds: int = 6) -> float:
        """The largest ratio of any rung over some rounds of one sweep and one swap."""
        worst = 0.0
        for _ in range(rounds):
            self.step(exchange)
            worst = max(worst, *self.ratios())
        return worst


@pytest.mark.parametrize("with_base", [False, True], ids=["no base", "base"])
@pytest.mark.parametrize("name", ["rbm", "dbm3", "tree", "semi_restricted"])
def test_every_rung_stays_at_its_distribution(name: str, with_base: bool, backend: str) -> None:
    ladders = Ladders(GRAPHS[name], 3_001 if backend == "reference" else 20_001, with_base)
    assert max(ladders.ratios()) < DRIFT_BOUND, "the chains did not start at p: the test itself is at fault"
    assert ladders.drift() < DRIFT_BOUND
    accepted = ladders.rungs.acceptances / ladders.rungs.attempts
    assert float(accepted.min()) > 0.05, "hardly any swap was taken: the test itself is at fault"


# --- wrong rules ------------------------------------------------------------------------------------------------------


def always(rungs: Rungs, gaps: Tensor, betas: Tensor, *, seed: int) -> None:
    swap(rungs, torch.zeros_like(gaps), betas, seed=seed)


def backwards(rungs: Rungs, gaps: Tensor, betas: Tensor, *, seed: int) -> None:
    swap(rungs, -gaps, betas, seed=seed)


def too_willing(rungs: Rungs, gaps: Tensor, betas: Tensor, *, seed: int) -> None:
    swap(rungs, 0.3 * gaps, betas, seed=seed)


@pytest.mark.parametrize("wrong", [always, backwards, too_willing], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", ["rbm", "dbm3"])
def test_wrong_rules_drift(name: str, wrong: Callable[..., None]) -> None:
    assert Ladders(GRAPHS[name], 20_001, False).drift(wrong) > DRIFT_BOUND


def test_energies_without_the_base_drift() -> None:
    ladders = Ladders(GRAPHS["rbm"], 20_001, True)
    ladders.gap = EnergyGap(ladders.machine, None)
    assert ladders.drift() > DRIFT_BOUND


def test_the_free_energy_of_the_target_drifts() -> None:
    """The known trap: rungs that sample exp(-beta E), and swaps by beta F(v), where the rule needs F_beta."""
    ladders = Ladders(GRAPHS["rbm"], 20_001, False)
    hidden = gibbs_program(ladders.machine.graph)[0]
    assert [update.layer for update in hidden] == [1]

    def by_free_energy(rungs: Rungs, gaps: Tensor, betas: Tensor, *, seed: int) -> None:
        swap(rungs, ladders.machine.free_energy(hidden, ladders.chains.layers)[0], betas, seed=seed)

    assert ladders.drift(by_free_energy) > DRIFT_BOUND


# --- the transition of one round, against its definition --------------------------------------------------------------


def test_probabilities_of_a_swap_are_those_of_the_definition(backend: str) -> None:
    n_ladders = 4_000
    gaps = torch.tensor([0.3, -1.1, 0.4], dtype=torch.float64)
    betas = torch.tensor([0.2, 0.7, 1.1])
    for parity, (low, high) in enumerate(((0, 1), (1, 2))):
        rungs = Rungs.start(n_ladders, 3)
        rungs.round = parity
        swap(rungs, gaps.repeat(n_ladders), betas, seed=5)
        log_ratio = float((betas[low].double() - betas[high].double()) * (gaps[low] - gaps[high]))
        expected = min(1.0, math.exp(log_ratio))
        moved = (rungs.rungs.view(-1, 3)[:, low] == high).double()
        assert torch.equal(moved, (rungs.rungs.view(-1, 3)[:, high] == low).double())
        # a standard error is at most 0.008; five of them happen by chance once in 10^6
        assert abs(float(moved.mean()) - expected) <= 5 * math.sqrt(expected * (1 - expected) / n_ladders) + 1e-6
        assert rungs.attempts.tolist() == [n_ladders * (parity == 0), n_ladders * (parity == 1)]
        assert float(rungs.acceptances[parity]) == pytest.approx(n_ladders * expected, rel=1e-6)


def test_pairs_have_random_numbers_of_their_own() -> None:
    """Half of the swaps of every pair are taken, and those of any two pairs, ladders or rounds are independent."""
    n_ladders, n_rungs = 3_000, 12
    betas = torch.linspace(0, 1, n_rungs)
    step = float(betas[1].double() - betas[0].double())
    gaps = torch.zeros(n_ladders, n_rungs, dtype=torch.float64)
    gaps[:, 1::2] = -math.log(2) / step  # even rounds are fair coins
    taken = []
    for swap_round in (0, 2):
        rungs = Rungs.start(n_ladders, n_rungs)
        rungs.round = swap_round
        swap(rungs, gaps.flatten(), betas, seed=2)
        taken.append((rungs.rungs.view(n_ladders, n_rungs)[:, ::2] % 2).double())
    coins = 2 * torch.cat(taken, 1) - 1
    # 12 means and 66 products with standard error 0.018: 5 of them happen by chance once in 20,000
    correlations = coins.T @ coins / n_ladders - torch.eye(12)
    assert float(coins.mean(0).abs().max()) < 0.1
    assert float(correlations.abs().max()) < 0.1
    lagged = (coins[1:] * coins[:-1]).mean(0)
    assert float(lagged.abs().max()) < 0.1


# --- gaps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_base", [False, True], ids=["no base", "base"])
@pytest.mark.parametrize("name", GRAPHS)
def test_gaps_are_differences_of_enumerated_energies(name: str, with_base: bool, backend: str) -> None:
    built = machine(GRAPHS[name])
    base = base_of(built.graph) if with_base else None
    truth = enumerate_machine(built)
    expected = energies(built, truth.states)
    if base is not None:
        expected -= energies(built, truth.states, 0.0, base)
    got = EnergyGap(built, base).of(truth.layers(torch.arange(len(truth.p))))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


def test_gaps_of_gaussian_layers_share_the_quadratic_term_with_a_base(backend: str) -> None:
    built = make_machine(chain_graph((9, 6), Kind.GAUSSIAN))
    chains = built.chains(20, seed=1)
    built.sweep(gibbs_program(built.graph), chains, 3)
    torch.testing.assert_close(EnergyGap(built).of(chains.layers), built.energy(chains.layers), rtol=1e-6, atol=1e-5)
    base = base_of(built.graph)
    precision = built.parameters.precisions[0]
    assert precision is not None
    shared = chains.layers[0].double().square() @ precision.double() / 2
    of_base = shared - sum(state.double() @ bias.double() for state, bias in zip(chains.layers, base, strict=True))
    expected = built.energy(chains.layers) - of_base
    torch.testing.assert_close(EnergyGap(built, base).of(chains.layers), expected, rtol=1e-6, atol=1e-5)


def test_huge_biases_move_to_a_coarser_grid(backend: str) -> None:
    graph = chain_graph((300, 7))
    built = Machine.build(graph, [torch.zeros(300, 7)], [torch.full((300,), 3e38), torch.full((7,), -3e38)])
    states = (torch.ones(1, 300, dtype=torch.uint8), torch.zeros(1, 7, dtype=torch.uint8))
    gap = EnergyGap(built)
    assert gap.biases.bits < 0
    assert float(gap.of(states)) == pytest.approx(-300 * 3e38, rel=1e-7)


# --- bits -------------------------------------------------------------------------------------------------------------


def cases() -> Iterator[tuple[Machine, bool]]:
    yield from itertools.product(
        [make_machine(chain_graph((65, 33))), make_machine(tree()), make_machine(chain_graph((30, 20, 10)))],
        [False, True],
    )


def run(
    built: Machine, with_base: bool, first_ladder: int = 0, n_ladders: int = 5, calls: tuple[int, ...] = ()
) -> list[Tensor]:
    """Twelve rounds of a sweep and a swap on ladders of nine rungs: states, rungs and everything counted.

    calls: rounds of each call of ``temper``; empty: sweeps and swaps one by one.
    """
    built = Machine(built.parameters)
    n_rungs = 9
    betas = torch.linspace(0, 1, n_rungs)
    base = base_of(built.graph) if with_base else None
    chains = built.chains(n_ladders * n_rungs, seed=2**63 + 5, first_chain=first_ladder * n_rungs)
    rungs, gap = Rungs.start(n_ladders, n_rungs), EnergyGap(built, base)
    for n_rounds in calls:
        temper(gap, chains, rungs, betas, n_rounds)
    for _ in range(0 if calls else 12):
        beta = betas[rungs.rungs.long()].contiguous()
        built.sweep(gibbs_program(built.graph), chains, 1, beta=beta, base=base)
        swap(rungs, gap.of(chains.layers), betas, seed=chains.seed, first_ladder=first_ladder)
    return [*chains.layers, gap.of(chains.layers), rungs.rungs, rungs.heading, rungs.trips, rungs.attempts,
            rungs.acceptances]  # fmt: skip


@needs_native
def test_kernels_give_the_bits_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    for built, with_base in cases():
        monkeypatch.setenv("BM_FAST_BACKEND", "native")
        got = run(built, with_base)
        assert int(got[-2].sum()) > 0
        assert not torch.equal(got[-5], torch.arange(9, dtype=torch.int32).repeat(5))
        monkeypatch.setenv("BM_FAST_BACKEND", "reference")
        for i, (a, b) in enumerate(zip(got, run(built, with_base), strict=True)):
            assert torch.equal(a, b), f"result {i}"


@pytest.mark.parametrize("calls", [(12,), (1, 0, 3, 8)])
@pytest.mark.parametrize("n_ladders", [5, 10])  # 90 chains are enough for sweeps by tables
def test_one_call_gives_the_bits_of_its_steps(calls: tuple[int, ...], n_ladders: int, backend: str) -> None:
    for built, with_base in cases():
        if backend == "native" or n_ladders == 5:
            steps = run(built, with_base, n_ladders=n_ladders)
            for i, (a, b) in enumerate(zip(run(built, with_base, 0, n_ladders, calls), steps, strict=True)):
                assert torch.equal(a, b), f"result {i}"


def test_any_split_of_the_ladders_gives_the_same_bits() -> None:
    for built, with_base in cases():
        whole = run(built, with_base)
        parts = [run(built, with_base, first, n) for first, n in ((0, 2), (2, 3))]
        for i in range(len(whole) - 2):  # sums over ladders are another matter
            assert torch.equal(whole[i], torch.cat([part[i] for part in parts])), f"result {i}"
        assert torch.equal(whole[-2], parts[0][-2] + parts[1][-2])


def test_gaps_do_not_depend_on_threads() -> None:
    built = make_machine(chain_graph((300, 513)))
    chains = built.chains(300, seed=9)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(EnergyGap(Machine(built.parameters)).of(chains.layers))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_acceptance_is_within_its_stated_error() -> None:
    log_ratio = torch.cat([torch.linspace(-17, 1, 4001), torch.tensor([-1e300, -50.0, 0.0])]).double()
    got = reference.acceptance(log_ratio).double()
    expected = log_ratio.exp().clamp(max=1)
    assert float(((got - expected).abs() / expected.clamp(min=1e-30))[:4001].max()) < 1.5e-7 * 18
    assert got[-1] == 1
    assert float(got[-3]) < 1e-15


# --- counts -----------------------------------------------------------------------------------------------------------


def test_trips_are_arrivals_from_the_other_end(backend: str) -> None:
    """With equal energies every swap is taken: chains circulate, two rounds for each rung up and down."""
    n_rungs, warm_up, rounds = 5, 10, 40
    rungs = Rungs.start(1, n_rungs)
    arrivals, last_end = 0, rungs.heading.clone()
    for i in range(warm_up + rounds):
        arrivals = 0 if i == warm_up else arrivals
        rungs.trips *= i != warm_up
        swap(rungs, torch.zeros(n_rungs, dtype=torch.float64), torch.linspace(0, 1, n_rungs), seed=1)
        at_top, at_bottom = rungs.rungs == n_rungs - 1, rungs.rungs == 0
        arrivals += int((at_top & (last_end == 1)).sum())
        last_end[at_top], last_end[at_bottom] = 2, 1
    assert int(rungs.trips.sum()) == arrivals
    assert arrivals == rounds // 2, "without rejections a chain arrives in every second round"
    assert torch.equal(rungs.heading, last_end)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (torch.tensor([0.0, 0.5, 0.5]), "betas: .*rise strictly"),
        (torch.tensor([0.0, 0.7, 0.5]), "betas: .*rise strictly"),
        (torch.tensor([-0.1, 0.5, 1.0]), "betas: "),
        (torch.tensor([0.0, 0.5, math.inf]), "betas: .*finite"),
        (torch.tensor([0.0, math.nan, 1.0]), "betas: "),
        (torch.tensor([0.0, 1.0]), "betas: "),
        (torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), "betas: .*float32"),
    ],
)
def test_wrong_betas_are_refused(betas: Tensor, message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        swap(Rungs.start(2, 3), torch.zeros(6, dtype=torch.float64), betas, seed=0)


@pytest.mark.parametrize("spoilt", [[0, 1, 1], [0, 1, 3], [-1, 0, 1], [2**31 - 1, 0, 1]])
def test_rungs_that_are_no_permutation_are_refused(spoilt: list[int], backend: str) -> None:
    rungs = Rungs.start(2, 3)
    rungs.rungs[3:] = torch.tensor(spoilt, dtype=torch.int32)
    before = rungs.clone()
    with pytest.raises(ValueError, match="rungs: expected a permutation"):
        swap(rungs, torch.zeros(6, dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0]), seed=0)
    assert torch.equal(rungs.rungs, before.rungs)
    assert rungs.round == 0


def test_other_wrong_arguments_are_refused(backend: str) -> None:
    betas, gaps = torch.tensor([0.0, 0.5, 1.0]), torch.zeros(6, dtype=torch.float64)
    with pytest.raises(ValueError, match="n_rungs: expected 2 to"):
        Rungs.start(3, 1)
    with pytest.raises(ValueError, match="gaps: expected a contiguous"):
        swap(Rungs.start(2, 3), gaps[:5], betas, seed=0)
    with pytest.raises(ValueError, match="gaps: expected finite"):
        swap(Rungs.start(2, 3), gaps * math.nan, betas, seed=0)
    with pytest.raises(ValueError, match="seed: "):
        swap(Rungs.start(2, 3), gaps, betas, seed=-1)
    with pytest.raises(ValueError, match="first_ladder: "):
        swap(Rungs.start(2, 3), gaps, betas, seed=0, first_ladder=2**31)
    built = make_machine(chain_graph((3, 2)))
    with pytest.raises(ValueError, match="base: expected one tensor"):
        EnergyGap(built, [torch.zeros(3)])
    with pytest.raises(ValueError, match="layers"):
        EnergyGap(built).of((torch.zeros(2, 3), torch.zeros(2, 2, dtype=torch.uint8)))
    assert ops.swap is swap
