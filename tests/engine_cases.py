"""Runs of every native operation on small machines, as digests that any backend must reproduce bit for bit.

``python tests/engine_cases.py`` prints them as JSON, for the backend and the instruction set that the environment asks
for. Names that begin with "real" concern real-valued units: there only the instruction sets must agree with each other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import torch
from torch import Tensor

from bm_fast import Coupling, Graph, Kind, Layer, Machine, chain_graph, ops
from bm_fast.parameters import MAX_WEIGHT
from bm_fast.program import Input, Program, Update, full_update, gibbs_program

SIZES = ((1, 1), (3, 4), (5, 63), (64, 65), (65, 129), (257, 3), (300, 513))

FAR = 1e7  # a bias that makes floats so coarse that draws of its layer take no rounded sums


def make_machine(
    graph: Graph, seed: int = 0, scale: float = 0.4, device: torch.device | str = "cpu", *, far: bool = False
) -> Machine:
    """far: draws take no rounded sums."""
    g = torch.Generator().manual_seed(seed)
    weights = [
        scale * torch.randn(graph.layers[c.lower].units, graph.layers[c.upper].units, generator=g)
        for c in graph.couplings
    ]
    biases = [0.5 * torch.randn(layer.units, generator=g) for layer in graph.layers]
    for bias in biases if far else []:
        bias[-1] = FAR
    precisions = [
        0.5 + torch.rand(layer.units, generator=g) if layer.kind is Kind.GAUSSIAN else None for layer in graph.layers
    ]
    there = [[None if t is None else t.to(device) for t in tensors] for tensors in (weights, biases, precisions)]
    return Machine.build(graph, *there)


def calm(graph: Graph, seed: int = 0) -> Machine:
    """A machine with such fields that far fewer of its units flip in a sweep than are on, as after training."""
    g = torch.Generator().manual_seed(seed)
    weights = [
        8
        * graph.layers[c.lower].units ** -0.5
        * torch.randn(graph.layers[c.lower].units, graph.layers[c.upper].units, generator=g)
        for c in graph.couplings
    ]
    biases = [2 + torch.randn(layer.units, generator=g) for layer in graph.layers]
    precisions = [torch.ones(layer.units) if layer.kind is Kind.GAUSSIAN else None for layer in graph.layers]
    return Machine.build(graph, weights, biases, precisions)


def tree() -> Graph:
    """Two pathways of two layers each, joined by a shared top layer."""
    units = {"image": 70, "image_hidden": 33, "text": 20, "text_hidden": 9, "joint": 31}
    couplings = (Coupling(0, 1), Coupling(2, 3), Coupling(1, 4), Coupling(3, 4))
    return Graph(tuple(Layer(name, n) for name, n in units.items()), couplings)


def categories() -> Graph:
    """Softmax layers of one and of two tiles of units, coupled to each other and to a binary layer."""
    layers = (Layer("visible", 50), Layer("labels", 10, Kind.SOFTMAX), Layer("words", 70, Kind.SOFTMAX))
    return Graph(layers, (Coupling(0, 1), Coupling(1, 2)))


def run(
    machine: Machine, n_chains: int, n_sweeps: int, *, program: Program | None = None, options: str = ""
) -> list[Tensor]:
    """States, means and energies after some sweeps. Options: words of "beta", "base", "clamp"."""
    graph, g = machine.graph, torch.Generator().manual_seed(1)
    chains = machine.chains(n_chains, seed=2**63 + 12345, first_chain=77)
    beta = torch.rand(n_chains, generator=g) * 1.5 + 0.01 if "beta" in options or "base" in options else None
    beta = None if beta is None else beta.to(machine.device)
    base = None
    if "base" in options:
        base = [torch.randn(layer.units, generator=g).to(machine.device) for layer in graph.layers]
    clamp = {}
    if "clamp" in options:
        for i in (0, len(graph.layers) - 1):
            shape = (n_chains, graph.layers[i].units)
            clamp[i] = ((torch.rand(shape, generator=g) < 0.4).to(torch.uint8) * 3).to(machine.device)
    program = gibbs_program(graph) if program is None else program
    updated = {update.layer for block in program for update in block}
    means = {i: torch.zeros(n_chains, graph.layers[i].units, device=machine.device) for i in updated}
    machine.sweep(program, chains, n_sweeps, beta=beta, base=base, clamp=clamp, means=means)
    return [*chains.layers, *(means[i] for i in sorted(means)), machine.energy(chains.layers)]


def tempered(machine: Machine, n_ladders: int, *, with_base: bool = False) -> list[Tensor]:
    """States, rungs, counts and gaps after some rounds of parallel tempering on ladders of seven rungs."""
    n_rungs, g, device = 7, torch.Generator().manual_seed(4), machine.device
    base = [torch.randn(layer.units, generator=g).to(device) for layer in machine.graph.layers] if with_base else None
    chains = machine.chains(n_ladders * n_rungs, seed=2**63 + 9)
    rungs = ops.Rungs.start(n_ladders, n_rungs, device)
    trace = torch.zeros(6, n_ladders, n_rungs, dtype=torch.float64, device=device)
    gap, betas = ops.EnergyGap(machine, base), torch.linspace(0.05, 1, n_rungs).to(device)
    ops.temper(gap, chains, rungs, betas, 6, sweeps=2, trace=trace)
    return [*chains.layers, rungs.rungs, rungs.trips, rungs.attempts, rungs.acceptances.view(torch.int64),
            trace.view(torch.int64), gap.of(chains.layers).view(torch.int64)]  # fmt: skip


def annealed(machine: Machine, n_chains: int) -> tuple[list[Tensor], Tensor]:
    """States and log weights after annealing down from the machine and up again."""
    g = torch.Generator().manual_seed(5)
    base = [torch.randn(layer.units, generator=g) for layer in machine.graph.layers]
    betas = torch.cat([torch.linspace(1, 0.2, 5), torch.linspace(0.2, 1, 20)])
    chains, log_weights = machine.chains(n_chains, seed=11), torch.zeros(n_chains, dtype=torch.float64)
    ops.anneal(machine, gibbs_program(machine.graph), chains, betas, log_weights, base=base)
    return list(chains.layers), log_weights


def extreme_fan_in() -> list[Tensor]:
    """The largest fan-in with the largest weights: sums at the limits of int32."""
    n = 65_536
    graph = chain_graph((n, 3))
    weights = torch.full((n, 3), float(MAX_WEIGHT))
    weights[:, 1] *= -1
    weights[::2, 2] *= -1
    # the biases cancel the sums but for a field that leaves the decision open
    biases = [torch.zeros(n), torch.tensor([-1.0, 1.0, 0.0]) * MAX_WEIGHT * n]
    machine = Machine.build(graph, [weights], biases)
    many = 41  # chains: dense inputs
    states = (torch.ones(many, n, dtype=torch.uint8), torch.zeros(many, 3, dtype=torch.uint8))
    states[0][1, 5::7] = 0
    states[0][2, : n // 2] = 0
    up = full_update(graph, 1)
    dense_means = machine.layer_means(up, states)
    states = (states[0][:3], states[1][:3])
    means = machine.layer_means(up, states)
    unbiased = Machine.build(graph, [weights / 2**20], [torch.zeros(n), torch.zeros(3)])
    chains = machine.chains(3, seed=5)
    for layer, state in zip(chains.layers, states, strict=True):
        layer.copy_(state)
    machine.sweep(((up,),), chains, 1)
    return [
        dense_means,
        means,
        *chains.layers,
        unbiased.layer_means(up, states),
        machine.energy(states),
        unbiased.energy(states),
    ]


def gradient(visible: Tensor, means: Tensor, offsets: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    """Weight, visible and hidden part, from rows of which the first third are data."""
    n, n_data = len(visible), len(visible) // 3
    shares = torch.zeros(n, 2)
    shares[:n_data, 0], shares[n_data:, 1] = 1 / n_data, 1 / (n - n_data)
    units = (visible.shape[1], means.shape[1])
    out = (torch.full(units, torch.nan), *(torch.full((k,), torch.nan) for k in units))
    phases = (ops.statistics(shares, visible), ops.statistics(shares, means))
    ops.gradient(visible, means, shares[:, 1] - shares[:, 0], phases, offsets, out)
    return list(out)


def results() -> Iterator[tuple[str, list[Tensor]]]:
    for sizes in SIZES:
        yield f"rbm {sizes}", run(make_machine(chain_graph(sizes)), 9, 3)
        yield f"dense rbm {sizes}", run(make_machine(chain_graph(sizes)), 45, 3, options="base clamp")
    rbm = make_machine(chain_graph((131, 67)))
    yield "chain of three layers", run(make_machine(chain_graph((40, 33, 17))), 11, 3)
    yield "tree", run(make_machine(tree()), 11, 3)
    for options in ("beta", "base", "clamp", "base clamp"):
        yield f"rbm {options}", run(rbm, 13, 3, options=options)
        yield f"tree {options}", run(make_machine(tree()), 13, 2, options=options)
    doubled: Program = ((Update(1, (Input(0, False, 2.0),)),), (Update(0, (Input(0, True, 0.3),)),))
    yield "scaled inputs", run(rbm, 9, 3, program=doubled)
    yield "clamped layer", run(rbm, 9, 2, program=gibbs_program(rbm.graph, clamped=(0,)))
    yield "tempering", tempered(rbm, 2)
    yield "tempering of many chains", tempered(rbm, 24, with_base=True)
    yield "tempering of a tree", tempered(make_machine(tree()), 21)
    yield "no couplings", run(make_machine(Graph((Layer("alone", 70),), ())), 9, 2)
    yield "dense inputs, blocks of chains", run(rbm, 300, 2)
    yield "many chains", run(make_machine(chain_graph((70, 33))), 150, 8, options="base clamp")
    yield "many chains of a tree", run(make_machine(tree()), 130, 8)
    labelled, two_softmax = make_machine(chain_graph((40, 33), n_classes=10)), make_machine(categories())
    for n, n_sweeps in ((11, 2), (45, 2), (64, 2), (130, 8)):  # rows of weights, dense inputs, tables in both places
        yield f"labelled machine, {n} chains", run(labelled, n, n_sweeps, options="base clamp")
        yield f"softmax layers, {n} chains", run(two_softmax, n, n_sweeps, options="base clamp")
    yield "softmax layers beta", run(two_softmax, 5, 3, options="beta")
    yield "softmax layers", run(two_softmax, 5, 3)
    yield "tempering of a labelled machine", tempered(labelled, 2)
    yield "tempering of many labelled chains", tempered(labelled, 24, with_base=True)
    for name, machine in (("a machine", rbm), ("a tree", make_machine(tree())), ("a labelled machine", labelled)):
        for n in (9, 90):
            states, log_weights = annealed(machine, n)
            yield f"annealing of {n} chains of {name}", states
            yield f"real weights of annealing {n} chains of {name}", [log_weights.view(torch.int64)]
    yield "extreme fan-in", extreme_fan_in()
    for name, graph in (("a machine", chain_graph((131, 67))), ("a tree", tree()), ("softmax layers", categories())):
        for n in (9, 70):
            yield f"few flips in {n} chains of {name}", run(calm(graph), n, 20, options="base clamp")
    yield "tempering with few flips", tempered(calm(chain_graph((131, 67))), 2)
    states, log_weights = annealed(calm(tree()), 9)
    yield "annealing with few flips", states
    yield "real weights of annealing with few flips", [log_weights.view(torch.int64)]

    g = torch.Generator().manual_seed(3)
    lower, upper = ((torch.rand(n, generator=g) < 0.3).to(torch.uint8) for n in ((300, 131), (300, 67)))
    grey_lower, grey_upper = torch.randn(300, 131, generator=g), torch.randn(300, 67, generator=g)
    yield (
        "statistics",
        [ops.statistics(a, b) for a in (lower, grey_lower) for b in (upper, grey_upper)],
    )
    means, offsets = grey_upper.sigmoid(), (torch.rand(131, generator=g), torch.rand(67, generator=g))
    yield "gradient", [t for v in (lower, grey_lower) for t in gradient(v, means, None)]
    yield "centred gradient", [t for v in (lower, grey_lower) for t in gradient(v, means, offsets)]
    grey = torch.rand(7, 131, generator=g)
    yield "bernoulli", [ops.bernoulli(grey, torch.tensor([5, 0, 2**31 - 1, 3, 4, 1, 2]), seed=9, sweep=4, layer=1)]
    weights = torch.randn(131, 67, generator=g)
    weights[0, :4] = torch.tensor([0.5, 1.5, -0.5, -2.5]) * 2.0**-12  # halves on a coarse grid
    quantised = [ops.quantise(scale * weights) for scale in (1e-9, 0.01, 1.0, 1e4 / 4)]
    yield "quantise", [t for q, f in quantised for t in (q, torch.tensor(f))]

    gaussian = make_machine(chain_graph((70, 33), Kind.GAUSSIAN), scale=0.1)
    yield "real sweeps", run(gaussian, 13, 3, options="base clamp")[:-1]
    values = [torch.randn(13, 131, generator=g), torch.rand(13, 67, generator=g)]
    yield "real means", [rbm.layer_means(full_update(rbm.graph, i), values) for i in (0, 1)]
    states = [(value > 0.5).to(torch.uint8) for value in values]
    yield "real free energy", [rbm.free_energy((full_update(rbm.graph, 1),), states, betas=torch.tensor([0.3, 1.0]))]
    real = [torch.rand(13, n, generator=g) for n in (40, 33, 10)]
    yield "real means of labels", [labelled.layer_means(full_update(labelled.graph, 2), real)]
    whole = [(real[0] > 0.5).to(torch.uint8), real[1], torch.eye(10, dtype=torch.uint8)[torch.arange(13) % 10]]
    summed = [full_update(labelled.graph, i) for i in (0, 2)]
    yield "real free energy of labels", [labelled.free_energy(summed, whole, betas=torch.tensor([0.3, 1.0]))]


def digest(tensors: list[Tensor]) -> str:
    hashed = hashlib.sha256()
    for tensor in tensors:
        # -0 and +0 are the same field, and binary energies are sums of floats in an order of the backend's own
        value = tensor.float() if tensor.dtype is torch.float64 else tensor
        hashed.update((value + 0 if value.is_floating_point() else value).contiguous().numpy().tobytes())
    return hashed.hexdigest()


def digests() -> dict[str, str]:
    return {name: digest(tensors) for name, tensors in results()}


if __name__ == "__main__":
    print(json.dumps({"isa": ops.info()["isa"], "digests": digests()}))
