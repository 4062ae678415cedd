"""Times annealed importance sampling beside the same in plain PyTorch: milliseconds per inverse temperature.

    python bench/annealing.py                        784-500, 100 runs, on one thread and on two, some twelve minutes

What is timed is the published schedule of 14,503 inverse temperatures, or every n-th of them, where what a call begins
with weighs more and more units flip from one to the next. Both estimates of log Z are printed. They are of one machine
and must agree on enough betas; on few of a trained machine both are far too low, and torch's lower, whose states are
those of the larger layer.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bm_fast import RBM
from bm_fast.estimation import ais
from bm_fast.estimation.schedule import PUBLISHED, fixed_betas
from samplers import bernoulli, rand_below
from timing import environment, interleave


class TorchAIS:
    """Annealing from fair coins in float32, the hidden units summed out of the weights.

    The field of the hidden units serves the weights and the next draw, so a beta costs two products, as few as can be.
    """

    def __init__(
        self,
        rbm: RBM,
        betas: Tensor,
        n_runs: int,
        draw: Callable[[Tensor], Tensor] = bernoulli,
        *,
        compiled: bool = False,
    ) -> None:
        machine = rbm.machine()
        self.weight = machine.parameters.weight(0)
        self.visible_bias, self.hidden_bias = machine.parameters.biases
        self.betas, self.n_runs, self.draw = betas.tolist(), n_runs, draw
        self.step = torch.compile(self.move) if compiled else self.move

    def log_density(self, visible_part: Tensor, field: Tensor, beta: float) -> Tensor:
        return beta * visible_part + torch.nn.functional.softplus(beta * field).sum(1)

    def move(self, field: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        hidden = self.draw(beta * field)
        visible = self.draw(beta * torch.addmm(self.visible_bias, hidden, self.weight.t()))
        return visible @ self.visible_bias, torch.addmm(self.hidden_bias, visible, self.weight)

    @torch.no_grad()
    def run(self) -> float:
        units = sum(self.weight.shape)
        visible = torch.bernoulli(torch.full((self.n_runs, self.weight.shape[0]), 0.5))
        visible_part, field = visible @ self.visible_bias, torch.addmm(self.hidden_bias, visible, self.weight)
        log_weights = torch.full((self.n_runs,), units * math.log(2.0))
        for k, beta in enumerate(self.betas[:-1]):
            if k > 0:
                visible_part, field = self.step(field, beta)
            log_weights += self.log_density(visible_part, field, self.betas[k + 1])
            log_weights -= self.log_density(visible_part, field, beta)
        return float(log_weights.double().logsumexp(0)) - math.log(self.n_runs)


def machine(n_visible: int, n_hidden: int, checkpoint: str | None) -> RBM:
    """A trained machine, or one with normal weights and a mean activity of about a fifth."""
    if checkpoint is not None:
        return RBM.load(checkpoint)
    rbm = RBM(n_visible, n_hidden, weight_scale=0.05)
    with torch.no_grad():
        rbm.visible_bias.fill_(-1.5)
        rbm.hidden_bias.fill_(-1.5)
    return rbm


def annealed(rbm: RBM, betas: Tensor, n_runs: int) -> float:
    """log Z by the package."""
    return ais(rbm, n_runs, betas=betas).log_z


def repeat(run: Callable[[], float], name: str, estimates: dict[str, float], n: int) -> None:
    for _ in range(n):
        estimates[name] = run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, nargs=2, default=(784, 500), metavar=("VISIBLE", "HIDDEN"))
    parser.add_argument("--checkpoint", help="a trained machine in place of a random one")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--every", type=int, default=1, help="n for every n-th beta of the published schedule")
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="about, of a call")
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    parser.add_argument("--name", help="write bench/results/NAME.json")
    options = parser.parse_args()
    rbm = machine(*options.units, options.checkpoint)
    full = fixed_betas(PUBLISHED)
    betas = torch.cat([full[:-1][:: options.every], full[-1:]])
    described, rows = environment(), []
    for threads in options.threads:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        estimates: dict[str, float] = {}
        contenders = {"bm_fast": functools.partial(annealed, rbm, betas, options.runs)}
        contenders["torch"] = TorchAIS(rbm, betas, options.runs).run
        contenders["torch, rand < p"] = TorchAIS(rbm, betas, options.runs, rand_below).run
        if options.compiled:
            contenders["torch, compiled"] = TorchAIS(rbm, betas, options.runs, compiled=True).run
        calls = {name: functools.partial(repeat, run, name, estimates) for name, run in contenders.items()}
        timings = interleave(calls, options.calls, options.seconds)
        for name, timing in timings.items():
            each = {key: getattr(timing, key) / (len(betas) - 1) for key in ("median", "least", "most")}
            rows.append({"contender": name, "threads": threads, "log_z": estimates[name], **each})
            print(
                f"{threads} threads  {name:16s} {each['median']:8.3f} ms a beta ({each['least']:.3f} to "
                f"{each['most']:.3f}); 14,503 betas {each['median'] * len(full) / 1e3:7.1f} s; "
                f"log Z {estimates[name]:.2f}",
                flush=True,
            )
    if options.name is not None:
        path = Path(__file__).parent / "results" / f"{options.name}.json"
        settings = {**vars(options), "betas": len(betas)}
        path.write_text(json.dumps({"environment": described, "settings": settings, "results": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
