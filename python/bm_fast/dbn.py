"""The deep belief net: a restricted Boltzmann machine on top of a directed net of sigmoid units."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from bm_fast import arrays, belief
from bm_fast.arguments import whole_number
from bm_fast.arrays import Array
from bm_fast.belief import Machines, Recognition
from bm_fast.chains import Chains
from bm_fast.graph import Graph, Kind, chain_graph
from bm_fast.mlp import DeepClassifier
from bm_fast.model import VISIBLE, LayeredModel, run_stages
from bm_fast.ops import Machine
from bm_fast.rbm import RBM, check_stack


class DBN(LayeredModel):
    """A deep belief net with Bernoulli hidden layers and Bernoulli or Gaussian visible units.

    p(v, h¹ … hᴸ) = p(v | h¹) p(h¹ | h²) … p(hᴸ⁻² | hᴸ⁻¹) p(hᴸ⁻¹, hᴸ)

    The top two layers are an RBM, the others a directed net: P(hˡ = 1 | hˡ⁺¹) = σ(bˡ + Gˡ hˡ⁺¹), and v given h¹ as in
    ``RBM``. Beside it stands a recognition net that goes up, q(hˡ = 1 | hˡ⁻¹) = σ(cˡ + Rˡᵀ hˡ⁻¹), in place of the true
    posterior.

    units: those of the visible and of at least two hidden layers, as in ``(784, 500, 500, 2000)``; with one hidden
        layer the model would be an RBM.
    generative_weights, recognition_weights: of all layers but the top one, float32 ``[units[l], units[l + 1]]``; equal
        at first, and parameters of their own.
    generative_biases: float32 ``[units[l]]`` of all layers but the top two, recognition_biases: of all layers between
        the visible and the top one; zero at first.
    top: the ``RBM`` of the top two layers, whose log Z is that of the net.

    Source: Hinton, Osindero and Teh, A fast learning algorithm for deep belief nets, Neural Computation 18 (2006).
    """

    name = "dbn"

    def __init__(
        self, units: Sequence[int], visible: Kind = Kind.BERNOULLI, seed: int = 0, weight_scale: float = 0.01
    ) -> None:
        if len(units) < 3:
            raise ValueError(
                f"units: expected those of the visible and of at least two hidden layers, got {list(units)}; "
                "with one hidden layer a belief net is an RBM"
            )
        super().__init__(chain_graph(units, visible), seed, weight_scale)
        generator = torch.Generator().manual_seed(seed)
        *lower, top = (weight_scale * torch.randn(shape, generator=generator) for shape in itertools.pairwise(units))
        self.generative_weights = nn.ParameterList(weight.clone() for weight in lower)
        self.recognition_weights = nn.ParameterList(lower)
        self.generative_biases = nn.ParameterList(torch.zeros(n) for n in units[:-2])
        self.recognition_biases = nn.ParameterList(torch.zeros(n) for n in units[1:-1])
        self.top = RBM(units[-2], units[-1], seed=seed, weight_scale=weight_scale)
        self.top.load_state_dict({"weight": top}, strict=False)
        self.log_precision = self._first_log_precision()

    @classmethod
    @torch.no_grad()
    def from_rbms(cls, rbms: Sequence[RBM]) -> Self:
        """The belief net of a stack of RBMs, bottom first, each trained on the hidden units of the one below.

        All but the last RBM become directed: downwards they generate, and upwards, with the same weights, they
        recognise. Parameters are copied. ValueError names the RBM whose visible units do not fit the hidden units
        below it.
        """
        check_stack(rbms)
        bottom = rbms[0]
        dbn = cls((bottom.n_visible, *(rbm.n_hidden for rbm in rbms)), bottom.visible).to(bottom.device)
        for level, rbm in enumerate(rbms[:-1]):
            dbn.generative_weights[level].copy_(rbm.weight)
            dbn.generative_biases[level].copy_(rbm.visible_bias)
            dbn.recognition_weights[level].copy_(rbm.weight)
            dbn.recognition_biases[level].copy_(rbm.hidden_bias)
        dbn.top.load_state_dict(rbms[-1].state_dict())
        if dbn.log_precision is not None and bottom.log_precision is not None:
            dbn.log_precision.copy_(bottom.log_precision)
        return dbn

    @property
    def units(self) -> tuple[int, ...]:
        """Numbers of units, from the visible layer up."""
        return tuple(layer.units for layer in self.graph.layers)

    @property
    def layer_biases(self) -> Sequence[nn.Parameter]:
        """The biases with which each layer is generated."""
        return (*self.generative_biases, *self.top.layer_biases)

    def shape(self) -> dict[str, Any]:
        """The arguments that make a DBN of the same shape."""
        return {"units": list(self.units)}

    def extra_repr(self) -> str:
        return f"{self.units}, visible={self.visible.name}"

    def machines(self) -> Machines:
        """The machines that run the present parameters; ValueError if they are not finite or leave the grid."""
        graph = belief.directed(self.graph)
        precisions = self._precisions(graph)
        unread = torch.zeros(self.n_visible, device=self.device)
        generative = _build("generative", graph, self.generative_weights, self.layer_biases[:-1], precisions)
        recognition = _build(
            "recognition", graph, self.recognition_weights, [unread, *self.recognition_biases], precisions
        )
        top = _build("top", self.top.graph, self.top.coupling_weights, self.top.layer_biases, [None, None])
        return Machines(generative, recognition, top)

    # --- generation -------------------------------------------------------------------------------------------------

    def _generator(self) -> Machine:
        """All layers in one machine, so that each of them has random numbers of its own."""
        weights = (*self.generative_weights, *self.top.coupling_weights)
        return _build("generative", self.graph, weights, self.layer_biases, self._precisions(self.graph))

    def chains(self, n_chains: int, seed: int) -> Chains:
        """Chains at sweep 0: Bernoulli units at fair coins, Gaussian ones at zero."""
        return self._generator().chains(n_chains, seed)

    def sample(self, chains: Chains, sweeps: int, progress: bool | Callable[[int], None] = False) -> Chains:
        """Runs ``sweeps`` Gibbs sweeps of the top RBM in place, and draws all layers below from the last; ``chains``.

        A sweep draws hᴸ given hᴸ⁻¹, then hᴸ⁻¹ given hᴸ. Chains have the same states whether sweeps are made in one call
        or in many. progress: True for a progress bar, or a function that is called now and then with the number of
        sweeps done.

        Ctrl-C stops within a second: the top two layers then hold a whole number of sweeps (``chains.sweep``) and can
        go on, and the layers below are those of the last call that came to its end.
        """
        sweeps = whole_number("sweeps", sweeps, 0, 2**32 - 1)
        above, below = belief.top_sweep(self.graph), belief.downward(belief.directed(self.graph))
        stages = [(above, sweeps - 1), (above + below, 1)] if sweeps > 0 else []
        run_stages(self._generator(), stages, chains, progress)
        return chains

    def visible_means(self, h: Array) -> Array:
        """Mean of v given h¹, float32 ``[n, n_visible]``, for h¹ ``[n, units[1]]``: states or means."""
        values = arrays.rows("h", h, self.graph.layers[1], self.device)
        machine = self.machines().generative
        return arrays.given_kind(belief.means_along(machine, belief.downward(machine.graph)[-1:], values)[-1], h)

    # --- recognition ------------------------------------------------------------------------------------------------

    def hidden_means(self, v: Array) -> tuple[Array, ...]:
        """Means of each hidden layer in one pass up from v, float32 ``[n, units]``; of the top layer in the top RBM.

        v: ``[n, n_visible]``, states or grey levels. Each layer gets the means of the one below.
        """
        values = arrays.rows("v", v, self.graph.layers[VISIBLE], self.device)
        return tuple(arrays.given_kind(means, v) for means in belief.means_up(self.machines(), values))

    def features(self, v: Array) -> Array:
        """``hidden_means`` of all hidden layers side by side, float32 ``[n, sum of hidden units]``."""
        values = arrays.rows("v", v, self.graph.layers[VISIBLE], self.device)
        return arrays.given_kind(torch.cat(belief.means_up(self.machines(), values), 1), v)

    def reconstruct(self, v: Array) -> Array:
        """Mean of v after one pass of means up to the top layer and down again, float32 ``[n, n_visible]``."""
        values = arrays.rows("v", v, self.graph.layers[VISIBLE], self.device)
        machines = self.machines()
        return arrays.given_kind(belief.means_down(machines, belief.means_up(machines, values)[-1]), v)

    def to_mlp(self, n_classes: int, dropout: float = 0.0, seed: int = 0) -> DeepClassifier:
        """A feed-forward network of the same shape that begins as the pass up of ``hidden_means``; it takes data.

        dropout: probability with which each hidden unit is left out in training. seed: of the output weights.
        """
        weights = (*self.recognition_weights, *self.top.coupling_weights)
        biases = (self.generative_biases[VISIBLE], *self.recognition_biases, self.top.hidden_bias)
        return DeepClassifier(weights, biases, n_classes, dropout, seed, posteriors=False)

    # --- the bound --------------------------------------------------------------------------------------------------

    def variational_free_energy(
        self, v: Array, n_samples: int = 10, recognition: Recognition = "samples", seed: int = 0
    ) -> Array:
        """F(v) of the recognition net, float64 ``[n]``, whose expectation gives log p(v) >= -F(v) - log Z.

        -F(v) = E_q[log p(v | h¹) + … + log p(hᴸ⁻² | hᴸ⁻¹) - F_top(hᴸ⁻¹) - log q(h | v)]

        with F_top and Z the free energy and the partition function of the top RBM. The expectation is a mean over
        ``n_samples`` samples of h¹ … hᴸ⁻¹, which depend on seed and number of the row alone.

        v: ``[n, n_visible]``. recognition: "samples" draws each layer given the sample of the one below; "means" draws
        all layers independently with the means of one pass up. With two hidden layers both are the same.
        """
        values = arrays.rows("v", v, self.graph.layers[VISIBLE], self.device)
        return arrays.given_kind(belief.free_energy(self.machines(), values, n_samples, recognition, seed), v)


def _build(
    what: str, graph: Graph, weights: Iterable[Tensor], biases: Iterable[Tensor], precisions: list[Tensor | None]
) -> Machine:
    try:
        return Machine.build(graph, [w.detach() for w in weights], [b.detach() for b in biases], precisions)
    except ValueError as error:
        raise ValueError(f"{what} {error}") from error
