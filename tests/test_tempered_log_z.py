"""log Z by tempering and by reverse annealing against exact values: unbiased, with errors that are what they say."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from bm_fast import Kind, Machine, chain_graph, tempering
from bm_fast.estimation import (
    AISEstimate,
    UntrustworthyEstimate,
    exact_log_z,
    reverse_ais,
    tempered_log_z,
)
from bm_fast.estimation.tempering import TemperedLogZ
from bm_fast.tempering import PoorMixing, TemperingReport
from engine_cases import make_machine
from enumeration import GRAPHS, enumerate_gaussian, enumerate_machine, machine

REPEATS = 100


def base_of(built: Machine) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [0.5 * torch.randn(layer.units, generator=generator) for layer in built.graph.layers]


def run(built: Machine, n_ladders: int, rounds: int, n_rungs: int, seed: int, with_base: bool = True) -> TemperedLogZ:
    ladders = tempering.start(built, n_ladders, n_rungs, base=base_of(built) if with_base else None, seed=seed)
    tempering.run(built, ladders, 20)
    return tempered_log_z(built, ladders, tempering.run(built, ladders, rounds, keep_gaps=True))


@pytest.fixture(scope="module")
def scores() -> Tensor:
    """(estimate - exact) / standard error of Bennett's ratio and both stepping stones, ``[3 machines x 100, 3]``."""
    torch.set_num_threads(1)
    z = []
    for name in ("rbm", "dbm3", "semi_restricted"):
        built = machine(GRAPHS[name], coupling_sd=0.6)
        exact = exact_log_z(built)
        for seed in range(REPEATS):
            e = run(built, 100, 100, 5, seed)
            assert e.trustworthy, e.reason
            parts = ((e.log_z, e.standard_error), (e.upward, e.upward_error), (e.downward, e.downward_error))
            z.append([(value - exact) / error for value, error in parts])
    return torch.tensor(z)


@pytest.mark.parametrize("estimator", ["bennett", "upward", "downward"])
def test_errors_are_calibrated(scores: Tensor, estimator: str) -> None:
    """99 in 100 lie within three standard errors, and z-scores have variance one.

    Errors come from 100 ladders, so z has a t distribution and misses with probability 0.0034: four misses of 300
    happen for one in 50 choices of the seeds. The variance, expected 1.02, is 0.76 to 1.32 but for 1 in 1,000, and the
    mean within 0.2 but for 1 in 1,800. Short runs of few ladders have skewed errors: 30 rounds give a variance of 1.1.
    """
    z = scores[:, ["bennett", "upward", "downward"].index(estimator)]
    assert int((z.abs() > 3).sum()) <= 3
    assert 0.76 < float(z.var()) < 1.32
    assert abs(float(z.mean())) < 0.2


def test_rungs_with_one_distribution_overlap_wholly_and_runs_without_trips_are_not_trusted() -> None:
    """Without weights and biases every rung is fair coins: all of it is known exactly, however short the run."""
    built = Machine.build(chain_graph((5, 3)), [torch.zeros(5, 3)], [torch.zeros(5), torch.zeros(3)])
    ladders = tempering.start(built, 16, 4, seed=0)
    short, long = (tempered_log_z(built, ladders, tempering.run(built, ladders, n, keep_gaps=True)) for n in (1, 50))
    for estimate in (short, long):
        torch.testing.assert_close(estimate.overlaps, torch.ones(3, dtype=torch.float64))
        assert estimate.log_z == pytest.approx(8 * math.log(2), abs=1e-9)
        assert estimate.standard_error < 1e-9
    assert long.trustworthy
    assert not short.trustworthy
    assert "chains only of 16 ladders went from the base to the target" in short.reason


def test_few_long_ladders_have_honest_errors() -> None:
    """With two ladders the errors come from stretches of the run, whose correlation is short beside them."""
    built = machine(GRAPHS["rbm"])
    exact = exact_log_z(built)
    scores = []
    for seed in range(60):
        estimate = run(built, 2, 600, 4, seed)
        scores.append((estimate.log_z - exact) / estimate.standard_error)
    # t with 19 degrees of freedom, variance 1.12: the sample variance of 60 lies in 0.5 to 2.1 but for 1 in 2,000
    assert 0.5 < float(torch.tensor(scores).var()) < 2.1


@pytest.mark.parametrize(("correlation", "is_trusted"), [(0.5, True), (0.99, False)])
def test_errors_from_stretches_shorter_than_the_autocorrelation_are_not_trusted(
    correlation: float, is_trusted: bool
) -> None:
    """One ladder of 4,000 rounds, 20 stretches of 200; autocorrelation times of the energies are 3 and 199 rounds.

    z-scores would have variance 1.12 (t, 19 degrees of freedom): the sample variance of 40 is below 2.2 but for 1 in
    1,000. With the slow ladder errors are too small by half.
    """
    built, rounds, generator = machine(GRAPHS["rbm"]), 4000, torch.Generator().manual_seed(0)
    ladders = tempering.start(built, 1, 2)
    gaps = torch.randn(40, rounds, 2, dtype=torch.float64, generator=generator)
    for i in range(1, rounds):
        gaps[:, i] = correlation * gaps[:, i - 1] + math.sqrt(1 - correlation**2) * gaps[:, i]
    gaps[:, :, 1] -= 1  # what normal energies of variance 1 have at beta = 1, where log Z is larger by 1 / 2
    n_units = sum(layer.units for layer in built.graph.layers)
    scores = []
    for run_of in gaps:
        report = TemperingReport(
            ladders.betas, 1, rounds, torch.tensor([rounds // 2]), torch.ones(1), 100, run_of[:, None].contiguous()
        )
        estimate = tempered_log_z(built, ladders, report)
        assert estimate.trustworthy == is_trusted
        assert is_trusted or "stretches of 200 rounds, which are short beside an autocorrelation" in estimate.reason
        scores.append((estimate.log_z - n_units * math.log(2) - 0.5) / estimate.standard_error)
    assert (float(torch.tensor(scores).var()) < 2.2) == is_trusted


@pytest.mark.parametrize(
    ("weight", "before", "rounds", "reason"),
    [
        (0.8, 20, 40, "chains only of 64 ladders went from the base to the target, so modes may be missing, or have"),
        (1.2, 0, 200, "chains have not forgotten where they began"),
        (1.2, 200, 400, ""),
    ],
)
def test_modes_with_the_shares_that_they_began_with_are_not_trusted(
    weight: float, before: int, rounds: int, reason: str
) -> None:
    """Two modes, one 55 times as heavy as the other, which take in as many of the first chains each.

    Neighbouring rungs overlap well, and energies on each rung forget in a few rounds: what is slow is which mode the
    chains of a ladder are in. Estimates that are not trusted are more than three of their errors too low.
    """
    weights = torch.full((16, 12), weight)
    biases = [torch.full((16,), -6 * weight + 4 / 16), torch.full((12,), -8 * weight)]
    built = Machine.build(chain_graph((16, 12)), [weights], biases)
    ladders = tempering.start(built, 64, 12, seed=0)
    if before:
        tempering.run(built, ladders, before)
    report = tempering.run(built, ladders, rounds, keep_gaps=True)
    assert report.trips > 100
    assert report.rejection.max() < 0.75
    assert report.autocorrelation is not None
    assert report.autocorrelation < 10
    estimate = tempered_log_z(built, ladders, report)
    assert reason in estimate.reason
    assert estimate.trustworthy == (not reason)
    z = (estimate.log_z - exact_log_z(built)) / estimate.standard_error
    assert (z > -3) == estimate.trustworthy
    assert z < 3


def test_stepping_stones_bracket_log_z_on_average() -> None:
    """Few samples and few rungs: upward is too low and downward too high on average, Bennett between them."""
    built = make_machine(chain_graph((14, 10)), scale=0.7)
    exact = exact_log_z(built)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoorMixing)
        estimates = [run(built, 25, 4, 4, seed, with_base=False) for seed in range(60)]
    up, down, bennett = (
        torch.tensor([getattr(e, name) - exact for e in estimates]).mean() for name in ("upward", "downward", "log_z")
    )
    assert float(up) < float(bennett) < float(down)
    assert float(up) < 0 < float(down)
    assert abs(float(bennett)) < 0.5 * min(-float(up), float(down))


def test_gaussian_visible_units() -> None:
    built = make_machine(chain_graph((4, 6), Kind.GAUSSIAN), scale=0.5)
    exact = enumerate_gaussian(built).log_z
    estimate = run(built, 100, 100, 4, 1)
    assert abs(estimate.log_z - exact) < 4 * estimate.standard_error
    assert estimate.standard_error < 0.05


def test_rungs_that_do_not_overlap_are_not_trusted() -> None:
    built = make_machine(chain_graph((200, 150)), scale=0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoorMixing)
        estimate = run(built, 20, 30, 3, 1)
    assert not estimate.trustworthy
    assert "overlap" in estimate.reason
    assert "NOT TRUSTWORTHY" in str(estimate)


def test_bad_input_of_tempered_log_z_is_refused() -> None:
    built = machine(GRAPHS["rbm"])
    ladders = tempering.start(built, 10, 3)
    report = tempering.run(built, ladders, 30)
    with pytest.raises(ValueError, match="report: expected a run with keep_gaps=True"):
        tempered_log_z(built, ladders, report)
    ladders = tempering.start(built, 10, [0.5, 1.0])
    report = tempering.run(built, ladders, 30, keep_gaps=True)
    with pytest.raises(ValueError, match=r"ladders: expected a first beta of 0, where Z is known, got 0\.5"):
        tempered_log_z(built, ladders, report)


# --- reverse annealing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rbm", "dbm3", "semi_restricted"])
def test_weights_of_reverse_annealing_have_mean_one_over_z(name: str) -> None:
    """From exact samples over a coarse schedule; five standard errors are missed once in 10^6."""
    built = machine(GRAPHS[name])
    truth = enumerate_machine(built)
    samples = truth.draw(20_000, torch.Generator().manual_seed(1))
    before = [layer.clone() for layer in samples]
    estimate = reverse_ais(built, samples, betas=[0.0, 0.3, 0.6, 1.0], base=base_of(built), seed=2)
    weights = (estimate.log_weights + truth.log_z).exp()
    error = float(weights.std()) / math.sqrt(len(weights))
    assert abs(float(weights.mean()) - 1) < 5 * error
    assert error < 0.05
    assert estimate.log_z == pytest.approx(truth.log_z, abs=6 * error)
    assert estimate.interval[0] < truth.log_z < estimate.interval[1]
    assert all(torch.equal(a, b) for a, b in zip(samples, before, strict=True))


@pytest.mark.parametrize("name", ["rbm", "dbm3", "semi_restricted"])
def test_errors_of_reverse_annealing_are_calibrated(name: str) -> None:
    """(estimate - exact) / error over 200 independent estimates of 100 exact samples each is nearly standard normal.

    The mean of 200 such values has a standard error of 0.07 and their standard deviation one of 0.05: the bounds are
    five of them, and leave room for the bias of a logarithm. Of 200 values 0.5 lie beyond three errors; more than two
    do for one in 70 choices of the seeds of each machine.
    """
    built = machine(GRAPHS[name], coupling_sd=0.6)
    truth = enumerate_machine(built)
    samples = truth.draw(20_000, torch.Generator().manual_seed(4))
    weights = reverse_ais(built, samples, betas=30, base=base_of(built), seed=5).log_weights
    estimates = [AISEstimate.from_log_weights(part, 30) for part in weights.split(100)]  # of 1 / Z
    z = torch.tensor([(-each.log_z - truth.log_z) / each.standard_error for each in estimates])
    assert abs(float(z.mean())) < 0.4
    assert 0.75 < float(z.std()) < 1.3
    assert int((z.abs() > 3).sum()) <= 2


def test_reverse_annealing_lies_above_log_z_on_average() -> None:
    built = make_machine(chain_graph((12, 10)), scale=0.9)
    truth = enumerate_machine(built)
    generator = torch.Generator().manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrustworthyEstimate)
        errors = [
            reverse_ais(built, truth.draw(20, generator), betas=6, seed=seed).log_z - truth.log_z for seed in range(60)
        ]
    assert sum(errors) / len(errors) > 0.02
