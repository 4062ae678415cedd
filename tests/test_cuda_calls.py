"""Calls on a GPU, emulated and real, that take long, are interrupted, or cannot be served."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import torch

from bm_fast import Machine, chain_graph
from bm_fast.ops import cuda
from bm_fast.program import gibbs_program
from cuda_devices import Gpu, assert_same, emulation, gpu
from engine_cases import make_machine

__all__ = ["emulation", "gpu"]  # fixtures


# --- long calls -------------------------------------------------------------------------------------------------------

LONG = 250  # sweeps: more than a round of a small machine has


def test_a_long_call_tells_its_progress(gpu: Gpu) -> None:
    told = list[int]()
    with gpu as device:
        machine = make_machine(chain_graph((5, 4)), device=device)
        chains = machine.chains(1, seed=0)
        machine.sweep(gibbs_program(machine.graph), chains, LONG, progress=told.append)
    assert told == [100, 200, LONG]
    assert chains.sweep == LONG


def test_an_interrupted_call_leaves_whole_sweeps(gpu: Gpu) -> None:
    """Ctrl-C in the middle: the states are those of ``chains.sweep`` sweeps, and can go on."""
    graph = chain_graph((5, 4))

    def interrupt(done: int) -> None:
        if done == 100:
            raise KeyboardInterrupt

    with gpu as device:
        machine = make_machine(graph, device=device)
        chains = machine.chains(3, seed=0)
        with pytest.raises(KeyboardInterrupt):
            machine.sweep(gibbs_program(graph), chains, LONG, progress=interrupt)
        assert chains.sweep == 100
        machine.sweep(gibbs_program(graph), chains, 50)
    here = make_machine(graph)
    wanted = here.chains(3, seed=0)
    here.sweep(gibbs_program(graph), wanted, 150)
    assert_same(list(chains.layers), list(wanted.layers))


def test_a_signal_ends_a_long_call(gpu: Gpu) -> None:
    with gpu as device:
        machine = make_machine(chain_graph((5, 4)), device=device)
        chains = machine.chains(1, seed=0)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            machine.sweep(gibbs_program(machine.graph), chains, 2**31)
        assert 0 < chains.sweep < 2**31
        assert chains.sweep % 100 == 0


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_a_build_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bm_fast.ops.native.cuda_module", lambda: None)
    cuda.module.cache_clear()
    with pytest.raises(RuntimeError, match="cuda:7: the CUDA kernels of bm_fast cannot run there: built without CUDA"):
        cuda.module(torch.device("cuda:7"))


def test_a_device_that_cannot_be_used_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    why = "none: GeForce (compute capability 7.5, 8 GiB) is too old, compute capability 8.0 is needed"
    monkeypatch.setattr("bm_fast.ops.native.gpu", lambda device: why)
    cuda.module.cache_clear()
    with pytest.raises(RuntimeError, match=r"cuda:1: .* cannot run there: GeForce .* is too old"):
        cuda.module(torch.device("cuda:1"))


def test_a_lack_of_memory_is_an_error_that_destroys_nothing(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(memory: cuda.Memory, n_bytes: int) -> int:
        raise torch.OutOfMemoryError(f"Tried to allocate {n_bytes} bytes, 5 are free")

    with gpu as device:
        machine = make_machine(chain_graph((130, 70)), device=device)
        chains = machine.chains(3, seed=0)
        before = chains.clone()
        with monkeypatch.context() as patch:
            patch.setattr(cuda.Memory, "take", refuse)
            with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 96 bytes, 5 are free"):
                machine.sweep(gibbs_program(machine.graph), chains, 2)
        assert chains.sweep == 0
        assert all(torch.equal(a, b) for a, b in zip(chains.layers, before.layers, strict=True))
        machine.sweep(gibbs_program(machine.graph), chains, 2)
        assert chains.sweep == 2


def test_other_devices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"biases\[0\]: bm_fast runs on the CPU and on CUDA devices, got a .* meta"):
        Machine.build(chain_graph((2, 2)), [torch.zeros(2, 2, device="meta")], [torch.zeros(2, device="meta")] * 2)
