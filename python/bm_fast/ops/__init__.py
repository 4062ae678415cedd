"""The operations that everything else is built from; ``native`` is the only importer of the compiled module.

Arguments are checked here, once, and never converted: a kernel gets addresses of contiguous tensors of the right dtype.
The backend is the compiled module, or ``reference`` where ``BM_FAST_BACKEND=reference`` asks for it.
"""

from bm_fast.chains import MAX_CHAINS
from bm_fast.ops.annealing import anneal
from bm_fast.ops.checks import MAX_SEED, check
from bm_fast.ops.devices import usable, why_not
from bm_fast.ops.grid import quantise
from bm_fast.ops.live import LiveMachine, can_live
from bm_fast.ops.machine import Convergence, Machine
from bm_fast.ops.native import gpu, info
from bm_fast.ops.random import bernoulli
from bm_fast.ops.sums import gradient, statistics
from bm_fast.ops.tempering import EnergyGap, swap, temper
from bm_fast.rungs import Rungs

__all__ = [
    "MAX_CHAINS",
    "MAX_SEED",
    "Convergence",
    "EnergyGap",
    "LiveMachine",
    "Machine",
    "Rungs",
    "anneal",
    "bernoulli",
    "can_live",
    "check",
    "gpu",
    "gradient",
    "info",
    "quantise",
    "statistics",
    "swap",
    "temper",
    "usable",
    "why_not",
]
