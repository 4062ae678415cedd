"""Chains of a Gaussian RBM that start exactly at p stay at p, by moments and by the frequencies of hidden states.

Each look compares up to 60 moments, means over 20,000 independent chains, with enumeration; one of them lies 5.5
standard errors off less than once in 10^4 runs of the file. The variation ratio of exact samples has here a standard
deviation of at most 0.07, as in ``test_no_drift``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from bm_fast import Chains, Kind, Machine, chain_graph
from bm_fast.program import Program, gibbs_program
from bm_fast.reference import programs
from enumeration import (
    DRIFT_BOUND,
    GaussianTruth,
    enumerate_gaussian,
    gaussian_parameters,
    gaussian_truth,
    largest_z,
    machine,
    variation_ratio,
)

LARGEST_Z = 5.5
N_CHAINS = 20_000
GRAPH = chain_graph((4, 8), Kind.GAUSSIAN)


def gaussian_machine() -> Machine:
    return machine(GRAPH, coupling_sd=0.4)


def look(truth: GaussianTruth, v: Tensor, h: Tensor) -> tuple[float, float]:
    """Largest z over all first and second moments, and the variation ratio of the hidden states."""
    v = v.double()
    expected = truth.moments()
    products = {
        "v": v,
        "h": h.double(),
        "vh": (v[:, :, None] * h[:, None, :]).flatten(1),
        "vv": (v[:, :, None] * v[:, None, :]).flatten(1),
    }
    z = max(largest_z(products[name], expected[name].flatten()) for name in products)
    numbers = (h.long() << torch.arange(h.shape[1])).sum(1)
    return z, variation_ratio(truth.p, numbers)


def drift(
    truth: GaussianTruth,
    program: Program,
    start: tuple[Tensor, Tensor] | None = None,
    free: Tensor | None = None,
    **arguments: Any,
) -> tuple[float, float]:
    """The worst look after 1, 2 and 6 sweeps. ``free``: the visible units that ``truth`` is about."""
    v, h = truth.draw(N_CHAINS, torch.Generator().manual_seed(2)) if start is None else start
    chains = Chains((v.contiguous(), h.contiguous()), seed=11)
    free = torch.arange(v.shape[1]) if free is None else free
    z, ratio = look(truth, v[:, free], h)
    assert z < LARGEST_Z, "the chains did not start at p: the test itself is at fault"
    assert ratio < DRIFT_BOUND, "the chains did not start at p: the test itself is at fault"
    built = gaussian_machine()
    looks = []
    for n_sweeps in (1, 1, 4):
        built.sweep(program, chains, n_sweeps, **arguments)
        looks.append(look(truth, chains.layers[0][:, free], chains.layers[1]))
    return max(z for z, _ in looks), max(ratio for _, ratio in looks)


def assert_stays(result: tuple[float, float]) -> None:
    z, ratio = result
    assert z < LARGEST_Z
    assert ratio < DRIFT_BOUND


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("last", [0, 1])
def test_gibbs(last: int) -> None:
    assert_stays(drift(enumerate_gaussian(gaussian_machine()), gibbs_program(GRAPH, last=last)))


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("clamped", [0, 1])
def test_clamped_layer(clamped: int) -> None:
    assert_stays(drift(enumerate_gaussian(gaussian_machine()), gibbs_program(GRAPH, clamped=[clamped])))


@pytest.mark.usefixtures("backend")
def test_beta_of_each_chain_scales_its_whole_energy() -> None:
    built, betas = gaussian_machine(), (0.4, 1.6)
    truths = [enumerate_gaussian(built, beta) for beta in betas]
    starts = [truth.draw(N_CHAINS, torch.Generator().manual_seed(2)) for truth in truths]
    layers = tuple(torch.stack(pair, 1).flatten(0, 1) for pair in zip(*starts, strict=True))  # chains take turns
    chains = Chains(layers, seed=11)
    for n_sweeps in (1, 5):
        built.sweep(gibbs_program(GRAPH), chains, n_sweeps, beta=torch.tensor(betas).repeat(N_CHAINS))
        for g, truth in enumerate(truths):
            assert_stays(look(truth, chains.layers[0][g::2], chains.layers[1][g::2]))


BASE = [torch.tensor([0.5, -0.3, 0.0, 1.0]), torch.tensor([0.2, -1.0, 0.0, 0.4, 1.0, 0.3, -0.3, 0.1])]


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_base_shares_the_precision(beta: float) -> None:
    truth = enumerate_gaussian(gaussian_machine(), beta, BASE)
    assert_stays(drift(truth, gibbs_program(GRAPH), beta=torch.full((N_CHAINS,), beta), base=BASE))


def conditional() -> tuple[GaussianTruth, tuple[Tensor, Tensor], Tensor, Tensor]:
    """The machine given two of its visible units: truth, exact start, mask, and the free units."""
    weight, b, c, precision = gaussian_parameters(gaussian_machine())
    held, free, values = torch.tensor([1, 3]), torch.tensor([0, 2]), torch.tensor([1.5, -0.75])
    truth = gaussian_truth(weight[free], b[free], c + values.double() @ weight[held], precision[free])
    drawn, h = truth.draw(N_CHAINS, torch.Generator().manual_seed(2))
    v = torch.empty(N_CHAINS, 4)
    v[:, free], v[:, held] = drawn, values
    mask = torch.zeros(N_CHAINS, 4, dtype=torch.uint8)
    mask[:, held] = 1
    return truth, (v, h), mask, free


@pytest.mark.usefixtures("backend")
def test_clamp_mask_gives_the_conditional_distribution() -> None:
    truth, start, mask, free = conditional()
    assert_stays(drift(truth, gibbs_program(GRAPH), start, free, clamp={0: mask}))


# --- broken kernels ---------------------------------------------------------------------------------------------------


@contextmanager
def replaced(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """The reference with one of its functions replaced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BM_FAST_BACKEND", "reference")
        patch.setattr(programs, name, function)
        yield


def assert_drifts(result: tuple[float, float]) -> None:
    z, ratio = result
    assert z > LARGEST_Z or ratio > DRIFT_BOUND


def test_wrong_noise_drifts() -> None:
    normals = programs.normals
    with replaced("normals", lambda words: 1.1 * normals(words)):
        assert_drifts(drift(enumerate_gaussian(gaussian_machine()), gibbs_program(GRAPH)))


def test_one_normal_for_two_units_drifts() -> None:
    normals = programs.normals
    with replaced("normals", lambda words: normals(words)[:, [0, 0, 2, 3]]):
        assert_drifts(drift(enumerate_gaussian(gaussian_machine()), gibbs_program(GRAPH)))


def test_precision_without_beta_drifts() -> None:
    with replaced("precision_of", lambda parameters, layer, beta, base: parameters.precisions[layer]):
        truth = enumerate_gaussian(gaussian_machine(), 0.4)
        assert_drifts(drift(truth, gibbs_program(GRAPH), beta=torch.full((N_CHAINS,), 0.4)))


def test_ignored_mask_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BM_FAST_BACKEND", "reference")
    truth, start, _, free = conditional()
    assert_drifts(drift(truth, gibbs_program(GRAPH), start, free))
