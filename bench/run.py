"""Times bm_fast beside other libraries in one run, prints a table and saves it.

    python bench/run.py                          everything; about an hour on two cores
    python bench/run.py --models 784-500 --chains 1024 --batches 100 --libraries bm_fast torch numpy    a minute

Block Gibbs sampling of dense machines, updates of an RBM by persistent contrastive divergence, mean field of a DBM and
updates of one by both. All libraries that are installed take turns (A B C A B C …) in one process for each number of
threads, bound to as many processors. Before a machine is timed, the first and second moments of what each library
samples are compared with those of torch.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samplers import Problem

MODELS = ("784-500", "2000-2000", "784-500-1000")
CHAINS = (64, 1024, 16384)
BATCHES = (100, 500)
CASES, DEEP_BATCHES = (100, 1000), (100,)
LIBRARIES = (
    "bm_fast",
    "torch",
    "torch-rand",
    "torch-bf16",
    "torch-bf16-rand",
    "torch-compile",
    "torch-compile-rand",
    "numpy",
    "scikit-learn",
    "rbms",
    "thrml",
)
TRAINED, DEEP = (784, 500), (784, 500, 1000)
CHECKED_CHAINS, CHECKED_SWEEPS, MAX_DISAGREEMENT = 1024, 3, 2.0


@dataclass(frozen=True)
class Workload:
    """How the rows of one kind of work are shown: title, what is counted, and what its rate is called."""

    title: str
    size: str
    repetition: str
    rates: tuple[str, ...]

    @property
    def headings(self) -> tuple[str, ...]:
        once, many = self.repetition, f"{self.repetition}s"
        return ("library", f"ms/{once}", "least", "most", f"{many}/call", *self.rates, "bm_fast is faster")


WORKLOADS = {
    "gibbs": Workload("Gibbs", "chains", "sweep", ("flips/ns", "GMAC/s")),
    "pcd": Workload("PCD-1", "rows and chains", "update", ("s/60,000 rows",)),
    "mean field": Workload("Mean field, ten iterations", "cases", "inference", ("s/60,000 rows",)),
    "mean field, trained": Workload(
        "Mean field of a trained machine, ten iterations", "cases", "inference", ("s/60,000 rows",)
    ),
    "mean field, to rest": Workload(
        "Mean field of a trained machine, at most ten iterations, to the default tolerance",
        "cases",
        "inference",
        ("s/60,000 rows",),
    ),
    "dbm": Workload("Update of a DBM", "rows and chains", "update", ("s/60,000 rows",)),
    "dbm, trained": Workload("Update of a trained DBM", "rows and chains", "update", ("s/60,000 rows",)),
}

Row = dict[str, Any]
Maker = Callable[[int], Any]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="*",
        default=MODELS,
        help="units per layer, as in 784-500-1000, or a checkpoint of a trained RBM",
    )
    parser.add_argument("--chains", nargs="*", type=int, default=CHAINS)
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES, help="rows of a PCD update, RBM 784-500")
    parser.add_argument("--cases", nargs="*", type=int, default=CASES, help="of mean field, DBM 784-500-1000")
    parser.add_argument(
        "--deep-batches", nargs="*", type=int, default=DEEP_BATCHES, help="rows of an update of that DBM"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="a saved DBM: mean field on test data and updates on training data are those of this machine",
    )
    parser.add_argument("--data", default="mnist", help="what that was trained on")
    parser.add_argument("--threads", nargs="+", type=int, default=(1, 2))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--calls", type=int, default=7, help="timed calls of each library")
    parser.add_argument("--seconds", type=float, default=0.2, help="how long one timed call should take")
    parser.add_argument(
        "--name", default=f"{datetime.datetime.now():%Y-%m-%d-%H%M}", help="of the saved files, in bench/results"
    )
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# --- one number of threads, in a process of its own -------------------------------------------------------------------


def work(options: argparse.Namespace) -> None:
    """Prints one line of JSON per result or note."""
    import torch

    torch.set_num_threads(options.worker)
    torch.manual_seed(0)
    for model in options.models:
        faulty = check_moments(model, options.libraries)
        for n_chains in options.chains:
            time_gibbs(model, n_chains, options, faulty)
    for batch in options.batches:
        time_pcd(batch, options)
    for n_cases in options.cases:
        time_mean_field(n_cases, options)
    for batch in options.deep_batches:
        time_dbm(batch, options)


def set_up(make: Callable[[], Any], name: str) -> Any:
    """What ``make`` returns, or None, with a note of the reason, where a rival cannot take part."""
    from samplers import Unavailable

    try:
        return make()
    except (ImportError, Unavailable) as error:
        if name == "bm_fast":
            raise
        note(f"{name}: not run, {error}")
        return None


def note(text: str) -> None:
    print(json.dumps({"note": text}), flush=True)


def check_moments(model: str, libraries: list[str]) -> set[str]:
    """Rivals whose samples differ from torch's; RuntimeError if bm_fast's do."""
    from samplers import SAMPLERS, Problem, disagreement

    problem = Problem.of(model, CHECKED_CHAINS)
    truth = SAMPLERS["torch"](problem)
    truth.run(CHECKED_SWEEPS)
    faulty = set()
    for name in libraries:
        sampler = set_up(lambda name=name: SAMPLERS[name](problem), name) if name != "torch" else None
        if sampler is None:
            continue
        sampler.run(CHECKED_SWEEPS)
        z = disagreement(truth.layers(), sampler.layers())
        note(f"{name}: moments of {Path(model).name} differ from torch's by {z:.2f} standard errors")
        if z > MAX_DISAGREEMENT:
            if name == "bm_fast":
                raise RuntimeError(
                    f"bm_fast samples another distribution than torch: moments differ by {z:.2f} standard errors"
                )
            note(f"{name}: not timed on {Path(model).name}")
            faulty.add(name)
    return faulty


def time_gibbs(model: str, n_chains: int, options: argparse.Namespace, faulty: set[str]) -> None:
    from samplers import SAMPLERS, Problem

    problem = Problem.of(model, n_chains)
    runs = {}
    for name in options.libraries:
        sampler = set_up(lambda name=name: SAMPLERS[name](problem), name)
        if sampler is not None and name not in faulty:
            runs[name] = sampler.run
    title = "-".join(map(str, problem.units)) + ", trained" * model.endswith(".safetensors")
    case = {"workload": "gibbs", "model": title, "size": n_chains}
    report(case, runs, options, flips=problem.flips, macs=problem.macs)


def time_pcd(batch: int, options: argparse.Namespace) -> None:
    from trainers import TRAINERS

    time_trainers("pcd", TRAINED, batch, options, {name: partial(make, *TRAINED) for name, make in TRAINERS.items()})


def time_mean_field(n_cases: int, options: argparse.Namespace) -> None:
    from deep import trained
    from samplers import Problem

    if options.checkpoint is None:
        time_inference("mean field", Problem.random(DEEP, n_cases), 0.0, options)
        return
    from bm_fast.dbm import TOLERANCE

    problem = trained(options.checkpoint, options.data, "test", n_cases)
    time_inference("mean field, trained", problem, 0.0, options)
    time_inference("mean field, to rest", problem, TOLERANCE, options)


def time_inference(workload: str, problem: Problem, tolerance: float, options: argparse.Namespace) -> None:
    from deep import MEAN_FIELD

    made = {name: lambda _, make=make: make(problem, tolerance) for name, make in MEAN_FIELD.items()}
    time_trainers(workload, problem.units, problem.n_chains, options, made)


def time_dbm(batch: int, options: argparse.Namespace) -> None:
    from deep import DEEP_TRAINERS, trained, untrained

    is_trained = options.checkpoint is not None
    problem = trained(options.checkpoint, options.data, "train") if is_trained else untrained(DEEP)
    makers = {name: partial(make, problem) for name, make in DEEP_TRAINERS.items()}
    time_trainers("dbm, trained" if is_trained else "dbm", problem.units, batch, options, makers)


def time_trainers(
    workload: str,
    units: tuple[int, ...],
    size: int,
    options: argparse.Namespace,
    makers: dict[str, Callable[[int], Any]],
) -> None:
    runs = {}
    for name in options.libraries:
        if name in makers:
            trainer = set_up(lambda name=name: makers[name](size), name)
            if trainer is not None:
                runs[name] = trainer.run
    report({"workload": workload, "model": "-".join(map(str, units)), "size": size}, runs, options)


def report(
    case: Row, runs: dict[str, Callable[[int], None]], options: argparse.Namespace, flips: int = 0, macs: int = 0
) -> None:
    from timing import interleave

    timings = interleave(runs, options.calls, options.seconds)
    for name, timing in timings.items():
        row = {
            **case,
            "threads": options.worker,
            "library": name,
            "ms": timing.median,
            "least": timing.least,
            "most": timing.most,
            "per_call": timing.per_call,
        }
        if flips:
            row |= {"flips_per_ns": flips / timing.median * 1e-6, "gmac_per_s": macs / timing.median * 1e-6}
        if "bm_fast" in timings:
            row["bm_fast_is_faster"] = timing.median / timings["bm_fast"].median
        print(json.dumps(row), flush=True)


# --- tables -----------------------------------------------------------------------------------------------------------


def cells(row: Row) -> list[str]:
    times = [f"{row[key]:.3g}" for key in ("ms", "least", "most")]
    rates = (
        [f"{row['flips_per_ns']:.4f}", f"{row['gmac_per_s']:.1f}"]
        if row["workload"] == "gibbs"
        else [f"{row['ms'] * 60 / row['size']:.2f}"]
    )
    faster = f"{row['bm_fast_is_faster']:.3g}x" if "bm_fast_is_faster" in row else ""
    return [row["library"], *times, str(row["per_call"]), *rates, faster]


def title(row: Row) -> str:
    workload = WORKLOADS[row["workload"]]
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    return f"{workload.title}, {row['model']}, {row['size']:,} {workload.size}, {threads}"


def markdown(rows: list[Row], notes: list[str], environment: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    lines = [
        f"# {environment['date']}",
        "",
        f"{environment['processor']}, {environment['cores']} cores, load {environment['load']:.1f} at the start; "
        f"bm_fast uses {environment['instruction_set']}, commit {environment['commit']}; "
        f"Python {environment['python']}; {versions}.",
        "",
        f"`{environment['command']}`: medians, least and most of interleaved calls.",
    ]
    previous = ""
    for row in rows:
        if title(row) != previous:
            previous = title(row)
            headings = WORKLOADS[row["workload"]].headings
            lines += [
                "",
                f"## {previous}",
                "",
                f"| {' | '.join(headings)} |",
                "|---" + "|---:" * (len(headings) - 1) + "|",
            ]
        lines.append(f"| {' | '.join(cells(row))} |")
    return "\n".join([*lines, "", "## Notes", "", *(f"- {text}" for text in notes)]) + "\n"


def main() -> int:
    options = parse()
    if options.worker is not None:
        work(options)
        return 0
    from timing import environment

    described = environment()
    rows: list[Row] = []
    notes: list[str] = []
    processors = sorted(os.sched_getaffinity(0))
    for threads in options.threads:
        if threads > len(processors):
            print(f"{threads} threads: not run, there are {len(processors)} processors", file=sys.stderr)
            continue
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
        worker = subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--worker", str(threads)],
            env={**os.environ, **limits},
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda n=threads: os.sched_setaffinity(0, processors[:n]),
        )
        assert worker.stdout is not None
        for line in worker.stdout:
            row = json.loads(line)
            if "note" in row:
                if row["note"] not in notes:
                    notes.append(row["note"])
                    print(f"  {row['note']}", flush=True)
                continue
            if not rows or title(row) != title(rows[-1]):
                print(
                    f"\n{title(row)}\n" + "".join(f"{heading:>18s}" for heading in WORKLOADS[row["workload"]].headings)
                )
            rows.append(row)
            print("".join(f"{cell:>18s}" for cell in cells(row)), flush=True)
        if worker.wait() != 0:
            return worker.returncode
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{options.name}.json").write_text(
        json.dumps({"environment": described, "notes": notes, "results": rows}, indent=1) + "\n"
    )
    (folder / f"{options.name}.md").write_text(markdown(rows, notes, described))
    print(f"\nsaved as {folder / options.name}.json and .md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
