import dataclasses
import math
from functools import partial

import cv2
import kornia
import numpy as np
import pytest
import torch
from skimage import data as skimage_data

from superpoint_lib.config import to_dict
from superpoint_lib.geometry import (
    HOMOGRAPHY_PRESETS,
    HomographyConfig,
    crop_homography,
    homographies_from_corners,
    invert_homographies,
    mean_corner_error,
    on_pixels,
    resize_and_crop,
    resize_short_side,
    resize_transform,
    sample_homographies,
    transform_homography,
    turn_and_zoom,
    valid_mask,
    warp_image,
    warp_images,
    warp_points,
    warp_with_mask,
)

HEIGHT, WIDTH = 60, 80
ONLY = {
    name: HomographyConfig(
        **{
            **dict.fromkeys(("perspective", "scale", "rotation", "translation"), False),
            name: True,
            "patch_ratio": 0.8,
        }
    )
    for name in ("perspective", "scale", "rotation", "translation")
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def photograph():
    return cv2.resize(skimage_data.camera(), (320, 240)).astype(np.float32) / 255


@pytest.fixture
def homographies(rng):
    return sample_homographies(12, HEIGHT, WIDTH, HOMOGRAPHY_PRESETS["wide"], rng)


def translation(x, y):
    return np.array([[1.0, 0, x], [0, 1, y], [0, 0, 1]])


def zoom_about_centre(factor, height, width):
    cx, cy = (width - 1) / 2, (height - 1) / 2
    return np.array([[factor, 0, cx * (1 - factor)], [0, factor, cy * (1 - factor)], [0, 0, 1]])


def as_unit(points):
    return (points + 0.5) / [WIDTH, HEIGHT]


def patch_before_and_after(H, ratio):
    """The centred patch of the warped picture and where it lies in the picture, unit square."""
    low, high = (1 - ratio) / 2, (1 + ratio) / 2
    unit = np.array([[low, low], [low, high], [high, high], [high, low]])
    pixels = unit * [WIDTH, HEIGHT] - 0.5
    return unit, as_unit(warp_points(pixels, invert_homographies(H)))


# --- points --------------------------------------------------------------------------------------


def test_warp_points_divides_by_the_third_coordinate():
    H = np.array([[1.0, 0, 0], [0, 1, 0], [0.1, 0, 1]])
    assert np.allclose(warp_points(np.array([[10.0, 4.0]]), H), [[5.0, 2.0]])


def test_warp_points_agrees_with_opencv_and_kornia(rng, homographies):
    points = rng.uniform(0, 60, (12, 30, 2))
    warped = warp_points(points, homographies)
    oracle = torch.from_numpy(homographies), torch.from_numpy(points)
    assert np.allclose(warped, kornia.geometry.transform_points(*oracle).numpy(), rtol=1e-6)
    for p, H, w in zip(points, homographies, warped, strict=True):
        assert np.allclose(w, cv2.perspectiveTransform(p[None], H)[0])


def test_warp_points_gives_the_same_for_tensors(rng, homographies):
    points = rng.uniform(0, 60, (12, 30, 2))
    warped = warp_points(torch.from_numpy(points), torch.from_numpy(homographies))
    assert np.allclose(warped.numpy(), warp_points(points, homographies))


def test_warp_points_broadcasts_and_keeps_the_type(homographies):
    assert warp_points(np.zeros((5, 2), np.float32), homographies).shape == (12, 5, 2)
    assert warp_points(np.zeros((5, 2), np.float32), homographies).dtype == np.float32
    assert warp_points(np.zeros((5, 2), int), homographies).dtype == np.float64
    warped = warp_points(torch.zeros(12, 5, 2), torch.from_numpy(homographies))
    assert warped.dtype == torch.float32
    assert warp_points(torch.zeros(3, 1, 5, 2), homographies).shape == (3, 12, 5, 2)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_warp_points_at_infinity_and_without_points(kind):
    H = np.array([[1.0, 0, -2], [0, 1, 0], [0.5, 0, -1]])
    warped = warp_points(kind(np.array([[2.0, 3.0], [2.0, 0.0], [4.0, 1.0]])), H)
    assert np.isposinf(np.asarray(warped)[:2]).all()  # (0, 3, 0) and (0, 0, 0): never NaN
    assert np.allclose(np.asarray(warped)[2], [2, 1])
    assert tuple(warp_points(kind(np.zeros((0, 2))), H).shape) == (0, 2)


def test_warp_points_keeps_its_precision_under_autocast():
    points = torch.tensor([[123.25, 77.5]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        warped = warp_points(points, torch.tensor(translation(0.125, 0.25), dtype=torch.float32))
    assert torch.equal(warped, torch.tensor([[123.375, 77.75]]))


def test_warp_points_has_gradients(homographies):
    points = torch.rand(4, 2, dtype=torch.float64, requires_grad=True)
    H = torch.from_numpy(homographies[0])
    assert torch.autograd.gradcheck(lambda p: warp_points(p, H), (points,))


def test_warp_points_names_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(5, 3\)"):
        warp_points(np.zeros((5, 3)), np.eye(3))


# --- matrices ------------------------------------------------------------------------------------


def test_invert_homographies(homographies):
    inverse = invert_homographies(homographies * 7.0)
    product = inverse @ homographies
    assert np.allclose(product / product[:, 2:, 2:], np.eye(3), atol=1e-8)
    assert np.allclose(inverse[:, 2, 2], 1)
    tensor = invert_homographies(torch.from_numpy(homographies).float())
    assert tensor.dtype == torch.float32
    assert np.allclose(tensor.numpy(), inverse, rtol=1e-2, atol=1e-2)


def test_invert_homographies_accepts_far_translations_and_a_zero_corner():
    assert np.allclose(invert_homographies(translation(1e5, -1e5)), translation(-1e5, 1e5))
    swap = np.array([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]])
    assert np.allclose(invert_homographies(swap), swap)
    assert invert_homographies(np.zeros((0, 3, 3))).shape == (0, 3, 3)


@pytest.mark.parametrize(
    "bad", [np.zeros((3, 3)), np.arange(9.0).reshape(3, 3), np.full((3, 3), np.nan)]
)
def test_invert_homographies_names_the_one_that_has_no_inverse(bad):
    with pytest.raises(ValueError, match=r"homography \[1\]"):
        invert_homographies(np.stack([np.eye(3), bad]))
    with pytest.raises(ValueError, match="homography"):
        invert_homographies(bad)


def test_rounding_does_not_hide_a_singular_homography(rng):
    rank_two = rng.random((50, 3, 2)) @ rng.random((50, 2, 3))
    for matrix in rank_two:
        with pytest.raises(ValueError, match="singular"):
            invert_homographies(matrix)


def test_homographies_from_corners_agrees_with_opencv(rng):
    corners0 = np.array([[0.0, 0], [0, 50], [60, 50], [60, 0]]) + rng.uniform(-9, 9, (20, 4, 2))
    corners1 = np.array([[0.0, 0], [0, 50], [60, 50], [60, 0]]) + rng.uniform(-9, 9, (20, 4, 2))
    H = homographies_from_corners(corners0, corners1)
    oracle = [
        cv2.getPerspectiveTransform(a.astype(np.float32), b.astype(np.float32))
        for a, b in zip(corners0, corners1, strict=True)
    ]
    assert np.allclose(H, oracle, atol=1e-3)
    assert np.allclose(warp_points(corners0, H), corners1)


def test_mean_corner_error():
    assert mean_corner_error(np.eye(3), np.eye(3) * 2, 48, 64) == 0
    assert mean_corner_error(translation(3, 4), np.eye(3), 48, 64) == pytest.approx(5)
    # A zoom of 2 about pixel (0, 0) moves the corners by 0, 63, hypot(63, 47) and 47 pixels.
    expected = (63 + math.hypot(63, 47) + 47) / 4
    assert mean_corner_error(np.diag([2.0, 2, 1]), np.eye(3), 48, 64) == pytest.approx(expected)


def test_turn_and_zoom_by_hand():
    assert turn_and_zoom(np.eye(3), 49, 65) == (0, 1)
    quarter = np.array([[0.0, -2, 7], [2, 0, 1], [0, 0, 1]])
    assert turn_and_zoom(quarter, 48, 64) == pytest.approx((90, 2))
    assert turn_and_zoom(-3 * quarter, 48, 64) == pytest.approx((90, 2))
    # x' = x / (1 + x / 64), y' = y / (1 + x / 64): at (32, 24) the depth is 3/2, and
    # J = [[(1 - 1/3) / 1.5, 0], [-0.25 / 1.5, 1 / 1.5]].
    tilted = np.array([[1.0, 0, 0], [0, 1, 0], [1 / 64, 0, 1]])
    turn, zoom = turn_and_zoom(tilted, 49, 65)
    assert zoom == pytest.approx(math.sqrt(4 / 9 * 2 / 3))
    assert turn == pytest.approx(math.degrees(math.atan2(-1 / 6, 4 / 9 + 2 / 3)))


@pytest.mark.parametrize("seed", range(3))
def test_turn_and_zoom_follow_two_near_points(seed):
    H = sample_homographies(1, 48, 64, HOMOGRAPHY_PRESETS["any-scale"], np.random.default_rng(seed))
    centre = np.array([31.5, 23.5])
    here, right, below = warp_points(centre + 1e-5 * np.array([[0, 0], [1, 0], [0, 1]]), H[0])
    J = np.stack([right - here, below - here], axis=1) / 1e-5
    left_vectors, _, right_vectors = np.linalg.svd(J)
    R = left_vectors @ right_vectors
    expected = np.degrees(np.arctan2(R[1, 0], R[0, 0])), np.sqrt(np.linalg.det(J))
    assert turn_and_zoom(H[0], 48, 64) == pytest.approx(expected, rel=1e-3)


def test_mean_corner_error_of_no_estimate_is_infinite():
    assert mean_corner_error(None, np.eye(3), 48, 64) == math.inf
    assert mean_corner_error(np.full((3, 3), np.nan), np.eye(3), 48, 64) == math.inf
    at_infinity = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, 0]])
    assert mean_corner_error(at_infinity, at_infinity, 48, 64) == math.inf


# --- resizing and cropping -----------------------------------------------------------------------


def test_resize_transform_by_hand():
    # Resizing by 2 moves pixel 0 to 0.5 and pixel 10 to 20.5.
    moved = warp_points(np.array([[0.0, 10.0]]), resize_transform(2, 2))
    assert np.allclose(moved, [[0.5, 20.5]])


def test_transform_homography_follows_a_resized_photograph(photograph):
    smooth = cv2.GaussianBlur(photograph, (0, 0), 4)
    H = sample_homographies(1, 240, 320, HOMOGRAPHY_PRESETS["coco"], np.random.default_rng(3))[0]
    warped = warp_image(smooth, H)
    small0 = cv2.resize(smooth, (160, 120), interpolation=cv2.INTER_AREA)
    small1 = cv2.resize(warped, (80, 80), interpolation=cv2.INTER_AREA)
    small_H = transform_homography(H, resize_transform(0.5, 0.5), resize_transform(0.25, 1 / 3))
    inside = warp_image(np.ones_like(small0), small_H, (80, 80)) > 0.999
    inside = cv2.erode(inside.astype(np.uint8), np.ones((5, 5))) > 0
    gap = np.abs(warp_image(small0, small_H, (80, 80)) - small1)[inside].mean()
    naive = np.diag([0.25, 1 / 3, 1]) @ H @ np.diag([2.0, 2, 1])  # pixel centres forgotten
    naive_gap = np.abs(warp_image(small0, naive, (80, 80)) - small1)[inside].mean()
    assert inside.mean() > 0.3
    assert gap < 2e-3
    assert gap < naive_gap / 2


def test_crop_homography_follows_a_photograph(photograph):
    H = translation(7, -3) @ zoom_about_centre(1.1, 240, 320)
    warped = warp_image(photograph, H)
    part0, part1 = photograph[20:200, 30:300], warped[50:150, 60:200]
    cropped_H = crop_homography(H, (30, 20), (60, 50))
    assert np.allclose(warp_image(part0, cropped_H, (100, 140)), part1, atol=1e-4)


def test_transform_homography_composes():
    H = transform_homography(np.eye(3), translation(1, 2), translation(10, 20))
    assert np.allclose(H, translation(9, 18))


def ramps(height, width):
    """Pictures whose grey value is the pixel's own x, and y."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return np.dstack([x, y])


@pytest.mark.parametrize(
    ("old", "new"),
    [((60, 80), (30, 40)), ((60, 80), (24, 40)), ((50, 90), (75, 75)), ((33, 77), (40, 24))],
)
def test_resize_and_crop_returns_the_transform_it_applied(old, new):
    image, transform = resize_and_crop(ramps(*old), *new)
    assert image.shape == (*new, 2)
    came_from = warp_points(ramps(*new).reshape(-1, 2), invert_homographies(transform))
    inside = slice(2, -2)  # borders are replicated when enlarging
    gap = image - came_from.reshape(*new, 2)
    assert np.abs(gap[inside, inside]).max() < 0.5 + 1e-3  # area averaging steps at odd ratios
    assert np.abs(gap[inside, inside].mean((0, 1))).max() < 0.02
    sx, sy = transform[0, 0], transform[1, 1]
    assert sx == pytest.approx(sy, rel=0.05)
    assert transform[2].tolist() == [0, 0, 1]


def test_resize_and_crop_halves_exactly():
    image, transform = resize_and_crop(ramps(40, 60), 20, 20)
    # Half size is 20 x 30; five columns go on either side. New pixel 0 averages old ones 10 and 11.
    assert image[0, 0].tolist() == [10.5, 0.5]
    assert np.allclose(warp_points(np.array([[10.5, 0.5]]), transform), [[0, 0]])


def test_resize_and_crop_anchor():
    left, _ = resize_and_crop(ramps(40, 60), 40, 40, anchor=(0, 0))
    right, _ = resize_and_crop(ramps(40, 60), 40, 40, anchor=(1, 1))
    assert left[0, 0, 0] == 0
    assert right[0, -1, 0] == 59


def test_resize_short_side():
    image, transform = resize_short_side(ramps(40, 61), 20)
    assert image.shape == (20, 30, 2)
    # The outer edges of the picture stay its outer edges, also on the rounded side.
    edges = warp_points(np.array([[-0.5, -0.5], [60.5, 39.5]]), transform)
    assert np.allclose(edges, [[-0.5, -0.5], [29.5, 19.5]])


def test_points_on_pixels():
    points = np.array([[-0.5, 0], [-0.51, 0], [7.49, 3.49], [7.5, 0], [0, 3.5], [np.nan, 0]])
    expected = [True, False, True, False, False, False]
    assert on_pixels(points, 4, 8).tolist() == expected
    assert on_pixels(torch.from_numpy(points)[None], 4, 8).tolist() == [expected]


def test_resizing_nothing_is_refused():
    with pytest.raises(ValueError, match=r"\(0, 4\)"):
        resize_and_crop(np.zeros((0, 4), np.float32), 8, 8)
    with pytest.raises(ValueError, match="0 x 8"):
        resize_and_crop(np.zeros((4, 4), np.float32), 0, 8)


# --- sampling ------------------------------------------------------------------------------------


def sample(config, n=4000, seed=0):
    return sample_homographies(n, HEIGHT, WIDTH, config, np.random.default_rng(seed))


@pytest.mark.parametrize("name", HOMOGRAPHY_PRESETS)
def test_samples_are_deterministic_and_normalised(name):
    H = sample(HOMOGRAPHY_PRESETS[name], n=50)
    assert H.shape == (50, 3, 3)
    assert H.dtype == np.float64
    assert np.allclose(H[:, 2, 2], 1)
    assert np.array_equal(H, sample(HOMOGRAPHY_PRESETS[name], n=50))
    assert sample(HOMOGRAPHY_PRESETS[name], n=0).shape == (0, 3, 3)
    if name != "identity":
        assert not np.allclose(H, sample(HOMOGRAPHY_PRESETS[name], n=50, seed=1))


def test_identity_preset_moves_nothing():
    assert np.allclose(sample(HOMOGRAPHY_PRESETS["identity"], n=5), np.eye(3), atol=1e-10)


def truncated_std(amplitude):
    """Standard deviation of a normal of sigma amplitude / 2 cut at two sigma: 0.8796 sigma."""
    return 0.8796 * amplitude / 2


def test_translation_alone_is_uniform_over_the_margin():
    H = sample(ONLY["translation"])
    assert np.allclose(H[:, :2, :2], np.eye(2))
    assert np.allclose(H[:, 2], [0, 0, 1])
    shift = H[:, :2, 2] / [WIDTH, HEIGHT]
    assert np.abs(shift).max() <= 0.1 + 1e-9  # half of 1 - patch_ratio
    assert np.allclose(shift.std(0), 0.2 / math.sqrt(12), rtol=0.05)
    assert np.allclose(shift.mean(0), 0, atol=0.005)


def test_translation_overflow_needs_artifacts():
    config = dataclasses.replace(ONLY["translation"], translation_overflow=0.05)
    shift = sample(config)[:, :2, 2] / [WIDTH, HEIGHT]
    assert np.allclose([shift.min(), shift.max()], [-0.15, 0.15], atol=0.005)
    assert np.abs(shift).max() <= 0.15 + 1e-9
    strict = dataclasses.replace(config, allow_artifacts=False)
    assert np.abs(sample(strict)[:, :2, 2] / [WIDTH, HEIGHT]).max() <= 0.1 + 1e-9


def test_scale_alone_zooms_about_the_centre():
    H = sample(ONLY["scale"])
    patch_scale = 1 / H[:, 0, 0]  # the picture shrinks where the patch it shows grows
    expected = np.stack([zoom_about_centre(z, HEIGHT, WIDTH) for z in H[:, 0, 0]])
    assert np.allclose(H, expected)
    assert np.abs(patch_scale - 1).max() <= 0.2
    assert patch_scale.std() == pytest.approx(truncated_std(0.2), rel=0.05)


@pytest.mark.parametrize(
    ("scales", "deviation"), [("log", truncated_std(1)), ("log-even", 1 / math.sqrt(3))]
)
def test_logarithmic_scales_go_both_ways_alike(scales, deviation):
    H = sample(dataclasses.replace(ONLY["scale"], scales=scales, scale_amplitude=1.5))
    assert np.allclose(H, np.stack([zoom_about_centre(z, HEIGHT, WIDTH) for z in H[:, 0, 0]]))
    logs = np.log(H[:, 0, 0]) / np.log(2.5)
    assert 0.95 < logs.max() <= 1
    assert -1 <= logs.min() < -0.95
    assert logs.mean() == pytest.approx(0, abs=0.03)
    assert logs.std() == pytest.approx(deviation, rel=0.05)


def test_stretching_changes_proportions_and_no_area():
    H = sample(dataclasses.replace(ONLY["scale"], scale_amplitude=0.0, stretch_amplitude=1.0))
    assert np.allclose(H[:, :2, :2] * (1 - np.eye(2)), 0)
    assert np.allclose(np.linalg.det(H), 1)
    proportions = np.log2(H[:, 0, 0] / H[:, 1, 1])
    assert 0.95 < np.abs(proportions).max() <= 1
    assert proportions.std() == pytest.approx(truncated_std(1), rel=0.05)


def test_rotation_alone_takes_every_angle_evenly():
    H = sample_homographies(5000, 64, 64, ONLY["rotation"], np.random.default_rng(0))
    assert np.allclose(H[:, 2], [0, 0, 1], atol=1e-9)
    assert np.allclose(H[:, :2, :2] @ H[:, :2, :2].swapaxes(1, 2), np.eye(2))
    assert np.allclose(np.linalg.det(H), 1)
    assert np.allclose(warp_points(np.array([[31.5, 31.5]]), H), 31.5)
    steps = np.arctan2(H[:, 1, 0], H[:, 0, 0]) / (math.pi / 2) * 12
    assert np.allclose(steps, steps.round(), atol=1e-6)
    counts = np.bincount((steps.round() + 12).astype(int), minlength=25)
    assert counts.size == 25
    assert counts.min() > 140  # 200 expected, standard deviation 14
    assert counts.max() < 260


def test_rotation_in_pixels_does_not_stretch():
    stretched = dataclasses.replace(ONLY["rotation"], max_angle=math.pi)
    config = dataclasses.replace(stretched, rotate_in="pixels")
    H = sample_homographies(200, 60, 120, config, np.random.default_rng(0))
    assert np.allclose(H[:, :2, :2] @ H[:, :2, :2].swapaxes(1, 2), np.eye(2))
    assert np.allclose(warp_points(np.array([[59.5, 29.5]]), H), (59.5, 29.5))
    squeezed = sample_homographies(200, 60, 120, stretched, np.random.default_rng(0))
    singular = np.linalg.svd(squeezed[:, :2, :2], compute_uv=False)
    assert singular[:, 0].max() == pytest.approx(2, rel=1e-3)  # by the picture's proportions


def test_normal_angles_are_cut_at_the_largest_and_small_ones_most_frequent():
    config = dataclasses.replace(ONLY["rotation"], max_angle=math.pi, angles="normal")
    H = sample_homographies(5000, 64, 64, config, np.random.default_rng(0))
    angles = np.arctan2(H[:, 1, 0], H[:, 0, 0])
    assert angles.std() == pytest.approx(truncated_std(math.pi), rel=0.05)
    assert 0.9 * math.pi < np.abs(angles).max() <= math.pi
    assert angles.mean() == pytest.approx(0, abs=0.08)


def test_perspective_alone_moves_the_corners_within_the_amplitudes():
    config = dataclasses.replace(ONLY["perspective"], perspective_amplitude_x=0.1)
    unit, moved = patch_before_and_after(sample(config), 0.8)
    shift = moved - unit
    assert 0.09 < np.abs(shift[..., 0]).max() <= 0.1 + 1e-9
    assert 0.19 < np.abs(shift[..., 1]).max() <= 0.2 + 1e-9
    # Each vertical side keeps its x; its ends move apart by as much as the other side's close up.
    assert np.allclose(shift[:, 0, 0], shift[:, 1, 0])
    assert np.allclose(shift[:, 2, 0], shift[:, 3, 0])
    assert np.allclose(shift[..., 1] * [1, -1, 1, -1], shift[:, :1, 1])
    assert np.allclose(shift[..., 0].std(0), truncated_std(0.1), rtol=0.05)
    assert np.allclose(shift[..., 1].std(0), truncated_std(0.2), rtol=0.05)
    assert abs(np.corrcoef(shift[:, 0, 0], shift[:, 2, 0])[0, 1]) < 0.05


@pytest.mark.parametrize("off", ["perspective", "scale", "rotation", "translation"])
def test_switching_one_motion_off_takes_only_it_away(off):
    H = sample(dataclasses.replace(HomographyConfig(patch_ratio=0.8), **{off: False}), n=300)
    _, moved = patch_before_and_after(H, 0.8)
    sides = np.linalg.norm(moved - np.roll(moved, 1, axis=1), axis=-1)
    affine = np.allclose(moved[:, 0] + moved[:, 2], moved[:, 1] + moved[:, 3])
    centred = np.allclose(moved.mean(1)[:, 1], 0.5)  # bending alone keeps the centre's height
    upright = np.allclose(moved[:, 0, 0], moved[:, 1, 0])
    # Left and right sides measure the patch plus and minus the same length, until it is scaled.
    unscaled = np.allclose(sides[:, 1] + sides[:, 3], 1.6)
    assert affine == (off == "perspective")
    assert centred == (off == "translation")
    assert upright == (off == "rotation")
    assert unscaled == (off == "scale")


@pytest.mark.parametrize("ratio", [0.5, 0.85])
def test_without_artifacts_the_patch_stays_inside(ratio):
    config = HomographyConfig(allow_artifacts=False, patch_ratio=ratio, translation_overflow=0.1)
    H = sample(config, n=2000)
    _, moved = patch_before_and_after(H, ratio)
    assert moved.min() >= -1e-9
    assert moved.max() <= 1 + 1e-9
    with_artifacts = dataclasses.replace(config, allow_artifacts=True)
    _, moved = patch_before_and_after(sample(with_artifacts, n=2000), ratio)
    assert moved.min() < -0.05


def test_scales_that_do_not_fit_are_not_taken():
    # A patch as large as the picture can only shrink, or stay where no tried scale shrinks it.
    config = dataclasses.replace(ONLY["scale"], patch_ratio=1.0, allow_artifacts=False)
    scale = 1 / sample(config)[:, 0, 0]
    assert scale.max() <= 1 + 1e-12
    assert np.isclose(scale, 1).mean() == pytest.approx(0.5**5, abs=0.015)


def test_wrong_amplitudes_are_refused():
    for wrong in (
        {"patch_ratio": 0.0},
        {"n_angles": 0},
        {"scale_amplitude": 1.0},
        {"scale_amplitude": -0.1, "scales": "log"},
        {"stretch_amplitude": -0.1},
        {"perspective_amplitude_x": -0.1},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong)).split("_amplitude_x")[0]):
            HomographyConfig(**wrong)


# --- warping -------------------------------------------------------------------------------------


def test_warping_moves_a_pixel_where_its_point_goes():
    image = np.zeros((8, 10), np.float32)
    image[2, 3] = 1
    warped = warp_image(image, translation(4, 1))
    assert np.argwhere(warped > 0.5).tolist() == [[3, 7]]
    assert warped.sum() == 1
    half = warp_image(image, translation(0.5, 0))
    assert half[2, 3] == half[2, 4] == 0.5


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_backends_agree_with_each_other_and_with_kornia(photograph, padding):
    H = torch.from_numpy(
        sample_homographies(6, 240, 320, HOMOGRAPHY_PRESETS["coco"], np.random.default_rng(1))
    )
    images = torch.from_numpy(cv2.GaussianBlur(photograph, (0, 0), 1))[None, None]
    size = (200, 260)
    opencv = warp_images(images, H, size, padding, backend="opencv")
    grid = warp_images(images, H, size, padding, backend="torch")
    oracle = kornia.geometry.warp_perspective(
        images.expand(6, -1, -1, -1), H.float(), size, padding_mode=padding, align_corners=True
    )
    assert opencv.shape == (6, 1, *size)
    assert (opencv - grid).abs().max() < 2e-3
    assert (opencv - oracle).abs().mean() < 1e-4
    assert (grid - oracle).abs().max() < 2e-3
    direct = cv2.warpPerspective(images[0, 0].numpy(), H[2].numpy(), (260, 200))
    if padding == "zeros":
        assert np.allclose(opencv[2, 0], direct, atol=2e-3)


def test_nearest_mode_agrees_between_backends(photograph):
    H = sample_homographies(4, 240, 320, HOMOGRAPHY_PRESETS["coco"], np.random.default_rng(1))
    images = torch.from_numpy(photograph)[None, None]
    opencv = warp_images(images, H, mode="nearest", backend="opencv")
    grid = warp_images(images, H, mode="nearest", backend="torch")
    assert (opencv != grid).float().mean() < 1e-3
    assert np.isin(opencv.numpy(), np.append(np.unique(photograph), 0)).all()


@pytest.mark.parametrize("backend", ["opencv", "torch"])
def test_batches_pair_up_or_repeat(homographies, backend, rng):
    images = torch.from_numpy(rng.random((12, 3, HEIGHT, WIDTH), dtype=np.float32))
    H = torch.from_numpy(homographies)
    paired = warp_images(images, H, backend=backend)
    assert paired.shape == images.shape
    one_image = warp_images(images[:1], H, backend=backend)
    assert torch.equal(one_image[0], paired[0])
    assert torch.equal(one_image[5], warp_images(images[:1], H[5:6], backend=backend)[0])
    one_warp = warp_images(images, H[:1], backend=backend)
    assert torch.equal(one_warp[7], warp_images(images[7:8], H[:1], backend=backend)[0])
    strided = images.to(memory_format=torch.channels_last)
    assert torch.equal(warp_images(strided, H, backend=backend), paired)
    assert warp_images(images[:0], H[:0], backend=backend).shape == (0, 3, HEIGHT, WIDTH)


@pytest.mark.parametrize("backend", ["opencv", "torch"])
def test_warping_keeps_the_type(backend, photograph):
    H = translation(2.5, -1.25)[None]
    image = torch.from_numpy(photograph)[None, None]
    reference = warp_images(image, H, backend=backend)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        warped = warp_images(image.to(dtype), H, backend=backend)
        assert warped.dtype == dtype
        assert (warped.float() - reference).abs().max() < tolerance
    coarse = warp_images((image * 255).round().to(torch.uint8), H, backend=backend)
    assert coarse.dtype == torch.uint8
    rounding = coarse.float() - reference * 255
    assert rounding.abs().max() <= 1 + 1e-3
    assert rounding.mean().abs() < 0.05  # rounded to the nearest, not downwards
    mask = warp_images(image > 0.5, H, mode="nearest", backend=backend)
    assert mask.dtype == torch.bool
    assert 0.2 < mask.float().mean() < 0.8


def test_gradients_reach_the_images(homographies):
    images = torch.ones(1, 1, HEIGHT, WIDTH, requires_grad=True)
    warp_images(images, homographies[:2]).sum().backward()
    assert images.grad.abs().sum() > 0


def test_the_horizon_gives_no_nan():
    H = np.array([[1.0, 0, 0], [0, 1, 0], [0.05, 0, 1]])[None]
    horizon = invert_homographies(H)  # w = 0 runs through the picture, exactly at x = 20
    for backend in ("opencv", "torch"):
        warped = warp_images(torch.ones(1, 1, HEIGHT, WIDTH), horizon, backend=backend)
        assert torch.isfinite(warped).all()
    assert torch.isfinite(warp_images(torch.ones(1, 1, HEIGHT, WIDTH), H, backend="torch")).all()


def test_wrong_warps_are_refused():
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ValueError, match=r"\(2, 8, 8\)"):
        warp_images(images[:, 0], np.eye(3)[None])
    with pytest.raises(ValueError, match="2 images cannot be paired with 3"):
        warp_images(images, np.stack([np.eye(3)] * 3))
    with pytest.raises(ValueError, match="is zero"):
        warp_images(images, np.zeros((2, 3, 3)))
    with pytest.raises(TypeError, match="int64"):
        warp_images(images.long(), np.eye(3)[None])
    with pytest.raises(TypeError, match="mode='nearest'"):
        warp_images(images.bool(), np.eye(3)[None])
    with pytest.raises(ValueError, match="padding"):
        warp_images(images, np.eye(3)[None], padding="reflect")
    with pytest.raises(ValueError, match=r"\(1, 8, 8\)"):
        warp_image(np.zeros((1, 8, 8), np.float32), np.eye(3))


# --- valid pixels --------------------------------------------------------------------------------


def test_valid_mask_of_the_identity_loses_exactly_the_border():
    masks = valid_mask(np.eye(3)[None], 20, 30, border=3)
    expected = np.zeros((20, 30), bool)
    expected[3:-3, 3:-3] = True
    assert np.array_equal(masks[0], expected)
    assert valid_mask(np.eye(3)[None], 20, 30).all()


def test_valid_mask_of_a_zoom_keeps_the_frame():
    assert valid_mask(zoom_about_centre(2, 20, 30)[None], 20, 30, border=4).all()


def test_valid_mask_of_a_shift():
    mask = valid_mask(translation(5, -2)[None], 20, 30, border=1)[0]
    expected = np.zeros((20, 30), bool)
    # The source shows from column 5 to beyond the frame, and ends at row 17.
    expected[:17, 6:] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("preset", ["coco", "wide"])
def test_valid_mask_is_where_the_source_shows(rng, preset):
    H = sample_homographies(30, HEIGHT, WIDTH, HOMOGRAPHY_PRESETS[preset], rng)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x, y], -1).reshape(-1, 2).astype(float)
    source = as_unit(warp_points(pixels, invert_homographies(H)))
    expected = ((source > 0) & (source < 1)).all(-1).reshape(-1, HEIGHT, WIDTH)
    mask = valid_mask(H, HEIGHT, WIDTH)
    assert (mask != expected).mean() < 1e-5
    shown = warp_images(torch.ones(1, 1, HEIGHT, WIDTH), H, mode="nearest")[:, 0].numpy()
    assert (mask != (shown > 0)).mean() < 1e-3
    assert 0.3 < mask.mean() < 1


def test_valid_mask_on_both_sides_of_the_horizon():
    # Seen past its horizon a plane turns up again, from behind: both parts show the source.
    # This one shows (40 + 600 / (x - 40), 30 + 20 (y - 30) / (x - 40)) at the pixel (x, y).
    H = invert_homographies(np.array([[[40.0, 0, -1000], [30, 20, -1800], [1, 0, -40]]]))
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x, y], -1).reshape(-1, 2).astype(float)
    source = as_unit(warp_points(pixels, invert_homographies(H)))
    expected = ((source > 0) & (source < 1)).all(-1).reshape(1, HEIGHT, WIDTH)
    assert 0 < expected[..., :40].mean() < 1
    assert 0 < expected[..., 40:].mean() < 1
    assert (valid_mask(H, HEIGHT, WIDTH) != expected).sum() <= 3


@pytest.mark.parametrize("border", [2, 5])
def test_valid_mask_border_is_an_erosion_by_a_disc(rng, border):
    H = sample_homographies(20, HEIGHT, WIDTH, HOMOGRAPHY_PRESETS["coco"], rng)
    masks = valid_mask(H, HEIGHT, WIDTH, border)
    pad = 10
    # OpenCV erodes pixels: on a canvas with room around the frame, so that the frame is no edge.
    for matrix, mask in zip(H, masks, strict=True):
        canvas = cv2.warpPerspective(
            np.ones((HEIGHT, WIDTH), np.uint8),
            translation(pad, pad) @ matrix,
            (WIDTH + 2 * pad, HEIGHT + 2 * pad),
            flags=cv2.INTER_NEAREST,
        )
        outer, inner = (
            cv2.erode(canvas, disc(radius))[pad:-pad, pad:-pad] > 0
            for radius in (border, border + 1)
        )
        assert (mask & ~outer).sum() <= 3  # pixels whose centre touches the edge
        assert (inner & ~mask).sum() <= 3
        assert abs(int(mask.sum()) - int(outer.sum())) <= 0.7 * (HEIGHT + WIDTH)


def disc(radius):
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (x**2 + y**2 <= radius**2).astype(np.uint8)


def test_a_picture_and_its_mask_come_together(photograph, homographies):
    picture = photograph[:HEIGHT, :WIDTH]
    beyond = np.array([[1.0, 0, 0], [0, 1, 0], [0.02, 0, 1]])  # shows both sides of the horizon
    behind = invert_homographies(np.array([[1.0, 0, 0], [0, 1, 0], [0.05, 0, -1]]))
    for H in (*homographies, np.eye(3), beyond, behind, 3.0 * invert_homographies(beyond)):
        warped, valid = warp_with_mask(picture, H, border=2)
        assert np.array_equal(warped, warp_image(picture, H)) and warped.dtype == picture.dtype
        assert np.array_equal(valid, valid_mask(H[None], HEIGHT, WIDTH, border=2)[0])
    with pytest.raises(ValueError, match=r"\(4, 8, 8\)"):
        warp_with_mask(np.zeros((4, 8, 8), np.float32), np.eye(3))
    with pytest.raises(ValueError, match="singular"):
        warp_with_mask(picture, np.ones((3, 3)))


def test_a_warp_may_have_a_size_of_its_own(photograph):
    H = np.array([[0.7, 0.1, 30.0], [-0.1, 0.8, 10.0], [1e-4, -2e-4, 1.0]])
    warped, valid = warp_with_mask(photograph, H, border=1, size=(HEIGHT, WIDTH))
    assert np.array_equal(warped, warp_image(photograph, H, (HEIGHT, WIDTH)))
    # The mask of a larger picture that holds both, cut down to the frame.
    height, width = photograph.shape
    assert height > HEIGHT and width > WIDTH
    whole = valid_mask(H[None], height, width, border=1)[0]
    assert np.array_equal(valid, whole[:HEIGHT, :WIDTH]) and 0 < valid.mean() < 1


def test_samples_are_averaged_over_a_pixel(photograph):
    size = photograph.shape[0] // 2, photograph.shape[1] // 2
    even = photograph[: 2 * size[0], : 2 * size[1]]
    half = np.diag([0.5, 0.5, 1.0])
    half[:2, 2] = -0.25
    halved, _ = warp_with_mask(even, half, size=size, samples=2)
    means = even.reshape(size[0], 2, size[1], 2).mean((1, 3))
    np.testing.assert_allclose(halved, means, atol=1e-5)
    stripes = np.tile(np.float32([0, 1]), (32, 16))
    quarter = np.diag([0.25, 0.25, 1.0])
    quarter[:2, 2] = -0.375
    fine, _ = warp_with_mask(stripes, quarter, size=(8, 8), samples=4)
    assert np.abs(fine - 0.5).max() < 1e-6
    with pytest.raises(ValueError, match="samples >= 1"):
        warp_with_mask(stripes, quarter, samples=0)


def test_a_homography_changes_no_mask_for_the_others():
    # One that shows the far side of its horizon makes all be looked at from behind as well.
    near = np.stack((translation(3, 4), zoom_about_centre(2, HEIGHT, WIDTH)))
    far = invert_homographies(np.array([[1.0, 0, 0], [0, 1, 0], [0.05, 0, -1]]))
    together = valid_mask(np.concatenate((near, far[None])), HEIGHT, WIDTH, border=1)
    assert np.array_equal(together[:2], valid_mask(near, HEIGHT, WIDTH, border=1))
    assert np.array_equal(together[2:], valid_mask(far[None], HEIGHT, WIDTH, border=1))


def test_valid_mask_kinds_and_errors():
    H = np.eye(3)[None]
    assert isinstance(valid_mask(H, 8, 8), np.ndarray)
    tensor = valid_mask(torch.from_numpy(H), 8, 8, border=1)
    assert tensor.dtype == torch.bool
    assert np.array_equal(tensor.numpy(), valid_mask(H, 8, 8, border=1))
    assert valid_mask(H[:0], 8, 8).shape == (0, 8, 8)
    with pytest.raises(ValueError, match="border"):
        valid_mask(H, 8, 8, border=-1)
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        valid_mask(np.eye(3), 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same(photograph):
    H = sample_homographies(4, 240, 320, HOMOGRAPHY_PRESETS["coco"], np.random.default_rng(1))
    images = torch.from_numpy(cv2.GaussianBlur(photograph, (0, 0), 1))[None, None]
    on_gpu = warp_images(images.cuda(), torch.from_numpy(H).cuda())
    assert on_gpu.is_cuda
    assert (on_gpu.cpu() - warp_images(images, H)).abs().max() < 2e-3
    mask = valid_mask(torch.from_numpy(H).cuda(), 240, 320, border=3)
    assert mask.is_cuda
    assert (mask.cpu().numpy() != valid_mask(H, 240, 320, border=3)).mean() < 1e-4
    with pytest.raises(ValueError, match="CPU tensors"):
        warp_images(images.cuda(), H, backend="opencv")


def test_whole_numbers_warp_to_fractions():
    points, H = torch.tensor([[1, 2]]), torch.diag(torch.tensor([1, 1, 2]))
    assert warp_points(points, H).tolist() == [[0.5, 1.0]]
    assert warp_points(points.numpy(), H.numpy()).tolist() == [[0.5, 1.0]]


def test_a_single_channel_stays():
    image = np.random.default_rng(0).random((40, 50, 1), dtype=np.float32)
    for resize in (
        partial(resize_and_crop, height=20, width=20),
        partial(resize_short_side, size=20),
    ):
        one, transform = resize(image)
        flat, same = resize(image[..., 0])
        assert one.shape == (*flat.shape, 1) and np.array_equal(one[..., 0], flat)
        assert np.array_equal(transform, same)


@pytest.mark.parametrize("scale", [1e-200, 1e200, -3.0])
def test_the_overall_scale_of_a_homography_changes_nothing_of_its_inverse(scale):
    H = np.array([[0.75, -0.27, 40.0], [0.27, 0.75, -10.0], [1e-4, 5e-5, 1.0]])
    assert np.allclose(invert_homographies(scale * H), invert_homographies(H), rtol=1e-12)


def test_valid_mask_where_the_horizon_crosses_one_end_of_the_picture():
    inverse = np.array([[40.0, 0, 100 - 40 * 72], [30, 20, -600 - 30 * 72], [1, 0, -72]])
    swap = np.eye(3)[[1, 0, 2]]
    for H_1to0, (h, w) in ((inverse, (60, 80)), (swap @ inverse @ swap, (80, 60))):
        y, x = np.mgrid[:h, :w]
        source = warp_points(np.stack([x, y], -1).reshape(-1, 2).astype(float), H_1to0)
        expected = ((source > -0.5) & (source < [w - 0.5, h - 0.5])).all(-1).reshape(h, w)
        assert expected[:, 73:].any() or expected[73:].any()  # something lies beyond it
        assert (valid_mask(invert_homographies(H_1to0[None]), h, w)[0] != expected).sum() <= 3


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_pixels_exactly_on_the_horizon_are_numbers(padding):
    image = np.full((64, 64), 0.5, np.float32)
    H_1to0 = np.array([[1.0, 0, 0], [0, 1, 0], [-1 / 8, 0, 1]])  # w = 0 at x = 8
    H = invert_homographies(H_1to0)
    warped = warp_image(image, H, padding=padding)
    assert np.isfinite(warped).all() and warped.max() == pytest.approx(0.5)
    assert np.isfinite(warp_with_mask(image, H)[0]).all()


def test_homography_presets_are_what_they_are():
    plain = {name: to_dict(preset) for name, preset in HOMOGRAPHY_PRESETS.items()}
    default = to_dict(HomographyConfig())
    turned = {"max_angle": math.pi, "angles": "normal", "rotate_in": "pixels"}
    any_scale = {"scale_amplitude": 1.5, "scales": "log", "stretch_amplitude": 1.0} | turned
    off = {"perspective": False, "scale": False, "rotation": False, "translation": False}
    small = {"perspective_amplitude_x": 0.05, "perspective_amplitude_y": 0.05}
    expected = {
        "synthetic": {"patch_ratio": 0.8, "translation_overflow": 0.05, "max_angle": 1.57},
        "coco": {"patch_ratio": 0.85, "max_angle": 1.57},
        "adaptation": {"patch_ratio": 0.85, "max_angle": math.pi / 2},
        "validation": {"patch_ratio": 0.8, "scale_amplitude": 0.1, "max_angle": 3.14} | small,
        "wide": {"scale_amplitude": 0.5, "max_angle": math.pi},
        "any-angle": {"scale_amplitude": 0.6} | turned,
        "any-scale": any_scale,
        "any-distance": any_scale | {"scale_amplitude": 2.0, "scales": "log-even"},
        "identity": off,
    }
    assert plain == {name: default | changes for name, changes in expected.items()}
