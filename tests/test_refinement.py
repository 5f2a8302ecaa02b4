"""Matches moved to where two pictures agree: known warps must be recovered."""

import cv2
import numpy as np
import pytest
import torch

from superpoint_lib import SuperPoint, extract, match, refinement
from superpoint_lib.datasets import bundled_photos
from superpoint_lib.evaluation.metrics import estimate_homography
from superpoint_lib.geometry import invert_homographies, mean_corner_error, warp_image, warp_points
from superpoint_lib.refinement import _contrast, refine_matches

torch.set_num_threads(1)

# A turn of some 20 degrees, smaller by a fifth, a little foreshortened.
H_0to1 = np.array([[0.75, -0.27, 40.0], [0.27, 0.75, -10.0], [1e-4, 5e-5, 1.0]])


@pytest.fixture(scope="module")
def texture():
    """Smooth random gray levels, (240, 320) float32 in [0, 1]."""
    noise = np.random.default_rng(0).random((240, 320)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return (smooth - smooth.min()) / (smooth.max() - smooth.min())


def scattered(count=200, seed=0):
    """Points of the middle of the picture, and errors of up to a pixel and a half."""
    rng = np.random.default_rng(seed)
    return rng.uniform((60, 60), (260, 180), (count, 2)), rng.uniform(-1.5, 1.5, (count, 2))


def test_a_shift_by_parts_of_a_pixel_is_found(texture):
    H = np.array([[1, 0, 0.3], [0, 1, -0.7], [0, 0, 1.0]])
    points, errors = scattered()
    moved, confirmed = refine_matches(
        texture, warp_image(texture, H, padding="border"), points, points + errors, np.eye(3)
    )
    assert confirmed.all()
    assert np.abs(moved - (points + np.array([0.3, -0.7]))).max() < 0.05


@pytest.mark.parametrize("window", [11, 21, 31])
def test_points_come_to_lie_where_the_homography_has_them(texture, window):
    points, errors = scattered()
    true = warp_points(points, H_0to1)
    rough = H_0to1 + np.array([[0.004, 0, 1], [0, -0.004, 1], [0, 0, 0]])
    image1 = warp_image(texture, H_0to1, padding="border")
    inside = (true > 12).all(1) & (true < [307, 227]).all(1)
    moved, confirmed = refine_matches(
        texture, image1, points[inside], (true + errors)[inside], rough, window
    )
    assert inside.sum() > 150
    assert confirmed.mean() > 0.95
    off = np.linalg.norm(moved - true[inside], axis=1)[confirmed]
    assert np.median(off) < 0.05
    assert np.quantile(off, 0.95) < 0.2


def test_the_light_may_change(texture):
    points, errors = scattered()
    darker = 0.1 + 0.4 * texture**2
    darker[:, 160:] *= 0.6
    moved, confirmed = refine_matches(texture, darker, points, points + errors, np.eye(3))
    assert confirmed.mean() > 0.85
    assert np.median(np.linalg.norm(moved - points, axis=1)[confirmed]) < 0.15


def test_wrong_matches_are_not_confirmed_and_stay(texture):
    points, _ = scattered()
    elsewhere = np.roll(points, 1, axis=0)
    apart = np.linalg.norm(points - elsewhere, axis=1) > 30
    moved, confirmed = refine_matches(texture, texture, points, elsewhere, np.eye(3))
    assert confirmed[apart].mean() < 0.2
    assert np.array_equal(moved[~confirmed], elsewhere[~confirmed])
    near, far = points + np.array([3.0, 0]), points + np.array([5.0, 0])
    assert refine_matches(texture, texture, points, near, np.eye(3), reach=4)[1].mean() > 0.9
    assert not refine_matches(texture, texture, points, far, np.eye(3), reach=4)[1].any()


def test_flat_parts_beside_textured_ones_have_no_contrast():
    image = np.random.default_rng(0).random((200, 900)).astype(np.float32)
    image[:, 300:] = 0.7
    with np.errstate(all="raise"):
        contrast = _contrast(image)
    assert contrast[:, :300].std() > 20
    assert (contrast[:, 350:] == 128).all()


def test_no_end_leaves_an_image(texture):
    x = np.linspace(0.0, 319, 200)
    points = np.stack([x, np.where(np.arange(200) % 2, 0.0, 239)], 1)
    shifted = warp_image(texture, np.array([[1, 0, 0.4], [0, 1, 0.4], [0, 0, 1]]), padding="border")
    moved, confirmed = refine_matches(texture, shifted, points, points, np.eye(3))
    assert 50 < confirmed.sum() < 200
    assert (moved[confirmed] >= 0).all()
    assert (moved[confirmed] <= [319, 239]).all()


def test_where_there_is_nothing_to_see_nothing_is_confirmed():
    flat = np.full((64, 64), 0.5, np.float32)
    points = np.full((3, 2), 30.0)
    moved, confirmed = refine_matches(flat, flat, points, points, np.eye(3))
    assert not confirmed.any()
    assert np.array_equal(moved, points)


def test_no_points_and_points_at_infinity(texture):
    none = np.zeros((0, 2))
    moved, confirmed = refine_matches(texture, texture, none, none, np.eye(3))
    assert (moved.shape, confirmed.shape) == ((0, 2), (0,))
    lost = np.array([[np.nan, 5.0], [100, 100], [1e30, 10], [-np.inf, 10], [320, 240]])
    moved, confirmed = refine_matches(texture, texture, lost, lost, np.eye(3))
    assert confirmed.tolist() == [False, True, False, False, False]
    assert np.abs(moved[1] - 100).max() < 1e-3


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_a_homography_that_cannot_be_inverted_confirms_nothing(texture, scale):
    flat = scale * np.array([[1, 2, 3], [2, 4, 6], [0, 0, 1.0]])
    points, _ = scattered(20)
    moved, confirmed = refine_matches(texture, texture, points, points, flat)
    assert not confirmed.any()
    assert np.array_equal(moved, points)


def test_images_are_those_that_extract_takes(texture):
    points, errors = scattered(20)
    given = points + errors
    expected = refine_matches(texture, texture, points, given, np.eye(3))
    gray = np.rint(texture * 255).astype(np.uint8)
    for image in (np.dstack([gray] * 3), torch.from_numpy(gray)[None], gray):
        ends = (torch.from_numpy(points), torch.from_numpy(given).float(), torch.eye(3))
        moved, confirmed = refine_matches(image, image, *ends)
        assert np.array_equal(confirmed, expected[1])
        assert np.abs(moved - expected[0]).max() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points1": np.zeros((4, 2))}, "points0 and points1"),
        ({"H_0to1": None}, "no homography was found"),
        ({"H_0to1": np.eye(2)}, r"H_0to1 \(3, 3\)"),
        ({"window": 20}, "window must be odd"),
        ({"image0": np.zeros((2, 1, 64, 64), np.float32)}, "image0: .*batch of 2"),
        ({"image1": np.zeros((8, 8), np.float32)}, "image1: .*too small"),
    ],
)
def test_what_does_not_fit_is_named(texture, change, message):
    arguments = {
        "image0": texture,
        "image1": texture,
        "points0": np.ones((3, 2)),
        "points1": np.ones((3, 2)),
        "H_0to1": np.eye(3),
    }
    with pytest.raises(ValueError, match=message):
        refine_matches(**(arguments | change))


def test_the_homography_of_a_photograph_becomes_more_exact():
    image0 = bundled_photos("benchmark")["camera"]
    image1 = warp_image(image0, H_0to1)
    model = SuperPoint.from_pretrained("superpoint").eval()
    features = [extract(model, image, precision="float32") for image in (image0, image1)]
    matches = match(*features)[0].numpy()
    points0, points1 = (
        one.keypoints.numpy()[matches[:, side]] for side, one in enumerate(features)
    )
    rough, _ = estimate_homography(points0, points1)
    moved, confirmed = refine_matches(image0, image1, points0, points1, rough)
    fine, _ = estimate_homography(points0[confirmed], moved[confirmed])
    before, after = (mean_corner_error(H, H_0to1, *image0.shape) for H in (rough, fine))
    assert confirmed.mean() > 0.5
    assert after < 0.1
    assert after < before / 3


def test_a_homography_that_is_singular_confirms_nothing(texture, monkeypatch):
    points = np.random.default_rng(33).uniform(20, 200, (6, 2))
    to_a_line = np.array([[1.0, 2, 3], [2, 4, 6], [0, 0, 1]])
    with pytest.raises(ValueError, match="singular"):
        invert_homographies(to_a_line)
    refined, confirmed = refine_matches(texture, texture, points, points, to_a_line)
    assert np.array_equal(refined, points) and not confirmed.any()

    # Nearly singular, its inverse can be had, but not always the inverse of that: rounding decides.
    def refuse(*_, **__):
        raise ValueError("homography is singular")

    monkeypatch.setattr(refinement, "warp_image", refuse)
    refined, confirmed = refine_matches(texture, texture, points, points, np.eye(3))
    assert np.array_equal(refined, points) and not confirmed.any()


@pytest.mark.parametrize("side", [0, 1])
def test_a_match_with_one_end_outside_is_not_confirmed_and_costs_no_other(texture, side):
    inside = np.array([[0.0, 120.0], [319.0, 60.0], [160.0, 0.0], [100.0, 239.0], [160.0, 120.0]])
    outside = inside + np.array([[-0.5, 0], [0.5, 0], [0, -0.5], [0, 0.5], [0, 0]])
    ends = (outside, inside) if side == 0 else (inside, outside)
    moved, confirmed = refine_matches(texture, texture, *ends, np.eye(3))
    assert confirmed.tolist() == [False] * 4 + [True]
    assert np.array_equal(moved[:4], ends[1][:4])


def test_a_match_that_begins_outside_the_first_image_is_not_confirmed(texture):
    shift = np.array([[1, 0, 5.0], [0, 1, 5], [0, 0, 1]])
    shifted = warp_image(texture, shift, padding="border")
    first = np.array([[-1.5, 120], [-1, 60], [100, -1.5], [200, -1], [160, 120]])
    # Displaced so that where it is looked for lies inside, as where it would be found.
    second = first + 5 + [[2.5, 0], [2, 0], [0, 2.5], [0, 2], [0, 0]]
    moved, confirmed = refine_matches(texture, shifted, first, second, shift)
    assert confirmed.tolist() == [False] * 4 + [True]
    assert np.array_equal(moved[:4], second[:4])


def test_by_default_a_match_moves_eight_pixels_at_most(texture):
    points = np.random.default_rng(0).uniform((60, 60), (260, 180), (200, 2))
    for shift, share in ((6.0, 0.3), (8.5, 0.0)):
        far = points + np.array([shift, 0])
        moved, confirmed = refine_matches(texture, texture, points, far, np.eye(3))
        home = confirmed & (np.linalg.norm(moved - points, axis=1) < 0.2)
        assert home.mean() > share or home.mean() == share == 0
    assert (np.linalg.norm(moved - far, axis=1) <= 8).all()


def test_half_the_size_first_finds_what_is_far_off(texture):
    points = np.random.default_rng(0).uniform((60, 60), (260, 180), (200, 2))
    moved, confirmed = refine_matches(
        texture, texture, points, points + np.array([6, 0]), np.eye(3), 11
    )
    assert (confirmed & (np.linalg.norm(moved - points, axis=1) < 0.2)).mean() > 0.95


TWICE = np.array([[2.0, 0, 0.5], [0, 2, 0.5], [0, 0, 1]])  # of pixels with an extent


def test_pictures_of_two_sizes(texture):
    large = warp_image(texture, TWICE, (480, 640), padding="border")
    points = np.random.default_rng(0).uniform((30, 30), (290, 210), (100, 2))
    true = warp_points(points, TWICE)
    moved, confirmed = refine_matches(texture, large, points, true + 1.5, TWICE)
    assert confirmed.all() and np.abs(moved - true).max() < 0.2
    H_1to0 = invert_homographies(TWICE)
    moved, confirmed = refine_matches(large, texture, true, points + 0.7, H_1to0)
    assert confirmed.all() and np.abs(moved - points).max() < 0.2


def test_reach_is_in_pixels_of_the_first_picture(texture):
    large = warp_image(texture, TWICE, (480, 640), padding="border")
    points, _ = scattered(100)
    true = warp_points(points, TWICE)
    # Five and seven pixels of the second are two and a half and three and a half of the first.
    near, far = (true + np.array([x, 0]) for x in (5, 7))
    assert refine_matches(texture, large, points, near, TWICE, reach=3)[1].mean() > 0.9
    assert not refine_matches(texture, large, points, far, TWICE, reach=3)[1].any()


@pytest.mark.parametrize(
    ("off", "confirmed"), [((0.49, 0.0), True), ((0.0, -0.51), False), ((0.4, 0.4), False)]
)
def test_the_way_back_ends_within_half_a_pixel(texture, monkeypatch, off, confirmed):
    def there_and_back(image0, image1, points0, points1, window):
        assert window == 21
        return points1, points0 + np.array(off), np.ones(len(points0), bool)

    monkeypatch.setattr(refinement, "_there_and_back", there_and_back)
    points = np.full((1, 2), 100.0)
    assert refine_matches(texture, texture, points, points, np.eye(3))[1].tolist() == [confirmed]


def test_contrast_is_forty_levels_for_each_deviation():
    y, x = np.mgrid[:80, :80]
    white = (x + y) % 2 == 1
    contrast = _contrast(np.where(white, 0.7, 0.3).astype(np.float32))
    levels = 40 * 0.2 / (0.2 + 4 / 255)
    expected = np.where(white, 128 + levels, 128 - levels)
    assert np.abs(contrast - expected)[30:50, 30:50].max() <= 1
