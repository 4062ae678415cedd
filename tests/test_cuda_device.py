"""What is said about the GPU: in this process, and beside drivers made for the purpose."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bm_fast import ops

pytestmark = pytest.mark.skipif(ops.info()["backend"] != "native", reason="no compiled module")

needs_cuda_build = pytest.mark.skipif("built without CUDA" in ops.info()["gpu"], reason="built without CUDA")


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
