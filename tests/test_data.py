"""Data sets: contents of the public files, the shipped digits, binarisation, and files of the user's own."""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast import data
from bm_fast.data import sources

FOLDER = os.environ.get("BM_FAST_DATA")


def needs(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        FOLDER is None or not (Path(FOLDER) / folder).is_dir(),
        reason=f"BM_FAST_DATA names no folder with {folder}/",
    )


def test_digits_ship_with_the_package():
    digits = data.load("digits")
    assert [len(digits.split(s)) for s in data.SPLITS] == [1197, 300, 300]
    assert digits.train.dtype is torch.float32
    assert (digits.shape, digits.protocol, digits.n_units) == ((8, 8), "dynamic", 64)
    levels = torch.cat([digits.split(s) for s in data.SPLITS]) * 16
    assert torch.equal(levels, levels.round())
    assert levels.max() == 16
    assert levels.sum() == 561_718  # of the 1,797 images as scikit-learn distributes them
    assert digits.train_labels is not None
    assert digits.train_labels[:10].tolist() == list(range(10))


@needs("mnist")
def test_mnist():
    mnist = data.load("mnist")
    assert [tuple(mnist.split(s).shape) for s in data.SPLITS] == [(50_000, 784), (10_000, 784), (10_000, 784)]
    assert mnist.train_labels is not None
    assert mnist.test_labels is not None
    assert mnist.train_labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    assert mnist.test_labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train.min() == 0
    assert mnist.train.max() == 1
    assert float(mnist.test.mean()) == pytest.approx(33.791 / 255, abs=1e-4)


@needs("binarized_mnist")
def test_binarized_mnist():
    dataset = data.load("binarized-mnist")
    assert [tuple(dataset.split(s).shape) for s in data.SPLITS] == [(50_000, 784), (10_000, 784), (10_000, 784)]
    assert dataset.protocol == "fixed-larochelle"
    assert dataset.train.dtype is torch.uint8
    assert dataset.train.max() == 1


@needs("binarized_mnist")
def test_binarized_mnist_from_the_original_text(tmp_path, monkeypatch):
    packed = data.load("binarized-mnist")
    for split, file in sources.BINARIZED_MNIST_FILES.items():
        images = packed.split(split).numpy()
        text = np.full((len(images), 2 * 784), ord(" "), np.uint8)
        text[:, ::2] = images + ord("0")
        text[:, -1] = ord("\n")
        (tmp_path / file.name).write_bytes(text.tobytes())  # flat: without the sub-folder
    monkeypatch.setenv("BM_FAST_DATA", str(tmp_path))
    original = data.load("binarized-mnist")
    for split in data.SPLITS:
        assert torch.equal(original.split(split), packed.split(split))


@needs("ocr_letters")
def test_ocr_letters():
    letters = data.load("ocr-letters")
    assert [tuple(letters.split(s).shape) for s in data.SPLITS] == [(32_152, 128), (10_000, 128), (10_000, 128)]
    assert (letters.shape, letters.protocol) == ((16, 8), "binary")
    assert FOLDER is not None
    with np.load(Path(FOLDER) / "ocr_letters" / "ocr_letters.npz") as arrays:
        for i, split in enumerate(data.SPLITS):
            expected = np.unpackbits(arrays["pixels"], axis=1)[arrays["larochelle_split"] == i]
            order = np.lexsort(expected.T), np.lexsort(letters.split(split).numpy().T)
            assert np.array_equal(expected[order[0]], letters.split(split).numpy()[order[1]])


@needs("ocr_letters")
def test_ocr_letters_from_the_original_text(tmp_path, monkeypatch):
    assert FOLDER is not None
    with np.load(Path(FOLDER) / "ocr_letters" / "ocr_letters.npz") as arrays:
        pixels, labels = np.unpackbits(arrays["pixels"], axis=1), arrays["label"]
    lines = [
        f"{i + 1}\t{chr(97 + label)}\t-1\t1\t1\t0\t" + "\t".join("01"[p] for p in row) + "\t\n"
        for i, (row, label) in enumerate(zip(pixels.tolist(), labels.tolist(), strict=True))
    ]
    packed = data.load("ocr-letters")
    monkeypatch.setenv("BM_FAST_DATA", str(tmp_path))
    path = tmp_path / "letter.data.gz"
    path.write_bytes(gzip.compress("".join(reversed(lines)).encode(), 1))  # the order of the file does not matter
    original = data.load("ocr-letters")
    for split in data.SPLITS:
        assert torch.equal(original.split(split), packed.split(split))
    path.write_bytes(gzip.compress("".join(lines[1:]).encode(), 1))
    with pytest.raises(data.DataError, match=r"letter\.data\.gz: not the 52,152 OCR letters; expected content"):
        data.load("ocr-letters")
    path.write_bytes(gzip.compress(b"1\ta\t2\t3\n"))
    with pytest.raises(data.DataError, match=r"letter\.data\.gz: not the OCR letters"):
        data.load("ocr-letters")
    path.write_bytes(gzip.compress("".join(lines).encode(), 1)[:1000])
    with pytest.raises(data.DataError, match=r"letter\.data\.gz: not the OCR letters"):
        data.load("ocr-letters")
    assert path.exists()


@pytest.mark.parametrize("name", ["nist", "", "MNIST", 7])
def test_unknown_name_lists_the_names(name):
    with pytest.raises(
        ValueError,
        match=r"name: expected one of digits, mnist, binarized-mnist, ocr-letters, omniglot, omniglot-chardata, got",
    ):
        data.load(name)


def test_protocols():
    assert data.load("digits", "dynamic").train.dtype is torch.float32
    fixed = data.load("digits", "fixed-sample", seed=3)
    assert fixed.protocol == "fixed-sample, seed 3"
    assert fixed.train.dtype is torch.uint8
    with pytest.raises(ValueError, match=r"protocol: data 'digits' comes as dynamic or fixed-sample, got 'fixed"):
        data.load("digits", "fixed-larochelle")
    with pytest.raises(ValueError, match=r"got 'fixed-larochelle' \(the files of .* are the data 'binarized-mnist'\)"):
        data.load("mnist", "fixed-larochelle")
    with pytest.raises(ValueError, match="protocol: data 'ocr-letters' comes as binary, got 'dynamic'"):
        data.load("ocr-letters", "dynamic")
    with pytest.raises(ValueError, match="binary already"):
        fixed.binarised()


def test_validation_rows_join_those_of_training():
    digits = data.load("digits")
    joined = digits.with_validation()
    assert torch.equal(joined.train[len(digits.train) :], digits.valid)
    assert torch.equal(joined.train_labels, torch.cat([digits.train_labels, digits.valid_labels]))
    assert joined.valid is None is joined.valid_labels
    with pytest.raises(ValueError, match="no valid split"):
        joined.with_validation()


def test_split_errors():
    with pytest.raises(ValueError, match="split: expected one of train, valid, test, got 'tst'"):
        data.load("digits").split("tst")


def test_binarise_is_fixed_by_its_seed():
    grey = data.load("digits").train
    first = data.binarise(grey, seed=1)
    # Written down once: the sample must never change, for likelihoods on it to stay comparable.
    expected = "238e0be37ad29ebba27969317aeb12701c4c6b5a32c4de070e4950465cd621e3"
    assert hashlib.sha256(first.numpy().tobytes()).hexdigest() == expected
    assert torch.equal(first[:100], data.binarise(grey[:100], seed=1))
    assert not torch.equal(first, data.binarise(grey, seed=2))
    assert not torch.equal(first, data.binarise(grey, seed=1, stream=1))
    assert torch.equal(data.load("digits", "fixed-sample", seed=1).train, first)


def test_binarise_has_the_grey_levels_as_probabilities():
    levels = torch.linspace(0, 1, 17)
    sample = data.binarise(levels.expand(20_000, 17).contiguous(), seed=0).double().mean(0)
    assert sample[0] == 0
    assert sample[-1] == 1
    # 15 means of 20,000 draws; fewer than one seed in 100,000 exceeds 5 standard errors
    error = (sample - levels).abs() / (levels * (1 - levels) / 20_000).sqrt()
    assert error[1:-1].max() < 5


@pytest.mark.parametrize(
    ("grey", "seed", "message"),
    [
        (torch.tensor([[0.5, float("nan")]]), 0, "values from 0 to 1"),
        (torch.tensor([[0.5, 1.5]]), 0, "values from 0 to 1, got 0.5 to 1.5"),
        (torch.tensor([[-0.1]]), 0, "values from 0 to 1"),
        (torch.zeros(2, 2, dtype=torch.float64), 0, "expected float32"),
        (torch.zeros(4), 0, r"expected float32 \[n, units\], got torch.float32 \[4\]"),
        (torch.zeros(2, 2), -1, "seed: expected 0 to"),
    ],
)
def test_binarise_errors(grey, seed, message):
    with pytest.raises(ValueError, match=message):
        data.binarise(grey, seed)


def test_own_npy(tmp_path):
    rng = np.random.default_rng(0)
    binary = rng.integers(0, 2, (5, 4, 3)).astype(np.uint8)
    np.save(tmp_path / "a.npy", binary)
    dataset = data.load_file(tmp_path / "a.npy")
    assert torch.equal(dataset.train, torch.from_numpy(binary.reshape(5, 12)))
    assert (dataset.name, dataset.shape, dataset.protocol, dataset.test) == ("a.npy", (4, 3), "binary", None)
    np.save(tmp_path / "b.npy", binary.reshape(5, 12).astype(bool))
    assert torch.equal(data.load_file(str(tmp_path / "b.npy")).train, dataset.train)
    grey = np.asfortranarray(rng.random((5, 7)))
    np.save(tmp_path / "c.npy", grey)
    dataset = data.load_file(tmp_path / "c.npy")
    assert (dataset.shape, dataset.protocol) == (None, "dynamic")
    assert np.array_equal(dataset.train.numpy(), grey.astype(np.float32))
    with pytest.raises(ValueError, match=r"split: data 'c\.npy' has no test split"):
        dataset.split("test")
    assert dataset.binarised(0).valid is None


def test_own_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, train=np.ones((4, 2, 2), np.float32), test=np.zeros((3, 4), np.float32), test_labels=np.arange(3))
    dataset = data.load_file(path)
    assert dataset.shape == (2, 2)
    assert dataset.valid is None
    assert dataset.test_labels is not None
    assert dataset.test_labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 2))}, "expected an array 'train' and others out of train, valid, test, train_labels"),
        ({"train": np.zeros((2, 2)), "y": np.zeros(2)}, "got train, y"),
        (
            {"train": np.zeros((0, 4))},
            r"train: expected \[n, units\] or \[n, rows, columns\].*, got \[0, 4\]",
        ),
        ({"train": np.zeros(4)}, r"got \[4\]"),
        (
            {"train": np.full((2, 2), 255, np.uint8)},
            "values 0 or 1; divide grey levels by 255, got 255 to 255",
        ),
        ({"train": np.full((2, 2), np.nan)}, "expected values from 0 to 1, got nan to nan"),
        ({"train": np.full((2, 2), np.inf)}, "expected values from 0 to 1"),
        ({"train": np.full((2, 2), -1e-9)}, "expected values from 0 to 1"),
        ({"train": np.zeros((2, 2), np.int64)}, "expected bool, uint8, float32 or float64, got int64"),
        ({"train": np.zeros((2, 2), complex)}, "got complex128"),
        ({"train": np.array([["a", "b"]])}, "got <U1"),
        ({"train": np.zeros((2, 3)), "test": np.zeros((2, 4))}, "test: expected torch.float32 with 3 units"),
        ({"train": np.zeros((2, 3)), "test": np.zeros((2, 3), np.uint8)}, "got torch.uint8 with 3"),
        ({"train": np.zeros((2, 3)), "train_labels": np.zeros(3, int)}, "train_labels: expected 2 whole numbers"),
        ({"train": np.zeros((2, 3)), "train_labels": np.zeros(2)}, "expected 2 whole numbers, got float64"),
        ({"train": np.zeros((2, 3)), "valid_labels": np.zeros(2, int)}, "valid_labels: labels without images"),
    ],
)
def test_own_file_errors(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=rf"a\.npz.*{message}"):
        data.load_file(tmp_path / "a.npz")


def test_own_file_that_is_damaged_pickled_missing_or_of_another_kind(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((100, 100)))
    whole = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(whole[:5000])
    np.savez(tmp_path / "b.npz", train=np.zeros((100, 100)))
    (tmp_path / "b.npz").write_bytes((tmp_path / "b.npz").read_bytes()[:5000])
    (tmp_path / "c.npy").write_bytes(b"")
    (tmp_path / "d.npy").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "e.npz").write_bytes(whole)  # one array under the name of an archive
    np.save(tmp_path / "f.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "h.npz", train=np.array([{}], dtype=object))
    for name in ("a.npy", "b.npz", "c.npy", "d.npy", "e.npz", "f.npy", "h.npz"):
        with pytest.raises(ValueError, match=rf"{name}: damaged, or not a numpy file of plain numbers"):
            data.load_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"g\.npy: no such file"):
        data.load_file(tmp_path / "g.npy")
    with pytest.raises(ValueError, match=r"expected a \.npy or \.npz file"):
        data.load_file(tmp_path / "g.csv")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_own_file_with_any_damaged_byte_is_loaded_or_refused(tmp_path, suffix):
    """Damage of the pixels alone cannot be seen in a .npy; all else is refused in the words of the loader."""
    path = tmp_path / f"own{suffix}"
    rows = np.random.default_rng(0).random((60, 20)) < 0.5
    if suffix == ".npy":
        np.save(path, rows)
    else:
        np.savez_compressed(path, train=rows)
    whole, refused = path.read_bytes(), 0
    for place in range(min(len(whole), 400)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5A]) + whole[place + 1 :])
        try:
            data.load_file(path)
        except ValueError as error:
            refused += str(path) in str(error)
    assert refused > 20


def test_a_file_of_another_kind_is_not_taken_for_a_pickle(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"a\.npy: .*: the content is neither that of a \.npy nor that of a \.npz$"):
        data.load_file(tmp_path / "a.npy")


def test_own_npz_that_is_called_npy_is_refused(tmp_path):
    with (tmp_path / "a.npy").open("wb") as stream:
        np.savez(stream, train=np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match=r"a\.npy: damaged, or not a numpy file of plain numbers: .* \.npz"):
        data.load_file(tmp_path / "a.npy")
