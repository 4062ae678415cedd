"""Times block Gibbs sweeps of RBMs on a GPU: the CUDA kernels beside torch on the same device, in turns in one process.

bench/gpu.sh builds what this needs and runs it. Before an RBM is timed, the kernels' states after some sweeps must be
those of the processor, bit for bit.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bm_fast import Machine, chain_graph
from bm_fast.program import gibbs_program
from samplers import Problem
from timing import environment, interleave

SHAPES = ((784, 500, 64), (784, 500, 1024), (784, 500, 16384), (4096, 4096, 4096))
GRAPH_SWEEPS = 10  # in a captured graph
CHECKED_SWEEPS = 3
SEED = 1


class Rbm(ctypes.Structure):
    """Mirrors ``Rbm`` of gpu_sweeps.cu."""

    _fields_ = (
        ("n_chains", ctypes.c_int32),
        ("units", ctypes.c_int32 * 2),
        ("bits", ctypes.c_void_p * 2),
        ("biases", ctypes.c_void_p * 2),
        ("weights", ctypes.c_void_p * 2),
        ("scale", ctypes.c_float),
        ("seed", ctypes.c_uint64),
    )


class Kernels:
    """Sweeps by the CUDA kernels, in launches or by replaying a graph of them."""

    def __init__(self, library: ctypes.CDLL, machine: Machine, visible: Tensor) -> None:
        self.library, self.sweeps_done = library, 0
        library.bit_words.restype = library.weight_bytes.restype = ctypes.c_int64
        library.bit_words.argtypes = (ctypes.c_int64,)
        library.weight_bytes.argtypes = (ctypes.c_int64, ctypes.c_int64)
        self.n_chains = visible.shape[0]
        self.units = [layer.units for layer in machine.graph.layers]
        below, above = self.units
        states = [visible.to("cuda", torch.uint8), torch.zeros(self.n_chains, above, dtype=torch.uint8, device="cuda")]
        self.bits = [
            torch.empty(self.n_chains, library.bit_words(n), dtype=torch.int32, device="cuda") for n in self.units
        ]
        for bits, state, n in zip(self.bits, states, self.units, strict=True):
            self.call("pack", bits.data_ptr(), state.data_ptr(), ctypes.c_int32(self.n_chains), ctypes.c_int32(n))
        integers = machine.parameters.weights[0].cuda()
        self.weights = [
            torch.empty(library.weight_bytes(*sizes), dtype=torch.uint8, device="cuda")
            for sizes in ((above, below), (below, above))
        ]
        for transposed, weights in ((1, self.weights[0]), (0, self.weights[1])):
            sizes = ctypes.c_int32(below), ctypes.c_int32(above)
            self.call("arrange", weights.data_ptr(), integers.data_ptr(), *sizes, ctypes.c_int(transposed))
        self.biases = [bias.cuda() for bias in machine.parameters.biases]
        self.rbm = Rbm(
            self.n_chains,
            (ctypes.c_int32 * 2)(*self.units),
            *((ctypes.c_void_p * 2)(*(t.data_ptr() for t in two)) for two in (self.bits, self.biases, self.weights)),
            2.0 ** -machine.parameters.fraction_bits[0],
            SEED,
        )
        torch.cuda.synchronize()  # the arrays that go out of scope here are read no more

    def call(self, name: str, *arguments: Any) -> None:
        plain = [ctypes.c_void_p(a) if isinstance(a, int) else a for a in arguments]
        if getattr(self.library, name)(*plain, ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)):
            raise RuntimeError(f"{name} has failed; see above")

    def sweep(self, n: int) -> None:
        self.call("sweep", ctypes.byref(self.rbm), ctypes.c_uint32(self.sweeps_done), ctypes.c_int32(n))
        self.sweeps_done += n

    def states(self) -> list[Tensor]:
        """Units of both layers, uint8 on the processor."""
        states = [torch.empty(self.n_chains, n, dtype=torch.uint8, device="cuda") for n in self.units]
        for bits, state, n in zip(self.bits, states, self.units, strict=True):
            self.call("unpack", state.data_ptr(), bits.data_ptr(), ctypes.c_int32(self.n_chains), ctypes.c_int32(n))
        return [state.cpu() for state in states]


class Torch:
    """Sweeps by torch: a product, the logistic function and a draw for each layer."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.weights = problem.weights[0].to("cuda", dtype)
        self.biases = [bias.to("cuda", dtype) for bias in problem.biases]
        self.visible = problem.visible.to("cuda", dtype)

    def step(self, visible: Tensor) -> Tensor:
        hidden = torch.bernoulli(torch.sigmoid(torch.addmm(self.biases[1], visible, self.weights)))
        return torch.bernoulli(torch.sigmoid(torch.addmm(self.biases[0], hidden, self.weights.T)))

    def sweep(self, n: int) -> None:
        for _ in range(n):
            self.visible = self.step(self.visible)


def captured(sweep: Callable[[int], None]) -> Callable[[int], None]:
    """The same sweeps replayed as a graph; for timing only, as the kernels draw the same numbers in each replay."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        sweep(GRAPH_SWEEPS)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        sweep(GRAPH_SWEEPS)

    def replay(n: int) -> None:
        for _ in range(n):
            graph.replay()

    return replay


def finished(run: Callable[[int], None]) -> Callable[[int], None]:
    """The same, returning only when the device is done."""

    def wait(n: int) -> None:
        run(n)
        torch.cuda.synchronize()

    return wait


def check(kernels: Kernels, machine: Machine, visible: Tensor) -> None:
    """RuntimeError unless the kernels give the processor's bits."""
    chains = machine.chains(kernels.n_chains, SEED)
    chains.layers[0].copy_(visible)
    chains.layers[1].zero_()
    machine.sweep(gibbs_program(machine.graph), chains, CHECKED_SWEEPS)
    kernels.sweep(CHECKED_SWEEPS)
    for layer, (got, wanted) in enumerate(zip(kernels.states(), chains.layers, strict=True)):
        if not torch.equal(got, wanted):
            raise RuntimeError(f"layer {layer}: {int((got != wanted).sum())} of {got.numel()} units differ")


def ceilings() -> dict[str, float]:
    """What the device reaches: multiply-adds of a matrix product in bfloat16, and bytes of a copy, per second."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**30, device="cuda", dtype=torch.float32)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[int], None]] = {
        "product": finished(lambda n: [torch.mm(a, b) for _ in range(n)] and None),
        "copy": finished(lambda n: [target.copy_(source) for _ in range(n)] and None),
    }
    times = interleave(runs, n_calls=5, seconds=0.2)
    return {
        "product_gmacs": 8192**3 / times["product"].median / 1e6,
        "copy_gbs": 2 * source.numel() * 4 / times["copy"].median / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", help="gpu_sweeps.cu as a shared library")
    parser.add_argument("out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    library = ctypes.CDLL(options.library)

    limits = ceilings()
    print(
        f"{torch.cuda.get_device_name()}: product {limits['product_gmacs']:.0f} GMAC/s in bfloat16, "
        f"copy {limits['copy_gbs']:.0f} GB/s"
    )
    rows = []
    for visible, hidden, n_chains in SHAPES:
        problem = Problem.random((visible, hidden), n_chains)
        machine = Machine.build(chain_graph(problem.units), problem.weights, problem.biases)
        kernels = Kernels(library, machine, problem.visible)
        check(kernels, machine, problem.visible)
        eager, half = Torch(problem, torch.float32), Torch(problem, torch.bfloat16)
        compiled = Torch(problem, torch.float32)
        compiled.step = torch.compile(compiled.step)  # type: ignore[method-assign]
        runs = {
            "kernels": kernels.sweep,
            "kernels, graph": captured(kernels.sweep),
            "torch fp32": eager.sweep,
            "torch bf16": half.sweep,
            "torch.compile fp32": compiled.sweep,
            "torch fp32, graph": captured(Torch(problem, torch.float32).sweep),
            "torch bf16, graph": captured(Torch(problem, torch.bfloat16).sweep),
        }
        times = interleave({name: finished(run) for name, run in runs.items()}, n_calls=7, seconds=0.1)
        for name, timing in times.items():
            sweeps = GRAPH_SWEEPS if name.endswith("graph") else 1
            ms = timing.median / sweeps
            rows.append(
                {
                    "model": f"{visible}-{hidden}",
                    "chains": n_chains,
                    "library": name,
                    "ms_per_sweep": ms,
                    "least": timing.least / sweeps,
                    "most": timing.most / sweeps,
                    "flips_per_ns": problem.flips / ms / 1e6,
                    "gmacs": problem.macs / ms / 1e6,
                    # int8 products are twice as fast as bfloat16 ones, and two limbs take twice as many
                    "share_of_product": problem.macs / ms / 1e6 / limits["product_gmacs"],
                    "kernels_are_faster": ms / times["kernels"].median,
                }
            )
            row = rows[-1]
            print(
                f"{row['model']:10s} {n_chains:6d} {name:20s} {ms:9.4f} ms/sweep {row['flips_per_ns']:8.2f} flips/ns "
                f"{row['gmacs']:9.0f} GMAC/s  kernels are {row['kernels_are_faster']:.2f}x"
            )
    result = {**environment(), "device": torch.cuda.get_device_name(), "ceilings": limits, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
