"""Omniglot in its two forms: the area averages of the originals, and the MATLAB file of Burda et al."""

from __future__ import annotations

import hashlib
import io
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast import data
from bm_fast.data import sources

N_TRAIN, N_TEST = 1500, 7


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where other files than the published ones are taken, and nothing comes from outside."""
    monkeypatch.setenv("BM_FAST_DATA", str(tmp_path))
    closed = ("http://127.0.0.1:9/",)
    monkeypatch.setattr(sources, "CHARDATA", replace(sources.CHARDATA, urls=closed, git_blob=None))
    files = tuple(replace(file, urls=closed, git_blob=None) for file in sources.OMNIGLOT_FILES)
    monkeypatch.setattr(sources, "OMNIGLOT_FILES", files)
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


def averages(paper: np.ndarray) -> np.ndarray:
    """Grey levels of boxes of 3.75 x 3.75 pixels, by repeating each pixel 4 x 4 times; white paper is True."""
    fine = np.kron(~paper, np.ones((4, 4)))
    return np.round(255 * fine.reshape(28, 15, 28, 15).mean((1, 3))).astype(np.uint8)


@pytest.fixture
def drawings(folder, monkeypatch) -> np.ndarray:
    """Originals of 3 characters by 2 drawers in two archives, whose paths do not sort as the numbers do."""
    image = pytest.importorskip("PIL.Image", reason="pillow writes PNG files of one bit")
    papers = np.random.default_rng(0).random((6, 105, 105)) < 0.8
    papers[0] = True
    places = {"images_background": {1: "Zulu/character01", 2: "Alpha/character01"}, "images_evaluation": {3: "Beta/c"}}
    for archive, characters in places.items():
        with zipfile.ZipFile(folder / f"{archive}.zip", "w") as file:
            for number, place in characters.items():
                for drawer in (2, 1):
                    png = io.BytesIO()
                    image.fromarray(papers[2 * number + drawer - 3]).save(png, "PNG")
                    file.writestr(f"{archive}/{place}/{number:04}_{drawer:02}.png", png.getvalue())
    for name, value in (("_CHARACTERS", 3), ("_DRAWERS", 2), ("_BACKGROUND_CHARACTERS", 2), ("_VALID_CHARACTERS", 1)):
        monkeypatch.setattr(sources, name, value)
    expected = np.stack([averages(paper) for paper in papers])
    monkeypatch.setattr(sources, "OMNIGLOT28_CONTENT", hashlib.sha256(expected.tobytes()).hexdigest())
    return expected


def test_omniglot_is_converted_from_the_originals_and_kept(folder, drawings):
    for _ in range(2):
        omniglot = data.load("omniglot")
        images = torch.cat([omniglot.split(split) for split in data.SPLITS])
        assert np.array_equal((images * 255).round().numpy().astype(np.uint8).reshape(-1, 28, 28), drawings)
        assert [getattr(omniglot, f"{split}_labels").tolist() for split in data.SPLITS] == [[0, 0], [1, 1], [2, 2]]
        for archive in folder.glob("*.zip"):
            archive.unlink()  # the second time from what was kept
    assert [str(path.relative_to(folder)) for path in folder.rglob("*.*")] == ["omniglot/omniglot28.npz"]


def test_other_originals_are_refused_and_nothing_is_kept(folder, drawings, monkeypatch):
    monkeypatch.setattr(sources, "OMNIGLOT28_CONTENT", "0" * 64)
    with pytest.raises(
        data.DataError, match=r"evaluation\.zip: not the images of Omniglot; expected content with sha256 0"
    ):
        data.load("omniglot")
    for content, message in (
        (b"no archive", "damaged, or no archive of drawings"),
        (b"PK\x05\x06" + bytes(18), r"expected images \[6, 28, 28\] of uint8, got \[4, 28, 28\]"),
    ):
        (folder / "images_evaluation.zip").write_bytes(content)
        with pytest.raises(data.DataError, match=message):
            data.load("omniglot")
    (folder / "images_background.zip").write_bytes(b"PK\x05\x06" + bytes(18))  # an empty archive
    with pytest.raises(data.DataError, match=r"images_background\.zip and .*: no PNG files"):
        data.load("omniglot")
    assert not (folder / "omniglot" / "omniglot28.npz").exists()


def test_a_folder_that_cannot_be_written_to_costs_nothing_but_time(folder, drawings):
    (folder / "omniglot").write_bytes(b"")  # a file where the sub-folder would be
    assert len(data.load("omniglot").test) == 2


def test_omniglot_without_a_network(folder):
    for name, file in (("omniglot", "images_background.zip"), ("omniglot-chardata", "chardata.mat")):
        with pytest.raises(ConnectionError, match=rf"{file} is not in .*put the file into .*omniglot yourself"):
            data.load(name)


def test_another_omniglot28_is_refused(folder):
    path = folder / "omniglot28.npz"
    for arrays, message in (
        ({"images": np.zeros((3, 28, 28), np.uint8)}, r"expected images \[32460, 28, 28\] of uint8, got \[3, 28, 28\]"),
        (
            {"images": np.zeros((32460, 28, 28), np.uint8)},
            "not the images of Omniglot; expected content with sha256 32b",
        ),
        ({"pictures": np.zeros(3)}, "damaged, or no images in it"),
    ):
        np.savez_compressed(path, **arrays)
        with pytest.raises(data.DataError, match=rf"omniglot28\.npz: {message}"):
            data.load("omniglot")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(data.DataError, match=r"omniglot28\.npz: damaged"):
        data.load("omniglot")
    assert path.exists()


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


def test_another_chardata_than_the_published_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("BM_FAST_DATA", str(tmp_path))
    (tmp_path / "chardata.mat").write_bytes(b"something else")
    with pytest.raises(data.DataError, match="not the published file; expected git blob 016a3536ffe5"):
        data.load("omniglot-chardata")


def test_a_damaged_chardata_is_refused(folder):
    path = write(folder, data=np.zeros((784, 1400), np.uint8), testdata=np.zeros((784, 7), np.uint8))
    for content in (path.read_bytes()[:100_000], b"", b"no MATLAB file" * 100):
        path.write_bytes(content)
        with pytest.raises(
            data.DataError, match=r"chardata\.mat: not the chardata\.mat of Burda et al\.: damaged, or no"
        ):
            data.load("omniglot-chardata")
