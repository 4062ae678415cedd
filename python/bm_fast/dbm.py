"""The deep Boltzmann machine: a row of layers, each coupled to the next, all couplings undirected."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bm_fast import arrays, mean_field
from bm_fast.arguments import whole_number
from bm_fast.arrays import Array
from bm_fast.chains import Chains
from bm_fast.graph import Kind, chain_graph
from bm_fast.mean_field import Posterior
from bm_fast.mlp import DeepClassifier
from bm_fast.model import VISIBLE, BoltzmannModel
from bm_fast.ops import Machine
from bm_fast.program import full_update, gibbs_program

ITERATIONS = 50
"""Most mean-field iterations of a case, unless the caller says otherwise."""

TOLERANCE = 1e-4
"""Change of a mean below which a case has come to rest, unless the caller says otherwise."""


class DBM(BoltzmannModel):
    """A deep Boltzmann machine with Bernoulli hidden layers and Bernoulli or Gaussian visible units.

    E(v, h¹ … hᴸ) = -Σ_l hˡ⁻¹ᵀ Wˡ hˡ - Σ_l bˡᵀ hˡ, with h⁰ = v, + ½ Σ λ v² for Gaussian units, λ = exp(log_precision).

    units: those of the visible and of each hidden layer, as in ``(784, 500, 1000)``; with one hidden layer the model is
        an RBM.
    n_classes: units of a softmax layer y above the top, of which one is on, the class of the case; it adds
        -hᴸᵀ U y - aᵀy to the energy. None for a model without labels.
    weights: one float32 ``[units[l], units[l + 1]]`` per coupling, drawn from N(0, weight_scale²) by ``seed``; the last
        one is U where there are labels.
    biases: one float32 ``[units[l]]`` per layer, zero at first; the last one is a where there are labels.

    Source: Salakhutdinov and Hinton, Deep Boltzmann machines (AISTATS 2009); for an RBM with labels Larochelle and
    Bengio, Classification using discriminative RBMs (ICML 2008).
    """

    name = "dbm"

    def __init__(
        self,
        units: Sequence[int],
        visible: Kind = Kind.BERNOULLI,
        seed: int = 0,
        weight_scale: float = 0.01,
        n_classes: int | None = None,
    ) -> None:
        if not isinstance(units, Sequence) or len(units) < 2:
            got = list(units) if isinstance(units, Sequence) else units
            raise ValueError(f"units: expected those of the visible and of at least one hidden layer, got {got}")
        super().__init__(chain_graph(units, visible, n_classes), seed, weight_scale)
        generator = torch.Generator().manual_seed(seed)
        sizes = [layer.units for layer in self.graph.layers]
        self.weights = nn.ParameterList(
            weight_scale * torch.randn(lower, upper, generator=generator) for lower, upper in itertools.pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(n) for n in sizes)
        self.log_precision = self._first_log_precision()

    @property
    def units(self) -> tuple[int, ...]:
        """Numbers of units, from the visible layer up; without those of the labels."""
        return tuple(layer.units for layer in self.graph.layers if layer.kind is not Kind.SOFTMAX)

    @property
    def n_classes(self) -> int | None:
        """Units of the label layer, which is the last of the graph; None where there is none."""
        top = self.graph.layers[-1]
        return top.units if top.kind is Kind.SOFTMAX else None

    @property
    def coupling_weights(self) -> Sequence[nn.Parameter]:
        return tuple(self.weights)

    @property
    def layer_biases(self) -> Sequence[nn.Parameter]:
        return tuple(self.biases)

    def shape(self) -> dict[str, Any]:
        """The arguments that make a DBM of the same shape."""
        labels = {} if self.n_classes is None else {"n_classes": self.n_classes}
        return {"units": list(self.units), **labels}

    def extra_repr(self) -> str:
        labels = "" if self.n_classes is None else f", n_classes={self.n_classes}"
        return f"{self.units}, visible={self.visible.name}{labels}"

    # --- inference --------------------------------------------------------------------------------------------------

    def mean_field(
        self,
        v: Tensor | NDArray[np.generic],
        iterations: int = ITERATIONS,
        tolerance: float = TOLERANCE,
        damping: float = 0.0,
        labels: Tensor | NDArray[np.generic] | None = None,
    ) -> Posterior:
        """The mean-field posterior of each case: its hidden means are ``layers[1:]``, float32 ``[n, units]``.

        v: ``[n, n_visible]``, states or grey levels. The iterations start from one pass up with doubled inputs, and a
        case stops once no mean changes by more than ``tolerance``; tolerance 0 makes exactly ``iterations`` of them.
        damping: share of the old mean that an update keeps, for cases that swing.
        labels: int64 ``[n]``, the class of each case; None: a label layer is inferred like the hidden ones.

        Warns with ``MeanFieldNotConverged``, stating the share of cases, where the tolerance was not reached.
        """
        return self._infer(self.machine(), v, iterations, tolerance, damping, self._label_states(labels, v))

    def variational_free_energy(
        self,
        v: Array,
        iterations: int = ITERATIONS,
        tolerance: float = TOLERANCE,
        damping: float = 0.0,
        labels: Tensor | NDArray[np.generic] | None = None,
    ) -> Array:
        """F_Q(v) of the mean-field posterior, float64 ``[n]``: log p(v) >= -F_Q(v) - log Z; with labels, of p(v, y).

        Arguments as for ``mean_field``; ``estimation.variational_bound`` is the bound itself.
        """
        machine, states = self.machine(), self._label_states(labels, v)
        posterior = self._infer(machine, v, iterations, tolerance, damping, states)
        clamped = (VISIBLE,) if states is None else (VISIBLE, len(self.units))
        return arrays.given_kind(mean_field.free_energy(machine, posterior.layers, clamped), v)

    def features(
        self, v: Array, iterations: int = ITERATIONS, tolerance: float = TOLERANCE, damping: float = 0.0
    ) -> Array:
        """The mean-field means of all hidden layers side by side, float32 ``[n, sum of hidden units]``."""
        posterior = self._infer(self.machine(), v, iterations, tolerance, damping)
        return arrays.given_kind(torch.cat(posterior.layers[1 : len(self.units)], 1), v)

    def reconstruct(
        self, v: Array, iterations: int = ITERATIONS, tolerance: float = TOLERANCE, damping: float = 0.0
    ) -> Array:
        """Mean of v given the mean-field means of v, float32 ``[n, n_visible]``."""
        machine = self.machine()
        layers = self._infer(machine, v, iterations, tolerance, damping).layers
        return arrays.given_kind(machine.layer_means(full_update(self.graph, VISIBLE), layers), v)

    def complete(
        self,
        v: Array,
        mask: Tensor | NDArray[np.generic],
        sweeps: int = 100,
        seed: int = 0,
        what: Literal["means", "states"] = "means",
    ) -> Array:
        """Fills in what ``mask`` leaves open by Gibbs sampling with the rest clamped, ``[n, n_visible]``.

        v: states ``[n, n_visible]``, uint8 0/1 or float32 for Gaussian units; open units may hold any value of theirs,
            from which the chains start. mask: bool or uint8, 1 where v is known; ``[n_visible]`` or ``[n, n_visible]``.
        what: "means" gives float32 means of the open units in the last sweep beside the known values, "states" a sample
            in the dtype of v.
        """
        if what not in ("means", "states"):
            raise ValueError(f"what: expected 'means' or 'states', got {what!r}")
        sweeps = whole_number("sweeps", sweeps, 1, 2**32 - 1)
        machine = self.machine()
        n = len(arrays.rows("v", v, self.graph.layers[VISIBLE], self.device))
        chains = machine.chains(n, seed)
        self._begin_at("v", v, chains)
        known = self._mask("mask", mask, n)
        means = torch.empty(chains.layers[VISIBLE].shape, device=self.device)
        program = gibbs_program(self.graph)
        machine.sweep(program, chains, sweeps, clamp={VISIBLE: known}, means={VISIBLE: means})
        return arrays.given_kind(means if what == "means" else chains.layers[VISIBLE], v)

    # --- classification ---------------------------------------------------------------------------------------------

    def to_mlp(self, n_classes: int, dropout: float = 0.0, seed: int = 0) -> DeepClassifier:
        """A feed-forward network of the same shape that begins as one pass of mean field; it takes ``mlp_inputs(v)``.

        dropout: probability with which each hidden unit is left out in training. seed: of the output weights.
        """
        n_layers = len(self.units)
        weights, biases = self.coupling_weights[: n_layers - 1], self.layer_biases[:n_layers]
        return DeepClassifier(weights, biases, n_classes, dropout, seed)

    def mlp_inputs(
        self, v: Array, iterations: int = ITERATIONS, tolerance: float = TOLERANCE, damping: float = 0.0
    ) -> Array:
        """Data beside the posteriors of all hidden layers but the first, float32: what the network of ``to_mlp`` takes.

        Arguments as for ``mean_field``.
        """
        posterior: Posterior = self._infer(self.machine(), v, iterations, tolerance, damping)
        data, _, *above = posterior.layers[: len(self.units)]
        return arrays.given_kind(torch.cat([data.float(), *above], 1), v)

    def _infer(
        self,
        machine: Machine,
        v: Tensor | NDArray[np.generic],
        iterations: int,
        tolerance: float,
        damping: float,
        labels: Tensor | None = None,
    ) -> Posterior:
        given = {VISIBLE: arrays.rows("v", v, self.graph.layers[VISIBLE], self.device)}
        if labels is not None:
            given[len(self.units)] = labels
        return mean_field.infer(machine, given, iterations, tolerance, damping, stacklevel=3)

    # --- labels -----------------------------------------------------------------------------------------------------

    def label_means(
        self, v: Array, iterations: int = ITERATIONS, tolerance: float = TOLERANCE, damping: float = 0.0
    ) -> Array:
        """Mean-field probabilities of the classes of v, float32 ``[n, n_classes]``; arguments as for ``mean_field``."""
        self._require_labels()
        return arrays.given_kind(self._infer(self.machine(), v, iterations, tolerance, damping).layers[-1], v)

    def class_free_energies(
        self, v: Array, iterations: int = ITERATIONS, tolerance: float = TOLERANCE, damping: float = 0.0
    ) -> Array:
        """F(v, y) for each class y, float64 ``[n, n_classes]``.

        Exact for one hidden layer: -log Σ_h exp(-E(v, h, y)). For more of them F_Q(v, y), the bound that mean field
        with the label clamped gives; the other arguments are those of ``mean_field``.
        """
        return arrays.given_kind(self._class_free_energies(v, iterations, tolerance, damping), v)

    def _class_free_energies(
        self, v: Tensor | NDArray[np.generic], iterations: int, tolerance: float, damping: float
    ) -> Tensor:
        n_classes, machine = self._require_labels(), self.machine()
        values = arrays.rows("v", v, self.graph.layers[VISIBLE], self.device)
        columns, changes = [], torch.zeros(len(values), device=self.device)
        for y in range(n_classes):
            states = arrays.one_hot(torch.full((len(values),), y, device=self.device), n_classes)
            if len(self.units) == 2:
                unread = torch.zeros(len(values), self.units[1], dtype=torch.uint8, device=self.device)
                columns.append(machine.free_energy((full_update(self.graph, 1),), (values, unread, states))[0])
            else:
                top = len(self.units)
                posterior = mean_field.settle(machine, {VISIBLE: values, top: states}, iterations, tolerance, damping)
                columns.append(mean_field.free_energy(machine, posterior.layers, (VISIBLE, top)))
                changes = torch.maximum(changes, posterior.changes)
        # once in all: a case counts where it did not come to rest beside any one of the classes
        mean_field.warn_of_unconverged(changes, iterations, tolerance, stacklevel=3)
        return torch.stack(columns, 1)

    def label_probabilities(
        self, v: Array, iterations: int = ITERATIONS, tolerance: float = TOLERANCE, damping: float = 0.0
    ) -> Array:
        """p(y | v) = exp(-F(v, y)) / Σ exp(-F(v, y')), float64 ``[n, n_classes]``; F as in ``class_free_energies``.

        Exact for one hidden layer. For more of them each class is judged by its own bound, which costs a mean field for
        every class.
        """
        energies = self._class_free_energies(v, iterations, tolerance, damping)
        return arrays.given_kind(torch.softmax(-energies, 1), v)

    def predict(
        self, v: Array, iterations: int = ITERATIONS, tolerance: float = TOLERANCE, damping: float = 0.0
    ) -> Array:
        """The most probable class of each case by ``label_probabilities``, int64 ``[n]``."""
        energies = self._class_free_energies(v, iterations, tolerance, damping)
        return arrays.given_kind(energies.argmin(1), v)

    def labelled_chains(self, labels: Tensor | NDArray[np.generic], seed: int) -> Chains:
        """One chain at sweep 0 for each label, int64 ``[n_chains]``, which its label layer holds.

        ``sample(chains, sweeps, hold=["labels"])`` then draws from p(v, h | y).
        """
        self._require_labels()
        chains = self.chains(len(labels), seed)
        states = self._label_states(labels, chains.layers[VISIBLE])
        assert states is not None
        chains.layers[-1].copy_(states)
        return chains

    def _require_labels(self) -> int:
        if self.n_classes is None:
            raise ValueError("model: expected one with labels, as DBM(units, n_classes=10) makes")
        return self.n_classes

    def _label_states(
        self, labels: Tensor | NDArray[np.generic] | None, v: Tensor | NDArray[np.generic]
    ) -> Tensor | None:
        if labels is None:
            return None
        n_classes = self._require_labels()
        return arrays.one_hot(arrays.labels("labels", labels, len(v), n_classes, self.device), n_classes)
