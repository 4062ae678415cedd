"""Tempering: ladders of chains between independent units and a machine, and operators that cross between its modes."""

from bm_fast.tempering.adaptation import adapted_betas
from bm_fast.tempering.coupled import CoupledTempering, Walkers
from bm_fast.tempering.ladders import Ladders, run, start
from bm_fast.tempering.operators import Gibbs, Operator, Replicas
from bm_fast.tempering.parallel import Tempering
from bm_fast.tempering.report import PoorMixing, TemperingReport, integrated_autocorrelation
from bm_fast.tempering.trajectory import Trajectory, TrajectoryTempering, run_trajectory, start_trajectory
from bm_fast.tempering.transitions import TemperedTransitions

__all__ = [
    "CoupledTempering",
    "Gibbs",
    "Ladders",
    "Operator",
    "PoorMixing",
    "Replicas",
    "TemperedTransitions",
    "Tempering",
    "TemperingReport",
    "Trajectory",
    "TrajectoryTempering",
    "Walkers",
    "adapted_betas",
    "integrated_autocorrelation",
    "run",
    "run_trajectory",
    "start",
    "start_trajectory",
]
