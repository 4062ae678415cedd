"""Replica exchange: the energies that decide swaps, exact and the same on every backend, and the swaps themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.chains import MAX_CHAINS, Chains
from bm_fast.ops import cpu, cuda
from bm_fast.ops.backends import backend
from bm_fast.ops.checks import MAX_SEED, check, may_look
from bm_fast.ops.machine import Machine
from bm_fast.parameters import GapBiases
from bm_fast.program import Program, full_update, gibbs_program
from bm_fast.rungs import MAX_RUNGS, Rungs


class EnergyGap:
    """E - E_base of a machine's states, by which the tempered energy beta E + (1 - beta) E_base grows with beta.

    E_base = -Σ base·h (+ the machine's quadratic term for Gaussian layers, which cancels in the gap).
    Biases enter as integers round((bias - base) 2^g), so that a gap of binary states is the same number on every
    backend, instruction set and split of the chains (docs/numbers.md).

    base: per layer float32 ``[units]``; None: no base, the gap is E itself.
    """

    def __init__(self, machine: Machine, base: Sequence[Tensor] | None = None) -> None:
        machine._check_base(base)
        self.machine = machine
        self.base = base
        self.biases = GapBiases(machine.parameters, base)

    def of(self, layers: Sequence[Tensor]) -> Tensor:
        """The gap of each chain, float64 ``[n_chains]``; layers as in ``Chains.layers``."""
        machine = self.machine
        machine._check_states("layers", layers, states=True)
        return machine._impl.gap(self.biases, layers)


def check_rungs(rungs: Rungs, betas: Tensor, first_ladder: int, *, look: bool) -> None:
    """ValueError unless these are whole ladders with strictly rising betas; look: at the betas, waiting for a GPU."""
    device = rungs.rungs.device
    n_rungs = whole_number("rungs.n_rungs", rungs.n_rungs, 2, MAX_RUNGS)
    n_chains = rungs.rungs.numel()
    if n_chains == 0 or n_chains % n_rungs:
        raise ValueError(f"rungs.rungs: expected a multiple of {n_rungs} chains, got {n_chains}")
    check("rungs.rungs", rungs.rungs, torch.int32, (n_chains,), device)
    check("rungs.attempts", rungs.attempts, torch.int64, (n_rungs - 1,), device)
    check("rungs.acceptances", rungs.acceptances, torch.float64, (n_rungs - 1,), device)
    check("rungs.heading", rungs.heading, torch.uint8, (n_chains,), device)
    check("rungs.trips", rungs.trips, torch.int64, (n_chains,), device)
    check_betas(betas, n_rungs, device, look=look)
    whole_number("first_ladder", first_ladder, 0, MAX_CHAINS // n_rungs - n_chains // n_rungs)
    whole_number("rungs.round", rungs.round, 0, 2**32 - 1)


def check_betas(betas: Tensor, n_rungs: int, device: torch.device, *, look: bool) -> None:
    """ValueError unless these are ``n_rungs`` finite float32 inverse temperatures that rise strictly from 0 or more."""
    check("betas", betas, torch.float32, (n_rungs,), device)
    if look and not (float(betas[0]) >= 0 and bool((betas[1:] > betas[:-1]).all()) and math.isfinite(float(betas[-1]))):
        raise ValueError(
            f"betas: expected finite values that rise strictly from 0 or more, got {[f'{b:g}' for b in betas.tolist()]}"
        )


def swap(rungs: Rungs, gaps: Tensor, betas: Tensor, *, seed: int, first_ladder: int = 0) -> None:
    """One round of replica exchange between neighbouring rungs, in place; advances ``rungs.round``.

    With chains a and b on rungs i and i + 1 the rungs change hands with probability
    min(1, exp((beta_i - beta_i+1) (gap_a - gap_b))), which leaves the joint distribution of the ladder alone. Pairs
    (0, 1), (2, 3)… are tried in even rounds, (1, 2), (3, 4)… in odd ones: alternating makes a chain that was swapped
    up go on up, so that round trips take a number of rounds proportional to the rungs, not to their square.

    gaps: float64 ``[n_chains]`` of ``EnergyGap.of``; betas: float32 ``[n_rungs]``, strictly rising.
    first_ladder: number of the first ladder in the random counter, for ladders that are split over several objects.

    Source: Okabe et al. (2001); Syed, Bouchard-Côté, Deligiannidis and Doucet, Non-reversible parallel tempering,
    JRSS B 84 (2022).
    """
    look = may_look(rungs.rungs.device)
    check_rungs(rungs, betas, first_ladder, look=look)
    check("gaps", gaps, torch.float64, tuple(rungs.rungs.shape), rungs.rungs.device)
    seed = whole_number("seed", seed, 0, MAX_SEED)
    if look and not bool(gaps.isfinite().all()):
        raise ValueError("gaps: expected finite numbers, got NaN or infinity")
    backend("rungs.rungs", rungs.rungs).swap(rungs, gaps, betas, seed=seed, first_ladder=first_ladder)
    rungs.round += 1


def temper(
    gap: EnergyGap,
    chains: Chains,
    rungs: Rungs,
    betas: Tensor,
    n_rounds: int,
    *,
    sweeps: int = 1,
    program: Program | None = None,
    means: Mapping[int, Tensor] | None = None,
    trace: Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Parallel tempering in place: ``n_rounds`` times ``sweeps`` sweeps of every chain, then one round of swaps.

    One call of the kernels, whatever the number of rounds; its memory does not grow with them.

    gap: of the machine and base that are run; betas: float32 ``[n_rungs]``, strictly rising.
    chains: whole ladders, with a first chain that is a multiple of n_rungs; advances with ``rungs.round``.
    program: updates every layer once by all of its couplings; default ``gibbs_program``.
    means: as for ``Machine.sweep``, of the last sweep.
    trace: float64 ``[n_rounds, n_ladders, n_rungs]`` that receives the gap on each rung before each round of swaps.
    progress: called now and then with the number of rounds done in this call.

    Ctrl-C stops within a second, on a GPU at the end of a round: chains and rungs then hold the same whole number of
    rounds (``rungs.round``).
    """
    machine, graph, means = gap.machine, gap.machine.graph, means or {}
    program = gibbs_program(graph) if program is None else program
    machine._check_program(program)
    check_complete(machine, program)
    machine._check_states("chains.layers", chains.layers, states=True)
    n_chains = chains.n_chains
    check("rungs.rungs", rungs.rungs, torch.int32, (n_chains,), machine.device)
    n_rungs = rungs.n_rungs
    first_chain = whole_number("chains.first_chain", chains.first_chain, 0, MAX_CHAINS - n_chains)
    if first_chain % n_rungs:
        raise ValueError(f"chains.first_chain: expected a multiple of {n_rungs} rungs, got {first_chain}")
    check_rungs(rungs, betas, first_chain // n_rungs, look=machine._may_look())
    machine._check_temperatures("betas", betas, gap.base, range(len(graph.layers)))
    for i, mean in means.items():
        if not 0 <= i < len(graph.layers):
            raise ValueError(f"means: no layer {i} in a graph of {len(graph.layers)}")
        check(f"means[{i}]", mean, torch.float32, (n_chains, graph.layers[i].units), machine.device)
    seed = whole_number("chains.seed", chains.seed, 0, MAX_SEED)
    first_sweep, first_round = whole_number("chains.sweep", chains.sweep, 0, 2**32), rungs.round
    n_rounds = whole_number("n_rounds", n_rounds, 0, 2**32 - first_round)
    sweeps = whole_number("sweeps", sweeps, 1, (2**32 - first_sweep) // max(n_rounds, 1))
    if trace is not None:
        check("trace", trace, torch.float64, (n_rounds, n_chains // n_rungs, n_rungs), machine.device)

    if not isinstance(machine._impl, (cpu.Machine, cuda.Machine)):
        for k in range(n_rounds):
            _step(gap, chains, rungs, betas, sweeps, program, means, None if trace is None else trace[k])
            if progress is not None:
                progress(k + 1)
        return

    def advance(done: int) -> None:
        chains.sweep, rungs.round = first_sweep + done * sweeps, first_round + done
        if progress is not None:
            progress(done)

    done = torch.zeros(1, dtype=torch.int64)  # written by the kernel: Ctrl-C may come before `advance` begins
    try:
        machine._impl.temper(
            program,
            chains.layers,
            rungs,
            betas,
            n_rounds,
            sweeps,
            seed=seed,
            first_chain=first_chain,
            first_sweep=first_sweep,
            gap=gap.biases,
            means=means,
            trace=trace,
            done=done,
            progress=advance,
        )
    finally:
        chains.sweep, rungs.round = first_sweep + int(done) * sweeps, first_round + int(done)


def _step(
    gap: EnergyGap,
    chains: Chains,
    rungs: Rungs,
    betas: Tensor,
    sweeps: int,
    program: Program,
    means: Mapping[int, Tensor],
    trace: Tensor | None,
) -> None:
    """One round by separate operations; what ends it early leaves chains and rungs as they were."""
    before, after = chains.clone(), rungs.clone()
    try:
        beta = betas[rungs.rungs.long()].contiguous()
        gap.machine.sweep(program, chains, sweeps, beta=beta, base=gap.base, means=means)
        gaps = gap.of(chains.layers)
        if trace is not None:
            trace.scatter_(1, rungs.rungs.view(-1, len(betas)).long(), gaps.view(-1, len(betas)))
        swap(after, gaps, betas, seed=chains.seed, first_ladder=chains.first_chain // len(betas))
    except BaseException:
        for layer, old in zip(chains.layers, before.layers, strict=True):
            layer.copy_(old)
        chains.sweep = before.sweep
        raise
    for part, new in zip(rungs.parts, after.parts, strict=True):
        part.copy_(new)
    rungs.round = after.round


def check_complete(machine: Machine, program: Program) -> None:
    """ValueError unless a program samples the machine's own distribution, all of it."""
    updates = {update.layer: update for block in program for update in block}
    for layer in range(len(machine.graph.layers)):
        expected = full_update(machine.graph, layer)
        if layer not in updates or set(updates[layer].inputs) != set(expected.inputs):
            raise ValueError(
                f"program: expected an update of layer {layer} by all of its couplings, got {updates.get(layer)}; "
                "energies are those of the whole machine"
            )
