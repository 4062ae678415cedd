"""The RBM against its formulas, and at its edge: arrays in and out, clamping, files, bad input."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import RBM, Kind
from bm_fast.checkpoints import CheckpointError
from enumeration import all_states

KINDS = [Kind.BERNOULLI, Kind.GAUSSIAN]


def make(kind: Kind = Kind.BERNOULLI, n_visible: int = 6, n_hidden: int = 4) -> RBM:
    """An RBM whose parameters are all away from zero."""
    rbm = RBM(n_visible, n_hidden, kind, seed=1, weight_scale=0.5)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in rbm.named_parameters():
            if name != "weight":
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g))
    return rbm


def values(rbm: RBM, n: int = 7) -> Tensor:
    """Rows of the visible layer: uint8 or real."""
    g = torch.Generator().manual_seed(3)
    if rbm.visible is Kind.GAUSSIAN:
        return torch.randn(n, rbm.n_visible, generator=g)
    return torch.randint(2, (n, rbm.n_visible), generator=g, dtype=torch.uint8)


def exact_weight(rbm: RBM) -> Tensor:
    """The weights on the grid, float64."""
    return rbm.machine().parameters.weight(0).double()


def energy(rbm: RBM, v: Tensor, h: Tensor) -> Tensor:
    """E(v, h) by its definition, float64 ``[n_v, n_h]``."""
    v, h = v.double()[:, None], h.double()[None]
    total = -torch.einsum("nmi,ij,nmj->nm", v.expand(-1, h.shape[1], -1), exact_weight(rbm), h.expand(len(v), -1, -1))
    total = total - v @ rbm.visible_bias.detach().double() - h @ rbm.hidden_bias.detach().double()
    if rbm.log_precision is not None:
        total = total + v.square() @ rbm.log_precision.detach().exp().double() / 2
    return total


# --- formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_free_energy_sums_the_hidden_units_out(kind: Kind) -> None:
    rbm = make(kind)
    v = values(rbm)
    expected = -torch.logsumexp(-energy(rbm, v, all_states(rbm.n_hidden)), 1)
    torch.testing.assert_close(rbm.free_energy(v), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_means_are_the_posterior(kind: Kind) -> None:
    rbm = make(kind)
    v, h = values(rbm), all_states(rbm.n_hidden)
    posterior = torch.softmax(-energy(rbm, v, h), 1)
    torch.testing.assert_close(rbm.hidden_means(v).double(), posterior @ h.double(), rtol=0, atol=1e-6)


def test_bernoulli_visible_means_are_the_conditional() -> None:
    rbm = make()
    v, h = all_states(rbm.n_visible), all_states(rbm.n_hidden)
    conditional = torch.softmax(-energy(rbm, v, h), 0)
    torch.testing.assert_close(rbm.visible_means(h).double(), conditional.T @ v.double(), rtol=0, atol=1e-6)


def test_gaussian_visible_units_match_the_usual_parametrisation() -> None:
    """Σ (v - a)² / 2σ² - (v / σ)ᵀ W' h - cᵀh with λ = 1/σ², b = a/σ², W = W'/σ: same conditionals, as documented."""
    rbm = make(Kind.GAUSSIAN)
    assert rbm.log_precision is not None
    sigma = (-rbm.log_precision.detach() / 2).exp().double()
    a = rbm.visible_bias.detach().double() * sigma.square()
    usual_weight = exact_weight(rbm) * sigma[:, None]
    h, v = all_states(rbm.n_hidden), values(rbm)
    mean = a + sigma * (h.double() @ usual_weight.T)
    torch.testing.assert_close(rbm.visible_means(h).double(), mean, rtol=1e-5, atol=1e-5)
    field = (v.double() / sigma) @ usual_weight + rbm.hidden_bias.detach().double()
    torch.testing.assert_close(rbm.hidden_means(v).double(), field.sigmoid(), rtol=0, atol=1e-6)


def test_reconstruction_goes_up_and_down() -> None:
    rbm = make()
    v = values(rbm)
    assert torch.equal(rbm.reconstruct(v), rbm.visible_means(rbm.hidden_means(v)))


# --- initialisation ---------------------------------------------------------------------------------------------------


def test_seed_and_scale_decide_the_weights() -> None:
    assert torch.equal(RBM(40, 30, seed=5).weight, RBM(40, 30, seed=5).weight)
    assert not torch.equal(RBM(40, 30, seed=5).weight, RBM(40, 30, seed=6).weight)
    assert RBM(40, 30, weight_scale=0.2).weight.std().item() == pytest.approx(0.2, rel=0.1)  # 5 sd of 1,200 draws
    state = torch.get_rng_state()
    RBM(4, 3)
    assert torch.equal(torch.get_rng_state(), state)


def test_bernoulli_biases_follow_the_data() -> None:
    rbm = RBM(3, 2, weight_scale=0)
    rbm.initialise_biases(torch.tensor([[1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 1]], dtype=torch.uint8))
    means = rbm.visible_means(torch.zeros(1, 2, dtype=torch.uint8))
    torch.testing.assert_close(means, torch.tensor([[5 / 6, 1 / 6, 4 / 6]]))


def test_gaussian_biases_and_precisions_follow_the_data() -> None:
    rbm = RBM(3, 2, Kind.GAUSSIAN, weight_scale=0)
    data = torch.tensor([1.0, -2.0, 7.0]) + torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    data[:, 2] = 7
    rbm.initialise_biases(data.numpy())
    assert rbm.log_precision is not None
    mean = rbm.visible_means(torch.zeros(1, 2, dtype=torch.uint8))[0]
    torch.testing.assert_close(mean, data.mean(0), rtol=1e-4, atol=1e-4)
    variance = data.var(0, correction=0)
    variance[2] = variance.mean() / 1000  # a constant unit keeps a finite precision
    torch.testing.assert_close(rbm.log_precision.detach(), -variance.log(), rtol=1e-4, atol=1e-4)


def test_constant_gaussian_data_have_no_scale() -> None:
    with pytest.raises(ValueError, match="data: expected values that vary"):
        RBM(2, 2, Kind.GAUSSIAN).initialise_biases(torch.ones(5, 2))


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_chain", [False, True])
def test_clamped_units_keep_their_values(kind: Kind, per_chain: bool) -> None:
    rbm = make(kind)
    start = values(rbm, 50)
    mask = torch.zeros(50, 6, dtype=torch.bool)
    mask[:, 2] = True
    if per_chain:
        mask[:25, 4] = True
    chains = rbm.sample(rbm.chains(50, seed=0, visible=start), 4, clamp=mask if per_chain else mask[0])
    assert torch.equal(chains.layers[0][mask], start[mask])
    assert not torch.equal(chains.layers[0][:, 0], start[:, 0])
    if per_chain:
        assert not torch.equal(chains.layers[0][25:, 4], start[25:, 4])


def test_sampling_runs_in_place_and_splits() -> None:
    rbm = make()
    whole, parts = rbm.chains(20, seed=4), rbm.chains(20, seed=4)
    assert rbm.sample(whole, 5) is whole
    rbm.sample(rbm.sample(parts, 2), 3)
    assert whole.sweep == parts.sweep == 5
    assert all(torch.equal(a, b) for a, b in zip(whole.layers, parts.layers, strict=True))


def test_one_beta_stands_for_all_chains() -> None:
    rbm = make()
    one = rbm.sample(rbm.chains(30, seed=4), 3, beta=0.25)
    each = rbm.sample(rbm.chains(30, seed=4), 3, beta=torch.full((30,), 0.25))
    none = rbm.sample(rbm.chains(30, seed=4), 3)
    assert torch.equal(one.layers[0], each.layers[0])
    assert not torch.equal(one.layers[0], none.layers[0])


def test_progress_bar_and_progress_function(capfd: pytest.CaptureFixture[str]) -> None:
    rbm = make()
    silent = rbm.sample(rbm.chains(3, seed=0), 4)
    assert capfd.readouterr().err == ""
    shown = rbm.sample(rbm.chains(3, seed=0), 4, progress=True)
    assert "4/4" in capfd.readouterr().err
    reported: list[int] = []
    rbm.sample(rbm.chains(3, seed=0), 4, progress=reported.append)
    assert reported[-1] == 4
    assert torch.equal(silent.layers[0], shown.layers[0])


def test_interrupted_chains_can_go_on() -> None:
    rbm = make()
    broken, unbroken = rbm.chains(10, seed=0), rbm.sample(rbm.chains(10, seed=0), 60)

    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rbm.sample(broken, 60, progress=interrupt)
    assert 0 < broken.sweep <= 60
    rbm.sample(broken, 60 - broken.sweep)
    assert all(torch.equal(a, b) for a, b in zip(broken.layers, unbroken.layers, strict=True))


# --- numpy and torch --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hidden_means", "free_energy", "reconstruct"])
def test_numpy_in_numpy_out(method: str) -> None:
    rbm = make()
    v = values(rbm)
    array = v.numpy().copy()
    array.flags.writeable = False
    result = getattr(rbm, method)(array)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, getattr(rbm, method)(v).numpy())


def test_probabilities_are_values_too() -> None:
    rbm = make()
    v = values(rbm)
    torch.testing.assert_close(rbm.hidden_means(v.float()), rbm.hidden_means(v), rtol=0, atol=1e-6)
    means = rbm.hidden_means(torch.full((2, 6), 0.5))
    field = 0.5 * exact_weight(rbm).sum(0) + rbm.hidden_bias.detach()
    torch.testing.assert_close(means[0].double(), field.sigmoid(), rtol=0, atol=1e-6)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_saved_models_come_back_bit_for_bit(kind: Kind, tmp_path: Path) -> None:
    rbm = make(kind)
    rbm.save(tmp_path / "model.safetensors")
    back = RBM.load(tmp_path / "model.safetensors", device="cpu")
    assert back.graph == rbm.graph
    assert [n for n, _ in back.named_parameters()] == [n for n, _ in rbm.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(back.parameters(), rbm.parameters(), strict=True))
    assert all(p.requires_grad for p in back.parameters())


def test_an_rbm_is_an_ordinary_module() -> None:
    rbm = make(Kind.GAUSSIAN)
    assert {n for n, _ in rbm.named_parameters()} == {"weight", "visible_bias", "hidden_bias", "log_precision"}
    twin = copy.deepcopy(rbm)
    other = RBM(6, 4, Kind.GAUSSIAN)
    other.load_state_dict(rbm.state_dict())
    v = values(rbm)
    assert torch.equal(twin.free_energy(v), rbm.free_energy(v))
    assert torch.equal(other.free_energy(v), rbm.free_energy(v))
    assert "visible=GAUSSIAN" in repr(rbm)


def test_a_file_of_something_else_is_no_model(tmp_path: Path) -> None:
    from bm_fast import checkpoints

    checkpoints.save(tmp_path / "other", {"chains": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="holds no 'rbm', only \\['chains'\\]"):
        RBM.load(tmp_path / "other")


# --- bad input --------------------------------------------------------------------------------------------------------

NAN = torch.full((2, 6), math.nan)
BAD_VALUES: list[tuple[Kind, Any, str]] = [
    (Kind.BERNOULLI, NAN, "v: expected values from 0 to 1, got nan"),
    (Kind.BERNOULLI, torch.full((2, 6), 1.5), "v: expected values from 0 to 1, got 1.5 to 1.5"),
    (Kind.BERNOULLI, torch.full((2, 6), -0.5), "v: expected values from 0 to 1, got -0.5"),
    (Kind.BERNOULLI, torch.full((2, 6), 255, dtype=torch.uint8), "divide grey levels by 255"),
    (Kind.BERNOULLI, torch.zeros(2, 5), r"v: expected shape \[n, 6\] with n >= 1, got \[2, 5\]"),
    (Kind.BERNOULLI, torch.zeros(6), r"v: expected shape \[n, 6\] with n >= 1, got \[6\]"),
    (Kind.BERNOULLI, torch.zeros(0, 6), r"got \[0, 6\]"),
    (
        Kind.BERNOULLI,
        torch.zeros(2, 6, dtype=torch.float64),
        "v: expected torch.uint8 or torch.float32 for Bernoulli units, got torch.float64",
    ),
    (Kind.BERNOULLI, np.zeros((2, 6)), "v: expected float32 or uint8, got float64"),
    (Kind.BERNOULLI, np.zeros((6, 2), np.float32).T, "v: expected a contiguous array"),
    (Kind.BERNOULLI, torch.zeros(6, 2).T, "v: expected a contiguous tensor"),
    (Kind.BERNOULLI, [[0] * 6], "v: expected a torch tensor or a numpy array, got list"),
    (Kind.BERNOULLI, torch.zeros(2, 6, device="meta"), "v: expected a tensor on cpu, where the model is, got .* meta"),
    (Kind.GAUSSIAN, NAN, "v: expected finite values, got nan"),
    (Kind.GAUSSIAN, torch.full((2, 6), -math.inf), "v: expected finite values, got -inf"),
    (Kind.GAUSSIAN, torch.zeros(2, 6, dtype=torch.uint8), "v: expected torch.float32 for Gaussian units"),
]


@pytest.mark.parametrize(("kind", "bad", "message"), BAD_VALUES)
@pytest.mark.parametrize("method", ["hidden_means", "free_energy", "reconstruct"])
def test_bad_values_are_named(kind: Kind, bad: Any, message: str, method: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(make(kind), method)(bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_visible": 0}, "units of layer 'visible'"),
        ({"n_hidden": 0}, "units of layer 'hidden'"),
        ({"n_hidden": 65_537}, "65537 units exceed"),
        ({"weight_scale": math.nan}, "weight_scale: expected a finite number"),
        ({"seed": 2**64}, f"seed: expected 0 to {2**64 - 1}, got {2**64}"),
        ({"seed": 0.5}, "seed: expected a whole number, 0 to"),
        ({"weight_scale": -1.0}, "weight_scale: expected a finite number"),
    ],
)
def test_impossible_models_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RBM(**{"n_visible": 3, "n_hidden": 2, **arguments})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("weight", math.nan, "weights.*finite"),
        ("weight", 1e6, "weights.*at most 32639"),
        ("hidden_bias", math.inf, "hidden.*finite"),
        ("log_precision", math.inf, "precisions.*finite"),
    ],
)
def test_bad_parameters_are_named(name: str, value: float, message: str) -> None:
    rbm = make(Kind.GAUSSIAN)
    with torch.no_grad():
        rbm.get_parameter(name).view(-1)[1] = value
    with pytest.raises(ValueError, match=message):
        rbm.hidden_means(values(rbm))


@pytest.mark.parametrize(
    ("clamp", "message"),
    [
        (torch.zeros(5, dtype=torch.bool), r"clamp: expected bool or uint8 \[6\] or \[3, 6\], got torch.bool \[5\]"),
        (torch.zeros(6), "clamp: expected bool or uint8"),
        (torch.full((6,), 2, dtype=torch.uint8), "clamp: expected 0 and 1 only, got 2"),
    ],
)
def test_bad_masks_are_named(clamp: Tensor, message: str) -> None:
    rbm = make()
    chains = rbm.chains(3, seed=0)
    before = chains.clone()
    with pytest.raises(ValueError, match=message):
        rbm.sample(chains, 1, clamp=clamp)
    assert chains.sweep == 0
    assert torch.equal(chains.layers[0], before.layers[0])


@pytest.mark.parametrize(
    ("visible", "message"),
    [
        (torch.zeros(2, 6, dtype=torch.uint8), r"visible: expected torch.uint8 \[3, 6\], got torch.uint8 \[2, 6\]"),
        (torch.zeros(3, 6), "visible: expected torch.uint8 .* got torch.float32"),
    ],
)
def test_bad_starts_are_named(visible: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make().chains(3, seed=0, visible=visible)
