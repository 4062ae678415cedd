"""The restricted Boltzmann machine: two layers, every visible unit coupled to every hidden one."""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from bm_fast import arrays, checkpoints
from bm_fast.arrays import Array
from bm_fast.chains import Chains
from bm_fast.graph import Graph, Kind, chain_graph
from bm_fast.ops import Machine
from bm_fast.program import full_update, gibbs_program

VISIBLE, HIDDEN = 0, 1


class RBM(nn.Module):
    """A restricted Boltzmann machine with Bernoulli hidden units and Bernoulli or Gaussian visible units.

    E(v, h) = -vᵀ W h - bᵀv - cᵀh                   Bernoulli visible units, v in {0, 1}
    E(v, h) = -vᵀ W h - bᵀv - cᵀh + ½ Σ λ v²        Gaussian visible units, v real, λ = exp(log_precision)

    so that v given h is normal with mean (b + W h) / λ and variance 1 / λ. The usual form of a Gaussian RBM,
    Σ (v - a)² / 2σ² - (v / σ)ᵀ W' h - cᵀh, is the same model with λ = 1/σ², b = a/σ² and W = W'/σ (rows divided).

    weight: float32 ``[n_visible, n_hidden]``, drawn from N(0, weight_scale²) by ``seed``.
    visible_bias, hidden_bias: float32 ``[n_visible]`` and ``[n_hidden]``, zero at first.
    log_precision: float32 ``[n_visible]``, zero at first; None for Bernoulli units.

    The parameters are ordinary float32; whatever is computed or sampled uses their values on the integer grid of
    ``Machine`` (docs/numbers.md). Methods take torch tensors or numpy arrays and give back the same kind.

    Source: Smolensky (1986); Hinton, Training products of experts (2002); Cho et al. (2011) for learned variances.
    """

    def __init__(
        self,
        n_visible: int,
        n_hidden: int,
        visible: Kind = Kind.BERNOULLI,
        seed: int = 0,
        weight_scale: float = 0.01,
    ) -> None:
        super().__init__()
        if not 0 <= weight_scale < math.inf:
            raise ValueError(f"weight_scale: expected a finite number of at least 0, got {weight_scale}")
        if not 0 <= seed < 2**64:
            raise ValueError(f"seed: expected 0 to 2^64 - 1, got {seed}")
        self.graph: Graph = chain_graph((n_visible, n_hidden), visible)
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(weight_scale * torch.randn(n_visible, n_hidden, generator=generator))
        self.visible_bias = nn.Parameter(torch.zeros(n_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(n_hidden))
        self.log_precision = nn.Parameter(torch.zeros(n_visible)) if self.visible is Kind.GAUSSIAN else None

    @property
    def n_visible(self) -> int:
        return self.graph.layers[VISIBLE].units

    @property
    def n_hidden(self) -> int:
        return self.graph.layers[HIDDEN].units

    @property
    def visible(self) -> Kind:
        """Kind of the visible units."""
        return self.graph.layers[VISIBLE].kind

    @property
    def device(self) -> torch.device:
        return self.weight.device

    def extra_repr(self) -> str:
        return f"{self.n_visible}, {self.n_hidden}, visible={self.visible.name}"

    def machine(self) -> Machine:
        """The machine that runs the present parameters; ValueError if they are not finite or leave the grid.

        Building it costs a pass over the weights: build one for many calls while the parameters stay.
        """
        precision = None if self.log_precision is None else self.log_precision.detach().exp()
        return Machine.build(
            self.graph,
            (self.weight.detach(),),
            (self.visible_bias.detach(), self.hidden_bias.detach()),
            (precision, None),
        )

    # --- sampling ---------------------------------------------------------------------------------------------------

    def chains(self, n_chains: int, seed: int, visible: Tensor | NDArray[np.generic] | None = None) -> Chains:
        """Chains at sweep 0, visible units at fair coins (Bernoulli), zero (Gaussian) or the given states.

        visible: states to start from, ``[n_chains, n_visible]`` in the dtype of the units: uint8 0/1 or float32.
        """
        chains = self.machine().chains(n_chains, seed)
        if visible is not None:
            start = arrays.rows("visible", visible, self.graph.layers[VISIBLE], self.device)
            state = chains.layers[VISIBLE]
            if start.shape != state.shape or start.dtype is not state.dtype:
                raise ValueError(
                    f"visible: expected {state.dtype} {list(state.shape)}, got {start.dtype} {list(start.shape)}"
                )
            state.copy_(start)
        return chains

    def sample(
        self,
        chains: Chains,
        sweeps: int,
        beta: float | Tensor | None = None,
        clamp: Tensor | NDArray[np.generic] | None = None,
        progress: bool | Callable[[int], None] = False,
    ) -> Chains:
        """Runs ``sweeps`` block Gibbs sweeps, hidden units first, in place; returns ``chains``.

        beta: inverse temperature, one number or float32 ``[n_chains]``; default 1.
        clamp: visible units that keep their value where it is 1: bool or uint8 0/1, ``[n_visible]`` or
            ``[n_chains, n_visible]``.
        progress: True for a progress bar, or a function that is called now and then with the number of sweeps done.

        Ctrl-C stops within a second: the chains then hold a whole number of sweeps (``chains.sweep``) and can go on.
        """
        machine = self.machine()
        masks = {} if clamp is None else {VISIBLE: self._mask(clamp, chains.n_chains)}
        if isinstance(beta, (int, float)):
            beta = torch.full((chains.n_chains,), float(beta), device=self.device)
        program = gibbs_program(self.graph)
        if progress is not True:
            report = progress if callable(progress) else None
            machine.sweep(program, chains, sweeps, beta=beta, clamp=masks, progress=report)
            return chains
        with tqdm(total=sweeps, unit="sweep") as bar:
            machine.sweep(program, chains, sweeps, beta=beta, clamp=masks, progress=lambda n: bar.update(n - bar.n))
        return chains

    def _mask(self, clamp: Tensor | NDArray[np.generic], n_chains: int) -> Tensor:
        mask = arrays.tensor("clamp", clamp)
        full = (n_chains, self.n_visible)
        if mask.dtype not in (torch.bool, torch.uint8) or tuple(mask.shape) not in (full, full[1:]):
            raise ValueError(
                f"clamp: expected bool or uint8 [{self.n_visible}] or {list(full)}, got {mask.dtype} {list(mask.shape)}"
            )
        if int(mask.max()) > 1:
            raise ValueError(f"clamp: expected 0 and 1 only, got {int(mask.max())}")
        if mask.device != self.device:
            raise ValueError(f"clamp: expected a tensor on {self.device}, got one on {mask.device}")
        return mask.to(torch.uint8).expand(full).contiguous()

    # --- means and free energies ------------------------------------------------------------------------------------

    def hidden_means(self, v: Array) -> Array:
        """P(h = 1 | v) = σ(c + Wᵀv), float32 ``[n, n_hidden]``, for v ``[n, n_visible]``."""
        return self._means(HIDDEN, "v", v)

    def visible_means(self, h: Array) -> Array:
        """Mean of v given h, float32 ``[n, n_visible]``: σ(b + W h), or (b + W h) / λ for Gaussian units."""
        return self._means(VISIBLE, "h", h)

    def _means(self, layer: int, name: str, given: Array) -> Array:
        other = HIDDEN if layer == VISIBLE else VISIBLE
        values = arrays.rows(name, given, self.graph.layers[other], self.device)
        # the updated layer's own values are not read
        unread = values.new_zeros((len(values), self.graph.layers[layer].units), dtype=torch.float32)
        pair = (values, unread) if layer == HIDDEN else (unread, values)
        return arrays.given_kind(self.machine().layer_means(full_update(self.graph, layer), pair), given)

    def reconstruct(self, v: Array) -> Array:
        """Mean of v given the hidden means of v, float32 ``[n, n_visible]``: one mean-field step down."""
        return self.visible_means(self.hidden_means(v))

    def free_energy(self, v: Array) -> Array:
        """F(v) = -log Σ_h exp(-E(v, h)), float64 ``[n]``, for v ``[n, n_visible]``.

        F(v) = -bᵀv - Σ softplus(c + Wᵀv), + ½ Σ λ v² for Gaussian units.
        """
        values = arrays.rows("v", v, self.graph.layers[VISIBLE], self.device)
        unread = values.new_zeros((len(values), self.n_hidden), dtype=torch.uint8)
        summed_out = (full_update(self.graph, HIDDEN),)
        return arrays.given_kind(self.machine().free_energy(summed_out, (values, unread))[0], v)

    # --- initialisation and files -----------------------------------------------------------------------------------

    @torch.no_grad()
    def initialise_biases(self, data: Tensor | NDArray[np.generic]) -> None:
        """Sets the visible parameters so that, without weights, units have their mean (and variance) in the data.

        Bernoulli: b = log(p / (1 - p)) with p = (Σ v + 1) / (n + 2), which stays finite for units that never change.
        Gaussian: λ = 1 / variance and b = λ mean; variances below 1/1000 of the average one are raised to that.

        Source: Hinton, A practical guide to training RBMs (2010), section 8.1; p by Laplace's rule of succession.
        """
        values = arrays.rows("data", data, self.graph.layers[VISIBLE], self.device)
        if self.log_precision is None:
            on = (values.sum(0, dtype=torch.float64) + 1) / (len(values) + 2)
            self.visible_bias.copy_(torch.logit(on))
            return
        mean = values.mean(0, dtype=torch.float64)
        variance = (values.square().mean(0, dtype=torch.float64) - mean.square()).clamp(min=0)
        if float(variance.sum()) == 0:
            raise ValueError("data: expected values that vary, got the same row again and again")
        precision = 1 / variance.clamp(min=1e-3 * float(variance.mean()))
        self.log_precision.copy_(precision.log())
        self.visible_bias.copy_(precision * mean)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to a safetensors file, atomically; errors as in ``checkpoints.save``."""
        checkpoints.save(path, {"rbm": self.settings()})

    def settings(self) -> dict[str, object]:
        """What a checkpoint holds of a model: its shape and its parameters."""
        return {
            "n_visible": self.n_visible,
            "n_hidden": self.n_hidden,
            "visible": self.visible.name,
            "parameters": dict(self.state_dict()),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> RBM:
        """The model in a file written by ``RBM.save`` or ``Trainer.save``; errors as in ``checkpoints.load``."""
        held = checkpoints.entry(checkpoints.load(path), "rbm", path)
        rbm = cls(held["n_visible"], held["n_hidden"], Kind[held["visible"]])
        rbm.load_state_dict(held["parameters"])
        return rbm.to(device)
