"""Commands, recipes and training with ``--device cuda``: on a device of which the processor knows nothing.

Without a GPU the device is that of ``elsewhere``, whose tensors do not mix with the processor's; kernels are those of
the processor or, in one test, emulated ones of a GPU. On a GPU the same tests run there. Figures of the processor are
what any of them has to give.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from bm_fast import DBM, RBM, checkpoints, ops
from bm_fast.cli import devices, main
from bm_fast.data import load_file
from bm_fast.estimation import mean_log_likelihood, mean_variational_bound
from bm_fast.ops import backends, cuda
from bm_fast.training import captured, pretrain, pretrain_dbn
from bm_fast.vae import VAE, DReG, Trainer, log_likelihood
from cuda_devices import emulation

__all__ = ["emulation"]  # a fixture

SIDE, N_CLASSES = 4, 3
TINY = ["--hidden", "8", "--epochs", "1", "--batch-size", "20", "--chains", "10"]
TINY_DEEP = ["--model", "dbm", "--hidden", "6", "4", "--epochs", "1", "--pretraining-epochs", "1"]
TINY_DEEP += ["--batch-size", "20", "--chains", "10", "--sweeps", "1", "--iterations", "3"]
TINY_VAE = ["--layers", "8-4", "5-2", "--k", "3", "--epochs", "4", "--batch-size", "20", "--test-k", "20"]


@dataclass(frozen=True)
class Place:
    """Where ``--device cuda`` leads. is_exact: whether torch's own operations have the processor's bits there."""

    device: torch.device
    is_exact: bool

    def assert_close(self, got: Tensor, wanted: Tensor, *, exact: bool) -> None:
        if self.is_exact and exact:
            assert torch.equal(got.cpu(), wanted), f"{(got.cpu().double() - wanted.double()).abs().max()} apart"
        else:
            torch.testing.assert_close(got.cpu(), wanted, rtol=1e-5, atol=1e-5)


@pytest.fixture(params=["elsewhere", "device"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Place:
    if request.param == "device":
        reason = ops.why_not(torch.device("cuda", 0))
        if reason is not None:
            pytest.skip(f"GPU: {reason}")
        return Place(torch.device("cuda", 0), is_exact=False)
    # not on a GPU, beside which torch would take it for a second accelerator
    elsewhere = pytest.importorskip("elsewhere", reason="torch knows no devices made in Python", exc_type=ImportError)
    if request.param == "emulated":
        module = request.getfixturevalue("emulation")
        monkeypatch.setattr(cuda, "serves", elsewhere.BACKEND.serves)
        monkeypatch.setattr(cuda, "module", lambda device: module)
        monkeypatch.setattr(cuda, "stream", lambda device: 0)
        monkeypatch.setattr(captured, "record", lambda work, device: work)
        monkeypatch.setenv("SIMT_COMPUTE_CAPABILITY", "80")
    else:
        monkeypatch.setattr(backends, "cuda", elsewhere.BACKEND)
    monkeypatch.setattr(torch, "Generator", elsewhere.Generator)
    monkeypatch.setattr(torch, "tensor", elsewhere.tensor)
    monkeypatch.setattr(devices, "parse", lambda text: elsewhere.DEVICE if text == "cuda" else torch.device(text))
    return Place(elsewhere.DEVICE, is_exact=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small grey images with labels."""
    path, random = tmp_path_factory.mktemp("data") / "images.npz", np.random.default_rng(1)
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    for split, n in (("train", 30), ("valid", 15), ("test", 120)):
        arrays[split] = random.random((n, SIDE, SIDE), dtype=np.float32).round(2)
        arrays[f"{split}_labels"] = np.arange(n) % N_CLASSES
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    return finished(tmp_path_factory.mktemp("runs") / "shallow", "train", images, *TINY)


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    return finished(tmp_path_factory.mktemp("runs") / "deep", "train", images, *TINY_DEEP)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    return finished(tmp_path_factory.mktemp("runs") / "labelled", "train", images, *TINY_DEEP, "--labels")


def finished(folder: Path, *arguments: object) -> Path:
    """A run that the processor has made."""
    done(*arguments, "--output", folder)
    return folder


def done(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def parameters(run: Path, model: str) -> dict[str, Tensor]:
    held: dict[str, Tensor] = checkpoints.load(run / "checkpoint.safetensors")[model]["parameters"]
    return held


def figures(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


# --- commands -------------------------------------------------------------------------------------------------------


def check_parts(
    place: Place, images: Path, folder: Path, model: str, arguments: list[str], parts: list[tuple[str, str]]
) -> None:
    """Parameters and the configuration are the same wherever the first and the last epoch of a run are made."""
    arguments = [*arguments, "--no-centred"]  # torch centres on a GPU, with roundings of its own
    wanted = finished(folder / "here", "train", images, *arguments)
    done("train", "--resume", wanted, "--epochs", 2)
    for first, then in parts:
        run = finished(folder / f"{first}-{then}", "train", images, *arguments, "--device", first)
        done("train", "--resume", run, "--epochs", 2, "--device", then)
        for name, values in parameters(wanted, model).items():
            # mean field, which a deep machine learns by, agrees within a tolerance (docs/numbers.md)
            place.assert_close(parameters(run, model)[name], values, exact=model == "rbm")
        assert figures(run / "configuration.json") == figures(wanted / "configuration.json")
        assert {path.name for path in run.iterdir()} == {path.name for path in wanted.iterdir()}


models = pytest.mark.parametrize(
    ("model", "arguments"),
    [("rbm", TINY), ("dbm", TINY_DEEP), ("dbm", [*TINY_DEEP, "--labels"])],
    ids=["rbm", "dbm", "labels"],
)


@models
def test_train_goes_on_at_another_place(
    place: Place, images: Path, model: str, arguments: list[str], tmp_path: Path
) -> None:
    check_parts(place, images, tmp_path, model, arguments, [("cuda", "cpu"), ("cpu", "cuda"), ("cuda", "cuda")])


@models
@pytest.mark.parametrize("place", ["emulated"], indirect=True)
def test_train_runs_by_emulated_kernels(
    place: Place, images: Path, model: str, arguments: list[str], tmp_path: Path
) -> None:
    check_parts(place, images, tmp_path, model, arguments, [("cuda", "cpu")])


@pytest.mark.parametrize("options", [[], ["--clamp", "top"]], ids=["free", "clamped"])
def test_samples_have_the_bits_of_the_processor(
    place: Place, shallow: Path, deep: Path, labelled: Path, options: list[str], tmp_path: Path
) -> None:
    for name, run, classes in (("rbm", shallow, []), ("dbm", deep, []), ("labels", labelled, ["--classes"])):
        arguments = ["sample", run, "--sweeps", 20, "--chains", 12, "--beta", 0.9, *options, *classes, "--output"]
        done(*arguments, tmp_path / name / "here")
        done(*arguments, tmp_path / name / "there", "--device", "cuda")
        here, there = (np.load(tmp_path / name / where / "samples.npy") for where in ("here", "there"))
        assert np.array_equal(here, there)
        assert (tmp_path / name / "there" / "samples.png").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "exact"],
        ["--method", "ais", "--runs", "10", "--betas", "20"],
        ["--method", "bracket", "--runs", "10", "--rounds", "20", "--betas", "20"],
        ["--method", "bracket", "--runs", "10", "--rounds", "20", "--base", "uniform"],
    ],
    ids=["exact", "ais", "bracket", "uniform"],
)
def test_evaluations_are_those_of_the_processor(
    place: Place, shallow: Path, deep: Path, labelled: Path, options: list[str], tmp_path: Path
) -> None:
    for name, run in (("rbm", shallow), ("dbm", deep), ("labels", labelled)):
        arguments = ["evaluate", run, *options, "--output"]
        done(*arguments, tmp_path / name / "here")
        done(*arguments, tmp_path / name / "there", "--device", "cuda")
        here, there = (figures(tmp_path / name / where / "evaluation.json") for where in ("here", "there"))
        assert list(here) == list(there)
        keys = ("log_likelihood", "variational_bound", "log_z", "standard_error", "reconstruction_error")
        for key in (*keys, "classification_error"):
            assert (key in here) == (key in there)
            assert there.get(key, 0) == pytest.approx(here.get(key, 0), rel=1e-5)
        assert [p.name for p in (tmp_path / name / "there").iterdir()] == [
            p.name for p in (tmp_path / name / "here").iterdir()
        ]


def test_autoencoders_go_on_at_another_place(place: Place, images: Path, tmp_path: Path) -> None:
    """Noise is that of the device, so a run that changes it is another one, as good as the first."""
    done("vae", images, *TINY_VAE, "--output", tmp_path / "here")
    wanted = figures(tmp_path / "here" / "evaluation.json")
    for first, then in (("cuda", "cpu"), ("cpu", "cuda")):
        run = tmp_path / f"{first}-{then}"
        done("vae", images, *TINY_VAE, "--device", first, "--output", run)
        (run / "evaluation.json").unlink()
        done("vae", "--resume", run, "--device", then, "--test-k", 20)  # the evaluation of a finished run
        found = figures(run / "evaluation.json")
        assert found["settings"] == wanted["settings"]
        assert found["updates"] == wanted["updates"]
        assert found["bounds"]["20"]["mean"] == pytest.approx(wanted["bounds"]["20"]["mean"], abs=1)
        assert {path.name for path in run.iterdir()} == {path.name for path in (tmp_path / "here").iterdir()}


def test_a_comparison_is_that_of_the_processor(
    place: Place, images: Path, shallow: Path, deep: Path, tmp_path: Path
) -> None:
    done("vae", images, *TINY_VAE, "--output", tmp_path / "vae")
    runs = [shallow, deep, tmp_path / "vae"]
    arguments = ["compare", *runs, "--rows", 10, "--k", 20, "--ladders", 8, "--rounds", 20, "--sweeps", 10, "--output"]
    done(*arguments, tmp_path / "here")
    done(*arguments, tmp_path / "there", "--device", "cuda")
    here, there = (figures(tmp_path / where / "comparison.json")["models"] for where in ("here", "there"))
    for a, b in zip(here, there, strict=True):
        assert (a["what"], a["parameters"], a["training"]) == (b["what"], b["parameters"], b["training"])
        assert b["mean"] == pytest.approx(a["mean"], abs=1 if a["kind"] == "IWAE" else 1e-4)
    assert (tmp_path / "there" / "samples.png").exists()


# --- recipes --------------------------------------------------------------------------------------------------------

Recipe = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recipe]:
    """Runs a recipe on the small images, in a folder of the test's own; what it records."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "recipes"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()

    def run(name: str, *arguments: str, changes: Callable[[ModuleType], None], result: str) -> dict[str, Any]:
        module = importlib.import_module(name)
        for each, folder in ((sys.modules.get("common"), "FOLDER"), (module, "RESULTS")):
            if each is not None and hasattr(each, folder):
                monkeypatch.setattr(each, folder, tmp_path if folder == "FOLDER" else tmp_path / "results")
        monkeypatch.setattr(module, "load", lambda name: load_file(images))
        changes(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        module.main()
        return figures(tmp_path / "results" / f"{result}.json")

    yield run
    for name in ("dbm", "dbn", "classify", "tempering", "common"):
        sys.modules.pop(name, None)


def small(hidden: tuple[int, ...], epochs: tuple[int, ...]) -> Callable[[ModuleType], None]:
    def change(module: ModuleType) -> None:
        module.RECIPES["digits"] = replace(module.RECIPES["digits"], hidden=hidden, epochs=epochs, n_betas=20)

    return change


def test_recipes_of_deep_machines_and_their_classifiers(place: Place, recipe: Recipe, tmp_path: Path) -> None:
    found = recipe("dbm", "digits", "--device", "cuda", changes=small((6, 4), (1, 1, 1)), result="dbm-digits")
    assert found["command"] == "python recipes/dbm.py digits --device cuda"
    assert {path.name for path in (tmp_path / "results" / "dbm-digits").iterdir()} >= {"samples.png", "filters2.png"}
    found = recipe("dbm", "digits", changes=small((6, 4), (1, 1, 3)), result="dbm-digits")  # goes on here, for longer
    assert [row["learning_rate"] for row in found["history"]] == pytest.approx([0.0, 0.02 / 3, 0.0], rel=1e-3)

    def short(module: ModuleType) -> None:
        module.ALL_LABELS["digits"] = replace(module.ALL_LABELS["digits"], epochs=2)
        module.DRAWS = 1

    found = recipe("classify", "digits", "--device", "cuda", changes=short, result="classify-digits")
    assert 0 < found["test_error"]["machine"] < 1
    few, record = ("--labels", "15", "--epochs", "1"), "../runs/classify-digits-15-epochs-1/record"
    recipe("classify", "digits", *few, "--device", "cuda", changes=short, result=record)


def test_recipe_of_belief_nets(place: Place, recipe: Recipe, tmp_path: Path) -> None:
    found = recipe("dbn", "digits", "--device", "cuda", changes=small((6, 4), (1, 1, 1)), result="dbn-digits")
    assert found["command"] == "python recipes/dbn.py digits --device cuda"
    assert (tmp_path / "results" / "dbn-digits" / "samples.png").exists()


def test_recipe_of_tempering(place: Place, recipe: Recipe) -> None:
    def short(module: ModuleType) -> None:
        whole = dict(module.TASKS)
        for name in ("modes", "bars"):
            module.TASKS[name] = lambda device, name=name: replace(whole[name](device), hidden=4, epochs=2)

    found = recipe("tempering", "modes", "bars", "--device", "cuda", changes=short, result="tempering")
    assert set(found) == {"modes", "bars"}
    assert all(len(runs["1"]["scores"]) == 2 for task in found.values() for runs in task["runs"].values())


# --- the library ----------------------------------------------------------------------------------------------------


def autoencoder(device: torch.device) -> tuple[VAE, torch.optim.Optimizer]:
    model = VAE(SIDE**2, (3, 2), ((5,), (4,)), seed=1).to(device)
    return model, torch.optim.Adam(model.parameters(), lr=0.01, fused=device.type != "elsewhere")


def test_an_autoencoder_resumes_to_the_same_bits(place: Place, images: Path, tmp_path: Path) -> None:
    rows = load_file(images).train.to(place.device)
    model, adam = autoencoder(place.device)
    whole = Trainer(model, adam, DReG(5))
    whole.fit(rows, 2)
    whole.save(tmp_path / "file")
    whole.fit(rows, 4, rows[:20])
    again, adam = autoencoder(place.device)
    Trainer.resume(tmp_path / "file", again, adam).fit(rows, 4, rows[:20])
    for a, b in zip(again.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_bounds_of_an_autoencoder_are_those_of_the_processor(place: Place, images: Path) -> None:
    """Of many samples, which are others on a GPU."""
    rows = load_file(images).binarised().split("test")
    model, _ = autoencoder(torch.device("cpu"))
    wanted = log_likelihood(model, rows, 2000)
    found = log_likelihood(model.to(place.device), rows.to(place.device), 2000)
    assert found.device == place.device
    torch.testing.assert_close(found.cpu(), wanted, rtol=0, atol=0.05)


def test_stacks_are_trained_where_their_data_are(place: Place, images: Path) -> None:
    rows = load_file(images).train
    for make in (pretrain, pretrain_dbn):
        here, there = make((SIDE**2, 6, 4), rows, [1, 1]), make((SIDE**2, 6, 4), rows.to(place.device), [1, 1])
        for found, wanted in zip(there.parameters(), here.parameters(), strict=True):
            assert found.device == place.device
            place.assert_close(found.detach(), wanted.detach(), exact=True)


MEANS = {DBM: [mean_variational_bound], RBM: [mean_variational_bound, mean_log_likelihood]}


def test_means_over_cases_take_arrays_of_numpy_to_where_the_model_is(place: Place) -> None:
    cases = np.eye(5, dtype=np.uint8)
    for model in (DBM((5, 4, 3), seed=1, weight_scale=0.3), RBM(5, 4, seed=1, weight_scale=0.3)):
        wanted = [mean(model, cases, 0.0).mean for mean in MEANS[type(model)]]
        got = [mean(model.to(place.device), cases, 0.0).mean for mean in MEANS[type(model)]]
        assert got == pytest.approx(wanted, abs=1e-4)
