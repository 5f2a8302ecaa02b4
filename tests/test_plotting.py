"""Figures and rendered pictures: what they contain, where, and that odd input is harmless."""

from __future__ import annotations

import io
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.colors import to_hex
from PIL import Image

from superpoint_lib import plotting
from superpoint_lib.plotting.arrays import heat, score_colors, score_strength

RNG = np.random.default_rng(0)
GRAY = RNG.random((40, 56)).astype(np.float32)
NOTHING = np.zeros((0, 2))


def lines_of(ax):
    (collection,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    return collection


@pytest.mark.parametrize(
    "image",
    [
        GRAY,
        GRAY.astype(np.float64)[None],
        torch.from_numpy(GRAY)[None],
        torch.from_numpy(GRAY).bfloat16(),
        np.stack([GRAY] * 3, -1),
        np.stack([GRAY] * 3),
        (GRAY * 255).astype(np.uint8),
        GRAY > 0.5,
    ],
)
def test_to_rgb_takes_every_kind_of_image(image):
    rgb = plotting.to_rgb(image)
    assert rgb.shape == (40, 56, 3) and rgb.dtype == np.uint8
    binary = getattr(image, "dtype", None) == np.bool_
    np.testing.assert_allclose(rgb[..., 0] / 255, GRAY > 0.5 if binary else GRAY, atol=0.005)


def test_to_rgb_clips_and_refuses():
    assert plotting.to_rgb(np.array([[-1.0, 0.0, 0.5, 2.0]]))[0, :, 0].tolist() == [0, 0, 128, 255]
    with pytest.raises(ValueError, match=r"\(2, 3, 40, 56\)"):
        plotting.to_rgb(np.zeros((2, 3, 40, 56)))


def test_pictures_show_once_and_leave_pyplot_alone():
    code = (
        "from superpoint_lib import plotting; import numpy as np, sys;"
        "plotting.plot_images(np.zeros((2, 9, 9)));"
        "import matplotlib.pyplot as plt; assert plt.get_fignums() == []"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_picture_encodes_charts_as_png_and_photographs_as_jpeg():
    mime, data = plotting.plot_curves({"a": ([1, 2], [3, 4])}).encode()
    assert mime == "image/png" and data[:4] == b"\x89PNG"
    noise = np.random.default_rng(1).random((480, 640))
    mime, data = plotting.plot_images([noise]).encode()
    assert mime == "image/jpeg" and data[:2] == b"\xff\xd8"
    assert len(data) < 400_000


def test_a_charts_palette_keeps_its_colours():
    curves = {name: ([0, 1, 2], [0, i, 1]) for i, name in enumerate("abcdef")}
    figure = plotting.plot_curves(curves)
    _, data = figure.encode()
    full = io.BytesIO()
    figure.savefig(full, format="png", bbox_inches="tight", pad_inches=0.05)
    assert len(data) < 0.6 * len(full.getvalue())
    small, large = (
        np.asarray(Image.open(file).convert("RGB")).astype(int) for file in (io.BytesIO(data), full)
    )
    assert small.shape == large.shape
    assert np.abs(small - large).max() < 16


def test_picture_displays_itself_in_a_notebook(monkeypatch):
    shown = []
    import IPython.display

    monkeypatch.setattr(IPython.display, "display", lambda data, raw: shown.append(data))
    figure = plotting.plot_curves({"a": ([1, 2], [3, 4])})
    figure._ipython_display_()
    assert set(shown[0]) == {"image/png", "text/plain"}
    assert shown[0]["text/plain"].startswith("<Picture size")


def test_render_figure_gives_the_canvas():
    picture = plotting.render_figure(plotting.plot_curves({"a": ([1], [1])}, width=4, height=2))
    assert picture.shape == (160, 320, 3) and picture.dtype == np.uint8
    assert picture.min() < 100 and picture.max() == 255


def test_plot_images_draws_each_image_under_its_title():
    figure = plotting.plot_images([GRAY, GRAY[:, :30]], ["left", "right"])
    assert [ax.get_title() for ax in figure.axes] == ["left", "right"]
    assert figure.axes[1].images[0].get_array().shape == (40, 30, 3)
    assert len(plotting.plot_images(np.zeros((7, 8, 8))).axes) == 7
    assert len(plotting.plot_images(GRAY).axes) == 1
    assert plotting.plot_images([]).axes == []
    assert len(plotting.plot_images([GRAY] * 3, columns=5).axes) == 3
    assert len(plotting.plot_keypoints([GRAY], [np.zeros((0, 2))], columns=2).axes) == 1
    with pytest.raises(ValueError, match="2 images but 1 titles"):
        plotting.plot_images([GRAY, GRAY], ["one"])


def test_plot_images_fills_the_width():
    figure = plotting.plot_images([GRAY, GRAY], ["a", "b"])
    figure.draw_without_rendering()
    boxes = [ax.get_window_extent() for ax in figure.axes]
    assert sum(box.width for box in boxes) > 0.96 * figure.bbox.width
    assert boxes[0].x1 <= boxes[1].x0


def test_plot_keypoints_places_and_orders_by_score():
    points, scores = np.array([[3.0, 4.0], [30.5, 20.25]]), np.array([0.9, 0.1])
    figure = plotting.plot_keypoints(GRAY, points, scores)
    assert figure.axes[0].get_title() == "2 keypoints"
    circles = figure.axes[0].collections[-1]
    np.testing.assert_allclose(circles.get_offsets(), points[::-1])  # strongest drawn last
    small, large = circles.get_sizes()
    assert small < large


def test_plot_keypoints_without_keypoints_and_with_mismatched_lists():
    figure = plotting.plot_keypoints(
        [GRAY, GRAY], [NOTHING, np.ones((1, 2))], [np.zeros(0), np.ones(1)]
    )
    assert [ax.get_title() for ax in figure.axes] == ["0 keypoints", "1 keypoints"]
    figure.encode()
    with pytest.raises(ValueError, match="2 images, 1 keypoint arrays"):
        plotting.plot_keypoints([GRAY, GRAY], [NOTHING])
    with pytest.raises(ValueError, match="3 keypoints but scores of shape"):
        plotting.plot_keypoints(GRAY, np.ones((3, 2)), np.ones(2))
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        plotting.plot_keypoints(GRAY, np.ones((3, 3)))


def test_plot_matches_lines_join_the_right_points_in_the_right_colour():
    points0, points1 = np.array([[1.0, 2.0], [5.0, 6.0]]), np.array([[10.0, 20.0], [30.0, 3.0]])
    figure = plotting.plot_matches(GRAY, GRAY, points0, points1, [[0, 1], [1, 0]], [False, True])
    ax = figure.axes[0]
    shift = ax.images[0].get_array().shape[1] - GRAY.shape[1]
    lines = lines_of(ax)
    np.testing.assert_allclose(lines.get_segments()[0], [[5, 6], [10 + shift, 20]])
    np.testing.assert_allclose(lines.get_segments()[1], [[1, 2], [30 + shift, 3]])
    assert [to_hex(c).upper() for c in lines.get_colors()] == [plotting.CORRECT, plotting.WRONG]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["correct", "wrong"]
    assert ax.get_title(loc="left") == "2 matches, 1 correct"


@pytest.mark.parametrize("correct", [None, np.zeros(0, bool)])
def test_plot_matches_without_matches(correct):
    figure = plotting.plot_matches(
        GRAY, GRAY[:20], NOTHING, np.ones((2, 2)), torch.zeros((0, 2), dtype=torch.int64), correct
    )
    ax = figure.axes[0]
    assert (ax.get_title() or ax.get_title(loc="left")).startswith("0 matches")
    figure.encode()


def test_plot_matches_refuses_mismatched_flags():
    with pytest.raises(ValueError, match="1 matches but 2 values"):
        plotting.plot_matches(GRAY, GRAY, np.ones((1, 2)), np.ones((1, 2)), [[0, 0]], [True, False])


def test_plot_pairs_shares_one_legend():
    pair = plotting.MatchedPair(
        GRAY, GRAY, np.ones((2, 2)), np.ones((2, 2)), [[0, 0], [1, 1]], [True, False], "bad"
    )
    figure = plotting.plot_pairs([pair] * 3)
    assert [ax.get_title() for ax in figure.axes] == ["bad"] * 3
    assert len(figure.legends) == 1
    assert plotting.plot_pairs([]).axes == []


def test_plot_heatmap_shows_one_scale_for_all():
    heatmaps = np.stack([GRAY, 0.5 * GRAY])
    figure = plotting.plot_heatmap(GRAY, heatmaps, ["one", "two"])
    overlays = [ax.images[1] for ax in figure.axes[:2]]
    assert {image.norm.vmax for image in overlays} == {float(GRAY.max())}
    plotting.plot_heatmap(GRAY, np.zeros_like(GRAY)).encode()
    with pytest.raises(ValueError, match="2 images and 3 heatmaps"):
        plotting.plot_heatmap([GRAY] * 2, [GRAY] * 3)


def test_plot_cells_names_the_pixel_of_each_label():
    labels = np.full((5, 7), 64)
    labels[1, 2] = 8 * 3 + 5  # pixel x = 16 + 5, y = 8 + 3
    figure = plotting.plot_cells(GRAY, np.array([[21.0, 11.0]]), labels, cells=(5, 7))
    ax = figure.axes[0]
    assert [t.get_text() for t in ax.texts] == ["29"]
    assert ax.patches[0].get_xy() == (20.5, 10.5)
    text_x, text_y = ax.texts[0].get_position()
    assert 15.5 <= text_x <= 23.5 and 7.5 <= text_y <= 15.5
    assert len(lines_of(ax).get_segments()) == 6 + 8
    plotting.plot_cells(GRAY, NOTHING, origin=(3, 3)).encode()
    with pytest.raises(ValueError, match="outside"):
        plotting.plot_cells(GRAY, NOTHING, origin=(5, 0))


def test_plot_warps_outlines_what_each_warp_shows():
    shift = np.array([[1.0, 0, 4], [0, 1, 2], [0, 0, 1]])  # the frame shows what lies at -4, -2
    figure = plotting.plot_warps(GRAY, [np.eye(3), shift], ["none", "shift"])
    assert [ax.get_title() for ax in figure.axes] == ["image", "none", "shift"]
    (outlines,) = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    np.testing.assert_allclose(outlines.get_paths()[1].vertices[0], [-4, -2], atol=1e-9)
    drawn = figure.axes[2].images[0].get_array()[..., 0]
    np.testing.assert_array_equal(drawn[2:, 4:], plotting.to_rgb(GRAY)[:-2, :-4, 0])


def test_plot_curves_and_precision_recall():
    figure = plotting.plot_curves(
        {"a": ([1, 10, 100], [1, 2, 3]), "b": ([1, 10], [2, 2])},
        "warps",
        "repeatability",
        intervals={"a": ([0, 1, 2], [2, 3, 4])},
        log_x=True,
    )
    ax = figure.axes[0]
    assert ax.get_xscale() == "log" and len(ax.lines) == 2 and len(ax.collections) == 1
    figure.draw_without_rendering()
    assert "10" in [t.get_text() for t in ax.get_xticklabels()]
    figure = plotting.plot_precision_recall({"a": ([0, 1], [1, 0.5])}, {"a": 0.75})
    assert figure.axes[0].get_legend().get_texts()[0].get_text() == "a (AP 0.750)"
    plotting.plot_precision_recall({}).encode()


def test_plot_history_from_csv_skips_gaps(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("step,loss,val,note\n1,4,,a\n2,2,0.5,b\n3,1,,c\n")
    figure = plotting.plot_history(path)
    assert [ax.get_title() for ax in figure.axes] == ["loss", "val"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [4, 2, 1]
    assert figure.axes[1].lines[0].get_xdata().tolist() == [2]
    assert figure.axes[0].get_yscale() == "log"
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        plotting.plot_history(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="no column 'lost'"):
        plotting.plot_history(path, ["lost"])


def test_plot_history_tells_many_runs_apart_outside_of_the_panels():
    runs = {f"run {i}": [{"step": 1, "loss": 2.0 + i}, {"step": 2, "loss": 1.0}] for i in range(8)}
    figure = plotting.plot_history(runs)
    lines = figure.axes[0].get_lines()
    looks = [(line.get_color(), line.get_linestyle()) for line in lines]
    assert len(set(looks)) == 8
    assert figure.axes[0].get_legend() is None
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(runs)


def test_plot_history_compares_runs_and_smooths_without_bias():
    runs = {
        name: [{"step": s, "loss": offset - 0.001 * s} for s in range(200)]
        for name, offset in (("a", 1.0), ("b", 2.0))
    }
    figure = plotting.plot_history(runs)
    (ax,) = figure.axes
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    faint, mean = ax.lines[:2]  # a centred mean leaves a straight line as it is
    np.testing.assert_allclose(mean.get_ydata(), faint.get_ydata(), atol=1e-12)
    negative = plotting.plot_history([{"step": 1, "loss": -1.0}, {"step": 2, "loss": 1.0}])
    assert negative.axes[0].get_yscale() == "linear"
    assert plotting.plot_history([]).axes == []
    assert plotting.plot_history({str(i): [] for i in range(9)}).axes == []


def test_plot_differences_colours_gains_losses_and_neither():
    rows = {
        "one": {"found again": (0.02, 0.01, 0.03), "off by": (0.1, 0.05, 0.15)},
        "two": {"found again": (-0.01, -0.02, 0.01), "off by": (-0.1, -0.2, -0.05)},
        "three": {"found again": (-0.03, -0.04, -0.02)},
    }
    figure = plotting.plot_differences(rows, lower_is_better=["off by"], title="against plain")
    found, off = figure.axes
    colors = [[text.get_color() for text in ax.texts] for ax in (found, off)]
    assert colors == [
        [plotting.CORRECT, "#777777", plotting.WRONG],
        [plotting.WRONG, plotting.CORRECT],
    ]
    assert [text.get_text() for text in off.texts] == ["+0.100", "-0.100"]
    assert [text.get_text() for text in found.get_yticklabels()] == list(rows)
    assert found.yaxis_inverted()
    plotting.plot_differences({}).encode()


def test_plot_bars_writes_numbers_and_dashes():
    figure = plotting.plot_bars(
        {"ours": {"rep": (0.6, 0.5, 0.7), "mAP": 0.81}, "other": {"rep": float("nan")}},
        highlight="ours",
    )
    assert [ax.get_title() for ax in figure.axes] == ["rep", "mAP"]
    assert [t.get_text() for t in figure.axes[0].texts] == ["0.600", "–"]
    assert [t.get_text() for t in figure.axes[1].texts] == ["0.810", "–"]
    (segment,) = lines_of(figure.axes[0]).get_segments()
    np.testing.assert_allclose(segment, [[0.5, 0], [0.7, 0]])
    plotting.plot_bars({}).encode()


def test_plot_hinge_loss_sums_both_kinds_of_pairs():
    figure = plotting.plot_hinge_loss(2.0, 1.0, 0.2, 0.5, 0.3, cells=11)
    totals = [float(t.get_text()) for t in figure.axes[2].texts]
    np.testing.assert_allclose(totals, [2.0 * 0.5 / 11, 10 * 0.1 / 11], rtol=5e-3)
    assert all(
        float(t.get_text()) == 0 for t in plotting.plot_hinge_loss(1, 0, 1, 0, 0).axes[2].texts
    )


def test_plot_hinge_loss_redrawn_is_the_same_as_drawn():
    fresh = plotting.render_figure(plotting.plot_hinge_loss(3.0, 0.9, 0.1, 0.4, 0.3))
    used = plotting.plot_hinge_loss()
    plotting.render_figure(used)
    again = plotting.plot_hinge_loss(3.0, 0.9, 0.1, 0.4, 0.3, figure=used)
    assert again is used
    np.testing.assert_array_equal(plotting.render_figure(again), fresh)


def test_render_heatmap_darkens_and_lights_up():
    heatmap = np.zeros((40, 56))
    heatmap[10, 20] = 0.25
    picture = plotting.render_heatmap(GRAY, torch.from_numpy(heatmap))
    expected = plotting.to_rgb(GRAY) // 2
    assert picture[10, 20].min() > 150 and picture[10, 20, 0] > 250  # the map's bright end
    expected[10, 20] = picture[10, 20]
    np.testing.assert_array_equal(picture, expected)
    blank = plotting.render_heatmap(GRAY, np.zeros((40, 56)))
    np.testing.assert_array_equal(blank, plotting.to_rgb(GRAY) // 2)
    with pytest.raises(ValueError, match=r"\(40, 56\).*\(5, 7\)"):
        plotting.render_heatmap(GRAY, np.zeros((5, 7)))


def test_render_keypoints_draws_at_the_point():
    black = np.zeros((60, 80), np.float32)
    picture = plotting.render_keypoints(black, np.array([[20.0, 30.0]]))
    rows, columns = np.nonzero(picture.max(-1) > 60)
    assert picture.shape == (60, 80, 3)
    assert abs(columns.mean() - 20) < 0.3 and abs(rows.mean() - 30) < 0.3
    larger = plotting.render_keypoints(black, np.array([[20.0, 30.0]]), width=160)
    rows, columns = np.nonzero(larger.max(-1) > 60)
    assert larger.shape == (120, 160, 3)
    assert abs(columns.mean() - 40.5) < 0.3 and abs(rows.mean() - 60.5) < 0.3


def test_render_keypoints_leaves_the_input_and_takes_odd_points():
    image = plotting.to_rgb(GRAY)
    before = image.copy()
    odd = torch.tensor([[float("nan"), 3.0], [1e9, 1e9], [-50.0, 5.0]])
    np.testing.assert_array_equal(plotting.render_keypoints(image, odd), before)
    np.testing.assert_array_equal(plotting.render_keypoints(image, NOTHING, np.zeros(0)), before)
    np.testing.assert_array_equal(image, before)


def test_render_matches_colours_lines_by_correctness():
    black = np.zeros((40, 50), np.float32)
    args = (black, black, np.array([[10.0, 20.0]]), np.array([[30.0, 20.0]]), [[0, 0]])
    for correct, name in ((None, "sky"), ([True], "green"), ([False], "vermillion")):
        picture = plotting.render_matches(*args, correct)
        expected = [int(plotting.COLORS[name][i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(picture[20, 45].astype(int) - expected).max() <= 25  # blended edges
    plain = plotting.render_matches(black, black[:20], NOTHING, NOTHING, NOTHING, np.zeros(0, bool))
    assert plain.shape == (40, 104, 3) and plain[30, 80].tolist() == [255] * 3
    assert plotting.render_matches(*args, width=300).shape[1] == 300


def test_render_grid_tiles_images():
    tiles = [np.full((30, 40), v) for v in (0.0, 0.2, 0.4, 0.6, 0.8)]
    picture = plotting.render_grid(tiles, columns=3, width=128)
    assert picture.shape == (64, 128, 3)
    assert picture[10, [10, 60, 110], 0].tolist() == [0, 51, 102]
    titled = plotting.render_grid(tiles, ["t"] * 5, columns=3, width=128)
    assert titled.shape[0] > 64 and titled[:20].min() < 128
    assert plotting.render_grid([], width=50).shape == (1, 50, 3)
    with pytest.raises(ValueError, match="5 images but 1 titles"):
        plotting.render_grid(tiles, ["t"])


def test_every_figure_saves_as_a_picture_file(tmp_path):
    path = tmp_path / "figure.png"
    plotting.plot_matches(GRAY, GRAY, np.ones((1, 2)), np.ones((1, 2)), [[0, 0]]).savefig(path)
    assert cv2.imread(str(path)).shape[1] == 800
    buffer = io.BytesIO()
    plotting.plot_keypoints(GRAY, np.ones((1, 2))).savefig(buffer, format="svg")
    assert b"<svg" in buffer.getvalue()


def test_draw_keypoints_composes_on_any_axes():
    figure = plotting.new_figure(3, 2)
    ax = figure.add_subplot()
    plotting.draw_keypoints(ax, np.ones((4, 2)), color="black")
    assert all(isinstance(c, PathCollection) for c in ax.collections) and len(ax.collections) == 2


def test_strengths_and_heat_by_hand():
    strength = score_strength(np.array([0.5, 0.125, 0.0, -1.0]), 4)
    assert strength.tolist() == [1, 0.5, 0, 0]
    assert score_strength(None, 2).tolist() == score_strength(np.zeros(2), 2).tolist() == [1, 1]
    brightness = score_colors(np.array([0.0, 0.5, 1.0]))[:, :3].sum(1)
    assert (np.diff(brightness) > 0).all()
    shown, opacity = heat(np.array([0.0, 0.125, 0.5, 2.0, 3.0]), 2.0, 0.5)
    assert shown.tolist() == [0, 0.25, 0.5, 1, 1]
    assert opacity.tolist() == [0, 0.5, 1, 1, 1]


def test_plot_precision_recall_has_recall_to_the_right():
    figure = plotting.plot_precision_recall({"a": ([0.1, 0.4], [0.9, 0.7])})
    (ax,) = figure.axes
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("recall", "precision")
    assert ax.lines[0].get_xdata().tolist() == [0.1, 0.4]
    assert ax.lines[0].get_ydata().tolist() == [0.9, 0.7]


def test_plot_cells_of_a_part_of_the_image():
    labels = np.full((5, 7), 64)
    labels[1, 2], labels[0, 0] = 8 * 3 + 1, 5
    points = np.array([[17.0, 11.0], [3.0, 4.0], [39.0, 30.0]])
    ax = plotting.plot_cells(GRAY, points, labels, origin=(1, 2), cells=(2, 3)).axes[0]
    assert [t.get_text() for t in ax.texts] == ["25"]
    assert [patch.get_xy() for patch in ax.patches] == [(16.5, 10.5)]
    assert ax.texts[0].get_position() == pytest.approx((23.3, 15.2))  # in the far corner
    assert (ax.get_xlim(), ax.get_ylim()) == ((15.5, 39.5), (23.5, 7.5))
    dots = ax.collections[-1].get_offsets()
    assert dots.tolist() == [[17, 11]]


def test_plot_warps_outlines_all_four_corners():
    figure = plotting.plot_warps(GRAY, [np.eye(3)])
    (outlines,) = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    corners = [[0, 0], [55, 0], [55, 39], [0, 39]]
    np.testing.assert_allclose(outlines.get_paths()[0].vertices[:4], corners, atol=1e-9)


def test_plot_history_smooths_over_a_twentieth_of_the_run():
    run = [{"step": s, "loss": float(s == 100)} for s in range(200)]
    mean = plotting.plot_history(run).axes[0].lines[1].get_ydata()
    assert np.flatnonzero(mean > 1e-9).tolist() == list(range(95, 106))
    assert mean[100] == pytest.approx(1 / 11)


def test_plot_bars_highlights_a_row_and_keeps_a_limit():
    rows = {"ours": {"rep": 0.6}, "other": {"rep": 0.5}}
    (ax,) = plotting.plot_bars(rows, highlight="ours", limit=1.0).axes
    colors = [to_hex(bar.get_facecolor()).upper() for bar in ax.patches]
    assert colors == [plotting.COLORS["blue"], plotting.COLORS["sky"]]
    assert ax.get_xlim() == pytest.approx((0, 1.42))
    assert [bar.get_width() for bar in ax.patches] == [0.6, 0.5]


def test_plot_hinge_loss_draws_both_costs():
    first, second, _ = plotting.plot_hinge_loss(2.0, 0.9, 0.2, 0.4, 0.3).axes
    similarity, cost = first.lines[0].get_data()
    np.testing.assert_allclose(cost, 2 * np.maximum(0, 0.9 - similarity))
    np.testing.assert_allclose(first.lines[1].get_xydata(), [[0.4, 1.0]])
    similarity, cost = second.lines[0].get_data()
    np.testing.assert_allclose(cost, np.maximum(0, similarity - 0.2))
    np.testing.assert_allclose(second.lines[1].get_xydata(), [[0.3, 0.1]])


def test_plot_images_of_numbers_have_a_range_of_their_own():
    numbers = np.array([[-3.0, 0.0], [5.0, 7.0]])
    image = plotting.plot_images([numbers], colormap="viridis").axes[0].images[0]
    assert image.get_cmap().name == "viridis" and image.get_clim() == (-3, 7)


def test_render_keypoints_draws_strong_ones_larger():
    black = np.zeros((60, 80), np.float32)
    apart = np.array([[20.0, 30.0], [60.0, 30.0]])
    picture = plotting.render_keypoints(black, apart, np.array([1.0, 0.01]))
    left, right = ((half.max(-1) > 60).sum() for half in (picture[:, :40], picture[:, 40:]))
    assert left > 1.5 * right > 0


def test_render_matches_at_another_width_joins_the_same_points():
    black = np.zeros((40, 50), np.float32)
    points0, points1 = np.array([[10.0, 20.0]]), np.array([[30.0, 8.0]])
    picture = plotting.render_matches(black, black, points0, points1, [[0, 0]], width=208)
    # The second picture begins at x = 54; twice as large, 10 is 20.5 and 30 + 54 is 168.5.
    for x, y in ((20.5, 40.5), (168.5, 16.5)):
        rows, columns = np.mgrid[:80, :208]
        near = np.hypot(columns - x, rows - y)
        assert (picture.max(-1)[near < 3] > 60).mean() > 0.5
    assert picture[:, 180:].max() == 0 and picture[:, :14].max() == 0
