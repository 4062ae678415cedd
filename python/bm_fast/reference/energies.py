"""Energies and free energies of states, and the swaps of replica exchange that go by them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from bm_fast.graph import Kind
from bm_fast.parameters import Parameters
from bm_fast.program import Update
from bm_fast.reference.arithmetic import Purpose, accept, acceptance, random_words
from bm_fast.reference.programs import model_field, precision_of, tempered
from bm_fast.rungs import Rungs


def energy(parameters: Parameters, layers: Sequence[Tensor]) -> Tensor:
    """E(state) of each chain, float64 ``[n_chains]``; the coupling terms of binary layers are exact integers.

    E = -Σ bias·h - Σ h_lower W h_upper + Σ_Gaussian ½ precision v²
    """
    total = torch.zeros(layers[0].shape[0], dtype=torch.float64, device=layers[0].device)
    for i, layer in enumerate(parameters.graph.layers):
        state = layers[i].double()
        total -= state @ parameters.biases[i].double()
        precision = parameters.precisions[i]
        if layer.kind is Kind.GAUSSIAN and precision is not None:
            total += state.square() @ precision.double() / 2
    for i, coupling in enumerate(parameters.graph.couplings):
        sums = layers[coupling.lower].double() @ parameters.weights[i].double()
        total -= (sums * layers[coupling.upper].double()).sum(1) * 2.0 ** -parameters.fraction_bits[i]
    return total


def free_energy(
    parameters: Parameters,
    updates: Sequence[Update],
    layers: Sequence[Tensor],
    *,
    betas: Tensor,
    base: Sequence[Tensor] | None,
) -> Tensor:
    """-log Σ exp(-E_beta) over the units that ``updates`` refresh, float64 ``[n_betas, n_chains]``.

    E_beta = beta E + (1 - beta) E_base, E_base = -Σ base·h (+ the same quadratic term for Gaussian layers).
    ``updates`` name layers without a coupling among them; the couplings of all other layers must lead to them.
    betas: float32 ``[n_betas]``, one value for all chains each.
    """
    n_chains = layers[0].shape[0]
    summed = {update.layer for update in updates}
    out = torch.zeros(len(betas), n_chains, dtype=torch.float64, device=layers[0].device)
    for i, layer in enumerate(parameters.graph.layers):
        if i in summed:
            continue
        state = layers[i].double()
        from_model = state @ parameters.biases[i].double()
        from_base = 0 if base is None else state @ base[i].double()
        precision = parameters.precisions[i]
        quadratic: Tensor | int = 0
        if layer.kind is Kind.GAUSSIAN and precision is not None:
            quadratic = state.square() @ precision.double() / 2
        for k, beta in enumerate(betas.double()):
            out[k] -= beta * from_model + (1 - beta) * from_base - (quadratic if base is not None else beta * quadratic)
    for update in updates:
        field = model_field(parameters, update, layers)
        for k, beta in enumerate(betas):
            b = beta.expand(n_chains)
            x = tempered(field, b, None if base is None else base[update.layer]).double()
            kind = parameters.graph.layers[update.layer].kind
            if kind is Kind.GAUSSIAN:
                precision = precision_of(parameters, update.layer, b, base).double()
                out[k] -= (x.square() / (2 * precision) + (2 * math.pi / precision).log() / 2).sum(1)
            elif kind is Kind.SOFTMAX:
                out[k] -= x.logsumexp(1)
            else:
                out[k] -= torch.nn.functional.softplus(x, threshold=40).sum(1)
    return out


def gap(
    parameters: Parameters, biases: Sequence[Tensor], bias_bits: int, has_base: bool, layers: Sequence[Tensor]
) -> Tensor:
    """E - E_base of each chain, float64 ``[n_chains]``: what a change of beta by one adds to the tempered energy.

    biases: per layer int64 ``[units]``, B_q of bias - base, on the grid ``2**-bias_bits``. Sums over binary layers are
    exact integers; they are scaled and subtracted in float64, the couplings in order and then the biases. A Gaussian
    layer comes first. Its quadratic term is shared with a base, and cancels.
    """
    n_chains = layers[0].shape[0]
    device = layers[0].device
    total = torch.zeros(n_chains, dtype=torch.float64, device=device)
    on = torch.zeros(n_chains, dtype=torch.int64, device=device)
    for i, layer in enumerate(parameters.graph.layers):
        if layer.kind is not Kind.GAUSSIAN:
            on += (layers[i].long() * biases[i]).sum(1)
            continue
        state, precision = layers[i].double(), parameters.precisions[i]
        total -= state @ (biases[i].double() * 2.0**-bias_bits)
        if precision is not None and not has_base:
            total += state.square() @ precision.double() / 2
    for i, coupling in enumerate(parameters.graph.couplings):
        sums = layers[coupling.lower].double() @ parameters.weights[i].double()
        total -= (sums * layers[coupling.upper].double()).sum(1) * 2.0 ** -parameters.fraction_bits[i]
    return total - on.double() * 2.0**-bias_bits


def swap(rungs: Rungs, gaps: Tensor, betas: Tensor, *, seed: int, first_ladder: int) -> None:
    """One round of replica exchange, in place: neighbouring rungs of each ladder exchange their chains, or do not.

    Even rounds try the pairs of rungs (0, 1), (2, 3)…, odd rounds (1, 2), (3, 4)…. With chain a on the lower rung i and
    chain b on rung i + 1, the rungs change hands where u < exp((betas[i] - betas[i + 1]) (gaps[a] - gaps[b])).

    rungs: all but ``round`` changes; tries and probabilities of each pair are added ladder by ladder. A chain heads for
        the last rung from when it was on rung 0, and back from when it was on the last.
    gaps: float64 ``[n_chains]``; betas: float32 ``[n_rungs]``.
    """
    n_rungs = len(betas)
    table, energy = rungs.rungs.view(-1, n_rungs), gaps.view(-1, n_rungs)
    chain_on = table.argsort(1)
    n_ladders = len(table)
    if not torch.equal(table.gather(1, chain_on), torch.arange(n_rungs, dtype=torch.int32).expand(n_ladders, -1)):
        raise ValueError(f"rungs: expected a permutation of 0 to {n_rungs - 1} in each ladder")
    words = random_words(
        n_rungs - 1, torch.arange(first_ladder, first_ladder + n_ladders), rungs.round, 0, Purpose.SWAP, seed
    )
    step = betas.double()[:-1] - betas.double()[1:]
    for i in range(rungs.round % 2, n_rungs - 1, 2):
        a, b = chain_on[:, i : i + 1], chain_on[:, i + 1 : i + 2]
        log_ratio = (step[i] * (energy.gather(1, a) - energy.gather(1, b)))[:, 0]
        rungs.attempts[i] += n_ladders
        for p in acceptance(log_ratio):
            rungs.acceptances[i] += p.double()
        taken = accept(log_ratio, words[:, i])[:, None].int()
        table.scatter_(1, a, i + taken)
        table.scatter_(1, b, i + 1 - taken)
    top, bottom = rungs.rungs == n_rungs - 1, rungs.rungs == 0
    rungs.trips += (top & (rungs.heading == 1)).long()
    rungs.heading[top] = 2
    rungs.heading[bottom] = 1
