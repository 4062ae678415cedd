"""Operations on tensors of the processor, by the module ``_C``; arguments have been checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import overload

import torch
from torch import Tensor

from bm_fast.graph import Graph
from bm_fast.ops.native import _C, address, addresses, plain, plain_layers, rung_addresses, value_addresses
from bm_fast.parameters import GapBiases, Parameters, fraction_bits, snapshot
from bm_fast.program import Program, Update
from bm_fast.reference import Purpose
from bm_fast.rungs import Rungs


class Machine:
    """A machine on the processor. Kernels may keep derived tables in it.

    Weights of ``parameters`` that are float32 go onto the grid on their way in.
    """

    def __init__(self, parameters: Parameters) -> None:
        couplings = [
            (coupling.lower, coupling.upper, weights.data_ptr(), bits)
            for coupling, weights, bits in zip(
                parameters.graph.couplings, parameters.weights, parameters.fraction_bits, strict=True
            )
        ]
        are_values = all(weights.dtype is torch.float32 for weights in parameters.weights)
        self._compiled = _C.Machine(plain_layers(parameters), couplings, are_values, torch.get_num_threads())

    def read_weights(self, coupling: int, out: Tensor) -> None:
        """W_q, int16 ``[units of lower, units of upper]``."""
        self._compiled.read_weights(coupling, out.data_ptr())

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
        self._compiled.sweep(
            plain(program),
            addresses(layers),
            layers[0].shape[0],
            n_sweeps,
            seed,
            first_chain,
            first_sweep,
            address(beta),
            addresses(base),
            [address(clamp.get(i)) for i in range(len(layers))],
            [address(means.get(i)) for i in range(len(layers))],
            torch.get_num_threads(),
            done.data_ptr(),
            progress,
        )

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
        """done: int64 ``[1]``, the rounds done so far."""
        self._compiled.temper(
            plain(program),
            addresses(layers),
            rung_addresses(rungs),
            layers[0].shape[0],
            len(betas),
            n_rounds,
            sweeps,
            seed,
            first_chain,
            first_sweep,
            rungs.round,
            betas.data_ptr(),
            addresses(gap.base),
            addresses(gap.whole),
            gap.bits,
            [address(means.get(i)) for i in range(len(layers))],
            address(trace),
            torch.get_num_threads(),
            done.data_ptr(),
            progress,
        )

    def anneal(
        self,
        program: Program,
        layers: Sequence[Tensor],
        betas: Tensor,
        log_weights: Tensor,
        *,
        seed: int,
        first_chain: int,
        first_sweep: int,
        base: Sequence[Tensor],
        done: Tensor,
        progress: Callable[[int], None],
    ) -> None:
        """done: int64 ``[1]``, the steps done so far."""
        self._compiled.anneal(
            plain(program),
            addresses(layers),
            len(log_weights),
            len(betas) - 1,
            seed,
            first_chain,
            first_sweep,
            betas.data_ptr(),
            addresses(base),
            log_weights.data_ptr(),
            torch.get_num_threads(),
            done.data_ptr(),
            progress,
        )

    def layer_means(
        self,
        update: Update,
        values: Sequence[Tensor],
        out: Tensor,
        *,
        beta: Tensor | None,
        base: Sequence[Tensor] | None,
    ) -> None:
        self._compiled.layer_means(
            update.plain,
            value_addresses(values),
            values[0].shape[0],
            out.data_ptr(),
            address(beta),
            addresses(base),
            torch.get_num_threads(),
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
        self._compiled.mean_field(
            plain(program),
            value_addresses(values),
            len(changes),
            _outsets(program, start),
            iterations,
            tolerance,
            damping,
            changes.data_ptr(),
            performed.data_ptr(),
            torch.get_num_threads(),
        )

    def energy(self, layers: Sequence[Tensor]) -> Tensor:
        out = torch.empty(layers[0].shape[0], dtype=torch.float64)
        self._compiled.energy(value_addresses(layers), len(out), out.data_ptr(), torch.get_num_threads())
        return out

    def gap(self, biases: GapBiases, layers: Sequence[Tensor]) -> Tensor:
        out = torch.empty(layers[0].shape[0], dtype=torch.float64)
        self._compiled.gap(
            addresses(biases.whole),
            biases.bits,
            biases.base is not None,
            value_addresses(layers),
            len(out),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out

    def free_energy(
        self, updates: Sequence[Update], values: Sequence[Tensor], *, betas: Tensor, base: Sequence[Tensor] | None
    ) -> Tensor:
        out = torch.empty(len(betas), values[0].shape[0], dtype=torch.float64)
        self._compiled.free_energy(
            [update.plain for update in updates],
            value_addresses(values),
            out.shape[1],
            betas.data_ptr(),
            len(betas),
            addresses(base),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out


class _WeightsOf(Sequence[Tensor]):
    """W_q of each coupling of a machine, read back when they are first wanted: a machine in training lives without."""

    def __init__(self, machine: Machine, shapes: Sequence[tuple[int, int]]) -> None:
        self._machine, self._shapes = machine, shapes
        self._read: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._shapes)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        numbers = range(len(self))[index]
        if isinstance(numbers, range):
            return [self[i] for i in numbers]
        if numbers not in self._read:
            out = torch.empty(self._shapes[numbers], dtype=torch.int16)
            self._machine.read_weights(numbers, out)
            self._read[numbers] = out
        return self._read[numbers]


def build(
    graph: Graph, weights: Sequence[Tensor], biases: Sequence[Tensor], precisions: Sequence[Tensor | None] | None
) -> tuple[Parameters, Machine]:
    """Weights are read once for their grid, and once to be laid down in both directions."""
    given = snapshot(graph, weights, biases, precisions, _with_grid, _largest_size)
    machine = Machine(given)
    shapes = [(weight.shape[0], weight.shape[1]) for weight in given.weights]
    weights_of = _WeightsOf(machine, shapes)
    return Parameters(graph, weights_of, given.fraction_bits, given.biases, given.precisions), machine


def _outsets(program: Program, start: Program) -> list[tuple[int, float]]:
    """Layers of a first pass in order, and by how much it scales their inputs."""
    scales = {(u.layer, i.coupling): i.scale for block in program for u in block for i in u.inputs}
    outsets = []
    for update in (update for block in start for update in block):
        first = update.inputs[0]
        scale = scales[update.layer, first.coupling]
        outsets.append((update.layer, first.scale / scale if scale else 1.0))  # 0 is no more than 0 by any factor
    return outsets


def quantise(weight: Tensor, name: str) -> tuple[Tensor, int]:
    _, bits = _with_grid(weight, name)
    out = torch.empty_like(weight, dtype=torch.int16)
    _C.quantise(weight.data_ptr(), weight.numel(), bits, out.data_ptr(), torch.get_num_threads())
    return out, bits


def _with_grid(weight: Tensor, name: str) -> tuple[Tensor, int]:
    return weight, fraction_bits(_largest_size(weight), name)


def _largest_size(values: Tensor) -> float:
    return _C.largest_weight(values.data_ptr(), values.numel(), torch.get_num_threads())


def statistics(lower: Tensor, upper: Tensor, out: Tensor) -> None:
    (a, a_real), (b, b_real) = value_addresses((lower, upper))
    _C.statistics(
        a, a_real, out.shape[0], b, b_real, out.shape[1], lower.shape[0], out.data_ptr(), torch.get_num_threads()
    )


def gradient(
    visible: Tensor,
    means: Tensor,
    signs: Tensor,
    phases: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    _C.gradient(
        visible.data_ptr(),
        visible.dtype is torch.float32,
        visible.shape[1],
        means.data_ptr(),
        means.shape[1],
        visible.shape[0],
        signs.data_ptr(),
        phases[0].data_ptr(),
        phases[1].data_ptr(),
        address(None if offsets is None else offsets[0]),
        address(None if offsets is None else offsets[1]),
        out[0].data_ptr(),
        out[1].data_ptr(),
        out[2].data_ptr(),
        torch.get_num_threads(),
    )


def bernoulli(
    probabilities: Tensor, rows: Tensor, out: Tensor, *, seed: int, sweep: int, layer: int, purpose: Purpose
) -> None:
    _C.bernoulli(
        probabilities.data_ptr(),
        rows.data_ptr(),
        out.shape[0],
        out.shape[1],
        out.data_ptr(),
        seed,
        sweep,
        layer | purpose << 16,
        torch.get_num_threads(),
    )


def swap(rungs: Rungs, gaps: Tensor, betas: Tensor, *, seed: int, first_ladder: int) -> None:
    _C.swap(
        rung_addresses(rungs),
        gaps.data_ptr(),
        betas.data_ptr(),
        len(betas),
        rungs.rungs.numel(),
        seed,
        first_ladder,
        rungs.round,
    )
