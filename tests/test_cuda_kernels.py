"""The CUDA kernels, emulated on the host: the same bits as the processor's, whichever lane runs first.

Each deliberate mistake in a kernel must be caught, or the emulation would prove nothing.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bm_fast import Graph, Layer, Machine, chain_graph
from bm_fast.parameters import MAX_WEIGHT
from bm_fast.program import Input, Update, full_update, gibbs_program
from cuda_runner import KERNELS, NVCC_FLAGS, ORDERS, ROOT, SANITIZER_EXIT, Case, Change, emulated, run
from engine_cases import make_machine, tree
from test_cuda_softmax import of as of_labels
from test_cuda_softmax import swept_by_reference, swept_by_runner


def random_case(machine: Machine, n_chains: int, *, options: str = "", **others: object) -> Case:
    """A case with random states. Options: words of "beta", "base", "clamp"."""
    g, layers = torch.Generator().manual_seed(1), machine.graph.layers
    states = [(torch.rand(n_chains, layer.units, generator=g) < 0.4).to(torch.uint8) for layer in layers]
    beta = torch.rand(n_chains, generator=g) * 1.5 + 0.01 if "beta" in options or "base" in options else None
    base = [torch.randn(layer.units, generator=g) for layer in layers] if "base" in options else None
    clamp = {}
    if "clamp" in options:
        for i in (0, len(layers) - 1):
            clamp[i] = (torch.rand(n_chains, layers[i].units, generator=g) < 0.4).to(torch.uint8) * 3
    case = Case(machine, gibbs_program(machine.graph), states, beta=beta, base=base, clamp=clamp)
    for name, value in others.items():
        setattr(case, name, value)
    return case


def extreme_fan_in() -> Case:
    """The largest fan-in with the largest weights: sums at the limits of int32."""
    n = 65_536
    graph = chain_graph((n, 3))
    weights = torch.full((n, 3), float(MAX_WEIGHT))
    weights[:, 1] *= -1
    weights[::2, 2] *= -1
    biases = [torch.zeros(n), torch.tensor([-1.0, 1.0, 0.0]) * MAX_WEIGHT * n]  # they cancel the sums
    states = (torch.ones(3, n, dtype=torch.uint8), torch.zeros(3, 3, dtype=torch.uint8))
    states[0][1, 5::7] = 0
    states[0][2, : n // 2] = 0
    return Case(Machine.build(graph, [weights], biases), ((full_update(graph, 1),),), states)


def scaled() -> Case:
    rbm = make_machine(chain_graph((131, 67)))
    program = ((Update(1, (Input(0, False, 2.0),)),), (Update(0, (Input(0, True, 0.3),)),))
    return random_case(rbm, 9, program=program, n_sweeps=3)


def deep() -> Case:
    """More stages than are under way at a time, two tiles of units, and few chains, as ThreadSanitizer is slow."""
    rbm = make_machine(chain_graph((520, 65)), scale=0.1)
    return random_case(rbm, 5, program=((full_update(rbm.graph, 1),),))


CASES = {
    "one unit": lambda: random_case(make_machine(chain_graph((1, 1))), 1, n_sweeps=3),
    "ragged": lambda: random_case(make_machine(chain_graph((130, 65))), 70, options="beta", n_sweeps=2),
    "deep": deep,
    "few": lambda: random_case(make_machine(tree()), 3, options="base clamp"),
    "whole tiles": lambda: random_case(make_machine(chain_graph((128, 64))), 64),
    "many stages": lambda: random_case(make_machine(chain_graph((784, 129)), scale=0.1), 66),
    "a wide layer": lambda: random_case(make_machine(chain_graph((9, 1103))), 2),
    "three layers": lambda: random_case(make_machine(chain_graph((40, 33, 17))), 11, n_sweeps=3),
    "tree": lambda: random_case(make_machine(tree()), 13, options="base clamp", n_sweeps=2),
    "clamp": lambda: random_case(make_machine(chain_graph((131, 67))), 13, options="clamp", n_sweeps=2),
    "scaled": scaled,
    "no couplings": lambda: random_case(make_machine(Graph((Layer("alone", 70),), ())), 9, n_sweeps=2),
    "extreme fan-in": extreme_fan_in,
}


@cache
def case(name: str) -> Case:
    return CASES[name]()


@cache
def expected(name: str) -> list[Tensor]:
    return case(name).by_engine()


def same(got: Tensor, wanted: Tensor) -> bool:
    """Whether states and means are equal, and energies within the tolerances of docs/numbers.md."""
    if got.dtype is not torch.float64:
        return torch.equal(got, wanted)
    return torch.allclose(got, wanted, rtol=1e-12 if got.dim() == 1 else 1e-9, atol=1e-9)


def assert_equal(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert [t.shape for t in got] == [t.shape for t in wanted]
    for a, b in zip(got, wanted, strict=True):
        assert same(a, b), f"{int((a != b).sum())} of {a.numel()} values of {list(a.shape)} differ"


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order"), [(name, order) for name in CASES for order in (ORDERS if name != "extreme fan-in" else ["fair"])]
)
def test_the_same_bits_as_the_processor(plain: list[str], tmp_path: Path, name: str, order: str) -> None:
    assert_equal(case(name).by_runner(plain, tmp_path, order), expected(name))


@pytest.mark.parametrize("order", ORDERS)
def test_collectives(plain: list[str], order: str) -> None:
    assert run([*plain, "collectives"], order).returncode == 0


@pytest.mark.parametrize("order", ["fair", "random:3"])
@pytest.mark.parametrize("name", ["deep", "few"])
def test_sanitizers_find_nothing(sanitized: list[str], tmp_path: Path, name: str, order: str) -> None:
    assert_equal(case(name).by_runner(sanitized, tmp_path, order), expected(name))


def test_too_many_couplings_are_refused(plain: list[str], tmp_path: Path) -> None:
    rbm = make_machine(chain_graph((3, 2)))
    many = random_case(rbm, 2, program=((Update(1, (Input(0, False, 0.1),) * 33),),))
    result = many.run(plain, tmp_path)
    assert result.returncode == 2
    assert "expected at most 32 couplings that lead to one layer, got 33" in result.stderr


def test_an_unknown_order_is_refused(plain: list[str]) -> None:
    result = run([*plain, "collectives"], "backwards")
    assert result.returncode == 2
    assert "SIMT_ORDER: expected fair, ahead or random:<seed>, got backwards" in result.stderr


# --- mistakes must be caught -----------------------------------------------------------------------------------------

BARRIER = "      simt::sync_block();  // this stage has landed, and the one before it is read no more\n"
WARP_BARRIER = "  simt::sync_warp();  // all lanes of a row have read its old states"
COLLECTIVE = "    word |= simt::shuffle_xor(word, 2);\n"
STOPPED = "meet at different places|no lane of block"

# a change of gibbs.cu or product.h, and what shows it: in plain runs of any order but "fair", and under ThreadSanitizer
MISTAKES = {
    "no barrier": ("product.h", BARRIER, "", "wrong bits", "data race"),
    "no wait": ("product.h", "      simt::copy_wait<kStages - 2>();\n", "", "wrong bits", "wrong bits|data race"),
    "a stage filled while it is read": (
        "product.h",
        "(stage == 0 ? kStages - 1 : stage - 1) * kStageBytes);\n",
        "stage * kStageBytes);\n",
        "wrong bits",
        "wrong bits|data race",
    ),
    "a barrier that a warp skips": (
        "product.h",
        BARRIER,
        "      if (simt::thread_x() >= 32 || i > 0) simt::sync_block();\n",
        STOPPED,
        f"{STOPPED}|data race",
    ),
    "a collective that lanes skip": (
        "gibbs.cu",
        COLLECTIVE,
        COLLECTIVE.replace("word", "if (place.t() != 3) word", 1),
        STOPPED,
        f"{STOPPED}|data race",
    ),
    "two blocks store to one word": (
        "gibbs.cu",
        "p.states[chain * words + column] = drawn;",
        "p.states[chain * words + column % 2] = drawn;",
        "wrong bits",
        "data race",
    ),
}
READ_PAST_THE_END = ("unit < p.units ? p.biases[unit] : 0.f", "p.biases[unit]")


def verdict(program: list[str], folder: Path, order: str) -> str:
    """What a run of the deep case shows: "the same bits", "wrong bits", or what stopped it."""
    result = case("deep").run(program, folder, order)
    if result.returncode == 0:
        got = case("deep").results(folder)
        return "the same bits" if all(map(same, got, expected("deep"))) else "wrong bits"
    if "a bit beyond the layer" in result.stderr:
        return "wrong bits"
    assert result.returncode in (-signal.SIGABRT, SANITIZER_EXIT), result.stderr
    return result.stderr


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("sanitizer", ["plain", "thread"])
def test_a_mistake_is_caught(tmp_path: Path, mistake: str, sanitizer: str) -> None:
    file, old, new, plain, thread = MISTAKES[mistake]
    program = emulated(tmp_path, sanitizer, Change(file, old, new))
    for order in ORDERS[1:] if sanitizer == "plain" else ("fair", "random:1"):
        said = verdict(program, tmp_path, order)
        assert re.search(plain if sanitizer == "plain" else thread, said), f"{order}: {said}"


def test_a_missing_barrier_of_a_warp_is_caught(tmp_path: Path) -> None:
    """Its lanes meet in a shuffle too, so no order of lanes gives wrong bits; but a shuffle orders no memory."""
    program = emulated(tmp_path, "thread", Change("gibbs.cu", WARP_BARRIER, "//"))
    result = case("few").run(program, tmp_path)
    assert result.returncode == SANITIZER_EXIT
    assert "data race" in result.stderr


def test_a_read_past_the_end_is_caught(tmp_path: Path) -> None:
    program = emulated(tmp_path, "address", Change("product.h", *READ_PAST_THE_END))
    assert "heap-buffer-overflow" in verdict(program, tmp_path, "fair")


# --- the compiler for GPUs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["80", "90a"])
@pytest.mark.parametrize("source", KERNELS)
def test_kernels_compile_without_spills_or_local_memory(
    nvcc: str, tmp_path: Path, source: str, architecture: str
) -> None:
    command = [
        *(nvcc, *NVCC_FLAGS, f"-gencode=arch=compute_{architecture},code=sm_{architecture}"),
        *("-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-Werror"),
        *("-c", str(ROOT / "csrc/cuda" / source), "-o", str(tmp_path / "kernel.o")),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    frames = re.findall(r".*stack frame.*", result.stderr)
    assert frames
    assert {frame.strip() for frame in frames} == {"0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"}


@pytest.mark.parametrize("source", KERNELS)
def test_no_float_operation_may_be_contracted(nvcc: str, tmp_path: Path, source: str) -> None:
    """Operations of PTX that name their rounding are never merged into an fma."""
    target = tmp_path / "kernel.ptx"
    command = [nvcc, *NVCC_FLAGS, "-arch=compute_80", "-ptx", str(ROOT / "csrc/cuda" / source), "-o", str(target)]
    subprocess.run(command, check=True)
    assert not re.findall(r"\b(?:mul|add|sub)(?:\.ftz)?\.f(?:32|64)\b", target.read_text())


# --- on a GPU --------------------------------------------------------------------------------------------------------


def test_collectives_on_a_gpu(gpu: list[str]) -> None:
    assert run([*gpu, "collectives"]).returncode == 0


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_on_a_gpu(gpu: list[str], tmp_path: Path, name: str) -> None:
    assert_equal(case(name).by_runner(gpu, tmp_path), expected(name))


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(gpu: list[str], tmp_path: Path, tool: str) -> None:
    path = shutil.which("compute-sanitizer")
    if path is None:
        pytest.skip("no compute-sanitizer")
    command = [path, "--tool", tool, "--error-exitcode", str(SANITIZER_EXIT), *gpu]
    for name in ("ragged", "tree", "deep"):
        assert_equal(case(name).by_runner(command, tmp_path), expected(name))
    labels = of_labels("held")
    assert_equal(swept_by_runner(command, tmp_path, labels, 1, "fair"), swept_by_reference(labels, 1))
