"""Operations by ``reference``: slow, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from bm_fast import reference
from bm_fast.graph import Graph
from bm_fast.parameters import GapBiases, Parameters, snapshot
from bm_fast.program import Program, Update
from bm_fast.reference import bernoulli as bernoulli
from bm_fast.reference import gradient as gradient
from bm_fast.reference import quantise as quantise
from bm_fast.reference import statistics as statistics
from bm_fast.reference import swap as swap


class Machine:
    """A machine that runs in plain torch."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters

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
        for s in range(n_sweeps):
            reference.sweep(
                self._parameters,
                program,
                layers,
                1,
                seed=seed,
                first_chain=first_chain,
                first_sweep=first_sweep + s,
                beta=beta,
                base=base,
                clamp=clamp,
                means=means,
            )
            done.fill_(s + 1)
            progress(s + 1)

    def layer_means(
        self,
        update: Update,
        values: Sequence[Tensor],
        out: Tensor,
        *,
        beta: Tensor | None,
        base: Sequence[Tensor] | None,
    ) -> None:
        reference.layer_means(self._parameters, update, values, out, beta=beta, base=base)

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
        for part, most, rest, share in ((start, 1, 0.0, 0.0), (program, iterations, tolerance, damping)):
            reference.mean_field(
                self._parameters,
                part,
                values,
                iterations=most,
                tolerance=rest,
                damping=share,
                changes=changes,
                performed=performed,
            )

    def energy(self, layers: Sequence[Tensor]) -> Tensor:
        return reference.energy(self._parameters, layers)

    def gap(self, biases: GapBiases, layers: Sequence[Tensor]) -> Tensor:
        return reference.gap(self._parameters, biases.whole, biases.bits, biases.base is not None, layers)

    def free_energy(
        self, updates: Sequence[Update], values: Sequence[Tensor], *, betas: Tensor, base: Sequence[Tensor] | None
    ) -> Tensor:
        return reference.free_energy(self._parameters, updates, values, betas=betas, base=base)


def build(
    graph: Graph, weights: Sequence[Tensor], biases: Sequence[Tensor], precisions: Sequence[Tensor | None] | None
) -> tuple[Parameters, Machine]:
    parameters = snapshot(graph, weights, biases, precisions, quantise)
    return parameters, Machine(parameters)
