"""Times parallel tempering beside as many plain chains: what swaps cost on top of the sweeps.

    python bench/tempering.py                        784-500, 128 and 1,024 chains, on one thread

A round of a ladder of 16 rungs is some sweeps of all chains, each at its own beta, and one pass of swaps by the
energies of the joint states. Beside it as many sweeps are made by plain chains, all at beta = 1, and by chains that
stay at the betas of the ladder: what these cost less is the price of swaps alone. On a trained machine chains at
beta = 1 cost less again, as few of their units flip. All three take turns.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from annealing import machine
from bm_fast import RBM
from bm_fast.ops import EnergyGap, temper
from bm_fast.program import gibbs_program
from bm_fast.tempering import start
from timing import environment, interleave


class Plain:
    """Block Gibbs sampling of chains that begin at fair coins, each at a beta of its own or all at 1."""

    def __init__(self, rbm: RBM, n_chains: int, beta: Tensor | None = None) -> None:
        self.machine, self.beta = rbm.machine(), beta
        self.program, self.chains = gibbs_program(rbm.graph), self.machine.chains(n_chains, 0)

    def run(self, sweeps: int, rounds: int) -> None:
        self.machine.sweep(self.program, self.chains, sweeps * rounds, beta=self.beta)


class Ladders:
    """Ladders whose chains are as many in all."""

    def __init__(self, rbm: RBM, n_chains: int, n_rungs: int) -> None:
        self.gap = EnergyGap(rbm.machine())
        self.ladders = start(rbm, n_chains // n_rungs, n_rungs)

    def run(self, sweeps: int, rounds: int) -> None:
        held = self.ladders
        temper(self.gap, held.chains, held.rungs, held.betas, rounds, sweeps=sweeps)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs=2, default=(784, 500), metavar=("VISIBLE", "HIDDEN"))
    parser.add_argument("--checkpoint", help="a trained machine in place of a random one")
    parser.add_argument("--rungs", type=int, default=16)
    parser.add_argument("--chains", type=int, nargs="+", default=(128, 1024), help="in all; multiples of the rungs")
    parser.add_argument("--sweeps", type=int, nargs="+", default=(1, 5), help="between swaps")
    parser.add_argument("--calls", type=int, default=11)
    parser.add_argument("--seconds", type=float, default=0.2, help="about, of a call")
    parser.add_argument("--threads", type=int, nargs="+", default=(1,))
    parser.add_argument("--name", help="write bench/results/NAME.json")
    options = parser.parse_args()
    for n_chains in options.chains:
        if n_chains % options.rungs:
            parser.error(f"--chains: expected multiples of {options.rungs} rungs, got {n_chains}")
    rbm = machine(*options.units, options.checkpoint)
    described, rows = environment(), []
    for threads in options.threads:
        torch.set_num_threads(threads)
        for n_chains in options.chains:
            plain, ladders = Plain(rbm, n_chains), Ladders(rbm, n_chains, options.rungs)
            still = Plain(rbm, n_chains, ladders.ladders.betas.repeat(n_chains // options.rungs))
            for sweeps in options.sweeps:
                runs = {"plain chains": plain.run, "chains without swaps": still.run, "ladders": ladders.run}
                contenders = {name: functools.partial(run, sweeps) for name, run in runs.items()}
                timings = interleave(contenders, options.calls, options.seconds)
                ratio, swaps = (timings["ladders"].median / timings[name].median for name in list(runs)[:2])
                case = {"threads": threads, "chains": n_chains, "sweeps": sweeps, "ratio": ratio, "swaps": swaps}
                rows.append({**case, **{name: asdict(timing) for name, timing in timings.items()}})
                times = ", ".join(f"{name} {timing.median:.3f} ms" for name, timing in timings.items())
                print(
                    f"{threads} threads  {n_chains} chains  {sweeps} sweeps a round: {times}; "
                    f"ratios {ratio:.3f} to plain chains, {swaps:.3f} to chains without swaps",
                    flush=True,
                )
    if options.name is not None:
        path = Path(__file__).parent / "results" / f"{options.name}.json"
        path.write_text(
            json.dumps({"environment": described, "settings": vars(options), "results": rows}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
