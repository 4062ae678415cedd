"""What every command reads and prints: types of arguments, text, JSON. Nothing here waits for torch to be loaded."""

from __future__ import annotations

import argparse
import math
import os
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

Result = dict[str, Any]
"""What a command found, ready for JSON: plain numbers, strings, lists and mappings."""


class UsageError(Exception):
    """What the command line names does not exist, does not fit together or cannot be used; exit code 2."""


@dataclass(frozen=True)
class Console:
    """Where text goes: to standard output for people, to standard error where that is kept free for JSON."""

    json: bool

    def say(self, text: str = "") -> None:
        emit(text, sys.stderr if self.json else sys.stdout)


def emit(text: str, stream: TextIO, end: str = "\n") -> None:
    """Prints a line; once the reader has gone (``| head``), text goes nowhere and the work goes on."""
    try:
        print(text, file=stream, end=end, flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # what the stream still holds is flushed at the end of the process
        os.close(nowhere)


def plain(value: Any) -> Any:
    """``value`` as JSON knows it: infinities and NaN, which it does not know, become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def counted(n: int, what: str) -> str:
    """How many of something: "1 epoch", "2,000 epochs"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def version() -> str:
    try:
        return metadata.version("bm_fast")
    except metadata.PackageNotFoundError:
        return "not installed"


# --- argument types ---------------------------------------------------------------------------------------------------


def whole(low: int, high: int = 2**31 - 1) -> Any:
    """Type of an argument that is a whole number in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, got {text!r}")
        return value

    return parse


_LARGEST = (2 - 2**-23) * 2.0**127  # of float32


def real(low: float, high: float = _LARGEST, *, above: bool = False) -> Any:
    """Type of an argument that is a finite number of at least ``low`` (or above it) and at most ``high``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and (value > low if above else value >= low) and value <= high):
            limits = f"{'above' if above else 'of at least'} {low:g}" + (
                f" and at most {high:g}" if high < _LARGEST or value > high else ""
            )
            raise argparse.ArgumentTypeError(f"expected a number {limits}, got {text!r}")
        return value

    return parse


SEED = whole(0, 2**63 - 1)


def image_shape(text: str) -> tuple[int, int]:
    """Type of an argument like 28x28."""
    rows, _, columns = text.partition("x")
    if not (rows.isdigit() and columns.isdigit() and int(rows) and int(columns)):
        raise argparse.ArgumentTypeError(f"expected rows x columns, as in 28x28, got {text!r}")
    return int(rows), int(columns)
