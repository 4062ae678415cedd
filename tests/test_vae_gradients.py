"""Every gradient estimator against the exact gradient of its bound, by quadrature.

False alarms: in each case at most 60 parameters are compared, each by a t statistic with 99 degrees of freedom against
5.5 (two-sided chance 3e-7), so that a correct estimator fails a case with probability below 2e-5.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from bm_fast.vae import CIWAE, ELBO, IWAE, MIWAE, PIWAE, STL, VAE, DReG
from bm_fast.vae.estimators import Estimator
from vae_exact import exact_bound, posterior_model, tiny

LIMIT = 5.5
REPEATS = 100

X = {
    "bernoulli": torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]),
    "gaussian": torch.tensor([[0.5, -0.7, 1.2], [-1.0, 0.4, 0.1]]),
}

# estimator, and the bounds that p and q climb: weights of L_k by k
CASES = [
    (ELBO(2), {1: 1.0}, {1: 1.0}),
    (ELBO(2, form="importance"), {1: 1.0}, {1: 1.0}),
    (STL(2), {1: 1.0}, {1: 1.0}),
    (IWAE(2), {2: 1.0}, {2: 1.0}),
    (DReG(2), {2: 1.0}, {2: 1.0}),
    (MIWAE(3, 2), {2: 1.0}, {2: 1.0}),
    (PIWAE(2, 1), {2: 1.0}, {1: 1.0}),
    (CIWAE(2, 0.3), {1: 0.3, 2: 0.7}, {1: 0.3, 2: 0.7}),
]


def gradients(model: VAE, estimator: Estimator, x: Tensor, repeats: int, seed: int) -> dict[str, Tensor]:
    """``[repeats, parameters]`` of p and of q: gradients of the bound averaged over the rows."""
    generator = torch.Generator().manual_seed(seed)
    drawn: dict[str, list[Tensor]] = {"p": [], "q": []}
    for _ in range(repeats):
        model.zero_grad()
        estimator.backward(model, x, generator)
        for side, values in split(model).items():
            drawn[side].append(-values)
    return {side: torch.stack(values).double() for side, values in drawn.items()}


def split(model: VAE) -> dict[str, Tensor]:
    sides: dict[str, list[Tensor]] = {"p": [], "q": []}
    for name, parameter in model.named_parameters():
        sides["q" if name.startswith("recognition") else "p"].append(parameter.grad.flatten())
    return {side: torch.cat(values) for side, values in sides.items()}


def exact_gradients(model: VAE, x: Tensor, of_p: dict[int, float], of_q: dict[int, float]) -> dict[str, Tensor]:
    found = {}
    for side, mixture in (("p", of_p), ("q", of_q)):
        total: Tensor | float = 0.0
        for k, share in mixture.items():
            bound, exact = exact_bound(model, x, k)
            bound.backward()
            total = total + share * split(exact)[side]
        found[side] = total
    return found


def worst(drawn: Tensor, exact: Tensor) -> float:
    return float(((drawn.mean(0) - exact).abs() / (drawn.std(0) / REPEATS**0.5)).max())


@pytest.mark.parametrize("n_layers", [1, 2])
@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
@pytest.mark.parametrize(("estimator", "of_p", "of_q"), CASES, ids=[str(case[0]) for case in CASES])
def test_gradient_is_that_of_the_bound(visible, n_layers, estimator, of_p, of_q):
    model, x = tiny(visible, n_layers), X[visible]
    exact = exact_gradients(model, x, of_p, of_q)
    drawn = gradients(model, estimator, x.repeat(300, 1), REPEATS, seed=1)
    for side in ("p", "q"):
        assert worst(drawn[side], exact[side]) < LIMIT, side
        spread = float((drawn[side].std(0) / REPEATS**0.5).norm() / exact[side].norm())
        assert spread < 0.1, side  # else the comparison would say nothing


@pytest.mark.parametrize("estimator", [case[0] for case in CASES], ids=str)
def test_gradient_at_the_posterior_is_that_of_the_log_likelihood(estimator):
    """A linear-Gaussian model whose q is exact: every bound touches log p(x), so p climbs it and q stays.

    Thirteen parameters, each off by 5.5 standard errors with probability 3e-7.
    """
    model = posterior_model()
    x = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    exact = copy.deepcopy(model).double()
    observation = exact.observation
    covariance = observation.output.weight @ observation.output.weight.T + torch.diag((2 * observation.log_scale).exp())
    MultivariateNormal(observation.output.bias, covariance).log_prob(x.double()).mean().backward()
    drawn = gradients(model, estimator, x.repeat(300, 1), REPEATS, seed=4)
    expected = torch.cat([p.grad.flatten() for name, p in exact.named_parameters() if name.startswith("observation")])
    assert worst(drawn["p"], expected) < LIMIT
    assert float((drawn["q"].mean(0).abs() - LIMIT * drawn["q"].std(0) / REPEATS**0.5).max()) < 1e-5


def test_the_comparison_tells_the_bounds_apart():
    model, x = tiny("bernoulli", 1), X["bernoulli"]
    drawn = gradients(model, IWAE(2), x.repeat(300, 1), REPEATS, seed=1)
    wrong = exact_gradients(model, x, {1: 1.0}, {1: 1.0})
    assert worst(drawn["p"], wrong["p"]) > 2 * LIMIT
    assert worst(drawn["q"], wrong["q"]) > 2 * LIMIT


def test_quadrature_has_converged():
    for n_layers in (1, 2):
        model = tiny("gaussian", n_layers)
        for k in (1, 2):
            coarse, fine = (float(exact_bound(model, X["gaussian"], k, nodes)[0].detach()) for nodes in (18, 26))
            assert abs(coarse - fine) < 5e-4


def test_dreg_has_less_variance_than_the_standard_gradient_at_50_samples():
    model = posterior_model()
    with torch.no_grad():
        for parameter in model.recognition.parameters():
            parameter.add_(0.1)
    x = 0.7 * torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    spread = {}
    for estimator in (IWAE(50), DReG(50)):
        drawn = gradients(model, estimator, x, 200, seed=2)
        spread[type(estimator)] = {side: float(values.var(0).sum()) for side, values in drawn.items()}
    # each variance comes from 200 draws: their ratio is known to about 20 per cent, far from the limit
    assert spread[DReG]["q"] < 0.5 * spread[IWAE]["q"]
    assert spread[DReG]["p"] == pytest.approx(spread[IWAE]["p"], rel=1e-3)  # same samples, same weights


def test_sticking_the_landing_has_no_variance_at_the_true_posterior():
    model = posterior_model()
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    stl, elbo = (gradients(model, estimator, x, 20, seed=3)["q"] for estimator in (STL(), ELBO()))
    assert float(stl.abs().max()) < 1e-4
    assert float(elbo.abs().max()) > 0.1


def test_piwae_and_miwae_with_one_group_are_iwae():
    model, x = tiny("bernoulli", 2), X["bernoulli"]
    same = [
        gradients(model, estimator, x, 1, seed=5) for estimator in (IWAE(6), MIWAE(1, 6), PIWAE(1, 6), CIWAE(6, 0.0))
    ]
    for other in same[1:]:
        for side in ("p", "q"):
            torch.testing.assert_close(other[side], same[0][side], rtol=1e-4, atol=1e-6)
