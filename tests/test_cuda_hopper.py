"""The kernels for compute capability 9.0, emulated on the host: the same bits as the processor's.

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

from bm_fast import Graph, Layer, chain_graph, ops
from bm_fast.program import Input, Update, full_update
from cuda_runner import (
    EMULATION,
    HOPPER_EMULATION,
    HOPPER_KERNELS,
    HOST_FLAGS,
    NVCC_FLAGS,
    ROOT,
    SANITIZER_EXIT,
    SANITIZERS,
    Case,
    Change,
    altered,
    built_for_gpu,
    compiled,
    host_compiler,
    run,
    taken,
)
from engine_cases import make_machine, tree
from test_cuda_kernels import random_case

SOURCES = (
    *(f"csrc/simt/{name}" for name in (*EMULATION, *HOPPER_EMULATION)),
    *("tests/cuda/hopper_runner.cpp", "tests/cuda/hopper_checks.cpp"),
    *(f"csrc/cuda/{name}" for name in ("pack.cu", *HOPPER_KERNELS)),
)
ORDERS = ("fair", "ahead", "random:1")
ARCHITECTURE = "-gencode=arch=compute_90a,code=sm_90a"


def emulated(folder: Path, sanitizer: str = "plain", change: Change | None = None) -> list[str]:
    """Command of the runner with the kernels emulated on the host."""
    compiler, flags = host_compiler(), HOST_FLAGS
    watched, objects = SANITIZERS[sanitizer], list[Path]()
    for name in SOURCES:
        source, found = altered(folder, ROOT / name, change)
        objects.append(compiled(compiler, (*found, *flags, *watched), source))
    program = folder / "runner"
    subprocess.run([compiler, *watched, *objects, "-o", program], check=True)
    return [str(program)]


def scaled() -> Case:
    """Own scales of the inputs, and the upper layer first."""
    rbm = make_machine(chain_graph((131, 67)))
    program = ((Update(0, (Input(0, True, 0.3),)),), (Update(1, (Input(0, False, 2.0),)),))
    return random_case(rbm, 9, program=program, n_sweeps=3)


def rbm(*units: int, n_chains: int, options: str = "", n_sweeps: int = 1, scale: float = 0.5) -> Case:
    return random_case(make_machine(chain_graph(units), scale=scale), n_chains, options=options, n_sweeps=n_sweeps)


def one_update(*units: int, n_chains: int) -> Case:
    machine = make_machine(chain_graph(units), scale=0.1)
    return random_case(machine, n_chains, program=((full_update(machine.graph, 1),),))


RESIDENT = {
    "one unit": lambda: rbm(1, 1, n_chains=1, n_sweeps=3),
    "two groups of chains": lambda: rbm(130, 65, n_chains=70, options="beta", n_sweeps=2),
    "two clusters": lambda: rbm(33, 40, n_chains=130, n_sweeps=2),
    "shared units": lambda: rbm(200, 300, n_chains=5, options="clamp", n_sweeps=2),
    "single octets": lambda: rbm(70, 90, n_chains=3, options="base clamp", n_sweeps=3),
    "several parts": lambda: rbm(40, 784, n_chains=66, options="clamp", scale=0.1),
    "a wide layer": lambda: rbm(9, 1103, n_chains=2),
    "scaled": scaled,
}
STREAMED = {
    "one unit": lambda: rbm(1, 1, n_chains=1, n_sweeps=3),
    "ragged": lambda: rbm(130, 65, n_chains=70, options="beta", n_sweeps=2),
    "longer than the ring": lambda: one_update(2000, 70, n_chains=130),
    "several tiles": lambda: one_update(65, 600, n_chains=3),
    "a wide layer": lambda: rbm(9, 1103, n_chains=2),
    "three layers": lambda: rbm(40, 33, 17, n_chains=11, options="clamp", n_sweeps=2),
    "tree": lambda: random_case(make_machine(tree()), 13, options="base clamp", n_sweeps=2),
    "scaled": scaled,
}
PERSISTENT = {
    "one unit": lambda: rbm(1, 1, n_chains=1, n_sweeps=3),
    "three layers": lambda: rbm(40, 33, 17, n_chains=11, options="clamp", n_sweeps=3),
    "weights of two blocks": lambda: rbm(300, 200, n_chains=130, options="beta", n_sweeps=2, scale=0.1),
    "more groups than blocks": lambda: rbm(20, 30, 9, n_chains=600, options="beta", n_sweeps=2),
    "several parts": lambda: rbm(40, 784, n_chains=66, options="base clamp", scale=0.1, n_sweeps=2),
    "a wide layer": lambda: rbm(9, 1103, n_chains=2),
    "tree": lambda: random_case(make_machine(tree()), 13, options="base clamp", n_sweeps=2),
    "no couplings": lambda: random_case(make_machine(Graph((Layer("alone", 70),), ())), 9, n_sweeps=2),
    "scaled": scaled,
}
CASES = {
    (kernel, name): make
    for kernel, cases in (("resident", RESIDENT), ("streamed", STREAMED), ("persistent", PERSISTENT))
    for name, make in cases.items()
}


@cache
def case(kernel: str, name: str) -> Case:
    return CASES[kernel, name]()


@cache
def expected(kernel: str, name: str) -> list[Tensor]:
    """States of all layers, then means of the updated ones."""
    c = case(kernel, name)
    return c.by_engine()[: len(c.states) + len(c.updated)]


def attempt(program: list[str], kernel: str, name: str, folder: Path, order: str) -> subprocess.CompletedProcess[str]:
    (folder / "case").write_bytes(case(kernel, name).to_bytes())
    (folder / "out").unlink(missing_ok=True)
    return run([*program, kernel, str(folder / "case"), str(folder / "out")], order)


def results(kernel: str, name: str, folder: Path) -> list[Tensor]:
    """What the runner left in a folder, in the order of ``expected``."""
    c = case(kernel, name)
    shapes, places = list[tuple[torch.dtype, torch.Size]](), list[int]()
    for i, state in enumerate(c.states):
        shapes.append((torch.uint8, state.shape))
        places.append(i)
        if i in c.updated:
            shapes.append((torch.float32, state.shape))
            places.append(len(c.states) + c.updated.index(i))
    arrays = taken(bytearray((folder / "out").read_bytes()), *shapes)
    return [array for _, array in sorted(zip(places, arrays, strict=True), key=lambda pair: pair[0])]


def check(program: list[str], kernel: str, name: str, folder: Path, order: str = "fair") -> None:
    result = attempt(program, kernel, name, folder, order)
    assert result.returncode == 0, result.stderr
    for got, wanted in zip(results(kernel, name, folder), expected(kernel, name), strict=True):
        assert torch.equal(got, wanted), f"{int((got != wanted).sum())} of {got.numel()} values differ"


# --- the same bits ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return emulated(tmp_path_factory.mktemp("hopper"))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("kernel", "name"), CASES)
def test_the_same_bits_as_the_processor(plain: list[str], tmp_path: Path, kernel: str, name: str, order: str) -> None:
    check(plain, kernel, name, tmp_path, order)


@pytest.mark.parametrize("order", ORDERS)
def test_products(plain: list[str], order: str) -> None:
    assert run([*plain, "products"], order).returncode == 0


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        *(("resident", "two groups of chains"), ("resident", "single octets"), ("streamed", "tree")),
        *(("persistent", "weights of two blocks"), ("persistent", "tree")),
    ],
)
def test_no_address_is_wrong(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, kernel: str, name: str) -> None:
    check(emulated(tmp_path_factory.mktemp("address"), "address"), kernel, name, tmp_path)


def test_layers_that_do_not_fit_are_refused(plain: list[str], tmp_path: Path) -> None:
    (tmp_path / "case").write_bytes(rbm(1000, 1000, n_chains=1).to_bytes())
    result = run([*plain, "resident", str(tmp_path / "case"), str(tmp_path / "out")])
    assert result.returncode == 2
    assert "expected layers whose weights fit into a cluster, got 1000 and 1000 units" in result.stderr


@pytest.mark.parametrize(
    ("units", "other", "n_chains", "room", "kernel"),
    [
        (500, 784, 1, 0, "resident"),
        (784, 500, 100_000, 0, "resident"),
        (784, 500, 100, 1024, "resident"),
        (1000, 1000, 255, 0, "portable"),
        (1000, 1000, 256, 0, "streamed"),
        (64, 1_000_000, 256, 0, "streamed"),
        (63, 65_536, 100_000, 0, "portable"),
        (500, 0, 1024, 0, "streamed"),
        (500, 0, 1, 1024, "persistent"),
        (10, 0, 1024, 1024, "persistent"),
        (500, 0, 1025, 1024, "streamed"),
    ],
)
def test_the_kernel_is_chosen_by_size(
    plain: list[str], units: int, other: int, n_chains: int, room: int, kernel: str
) -> None:
    assert run([*plain, "choose", str(units), str(other), str(n_chains), str(room)]).stdout.strip() == kernel


# --- mistakes must be caught -----------------------------------------------------------------------------------------

ENDED = "the kernel ended with"
WAITS = "no lane of block"
# kernel and case, a change of a file, and what shows it in at least one order of lanes
MISTAKES = {
    "no wait for the states of other blocks": (
        *("resident", "two groups of chains", "hopper_resident.cu"),
        *("      simt::barrier_wait_for_stores(w.arrived(w.group, layer), sweep & 1);\n", "", "wrong bits"),
    ),
    "no wait for the weights": (
        *("resident", "two groups of chains", "hopper_resident.cu"),
        *("  simt::barrier_wait(w.loaded(), 0);\n", "", f"wrong bits|{ENDED} copies"),
    ),
    "barriers used before they are ready": (
        *("streamed", "ragged", "hopper_streamed.cu"),
        *("    simt::barriers_ready();\n  }\n  simt::sync_cluster();\n", "  }\n", "never initialised"),
    ),
    "states sent before they are loaded": (
        *("resident", "two groups of chains", "hopper_resident.cu"),
        *("  simt::sync_cluster();  // all blocks have their barriers", "  //", "wrong bits|never initialised"),
    ),
    "too few arrivals awaited": (
        *("resident", "shared units", "hopper_resident.cu"),
        *(
            "kClusterBlocks * shares * (kWarpgroup / 32)",
            "kClusterBlocks * (kWarpgroup / 32)",
            "wrong bits|more arrivals",
        ),
    ),
    "a turn that is not handed on": (
        *("resident", "two groups of chains", "hopper_resident.cu"),
        *("    end_turn(w, last", "    if (w.group == 1) end_turn(w, last", WAITS),
    ),
    "sums read before they are done": (
        *("resident", "shared units", "hopper_product.h"),
        *("  simt::multiply_wait<0>();\n", "", f"wrong bits|{ENDED} products|changed too early"),
    ),
    "an operand in registers written too early": (
        *("resident", "shared units", "hopper_product.h"),
        *("simt::multiply_wait<1>();", "simt::multiply_wait<2>();", "registers of an operand changed too early"),
    ),
    "distances of cells exchanged": (
        *("resident", "shared units", "hopper_product.h"),
        *("multiply<16 * kTiles>(high, bytes, simt::operand(of_step, kCellBytes, kOctetBytes)",),
        *("multiply<16 * kTiles>(high, bytes, simt::operand(of_step, kOctetBytes, kCellBytes)", "wrong bits"),
    ),
    "no beginning of products": (
        *("resident", "shared units", "hopper_product.h"),
        *("    simt::multiply_begin();\n", "", "expected multiply_begin"),
    ),
    "a stage filled while it is read": (
        *("streamed", "longer than the ring", "hopper_streamed.cu"),
        *("        if (place.round > 0) simt::barrier_wait(freed(place.slot), (place.round - 1) & 1);\n", ""),
        "wrong bits|more arrivals",
    ),
    "a stage read before it is there": (
        *("streamed", "longer than the ring", "hopper_streamed.cu"),
        *(
            "    simt::barrier_wait(filled(place.slot), place.round & 1);\n",
            "",
            f"wrong bits|more arrivals|{ENDED} copies",
        ),
    ),
    "a stage freed before its products are done": (
        *("streamed", "longer than the ring", "hopper_streamed.cu"),
        "      simt::multiply_wait<1>();\n      if (step == 0 && stage > 0) release(before);",
        "      if (step == 0 && stage > 0) release(before);\n      simt::multiply_wait<1>();",
        "wrong bits",
    ),
    "weights for one block alone": (
        *("streamed", "ragged", "hopper_streamed.cu"),
        *("simt::copy_bulk_to_all(", "simt::copy_bulk(", WAITS),
    ),
    "a stage freed for one block alone": (
        *("streamed", "longer than the ring", "hopper_streamed.cu"),
        *(
            "if (lane() < kClusterOfTwo) simt::barrier_arrive(freed",
            "if (lane() < 1) simt::barrier_arrive(freed",
            WAITS,
        ),
    ),
}


def assert_caught(tmp_path: Path, kernel: str, name: str, file: str, old: str, new: str, shown_by: str) -> None:
    program, verdicts = emulated(tmp_path, change=Change(file, old, new, f"hopper_{kernel}.cu")), list[str]()
    for order in (*ORDERS, "random:2"):
        result = attempt(program, kernel, name, tmp_path, order)
        if result.returncode == 0:
            got = results(kernel, name, tmp_path)
            same = all(torch.equal(a, b) for a, b in zip(got, expected(kernel, name), strict=True))
            verdicts.append("the same bits" if same else "wrong bits")
        else:
            assert result.returncode == -signal.SIGABRT or "a bit beyond the layer" in result.stderr, result.stderr
            verdicts.append("wrong bits" if "a bit beyond" in result.stderr else result.stderr)
        if re.search(shown_by, verdicts[-1]):
            return
    pytest.fail(str(verdicts))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(tmp_path: Path, mistake: str) -> None:
    assert_caught(tmp_path, *MISTAKES[mistake])


# --- the compiler for GPUs -------------------------------------------------------------------------------------------


def ptx(nvcc: str, source: str, folder: Path) -> str:
    target = folder / "kernel.ptx"
    command = [nvcc, *NVCC_FLAGS, "-arch=compute_90a", "-ptx", str(ROOT / "csrc/cuda" / source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target.read_text()


@pytest.mark.parametrize("source", HOPPER_KERNELS)
def test_kernels_compile_without_spills_and_with_products_that_overlap(nvcc: str, tmp_path: Path, source: str) -> None:
    command = [
        *(nvcc, *NVCC_FLAGS, ARCHITECTURE, "-Xptxas", "-v,-warn-spills,-warn-lmem-usage,-Werror"),
        *("-c", str(ROOT / "csrc/cuda" / source), "-o", str(tmp_path / "kernel.o")),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    frames = {frame.strip() for frame in re.findall(r".*stack frame.*", result.stderr)}
    assert frames == {"0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"}
    assert "serialized" not in result.stderr  # what ptxas says where it waits for each product


@pytest.mark.parametrize("source", HOPPER_KERNELS)
def test_no_float_operation_may_be_contracted(nvcc: str, tmp_path: Path, source: str) -> None:
    """Operations of PTX that name their rounding are never merged into an fma."""
    assert not re.findall(r"\b(?:mul|add|sub)(?:\.ftz)?\.f(?:32|64)\b", ptx(nvcc, source, tmp_path))


def test_streamed_weights_wait_for_no_other_memory(nvcc: str, tmp_path: Path) -> None:
    """A barrier that orders the memory of a cluster is a fence in machine code, here in the middle of the products."""
    text = ptx(nvcc, "hopper_streamed.cu", tmp_path)
    assert "mbarrier.try_wait.parity.shared::cta" in text
    assert not re.findall(r"mbarrier\.\w+\S*\.(?:acquire|release)\.cluster", text)


def test_states_for_other_blocks_are_ordered_before_what_tells_of_them(nvcc: str, tmp_path: Path) -> None:
    """The emulation orders all memory; a GPU only what its instructions say."""
    resident = ptx(nvcc, "hopper_resident.cu", tmp_path)
    assert "mbarrier.arrive.release.cluster.shared::cluster" in resident
    assert "mbarrier.try_wait.parity.acquire.cluster" in resident
    assert "mbarrier.arrive.shared::cluster" not in resident  # without an order
    persistent = ptx(nvcc, "hopper_persistent.cu", tmp_path)
    assert persistent.count("fence.acq_rel.gpu") == 2  # before a block tells of its states, and after it has been told


# --- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def gpu(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if "compute capability 9.0" not in ops.info()["gpu"]:
        pytest.skip(f"no GPU of compute capability 9.0: {ops.info()['gpu']}")
    sources = [ROOT / name for name in SOURCES if "emulation" not in name]
    return built_for_gpu(tmp_path_factory.mktemp("gpu"), sources, ARCHITECTURE)


@pytest.mark.parametrize("what", ["products", "together"])
def test_what_kernels_are_written_with_on_a_gpu(gpu: list[str], what: str) -> None:
    result = run([*gpu, what])
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(("kernel", "name"), CASES)
def test_the_same_bits_on_a_gpu(gpu: list[str], tmp_path: Path, kernel: str, name: str) -> None:
    check(gpu, kernel, name, tmp_path)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "synccheck"])
def test_compute_sanitizer_finds_nothing(gpu: list[str], tmp_path: Path, tool: str) -> None:
    path = shutil.which("compute-sanitizer")
    if path is None:
        pytest.skip("no compute-sanitizer")
    command = [path, "--tool", tool, "--error-exitcode", str(SANITIZER_EXIT), *gpu]
    for kernel, name in (
        *(("resident", "two groups of chains"), ("streamed", "longer than the ring")),
        ("persistent", "weights of two blocks"),
    ):
        check(command, kernel, name, tmp_path)
