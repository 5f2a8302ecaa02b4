import dataclasses

import cv2
import numpy as np
import pytest

from superpoint_lib import shapes
from superpoint_lib.shapes import (
    PRIMITIVES,
    SHAPES_PRESETS,
    ShapesConfig,
    draw_sample,
    draw_shape,
    fill_polygons,
)

DEFAULT = ShapesConfig()


def _draw(primitive, number, config=DEFAULT):
    return draw_shape(primitive, config, np.random.default_rng((7, number)))


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_pictures_and_keypoints_keep_to_their_ranges(primitive):
    counts = []
    for number in range(25):
        image, keypoints = _draw(primitive, number)
        assert image.shape == (120, 160) and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 1
        assert keypoints.dtype == np.float32 and keypoints.shape[1:] == (2,)
        assert (keypoints >= 0).all() and (keypoints <= (159, 119)).all()
        counts.append(len(keypoints))
    if primitive in ("ellipses", "gaussian_noise"):
        assert max(counts) == 0
    else:
        assert np.mean(counts) > 1
        fractional = keypoints if len(keypoints) else _draw(primitive, 0)[1]
        assert not np.allclose(fractional, np.rint(fractional))


def test_each_primitive_has_its_number_of_keypoints():
    counts = {p: [len(_draw(p, i)[1]) for i in range(40)] for p in PRIMITIVES}
    assert all(2 <= n <= 18 and n % 2 == 0 for n in counts["lines"])
    assert all(3 <= n <= 7 for n in counts["polygon"])
    assert all(4 <= n <= 6 for n in counts["star"])
    assert max(counts["checkerboard"]) <= 49 and min(counts["checkerboard"]) >= 4
    assert max(counts["stripes"]) <= 26
    assert max(counts["cube"]) == 7
    assert max(counts["multiple_polygons"]) > 30


def test_a_sample_depends_on_seed_and_index_alone():
    first = [draw_sample(i, DEFAULT, seed=3) for i in range(8)]
    for i in reversed(range(8)):
        image, keypoints, primitive = draw_sample(i, DEFAULT, seed=3)
        assert primitive == first[i][2]
        assert np.array_equal(image, first[i][0]) and np.array_equal(keypoints, first[i][1])
    other = draw_sample(0, DEFAULT, seed=4)
    assert not np.array_equal(other[0], first[0][0])


def test_weights_decide_how_often_a_primitive_is_drawn():
    small = ShapesConfig(32, 32, 16, 16, primitives=("star", "cube"), primitive_weights=(3, 1))
    drawn = [draw_sample(i, small, seed=0)[2] for i in range(400)]
    assert 0.68 < drawn.count("star") / 400 < 0.82
    never = dataclasses.replace(small, primitive_weights=(0, 1))
    assert {draw_sample(i, never, seed=0)[2] for i in range(30)} == {"cube"}


def test_fills_end_where_the_coordinates_say():
    # The square covers [9.75, 30.25] x [19.75, 45.25] in coordinates whose pixels are one wide.
    image = np.zeros((60, 60), np.uint8)
    square = np.array([[9.75, 19.75], [30.25, 19.75], [30.25, 45.25], [9.75, 45.25]])
    fill_polygons(image, square[None], np.array([200.0]))
    weight = image / 200
    assert weight[32].sum() == pytest.approx(20.5, abs=0.7)
    assert weight[:, 20].sum() == pytest.approx(25.5, abs=0.7)
    assert (weight[32] * np.arange(60)).sum() / weight[32].sum() == pytest.approx(20, abs=0.05)


@pytest.mark.parametrize("degrees", [0, 17, 45, 80])
def test_fills_keep_area_and_centre_when_turned(degrees):
    image = np.zeros((80, 80), np.uint8)
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    box = np.array([[-20, -10], [20, -10], [20, 10], [-20, 10]]) @ np.array(
        [[cos, sin], [-sin, cos]]
    )
    fill_polygons(image, box[None] + 39.6, np.array([255.0]))
    moments = cv2.moments(image.astype(np.float32) / 255)
    assert moments["m00"] == pytest.approx(800, rel=0.02)
    assert moments["m10"] / moments["m00"] == pytest.approx(39.6, abs=0.1)
    assert moments["m01"] / moments["m00"] == pytest.approx(39.6, abs=0.1)


def test_labels_sit_on_the_drawn_corners():
    # The corners OpenCV refines on the picture scatter around the labels, without a bias.
    config = ShapesConfig(edge_line_probability=0, background_contrast=(0, 0))
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 50, 1e-3)
    moved = []
    for number in range(20):
        image, keypoints = _draw("checkerboard", number, config)
        inner = keypoints[((keypoints > 6) & (keypoints < (153, 113))).all(axis=1)]
        start = inner[:, None].copy()
        refined = cv2.cornerSubPix(
            (image * 255).astype(np.uint8), start, (3, 3), (-1, -1), criteria
        )
        moved.append(refined[:, 0] - inner)
    moved = np.concatenate(moved)
    assert len(moved) > 150
    assert np.abs(np.median(moved, axis=0)).max() < 0.03
    assert np.median(np.linalg.norm(moved, axis=1)) < 0.2


def test_labelled_corners_can_be_seen():
    spans = []
    for primitive in ("lines", "polygon", "star", "checkerboard", "cube", "multiple_polygons"):
        for number in range(15):
            image, keypoints = _draw(primitive, number)
            for x, y in np.rint(keypoints).astype(int):
                around = image[max(y - 2, 0) : y + 3, max(x - 2, 0) : x + 3]
                spans.append(np.ptp(around) * 255)
    assert np.mean(np.array(spans) > 8) > 0.98
    # Contrast varies: faint corners and strong ones.
    assert np.quantile(spans, 0.05) < 40 and np.quantile(spans, 0.95) > 120


def test_a_later_shape_hides_the_labels_it_covers():
    canvas = shapes._Canvas(DEFAULT, np.random.default_rng(0))
    first = np.array([[50.0, 50], [150, 50], [150, 150], [50, 150]])
    second = np.array([[100.0, 100], [200, 100], [200, 200], [100, 200]])
    canvas.add(first, [(shapes._inked(first[None]), canvas.colors(1))], first)
    canvas.add(second, [(shapes._inked(second[None]), canvas.colors(1))], second)
    kept = {tuple(point) for point in canvas.keypoints.tolist()}
    assert kept == {(50, 50), (150, 50), (50, 150), *map(tuple, second.tolist())}
    # The corner of the second that lies inside the first is in front of it, and stays.
    assert (100, 100) in kept and (150, 150) not in kept


def _labels_drawn_and_kept(overlap_probability, seed):
    canvas = shapes._Canvas(
        ShapesConfig(overlap_probability=overlap_probability), np.random.default_rng(seed)
    )
    draw, drawn = canvas._draw, []

    def count(parts, keypoints):
        drawn.append(len(keypoints))
        draw(parts, keypoints)

    canvas._draw = count
    shapes._draw_multiple_polygons(canvas)
    return sum(drawn), len(canvas.keypoints)


def test_polygons_lose_labels_only_where_they_overlap():
    apart = [_labels_drawn_and_kept(0.0, seed) for seed in range(10)]
    assert all(drawn == kept for drawn, kept in apart)
    over = [_labels_drawn_and_kept(1.0, seed) for seed in range(10)]
    assert all(drawn >= kept >= 3 for drawn, kept in over)
    assert sum(drawn - kept for drawn, kept in over) > 5


def test_covered_agrees_with_opencv():
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 100, (300, 2))
    outline = np.array([[20.0, 20], [80, 30], [50, 50], [75, 85], [25, 70]])
    signed = [
        cv2.pointPolygonTest(outline.astype(np.float32), (float(x), float(y)), True)
        for x, y in points
    ]
    for margin in (0.0, 3.0):
        expected = np.array(signed) >= -margin
        assert np.array_equal(shapes._covered(points, outline, margin), expected)
    assert shapes._covered(points[:0], outline, 1.0).shape == (0,)


def test_lines_do_not_cross():
    def side(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    for number in range(40):
        segments = _draw("lines", number)[1].reshape(-1, 2, 2)
        for i, (a, b) in enumerate(segments):
            for c, d in segments[i + 1 :]:
                assert not (side(a, b, c) != side(a, b, d) and side(c, d, a) != side(c, d, b))


def test_polygon_corners_are_neither_flat_nor_needles():
    for number in range(60):
        corners = _draw("polygon", number)[1].astype(np.float64)
        arriving = corners - np.roll(corners, 1, axis=0)
        leaving = np.roll(corners, -1, axis=0) - corners
        cosine = -(arriving * leaving).sum(axis=1) / (
            np.linalg.norm(arriving, axis=1) * np.linalg.norm(leaving, axis=1)
        )
        angles = np.degrees(np.arccos(cosine))
        assert angles.min() > 19.9 and angles.max() < 120.1


def test_inset_of_a_square_and_of_its_reverse():
    square = np.array([[0.0, 0], [10, 0], [10, 10], [0, 10]])
    expected = np.array([[1.0, 1], [9, 1], [9, 9], [1, 9]])
    both = shapes._inset(np.stack((square, square[::-1])), 1.0)
    assert np.allclose(both[0], expected)
    assert np.allclose(both[1], expected[::-1])


def test_box_faces_meet_in_the_corner_and_leave_out_the_opposite_one():
    for corner in range(8):
        faces = shapes._box_faces(corner)
        assert (faces[:, 0] == corner).all()
        assert set(faces.ravel()) == set(range(8)) - {7 - corner}
        steps = faces ^ np.roll(faces, -1, axis=1)
        assert np.isin(steps, (1, 2, 4)).all()


def test_published_canvas_gives_the_same_size_and_inside_keypoints():
    published = SHAPES_PRESETS["published"]
    assert (published.canvas_height, published.canvas_width, published.blur_kernel) == (
        960,
        1280,
        21,
    )
    for primitive in PRIMITIVES:
        image, keypoints = _draw(primitive, 1, published)
        assert image.shape == (120, 160)
        assert (keypoints >= 0).all() and (keypoints <= (159, 119)).all()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"primitives": ("stars",), "primitive_weights": (1.0,)}, "stars"),
        ({"primitive_weights": (1.0,)}, "primitive_weights"),
        ({"primitive_weights": (0.0,) * 9}, "primitive_weights"),
        ({"blur_kernel": 4}, "blur_kernel"),
        ({"min_contrast": 60}, "min_contrast"),
        ({"noise_contrast": (0.0, 1.0)}, "noise_contrast"),
        ({"height": 8}, "16 pixels"),
    ],
)
def test_impossible_settings_are_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named):
        ShapesConfig(**change)


def test_an_unknown_primitive_is_refused():
    with pytest.raises(ValueError, match="'circle'"):
        draw_shape("circle", DEFAULT, np.random.default_rng(0))


def test_the_canvas_is_blurred_by_the_kernel_asked_for():
    for kernel in (1, 21):
        config = ShapesConfig(height=240, width=320, blur_kernel=kernel)
        canvas = shapes._Canvas(config, np.random.default_rng(0))
        canvas.image[:, :160], canvas.image[:, 160:] = 0, 200
        row = canvas.render()[0][120] * 255
        between = ((row > 20) & (row < 180)).sum()
        assert between == (0 if kernel == 1 else 8), between


def test_separate_shapes_keep_the_gap():
    canvas = shapes._Canvas(ShapesConfig(gap_fraction=0.05), np.random.default_rng(0))  # 12 px
    square = np.array([[50.0, 50], [90, 50], [90, 90], [50, 90]])
    assert canvas.add_separate(square, [], square)
    for gap, free in ((9, False), (14, True)):
        assert canvas._is_free(np.rint(square + np.array([40 + gap, 0])).astype(np.int32)) == free
        assert canvas._is_free(np.rint(square + np.array([0, 40 + gap])).astype(np.int32)) == free


def test_gray_levels_keep_their_distance_from_all_that_they_touch():
    canvas = shapes._Canvas(ShapesConfig(min_contrast=40), np.random.default_rng(0))
    levels = [canvas.background]
    levels += [canvas.color()]
    levels += [canvas.color(levels[1])]
    for _ in range(300):
        color = canvas.color(*levels[1:])
        assert min(abs(color - level) for level in levels) >= 40
    steps = np.abs(np.diff(canvas.colors(300)))
    assert steps.min() >= 40
    canvas.image[:, :160], canvas.image[:, 160:], canvas.background = 60, 190, 125.0
    corners = np.array([[40.0, 40], [280, 40], [280, 200]])
    found = [canvas.color_over(corners) for _ in range(100)]
    assert any(found)
    assert all(min(abs(c - g) for g in (60, 125, 190)) >= 40 for c in found if c is not None)


def test_strips_are_as_thick_as_asked_for():
    (strip,) = shapes._strips(np.array([[[5.0, 5], [15, 5]]]), 2.0)
    assert sorted(map(tuple, strip.tolist())) == [(5, 4), (5, 6), (15, 4), (15, 6)]
