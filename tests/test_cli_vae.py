"""The command vae: what it writes, refuses, resumes and measures."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast.cli import main
from bm_fast.cli.common import commit
from bm_fast.cli.console import version
from bm_fast.cli.vae import Trainer as CommandTrainer
from bm_fast.data import load
from bm_fast.vae import VAE, evaluate
from cli_calls import call, snapshot

TINY = ["--layers", "8-4", "--k", "3", "--epochs", "4", "--batch-size", "400", "--test-k", "20", "--test-rows", "30"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "run"
    assert main(["vae", "digits", *TINY, "--output", str(folder)]) == 0
    return folder


def test_vae_writes_all_that_it_names(tmp_path, capsys):
    code, result, _ = call(capsys, "vae", "digits", *TINY, "--output", tmp_path / "run")
    assert code == 0
    assert sorted(result["files"]) == sorted(str(path) for path in (tmp_path / "run").iterdir())
    assert {Path(file).name for file in result["files"]} == {
        "checkpoint.safetensors",
        "configuration.json",
        "evaluation.json",
        "learning_curve.png",
        "samples.png",
        "reconstructions.png",
        "traversals.png",
        "latent_map.png",
    }
    assert result["updates"] == 12  # 4 epochs of 3 batches
    assert result["split"] == "test"
    assert result["rows"] == 30
    assert list(result["bounds"]) == ["1", "5", "20"]


def test_vae_measures_what_the_library_measures(finished):
    written = json.loads((finished / "evaluation.json").read_text())
    images = load("digits").binarised(0).split("test")[::10]  # 30 of 300
    found = evaluate(VAE.load(finished / "checkpoint.safetensors"), images, (1, 5, 20))
    assert written["bounds"]["20"]["mean"] == pytest.approx(found.bounds[20].mean)
    assert written["protocol"] == "fixed-sample, seed 0"
    program = {"version": version(), "commit": commit(), "torch": torch.__version__}
    assert written["trained_by"] == written["measured_by"] == program


def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path, capsys, monkeypatch, finished):
    step = CommandTrainer._step

    def stopping(self, values, numbers):
        step(self, values, numbers)
        if self.update == 4:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(CommandTrainer, "_step", stopping)
        code, result, _ = call(capsys, "vae", "digits", *TINY, "--output", tmp_path / "run")
    assert code == 130
    assert f"bm-fast vae --resume {tmp_path / 'run'}" in result["error"]
    code, result, _ = call(capsys, "vae", "--resume", tmp_path / "run", "--test-k", "20", "--test-rows", "30")
    assert code == 0
    whole, again = (VAE.load(folder / "checkpoint.safetensors") for folder in (finished, tmp_path / "run"))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("layers", ["8-2", "8-3"])
def test_a_fixed_sample_is_the_same_in_every_epoch_and_two_units_have_a_plane(tmp_path, capsys, monkeypatch, layers):
    seen = []
    step = CommandTrainer._step
    monkeypatch.setattr(
        CommandTrainer, "_step", lambda self, x, numbers: (seen.append(x.sum(0)), step(self, x, numbers))
    )
    arguments = [*TINY, "--layers", layers, "--epochs", "2", "--protocol", "fixed-sample"]
    code, result, _ = call(capsys, "vae", "digits", *arguments, "--output", tmp_path / "run")
    assert code == 0
    expected = load("digits", "fixed-sample", seed=0).train.float().sum(0)
    assert torch.equal(torch.stack(seen[:3]).sum(0), expected)
    assert torch.equal(torch.stack(seen[3:]).sum(0), expected)
    assert result["protocol"] == "fixed-sample, seed 0"
    written = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert written["data"] == {
        "name": "digits",
        "protocol": "fixed-sample, seed 0",
        "shape": [8, 8],
        "rows": {"train": 1197, "valid": 300, "test": 300},
    }
    assert (str(tmp_path / "run" / "latent_plane.png") in result["files"]) == (layers == "8-2")


def test_a_protocol_for_data_of_the_users_own(tmp_path, capsys):
    grey, binary = tmp_path / "grey.npy", tmp_path / "binary.npy"
    np.save(grey, load("digits").train[:50].numpy())
    np.save(binary, load("digits").binarised(0).train[:50].numpy())
    tiny = ["--layers", "4-3", "--k", "2", "--epochs", "1", "--test-k", "2"]
    for path, protocol, expected in (
        (grey, "fixed-sample", "fixed-sample, seed 0"),
        (grey, "dynamic", "fixed-sample, seed 0"),
        (binary, "binary", "binary"),
    ):
        output = tmp_path / f"{path.stem}-{protocol}"
        code, result, _ = call(capsys, "vae", path, *tiny, "--protocol", protocol, "--output", output)
        assert (code, result["protocol"]) == (0, expected)
    code, result, _ = call(capsys, "vae", binary, *tiny, "--protocol", "dynamic", "--output", tmp_path / "no")
    assert code == 2
    assert f"--protocol: the data in {binary} are binary, got dynamic" in result["error"]


def test_two_layers_and_rows_held_out(tmp_path, capsys):
    layers = [
        "--layers",
        "8-4",
        "6-3",
        "--estimator",
        "dreg",
        "--hold-out",
        "50",
        "--mixed-precision",
        "--schedule",
        "burda",
    ]
    code, result, errors = call(capsys, "vae", "digits", *TINY, *layers, "--output", tmp_path / "run")
    assert code == 0
    assert "on 1,447 rows" in errors
    assert "with dreg, k = 3" in errors
    assert len(result["active_units"]) == 2
    assert VAE.load(tmp_path / "run" / "checkpoint.safetensors").latents == (4, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data: expected digits, mnist"),
        (["digits", "--layers", "8-0"], "--layers: expected sizes like 200-200-50"),
        (["digits", "--layers", "8,4"], "--layers: expected sizes like 200-200-50"),
        (["digits", "--hold-out", "1497"], "--hold-out: expected fewer than the 1,497 rows"),
        (["nothing"], "data: expected one of digits, mnist"),
        (["digits", "--protocol", "fixed-larochelle"], "--protocol: data 'digits' comes as dynamic or fixed-sample"),
    ],
)
def test_wrong_usage(tmp_path, capsys, arguments, message):
    code, result, _ = call(capsys, "vae", *arguments, "--output", tmp_path / "run")
    assert code == 2
    assert message in result["error"]
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_measured_again_and_no_picture_is_drawn_that_is_there(tmp_path, capsys, finished):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "samples.png").unlink()
    before = snapshot(tmp_path / "run")
    code, result, errors = call(capsys, "vae", "--resume", tmp_path / "run", "--test-k", "30", "--test-rows", "30")
    assert code == 0
    assert "IWAE of 64 visible units, stochastic layers 8-4, on 1,197 rows of digits (dynamic); 4 epochs" in errors
    assert "Nothing is left to train: 4 epochs done. It is measured again" in errors
    assert "  active units " in errors
    assert "(" not in errors.partition("  active units ")[2].splitlines()[0]
    after = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    assert after.pop("samples.png")
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"evaluation.json", "checkpoint.safetensors"}
    assert list(result["bounds"]) == ["1", "5", "30"]


def test_resume_refuses_settings_and_other_folders(tmp_path, capsys, finished):
    code, result, _ = call(capsys, "vae", "--resume", finished, "--k", "5")
    assert code == 2
    assert "takes all settings from the run; leave out --k" in result["error"]
    code, result, _ = call(capsys, "vae", "--resume", tmp_path)
    assert code == 2
    assert "no configuration.json of an autoencoder" in result["error"]


def test_info_describes_an_autoencoder(tmp_path, capsys, finished):
    code, result, _ = call(capsys, "info", finished)
    assert code == 0
    assert result["model"] == "vae"
    assert result["layers"] == [{"kind": "bernoulli", "units": 64}, {"kind": "gaussian", "units": 4}]
    assert result["perceptrons"] == [[8]]
    assert (result["epochs"], result["updates"], result["estimator"]) == (4, 12, "IWAE")
    assert result["parameters"] == sum(p.numel() for p in VAE(64, (4,), ((8,),)).parameters())
    assert main(["info", str(finished)]) == 0
    shown = capsys.readouterr().out
    assert "64 bernoulli - 4 gaussian" in shown
    assert "4 epochs, 12 updates by IWAE" in shown
    assert "digits (dynamic): 1,197 train, 300 valid, 300 test" in shown
    VAE(5, (2,), ((),)).save(tmp_path / "model.safetensors")  # alone: neither training nor settings are known
    code, result, _ = call(capsys, "info", tmp_path)
    assert (code, result["configuration"], "epochs" in result) == (0, {}, False)
    assert main(["info", str(tmp_path)]) == 0
    assert "linear" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_commands_for_machines_say_what_takes_an_autoencoder(tmp_path, capsys, finished, command):
    code, result, _ = call(capsys, command, finished, "--output", tmp_path / "out")
    assert code == 2
    assert "holds an autoencoder, and this command takes RBMs and DBMs; bm-fast vae --resume" in result["error"]


def test_an_older_run_is_not_lost(capsys, finished):
    before = snapshot(finished)
    code, result, _ = call(capsys, "vae", "digits", *TINY, "--output", finished)
    assert code == 2
    assert "already holds" in result["error"]
    assert snapshot(finished) == before


def test_overwriting_leaves_nothing_of_a_machine_that_was_there(trained, tmp_path, capsys):
    for path in trained.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "my_filters.png").touch()
    code, result, errors = call(capsys, "vae", "digits", *TINY, "--output", tmp_path, "--overwrite")
    assert code == 0
    written = {Path(file).name for file in result["files"]}
    assert {path.name for path in tmp_path.iterdir()} == written | {"my_filters.png"}
    assert "Removed with the older results: filters.png, learning_curve.csv" in errors
