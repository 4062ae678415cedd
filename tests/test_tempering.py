"""Parallel tempering as a user runs it: ladders, adaptation, reports, operators, resuming."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import RBM, Kind, Machine, chain_graph, checkpoints, plots, tempering
from bm_fast.chains import Chains
from bm_fast.tempering import (
    Gibbs,
    Ladders,
    Operator,
    PoorMixing,
    Tempering,
    TemperingReport,
    adapted_betas,
    integrated_autocorrelation,
)
from engine_cases import make_machine
from enumeration import DRIFT_BOUND, GRAPHS, enumerate_machine, machine, variation_ratio


def two_modes(strength: float = 6.0) -> Machine:
    """Twelve visible units that are nearly all on or nearly all off, both equally probable; far apart for Gibbs."""
    n, m = 12, 6
    weight = torch.full((n, m), strength * 2 / m)
    return Machine.build(chain_graph((n, m)), [weight], [-weight.sum(1) / 2, -weight.sum(0) / 2])


def share_on(layers: tuple[Tensor, ...]) -> float:
    return float((layers[0].double().mean(1) > 0.5).double().mean())


def start_in_one_mode(built: Machine, n_ladders: int, betas: int | Tensor) -> Ladders:
    ladders = tempering.start(built, n_ladders, betas, seed=3)
    for layer in ladders.chains.layers:
        layer.fill_(1)
    return ladders


def test_the_examples_of_the_guide_run(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "tempering.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", guide, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "tempering.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "round trips" in printed
    assert "log Z = " in printed
    assert "nats (bracket" in printed
    assert "NOT TRUSTWORTHY" not in printed
    assert "visible: R-hat 1.0" in printed


# --- distributions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rbm", "tree"])
def test_samples_of_the_target_are_exact(name: str) -> None:
    """Independent ladders, run until they have forgotten fair coins; the false-alarm rate is that of test_no_drift."""
    built = machine(GRAPHS[name])
    truth = enumerate_machine(built)
    ladders = tempering.start(built, 20_000, 4, seed=1)
    tempering.run(built, ladders, 60)
    assert variation_ratio(truth.p, truth.numbers(ladders.at_target())) < DRIFT_BOUND
    base_rung = ladders.at_rung(0)
    uniform = torch.full_like(truth.p, 1 / len(truth.p))
    assert variation_ratio(uniform, truth.numbers(base_rung)) < DRIFT_BOUND


def test_tempering_finds_the_other_mode_where_gibbs_sampling_stays() -> None:
    built = two_modes()
    chains = built.chains(200, seed=1)
    for layer in chains.layers:
        layer.fill_(1)
    Gibbs(300).advance(built, chains)
    assert share_on(chains.layers) == 1.0
    ladders = start_in_one_mode(built, 200, adapted_betas(built, seed=2))
    report = tempering.run(built, ladders, 300)
    # by symmetry each mode has half of the chains: 200 fair coins leave 0.3 to 0.7 once in 10^8
    assert 0.3 < share_on(ladders.at_target()) < 0.7
    assert report.trips > 100
    assert not report.advice


# --- adaptation -------------------------------------------------------------------------------------------------------


def test_adapted_betas_reject_equally_often() -> None:
    built = two_modes()
    betas = adapted_betas(built, 8, seed=2, n_ladders=64)
    plain = tempering.start(built, 200, 8, seed=5)
    ladders = tempering.start(built, 200, betas, seed=5)
    spread = []
    for each in (plain, ladders):
        tempering.run(built, each, 100)
        rejection = tempering.run(built, each, 400).rejection
        spread.append(float(rejection.max() - rejection.min()))
    assert spread[1] < 0.08
    assert spread[0] > 2 * spread[1], "equidistant betas do as well: the machine cannot show what adaptation does"


def test_the_number_of_rungs_follows_the_barrier() -> None:
    easy, hard = (adapted_betas(make_machine(chain_graph((40, 30)), scale=s), seed=1) for s in (0.01, 1.0))
    assert 3 <= len(easy) <= 4
    assert len(hard) > 6
    for betas in (easy, hard):
        assert betas[0] == 0
        assert betas[-1] == 1
        assert bool((betas.diff() > 0).all())


def test_adaptation_is_reproducible_and_shares_no_numbers_with_a_run() -> None:
    built = two_modes()
    assert torch.equal(adapted_betas(built, seed=4), adapted_betas(built, seed=4))
    assert not torch.equal(adapted_betas(built, seed=4), adapted_betas(built, seed=5))


# --- reports ----------------------------------------------------------------------------------------------------------


def test_round_trips_are_about_those_predicted() -> None:
    """With enough sweeps between swaps visits are nearly independent, which is what the prediction supposes."""
    built = two_modes(3.0)
    ladders = tempering.start(built, 100, adapted_betas(built, 5, seed=1), seed=6)
    tempering.run(built, ladders, 100, sweeps=5)
    report = tempering.run(built, ladders, 600, sweeps=5, keep_gaps=True)
    assert report.trips / report.predicted_trips == pytest.approx(1, abs=0.15)
    assert report.barrier == pytest.approx(float(report.rejection.sum()))
    text = str(report)
    assert f"round trips {report.trips}" in text
    assert "autocorrelation" in text
    assert "POOR" not in text


def test_rungs_that_never_swap_are_reported_with_advice() -> None:
    built = make_machine(chain_graph((200, 150)), scale=0.8)
    ladders = tempering.start(built, 10, 3, seed=1)
    with pytest.warns(PoorMixing, match=r"pairs of rungs swap less than 10% .* adapt the betas"):
        report = tempering.run(built, ladders, 60)
    assert "POOR MIXING" in str(report)


def test_chains_that_do_not_travel_are_reported() -> None:
    report = TemperingReport(
        torch.tensor([0.0, 0.5, 1.0]), 10, 100, torch.full((2,), 500), torch.full((2,), 0.5).double(), 0, None
    )
    assert any("no chain went from the base to the target" in advice for advice in report.advice)


def test_autocorrelation_of_known_series() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 4, generator=generator, dtype=torch.float64)
    assert integrated_autocorrelation(noise) == pytest.approx(1, abs=0.1)
    series = noise.clone()
    for t in range(1, len(series)):
        series[t] += 0.8 * series[t - 1]
    assert integrated_autocorrelation(series) == pytest.approx((1 + 0.8) / (1 - 0.8), rel=0.15)
    assert integrated_autocorrelation(torch.ones(50, 2)) == math.inf
    with pytest.raises(ValueError, match=r"values: expected \[n_steps\] or \[n_steps, n_chains\]"):
        integrated_autocorrelation(torch.ones(1))


def test_the_picture_shows_what_was_counted(tmp_path: Path) -> None:
    built = two_modes(3.0)
    ladders = tempering.start(built, 10, 5, seed=1)
    report = tempering.run(built, ladders, 60, keep_gaps=True)
    figure = plots.tempering(report)
    bars, line, series = figure.axes
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(report.acceptance.tolist())
    assert line.lines[0].get_xdata() == pytest.approx(report.betas.tolist())
    assert line.lines[0].get_ydata()[-1] == pytest.approx(report.barrier)
    assert len(series.lines) == 3
    assert plots.save(figure, tmp_path / "tempering.png").stat().st_size > 10_000
    without = plots.tempering(tempering.run(built, ladders, 10))
    assert len(without.axes) == 2


# --- resuming ---------------------------------------------------------------------------------------------------------


def test_ladders_resume_from_a_file_to_the_same_bits(tmp_path: Path) -> None:
    rbm = RBM(20, 10, seed=1, weight_scale=0.5)
    base = [torch.full((20,), -0.5), torch.zeros(10)]
    whole = tempering.start(rbm, 12, 6, base=base, seed=2**64 - 3, first_ladder=7)
    tempering.run(rbm, whole, 10)
    checkpoints.save(tmp_path / "ladders.safetensors", whole.state_dict())
    resumed = Ladders.from_state_dict(checkpoints.load(tmp_path / "ladders.safetensors"))
    first = tempering.run(rbm, whole, 30, keep_gaps=True)
    second = tempering.run(rbm, resumed, 30, keep_gaps=True)
    for a, b in zip(whole.at_target(), resumed.at_target(), strict=True):
        assert torch.equal(a, b)
    assert first.gaps is not None
    assert second.gaps is not None
    assert torch.equal(first.gaps, second.gaps)
    assert (resumed.rungs.round, resumed.chains.sweep) == (40, 40)


def test_keeping_gaps_changes_nothing_and_gives_energies() -> None:
    rbm = RBM(20, 10, seed=1, weight_scale=0.5)
    kept, other = (tempering.start(rbm, 12, 6, seed=2) for _ in range(2))
    report = tempering.run(rbm, kept, 8, keep_gaps=True)
    tempering.run(rbm, other, 8)
    assert torch.equal(kept.rungs.rungs, other.rungs.rungs)
    assert report.gaps is not None
    energies = rbm.machine().energy(kept.chains.layers).sort().values  # swaps have moved rungs since
    assert torch.allclose(report.gaps[-1].flatten().sort().values, energies, atol=1e-6)


# --- operators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", [Gibbs(2), Tempering(5, rounds=2, adapt_every=4)], ids=["gibbs", "tempering"])
def test_operators_leave_the_distribution_alone(operator: Operator) -> None:
    """Gibbs from exact samples, tempering from coins, which 50 rounds forget; in between betas adapt."""
    built = machine(GRAPHS["rbm"])
    truth = enumerate_machine(built)
    chains = Chains(truth.draw(20_001, torch.Generator().manual_seed(1)), seed=7)
    for _ in range(25):
        operator.advance(built, chains)
    assert variation_ratio(truth.p, truth.numbers(chains.layers)) < DRIFT_BOUND


def test_an_operator_resumes_from_its_state(tmp_path: Path) -> None:
    built = two_modes()
    results = []
    for interrupted in (False, True):
        operator, chains = Tempering(6, adapt_every=3), built.chains(20, seed=3)
        for k in range(12):
            operator.advance(built, chains)
            if interrupted and k == 4:
                checkpoints.save(tmp_path / "operator.safetensors", operator.state_dict())
                operator = Tempering(**operator.settings())
                operator.load_state_dict(checkpoints.load(tmp_path / "operator.safetensors"))
        results.append(chains.layers)
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_betas_wait_for_swaps_of_every_pair_of_rungs() -> None:
    """The first round tries every second pair; between the others no barrier would be seen, and no beta be put."""
    built = two_modes()
    operator, chains = Tempering(4, adapt_every=1), built.chains(20, seed=3)
    operator.advance(built, chains)
    operator.prepare(built, chains)
    assert operator.ladders is not None
    assert torch.equal(operator.ladders.betas, operator.betas)
    operator.advance(built, chains)
    operator.prepare(built, chains)
    assert not torch.equal(operator.ladders.betas, operator.betas)


def test_ladders_of_a_file_that_hold_a_rung_twice_are_refused() -> None:
    """Kernels follow rungs as addresses, and training on a GPU does not look at them again."""
    state = tempering.start(two_modes(), 2, 3).state_dict()
    state["rungs"]["rungs"][4] = 0
    with pytest.raises(ValueError, match="rungs: expected a permutation of 0 to 2 in each ladder"):
        tempering.Ladders.from_state_dict(state)


def test_chains_may_be_split_over_operators() -> None:
    """Chain 5 of the same seed has the same ladder, whichever chains are beside it."""
    built = two_modes()
    whole, part = built.chains(8, seed=3), built.chains(3, seed=3, first_chain=5)
    for chains in (whole, part):
        operator = Tempering(4, adapt_every=0)
        for _ in range(5):
            operator.advance(built, chains)
    for a, b in zip(whole.layers, part.layers, strict=True):
        assert torch.equal(a[5:], b)


def test_an_operator_serves_one_set_of_chains_after_the_other() -> None:
    """The second set gets the bits that a new operator would give it; going back to the first is refused."""
    built, used, new = two_modes(), Tempering(4, adapt_every=2), Tempering(4, adapt_every=2)
    first, second, expected = built.chains(4, seed=1), built.chains(5, seed=2), built.chains(5, seed=2)
    for _ in range(3):
        used.advance(built, first)
    for _ in range(5):
        used.advance(built, second)
        new.advance(built, expected)
    for a, b in zip(second.layers, expected.layers, strict=True):
        assert torch.equal(a, b)
    message = "chains: expected those .*, 5 with seed 2 at sweep 5, got 4 with seed 1 at sweep 3"
    with pytest.raises(ValueError, match=message):
        used.advance(built, first)
    with pytest.raises(ValueError, match="chains: expected some at sweep 0, which begin ladders, got sweep 3"):
        Tempering(4).advance(built, first)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (1, "at least 2 rungs, got 1; one rung is plain Gibbs"),
        ([1.0], "at least 2 rungs"),
        ([0.0, 0.5, 0.5, 1.0], "rise strictly"),
        ([0.0, 0.7, 0.5, 1.0], "rise strictly"),
        ([1.0, 0.0], "rise strictly"),
        ([0.0, 0.5, 0.9], "last value of 1"),
        ([-0.5, 1.0], "at least 0"),
        ([0.0, math.nan, 1.0], "rise strictly"),
        (np.zeros((2, 2)), "one dimension"),
        ("all", "expected a whole number of rungs or a sequence of betas, got 'all'"),
        (2.5, r"expected a whole number of rungs or a sequence of betas, got 2\.5"),
        (True, "expected a whole number of rungs or a sequence of betas, got True"),
    ],
)
def test_ladders_that_make_no_sense_are_refused(betas: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"betas: .*{message}"):
        tempering.start(two_modes(), 4, betas)  # type: ignore[arg-type]


def test_other_bad_input_is_refused() -> None:
    built = two_modes()
    ladders = tempering.start(built, 4, 3)
    with pytest.raises(ValueError, match="rounds: expected 1 to"):
        tempering.run(built, ladders, 0)
    with pytest.raises(ValueError, match="sweeps: expected 1 to"):
        tempering.run(built, ladders, 1, sweeps=0)
    with pytest.raises(ValueError, match="layers"):
        tempering.run(RBM(3, 2), ladders, 1)
    with pytest.raises(ValueError, match="n_ladders: expected 1 to"):
        tempering.start(built, 0, 3)
    with pytest.raises(ValueError, match="base"):
        tempering.start(built, 4, 3, base=[torch.zeros(12)])
    for n_rungs in (0, 1, 2.5):
        with pytest.raises(ValueError, match="n_rungs: expected"):
            adapted_betas(built, n_rungs)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="doublings: expected 1 to 24, got 0"):
        adapted_betas(built, doublings=0)
    gaussian = make_machine(chain_graph((4, 3), Kind.GAUSSIAN))
    with pytest.raises(ValueError, match="betas: a Gaussian layer has no distribution at beta = 0 without a base"):
        tempering.run(gaussian, tempering.start(gaussian, 4, 3), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PoorMixing)
        tempering.run(gaussian, tempering.start(gaussian, 4, 3, base=[torch.zeros(4), torch.zeros(3)]), 5)
