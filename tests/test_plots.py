"""Pictures: what is drawn is what was given, sharp, at the right place, in a file that opens."""

from __future__ import annotations

import os
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
import torch

from bm_fast import plots
from bm_fast.estimation import AISEstimate
from bm_fast.tempering import TemperingReport


def drawn(figure, tmp_path):
    """The pixels of the saved picture, float [height, width, 3]."""
    path = plots.save(figure, tmp_path / "picture.png")
    return matplotlib.image.imread(path)[:, :, :3]


def test_image_grid_shows_every_unit_as_a_sharp_square(tmp_path):
    images = np.zeros((4, 6), np.float32)
    images[3, 5] = 1  # the last unit of the last image
    picture = drawn(plots.image_grid(torch.from_numpy(images), (2, 3), columns=2), tmp_path)
    black = np.argwhere(picture.max(2) < 0.05)
    (top, left), (bottom, right) = black.min(0), black.max(0)
    assert len(black) == 64  # 8 x 8 pixels, no blur at the edges
    assert (bottom - top, right - left) == (7, 7)
    # 20 pixels of margin and a frame of one unit lie beyond it
    assert (picture.shape[0] - bottom, picture.shape[1] - right) == (20 + 8 + 1, 20 + 8 + 1)


def test_image_grid_leaves_missing_images_white(tmp_path):
    picture = drawn(plots.image_grid(np.zeros((3, 4)), (2, 2), columns=2), tmp_path)
    assert (picture[-40:-30, -40:-30] == 1).all()


@pytest.mark.parametrize(("n", "columns"), [(100, 10), (64, 8), (60, 10), (1, 1), (7, 3)])
def test_columns_fill_the_last_row_where_they_can(n, columns, tmp_path):
    picture = drawn(plots.image_grid(np.zeros((n, 64)), (8, 8)), tmp_path)
    assert picture.shape[1] == 40 + (9 * columns + 1) * 8


def test_labelled_rows_stand_in_their_order_below_each_other(tmp_path):
    rows = {"one": np.zeros((3, 4)), "two": torch.tensor([[0.0, 0.0, 0.0, 1.0]] * 3)}
    figure = plots.labelled_rows(rows, (2, 2))
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["one", "two"]
    assert axes.get_ylabel() == ""
    shown = np.asarray(axes.images[0].get_array())
    assert np.argwhere(shown == 1).tolist() == [[5, 2 + 3 * i] for i in range(3)]
    with pytest.raises(ValueError, match=r"rows: expected as many images in each, got \[3, 2\]"):
        plots.labelled_rows({"one": rows["one"], "two": rows["two"][:2]}, (2, 2))
    with pytest.raises(ValueError, match="two: expected at least one image of 2 x 2"):
        plots.labelled_rows({"one": rows["one"], "two": np.zeros((3, 5))}, (2, 2))


def test_filters_have_a_scale_that_is_symmetric_about_zero(tmp_path):
    weight = torch.zeros(4, 3)
    weight[:, 0] = 1.0
    weight[:, 1] = -0.5
    figure = plots.filters(weight, (2, 2))
    image = figure.axes[0].images[0]
    assert image.get_clim() == (-1.0, 1.0)
    assert "3 hidden units" in figure.texts[0].get_text()
    red, blue = image.to_rgba(np.array([1.0, -1.0]))
    assert red[0] > red[2]
    assert blue[2] > blue[0]
    assert np.allclose(image.to_rgba(np.array([0.0]))[0], 1, atol=0.05)  # zero is white
    drawn(figure, tmp_path)


def test_filters_show_the_strongest_when_there_are_many():
    weight = torch.zeros(4, 30)
    weight[:, 17] = 2.0
    weight[:, 21] = -3.0
    figure = plots.filters(weight, (2, 2), limit=2)
    assert "2 strongest of 30" in figure.texts[0].get_text()
    values = figure.axes[0].images[0].get_array()
    assert {2.0, -3.0} <= set(np.ma.filled(values, 0).ravel())
    assert plots.filters(torch.zeros(4, 2), (2, 2)).axes[0].images[0].get_clim() == (-1.0, 1.0)


def test_samples_over_sweeps_puts_time_downwards(tmp_path):
    states = np.zeros((3, 2, 4))
    states[2] = 1
    figure = plots.samples_over_sweeps(states, [0, 10, 1000], (2, 2), title="Samples")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["0", "10", "1,000"]
    values = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    assert (values[7:9, 1:3] == 1).all()
    assert (values[1:3, 1:3] == 0).all()
    drawn(figure, tmp_path)


def test_learning_curve_draws_every_series(tmp_path):
    panels = {
        "log-likelihood": {"train": ([1, 2], [-5.0, -4.0]), "valid": ([1, 2], [-6.0, -5.0])},
        "gap": {"gap": ([1], [0.1])},
    }
    figure = plots.learning_curve(panels, title="Learning")
    assert [axes.get_ylabel() for axes in figure.axes] == ["log-likelihood", "gap"]
    assert [list(line.get_ydata()) for line in figure.axes[0].lines] == [[-5.0, -4.0], [-6.0, -5.0]]
    assert not figure.legends
    drawn(figure, tmp_path)


def test_panels_of_the_same_series_share_a_legend(tmp_path):
    series = {"plain": ([1, 2], [3.0, 2.0]), "tempered": ([1, 2], [2.0, 1.0])}
    figure = plots.learning_curve({name: series for name in ("bars", "modes", "digits", "letters")})
    assert len(figure.axes) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["plain", "tempered"]
    assert all(axes.get_legend() is None for axes in figure.axes)
    drawn(figure, tmp_path)


@pytest.mark.parametrize("spread", [0.1, 5.0])
def test_ais_weights_say_whether_to_trust_them(spread, tmp_path):
    weights = 300 + spread * torch.linspace(-2, 2, 100, dtype=torch.float64)
    estimate = AISEstimate.from_log_weights(weights, 1000)
    figure = plots.ais_weights(estimate)
    shares = figure.axes[1].lines[1].get_ydata()
    assert shares[0] == 0
    assert shares[-1] == 1
    assert (figure.get_suptitle() == "") == estimate.trustworthy == (spread < 1)
    assert f"{estimate.log_z:.2f}" in figure.axes[0].get_legend().get_texts()[-1].get_text()
    drawn(figure, tmp_path)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: plots.image_grid(np.zeros((3, 5)), (2, 2)),
            r"images: expected at least one image of 2 x 2 = 4",
        ),
        (lambda: plots.image_grid(np.zeros((0, 4)), (2, 2)), r"got an array \[0, 4\]"),
        (lambda: plots.image_grid(np.zeros(4), (2, 2)), r"got an array \[4\]"),
        (lambda: plots.filters(np.zeros((5, 3)), (2, 2)), r"weight: expected at least one image of 2 x 2"),
        (
            lambda: plots.samples_over_sweeps(np.zeros((2, 3, 4)), [0], (2, 2)),
            r"states: expected \[1, n_ch",
        ),
        (
            lambda: plots.samples_over_sweeps(np.zeros((1, 3, 4)), [0], (2, 2), names=["a", "b"]),
            "names: expected one for each of 3 chains, got 2",
        ),
        (lambda: plots.learning_curve({}), "panels: expected at least one quantity"),
    ],
)
def test_errors_name_the_argument(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_axes_say_their_values_in_full():
    """matplotlib would write 1e2 or +1.257e2 at the end of an axis whose values are close together."""
    values = [-125.7001, -125.7002, -125.7003]
    figure = plots.learning_curve({"log-likelihood": {"validation": ([1, 2, 3], values)}})
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert axes.yaxis.get_offset_text().get_text() == ""
    ticks = [float(label.get_text().replace("\N{MINUS SIGN}", "-")) for label in axes.get_yticklabels()]
    assert ticks == pytest.approx(list(axes.get_yticks()))


def test_pairs_of_rungs_are_counted_in_whole_numbers():
    pairs = torch.tensor([0.5, 0.6], dtype=torch.float64)
    report = TemperingReport(torch.tensor([0.0, 0.5, 1.0]), 4, 10, torch.tensor([40, 40]), pairs, 3, None)
    figure = plots.tempering(report)
    figure.draw_without_rendering()
    assert all(float(tick) == round(tick) for tick in figure.axes[0].get_xticks())


def test_no_window_system_and_no_matplotlib_before_the_first_picture():
    code = (
        "import sys; from bm_fast import plots; assert 'matplotlib' not in sys.modules; import numpy as np; "
        "plots.image_grid(np.zeros((2, 4)), (2, 2)); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "DISPLAY": ""})
