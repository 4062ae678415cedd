"""Times sampling, mean field and training on a GPU: bm_fast beside torch on the same device, in turns in one process.

bench/gpu.sh builds what this needs and runs it. Before anything is timed, its result must be that of the processor: bit
for bit for states, within the tolerance of docs/numbers.md for means. A task or a contender that fails is named in the
result, which is written anew after each task, and stops none of the others; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bm_fast import RBM, Machine, chain_graph, ops
from bm_fast.program import gibbs_program
from bm_fast.training import PCD, Trainer
from samplers import Problem
from timing import environment, interleave

DEVICE = "cuda"
PRODUCT_SIZE, COPY_SIZE = 8192, 2**30  # of what the ceilings are measured with
SWEEPS = (
    ((784, 500), 64),
    ((784, 500), 1024),
    ((784, 500), 16384),
    ((4096, 4096), 4096),
    ((784, 500, 1000), 100),
    ((784, 500, 1000), 1024),
    ((784, 500, 1000), 16384),
)
GRAPH_SWEEPS = 10  # in a captured graph
CHECKED_SWEEPS = 3
SEED = 1

MEAN_FIELD_UNITS, MEAN_FIELD_CASES, MEAN_FIELD_ITERATIONS = (784, 500, 1000), 100, 30
MEAN_TOLERANCE = 2e-5  # docs/numbers.md

EPOCH_ROWS, EPOCH_BATCH, EPOCH_HIDDEN = 60_000, 100, 500
LEARNING_RATE = 0.05

Run = Callable[[int], object]
"""Does so many repetitions."""

Row = dict[str, object]


@dataclass(frozen=True)
class Contest:
    """What makes each contender for one task.

    A contender whose name ends with "graph" makes ``per_graph`` units of the task (sweeps, say) in a repetition.
    """

    task: str
    unit: str
    contenders: Mapping[str, Callable[[], Run]]
    per_graph: int = GRAPH_SWEEPS
    flips: int = 0  # of one unit
    macs: int = 0

    def per_repetition(self, name: str) -> int:
        return self.per_graph if name.endswith("graph") else 1


# --- torch -----------------------------------------------------------------------------------------------------------


class Torch:
    """The same machine by torch: a product, the logistic function and a draw for each layer."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.weights = [weight.to(DEVICE, dtype) for weight in problem.weights]
        self.biases = [bias.to(DEVICE, dtype) for bias in problem.biases]
        zeros = (torch.zeros(problem.n_chains, units, device=DEVICE, dtype=dtype) for units in problem.units[1:])
        self.layers = [problem.visible.to(DEVICE, dtype), *zeros]
        n = len(self.layers)
        self.order = [*range(1, n, 2), *range(0, n, 2)]
        self.refresh: Callable[[list[Tensor]], list[Tensor]] = self._sweep

    def mean(self, layers: list[Tensor], i: int) -> Tensor:
        field = self.biases[i]
        if i > 0:
            field = torch.addmm(field, layers[i - 1], self.weights[i - 1])
        if i + 1 < len(layers):
            field = torch.addmm(field, layers[i + 1], self.weights[i].T)
        return torch.sigmoid(field)

    def _sweep(self, layers: list[Tensor]) -> list[Tensor]:
        layers = list(layers)
        for i in self.order:
            layers[i] = torch.bernoulli(self.mean(layers, i))
        return layers

    def sweep(self, n: int) -> None:
        for _ in range(n):
            self.layers = self.refresh(self.layers)

    def compiled(self) -> Torch:
        torch.compiler.reset()  # else sizes that change from task to task would be compiled as variables
        self.refresh = torch.compile(self._sweep, dynamic=False)
        return self

    def mean_field(self, n: int) -> None:
        """n times all iterations, from the same start; the visible layer stays."""
        for _ in range(n):
            layers = [self.layers[0], *(torch.full_like(layer, 0.5) for layer in self.layers[1:])]
            for _ in range(MEAN_FIELD_ITERATIONS):
                for i in (i for i in self.order if i > 0):
                    layers[i] = self.mean(layers, i)


class TorchPcd:
    """Persistent contrastive divergence of an RBM by torch alone."""

    def __init__(self, data: Tensor, dtype: torch.dtype) -> None:
        self.data = data.to(dtype)
        self.weight = 0.01 * torch.randn(data.shape[1], EPOCH_HIDDEN, device=DEVICE, dtype=dtype)
        self.visible_bias = torch.zeros(data.shape[1], device=DEVICE, dtype=dtype)
        self.hidden_bias = torch.zeros(EPOCH_HIDDEN, device=DEVICE, dtype=dtype)
        self.hidden = torch.zeros(EPOCH_BATCH, EPOCH_HIDDEN, device=DEVICE, dtype=dtype)
        self.batch = torch.zeros(EPOCH_BATCH, data.shape[1], device=DEVICE, dtype=dtype)

    def step(self) -> None:
        visible = torch.bernoulli(torch.sigmoid(torch.addmm(self.visible_bias, self.hidden, self.weight.T)))
        means = torch.sigmoid(torch.addmm(self.hidden_bias, visible, self.weight))
        self.hidden.copy_(torch.bernoulli(means))
        data_means = torch.sigmoid(torch.addmm(self.hidden_bias, self.batch, self.weight))
        rate = LEARNING_RATE / EPOCH_BATCH
        self.weight += rate * (self.batch.T @ data_means - visible.T @ means)
        self.visible_bias += rate * (self.batch - visible).sum(0)
        self.hidden_bias += rate * (data_means - means).sum(0)

    def epochs(self, n: int, step: Callable[[], object] | None = None) -> None:
        for _ in range(n):
            for rows in torch.randperm(len(self.data), device=DEVICE).split(EPOCH_BATCH):
                torch.index_select(self.data, 0, rows, out=self.batch)
                (step or self.step)()

    def captured(self) -> Run:
        replay = captured(lambda _: self.step())
        return lambda n: self.epochs(n, lambda: replay(1))


# --- timing ----------------------------------------------------------------------------------------------------------


def captured(run: Run) -> Run:
    """GRAPH_SWEEPS repetitions as one that replays a graph of them; bm_fast draws the same numbers in each replay."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(GRAPH_SWEEPS)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(GRAPH_SWEEPS)

    def replay(n: int) -> None:
        for _ in range(n):
            graph.replay()

    return replay


def finished(run: Run) -> Callable[[int], None]:
    """The same, returning only when the device is done."""

    def wait(n: int) -> None:
        run(n)
        torch.cuda.synchronize()

    return wait


def ceilings() -> dict[str, float]:
    """Rates of a large bfloat16 product and of a copy, by torch on this device."""
    a, b = (torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(COPY_SIZE, device=DEVICE, dtype=torch.float32)
    target = torch.empty_like(source)
    times = interleave(
        {
            "product": finished(lambda n: [torch.mm(a, b) for _ in range(n)]),
            "copy": finished(lambda n: [target.copy_(source) for _ in range(n)]),
        },
        n_calls=5,
        seconds=0.2,
    )
    return {
        "product_gmacs": PRODUCT_SIZE**3 / times["product"].median / 1e6,
        "copy_gbs": 2 * source.numel() * 4 / times["copy"].median / 1e6,
    }


def measure(contest: Contest, limits: dict[str, float]) -> list[Row]:
    """Rows of the table, printed as well."""
    runs: dict[str, Callable[[int], None]] = {}
    rows: list[Row] = []
    for name, make in contest.contenders.items():
        try:
            runs[name] = finished(make())
            runs[name](1)
        except Exception as error:
            if name == "bm_fast":
                raise
            runs.pop(name, None)
            rows.append(failure(contest.task, error, contender=name))
    times = interleave(runs, n_calls=7, seconds=0.1)
    ours = times["bm_fast"].median
    for name, timing in times.items():
        units = contest.per_repetition(name)
        ms = timing.median / units
        row: Row = {
            "task": contest.task,
            "contender": name,
            "unit": contest.unit,
            "ms": ms,
            "least": timing.least / units,
            "most": timing.most / units,
            "bm_fast_is_faster": ms / ours,
        }
        if contest.flips:
            gmacs = contest.macs / ms / 1e6
            # int8 products are twice as fast as bfloat16 ones, and two limbs take twice as many
            row |= {
                "flips_per_ns": contest.flips / ms / 1e6,
                "gmacs": gmacs,
                "share_of_product": gmacs / limits["product_gmacs"],
            }
        rows.append(row)
        rate = f"{row['flips_per_ns']:9.2f} flips/ns {row['share_of_product']:6.1%}" if contest.flips else ""
        print(f"{contest.task:28s} {name:22s} {ms:10.4f} ms/{contest.unit:6s} {ms / ours:7.2f}x {rate}", flush=True)
    return rows


def failure(task: str, error: Exception, **what: object) -> Row:
    """A row that says what went wrong; where, is printed."""
    print(f"{task}: FAILED", *what.values(), flush=True)
    traceback.print_exception(error, file=sys.stdout)
    return {"task": task, **what, "error": f"{type(error).__name__}: {error}"}


# --- tasks -----------------------------------------------------------------------------------------------------------


def machine_of(problem: Problem, device: str) -> Machine:
    return Machine.build(
        chain_graph(problem.units), [w.to(device) for w in problem.weights], [b.to(device) for b in problem.biases]
    )


def sweeps(units: tuple[int, ...], n_chains: int) -> Contest:
    problem = Problem.random(units, n_chains)
    program = gibbs_program(chain_graph(units))
    here, there = (machine_of(problem, device) for device in ("cpu", DEVICE))
    wanted, chains = (machine.chains(n_chains, SEED) for machine in (here, there))
    for machine, states in ((here, wanted), (there, chains)):
        states.layers[0].copy_(problem.visible)
        machine.sweep(program, states, CHECKED_SWEEPS)
    if not all(torch.equal(a, b.cpu()) for a, b in zip(wanted.layers, chains.layers, strict=True)):
        raise RuntimeError(f"{units} with {n_chains} chains: the GPU does not give the bits of the processor")
    fp32, bf16 = torch.float32, torch.bfloat16

    def ours(n: int) -> None:
        there.sweep(program, chains, n)

    contenders: dict[str, Callable[[], Run]] = {
        "bm_fast": lambda: ours,
        "bm_fast, graph": lambda: captured(ours),
        "torch fp32": lambda: Torch(problem, fp32).sweep,
        "torch bf16": lambda: Torch(problem, bf16).sweep,
        "torch.compile fp32": lambda: Torch(problem, fp32).compiled().sweep,
        "torch fp32, graph": lambda: captured(Torch(problem, fp32).sweep),
        "torch bf16, graph": lambda: captured(Torch(problem, bf16).sweep),
    }
    name = f"{'-'.join(map(str, units))}, {n_chains} chains"
    return Contest(name, "sweep", contenders, flips=problem.flips, macs=problem.macs)


def mean_field() -> Contest:
    problem = Problem.random(MEAN_FIELD_UNITS, MEAN_FIELD_CASES)
    program = gibbs_program(chain_graph(MEAN_FIELD_UNITS), clamped=(0,))

    def run(machine: Machine, visible: Tensor) -> list[Tensor]:
        half = (torch.full((MEAN_FIELD_CASES, n), 0.5, device=machine.device) for n in MEAN_FIELD_UNITS[1:])
        values = [visible, *half]
        machine.mean_field(program, values, MEAN_FIELD_ITERATIONS)
        return values

    here, there = (machine_of(problem, device) for device in ("cpu", DEVICE))
    data, data_there = (problem.visible.to(device, torch.uint8) for device in ("cpu", DEVICE))
    for a, b in zip(run(here, data), run(there, data_there), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=0, atol=MEAN_TOLERANCE)

    def ours(n: int) -> None:
        for _ in range(n):
            run(there, data_there)

    fp32, bf16 = torch.float32, torch.bfloat16
    contenders: dict[str, Callable[[], Run]] = {
        "bm_fast": lambda: ours,
        "bm_fast, graph": lambda: captured(ours),
        "torch fp32": lambda: Torch(problem, fp32).mean_field,
        "torch bf16": lambda: Torch(problem, bf16).mean_field,
        "torch fp32, graph": lambda: captured(Torch(problem, fp32).mean_field),
        "torch bf16, graph": lambda: captured(Torch(problem, bf16).mean_field),
    }
    name = f"mean field {'-'.join(map(str, MEAN_FIELD_UNITS))}, {MEAN_FIELD_CASES} cases, {MEAN_FIELD_ITERATIONS} times"
    return Contest(name, "run", contenders)


def epoch() -> Contest:
    data = (torch.rand(EPOCH_ROWS, 784, generator=torch.Generator().manual_seed(0)) < 0.15).to(DEVICE, torch.uint8)
    rbm = RBM(784, EPOCH_HIDDEN).to(DEVICE)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=LEARNING_RATE)
    ours = Trainer(rbm, optimizer, PCD(n_chains=EPOCH_BATCH), batch_size=EPOCH_BATCH, centred=False)
    if ours.why_not_captured is not None:
        raise RuntimeError(f"updates are not recorded: {ours.why_not_captured}")
    contenders: dict[str, Callable[[], Run]] = {
        "bm_fast": lambda: lambda n: ours.fit(data, epochs=ours.epoch + n),
        "torch fp32": lambda: TorchPcd(data, torch.float32).epochs,
        "torch bf16": lambda: TorchPcd(data, torch.bfloat16).epochs,
        "torch fp32, graph": lambda: TorchPcd(data, torch.float32).captured(),
    }
    return Contest(f"PCD-1, {EPOCH_ROWS} x 784, {EPOCH_HIDDEN} hidden", "epoch", contenders, per_graph=1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    limits = ceilings()
    print(
        f"{ops.info()['gpu']}: product {limits['product_gmacs']:.0f} GMAC/s in bfloat16, "
        f"copy {limits['copy_gbs']:.0f} GB/s"
    )
    rows: list[Row] = []
    tasks: dict[str, Callable[[], Contest]] = {
        "epoch": epoch,
        "mean field": mean_field,
        **{f"{units}, {n}": partial(sweeps, units, n) for units, n in SWEEPS},
    }
    for name, make in tasks.items():
        try:
            rows += measure(make(), limits)
        except Exception as error:
            rows.append(failure(name, error))
        result = {**environment(), "device": torch.cuda.get_device_name(), "ceilings": limits, "rows": rows}
        result["commit"] = os.environ.get("COMMIT", result["commit"])
        out.write_text(json.dumps(result, indent=1) + "\n")
        torch.cuda.empty_cache()
    failures = sum("error" in row for row in rows)
    print(f"saved {out}" + (f"; {failures} failed" if failures else ""))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
