"""Finding, verifying and downloading data files, against a server on this machine."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast import data
from bm_fast.data import files, sources

CONTENT = b"some bytes" * 100


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def server(folder: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_address[1]}/"
        finally:
            httpd.shutdown()
            thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BM_FAST_DATA", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


@pytest.fixture
def address(tmp_path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    (tmp_path / "www" / "thing.bin").write_bytes(CONTENT)
    with server(tmp_path / "www") as base:
        yield base


def published(*urls: str) -> files.File:
    return files.File("thing.bin", "things", urls, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_default_folder_is_that_of_the_operating_system(monkeypatch):
    monkeypatch.delenv("BM_FAST_DATA", raising=False)
    assert data.cache_folder().name == "bm-fast"
    monkeypatch.setenv("BM_FAST_DATA", "~/somewhere")
    assert data.cache_folder() == Path.home() / "somewhere"


def test_downloads_once_and_uses_the_file_afterwards(cache, address):
    path = files.fetch(published(address + "thing.bin"))
    assert path == cache / "things" / "thing.bin"
    assert path.read_bytes() == CONTENT
    assert files.fetch(published("http://127.0.0.1:9/thing.bin")) == path  # no second download


@pytest.mark.parametrize("place", ["thing.bin", "things/thing.bin"])
def test_uses_a_file_that_is_there_flat_or_in_its_sub_folder(cache, place):
    (cache / place).parent.mkdir(parents=True)
    (cache / place).write_bytes(CONTENT)
    assert files.fetch(published("http://127.0.0.1:9/thing.bin")) == cache / place


def test_tries_the_next_address(cache, address):
    assert files.fetch(published(address + "missing.bin", address + "thing.bin")).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "what"), [(CONTENT[:-1], "truncated, 999 of 1,000 bytes"), (CONTENT[::-1], "not the published")]
)
def test_another_file_under_that_name_is_named_and_kept(cache, address, content, what):
    path = cache / "things" / "thing.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    expected, actual = hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(content).hexdigest()
    with pytest.raises(
        data.DataError, match=rf"thing\.bin: {what}.*expected sha256 {expected}, got {actual}.*left as it is"
    ):
        files.fetch(published(address + "thing.bin"))
    assert path.read_bytes() == content


def test_wrong_bytes_from_a_server_are_not_kept(cache, address, tmp_path):
    (tmp_path / "www" / "thing.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(data.DataError, match=r"thing\.bin: other bytes than the published ones came"):
        files.fetch(published(address + "thing.bin"))
    assert [p for p in cache.rglob("*") if p.is_file()] == []


def test_a_file_that_a_git_repository_lists(cache, address, tmp_path):
    """The empty blob and "hello\\n" have the names that every repository gives them."""
    for name, content, git_blob in (
        ("empty", b"", "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"),
        ("hello", b"hello\n", "ce013625030ba8dba906f756967f9e9ca394464a"),
    ):
        (tmp_path / "www" / name).write_bytes(content)
        listed = files.File(name, "things", (address + name,), git_blob=git_blob)
        assert files.fetch(listed).read_bytes() == content
        other = replace(listed, name=f"other-{name}", git_blob="0" * 40)
        with pytest.raises(
            data.DataError, match=r"other bytes than the published ones came; nothing was kept.*got " + git_blob
        ):
            files.fetch(other)
        assert not (cache / "things" / f"other-{name}").exists()


def test_no_network(cache):
    with pytest.raises(ConnectionError, match=r"thing\.bin is not in .*127\.0\.0\.1:9.*put the file into .*things"):
        files.fetch(published("http://127.0.0.1:9/thing.bin"))


def test_a_folder_that_gets_no_file_is_not_left_behind(cache):
    with pytest.raises(ConnectionError, match=r"thing\.bin is not in .*cache, which is not there, and could not be"):
        files.fetch(published("http://127.0.0.1:9/thing.bin"))
    assert not cache.exists()
    cache.mkdir()
    with pytest.raises(ConnectionError, match=r"thing\.bin is not in .*cache and could not be"):
        files.fetch(published("http://127.0.0.1:9/thing.bin"))
    assert list(cache.iterdir()) == []


def test_a_mistyped_folder_is_refused_and_not_made(tmp_path, monkeypatch, address):
    monkeypatch.setenv("BM_FAST_DATA", str(tmp_path / "dtaa" / "sets"))
    with pytest.raises(FileNotFoundError, match=r"BM_FAST_DATA: expected a folder.* got '.*sets'; there is no .*dtaa"):
        files.fetch(published(address + "thing.bin"))
    assert not (tmp_path / "dtaa").exists()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BM_FAST_DATA", "new")  # in the current folder, which exists
    assert files.fetch(published(address + "thing.bin")).read_bytes() == CONTENT


def test_folder_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("BM_FAST_DATA", str(tmp_path / "file"))
    with pytest.raises(OSError, match=r"cannot write to .*things .*set BM_FAST_DATA"):
        files.fetch(published("http://127.0.0.1:9/thing.bin"))


def test_folder_without_write_permission(monkeypatch):
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    monkeypatch.setenv("BM_FAST_DATA", str(folder))
    user = os.geteuid()
    try:
        if user == 0:  # root may write anywhere
            os.seteuid(65534)
        with pytest.raises(PermissionError, match=r"cannot write to .*things .*set BM_FAST_DATA to a folder that you"):
            files.fetch(published("http://127.0.0.1:9/thing.bin"))
    finally:
        os.seteuid(user)
        folder.rmdir()


def test_mnist_from_a_server(cache, tmp_path, address, monkeypatch):
    """A whole loader by way of the network, on files of the right format with checksums of their own."""
    rng = np.random.default_rng(0)
    stand_in = {}
    for key, file in sources.MNIST_FILES.items():
        n = 60_000 if key.startswith("train") else 10_000
        shape = (n, 28, 28) if key.endswith("images") else (n,)
        header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
        values = np.zeros(shape, np.uint8)
        values[:100] = rng.integers(0, 10, values[:100].shape)
        content = gzip.compress(header + values.tobytes(), 1, mtime=0)
        (tmp_path / "www" / file.name).write_bytes(content)
        stand_in[key] = replace(
            file, urls=(address + file.name,), size=None, sha256=hashlib.sha256(content).hexdigest()
        )
        if key == "test labels":
            expected = torch.from_numpy(values).long()
    monkeypatch.setattr(sources, "MNIST_FILES", stand_in)
    mnist = data.load("mnist")
    assert sorted(p.name for p in (cache / "mnist").iterdir()) == sorted(f.name for f in stand_in.values())
    assert mnist.test_labels is not None
    assert torch.equal(mnist.test_labels, expected)
    assert float(mnist.train.max()) == pytest.approx(9 / 255)
