"""The command compare: four kinds of models on the same images, what it says of each figure, and what it refuses."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast import DBM, RBM, checkpoints, plots
from bm_fast.cli import main
from bm_fast.data import load
from bm_fast.estimation import exact_log_z, mean_log_likelihood, mean_variational_bound
from bm_fast.graph import Kind
from bm_fast.training import CD, Checkpoint, History, MeanFieldPCD, Trainer
from bm_fast.vae import CIWAE, MIWAE, PIWAE, VAE, evaluate
from bm_fast.vae import Trainer as VAETrainer
from cli_calls import call, snapshot

QUICK = ["--rows", "60", "--k", "10", "--ladders", "8", "--rounds", "40", "--samples", "4", "--sweeps", "5"]
TINY_VAE = ["--layers", "6-3", "--epochs", "2", "--batch-size", "400", "--test-k", "2", "--test-rows", "2"]


def machine(path: Path, model: RBM | DBM, estimator: CD | MeanFieldPCD, data: torch.Tensor, epochs: int = 2) -> None:
    model.initialise_biases(data)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    Trainer(model, optimizer, estimator, callbacks=[History(), Checkpoint(path)]).fit(data, epochs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, trained) -> dict[str, Path]:
    """A finished run of each kind on the digits; the deep one keeps no configuration, and the stack it began with.

    The wide one has learnt from the validation rows too.
    """
    folder, grey = tmp_path_factory.mktemp("runs"), load("digits").train
    for name in ("deep", "wide"):
        (folder / name).mkdir()
    machine(folder / "deep" / "rbm1.safetensors", RBM(64, 12), CD(1), grey, epochs=1)
    machine(folder / "deep" / "dbm.safetensors", DBM((64, 12, 9)), MeanFieldPCD(20, sweeps=1), grey)
    machine(folder / "wide" / "wide.safetensors", RBM(64, 24), CD(1), load("digits").with_validation().train)
    for name, estimator in (
        ("vae", ["--estimator", "elbo", "--k", "1"]),
        ("iwae", ["--estimator", "dreg", "--k", "5"]),
    ):
        assert main(["vae", "digits", *TINY_VAE, *estimator, "--output", str(folder / name)]) == 0
    return {"rbm": trained, "wide": folder / "wide" / "wide.safetensors"} | {
        n: folder / n for n in ("deep", "vae", "iwae")
    }


@pytest.fixture(scope="module")
def compared(tmp_path_factory, runs) -> Path:
    folder = tmp_path_factory.mktemp("comparison") / "page"
    assert main(["compare", *map(str, runs.values()), "--data", "digits", *QUICK, "--output", str(folder)]) == 0
    return folder


def spread_test_images(n: int) -> torch.Tensor:
    images = load("digits").binarised(0).split("test")
    return images[torch.arange(n) * len(images) // n].contiguous()


def test_models_of_all_kinds_are_measured_on_the_same_images(compared, runs):
    """Every figure is the library's own for these images."""
    result = json.loads((compared / "comparison.json").read_text())
    rbm, wide, deep, vae, iwae = result["models"]
    assert [row["kind"] for row in result["models"]] == ["RBM", "RBM", "DBM", "VAE", "IWAE"]
    assert [row["layers"] for row in result["models"]] == ["64-8", "64-24", "64-12-9", "64 / 6-3", "64 / 6-3"]
    assert (result["data"], result["rows"], result["of_rows"]) == ("digits", 60, 300)
    assert result["protocol"] == {"training": "dynamic", "test": "fixed-sample, seed 0"}
    assert [row["training"]["rows"] for row in result["models"]] == [1197, 1497, 1197, 1197, 1197]
    images = spread_test_images(60)
    small = RBM.load(runs["rbm"] / "checkpoint.safetensors")
    assert rbm["mean"] == pytest.approx(mean_log_likelihood(small, images, exact_log_z(small)).mean)
    model = DBM.load(runs["deep"] / "dbm.safetensors")
    bound = mean_variational_bound(model, images, exact_log_z(model))
    assert (deep["mean"], deep["standard_error"]) == (pytest.approx(bound.mean), pytest.approx(bound.case_error))
    for row, name in ((vae, "vae"), (iwae, "iwae")):
        found = evaluate(VAE.load(runs[name] / "checkpoint.safetensors"), images, (1, 10)).bounds
        assert row["mean"] == pytest.approx(found[10].mean)
        assert row["variational_bound"] == pytest.approx(found[1].mean)
        assert row["standard_error"] == pytest.approx(found[10].standard_error)
    exact = RBM.load(runs["wide"])
    truth = mean_log_likelihood(exact, images, exact_log_z(exact)).mean
    low, high = wide["bracket"]
    assert low - 0.3 < truth < high + 0.3  # errors of some hundredths: nearly free machines anneal well
    assert wide["mean"] == pytest.approx(truth, abs=0.3)


def test_each_figure_says_what_it_is(compared):
    result = json.loads((compared / "comparison.json").read_text())
    assert [row["what"] for row in result["models"]] == [
        "log-likelihood, exact",
        "log-likelihood with an estimated log Z",
        "variational lower bound of the log-likelihood, with an exact log Z",
        "importance-weighted lower bound of the log-likelihood",
        "importance-weighted lower bound of the log-likelihood",
    ]
    page = (compared / "comparison.md").read_text()
    for row in result["models"]:
        (line,) = [line for line in page.splitlines() if line.startswith(f"| {row['run']} |")]
        assert f"**{row['mean']:.2f} ± {row['standard_error']:.2f}" in line
        assert row["what"] in line
        assert f"- {row['what']}: " in page
        assert line.count("|") == 9
    assert "60 of the 300 test images" in page
    assert "Test protocol: fixed-sample, seed 0" in page
    assert ", k = 10 |" in page
    assert "![samples](samples.png)" in page


def test_training_time_includes_the_stack_of_a_deep_machine(compared, runs):
    rows = {row["run"]: row["training"] for row in json.loads((compared / "comparison.json").read_text())["models"]}
    parts = (checkpoints.load(runs["deep"] / f"{name}.safetensors") for name in ("rbm1", "dbm"))
    curves = [state["rows"] for part in parts for state in part["trainer"]["callbacks"] if "rows" in state]
    assert [len(curve) for curve in curves] == [1, 2]
    assert rows["deep"]["seconds"] == pytest.approx(sum(curve[-1]["seconds"] for curve in curves))
    assert (rows["deep"]["epochs"], rows["deep"]["updates"], rows["deep"]["rows"]) == (2, 24, 1197)
    assert rows["iwae"]["estimator"] == {"name": "DReG", "k": 5}
    assert rows["vae"]["seconds"] > 0


def test_runs_of_train_need_nothing_but_their_folders(runs, tmp_path, capsys):
    tiny = ["--hidden", "6", "4", "--epochs", "1", "--pretraining-epochs", "1", "--batch-size", "400", "--chains", "10"]
    assert main(["train", "digits", "--model", "dbm", *tiny, "--output", str(tmp_path / "dbm")]) == 0
    capsys.readouterr()
    code, result, errors = call(capsys, "compare", tmp_path / "dbm", runs["rbm"], *QUICK, "--output", tmp_path / "page")
    assert code == 0
    assert [row["layers"] for row in result["models"]] == ["64-6-4", "64-8"]
    assert "its training includes rbm1.safetensors, rbm2.safetensors" in errors


def test_the_picture_has_test_images_above_samples_of_each_model(runs, tmp_path, capsys, monkeypatch):
    drawn: dict[str, torch.Tensor] = {}
    original = plots.labelled_rows
    monkeypatch.setattr(plots, "labelled_rows", lambda rows, *a, **k: (drawn.update(rows), original(rows, *a, **k))[1])
    code, result, _ = call(capsys, "compare", runs["rbm"], runs["vae"], *QUICK, "--output", tmp_path / "page")
    assert code == 0
    assert sorted(Path(file).name for file in result["files"]) == ["comparison.json", "comparison.md", "samples.png"]
    assert list(drawn) == ["data", "tiny", "vae"]
    images = load("digits").test
    assert torch.equal(drawn["data"], images[torch.arange(4) * 5])
    assert torch.equal(
        drawn["vae"], VAE.load(runs["vae"] / "checkpoint.safetensors").sample(4, torch.Generator().manual_seed(0))
    )
    rbm = RBM.load(runs["rbm"] / "checkpoint.safetensors")
    chains = rbm.sample(rbm.chains(4, 0), 5)
    torch.testing.assert_close(drawn["tiny"], rbm.visible_means(chains.layers[1]))


def test_there_are_no_more_samples_than_test_images(runs, tmp_path, capsys):
    options = [*QUICK, "--rows", "3", "--samples", "4", "--output", tmp_path / "page"]
    code, result, _ = call(capsys, "compare", runs["rbm"], runs["vae"], *options)
    assert code == 0
    assert result["rows"] == 3
    assert (tmp_path / "page" / "samples.png").exists()


def test_an_estimate_that_cannot_be_trusted_is_named(runs, tmp_path, capsys):
    options = [*QUICK, "--rounds", "4", "--ladders", "2", "--data", "digits"]
    code, result, errors = call(capsys, "compare", runs["wide"], runs["rbm"], *options, "--output", tmp_path / "page")
    assert code == 0
    assert not result["models"][0]["trustworthy"]
    assert "(not trustworthy)" in errors
    page = (tmp_path / "page" / "comparison.md").read_text()
    assert f"NOT TRUSTWORTHY:\n\n- wide: {result['models'][0]['reason']}" in page


def refused(capsys, tmp_path, *arguments) -> str:
    code, result, _ = call(capsys, "compare", *arguments, *QUICK, "--output", tmp_path / "page")
    assert code == 2
    assert not (tmp_path / "page").exists()
    return str(result["error"])


def test_runs_of_other_data_or_another_protocol_are_refused(runs, tmp_path, capsys):
    np.save(tmp_path / "own.npy", load("digits").train.numpy())
    np.savez(tmp_path / "own.npz", train=load("digits").train.numpy(), test=load("digits").test.numpy())
    for source, name in (("digits", "fixed"), (str(tmp_path / "own.npz"), "own")):
        protocol = ["--protocol", "fixed-sample"] if name == "fixed" else []
        assert main(["vae", source, *TINY_VAE, *protocol, "--output", str(tmp_path / name)]) == 0
    capsys.readouterr()
    error = refused(capsys, tmp_path, runs["rbm"], tmp_path / "fixed")
    assert "got protocols 'dynamic' of" in error
    assert "and 'fixed-sample, seed 0' of" in error
    error = refused(capsys, tmp_path, runs["rbm"], tmp_path / "own")
    assert "expected runs of one data set and protocol, got data 'digits' of" in error
    np.savez(tmp_path / "own.npz", train=load("digits").train.numpy()[1:], test=load("digits").test.numpy())
    error = refused(capsys, tmp_path, tmp_path / "own", tmp_path / "own")
    assert "was trained on an array of 1197 rows (CRC-32" in error
    assert "are an array of 1196 rows (CRC-32" in error


def test_files_of_one_name_with_other_test_images_are_refused(tmp_path, capsys):
    digits = load("digits")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "own.npz", train=digits.train[:50].numpy(), test=digits.test[name == "b" :].numpy())
        source, output = tmp_path / name / "own.npz", tmp_path / f"run-{name}"
        assert main(["vae", str(source), *TINY_VAE, "--k", "2", "--output", str(output)]) == 0
    capsys.readouterr()
    error = refused(capsys, tmp_path, tmp_path / "run-a", tmp_path / "run-b")
    assert "expected runs of the same test images" in error
    assert f"those of {tmp_path / 'run-b' / 'checkpoint.safetensors'} are other ones" in error


@pytest.mark.parametrize(
    ("estimator", "kind", "shown"),
    [
        (PIWAE(8, 1), "IWAE", "PIWAE with m = 8, k = 1"),
        (MIWAE(8, 1), "VAE", "MIWAE with m = 8, k = 1"),
        (CIWAE(5, 1.0), "VAE", "CIWAE with k = 5, beta = 1.0"),
        (CIWAE(5, 0.5), "IWAE", "CIWAE with k = 5, beta = 0.5"),
    ],
    ids=str,
)
def test_an_autoencoder_is_called_after_the_bound_that_its_model_climbed(
    runs, tmp_path, capsys, estimator, kind, shown
):
    model = VAE(64, (3,), [[6]])
    trainer = VAETrainer(model, torch.optim.Adam(model.parameters()), estimator, 400)
    trainer.fit(load("digits").train, 1)
    trainer.save(tmp_path / "other.safetensors")
    arguments = [tmp_path / "other.safetensors", runs["vae"], "--data", "digits", *QUICK]
    code, result, _ = call(capsys, "compare", *arguments, "--output", tmp_path / "page")
    assert code == 0
    assert result["models"][0]["kind"] == kind
    assert f"| {shown}, 1,197 images" in (tmp_path / "page" / "comparison.md").read_text()


def test_runs_without_a_configuration_need_data_and_are_checked_against_them(runs, tmp_path, capsys):
    assert "no configuration.json lies beside it; name the data" in refused(capsys, tmp_path, runs["rbm"], runs["deep"])
    machine(tmp_path / "binary.safetensors", RBM(64, 4), CD(1), load("digits").binarised(0).train)
    error = refused(capsys, tmp_path, runs["rbm"], tmp_path / "binary.safetensors", "--data", "digits")
    assert "but the training rows of digits by the protocol 'dynamic' are" in error


@pytest.mark.parametrize("kept", ["an array of 1197 rows", "a DataLoader"])
def test_rows_that_cannot_be_told_need_a_configuration(runs, tmp_path, capsys, kept):
    state = checkpoints.load(runs["rbm"] / "checkpoint.safetensors")
    state["trainer"]["data"] = kept
    (tmp_path / "older").mkdir()
    checkpoints.save(tmp_path / "older" / "checkpoint.safetensors", state)
    error = refused(capsys, tmp_path, runs["rbm"], tmp_path / "older", "--data", "digits")
    assert f"was trained on {kept}, but the training rows of digits" in error
    configuration = json.loads((runs["rbm"] / "configuration.json").read_text())
    configuration["settings"]["epochs"] = 7
    (tmp_path / "older" / "configuration.json").write_text(json.dumps(configuration))
    code, result, _ = call(capsys, "compare", runs["rbm"], tmp_path / "older", *QUICK, "--output", tmp_path / "page")
    assert code == 0
    assert result["models"][0]["mean"] == result["models"][1]["mean"]
    page = (tmp_path / "page" / "comparison.md").read_text()
    assert ", 2 epochs, " in page
    assert ", 2 of 7 epochs, " in page  # a run that is not finished shows it


def test_what_is_no_finished_run_is_refused(runs, tmp_path, capsys):
    RBM(64, 3).save(tmp_path / "model.safetensors")
    assert "holds a model without its training" in refused(
        capsys, tmp_path, runs["rbm"], tmp_path / "model.safetensors"
    )
    checkpoints.save(tmp_path / "other.safetensors", {"thing": 1})
    error = refused(capsys, tmp_path, runs["rbm"], tmp_path / "other.safetensors")
    assert "expected a checkpoint of an rbm, dbm, vae, it holds ['thing']" in error
    real = RBM(64, 3, visible=Kind.GAUSSIAN)
    machine(tmp_path / "real.safetensors", real, CD(1), load("digits").train, epochs=1)
    error = refused(capsys, tmp_path, runs["rbm"], tmp_path / "real.safetensors", "--data", "digits")
    assert "expected binary visible units, whose likelihoods compare" in error
    (tmp_path / "empty").mkdir()
    error = refused(capsys, tmp_path, runs["rbm"], tmp_path / "empty")
    assert f"model.safetensors, dbm.safetensors or dbn.safetensors in {tmp_path / 'empty'}" in error
    assert "no checkpoint file" in refused(capsys, tmp_path, runs["rbm"], tmp_path / "none")
    assert "expected two runs or more" in refused(capsys, tmp_path, runs["rbm"])
    assert "names of their own, got tiny more than once" in refused(capsys, tmp_path, runs["rbm"], runs["rbm"])


def test_an_older_comparison_is_not_lost(runs, compared, capsys):
    before = snapshot(compared)
    code, result, _ = call(capsys, "compare", runs["rbm"], runs["vae"], *QUICK, "--output", compared)
    assert code == 2
    assert "already holds comparison.md, comparison.json, samples.png" in result["error"]
    assert snapshot(compared) == before


def test_a_training_time_that_was_not_kept_is_not_invented(runs, tmp_path, capsys):
    model = RBM(64, 4)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), CD(1))
    trainer.fit(load("digits").train, 1)
    trainer.save(tmp_path / "timeless.safetensors")
    arguments = [runs["rbm"], tmp_path / "timeless.safetensors", "--data", "digits", *QUICK]
    code, result, _ = call(capsys, "compare", *arguments, "--output", tmp_path / "page")
    assert code == 0
    assert result["models"][1]["training"]["seconds"] is None
    assert not math.isnan(result["models"][0]["training"]["seconds"])
    assert "time not recorded" in (tmp_path / "page" / "comparison.md").read_text()
