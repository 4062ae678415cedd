"""Data sets: the digits that come with this package, public benchmarks, and files of your own.

>>> from bm_fast.data import load
>>> load("digits").train.shape
torch.Size([1197, 64])
"""

from bm_fast.data.dataset import SPLITS, Dataset, binarise
from bm_fast.data.files import DataError, cache_folder
from bm_fast.data.own import load_file
from bm_fast.data.sources import NAMES, load

__all__ = ["NAMES", "SPLITS", "DataError", "Dataset", "binarise", "cache_folder", "load", "load_file"]
