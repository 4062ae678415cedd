"""Minibatches from an array or from a torch DataLoader, in an order that a checkpoint can bring back."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.weak import WeakTensorKeyDictionary

from bm_fast import arrays
from bm_fast.graph import Kind, Layer

Batch = tuple[Tensor, Tensor]
"""Values ``[n, units]`` as the data has them, and int64 ``[n]`` numbers of the rows: binarisation draws by them."""

Data = Tensor | NDArray[np.generic] | DataLoader[Any]

Check = Callable[[str, Tensor], Tensor]
"""Gives rows back as updates take them; ValueError, with the name that comes first, where the model cannot."""


class Batches(Protocol):
    """A source of batches. Its ``order`` at the start of an epoch decides which batches the epoch has."""

    n_batches: int | None

    labels: Tensor | None
    """Classes of the rows of the batch that came last, int64 ``[n]``, -1 where unknown; None for data without them."""

    all_labelled: bool
    """Whether all classes of the data are known, as far as was seen at first."""

    @property
    def description(self) -> str:
        """Which data these are, as far as a checkpoint can tell."""

    @property
    def order(self) -> Tensor:
        """State of the random generator that shuffles, uint8."""

    def restore(self, order: Tensor) -> None:
        """Goes back to an earlier ``order``."""

    def epoch(self, skip: int) -> Iterator[Batch]:
        """The batches of the coming epoch without the first ``skip`` ones."""


class _Shuffled:
    """The order of batches as the state of a random generator."""

    _generator: torch.Generator

    @property
    def order(self) -> Tensor:
        return self._generator.get_state()

    def restore(self, order: Tensor) -> None:
        self._generator.set_state(order)


class ArrayBatches(_Shuffled):
    """Rows of an array, shuffled anew in each epoch; the last batch has what is left over."""

    def __init__(self, data: Tensor, batch_size: int, generator: torch.Generator, labels: Tensor | None = None) -> None:
        self.data, self._all_labels = data, labels
        self.labels: Tensor | None = None
        self.all_labelled = labels is not None and bool((labels >= 0).all())
        self.n_batches: int | None = -(-len(data) // batch_size)
        self._batch_size = batch_size
        self._generator = generator
        self._memory = data.new_empty(min(batch_size, len(data)), data.shape[1])

    @property
    def description(self) -> str:
        labels = "" if self._all_labels is None else f" with labels (CRC-32 {_checksum(self._all_labels)})"
        return f"an array of {len(self.data)} rows (CRC-32 {_checksum(self.data)}){labels}"

    def epoch(self, skip: int) -> Iterator[Batch]:
        order = torch.randperm(len(self.data), generator=self._generator).to(self.data.device)
        for start in range(skip * self._batch_size, len(order), self._batch_size):
            numbers = order[start : start + self._batch_size]
            self.labels = None if self._all_labels is None else self._all_labels[numbers]
            yield torch.index_select(self.data, 0, numbers, out=self._memory[: len(numbers)]), numbers


class LoaderBatches(_Shuffled):
    """The batches of a DataLoader; rows are numbered as they come in the epoch.

    ``order`` is the state of the loader's own generator, or of torch's global one where the loader has none. Bringing
    it back repeats an epoch exactly if the data set returns the same row for the same index, and if the sampler draws
    from no other generator.
    """

    def __init__(self, loader: DataLoader[Any], check: Check, batch_size: int, n_classes: int | None = None) -> None:
        self._loader, self._check, self._batch_size, self._n_classes = loader, check, batch_size, n_classes
        self.labels: Tensor | None = None
        self.all_labelled = False
        self._generator: torch.Generator = loader.generator or torch.default_generator
        try:
            self.n_batches: int | None = len(loader)
        except TypeError:  # an iterable data set without a length
            self.n_batches = None

    @property
    def description(self) -> str:
        return "a DataLoader"

    def epoch(self, skip: int) -> Iterator[Batch]:
        first = 0
        for i, batch in enumerate(self._loader):
            values = batch[0] if isinstance(batch, (list, tuple)) else batch
            values = self._check(f"train: batch {i}", values)
            if len(values) > self._batch_size:
                raise ValueError(
                    f"train: batch {i} has {len(values)} rows, the trainer was made for batch_size={self._batch_size}"
                )
            if self._n_classes is not None:
                self.labels = _labels_beside(values, batch, f"train: labels of batch {i}", self._n_classes)
            if i >= skip:
                yield values, torch.arange(first, first + len(values), device=values.device)
            first += len(values)


def make_batches(
    train: Data,
    layer: Layer,
    batch_size: int,
    device: torch.device,
    generator: torch.Generator,
    *,
    binary: bool,
    labels: Tensor | NDArray[np.generic] | None = None,
    n_classes: int | None = None,
) -> Batches:
    """The source for ``train``; ``binary`` demands 0/1 of an array. ValueError names what is wrong with the data.

    labels: of the rows of an array, for a model with ``n_classes`` classes; a DataLoader brings them in its batches.
    """
    if labels is not None and (n_classes is None or isinstance(train, DataLoader)):
        why = "for a model without labels" if n_classes is None else "beside a DataLoader, whose batches have them"
        raise ValueError(f"labels: expected None {why}, got {type(labels).__name__}")
    if isinstance(train, DataLoader):
        return LoaderBatches(train, partial(arrays.rows, layer=layer, device=device), batch_size, n_classes)
    data = arrays.rows("train", train, layer, device)
    classes: Tensor | None = None
    if n_classes is not None:
        if labels is None:
            raise ValueError(f"labels: expected int64 [{len(data)}], -1 where a class is unknown, got None")
        classes = arrays.labels("labels", labels, len(data), n_classes, device, unknown=True)
    return ArrayBatches(as_binary("train", data) if binary else data, batch_size, generator, classes)


def _labels_beside(values: Tensor, batch: object, name: str, n_classes: int) -> Tensor:
    if not isinstance(batch, (list, tuple)) or len(batch) < 2:
        raise ValueError(f"{name}: expected batches of values and labels for a model with {n_classes} classes")
    return arrays.labels(name, batch[1], len(values), n_classes, values.device, unknown=True)


_known: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _checksum(tensor: Tensor) -> str:
    """CRC-32 of the bytes; those of a GPU are brought here once, as long as torch has not changed them."""
    # on the processor it is quick, and numpy may change the memory unseen; inference tensors have no version
    if tensor.device.type == "cpu" or tensor.is_inference():
        return f"{zlib.crc32(tensor.cpu().numpy().data):08x}"
    if tensor not in _known or _known[tensor][0] != tensor._version:
        _known[tensor] = tensor._version, f"{zlib.crc32(tensor.cpu().numpy().data):08x}"
    return str(_known[tensor][1])


def as_binary(name: str, values: Tensor) -> Tensor:
    """0/1 values as uint8; ValueError for anything between."""
    if values.dtype is torch.uint8:
        return values
    grey = (values != 0) & (values != 1)
    if bool(grey.any()):
        raise ValueError(
            f"{name}: expected 0 and 1 only with binarise='none', got {float(values[grey][0]):g}; "
            "binarise='dynamic' draws grey levels anew in each epoch"
        )
    return values.to(torch.uint8)


def column_means(rows: Tensor) -> Tensor:
    """Mean of every column, float32; takes little memory, where ``Tensor.mean`` would make all rows float32 first."""
    total = torch.zeros(rows.shape[1], device=rows.device)
    for first in range(0, len(rows), 1024):
        total += rows[first : first + 1024].sum(0, dtype=torch.float32)
    return total / len(rows)


def is_grey(values: Tensor, layer: Layer) -> bool:
    """Whether values are probabilities of binary units, from which states have yet to be drawn."""
    return layer.kind is Kind.BERNOULLI and values.dtype is torch.float32
