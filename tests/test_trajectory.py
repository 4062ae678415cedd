"""Parallel trajectory tempering: exchanges between machines leave each at its distribution; log Z; the operator."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bm_fast import RBM, Chains, Graph, Kind, Machine, chain_graph, checkpoints
from bm_fast.estimation import exact_log_z, trajectory_log_z
from bm_fast.tempering import Gibbs, Trajectory, TrajectoryTempering, run_trajectory, start_trajectory, trajectory
from engine_cases import make_machine
from enumeration import DRIFT_BOUND, GRAPHS, Truth, enumerate_machine, machine, variation_ratio


def grown(graph: Graph, scale: float) -> Machine:
    """A machine on the way to ``enumeration.machine(graph)``: all of its parameters, scaled, and other biases."""
    final = machine(graph).parameters
    generator = torch.Generator().manual_seed(5)
    biases = [b + (1 - scale) * torch.randn(len(b), generator=generator) for b in final.biases]
    return Machine.build(graph, [scale * final.weight(i) for i in range(len(final.weights))], biases)


class Case:
    """Replicas that start at the exact distribution of their machine."""

    def __init__(self, graph: Graph, n_chains: int = 20_001) -> None:
        machines = [grown(graph, scale) for scale in (0.2, 0.6, 1.0)]
        self.truths: list[Truth] = [enumerate_machine(each) for each in machines]
        self.trajectory = start_trajectory(machines, n_chains, seed=7)
        generator = torch.Generator().manual_seed(1)
        for truth, chains in zip(self.truths, self.trajectory.replicas, strict=True):
            chains.layers = truth.draw(n_chains, generator)

    def ratio(self) -> float:
        """The largest total variation of any replica, over its floor."""
        return max(
            variation_ratio(truth.p, truth.numbers(chains.layers))
            for truth, chains in zip(self.truths, self.trajectory.replicas, strict=True)
        )

    def drift(self) -> float:
        worst = 0.0
        for _ in range(6):
            run_trajectory(self.trajectory, 1)
            worst = max(worst, self.ratio())
        return worst


@pytest.mark.parametrize("name", GRAPHS)
def test_every_machine_keeps_its_distribution(name: str) -> None:
    at_p = Case(GRAPHS[name])
    assert at_p.ratio() < DRIFT_BOUND, "the chains did not start at p: the test itself is at fault"
    assert at_p.drift() < DRIFT_BOUND
    assert bool((at_p.trajectory.acceptance > 0.1).all())
    assert at_p.trajectory.attempts.tolist() == [3 * 20_001] * 2


def exchanges_always(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trajectory, "accepted", lambda log_ratio, chains: torch.ones_like(log_ratio, dtype=torch.bool))


def forgets_the_upper_machine(patch: pytest.MonkeyPatch) -> None:
    def changed(state: Trajectory, pair: int) -> Tensor:
        low = state.machines[pair]
        return torch.stack([-low.energy(chains.layers) for chains in state.replicas[pair : pair + 2]])

    patch.setattr(trajectory, "_steps", changed)


@pytest.mark.parametrize("break_it", [exchanges_always, forgets_the_upper_machine])
def test_broken_rules_drift(break_it: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    at_p = Case(GRAPHS["rbm"], 40_002)
    break_it(monkeypatch)
    assert at_p.drift() > DRIFT_BOUND


def test_log_z_by_stepping_stones_along_the_trajectory() -> None:
    """Within four standard errors, once in 15,000 by chance, and those errors small."""
    graph = GRAPHS["rbm"]
    machines = [grown(graph, scale) for scale in (0.2, 0.6, 1.0)]
    state = start_trajectory(machines, 50, seed=3)
    run_trajectory(state, 50)
    energies = run_trajectory(state, 200, keep_energies=True)
    assert energies is not None
    estimate = trajectory_log_z(enumerate_machine(machines[0]).log_z, energies)
    exact = enumerate_machine(machines[-1]).log_z
    for value, error in (
        (estimate.log_z, estimate.standard_error),
        (estimate.upward, estimate.upward_error),
        (estimate.downward, estimate.downward_error),
    ):
        assert 0 < error < 0.05
        assert abs(value - exact) < 4 * error
    assert estimate.trustworthy
    apart = torch.randn(20, 2, 1, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    apart += torch.tensor([50.0, -50.0])[:, None, None]
    assert "put machines between them" in str(trajectory_log_z(0.0, apart))


def test_errors_along_the_trajectory_are_calibrated() -> None:
    """100 estimates of 40 trajectories each, independent of each other, by Bennett's ratio.

    z has a t distribution with 39 degrees of freedom: variance 1.05, whose estimate has a standard error of 0.16, and
    beyond three with probability 0.0047: four of 100 are for one in 700 choices of the seed, means beyond 0.4 for one
    in 10,000, and variances outside of the bounds for one in 500.
    """
    machines = [grown(GRAPHS["rbm"], scale) for scale in (0.2, 0.6, 1.0)]
    state = start_trajectory(machines, 4000, seed=4)
    run_trajectory(state, 20)
    energies = run_trajectory(state, 60, keep_energies=True)
    assert energies is not None
    first, exact = enumerate_machine(machines[0]).log_z, enumerate_machine(machines[-1]).log_z
    estimates = [trajectory_log_z(first, part.contiguous()) for part in energies.split(40, 3)]
    z = torch.tensor([(each.log_z - exact) / each.standard_error for each in estimates])
    assert abs(float(z.mean())) < 0.4
    assert 0.6 < float(z.var()) < 1.6
    assert int((z.abs() > 3).sum()) <= 3


def learning_rbm(n: int = 12) -> list[RBM]:
    """RBMs whose two modes, all units on and all off, grow apart."""
    models = []
    for strength in torch.linspace(0, 6, 9).tolist():
        rbm = RBM(n, n // 2, seed=0)
        with torch.no_grad():
            rbm.weight.fill_(4 * strength / n)
            rbm.visible_bias.copy_(-rbm.weight.sum(1) / 2)
            rbm.hidden_bias.copy_(-rbm.weight.sum(0) / 2)
        models.append(rbm)
    return models


def test_replicas_along_learning_cross_between_modes() -> None:
    models = learning_rbm()
    state = start_trajectory(models, 100, seed=1)
    for chains in state.replicas:
        for layer in chains.layers:
            layer.fill_(1)
    run_trajectory(state, 200)
    # by symmetry each mode has half of the chains: 100 fair coins leave 0.25 to 0.75 once in 10^6
    assert 0.25 < float((state.at_target()[0].double().mean(1) > 0.5).double().mean()) < 0.75
    energies = run_trajectory(state, 100, keep_energies=True)
    assert energies is not None
    assert trajectory_log_z(exact_log_z(models[0]), energies).log_z == pytest.approx(exact_log_z(models[-1]), abs=0.3)


def test_the_operator_keeps_machines_as_learning_goes_on(tmp_path: Path) -> None:
    """A model that changes from call to call; resuming from a file goes on to the same bits."""
    ends = []
    for interrupted in (False, True):
        operator, chains = TrajectoryTempering(keep_below=0.6), learning_rbm()[0].machine().chains(30, seed=4)
        for k, model in enumerate(learning_rbm()):
            for _ in range(45):
                operator.advance(model.machine(), chains)
            if interrupted and k == 4:
                held = {"settings": operator.settings(), "state": operator.state_dict()}
                checkpoints.save(tmp_path / "operator.safetensors", held)
                loaded = checkpoints.load(tmp_path / "operator.safetensors")
                operator = TrajectoryTempering(**loaded["settings"])
                operator.load_state_dict(loaded["state"])
                assert checkpoints.same(operator.state_dict(), loaded["state"])
        ends.append((chains.layers, operator.state_dict()))
        assert 2 < len(operator.kept) < 9
    assert checkpoints.same(*ends)


def test_the_operator_on_given_checkpoints() -> None:
    """All replicas begin at coins, which 40 calls forget; the chains then have the target's distribution."""
    graph = GRAPHS["rbm"]
    given, target = [grown(graph, scale) for scale in (0.2, 0.6)], grown(graph, 1.0)
    operator, truth = TrajectoryTempering(given, keep_below=0), enumerate_machine(target)
    chains = target.chains(20_001, seed=2)
    for _ in range(40):
        operator.advance(target, chains)
    assert variation_ratio(truth.p, truth.numbers(chains.layers)) < DRIFT_BOUND
    assert operator.kept == given
    for a, b in zip(chains.layers, target.chains(20_001, seed=2).layers, strict=True):
        assert not torch.equal(a, b)


def test_gaussian_units() -> None:
    weak, strong = (make_machine(chain_graph((4, 3), Kind.GAUSSIAN), scale=scale) for scale in (0.1, 0.3))
    state = start_trajectory([weak, strong], 50, seed=1)
    run_trajectory(state, 20)
    assert bool(state.at_target()[0].isfinite().all())
    assert 0.1 < float(state.acceptance[0]) < 1


def test_bad_input_is_refused() -> None:
    rbm, operator = RBM(6, 4, seed=0, weight_scale=0.5), TrajectoryTempering()
    with pytest.raises(ValueError, match="models: expected at least 2 machines, got 1"):
        start_trajectory([rbm], 4)
    message = (
        "models: expected machines like the last one, layers visible of 6 BERNOULLI, hidden of 4 BERNOULLI coupled 0-1 "
        "on cpu, got layers visible of 5 BERNOULLI, hidden of 4 BERNOULLI coupled 0-1 on cpu at 0"
    )
    with pytest.raises(ValueError, match=message):
        start_trajectory([RBM(5, 4), rbm], 4)
    with pytest.raises(ValueError, match="n_chains: expected 1 to"):
        start_trajectory([rbm, rbm], 0)
    with pytest.raises(ValueError, match="rounds: expected 1 to"):
        run_trajectory(start_trajectory([rbm, rbm], 4), 0)
    with pytest.raises(ValueError, match="keep_below: expected 0 to below 1, got 1"):
        TrajectoryTempering(keep_below=1)
    with pytest.raises(ValueError, match="energies: expected"):
        trajectory_log_z(0.0, torch.zeros(3, 2))
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="energies: expected finite numbers, got NaN or infinity"):
            trajectory_log_z(0.0, torch.full((40, 2, 1, 30), value, dtype=torch.float64))
        with pytest.raises(ValueError, match=f"first_log_z: expected a finite number, got {value}"):
            trajectory_log_z(value, torch.zeros(40, 2, 1, 30, dtype=torch.float64))
    chains = rbm.chains(4, seed=1)
    Gibbs(2).advance(rbm.machine(), chains)
    with pytest.raises(ValueError, match="chains: expected some at sweep 0, which begin replicas, got sweep 2"):
        operator.advance(rbm.machine(), chains)
    with pytest.raises(ValueError, match="first_chain: expected 0, as replicas have numbers of their own, got 4"):
        operator.advance(rbm.machine(), rbm.machine().chains(4, 1, first_chain=4))


def test_an_interrupted_round_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rbm = RBM(6, 4, seed=0, weight_scale=0.5)
    state = start_trajectory([RBM(6, 4), rbm], 5, seed=1)
    run_trajectory(state, 3)
    before = copy.deepcopy(state.state_dict())

    def interrupt(*_: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Machine, "sweep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run_trajectory(state, 1)
    assert checkpoints.same(state.state_dict(), before)
    assert isinstance(state.replicas[0], Chains)
    loaded = Trajectory.from_state_dict([RBM(6, 4), rbm], before)
    for each in (state, loaded):
        run_trajectory(each, 5)
    assert checkpoints.same(state.state_dict(), loaded.state_dict())
