"""Updates on a GPU as CUDA graphs: the launches of an update are recorded once and replayed for each batch after it.

An update quantises the float parameters where they are, runs the chains, fills the gradient and steps the optimiser.
All of it stays on the device, so that nothing waits for it: numbers of sweeps are counted there, and weights that do
not fit their grid raise a flag that is looked at now and then. The bits are those of the same launches one by one.

A graph holds for one number of data rows, of which so many have known labels, and for the memory and the
hyper-parameters that it was recorded with. After a change of any of them one update is launched as it is, which also
leaves the optimiser with all of its state, and the next one is recorded anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from bm_fast import ops
from bm_fast.model import VISIBLE, BoltzmannModel, LayeredModel
from bm_fast.ops import Machine
from bm_fast.tempering import Gibbs
from bm_fast.training.deep import MeanFieldPCD
from bm_fast.training.estimators import CD, PCD
from bm_fast.training.learner import Learner
from bm_fast.training.tempered import PersistentChains

_MAX_SWEEPS = 2**32


@dataclass
class _Recording:
    """What is known of updates with some numbers of rows: the sweeps of one, and what repeats it once there is that."""

    sweeps: int
    replay: Callable[[], object] | None = None


class CapturedUpdates:
    """Runs the updates of one learner on a GPU, with the optimiser's step in the graph where ``can_capture``."""

    def __init__(self, model: BoltzmannModel, optimizer: Optimizer, learner: Learner[Machine]) -> None:
        self._model, self._optimizer, self._learner = model, optimizer, learner
        self._recordings: dict[tuple[int, int], _Recording] = {}
        self._depends_on: object = None  # what the recordings depend on, as the last launched update left it
        self._machine: ops.LiveMachine | None = None
        self._machine_of: list[int] = []  # where its parameters are
        self._counted = -1  # the number of the next sweep, as the device has it; -1: it has none yet
        self._can_record = True

    def run(self, n_data: int, n_labelled: int = 0) -> None:
        """One update from the ``n_data`` data rows that the learner holds, ``n_labelled`` of them with known labels."""
        if self._depends_on != self._dependencies():
            self._recordings.clear()
        machine, chains = self._live_machine(), self._learner.chains
        first = chains.sweep
        if first != self._counted:
            machine.start_at(first)
        recording = self._recordings.get((n_data, n_labelled))
        if recording is not None and recording.replay is None and self._can_record:
            recording.replay = self._record(machine, n_data)
            chains.sweep = first
        if recording is None or recording.replay is None or first + recording.sweeps > _MAX_SWEEPS:
            self._launch(machine, n_data)
            self._recordings[n_data, n_labelled] = _Recording(chains.sweep - first)
            self._depends_on = self._dependencies()
        else:
            recording.replay()
            chains.sweep = first + recording.sweeps
        self._counted = chains.sweep
        if not can_capture(self._optimizer):
            self._optimizer.step()

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
            self._counted = -1
        return self._machine

    def _dependencies(self) -> object:
        """All that recordings depend on and that anyone may change between updates."""
        parameters = list(self._model.parameters())
        memory: list[object] = [(p.data_ptr(), _identity(p.grad)) for p in parameters]
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
    operator = estimator.operator if isinstance(estimator, (PersistentChains, MeanFieldPCD)) else None
    if not isinstance(operator or estimator, (CD, PCD, MeanFieldPCD, Gibbs)):
        return f"{type(operator or estimator).__name__} decides on the host how its chains go on"
    return None


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
