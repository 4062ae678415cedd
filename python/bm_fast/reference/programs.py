"""Fields of layers, and what runs a program of updates: sweeps, means and mean field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bm_fast.graph import Kind
from bm_fast.parameters import Parameters
from bm_fast.program import Program, Update
from bm_fast.reference.arithmetic import Purpose, choose, decide, fma, logistic, normals, random_words, softmax


def model_field(parameters: Parameters, update: Update, layers: Sequence[Tensor]) -> Tensor:
    """Field of a layer at beta = 1, float32 ``[n_chains, units]``: bias, then one fma per input in program order."""
    n_chains = layers[0].shape[0]
    x = parameters.biases[update.layer].expand(n_chains, -1)
    for source in update.inputs:
        coupling = parameters.graph.couplings[source.coupling]
        weights = parameters.weights[source.coupling].double()
        other = layers[coupling.upper if source.transposed else coupling.lower].double()
        total = other @ (weights.T if source.transposed else weights)  # exact for binary units
        scale = source.scale * 2.0 ** -parameters.fraction_bits[source.coupling]
        x = fma(total.float(), torch.tensor(scale), x)
    return x


def tempered(x: Tensor, beta: Tensor | None, base: Tensor | None) -> Tensor:
    """Field at inverse temperature beta ``[n_chains]``, on the path from biases ``base`` (beta = 0) to the model."""
    if beta is None:
        return x
    beta = beta[:, None]
    return beta * x if base is None else fma(beta, x, (1 - beta) * base)


def precision_of(parameters: Parameters, layer: int, beta: Tensor | None, base: object | None) -> Tensor:
    """Precision of a Gaussian layer: beta scales it too, unless a base distribution shares it. ``[..., units]``"""
    precision = parameters.precisions[layer]
    assert precision is not None
    return precision if beta is None or base is not None else beta[:, None] * precision


def layer_mean(parameters: Parameters, layer: int, x: Tensor, beta: Tensor | None, base: object | None) -> Tensor:
    """Mean of each unit given its tempered field."""
    kind = parameters.graph.layers[layer].kind
    if kind is Kind.GAUSSIAN:
        return x / precision_of(parameters, layer, beta, base)
    return softmax(x) if kind is Kind.SOFTMAX else logistic(x)


def sweep(
    parameters: Parameters,
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
) -> int:
    """Runs a program in place on the states of many chains; returns the sweeps done.

    layers: per layer uint8 0/1 (Bernoulli, softmax) or float32 (Gaussian) ``[n_chains, units]``.
    beta: float32 ``[n_chains]``; base: per layer float32 ``[units]``, the biases at beta = 0.
    clamp: layer -> uint8 ``[n_chains, units]``, 1 where a unit keeps its value. A softmax layer keeps its state where
        the unit that is on is held, and otherwise chooses among the units that are not.
    means: layer -> float32 ``[n_chains, units]`` that receives the means from which the last sweep drew that layer.
    """
    chains = torch.arange(first_chain, first_chain + layers[0].shape[0])
    for s in range(first_sweep, first_sweep + n_sweeps):
        for block in program:
            for update in block:
                layer, state = update.layer, layers[update.layer]
                layer_base = None if base is None else base[layer]
                x = tempered(model_field(parameters, update, layers), beta, layer_base)
                units = state.shape[1]
                kind = parameters.graph.layers[layer].kind
                held = clamp[layer].bool() if layer in clamp else None
                if kind is Kind.SOFTMAX:
                    words = random_words(1, chains, s, layer, Purpose.GIBBS, seed)[:, 0]
                    drawn, mean = choose(x, words, held), softmax(x, held)
                    if held is not None:
                        held = (held & (state == 1)).any(1, keepdim=True)
                elif kind is Kind.GAUSSIAN:
                    precision = precision_of(parameters, layer, beta, base)
                    words = random_words(units + units % 2, chains, s, layer, Purpose.GIBBS, seed)  # normals are pairs
                    drawn = x / precision + normals(words)[:, :units] / precision.sqrt()
                    mean = layer_mean(parameters, layer, x, beta, base)
                else:
                    drawn = decide(x, random_words(units, chains, s, layer, Purpose.GIBBS, seed))
                    mean = layer_mean(parameters, layer, x, beta, base)
                if held is not None:
                    drawn, mean = torch.where(held, state, drawn), torch.where(held, state.float(), mean)
                state.copy_(drawn)
                if layer in means:
                    means[layer].copy_(mean)
    return n_sweeps


def layer_means(
    parameters: Parameters,
    update: Update,
    layers: Sequence[Tensor],
    out: Tensor,
    *,
    beta: Tensor | None,
    base: Sequence[Tensor] | None,
) -> None:
    """Writes the mean of each unit of one layer, given the others, to ``out`` (float32 ``[n_chains, units]``).

    layers: per layer uint8 0/1 or float32 values (means, probabilities, Gaussian units).
    """
    layer_base = None if base is None else base[update.layer]
    x = tempered(model_field(parameters, update, layers), beta, layer_base)
    out.copy_(layer_mean(parameters, update.layer, x, beta, base))


def mean_field(
    parameters: Parameters,
    program: Program,
    values: Sequence[Tensor],
    *,
    iterations: int,
    tolerance: float,
    damping: float,
    changes: Tensor,
    performed: Tensor,
) -> None:
    """Runs a program on means: each update replaces the values of its layer by the means given all other values.

    An update moves the old mean m to f + damping (m - f), f being the mean given the field. A case stops by itself once
    none of its means changes by more than ``tolerance`` in an iteration; with tolerance 0 it never does.

    values: per layer ``[n_cases, units]``, uint8 0/1 or float32; float32 and updated in place in layers of the program.
    changes: float32 ``[n_cases]``, largest change of a mean in a case's last iteration.
    performed: int32 ``[n_cases]``, iterations of each case.
    """
    active = torch.arange(values[0].shape[0])
    for iteration in range(iterations):
        largest = torch.zeros(len(active))
        for block in program:
            for update in block:
                x = model_field(parameters, update, [value[active] for value in values])
                mean = layer_mean(parameters, update.layer, x, None, None)
                old = values[update.layer][active]
                mean = fma(torch.tensor(damping), old - mean, mean)
                largest = torch.maximum(largest, (mean - old).abs().amax(1))
                values[update.layer][active] = mean
        changes[active] = largest
        performed[active] = iteration + 1
        if tolerance > 0:
            active = active[largest > tolerance]
            if len(active) == 0:
                return
