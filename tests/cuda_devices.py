"""Where tests of operations on a GPU run: with the kernels emulated on the host, and on a GPU where there is one.

Emulated, the compiled module and all of Python's part are those of a GPU, but tensors lie on the processor.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch
from torch import Tensor

from bm_fast import ops
from bm_fast.ops import cuda
from bm_fast.training import captured
from cuda_runner import emulated_module


class Gpu:
    """Where a test runs: inside the context, tensors on ``device`` are served by the kernels for GPUs."""

    def __init__(
        self, device: str, module: ModuleType | None = None, capability: int = 0, *, cooperative: bool = True
    ) -> None:
        self.device = torch.device(device)
        self._module, self._patch = module, pytest.MonkeyPatch()
        self._emulated = {"SIMT_COMPUTE_CAPABILITY": str(capability), "SIMT_COOPERATIVE": str(int(cooperative))}

    def __enter__(self) -> torch.device:
        if self._module is not None:
            self._patch.setattr(cuda, "serves", lambda device: device == self.device)
            self._patch.setattr(cuda, "module", lambda device: self._module)
            self._patch.setattr(cuda, "stream", lambda device: 0)
            self._patch.setattr(captured, "record", lambda work, device: work)
            for name, value in self._emulated.items():
                self._patch.setenv(name, value)
        return self.device

    def __exit__(self, *error: object) -> None:
        self._patch.undo()


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The compiled module for GPUs with the kernels emulated."""
    path = emulated_module(tmp_path_factory.mktemp("module"))
    spec = importlib.util.spec_from_file_location("emulated._cuda", path)  # a name apart from the package's own
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EMULATED = {"emulated": 80, "emulated hopper": 90}
with_hopper = pytest.mark.parametrize("gpu", [*EMULATED, "device"], indirect=True)
"""For tests that the kernels for compute capability 9.0 have a part in; one of them is slow where it is emulated."""


@pytest.fixture(params=["emulated", "device"])
def gpu(request: pytest.FixtureRequest) -> Gpu:
    if request.param in EMULATED:
        return Gpu("cpu", request.getfixturevalue("emulation"), EMULATED[request.param])
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    if ops.info()["gpu"].startswith("none"):
        pytest.skip(f"GPU {ops.info()['gpu']}")
    return Gpu("cuda:0")


def assert_same(got: list[Tensor], wanted: list[Tensor]) -> None:
    """States and means are equal, and energies within the tolerances of docs/numbers.md."""
    assert [t.shape for t in got] == [t.shape for t in wanted]
    for a, b in zip(got, wanted, strict=True):
        there = a.cpu()
        if a.dtype is torch.float64:
            torch.testing.assert_close(there, b, rtol=1e-12 if a.dim() == 1 else 1e-9, atol=1e-9)
        else:
            assert torch.equal(there, b), f"{int((there != b).sum())} of {a.numel()} values of {list(a.shape)} differ"
