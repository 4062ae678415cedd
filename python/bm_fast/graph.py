"""What a Boltzmann machine is made of: layers of units, joined by couplings.

A graph holds no numbers. A restricted Boltzmann machine is two layers and one coupling, a deep one a chain
of layers, a multimodal one a tree; every later step (sampling, learning, estimation) sees only the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from bm_fast.arguments import count

MAX_FAN_IN = 65_536
"""Inputs of one unit over one coupling beyond which 32-bit sums of 16-bit weights could overflow."""


class Kind(IntEnum):
    """How a unit responds to its field; the values are those of the compiled module."""

    BERNOULLI = 0
    GAUSSIAN = 1
    SOFTMAX = 2
    """Units of which exactly one is on: a categorical variable, such as the label of a case."""


@dataclass(frozen=True)
class Layer:
    """A named group of units that are not coupled to each other."""

    name: str
    units: int
    kind: Kind = Kind.BERNOULLI

    def __post_init__(self) -> None:
        count(f"units of layer {self.name!r}", self.units)
        if self.kind not in tuple(Kind):
            kinds = ", ".join(f"Kind.{kind.name}" for kind in Kind)
            raise ValueError(f"kind of layer {self.name!r}: expected one of {kinds}, got {self.kind!r}")
        object.__setattr__(self, "kind", Kind(self.kind))
        if self.kind is Kind.SOFTMAX and self.units < 2:
            raise ValueError(f"units of layer {self.name!r}: expected at least 2 softmax units, got {self.units}")


@dataclass(frozen=True)
class Coupling:
    """A dense weight matrix ``[units of lower, units of upper]`` between two layers, given by index."""

    lower: int
    upper: int


@dataclass(frozen=True)
class Graph:
    """Layers and the couplings between them; layer 0 is the visible layer of a single-pathway machine.

    Layers of any kinds may be coupled, softmax layers to each other too (a Potts coupling), but for two Gaussian ones.
    """

    layers: tuple[Layer, ...]
    couplings: tuple[Coupling, ...]

    def __post_init__(self) -> None:
        names = [layer.name for layer in self.layers]
        if len(set(names)) != len(names):
            raise ValueError(f"layers: expected distinct names, got {names}")
        seen = set()
        for i, coupling in enumerate(self.couplings):
            ends = {coupling.lower, coupling.upper}
            if len(ends) < 2 or not all(0 <= end < len(self.layers) for end in ends):
                raise ValueError(
                    f"coupling {i}: expected two different layers in 0..{len(self.layers) - 1}, "
                    f"got {coupling.lower} and {coupling.upper}"
                )
            if frozenset(ends) in seen:
                raise ValueError(f"coupling {i}: layers {coupling.lower} and {coupling.upper} are coupled already")
            seen.add(frozenset(ends))
            for end in sorted(ends):
                layer = self.layers[end]
                if layer.units > MAX_FAN_IN:
                    raise ValueError(
                        f"layer {layer.name!r}: {layer.units} units exceed the {MAX_FAN_IN} inputs "
                        "over which integer sums are exact"
                    )
            if all(self.layers[end].kind is Kind.GAUSSIAN for end in ends):
                raise ValueError(f"coupling {i}: two Gaussian layers cannot be coupled: the energy would be unbounded")

    def index(self, name: str) -> int:
        """Index of the layer called ``name``; KeyError names the layers there are."""
        for i, layer in enumerate(self.layers):
            if layer.name == name:
                return i
        raise KeyError(f"no layer {name!r}; the layers are {[layer.name for layer in self.layers]}")

    def neighbours(self, layer: int) -> tuple[tuple[int, int], ...]:
        """``(coupling, other layer)`` of every coupling of ``layer``, in the order of the couplings."""
        return tuple(
            (i, c.upper if c.lower == layer else c.lower)
            for i, c in enumerate(self.couplings)
            if layer in (c.lower, c.upper)
        )

    def colours(self) -> tuple[tuple[int, ...], ...]:
        """Layers grouped so that no coupling joins two layers of a group: two groups for any tree."""
        colour: dict[int, int] = {}
        for start in range(len(self.layers)):
            queue = [start] if start not in colour else []
            while queue:
                layer = queue.pop(0)
                if layer in colour:
                    continue
                others = [other for _, other in self.neighbours(layer)]
                taken = {colour[other] for other in others if other in colour}
                colour[layer] = next(c for c in range(len(self.layers)) if c not in taken)
                queue.extend(others)
        return tuple(
            tuple(layer for layer in sorted(colour) if colour[layer] == c) for c in sorted(set(colour.values()))
        )


LABELS = "labels"
"""Name of the softmax layer that holds the class of a case."""


def chain_graph(units: Sequence[int], visible: Kind = Kind.BERNOULLI, n_classes: int | None = None) -> Graph:
    """Layers in a row, each coupled to the next: an RBM (two layers) or a deep Boltzmann machine.

    n_classes: units of a softmax layer ``LABELS``, the last of all, that is coupled to the top; None for no such layer.
    """
    names = ["visible", *(["hidden"] if len(units) == 2 else [f"hidden{i}" for i in range(1, len(units))])]
    kinds = [visible, *([Kind.BERNOULLI] * (len(units) - 1))]
    layers = [Layer(n, u, k) for n, u, k in zip(names, units, kinds, strict=True)]
    if n_classes is not None:
        layers.append(Layer(LABELS, n_classes, Kind.SOFTMAX))
    return Graph(tuple(layers), tuple(Coupling(i, i + 1) for i in range(len(layers) - 1)))
