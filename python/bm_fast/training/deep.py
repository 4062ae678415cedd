"""Learning a deep Boltzmann machine: mean field for the data phase, persistent chains for the model phase.

The gradient of the bound on the log-likelihood is, for each coupling, ⟨lower upperᵀ⟩ under the data minus the same
under the model. Under the data the hidden units are independent with their mean-field means; under the model they are
those of chains that go on from update to update.

With s = -1/n_data for a row of data and +1/n_chains for a chain, x_l the means or states of layer l and c_l its offset
(zero without centring), the gradient of the negative bound is

    r_l = Σ s x_l        g_W = Σ s (x_lower - c_lower)(x_upper - c_upper)ᵀ        g_b = r_l - Σ_neighbours g_W c_other

which is a plain gradient step in the parameters of the machine with x - c in place of x (docs/deep.md).

Source: Salakhutdinov and Hinton, Deep Boltzmann machines (AISTATS 2009); Montavon and Müller, Deep Boltzmann machines
and the centering trick (2012); for sparsity Hinton, A practical guide to training RBMs (2010), section 11.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from bm_fast import arrays, checkpoints, mean_field
from bm_fast.arguments import count
from bm_fast.chains import Chains, empty_layers
from bm_fast.dbm import DBM
from bm_fast.graph import Graph
from bm_fast.model import VISIBLE
from bm_fast.ops import Machine
from bm_fast.ops.backends import backend
from bm_fast.program import Input, Program, Update, full_update, gibbs_program
from bm_fast.tempering import Operator
from bm_fast.training.batches import column_means
from bm_fast.training.estimators import CD
from bm_fast.training.gradient import OFFSET_RATE, GradientMemory
from bm_fast.training.learner import chains_state, load_chains
from bm_fast.training.tempered import operator_from, operator_settings

ACTIVITY_RATE = 0.1
"""Weight of the newest batch in the moving average of the activity that sparsity targets steer."""


@dataclass(frozen=True)
class MeanFieldPCD:
    """Mean field for the data, ``n_chains`` persistent chains with ``sweeps`` sweeps an update for the model.

    operator: moves the chains in place of the ``sweeps`` plain sweeps (``bm_fast.tempering``); None: plain sweeps.
    iterations, tolerance, damping: of mean field (``DBM.mean_field``). The share of rows that did not come to rest is
        the metric "unconverged" of each epoch.
    sparsity: for each hidden layer the mean activity to steer to, or empty for none.
    sparsity_cost: how strongly. To the gradient of unit k are added cost (q_k - target) for its bias, and that times
        the mean of the other end for the weights that lead to it, q being a moving average of the means of the data.
    """

    n_chains: int = 100
    sweeps: int = 5
    iterations: int = 10
    tolerance: float = 1e-3
    damping: float = 0.0
    sparsity: tuple[float, ...] = ()
    sparsity_cost: float = 0.001
    operator: Operator | None = None

    def __post_init__(self) -> None:
        for name in ("n_chains", "sweeps", "iterations"):
            count(name, getattr(self, name))
        for name in ("tolerance", "damping"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 to below 1, got {getattr(self, name)}")
        object.__setattr__(self, "sparsity", tuple(self.sparsity))
        if not all(0 < target < 1 for target in self.sparsity):
            raise ValueError(f"sparsity: expected targets between 0 and 1, got {self.sparsity}")
        if not 0 <= self.sparsity_cost < math.inf:
            raise ValueError(f"sparsity_cost: expected a finite number of at least 0, got {self.sparsity_cost}")

    def settings(self) -> dict[str, Any]:
        """What a checkpoint holds of the estimator; with an operator of this package it can be made from it again."""
        operator = None if self.operator is None else operator_settings(self.operator)
        return {**{each.name: getattr(self, each.name) for each in fields(self)}, "operator": operator}

    @classmethod
    def from_settings(cls, operator: Mapping[str, Any] | None = None, **settings: Any) -> MeanFieldPCD:
        """The estimator that ``settings`` described."""
        return cls(operator=None if operator is None else operator_from(operator), **settings)


class _Rows:
    """Memory for the values of an update: rows of data end where those of the chains begin, so that one call sums both.

    layers: visible states, and float32 means or states of the hidden layers, of ``batch_size`` rows and all chains.
    """

    def __init__(self, graph: Graph, batch_size: int, n_chains: int, device: torch.device) -> None:
        n = batch_size + n_chains
        self.layers = (
            empty_layers(graph, n, device)[VISIBLE],
            *(torch.zeros(n, layer.units, device=device) for layer in graph.layers[1:]),
        )
        self.data_end = batch_size
        self.model = tuple(values[batch_size:] for values in self.layers)
        self._blocks: dict[int, _Block] = {}

    def block(self, n_data: int) -> _Block:
        """The last ``n_data`` rows of the data and the chains."""
        if n_data not in self._blocks:
            self._blocks[n_data] = _Block([values[self.data_end - n_data :] for values in self.layers], n_data)
        return self._blocks[n_data]


class _Block:
    """The rows of one update: ``n_data`` rows of data, and those of the chains.

    layers: values of all rows; data: those of the data.
    shares: float32 ``[n, 2]``, of each row in the mean of the data, and in that of the chains.
    signs: float32 ``[n]``, s of the formulas above.
    """

    def __init__(self, layers: list[Tensor], n_data: int) -> None:
        n, device = len(layers[VISIBLE]), layers[VISIBLE].device
        self.layers = layers
        self.data = [values[:n_data] for values in layers]
        self.shares = torch.zeros(n, 2, device=device)
        self.shares[:n_data, 0], self.shares[n_data:, 1] = 1 / n_data, 1 / (n - n_data)
        self.signs = self.shares[:, 1] - self.shares[:, 0]


class DBMLearner:
    """Gradients of a DBM; its memory is used again and again.

    restart: chains begin at the rows of the batch in each update, as in CD; None: they go on from update to update.
    """

    def __init__(
        self,
        dbm: DBM,
        estimator: MeanFieldPCD,
        batch_size: int,
        seed: int,
        centred: bool,
        restart: Restart | None = None,
    ) -> None:
        graph, device = dbm.graph, dbm.device
        n_hidden = len(dbm.units) - 1
        if estimator.sparsity and len(estimator.sparsity) != n_hidden:
            raise ValueError(
                f"sparsity: expected a target for each of {n_hidden} hidden layers, got {len(estimator.sparsity)}"
            )
        self._dbm, self._estimator, self._centred = dbm, estimator, centred
        self._restart = restart
        self._n_labelled = 0  # of the rows of the next update, which come first
        self._rows = _Rows(graph, batch_size, estimator.n_chains, device)
        start = dbm.machine().chains(estimator.n_chains, seed)
        self._rows.model[VISIBLE].copy_(start.layers[VISIBLE])
        self.chains = Chains((self._rows.model[VISIBLE], *start.layers[1:]), seed)
        self._sweep = gibbs_program(graph, last=1) if restart is None else restart.sweep
        last = {update.layer for update in self._sweep[-1]}  # the layers whose means are given the others' last states
        self._model_means = {i: self._rows.model[i] for i in last}
        self._from_states = [i for i in range(1, len(graph.layers)) if i not in last]
        clamps: list[tuple[int, ...]] = [(VISIBLE,)] if dbm.n_classes is None else [(VISIBLE,), (VISIBLE, n_hidden + 1)]
        self._inference = {
            clamped: (mean_field.upward_program(graph, clamped), gibbs_program(graph, clamped)) for clamped in clamps
        }
        self._memory = GradientMemory(dbm.named_parameters())
        self._of_weights = [self._memory[weight] for weight in dbm.coupling_weights]
        self._of_biases = [self._memory[bias] for bias in dbm.layer_biases]
        self._phases = [torch.zeros(2, layer.units, device=device) for layer in graph.layers]
        self._means = [phase.unbind() for phase in self._phases]  # of the data and of the chains
        self._ends = [torch.zeros(layer.units, device=device) for layer in graph.layers]
        self.offsets = [torch.zeros(layer.units, device=device) for layer in graph.layers]
        self._known = [False] * len(graph.layers)
        self.activity = [torch.zeros(layer.units, device=device) for layer in graph.layers[1 : n_hidden + 1]]
        self._is_steered = False  # whether the activity has begun to follow the data
        # of this epoch: cases, and those that did not come to rest; counted on the device, as nothing waits for it
        self._tally = torch.zeros(2, dtype=torch.float64, device=device)
        self._cases, self._unconverged = self._tally.unbind()

    def snapshot(self) -> Machine:
        return self._dbm.machine()

    def batch(self, n_data: int) -> Tensor:
        return self._rows.block(n_data).data[VISIBLE]

    def start_at(self, data: Tensor) -> None:
        if not self._known[VISIBLE]:
            self.offsets[VISIBLE].copy_(column_means(data))
            self._known[VISIBLE] = True

    def take_labels(self, labels: Tensor, *, are_known: bool = False) -> int:
        """Labels of the rows of the next update, which ``batch`` holds, int64 ``[n_data]``, -1 where unknown.

        Moves rows with a known one to the front, sets their label layer, and returns how many there are.
        are_known: the caller has seen that all are, so nothing waits for a GPU.
        """
        data = self._rows.block(len(labels)).data
        n_labelled = len(labels) if are_known else int((labels >= 0).sum())
        if n_labelled < len(labels):
            order = torch.argsort((labels < 0).to(torch.uint8), stable=True)
            labels = labels[order]
            data[VISIBLE].copy_(data[VISIBLE][order])
        data[-1][:n_labelled].copy_(arrays.one_hot(labels[:n_labelled], data[-1].shape[1]))
        self._n_labelled = n_labelled
        return n_labelled

    @torch.no_grad()
    def fill_gradient(self, machine: Machine, n_data: int) -> None:
        estimator = self._estimator
        block = self._rows.block(n_data)
        data, n = block.data, self._n_labelled
        if n > 0:
            self._infer(machine, [layer[:n] for layer in data], (VISIBLE, len(self._dbm.units)))
        if n < n_data:
            self._infer(machine, [layer[n:] for layer in data] if n > 0 else data, (VISIBLE,))
        if self._restart is not None:
            self._restart.begin(machine, self.chains, data)
        if estimator.operator is None:
            machine.sweep(self._sweep, self.chains, estimator.sweeps, means=self._model_means)
        else:
            estimator.operator.advance(machine, self.chains)
            for i, mean in self._model_means.items():
                machine.layer_means(full_update(self._dbm.graph, i), self.chains.layers, out=mean)
        for i in self._from_states:
            self._rows.model[i].copy_(self.chains.layers[i])
        self._combine(block)
        if self._dbm.log_precision is not None:
            precision = machine.parameters.precisions[VISIBLE]
            assert precision is not None
            squares = [values[VISIBLE].square().mean(0) for values in (data, self._rows.model)]
            torch.mul(squares[0] - squares[1], precision / 2, out=self._memory[self._dbm.log_precision])
        self._memory.hand_out()

    def _infer(self, machine: Machine, rows: list[Tensor], clamped: tuple[int, ...]) -> None:
        estimator = self._estimator
        start, program = self._inference[clamped]
        changes = machine.mean_field(
            program,
            rows,
            estimator.iterations,
            start=start,
            tolerance=estimator.tolerance,
            damping=estimator.damping,
        ).changes
        self._cases.add_(len(changes))
        self._unconverged.add_((changes > estimator.tolerance).sum())

    def _combine(self, block: _Block) -> None:
        self._memory.check()
        offsets, phases, rows = self.offsets, self._phases, block.layers
        sums = backend("visible", rows[VISIBLE])  # rows, phases and offsets are this module's own, and fit
        for values, phase in zip(rows, phases, strict=True):
            sums.statistics(block.shares, values, phase)
        differences = [model - data for data, model in self._means]
        for bias, difference in zip(self._of_biases, differences, strict=True):
            bias.copy_(difference)
        if self._centred:
            for i, (offset, (data, _)) in enumerate(zip(offsets, self._means, strict=True)):
                offset.lerp_(data, OFFSET_RATE if self._known[i] else 1)
                self._known[i] = True
        for i, coupling in enumerate(self._dbm.graph.couplings):
            a, b = coupling.lower, coupling.upper
            centring = (offsets[a], offsets[b]) if self._centred else None
            out = (self._of_weights[i], self._ends[a], self._ends[b])
            sums.gradient(rows[a], rows[b], block.signs, (phases[a], phases[b]), centring, out)
            if self._centred:  # which adds a term to the biases of both ends
                for end in (a, b):
                    self._of_biases[end].add_(self._ends[end] - differences[end])
        if self._estimator.sparsity:
            self._steer_activity([data for data, _ in self._means])

    def _steer_activity(self, data_means: list[Tensor]) -> None:
        """Adds the gradient of the sparsity penalty to those of the biases and weights."""
        graph, cost = self._dbm.graph, self._estimator.sparsity_cost
        for k, (target, activity) in enumerate(zip(self._estimator.sparsity, self.activity, strict=True)):
            layer = k + 1
            activity.lerp_(data_means[layer], ACTIVITY_RATE if self._is_steered else 1)
            excess = cost * (activity - target)
            self._of_biases[layer].add_(excess)
            for coupling, other in graph.neighbours(layer):
                gradient = self._of_weights[coupling]
                if graph.couplings[coupling].upper == layer:
                    gradient.addr_(data_means[other], excess)
                else:
                    gradient.addr_(excess, data_means[other])
        self._is_steered = True

    # --- watching and checkpoints -----------------------------------------------------------------------------------

    def _posterior(self, v: Tensor) -> tuple[Machine, tuple[Tensor, ...]]:
        machine, estimator = self._dbm.machine(), self._estimator
        return machine, mean_field.infer(machine, {VISIBLE: v}, estimator.iterations, 0.0, estimator.damping).layers

    def free_energy(self, v: Tensor) -> Tensor:
        machine, layers = self._posterior(v)
        return mean_field.free_energy(machine, layers)

    def reconstruct(self, v: Tensor) -> Tensor:
        machine, layers = self._posterior(v)
        return machine.layer_means(full_update(self._dbm.graph, VISIBLE), layers)

    def metrics(self) -> dict[str, float]:
        cases, unconverged = self._tally.tolist()
        self._tally.zero_()
        return {"unconverged": unconverged / max(cases, 1)}

    def state_dict(self) -> dict[str, Any]:
        return {
            **chains_state(self.chains),
            "offsets": {"layers": self.offsets, "known": self._known},
            "activity": self.activity,
            "unconverged": self._tally,
            "operator": None if self._estimator.operator is None else self._estimator.operator.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_chains(self.chains, state)
        for own, kept in zip(
            [*self.offsets, *self.activity], [*state["offsets"]["layers"], *state["activity"]], strict=True
        ):
            own.copy_(kept)
        self._known = list(state["offsets"]["known"])
        self._is_steered = any(bool(activity.any()) for activity in self.activity)
        self._tally.copy_(torch.as_tensor(state["unconverged"]))
        if self._estimator.operator is not None:
            self._estimator.operator.load_state_dict(checkpoints.moved(state["operator"], self._dbm.device))


class Restart:
    """How CD begins the chains of an RBM with labels at the rows of a batch, hidden units last.

    Source: Larochelle and Bengio, Classification using discriminative RBMs (ICML 2008).
    """

    def __init__(self, graph: Graph, down: float) -> None:
        self._hidden = full_update(graph, 1)
        visible = Update(VISIBLE, (Input(0, transposed=True, scale=down),))
        self.sweep: Program = ((visible, full_update(graph, 2)), (self._hidden,))

    def begin(self, machine: Machine, chains: Chains, data: list[Tensor]) -> None:
        """Chain c begins at row c, or c less a multiple of the rows; at the likeliest label where none is known."""
        n_chains = chains.n_chains
        rows = torch.arange(n_chains, device=data[VISIBLE].device) % len(data[VISIBLE])
        chains.layers[VISIBLE].copy_(data[VISIBLE][rows])
        chains.layers[2].copy_(arrays.one_hot(data[2].argmax(1)[rows], data[2].shape[1]))
        machine.sweep(((self._hidden,),), chains, 1)


def labelled_rbm_learner(dbm: DBM, estimator: CD, batch_size: int, seed: int, centred: bool) -> DBMLearner:
    """For a DBM of one hidden layer with labels, an RBM of two visible layers, which learns by CD.

    Only the visible units' inputs may be scaled (``CD.down``), as those of the top RBM of a stack are.
    """
    if estimator.up != 1:
        raise ValueError(f"up: expected 1 for an RBM with labels, got {estimator.up}")
    if centred and estimator.modified:
        raise ValueError("centred: expected False for CD with scaled inputs, which changes what centring means")
    phases = MeanFieldPCD(n_chains=batch_size, sweeps=estimator.sweeps)
    return DBMLearner(dbm, phases, batch_size, seed, centred, Restart(dbm.graph, estimator.down))


def robbins_monro(optimizer: Optimizer, half_life: float) -> LambdaLR:
    """A scheduler for ``Trainer``: the rate after t epochs is the first one times 1 / (1 + t / half_life).

    Its sum over all epochs is infinite and that of its squares finite, the condition under which stochastic
    approximation converges (Robbins and Monro, 1951); ``half_life`` epochs halve the rate.
    """
    if not 0 < half_life < math.inf:
        raise ValueError(f"half_life: expected a finite number of epochs above 0, got {half_life}")
    return LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch / half_life))
