"""Every native operation in plain torch: the specification that the compiled kernels must match.

Operations on binary units give the same bits as the kernels do; operations on real values (Gaussian units, mean
field, free energies) agree within a stated tolerance. Nothing here is fast. Formulas: docs/numbers.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from enum import IntEnum

import torch
from torch import Tensor

from bm_fast.graph import Kind
from bm_fast.parameters import Parameters, fraction_bits
from bm_fast.program import Program, Update
from bm_fast.rungs import Rungs


class Purpose(IntEnum):
    """What random numbers are for: part of their counter, so that no two uses share numbers."""

    GIBBS = 0
    INITIAL = 1
    BINARISE = 2
    SWAP = 3
    DECISION = 4


# --- arithmetic ------------------------------------------------------------------------------------------------------


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """``a * b + c`` of float32 tensors with one rounding.

    The product is exact in float64. The sum is rounded to odd there, after which rounding to float32 is correct
    (Boldo and Melquiond, 2008: a round-to-odd step with two spare bits makes double rounding harmless).
    """
    product = a.double() * b.double()
    addend = c.double().expand_as(product)
    total = product + addend
    high = total - product
    error = (product - (total - high)) + (addend - high)
    bits = total.view(torch.int64)
    step = torch.where((error > 0) == (total > 0), 1, -1)
    inexact_even = ((error > 0) | (error < 0)) & (bits & 1 == 0)  # it is NaN beside an infinite total
    return torch.where(inexact_even, bits + step, bits).view(torch.float64).float()


def philox(counter: Sequence[Tensor | int], seed: int) -> Tensor:
    """Philox4x32-10 (Salmon et al., SC 2011) of broadcastable counter words; int64 ``[..., 4]`` in 0..2^32-1."""
    mask = 0xFFFFFFFF
    words = (torch.as_tensor(c, dtype=torch.int64) for c in counter)
    c0, c1, c2, c3 = torch.broadcast_tensors(*words)  # type: ignore[no-untyped-call]
    key0, key1 = seed & mask, seed >> 32 & mask
    for _ in range(10):
        # int64 products wrap, but their 64 bits are those of the unsigned product
        product0, product1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (product1 >> 32 & mask) ^ c1 ^ key0,
            product1 & mask,
            (product0 >> 32 & mask) ^ c3 ^ key1,
            product0 & mask,
        )
        key0, key1 = (key0 + 0x9E3779B9) & mask, (key1 + 0xBB67AE85) & mask
    return torch.stack((c0, c1, c2, c3), -1)


def random_words(units: int, chains: Tensor, sweep: int, layer: int, purpose: Purpose, seed: int) -> Tensor:
    """One 32-bit number per chain and unit, int64 ``[n_chains, units]``; unit u takes word u % 4 of group u // 4."""
    groups = torch.arange((units + 3) // 4)
    words = philox((groups[None, :], chains[:, None], sweep, layer | purpose << 16), seed)
    return words.flatten(1)[:, :units]


def uniform(words: Tensor) -> Tensor:
    """The top 24 bits of each word as float32 at the middle of their cell: (k + 1/2) 2^-24, rounded."""
    k = (words >> 8).float()
    return fma(k, torch.tensor(2.0**-24), torch.tensor(2.0**-25))


# 2^r on [-1/2, 1/2], highest power first: minimax for the relative error, 9e-8 before rounding
EXP2 = (0.00132647, 0.00967151, 0.05550734, 0.24022242, 0.69314698, 1.0)
LOG2_E = 1.44269504
MAGIC = 12582912.0  # 1.5 * 2^23: adding it rounds to an integer
CLAMP = 64.0


def exp_minus(x: Tensor) -> Tensor:
    """exp(-x) of float32 fields by the polynomial that all backends share; exponents are clamped to 2^±64."""
    t = (x * torch.tensor(-LOG2_E)).clamp(-CLAMP, CLAMP)
    shifted = t + torch.tensor(MAGIC)
    r = t - (shifted - torch.tensor(MAGIC))
    p = torch.full_like(r, EXP2[0])
    for coefficient in EXP2[1:]:
        p = fma(p, r, torch.tensor(coefficient))
    exponent = shifted.view(torch.int32) << 23
    return (p.view(torch.int32) + exponent).view(torch.float32)


def decide(x: Tensor, words: Tensor) -> Tensor:
    """Whether a unit with field x turns on: u < 1 / (1 + exp(-x)), tested as u exp(-x) + u < 1. uint8."""
    u = uniform(words)
    return (fma(u, exp_minus(x), u) < 1).to(torch.uint8)


def acceptance(log_ratio: Tensor) -> Tensor:
    """min(1, exp(log_ratio)) of float64 log ratios as float32, by the same polynomial."""
    return torch.where(log_ratio >= 0, torch.ones(()), exp_minus(-log_ratio.float()))


def accept(log_ratio: Tensor, words: Tensor) -> Tensor:
    """Whether a Metropolis move is taken: u < exp(log_ratio), tested as u exp(-log_ratio) < 1 below 0. bool."""
    return (log_ratio >= 0) | (uniform(words) * exp_minus(log_ratio.float()) < 1)


def softmax_terms(x: Tensor, held: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """exp(x_j - max x) of fields ``[n, units]``, 0 for ``held`` units, and their cumulative sums in order; float32."""
    free = x if held is None else torch.where(held, -torch.inf, x)
    largest = free.amax(1, keepdim=True)
    # a field that equals the largest has the term 1 even where both are infinite
    terms = exp_minus(torch.where(x < largest, largest - x, torch.zeros(())))
    terms = terms if held is None else torch.where(held, 0, terms)
    sums = [terms[:, 0]]
    for term in terms.T[1:]:
        sums.append(sums[-1] + term)
    return terms, torch.stack(sums, 1)


def softmax(x: Tensor, held: Tensor | None = None) -> Tensor:
    """Probabilities of the units of a softmax layer with these fields, float32 ``[n, units]``; 0 for ``held`` ones."""
    terms, sums = softmax_terms(x, held)
    return terms / sums[:, -1:]


def choose(x: Tensor, words: Tensor, held: Tensor | None = None) -> Tensor:
    """States of a softmax layer with these fields, uint8 ``[n, units]``, by one random word for each row ``[n]``.

    The unit that is on is the first whose cumulative sum reaches u times the sum of all.
    """
    _, sums = softmax_terms(x, held)
    chosen = (sums < uniform(words)[:, None] * sums[:, -1:]).sum(1)
    return torch.nn.functional.one_hot(chosen, x.shape[1]).to(torch.uint8)


def logistic(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)) from the same polynomial; one rounding per operation."""
    return 1 / (1 + exp_minus(x))


def normals(words: Tensor) -> Tensor:
    """Standard normals by Box and Muller, float32: words 0 and 1 of four give the first two, 2 and 3 the others."""
    chains, units = words.shape
    pairs = torch.nn.functional.pad(words, (0, -units % 4)).view(chains, -1, 2)
    u = uniform(pairs).double()
    radius, angle = (-2 * u[..., 0].log()).sqrt(), 2 * math.pi * u[..., 1]
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1).flatten(1)[:, :units].float()


# --- fields ----------------------------------------------------------------------------------------------------------


def model_field(parameters: Parameters, update: Update, layers: Sequence[Tensor]) -> Tensor:
    """Field of a layer at beta = 1, float32 ``[n_chains, units]``: bias, then one fma per input in program order."""
    n_chains = layers[0].shape[0]
    x = parameters.biases[update.layer].expand(n_chains, -1)
    for source in update.inputs:
        coupling = parameters.graph.couplings[source.coupling]
        weights = parameters.weights[source.coupling].double()
        other = layers[coupling.upper if source.transposed else coupling.lower].double()
        total = other @ (weights.T if source.transposed else weights)  # exact for binary units
        scale = source.scale * 2.0 ** -parameters.fraction_bits[source.coupling]
        x = fma(total.float(), torch.tensor(scale), x)
    return x


def tempered(x: Tensor, beta: Tensor | None, base: Tensor | None) -> Tensor:
    """Field at inverse temperature beta ``[n_chains]``, on the path from biases ``base`` (beta = 0) to the model."""
    if beta is None:
        return x
    beta = beta[:, None]
    return beta * x if base is None else fma(beta, x, (1 - beta) * base)


def _precision(parameters: Parameters, layer: int, beta: Tensor | None, base: object | None) -> Tensor:
    """Precision of a Gaussian layer: beta scales it too, unless a base distribution shares it. ``[..., units]``"""
    precision = parameters.precisions[layer]
    assert precision is not None
    return precision if beta is None or base is not None else beta[:, None] * precision


def layer_mean(parameters: Parameters, layer: int, x: Tensor, beta: Tensor | None, base: object | None) -> Tensor:
    """Mean of each unit given its tempered field."""
    kind = parameters.graph.layers[layer].kind
    if kind is Kind.GAUSSIAN:
        return x / _precision(parameters, layer, beta, base)
    return softmax(x) if kind is Kind.SOFTMAX else logistic(x)


# --- operations ------------------------------------------------------------------------------------------------------


def quantise(weight: Tensor, name: str) -> tuple[Tensor, int]:
    """``(W_q, f)`` of float weights; halves round to even. ValueError for non-finite or too large weights."""
    bits = fraction_bits(weight.abs().max().item(), name)
    return (weight * 2.0**bits).round().to(torch.int16), bits


def sweep(
    parameters: Parameters,
    program: Program,
    layers: Sequence[Tensor],
    n_sweeps: int,
    *,
    seed: int,
    first_chain: int,
    first_sweep: int,
    beta: Tensor | None,
    base: Sequence[Tensor] | None,
    clamp: Mapping[int, Tensor],
    means: Mapping[int, Tensor],
) -> int:
    """Runs a program in place on the states of many chains; returns the sweeps done.

    layers: per layer uint8 0/1 (Bernoulli, softmax) or float32 (Gaussian) ``[n_chains, units]``.
    beta: float32 ``[n_chains]``; base: per layer float32 ``[units]``, the biases at beta = 0.
    clamp: layer -> uint8 ``[n_chains, units]``, 1 where a unit keeps its value. A softmax layer keeps its state where
        the unit that is on is held, and otherwise chooses among the units that are not.
    means: layer -> float32 ``[n_chains, units]`` that receives the means from which the last sweep drew that layer.
    """
    chains = torch.arange(first_chain, first_chain + layers[0].shape[0])
    for s in range(first_sweep, first_sweep + n_sweeps):
        for block in program:
            for update in block:
                layer, state = update.layer, layers[update.layer]
                layer_base = None if base is None else base[layer]
                x = tempered(model_field(parameters, update, layers), beta, layer_base)
                units = state.shape[1]
                kind = parameters.graph.layers[layer].kind
                held = clamp[layer].bool() if layer in clamp else None
                if kind is Kind.SOFTMAX:
                    words = random_words(1, chains, s, layer, Purpose.GIBBS, seed)[:, 0]
                    drawn, mean = choose(x, words, held), softmax(x, held)
                    if held is not None:
                        held = (held & (state == 1)).any(1, keepdim=True)
                elif kind is Kind.GAUSSIAN:
                    precision = _precision(parameters, layer, beta, base)
                    words = random_words(units + units % 2, chains, s, layer, Purpose.GIBBS, seed)  # normals are pairs
                    drawn = x / precision + normals(words)[:, :units] / precision.sqrt()
                    mean = layer_mean(parameters, layer, x, beta, base)
                else:
                    drawn = decide(x, random_words(units, chains, s, layer, Purpose.GIBBS, seed))
                    mean = layer_mean(parameters, layer, x, beta, base)
                if held is not None:
                    drawn, mean = torch.where(held, state, drawn), torch.where(held, state.float(), mean)
                state.copy_(drawn)
                if layer in means:
                    means[layer].copy_(mean)
    return n_sweeps


def layer_means(
    parameters: Parameters,
    update: Update,
    layers: Sequence[Tensor],
    out: Tensor,
    *,
    beta: Tensor | None,
    base: Sequence[Tensor] | None,
) -> None:
    """Writes the mean of each unit of one layer, given the others, to ``out`` (float32 ``[n_chains, units]``).

    layers: per layer uint8 0/1 or float32 values (means, probabilities, Gaussian units).
    """
    layer_base = None if base is None else base[update.layer]
    x = tempered(model_field(parameters, update, layers), beta, layer_base)
    out.copy_(layer_mean(parameters, update.layer, x, beta, base))


def mean_field(
    parameters: Parameters,
    program: Program,
    values: Sequence[Tensor],
    *,
    iterations: int,
    tolerance: float,
    damping: float,
    changes: Tensor,
    performed: Tensor,
) -> None:
    """Runs a program on means: each update replaces the values of its layer by the means given all other values.

    An update moves the old mean m to f + damping (m - f), f being the mean given the field. A case stops by itself once
    none of its means changes by more than ``tolerance`` in an iteration; with tolerance 0 it never does.

    values: per layer ``[n_cases, units]``, uint8 0/1 or float32; float32 and updated in place in layers of the program.
    changes: float32 ``[n_cases]``, largest change of a mean in a case's last iteration.
    performed: int32 ``[n_cases]``, iterations of each case.
    """
    active = torch.arange(values[0].shape[0])
    for iteration in range(iterations):
        largest = torch.zeros(len(active))
        for block in program:
            for update in block:
                x = model_field(parameters, update, [value[active] for value in values])
                mean = layer_mean(parameters, update.layer, x, None, None)
                old = values[update.layer][active]
                mean = fma(torch.tensor(damping), old - mean, mean)
                largest = torch.maximum(largest, (mean - old).abs().amax(1))
                values[update.layer][active] = mean
        changes[active] = largest
        performed[active] = iteration + 1
        if tolerance > 0:
            active = active[largest > tolerance]
            if len(active) == 0:
                return


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
                precision = _precision(parameters, update.layer, b, base).double()
                out[k] -= (x.square() / (2 * precision) + (2 * math.pi / precision).log() / 2).sum(1)
            elif kind is Kind.SOFTMAX:
                out[k] -= x.logsumexp(1)
            else:
                out[k] -= torch.nn.functional.softplus(x, threshold=40).sum(1)
    return out


def statistics(lower: Tensor, upper: Tensor, out: Tensor) -> None:
    """out = Σ over chains of lowerᵀ upper, float32 ``[units of lower, units of upper]``.

    Inputs are uint8 0/1 or float32 ``[n_chains, units]``. Chains are added in order, one fma each, so that the result
    has the same bits everywhere.
    """
    out.zero_()
    for a, b in zip(lower.float(), upper.float(), strict=True):
        out.copy_(fma(a[:, None], b[None, :], out))


def gradient(
    visible: Tensor,
    means: Tensor,
    signs: Tensor,
    phases: tuple[Tensor, Tensor],
    offsets: tuple[Tensor, Tensor] | None,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """The gradient of an RBM from the rows of both phases; arguments and formulas as in ``ops.gradient``."""
    weight, visible_out, hidden_out = out
    visible_out.copy_(phases[0][1] - phases[0][0])
    hidden_out.copy_(phases[1][1] - phases[1][0])
    if offsets is None:
        statistics(visible, means * signs[:, None], weight)
        return
    weight.copy_(-(offsets[0][:, None] * hidden_out))
    for v, m in zip(visible.float(), (means - offsets[1]) * signs[:, None], strict=True):
        weight.copy_(fma(v[:, None], m, weight))
    for bias, (values, offset), (others, other_offset) in (
        (visible_out, (visible, offsets[0]), (means, offsets[1])),
        (hidden_out, (means, offsets[1]), (visible, offsets[0])),
    ):
        factors = _offset_products(others.float(), other_offset) * signs
        sums = torch.empty(1, len(bias))
        statistics(factors[:, None], values, sums)
        total = torch.zeros(())
        for factor in factors:
            total = total + factor
        bias.sub_(fma(-offset, total, sums[0]))


def _offset_products(values: Tensor, offset: Tensor) -> Tensor:
    """Σ over units of (value - offset) offset, ``[n_chains]``: 16 sums of every 16th unit, added by halves."""
    lanes = torch.zeros(len(values), 16)
    for first in range(0, len(offset), 16):
        part = offset[first : first + 16]
        n = len(part)
        lanes[:, :n] = fma(values[:, first : first + 16] - part, part, lanes[:, :n])
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]


def bernoulli(
    probabilities: Tensor, rows: Tensor, out: Tensor, *, seed: int, sweep: int, layer: int, purpose: Purpose
) -> None:
    """Draws uint8 0/1 with the given probabilities, float32 ``[n, units]``: on where u <= p (u is above 0, up to 1).

    rows: int64 ``[n]``, the chain part of the counter; a row of data keeps its random numbers in any batch.
    """
    words = random_words(probabilities.shape[1], rows, sweep, layer, purpose, seed)
    out.copy_(uniform(words) <= probabilities)
