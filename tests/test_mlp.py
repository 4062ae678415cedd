"""The classifier that begins as a pass of mean field."""

from __future__ import annotations

import pytest
import torch

from enumeration import all_states
from test_dbm import dbm


@pytest.mark.parametrize("units", [(5, 4), (5, 4, 3), (5, 4, 3, 2)])
def test_hidden_layers_begin_at_the_mean_field(units: tuple[int, ...]) -> None:
    model, v = dbm(units), all_states(5)
    network = model.to_mlp(3).eval()
    posterior = model.mean_field(v, 300, 1e-6)
    x = model.mlp_inputs(v, 300, 1e-6)
    for layer, means in zip(network.hidden(x), posterior.layers[1:], strict=True):
        torch.testing.assert_close(layer.detach(), means, rtol=0, atol=1e-4)
    assert network(x).shape == (32, 3)


def test_fine_tuning_learns_and_leaves_the_machine_alone() -> None:
    """Parity of five bits, which no linear classifier of the pixels knows."""
    model, v = dbm((5, 12, 6)), all_states(5)
    before = [p.detach().clone() for p in model.parameters()]
    labels, x = v.sum(1).long() % 2, model.mlp_inputs(v)
    network = model.to_mlp(2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(x), labels).backward()
        optimizer.step()
    assert (network(x).argmax(1) == labels).float().mean() > 0.95
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_l_bfgs_fine_tunes() -> None:
    """It takes parameters that are contiguous in memory."""
    model, v = dbm((5, 12, 6)), all_states(5)
    labels, x, network = (v.sum(1) > 2).long(), model.mlp_inputs(v), model.to_mlp(2)
    optimizer = torch.optim.LBFGS(network.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert (network(x).argmax(1) == labels).float().mean() > 0.95


def test_dropout_acts_in_training_alone() -> None:
    model, v = dbm((5, 4, 3)), all_states(5)
    network, x = model.to_mlp(2, dropout=0.5), model.mlp_inputs(v)
    torch.manual_seed(0)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))


def test_errors_name_the_argument() -> None:
    model = dbm((5, 4, 3))
    with pytest.raises(ValueError, match="n_classes: expected a whole number of at least 2, got 1"):
        model.to_mlp(1)
    with pytest.raises(ValueError, match=r"x: expected \[n, 8\], data beside posteriors"):
        model.to_mlp(2)(torch.zeros(2, 5))
