"""Mean-field inference: the independent units Q that come closest to p(h | v), and the bound on log p(v) they give.

Q gives unit k the mean μ_k and maximises log p(v) - KL(Q ‖ p(h | v)), which is, but for log Z,

    -F_Q(v) = -E_Q[E(v, h)] + Σ_k H(μ_k) <= log Σ_h exp(-E(v, h))

At a maximum every mean is that of its unit given the means of all others, μ_k = σ(field of k). A softmax layer is one
variable: its means are the probabilities of its units, the softmax of their fields. The iterations update
layers that are not coupled to each other together, and all others after them, so that without damping F_Q never rises.

Source: Saul, Jaakkola and Jordan, Mean field theory for sigmoid belief networks (1996); Salakhutdinov and Hinton, Deep
Boltzmann machines (2009).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bm_fast.graph import Graph, Kind
from bm_fast.ops import Machine
from bm_fast.program import Block, Input, Program, Update, full_update, gibbs_program

_CASES = 1024  # whose float64 terms are computed together


class MeanFieldNotConverged(RuntimeWarning):
    """Some cases still changed by more than the tolerance when mean field reached its last iteration."""


@dataclass(frozen=True)
class Posterior:
    """Means of all layers given the clamped ones, and how the iterations ended.

    layers: per layer float32 ``[n, units]``; what was given for the clamped layers.
    changes: float32 ``[n]``, largest change of a mean in the last iteration of the case, as in ``ops.Convergence``.
    iterations: int32 ``[n]``, iterations of the case.
    converged: bool ``[n]``, whether the case came to rest within the tolerance; all False for tolerance 0.
    """

    layers: tuple[Tensor, ...]
    changes: Tensor
    iterations: Tensor
    converged: Tensor

    @property
    def unconverged(self) -> float:
        """Share of the cases that did not come to rest."""
        return 1 - self.converged.float().mean().item()


def upward_program(graph: Graph, clamped: Collection[int]) -> Program:
    """One pass from the clamped layers outwards, each layer from those reached before it.

    The fields from inputs that are not yet known are made up for by scaling the known ones by the number of all
    couplings over that of the known: in a chain all layers below the top are doubled (Salakhutdinov and Hinton, 2009).
    Softmax layers, of which one unit alone is on, are not counted, and the pass begins at other layers where such are
    clamped.
    """
    known = set(clamped)
    program: list[Block] = []
    while front := _front(graph, known):
        for layer in front:
            neighbours = graph.neighbours(layer)
            reached = [coupling for coupling, other in neighbours if other in known]
            counted = {coupling for coupling, other in neighbours if not _is_softmax(graph, other)}
            known_counted = counted.intersection(reached)
            scale = len(counted) / len(known_counted) if known_counted else 1.0
            inputs = tuple(
                Input(source.coupling, source.transposed, scale)
                for source in full_update(graph, layer).inputs
                if source.coupling in reached
            )
            program.append((Update(layer, inputs),))
            known.add(layer)
    return tuple(program)


def _is_softmax(graph: Graph, layer: int) -> bool:
    return graph.layers[layer].kind is Kind.SOFTMAX


def _front(graph: Graph, known: Collection[int]) -> list[int]:
    """Layers that are next to a known one; next to known softmax layers only where there are no others."""
    beside = {
        layer: [other for _, other in graph.neighbours(layer) if other in known]
        for layer in range(len(graph.layers))
        if layer not in known
    }
    return [layer for layer, others in beside.items() if not all(_is_softmax(graph, other) for other in others)] or [
        layer for layer, others in beside.items() if others
    ]


def infer(
    machine: Machine,
    given: dict[int, Tensor],
    iterations: int,
    tolerance: float,
    damping: float = 0.0,
    stacklevel: int = 2,
) -> Posterior:
    """Means of all layers but the given ones.

    given: layer -> values ``[n, units]``, uint8 0/1 or float32. The iterations begin with one pass outwards from these
    layers (``upward_program``).

    Warns with ``MeanFieldNotConverged`` where a tolerance above 0 was not reached; it states the share of the cases.
    stacklevel: whose call the warning shows, as for ``warnings.warn`` in the caller.
    """
    posterior = settle(machine, given, iterations, tolerance, damping)
    warn_of_unconverged(posterior.changes, iterations, tolerance, stacklevel + 1)
    return posterior


def settle(
    machine: Machine, given: dict[int, Tensor], iterations: int, tolerance: float, damping: float = 0.0
) -> Posterior:
    """As ``infer``, without its warning."""
    graph = machine.graph
    n = len(next(iter(given.values())))
    layers = [
        given[i] if i in given else torch.zeros(n, layer.units, device=machine.device)
        for i, layer in enumerate(graph.layers)
    ]
    program, start = gibbs_program(graph, clamped=given), upward_program(graph, given)
    changes, performed = machine.mean_field(
        program, layers, iterations, start=start, tolerance=tolerance, damping=damping
    )
    converged = changes <= tolerance if tolerance > 0 else torch.zeros_like(changes, dtype=torch.bool)
    return Posterior(tuple(layers), changes, performed, converged)


def warn_of_unconverged(changes: Tensor, iterations: int, tolerance: float, stacklevel: int) -> None:
    """Warns with ``MeanFieldNotConverged`` where cases changed by more than a tolerance above 0 in the last iteration.

    changes: float32 ``[n]``, as a ``Posterior`` has them. stacklevel: as for ``warnings.warn`` in the caller.
    """
    moving = 1 - float((changes <= tolerance).float().mean())
    if tolerance > 0 and moving > 0:
        warnings.warn(
            f"mean field: {moving:.1%} of {len(changes)} cases still changed by more than {tolerance:g} after "
            f"{iterations} iterations (the largest by {changes.max().item():.2g}); allow more of them, or damp them",
            MeanFieldNotConverged,
            stacklevel=stacklevel + 1,
        )


def free_energy(machine: Machine, layers: Sequence[Tensor], clamped: Collection[int] = (0,)) -> Tensor:
    """F_Q = E_Q[E] - Σ H(μ) of each case in float64 ``[n]``, an upper bound of -log Σ_h exp(-E(v, h)) for any means.

    layers: per layer values or means ``[n, units]``; layers that are not clamped add their entropy.
    """
    parameters, graph = machine.parameters, machine.graph
    free = [i for i in range(len(graph.layers)) if i not in clamped]
    if any(graph.layers[i].kind is Kind.GAUSSIAN for i in free):
        raise ValueError("layers: the bound needs Bernoulli or softmax units in all layers that are not clamped")
    weights = [parameters.weight(i).double() for i in range(len(graph.couplings))]
    parts = []
    for rows in zip(*(torch.split(layer, _CASES) for layer in layers), strict=True):
        values = [row.double() for row in rows]
        total = torch.zeros(len(values[0]), dtype=torch.float64, device=machine.device)
        for value, bias, precision in zip(values, parameters.biases, parameters.precisions, strict=True):
            total -= value @ bias.double()
            if precision is not None:
                total += value.square() @ precision.double() / 2
        for coupling, weight in zip(graph.couplings, weights, strict=True):
            total -= ((values[coupling.lower] @ weight) * values[coupling.upper]).sum(1)
        for i in free:
            total -= torch.special.entr(values[i]).sum(1)
            if not _is_softmax(graph, i):
                total -= torch.special.entr(1 - values[i]).sum(1)
        parts.append(total)
    return torch.cat(parts)
