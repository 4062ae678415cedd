"""Operations on tensors of a GPU: memory and streams are torch's, the kernels those of the module ``_cuda``.

Nothing here waits for the device but where a function says so, and everything can be recorded into a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bm_fast.graph import Graph
from bm_fast.ops import native
from bm_fast.ops.checks import may_look
from bm_fast.ops.native import address, addresses, plain, plain_layers, rung_addresses, value_addresses
from bm_fast.parameters import GapBiases, Parameters, fraction_bits, largest_size, snapshot
from bm_fast.program import Program, Update
from bm_fast.reference import Purpose
from bm_fast.rungs import Rungs, check_permutations


def serves(device: torch.device) -> bool:
    """Whether tensors on this device are a matter of this module."""
    return device.type == "cuda"


@cache
def module(device: torch.device) -> Any:
    """The compiled module for a device; RuntimeError, saying why, where it cannot run there."""
    found = native.gpu(device.index or 0)
    if found.startswith("none: "):
        raise RuntimeError(f"{device}: the CUDA kernels of bm_fast cannot run there: {found.removeprefix('none: ')}")
    return native.cuda_module()


def stream(device: torch.device) -> int:
    """torch's current stream."""
    return torch.cuda.current_stream(device).cuda_stream


class Memory:
    """Tensors whose memory kernels work in, held as long as this is; torch's error where there is not enough."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: list[Tensor] = []

    def take(self, n_bytes: int) -> int:
        self._held.append(torch.empty(n_bytes, dtype=torch.uint8, device=self._device))
        return self._held[-1].data_ptr()


@contextmanager
def place(device: torch.device, memory: Memory | None = None) -> Iterator[Any]:
    """Where a call works: the device is the current one meanwhile, as torch's own operations have it.

    Memory that ends with the call may be used again at once, as torch gives it to later work of the same stream only.
    """
    compiled = module(device)
    with torch.cuda.device(device if device.type == "cuda" else -1):
        yield compiled.Place(device.index or 0, stream(device), (memory or Memory(device)).take)


class Machine:
    """A machine on a GPU; arguments have been checked by ``ops.Machine``.

    Float weights are put on a grid that the device chooses, by each ``refresh``.

    counters: int32 ``[2]`` on the device, the numbers of the next sweep and of the next round of swaps, which each
        call advances; None: the caller tells these numbers.
    refused: int32 ``[1]`` on the device, becomes 1 where a float weight is not finite or beyond the largest grid.
    """

    def __init__(self, parameters: Parameters, counters: Tensor | None = None) -> None:
        self._device = parameters.biases[0].device
        self._parameters = parameters  # what is not copied is used where it is
        self._counters = counters
        self._memory = Memory(self._device)
        couplings = []
        self._grids = []
        for coupling, weights, bits in zip(
            parameters.graph.couplings, parameters.weights, parameters.fraction_bits, strict=True
        ):
            is_real = weights.dtype is torch.float32
            self._grids.append(torch.full((1,), 2.0**-bits, device=self._device))
            couplings.append((coupling.lower, coupling.upper, weights.data_ptr(), is_real, self._grids[-1].data_ptr()))
        with place(self._device, self._memory) as here:
            self._compiled = module(self._device).Machine(plain_layers(parameters), couplings, here)
        self.refused = torch.zeros(1, dtype=torch.int32, device=self._device)
        self.refresh()

    def _counter_addresses(self) -> tuple[int, int]:
        """Where the numbers of the next sweep and round are; 0 where the caller tells them."""
        return (0, 0) if self._counters is None else (self._counters[:1].data_ptr(), self._counters[1:].data_ptr())

    def refresh(self) -> None:
        """Takes up the present weights."""
        with place(self._device) as here:
            self._compiled.refresh(self.refused.data_ptr(), here)

    def sweep(
        self,
        program: Program,
        layers: Sequence[Tensor],
        n_sweeps: int,
        *,
        seed: int,
        first_chain: int,
        first_sweep: int,
        beta: Tensor | None,
        base: Sequence[Tensor] | None,
        clamp: Mapping[int, Tensor],
        means: Mapping[int, Tensor],
        done: Tensor,
        progress: Callable[[int], None],
    ) -> None:
        counter, _ = self._counter_addresses()
        with place(self._device) as here:
            self._compiled.sweep(
                plain(program),
                [layer.data_ptr() for layer in layers],
                layers[0].shape[0],
                n_sweeps,
                seed,
                first_chain,
                0 if counter else first_sweep,
                address(beta),
                addresses(base),
                [address(clamp.get(i)) for i in range(len(layers))],
                [address(means.get(i)) for i in range(len(layers))],
                counter,
                here,
                done.data_ptr(),
                progress,
            )
            if counter:
                module(self._device).advance(counter, n_sweeps, here)

    def temper(
        self,
        program: Program,
        layers: Sequence[Tensor],
        rungs: Rungs,
        betas: Tensor,
        n_rounds: int,
        sweeps: int,
        *,
        seed: int,
        first_chain: int,
        first_sweep: int,
        gap: GapBiases,
        means: Mapping[int, Tensor],
        trace: Tensor | None,
        done: Tensor,
        progress: Callable[[int], None],
    ) -> None:
        """done: int64 ``[1]`` on the host, the rounds done so far."""
        counter, round_counter = self._counter_addresses()
        if not counter and may_look(self._device):
            check_permutations(rungs)
        beta = betas[rungs.rungs.long()]
        with place(self._device) as here:
            self._compiled.temper(
                plain(program),
                addresses(layers),
                rung_addresses(rungs),
                beta.data_ptr(),
                len(beta),
                len(betas),
                n_rounds,
                sweeps,
                seed,
                first_chain,
                0 if counter else first_sweep,
                0 if counter else rungs.round,
                betas.data_ptr(),
                addresses(gap.base),
                [address(means.get(i)) for i in range(len(layers))],
                address(trace),
                counter,
                round_counter,
                here,
                done.data_ptr(),
                progress,
            )
            if counter:
                module(self._device).advance(counter, n_rounds * sweeps, here)
                module(self._device).advance(round_counter, n_rounds, here)

    def layer_means(
        self,
        update: Update,
        values: Sequence[Tensor],
        out: Tensor,
        *,
        beta: Tensor | None,
        base: Sequence[Tensor] | None,
    ) -> None:
        with place(self._device) as here:
            self._compiled.layer_means(
                update.plain,
                value_addresses(values),
                values[0].shape[0],
                out.data_ptr(),
                address(beta),
                addresses(base),
                here,
            )

    def mean_field(
        self,
        program: Program,
        values: Sequence[Tensor],
        *,
        start: Program,
        iterations: int,
        tolerance: float,
        damping: float,
        changes: Tensor,
        performed: Tensor,
    ) -> None:
        if start:
            self.mean_field(
                start,
                values,
                start=(),
                iterations=1,
                tolerance=0.0,
                damping=0.0,
                changes=changes,
                performed=performed,
            )
        performed.zero_()
        scratch = torch.zeros(2, len(changes), dtype=torch.int32, device=self._device)
        with place(self._device) as here:
            self._compiled.mean_field(
                plain(program),
                value_addresses(values),
                len(changes),
                iterations,
                tolerance,
                damping,
                changes.data_ptr(),
                performed.data_ptr(),
                scratch.data_ptr(),
                here,
            )

    def energy(self, layers: Sequence[Tensor]) -> Tensor:
        out = torch.zeros(layers[0].shape[0], dtype=torch.float64, device=self._device)
        with place(self._device) as here:
            self._compiled.energy(value_addresses(layers), len(out), out.data_ptr(), here)
        return out

    def gap(self, biases: GapBiases, layers: Sequence[Tensor]) -> Tensor:
        out = torch.empty(layers[0].shape[0], dtype=torch.float64, device=self._device)
        with place(self._device) as here:
            self._compiled.gap(addresses(biases.base), value_addresses(layers), len(out), out.data_ptr(), here)
        return out

    def free_energy(
        self, updates: Sequence[Update], values: Sequence[Tensor], *, betas: Tensor, base: Sequence[Tensor] | None
    ) -> Tensor:
        out = torch.zeros(len(betas), values[0].shape[0], dtype=torch.float64, device=self._device)
        with place(self._device) as here:
            self._compiled.free_energy(
                [update.plain for update in updates],
                value_addresses(values),
                out.shape[1],
                betas.data_ptr(),
                len(betas),
                addresses(base),
                out.data_ptr(),
                here,
            )
        return out


def build(
    graph: Graph, weights: Sequence[Tensor], biases: Sequence[Tensor], precisions: Sequence[Tensor | None] | None
) -> tuple[Parameters, Machine]:
    parameters = snapshot(graph, weights, biases, precisions, quantise)
    return parameters, Machine(parameters)


def quantise(weight: Tensor, name: str) -> tuple[Tensor, int]:
    """Waits for the device: f is a number of the host."""
    bits = fraction_bits(largest_size(weight), name)
    return (weight * 2.0**bits).round_().to(torch.int16), bits


def statistics(lower: Tensor, upper: Tensor, out: Tensor) -> None:
    with place(out.device) as here:
        module(out.device).statistics(
            *value_addresses((lower,))[0],
            lower.shape[1],
            *value_addresses((upper,))[0],
            upper.shape[1],
            lower.shape[0],
            out.data_ptr(),
            here,
        )


def gradient(
    visible: Tensor,
    means: Tensor,
    signs: Tensor,
    phases: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    weight, visible_out, hidden_out = out
    torch.sub(phases[0][1], phases[0][0], out=visible_out)
    torch.sub(phases[1][1], phases[1][0], out=hidden_out)
    centred = means if offsets is None else means - offsets[1]
    statistics(visible, centred * signs[:, None], weight)
    if offsets is not None:
        weight.addr_(offsets[0], hidden_out, alpha=-1)
        visible_out.addmv_(weight, offsets[1], alpha=-1)
        hidden_out.addmv_(weight.t(), offsets[0], alpha=-1)


def bernoulli(
    probabilities: Tensor, rows: Tensor, out: Tensor, *, seed: int, sweep: int, layer: int, purpose: Purpose
) -> None:
    if out.numel() == 0:
        return
    with place(out.device) as here:
        module(out.device).bernoulli(
            probabilities.data_ptr(),
            rows.data_ptr(),
            out.shape[0],
            out.shape[1],
            out.data_ptr(),
            seed,
            sweep,
            layer | purpose << 16,
            here,
        )


def swap(rungs: Rungs, gaps: Tensor, betas: Tensor, *, seed: int, first_ladder: int) -> None:
    device, n_rungs = rungs.rungs.device, len(betas)
    if may_look(device):
        check_permutations(rungs)
    with place(device) as here:
        module(device).swap(
            rung_addresses(rungs),
            gaps.data_ptr(),
            betas.data_ptr(),
            n_rungs,
            rungs.rungs.numel(),
            seed,
            first_ladder,
            rungs.round,
            here,
        )
