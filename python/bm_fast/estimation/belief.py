"""How probable data are under a deep belief net: a bound for any size, exact for small ones.

Salakhutdinov and Murray, On the quantitative analysis of deep belief networks (ICML 2008):

    log p(v) >= E_q[log p(v, h) - log q(h | v)]        log p(v, h) = log p(v | h¹) + … - F_top(hᴸ⁻¹) - log Z

The only quantity without a closed form is log Z of the top RBM, which ``ais`` estimates and ``exact_log_z`` finds for
small ones.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import softplus

from bm_fast import belief
from bm_fast.arrays import Array, given_kind
from bm_fast.belief import Recognition
from bm_fast.dbn import DBN
from bm_fast.estimation._machine import visible_values
from bm_fast.estimation.exact import MAX_ENUMERATED_UNITS, binary_states
from bm_fast.estimation.likelihood import LogZ, MeanLogLikelihood, finite_log_z
from bm_fast.parameters import Parameters
from bm_fast.program import Update

_BLOCK = 2**22  # float64 numbers at a time: 32 MiB


def dbn_bound(
    dbn: DBN,
    v: Array,
    log_z: LogZ,
    *,
    n_samples: int = 10,
    recognition: Recognition = "samples",
    seed: int = 0,
) -> Array:
    """E_q[log p(v, h) - log q(h | v)] <= log p(v) of each case by samples from the recognition net, float64 ``[n]``.

    v: uint8 or float32 ``[n, n_visible]``, exactly 0 or 1 for Bernoulli units.
    n_samples, recognition, seed: as for ``DBN.variational_free_energy``. A mean over samples has the bound as its
        expectation, and may lie above it, or above log p(v), by its own error.
    log_z: of ``dbn.top``, exact or an estimate. AIS is below log Z in expectation, so that with it this is no bound
        for certain.
    """
    machines = dbn.machines()
    values = visible_values(machines.generative, v)
    energies = belief.free_energy(machines, values, n_samples, recognition, seed)
    return given_kind(-energies - finite_log_z(log_z), v)


def mean_dbn_bound(
    dbn: DBN,
    v: Tensor | NDArray[np.generic],
    log_z: LogZ,
    *,
    n_samples: int = 10,
    recognition: Recognition = "samples",
    seed: int = 0,
) -> MeanLogLikelihood:
    """Mean of ``dbn_bound`` over the cases, with the errors of the cases and of log Z; arguments as there.

    The error of the cases holds that of the samples too.
    """
    values = visible_values(dbn.machines().generative, v)
    each = dbn_bound(dbn, values, log_z, n_samples=n_samples, recognition=recognition, seed=seed)
    return MeanLogLikelihood.of(each, log_z)


def exact_dbn_log_likelihood(dbn: DBN, v: Array, log_z: LogZ) -> Array:
    """log p(v) of each case, float64 ``[n]``: from the top down, the states of each layer are enumerated.

    Every state of a hidden layer is met with every state of the next, so that two neighbouring layers below the top
    one may have 25 units together. Arguments as for ``dbn_bound``.
    """
    machines = dbn.machines()
    values = visible_values(machines.generative, v)
    parameters = machines.generative.parameters
    _check_size(dbn)
    n_units = dbn.units[-2]
    log_p = torch.cat([belief.top_log_sums(machines.top, part) for part in _state_blocks(n_units, values.device)])
    log_p -= finite_log_z(log_z)
    for (update,) in belief.downward(parameters.graph):
        if update.layer > 0:
            parts = _state_blocks(dbn.units[update.layer], values.device)
            log_p = torch.cat([_marginal(parameters, update, log_p, part) for part in parts])
        else:
            log_p = _marginal(parameters, update, log_p, values)
    return given_kind(log_p, v)


def _check_size(dbn: DBN) -> None:
    layers = list(dbn.graph.layers[1:-1])
    pairs = [layers[i : i + 2] for i in range(max(1, len(layers) - 1))]
    largest = max(pairs, key=lambda pair: sum(layer.units for layer in pair))
    n_units = sum(layer.units for layer in largest)
    if n_units > MAX_ENUMERATED_UNITS:
        raise ValueError(
            f"dbn: the exact likelihood would enumerate the {n_units} units of {[layer.name for layer in largest]}, "
            f"the limit is {MAX_ENUMERATED_UNITS}; dbn_bound serves any size"
        )


def _state_blocks(n_units: int, device: torch.device) -> list[Tensor]:
    rows = max(1, _BLOCK // max(n_units, 8))
    starts = range(0, 2**n_units, rows)
    return [binary_states(start, min(start + rows, 2**n_units), n_units, device).to(torch.uint8) for start in starts]


def _marginal(parameters: Parameters, update: Update, log_p_above: Tensor, states: Tensor) -> Tensor:
    """log p of each row of states ``[n, units]`` of the updated layer, from that of all states of the layer above.

    log p(s | t) = sᵀ f + a(s) - A(f) with f the fields that t makes.
    """
    n_above = parameters.graph.layers[update.layer + 1].units
    values, precision = states.double(), parameters.precisions[update.layer]
    rows = max(1, _BLOCK // max(len(states), values.shape[1]))
    total = torch.full((len(states),), -math.inf, dtype=torch.float64, device=states.device)
    for start in range(0, 2**n_above, rows):
        stop = min(start + rows, 2**n_above)
        fields = belief.fields(parameters, update, binary_states(start, stop, n_above, states.device))
        if precision is None:
            normaliser = softplus(fields, threshold=40).sum(1)
        else:
            normaliser = (fields.square() / precision.double()).sum(1) / 2
        block = values @ fields.T + (log_p_above[start:stop] - normaliser)
        total = torch.logaddexp(total, block.logsumexp(1))
    if precision is not None:
        precision = precision.double()
        total += ((precision / (2 * math.pi)).log() - precision * values.square()).sum(1) / 2
    return total
