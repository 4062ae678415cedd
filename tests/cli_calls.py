"""Calls of the command line within a test's own process."""

from __future__ import annotations

import json
import signal
from pathlib import Path

from bm_fast.cli import main
from bm_fast.training import ProgressBar

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


def interrupted_at(monkeypatch, number):
    """Presses Ctrl-C after this update, the next runs not counted anew; the updates so far, as they come."""
    updates = []
    shown = ProgressBar.on_update

    def stop(self, progress):
        shown(self, progress)
        updates.append(progress)
        if len(updates) == number:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "on_update", stop)
    return updates


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
