"""Passes through a belief net, up and down, and how probable their samples are.

Below its top RBM a belief net has two directed nets over the same layers: the generative one, in which a layer depends
on the layer above alone, and the recognition one, in which it depends on the layer below alone. As programs they have
one input for each update.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from bm_fast import ops
from bm_fast.arguments import count, whole_number
from bm_fast.graph import Graph
from bm_fast.ops import MAX_SEED, Machine
from bm_fast.parameters import Parameters
from bm_fast.program import Input, Program, Update, full_update
from bm_fast.rbm import HIDDEN, VISIBLE

Recognition = Literal["samples", "means"]

_CASES = 1024  # whose float64 terms are computed together


class Machines(NamedTuple):
    """The parameters of a belief net on the integer grid.

    generative, recognition: all layers but the top one, each run in its direction only. top: the RBM of the top two.
    """

    generative: Machine
    recognition: Machine
    top: Machine


# --- programs ---------------------------------------------------------------------------------------------------------


def directed(graph: Graph) -> Graph:
    """The layers of a belief net below the top one."""
    return Graph(graph.layers[:-1], graph.couplings[:-1])


def upward(graph: Graph) -> Program:
    """Each layer above the visible one from the layer below it, bottom first; of a ``directed`` graph."""
    return tuple((Update(i, (Input(i - 1, transposed=False),)),) for i in range(1, len(graph.layers)))


def downward(graph: Graph) -> Program:
    """Each layer below the top one from the layer above it, top first; of a ``directed`` graph."""
    return tuple((Update(i, (Input(i, transposed=True),)),) for i in reversed(range(len(graph.layers) - 1)))


def top_sweep(graph: Graph) -> Program:
    """The top layer given the one below it, then that one given the top layer alone; of the whole graph."""
    top = len(graph.layers) - 1
    return (Update(top, (Input(top - 1, transposed=False),)),), (Update(top - 1, (Input(top - 1, transposed=True),)),)


# --- means ------------------------------------------------------------------------------------------------------------


def means_along(machine: Machine, program: Program, given: Tensor) -> list[Tensor]:
    """Means of the layers that a directed program updates, each from those of the layer before, the first from given.

    given: states or means ``[n, units]``. Each result is float32 ``[n, units]``.
    """
    results = []
    for (update,) in program:
        source = _source(machine.graph, update)
        layers = [
            given if i == source else torch.zeros(len(given), layer.units, device=given.device)  # unread
            for i, layer in enumerate(machine.graph.layers)
        ]
        given = machine.layer_means(update, layers)
        results.append(given)
    return results


def means_up(machines: Machines, v: Tensor) -> list[Tensor]:
    """Means of all hidden layers in one pass up, that of the top layer in the top RBM."""
    layers = means_along(machines.recognition, upward(machines.recognition.graph), v)
    to_top = ((full_update(machines.top.graph, HIDDEN),),)
    return layers + means_along(machines.top, to_top, layers[-1])


def means_down(machines: Machines, top: Tensor) -> Tensor:
    """Means of the visible units in one pass down from values of the top layer."""
    from_top = ((full_update(machines.top.graph, VISIBLE),),)
    (given,) = means_along(machines.top, from_top, top)
    return means_along(machines.generative, downward(machines.generative.graph), given)[-1]


def _source(graph: Graph, update: Update) -> int:
    """The only layer that the updated one gets input from."""
    (source,) = update.inputs
    coupling = graph.couplings[source.coupling]
    return coupling.upper if source.transposed else coupling.lower


# --- densities, float64 -----------------------------------------------------------------------------------------------


def fields(parameters: Parameters, update: Update, given: Tensor) -> Tensor:
    """Fields of the updated layer, float64 ``[n, units]``, for values of the only layer it gets input from."""
    (source,) = update.inputs
    weight = parameters.weight(source.coupling).double()
    return given.double() @ (weight.T if source.transposed else weight) + parameters.biases[update.layer].double()


def log_probability(states: Tensor, fields: Tensor, precision: Tensor | None = None) -> Tensor:
    """log p of each row of states given the fields of its units, float64 ``[n]``; precision: of Gaussian units."""
    if precision is None:
        return (states * fields - softplus(fields, threshold=40)).sum(1)
    precision = precision.double()
    squares = precision * (states - fields / precision).square()
    return ((precision / (2 * math.pi)).log() - squares).sum(1) / 2


def free_energy(machines: Machines, v: Tensor, n_samples: int, recognition: Recognition, seed: int) -> Tensor:
    """F(v) = E_q[log q(h | v) - log p*(v, h)] as a mean over samples, float64 ``[n]``; see ``log_weights``."""
    count("n_samples", n_samples)
    seed = whole_number("seed", seed, 0, MAX_SEED)
    if recognition not in ("samples", "means"):
        raise ValueError(f"recognition: expected 'samples' or 'means', got {recognition!r}")
    parts, first = [], 0
    for cases in torch.split(v, _CASES):
        rows = torch.arange(first, first + len(cases), device=v.device)
        log_w = torch.stack(list(log_weights(machines, cases, rows, n_samples, recognition, seed)))
        parts.append(-log_w.mean(0))
        first += len(cases)
    return torch.cat(parts)


def log_weights(
    machines: Machines, v: Tensor, rows: Tensor, n_samples: int, recognition: Recognition, seed: int
) -> Iterator[Tensor]:
    """log p*(v, h) - log q(h | v) of one sample of each case after the other, float64 ``[n]``; p* is p times Z.

    h is all hidden layers but the top one, which is summed out. rows: int64 ``[n]``, numbers by which cases draw.
    """
    generative, seen = machines.generative.parameters, machines.recognition.parameters
    ups = [update for (update,) in upward(seen.graph)]
    first = fields(seen, ups[0], v)
    for k in range(n_samples):
        layers, field, total = [v], first, torch.zeros(len(v), dtype=torch.float64, device=v.device)
        for update in ups:
            means = torch.sigmoid(field)
            states = ops.bernoulli(means.float(), rows, seed=seed, sweep=k, layer=update.layer, are_known=True)
            total -= log_probability(states, field)
            layers.append(states)
            if update.layer < len(ups):
                field = fields(seen, ups[update.layer], states if recognition == "samples" else means)
        for (update,) in downward(generative.graph):
            i = update.layer
            total += log_probability(layers[i], fields(generative, update, layers[i + 1]), generative.precisions[i])
        yield total + top_log_sums(machines.top, layers[-1])


def top_log_sums(top: Machine, states: Tensor) -> Tensor:
    """log Σ over the top layer of exp(-E) for uint8 states of the layer below it, float64 ``[n]``."""
    unread = torch.zeros(len(states), top.graph.layers[HIDDEN].units, dtype=torch.uint8, device=states.device)
    return -top.free_energy((full_update(top.graph, HIDDEN),), (states, unread))[0]
