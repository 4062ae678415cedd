"""What all tests share: one thread by default, the folder of big data sets, and a header that says what was found."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from bm_fast import ops
from bm_fast.cli import main
from cli_calls import TINY
from cuda_runner import emulated, on_gpu

# Autograd asks once, at the first backward pass, which devices there are: this one must be there by then.
with contextlib.suppress(ImportError):
    import elsewhere  # noqa: F401

DATA = os.environ.get("BM_FAST_DATA")
HAS_NATIVE = importlib.util.find_spec("bm_fast._C") is not None
needs_native = pytest.mark.skipif(  # without the module no test begins, unless the reference was asked for
    not HAS_NATIVE, reason="the compiled module is not installed: BM_FAST_BACKEND=reference tests the reference alone"
)


def pytest_configure() -> None:
    """Tests interrupt processes: a shell's background job, which ignores Ctrl-C, would hand that on to them."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    info = ops.info()
    data = DATA if DATA and Path(DATA).is_dir() else "not found (BM_FAST_DATA), its tests are skipped"
    native = "" if HAS_NATIVE else " (compiled module not found, its tests are skipped)"
    return f"bm_fast: {info['backend']}{native}, instruction set {info['isa']}; GPU {info['gpu']}; data {data}"


def pytest_runtest_setup() -> None:
    """Every test starts on one thread, whatever the test before it set."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of the big data sets, given by BM_FAST_DATA."""
    if not DATA:
        pytest.skip("BM_FAST_DATA does not name a folder with the data sets")
    folder = Path(DATA)
    if not folder.is_dir():
        pytest.fail(f"BM_FAST_DATA: expected a folder, got {DATA!r}")
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ``bm-fast train``, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "digits", *TINY, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(params=["reference", pytest.param("native", marks=needs_native)])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once with each backend that exists; its name."""
    monkeypatch.setenv("BM_FAST_BACKEND", request.param)
    return str(request.param)


# --- the runner of CUDA kernels: emulated, under sanitizers, on a GPU ------------------------------------------------


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return emulated(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="session", params=["thread", "address"])
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return emulated(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def nvcc() -> str:
    path = shutil.which("nvcc")
    if path is None:
        pytest.skip("no nvcc")
    return path


@pytest.fixture(scope="session")
def gpu(nvcc: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    if ops.info()["gpu"].startswith("none"):
        pytest.skip(f"GPU {ops.info()['gpu']}")
    return on_gpu(tmp_path_factory.mktemp("gpu"))
