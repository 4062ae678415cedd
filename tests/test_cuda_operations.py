"""Single operations of the CUDA kernels, emulated on the host, beside those of the processor."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import Graph, Layer, ops
from bm_fast.ops import EnergyGap, Rungs, swap
from bm_fast.parameters import MAX_WEIGHT, GapBiases, Parameters
from cuda_runner import ORDERS, operate, taken
from engine_cases import make_machine, tree


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- quantisation ----------------------------------------------------------------------------------------------------

WEIGHTS = {
    "one": torch.tensor([[-0.3]]),
    "zero": torch.zeros(3, 5),
    "small": normal(130, 65, scale=1e-7),
    "usual": normal(257, 70, scale=0.1),
    "many": normal(300, 131, scale=40.0),
    "halves": torch.cat((torch.arange(-300, 300) / 2, torch.tensor([0.75, MAX_WEIGHT - 1.0]))).view(43, 14),
    "largest": torch.tensor([[1.0, -MAX_WEIGHT], [0.5, 1.5]]),
    "largest of a finer grid": torch.tensor([[-1.0, 3.25, MAX_WEIGHT / 8]]),
    "beyond a finer grid": torch.tensor([[-1.0, 3.25, np.nextafter(np.float32(MAX_WEIGHT / 8), np.float32(1e9))]]),
}


def quantised(
    program: list[str], folder: Path, weights: Tensor, integers: Tensor, order: str
) -> tuple[float, int, bytes]:
    """The grid, whether the weights are refused, and whether both directions are those of the integers."""
    out = operate(program, folder, "quantise", *weights.shape, weights, integers, order=order)
    grid, refused = np.frombuffer(out, np.float32, 1)[0], np.frombuffer(out, np.uint32, 1, 4)[0]
    return float(grid), int(refused), bytes(out[8:])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_quantised_as_on_the_processor(plain: list[str], tmp_path: Path, name: str, order: str) -> None:
    integers, bits = ops.quantise(WEIGHTS[name])
    assert quantised(plain, tmp_path, WEIGHTS[name], integers, order) == (2.0**-bits, 0, b"\1\1")


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan, MAX_WEIGHT + 1.0])
def test_weights_that_do_not_fit_are_reported(plain: list[str], tmp_path: Path, wrong: float) -> None:
    weights = normal(30, 20)
    weights[29, 18] = wrong
    assert quantised(plain, tmp_path, weights, torch.zeros(30, 20, dtype=torch.int16), "fair")[1] == 1


def test_sanitizers_find_nothing_in_quantisation(sanitized: list[str], tmp_path: Path) -> None:
    integers, bits = ops.quantise(WEIGHTS["usual"])
    assert quantised(sanitized, tmp_path, WEIGHTS["usual"], integers, "random:3") == (2.0**-bits, 0, b"\1\1")


# --- statistics ------------------------------------------------------------------------------------------------------

SHAPES = ((1, 1, 1), (130, 65, 33), (70, 64, 128), (257, 17, 90))  # chains, lower, upper
KINDS = ("bits bits", "bits reals", "reals bits", "reals reals")


def factors(shape: tuple[int, int, int], kinds: str) -> list[Tensor]:
    return [
        (normal(shape[0], n, seed=i) > 0.4).to(torch.uint8) if kind == "bits" else normal(shape[0], n, seed=i)
        for i, (kind, n) in enumerate(zip(kinds.split(), shape[1:], strict=True))
    ]


def summed(program: list[str], folder: Path, lower: Tensor, upper: Tensor, order: str = "fair") -> Tensor:
    arguments = [x for f in (lower, upper) for x in (f.shape[1], f.dtype is torch.float32, f)]
    out = operate(program, folder, "statistics", len(lower), *arguments, order=order)
    return torch.frombuffer(out, dtype=torch.float32).view(lower.shape[1], upper.shape[1])


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize(("shape", "order"), [(s, o) for s in SHAPES for o in (ORDERS if s == SHAPES[1] else ["fair"])])
def test_statistics_have_the_same_bits(
    plain: list[str], tmp_path: Path, shape: tuple[int, int, int], kinds: str, order: str
) -> None:
    lower, upper = factors(shape, kinds)
    assert torch.equal(summed(plain, tmp_path, lower, upper, order), ops.statistics(lower, upper))


def test_statistics_of_many_chains(plain: list[str], tmp_path: Path) -> None:
    lower, upper = torch.ones(65_537, 2, dtype=torch.uint8), torch.ones(65_537, 3, dtype=torch.uint8)
    upper[1::2, 1] = 0
    assert torch.equal(summed(plain, tmp_path, lower, upper), torch.tensor([[65_537.0, 32_769.0, 65_537.0]] * 2))


@pytest.mark.parametrize("kinds", KINDS)
def test_sanitizers_find_nothing_in_statistics(sanitized: list[str], tmp_path: Path, kinds: str) -> None:
    lower, upper = factors((150, 33, 67), kinds)
    assert torch.equal(summed(sanitized, tmp_path, lower, upper, "random:3"), ops.statistics(lower, upper))


# --- swaps of replica exchange ---------------------------------------------------------------------------------------


def assert_swaps(program: list[str], folder: Path, n_ladders: int, n_rungs: int, order: str) -> None:
    """Five rounds, the same bits as on the processor."""
    rungs, gaps = Rungs.start(n_ladders, n_rungs), 5 * normal(n_ladders * n_rungs).double()
    table = torch.rand(n_ladders, n_rungs, generator=torch.Generator().manual_seed(3)).argsort(1)
    rungs.rungs.copy_(table.int().flatten())
    rungs.heading.zero_()
    betas, seed, first_ladder = torch.linspace(0.2, 1.0, n_rungs), 2**63 + 5, 77
    out = operate(
        program, folder, "swap", n_ladders, n_rungs, rungs.rungs, gaps, betas, seed, first_ladder, 5, order=order
    )
    trace = torch.empty(n_ladders, n_rungs, dtype=torch.float64)  # of the last round, before its swaps
    for _ in range(5):
        trace.scatter_(1, rungs.rungs.view(n_ladders, -1).long(), gaps.view(n_ladders, -1))
        swap(rungs, gaps, betas, seed=seed, first_ladder=first_ladder)
    wanted = (
        rungs.rungs,
        betas[rungs.rungs.long()],
        trace,
        rungs.attempts,
        rungs.acceptances,
        rungs.heading,
        rungs.trips,
    )
    for got, value in zip(taken(out, *((v.dtype, v.shape) for v in wanted)), wanted, strict=True):
        assert torch.equal(got, value)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("n_ladders", "n_rungs"), [(3, 2), (5, 33), (2, 261)])
def test_swaps_are_those_of_the_processor(
    plain: list[str], tmp_path: Path, n_ladders: int, n_rungs: int, order: str
) -> None:
    assert_swaps(plain, tmp_path, n_ladders, n_rungs, order)


def test_sanitizers_find_nothing_in_swaps(sanitized: list[str], tmp_path: Path) -> None:
    assert_swaps(sanitized, tmp_path, 3, 150, "random:3")


# --- gaps of energies ------------------------------------------------------------------------------------------------

BIASES = {
    "one": [torch.tensor([-0.3])],
    "zero": [torch.zeros(5), torch.zeros(3)],
    "usual": [normal(1500, seed=1), normal(257, seed=2), normal(3, seed=3)],
    "small": [normal(700, scale=1e-20), normal(9, scale=1e-38)],
    "huge": [torch.full((300,), 3e38), torch.full((7,), -3.4e38)],
    "the largest in another layer": [normal(40), torch.cat((normal(600), torch.tensor([70.0])))],
    "halves": [torch.arange(-300, 300) / 2 * 2.0**-22, torch.tensor([2.0**30])],
    "many": [normal(70_000, scale=3.0)],
}


def gap_layers(biases: list[Tensor], base: list[Tensor] | None) -> list[int | Tensor | None]:
    parts: list[int | Tensor | None] = [len(biases)]
    for i, bias in enumerate(biases):
        parts += [len(bias), bias, base is not None, None if base is None else base[i]]
    return parts


def assert_gap_biases(
    program: list[str], folder: Path, biases: list[Tensor], base: list[Tensor] | None, order: str
) -> None:
    graph = Graph(tuple(Layer(f"{i}", len(bias)) for i, bias in enumerate(biases)), ())
    wanted = GapBiases(Parameters(graph, (), (), tuple(biases), (None,) * len(biases)), base)
    out = operate(program, folder, "gap_biases", *gap_layers(biases, base), order=order)
    grid, *whole = taken(out, (torch.float32, [1]), *((torch.int64, [len(bias)]) for bias in biases))
    assert torch.equal(grid, torch.tensor([2.0**-wanted.bits]))
    for got, expected in zip(whole, wanted.whole, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("with_base", [False, True])
@pytest.mark.parametrize("name", BIASES)
def test_biases_of_gaps_have_the_grid_of_the_processor(
    plain: list[str], tmp_path: Path, name: str, with_base: bool, order: str
) -> None:
    base = [normal(len(bias), seed=7) for bias in BIASES[name]] if with_base else None
    assert_gap_biases(plain, tmp_path, BIASES[name], base, order)


@pytest.mark.parametrize("with_base", [False, True])
def test_sanitizers_find_nothing_in_biases_of_gaps(sanitized: list[str], tmp_path: Path, with_base: bool) -> None:
    base = [normal(len(bias), seed=7) for bias in BIASES["usual"]] if with_base else None
    assert_gap_biases(sanitized, tmp_path, BIASES["usual"], base, "random:3")


@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan])
def test_biases_that_are_not_finite_have_no_grid(sanitized: list[str], tmp_path: Path, wrong: float) -> None:
    biases = [normal(30), normal(20)]
    biases[1][18] = wrong
    out = operate(sanitized, tmp_path, "gap_biases", *gap_layers(biases, None))
    grid, *whole = taken(out, (torch.float32, [1]), (torch.int64, [30]), (torch.int64, [20]))
    assert float(grid) == 0
    assert not torch.cat(whole).any()


@pytest.mark.parametrize("order", ORDERS)
def test_gaps_of_energies_have_the_same_bits(plain: list[str], tmp_path: Path, order: str) -> None:
    machine = make_machine(tree())
    base = [normal(layer.units, seed=i) for i, layer in enumerate(machine.graph.layers)]
    gap, chains, parameters = EnergyGap(machine, base), machine.chains(19, seed=1), machine.parameters
    arguments = [19, *gap_layers(list(parameters.biases), base), *chains.layers, len(parameters.weights)]
    for coupling, weights, bits in zip(
        machine.graph.couplings, parameters.weights, parameters.fraction_bits, strict=True
    ):
        arguments += [coupling.lower, coupling.upper, bits, weights]
    out = operate(plain, tmp_path, "gap", *arguments, order=order)
    assert torch.equal(torch.frombuffer(out, dtype=torch.float64), gap.of(chains.layers))
