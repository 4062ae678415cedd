"""Times sampling, mean field and training on a GPU: bm_fast beside torch on the same device, in turns in one process.

bench/gpu.sh builds what this needs and runs it. Before anything is timed, its result must be that of the processor: bit
for bit for states, within the tolerance of docs/numbers.md for means.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bm_fast import RBM, Machine, chain_graph, ops
from bm_fast.program import gibbs_program
from bm_fast.training import PCD, Trainer
from samplers import Problem
from timing import environment, interleave

SWEEPS = (
    ((784, 500), 64),
    ((784, 500), 1024),
    ((784, 500), 16384),
    ((4096, 4096), 4096),
    ((784, 500, 1000), 100),
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


@dataclass(frozen=True)
class Contest:
    """Contenders for one task. ``per_repetition``: units of the task (sweeps, say) in a repetition, where not 1."""

    task: str
    unit: str
    contenders: dict[str, Run]
    per_repetition: dict[str, int]
    flips: int = 0  # of one unit
    macs: int = 0


# --- torch -----------------------------------------------------------------------------------------------------------


class Torch:
    """The same machine by torch: a product, the logistic function and a draw for each layer."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.weights = [weight.to("cuda", dtype) for weight in problem.weights]
        self.biases = [bias.to("cuda", dtype) for bias in problem.biases]
        zeros = (torch.zeros(problem.n_chains, units, device="cuda", dtype=dtype) for units in problem.units[1:])
        self.layers = [problem.visible.to("cuda", dtype), *zeros]
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
        self.refresh = torch.compile(self._sweep)
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
        self.weight = 0.01 * torch.randn(data.shape[1], EPOCH_HIDDEN, device="cuda", dtype=dtype)
        self.visible_bias = torch.zeros(data.shape[1], device="cuda", dtype=dtype)
        self.hidden_bias = torch.zeros(EPOCH_HIDDEN, device="cuda", dtype=dtype)
        self.hidden = torch.zeros(EPOCH_BATCH, EPOCH_HIDDEN, device="cuda", dtype=dtype)
        self.batch = torch.empty(EPOCH_BATCH, data.shape[1], device="cuda", dtype=dtype)

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
            for rows in torch.randperm(len(self.data), device="cuda").split(EPOCH_BATCH):
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
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(2**30, device="cuda", dtype=torch.float32)
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
        "product_gmacs": 8192**3 / times["product"].median / 1e6,
        "copy_gbs": 2 * source.numel() * 4 / times["copy"].median / 1e6,
    }


def measure(contest: Contest, limits: dict[str, float]) -> list[dict[str, object]]:
    """Rows of the table, printed as well."""
    times = interleave({name: finished(run) for name, run in contest.contenders.items()}, n_calls=7, seconds=0.1)
    ours = times["bm_fast"].median / contest.per_repetition.get("bm_fast", 1)
    rows = []
    for name, timing in times.items():
        units = contest.per_repetition.get(name, 1)
        ms = timing.median / units
        row: dict[str, object] = {
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


# --- tasks -----------------------------------------------------------------------------------------------------------


def machine_of(problem: Problem, device: str) -> Machine:
    return Machine.build(
        chain_graph(problem.units), [w.to(device) for w in problem.weights], [b.to(device) for b in problem.biases]
    )


def sweeps(units: tuple[int, ...], n_chains: int) -> Contest:
    problem = Problem.random(units, n_chains)
    program = gibbs_program(chain_graph(units))
    here, there = (machine_of(problem, device) for device in ("cpu", "cuda"))
    wanted, chains = (machine.chains(n_chains, SEED) for machine in (here, there))
    for machine, states in ((here, wanted), (there, chains)):
        states.layers[0].copy_(problem.visible)
        machine.sweep(program, states, CHECKED_SWEEPS)
    if not all(torch.equal(a, b.cpu()) for a, b in zip(wanted.layers, chains.layers, strict=True)):
        raise RuntimeError(f"{units} with {n_chains} chains: the GPU does not give the bits of the processor")
    fp32, bf16 = torch.float32, torch.bfloat16
    contenders: dict[str, Run] = {
        "bm_fast": lambda n: there.sweep(program, chains, n),
        "bm_fast, graph": captured(lambda n: there.sweep(program, chains, n)),
        "torch fp32": Torch(problem, fp32).sweep,
        "torch bf16": Torch(problem, bf16).sweep,
        "torch.compile fp32": Torch(problem, fp32).compiled().sweep,
        "torch fp32, graph": captured(Torch(problem, fp32).sweep),
        "torch bf16, graph": captured(Torch(problem, bf16).sweep),
    }
    per_repetition = {name: GRAPH_SWEEPS for name in contenders if name.endswith("graph")}
    name = f"{'-'.join(map(str, units))}, {n_chains} chains"
    return Contest(name, "sweep", contenders, per_repetition, problem.flips, problem.macs)


def mean_field() -> Contest:
    problem = Problem.random(MEAN_FIELD_UNITS, MEAN_FIELD_CASES)
    program = gibbs_program(chain_graph(MEAN_FIELD_UNITS), clamped=(0,))

    def run(machine: Machine) -> list[Tensor]:
        half = (torch.full((MEAN_FIELD_CASES, n), 0.5, device=machine.device) for n in MEAN_FIELD_UNITS[1:])
        values = [problem.visible.to(machine.device, torch.uint8), *half]
        machine.mean_field(program, values, MEAN_FIELD_ITERATIONS)
        return values

    here, there = (machine_of(problem, device) for device in ("cpu", "cuda"))
    for a, b in zip(run(here), run(there), strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=0, atol=MEAN_TOLERANCE)
    contenders: dict[str, Run] = {
        "bm_fast": lambda n: [run(there) for _ in range(n)],
        "torch fp32": Torch(problem, torch.float32).mean_field,
        "torch bf16": Torch(problem, torch.bfloat16).mean_field,
        "torch fp32, graph": captured(Torch(problem, torch.float32).mean_field),
    }
    name = f"mean field {'-'.join(map(str, MEAN_FIELD_UNITS))}, {MEAN_FIELD_CASES} cases, {MEAN_FIELD_ITERATIONS} times"
    return Contest(name, "run", contenders, {"torch fp32, graph": GRAPH_SWEEPS})


def epoch() -> Contest:
    data = (torch.rand(EPOCH_ROWS, 784, generator=torch.Generator().manual_seed(0)) < 0.15).to(torch.uint8).cuda()

    def trainer() -> Trainer:
        rbm = RBM(784, EPOCH_HIDDEN).to("cuda")
        optimizer = torch.optim.SGD(rbm.parameters(), lr=LEARNING_RATE)
        return Trainer(rbm, optimizer, PCD(n_chains=EPOCH_BATCH), batch_size=EPOCH_BATCH, centred=False)

    ours = trainer()
    contenders: dict[str, Run] = {
        "bm_fast": lambda n: ours.fit(data, epochs=ours.epoch + n),
        "torch fp32": TorchPcd(data, torch.float32).epochs,
        "torch fp32, graph": TorchPcd(data, torch.float32).captured(),
    }
    return Contest(f"PCD-1, {EPOCH_ROWS} x 784, {EPOCH_HIDDEN} hidden", "epoch", contenders, {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    limits = ceilings()
    print(
        f"{ops.info()['gpu']}: product {limits['product_gmacs']:.0f} GMAC/s in bfloat16, "
        f"copy {limits['copy_gbs']:.0f} GB/s"
    )
    rows = []
    for make in (*((lambda u=units, n=n: sweeps(u, n)) for units, n in SWEEPS), mean_field, epoch):
        rows += measure(make(), limits)
        torch.cuda.empty_cache()
    result = {**environment(), "device": torch.cuda.get_device_name(), "ceilings": limits, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"saved {options.out}")


if __name__ == "__main__":
    main()
