"""Run by a Python that has only the installed wheel: imports, samples, trains, and shares torch's OpenMP."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata, resources
from pathlib import Path

import torch

import bm_fast
from bm_fast import RBM, data, ops
from bm_fast.estimation import pseudo_log_likelihood
from bm_fast.training import PCD, Trainer


def main() -> None:
    package = Path(str(resources.files(bm_fast)))
    assert package.is_relative_to(sys.prefix), f"expected the installed package, got {package}"
    assert (package / "py.typed").is_file()
    assert ops.info()["backend"] == "native", ops.info()

    digits = data.load("digits").binarised()
    rbm = RBM(digits.n_units, 16)
    rbm.initialise_biases(digits.train)
    before = float(pseudo_log_likelihood(rbm, digits.train).mean())
    Trainer(rbm, torch.optim.SGD(rbm.parameters(), lr=0.1), PCD(), seed=0).fit(digits.train, epochs=40)
    assert float(pseudo_log_likelihood(rbm, digits.train).mean()) > before + 1
    chains = rbm.sample(rbm.chains(8, seed=0), sweeps=10)
    assert chains.sweep == 10

    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line}
    assert len(libraries) == 1, f"expected one OpenMP library, got {libraries}"
    subprocess.run([str(Path(sys.executable).with_name("bm-fast")), "info"], check=True)
    print("bm_fast", metadata.version("bm_fast"), "works")


if __name__ == "__main__":
    main()
