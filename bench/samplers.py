"""Block Gibbs sampling of one machine in several libraries, behind one small interface.

A machine is a row of Bernoulli layers: weights[l] is float32 ``[units[l], units[l + 1]]``. A sweep draws all odd layers
given the even ones, then the even layers given the odd ones; every library starts from the same visible units.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """Parameters and first visible units; layers above layer 1 start at zero."""

    units: tuple[int, ...]
    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    visible: Tensor

    @property
    def n_chains(self) -> int:
        return self.visible.shape[0]

    @property
    def flips(self) -> int:
        """Unit updates of one sweep of all chains."""
        return self.n_chains * sum(self.units)

    @property
    def macs(self) -> int:
        """Weights times inputs of one sweep of all chains: each coupling is used in both directions."""
        return 2 * self.n_chains * sum(weight.numel() for weight in self.weights)

    @classmethod
    def random(cls, units: tuple[int, ...], n_chains: int, seed: int = 0) -> Problem:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return 0.1 * torch.randn(*shape, generator=generator)

        weights = tuple(normal(below, above) for below, above in itertools.pairwise(units))
        biases = (normal(units[0]) - 1, *(normal(n) for n in units[1:]))
        visible = (torch.rand(n_chains, units[0], generator=generator) < 0.15).float()
        return cls(units, weights, biases, visible)

    @classmethod
    def of(cls, model: str, n_chains: int) -> Problem:
        """A random machine, as in 784-500-1000, or the trained RBM of a checkpoint."""
        if not model.endswith(".safetensors"):
            return cls.random(tuple(int(n) for n in model.split("-")), n_chains)
        from bm_fast import RBM

        rbm = RBM.load(model)
        like = cls.random(tuple(rbm.weight.shape), n_chains)
        weights, biases = (rbm.weight.detach(),), (rbm.visible_bias.detach(), rbm.hidden_bias.detach())
        return cls(like.units, weights, biases, like.visible)

    def order(self) -> list[int]:
        """Layers in the order in which a sweep draws them."""
        return [*range(1, len(self.units), 2), *range(0, len(self.units), 2)]


class Sampler:
    """One library set up for one problem."""

    def run(self, n_sweeps: int) -> None:
        """Goes on from where the last call stopped."""
        raise NotImplementedError

    def layers(self) -> list[Tensor]:
        """Units of the layers that can be compared, from layer 0 on: those of the end of the last sweep."""
        raise NotImplementedError


class BmFast(Sampler):
    def __init__(self, problem: Problem) -> None:
        from bm_fast.graph import chain_graph
        from bm_fast.ops import Machine
        from bm_fast.program import gibbs_program

        graph = chain_graph(problem.units)
        self.machine = Machine.build(graph, problem.weights, problem.biases)
        self.program = gibbs_program(graph)
        self.chains = self.machine.chains(problem.n_chains, seed=0)
        for layer in self.chains.layers:
            layer.zero_()
        self.chains.layers[0].copy_(problem.visible)

    def run(self, n_sweeps: int) -> None:
        self.machine.sweep(self.program, self.chains, n_sweeps)

    def layers(self) -> list[Tensor]:
        return [layer.float() for layer in self.chains.layers]


def bernoulli(field: Tensor) -> Tensor:
    return torch.bernoulli(torch.sigmoid(field))


def rand_below(field: Tensor) -> Tensor:
    return (torch.rand_like(field) < field.sigmoid_()).to(field.dtype)


class Torch(Sampler):
    """addmm, sigmoid and a draw, as everybody writes it."""

    def __init__(
        self,
        problem: Problem,
        draw: Callable[[Tensor], Tensor] = bernoulli,
        dtype: torch.dtype = torch.float32,
        *,
        compiled: bool = False,
    ) -> None:
        self.weights = [weight.to(dtype) for weight in problem.weights]
        self.biases = [bias.to(dtype) for bias in problem.biases]
        self.order, self.draw = problem.order(), draw
        self.states = [torch.zeros(problem.n_chains, n, dtype=dtype) for n in problem.units]
        self.states[0] = problem.visible.to(dtype)
        self.step = torch.compile(self.sweep) if compiled else self.sweep

    def sweep(self, states: list[Tensor]) -> list[Tensor]:
        states = list(states)
        for i in self.order:
            field = self.biases[i]
            if i > 0:
                field = torch.addmm(field, states[i - 1], self.weights[i - 1])
            if i < len(self.weights):
                field = torch.addmm(field, states[i + 1], self.weights[i].t())
            states[i] = self.draw(field)
        return states

    def run(self, n_sweeps: int) -> None:
        with torch.no_grad():
            for _ in range(n_sweeps):
                self.states = self.step(self.states)

    def layers(self) -> list[Tensor]:
        return [state.float() for state in self.states]


class Numpy(Sampler):
    def __init__(self, problem: Problem) -> None:
        self.weights = [weight.numpy() for weight in problem.weights]
        self.biases = [bias.numpy() for bias in problem.biases]
        self.order = problem.order()
        self.states = [np.zeros((problem.n_chains, n), dtype=np.float32) for n in problem.units]
        self.states[0] = problem.visible.numpy()
        self.generator = np.random.default_rng(0)

    def run(self, n_sweeps: int) -> None:
        for _ in range(n_sweeps):
            for i in self.order:
                field = self.biases[i]
                if i > 0:
                    field = field + self.states[i - 1] @ self.weights[i - 1]
                if i < len(self.weights):
                    field = field + self.states[i + 1] @ self.weights[i].T
                uniform = self.generator.random(field.shape, dtype=np.float32)
                self.states[i] = (uniform < 1 / (1 + np.exp(-field))).astype(np.float32)

    def layers(self) -> list[Tensor]:
        return [torch.from_numpy(state) for state in self.states]


class ScikitLearn(Sampler):
    """BernoulliRBM.gibbs, one sweep a call; the attributes are those that ``fit`` would set."""

    def __init__(self, problem: Problem) -> None:
        from sklearn.neural_network import BernoulliRBM

        only_rbm(problem)
        self.model = BernoulliRBM(n_components=problem.units[1], random_state=0)
        self.model.components_ = problem.weights[0].T.contiguous().numpy()
        self.model.intercept_visible_, self.model.intercept_hidden_ = (bias.numpy() for bias in problem.biases)
        self.visible = problem.visible.numpy()

    def run(self, n_sweeps: int) -> None:
        for _ in range(n_sweeps):
            self.visible = self.model.gibbs(self.visible).astype(np.float32)

    def layers(self) -> list[Tensor]:
        return [torch.from_numpy(self.visible)]


class Rbms(Sampler):
    """BBRBM.sample_state draws the hidden units once more at the end of a call: 2 k + 1 layers in k sweeps."""

    def __init__(self, problem: Problem) -> None:
        from rbms.bernoulli_bernoulli.classes import BBRBM

        only_rbm(problem)
        self.model = BBRBM(weight_matrix=problem.weights[0], vbias=problem.biases[0], hbias=problem.biases[1])
        self.chains = self.model.init_chains(problem.n_chains, start_v=problem.visible)

    def run(self, n_sweeps: int) -> None:
        with torch.no_grad():
            self.chains = self.model.sample_state(chains=self.chains, n_steps=n_sweeps)

    def layers(self) -> list[Tensor]:
        return [self.chains["visible"]]


class Thrml(Sampler):
    """Spins of -1 and +1 on the edges of a graph; a gather per edge, hence the limit on chains."""

    MAX_FLOATS = 10**9

    def __init__(self, problem: Problem) -> None:
        import jax
        import jax.numpy as jnp
        from thrml import Block, SamplingSchedule, SpinNode, sample_states
        from thrml.models import IsingEBM, IsingSamplingProgram

        only_rbm(problem)
        if problem.n_chains * problem.weights[0].numel() > self.MAX_FLOATS:
            raise Unavailable(f"a number per chain and edge would be over {self.MAX_FLOATS:.0e} numbers")
        (weight,), (visible_bias, hidden_bias) = problem.weights, problem.biases
        visible, hidden = ([SpinNode() for _ in range(n)] for n in problem.units)
        fields = torch.cat([visible_bias / 2 + weight.sum(1) / 4, hidden_bias / 2 + weight.sum(0) / 4])
        model = IsingEBM(
            visible + hidden,
            [(a, b) for a in visible for b in hidden],
            jnp.asarray(fields.numpy()),
            jnp.asarray((weight / 4).flatten().numpy()),
            jnp.array(1.0),
        )
        blocks = [Block(hidden), Block(visible)]
        program = IsingSamplingProgram(model, blocks, [])
        self.jax, self.key = jax, jax.random.key(0)
        self.start = [
            jnp.zeros((problem.n_chains, problem.units[1]), dtype=bool),
            jnp.asarray(problem.visible.bool().numpy()),
        ]

        @functools.cache
        def compiled(n_sweeps: int) -> Callable[..., list[jax.Array]]:
            schedule = SamplingSchedule(n_sweeps, 1, 1)  # n_sweeps of warm-up, then one observation
            return jax.jit(jax.vmap(lambda key, state: sample_states(key, program, schedule, state, [], blocks)))

        self.compiled = compiled

    def run(self, n_sweeps: int) -> None:
        self.key, key = self.jax.random.split(self.key)
        states = self.compiled(n_sweeps)(self.jax.random.split(key, self.start[0].shape[0]), self.start)
        self.start = [state[:, 0] for state in self.jax.block_until_ready(states)]

    def layers(self) -> list[Tensor]:
        hidden, visible = (torch.from_numpy(np.array(state, dtype=np.float32)) for state in self.start)
        return [visible, hidden]


class Unavailable(Exception):
    """Why a library does not take part."""


def only_rbm(problem: Problem) -> None:
    if len(problem.units) != 2:
        raise Unavailable("samples machines of two layers only")


SAMPLERS: dict[str, Callable[[Problem], Sampler]] = {
    "bm_fast": BmFast,
    "torch": Torch,
    "torch-rand": lambda problem: Torch(problem, rand_below),
    "torch-bf16": lambda problem: Torch(problem, dtype=torch.bfloat16),
    "torch-bf16-rand": lambda problem: Torch(problem, rand_below, torch.bfloat16),
    "torch-compile": lambda problem: Torch(problem, compiled=True),
    "torch-compile-rand": lambda problem: Torch(problem, rand_below, compiled=True),
    "numpy": Numpy,
    "scikit-learn": ScikitLearn,
    "rbms": Rbms,
    "thrml": Thrml,
}


def disagreement(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """How many standard errors the unit means, and the second moments with layer 0, differ: about 1 where laws agree.

    The largest of the root mean squares over all means and over the second moments of each layer. Of these, the ones
    with a layer that is coupled to layer 0 see what a sampler does that draws coupled layers at the same time.

    a, b: layers of independent chains, float32 0/1 ``[n_chains, units]``; those that only one has are left out.
    """
    layers = list(zip(a, b, strict=False))
    groups = [(torch.cat([x.mean(0) for x, _ in layers]), torch.cat([y.mean(0) for _, y in layers]))]
    groups += [(a[0].T @ x / len(x), b[0].T @ y / len(y)) for x, y in layers]
    largest = 0.0
    for p, q in groups:
        mean = (p + q) / 2
        variance = mean * (1 - mean) * (1 / len(a[0]) + 1 / len(b[0]))
        seen = variance > 0
        largest = max(largest, float(((p - q).square()[seen] / variance[seen]).mean().sqrt()))
    return largest
