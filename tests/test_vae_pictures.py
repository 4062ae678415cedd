"""Pictures of autoencoders hold what they say they hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bm_fast import plots
from bm_fast.vae import VAE, pictures

MODEL = VAE(12, (4,), [[6]], seed=2)
X = (torch.rand(9, 12, generator=torch.Generator().manual_seed(0)) < 0.4).float()


def images(figure, n: int, columns: int) -> np.ndarray:
    """The first n images of 4 x 3 units in a mosaic with a frame of one unit."""
    drawn = np.asarray(figure.axes[0].images[0].get_array().filled(np.nan))
    cells = [
        drawn[i // columns * 5 + 1 : i // columns * 5 + 5, i % columns * 4 + 1 : i % columns * 4 + 4] for i in range(n)
    ]
    return np.stack(cells).reshape(n, 12)


def test_reconstructions_stand_below_their_data():
    found = images(pictures.reconstructions(MODEL, X, (4, 3)), 18, 9)
    np.testing.assert_allclose(found[:9], X.numpy())
    np.testing.assert_allclose(found[9:], MODEL.reconstruct(X).numpy(), rtol=1e-5)


def test_samples_repeat_with_their_seed():
    expected = MODEL.sample(20, torch.Generator().manual_seed(7)).numpy()
    figure = pictures.samples(MODEL, (4, 3), 20, seed=7)
    columns = round((figure.axes[0].images[0].get_array().shape[1] - 1) / 4)
    np.testing.assert_allclose(images(figure, 20, columns), expected, rtol=1e-5)


def test_a_traversal_changes_one_unit_at_a_time():
    found = images(pictures.traversals(MODEL, X, (4, 3), n_units=2, n_steps=3, reach=2.0), 6, 3)
    means = MODEL.posterior(X)[0][0]
    order = means.var(0).argsort(descending=True)
    for row in range(2):
        for step, value in enumerate((-2.0, 0.0, 2.0)):
            top = means[:1].clone()
            top[0, order[row]] = value
            np.testing.assert_allclose(found[3 * row + step], MODEL.decode(top)[0].numpy(), rtol=1e-5)


def test_latent_map_shows_the_two_most_active_units_by_label():
    labels = torch.tensor([0, 1, 2] * 3)
    plane = pictures.latent_map(MODEL, X, labels).axes[0]
    means = MODEL.posterior(X)[0][0]
    chosen = means.var(0).argsort(descending=True)[:2]
    assert plane.get_xlabel() == f"unit {int(chosen[0])}"
    assert [text.get_text() for text in plane.get_legend().get_texts()] == ["0", "1", "2"]
    np.testing.assert_allclose(plane.collections[1].get_offsets(), means[1::3][:, chosen].numpy(), rtol=1e-6)
    assert len(pictures.latent_map(MODEL, X).axes[0].collections) == 1


@pytest.mark.parametrize("latents", [(2,), (3, 2)])
def test_a_plane_shows_equally_probable_parts_of_two_units(latents):
    model = VAE(12, latents, [[6]] * len(latents), seed=2)
    found = images(pictures.latent_plane(model, (4, 3), n=5), 25, 5).reshape(5, 5, 12)
    normal = torch.distributions.Normal(0, 1)
    levels = normal.icdf(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    for row in range(5):
        for column in range(5):
            top = torch.stack([levels[column], levels[4 - row]]).unsqueeze(0)  # unit 0 to the right, unit 1 upwards
            np.testing.assert_allclose(found[row, column], model.decode(top)[0].numpy(), rtol=1e-4, atol=1e-6)


def test_maps_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="at least 2 units in the top layer, got 1"):
        pictures.latent_map(VAE(12, (1,), [[6]]), X)
    with pytest.raises(ValueError, match="model: expected 2 units in the top layer, got 4"):
        pictures.latent_plane(MODEL, (4, 3))
    with pytest.raises(ValueError, match=r"points: expected \[n, 2\], got \[3, 3\]"):
        plots.scatter(np.zeros((3, 3)), axes=("a", "b"))
    with pytest.raises(ValueError, match=r"labels: expected \[3\], got \[2\]"):
        plots.scatter(np.zeros((3, 2)), np.zeros(2), axes=("a", "b"))
