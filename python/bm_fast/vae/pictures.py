"""Pictures of an autoencoder: samples, reconstructions, traversals of hidden units, and a map of the hidden space."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bm_fast import plots
from bm_fast.arguments import count
from bm_fast.arrays import Array
from bm_fast.vae.model import VAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def samples(model: VAE, shape: tuple[int, int], n: int = 100, seed: int = 0) -> Figure:
    """Means of x for n samples of the model; shape: ``(rows, columns)`` of one image."""
    generator = torch.Generator(model.device).manual_seed(seed)
    return plots.image_grid(model.sample(n, generator), shape, title="Samples: pixel probabilities")


def reconstructions(model: VAE, x: Array, shape: tuple[int, int]) -> Figure:
    """Rows of x above what the model makes of the means of their hidden units."""
    rows = model.rows(x)
    pair = torch.cat([rows, model.reconstruct(rows)])
    return plots.image_grid(pair, shape, columns=len(x), title="Data, and their reconstructions")


@torch.no_grad()
def traversals(
    model: VAE, x: Array, shape: tuple[int, int], n_units: int = 10, n_steps: int = 11, reach: float = 3.0
) -> Figure:
    """One row of images for each of the most active units of hᴸ: its value goes from -reach to reach.

    x: rows of data, from which activity is measured; the other units stay at their means for the first row.
    """
    means = model.posterior(model.rows(x))[-1][0]
    units = _most_active(means, n_units)
    steps = torch.linspace(-reach, reach, n_steps, device=means.device)
    top = means[0].repeat(len(units), n_steps, 1)
    for row, unit in enumerate(units):
        top[row, :, unit] = steps
    images = model.decode(top.flatten(0, 1))
    title = f"Traversals of {len(units)} units, from {-reach:g} to {reach:g}"
    return plots.image_grid(images, shape, columns=n_steps, title=title)


def latent_plane(model: VAE, shape: tuple[int, int], n: int = 20) -> Figure:
    """What a model with two units in its top layer draws over their plane: n x n images by ``decode``.

    The coordinates are the quantiles Φ⁻¹((i + ½) / n) of p(hᴸ), so that equal parts of the picture are equally probable
    under it. Unit 0 grows to the right, unit 1 upwards. Source: Kingma and Welling (2014), appendix A.
    """
    count("n", n)
    if model.latents[-1] != 2:
        raise ValueError(f"model: expected 2 units in the top layer, got {model.latents[-1]}")
    quantiles = torch.special.ndtri((torch.arange(n, device=model.device) + 0.5) / n)
    upwards, rightwards = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    images = model.decode(torch.stack([rightwards, upwards], -1).flatten(0, 1))
    return plots.image_grid(images, shape, columns=n, title="Means of x over the plane of the two hidden units")


def latent_map(model: VAE, x: Array, labels: Tensor | None = None) -> Figure:
    """Where rows of x lie in the hidden space: means of the two most active units of hᴸ, coloured by label."""
    if model.latents[-1] < 2:
        raise ValueError(f"model: expected at least 2 units in the top layer, got {model.latents[-1]}")
    means = model.posterior(model.rows(x))[-1][0]
    first, second = _most_active(means, 2)
    return plots.scatter(
        means[:, [first, second]], labels, axes=(f"unit {first}", f"unit {second}"), title="Latent map"
    )


def _most_active(means: Tensor, n: int) -> list[int]:
    order: list[int] = means.var(0, correction=0).argsort(descending=True, stable=True).tolist()
    return order[:n]
