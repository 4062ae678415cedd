"""What the estimators accept at the user's edge: models and cases of the visible layer."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bm_fast import arrays
from bm_fast.graph import Graph, Kind
from bm_fast.machines import Model as Model
from bm_fast.machines import as_machine as as_machine
from bm_fast.ops import Machine
from bm_fast.program import Update, full_update


def visible_values(machine: Machine, v: Tensor | NDArray[np.generic]) -> Tensor:
    """Checked cases of layer 0; for Bernoulli units exactly 0 or 1, since grey levels have no probability."""
    layer = machine.graph.layers[0]
    values = arrays.rows("v", v, layer, machine.device)
    if layer.kind is Kind.BERNOULLI and not bool(((values == 0) | (values == 1)).all()):
        raise ValueError("v: expected 0 or 1 for Bernoulli units, got values between them; binarise the data first")
    return values


def hidden_layers_are_independent(graph: Graph) -> bool:
    """Whether all couplings lead to layer 0, so that given it the other layers are independent; an RBM's do."""
    return all(0 in (coupling.lower, coupling.upper) for coupling in graph.couplings)


def hidden_updates(graph: Graph) -> tuple[Update, ...]:
    """Updates of all layers but layer 0, which must be independent of each other given layer 0 (an RBM is)."""
    for i, coupling in enumerate(graph.couplings):
        if 0 not in (coupling.lower, coupling.upper):
            raise ValueError(
                f"model: coupling {i} joins two hidden layers, so that p(v) is not a product over hidden units; "
                "this needs a machine in which every coupling leads to layer 0"
            )
    return tuple(full_update(graph, layer) for layer in range(1, len(graph.layers)))


def with_visible(machine: Machine, v: Tensor) -> list[Tensor]:
    """States of all layers that hold ``v`` in layer 0 and zeros elsewhere."""
    rest = (torch.zeros(len(v), layer.units, dtype=torch.uint8, device=v.device) for layer in machine.graph.layers[1:])
    return [v, *rest]
