"""Variational and importance-weighted autoencoders, in PyTorch alone."""

from bm_fast.vae.estimators import CIWAE, ELBO, IWAE, MIWAE, PIWAE, STL, DReG
from bm_fast.vae.evaluation import Bound, Evaluation, active_units, evaluate, log_likelihood
from bm_fast.vae.model import VAE
from bm_fast.vae.trainer import Trainer, burda_schedule

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "STL",
    "VAE",
    "Bound",
    "DReG",
    "Evaluation",
    "Trainer",
    "active_units",
    "burda_schedule",
    "evaluate",
    "log_likelihood",
]
