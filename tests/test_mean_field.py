"""The mean-field operation: kernels against the reference, cases independent of each other, errors by name.

Kernels with 8-bit products stay within a share of the last change of the reference and come to rest at the same point;
docs/numbers.md states both tolerances.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bm_fast import Machine, chain_graph, mean_field, ops, reference
from bm_fast.graph import Graph, Kind
from bm_fast.program import Input, Program, Update, gibbs_program
from enumeration import GRAPHS, machine

SHARE_OF_CHANGE = 0.25
AT_REST = 2e-5
LEFT_AT_REST = 1e-5

_CPU = Path("/proc/cpuinfo")
needs_8_bit_products = pytest.mark.skipif(
    ops.info()["isa"] != "avx512" or not _CPU.exists() or "avx512_vnni" not in _CPU.read_text(),
    reason="the kernels with 8-bit products need AVX-512 VNNI",
)


def values_for(graph: Graph, n: int, seed: int = 0, grey: bool = False) -> list[Tensor]:
    """Layer 0 as data, means anywhere in all other layers."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.rand(n, graph.layers[0].units, generator=generator)
    data = v if grey or graph.layers[0].kind is Kind.GAUSSIAN else (v < 0.3).to(torch.uint8)
    return [data, *(torch.rand(n, layer.units, generator=generator) for layer in graph.layers[1:])]


def big_machine(
    units: tuple[int, ...] = (150, 70, 131, 66), sd: float = 0.1, visible: Kind = Kind.BERNOULLI
) -> Machine:
    return machine(chain_graph(units, visible), coupling_sd=sd)


def run_reference(
    built: Machine, values: list[Tensor], iterations: int, **options: float
) -> tuple[list[Tensor], Tensor]:
    return run_reference_program(built, gibbs_program(built.graph, clamped=[0]), values, iterations, **options)


def run_reference_program(
    built: Machine, program: Program, values: list[Tensor], iterations: int, **options: float
) -> tuple[list[Tensor], Tensor]:
    copies = [value.clone() for value in values]
    changes, performed = torch.empty(len(values[0])), torch.empty(len(values[0]), dtype=torch.int32)
    reference.mean_field(
        built.parameters,
        program,
        copies,
        iterations=iterations,
        tolerance=options.get("tolerance", 0.0),
        damping=options.get("damping", 0.0),
        changes=changes,
        performed=performed,
    )
    return copies, changes


def largest_difference(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Of each case."""
    return torch.stack([(x - y).abs().amax(1) for x, y in zip(a[1:], b[1:], strict=True)]).amax(0)


@pytest.mark.parametrize("n", [1, 3, 64, 67, 130])
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("iterations", [1, 2, 7])
def test_follows_the_reference(n: int, grey: bool, iterations: int) -> None:
    built = big_machine()
    values = values_for(built.graph, n, grey=grey)
    expected, last = run_reference(built, values, iterations)
    changes, performed = built.mean_field(gibbs_program(built.graph, clamped=[0]), values, iterations)
    assert bool((performed == iterations).all())
    assert bool((largest_difference(values, expected) <= SHARE_OF_CHANGE * last + AT_REST).all())
    assert bool(((changes - last).abs() <= 2 * (SHARE_OF_CHANGE * last + AT_REST)).all())


@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("visible", [Kind.BERNOULLI, Kind.GAUSSIAN])
def test_comes_to_rest_at_the_fixed_point_of_the_reference(damping: float, visible: Kind) -> None:
    built = big_machine(visible=visible)
    values = values_for(built.graph, 40)
    expected, last = run_reference(built, values, 150, damping=damping)
    assert last.max() < 1e-6, "the case must have a point of rest"
    program = gibbs_program(built.graph, clamped=[0])
    changes, performed = built.mean_field(program, values, 150, tolerance=1e-6, damping=damping)
    assert bool((changes <= 1e-6).all())
    assert int(performed.max()) < 150
    assert largest_difference(values, expected).max() <= AT_REST


@pytest.mark.parametrize("name", GRAPHS)
def test_every_graph_and_free_layers_anywhere(name: str) -> None:
    built = machine(GRAPHS[name], coupling_sd=0.4)
    n = 9
    for clamped in ([0], [len(built.graph.layers) - 1], [0, 1], []):
        program = gibbs_program(built.graph, clamped=clamped)
        values = [value.float() for value in values_for(built.graph, n)]
        expected = [value.clone() for value in values]
        changes, performed = torch.empty(n), torch.empty(n, dtype=torch.int32)
        reference.mean_field(
            built.parameters, program, expected, iterations=60, tolerance=0, damping=0.2, changes=changes,
            performed=performed,
        )  # fmt: skip
        built.mean_field(program, values, 60, damping=0.2)
        for value, other in zip(values, expected, strict=True):
            assert bool(((value - other).abs() <= SHARE_OF_CHANGE * changes[:, None] + AT_REST).all())


def test_extreme_weights_keep_the_point_of_rest() -> None:
    """The largest weights of the grid beside small ones: both limbs at their ends, steps of all sizes."""
    graph = chain_graph((5, 200, 130))
    generator = torch.Generator().manual_seed(2)
    weights = [torch.randn(5, 200, generator=generator), 0.05 * torch.randn(200, 130, generator=generator)]
    weights[1][0, 0], weights[1][1, 0], weights[1][0, 1] = 4.0, -4.0, 3.984
    built = Machine.build(graph, weights, [torch.zeros(layer.units) for layer in graph.layers])
    values = values_for(graph, 20)
    expected, last = run_reference(built, values, 200)
    assert last.max() < 1e-6
    built.mean_field(gibbs_program(graph, clamped=[0]), values, 200)
    assert largest_difference(values, expected).max() <= AT_REST


@pytest.mark.parametrize("tolerance", [0.0, 1e-6])
@pytest.mark.parametrize("starts", [False, True])
def test_layers_that_come_to_rest_at_once_are_seen_to_the_last_bit(starts: bool, tolerance: float) -> None:
    """A saturated layer changes once and never again: no later change tells the limbs that have not seen it."""
    graph = chain_graph((5, 400, 30))
    generator = torch.Generator().manual_seed(0)
    above = 0.1 * torch.randn(400, 30, generator=generator)
    sides = 40 * torch.randn(400, generator=generator).sign()
    built = Machine.build(graph, [torch.zeros(5, 400), above], [torch.zeros(5), sides, -above.sum(0) / 2])
    values, program = values_for(graph, 3), gibbs_program(graph, clamped=[0])
    expected, _ = run_reference(built, values, 10)
    start = mean_field.upward_program(graph, [0]) if starts else ()
    built.mean_field(program, values, 10, start=start, tolerance=tolerance)
    assert largest_difference(values, expected).max() <= AT_REST


def distance_from_rest(built: Machine, values: list[Tensor]) -> float:
    """Largest difference between a mean and what it is given the others' means, in float64."""
    _, below, above = (value.double() for value in values)
    weight, biases = built.parameters.weight(1).double(), built.parameters.biases
    fresh = (biases[1] + above @ weight.T).sigmoid(), (biases[2] + below @ weight).sigmoid()
    return max(float((a - b).abs().max()) for a, b in zip((below, above), fresh, strict=True))


@needs_8_bit_products
@pytest.mark.parametrize(
    ("weight", "below", "above"),
    [(0.014, 0.0, -458.0), (-0.014, 0.0, 458.0), (0.05, -4.4, -40.0), (0.1, -6.0, -18.0), (0.2, -8.0, -5.0)],
)
def test_units_that_all_err_alike(weight: float, below: float, above: float) -> None:
    """The worst case: as many inputs as there can be, whose means and roundings are all the same.

    The weights that lead to the unit above have sums of 917 to 13,107, and the means leave its field open. On the way
    its field halves again and again, from what the first means make of it, and is rounded each time.
    """
    n = 65_536
    graph = chain_graph((1, n, 1))
    biases = [torch.zeros(1), torch.full((n,), below), torch.tensor([above])]
    built = Machine.build(graph, [torch.zeros(1, n), torch.full((n, 1), weight)], biases)
    values = [torch.zeros(1, 1), torch.full((1, n), 0.3), torch.full((1, 1), 0.9)]
    changes, _ = built.mean_field(gibbs_program(graph, clamped=[0]), values, 400, damping=0.5)
    assert float(changes) < 1e-6, "the case must have a point of rest"
    assert 0.005 < float(values[2]) < 0.995, "whose field is open"
    assert distance_from_rest(built, values) <= LEFT_AT_REST + 2.0**-25 * 0.3 * abs(weight) * n


def test_means_of_the_largest_fields_are_0_and_1(backend: str) -> None:
    graph = chain_graph((2, 4, 20))
    ends = torch.tensor([3.4e38, -3.4e38, 200.0, -200.0])
    built = Machine.build(graph, [torch.zeros(2, 4), torch.zeros(4, 20)], [torch.zeros(2), ends, ends.repeat(5)])
    posterior = mean_field.settle(built, {0: torch.zeros(3, 2, dtype=torch.uint8)}, 3, 0.0)
    for means in posterior.layers[1:]:
        torch.testing.assert_close(means, (ends > 0).float().repeat(3, means.shape[1] // 4), rtol=0, atol=1e-18)


def test_gaussian_means_of_any_size() -> None:
    """Means of a Gaussian layer that moves: 10^-7 in size, and their part in fields is not."""
    graph = chain_graph((40, 30), Kind.GAUSSIAN)
    generator = torch.Generator().manual_seed(3)
    weights = 1e6 * torch.randn(40, 30, generator=generator)
    weights = [weights.clamp(-30_000, 30_000)]
    built = Machine.build(graph, weights, [torch.ones(40), torch.zeros(30)], [torch.full((40,), 1e12), None])
    values = [torch.zeros(6, 40), torch.rand(6, 30, generator=generator)]
    program = gibbs_program(graph)
    copies = [value.clone() for value in values]
    changes, performed = torch.empty(6), torch.empty(6, dtype=torch.int32)
    reference.mean_field(built.parameters, program, copies, iterations=30, tolerance=0.0, damping=0.0,
                         changes=changes, performed=performed)  # fmt: skip
    built.mean_field(program, values, 30)
    assert 1e-9 < float(copies[0].abs().max()) < 1e-6
    torch.testing.assert_close(values[0], copies[0], rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(values[1], copies[1], rtol=0, atol=AT_REST)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-3, 1e-5])
def test_a_case_has_converged_exactly_where_it_makes_no_more_iterations(tolerance: float, backend: str) -> None:
    """Means that hardly move may do so before the products have been given all of them, which is no rest yet."""
    graph = chain_graph((5, 400, 30))
    generator = torch.Generator().manual_seed(0)
    above, biases = 0.003 * torch.randn(400, 30, generator=generator), 2 * torch.randn(400, generator=generator)
    built = Machine.build(graph, [torch.zeros(5, 400), above], [torch.zeros(5), biases, -above.sum(0) / 2])
    given = {0: values_for(graph, 20)[0]}
    longest = mean_field.settle(built, given, 50, tolerance)
    assert bool(longest.converged.all())
    for iterations in range(1, int(longest.iterations.max()) + 1):
        posterior = mean_field.settle(built, given, iterations, tolerance)
        assert torch.equal(posterior.converged, longest.iterations <= iterations)


def test_a_case_does_not_depend_on_those_beside_it(backend: str) -> None:
    built = big_machine(units=(20, 17, 9))
    program = gibbs_program(built.graph, clamped=[0])
    together = values_for(built.graph, 70)
    apart = [value.clone() for value in together]
    changes, performed = built.mean_field(program, together, 30, tolerance=1e-3)
    for first, last in ((0, 1), (1, 40), (40, 70)):
        part = [value[first:last].contiguous() for value in apart]
        part_changes, part_performed = built.mean_field(program, part, 30, tolerance=1e-3)
        assert torch.equal(part_changes, changes[first:last])
        assert torch.equal(part_performed, performed[first:last])
        for value, other in zip(part, together, strict=True):
            assert torch.equal(value, other[first:last])


def test_the_number_of_threads_changes_nothing() -> None:
    built = big_machine((200, 150, 300))
    program, results = gibbs_program(built.graph, clamped=[0]), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        values = values_for(built.graph, 100)
        built.mean_field(program, values, 8)
        results.append(values)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


_ON_ISA = """
import torch
from test_mean_field import big_machine, values_for
from bm_fast.program import gibbs_program
built = big_machine()
values = values_for(built.graph, 50)
built.mean_field(gibbs_program(built.graph, clamped=[0]), values, 100, tolerance=1e-6)
torch.save(values, {path!r})
"""


def test_instruction_sets_come_to_rest_at_the_same_point(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from bm_fast.ops import info

    expected = values_for(big_machine().graph, 50)
    big_machine().mean_field(gibbs_program(big_machine().graph, clamped=[0]), expected, 100, tolerance=1e-6)
    for isa in info()["isas_usable"]:
        path = f"{tmp_path}/{isa}.pt"
        monkeypatch.setenv("BM_FAST_ISA", isa)
        subprocess.run([sys.executable, "-c", _ON_ISA.format(path=path)], check=True, cwd=__file__.rsplit("/", 1)[0])
        assert largest_difference(torch.load(path), expected).max() <= AT_REST


def test_upward_pass_makes_up_for_the_layers_above() -> None:
    program = mean_field.upward_program(GRAPHS["dbm4"], [0])
    scales = [[source.scale for source in update.inputs] for (update,) in program]
    assert scales == [[2.0], [2.0], [1.0]]


@pytest.mark.parametrize("units", [(150, 70, 131, 66), (33, 20)])
@pytest.mark.parametrize("iterations", [1, 4])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_a_start_is_the_pass_before_the_iterations(units: tuple[int, ...], iterations: int, damping: float) -> None:
    built = big_machine(units)
    program, start = gibbs_program(built.graph, clamped=[0]), mean_field.upward_program(built.graph, [0])
    values = values_for(built.graph, 67)
    passed, _ = run_reference_program(built, start, values, 1)
    expected, last = run_reference_program(built, program, passed, iterations, damping=damping)
    changes, performed = built.mean_field(program, values, iterations, start=start, damping=damping)
    assert bool((performed == iterations).all())
    assert bool((largest_difference(values, expected) <= SHARE_OF_CHANGE * last + AT_REST).all())
    assert bool(((changes - last).abs() <= 2 * (SHARE_OF_CHANGE * last + AT_REST)).all())


def test_a_start_needs_no_values_and_serves_every_graph(backend: str) -> None:
    for graph in GRAPHS.values():
        built = machine(graph, coupling_sd=0.4)
        program, start = gibbs_program(graph, clamped=[0]), mean_field.upward_program(graph, [0])
        values = values_for(graph, 9)
        other = [values[0], *(torch.rand_like(value) for value in values[1:])]
        built.mean_field(program, values, 60, start=start)
        built.mean_field(program, other, 60, start=start)
        assert all(torch.equal(a, b) for a, b in zip(values, other, strict=True))


def test_an_iteration_from_the_point_of_rest_stays_there() -> None:
    built = big_machine()
    values = values_for(built.graph, 10)
    rest, last = run_reference(built, values, 150)
    assert last.max() < 1e-6
    values = [value.clone() for value in rest]
    changes, _ = built.mean_field(gibbs_program(built.graph, clamped=[0]), values, 1)
    assert float(changes.max()) <= AT_REST
    assert largest_difference(values, rest).max() <= AT_REST


def test_a_start_may_leave_an_input_out_by_the_scale_0(backend: str) -> None:
    built = machine(GRAPHS["dbm3"])
    above = Update(2, (Input(1, False),))
    program = ((Update(1, (Input(0, False, 0.0), Input(1, True))),), (above,))
    values = values_for(built.graph, 4)
    built.mean_field(program, values, 60, start=((Update(1, (Input(0, False, 0.0),)),), (above,)))
    other = [1 - values[0], *(value.clone() for value in values[1:])]
    built.mean_field(program, other, 1)
    assert largest_difference(values, other).max() <= AT_REST


def test_a_start_that_is_no_pass_outwards_is_refused() -> None:
    built = machine(GRAPHS["dbm3"])
    program, start = gibbs_program(built.graph, clamped=[0]), mean_field.upward_program(built.graph, [0])
    values = values_for(built.graph, 2)
    uneven = ((Update(1, (Input(0, False, 2.0), Input(1, True, 1.0))),), start[1])
    for bad, message in (
        (start[:1], r"start: expected all layers of the program, got none of the layers \[2\]"),
        (start[::-1], "start: layer 2: expected the inputs that the program has"),
        (uneven, "start: layer 1: expected the inputs that the program has"),
        ((*start, (Update(0, (Input(0, True),)),)), "start: layer 0: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            built.mean_field(program, values, 2, start=bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iterations": 0}, "iterations: expected 1 to"),
        ({"iterations": 2.5}, "iterations: expected a whole number"),
        ({"tolerance": -1.0}, "tolerance: expected 0 to below 1, got -1.0"),
        ({"tolerance": float("nan")}, "tolerance: expected 0 to below 1, got nan"),
        ({"damping": 1.0}, "damping: expected 0 to below 1, got 1.0"),
    ],
)
def test_bad_arguments(arguments: dict[str, float], message: str) -> None:
    built = machine(GRAPHS["dbm3"])
    with pytest.raises(ValueError, match=message):
        built.mean_field(
            gibbs_program(built.graph, clamped=[0]), values_for(built.graph, 2), **{"iterations": 3} | arguments
        )


def test_bad_values(backend: str) -> None:
    built = machine(GRAPHS["dbm3"])
    program = gibbs_program(built.graph, clamped=[0])
    values = values_for(built.graph, 2)
    with pytest.raises(ValueError, match=r"values\[1\] \(hidden1\), which the program updates: .*torch.float32"):
        built.mean_field(program, [values[0], values[1].to(torch.uint8), values[2]], 3)
    with pytest.raises(ValueError, match=r"values\[2\] \(hidden2\): expected a contiguous"):
        built.mean_field(program, [values[0], values[1], values[2][:, :1]], 3)


def test_means_that_are_not_finite_are_refused() -> None:
    built = machine(GRAPHS["dbm3"])
    values = values_for(built.graph, 2)
    values[2][1, 0] = float("nan")
    with pytest.raises(ValueError, match=r"hidden2.*finite"):
        built.mean_field(gibbs_program(built.graph, clamped=[0]), values, 3)
