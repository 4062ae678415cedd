"""Where a command computes: the option ``--device``."""

from __future__ import annotations

import argparse
import re

import torch

from bm_fast import ops


def add_device(parser: argparse.ArgumentParser, *, kernels: bool = True) -> None:
    """The option ``--device``, a ``torch.device`` that can be used. kernels: whether those of bm_fast are needed."""

    def usable(text: str) -> torch.device:
        device = parse(text)
        reason = ops.why_not(device, kernels=kernels)
        if reason is not None:
            raise argparse.ArgumentTypeError(f"{text} cannot be used: {reason}")
        return device

    parser.add_argument(
        "--device",
        type=usable,
        default=torch.device("cpu"),
        metavar="DEVICE",
        help="where to compute: cpu, cuda, or cuda:N for GPU number N (default: cpu); proved under emulation, "
        "not yet run on a GPU",
    )


def parse(text: str) -> torch.device:
    """cpu, cuda (GPU 0) or cuda:N."""
    found = re.fullmatch(r"cpu|cuda(?::(\d{1,3}))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got {text!r}")
    return torch.device(text) if text == "cpu" else torch.device("cuda", int(found[1] or 0))
