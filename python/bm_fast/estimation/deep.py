"""How probable data are under a machine whose hidden layers are coupled: a bound for any size, exact for small ones."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bm_fast import mean_field
from bm_fast.arrays import Array, given_kind
from bm_fast.estimation._machine import Model, as_machine, visible_values
from bm_fast.estimation.exact import log_z_with_biases
from bm_fast.estimation.likelihood import LogZ, MeanLogLikelihood, finite_log_z
from bm_fast.graph import Coupling, Graph
from bm_fast.parameters import Parameters


def variational_bound(
    model: Model,
    v: Array,
    log_z: LogZ,
    *,
    iterations: int = 100,
    tolerance: float = 1e-4,
    damping: float = 0.0,
) -> Array:
    """-F_Q(v) - log Z <= log p(v) of each case with Q from mean field, float64 ``[n]``.

    v: uint8 or float32 ``[n, units]`` of layer 0, exactly 0 or 1 for Bernoulli units.
    iterations, tolerance, damping: of mean field; any Q gives a bound, and a better one the higher. Warns with
        ``MeanFieldNotConverged`` where the tolerance was not reached.
    log_z: exact, or an estimate. AIS is below log Z in expectation, so that with it this is no bound for certain.

    Source: Salakhutdinov and Hinton, Deep Boltzmann machines (AISTATS 2009).
    """
    machine = as_machine(model)
    values = visible_values(machine, v)
    posterior = mean_field.infer(machine, {0: values}, iterations, tolerance, damping)
    return given_kind(-mean_field.free_energy(machine, posterior.layers) - finite_log_z(log_z), v)


def mean_variational_bound(
    model: Model,
    v: Tensor | NDArray[np.generic],
    log_z: LogZ,
    *,
    iterations: int = 100,
    tolerance: float = 1e-4,
    damping: float = 0.0,
) -> MeanLogLikelihood:
    """Mean of ``variational_bound`` over the cases, with the errors of the cases and of log Z; arguments as there."""
    machine = as_machine(model)
    values = visible_values(machine, v)
    each = variational_bound(machine, values, log_z, iterations=iterations, tolerance=tolerance, damping=damping)
    return MeanLogLikelihood.of(each, log_z)


def exact_log_likelihood(model: Model, v: Array, log_z: LogZ) -> Array:
    """log p(v) of each case, float64 ``[n]``: the hidden layers are summed out by enumeration.

    Given v they are a machine of their own, whose log Z is found as by ``exact_log_z``, in float64 and within its
    limits: 25 units of one colour.
    Each case costs such a sum: for a few cases, or small machines. Arguments as for ``variational_bound``.
    """
    machine = as_machine(model)
    values = visible_values(machine, v)
    parameters = machine.parameters
    hidden = [_given_visible(parameters, row) for row in values.double()]
    sums = [log_z_with_biases(rest, biases) + from_visible for rest, biases, from_visible in hidden]
    return given_kind(torch.tensor(sums, dtype=torch.float64, device=machine.device) - finite_log_z(log_z), v)


def _given_visible(parameters: Parameters, v: Tensor) -> tuple[Parameters, list[Tensor], float]:
    """The machine of the hidden layers, their biases beside v (float64), and what v adds to -E by itself."""
    graph = parameters.graph
    biases = [bias.double() for bias in parameters.biases]
    for i, coupling in enumerate(graph.couplings):
        weight = parameters.weight(i).double()
        if coupling.lower == 0:
            biases[coupling.upper] = biases[coupling.upper] + v @ weight
        elif coupling.upper == 0:
            biases[coupling.lower] = biases[coupling.lower] + weight @ v
    among = [i for i, c in enumerate(graph.couplings) if 0 not in (c.lower, c.upper)]
    couplings = tuple(Coupling(graph.couplings[i].lower - 1, graph.couplings[i].upper - 1) for i in among)
    rest = Parameters(
        Graph(graph.layers[1:], couplings),
        tuple(parameters.weights[i] for i in among),
        tuple(parameters.fraction_bits[i] for i in among),
        parameters.biases[1:],
        parameters.precisions[1:],
    )
    from_visible = float(v @ biases[0])
    if parameters.precisions[0] is not None:
        from_visible -= float(v.square() @ parameters.precisions[0].double()) / 2
    return rest, biases[1:], from_visible
