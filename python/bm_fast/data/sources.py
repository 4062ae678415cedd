"""The public data sets: their files, formats and splits. docs/data.md gives sources, licences and papers."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray
from torch import Tensor

from bm_fast.checkpoints import replacing
from bm_fast.data.dataset import SPLITS, Dataset
from bm_fast.data.files import LEFT_ALONE, DataError, File, cache_folder, fetch, find
from bm_fast.data.omniglot import average_originals, read_chardata

_Bytes = NDArray[np.uint8]

_MNIST_URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
MNIST_FILES = {
    key: File(name, "mnist", tuple(url + name for url in _MNIST_URLS), size, sha256)
    for key, name, size, sha256 in (
        (
            "train images",
            "train-images-idx3-ubyte.gz",
            9_912_422,
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        ),
        (
            "train labels",
            "train-labels-idx1-ubyte.gz",
            28_881,
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        ),
        (
            "test images",
            "t10k-images-idx3-ubyte.gz",
            1_648_877,
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        ),
        (
            "test labels",
            "t10k-labels-idx1-ubyte.gz",
            4_542,
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
    )
}

BINARIZED_MNIST_PACKED = File(
    "binarized_mnist.npz",
    "binarized_mnist",
    (),
    2_336_176,
    "df14a884cb4aa7ac6692463fb31798a687c4e762c73c23a8ae3114fbec4e6093",
)
BINARIZED_MNIST_FILES = {
    split: File(
        f"binarized_mnist_{split}.amat",
        "binarized_mnist",
        (f"http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/binarized_mnist_{split}.amat",),
        rows * 2 * 784,
        sha256,
    )
    for split, rows, sha256 in (
        ("train", 50_000, "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"),
        ("valid", 10_000, "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"),
        ("test", 10_000, "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"),
    )
}

OCR_LETTERS_PACKED = File(
    "ocr_letters.npz",
    "ocr_letters",
    (),
    480_820,
    "ff374dbdd36bec00911718d58ff0ad7c49d1d132f5a786f5a1778283e6f4d037",
)
OCR_LETTERS_FILE = File("letter.data.gz", "ocr_letters", ("http://ai.stanford.edu/~btaskar/ocr/letter.data.gz",))
OCR_LETTERS_CONTENT = "e092587573c15bcf304a933b805c9486f91b5d6feaf015d7d9fb8b0219611c9c"
"""sha256 of the 52,152 rows (16 bytes of pixels, most significant bit first, and the label 0-25) in ascending order."""

_LAKE = "https://raw.githubusercontent.com/brendenlake/omniglot/057f034baf2ecb8530bc5710e5a23584d2a519cc/python/"
OMNIGLOT_FILES = tuple(
    File(name, "omniglot", (_LAKE + name,), git_blob=git_blob)
    for name, git_blob in (
        ("images_background.zip", "71fd167eb6fdd312049395fbd247147a4b234231"),
        ("images_evaluation.zip", "8ccde0ed1565641f1fa8c57cdc6ff634e15fc5c1"),
    )
)
OMNIGLOT28 = File("omniglot28.npz", "omniglot", ())
OMNIGLOT28_CONTENT = "32b17fc95e1d2df254bab2e046f2d1f27d5d86c76ef550090a2add48aa21150d"
"""sha256 of the 32,460 images of 28 x 28 bytes: character after character, each by its 20 drawers."""
OMNIGLOT28_PROTOCOL = "dynamic (28 x 28 by area average, split by character: not chardata.mat)"
_CHARACTERS, _BACKGROUND_CHARACTERS, _VALID_CHARACTERS, _DRAWERS = 1623, 964, 64, 20

_BURDA = "https://raw.githubusercontent.com/yburda/iwae/78a6075484bd7dd6f47a4bb9880d2295bc7a5220/datasets/OMNIGLOT/"
CHARDATA = File(
    "chardata.mat", "omniglot", (_BURDA + "chardata.mat",), git_blob="016a3536ffe5e1d38e42563a18d7a78bfaf643ec"
)
CHARDATA_PROTOCOL = "dynamic (chardata.mat of Burda et al.)"


def load(name: str, protocol: str | None = None, seed: int = 0) -> Dataset:
    """Loads a data set by its name, one of ``NAMES``; "digits" is part of this package.

    protocol: for the grey sets "dynamic" (default) or "fixed-sample", which is drawn with ``seed``; the others have one
    protocol each. Errors: ValueError for an unknown name or protocol; DataError, PermissionError and ConnectionError
    as in ``files.fetch``.
    """
    if name not in NAMES:
        raise ValueError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    known = (_PROTOCOLS[name],) if name in _PROTOCOLS else ("dynamic", "fixed-sample")
    if protocol is not None and protocol not in known:
        other = " (the files of Larochelle and Murray are the data 'binarized-mnist')" if name == "mnist" else ""
        raise ValueError(f"protocol: data {name!r} comes as {' or '.join(known)}, got {protocol!r}{other}")
    dataset = _LOADERS[name]()
    return dataset.binarised(seed) if protocol == "fixed-sample" else dataset


def _digits() -> Dataset:
    with _shipped("digits.npz") as arrays:
        grey = torch.from_numpy(arrays["images"]).view(-1, 64).float() / 16
        labels = torch.from_numpy(arrays["labels"]).long()
    # Consecutive images tend to be of one writer, so that contiguous splits keep most writers apart.
    return _dataset("digits", grey, labels, [1197, 300, 300], (8, 8), "dynamic")


def _mnist() -> Dataset:
    parts = {key: _read_idx(fetch(file)) for key, file in MNIST_FILES.items()}
    images = np.concatenate([parts["train images"], parts["test images"]]).reshape(-1, 784)
    labels = np.concatenate([parts["train labels"], parts["test labels"]])
    grey = torch.from_numpy(images).float().div_(255)
    return _dataset("mnist", grey, torch.from_numpy(labels).long(), [50_000, 10_000, 10_000], (28, 28), "dynamic")


def _binarized_mnist() -> Dataset:
    packed = find(BINARIZED_MNIST_PACKED)
    if packed is not None:
        with np.load(packed) as arrays:
            images = {split: np.unpackbits(arrays[split], axis=1, count=784) for split in SPLITS}
    else:
        images = {split: _read_amat(fetch(file), 784) for split, file in BINARIZED_MNIST_FILES.items()}
    train, valid, test = (torch.from_numpy(images[split]) for split in SPLITS)
    return Dataset("binarized-mnist", train, valid, test, (28, 28), _PROTOCOLS["binarized-mnist"])


def _ocr_letters() -> Dataset:
    packed = find(OCR_LETTERS_PACKED)
    if packed is not None:
        source = packed
        with np.load(packed) as arrays:
            rows = np.concatenate([arrays["pixels"], arrays["label"][:, None]], axis=1)
    else:
        source = fetch(OCR_LETTERS_FILE)
        rows = _read_letters(source)
    # The split of Larochelle and Murray is known as sets of images; it is stored in the ascending order of the rows.
    rows = rows[np.lexsort(rows.T[::-1])]
    actual = hashlib.sha256(rows.tobytes()).hexdigest()
    if actual != OCR_LETTERS_CONTENT:
        raise DataError(
            f"{source}: not the 52,152 OCR letters; expected content with sha256 {OCR_LETTERS_CONTENT}, got {actual}. "
            f"{LEFT_ALONE}"
        )
    with _shipped("ocr_letters_split.npz") as arrays:
        split = arrays["split"]
    shuffled = np.argsort(np.random.Philox(key=0).random_raw(len(rows)), kind="stable")
    order = shuffled[np.argsort(split[shuffled], kind="stable")]
    images = torch.from_numpy(np.unpackbits(rows[order, :16], axis=1))
    labels = torch.from_numpy(rows[order, 16]).long()
    return _dataset("ocr-letters", images, labels, [32_152, 10_000, 10_000], (16, 8), "binary")


def _omniglot() -> Dataset:
    converted = find(OMNIGLOT28)
    images = _read_omniglot28(converted) if converted is not None else _convert_omniglot()
    grey = torch.from_numpy(images.reshape(-1, 784)).float().div_(255)
    labels = torch.arange(_CHARACTERS).repeat_interleave(_DRAWERS)
    # whole characters in each split, as the official one has them: training and test share none
    background = _BACKGROUND_CHARACTERS * _DRAWERS
    held_out = _VALID_CHARACTERS * _DRAWERS
    sizes = [background - held_out, held_out, len(grey) - background]
    return _dataset("omniglot", grey, labels, sizes, (28, 28), OMNIGLOT28_PROTOCOL)


def _read_omniglot28(path: Path) -> _Bytes:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            images: _Bytes = arrays["images"]
    except Exception as error:  # numpy, zipfile and zlib let errors of many kinds through for damaged files
        raise DataError(f"{path}: damaged, or no images in it: {error}. {LEFT_ALONE}") from error
    _check_omniglot28(str(path), images)
    return images


def _convert_omniglot() -> _Bytes:
    """The images from the originals; they are kept for the next time, where the folder can be written to."""
    archives = [fetch(file) for file in OMNIGLOT_FILES]
    try:
        images = average_originals(archives)
    except ValueError as error:
        raise DataError(f"{error}. {LEFT_ALONE}") from error
    _check_omniglot28(" and ".join(map(str, archives)), images)
    folder = cache_folder() / OMNIGLOT28.folder
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / OMNIGLOT28.name, OMNIGLOT28.name) as temporary:
            np.savez_compressed(temporary, images=images)
    return images


def _check_omniglot28(source: str, images: _Bytes) -> None:
    expected = (_CHARACTERS * _DRAWERS, 28, 28)
    if images.shape != expected or images.dtype != np.uint8:
        raise DataError(f"{source}: expected images {list(expected)} of uint8, got {list(images.shape)}. {LEFT_ALONE}")
    actual = hashlib.sha256(images.tobytes()).hexdigest()
    if actual != OMNIGLOT28_CONTENT:
        raise DataError(
            f"{source}: not the images of Omniglot; expected content with sha256 {OMNIGLOT28_CONTENT}, got {actual}. "
            f"{LEFT_ALONE}"
        )


def _omniglot_chardata() -> Dataset:
    path = fetch(CHARDATA)
    try:
        train, valid, test = read_chardata(path)
    except ValueError as error:
        raise DataError(f"{path}: not the chardata.mat of Burda et al.: {error}. {LEFT_ALONE}") from error
    return Dataset("omniglot-chardata", train, valid, test, (28, 28), CHARDATA_PROTOCOL)


@contextmanager
def _shipped(name: str) -> Iterator[NpzFile]:
    with resources.files("bm_fast.data").joinpath(name).open("rb") as stream, np.load(stream) as arrays:
        yield arrays


def _dataset(
    name: str, images: Tensor, labels: Tensor, sizes: list[int], shape: tuple[int, int], protocol: str
) -> Dataset:
    train, valid, test = torch.split(images, sizes)
    return Dataset(name, train, valid, test, shape, protocol, *torch.split(labels, sizes))


def _read_idx(path: Path) -> _Bytes:
    """An IDX file of bytes: two zero bytes, type 8, the number of dimensions, their sizes (big-endian), the values."""
    with gzip.open(path) as stream:
        content = stream.read()
    n_dimensions = content[3]
    shape = np.frombuffer(content, ">u4", n_dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * n_dimensions).reshape(shape)


def _read_amat(path: Path, n_units: int) -> _Bytes:
    """Text with one image a line, its pixels 0 or 1 separated by blanks; the checksum vouches for the format."""
    return np.fromfile(path, np.uint8).reshape(-1, 2 * n_units)[:, ::2] - ord("0")


def _read_letters(path: Path) -> _Bytes:
    """Rows of 16 bytes of pixels and a label. Fields: id, letter, next id, word id, position, fold, 128 pixels."""
    try:
        with gzip.open(path, "rt", encoding="ascii") as stream:
            fields = [line.split() for line in stream]
        pixels = np.array([[int(value) for value in line[6:]] for line in fields], dtype=np.uint8)
        labels = np.array([ord(line[1]) - ord("a") for line in fields], dtype=np.uint8)
        if pixels.ndim != 2 or pixels.shape[1] != 128 or pixels.max() > 1:
            raise ValueError(f"expected 128 pixels of 0 or 1 a line, got {list(pixels.shape)}")
    except (ValueError, IndexError, TypeError, OverflowError, EOFError, OSError) as error:
        raise DataError(f"{path}: not the OCR letters: {error}. {LEFT_ALONE}") from error
    return np.concatenate([np.packbits(pixels, axis=1), labels[:, None]], axis=1)


_PROTOCOLS = {"binarized-mnist": "fixed-larochelle", "ocr-letters": "binary"}
_LOADERS: dict[str, Callable[[], Dataset]] = {
    "digits": _digits,
    "mnist": _mnist,
    "binarized-mnist": _binarized_mnist,
    "ocr-letters": _ocr_letters,
    "omniglot": _omniglot,
    "omniglot-chardata": _omniglot_chardata,
}
NAMES = tuple(_LOADERS)
