"""How good a machine is: log Z, likelihoods, pseudo-likelihood and reconstruction."""

from bm_fast.estimation.ais import AISEstimate, UntrustworthyEstimate, ais, base_biases
from bm_fast.estimation.exact import MAX_ENUMERATED_UNITS, exact_log_z
from bm_fast.estimation.likelihood import (
    MeanLogLikelihood,
    log_likelihood,
    mean_log_likelihood,
    pseudo_log_likelihood,
    reconstruction_error,
)
from bm_fast.estimation.schedule import adaptive_betas

__all__ = [
    "MAX_ENUMERATED_UNITS",
    "AISEstimate",
    "MeanLogLikelihood",
    "UntrustworthyEstimate",
    "adaptive_betas",
    "ais",
    "base_biases",
    "exact_log_z",
    "log_likelihood",
    "mean_log_likelihood",
    "pseudo_log_likelihood",
    "reconstruction_error",
]
