"""Says what runs here, or what a trained model is.

Without an argument: version, instruction sets, threads and GPU. With the folder of a training run, or a checkpoint
file: kind and size of the model (RBM, DBM, belief net or autoencoder), and what is known of its training.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from bm_fast import data, ops
from bm_fast.cli import devices
from bm_fast.cli.common import CHECKPOINTS, commit, open_checkpoint, read_configuration, refusing
from bm_fast.cli.console import Console, Result, UsageError, counted, version
from bm_fast.dbm import DBM
from bm_fast.dbn import DBN
from bm_fast.model import LayeredModel
from bm_fast.rbm import RBM
from bm_fast.vae import VAE

_PART = re.compile(r"rbm\d+\.safetensors")

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
    result, rows = _here() if options.checkpoint is None else _model(options.checkpoint)
    for name, value in rows.items():
        console.say(f"{name:16s} {value}")
    return result


def _model(source: str) -> tuple[Result, dict[str, Any]]:
    path, held = open_checkpoint(_part_in_training(source) or source)
    kinds: tuple[type[LayeredModel | VAE], ...] = (RBM, DBM, DBN, VAE)
    kind = next((kind for kind in kinds if kind.name in held), None)
    if kind is None:
        raise UsageError(
            f"{path}: expected a model out of {', '.join(kind.name for kind in kinds)}, it holds {sorted(held)}"
        )
    with refusing():
        model = kind.load(path)
    is_part = _PART.fullmatch(path.name)  # of a stack: the settings of the run are those of joint training
    configuration = {} if is_part else read_configuration(path.parent)
    layers = _layers(model)
    result: Result = {
        "model": model.name,
        "layers": layers,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "checkpoint": str(path),
        "configuration": configuration,
    }
    rows = {
        "model": model.name.upper(),
        "layers": " - ".join(f"{layer['units']} {layer['kind']}" for layer in layers),
        "parameters": f"{result['parameters']:,}",
        "checkpoint": path,
    }
    if isinstance(model, VAE):
        result["perceptrons"] = model.hidden
        rows["perceptrons"] = " - ".join("-".join(map(str, sizes)) or "linear" for sizes in model.hidden)
    if "trainer" in held:
        epochs, _, updates = held["trainer"]["counts"]
        result |= {"epochs": epochs, "updates": updates, "estimator": held["trainer"]["settings"]["estimator"]["name"]}
        rows["trained"] = f"{counted(epochs, 'epoch')}, {counted(updates, 'update')} by {result['estimator']}"
    if configuration:
        rows |= {name: value for name, value in _told(configuration).items() if name not in rows}
    return result, rows


def _part_in_training(source: str) -> str | None:
    """The last RBM of the stack in a folder of a deep run that has not got any further."""
    if any(Path(source, name).exists() for name in CHECKPOINTS):
        return None
    return max((str(path) for path in Path(source).glob("rbm*") if _PART.fullmatch(path.name)), default=None)


def _layers(model: LayeredModel | VAE) -> list[Result]:
    if isinstance(model, VAE):
        hidden = [{"kind": "gaussian", "units": units} for units in model.latents]
        return [{"kind": model.visible, "units": model.n_visible}, *hidden]
    return [{"kind": layer.kind.name.lower(), "units": layer.units} for layer in model.graph.layers]


def _told(configuration: Result) -> dict[str, Any]:
    """What the command that trained has written down; runs of older versions lack some of it."""
    rows = {"trained by": f"bm_fast {configuration['version']}"}
    data = configuration.get("data")
    if data is not None:
        sizes = ", ".join(f"{n:,} {split}" for split, n in data.get("rows", {}).items())
        rows["data"] = f"{data['name']} ({data['protocol']})" + (f": {sizes}" if sizes else "")
    settings = {name.replace("_", " "): value for name, value in configuration["settings"].items()}
    return settings | rows


def _here() -> tuple[Result, dict[str, Any]]:
    result: Result = {
        "version": version(),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **ops.info(),
        "device_cuda": devices.why_not(torch.device("cuda", 0)) or "usable",
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "data_folder": str(data.cache_folder()),
    }
    compiled, usable = ", ".join(result["isas_compiled"]), ", ".join(result["isas_usable"])
    rows = {
        "bm_fast": result["version"] + (f" (commit {result['commit']})" if result["commit"] else ""),
        "python, torch": f"{result['python']}, {result['torch']}",
        "backend": result["backend"],
        "instruction set": f"{result['isa']} (compiled: {compiled}; this processor has: {usable})"
        if result["isa"]
        else "none: plain torch",
        "threads": f"{result['threads']} of {result['processors']} processors",
        "GPU": result["gpu"],
        "--device cuda": result["device_cuda"],
        "data folder": result["data_folder"],
    }
    return result, rows
