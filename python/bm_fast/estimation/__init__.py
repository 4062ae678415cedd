"""How good a machine is: log Z, likelihoods, pseudo-likelihood and reconstruction."""

from bm_fast.estimation.ais import AISEstimate, UntrustworthyEstimate, ais, base_biases
from bm_fast.estimation.belief import dbn_bound, exact_dbn_log_likelihood, mean_dbn_bound
from bm_fast.estimation.bracket import LogLikelihoodEstimate, estimate_log_likelihood
from bm_fast.estimation.deep import exact_log_likelihood, mean_variational_bound, variational_bound
from bm_fast.estimation.exact import MAX_ENUMERATED_UNITS, exact_log_z
from bm_fast.estimation.health import LayerHealth, chain_health, effective_sample_size, split_r_hat, to_arviz
from bm_fast.estimation.likelihood import (
    MeanLogLikelihood,
    log_likelihood,
    mean_log_likelihood,
    pseudo_log_likelihood,
    reconstruction_error,
)
from bm_fast.estimation.moments import MomentAveragedPath, moment_averaged_path
from bm_fast.estimation.reverse import raise_log_likelihood, reverse_ais
from bm_fast.estimation.schedule import adaptive_betas
from bm_fast.estimation.tempering import TemperedLogZ, tempered_log_z, trajectory_log_z
from bm_fast.estimation.verification import Verification, verify

__all__ = [
    "MAX_ENUMERATED_UNITS",
    "AISEstimate",
    "LayerHealth",
    "LogLikelihoodEstimate",
    "MeanLogLikelihood",
    "MomentAveragedPath",
    "TemperedLogZ",
    "UntrustworthyEstimate",
    "Verification",
    "adaptive_betas",
    "ais",
    "base_biases",
    "chain_health",
    "dbn_bound",
    "effective_sample_size",
    "estimate_log_likelihood",
    "exact_dbn_log_likelihood",
    "exact_log_likelihood",
    "exact_log_z",
    "log_likelihood",
    "mean_dbn_bound",
    "mean_log_likelihood",
    "mean_variational_bound",
    "moment_averaged_path",
    "pseudo_log_likelihood",
    "raise_log_likelihood",
    "reconstruction_error",
    "reverse_ais",
    "split_r_hat",
    "tempered_log_z",
    "to_arviz",
    "trajectory_log_z",
    "variational_bound",
    "verify",
]
