"""Where data files lie, and how they get there: found and verified, or downloaded with their checksum.

``BM_FAST_DATA`` names the folder; without it, it is the cache folder that the operating system keeps for programs. A
file is looked for in that folder and in its data set's sub-folder. One that is there is never overwritten or deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

LEFT_ALONE = "The file was left as it is: move it away to download it again"


class DataError(RuntimeError):
    """A data file is damaged, is not the one it should be, or cannot be had."""


@dataclass(frozen=True)
class File:
    """A published file, with the checksum of its bytes where one is known: SHA-256, or the name that git gives to them.

    git_blob: SHA-1 of "blob", the size and the bytes, as the repository lists it that publishes the file.
    """

    name: str
    folder: str
    urls: tuple[str, ...]
    size: int | None = None
    sha256: str | None = None
    git_blob: str | None = None


def cache_folder() -> Path:
    """``BM_FAST_DATA`` where it is set, else the operating system's cache folder for bm-fast."""
    chosen = os.environ.get("BM_FAST_DATA")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("bm-fast"))


def find(file: File) -> Path | None:
    """Where the file lies, verified; None where it is missing. DataError where it is another file or damaged."""
    for path in (cache_folder() / file.folder / file.name, cache_folder() / file.name):
        if path.is_file():
            verify(path, file)
            return path
    return None


def verify(path: Path, file: File) -> None:
    """DataError, naming the file and both checksums, unless its bytes are the published ones. Leaves the file alone."""
    wrong = _difference(path, file)
    if wrong is not None:
        raise DataError(f"{path}: {wrong}. {LEFT_ALONE}")


def _difference(path: Path, file: File) -> str | None:
    """How the bytes in ``path`` differ from the published ones; None where they do not, or no checksum is known."""
    size = path.stat().st_size
    if file.sha256 is not None:
        kind, expected, digest = "sha256", file.sha256, hashlib.sha256()
    elif file.git_blob is not None:
        kind, expected, digest = "git blob", file.git_blob, hashlib.sha1(b"blob %d\0" % size)
    else:
        return None
    with path.open("rb") as stream:
        actual = hashlib.file_digest(stream, lambda: digest).hexdigest()
    if actual == expected:
        return None
    short = file.size is not None and size < file.size
    what = f"truncated, {size:,} of {file.size:,} bytes" if short else "not the published file"
    return f"{what}; expected {kind} {expected}, got {actual}"


def _refuse_mistyped() -> None:
    """FileNotFoundError where ``BM_FAST_DATA`` names a folder in a place that does not exist: most likely a slip.

    A new folder in a place that exists is made, as a cache is.
    """
    chosen, folder = os.environ.get("BM_FAST_DATA"), cache_folder()
    if chosen and not folder.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"BM_FAST_DATA: expected a folder, or a new one in a folder that exists, got {chosen!r}; there is no "
            f"{folder.absolute().parent}"
        )


def fetch(file: File) -> Path:
    """Path of the verified file, downloaded if it is not there.

    FileNotFoundError for a ``BM_FAST_DATA`` in no folder, DataError for wrong bytes, PermissionError or another OSError
    where the folder cannot be written, ConnectionError where no address answers; every message says what to do.
    """
    path = find(file)
    if path is not None:
        return path
    _refuse_mistyped()
    folder = cache_folder() / file.folder
    made = [path for path in (folder, cache_folder()) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise type(error)(
            f"cannot write to {folder} ({error.strerror}); set BM_FAST_DATA to a folder that you can write to, "
            f"or that holds {file.name}"
        ) from error
    import pooch  # here and not above: with requests, it takes a third of a second
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    http = pooch.HTTPDownloader(progressbar=True)

    def download(url: str, temporary: str, caller: object) -> None:
        """Before the file gets its name: an error leaves nothing behind."""
        http(url, temporary, caller)
        wrong = _difference(Path(temporary), file)
        if wrong is not None:
            raise DataError(f"{url}: other bytes than the published ones came; nothing was kept: {wrong}")

    failures = []
    for url in file.urls:
        try:
            return Path(pooch.retrieve(url, known_hash=None, fname=file.name, path=folder, downloader=download))
        except requests.exceptions.RequestException as error:
            failures.append(f"{url}: {type(error).__name__}")
    for path in made:  # a folder that got no file is no use to anyone
        with contextlib.suppress(OSError):
            path.rmdir()
    absent = "" if cache_folder().is_dir() else ", which is not there,"
    raise ConnectionError(
        f"{file.name} is not in {cache_folder()}{absent} and could not be downloaded ({'; '.join(failures)}). "
        f"Without a network, put the file into {folder} yourself, or set BM_FAST_DATA to a folder that holds it"
    )
