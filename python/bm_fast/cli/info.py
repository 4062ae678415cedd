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
from bm_fast.cli.common import CHECKPOINTS, commit, open_checkpoint, read_configuration, refusing
from bm_fast.cli.console import Console, Result, UsageError, counted, version
from bm_fast.dbm import DBM
from bm_fast.dbn import DBN
from bm_fast.model import LayeredModel
from bm_fast.rbm import RBM
from bm_fast.vae import VAE

_PART = re.compile(r"rbm\d+\.safetensors")
_COUNTS = ("epoch", "update", "seconds", "learning_rate")
_OF_OPTIMISER = ("initial_lr", "lr", "momentum", "weight_decay")
_TOLD_BY_SETTINGS_ALONE = ("schedule", "pretraining_epochs", "hold_out")
"""Settings of a run that its checkpoint does not hold."""

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
        console.say(f"{name:18s} {value}")
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
        training, told = _training(held["trainer"])
        result |= training
        rows |= told
    if configuration:
        rows |= _told(configuration)
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


def _training(trainer: Result) -> tuple[Result, dict[str, Any]]:
    """What a checkpoint keeps of its training, whoever began it."""
    epochs, _, updates = trainer["counts"]
    settings = trainer["settings"]
    estimator = settings["estimator"]["name"]
    unsaid = {"name"} if settings["estimator"].get("sparsity") else {"name", "sparsity_cost"}
    optimiser, group = trainer["parts"]["optimizer"][0], trainer["optimizer"]["param_groups"][0]
    row: Result = next((state["rows"][-1] for state in trainer.get("callbacks", []) if state.get("rows")), {})
    figures = {name: value for name, value in row.items() if name not in _COUNTS}
    result = {
        "epochs": epochs,
        "updates": updates,
        "estimator": estimator,
        "settings": settings,
        "optimiser": {"name": optimiser, **{name: group[name] for name in _OF_OPTIMISER if name in group}},
        "trained_on": trainer["data"],
        "last": row,
    }
    took = f", in {row['seconds']:,.0f} s" if "seconds" in row else ""
    rows = {
        "trained": f"{counted(epochs, 'epoch')}, {counted(updates, 'update')} by {estimator}{took}",
        "gradient": _said({name: each for name, each in settings["estimator"].items() if name not in unsaid}),
        "data": trainer["data"].removeprefix("an array of "),
        "batches": f"{counted(settings['batch_size'], 'row')}, {settings['binarise']} binarisation"
        + (", centred gradient" if settings.get("centred") else ""),
        "optimiser": f"{optimiser}, rate {group.get('initial_lr', group['lr']):g} at first, {group['lr']:g} at last"
        + "".join(f", {name.replace('_', ' ')} {group[name]:g}" for name in _OF_OPTIMISER[2:] if group.get(name)),
        "seed": settings["seed"],
    }
    if settings.get("mixed_precision"):
        rows["precision"] = "products in bfloat16"
    if figures:
        rows["last figures"] = ", ".join(f"{_name(name)} {_said(value)}" for name, value in figures.items())
    return result, rows


def _name(name: str) -> str:
    return name.removeprefix("n_").replace("_", " ")


def _said(value: Any) -> str:
    """A setting in words: names without underscores, lists and mappings in a row; what is not set is left out."""
    if isinstance(value, dict):
        of = [(name, each) for name, each in value.items() if each not in (None, 0, (), [], {}) or name == "seed"]
        return ", ".join(_said(each) if name == "name" else f"{_name(name)} {_said(each)}" for name, each in of)
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_said, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _told(configuration: Result) -> dict[str, Any]:
    """What the command that trained has written down beside the checkpoint; runs of older versions lack some of it."""
    rows = {}
    data = configuration.get("data")
    if data is not None:
        sizes = ", ".join(f"{n:,} {split}" for split, n in data.get("rows", {}).items())
        rows["data"] = f"{data['name']} ({data['protocol']})" + (f": {sizes}" if sizes else "")
    told = {
        name: value for name, value in configuration["settings"].items() if name in _TOLD_BY_SETTINGS_ALONE and value
    }
    rows |= {name.replace("_", " "): _said(value) for name, value in told.items()}
    rows["trained by"] = f"bm_fast {configuration['version']}" + (
        f" (commit {configuration['commit']})" if configuration.get("commit") else ""
    )
    return rows


def _here() -> tuple[Result, dict[str, Any]]:
    result: Result = {
        "version": version(),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **ops.info(),
        "device_cuda": ops.why_not(torch.device("cuda", 0)) or "usable",
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
