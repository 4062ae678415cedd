"""The kernel that keeps the weights of a program in many blocks, emulated on the host.

That its bits are those of the processor is tested in test_cuda_hopper.py. Here: the arrangements of blocks that
devices of several sizes lead to, what they have room for, and deliberate mistakes, each of which must be caught.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bm_fast import chain_graph
from cuda_runner import Change, run
from engine_cases import make_machine
from test_cuda_hopper import ENDED, ORDERS, WAITS, assert_caught, attempt, check, emulated, plain, rbm
from test_cuda_kernels import random_case

__all__ = ["plain"]  # a fixture


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "multiprocessors"),
    [
        ("weights of two blocks", 2),  # one team, which has three groups of chains
        ("weights of two blocks", 3),  # one team, with a block that has fewer octets
        ("weights of two blocks", 7),  # two teams, with two groups and one
        ("more groups than blocks", 1),
        ("three layers", 132),  # more blocks than octets of any layer
        ("several parts", 1),
    ],
)
def test_any_number_of_blocks_gives_the_same_bits(
    plain: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, multiprocessors: int, order: str
) -> None:
    monkeypatch.setenv("SIMT_MULTIPROCESSORS", str(multiprocessors))
    check(plain, "persistent", name, tmp_path, order)


def room(program: list[str], folder: Path, *units: int) -> int:
    """Chains that the kernel takes of a machine of these layers."""
    folder.joinpath("case").write_bytes(random_case(make_machine(chain_graph(units)), 1).to_bytes())
    return int(run([*program, "room", str(folder / "case")]).stdout)


@pytest.mark.parametrize(
    ("units", "multiprocessors", "teams"),
    [
        ((20, 30), 8, 8),
        ((300, 200), 8, 4),  # 2 blocks of weights
        ((300, 200), 7, 3),
        ((300, 200), 1, 0),
        ((784, 500, 1000), 132, 6),  # as docs/cuda-hopper.md says
        ((2000, 2000), 132, 1),
        ((4096, 4096), 132, 0),
        ((60_000, 10), 132, 0),  # the states of 64 chains do not fit
    ],
)
def test_room_is_what_the_blocks_of_the_device_hold(
    plain: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    units: tuple[int, ...],
    multiprocessors: int,
    teams: int,
) -> None:
    monkeypatch.setenv("SIMT_MULTIPROCESSORS", str(multiprocessors))
    assert room(plain, tmp_path, *units) == teams * 8 * 64


@pytest.mark.parametrize(("variable", "value"), [("SIMT_COOPERATIVE", "0"), ("SIMT_COMPUTE_CAPABILITY", "100")])
def test_other_devices_have_no_room(
    plain: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert room(plain, tmp_path, 20, 30) == 0


def test_programs_that_do_not_fit_are_refused(
    plain: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMT_MULTIPROCESSORS", "1")
    (tmp_path / "case").write_bytes(rbm(300, 200, n_chains=1).to_bytes())
    result = run([*plain, "persistent", str(tmp_path / "case"), str(tmp_path / "out")])
    assert result.returncode == 2
    assert "expected a program whose weights fit into 1 blocks that run at the same time" in result.stderr


# --- mistakes must be caught -----------------------------------------------------------------------------------------

MANY, DEEP = "weights of two blocks", "three layers"
# case, a change of the kernel, and what shows it in at least one order of lanes
MISTAKES = {
    "no waiting for the team": (DEEP, "        wait_for_team(arrived, arrivals, crew);\n", "", "wrong bits"),
    "waiting for the phase before": (
        DEEP,
        "wait_for_team(arrived, arrivals, crew);",
        "wait_for_team(arrived, arrivals - static_cast<uint32_t>(p.blocks), crew);",
        "wrong bits",
    ),
    "arrivals of the launch before": (
        DEEP,
        "p.words[i] = 0;",
        "p.words[i] += 0;",
        "wrong bits",
    ),
    "no publishing": (DEEP, "    simt::publish();\n", "", "wrong bits"),
    "no refreshing": (DEEP, "    simt::refresh();\n", "", "wrong bits"),
    "arrivals read through the cache": (DEEP, "simt::load_now(arrivals)", "simt::load4(arrivals)", WAITS),
    "states told before they are whole": (DEEP, "  crew.meet();  // everyone has read", "  //", "wrong bits"),
    "states read before they are awaited": (DEEP, "  crew.meet();  // with the first", "  //", "wrong bits"),
    "blocks without units that do not count": (
        DEEP,
        "    simt::count(arrivals);",
        "    if (simt::block_x() < 3) simt::count(arrivals);",
        WAITS,
    ),
    "one counter for all groups": (
        MANY,
        "s.arrivals + int64_t{group} * kArrivalWords",
        "s.arrivals",
        "wrong bits",
    ),
    "no wait for the weights": (
        MANY,
        "  simt::barrier_wait(loaded, 0);\n",
        "",
        f"wrong bits|{ENDED} copies",
    ),
    "no wait for the states": (DEEP, "  simt::copy_wait<0>();\n", "", f"wrong bits|{ENDED} copies"),
    "units of the next block drawn": (
        DEEP,
        "    drawing.units = ",
        "    [[maybe_unused]] int n_units = ",
        "wrong bits",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(tmp_path: Path, mistake: str) -> None:
    name, old, new, shown_by = MISTAKES[mistake]
    assert_caught(tmp_path, "persistent", name, "hopper_persistent.cu", old, new, shown_by)


def test_more_blocks_than_there_is_room_for_are_refused(tmp_path: Path) -> None:
    """Blocks that cannot run would be waited for without an end."""
    change = Change(
        "hopper_persistent.cu",
        "static_cast<unsigned>(teams * blocks)",
        "static_cast<unsigned>(teams * blocks + room)",
        "hopper_persistent.cu",
    )
    result = attempt(emulated(tmp_path, change=change), "persistent", DEEP, tmp_path, "fair")
    assert result.returncode == 2
    assert "expected at most 8 blocks that run at the same time, got" in result.stderr
