"""Updates on a GPU as CUDA graphs: the launches of an update are recorded once and replayed for each batch after it.

An update quantises the float parameters where they are, runs the chains, fills the gradient and steps the optimiser.
All of it stays on the device, so that nothing waits for it: sweeps and rounds of swaps are counted there, and weights
that do not fit their grid raise a flag that is looked at now and then. The bits are those of the same launches one by
one. What an operator decides on the host, such as betas that adapt, it does before an update.

A graph holds for one number of data rows, of which so many have known labels, and for the memory and the
hyper-parameters that it was recorded with. After a change of any of them one update is launched as it is, which also
leaves the optimiser with all of its state, and the next one is recorded anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from bm_fast import ops
from bm_fast.model import VISIBLE, BoltzmannModel, LayeredModel
from bm_fast.ops import Machine
from bm_fast.tempering import Gibbs, Operator, Tempering
from bm_fast.tempering.operators import Recordable
from bm_fast.training.deep import MeanFieldPCD
from bm_fast.training.estimators import CD, PCD
from bm_fast.training.learner import Learner
from bm_fast.training.tempered import PersistentChains

_MAX_SWEEPS = 2**32
_RECORDABLE = (Gibbs, Tempering)


class Counts(NamedTuple):
    """Numbers on the host that an update advances: of the next sweep, and those of the operator."""

    sweep: int
    operator: tuple[int, ...]

    @property
    def on_device(self) -> tuple[int, int]:
        """Those that the device counts as well: of the next sweep and of the next round of swaps."""
        return self.sweep, self.operator[0]

    def plus(self, steps: Counts, sign: int = 1) -> Counts:
        """After an update that advances them by so much, or before it."""
        operator = tuple(a + sign * b for a, b in zip(self.operator, steps.operator, strict=True))
        return Counts(self.sweep + sign * steps.sweep, operator)


@dataclass
class _Recording:
    """Of updates with some numbers of rows: how one advances the counts, and what repeats it once there is that."""

    steps: Counts
    replay: Callable[[], object] | None = None


class CapturedUpdates:
    """Runs the updates of one learner on a GPU, with the optimiser's step in the graph where ``can_capture``.

    operator: what moves the learner's chains, where that is one of ``bm_fast.tempering``.
    """

    def __init__(
        self, model: BoltzmannModel, optimizer: Optimizer, learner: Learner[Machine], operator: Recordable | None
    ) -> None:
        self._model, self._optimizer, self._learner, self._operator = model, optimizer, learner, operator
        self._recordings: dict[tuple[int, int], _Recording] = {}
        self._depends_on: object = None  # what the recordings depend on, as the last launched update left it
        self._machine: ops.LiveMachine | None = None
        self._machine_of: list[int] = []  # where its parameters are
        self._counted: tuple[int, int] | None = None  # numbers as the device has them; None: it has none yet
        self._can_record = True

    def run(self, n_data: int, n_labelled: int = 0) -> None:
        """One update from the ``n_data`` data rows that the learner holds, ``n_labelled`` of them with known labels."""
        machine = self._live_machine()
        if self._operator is not None:
            self._operator.prepare(machine, self._learner.chains)
        if self._depends_on != self._dependencies():
            self._recordings.clear()
        first = self.counts
        if first.on_device != self._counted:
            machine.start_at(*first.on_device)
        recording = self._recordings.get((n_data, n_labelled))
        if recording is not None and recording.replay is None and self._can_record:
            try:
                recording.replay = self._record(machine, n_data)
            finally:  # what is recorded has not been done
                self.counts = first
        if recording is None or recording.replay is None or first.sweep + recording.steps.sweep > _MAX_SWEEPS:
            self._launch(machine, n_data)
            self._recordings[n_data, n_labelled] = _Recording(self.counts.plus(first, -1))
            self._depends_on = self._dependencies()
        else:
            recording.replay()
            self.counts = first.plus(recording.steps)
        self._counted = self.counts.on_device
        if not can_capture(self._optimizer):
            self._optimizer.step()

    @property
    def counts(self) -> Counts:
        """Where the host takes updates to be."""
        return Counts(self._learner.chains.sweep, (0,) if self._operator is None else self._operator.counts)

    @counts.setter
    def counts(self, counts: Counts) -> None:
        self._learner.chains.sweep = counts.sweep
        if self._operator is not None:
            self._operator.counts = counts.operator

    def take_refusal(self) -> bool:
        """As ``ops.LiveMachine.take_refusal``."""
        return self._machine is not None and self._machine.take_refusal()

    def _record(self, machine: ops.LiveMachine, n_data: int) -> Callable[[], object] | None:
        try:
            return record(lambda: self._launch(machine, n_data), machine.device)
        except RuntimeError as error:
            warnings.warn(
                f"updates cannot be recorded as a CUDA graph and are launched one by one: {error}", stacklevel=2
            )
            self._can_record = False
            return None

    @torch.no_grad()
    def _launch(self, machine: ops.LiveMachine, n_data: int) -> None:
        precision, log_precision = machine.parameters.precisions[VISIBLE], self._model.log_precision
        if precision is not None and log_precision is not None:
            torch.exp(log_precision, out=precision)
        machine.refresh()
        self._learner.fill_gradient(machine, n_data)
        if can_capture(self._optimizer):
            with warnings.catch_warnings():  # torch's, of a step that could be recorded and is not
                warnings.filterwarnings("ignore", ".*capturable", UserWarning)
                self._optimizer.step()

    def _live_machine(self) -> ops.LiveMachine:
        model = self._model
        where = [parameter.data_ptr() for parameter in model.parameters()]
        if self._machine is None or self._machine_of != where:
            precisions: list[Tensor | None] = [None] * len(model.graph.layers)
            if model.log_precision is not None:
                precisions[VISIBLE] = model.log_precision.detach().exp()
            weights, biases = ([p.detach() for p in held] for held in (model.coupling_weights, model.layer_biases))
            self._machine, self._machine_of = ops.LiveMachine(model.graph, weights, biases, precisions), where
            self._counted = None
        return self._machine

    def _dependencies(self) -> object:
        """All that recordings depend on and that anyone may change between updates."""
        parameters = list(self._model.parameters())
        memory: list[object] = [(p.data_ptr(), _identity(p.grad)) for p in parameters]
        if self._operator is not None:
            memory.append(self._operator.fixed())
        if not can_capture(self._optimizer):
            return memory
        groups = [
            [(name, _identity(value)) for name, value in group.items() if name != "params"]
            for group in self._optimizer.param_groups
        ]
        states = [[_identity(v) for v in self._optimizer.state.get(p, {}).values()] for p in parameters]
        return memory, groups, states


def _identity(value: object) -> object:
    return ("at", value.data_ptr()) if isinstance(value, Tensor) else value


def can_capture(optimizer: Optimizer) -> bool:
    """Whether an optimiser's step can be part of a graph.

    SGD's can, and those of optimisers made with ``capturable=True``, unless something else is to happen at each step:
    hooks, or a learning rate of SGD that is a tensor, which waits for the device.
    """
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return False
    groups = optimizer.param_groups
    if type(optimizer) is SGD:
        return not any(isinstance(group["lr"], Tensor) for group in groups)
    return all(group.get("capturable", False) for group in groups)


def why_not(model: LayeredModel, estimator: object) -> str | None:
    """Why updates cannot be recorded as CUDA graphs; None where they can."""
    if not ops.can_live(model.device):
        return f"the model is on {model.device}"
    mover = operator_of(estimator) or estimator
    if not isinstance(mover, (CD, PCD, MeanFieldPCD)) and type(mover) not in _RECORDABLE:
        return f"{type(mover).__name__} decides on the host how its chains go on"
    return None


def recordable_operator(estimator: object) -> Recordable | None:
    """What moves the chains of an estimator whose updates can be recorded, where it has something for that."""
    operator = operator_of(estimator)
    return operator if isinstance(operator, _RECORDABLE) else None


def operator_of(estimator: object) -> Operator | None:
    """What moves the chains of an estimator, where that is an operator."""
    return estimator.operator if isinstance(estimator, (PersistentChains, MeanFieldPCD)) else None


def record(work: Callable[[], None], device: torch.device) -> Callable[[], object]:
    """What repeats this work, of which nothing is done yet: a CUDA graph of its launches."""
    graph = torch.cuda.CUDAGraph()
    with (
        torch.cuda.device(device),
        # other threads, such as those of a DataLoader, may go on with calls that a graph could not hold
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        work()
    return graph.replay
