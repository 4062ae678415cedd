"""How probable data are under a machine: log-likelihood, pseudo-log-likelihood, reconstruction error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bm_fast.arrays import Array, given_kind
from bm_fast.estimation._machine import Model, as_machine, hidden_updates, visible_values, with_visible
from bm_fast.estimation._softplus import softplus_sums
from bm_fast.estimation.ais import AISEstimate
from bm_fast.estimation.tempering import TemperedLogZ
from bm_fast.graph import Kind
from bm_fast.ops import Machine
from bm_fast.program import full_update

_CASES = 256  # cases at a time: bounds memory, and keeps a block of 256 x 784 float64 in the second-level cache


LogZ = float | AISEstimate | TemperedLogZ
"""log Z as likelihoods take it: exact, or an estimate, whose error and verdict go on into mean likelihoods."""


@dataclass(frozen=True)
class MeanLogLikelihood:
    """Mean log-likelihood in nats per case, with the errors that come from the finite data and from log Z.

    reason: why not to trust the estimate of log Z behind it, and so its error; empty where nothing speaks against it.
    """

    mean: float
    case_error: float
    log_z_error: float
    reason: str = ""

    @classmethod
    def of(cls, each: Tensor, log_z: LogZ) -> MeanLogLikelihood:
        """From the log-likelihood of each case, float64 ``[n]``, and the log Z that it was made with."""
        case_error = each.std().item() / math.sqrt(len(each)) if len(each) > 1 else math.inf
        if isinstance(log_z, AISEstimate | TemperedLogZ):
            return cls(each.mean().item(), case_error, log_z.standard_error, log_z.reason)
        return cls(each.mean().item(), case_error, 0.0)

    @property
    def trustworthy(self) -> bool:
        """Whether the estimate of log Z is."""
        return not self.reason

    @property
    def standard_error(self) -> float:
        """Both errors together; they are independent."""
        return math.hypot(self.case_error, self.log_z_error)

    def __str__(self) -> str:
        errors = f"cases {self.case_error:.2f}, log Z {self.log_z_error:.2f}"
        verdict = "" if self.trustworthy else "; log Z NOT TRUSTWORTHY"
        return f"{self.mean:.2f} ± {self.standard_error:.2f} nats ({errors}{verdict})"


def log_likelihood(model: Model, v: Array, log_z: LogZ) -> Array:
    """log p(v) = -F(v) - log Z of each case, float64 ``[n]``.

    v: uint8 or float32 ``[n, units]``, exactly 0 or 1 for Bernoulli units; a numpy array gives one back.
    log_z: exact, or an estimate. AIS is below log Z in expectation, which makes the likelihood look too good.
    ValueError where hidden layers are coupled to each other: p(v) of a deep machine has no closed form.
    """
    machine = as_machine(model)
    values = visible_values(machine, v)
    free_energy = machine.free_energy(hidden_updates(machine.graph), with_visible(machine, values))[0]
    return given_kind(-free_energy - finite_log_z(log_z), v)


def mean_log_likelihood(model: Model, v: Tensor | NDArray[np.generic], log_z: LogZ) -> MeanLogLikelihood:
    """Mean of ``log_likelihood`` over the cases, with standard errors; arguments as there."""
    machine = as_machine(model)
    return MeanLogLikelihood.of(log_likelihood(machine, visible_values(machine, v), log_z), log_z)


def pseudo_log_likelihood(
    model: Model, v: Array, *, method: Literal["exact", "stochastic"] = "exact", seed: int = 0
) -> Array:
    """Σ_i log p(v_i | all other units of v) of each case, float64 ``[n]`` (Besag, 1975); it needs no log Z.

    With F the free energy and v~ the case with unit i flipped, a term is log σ(F(v~) - F(v)). "exact" takes all
    units; "stochastic" takes n_units times the term of one unit drawn uniformly for each case, which has the same
    expectation. Bernoulli visible units only.
    """
    machine = as_machine(model)
    layer = machine.graph.layers[0]
    if layer.kind is not Kind.BERNOULLI:
        raise ValueError(f"model: pseudo-likelihood needs Bernoulli visible units, got {layer.kind.name} ones")
    values = visible_values(machine, v)
    if method == "exact":
        result = torch.cat([_exact_pseudo(machine, part) for part in torch.split(values.double(), _CASES)])
    elif method == "stochastic":
        result = _stochastic_pseudo(machine, values, seed)
    else:
        raise ValueError(f"method: expected 'exact' or 'stochastic', got {method!r}")
    return given_kind(result, v)


def reconstruction_error(model: Model, v: Array) -> Array:
    """Mean over units of (v - E[v | E[h | v]])² of each case, float64 ``[n]``: one mean-field pass up and down.

    It follows training cheaply but does not measure likelihood: a machine that mixes badly reconstructs well.
    """
    machine = as_machine(model)
    values = visible_values(machine, v)
    states = with_visible(machine, values)
    for update in hidden_updates(machine.graph):
        states[update.layer] = machine.layer_means(update, states)
    means = machine.layer_means(full_update(machine.graph, 0), states)
    return given_kind((values.double() - means.double()).square().mean(1), v)


def finite_log_z(log_z: LogZ) -> float:
    """The value itself, or that of an estimate; ValueError unless it is finite."""
    value = log_z.log_z if isinstance(log_z, AISEstimate | TemperedLogZ) else log_z
    try:
        is_finite = math.isfinite(value)
    except TypeError as error:
        raise ValueError(f"log_z: expected a number or an estimate, got {type(value).__name__}") from error
    if not is_finite:
        raise ValueError(f"log_z: expected a finite number, got {value}")
    return value


def _exact_pseudo(machine: Machine, v: Tensor) -> Tensor:
    """v: float64 0/1 ``[n, units]``. Flipping unit i adds ±W_i to the hidden fields, for all units at once."""
    for layer in machine.graph.layers[1:]:
        if layer.kind is not Kind.BERNOULLI:
            raise ValueError(
                f"method: 'exact' needs Bernoulli hidden units, got {layer.kind.name} ones in layer {layer.name!r}; "
                "'stochastic' serves others"
            )
    parameters = machine.parameters
    on = v == 1
    change = torch.where(on, -1.0, 1.0) * parameters.biases[0].double()  # F(v) - F(v~), its hidden part still missing
    for update in hidden_updates(machine.graph):
        field = parameters.biases[update.layer].double().expand(len(v), -1)
        rows = torch.zeros(v.shape[1], field.shape[1], dtype=torch.float64, device=v.device)
        for source in update.inputs:
            weight = parameters.weight(source.coupling).double()
            rows += weight.T if source.transposed else weight
        field = field + v @ rows
        before = torch.nn.functional.softplus(field, threshold=40).sum(1, keepdim=True)
        change += torch.where(on, softplus_sums(field, -rows), softplus_sums(field, rows)) - before
    return torch.nn.functional.logsigmoid(-change).sum(1)


def _stochastic_pseudo(machine: Machine, v: Tensor, seed: int) -> Tensor:
    n, units = v.shape
    unit = torch.randint(units, (n, 1), generator=torch.Generator().manual_seed(seed)).to(v.device)
    flipped = v.scatter(1, unit, 1 - v.gather(1, unit))
    updates = hidden_updates(machine.graph)
    before = machine.free_energy(updates, with_visible(machine, v))[0]
    after = machine.free_energy(updates, with_visible(machine, flipped))[0]
    return units * torch.nn.functional.logsigmoid(after - before)
