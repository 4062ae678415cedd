"""Runs the benchmark of the source checkout: bm_fast beside other libraries, interleaved in one run.

The benchmark is not part of an installed package, because its rivals are not. It is found in a checkout from which the
package runs, or in the current folder.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import bm_fast
from bm_fast.cli.console import Console, Result, UsageError

EXAMPLES = """\
examples:
  bm-fast bench                                            everything; about an hour on two cores
  bm-fast bench -- --models 784-500 --chains 1024 --batches 100 --libraries bm_fast torch numpy
  bm-fast bench -- --help                                  arguments of the benchmark"""

_STANDARD_ERROR = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("arguments", nargs="*", metavar="-- ARGUMENTS", help="passed on to the benchmark")


def run(options: argparse.Namespace, console: Console) -> Result:
    script = _find()
    arguments = options.arguments
    tables = _STANDARD_ERROR if console.json else None  # standard output is kept for JSON
    done = subprocess.run([sys.executable, str(script), *arguments], stdout=tables, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the benchmark {script} failed with exit code {done.returncode}")
    return {"script": str(script), "arguments": arguments}


def _find() -> Path:
    for root in (Path(bm_fast.__file__).parents[2], Path.cwd()):
        script = root / "bench" / "run.py"
        if script.is_file() and (root / "csrc" / "ops.h").is_file():
            return script
    raise UsageError(
        "the benchmark is not part of the installed package; run this in a checkout of bm_fast's sources, which has it "
        "as bench/run.py"
    )
