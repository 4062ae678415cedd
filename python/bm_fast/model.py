"""What all models share: float parameters over a graph, sampling, and files."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from bm_fast import arrays, checkpoints
from bm_fast.arguments import whole_number
from bm_fast.chains import Chains
from bm_fast.graph import Graph, Kind
from bm_fast.ops import Machine, usable
from bm_fast.program import Program, gibbs_program

VISIBLE = 0


class LayeredModel(nn.Module, ABC):
    """Float32 parameters over a row of layers, of which layer 0 is visible: what every model has, directed or not.

    The parameters are ordinary float32; whatever is computed or sampled uses their values on the integer grid of
    ``Machine`` (docs/numbers.md). Methods take torch tensors or numpy arrays and give back the same kind.

    log_precision: float32 ``[n_visible]`` of Gaussian visible units, zero at first; None for Bernoulli units.
    """

    log_precision: nn.Parameter | None
    name: ClassVar[str]
    """What the model is called in files."""

    def __init__(self, graph: Graph, seed: int, weight_scale: float) -> None:
        super().__init__()
        if graph.layers[VISIBLE].kind is Kind.SOFTMAX:
            raise ValueError("visible: expected BERNOULLI or GAUSSIAN, got SOFTMAX; softmax units hold labels")
        if not 0 <= weight_scale < math.inf:
            raise ValueError(f"weight_scale: expected a finite number of at least 0, got {weight_scale}")
        whole_number("seed", seed, 0, 2**64 - 1)
        self.graph: Graph = graph

    def _first_log_precision(self) -> nn.Parameter | None:
        return nn.Parameter(torch.zeros(self.n_visible)) if self.visible is Kind.GAUSSIAN else None

    def _precisions(self, graph: Graph) -> list[Tensor | None]:
        """Those of each layer of ``graph``, which begins with the visible layer."""
        precisions: list[Tensor | None] = [None] * len(graph.layers)
        if self.log_precision is not None:
            precisions[VISIBLE] = self.log_precision.detach().exp()
        return precisions

    @property
    @abstractmethod
    def layer_biases(self) -> Sequence[nn.Parameter]:
        """The biases of each layer of the graph, float32 ``[units]``."""

    @abstractmethod
    def shape(self) -> dict[str, Any]:
        """The arguments that make a model of the same shape."""

    @property
    def n_visible(self) -> int:
        return self.graph.layers[VISIBLE].units

    @property
    def visible(self) -> Kind:
        """Kind of the visible units."""
        return self.graph.layers[VISIBLE].kind

    @property
    def device(self) -> torch.device:
        return self.layer_biases[VISIBLE].device

    # --- initialisation and files -----------------------------------------------------------------------------------

    @torch.no_grad()
    def initialise_biases(self, data: Tensor | NDArray[np.generic]) -> None:
        """Sets the visible parameters so that, without weights, units have their mean (and variance) in the data.

        Bernoulli: b = log(p / (1 - p)) with p = (Σ v + 1) / (n + 2), which stays finite for units that never change.
        Gaussian: λ = 1 / variance and b = λ mean; variances below 1/1000 of the average one are raised to that.

        Source: Hinton, A practical guide to training RBMs (2010), section 8.1; p by Laplace's rule of succession.
        """
        values = arrays.rows("data", data, self.graph.layers[VISIBLE], self.device)
        bias = self.layer_biases[VISIBLE]
        if self.log_precision is None:
            on = (values.sum(0, dtype=torch.float64) + 1) / (len(values) + 2)
            bias.copy_(torch.logit(on))
            return
        mean = values.mean(0, dtype=torch.float64)
        variance = (values.square().mean(0, dtype=torch.float64) - mean.square()).clamp(min=0)
        if float(variance.sum()) == 0:
            raise ValueError("data: expected values that vary, got the same row again and again")
        precision = 1 / variance.clamp(min=1e-3 * float(variance.mean()))
        self.log_precision.copy_(precision.log())
        bias.copy_(precision * mean)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to a safetensors file, atomically; errors as in ``checkpoints.save``."""
        checkpoints.save(path, {self.name: self.settings()})

    def settings(self) -> dict[str, object]:
        """What a checkpoint holds of a model: its shape and its parameters."""
        return {**self.shape(), "visible": self.visible.name, "parameters": dict(self.state_dict())}

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Self:
        """The model in a file written by ``save`` or by a trainer's; errors as in ``checkpoints.load``.

        RuntimeError where ``device`` cannot be used.
        """
        device = usable(device)
        held = dict(checkpoints.entry(checkpoints.load(path), cls.name, path))
        parameters, visible = held.pop("parameters"), Kind[held.pop("visible")]
        model = cls(**held, visible=visible)  # type: ignore[call-arg]  # every model takes its own shape
        model.load_state_dict(parameters)
        return model.to(device)


class BoltzmannModel(LayeredModel):
    """A model whose layers are joined by undirected couplings, as those of ``RBM`` and ``DBM`` are."""

    @property
    @abstractmethod
    def coupling_weights(self) -> Sequence[nn.Parameter]:
        """The weights of each coupling of the graph, float32 ``[units of lower, units of upper]``."""

    def machine(self) -> Machine:
        """The machine that runs the present parameters; ValueError if they are not finite or leave the grid.

        Building it costs a pass over the weights: build one for many calls while the parameters stay.
        """
        return Machine.build(self.graph, self.coupling_weights, self.layer_biases, self._precisions(self.graph))

    # --- sampling ---------------------------------------------------------------------------------------------------

    def chains(self, n_chains: int, seed: int, visible: Tensor | NDArray[np.generic] | None = None) -> Chains:
        """Chains at sweep 0: Bernoulli units at fair coins, Gaussian ones at zero, visible ones at the given states.

        visible: states to start from, ``[n_chains, n_visible]`` in the dtype of the units: uint8 0/1 or float32.
        """
        chains = self.machine().chains(n_chains, seed)
        if visible is not None:
            self._begin_at("visible", visible, chains)
        return chains

    def _begin_at(self, name: str, given: Tensor | NDArray[np.generic], chains: Chains) -> None:
        start = arrays.rows(name, given, self.graph.layers[VISIBLE], self.device)
        state = chains.layers[VISIBLE]
        if start.shape != state.shape or start.dtype is not state.dtype:
            raise ValueError(
                f"{name}: expected {state.dtype} {list(state.shape)}, got {start.dtype} {list(start.shape)}"
            )
        state.copy_(start)

    def sample(
        self,
        chains: Chains,
        sweeps: int,
        beta: float | Tensor | None = None,
        clamp: Tensor | NDArray[np.generic] | None = None,
        progress: bool | Callable[[int], None] = False,
        hold: Collection[str] = (),
    ) -> Chains:
        """Runs ``sweeps`` block Gibbs sweeps, odd layers first, in place; returns ``chains``.

        beta: inverse temperature, one number or float32 ``[n_chains]``; default 1.
        clamp: visible units that keep their value where it is 1: bool or uint8 0/1, ``[n_visible]`` or
            ``[n_chains, n_visible]``.
        progress: True for a progress bar, or a function that is called now and then with the number of sweeps done.
        hold: names of layers that keep their states in all chains, such as "labels".

        Ctrl-C stops within a second: the chains then hold a whole number of sweeps (``chains.sweep``) and can go on.
        """
        machine = self.machine()
        masks = {} if clamp is None else {VISIBLE: self._mask("clamp", clamp, chains.n_chains)}
        if isinstance(beta, (int, float)):
            beta = torch.full((chains.n_chains,), float(beta), device=self.device)
        program = gibbs_program(self.graph, clamped=[self._layer("hold", name) for name in hold])
        run_stages(machine, [(program, sweeps)], chains, progress, beta=beta, clamp=masks)
        return chains

    def _layer(self, argument: str, name: str) -> int:
        try:
            return self.graph.index(name)
        except KeyError as error:
            raise ValueError(f"{argument}: {error.args[0]}") from None

    def _mask(self, name: str, given: Tensor | NDArray[np.generic], n_chains: int) -> Tensor:
        mask = arrays.tensor(name, given)
        mask = mask.to(self.device) if isinstance(given, np.ndarray) else mask
        full = (n_chains, self.n_visible)
        if mask.dtype not in (torch.bool, torch.uint8) or tuple(mask.shape) not in (full, full[1:]):
            raise ValueError(
                f"{name}: expected bool or uint8 [{self.n_visible}] or {list(full)}, "
                f"got {mask.dtype} {list(mask.shape)}"
            )
        if int(mask.max()) > 1:
            raise ValueError(f"{name}: expected 0 and 1 only, got {int(mask.max())}")
        if mask.device != self.device:
            raise ValueError(f"{name}: expected a tensor on {self.device}, got one on {mask.device}")
        return mask.to(torch.uint8).expand(full).contiguous()


def run_stages(
    machine: Machine,
    stages: Sequence[tuple[Program, int]],
    chains: Chains,
    progress: bool | Callable[[int], object],
    *,
    beta: Tensor | None = None,
    clamp: Mapping[int, Tensor] | None = None,
) -> None:
    """Runs programs, each for its number of sweeps, one after the other in place; progress counts through all of them.

    Arguments as for ``Machine.sweep``; progress: True for a progress bar.
    """
    if progress is True:
        with tqdm(total=sum(sweeps for _, sweeps in stages), unit="sweep") as bar:
            run_stages(machine, stages, chains, lambda n: bar.update(n - bar.n), beta=beta, clamp=clamp)
        return
    before = 0

    def report(done: int) -> None:
        if callable(progress):
            progress(before + done)

    for program, sweeps in stages:
        machine.sweep(program, chains, sweeps, beta=beta, clamp=clamp, progress=report if progress else None)
        before += sweeps
