"""How a graph is run: blocks of layer updates, walked one after the other.

Gibbs sampling, mean field, annealing and both phases of learning run the same kind of program. A layer that no
update names is clamped; an input may be scaled, as the doubled inputs of greedy pretraining are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from bm_fast.graph import Graph


@dataclass(frozen=True)
class Input:
    """One coupling as seen from the updated layer; ``transposed`` when that layer is the coupling's lower end."""

    coupling: int
    transposed: bool
    scale: float = 1.0


@dataclass(frozen=True)
class Update:
    """Refreshes every unit of ``layer`` given its inputs, whose fields are added in this order."""

    layer: int
    inputs: tuple[Input, ...]

    @cached_property
    def plain(self) -> tuple[int, list[tuple[int, bool, float]]]:
        """In tuples, as the compiled modules take it."""
        return self.layer, [(source.coupling, source.transposed, source.scale) for source in self.inputs]


Block = tuple[Update, ...]
"""Updates of layers that are independent of each other given all the others."""

Program = tuple[Block, ...]
"""One sweep: the blocks in order."""


def full_update(graph: Graph, layer: int) -> Update:
    """Update of ``layer`` from all of its couplings."""
    return Update(
        layer, tuple(Input(i, transposed=graph.couplings[i].lower == layer) for i, _ in graph.neighbours(layer))
    )


def gibbs_program(graph: Graph, clamped: Collection[int] = (), *, last: int | None = None) -> Program:
    """One block Gibbs sweep: all free layers, colour by colour.

    The colour of layer 0 comes last, so that a chain can start from visible units alone. ``last`` names a layer whose
    colour is to come last instead: learning ends a sweep on the hidden layers, whose means it needs.
    """
    for name, layers in (("clamped", clamped), ("last", () if last is None else (last,))):
        for layer in layers:
            if not 0 <= layer < len(graph.layers):
                raise ValueError(f"{name}: no layer {layer} in a graph of {len(graph.layers)}")
    order = list(reversed(graph.colours()))
    if last is not None:
        order.sort(key=lambda colour: last in colour)
    blocks = (tuple(full_update(graph, layer) for layer in colour if layer not in clamped) for colour in order)
    return tuple(block for block in blocks if block)


def check_program(graph: Graph, program: Program) -> None:
    """Raises ValueError where a program does not fit the graph, or updates coupled layers at the same time."""
    updated = [update.layer for block in program for update in block]
    if len(set(updated)) != len(updated):  # a layer's random numbers are counted by sweep
        raise ValueError(f"program: expected each layer at most once in a sweep, got {updated}")
    for b, block in enumerate(program):
        layers = [update.layer for update in block]
        for update in block:
            if not 0 <= update.layer < len(graph.layers):
                raise ValueError(f"program block {b}: no layer {update.layer} in a graph of {len(graph.layers)}")
            for source in update.inputs:
                if not 0 <= source.coupling < len(graph.couplings):
                    raise ValueError(f"program block {b}: no coupling {source.coupling}")
                coupling = graph.couplings[source.coupling]
                target, other = (
                    (coupling.lower, coupling.upper) if source.transposed else (coupling.upper, coupling.lower)
                )
                if target != update.layer:
                    raise ValueError(
                        f"program block {b}: coupling {source.coupling} "
                        f"{'transposed ' if source.transposed else ''}leads to layer {target}, not {update.layer}"
                    )
                if other in layers:
                    raise ValueError(
                        f"program block {b}: layers {update.layer} and {other} are coupled "
                        "and cannot be updated together"
                    )
