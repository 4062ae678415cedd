"""Pictures of a machine: images of units, filters, samples over time, learning curves, importance weights.

Every function returns a matplotlib ``Figure`` that belongs to no window; ``save`` writes it. Images are drawn with a
whole number of screen pixels for each unit, so that they stay sharp. matplotlib is imported with the first picture.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bm_fast.estimation import AISEstimate
    from bm_fast.tempering import TemperingReport

_DPI = 120
_BLUE, _ORANGE, _GREY = "#2a6f97", "#e07a1f", "#6c757d"

Array = Tensor | NDArray[Any]


def image_grid(images: Array, shape: tuple[int, int], *, columns: int | None = None, title: str = "") -> Figure:
    """Images in rows, white paper and black ink.

    images: ``[n, rows * columns of an image]`` with values from 0 to 1; shape: ``(rows, columns)`` of one image.
    """
    values = _matrix("images", images, shape)
    return _mosaic(values, shape, columns or _columns(len(values), shape), title, colours="Greys", limits=(0.0, 1.0))


def filters(weight: Array, shape: tuple[int, int], *, limit: int = 100, title: str = "") -> Figure:
    """Weights from the visible units to each hidden unit, on one colour scale that is symmetric about zero.

    weight: ``[n_visible, n_hidden]``. Of more than ``limit`` hidden units those with the longest weight vectors are
    shown. The scale ends at the 99.8th percentile of the absolute weights, so that single ones cannot wash it out.
    """
    values = _matrix("weight", _numpy(weight).T, shape)
    if len(values) > limit:
        strongest = np.sort(np.argsort(-np.linalg.norm(values, axis=1), kind="stable")[:limit])
        title = title or f"Filters: the {limit} strongest of {len(values)} hidden units"
        values = values[strongest]
    top = float(np.quantile(np.abs(values), 0.998)) or 1.0
    title = title or f"Filters of the {len(values)} hidden units"
    return _mosaic(values, shape, _columns(len(values), shape), title, colours="RdBu_r", limits=(-top, top), scale=True)


def samples_over_sweeps(
    states: Array,
    sweeps: Sequence[int],
    shape: tuple[int, int],
    *,
    title: str = "",
    names: Sequence[str] = (),
) -> Figure:
    """Chains side by side, time running down: one row of images for each entry of ``sweeps``.

    states: ``[n_times, n_chains, units]`` with values from 0 to 1. names: of the chains, to stand above them.
    """
    values = _numpy(states)
    if values.ndim != 3 or len(values) != len(sweeps):
        raise ValueError(f"states: expected [{len(sweeps)}, n_chains, units], got {list(values.shape)}")
    if names and len(names) != values.shape[1]:
        raise ValueError(f"names: expected one for each of {values.shape[1]} chains, got {len(names)}")
    flat = _matrix("states", values.reshape(-1, values.shape[2]), shape)
    labels = [f"{sweep:,}" for sweep in sweeps]
    return _mosaic(
        flat, shape, values.shape[1], title, colours="Greys", limits=(0.0, 1.0), row_labels=labels, column_labels=names
    )


def labelled_rows(rows: Mapping[str, Array], shape: tuple[int, int], *, title: str = "") -> Figure:
    """One row of images under each name: name -> ``[n, units]`` with values from 0 to 1, the same n in each."""
    values = [_matrix(name, images, shape) for name, images in rows.items()]
    if len({len(images) for images in values}) != 1:
        raise ValueError(f"rows: expected as many images in each, got {[len(images) for images in values]}")
    flat = np.concatenate(values)
    return _mosaic(
        flat, shape, len(values[0]), title, colours="Greys", limits=(0.0, 1.0), row_labels=list(rows), labels_are=""
    )


def learning_curve(
    panels: Mapping[str, Mapping[str, tuple[Sequence[float], Sequence[float]]]], *, x: str = "epoch", title: str = ""
) -> Figure:
    """One panel for each quantity, one line for each series: quantity -> series -> (epochs, values).

    A series alone in its panel whose name is empty has no legend. Three panels to a row. Panels of the same several
    series share one legend above them.
    """
    if not panels:
        raise ValueError("panels: expected at least one quantity, got none")
    from matplotlib.ticker import MaxNLocator

    names = [list(series) for series in panels.values()]
    shared = len(panels) > 1 and len(names[0]) > 1 and all(each == names[0] for each in names)
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure = _figure(4.6 * columns, 3.4 * rows + 0.4 * shared)
    figure.set_layout_engine("constrained")
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in places[len(panels) :]:
        empty.remove()
    for axes, (quantity, series) in zip(places, panels.items(), strict=False):
        for (name, (epochs, values)), colour in zip(series.items(), _colours(len(series)), strict=True):
            axes.plot(epochs, values, color=colour, label=name, marker="o" if len(values) < 2 else None)
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_ylabel(quantity)
        _plain(axes)
        if not shared and any(series):
            axes.legend(frameon=False)
    if shared:
        lines = figure.axes[0].get_lines()
        figure.legend(lines, names[0], loc="outside upper center", ncols=len(lines), frameon=False)
    figure.suptitle(title)
    return figure


def scatter(points: Array, labels: Array | None = None, *, axes: tuple[str, str], title: str = "") -> Figure:
    """Points in a plane, coloured by label.

    points: ``[n, 2]``; labels: whole numbers ``[n]``; axes: names of the two coordinates.
    """
    values = _numpy(points)
    if values.ndim != 2 or values.shape[1] != 2:
        raise ValueError(f"points: expected [n, 2], got {list(values.shape)}")
    classes = np.zeros(len(values), dtype=int) if labels is None else _numpy(labels)
    if classes.shape != (len(values),):
        raise ValueError(f"labels: expected [{len(values)}], got {list(classes.shape)}")
    from matplotlib import colormaps

    figure = _figure(6.4, 5.6)
    figure.set_layout_engine("constrained")
    plane = figure.subplots()
    kinds = np.unique(classes)
    colours = [_BLUE] if labels is None else colormaps["turbo"](np.linspace(0.05, 0.95, len(kinds)))
    size = min(20.0, max(5.0, 6000 / len(values)))  # few points are hard to see, many cover each other
    for kind, colour in zip(kinds, colours, strict=True):
        chosen = values[classes == kind]
        plane.scatter(chosen[:, 0], chosen[:, 1], s=size, color=colour, alpha=0.6, lw=0, label=str(kind))
    plane.set_xlabel(axes[0])
    plane.set_ylabel(axes[1])
    _plain(plane)
    if labels is not None:
        plane.legend(frameon=False, markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title)
    return figure


def ais_weights(estimate: AISEstimate) -> Figure:
    """Whether an estimate of log Z rests on many runs: the log weights, and how the sum of the weights builds up.

    Trustworthy weights form one narrow hill round log Z, and the curve stays near the diagonal; a curve that runs flat
    and then jumps says that a few runs make up the whole estimate.
    """
    from matplotlib.ticker import MaxNLocator

    log_weights = np.sort(estimate.log_weights.cpu().numpy())
    figure = _figure(9.2, 3.6)
    figure.set_layout_engine("constrained")
    left, right = figure.subplots(1, 2)
    left.hist(log_weights, bins=max(10, round(math.sqrt(len(log_weights)))), color=_BLUE, alpha=0.85)
    low, high = estimate.interval
    if math.isfinite(low):
        left.axvspan(low, high, color=_ORANGE, alpha=0.25, lw=0, label="± 3 standard errors")
    left.axvline(estimate.log_z, color=_ORANGE, lw=2, label=f"log Z = {estimate.log_z:.2f}")
    left.locator_params(axis="x", nbins=6)
    left.yaxis.set_major_locator(MaxNLocator(8, integer=True))
    left.set_xlabel("log weight of a run")
    left.set_ylabel("runs")
    left.legend(frameon=False)
    share = np.concatenate([[0.0], np.cumsum(np.exp(log_weights - log_weights[-1]))])
    runs = np.linspace(0, 1, len(share))
    right.plot([0, 1], [0, 1], color=_GREY, lw=1, ls="--", label="all runs count alike")
    right.plot(runs, share / share[-1], color=_BLUE, lw=2, label="this estimate")
    right.set_xlabel("share of the runs, lightest first")
    right.set_ylabel("share of the sum of weights")
    right.legend(frameon=False, loc="upper left")
    right.set_title(
        f"effective sample size {estimate.effective_sample_size:.1f} of {len(log_weights)} runs", fontsize=10
    )
    for axes in (left, right):
        _plain(axes)
    if not estimate.trustworthy:
        figure.suptitle(textwrap.fill(f"NOT TRUSTWORTHY: {estimate.reason}", 110), fontsize=10, color="#b02a30")
    return figure


def tempering(report: TemperingReport, *, ladders: int = 3) -> Figure:
    """Swaps between neighbouring rungs, the barrier from base to target, and energies at the target if they were kept.

    Even swaps make a level left picture and a straight line through the rungs in the middle one, whose steepest parts
    are where base and machine differ most. Energies that stay on one level say that chains do not cross between modes.

    ladders: how many of them to draw over time.
    """
    from matplotlib.ticker import MaxNLocator

    betas = _numpy(report.betas)
    acceptance = _numpy(report.acceptance)
    figure = _figure(4.2 * (2 if report.gaps is None else 3), 3.6)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, 2 if report.gaps is None else 3)
    left, middle = panels[0], panels[1]
    left.bar(np.arange(len(acceptance)), acceptance, color=_BLUE, alpha=0.85)
    left.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    left.axhline(np.nanmean(acceptance), color=_ORANGE, lw=2, label=f"mean {np.nanmean(acceptance):.0%}")
    left.set_ylim(0, 1)
    left.set_xlabel("pair of rungs, from the base")
    left.set_ylabel("swaps taken")
    left.legend(frameon=False)
    barrier = np.concatenate([[0.0], np.cumsum(_numpy(report.rejection))])
    middle.plot(betas, barrier, color=_BLUE, lw=2, marker="o", ms=4)
    middle.set_xlabel("inverse temperature")
    middle.set_ylabel("barrier up to there")
    middle.set_title(
        f"barrier {report.barrier:.2f}; round trips {report.trips}, predicted {report.predicted_trips:.0f}", fontsize=10
    )
    if report.gaps is not None:
        over_time = _numpy(report.gaps[:, :, -1])
        for ladder, colour in zip(range(min(ladders, report.n_ladders)), _colours(ladders), strict=False):
            panels[2].plot(over_time[:, ladder], color=colour, lw=0.8)
        panels[2].set_xlabel("round")
        panels[2].set_ylabel("energy at the target")
        panels[2].set_title(f"autocorrelation {report.autocorrelation:.1f} rounds", fontsize=10)
    for axes in panels:
        _plain(axes)
    if report.advice:
        figure.suptitle(textwrap.fill("POOR MIXING: " + "; ".join(report.advice), 110), fontsize=10, color="#b02a30")
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Writes the figure in the format of the path's suffix (.png, .pdf, .svg) and returns the path."""
    figure.savefig(path, dpi=_DPI)
    return Path(path)


def _mosaic(
    values: NDArray[Any],
    shape: tuple[int, int],
    columns: int,
    title: str,
    *,
    colours: str,
    limits: tuple[float, float],
    row_labels: Sequence[str] = (),
    labels_are: str = "sweeps",
    column_labels: Sequence[str] = (),
    scale: bool = False,
) -> Figure:
    """All images as one picture, an empty unit between them, laid out in whole screen pixels."""
    rows, (height, width) = -(-len(values) // columns), shape
    picture = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), np.nan)
    low, high = limits
    for i, image in enumerate(values.reshape(-1, height, width)):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        frame = picture[top : top + height + 2, left : left + width + 2]
        frame[np.isnan(frame)] = low - (high - low)  # below the scale: drawn in the colour of the frames
        frame[1:-1, 1:-1] = image.clip(low, high)
    zoom = max(1, min(8, round(1100 / max(picture.shape)), round(84 / max(shape))))
    width_px, height_px = picture.shape[1] * zoom, picture.shape[0] * zoom
    left_margin = 20 + (30 + 9 * max(len(label) for label in row_labels) if row_labels else 0)
    total_width = width_px + left_margin + (130 if scale else 20)
    total_height = height_px + 20 + (48 if title else 20) + (26 if column_labels else 0)
    figure = _figure(total_width / _DPI, total_height / _DPI)
    axes = figure.add_axes(
        (left_margin / total_width, 20 / total_height, width_px / total_width, height_px / total_height)
    )
    from matplotlib import colormaps

    colour_map = colormaps[colours].with_extremes(bad="white", under="#cfd4da")
    drawn = axes.imshow(picture, cmap=colour_map, vmin=low, vmax=high, interpolation="none", aspect="auto")
    axes.set_xticks([(width + 1) * (i + 0.5) for i in range(len(column_labels))], column_labels)
    axes.xaxis.tick_top()
    axes.set_yticks([(height + 1) * (i + 0.5) for i in range(len(row_labels))], row_labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_ylabel(labels_are if row_labels else "", color=_GREY)
    if title:
        figure.text(left_margin / total_width, 1 - 30 / total_height, title, fontsize=11)
    if scale:
        bar_px = min(height_px, 320)
        bottom = (20 + height_px - bar_px) / total_height
        bar = figure.add_axes((1 - 110 / total_width, bottom, 14 / total_width, bar_px / total_height))
        figure.colorbar(drawn, cax=bar, extend="neither").outline.set_visible(False)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, lw=0.5)
    axes.ticklabel_format(useOffset=False)  # each tick says its value, with nothing to add to it


def _colours(n: int) -> list[str]:
    return [(_BLUE, _ORANGE, "#4f772d", "#7b2d8b", _GREY, "#b5344a")[i % 6] for i in range(n)]


def _columns(n: int, shape: tuple[int, int]) -> int:
    """Columns for which the whole comes out about as wide as high, and the last row full where that is near."""
    ideal = math.sqrt(n * shape[0] / shape[1])
    full = [columns for columns in range(1, n + 1) if n % columns == 0 and 0.7 * ideal <= columns <= 2 * ideal]
    return min(full, key=lambda columns: abs(columns - 1.1 * ideal)) if full else min(n, math.ceil(1.1 * ideal))


def _numpy(values: Array) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _matrix(name: str, values: Array, shape: tuple[int, int]) -> NDArray[Any]:
    matrix = _numpy(values)
    if matrix.ndim != 2 or len(matrix) < 1 or matrix.shape[1] != shape[0] * shape[1]:
        raise ValueError(
            f"{name}: expected at least one image of {shape[0]} x {shape[1]} = {shape[0] * shape[1]} units, "
            f"got an array {list(matrix.shape)}"
        )
    return matrix
