"""Boltzmann machines that are exact and fast: training, sampling and likelihoods."""

from bm_fast.chains import Chains
from bm_fast.dbm import DBM
from bm_fast.dbn import DBN
from bm_fast.graph import Coupling, Graph, Kind, Layer, chain_graph
from bm_fast.mean_field import MeanFieldNotConverged, Posterior
from bm_fast.ops import Machine
from bm_fast.rbm import RBM

__all__ = [
    "DBM",
    "DBN",
    "RBM",
    "Chains",
    "Coupling",
    "Graph",
    "Kind",
    "Layer",
    "Machine",
    "MeanFieldNotConverged",
    "Posterior",
    "chain_graph",
]
