"""Split R-hat and effective sample sizes: of series whose answer is known, and of chains that mix or do not."""

from __future__ import annotations

import builtins
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bm_fast import Machine, chain_graph
from bm_fast.estimation import chain_health, effective_sample_size, split_r_hat, to_arviz
from bm_fast.program import gibbs_program
from engine_cases import make_machine


def autoregressive(rho: float, n: int = 2000, m: int = 8) -> Tensor:
    """Series with variance 1 and correlation rho^t, ``[n, m, 1]``, begun at their stationary distribution."""
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(n, m, 1, generator=generator, dtype=torch.float64)
    for t in range(1, n):
        series[t] = rho * series[t - 1] + (1 - rho**2) ** 0.5 * series[t]
    return series


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_effective_sample_size_of_known_series(rho: float) -> None:
    expected = 2000 * 8 * (1 - rho) / (1 + rho)
    assert float(effective_sample_size(autoregressive(rho))) == pytest.approx(expected, rel=0.25)
    assert float(split_r_hat(autoregressive(rho))) == pytest.approx(1, abs=0.02)


def test_effective_sample_size_by_hand() -> None:
    """One chain whose halves are [0.1 -0.1 0.1 -0.1] and one more: correlations at lags 0 to 3 written out."""
    wobble = torch.tensor([0.1, -0.1] * 4, dtype=torch.float64)
    series = (wobble + torch.tensor([0.0] * 4 + [1.0] * 4)).view(8, 1, 1)
    within, covariance = 0.04 / 3, [0.04 / 3, -0.03 / 3, 0.02 / 3, -0.01 / 3]
    total = 0.75 * within + 0.5
    rho = [1 - (within - each) / total for each in covariance]
    assert float(effective_sample_size(series)) == pytest.approx(8 / (2 * sum(rho) - 1))


def test_chains_apart_are_seen() -> None:
    series = autoregressive(0.0)
    series[:, :4] += 4  # half of the chains in another mode: variance 4 between, 1 within
    assert float(split_r_hat(series)) == pytest.approx((1 + 4 * 16 / 15) ** 0.5, rel=0.03)
    assert float(effective_sample_size(series)) < 40
    drifting = autoregressive(0.0) + torch.linspace(0, 4, 2000)[:, None, None]
    assert float(split_r_hat(drifting)) > 1.2


def test_frozen_quantities_have_no_figures() -> None:
    series = torch.zeros(10, 3, 2)
    series[:, :, 1] = torch.rand(10, 3, generator=torch.Generator().manual_seed(0))
    assert split_r_hat(series).isnan().tolist() == [True, False]
    assert effective_sample_size(series).isnan().tolist() == [True, False]
    with pytest.raises(ValueError, match=r"values: expected .* at least 4 samples"):
        split_r_hat(torch.zeros(3, 2, 1))


def test_health_of_chains_that_mix() -> None:
    built = make_machine(chain_graph((100, 30)), scale=0.1)
    chains = built.chains(20, seed=1)
    visible, hidden = chain_health(built, chains, n_samples=200)
    assert chains.sweep == 200
    with pytest.raises(ValueError, match="sweeps: expected 1 to"):
        chain_health(built, chains, n_samples=4, sweeps=0)
    assert (visible.name, hidden.name) == ("visible", "hidden")
    for layer in (visible, hidden):
        assert layer.worst_r_hat < 1.1
        assert float(layer.effective_sample_size.min()) > 500
        assert layer.frozen == 0
        assert layer.stuck == 0
        assert 1 <= layer.autocorrelation < 5
        assert layer.faults == ()
    assert f"{[visible, hidden]}" == f"[<{visible}>, <{hidden}>]"  # without tensors


def test_health_of_chains_stuck_in_two_modes() -> None:
    weight = torch.full((12, 6), 2.0)
    built = Machine.build(chain_graph((12, 6)), [weight], [-weight.sum(1) / 2, -weight.sum(0) / 2])
    chains = built.chains(10, seed=1)
    for layer in chains.layers:
        layer[:5], layer[5:] = 0, 1
    visible, _ = chain_health(built, chains, n_samples=400)
    assert visible.worst_r_hat > 1.5
    assert "NOT CONVERGED" in str(visible)
    assert float(visible.effective_sample_size.nan_to_num(nan=1e9).min()) < 50


def test_health_of_chains_that_all_froze_in_one_state() -> None:
    """No chain differs from another or from itself earlier, which is no sign of health."""
    built = Machine.build(chain_graph((5, 3)), [torch.zeros(5, 3)], [torch.full((5,), -60.0), torch.zeros(3)])
    chains = built.chains(10, seed=1)
    chains.layers[0].zero_()
    visible, hidden = chain_health(built, chains)
    assert visible.stuck == 1
    assert str(visible) == "visible: all 5 units are frozen; STUCK: 100% of the chains never changed"
    assert hidden.faults == ()


def test_chains_that_are_stuck_apart_and_few_that_are() -> None:
    """A strong coupling holds a pair of units on in some chains, and off in the others."""
    built = Machine.build(chain_graph((1, 1)), [torch.full((1, 1), 200.0)], [torch.full((1,), -100.0)] * 2)
    chains = built.chains(20, seed=1)
    for layer in chains.layers:
        layer.zero_()
        layer[:5] = 1
    visible, _ = chain_health(built, chains)
    assert (visible.frozen, visible.stuck, visible.worst_r_hat) == (0, 1, math.inf)
    assert str(visible).endswith("NOT CONVERGED; STUCK: 100% of the chains never changed")
    assert replace(visible, stuck=0.1, r_hat=torch.ones(1)).faults == ()


# --- ArviZ ------------------------------------------------------------------------------------------------------------


def test_figures_are_handed_to_arviz() -> None:
    pytest.importorskip("arviz_base", reason="the package arviz-base is not installed")
    built = make_machine(chain_graph((6, 4)))
    chains, other = built.chains(3, seed=1), built.chains(3, seed=1)
    posterior = to_arviz(built, chains, n_samples=5, sweeps=2)["posterior"]
    assert dict(posterior.sizes) == {"chain": 3, "draw": 5}
    assert set(posterior.data_vars) == {"energy", "activity_visible", "activity_hidden"}
    for k in range(5):
        built.sweep(gibbs_program(built.graph), other, 2)
        assert posterior["energy"].values[:, k].tolist() == built.energy(other.layers).tolist()
        for name, state in zip(("visible", "hidden"), other.layers, strict=True):
            assert posterior[f"activity_{name}"].values[:, k].tolist() == state.double().mean(1).tolist()
    assert chains.sweep == 10


def test_split_r_hat_agrees_with_that_of_arviz() -> None:
    stats = pytest.importorskip("arviz_stats", reason="the package arviz-stats is not installed")
    built = make_machine(chain_graph((6, 4)))
    tree = to_arviz(built, built.chains(4, seed=1), n_samples=40)
    values = torch.from_numpy(tree["posterior"]["energy"].values.copy()).T[:, :, None]
    assert float(split_r_hat(values)) == pytest.approx(float(stats.rhat(tree, method="split")["energy"]), rel=1e-9)


def test_without_arviz_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "arviz_base":
            raise ImportError(name)
        return original(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    built = make_machine(chain_graph((6, 4)))
    chains = built.chains(3, seed=1)
    with pytest.raises(ImportError, match=r"arviz-base is missing; install it with pip install 'bm_fast\[arviz\]'"):
        to_arviz(built, chains)
    assert chains.sweep == 0
