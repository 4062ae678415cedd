"""What of a machine needs no chance to be checked: it is exact but for float32 rounding."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from bm_fast.estimation._checks import Check
from bm_fast.estimation._enumeration import Enumeration
from bm_fast.estimation._machine import hidden_layers_are_independent
from bm_fast.estimation._path import AnnealingPath
from bm_fast.estimation.exact import exact_log_z
from bm_fast.estimation.likelihood import log_likelihood
from bm_fast.graph import Graph
from bm_fast.machines import Model
from bm_fast.model import BoltzmannModel
from bm_fast.ops import Machine
from bm_fast.program import full_update

EXACT = 1e-5
"""Largest error of what should be exact but for float32 rounding, relative to the largest value or 1."""


def _exact(subject: str, what: str, got: Tensor, expected: Tensor) -> Check:
    scale = max(1.0, float(expected.abs().max()))
    error = float((got.double() - expected).abs().nan_to_num(nan=math.inf).max())
    return Check(subject, what, f"largest error {error:.1e} of values up to {scale:.3g}", None, error <= EXACT * scale)


def model_checks(model: Model, machine: Machine, truth: Enumeration) -> list[Check]:
    """Energies, means, densities and log Z of a machine beside those of all its states."""
    subject, graph = type(model).__name__, machine.graph
    states = truth.layers(torch.arange(len(truth.states), device=machine.device))
    checks = []
    if isinstance(model, BoltzmannModel):
        for i, weight in enumerate(model.coupling_weights):
            step = 2.0 ** -machine.parameters.fraction_bits[i]
            error = float((machine.parameters.weight(i).double() - weight.detach().double()).abs().max()) / step
            evidence = f"largest error {error:.3f} steps of {step:.1e}, at most half a step"
            checks.append(Check(subject, f"weights {i} on the integer grid", evidence, None, error <= 0.5 + 1e-6))
    checks.append(_exact(subject, "energies of all states", machine.energy(states), truth.energies))
    for i, layer in enumerate(graph.layers):
        got = machine.layer_means(full_update(graph, i), states)
        checks.append(_exact(subject, f"means of layer {layer.name!r} given the others", got, _means(truth, i)))
    path = AnnealingPath(machine, None)
    if path.updates:
        summed = {update.layer for update in path.updates}
        names = ", ".join(graph.layers[i].name for i in sorted(summed))
        checks.append(
            _exact(
                subject,
                f"log density without {names}",
                path.log_density(states, (1.0,))[0],
                _summed_out(truth, summed),
            )
        )
    log_z = torch.tensor(exact_log_z(machine), dtype=torch.float64)
    checks.append(_exact(subject, "log Z", log_z, torch.tensor(truth.log_z, dtype=torch.float64)))
    if hidden_layers_are_independent(graph):
        visible = states[0][: 2 ** graph.layers[0].units].contiguous()
        got = log_likelihood(machine, visible, truth.log_z)
        checks.append(_exact(subject, "log p(v) of every v", got, truth.log_visible()))
    return checks


def _unit_bits(graph: Graph, layers: Collection[int]) -> list[int]:
    """The bits of a state's number that belong to some layers."""
    sizes = [layer.units for layer in graph.layers]
    return [bit for i in layers for bit in range(sum(sizes[:i]), sum(sizes[: i + 1]))]


def _means(truth: Enumeration, layer: int) -> Tensor:
    """P(unit on | all other units) of each unit of a layer in every state, float64 ``[2^n, units]``."""
    numbers = torch.arange(len(truth.states), device=truth.p.device)
    on = [
        torch.sigmoid(truth.energies[numbers & ~(1 << bit)] - truth.energies[numbers | (1 << bit)])
        for bit in _unit_bits(truth.graph, [layer])
    ]
    return torch.stack(on, 1)


def _summed_out(truth: Enumeration, layers: Collection[int]) -> Tensor:
    """log Σ exp(-E) over the units of some layers, given the others of every state; float64 ``[2^n]``."""
    numbers = torch.arange(len(truth.states), device=truth.p.device)
    log_p = -truth.energies
    for bit in _unit_bits(truth.graph, layers):
        log_p = torch.logaddexp(log_p[numbers & ~(1 << bit)], log_p[numbers | (1 << bit)])
    return log_p
