"""Boltzmann machines that are exact and fast: training, sampling and likelihoods."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "DBM": "dbm",
    "DBN": "dbn",
    "RBM": "rbm",
    "Chains": "chains",
    "Machine": "ops",
    "MeanFieldNotConverged": "mean_field",
    "Posterior": "mean_field",
}
"""Where names come from that do not come from ``graph``."""


def __getattr__(name: str) -> Any:
    """A name of ``__all__``, loaded when it is first asked for: ``bm-fast --help`` does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES.get(name, 'graph')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
