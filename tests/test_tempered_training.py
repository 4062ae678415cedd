"""Learning with tempered chains: the optimum where plain chains provably stay behind, and exact resuming."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bm_fast import DBM, DBN, RBM, Chains, Machine
from bm_fast.checkpoints import CheckpointError
from bm_fast.estimation import exact_log_z, log_likelihood
from bm_fast.program import gibbs_program
from bm_fast.tempering import (
    CoupledTempering,
    Gibbs,
    Operator,
    PoorMixing,
    TemperedTransitions,
    Tempering,
    TrajectoryTempering,
)
from bm_fast.training import (
    CD,
    PCD,
    Callback,
    FastPCD,
    MeanFieldPCD,
    PersistentChains,
    Progress,
    Trainer,
    TrainingError,
    TrainingReport,
    UpDown,
)
from bm_fast.training.deep import DBMLearner
from enumeration import all_states, enumerate_machine

Estimator = PCD | FastPCD | PersistentChains


def single_flips(n: int) -> Tensor:
    """All units on or all off, and all cases with one unit that differs."""
    off = torch.cat([torch.zeros(1, n), torch.eye(n)])
    return torch.cat([off, 1 - off]).to(torch.uint8)


def mean_log_likelihood(rbm: RBM, cases: Tensor) -> float:
    return float(log_likelihood(rbm, cases, exact_log_z(rbm)).mean())


def bars_and_stripes(n: int = 3) -> Tensor:
    """The distinct patterns of n x n pixels whose rows, or whose columns, are all on or all off."""
    lines = torch.tensor(list(itertools.product([0, 1], repeat=n)), dtype=torch.uint8)
    rows, columns = lines[:, :, None].expand(-1, n, n), lines[:, None, :].expand(-1, n, n)
    return torch.cat([rows, columns]).reshape(-1, n * n).unique(dim=0)


def trained(estimator: Estimator, cases: Tensor, rbm: RBM, epochs: int, rate: float) -> RBM:
    """After full batches at a constant rate, which falls to zero over the last 60% of the epochs."""
    optimizer = torch.optim.SGD(rbm.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda e: min(1.0, (epochs - e) / (0.6 * epochs) + 0.01))
    Trainer(rbm, optimizer, estimator, batch_size=len(cases), scheduler=decay).fit(cases, epochs)
    return rbm


def bars_learnt(estimator: Estimator) -> float:
    """Mean log-likelihood of bars and stripes after training, exact."""
    cases, rbm = bars_and_stripes(), RBM(9, 16, seed=1)
    rbm.initialise_biases(cases)
    return mean_log_likelihood(trained(estimator, cases, rbm, 5000, 0.5), cases)


def test_tempered_chains_reach_the_optimum_where_plain_ones_do_not() -> None:
    """Bars and stripes: 14 patterns far apart, between which sweeps rarely go once they are learnt; optimum -log 14.

    Both do the same number of Gibbs updates: 20 ladders of 10 rungs, and 200 plain chains.
    """
    optimum = -math.log(14)
    assert len(bars_and_stripes()) == 14
    assert bars_learnt(PersistentChains(20, Tempering(10))) > optimum - 0.05
    assert bars_learnt(PCD(200, 1)) < optimum - 1


def far_modes_missed(estimator: Estimator) -> float:
    """Nats by which learning falls short of two modes, all 16 units on and all off, with a fiftieth of them flipped.

    The data are drawn anew for every update, so what can be reached is the entropy of this mixture of two products,
    which an RBM with one hidden unit represents exactly. All 2^16 cases are summed over.
    """
    n, flipped = 16, 0.02
    states = all_states(n)
    on = states.double().sum(1)
    each = torch.stack([on, n - on]) * math.log(flipped) + torch.stack([n - on, on]) * math.log(1 - flipped)
    log_p = each.logsumexp(0) - math.log(2)
    rates = torch.cat([torch.full((50, n), flipped), torch.full((50, n), 1 - flipped)])
    rbm = trained(estimator, rates, RBM(n, 8, seed=1), 1000, 0.1)
    log_q = -rbm.free_energy(states) - exact_log_z(rbm)
    return float(log_p.exp() @ (log_p - log_q))


def test_tempered_chains_weigh_two_far_modes() -> None:
    """The same number of Gibbs updates for all; plain chains stay in the modes where they began."""
    assert far_modes_missed(PersistentChains(20, Tempering(10))) < 0.05
    assert far_modes_missed(PersistentChains(10, TemperedTransitions(10))) < 0.05
    assert far_modes_missed(PCD(200, 1)) > 1


def test_plain_operator_learns_like_pcd() -> None:
    cases = single_flips(8)
    results = []
    for estimator in (PCD(20, 2), PersistentChains(20, Gibbs(2))):
        rbm = RBM(8, 4, seed=1)
        Trainer(rbm, torch.optim.SGD(rbm.parameters(), lr=0.05), estimator, batch_size=9).fit(cases, epochs=100)
        results.append(mean_log_likelihood(rbm, cases))
    assert results[0] == pytest.approx(results[1], abs=0.15)


class TwoSweeps:
    """An operator that is none of the package's, with a state of its own."""

    def __init__(self, note: Tensor) -> None:
        self.note, self.calls = note, 0

    def advance(self, machine: Machine, chains: Chains) -> None:
        Gibbs(2 if self.calls % 2 else 1).advance(machine, chains)
        self.calls += 1

    def settings(self) -> dict[str, Any]:
        return {"note": self.note}

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.calls = state["calls"]


ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "parallel": lambda: PersistentChains(20, Tempering(5, adapt_every=7)),
    "plain": lambda: PersistentChains(20, Gibbs()),
    "transitions": lambda: PersistentChains(20, TemperedTransitions(4)),
    "coupled": lambda: PersistentChains(20, CoupledTempering(4)),
    "trajectory": lambda: PersistentChains(20, TrajectoryTempering(keep_below=0.9)),
    "own": lambda: PersistentChains(20, TwoSweeps(torch.ones(2))),
    "fast weights": lambda: FastPCD(20, rate=0.1),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_resuming_goes_on_to_the_same_bits(name: str, tmp_path: Path) -> None:
    cases = single_flips(8)
    results = []
    for interrupted in (False, True):
        rbm = RBM(8, 4, seed=1)
        optimizer = torch.optim.SGD(rbm.parameters(), lr=0.05, momentum=0.5)
        trainer = Trainer(rbm, optimizer, ESTIMATORS[name](), batch_size=5)
        trainer.fit(cases, epochs=13)
        if interrupted:
            trainer.save(tmp_path / "run.safetensors")
            rbm = RBM(8, 4)
            optimizer = torch.optim.SGD(rbm.parameters(), lr=1.0)
            own = ESTIMATORS[name]() if name == "own" else None
            trainer = Trainer.resume(tmp_path / "run.safetensors", rbm, optimizer, estimator=own)
        trainer.fit(cases, epochs=26)
        results.append([parameter.detach().clone() for parameter in rbm.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_an_operator_of_ones_own_resumes_only_as_it_was_made(tmp_path: Path) -> None:
    rbm = RBM(8, 4, seed=1)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.05)
    trainer = Trainer(rbm, optimizer, PersistentChains(20, TwoSweeps(torch.ones(2))), batch_size=5)
    trainer.fit(single_flips(8), epochs=1)
    trainer.save(tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match="got 'TwoSweeps'; with an operator of your own give"):
        Trainer.resume(tmp_path / "run.safetensors", rbm, optimizer)
    others = PersistentChains(20, TwoSweeps(torch.zeros(2))), PersistentChains(21, TwoSweeps(torch.ones(2))), PCD()
    for other in others:
        with pytest.raises(CheckpointError, match="expected the estimator"):
            Trainer.resume(tmp_path / "run.safetensors", rbm, optimizer, estimator=other)


# --- deep machines ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [Tempering(3, rounds=4), CoupledTempering(3, rounds=8), TwoSweeps(torch.ones(1))])
def test_deep_machines_learn_with_any_operator(operator: Operator) -> None:
    """The gradient, once the operator's chains have forgotten their start, is that of the bound."""
    dbm, n = DBM((5, 3, 3), seed=2, weight_scale=0.5), 20_000
    truth = enumerate_machine(dbm.machine())
    estimator = MeanFieldPCD(n, operator=operator)
    learner = DBMLearner(dbm, estimator, 4, seed=3, centred=False)
    learner.batch(4).copy_(all_states(5)[7:11])
    for _ in range(12):
        learner.fill_gradient(dbm.machine(), 4)
    model_side = dbm.weights[0].grad
    assert model_side is not None
    data = [values.double() for values in learner._rows.block(4).data]
    states = [layer.double() for layer in truth.layers(torch.arange(len(truth.p)))]
    exact = torch.einsum("s,si,sj->ij", truth.p, states[0], states[1]) - data[0].T @ data[1] / 4
    # a product of 0/1 units has a standard error of at most 0.0036 here
    assert float((model_side.double() - exact).abs().max()) < 0.02


def test_resuming_a_deep_machine_with_an_operator(tmp_path: Path) -> None:
    cases, results = single_flips(6), []
    for interrupted in (False, True):
        dbm = DBM((6, 4, 3), seed=1)
        optimizer = torch.optim.SGD(dbm.parameters(), lr=0.05)
        trainer = Trainer(dbm, optimizer, MeanFieldPCD(10, operator=Tempering(4, adapt_every=3)), batch_size=5)
        trainer.fit(cases, epochs=4)
        if interrupted:
            trainer.save(tmp_path / "run.safetensors")
            dbm = DBM((6, 4, 3))
            trainer = Trainer.resume(tmp_path / "run.safetensors", dbm, torch.optim.SGD(dbm.parameters(), lr=1.0))
        trainer.fit(cases, epochs=8)
        results.append([parameter.detach().clone() for parameter in dbm.parameters()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


# --- rungs that never swap --------------------------------------------------------------------------------------------


def far_from_coins(units: int = 40) -> RBM:
    """A machine that has next to nothing in common with fair coins."""
    return RBM(units, 16, seed=0, weight_scale=3.0)


def stepped(estimator: PersistentChains | MeanFieldPCD | UpDown, model: RBM | DBM | DBN, epochs: int) -> Trainer:
    """Training at a rate of zero, on 20 updates an epoch."""
    report = [TrainingReport()] if isinstance(model, (RBM, DBM)) else []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = Trainer(model, optimizer, estimator, batch_size=1, callbacks=report)
    trainer.fit(torch.zeros(20, 40, dtype=torch.uint8), epochs)
    return trainer


@pytest.mark.parametrize(
    ("operator", "advice"),
    [
        (Tempering(2), r"1 of 1 pairs of rungs .* beta 0 and 1 0\.0%; use more rungs, let the betas adapt sooner"),
        (
            Tempering([0, 1e-4, 1], adapt_every=0),
            r"1 of 2 pairs .* beta 0\.0001 and 1 0\.0%; .* let the betas adapt \(",
        ),
        (CoupledTempering(2), r"walkers are on 1 of 2 rungs less than 10% .* at beta 0 \d\.\d%; use more rungs"),
    ],
)
def test_rungs_that_never_swap_are_reported_once_with_advice(operator: Operator, advice: str) -> None:
    name = type(operator).__name__
    with pytest.warns(PoorMixing, match=f"after epoch 4: {name}: {advice}") as warned:
        trainer = stepped(PersistentChains(10, operator), far_from_coins(), 4)
    assert len(warned) == 1
    assert Path(warned[0].filename).name == Path(__file__).name
    trainer.fit(torch.zeros(20, 40, dtype=torch.uint8), 5)  # without another warning
    (report,) = trainer.callbacks
    assert isinstance(report, TrainingReport)
    assert trainer.mixing_advice == report.faults[-1]
    assert f"FAULT: {name}: " in str(report)
    assert not any("use tempered chains" in fault for fault in report.faults)


@pytest.mark.parametrize("operator", [Tempering(4), CoupledTempering(4), Gibbs()])
def test_nothing_is_said_of_rungs_that_swap(operator: Operator) -> None:
    trainer = stepped(PersistentChains(10, operator), RBM(40, 16, seed=0), 4)
    assert trainer.mixing_advice is None


def test_rungs_that_swap_once_the_betas_have_moved_are_no_warning() -> None:
    """Most of the way from fair coins to these units, which are nearly always off, lies close to beta = 0."""
    rbm, said = RBM(40, 16, seed=0), list[str | None]()

    class Listens(Callback):
        def on_epoch(self, progress: Progress) -> None:
            assert isinstance(progress.trainer, Trainer)
            said.append(progress.trainer.mixing_advice)

    with torch.no_grad():
        rbm.visible_bias.fill_(-8)
    estimator = PersistentChains(10, Tempering(8, adapt_every=30))
    trainer = Trainer(rbm, torch.optim.SGD(rbm.parameters(), lr=0.0), estimator, batch_size=1, callbacks=[Listens()])
    trainer.fit(torch.zeros(20, 40, dtype=torch.uint8), 10)
    assert "swap less than 10%" in str(said[0])
    assert said[-1] is None


def test_deep_machines_report_rungs_that_never_swap() -> None:
    deep = DBM((40, 16, 8), seed=0, weight_scale=3.0), DBN((40, 16, 8), seed=0, weight_scale=3.0)
    estimators = MeanFieldPCD(10, operator=Tempering(2)), UpDown(PersistentChains(10, Tempering(2)))
    for model, estimator in zip(deep, estimators, strict=True):
        with pytest.warns(PoorMixing, match="after epoch 1: Tempering: 1 of 1 pairs of rungs"):
            stepped(estimator, model, 1)
    assert stepped(UpDown(CD()), deep[1], 1).mixing_advice is None


@pytest.mark.parametrize("make", [lambda: Tempering(2, adapt_every=0), lambda: CoupledTempering(2, rate=0)])
def test_advice_is_about_the_last_calls_and_survives_a_checkpoint(
    make: Callable[[], Tempering | CoupledTempering],
) -> None:
    easy, hard = RBM(40, 16, seed=0).machine(), far_from_coins().machine()
    operator, chains = make(), easy.chains(10, seed=1)
    assert operator.advise() is None
    for _ in range(60):
        operator.advance(easy, chains)
    assert operator.advise() is None
    said = list[str | None]()
    for _ in range(20):  # of 10 tries in every second one, or of 5 visits of each rung
        operator.advance(hard, chains)
        resumed = make()
        resumed.load_state_dict(deepcopy(operator.state_dict()))
        said.append(operator.advise())
        assert resumed.advise() == said[-1]
    assert said[:2] == [None, None]  # too little to tell
    assert said[-1] is not None  # though rungs swapped well over all of the calls
    assert operator.advise() == said[-1]  # nothing new
    for _ in range(60):
        operator.advance(easy, chains)
    assert operator.advise() is None


def test_swap_rates_are_those_since_the_betas_moved() -> None:
    operator, machine = Tempering(3, adapt_every=4), RBM(40, 16, seed=0).machine()
    chains = machine.chains(10, seed=1)
    assert operator.acceptance is None
    operator.advance(machine, chains)
    first = operator.acceptance
    assert first is not None
    assert float(first[0]) > 0.9
    assert math.isnan(first[1])  # the first round tries the other pair
    for _ in range(3):
        operator.advance(machine, chains)
    operator.advance(far_from_coins().machine(), chains)  # adapts before
    assert operator.acceptance is not None
    assert float(operator.acceptance.nan_to_num().max()) < 0.01


# --- fast weights -----------------------------------------------------------------------------------------------------


def test_fast_weights_follow_the_gradient_and_move_the_chains() -> None:
    cases, estimator = single_flips(8), FastPCD(20, rate=0.3, decay=0.9)
    rbm = RBM(8, 4, seed=1)
    trainer = Trainer(rbm, torch.optim.SGD(rbm.parameters(), lr=0.01), estimator, batch_size=len(cases))
    expected = [torch.zeros_like(p) for p in (rbm.weight, rbm.visible_bias, rbm.hidden_bias)]
    for epoch in range(1, 6):
        before, shifted = trainer.chains.clone(), RBM(8, 4)
        with torch.no_grad():
            for parameter, own, fast in zip(shifted.parameters(), rbm.parameters(), expected, strict=True):
                parameter.copy_(own + fast)
        trainer.fit(cases, epoch)
        before.sweep = epoch - 1
        shifted.machine().sweep(gibbs_program(rbm.graph, last=1), before, 1)
        assert torch.equal(before.layers[0], trainer.chains.layers[0]), epoch
        for fast, parameter in zip(expected, (rbm.weight, rbm.visible_bias, rbm.hidden_bias), strict=True):
            assert parameter.grad is not None
            fast.mul_(0.9).add_(parameter.grad, alpha=-0.3)
    assert all(torch.equal(a, b) for a, b in zip(estimator.fast, expected, strict=True))


def test_fast_weights_that_leave_the_grid_are_named_with_their_rate() -> None:
    rbm = RBM(8, 4, seed=1)
    trainer = Trainer(rbm, torch.optim.SGD(rbm.parameters(), lr=0.01), FastPCD(20, rate=1e38), batch_size=8)
    with pytest.raises(TrainingError, match=r"FastPCD: rate 1e\+38 .* off the integer grid .* a lower rate may help"):
        trainer.fit(single_flips(8), 5)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="n_chains: expected a whole number of at least 1, got 0"):
        PersistentChains(0)
    with pytest.raises(ValueError, match="operator: expected one of"):
        PersistentChains.from_settings(3, {"name": "Other"})
    with pytest.raises(ValueError, match="n_chains: expected a whole number of at least 1, got 0"):
        FastPCD(0)
    with pytest.raises(ValueError, match="rate: expected a finite learning rate above 0, got 0"):
        FastPCD(rate=0)
    with pytest.raises(ValueError, match="decay: expected 0 to below 1, got 1"):
        FastPCD(decay=1)
    dbm = DBM((4, 3, 2))
    with pytest.raises(ValueError, match="estimator: expected CD, PCD, FastPCD or PersistentChains for an RBM"):
        Trainer(dbm, torch.optim.SGD(dbm.parameters(), lr=0.1), FastPCD())
