"""Parallel tempering: ladders of chains between independent units and a machine, which cross between its modes."""

from bm_fast.tempering.adaptation import adapted_betas
from bm_fast.tempering.ladders import Ladders, run, start
from bm_fast.tempering.operators import Gibbs, Operator, Tempering
from bm_fast.tempering.report import PoorMixing, TemperingReport, integrated_autocorrelation

__all__ = [
    "Gibbs",
    "Ladders",
    "Operator",
    "PoorMixing",
    "Tempering",
    "TemperingReport",
    "adapted_betas",
    "integrated_autocorrelation",
    "run",
    "start",
]
