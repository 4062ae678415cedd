"""The package as it is built and installed: one OpenMP runtime, only system libraries, types, version, command."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path

import pytest

import bm_fast

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def output(program: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout


# In fresh processes: scikit-learn's wheel brings an OpenMP library of its own into a process that imports it
@pytest.mark.parametrize("program", ["import bm_fast", "import torch, bm_fast", "import bm_fast, torch"])
def test_one_openmp_library_is_mapped(program: str) -> None:
    maps = output(f"{program}; bm_fast.RBM(8, 8).machine().chains(64, seed=0); print(open('/proc/self/maps').read())")
    libraries = set(re.findall(r"\S*/lib(?:gomp|omp|iomp5)\S*", maps))
    assert len(libraries) == 1, libraries


def test_torch_governs_the_threads_of_the_extension() -> None:
    started = output(
        "import os, torch, bm_fast\n"
        "rbm = bm_fast.RBM(64, 64)\n"
        "for threads in (1, 2):\n"
        "    before = len(os.listdir('/proc/self/task'))\n"
        "    torch.set_num_threads(threads)\n"
        "    rbm.sample(rbm.chains(4096, seed=0), 20)\n"
        "    print(len(os.listdir('/proc/self/task')) - before)"
    )
    assert started.split() == ["0", "1"]


def test_extension_needs_only_system_libraries() -> None:
    spec = importlib.util.find_spec("bm_fast._C")
    assert spec is not None
    assert spec.origin is not None
    dynamic = subprocess.run(["readelf", "-d", spec.origin], check=True, capture_output=True, text=True).stdout
    needed = set(re.findall(r"NEEDED.*\[(.*?)\]", dynamic))
    assert "libgomp.so.1" in needed
    allowed = r"lib(gomp|stdc\+\+|gcc_s|m|c|pthread)\.so\.\d+|ld-linux\S*"
    assert {name for name in needed if not re.fullmatch(allowed, name)} == set()


def test_version_has_one_source() -> None:
    assert importlib.metadata.version("bm_fast") == PROJECT["version"]


def test_package_is_typed() -> None:
    assert resources.files(bm_fast).joinpath("py.typed").is_file()


def test_dependencies_are_pinned_for_development() -> None:
    pinned = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    extras = [entry for group in PROJECT["optional-dependencies"].values() for entry in group]
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    names = {re.split(r"[\[<>=]", entry)[0] for entry in [*PROJECT["dependencies"], *extras, *build]} - {"bm_fast"}
    assert names - pinned == set()


def test_command_is_installed() -> None:
    command = Path(sys.executable).with_name("bm-fast")
    done = subprocess.run([str(command), "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["bm-fast", PROJECT["version"]]


def test_the_package_offers_its_names_when_they_are_asked_for() -> None:
    assert set(bm_fast.__all__) <= set(dir(bm_fast))
    assert all(getattr(bm_fast, name).__name__ == name for name in bm_fast.__all__)
    with pytest.raises(AttributeError, match="module 'bm_fast' has no attribute 'RMB'"):
        bm_fast.RMB  # noqa: B018


@pytest.mark.parametrize(
    ("nvcc", "why"),
    [
        ("echo Cuda compilation tools, release 11.5, V11.5.119", "CUDA toolkit 11.5.119 is older than 12.8"),
        ("exit 1", "nvcc belongs to no CUDA toolkit that works"),
    ],
    ids=["old", "broken"],
)
@pytest.mark.parametrize("wanted", ["AUTO", "ON"])
def test_a_build_says_why_it_leaves_the_cuda_kernels_out(nvcc: str, why: str, wanted: str, tmp_path: Path) -> None:
    cmake = shutil.which("cmake")
    if cmake is None:
        pytest.skip("no cmake")
    (tmp_path / "nvcc").write_text(f"#!/bin/sh\n{nvcc}\n")
    (tmp_path / "nvcc").chmod(0o755)
    settings = {"SKBUILD_PROJECT_NAME": "bm_fast", "SKBUILD_PROJECT_VERSION": "0", "BM_CUDA": wanted}
    found = subprocess.run(  # what comes after CUDA may be missing here
        [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(tmp_path / "build"),
            *(f"-D{name}={value}" for name, value in settings.items()),
        ],
        env={**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    said = " ".join(found.stderr.split())
    if wanted == "ON":
        assert found.returncode != 0
        assert re.search(rf"CMake Error .* BM_CUDA=ON needs a CUDA toolkit of at least 12.8 with nvcc: \S*{why}", said)
    else:
        assert re.search(rf"CMake Warning .* No CUDA kernels are built: \S*{why}", said)
