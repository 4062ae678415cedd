"""The command sample: states, pictures, temperatures and clamped halves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bm_fast import data
from bm_fast.cli.sample import moments_until, snapshots
from bm_fast.rbm import RBM
from cli_calls import call, snapshot


def test_sample_writes_states_and_a_picture(trained, tmp_path, capsys):
    arguments = ["sample", trained, "--chains", 20, "--sweeps", 30, "--seed", 5, "--output", tmp_path / "out"]
    code, result, _ = call(capsys, *arguments)
    assert code == 0
    assert (result["chains"], result["sweeps"], result["beta"]) == (20, 30, 1.0)
    states = np.load(tmp_path / "out" / "samples.npy")
    rbm = RBM.load(trained / "checkpoint.safetensors")
    expected = rbm.sample(rbm.chains(20, 5), 30).layers[0]
    assert np.array_equal(states, expected.numpy())  # looking at the chains on their way does not change them
    assert (tmp_path / "out" / "samples.png").stat().st_size > 1000
    before = snapshot(tmp_path / "out")
    assert call(capsys, *arguments)[0] == 2
    assert snapshot(tmp_path / "out") == before
    assert call(capsys, *arguments, "--overwrite")[0] == 0


def test_sample_at_another_temperature_from_a_bare_model(trained, tmp_path, capsys):
    rbm = RBM.load(trained / "checkpoint.safetensors")
    rbm.save(tmp_path / "model.safetensors")
    arguments = ["sample", tmp_path / "model.safetensors", "--chains", 10, "--sweeps", 5, "--beta", 0.5]
    code, result, errors = call(capsys, *arguments, "--output", tmp_path / "a")
    assert code == 0
    assert [Path(f).name for f in result["files"]] == ["samples.npy"]
    assert "give it as --shape" in errors
    expected = rbm.sample(rbm.chains(10, 0), 5, beta=0.5).layers[0]
    assert np.array_equal(np.load(tmp_path / "a" / "samples.npy"), expected.numpy())
    assert call(capsys, *arguments, "--shape", "8x8", "--output", tmp_path / "b")[0] == 0
    assert (tmp_path / "b" / "samples.png").exists()
    assert call(capsys, *arguments, "--output", tmp_path / "b", "--overwrite")[0] == 0
    assert not (tmp_path / "b" / "samples.png").exists()  # that of the older samples
    code, result, _ = call(capsys, *arguments, "--shape", "9x9", "--output", tmp_path / "c")
    assert code == 2
    assert "expected rows x columns = 64 visible units, got 9x9" in result["error"]


@pytest.mark.parametrize(
    ("side", "kept"),
    [
        ("top", np.s_[:, :4]),
        ("bottom", np.s_[:, 4:]),
        ("left", np.s_[:, :, :4]),
        ("right", np.s_[:, :, 4:]),
    ],
)
def test_sample_keeps_the_clamped_half(side, kept, trained, tmp_path, capsys):
    code, _, _ = call(
        capsys, "sample", trained, "--clamp", side, "--chains", 30, "--sweeps", 3, "--output", tmp_path / "out"
    )
    assert code == 0
    states = np.load(tmp_path / "out" / "samples.npy").reshape(-1, 8, 8)
    images = data.load("digits", "fixed-sample", seed=0).split("test")[:30].numpy().reshape(-1, 8, 8)
    assert np.array_equal(states[kept], images[kept])
    assert not np.array_equal(states, images)


def test_sample_clamp_errors(trained, tmp_path, capsys):
    out = ["--output", tmp_path / "out"]
    code, result, _ = call(capsys, "sample", trained, "--clamp", "top", "--chains", 301, *out)
    assert code == 2
    assert "at most the 300 test images" in result["error"]
    RBM(64, 4).save(tmp_path / "model.safetensors")
    code, result, _ = call(capsys, "sample", tmp_path / "model.safetensors", "--clamp", "top", *out)
    assert code == 2
    assert "--clamp: the data of the training run are not known; name them with --data" in result["error"]
    np.savez(tmp_path / "own.npz", train=np.zeros((2, 64), np.uint8), test=np.zeros((2, 64), np.uint8))
    arguments = ("sample", tmp_path / "model.safetensors", "--clamp", "top", "--chains", 2, "--sweeps", 1)
    code, result, _ = call(capsys, *arguments, "--data", tmp_path / "own.npz", *out)
    assert code == 2
    assert "--clamp: the shape of an image is not known; give it as --shape ROWSxCOLUMNS" in result["error"]
    assert call(capsys, *arguments, "--data", "digits", "--output", tmp_path / "known")[0] == 0
    assert (tmp_path / "known" / "samples.png").exists()
    assert not (tmp_path / "out").exists()


def test_samples_and_evaluations_lie_beside_the_machine_unless_told_otherwise(trained, tmp_path, capsys):
    shutil.copytree(trained, tmp_path / "run")
    before = snapshot(tmp_path / "run")
    for command in (["sample", "--sweeps", 2], ["evaluate"]):
        code, result, _ = call(capsys, *command, tmp_path / "run")
        assert (code, {Path(file).parent for file in result["files"]}) == (0, {tmp_path / "run"})
    after = snapshot(tmp_path / "run")
    assert set(after) - set(before) == {"samples.npy", "samples.png", "evaluation.json"}
    assert {name: after[name] for name in before} == before
    code, result, _ = call(capsys, "sample", tmp_path / "run" / "checkpoint.safetensors")
    assert (code, "already holds samples.npy, samples.png" in result["error"]) == (2, True)


def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    code, result, _ = call(capsys, "sample", trained, "--sweeps", 2_000_000_000, "--output", tmp_path)
    assert (code, f"cannot write to the output folder {tmp_path}" in result["error"]) == (2, True)


@pytest.mark.parametrize("value", [float("nan"), 1e9])
def test_a_model_that_cannot_be_run_is_named_with_its_file(value, tmp_path, capsys):
    rbm = RBM(6, 3)
    with torch.no_grad():
        rbm.weight[0, 0] = value
    rbm.save(tmp_path / "model.safetensors")
    code, result, _ = call(capsys, "sample", tmp_path / "model.safetensors", "--output", tmp_path / "out")
    assert code == 2
    assert f"{tmp_path / 'model.safetensors'}: the model cannot be run: weights[0]: expected" in result["error"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sweeps", "moments"),
    [(0, [0]), (1, [0, 1]), (7, [0, 1, 2, 5, 7]), (100, [0, 1, 2, 5, 10, 20, 50, 100])],
)
def test_moments(sweeps, moments):
    assert moments_until(sweeps) == moments


def test_snapshots_are_means_at_the_temperature_of_the_chains():
    rbm = RBM(6, 4, seed=3, weight_scale=2.0)
    chains = rbm.chains(5, seed=1)
    moments, means = snapshots(rbm, chains, 2, beta=0.25)
    assert moments == [0, 1, 2]
    fields = chains.layers[1].float() @ rbm.weight.detach().T + rbm.visible_bias.detach()
    assert torch.allclose(means[-1], torch.sigmoid(0.25 * fields), atol=1e-3)
    assert not torch.allclose(means[-1], torch.sigmoid(fields), atol=0.05)
