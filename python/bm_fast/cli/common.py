"""What the commands share: where they write, and how they find models and data."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import bm_fast
from bm_fast import checkpoints, data
from bm_fast.checkpoints import CheckpointError, replacing
from bm_fast.cli.console import Console, Result, UsageError, plain
from bm_fast.data import DataError, Dataset
from bm_fast.dbm import DBM
from bm_fast.model import BoltzmannModel
from bm_fast.rbm import RBM

CHECKPOINT = "checkpoint.safetensors"
CHECKPOINTS = (CHECKPOINT, "model.safetensors", "dbm.safetensors", "dbn.safetensors")
"""The model in a folder, as ``train`` and ``vae``, the demo and the recipes call it."""
CONFIGURATION = "configuration.json"

_OF_A_RUN = re.compile(
    r"checkpoint\.safetensors|rbm\d+\.safetensors|learning_curve\.(csv|png)|filters\d*\.png"
    r"|evaluation\.json|log_weights\.(npy|png)|tempering\.png|samples\.(npy|png)"
    r"|(reconstructions|traversals|latent_map|latent_plane)\.png"
)
"""What ``train``, ``vae``, ``evaluate`` and ``sample`` write about a run, beside its configuration."""


@contextmanager
def refusing() -> Iterator[None]:
    """Makes an error of what the command line names (a model, data, a folder) one of usage: no work has begun.

    A server that does not answer is none of that.
    """
    try:
        yield
    except ConnectionError:
        raise
    except (OSError, ValueError, DataError) as error:
        raise UsageError(str(error)) from error


def left_by_a_run(folder: Path, data: str) -> list[str]:
    """Files about the run whose configuration lies in a folder; those of any other name may be the user's own.

    data: what the new run learns from, a name or a file, which is not among them.
    """
    if not (folder / CONFIGURATION).is_file():
        return []
    source = Path(data).resolve()
    return sorted(path.name for path in folder.iterdir() if _OF_A_RUN.fullmatch(path.name) and path.resolve() != source)


class Output:
    """A folder for results, which never loses an older one: files are claimed before anything is computed.

    names: of the results. stale: files of older results that go with them.
    UsageError where the folder holds results and ``overwrite`` is not asked for; it names all that would go.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        names: Collection[str],
        *,
        overwrite: bool,
        stale: Collection[str] = (),
    ) -> None:
        self.folder = Path(folder)
        older = [name for name in dict.fromkeys((*names, *sorted(stale))) if (self.folder / name).exists()]
        if not overwrite and any(name in names for name in older):
            raise UsageError(
                f"{self.folder} already holds {', '.join(older)}; choose another --output, or add --overwrite, which "
                f"removes {'this file' if len(older) == 1 else 'these files'}"
            )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot make the output folder {self.folder}: {error.strerror}") from error
        if not os.access(self.folder, os.W_OK | os.X_OK):
            raise UsageError(f"cannot write to the output folder {self.folder}; choose another --output")
        self.written: list[str] = []
        self.removed: list[str] = []

    def path(self, name: str) -> Path:
        """Path of a file that the command is about to write."""
        if name not in self.written:
            self.written.append(name)
        return self.folder / name

    def writing(self, name: str) -> AbstractContextManager[Path]:
        """A temporary path to write to; the file gets its name when it is complete, and errors leave the old one."""
        return replacing(self.path(name), name)

    def write_json(self, name: str, content: Result, stale: Collection[str] = ()) -> None:
        """Writes a file, and removes the ``stale`` ones, which belong to what it replaces.

        They go when the new content is on the disk and before it gets its name: at no moment does the new file lie
        beside a stale one, and a full disk costs neither.
        """
        with self.writing(name) as temporary:
            with temporary.open("w") as file:
                file.write(json.dumps(plain(content), indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            self.remove(stale)

    def remove(self, names: Collection[str]) -> None:
        """Removes files of older results that are there."""
        for name in sorted(names):
            path = self.folder / name
            if path.exists():
                path.unlink()
                self.removed.append(name)

    def announce(self, console: Console) -> None:
        if self.written:
            console.say(f"\nWritten to {self.folder}{os.sep}: {', '.join(self.written)}")
        gone = [name for name in self.removed if name not in self.written]
        if gone:
            console.say(f"Removed with the older results: {', '.join(gone)}")

    @property
    def files(self) -> list[str]:
        return [str(self.folder / name) for name in self.written]


def commit() -> str | None:
    """The git commit of the package, with "-dirty" where files were changed since.

    That of the checkout it runs from; of an installed copy the one it was built from, None where that is not known.
    """
    folder = Path(bm_fast.__file__).parent
    described = None
    for command in (["ls-files", "--error-unmatch", "__init__.py"], ["describe", "--always", "--dirty", "--abbrev=12"]):
        try:
            done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            built_from = folder / "commit.txt"
            return (built_from.read_text().strip() or None) if built_from.is_file() else None
        described = done.stdout.strip()
    return described


# --- models and data --------------------------------------------------------------------------------------------------


@refusing()
def load_data(source: str, protocol: str | None = None) -> Dataset:
    """A data set by its name, or a .npy or .npz file by its path; by one of its protocols, as ``data.load`` has them.

    A fixed sample is drawn with seed 0.
    """
    if source in data.NAMES:
        try:
            return data.load(source, protocol)
        except ValueError as error:
            raise UsageError(f"--{error}") from error  # "protocol: ..."
    if source.endswith((".npy", ".npz")):
        dataset = data.load_file(source)
        if protocol in (None, dataset.protocol):
            return dataset
        if (dataset.protocol, protocol) == ("dynamic", "fixed-sample"):
            return dataset.binarised()
        raise UsageError(f"--protocol: the data in {source} are {dataset.protocol}, got {protocol}")
    raise UsageError(f"data: expected one of {', '.join(data.NAMES)}, or a path to a .npy or .npz file, got {source!r}")


def spread(n: int, of: int) -> Tensor:
    """Numbers of ``n`` rows at equal distances among ``of``, whose order may say something: by class, or by writer."""
    return torch.arange(n) * of // n


@refusing()
def binary_split(dataset: Dataset, split: str, seed: int) -> tuple[Tensor, str]:
    """0/1 images of a split, and the protocol by which they are binary."""
    images = dataset.split(split)
    if images.dtype is torch.uint8:
        return images, dataset.protocol
    binary = dataset.binarised(seed)
    return binary.split(split), binary.protocol


@dataclass(frozen=True)
class Trained:
    """A model from a checkpoint file, and what ``train`` wrote beside it (empty where nothing lies there)."""

    model: BoltzmannModel
    path: Path
    configuration: Result

    @property
    def shape(self) -> tuple[int, int] | None:
        """Shape of an image of the data that the model was trained on."""
        shape = self.configuration.get("data", {}).get("shape")
        return None if shape is None else (int(shape[0]), int(shape[1]))


@refusing()
def open_checkpoint(source: str) -> tuple[Path, Result]:
    """Path and content of a checkpoint file, or of the one in the folder of a run."""
    path = Path(source)
    if path.is_dir():
        found = next((path / name for name in CHECKPOINTS if (path / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"no {', '.join(CHECKPOINTS[:-1])} or {CHECKPOINTS[-1]} in {path}")
        path = found
    return path, checkpoints.load(path)


@refusing()
def load_model(source: str, device: torch.device | str = "cpu") -> Trained:
    """An RBM or a DBM from a checkpoint file, or from the folder of a run; others are refused with what takes them."""
    path, held = open_checkpoint(source)
    for kind in (RBM, DBM):
        if kind.name in held:
            model = kind.load(path, device)
            try:
                model.machine()
            except ValueError as error:
                raise CheckpointError(f"{path}: the model cannot be run: {error}") from error
            return Trained(model, path, read_configuration(path.parent))
    for name, (what, instead) in _OTHER_KINDS.items():
        if name in held:
            raise CheckpointError(f"{path} holds {what}, and this command takes RBMs and DBMs; {instead}")
    raise CheckpointError(f"{str(path)!r} holds no rbm and no dbm, only {sorted(held)}")


_OTHER_KINDS = {
    "vae": (
        "an autoencoder",
        "bm-fast vae --resume RUN measures and draws that of a run again, bm-fast compare measures any",
    ),
    "dbn": ("a belief net", "docs/belief-nets.md says how it is measured and sampled"),
}


@refusing()
def read_configuration(folder: Path) -> Result:
    """What ``train`` wrote about a run; empty where there is none."""
    path = folder / CONFIGURATION
    if not path.is_file():
        return {}
    try:
        configuration = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: expected the JSON that train wrote: {error}") from error
    if not isinstance(configuration, dict):
        raise ValueError(f"{path}: expected the JSON that train wrote, got a {type(configuration).__name__}")
    return configuration
