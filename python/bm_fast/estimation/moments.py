"""Annealing along averaged moments: machines whose means and correlations, not whose energies, are interpolated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bm_fast import ops
from bm_fast.arguments import count
from bm_fast.chains import Chains
from bm_fast.estimation._path import AnnealingPath, anneal_in_steps, summed_and_sweep
from bm_fast.graph import Graph, Kind
from bm_fast.machines import Model, as_machine
from bm_fast.ops import Machine
from bm_fast.program import gibbs_program

_FITTING_CHAINS = 5 * 2**28  # index of the first chain: random numbers that no estimate of the same seed draws


class MomentAveragedPath:
    """Machines with parameters θ(β) that run linearly between knots, from independent units to a machine.

    knots: the machines at equal distances in β; the first has no weights, the last is the machine that is measured. Any
        knots give unbiased weights; those of ``moment_averaged_path`` let them vary less.

    Source: Grosse, Maddison and Salakhutdinov, Annealing between distributions by averaging moments (NIPS 2013), whose
    moment-averaged spline path this is.
    """

    def __init__(self, knots: Sequence[Machine]) -> None:
        if len(knots) < 2 or any(knot.graph != knots[-1].graph for knot in knots):
            raise ValueError(f"knots: expected at least two machines with one graph, got {len(knots)}")
        _check_bernoulli("knots", knots[-1].graph)
        if any(bool(weight.any()) for weight in knots[0].parameters.weights):
            raise ValueError("knots: expected a first machine without weights, whose log Z is known")
        self.machine = knots[-1]
        self._knots = tuple(knots)
        self._updates, self._program = summed_and_sweep(self.machine.graph)
        self._held: dict[float, Machine] = {}

    def machine_at(self, beta: float) -> Machine:
        """The machine whose distribution the path has at ``beta``, with parameters on the integer grid."""
        if beta not in self._held:
            place = beta * (len(self._knots) - 1)
            below = min(math.floor(place), len(self._knots) - 2)
            machine = _between(self._knots[below], self._knots[below + 1], place - below)
            self._held = {**dict(list(self._held.items())[-_HELD + 1 :]), beta: machine}
        return self._held[beta]

    def start(self, n_chains: int, seed: int, first_chain: int = 0) -> Chains:
        """Independent exact draws from the first knot."""
        chains = self.machine.chains(n_chains, seed, first_chain)
        self.move(chains, 0.0)  # without weights a sweep forgets the state it came from
        return chains

    def move(self, chains: Chains, beta: float) -> None:
        """One sweep of the machine at ``beta``."""
        self.machine_at(beta).sweep(self._program, chains, 1)

    def log_density(self, layers: Sequence[Tensor], betas: Sequence[float]) -> Tensor:
        """Unnormalised log p_beta of each state, float64 ``[n_betas, n_chains]``."""
        machines = [self.machine_at(beta) for beta in betas]
        if self._updates:
            return torch.cat([-machine.free_energy(self._updates, layers) for machine in machines])
        return torch.stack([-machine.energy(layers) for machine in machines])

    def anneal(self, chains: Chains, betas: Tensor, log_weights: Tensor, progress: Callable[[int], None]) -> None:
        """Step by step: every beta has a machine of its own."""
        anneal_in_steps(self, chains, betas, log_weights, progress)

    def base_log_z(self) -> float:
        """log Z of the first knot."""
        return AnnealingPath(self._knots[0], self._knots[0].parameters.biases).base_log_z()


_HELD = 8  # machines kept: an estimate asks for each beta twice in a row, an adaptive schedule for six at a time


def moment_averaged_path(
    model: Model,
    samples: Sequence[Tensor],
    *,
    base: Sequence[Tensor] | None = None,
    n_knots: int = 9,
    n_updates: int = 1000,
    learning_rate: float = 0.1,
    n_chains: int = 200,
    seed: int = 0,
    progress: bool = False,
) -> MomentAveragedPath:
    """A path for ``ais`` and its kin along which means and correlations run linearly from the base to the machine.

    Between the ends lie ``n_knots`` - 2 machines that are fitted to (1 - γ) s_0 + γ s_1, with s_0 the moments of the
    base and s_1 those of the samples, by stochastic approximation with persistent chains, each from the one before.
    The geometric path lets units freeze one after the other; here they all get their correlations at the same time,
    which avoids narrow passages where the base is far from the machine. The fit, and samples that are not exact, cost
    efficiency only: the weights stay unbiased.

    samples: states of all layers of the machine, ``[n, units]`` as for ``reverse_ais``; Bernoulli units only.
    base: per layer float32 ``[units]``, the biases of the first knot; ``base_biases`` makes them. Default: zero.
    n_updates, learning_rate, n_chains: of each fit; the rate falls linearly to zero.

    Source: Grosse, Maddison and Salakhutdinov (2013).
    """
    machine = as_machine(model)
    machine.energy(samples)  # checks them
    graph = machine.graph
    _check_bernoulli("model", graph)
    if count("n_knots", n_knots) < 3:
        raise ValueError(f"n_knots: expected at least 3, one of them between the ends, got {n_knots}")
    count("n_updates", n_updates)
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate: expected a finite number above 0, got {learning_rate}")
    biases = list(AnnealingPath(machine, base).base)  # checked
    means = [bias.sigmoid() for bias in biases]
    first = [*(torch.outer(means[c.lower], means[c.upper]) for c in graph.couplings), *means]
    last = _moments(graph, samples)
    parameters = [torch.zeros_like(moment) for moment in first[: len(graph.couplings)]] + biases
    knots = [_machine(graph, parameters)]
    chains = machine.chains(n_chains, seed, _FITTING_CHAINS)
    with tqdm(total=(n_knots - 2) * n_updates, desc="fitting", leave=False, delay=1.0, disable=not progress) as bar:
        for k in range(1, n_knots - 1):
            share = k / (n_knots - 1)
            wanted = [torch.lerp(a, b, share) for a, b in zip(first, last, strict=True)]
            parameters = [parameter.clone() for parameter in parameters]
            for update in range(n_updates):
                _machine(graph, parameters).sweep(gibbs_program(graph), chains, 1)
                rate = learning_rate * (1 - update / n_updates)
                for parameter, target, own in zip(parameters, wanted, _moments(graph, chains.layers), strict=True):
                    parameter.add_(target - own, alpha=rate)
                bar.update()
            knots.append(_machine(graph, parameters))
    return MomentAveragedPath([*knots, machine])


def _check_bernoulli(name: str, graph: Graph) -> None:
    if any(layer.kind is not Kind.BERNOULLI for layer in graph.layers):
        raise ValueError(f"{name}: averaged moments need Bernoulli units in all layers")


def _moments(graph: Graph, layers: Sequence[Tensor]) -> list[Tensor]:
    """Means of lower·upperᵀ of each coupling, then of each layer; float32."""
    n, moments = len(layers[0]), []
    for coupling in graph.couplings:
        lower, upper = layers[coupling.lower], layers[coupling.upper]
        sums = torch.empty(lower.shape[1], upper.shape[1], device=lower.device)
        ops.statistics(lower, upper, sums)
        moments.append(sums / n)
    return [*moments, *(layer.mean(0, dtype=torch.float32) for layer in layers)]


def _machine(graph: Graph, parameters: Sequence[Tensor]) -> Machine:
    n = len(graph.couplings)
    return Machine.build(graph, parameters[:n], parameters[n:])


def _between(lower: Machine, upper: Machine, share: float) -> Machine:
    """The machine whose parameters are those of two others, mixed; the others themselves at the ends."""
    if share in (0, 1):
        return lower if share == 0 else upper
    a, b = lower.parameters, upper.parameters
    weights = [torch.lerp(a.weight(i), b.weight(i), share) for i in range(len(a.weights))]
    return _machine(
        lower.graph, [*weights, *(torch.lerp(x, y, share) for x, y in zip(a.biases, b.biases, strict=True))]
    )
