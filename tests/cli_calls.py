"""Calls of the command line within a test's own process."""

from __future__ import annotations

import json
from pathlib import Path

from bm_fast.cli import main

TINY = ["--hidden", "8", "--epochs", "2", "--batch-size", "400", "--chains", "10"]


def call(capsys, *arguments):
    """Exit code, parsed standard output of a command with --json, and its standard error."""
    code = main([*map(str, arguments), "--json"])
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 1, lines
    result = json.loads(lines[0])
    assert result["exit_code"] == code
    return code, result, captured.err


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
