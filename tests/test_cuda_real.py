"""The CUDA kernels for real values, emulated on the host, beside the processor: draws, means and mean field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bm_fast import Chains, Graph, Kind, Layer, Machine, chain_graph
from bm_fast.parameters import MAX_WEIGHT
from bm_fast.program import Input, Program, Update, full_update, gibbs_program
from cuda_runner import ORDERS, operate, real_case, taken
from engine_cases import make_machine, tree

SEED, FIRST_CHAIN, FIRST_SWEEP = 2**63 + 12345, 77, 5


@dataclass
class RealCase:
    """Values of all layers of a machine, and what is made of them."""

    machine: Machine
    program: Program
    values: list[Tensor]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def n_chains(self) -> int:
        return self.values[0].shape[0]

    def arguments(self) -> list[int | Tensor | None]:
        return real_case(self.machine, self.program, self.values, **self.options)


def case(machine: Machine, n_chains: int, real: tuple[int, ...], options: str = "", **others: Any) -> RealCase:
    """Random bits, numbers from 0 to 1 in the real binary layers, normal ones in Gaussian layers."""
    g, layers, values = torch.Generator().manual_seed(1), machine.graph.layers, []
    for i, layer in enumerate(layers):
        uniform = torch.rand(n_chains, layer.units, generator=g)
        if layer.kind is Kind.GAUSSIAN:
            values.append(3 * torch.randn(n_chains, layer.units, generator=g))
        elif layer.kind is Kind.SOFTMAX and i not in real:
            values.append(torch.eye(layer.units, dtype=torch.uint8)[uniform.argmax(1)])
        else:
            values.append(uniform if i in real else (uniform < 0.4).to(torch.uint8))
    chosen: dict[str, Any] = {}
    if "beta" in options or "base" in options:
        chosen["beta"] = torch.rand(n_chains, generator=g) * 1.5 + 0.01
    if "base" in options:
        chosen["base"] = [torch.randn(layer.units, generator=g) for layer in layers]
    if "clamp" in options:
        held = [0, *(i for i, layer in enumerate(layers) if layer.kind is Kind.SOFTMAX)]
        chosen["clamp"] = {i: (torch.rand(values[i].shape, generator=g) < 0.4).to(torch.uint8) * 3 for i in held}
    return RealCase(machine, others.get("program", gibbs_program(machine.graph)), values, chosen)


def gaussian(*sizes: int, scale: float = 0.2) -> Machine:
    layers = (Layer("v", sizes[0], Kind.GAUSSIAN), *(Layer(f"h{i}", n) for i, n in enumerate(sizes[1:], 1)))
    return make_machine(Graph(layers, chain_graph(sizes).couplings), scale=scale)


# --- means of a layer given real values ------------------------------------------------------------------------------


def up(machine: Machine, n_chains: int, options: str = "", layer: int = 1) -> RealCase:
    return case(machine, n_chains, (0, 2, 3, 4), options, program=((full_update(machine.graph, layer),),))


def extreme_fan_in() -> RealCase:
    """The largest fan-in with the largest weights and values: sums at the limits of int32."""
    n = 65_536
    graph = chain_graph((n, 3))
    weights = torch.full((n, 3), float(MAX_WEIGHT))
    weights[:, 1] *= -1
    weights[::2, 2] *= -1
    top = 8_355_711.0
    values = torch.full((4, n), top)
    values[1] = -top
    values[2, : n // 2] = 1.0
    values[3] = 127 * 65536 - 128 * 256 - 128
    total = values.double() @ weights.double()
    biases = [torch.zeros(n), -total[0].float()]
    machine = Machine.build(graph, [weights], biases)
    return RealCase(machine, ((full_update(graph, 1),),), [values, torch.zeros(4, 3, dtype=torch.uint8)])


MEANS: dict[str, Callable[[], RealCase]] = {
    "one unit": lambda: up(make_machine(chain_graph((1, 1))), 1),
    "ragged": lambda: up(make_machine(chain_graph((130, 65))), 35, "beta"),
    "many inputs": lambda: up(make_machine(chain_graph((784, 67)), scale=0.1), 19),
    "binary and real": lambda: case(
        make_machine(chain_graph((150, 33, 140))),
        33,
        (0,),
        "base",
        program=((full_update(chain_graph((1, 1, 1)), 1),),),
    ),
    "top of a tree": lambda: up(make_machine(tree()), 7, "base", layer=4),
    "down": lambda: up(make_machine(chain_graph((70, 129))), 17, "beta", layer=0),
    "scaled": lambda: case(
        make_machine(chain_graph((131, 67))), 9, (0,), program=((Update(1, (Input(0, False, 0.3),)),),)
    ),
    "Gaussian input": lambda: up(gaussian(200, 67), 21, "beta"),
    "Gaussian from bits": lambda: case(
        gaussian(67, 200), 21, (), "beta", program=((full_update(chain_graph((1, 1)), 0),),)
    ),
    "extreme fan-in": extreme_fan_in,
}


@cache
def of(name: str, cases: str = "means") -> RealCase:
    return {"means": MEANS, "sweeps": SWEEPS, "mean field": MEAN_FIELD}[cases][name]()


def means_by_runner(program: list[str], folder: Path, name: str, order: str = "fair") -> Tensor:
    c = of(name)
    updated = c.program[0][0].layer
    data = operate(program, folder, "real_sweep", *c.arguments(), SEED, FIRST_CHAIN, FIRST_SWEEP, 0, order=order)
    shapes = list[tuple[torch.dtype, Any]]()
    for i, value in enumerate(c.values):
        shapes += [(value.dtype, value.shape)] + [(torch.float32, value.shape)] * (i == updated)
    got = taken(data, *shapes)
    for i, value in enumerate(c.values):
        assert torch.equal(got[i + (i > updated)], value)
    return got[updated + 1]


def exact_means(c: RealCase) -> Tensor:
    """In float64, of what the kernels specify."""
    update, p = c.program[0][0], c.machine.parameters
    x = p.biases[update.layer].double().expand(c.n_chains, -1)
    for source in update.inputs:
        coupling, weight = p.graph.couplings[source.coupling], p.weight(source.coupling).double()
        other = c.values[coupling.upper if source.transposed else coupling.lower].double()
        x = x + source.scale * (other @ (weight.T if source.transposed else weight))
    beta, base, precision = c.options.get("beta"), c.options.get("base"), p.precisions[update.layer]
    if beta is not None:
        x = beta[:, None].double() * x
        if base is not None:
            x = x + (1 - beta[:, None].double()) * base[update.layer].double()
    if precision is None:
        return x.sigmoid()
    return x / (precision.double() if beta is None or base is not None else beta[:, None].double() * precision.double())


@pytest.mark.parametrize(
    ("name", "order"), [(n, o) for n in MEANS for o in (ORDERS if n != "extreme fan-in" else ["fair", "random:1"])]
)
def test_means_given_real_values(plain: list[str], tmp_path: Path, name: str, order: str) -> None:
    """Within the tolerance of docs/numbers.md, of the processor and of float64."""
    c, got = of(name), means_by_runner(plain, tmp_path, name, order)
    if name == "extreme fan-in":  # fields of 10^16: nothing but the exact sum, rounded once, can cancel the bias
        total = c.values[0].double() @ c.machine.parameters.weights[0].double()
        signs = (total.float() + c.machine.parameters.biases[1]).sign()
        assert torch.equal(signs[0], torch.zeros(3))
        torch.testing.assert_close(got, (signs + 1) / 2, rtol=0, atol=1e-15)
        return
    wanted = c.machine.layer_means(c.program[0][0], c.values, **{k: v for k, v in c.options.items() if k != "clamp"})
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if name == "Gaussian from bits" else {"rtol": 0, "atol": 2e-6}
    torch.testing.assert_close(got, wanted, **tolerance)
    torch.testing.assert_close(got.double(), exact_means(c), **tolerance)


# --- sweeps ----------------------------------------------------------------------------------------------------------

SWEEPS: dict[str, Callable[[], RealCase]] = {
    "Gaussian": lambda: case(gaussian(33, 70), 19, (), "beta"),
    "Gaussian, clamped": lambda: case(gaussian(67, 130), 18, (), "base clamp"),
    "deep": lambda: case(gaussian(35, 20, 17), 21, ()),
    "many Gaussian units": lambda: case(gaussian(1103, 9, scale=0.02), 2, ()),
    "many hidden units": lambda: case(gaussian(9, 1103), 2, ()),
    "bits alone": lambda: case(make_machine(chain_graph((131, 67))), 34, (), "base clamp"),
}


def swept(program: list[str], folder: Path, name: str, n_sweeps: int, order: str) -> None:
    c = of(name, "sweeps")
    chains = Chains(tuple(v.clone() for v in c.values), SEED, FIRST_SWEEP, FIRST_CHAIN)
    means = {i: torch.zeros(v.shape) for i, v in enumerate(c.values)}
    c.machine.sweep(c.program, chains, n_sweeps, means=means, **c.options)
    data = operate(program, folder, "real_sweep", *c.arguments(), SEED, FIRST_CHAIN, FIRST_SWEEP, n_sweeps, order=order)
    shapes = [(dtype, v.shape) for v in c.values for dtype in (v.dtype, torch.float32)]
    for i, (states, of_layer) in enumerate(zip(*[iter(taken(data, *shapes))] * 2, strict=True)):
        exact = all(v.dtype is torch.uint8 for v in c.values)
        if states.dtype is torch.uint8:  # with real inputs, equal but for fields in a thin band, which are not here
            assert torch.equal(states, chains.layers[i])
        else:
            torch.testing.assert_close(states, chains.layers[i], rtol=1e-5, atol=1e-5)
        if exact:
            assert torch.equal(of_layer, means[i])
        else:
            torch.testing.assert_close(of_layer, means[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", SWEEPS)
def test_sweeps_with_real_layers(plain: list[str], tmp_path: Path, name: str, order: str) -> None:
    swept(plain, tmp_path, name, 2, order)


# --- mean field ------------------------------------------------------------------------------------------------------

MEAN_FIELD: dict[str, Callable[[], RealCase]] = {
    "two hidden layers": lambda: case(
        make_machine(chain_graph((70, 65, 33)), scale=0.3),
        37,
        (1, 2),
        program=gibbs_program(chain_graph((1, 1, 1)), [0]),
    ),
    "grey pixels": lambda: case(
        make_machine(chain_graph((70, 65, 33)), scale=0.1),
        37,
        (0, 1, 2),
        "beta",
        program=gibbs_program(chain_graph((1, 1, 1)), [0]),
    ),
    "missing pixels": lambda: case(make_machine(chain_graph((70, 65)), scale=0.1), 18, (0, 1), "clamp base"),
    "Gaussian": lambda: case(gaussian(40, 33, scale=0.05), 18, (0, 1)),
    "deep": lambda: case(gaussian(520, 70, scale=0.02), 5, (0, 1), program=((full_update(chain_graph((1, 1)), 1),),)),
}


def mean_field_by_layer_means(c: RealCase, n_sweeps: int, damping: float, tolerance: float) -> list[Tensor]:
    """The same by single operations of the processor."""
    values, clamp = [v.clone() for v in c.values], c.options.get("clamp", {})
    options = {k: v for k, v in c.options.items() if k != "clamp"}
    last, settled = torch.zeros(c.n_chains), torch.zeros(c.n_chains, dtype=torch.int32)
    sweeps = torch.zeros(c.n_chains, dtype=torch.int32)
    for _ in range(n_sweeps):
        changes = torch.zeros(c.n_chains)
        for update in (update for block in c.program for update in block):
            old = values[update.layer]
            new = c.machine.layer_means(update, values, **options)
            new = damping * (old - new) + new
            held = settled[:, None].bool()
            if update.layer in clamp:
                held = held | clamp[update.layer].bool()
            values[update.layer] = torch.where(held, old, new)
            changes = torch.maximum(changes, (values[update.layer] - old).abs().amax(1))
        last = torch.where(settled.bool(), last, changes)
        sweeps += settled == 0
        settled |= (changes <= tolerance).int()
    return [*values, last, settled, sweeps]


def mean_field_by_runner(
    program: list[str], folder: Path, c: RealCase, n_sweeps: int, damping: float, tolerance: float, order: str
) -> list[Tensor]:
    data = operate(
        program, folder, "mean_field", *c.arguments(), n_sweeps, torch.tensor([damping, tolerance]), order=order
    )
    of_chains = [(torch.float32, (c.n_chains,)), (torch.int32, (c.n_chains,)), (torch.int32, (c.n_chains,))]
    return taken(data, *((v.dtype, v.shape) for v in c.values), *of_chains)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "order"), [(n, o) for i, n in enumerate(MEAN_FIELD) for o in (ORDERS[0], ORDERS[i % 4])]
)
def test_mean_field(plain: list[str], tmp_path: Path, name: str, order: str, damping: float) -> None:
    c = of(name, "mean field")
    got = mean_field_by_runner(plain, tmp_path, c, 6, damping, -1.0, order)
    wanted = mean_field_by_layer_means(c, 6, damping, -1.0)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)


def test_settled_chains_stay(plain: list[str], tmp_path: Path) -> None:
    """Chains stop when they have converged, each after its own number of sweeps, at a fixed point."""
    c = of("two hidden layers", "mean field")
    *means, last, settled, sweeps = mean_field_by_runner(plain, tmp_path, c, 40, 0.0, 1e-5, "fair")
    assert bool((settled == 1).all())
    assert len(sweeps.unique()) > 1
    assert int(sweeps.max()) < 40
    assert bool((last <= 1e-5).all())
    for update in (update for block in c.program for update in block):
        again = c.machine.layer_means(update, means)
        torch.testing.assert_close(again, means[update.layer], rtol=0, atol=2e-5)
    chain = int(sweeps.argmin())
    fewer = mean_field_by_runner(plain, tmp_path, c, int(sweeps[chain]), 0.0, 1e-5, "fair")
    assert all(torch.equal(a[chain], b[chain]) for a, b in zip(fewer, [*means, last, settled, sweeps], strict=True))


def test_values_that_are_not_finite_are_not_hidden(plain: list[str], tmp_path: Path) -> None:
    c = case(make_machine(chain_graph((40, 8))), 5, (0, 1), program=((full_update(chain_graph((1, 1)), 1),),))
    c.values[0][3, 7] = float("inf")
    c.values[0][1, 9] = float("nan")
    data = operate(plain, tmp_path, "mean_field", *c.arguments(), 1, torch.tensor([0.0, 1e-3]))
    *values, changes, settled, _ = taken(
        data,
        *((torch.float32, v.shape) for v in c.values),
        (torch.float32, (5,)),
        (torch.int32, (5,)),
        (torch.int32, (5,)),
    )
    assert values[1].isnan().all(1).tolist() == [False, True, False, True, False]
    assert changes.isnan().tolist() == [False, True, False, True, False]
    assert not settled[[1, 3]].any()


@pytest.mark.parametrize("order", ["fair", "random:3"])
def test_sanitizers_find_nothing(sanitized: list[str], tmp_path: Path, order: str) -> None:
    swept(sanitized, tmp_path, "Gaussian, clamped", 1, order)
    mean_field_by_runner(sanitized, tmp_path, of("missing pixels", "mean field"), 1, 0.3, 0.0, order)
