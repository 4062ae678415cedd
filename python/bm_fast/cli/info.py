"""Says what runs here, or what a trained machine is.

Without an argument: version, instruction sets, threads and GPU. With the folder of a training run, or a checkpoint
file: kind and size of the machine, and the settings and data of the run where they are known.
"""

from __future__ import annotations

import argparse
import os
import platform
from typing import Any

import torch

from bm_fast import data, ops
from bm_fast.cli.common import Console, Result, Trained, commit, load_model, version

NAME = "info"
SUMMARY = "version, instruction sets, threads, GPU; or what a trained machine is"
EXAMPLES = """\
examples:
  bm-fast info
  bm-fast info runs/mnist

environment variables:
  BM_FAST_ISA       use this instruction set, and fail where the processor lacks it
  BM_FAST_BACKEND   native (default), or reference: the same operations in plain torch, slow
  BM_FAST_DATA      folder of the data sets"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", help="folder of a training run, or a checkpoint file")


def run(options: argparse.Namespace, console: Console) -> Result:
    result, rows = _here() if options.checkpoint is None else _machine(load_model(options.checkpoint))
    for name, value in rows.items():
        console.say(f"{name:16s} {value}")
    return result


def _machine(trained: Trained) -> tuple[Result, dict[str, Any]]:
    model, configuration = trained.model, trained.configuration
    result: Result = {
        "model": model.name,
        "layers": [{"kind": layer.kind.name.lower(), "units": layer.units} for layer in model.graph.layers],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "checkpoint": str(trained.path),
        "configuration": configuration,
    }
    rows = {
        "model": model.name.upper(),
        "layers": " - ".join(f"{layer['units']} {layer['kind']}" for layer in result["layers"]),
        "parameters": f"{result['parameters']:,}",
        "checkpoint": trained.path,
    }
    if configuration:
        data = configuration["data"]
        sizes = ", ".join(f"{n:,} {split}" for split, n in data["rows"].items())
        rows["data"] = f"{data['name']} ({data['protocol']}): {sizes}"
        rows["trained by"] = f"bm_fast {configuration['version']}"
        rows |= {name.replace("_", " "): value for name, value in configuration["settings"].items() if name != "data"}
    return result, rows


def _here() -> tuple[Result, dict[str, Any]]:
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
    return result, rows
