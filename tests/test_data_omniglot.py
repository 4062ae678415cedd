"""Omniglot in its two forms: the area averages of the originals, and the MATLAB file of Burda et al."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast import data

N_TRAIN, N_TEST = 1500, 7


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BM_FAST_DATA", str(tmp_path))
    return tmp_path


def write(folder: Path, **arrays: object) -> Path:
    io = pytest.importorskip("scipy.io", reason="scipy writes the MATLAB file")
    io.savemat(folder / "chardata.mat", arrays)
    return folder / "chardata.mat"


def chardata() -> dict[str, np.ndarray]:
    """Images that tell where they stood: their first pixel (top left) is the number of the image, as a share."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.random((n, 28, 28)) for name, n in (("data", N_TRAIN), ("testdata", N_TEST))}
    arrays["data"][:, 0, 0] = np.arange(N_TRAIN) / N_TRAIN
    return arrays


def as_matlab(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 1).reshape(len(images), 784).T  # pixels down the columns, column by column


def test_omniglot_has_whole_characters_in_each_split(data_folder):
    if not (data_folder / "omniglot" / "omniglot28.npz").is_file():
        pytest.skip("BM_FAST_DATA holds no omniglot/omniglot28.npz")
    omniglot = data.load("omniglot")
    assert [tuple(omniglot.split(s).shape) for s in data.SPLITS] == [(18_000, 784), (1_280, 784), (13_180, 784)]
    characters = [set(getattr(omniglot, f"{s}_labels").tolist()) for s in data.SPLITS]
    assert [len(found) for found in characters] == [900, 64, 659]
    assert len(set.union(*characters)) == 1623
    assert "not chardata.mat" in omniglot.protocol
    assert omniglot.protocol.startswith("dynamic ")
    assert omniglot.train.min() == 0
    assert omniglot.train.max() == 1
    with np.load(data_folder / "omniglot" / "images_evaluation.npz") as arrays:
        ink = 1 - arrays["images"][0, 0].astype(float)  # a box of 3.75 x 3.75 original pixels for each pixel
    fine = np.kron(ink, np.ones((4, 4))).reshape(28, 15, 28, 15).mean((1, 3))
    np.testing.assert_allclose(omniglot.test[0].numpy().reshape(28, 28), fine, atol=0.51 / 255)
    fixed = data.load("omniglot", "fixed-sample", seed=2)
    assert fixed.protocol == "fixed-sample, seed 2 (28 x 28 by area average, split by character: not chardata.mat)"


def test_omniglot_cannot_be_downloaded(folder):
    for name, file in (("omniglot", "omniglot28.npz"), ("omniglot-chardata", "chardata.mat")):
        with pytest.raises(
            FileNotFoundError, match=rf"{file} is not in {re.escape(str(folder))}/omniglot .*put it there"
        ):
            data.load(name)


def test_another_omniglot28_is_refused(folder):
    np.savez(folder / "omniglot28.npz", images=np.zeros((3, 28, 28), np.uint8))
    with pytest.raises(data.DataError, match=r"omniglot28\.npz: truncated"):
        data.load("omniglot")


def test_chardata_is_shuffled_and_split_as_in_the_paper(folder):
    images = chardata()
    write(
        folder, data=as_matlab(images["data"]), testdata=as_matlab(images["testdata"]), target=np.zeros((50, N_TRAIN))
    )
    omniglot = data.load("omniglot-chardata")
    assert [len(omniglot.split(s)) for s in data.SPLITS] == [N_TRAIN - 1345, 1345, N_TEST]
    assert (omniglot.shape, omniglot.train.dtype) == ((28, 28), torch.float32)
    assert omniglot.protocol == "dynamic (chardata.mat of Burda et al.)"
    order = np.random.RandomState(123).permutation(N_TRAIN)
    expected = images["data"][order].reshape(-1, 784).astype(np.float32)
    assert np.array_equal(torch.cat([omniglot.train, omniglot.valid]).numpy(), expected)
    assert np.array_equal(omniglot.test.numpy(), images["testdata"].reshape(-1, 784).astype(np.float32))
    # written down once: the first images of training and of validation
    assert [round(float(rows[0, 0]) * N_TRAIN) for rows in (omniglot.train, omniglot.valid)] == [708, 853]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": None}, "it holds no array 'data'"),
        ({"data": np.zeros((784, 1345))}, r"data: expected \[784, n\] with n >= 1346, got \[784, 1345\]"),
        ({"testdata": np.zeros((7, 784))}, r"testdata: expected \[784, n\] with n >= 1, got \[7, 784\]"),
        ({"testdata": np.full((784, 7), 255.0)}, "testdata: expected numbers from 0 to 1"),
        ({"testdata": np.full((784, 7), np.nan)}, "testdata: expected numbers from 0 to 1"),
        ({"testdata": np.full((784, 7), "x")}, "testdata: expected"),
    ],
)
def test_another_chardata_is_refused_and_kept(folder, change, message):
    arrays = {"data": np.zeros((784, 1400)), "testdata": np.zeros((784, 7)), **change}
    path = write(folder, **{name: array for name, array in arrays.items() if array is not None}, other=np.zeros(1))
    with pytest.raises(data.DataError, match=rf"chardata\.mat: not the chardata\.mat of Burda et al\.: {message}"):
        data.load("omniglot-chardata")
    assert path.exists()


def test_a_damaged_chardata_is_refused(folder):
    path = write(folder, data=np.zeros((784, 1400), np.uint8), testdata=np.zeros((784, 7), np.uint8))
    for content in (path.read_bytes()[:100_000], b"", b"no MATLAB file" * 100):
        path.write_bytes(content)
        with pytest.raises(
            data.DataError, match=r"chardata\.mat: not the chardata\.mat of Burda et al\.: damaged, or no"
        ):
            data.load("omniglot-chardata")
