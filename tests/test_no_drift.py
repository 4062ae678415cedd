"""Chains that start exactly at p stay at p: for every graph, operator and backend; broken kernels do not.

Chains start from enumerated probabilities, so slow mixing can neither hide a fault nor raise an alarm. The yardstick is
``variation_ratio`` with its bound of 1.3: exact kernels give 0.80, with a standard deviation of at most 0.07 over all
cases here: any of them fails by chance less than once in 10^10 runs. Moments may lie 5.5 standard errors off,
which happens less than once in 10^5 runs of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from bm_fast import Chains, Machine
from bm_fast.graph import Graph
from bm_fast.program import Program, gibbs_program
from bm_fast.reference import programs
from enumeration import DRIFT_BOUND, GRAPHS, Truth, enumerate_machine, largest_z, machine, variation_ratio

LARGEST_Z = 5.5
CHECKS = (1, 1, 6)  # sweeps between looks: after 1, 2 and 8 sweeps

Sweep = Callable[..., None]


@pytest.fixture
def n_chains(backend: str) -> int:
    """Selects a backend; the number of chains to run on it."""
    return 20_001 if backend == "reference" else 40_002


@dataclass
class Case:
    """Chains at their exact distribution, and what may be asked of them later.

    group: int64 ``[n_chains]``; p: per group the probabilities of all states, which the chains of the group must keep.
    """

    machine: Machine
    program: Program
    truth: Truth
    chains: Chains
    p: list[torch.Tensor]
    group: torch.Tensor
    arguments: dict[str, Any] = field(default_factory=dict)

    def ratio(self) -> float:
        """Total variation of (group, state) over its floor."""
        shares = torch.bincount(self.group, minlength=len(self.p)).double() / len(self.group)
        joint = torch.cat([share * p for share, p in zip(shares, self.p, strict=True)])
        numbers = self.truth.numbers(self.chains.layers) + self.group * len(self.truth.p)
        return variation_ratio(joint, numbers)


def case(graph: Graph, program: Program, n_chains: int, p: list[torch.Tensor] | None = None, **arguments: Any) -> Case:
    """Chain i starts from p[i % groups]; by default from the machine's own distribution."""
    built = machine(graph)
    truth = enumerate_machine(built)
    p = p or [truth.p]
    group = torch.arange(n_chains) % len(p)
    generator = torch.Generator().manual_seed(1)
    rows = torch.empty(n_chains, dtype=torch.int64)
    for g, each in enumerate(p):
        members = group == g
        rows[members] = torch.multinomial(each, int(members.sum()), replacement=True, generator=generator)
    return Case(built, program, truth, Chains(truth.layers(rows), seed=7), p, group, arguments)


def exact(machine: Machine, program: Program, chains: Chains, n_sweeps: int, **arguments: Any) -> None:
    machine.sweep(program, chains, n_sweeps, **arguments)


def drift(at_p: Case, sweep: Sweep = exact) -> float:
    """The largest ratio seen while the sweeps run."""
    ratios = []
    for n_sweeps in CHECKS:
        sweep(at_p.machine, at_p.program, at_p.chains, n_sweeps, **at_p.arguments)
        ratios.append(at_p.ratio())
    return max(ratios)


# --- operators --------------------------------------------------------------------------------------------------------


def gibbs(graph: Graph, n_chains: int) -> Case:
    return case(graph, gibbs_program(graph), n_chains)


def clamped_layer(graph: Graph, n_chains: int) -> Case:
    return case(graph, gibbs_program(graph, clamped=[0]), n_chains)


def clamp_masks(graph: Graph, n_chains: int) -> Case:
    """Three groups of chains with other units held at other values, one group without any."""
    built, sizes = machine(graph), [layer.units for layer in graph.layers]
    truth, units = enumerate_machine(built), sum(sizes)
    generator = torch.Generator().manual_seed(5)
    held = torch.zeros(3, units, dtype=torch.bool)
    held[0, [0, units - 1]] = True
    held[1, [1, units // 2]] = True
    values = torch.randint(2, (3, units), generator=generator).to(torch.uint8)
    p = [truth.given(values[g], held[g]) for g in range(3)]
    masks = held[torch.arange(n_chains) % 3].to(torch.uint8).split(sizes, 1)
    return case(graph, gibbs_program(graph), n_chains, p, clamp={i: mask.contiguous() for i, mask in enumerate(masks)})


def per_chain_beta(graph: Graph, n_chains: int) -> Case:
    betas = (0.3, 1.0, 1.5)
    p = [enumerate_machine(machine(graph), beta).p for beta in betas]
    return case(graph, gibbs_program(graph), n_chains, p, beta=torch.tensor(betas).repeat(n_chains // 3))


def base_path(graph: Graph, n_chains: int) -> Case:
    betas = (0.0, 0.4, 1.0)
    generator = torch.Generator().manual_seed(3)
    base = [torch.randn(layer.units, generator=generator) for layer in graph.layers]
    p = [enumerate_machine(machine(graph), beta, base).p for beta in betas]
    return case(graph, gibbs_program(graph), n_chains, p, beta=torch.tensor(betas).repeat(n_chains // 3), base=base)


OPERATORS = (gibbs, clamped_layer, clamp_masks, per_chain_beta, base_path)


@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
@pytest.mark.parametrize("name", GRAPHS)
def test_stays_at_p(name: str, operator: Callable[[Graph, int], Case], n_chains: int) -> None:
    at_p = operator(GRAPHS[name], n_chains)
    assert at_p.ratio() < DRIFT_BOUND, "the chains did not start at p: the test itself is at fault"
    assert drift(at_p) < DRIFT_BOUND


@pytest.mark.parametrize(
    ("name", "last"), [(name, i) for name, graph in GRAPHS.items() for i in range(len(graph.layers))]
)
def test_order_of_colours_does_not_matter(name: str, last: int, n_chains: int) -> None:
    graph = GRAPHS[name]
    program = gibbs_program(graph, last=last)
    assert last in [update.layer for update in program[-1]]
    assert drift(case(graph, program, n_chains)) < DRIFT_BOUND


@pytest.mark.parametrize("name", GRAPHS)
def test_clamped_units_keep_their_values(name: str, n_chains: int) -> None:
    at_p = clamp_masks(GRAPHS[name], n_chains)
    before = at_p.chains.clone()
    exact(at_p.machine, at_p.program, at_p.chains, 3, **at_p.arguments)
    for i, mask in at_p.arguments["clamp"].items():
        held = mask.bool()
        assert torch.equal(at_p.chains.layers[i][held], before.layers[i][held])
    at_p = clamped_layer(GRAPHS[name], n_chains)
    before = at_p.chains.clone()
    exact(at_p.machine, at_p.program, at_p.chains, 3)
    assert torch.equal(at_p.chains.layers[0], before.layers[0])
    assert not torch.equal(at_p.chains.layers[1], before.layers[1])


def pair_z(at_p: Case, pairs: list[tuple[int, int]]) -> float:
    """Largest z over all moments <x_i x_j> of units in two layers, for each pair of layers."""
    states = [layer.double() for layer in at_p.truth.layers(torch.arange(len(at_p.truth.p)))]
    worst = 0.0
    for a, b in pairs:
        expected = torch.einsum("s,si,sj->ij", at_p.truth.p, states[a], states[b]).flatten()
        products = (at_p.chains.layers[a][:, :, None] * at_p.chains.layers[b][:, None, :]).flatten(1)
        worst = max(worst, largest_z(products, expected))
    return worst


@pytest.mark.parametrize("name", GRAPHS)
def test_pair_moments_of_every_coupling(name: str, n_chains: int) -> None:
    graph = GRAPHS[name]
    at_p = gibbs(graph, n_chains)
    exact(at_p.machine, at_p.program, at_p.chains, 4)
    assert pair_z(at_p, [(c.lower, c.upper) for c in graph.couplings]) < LARGEST_Z


# --- broken kernels ---------------------------------------------------------------------------------------------------


def synchronous(machine: Machine, program: Program, chains: Chains, n_sweeps: int, **arguments: Any) -> None:
    """All layers at once, each from the old states of the others."""
    for _ in range(n_sweeps):
        old = chains.clone()
        for block in program:
            alone = old.clone()
            machine.sweep((block,), alone, 1, **arguments)
            for update in block:
                chains.layers[update.layer].copy_(alone.layers[update.layer])
        chains.sweep += 1


def forgets(name: str) -> Sweep:
    def sweep(machine: Machine, program: Program, chains: Chains, n_sweeps: int, **arguments: Any) -> None:
        assert name in arguments
        machine.sweep(program, chains, n_sweeps, **{key: each for key, each in arguments.items() if key != name})

    return sweep


def other_grid(machine: Machine, program: Program, chains: Chains, n_sweeps: int, **arguments: Any) -> None:
    """The last colour sees weights of another, coarser grid than the colours before it."""
    parameters = machine.parameters
    whole = tuple(
        (w.float() / 2.0**f).round().to(torch.int16)
        for w, f in zip(parameters.weights, parameters.fraction_bits, strict=True)
    )
    coarse = Machine(replace(parameters, weights=whole, fraction_bits=(0,) * len(whole)))
    for _ in range(n_sweeps):
        machine.sweep(program[:-1], chains, 1, **arguments)
        chains.sweep -= 1
        coarse.sweep(program[-1:], chains, 1, **arguments)


@contextmanager
def random_words(change: Callable[..., dict[str, int]]) -> Iterator[None]:
    """The reference with part of the counter of its random numbers held fixed."""
    original = programs.random_words

    def changed(units: int, chains: torch.Tensor, sweep: int, layer: int, purpose: Any, seed: int) -> torch.Tensor:
        return original(
            units, chains, **{"sweep": sweep, "layer": layer, **change(sweep, layer)}, purpose=purpose, seed=seed
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "random_words", changed)
        yield


def reuses_numbers_in_layers(*positional: Any, **arguments: Any) -> None:
    with random_words(lambda sweep, layer: {"layer": 0}):
        exact(*positional, **arguments)


def reuses_numbers_in_sweeps(*positional: Any, **arguments: Any) -> None:
    with random_words(lambda sweep, layer: {"sweep": 0}):
        exact(*positional, **arguments)


BROKEN = {
    "synchronous": (synchronous, gibbs),
    "beta forgotten": (forgets("beta"), per_chain_beta),
    "base forgotten": (forgets("base"), base_path),
    "clamp mask ignored": (forgets("clamp"), clamp_masks),
    "another grid one way": (other_grid, gibbs),
    "random numbers reused in layers": (reuses_numbers_in_layers, gibbs),
    "random numbers reused in sweeps": (reuses_numbers_in_sweeps, gibbs),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", GRAPHS)
def test_broken_kernels_drift(name: str, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BM_FAST_BACKEND", "reference")
    sweep, operator = BROKEN[broken]
    assert drift(operator(GRAPHS[name], 40_002), sweep) > DRIFT_BOUND


def test_moments_within_a_colour_cannot_see_a_synchronous_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the moments above are those of couplings: the others stay right when all layers move at once."""
    monkeypatch.setenv("BM_FAST_BACKEND", "reference")
    at_p = gibbs(GRAPHS["dbm3"], 20_001)
    synchronous(at_p.machine, at_p.program, at_p.chains, 4)
    assert pair_z(at_p, [(0, 2)]) < LARGEST_Z
    assert pair_z(at_p, [(0, 1), (1, 2)]) > 2 * LARGEST_Z
