"""The path of distributions from a base of independent units (beta = 0) to a machine (beta = 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from bm_fast import ops
from bm_fast.chains import Chains
from bm_fast.graph import Graph, Kind
from bm_fast.ops import Machine
from bm_fast.program import Program, Update, full_update, gibbs_program


class Path(Protocol):
    """Densities p_beta from independent units at beta = 0 to a machine at beta = 1, and sweeps that keep them."""

    machine: Machine

    def start(self, n_chains: int, seed: int, first_chain: int = 0) -> Chains:
        """Independent exact draws from p_0."""

    def move(self, chains: Chains, beta: float) -> None:
        """One sweep that leaves p_beta invariant."""

    def log_density(self, layers: Sequence[Tensor], betas: Sequence[float]) -> Tensor:
        """Unnormalised log p_beta of each state, float64 ``[n_betas, n_chains]``."""

    def anneal(self, chains: Chains, betas: Tensor, log_weights: Tensor, progress: Callable[[int], None]) -> None:
        """Moves chains on from one beta to the next, as ``ops.anneal`` does: its arguments, results and Ctrl-C."""

    def base_log_z(self) -> float:
        """log Z of p_0."""


def anneal(path: Path, chains: Chains, betas: Tensor, description: str, progress: bool) -> Tensor:
    """Takes chains along a path, in place; log Π_k p_k+1(x_k) / p_k(x_k) of each, unnormalised, float64 ``[n]``."""
    log_weights = torch.zeros(chains.n_chains, dtype=torch.float64, device=path.machine.device)
    with tqdm(
        total=len(betas) - 1, desc=description, unit=" betas", leave=False, delay=1.0, disable=not progress
    ) as bar:
        path.anneal(chains, betas.to(path.machine.device), log_weights, lambda done: bar.update(done - bar.n))
    return log_weights


def anneal_in_steps(
    path: Path, chains: Chains, betas: Tensor, log_weights: Tensor, progress: Callable[[int], None]
) -> None:
    """``Path.anneal`` by the other methods of a path."""
    for k, (beta, following) in enumerate(pairwise(betas.tolist())):
        now, then = path.log_density(chains.layers, (beta, following))
        before = chains.sweep
        try:
            path.move(chains, following)
        finally:  # Ctrl-C may come when the sweep is done
            if chains.sweep > before:
                log_weights += then - now
        progress(k + 1)


def path_of(machine: Machine, base: Sequence[Tensor] | None, path: Path | None) -> Path:
    """The given path, checked, or the geometric one from a base; ValueError where they do not fit together."""
    if path is None:
        return AnnealingPath(machine, base)
    if base is not None:
        raise ValueError("base: expected None beside a path, which has its own")
    own, other = path.machine.parameters, machine.parameters
    same = own.graph == other.graph and all(
        torch.equal(a, b) for a, b in zip((*own.weights, *own.biases), (*other.weights, *other.biases), strict=True)
    )
    if not same:
        raise ValueError("path: expected one that ends at the model, got one that ends at another machine")
    return path


class AnnealingPath:
    """Densities p_beta ∝ exp(-beta E - (1 - beta) E_base), E_base = -Σ base·h, and sweeps that leave them alone.

    Gaussian layers keep the machine's precision along the whole path, so every p_beta can be normalised.
    One colour is summed out of the densities where each coupling leads to it (any chain or tree), which makes the
    weights vary less; a sweep refreshes that colour first and the rest of the state last.
    """

    def __init__(self, machine: Machine, base: Sequence[Tensor] | None) -> None:
        self.machine = machine
        graph, biases = machine.graph, machine.parameters.biases
        self.base = [torch.zeros_like(bias) for bias in biases] if base is None else list(base)
        ops.EnergyGap(machine, self.base)  # checks the base
        self.updates, self.program = summed_and_sweep(graph)

    def start(self, n_chains: int, seed: int, first_chain: int = 0) -> Chains:
        """Independent exact draws from the base distribution."""
        chains = self.machine.chains(n_chains, seed, first_chain)
        self.move(chains, 0.0)  # at beta = 0 a sweep forgets the state it came from
        return chains

    def move(self, chains: Chains, beta: float) -> None:
        """One sweep that leaves p_beta invariant."""
        betas = torch.full((chains.n_chains,), beta, dtype=torch.float32, device=self.machine.device)
        self.machine.sweep(self.program, chains, 1, beta=betas, base=self.base)

    def log_density(self, layers: Sequence[Tensor], betas: Sequence[float]) -> Tensor:
        """Unnormalised log p_beta of each state, float64 ``[n_betas, n_chains]``."""
        values = torch.tensor(betas, dtype=torch.float32, device=self.machine.device)
        if self.updates:
            return -self.machine.free_energy(self.updates, layers, betas=values, base=self.base)
        model, base = -self.machine.energy(layers), self._base_log_density(layers)
        beta = values.double()[:, None]
        return beta * model + (1 - beta) * base

    def anneal(self, chains: Chains, betas: Tensor, log_weights: Tensor, progress: Callable[[int], None]) -> None:
        """In one call where a colour is summed out, else step by step."""
        if self.updates:
            ops.anneal(self.machine, self.program, chains, betas, log_weights, base=self.base, progress=progress)
        else:
            anneal_in_steps(self, chains, betas, log_weights, progress)

    def base_log_z(self) -> float:
        """log Z of the base distribution."""
        total = 0.0
        parameters = self.machine.parameters
        for layer, base, precision in zip(parameters.graph.layers, self.base, parameters.precisions, strict=True):
            field = base.double()
            if precision is not None:
                precision = precision.double()
                total += (field.square() / precision + (2 * math.pi / precision).log()).sum().item() / 2
            elif layer.kind is Kind.SOFTMAX:
                total += field.logsumexp(0).item()
            else:
                total += torch.nn.functional.softplus(field, threshold=40).sum().item()
        return total

    def _base_log_density(self, layers: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(layers[0].shape[0], dtype=torch.float64, device=self.machine.device)
        for state, base, precision in zip(layers, self.base, self.machine.parameters.precisions, strict=True):
            total += state.double() @ base.double()
            if precision is not None:
                total -= state.double().square() @ precision.double() / 2
        return total


def summed_and_sweep(graph: Graph) -> tuple[list[Update], Program]:
    """Updates of the colour that is summed out of densities, and a sweep that refreshes that colour first."""
    summed = _summed_colour(graph)
    kept = [layer for layer in range(len(graph.layers)) if layer not in summed]
    return [full_update(graph, layer) for layer in summed], gibbs_program(graph, last=kept[0] if kept else None)


def _summed_colour(graph: Graph) -> tuple[int, ...]:
    """The largest colour that every coupling leads to; empty where there is none (more than two colours)."""
    covering = [
        colour
        for colour in graph.colours()
        if all(coupling.lower in colour or coupling.upper in colour for coupling in graph.couplings)
    ]
    return max(covering, key=lambda colour: sum(graph.layers[i].units for i in colour), default=())
