"""Interleaved timing of several contenders, and a description of where it was done."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bm_fast import ops
from bm_fast.cli.common import commit

PACKAGES = ("bm_fast", "torch", "numpy", "scikit-learn", "rbms", "thrml", "jax")
MAX_REPETITIONS = 1000
REST = 0.1  # seconds; those of OpenBLAS spin for some 20 ms


@dataclass(frozen=True)
class Timing:
    """Milliseconds per repetition, over the timed calls of ``per_call`` repetitions each."""

    median: float
    least: float
    most: float
    per_call: int


def interleave(contenders: Mapping[str, Callable[[int], None]], n_calls: int, seconds: float) -> dict[str, Timing]:
    """Times ``contender(n)``, which makes n repetitions, in turns: A B C A B C …

    Slow drifts of the machine's speed then meet all contenders alike. n is such that a call takes about ``seconds``.
    Before each call comes a rest, in which the threads that the last contender left spinning go to sleep.
    """
    per_call = {name: repetitions(run, seconds) for name, run in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(n_calls):
        for name, run in contenders.items():
            time.sleep(REST)
            taken[name].append(elapsed(run, per_call[name]) * 1e3 / per_call[name])
    return {
        name: Timing(statistics.median(times), min(times), max(times), per_call[name]) for name, times in taken.items()
    }


def repetitions(run: Callable[[int], None], seconds: float) -> int:
    """How many repetitions take about ``seconds``; every number is warmed up first, since libraries compile for it."""
    n = 1
    while True:
        run(n)
        taken = elapsed(run, n)
        if taken > seconds / 2 or n == MAX_REPETITIONS:
            return n
        n = min(MAX_REPETITIONS, max(2 * n, round(n * seconds / taken)))


def elapsed(run: Callable[[int], None], n: int) -> float:
    begin = time.perf_counter()
    run(n)
    return time.perf_counter() - begin


def environment() -> dict[str, object]:
    """Processor, instruction set, versions, commit, date and command of this run."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "commit": commit() or "unknown",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "instruction_set": ops.info()["isa"],
        "python": platform.python_version(),
        "versions": versions,
    }


def processor() -> str:
    """Name of the processor as Linux gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
