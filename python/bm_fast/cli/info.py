"""Says what runs here: version, instruction sets, threads and GPU."""

from __future__ import annotations

import argparse
import os
import platform

import torch

from bm_fast import data, ops
from bm_fast.cli.common import Console, Result, commit, version

NAME = "info"
SUMMARY = "version, instruction sets, threads, GPU"
EXAMPLES = """\
environment variables:
  BM_FAST_ISA       use this instruction set, and fail where the processor lacks it
  BM_FAST_BACKEND   native (default), or reference: the same operations in plain torch, slow
  BM_FAST_DATA      folder of the data sets"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``info`` has no arguments of its own."""


def run(options: argparse.Namespace, console: Console) -> Result:
    result: Result = {
        "version": version(),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **ops.info(),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "data_folder": str(data.cache_folder()),
    }
    compiled, usable = ", ".join(result["isas_compiled"]), ", ".join(result["isas_usable"])
    rows = {
        "bm_fast": result["version"] + (f" (commit {result['commit'][:12]})" if result["commit"] else ""),
        "python, torch": f"{result['python']}, {result['torch']}",
        "backend": result["backend"],
        "instruction set": f"{result['isa']} (compiled: {compiled}; this processor has: {usable})"
        if result["isa"]
        else "none: plain torch",
        "threads": f"{result['threads']} of {result['processors']} processors",
        "GPU": result["gpu"],
        "data folder": result["data_folder"],
    }
    for name, value in rows.items():
        console.say(f"{name:16s} {value}")
    return result
