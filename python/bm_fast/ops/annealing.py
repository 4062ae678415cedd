"""Annealing: sweeps along inverse temperatures, and the weights of annealed importance sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bm_fast.arguments import whole_number
from bm_fast.chains import MAX_CHAINS, Chains
from bm_fast.ops import cpu
from bm_fast.ops.checks import MAX_SEED, check
from bm_fast.ops.machine import Machine
from bm_fast.ops.tempering import check_complete
from bm_fast.program import Program


def anneal(
    machine: Machine,
    program: Program,
    chains: Chains,
    betas: Tensor,
    log_weights: Tensor,
    *,
    base: Sequence[Tensor],
    progress: Callable[[int], None] | None = None,
) -> None:
    """Takes chains along p_beta ∝ exp(-beta E - (1 - beta) E_base), in place: weigh, sweep, and on to the next beta.

    Step k adds log p_betas[k+1](x) - log p_betas[k](x) of each chain's state to its log weight, both unnormalised and
    with the layers of the program's first block summed out, and then makes one sweep at betas[k+1]. One native call on
    the CPU, which computes the fields of the summed layers once for the weights and the next draw.

    program: updates every layer once by all of its couplings, those first that every coupling leads to.
    betas: float32 ``[n_steps + 1]``, in any order. base: per layer float32 ``[units]``, E_base = -Σ base·h.
    log_weights: float64 ``[n_chains]``. States have the bits of separate sweeps, and weights differ from what
        ``free_energy`` says of these states by roundings alone (docs/numbers.md).
    progress: called now and then with the number of steps done in this call.

    Ctrl-C stops within a second, on a GPU at the end of a step: chains and weights then hold the same whole number of
    steps, and ``chains.sweep`` says which.

    Source: Neal, Annealed importance sampling (2001).
    """
    machine._check_program(program)
    check_complete(machine, program)
    summed = {update.layer for update in program[0]}
    for i, coupling in enumerate(machine.graph.couplings):
        if coupling.lower not in summed and coupling.upper not in summed:
            raise ValueError(
                f"program: expected a first block that every coupling leads to, got layers {sorted(summed)}, to which "
                f"coupling {i} does not"
            )
    machine._check_states("chains.layers", chains.layers, states=True)
    n_chains = chains.n_chains
    check("betas", betas, torch.float32, (betas.numel() if isinstance(betas, Tensor) else 0,), machine.device)
    machine._check_base(base)
    machine._check_temperatures("betas", betas, base, ())
    check("log_weights", log_weights, torch.float64, (n_chains,), machine.device)
    seed = whole_number("chains.seed", chains.seed, 0, MAX_SEED)
    first_chain = whole_number("chains.first_chain", chains.first_chain, 0, MAX_CHAINS - n_chains)
    first = whole_number("chains.sweep", chains.sweep, 0, 2**32 - len(betas) + 1)

    def advance(done: int) -> None:
        chains.sweep = first + done
        if progress is not None:
            progress(done)

    if not isinstance(machine._impl, cpu.Machine):
        for k in range(len(betas) - 1):
            low, high = -machine.free_energy(program[0], chains.layers, betas=betas[k : k + 2], base=base)
            try:
                machine.sweep(program, chains, 1, beta=betas[k + 1].expand(n_chains).contiguous(), base=base)
            finally:  # Ctrl-C may come when the sweep is done
                if chains.sweep > first + k:
                    log_weights += high - low
            advance(k + 1)
        return
    done = torch.zeros(1, dtype=torch.int64)  # written by the kernel: Ctrl-C may come before `advance` begins
    try:
        machine._impl.anneal(
            program,
            chains.layers,
            betas,
            log_weights,
            seed=seed,
            first_chain=first_chain,
            first_sweep=first,
            base=base,
            done=done,
            progress=advance,
        )
    finally:
        chains.sweep = first + int(done)
