"""Times what docs/kernels.md says of the kernels of a sweep, on one thread; prints tables, and saves them with --name.

    python bench/kernels.py density     sweeps by the share of states that are on, and by the number of chains
    python bench/kernels.py softmax     what ten softmax units on top add to a sweep
    python bench/kernels.py flips       sweeps by the share of units that flip, in short calls and in long ones

"exact" is what runs where draws take no rounded sums: one far bias in each layer makes floats too coarse for them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bm_fast import Chains, Coupling, Graph, Kind, Layer, Machine, ops
from bm_fast.program import gibbs_program
from timing import environment, interleave

SIZES = ((784, 500), (784, 500, 1000))
SHARES = (0.5, 0.3, 0.2, 0.1)
CHAINS = (16, 32, 64, 128, 256, 1024)
LABELLED, LABELLED_CHAINS, N_CLASSES = (784, 500, 1000), (32, 100, 256), 10
FLIPPED, FLIPPED_CHAINS, STRENGTHS = (784, 500), (16, 64, 100, 256, 1024), (0.01, 0.2, 0.3, 0.4, 0.6, 0.8)
LENGTHS = (2, 6, 60)  # sweeps of a call: too few for sums to be kept, as in an update of learning, and many
LONG = max(LENGTHS)
SECONDS = 0.02  # of a call
FAR = 1e7


def machine_of(
    sizes: tuple[int, ...], share: float, n_classes: int = 0, exact: bool = False, strength: float = 0.01
) -> Machine:
    """A machine whose states, where weights are small, are on with about this share; the stronger, the fewer flip."""
    layers = [Layer(f"layer{i}", n) for i, n in enumerate(sizes)]
    layers += [Layer("labels", n_classes, Kind.SOFTMAX)] if n_classes else []
    couplings = tuple(Coupling(i, i + 1) for i in range(len(layers) - 1))
    generator = torch.Generator().manual_seed(0)
    weights = [
        strength * torch.randn(layers[c.lower].units, layers[c.upper].units, generator=generator) for c in couplings
    ]
    biases = [torch.tensor(share).logit().repeat(layer.units) for layer in layers]
    for bias in biases if exact else []:
        bias[-1] = FAR
    return Machine.build(Graph(tuple(layers), couplings), weights, biases)


def sweeps_of(machine: Machine, n_chains: int) -> Callable[[int], None]:
    """Runs so many sweeps of chains that have the machine's own share of states on."""
    program, chains = gibbs_program(machine.graph), machine.chains(n_chains, seed=1)

    def run(n: int, chains: Chains = chains) -> None:
        machine.sweep(program, chains, n)

    run(3)
    return run


def times(contenders: dict[str, Machine], n_chains: int, calls: int) -> list[float]:
    """Least milliseconds of a sweep of each."""
    made = {name: sweeps_of(machine, n_chains) for name, machine in contenders.items()}
    return [timing.least for timing in interleave(made, calls, SECONDS).values()]


def density(calls: int) -> list[dict[str, Any]]:
    rows = []
    print("ms a sweep: exact, what the rule takes\n")
    print("| machine, share of states on | " + " | ".join(f"{n} chains" for n in CHAINS) + " |")
    print("|---|" + "---|" * len(CHAINS))
    for sizes in SIZES:
        for share in SHARES:
            contenders = {"exact": machine_of(sizes, share, exact=True), "rule": machine_of(sizes, share)}
            found = [times(contenders, n, calls) for n in CHAINS]
            for n, (exact, rule) in zip(CHAINS, found, strict=True):
                rows.append({"units": sizes, "share": share, "chains": n, "exact": exact, "rule": rule})
            cells = [", ".join(f"{t:.2f}" for t in each) for each in found]
            print(f"| {'-'.join(map(str, sizes))}, {share:g} | " + " | ".join(cells) + " |", flush=True)
    return rows


def softmax(calls: int) -> list[dict[str, Any]]:
    rows = []
    print("| chains | ms a sweep | with ten softmax units | more |\n|---|---|---|---|")
    contenders = {"without": machine_of(LABELLED, 0.5), "with": machine_of(LABELLED, 0.5, N_CLASSES)}
    for n in LABELLED_CHAINS:
        without, labelled = times(contenders, n, calls)
        rows.append({"units": LABELLED, "classes": N_CLASSES, "chains": n, "without": without, "with": labelled})
        print(f"| {n} | {without:.2f} | {labelled:.2f} | {labelled / without - 1:.1%} |", flush=True)
    return rows


def settled(machine: Machine, n_chains: int) -> Chains:
    chains = machine.chains(n_chains, seed=1)
    machine.sweep(gibbs_program(machine.graph), chains, LONG)
    return chains


def calls_of(length: int, machine: Machine, n_chains: int) -> Callable[[int], None]:
    """Runs so many times LONG sweeps of settled chains, in calls of some length."""
    program, chains = gibbs_program(machine.graph), settled(machine, n_chains)

    def run(n: int) -> None:
        for _ in range(n * LONG // length):
            machine.sweep(program, chains, length)

    return run


def flips(calls: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    print(f"ms a sweep: calls of {', '.join(map(str, LENGTHS))} sweeps\n")
    print("| units on, units that flip | " + " | ".join(f"{n} chains" for n in FLIPPED_CHAINS) + " |")
    print("|---|" + "---|" * len(FLIPPED_CHAINS))
    for strength in STRENGTHS:
        machine = machine_of(FLIPPED, 0.3, strength=strength)
        chains = settled(machine, 64)
        before = torch.cat(chains.layers, 1)
        machine.sweep(gibbs_program(machine.graph), chains, 1)
        after = torch.cat(chains.layers, 1)
        shares = [float(x.float().mean()) for x in (after, before != after)]
        cells = []
        for n in FLIPPED_CHAINS:
            contenders = {f"calls of {length}": calls_of(length, machine, n) for length in LENGTHS}
            timings = interleave(contenders, calls, SECONDS)
            times = {name: timing.least / LONG for name, timing in timings.items()}
            rows.append({"on": shares[0], "flipped": shares[1], "chains": n, **times})
            cells.append(", ".join(f"{time:.3f}" for time in times.values()))
        print(f"| {shares[0]:.2f}, {shares[1]:.2f} | " + " | ".join(cells) + " |", flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("density", "softmax", "flips"))
    parser.add_argument("--calls", type=int, default=12, help="of each contender, of which the least time counts")
    parser.add_argument("--name", help="write bench/results/NAME.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    described = environment()
    print(f"{described['processor']}, instruction set {ops.info()['isa']}, one thread\n")
    results = {"density": density, "softmax": softmax, "flips": flips}[options.what](options.calls)
    if options.name is not None:
        path = Path(__file__).parent / "results" / f"{options.name}.json"
        content = {"environment": described, "settings": vars(options), "least_ms_a_sweep": results}
        path.write_text(json.dumps(content, indent=1) + "\n")
