"""Annealed importance sampling against exact log Z: unbiased weights, calibrated errors, and honest verdicts."""

from __future__ import annotations

import itertools
import math
import os
import re
import signal
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
import tqdm.auto
from torch import Tensor

from bm_fast import RBM, Chains, Kind, Machine, chain_graph
from bm_fast.estimation import AISEstimate, UntrustworthyEstimate, adaptive_betas, ais, base_biases, exact_log_z
from bm_fast.estimation._path import AnnealingPath
from bm_fast.estimation.schedule import PUBLISHED, fixed_betas
from enumeration import GRAPHS, machine


def random_base(built: Machine) -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [torch.randn(layer.units, generator=generator) / 2 for layer in built.graph.layers]


MACHINES: dict[str, Callable[[], Machine]] = {
    **{name: lambda graph=graph: machine(graph, coupling_sd=0.6) for name, graph in GRAPHS.items()},
    "gaussian": lambda: machine(chain_graph((3, 5), Kind.GAUSSIAN), coupling_sd=0.5),
}


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("name", MACHINES)
def test_mean_weight_is_z_for_a_coarse_schedule(name: str, with_base: bool) -> None:
    """E[w] = Z for any schedule: 40,000 runs over five betas. 4.5 standard errors: one false alarm in 6,000 runs."""
    built = MACHINES[name]()
    estimate = ais(built, 40_000, betas=[0, 0.3, 0.6, 0.8, 1], base=random_base(built) if with_base else None, seed=2)
    relative = (estimate.log_weights - exact_log_z(built)).exp()
    error = relative.std().item() / math.sqrt(len(relative))
    assert error < 0.02, "the weights vary too much for this test to see a bias"
    assert abs(relative.mean().item() - 1) < 4.5 * error
    assert estimate.trustworthy


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", MACHINES)
def test_error_bars_are_calibrated(name: str) -> None:
    """(estimate - exact) / error over 200 independent estimates of 100 runs each is nearly standard normal.

    The mean of 200 such values has a standard error of 0.07 and their standard deviation one of 0.05; the bounds are
    five of them and leave room for the delta method's own bias: less than one false alarm in 10^4 runs of all. At most
    one in a hundred lies beyond three errors; for other seeds that would fail once in 30 times for each machine.
    """
    built = MACHINES[name]()
    weights = ais(built, 20_000, betas=30, seed=3).log_weights
    estimates = [AISEstimate.from_log_weights(part, 30) for part in weights.split(100)]
    exact = exact_log_z(built)
    z = torch.tensor([(each.log_z - exact) / each.standard_error for each in estimates])
    assert abs(z.mean().item()) < 0.4
    assert 0.75 < z.std().item() < 1.3
    assert int((z.abs() > 3).sum()) <= 2
    inside = sum(each.interval[0] < exact < each.interval[1] for each in estimates)
    assert inside >= 0.97 * len(estimates)


@pytest.mark.usefixtures("backend")
def test_a_fine_schedule_gives_a_sharp_estimate() -> None:
    built = machine(GRAPHS["dbm3"], coupling_sd=1.2)
    exact = exact_log_z(built)
    coarse, fine = (ais(built, 200, betas=n, seed=5) for n in (6, 150))
    assert fine.standard_error < coarse.standard_error / 3
    assert abs(fine.log_z - exact) < 5 * fine.standard_error


def test_a_base_close_to_the_machine_gives_a_sharp_estimate() -> None:
    """Without couplings the base is the machine itself: every weight is Z."""
    built = machine(chain_graph((6, 4)), coupling_sd=0.0, bias_sd=1.5)
    estimate = ais(built, 20, betas=3, base=list(built.parameters.biases))
    assert estimate.log_weights.sub(exact_log_z(built)).abs().max() < 1e-6
    assert estimate.effective_sample_size == pytest.approx(20)


# --- schedules -------------------------------------------------------------------------------------------------------


def test_published_schedule() -> None:
    betas = fixed_betas(PUBLISHED)
    assert len(betas) == 14_503
    assert [betas[i].item() for i in (0, 1, 500, 14_502)] == pytest.approx([0, 1e-3, 0.5, 1])
    assert betas[501 + 1].item() - betas[501].item() == pytest.approx(1e-4, rel=1e-3)
    assert betas[-1].item() - betas[-2].item() == pytest.approx(1e-5, rel=1e-2)


def test_chosen_schedules() -> None:
    assert fixed_betas(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert fixed_betas([0, 0.5, 0.5, 1]).tolist() == [0, 0.5, 0.5, 1]
    assert fixed_betas(np.array([0, 0.25, 1])).tolist() == [0, 0.25, 1]
    given = torch.tensor([0.0, 1.0])
    assert fixed_betas(given).data_ptr() != given.data_ptr()


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (1, "betas: expected at least 2, got 1"),
        ("linear", "betas: expected 'salakhutdinov-murray', 'adaptive', a number or a sequence, got 'linear'"),
        ([0.0], "betas: expected one dimension and at least 2 values"),
        ([[0.0, 1.0]], "betas: expected one dimension and at least 2 values"),
        ([0, 0.6, 0.5, 1], "betas: expected values that rise from 0 to 1, got 0, 0.6, 0.5, 1"),
        ([0.1, 1], "betas: expected values that rise from 0 to 1"),
        ([0, 0.9], "betas: expected values that rise from 0 to 1"),
        ([0, math.nan, 1], "betas: expected values that rise from 0 to 1"),
        ([0.5] * 9, r"got 0.5, 0.5, 0.5, \.\.\., 0.5, 0.5"),
        (["0", "1"], "betas: expected 'salakhutdinov-murray', 'adaptive', a number or a sequence"),
    ],
)
def test_bad_schedules(betas: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ais(machine(GRAPHS["rbm"]), betas=betas)  # type: ignore[arg-type]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("name", ["rbm", "tree", "semi_restricted", "gaussian"])
def test_adaptive_schedule_lowers_the_effective_sample_size_evenly(name: str) -> None:
    """Fresh runs lose the asked fraction at every step but the last, within the noise of two times 4,000 runs."""
    built, drop = MACHINES[name](), 0.02
    betas = adaptive_betas(built, drop=drop, n_runs=4000, seed=1).tolist()
    assert betas[0] == 0
    assert betas[-1] == 1
    assert len(betas) > 4
    path = AnnealingPath(built, None)
    chains = path.start(4000, seed=1)
    falls = []
    for beta, following in itertools.pairwise(betas):
        now, then = path.log_density(chains.layers, [beta, following])
        w = (then - now).exp()
        falls.append(1 - (w.sum().square() / w.square().sum() / len(w)).item())
        path.move(chains, following)
    # the first steps start from 1e-3 and may only grow fourfold each; then all are alike
    assert max(falls) < 1.5 * drop
    assert min(falls[4:-1], default=drop) > 0.6 * drop


def test_adaptive_schedule_follows_the_drop() -> None:
    built = MACHINES["rbm"]()
    few, many = (len(adaptive_betas(built, drop=drop, seed=2)) for drop in (1e-2, 1e-4))
    assert 5 < many / few < 20  # steps shrink with the square root


@pytest.mark.usefixtures("backend")
def test_adaptive_betas_pass_where_longer_steps_cost_less() -> None:
    """At a first-order transition a few runs gain from a short step, and nearly all alike from a longer one."""
    rbm = RBM(12, 1)
    with torch.no_grad():
        rbm.weight.fill_(2)
        rbm.hidden_bias.fill_(-16)
        rbm.visible_bias.zero_()
    for seed in range(6):
        assert adaptive_betas(rbm, seed=seed)[-1] == 1


def test_adaptive_estimate() -> None:
    built = MACHINES["rbm"]()
    estimate = ais(built, 200, betas="adaptive", seed=3)
    assert estimate.n_betas == len(adaptive_betas(built, seed=3))
    assert abs(estimate.log_z - exact_log_z(built)) < 5 * estimate.standard_error
    assert estimate.trustworthy


def test_pilots_do_not_share_random_numbers_with_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Betas that depended on the estimate's own runs would bias it."""
    built = MACHINES["rbm"]()
    started: list[Tensor] = []
    start = AnnealingPath.start

    def watched(self: AnnealingPath, *positional: int, **named: int) -> Chains:
        chains = start(self, *positional, **named)
        started.append(chains.layers[0].clone())
        return chains

    monkeypatch.setattr(AnnealingPath, "start", watched)
    ais(built, 100, betas="adaptive", seed=3)
    pilots, runs = started
    assert pilots.shape == runs.shape
    assert (pilots == runs).float().mean().item() == pytest.approx(0.5, abs=0.15)  # 500 fair coins


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"drop": 0.0}, "drop: expected a fraction between 0 and 1, got 0.0"),
        ({"drop": 1.0}, "drop: expected a fraction between 0 and 1, got 1.0"),
        ({"n_runs": 3}, "n_runs: expected at least 10 pilot runs to measure their spread, got 3"),
        ({"n_runs": 10.5}, "n_runs: expected a whole number of at least 1, got 10.5"),
    ],
)
def test_bad_adaptive_schedules(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive_betas(machine(GRAPHS["rbm"]), **arguments)  # type: ignore[arg-type]


# --- reproducibility and interruption --------------------------------------------------------------------------------


@pytest.mark.usefixtures("backend")
def test_an_estimate_is_reproduced_by_its_seed() -> None:
    built = MACHINES["rbm"]()
    first, again, other = (ais(built, 50, betas=20, seed=seed).log_weights for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.set_num_threads(2)
    assert torch.equal(first, ais(built, 50, betas=20, seed=4).log_weights)


@pytest.mark.usefixtures("backend")
def test_more_runs_keep_the_weights_of_the_first() -> None:
    built = MACHINES["rbm"]()
    few, many = (ais(built, n, betas=20, seed=4).log_weights for n in (50, 80))
    assert torch.allclose(few, many[:50], atol=1e-9)


def test_interrupt_leaves_the_model_usable() -> None:
    rbm = RBM(20, 10, seed=1, weight_scale=0.3)
    before = rbm.weight.detach().clone()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        ais(rbm, 100, betas=200_000)
    timer.join()
    assert torch.equal(rbm.weight, before)
    assert ais(rbm, 20, betas=20, seed=1).trustworthy


def test_progress_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[bool] = []
    original = tqdm.auto.tqdm.__init__

    def watched(self: object, *positional: object, **arguments: object) -> None:
        shown.append(not arguments["disable"])
        original(self, *positional, **arguments)

    monkeypatch.setattr(tqdm.auto.tqdm, "__init__", watched)
    built = MACHINES["rbm"]()
    for progress in (False, True):
        exact_log_z(built, progress=progress)
        ais(built, 20, betas=5, progress=progress)
        adaptive_betas(built, progress=progress, drop=0.1)
    assert shown == [False] * 3 + [True] * 3
    assert capsys.readouterr().err == ""  # bars wait for a second


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("visible", [Kind.BERNOULLI, Kind.GAUSSIAN])
def test_collapsed_weights_are_reported(visible: Kind) -> None:
    """Two betas, from independent units straight to a strongly coupled machine."""
    built = machine(chain_graph((12, 10), visible), coupling_sd=3.0 if visible is Kind.BERNOULLI else 0.9)
    with pytest.warns(UntrustworthyEstimate, match="log Z by AIS: 100 runs are worth"):
        estimate = ais(built, 100, betas=2)
    assert not estimate.trustworthy
    assert estimate.reason.endswith("use more betas or another base")
    assert f"NOT TRUSTWORTHY: {estimate.reason}" in str(estimate)
    assert estimate.interval[0] == -math.inf


def test_statistics_of_given_weights() -> None:
    log_weights = 1000 + torch.tensor([1.0, 2.0, 3.0, 2.0] * 25).double().log()
    estimate = AISEstimate.from_log_weights(log_weights, 7)
    error = math.sqrt(0.5 * 100 / 99) / 2 / 10  # sd / mean / sqrt(n)
    assert estimate.log_z == pytest.approx(1000 + math.log(2))
    assert estimate.standard_error == pytest.approx(error)
    assert estimate.interval == pytest.approx(
        (estimate.log_z + math.log(1 - 3 * error), estimate.log_z + math.log(1 + 3 * error))
    )
    assert estimate.effective_sample_size == pytest.approx(200**2 / (25 * (1 + 4 + 9 + 4)))
    assert (estimate.trustworthy, estimate.reason) == (True, "")
    assert str(estimate) == "log Z = 1000.69 ± 0.04 (100 runs, 7 betas, effective sample size 88.9)"


def spread(n: int, sd: float) -> Tensor:
    """Log weights at the quantiles of a normal distribution."""
    return torch.special.ndtri((torch.arange(n) + 0.5).double() / n) * sd


@pytest.mark.parametrize(
    ("log_weights", "reason"),
    [
        (torch.cat((torch.zeros(99), torch.tensor([50.0]))), "100 runs are worth 1.0 independent ones, .* 100% of the"),
        (spread(1000, 2.2), "1000 runs are worth .* independent ones"),
        (torch.cat((torch.zeros(9), torch.full((991,), -60.0))), "1000 runs are worth 9.0 independent ones"),
        (torch.cat((torch.zeros(40), torch.full((960,), -60.0))), "1000 runs are worth 40.0 independent ones"),
        (torch.zeros(5), "5 runs are too few to judge the spread of their weights; use more runs"),
        (torch.zeros(1), "1 runs are too few"),
        (torch.tensor([0.0] * 20 + [math.nan]), "some log weights are not finite"),
        (torch.tensor([0.0] * 20 + [-math.inf]), "some log weights are not finite"),
        (torch.cat((torch.zeros(80), torch.full((20,), -60.0))), ""),  # lost runs lower the mean by their share only
        (spread(100, 1.0), ""),
    ],
)
def test_verdicts(log_weights: Tensor, reason: str) -> None:
    estimate = AISEstimate.from_log_weights(log_weights.double(), 10)
    assert estimate.trustworthy == (reason == "")
    assert re.match(reason, estimate.reason)


@pytest.mark.parametrize(
    ("log_weights", "cure"),
    [
        (spread(12, 0.6), "at least 14 runs, or more betas"),  # a good share of too few runs
        (torch.cat((torch.zeros(40), torch.full((960,), -60.0))), "more betas or another base"),
        (torch.cat((torch.zeros(99), torch.tensor([50.0]))), "more betas or another base"),
    ],
)
def test_the_advice_fits_what_is_wrong(log_weights: Tensor, cure: str) -> None:
    assert AISEstimate.from_log_weights(log_weights.double(), 10).reason.endswith(f"; use {cure}")


# --- arguments -------------------------------------------------------------------------------------------------------


def test_base_biases_follow_the_data() -> None:
    rbm = RBM(4, 3)
    data = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0]], dtype=torch.uint8)
    visible, hidden = base_biases(rbm, data)
    rates = torch.tensor([0.05 / 1.05, 1 / 1.05, 0.55 / 1.05, 0.05 / 1.05])
    assert torch.allclose(visible, rates.logit())
    assert visible.dtype is torch.float32
    assert hidden.tolist() == [0, 0, 0]
    grey = torch.full((3, 4), 0.25)
    assert torch.allclose(base_biases(rbm, grey.numpy())[0], torch.full((4,), 0.3 / 1.05).logit())


def test_base_biases_of_gaussian_units_give_the_mean() -> None:
    built = machine(chain_graph((3, 2), Kind.GAUSSIAN))
    data = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.0, 0.5]])
    precision = built.parameters.precisions[0]
    assert precision is not None
    assert torch.allclose(base_biases(built, data)[0] / precision, data.mean(0))


def test_base_biases_of_several_visible_layers() -> None:
    built = machine(GRAPHS["tree"])
    base = base_biases(built, {0: torch.ones(2, 3), 2: torch.zeros(5, 2)})
    assert [b.tolist() for b in base[1::2] + base[4:]] == [[0, 0], [0, 0], [0, 0]]
    assert torch.allclose(base[0], -base[2][:1].expand(3))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(3, 5), r"data: expected shape \[n, 4\]"),
        (torch.full((3, 4), 2.0), "data: expected values from 0 to 1"),
        (torch.full((3, 4), math.nan), "data: expected values from 0 to 1, got nan"),
        ({7: torch.zeros(3, 4)}, "data: no layer 7 in a graph of 2"),
    ],
)
def test_bad_data_for_base_biases(data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        base_biases(RBM(4, 3), data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_runs": 0}, "n_runs: expected a whole number of at least 1, got 0"),
        ({"n_runs": 2.5}, "n_runs: expected a whole number of at least 1, got 2.5"),
        ({"base": [torch.zeros(4)]}, "base: expected one tensor for each of 2 layers, got 1"),
        ({"base": [torch.zeros(4), torch.zeros(5)]}, r"base\[1\]: expected .* \[3\]"),
        ({"base": [torch.full((4,), math.inf), torch.zeros(3)]}, r"base\[0\]: expected finite numbers"),
        ({"base": [np.zeros(4, np.float32), np.zeros(3, np.float32)]}, r"base\[0\]: expected a .*torch"),
        ({"n_runs": True}, "n_runs: expected a whole number of at least 1, got True"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ais(RBM(4, 3), betas=5, **arguments)  # type: ignore[arg-type]


def test_weights_must_be_some() -> None:
    with pytest.raises(ValueError, match=r"log_weights: expected \[n_runs\], one at least, got \[0\]"):
        AISEstimate.from_log_weights(torch.zeros(0, dtype=torch.float64), 5)
