"""Processes that fork after calls on several threads: what docs/kernels.md says works does work."""

from __future__ import annotations

import subprocess
import sys

import pytest

PARENT = """
import multiprocessing, os, torch
from torch.utils.data import DataLoader, Dataset
from bm_fast import RBM

torch.set_num_threads(2)
rbm = RBM(64, 40, seed=1, weight_scale=0.5)

def states(seed):
    return rbm.sample(rbm.chains(512, seed), 3).layers[0]

class Samples(Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, seed):
        return states(seed)

def child():
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(states(0), expected) else 1)

expected = states(0)
"""
CHILD = """
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join(60)
process.kill()
process.join()
assert process.exitcode == 0
"""
WORKER = """
(batch,) = DataLoader(Samples(), batch_size=2, num_workers=1)
assert torch.equal(batch[0], expected)
"""


@pytest.mark.parametrize("program", [CHILD, WORKER], ids=["one thread in the child", "workers of a DataLoader"])
def test_a_forked_process_samples_to_the_same_bits(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", PARENT + program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
