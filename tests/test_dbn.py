"""Deep belief nets: generation against enumeration and to the bit, recognition, files, errors by name."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from belief_exact import dbn, enumerate_dbn
from bm_fast import DBM, DBN, RBM, Kind
from bm_fast.checkpoints import CheckpointError
from bm_fast.estimation import exact_log_z
from conftest import needs_native
from enumeration import DRIFT_BOUND, all_states, enumerate_machine, largest_z, variation_ratio

SHAPES = [(4, 3, 3), (3, 3, 2, 2), (2, 3, 2, 2, 2)]


def test_the_examples_of_the_guide_run(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "belief-nets.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", guide, flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    namespace: dict[str, object] = {}
    for block in blocks:
        short = re.sub(r"epochs=20\b", "epochs=1", block).replace("epochs=(20, 20)", "epochs=(1, 1)")
        exec(compile(short.replace("betas=2000", "betas=50"), "belief-nets.md", "exec"), namespace)
    assert "nats (cases" in capsys.readouterr().out


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units", SHAPES)
def test_samples_stay_at_the_enumerated_distribution(units: tuple[int, ...], backend: str) -> None:
    """Chains start at exact draws of the top layers and at nothing below; false alarms as in ``variation_ratio``."""
    model, n = dbn(units), 40_000 if backend == "native" else 20_000
    with torch.no_grad():
        for weight in model.recognition_weights:
            weight.zero_()  # the way up has no part in generation
    truth = enumerate_dbn(model)
    chains = model.chains(n, seed=3)
    rows = torch.multinomial(truth.log_p.exp(), n, replacement=True, generator=torch.Generator().manual_seed(1))
    for state, drawn in zip(chains.layers[-2:], truth.layers(rows)[-2:], strict=True):
        state.copy_(drawn)
    for sweeps in (1, 3):
        model.sample(chains, sweeps)
        numbers = torch.cat(chains.layers, 1).long() @ (1 << torch.arange(sum(units)))
        assert variation_ratio(truth.log_p.exp(), numbers) < DRIFT_BOUND


def test_the_yardstick_tells_a_belief_net_from_the_undirected_machine() -> None:
    """The same weights as those of a DBM make another distribution, which the test above would find."""
    model = dbn((4, 3, 3))
    machine = DBM((4, 3, 3))
    machine.load_state_dict(
        {f"weights.{i}": w for i, w in enumerate((*model.generative_weights, model.top.weight))}
        | {f"biases.{i}": b for i, b in enumerate(model.layer_biases)}
    )
    other = enumerate_machine(machine.machine())
    drawn = other.draw(40_000, torch.Generator().manual_seed(0))
    assert variation_ratio(enumerate_dbn(model).log_p.exp(), other.numbers(drawn)) > 3 * DRIFT_BOUND


def test_fair_coins_reach_the_distribution_of_visible_states() -> None:
    """16 states: the yardstick is 0.80 with a standard deviation of 0.15, so a false alarm lies six of them away."""
    model, n = dbn((4, 3, 3)), 40_000
    chains = model.sample(model.chains(n, seed=5), 60)
    numbers = chains.layers[0].long() @ (1 << torch.arange(4))
    assert variation_ratio(enumerate_dbn(model).log_visible().exp(), numbers) < 1.8
    assert chains.sweep == 60


def test_gaussian_visible_units_have_the_mean_and_variance_of_their_parents() -> None:
    """Residuals of 20,000 samples: 6 means and variances within 5 standard errors, false alarms below 1e-5."""
    model = dbn((3, 4, 3), visible=Kind.GAUSSIAN)
    chains = model.sample(model.chains(20_000, seed=0), 10)
    v, h = chains.layers[0], chains.layers[1]
    assert v.dtype is torch.float32
    residuals = v - model.visible_means(h)
    assert model.log_precision is not None
    variance = torch.exp(-model.log_precision.detach().double())
    assert largest_z(residuals, torch.zeros(3)) < 5
    assert largest_z(residuals.double().square(), variance) < 5


def test_one_call_or_many_batches_and_threads_give_the_same_bits() -> None:
    model = dbn((6, 5, 4, 3))
    whole = model.sample(model.chains(50, seed=7), 9)
    parts = model.chains(50, seed=7)
    for sweeps in (4, 0, 1, 4):
        model.sample(parts, sweeps)
    torch.set_num_threads(2)
    threads = model.sample(model.chains(50, seed=7), 9)
    halves = model.chains(50, seed=7)
    for start in (0, 30):
        model.sample(halves.select(start, 30 if start == 0 else 50), 9)
    for layer in range(4):
        for other in (parts, threads, halves):
            assert torch.equal(whole.layers[layer], other.layers[layer])


@needs_native
def test_the_reference_draws_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for name in ("native", "reference"):
        monkeypatch.setenv("BM_FAST_BACKEND", name)
        model = dbn((7, 5, 4, 6))
        drawn.append(model.sample(model.chains(33, seed=2), 5).layers)
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


def test_neighbouring_layers_do_not_share_random_numbers() -> None:
    """Units at fair coins without weights: shared numbers would make layers equal. 4,000 chains, 5 standard errors."""
    model = DBN((3, 3, 3, 3), weight_scale=0.0)
    layers = model.sample(model.chains(4000, seed=0), 2).layers
    for i in range(4):
        for j in range(i):
            assert abs(float((layers[i] == layers[j]).float().mean()) - 0.5) < 5 * 0.5 / math.sqrt(12_000)


def test_progress_counts_all_sweeps() -> None:
    model, seen = dbn(), []
    model.sample(model.chains(3, seed=0), 7, progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 7


# --- recognition ------------------------------------------------------------------------------------------------------


def test_means_go_up_by_the_recognition_net_and_down_by_the_generative_one(backend: str) -> None:
    model = dbn((5, 4, 3, 2))
    v = all_states(5)
    with torch.no_grad():
        h1 = torch.sigmoid(v.float() @ model.recognition_weights[0] + model.recognition_biases[0])
        h2 = torch.sigmoid(h1 @ model.recognition_weights[1] + model.recognition_biases[1])
        h3 = torch.sigmoid(h2 @ model.top.weight + model.top.hidden_bias)
        down = torch.sigmoid(h3 @ model.top.weight.T + model.top.visible_bias)
        down = torch.sigmoid(down @ model.generative_weights[1].T + model.generative_biases[1])
        expected = torch.sigmoid(down @ model.generative_weights[0].T + model.generative_biases[0])
    for means, want in zip(model.hidden_means(v), (h1, h2, h3), strict=True):
        torch.testing.assert_close(means, want, rtol=0, atol=1e-3)
    assert torch.equal(model.features(v), torch.cat(model.hidden_means(v), 1))
    torch.testing.assert_close(model.reconstruct(v), expected, rtol=0, atol=1e-3)
    torch.testing.assert_close(model.visible_means(down), expected, rtol=0, atol=1e-3)


def test_numpy_in_numpy_out() -> None:
    model, v = dbn((5, 4, 3)), all_states(5).numpy()
    for result in (model.features(v), model.reconstruct(v), *model.hidden_means(v), model.variational_free_energy(v)):
        assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(model.features(v), model.features(torch.from_numpy(v)).numpy())


def test_the_network_begins_at_the_pass_up_and_learns() -> None:
    """Parity of five bits, which no linear classifier of the pixels knows."""
    model, v = dbn((5, 16, 8)), all_states(5)
    before = [p.detach().clone() for p in model.parameters()]
    network, x, labels = model.to_mlp(2), v.float(), v.sum(1).long() % 2
    for layer, means in zip(network.hidden(x), model.hidden_means(v), strict=True):
        torch.testing.assert_close(layer.detach(), means, rtol=0, atol=1e-3)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    assert (network(x).argmax(1) == labels).float().mean() > 0.95
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# --- stacks and files -------------------------------------------------------------------------------------------------


def test_a_stack_is_copied_and_its_two_directions_part() -> None:
    rbms = [RBM(5, 4, Kind.GAUSSIAN, 1, 0.5), RBM(4, 3, seed=2, weight_scale=0.5), RBM(3, 2, seed=3, weight_scale=0.5)]
    with torch.no_grad():
        for i, rbm in enumerate(rbms):
            rbm.visible_bias.fill_(i + 0.1)
            rbm.hidden_bias.fill_(i + 0.2)
        assert rbms[0].log_precision is not None
        rbms[0].log_precision.copy_(torch.arange(5) / 10)
    model = DBN.from_rbms(rbms)
    assert model.units == (5, 4, 3, 2)
    assert model.visible is Kind.GAUSSIAN
    for i, rbm in enumerate(rbms[:2]):
        for weight in (model.generative_weights[i], model.recognition_weights[i]):
            assert torch.equal(weight, rbm.weight)
        assert torch.equal(model.generative_biases[i], rbm.visible_bias)
        assert torch.equal(model.recognition_biases[i], rbm.hidden_bias)
    for name, value in rbms[2].state_dict().items():
        assert torch.equal(model.top.state_dict()[name], value)
    assert torch.equal(model.state_dict()["log_precision"], rbms[0].log_precision)
    with torch.no_grad():
        model.generative_weights[0].zero_()
        model.top.weight.zero_()
    assert torch.equal(model.recognition_weights[0], rbms[0].weight)
    assert bool((rbms[2].weight != 0).all())


def test_a_new_net_has_tied_directions_and_distinct_couplings() -> None:
    model = DBN((4, 4, 4, 4), seed=3)
    weights = [*model.generative_weights, model.top.weight]
    assert all(torch.equal(g, r) for g, r in zip(model.generative_weights, model.recognition_weights, strict=True))
    assert not any(torch.equal(weights[i], weights[j]) for i in range(3) for j in range(i))
    again = DBN((4, 4, 4, 4), seed=3).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("visible", [Kind.BERNOULLI, Kind.GAUSSIAN])
def test_save_and_load(visible: Kind, tmp_path: Path) -> None:
    model = dbn((4, 3, 2), visible=visible)
    model.save(tmp_path / "dbn.safetensors")
    loaded = DBN.load(tmp_path / "dbn.safetensors")
    assert loaded.units == (4, 3, 2)
    assert loaded.visible is visible
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    with pytest.raises(CheckpointError, match=r"holds no 'dbm', only \['dbn'\]"):
        DBM.load(tmp_path / "dbn.safetensors")


def test_initial_biases_bring_back_the_mean_of_the_data() -> None:
    model = DBN((6, 4, 3), weight_scale=0.0)
    data = (torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) < 0.3).to(torch.uint8)
    model.initialise_biases(data)
    expected = (data.double().sum(0) + 1) / 52
    torch.testing.assert_close(model.visible_means(torch.ones(1, 4))[0].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DBN((5, 4)), r"units: expected those of the visible and of at least two hidden layers, got \[5, 4\]"),
        (lambda: DBN((5, 0, 3)), "units of layer 'hidden1': expected a whole number of at least 1, got 0"),
        (lambda: DBN((5, 4, 3), weight_scale=math.nan), "weight_scale: expected a finite number"),
        (lambda: DBN((5, 4, 3), seed=-1), "seed: expected 0 to"),
        (lambda: DBN.from_rbms([]), "rbms: expected at least one RBM, got none"),
        (lambda: DBN.from_rbms([RBM(4, 3)]), "units: expected .* at least two hidden layers"),
        (
            lambda: DBN.from_rbms([RBM(4, 3), RBM(4, 2)]),
            r"rbms\[1\]: expected 3 Bernoulli visible units, as many as rbms\[0\] has hidden ones, got 4 Bernoulli",
        ),
        (lambda: DBN.from_rbms([RBM(4, 3), RBM(3, 2, Kind.GAUSSIAN)]), r"rbms\[1\]: .* got 3 Gaussian ones"),
        (lambda: dbn().chains(0, seed=0), "n_chains: expected 1 to"),
        (lambda: dbn().sample(dbn().chains(2, 0), -1), "sweeps: expected 0 to"),
        (lambda: dbn().sample(dbn((5, 3, 3)).chains(2, 0), 1), r"chains.layers\[0\] \(visible\): expected .* \[2, 4\]"),
        (lambda: dbn().features(torch.zeros(2, 5)), r"v: expected shape \[n, 4\]"),
        (lambda: dbn().features(torch.full((2, 4), 2.0)), "v: expected values from 0 to 1"),
        (lambda: dbn().visible_means(torch.zeros(2, 4)), r"h: expected shape \[n, 3\]"),
        (lambda: dbn().variational_free_energy(all_states(4), n_samples=0), "n_samples: expected a whole number"),
        (
            lambda: dbn().variational_free_energy(all_states(4), recognition="mean"),  # type: ignore[arg-type]
            "recognition: expected 'samples' or 'means', got 'mean'",
        ),
        (lambda: dbn().to_mlp(2)(torch.zeros(2, 7)), r"x: expected \[n, 4\], data, got \[2, 7\]"),
        (lambda: dbn().to_mlp(1), "n_classes: expected a whole number of at least 2, got 1"),
    ],
)
def test_errors_name_the_argument(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("generative_weights.0", r"generative weights\[0\]"),
        ("recognition_biases.0", r"recognition biases\[1\]"),
        ("top.weight", r"top weights\[0\]"),
    ],
)
def test_parameters_that_are_not_finite_are_named(part: str, message: str) -> None:
    model = dbn()
    with torch.no_grad():
        model.get_parameter(part).fill_(math.nan)
    with pytest.raises(ValueError, match=message):
        model.features(all_states(4))


def test_a_belief_net_is_no_undirected_machine() -> None:
    with pytest.raises(TypeError, match="expected a Machine or a model with a machine, such as an RBM; got DBN"):
        exact_log_z(dbn())  # type: ignore[arg-type]
