"""Builds the program tests/cuda/runner.cpp with the kernels of csrc/cuda and runs sweeps of a machine with it."""

from __future__ import annotations

import functools
import math
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import Kind, Machine
from bm_fast.program import Program

ROOT = Path(__file__).parents[1]
KERNELS = (
    *("draw.cu", "energies.cu", "gap_biases.cu", "gibbs.cu", "pack.cu", "real.cu", "real_energies.cu", "softmax.cu"),
    *("statistics.cu", "swap.cu", "weights.cu"),
)
EMULATION = ("collectives_emulation.cpp", "emulation.cpp")  # never seen by ThreadSanitizer, see there
HOPPER_EMULATION = ("cooperative_emulation.cpp", "hopper_emulation.cpp")
HOPPER_KERNELS = ("hopper_persistent.cu", "hopper_resident.cu", "hopper_streamed.cu", "hopper_weights.cu")
HOST_SOURCES = (  # of the module, with what takes the place of csrc/cuda/device.cpp
    *("csrc/module_cuda.cpp", "csrc/structure.cpp", "csrc/cuda/energy.cpp", "csrc/cuda/launch.cpp"),
    *("csrc/cuda/machine.cpp", "csrc/cuda/many_sweeps.cpp", "csrc/cuda/sweep.cpp", "tests/cuda/device.cpp"),
)
RUNNER = ("operations.cpp", "real.cpp", "runner.cpp")
ORDERS = ("fair", "ahead", "random:1", "random:2")
BETAS = (0.0, 0.3, 1.0)  # of free energies

SANITIZERS = {
    "plain": (),
    "thread": ("-fsanitize=thread",),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
}
SANITIZER_EXIT = 66
TIME_LIMIT = 120  # seconds

HOST_FLAGS = (
    *("-std=c++20", "-O2", "-g", "-fPIC", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"),
)
NO_LOOP_CALLS = ("-fno-tree-loop-distribute-patterns",)  # for these, see emulation.cpp
NVCC_FLAGS = (
    *("-std=c++20", "-O3", "-fmad=false", f"-I{ROOT / 'csrc'}", "-Werror", "all-warnings"),
    *("-Xcompiler", "-Wall,-Wextra,-ffp-contract=off"),
)


@dataclass(frozen=True)
class Change:
    """A deliberate mistake in what a source is made of: this text of a file, there once, becomes another."""

    file: str
    old: str
    new: str
    source: str = "gibbs.cu"


def altered(folder: Path, source: Path, change: Change | None) -> tuple[Path, tuple[str, ...]]:
    """A source with the mistake made in it, or in a header beside it, and flags with which that is found first."""
    if change is None or source.name != change.source:
        return source, ()
    text = (source.parent / change.file).read_text()
    assert text.count(change.old) == 1, f"{change.file}: expected once: {change.old}"
    (folder / "cuda").mkdir()
    (folder / "cuda" / change.file).write_text(text.replace(change.old, change.new))
    changed = folder / "cuda" / source.name if change.file == source.name else source
    return changed, (f"-I{folder}", f"-iquote{source.parent}")


def emulated(folder: Path, sanitizer: str = "plain", change: Change | None = None) -> list[str]:
    """Command of the runner with the kernels emulated on the host."""
    compiler, flags = host_compiler(), HOST_FLAGS
    watched = SANITIZERS[sanitizer]
    unseen = NO_LOOP_CALLS
    unseen += ("-DSIMT_THREAD_SANITIZER",) if sanitizer == "thread" else watched
    objects = [compiled(compiler, (*flags, *unseen), ROOT / "csrc/simt" / name) for name in EMULATION]
    objects += [compiled(compiler, (*flags, *watched), ROOT / "tests/cuda" / name) for name in RUNNER]
    for name in KERNELS:
        source, found = altered(folder, ROOT / "csrc/cuda" / name, change)
        objects.append(compiled(compiler, (*found, *flags, *watched), source))
    program = folder / "runner"
    subprocess.run([compiler, *watched, *objects, "-o", program], check=True)
    return [str(program)]


def emulated_module(folder: Path) -> Path:
    """The module ``bm_fast._cuda`` with the kernels emulated on the host."""
    headers = pytest.importorskip("pybind11").get_include()
    compiler = host_compiler()
    binding = (f"-isystem{headers}", f"-isystem{sysconfig.get_path('include')}", "-fvisibility=hidden")
    objects = [compiled(compiler, (*HOST_FLAGS, *NO_LOOP_CALLS), ROOT / "csrc/simt" / name) for name in EMULATION]
    objects += [compiled(compiler, HOST_FLAGS, ROOT / "csrc/simt" / name) for name in HOPPER_EMULATION]
    objects += [compiled(compiler, HOST_FLAGS, ROOT / "csrc/cuda" / name) for name in (*KERNELS, *HOPPER_KERNELS)]
    objects += [compiled(compiler, (*HOST_FLAGS, *binding), ROOT / name) for name in HOST_SOURCES]
    module = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([compiler, "-shared", *objects, "-o", module], check=True)
    return module


def host_compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    return compiler


@functools.cache
def _objects() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="bm-fast-objects-")


@functools.cache
def compiled(compiler: str, flags: tuple[str, ...], source: Path) -> Path:
    """Each source is compiled once for each set of flags."""
    folder = Path(_objects().name)
    target = folder / f"{len(list(folder.iterdir()))}.o"
    subprocess.run([compiler, *flags, "-x", "c++", "-c", source, "-o", target], check=True)
    return target


def on_gpu(folder: Path) -> list[str]:
    """Command of the runner for the GPU of this machine."""
    sources = [*(ROOT / "tests/cuda" / name for name in RUNNER), *(ROOT / "csrc/cuda" / name for name in KERNELS)]
    return built_for_gpu(folder, sources, "-arch=native")


def built_for_gpu(folder: Path, sources: Sequence[Path], architecture: str) -> list[str]:
    """Command of the program that nvcc makes of these sources."""

    def built(source: Path) -> Path:
        target = folder / f"{source.name}.o"
        subprocess.run(["nvcc", *NVCC_FLAGS, architecture, "-x", "cu", "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor() as pool:  # a kernel takes long to compile, and time with a GPU is short
        objects = list(pool.map(built, sources))
    program = folder / "runner"
    subprocess.run(["nvcc", architecture, *objects, "-o", program], check=True)
    return [str(program)]


@dataclass
class Case:
    """Sweeps of a machine from a given state."""

    machine: Machine
    program: Program
    states: Sequence[Tensor]
    n_sweeps: int = 1
    seed: int = 2**63 + 12345
    first_chain: int = 77
    first_sweep: int = 5
    beta: Tensor | None = None
    base: Sequence[Tensor] | None = None
    clamp: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def n_chains(self) -> int:
        return self.states[0].shape[0]

    @property
    def updated(self) -> list[int]:
        """Layers whose means are asked for."""
        return sorted(update.layer for block in self.program for update in block)

    @property
    def summed(self) -> int:
        """Layers of the last block, where every coupling leads to one of them: those that free energies sum out."""
        last = {update.layer for update in self.program[-1]}
        couplings = self.machine.graph.couplings
        return len(last) if all(c.lower in last or c.upper in last for c in couplings) else 0

    def by_engine(self) -> list[Tensor]:
        """From the processor: states of all layers, means of the updated ones, energies and free energies."""
        chains = self.machine.chains(self.n_chains, self.seed, self.first_chain)
        chains.sweep = self.first_sweep
        for mine, given in zip(chains.layers, self.states, strict=True):
            mine.copy_(given)
        means = {i: torch.zeros(self.states[i].shape) for i in self.updated}
        self.machine.sweep(
            self.program, chains, self.n_sweeps, beta=self.beta, base=self.base, clamp=self.clamp, means=means
        )
        energies = self.machine.energy(chains.layers)
        free_energies = torch.zeros(len(BETAS), self.n_chains, dtype=torch.float64)
        if self.summed:
            free_energies = self.machine.free_energy(
                self.program[-1], chains.layers, betas=torch.tensor(BETAS), base=self.base
            )
        else:
            base = [torch.zeros_like(b) for b in self.machine.parameters.biases] if self.base is None else self.base
            for beta, out in zip(torch.tensor(BETAS).double(), free_energies, strict=True):
                for state, bias, at_zero in zip(chains.layers, self.machine.parameters.biases, base, strict=True):
                    out -= state.double() @ (beta * bias.double() + (1 - beta) * at_zero.double())
        return [*chains.layers, *(means[i] for i in self.updated), energies, free_energies]

    def to_bytes(self) -> bytes:
        """What the runner reads."""
        parameters, parts = self.machine.parameters, list[bytes]()

        def numbers(*values: int) -> None:
            parts.append(np.array([v & 2**64 - 1 for v in values], np.uint64).tobytes())

        def array(value: Tensor | None, *, optional: bool = False) -> None:
            if optional:
                numbers(value is not None)
            if value is not None:
                parts.append(value.contiguous().numpy().tobytes())

        numbers(self.n_chains, self.seed, self.first_chain, self.first_sweep, self.n_sweeps)
        array(self.beta, optional=True)
        numbers(len(self.states))
        for i, state in enumerate(self.states):
            numbers(state.shape[1])
            array(parameters.biases[i])
            array(None if self.base is None else self.base[i], optional=True)
            array(self.clamp.get(i), optional=True)
            numbers(i in self.updated)
            array(state)
        numbers(len(parameters.weights))
        for coupling, weights, bits in zip(
            parameters.graph.couplings, parameters.weights, parameters.fraction_bits, strict=True
        ):
            numbers(coupling.lower, coupling.upper, bits)
            array(weights)
        updates = [update for block in self.program for update in block]
        numbers(len(updates))
        for update in updates:
            numbers(update.layer, len(update.inputs))
            for source in update.inputs:
                numbers(source.coupling, source.transposed)
                parts.append(np.float64(source.scale).tobytes())
        numbers(len(BETAS))
        array(torch.tensor(BETAS))
        numbers(self.summed)
        return b"".join(parts)

    def by_runner(self, program: list[str], folder: Path, order: str = "fair") -> list[Tensor]:
        """The same as ``by_engine``, from the kernels."""
        result = self.run(program, folder, order)
        assert result.returncode == 0, f"exit code {result.returncode}: {result.stderr}"
        return self.results(folder)

    def results(self, folder: Path) -> list[Tensor]:
        """What the runner left in a folder, in the order of ``by_engine``."""
        data, at = bytearray((folder / "out").read_bytes()), 0

        def take(dtype: torch.dtype, *shape: int) -> Tensor:
            nonlocal at
            n = math.prod(shape)
            at += n * dtype.itemsize
            return torch.frombuffer(data, dtype=dtype, count=n, offset=at - n * dtype.itemsize).view(shape)

        states, means = list[Tensor](), list[Tensor]()
        for i, state in enumerate(self.states):
            states.append(take(torch.uint8, *state.shape))
            if i in self.updated:
                means.append(take(torch.float32, *state.shape))
        energies = [take(torch.float64, self.n_chains), take(torch.float64, len(BETAS), self.n_chains)]
        assert at == len(data)
        return states + means + energies

    def run(self, program: list[str], folder: Path, order: str = "fair") -> subprocess.CompletedProcess[str]:
        """The finished runner; its output is in folder / "out"."""
        (folder / "case").write_bytes(self.to_bytes())
        (folder / "out").unlink(missing_ok=True)
        return run([*program, "sweep", str(folder / "case"), str(folder / "out")], order)


def operate(
    program: list[str], folder: Path, name: str, *arguments: int | Tensor | None, order: str = "fair"
) -> bytearray:
    """The result of an operation of tests/cuda/operations.cpp; arguments that are None are left out."""
    parts = [
        (np.uint64(value & 2**64 - 1) if isinstance(value, int) else value.contiguous().numpy()).tobytes()
        for value in arguments
        if value is not None
    ]
    (folder / "case").write_bytes(b"".join(parts))
    result = run([*program, name, str(folder / "case"), str(folder / "out")], order)
    assert result.returncode == 0, f"exit code {result.returncode}: {result.stderr}"
    return bytearray((folder / "out").read_bytes())


def real_case(
    machine: Machine,
    program: Program,
    values: Sequence[Tensor],
    *,
    beta: Tensor | None = None,
    base: Sequence[Tensor] | None = None,
    clamp: Mapping[int, Tensor] | None = None,
) -> list[int | Tensor | None]:
    """A machine whose layers have bits (uint8) or real values (float32), as tests/cuda/real.cpp reads it."""
    parameters, clamp = machine.parameters, clamp or {}
    parts: list[int | Tensor | None] = [values[0].shape[0], beta is not None, beta, len(values)]
    for i, value in enumerate(values):
        parts += [value.shape[1], parameters.biases[i]]
        for array in (None if base is None else base[i], parameters.precisions[i]):
            parts += [array is not None, array]
        parts.append(parameters.graph.layers[i].kind is Kind.SOFTMAX)
        parts += [i in clamp, clamp.get(i)]
        parts += [value.dtype is torch.float32, value]
    parts.append(len(parameters.weights))
    for coupling, weights, bits in zip(
        parameters.graph.couplings, parameters.weights, parameters.fraction_bits, strict=True
    ):
        parts += [coupling.lower, coupling.upper, bits, weights]
    updates = [update for block in program for update in block]
    parts.append(len(updates))
    for update in updates:
        parts += [update.layer, len(update.inputs)]
        for source in update.inputs:
            parts += [source.coupling, source.transposed, torch.tensor(source.scale, dtype=torch.float64)]
    return parts


def taken(data: bytearray, *shapes: tuple[torch.dtype, Sequence[int]]) -> list[Tensor]:
    """Arrays that lie one after the other, and nothing else."""
    arrays, at = list[Tensor](), 0
    for dtype, shape in shapes:
        n = math.prod(shape)
        arrays.append(torch.frombuffer(data, dtype=dtype, count=n, offset=at).view(*shape))
        at += n * dtype.itemsize
    assert at == len(data)
    return arrays


def run(command: list[str], order: str = "fair") -> subprocess.CompletedProcess[str]:
    """A finished command whose lanes run in this order."""
    environment = {
        **os.environ,
        "SIMT_ORDER": order,
        "TSAN_OPTIONS": f"halt_on_error=1 exitcode={SANITIZER_EXIT}",
        "ASAN_OPTIONS": f"detect_leaks=0 exitcode={SANITIZER_EXIT}",
        "UBSAN_OPTIONS": f"exitcode={SANITIZER_EXIT}",
    }
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, errors="replace", timeout=TIME_LIMIT
    )
