"""What all tests share: one thread by default, the folder of big data sets, and a header that says what was found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

DATA = os.environ.get("BM_FAST_DATA")


def pytest_report_header() -> str:
    backend = os.environ.get("BM_FAST_BACKEND", "native")
    data = DATA if DATA and Path(DATA).is_dir() else "not found (BM_FAST_DATA), its tests are skipped"
    return f"bm_fast: backend {backend}; torch {torch.__version__}; data {data}"


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
