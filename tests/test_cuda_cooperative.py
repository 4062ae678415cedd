"""Blocks that run at the same time and wait for each other, emulated on the host.

Each deliberate mistake in how they exchange bytes must be caught, or the emulation would prove nothing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from cuda_runner import Change, run
from test_cuda_hopper import ORDERS, WAITS, emulated, plain

__all__ = ["plain"]  # a fixture


@pytest.mark.parametrize("order", ORDERS)
def test_bytes_go_round(plain: list[str], order: str) -> None:
    result = run([*plain, "together"], order)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "room"), [("SIMT_MULTIPROCESSORS", "6", 6), ("SIMT_COOPERATIVE", "0", 0)]
)
def test_the_room_for_blocks_is_known(
    plain: list[str], monkeypatch: pytest.MonkeyPatch, variable: str, value: str, room: int
) -> None:
    monkeypatch.setenv(variable, value)
    result = run([*plain, "together"])
    assert result.returncode == 2
    assert f"room for {room} blocks at the same time" in result.stderr


MISTAKES = {
    "no publishing": ("      simt::publish();\n", "", "differences"),
    "no refreshing": ("      simt::refresh();\n", "", "differences"),
    "the count of the round before": ("(round + 1) * kBlocks", "round * kBlocks", "differences"),
    "a row told before it is whole": ("    simt::sync_block();  // the row", "    //", "differences"),
    "rows read before they are awaited": ("    simt::sync_block();  // all rows", "    //", "differences"),
    "one buffer for two rounds": ("p.rows + round % 2 * kBlocks * kThreads", "p.rows", "differences"),
    "a counter read through the cache": ("simt::load_now(p.counter)", "simt::load4(p.counter)", WAITS),
    "a block that does not count": ("      simt::count(", "      if (block > 0) simt::count(", WAITS),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(tmp_path: Path, mistake: str) -> None:
    old, new, shown_by = MISTAKES[mistake]
    program = emulated(tmp_path, change=Change("hopper_checks.cpp", old, new, "hopper_checks.cpp"))
    said = list[str]()
    for order in (*ORDERS, "random:2"):
        result = run([*program, "together"], order)
        said.append(result.stdout + result.stderr)
        if result.returncode != 0 and shown_by in said[-1]:
            return
    pytest.fail(str(said))
