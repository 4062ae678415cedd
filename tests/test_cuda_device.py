"""What is said about the GPU: in this process, and beside drivers made for the purpose."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from bm_fast import ops
from bm_fast.ops import cuda, native
from cuda_runner import NVCC_FLAGS, ROOT

pytestmark = pytest.mark.skipif(ops.info()["backend"] != "native", reason="no compiled module")

needs_cuda_build = pytest.mark.skipif("built without CUDA" in ops.info()["gpu"], reason="built without CUDA")


def kernels(module: bytes) -> set[tuple[str, int]]:
    """Machine code and PTX in a module, with their architectures, from the headers that cuobjdump reads too."""
    magic, found = b"\x50\xed\x55\xba", set[tuple[str, int]]()
    at = module.find(magic)
    while at >= 0:
        version, header, size = struct.unpack_from("<HHQ", module, at + 4)
        is_container = (version, header) == (1, 16)  # and not the runtime's own comparison with the magic number
        place, end = at + header, at + (header + size if is_container else len(magic))
        while is_container and place < end:
            kind, _, own, payload = struct.unpack_from("<HHIQ", module, place)
            found.add(({1: "PTX", 2: "code"}[kind], struct.unpack_from("<I", module, place + 28)[0]))
            place += own + payload
        at = module.find(magic, end)
    return found


@needs_cuda_build
def test_the_module_serves_every_architecture_and_brings_its_runtime() -> None:
    path = Path(native.cuda_module().__file__)
    code = {("code", architecture) for architecture in (80, 90, 100, 120)}
    assert kernels(path.read_bytes()) == code | {("PTX", 100), ("PTX", 120)}
    ldd = shutil.which("ldd")
    if ldd is not None:
        assert "libcuda" not in subprocess.run([ldd, path], capture_output=True, text=True, check=True).stdout


def test_info_names_a_gpu_or_says_why_there_is_none() -> None:
    gpu = ops.info()["gpu"]
    assert gpu.startswith("none: ") or "compute capability" in gpu
    assert len(gpu) > len("none: ")


def gpu_beside(driver: str, folder: Path) -> str:
    """What a process says that finds this source compiled as its driver library."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = folder / "driver.c"
    source.write_text(driver)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source], check=True)
    result = subprocess.run(
        [sys.executable, "-c", "from bm_fast import ops; print(ops.info()['gpu'])"],
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


DRIVER = """
int cuDriverGetVersion(int *version) {{ *version = {version}; return 0; }}
int cuInit(unsigned flags) {{ return {status}; }}
"""


@needs_cuda_build
def test_an_old_driver_is_reported(tmp_path: Path) -> None:
    said = gpu_beside(DRIVER.format(version=11040, status=0), tmp_path)
    assert said.startswith("none: the NVIDIA driver serves CUDA 11.4, this build needs 1")


@needs_cuda_build
def test_a_driver_without_a_device_is_reported(tmp_path: Path) -> None:
    assert gpu_beside(DRIVER.format(version=99000, status=100), tmp_path) == "none: the NVIDIA driver finds no device"


@needs_cuda_build
def test_a_file_that_is_no_driver_does_no_harm(tmp_path: Path) -> None:
    assert gpu_beside("int nothing;", tmp_path) == "none: no NVIDIA driver"


@pytest.fixture(scope="module")
def one_gpu(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Program that says what it thinks of a GPU of the compute capability that it is given."""
    program = tmp_path_factory.mktemp("one-gpu") / "one_gpu"
    sources = (ROOT / "tests/cuda/one_gpu.cpp", ROOT / "csrc/cuda/device.cpp")
    subprocess.run([nvcc, *NVCC_FLAGS, "-cudart", "none", *sources, "-o", program], check=True)
    return program


@pytest.mark.parametrize(
    ("major", "minor", "said"),
    [
        (7, 5, "none: A GPU (compute capability 7.5, 8 GiB) is too old, compute capability 8.0 is needed"),
        (8, 0, "A GPU (compute capability 8.0, 8 GiB)"),
        (12, 0, "A GPU (compute capability 12.0, 8 GiB)"),
    ],
)
def test_a_gpu_is_named_or_too_old(one_gpu: Path, major: int, minor: int, said: str) -> None:
    result = subprocess.run([one_gpu, str(major), str(minor)], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines() == [said, "none: invalid device ordinal"]


def test_a_call_works_on_the_gpu_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is the current one, which is current again afterwards."""
    current = [0]

    @contextmanager
    def device(number: torch.device) -> Iterator[None]:
        before, current[0] = current[0], number.index
        yield
        current[0] = before

    class Compiled:
        @staticmethod
        def Place(device: int, stream: int, take: object) -> tuple[int, int, int]:
            return device, stream, current[0]

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(cuda, "module", lambda device: Compiled)
    monkeypatch.setattr(cuda, "stream", lambda device: 100 + device.index)
    with cuda.place(torch.device("cuda", 1)) as here:
        assert here == (1, 101, 1)
    assert current == [0]
