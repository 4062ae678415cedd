"""Fine-tuning a deep belief net: the up-down algorithm, a contrastive form of wake-sleep.

Each update makes one pass up and one pass down, with sampled states h⁰ = v, h¹ … hᴸ⁻¹:

    wake     v from the data, hˡ from the recognition net; the generative net learns to bring back each layer from
             the one above:  g_G = -⟨(hˡ - σ(b + G hˡ⁺¹)) hˡ⁺¹ᵀ⟩    g_b = -⟨hˡ - σ(b + G hˡ⁺¹)⟩
    top      hᴸ⁻¹ of the wake phase is the data of the top RBM, which learns as any RBM does
    sleep    hᴸ⁻¹ from the chains of the top RBM, all layers below from the generative net; the recognition net learns
             to bring back each layer from the one below:  g_R = -⟨hˡ⁻¹ (hˡ - σ(c + Rᵀ hˡ⁻¹))ᵀ⟩    g_c likewise

The first two are the gradient of the bound on the log-likelihood in the generative parameters. With CD the chains begin
at the data, so that the recognition net learns near them (contrastive); with persistent chains the sleep phase is that
of wake-sleep, and with sweeps enough the gradient of KL(p(h | v) ‖ q(h | v)) under the model's own v.

Source: Hinton, Osindero and Teh, A fast learning algorithm for deep belief nets (2006), section 5 and appendix B;
Hinton, Dayan, Frey and Neal, The wake-sleep algorithm for unsupervised neural networks (1995).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bm_fast import belief, ops
from bm_fast.belief import Machines
from bm_fast.chains import Chains, empty_layers
from bm_fast.dbn import DBN
from bm_fast.model import VISIBLE
from bm_fast.training.estimators import CD, PCD
from bm_fast.training.gradient import GradientMemory
from bm_fast.training.learner import RBMLearner
from bm_fast.training.tempered import PersistentChains


@dataclass(frozen=True)
class UpDown:
    """Up-down fine-tuning of a DBN; ``top`` is how its top RBM learns, and where the sleep phase begins.

    The chains of ``top`` after their sweeps are the top of the dreams: those of ``CD`` stay near the data, those of
    ``PCD`` and ``PersistentChains`` go on from update to update.
    """

    top: CD | PCD | PersistentChains = field(default_factory=lambda: CD(10))

    def __post_init__(self) -> None:
        if not isinstance(self.top, (CD, PCD, PersistentChains)):
            raise ValueError(f"top: expected CD, PCD or PersistentChains, got {type(self.top).__name__}")
        if isinstance(self.top, CD) and self.top.modified:
            raise ValueError(f"top: expected CD without scaled inputs, got {self.top}")


class DBNLearner:
    """Gradients of a DBN; its memory is used again and again."""

    def __init__(self, dbn: DBN, estimator: UpDown, batch_size: int, seed: int, centred: bool) -> None:
        self._dbn, self._estimator = dbn, estimator.top
        # wake and sleep share a seed and take even and odd sweeps; the layers of the top RBM are numbered anew
        self._top = RBMLearner(dbn.top, estimator.top, batch_size, (seed + 1) % 2**64, centred)
        self.chains = self._top.chains
        graph = belief.directed(dbn.graph)
        self._wake = Chains(empty_layers(graph, batch_size, dbn.device), seed)
        self._sleep = Chains(empty_layers(graph, self.chains.n_chains, dbn.device), seed)
        self._up, self._down = belief.upward(graph), belief.downward(graph)
        of_top = {id(p) for p in dbn.top.parameters()}
        self._memory = GradientMemory((name, p) for name, p in dbn.named_parameters() if id(p) not in of_top)
        self._updates = 0

    def snapshot(self) -> Machines:
        return self._dbn.machines()

    def batch(self, n_data: int) -> Tensor:
        return self._wake.layers[VISIBLE][:n_data]

    def start_at(self, data: Tensor) -> None:
        """The data of the top RBM, whose mean its offsets could start at, are known batch by batch only."""

    @torch.no_grad()
    def fill_gradient(self, machine: Machines, n_data: int) -> None:
        self._memory.check()
        wake, top = self._wake.select(0, n_data), self._top.batch(n_data)
        wake.sweep = 2 * self._updates
        machine.recognition.sweep(self._up, wake, 1)
        top.copy_(wake.layers[-1])
        self._wake_gradient(machine, wake.layers)
        self._top.fill_gradient(machine.top, n_data)
        n_model = self._estimator.n_model(n_data)
        sleep = self._sleep.select(0, n_model)
        sleep.sweep = 2 * self._updates + 1
        sleep.layers[-1].copy_(self.chains.layers[VISIBLE][:n_model])
        machine.generative.sweep(self._down, sleep, 1)
        self._sleep_gradient(machine, sleep.layers)
        self._memory.hand_out()
        self._updates += 1

    def _wake_gradient(self, machine: Machines, layers: tuple[Tensor, ...]) -> None:
        dbn = self._dbn
        for (update,) in self._down:
            lower = update.layer
            means = machine.generative.layer_means(update, layers)
            if lower == VISIBLE and dbn.log_precision is not None:
                # of -½ log λ + ½ λ (v - mean)² with mean = field / λ
                squares = (layers[VISIBLE].square() - means.square()).mean(0)
                precision = machine.generative.parameters.precisions[VISIBLE]
                assert precision is not None
                torch.mul(squares, precision, out=self._memory[dbn.log_precision]).sub_(1).div_(2)
            errors = means.sub_(layers[lower])
            self._delta_rule(dbn.generative_weights[lower], errors, layers[lower + 1])
            torch.mean(errors, 0, out=self._memory[dbn.generative_biases[lower]])

    def _sleep_gradient(self, machine: Machines, layers: tuple[Tensor, ...]) -> None:
        dbn = self._dbn
        for (update,) in self._up:
            upper = update.layer
            errors = machine.recognition.layer_means(update, layers).sub_(layers[upper])
            self._delta_rule(dbn.recognition_weights[upper - 1], layers[upper - 1], errors)
            torch.mean(errors, 0, out=self._memory[dbn.recognition_biases[upper - 1]])

    def _delta_rule(self, weight: nn.Parameter, lower: Tensor, upper: Tensor) -> None:
        ops.statistics(lower, upper, self._memory[weight]).div_(len(lower))

    # --- watching and checkpoints -----------------------------------------------------------------------------------

    def free_energy(self, v: Tensor) -> Tensor:
        return self._dbn.variational_free_energy(v, n_samples=1)

    def reconstruct(self, v: Tensor) -> Tensor:
        return self._dbn.reconstruct(v)

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {**self._top.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._top.load_state_dict(state)
        self._updates = state["updates"]
