"""Learning the parameters of a machine from data."""

from bm_fast.training.callbacks import (
    Callback,
    Checkpoint,
    Evaluate,
    History,
    Progress,
    ProgressBar,
    TensorBoard,
)
from bm_fast.training.deep import MeanFieldPCD, robbins_monro
from bm_fast.training.estimators import CD, PCD, FastPCD
from bm_fast.training.health import TrainingReport
from bm_fast.training.loop import TrainingError
from bm_fast.training.pretraining import lift, pretrain, pretrain_dbn, stack_estimator, stitch
from bm_fast.training.stopping import EarlyStopping, StopOnOverfitting
from bm_fast.training.tempered import PersistentChains
from bm_fast.training.trainer import Trainer
from bm_fast.training.updown import UpDown

__all__ = [
    "CD",
    "PCD",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "Evaluate",
    "FastPCD",
    "History",
    "MeanFieldPCD",
    "PersistentChains",
    "Progress",
    "ProgressBar",
    "StopOnOverfitting",
    "TensorBoard",
    "Trainer",
    "TrainingError",
    "TrainingReport",
    "UpDown",
    "lift",
    "pretrain",
    "pretrain_dbn",
    "robbins_monro",
    "stack_estimator",
    "stitch",
]
