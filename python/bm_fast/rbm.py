"""The restricted Boltzmann machine: two layers, every visible unit coupled to every hidden one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bm_fast import arrays
from bm_fast.arrays import Array
from bm_fast.graph import Kind, chain_graph
from bm_fast.model import VISIBLE as VISIBLE
from bm_fast.model import BoltzmannModel
from bm_fast.program import full_update

HIDDEN = 1


class RBM(BoltzmannModel):
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

    name = "rbm"

    def __init__(
        self,
        n_visible: int,
        n_hidden: int,
        visible: Kind = Kind.BERNOULLI,
        seed: int = 0,
        weight_scale: float = 0.01,
    ) -> None:
        super().__init__(chain_graph((n_visible, n_hidden), visible), seed, weight_scale)
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(weight_scale * torch.randn(n_visible, n_hidden, generator=generator))
        self.visible_bias = nn.Parameter(torch.zeros(n_visible))
        self.hidden_bias = nn.Parameter(torch.zeros(n_hidden))
        self.log_precision = self._first_log_precision()

    @property
    def coupling_weights(self) -> tuple[nn.Parameter, ...]:
        return (self.weight,)

    @property
    def layer_biases(self) -> tuple[nn.Parameter, ...]:
        return (self.visible_bias, self.hidden_bias)

    @property
    def n_hidden(self) -> int:
        return self.graph.layers[HIDDEN].units

    def shape(self) -> dict[str, Any]:
        """The arguments that make an RBM of the same shape."""
        return {"n_visible": self.n_visible, "n_hidden": self.n_hidden}

    def extra_repr(self) -> str:
        return f"{self.n_visible}, {self.n_hidden}, visible={self.visible.name}"

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


def check_stack(rbms: Sequence[RBM]) -> None:
    """ValueError naming the RBM, bottom first, whose visible units do not fit the hidden units of the one below."""
    if not rbms:
        raise ValueError("rbms: expected at least one RBM, got none")
    for level, (below, above) in enumerate(itertools.pairwise(rbms), 1):
        if above.n_visible != below.n_hidden or above.visible is not Kind.BERNOULLI:
            raise ValueError(
                f"rbms[{level}]: expected {below.n_hidden} Bernoulli visible units, as many as rbms[{level - 1}] has "
                f"hidden ones, got {above.n_visible} {above.visible.name.capitalize()} ones"
            )
