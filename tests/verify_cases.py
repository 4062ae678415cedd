"""What the tests of ``verify`` share: a small model, an honest estimator of log Z, and what was found wrong."""

from __future__ import annotations

from typing import NamedTuple

import torch

from bm_fast import RBM, Machine
from bm_fast.estimation import Verification, exact_log_z


def rbm() -> RBM:
    model = RBM(4, 3, seed=2, weight_scale=0.9)
    with torch.no_grad():
        model.visible_bias.copy_(torch.tensor([0.4, -0.3, 0.2, -0.6]))
    return model


class Estimate(NamedTuple):
    """The least that an estimator of log Z gives."""

    log_z: float
    standard_error: float


def failures(found: Verification) -> list[str]:
    return [f"{check.subject}: {check.what}" for check in found.checks if not check.passed]


def known(machine: Machine, seed: int) -> Estimate:
    """An estimator of log Z whose errors are what they say."""
    noise = torch.randn(1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Estimate(exact_log_z(machine) + 0.1 * float(noise), 0.1)
