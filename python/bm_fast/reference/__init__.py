"""Every native operation in plain torch: the specification that the compiled kernels must match.

Operations on binary units give the same bits as the kernels do; operations on real values (Gaussian units, mean
field, free energies) agree within a stated tolerance. Nothing here is fast. Formulas: docs/numbers.md.
"""

from bm_fast.reference.arithmetic import (
    Purpose,
    accept,
    acceptance,
    choose,
    decide,
    exp_minus,
    fma,
    logistic,
    normals,
    philox,
    random_words,
    softmax,
    softmax_terms,
    uniform,
)
from bm_fast.reference.energies import energy, free_energy, gap, swap
from bm_fast.reference.programs import layer_means, mean_field, sweep
from bm_fast.reference.sums import bernoulli, gradient, quantise, statistics

__all__ = [
    "Purpose",
    "accept",
    "acceptance",
    "bernoulli",
    "choose",
    "decide",
    "energy",
    "exp_minus",
    "fma",
    "free_energy",
    "gap",
    "gradient",
    "layer_means",
    "logistic",
    "mean_field",
    "normals",
    "philox",
    "quantise",
    "random_words",
    "softmax",
    "softmax_terms",
    "statistics",
    "swap",
    "sweep",
    "uniform",
]
