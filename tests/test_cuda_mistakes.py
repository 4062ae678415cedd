"""Deliberate mistakes in the CUDA kernels for real values, statistics, gaps and swaps: each must be caught.

As in test_cuda_kernels.py: by ThreadSanitizer, and most also by wrong results or a stop in plain runs of any order but
lanes in step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bm_fast import ops
from cuda_runner import ORDERS, Change, emulated
from test_cuda_operations import assert_gap_biases, assert_swaps, factors, normal, summed
from test_cuda_real import mean_field_by_layer_means, mean_field_by_runner, of
from test_cuda_softmax import MEAN_FIELD as MEAN_FIELD_OF_LABELS
from test_cuda_softmax import of as of_labels
from test_cuda_softmax import swept_by_reference, swept_by_runner

Check = Callable[[list[str], Path, str], None]


def check_mean_field(program: list[str], folder: Path, order: str) -> None:
    c = of("deep", "mean field")
    got = mean_field_by_runner(program, folder, c, 2, 0.0, -1.0, order)
    for a, b in zip(got, mean_field_by_layer_means(c, 2, 0.0, -1.0), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)


def check_statistics(kinds: str) -> Check:
    def check(program: list[str], folder: Path, order: str) -> None:
        lower, upper = factors((300, 33, 20), kinds)
        assert torch.equal(summed(program, folder, lower, upper, order), ops.statistics(lower, upper))

    return check


def check_swaps(program: list[str], folder: Path, order: str) -> None:
    assert_swaps(program, folder, 1, 150, order)


def check_gap_biases(program: list[str], folder: Path, order: str) -> None:
    for unit in (32, 64, 96):  # the largest in each warp that the first thread has to wait for
        biases = normal(128, scale=0.01)
        biases[unit] = 100.0
        assert_gap_biases(program, folder, [biases], None, order)


def check_labels(name: str) -> Check:
    def check(program: list[str], folder: Path, order: str) -> None:
        c = of_labels(name)
        got, wanted = swept_by_runner(program, folder, c, 2, order), swept_by_reference(c, 2)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), "bits are not close"

    return check


def check_means_of_labels(program: list[str], folder: Path, order: str) -> None:
    c = MEAN_FIELD_OF_LABELS["many classes"]()
    got = mean_field_by_runner(program, folder, c, 2, 0.0, -1.0, order)
    for a, b in zip(got, mean_field_by_layer_means(c, 2, 0.0, -1.0), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)


LOADED = "      simt::sync_block();  // real values"
MISTAKES: dict[str, tuple[Change, Check]] = {
    "no barrier": (Change("real_product.h", LOADED, "      //", "real.cu"), check_mean_field),
    "no wait": (
        Change("real_product.h", "      simt::copy_wait<kStages - 2>();\n", "", "real.cu"),
        check_mean_field,
    ),
    "quanta that are read early": (
        Change("real.cu", "  simt::sync_block();  // all quanta", "  //", "real.cu"),
        check_mean_field,
    ),
    "changes that overwrite each other": (
        Change(
            "real.cu",
            "simt::atomic_max(reinterpret_cast<uint32_t*>(p.changes + chain), largest);",
            "p.changes[chain] = bm::units::float_of(largest);",
            "real.cu",
        ),
        check_mean_field,
    ),
    "counts before their bits": (
        Change("statistics.cu", "    simt::sync_block();  // the stage is whole", "    //", "statistics.cu"),
        check_statistics("bits bits"),
    ),
    "sums before their numbers": (
        Change("statistics.cu", "    simt::sync_block();  // of sums", "    //", "statistics.cu"),
        check_statistics("reals reals"),
    ),
    "one buffer for two stages": (
        Change(
            "statistics.cu",
            "    float* stage = shared + buffer * kSumStageFloats;",
            "    float* stage = shared;",
            "statistics.cu",
        ),
        check_statistics("bits reals"),
    ),
    "a grid before all biases are known": (
        Change("largest.h", "  simt::sync_block();  // a value of each warp", "  //", "gap_biases.cu"),
        check_gap_biases,
    ),
    "swaps before the ladder is known": (
        Change("swap.cu", "  simt::sync_block();  // the whole ladder", "  //", "swap.cu"),
        check_swaps,
    ),
    "fields of a softmax layer before their stage": (
        Change("real_product.h", LOADED, "      //", "softmax.cu"),
        check_labels("deep"),
    ),
    "a class that stays on beside the next one": (
        Change("softmax.cu", "state[word] = word == on / 32", "state[word] |= word == on / 32", "softmax.cu"),
        check_labels("letters"),
    ),
    "held classes that count": (
        Change("softmax.cu", "return is_held(unit) ? 0.f : ", "return ", "softmax.cu"),
        check_labels("held"),
    ),
    "threads of two chains that store to one state": (
        Change(
            "softmax.cu", "p.states + chain * words : nullptr", "p.states + chain / 2 * words : nullptr", "softmax.cu"
        ),
        check_labels("many classes"),
    ),
    "changes of classes in place of all": (
        Change("softmax.cu", "largest = units::bits_of(p.changes[chain]);", "largest = 0;", "softmax.cu"),
        check_means_of_labels,
    ),
}


# shuffles keep the lanes nearly in step, or the last block happens to have the largest change
HIDDEN_IN_PLAIN_RUNS = {"quanta that are read early", "changes that overwrite each other", "counts before their bits"}
# the first warp runs last, when all others have written
HIDDEN_AHEAD = {"a grid before all biases are known"}

WRONG = "are not close|method equal"  # results that differ: a program that fails otherwise has caught nothing
CAUGHT = {"plain": WRONG, "thread": f"ThreadSanitizer: data race|{WRONG}"}
FOLLOWS_WILD_ADDRESSES = {"swaps before the ladder is known"}
CRASHED = {"plain": "exit code -11", "thread": "ThreadSanitizer: SEGV"}


@pytest.mark.parametrize(
    ("sanitizer", "mistake"),
    [("thread", name) for name in MISTAKES]
    + [("plain", name) for name in MISTAKES if name not in HIDDEN_IN_PLAIN_RUNS],
)
def test_a_mistake_is_caught(tmp_path: Path, mistake: str, sanitizer: str) -> None:
    change, check = MISTAKES[mistake]
    program = emulated(tmp_path, sanitizer, change)
    caught = CAUGHT[sanitizer]
    if mistake in FOLLOWS_WILD_ADDRESSES:
        caught += f"|{CRASHED[sanitizer]}"
    plain_orders = ORDERS[2:] if mistake in HIDDEN_AHEAD else ORDERS[1:]
    for order in plain_orders if sanitizer == "plain" else ("random:1",):
        with pytest.raises(AssertionError, match=caught):
            check(program, tmp_path, order)


@pytest.mark.parametrize("order", ORDERS)
def test_without_a_mistake_nothing_is_seen(plain: list[str], tmp_path: Path, order: str) -> None:
    for check in dict.fromkeys(check for _, check in MISTAKES.values()):
        check(plain, tmp_path, order)
