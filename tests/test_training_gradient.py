"""Gradients: against autograd of enumerated likelihoods, of free energies, and of the centred parametrisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad

from bm_fast import RBM, Kind
from bm_fast.chains import Chains
from bm_fast.program import gibbs_program
from bm_fast.rbm import HIDDEN, VISIBLE
from bm_fast.training import CD, PCD
from bm_fast.training.estimators import Estimator
from bm_fast.training.gradient import OFFSET_RATE, Block, Gradient, Offsets, Rows
from enumeration import all_states, enumerate_gaussian, enumerate_machine

KINDS = [Kind.BERNOULLI, Kind.GAUSSIAN]
Parameters = dict[str, Tensor]


def make(kind: Kind, n_visible: int = 5, n_hidden: int = 3) -> RBM:
    """An RBM with sizeable parameters that lie on the integer grid, so that autograd differentiates the same model."""
    rbm = RBM(n_visible, n_hidden, kind, seed=1, weight_scale=0.7)
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in rbm.named_parameters():
            if name != "weight":
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=g))
        rbm.weight.copy_((rbm.weight * 2**10).round() / 2**10)
    assert torch.equal(rbm.machine().parameters.weight(0), rbm.weight.detach())
    return rbm


def parameters(rbm: RBM) -> Parameters:
    return {name: p.detach().double() for name, p in rbm.named_parameters()}


def free_energy(p: Parameters, v: Tensor) -> Tensor:
    """F(v) by its formula, differentiable, float64."""
    v = v.double()
    total = -v @ p["visible_bias"] - torch.nn.functional.softplus(p["hidden_bias"] + v @ p["weight"]).sum(1)
    return total + v.square() @ p["log_precision"].exp() / 2 if "log_precision" in p else total


def log_z(p: Parameters) -> Tensor:
    """log Z by enumerating the hidden units and summing the visible ones out, differentiable."""
    h = all_states(len(p["hidden_bias"])).double()
    field = p["visible_bias"] + h @ p["weight"].T
    if "log_precision" in p:
        precision = p["log_precision"].exp()
        visible = (field.square() / (2 * precision) + (2 * math.pi / precision).log() / 2).sum(1)
    else:
        visible = torch.nn.functional.softplus(field).sum(1)
    return torch.logsumexp(h @ p["hidden_bias"] + visible, 0)


def filled(rbm: RBM, block: Block, offsets: Offsets | None = None) -> Parameters:
    """What ``Gradient.fill`` writes, in float64."""
    Gradient(rbm).fill(block, rbm.machine().parameters.precisions[VISIBLE], offsets)
    return {name: p.grad.double() for name, p in rbm.named_parameters() if p.grad is not None}


def rows_of(rbm: RBM, data: Tensor, model: Tensor) -> Block:
    """A block of given states with the hidden means that belong to them."""
    block = Rows(rbm, len(data) + 3, len(model)).block(len(data), len(model))
    block.visible.copy_(torch.cat((data, model)))
    block.means.copy_(rbm.hidden_means(block.visible))
    return block


def draw(rbm: RBM, n: int, seed: int) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    if rbm.visible is Kind.GAUSSIAN:
        return torch.randn(n, rbm.n_visible, generator=g)
    return torch.randint(2, (n, rbm.n_visible), generator=g, dtype=torch.uint8)


def close(actual: Parameters, expected: Parameters, atol: float = 2e-5) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-5, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def centred_gradient(p: Parameters, offsets: Offsets, loss: object) -> Parameters:
    """The gradient in (W, b', c') of E = -(v - μ)ᵀ W (h - λ) - b'ᵀv - c'ᵀh, taken back to (W, b, c) as a step."""
    mu, lam = offsets.visible.double(), offsets.hidden.double()

    def ordinary(q: Parameters) -> Parameters:
        b, c = q["visible_bias"] - q["weight"] @ lam, q["hidden_bias"] - q["weight"].T @ mu
        return {**q, "visible_bias": b, "hidden_bias": c}

    start = {
        **p,
        "visible_bias": p["visible_bias"] + p["weight"] @ lam,
        "hidden_bias": p["hidden_bias"] + p["weight"].T @ mu,
    }
    step = grad(lambda q: loss(ordinary(q)))(start)  # type: ignore[operator]
    before, after = ordinary(start), ordinary({name: start[name] + step[name] for name in start})
    return {name: after[name] - before[name] for name in p}


# --- exact identities -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("n_data", "n_model"), [(7, 4), (1, 6), (5, 1)])
def test_each_phase_is_the_mean_free_energy_gradient_of_its_rows(
    kind: Kind, centred: bool, n_data: int, n_model: int
) -> None:
    """∇(-log L) = mean over data of ∇F - mean over model rows of ∇F, whatever the rows, each phase by its own count."""
    rbm = make(kind)
    data, model = draw(rbm, n_data, 3), draw(rbm, n_model, 4)
    offsets = Offsets(rbm) if centred else None

    def loss(p: Parameters) -> Tensor:
        return free_energy(p, data).mean() - free_energy(p, model).mean()

    actual = filled(rbm, rows_of(rbm, data, model), offsets)
    p = parameters(rbm)
    close(actual, grad(loss)(p) if offsets is None else centred_gradient(p, offsets, loss))


@pytest.mark.parametrize("centred", [False, True])
def test_exact_bernoulli_gradient(centred: bool) -> None:
    """With every state as a model row, weighted by its exact probability: autograd of the enumerated likelihood."""
    rbm = make(Kind.BERNOULLI)
    data, states = draw(rbm, 6, 3), all_states(rbm.n_visible)
    p = parameters(rbm)
    block = rows_of(rbm, data, states)
    probability = (-free_energy(p, states) - log_z(p)).exp().float()
    block.shares[6:, 1] = block.signs[6:] = probability
    offsets = Offsets(rbm) if centred else None

    def loss(p: Parameters) -> Tensor:
        return free_energy(p, data).mean() + log_z(p)

    close(filled(rbm, block, offsets), grad(loss)(p) if offsets is None else centred_gradient(p, offsets, loss))


def test_exact_gaussian_gradient() -> None:
    """The same with a grid of visible states: sums of smooth functions over it are integrals to 1e-12."""
    rbm = make(Kind.GAUSSIAN, n_visible=2)
    p = parameters(rbm)
    step, reach = 0.35, 9.0
    axis = torch.arange(-reach, reach + step / 2, step)
    states = torch.cartesian_prod(axis, axis)
    probability = (-free_energy(p, states) - log_z(p)).exp() * step**2
    assert probability.sum().item() == pytest.approx(1, abs=1e-6)
    data = draw(rbm, 6, 3)
    block = rows_of(rbm, data, states)
    block.shares[6:, 1] = block.signs[6:] = probability.float()
    close(filled(rbm, block), grad(lambda p: free_energy(p, data).mean() + log_z(p))(p), atol=1e-4)


def test_the_test_itself_knows_the_model() -> None:
    """The formulas above agree with the package's own free energy and with the enumeration that other tests share."""
    for kind in KINDS:
        rbm = make(kind)
        v = draw(rbm, 9, 5)
        torch.testing.assert_close(rbm.free_energy(v), free_energy(parameters(rbm), v), rtol=1e-6, atol=1e-5)
    assert log_z(parameters(make(Kind.BERNOULLI))).item() == pytest.approx(
        enumerate_machine(make(Kind.BERNOULLI).machine()).log_z, abs=1e-5
    )


def flipped(rbm: RBM) -> RBM:
    """The same distribution of (1 - v, h): W' = -W, b' = -b, c' = c + Wᵀ1."""
    other = RBM(rbm.n_visible, rbm.n_hidden)
    with torch.no_grad():
        other.weight.copy_(-rbm.weight)
        other.visible_bias.copy_(-rbm.visible_bias)
        other.hidden_bias.copy_(rbm.hidden_bias + rbm.weight.sum(0))
    return other


@pytest.mark.parametrize("centred", [True, False])
def test_exchanging_0_and_1_makes_no_difference_to_centred_learning(centred: bool) -> None:
    """Steps on the flipped data keep the two models the flip of each other; without centring they do not."""
    rbm = make(Kind.BERNOULLI)
    twin = flipped(rbm)
    offsets = (Offsets(rbm), Offsets(twin)) if centred else (None, None)
    for step in range(4):
        data, model = draw(rbm, 6, 10 + step), draw(rbm, 4, 20 + step)
        for machine, rows, own in ((rbm, (data, model), offsets[0]), (twin, (1 - data, 1 - model), offsets[1])):
            filled(machine, rows_of(machine, *rows), own)
            with torch.no_grad():
                for parameter in machine.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.1 * parameter.grad
    difference = max(
        (p - q).abs().max().item() for p, q in zip(flipped(rbm).parameters(), twin.parameters(), strict=True)
    )
    assert difference < 1e-5 if centred else difference > 1e-2


# --- in the limit -----------------------------------------------------------------------------------------------------

Z_BOUND = 5.5
"""In standard errors. At most 26 parameters a test: a false alarm once in 10^6 runs of one test."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("estimator", [CD(sweeps=30), PCD(n_chains=1500, sweeps=3)], ids=["CD", "PCD"])
def test_estimators_reach_the_exact_gradient(kind: Kind, estimator: Estimator) -> None:
    """CD after many sweeps, and PCD whose chains start exactly at the model, are unbiased up to sampling error."""
    rbm = make(kind)
    machine = rbm.machine()
    g = torch.Generator().manual_seed(6)
    n = 1500
    data = draw(rbm, n, 7)
    rows = Rows(rbm, n, estimator.n_chains_for(n))
    if kind is Kind.GAUSSIAN:
        visible, hidden = enumerate_gaussian(machine).draw(n, g)
    else:
        visible, hidden = enumerate_machine(machine).draw(n, g)
    rows.model_visible.copy_(visible if isinstance(estimator, PCD) else torch.zeros_like(visible))
    block = rows.block(n, n)
    block.data.copy_(data)
    estimator.run(machine, Chains((rows.model_visible, hidden), seed=8), block)
    actual = filled(rbm, block)
    p = parameters(rbm)
    exact = grad(lambda q: free_energy(q, data).mean() + log_z(q))(p)

    def one_row(q: Parameters, v: Tensor) -> Tensor:
        return free_energy(q, v[None]).sum()

    spread = torch.func.vmap(grad(one_row), (None, 0))(p, rows.model_visible)
    for name, expected in exact.items():
        z = (actual[name] - expected) / (spread[name].std(0) / math.sqrt(n))
        assert z.abs().max().item() < Z_BOUND, name


def test_one_cd_sweep_is_biased() -> None:
    """The same bound must be able to fail: CD-1 from data far from the model misses the exact gradient."""
    rbm = make(Kind.BERNOULLI)
    with torch.no_grad():
        rbm.weight *= 3  # chains move slowly then
    data = torch.ones(1500, 5, dtype=torch.uint8)
    rows = Rows(rbm, 1500, 1500)
    block = rows.block(1500, 1500)
    block.data.copy_(data)
    hidden = torch.zeros(1500, 3, dtype=torch.uint8)
    CD(1).run(rbm.machine(), Chains((rows.model_visible, hidden), seed=8), block)
    p = parameters(rbm)
    exact = grad(lambda q: free_energy(q, data).mean() + log_z(q))(p)["visible_bias"]
    z = (filled(rbm, block)["visible_bias"] - exact) / (0.5 / math.sqrt(1500))
    assert z.abs().max().item() > Z_BOUND


def test_pcd_leaves_its_chains_alone_in_the_data_phase() -> None:
    """The chains are where the same sweeps lead without any data, and the means are those of the last sweep."""
    rbm = make(Kind.BERNOULLI)
    machine = rbm.machine()
    alone = machine.chains(9, seed=3)
    rows = Rows(rbm, 4, 9)
    rows.model_visible.copy_(alone.layers[VISIBLE])
    chains = Chains((rows.model_visible, alone.layers[HIDDEN].clone()), seed=3)
    estimator = PCD(9, sweeps=2)
    for n_data in (4, 2, 4):
        block = rows.block(n_data, 9)
        block.data.copy_(draw(rbm, n_data, n_data))
        estimator.run(machine, chains, block)
        machine.sweep(gibbs_program(rbm.graph, last=HIDDEN), alone, 2)
        assert all(torch.equal(a, b) for a, b in zip(chains.layers, alone.layers, strict=True))
        assert torch.equal(block.model_means, rbm.hidden_means(alone.layers[VISIBLE]))
        assert torch.equal(block.data_means, rbm.hidden_means(block.data))


# --- offsets and memory -----------------------------------------------------------------------------------------------


def test_offsets_follow_the_data_only() -> None:
    rbm = make(Kind.BERNOULLI)
    offsets = Offsets(rbm)
    offsets.start_at(torch.full((5,), 0.25))
    first, second = draw(rbm, 8, 1), draw(rbm, 4, 2)
    visible, hidden = torch.full((5,), 0.25), torch.zeros(5)
    for i, data in enumerate((first, second)):
        filled(rbm, rows_of(rbm, data, draw(rbm, 3, 9 + i)), offsets)
        visible = (1 - OFFSET_RATE) * visible + OFFSET_RATE * data.float().mean(0)
        mean = rbm.hidden_means(data).mean(0)
        hidden = mean if i == 0 else (1 - OFFSET_RATE) * hidden + OFFSET_RATE * mean
    torch.testing.assert_close(offsets.visible, visible)
    torch.testing.assert_close(offsets.hidden, hidden)


def test_unknown_visible_offsets_start_at_the_first_batch() -> None:
    rbm = make(Kind.BERNOULLI)
    offsets = Offsets(rbm)
    data = draw(rbm, 8, 1)
    filled(rbm, rows_of(rbm, data, draw(rbm, 3, 9)), offsets)
    torch.testing.assert_close(offsets.visible, data.float().mean(0))


def test_gradients_are_descent_directions_that_survive_zero_grad() -> None:
    rbm = make(Kind.BERNOULLI)
    data = draw(rbm, 20, 1)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=0.01)
    gradient = Gradient(rbm)

    def likelihood() -> float:
        p = parameters(rbm)
        return float(-free_energy(p, data).mean() - log_z(p))

    before = likelihood()
    for _ in range(20):
        states = all_states(5)
        block = rows_of(rbm, data, states)
        p = parameters(rbm)
        block.shares[20:, 1] = block.signs[20:] = (-free_energy(p, states) - log_z(p)).exp().float()
        optimizer.zero_grad(set_to_none=True)
        gradient.fill(block, None, None)
        optimizer.step()
        assert likelihood() > before
        before = likelihood()
