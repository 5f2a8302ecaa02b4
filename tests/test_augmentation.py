import dataclasses

import cv2
import numpy as np
import pytest

from superpoint_lib import augmentation
from superpoint_lib.augmentation import (
    PHOTOMETRIC_PRESETS,
    PhotometricConfig,
    add_defocus,
    add_gaussian_noise,
    add_motion_blur,
    add_shade,
    add_speckle_noise,
    augment_homographic,
    augment_photometric,
    change_brightness,
    change_contrast,
    motion_kernel,
)
from superpoint_lib.geometry import HOMOGRAPHY_PRESETS, warp_points


def _rng(seed=0):
    return np.random.default_rng(seed)


def _gray(level=0.5, shape=(120, 160)):
    return np.full(shape, level, np.float32)


def test_presets_are_the_published_ones_but_for_the_size_of_shades():
    synthetic = PHOTOMETRIC_PRESETS["synthetic"]
    assert synthetic.brightness_change == 75 and synthetic.contrast_range == (0.3, 1.8)
    assert synthetic.noise_sigma == (0, 15) and synthetic.motion_kernel == 7
    assert synthetic.shade_transparency == (-0.5, 0.8) and synthetic.shade_kernel == (50, 100)
    for name, contrast in (("coco_magicpoint", (0.3, 1.5)), ("coco_superpoint", (0.5, 1.5))):
        coco = PHOTOMETRIC_PRESETS[name]
        assert coco.contrast_range == contrast and coco.brightness_change == 50
        assert coco.noise_sigma == (0, 10) and coco.motion_kernel == 3
        assert coco.shade_transparency == (-0.5, 0.5) and coco.shade_kernel == (100, 150)
    assert all(p.speckle_probability == (0, 0.0035) for p in PHOTOMETRIC_PRESETS.values())
    assert all(p.shade_ellipses == 20 for p in PHOTOMETRIC_PRESETS.values())
    # Published is a quarter; the others keep what the bundled weights were trained with.
    sizes = {name: preset.shade_size for name, preset in PHOTOMETRIC_PRESETS.items()}
    assert sizes.pop("synthetic") == 0.25 and set(sizes.values()) == {1.0}


def test_no_effect_leaves_the_picture_alone():
    image = _rng().random((24, 32), dtype=np.float32)
    result = augment_photometric(image, PHOTOMETRIC_PRESETS["none"], _rng())
    assert np.array_equal(result, image) and result is not image


@pytest.mark.parametrize("preset", ["synthetic", "coco_magicpoint", "coco_superpoint"])
def test_augmented_pictures_are_new_clipped_and_repeatable(preset):
    image = _rng().random((120, 160), dtype=np.float32)
    before = image.copy()
    config = PHOTOMETRIC_PRESETS[preset]
    results = [augment_photometric(image, config, _rng(seed)) for seed in range(12)]
    assert all(r.shape == image.shape and r.dtype == np.float32 for r in results)
    assert all(r.min() >= 0 and r.max() <= 1 for r in results)
    assert np.array_equal(image, before)
    assert np.array_equal(results[3], augment_photometric(image, config, _rng(3)))
    assert not np.array_equal(results[3], results[4])


@pytest.mark.parametrize(
    "effect", ["brightness", "contrast", "noise", "speckle", "shade", "motion_blur"]
)
def test_each_effect_has_a_switch(effect):
    image = _rng().random((60, 80), dtype=np.float32) * 0.5 + 0.25
    only = dataclasses.replace(PHOTOMETRIC_PRESETS["none"], motion_kernel=7, **{effect: True})
    changed = [augment_photometric(image, only, _rng(seed)) for seed in range(8)]
    assert any(not np.array_equal(result, image) for result in changed)


def test_the_order_of_the_effects_varies():
    # Blur before noise leaves full noise, noise before blur smoothes it.
    config = dataclasses.replace(
        PHOTOMETRIC_PRESETS["none"],
        noise=True,
        noise_sigma=(20.0, 20.0),
        motion_blur=True,
        motion_kernel=7,
    )
    strengths = [augment_photometric(_gray(), config, _rng(s)).std() * 255 for s in range(40)]
    assert max(strengths) > 19 and min(strengths) < 14


def test_brightness_adds_one_number():
    image = _rng().random((8, 8), dtype=np.float32)
    moves = [change_brightness(image, 51, _rng(seed)) - image for seed in range(50)]
    assert all(np.ptp(move) < 1e-6 for move in moves)
    means = np.array([move.mean() for move in moves])
    assert np.abs(means).max() <= 0.2 and means.min() < -0.1 and means.max() > 0.1


def test_contrast_scales_about_the_mean():
    image = np.array([[0.2, 0.4], [0.6, 0.8]], np.float32)
    expected = np.array([[-0.1, 0.3], [0.7, 1.1]])
    assert np.allclose(change_contrast(image, (2.0, 2.0), _rng()), expected, atol=1e-6)


def test_gaussian_noise_has_the_stated_deviation():
    noisy = add_gaussian_noise(_gray(), (10.0, 10.0), _rng())
    assert noisy.std() * 255 == pytest.approx(10, rel=0.03)
    assert noisy.mean() == pytest.approx(0.5, abs=1e-3)
    assert np.array_equal(add_gaussian_noise(_gray(), (0.0, 0.0), _rng()), _gray())


def test_gaussian_noise_is_normal_independent_and_the_generators_own():
    still = np.zeros((400, 400), np.float32)
    noise = add_gaussian_noise(still, (255.0, 255.0), _rng())
    assert (np.abs(noise) > 2).mean() == pytest.approx(0.0455, abs=0.003)
    assert np.mean(noise**4) == pytest.approx(3, abs=0.1)
    assert np.mean(noise[:, 1:] * noise[:, :-1]) == pytest.approx(0, abs=0.01)
    cv2.randn(np.empty((5, 5), np.float32), 0, 1)  # moves OpenCV's global generator
    assert np.array_equal(add_gaussian_noise(still, (255.0, 255.0), _rng()), noise)
    rng = _rng()
    firsts = [add_gaussian_noise(still[:1, :1], (255.0, 255.0), rng).item() for _ in range(2000)]
    assert np.mean(firsts) == pytest.approx(0, abs=0.08)
    assert np.std(firsts) == pytest.approx(1, abs=0.08)
    first, second = (add_gaussian_noise(still, (255.0, 255.0), rng) for _ in "01")
    assert abs(np.mean(first * second)) < 0.01


def test_speckle_turns_the_stated_share_black_and_white():
    noisy = add_speckle_noise(_gray(shape=(400, 400)), (0.01, 0.01), _rng())
    assert set(np.unique(noisy)) == {0.0, 0.5, 1.0}
    assert (noisy == 0).mean() == pytest.approx(0.01, rel=0.15)
    assert (noisy == 1).mean() == pytest.approx(0.01, rel=0.15)


def test_shade_scales_smoothly_between_one_and_the_stated_strength():
    image = _gray(0.4)
    darker = add_shade(image, 20, 1.0, (0.8, 0.8), (50, 100), _rng())
    assert darker.min() >= 0.4 * 0.2 - 1e-6 and darker.max() <= 0.4 + 1e-6
    assert np.ptp(darker) > 0.1
    assert max(np.abs(np.diff(darker, axis=a)).max() for a in (0, 1)) < 0.02
    lighter = add_shade(image, 20, 1.0, (-0.5, -0.5), (50, 100), _rng())
    assert lighter.max() <= 0.4 * 1.5 + 1e-6 and lighter.min() >= 0.4 - 1e-6
    assert np.array_equal(add_shade(image, 0, 1.0, (0.8, 0.8), (50, 100), _rng()), image)


def published_mask(height, width, kernel, rng):
    """The mask of the public trainings, at full size: half axes up to a quarter of the height."""
    largest, mask = min(height, width) / 4, np.zeros((height, width), np.uint8)
    for _ in range(20):
        axes = [int(max(rng.random() * largest, largest / 5)) for _ in "xy"]
        x, y = (int(rng.integers(max(axes), n - max(axes))) for n in (width, height))
        cv2.ellipse(mask, (x, y), axes, rng.uniform(0, 90), 0, 360, 255, -1)
    side = 2 * (int(rng.integers(*kernel)) // 2) + 1
    return cv2.GaussianBlur(mask.astype(np.float32), (side, side), 0) / 255


@pytest.mark.parametrize("kernel", [(50, 100), (100, 150)])
def test_shade_covers_as_much_as_the_published_one(kernel):
    rng, white = _rng(), np.ones((120, 160), np.float32)
    theirs = np.stack([published_mask(120, 160, kernel, rng) for _ in range(200)])
    ours = 1 - np.stack([add_shade(white, 20, 0.25, (1, 1), kernel, rng) for _ in range(200)])
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.05)
    assert ours.std((1, 2)).mean() == pytest.approx(theirs.std((1, 2)).mean(), abs=0.03)
    # Ellipses as large as the picture cover nearly all of it.
    large = 1 - np.stack([add_shade(white, 20, 1.0, (1, 1), kernel, rng) for _ in range(50)])
    assert large.mean() > 0.8


@pytest.mark.parametrize("shape", [(16, 16), (17, 200), (240, 320)])
def test_shade_takes_any_size(shape):
    shaded = add_shade(_gray(0.4, shape), 20, 1.0, (0.8, 0.8), (100, 150), _rng())
    assert shaded.shape == shape and shaded.min() >= 0.08 - 1e-6


@pytest.mark.parametrize("side", [3, 5, 7])
@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 4, 2.0])
def test_motion_kernels_sum_to_one_and_are_symmetric(side, angle):
    kernel = motion_kernel(side, angle)
    assert kernel.shape == (side, side) and kernel.min() >= 0
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert np.allclose(kernel, kernel[::-1, ::-1])


def test_motion_blur_along_x_leaves_columns_alone():
    kernel = motion_kernel(5, 0.0)
    assert np.allclose(kernel[[0, 1, 3, 4]], 0) and (kernel[2] > 0).all()
    assert kernel[2].argmax() == 2
    stripes = np.tile(np.arange(16, dtype=np.float32)[:, None] / 16, (1, 16))
    assert np.allclose(cv2.filter2D(stripes, -1, kernel), stripes, atol=1e-6)


def test_motion_blur_of_side_one_changes_nothing():
    image = _rng().random((16, 16), dtype=np.float32)
    assert np.array_equal(add_motion_blur(image, 1, _rng()), image)
    sides = {np.count_nonzero(_blurred_dot(seed).max(axis=0)) for seed in range(60)}
    assert max(sides) <= 7


def test_defocus_blurs_evenly_by_the_stated_deviation():
    dot = np.zeros((41, 41), np.float32)
    dot[20, 20] = 1
    blurred = add_defocus(dot, (2.0, 2.0), _rng())
    assert blurred.dtype == np.float32 and blurred.sum() == pytest.approx(1, abs=1e-3)
    steps = np.arange(41) - 20
    for axis in (0, 1):
        assert (blurred.sum(axis) * steps**2).sum() == pytest.approx(4, rel=0.05)
    assert np.array_equal(add_defocus(dot, (0.0, 0.05), _rng()), dot)


def _blurred_dot(seed):
    dot = np.zeros((21, 21), np.float32)
    dot[10, 10] = 1
    return add_motion_blur(dot, 7, _rng(seed))


def test_keypoints_follow_the_picture():
    # A soft dot's centre of gravity lands where its keypoint does.
    y, x = np.mgrid[:120, :160]
    keypoints = np.array([[80.25, 60.5]], np.float32)
    image = np.exp(-((x - 80.25) ** 2 + (y - 60.5) ** 2) / 4.5).astype(np.float32)
    checked = 0
    for seed in range(12):
        warped, points, valid, H = augment_homographic(
            image, keypoints, HOMOGRAPHY_PRESETS["synthetic"], _rng(seed)
        )
        assert warped.shape == valid.shape == (120, 160) and valid.dtype == bool
        assert H.shape == (3, 3) and points.dtype == np.float32
        if len(points) == 1 and (points > 20).all() and (points < (139, 99)).all():
            center = np.array([(warped * x).sum(), (warped * y).sum()]) / warped.sum()
            assert np.abs(center - points[0]).max() < 0.15
            assert np.allclose(warp_points(keypoints.astype(np.float64), H), points, atol=1e-3)
            checked += 1
    assert checked >= 6


def test_keypoints_that_leave_the_frame_are_dropped():
    grid = np.stack(np.meshgrid(np.arange(0, 160, 5), np.arange(0, 120, 5)), -1).reshape(-1, 2)
    image = _gray(1.0)
    lost = 0
    for seed in range(8):
        warped, points, valid, _ = augment_homographic(
            image, grid.astype(np.float32), HOMOGRAPHY_PRESETS["synthetic"], _rng(seed), border=3
        )
        assert (points >= 0).all() and (points <= (159, 119)).all()
        assert (warped[valid] == 1).all()
        lost += len(grid) - len(points)
    assert lost > 0


def test_keypoints_in_the_outer_half_of_a_pixel_are_on_it():
    keypoints = np.array([[-0.3, 5.0], [47.4, 20.0], [-0.6, 5.0], [47.6, 20.0]], np.float32)
    _, points, _, _ = augment_homographic(
        np.zeros((40, 48), np.float32), keypoints, HOMOGRAPHY_PRESETS["identity"], _rng(), border=3
    )
    assert np.allclose(points, [[0.0, 5.0], [47.0, 20.0]], atol=1e-4)


def test_identity_keeps_everything_but_the_rim():
    image = _rng().random((40, 48), dtype=np.float32)
    keypoints = np.array([[0.0, 0.0], [47.0, 39.0], [20.5, 3.25]], np.float32)
    warped, points, valid, H = augment_homographic(
        image, keypoints, HOMOGRAPHY_PRESETS["identity"], _rng(), border=2
    )
    assert np.allclose(warped, image, atol=1e-5) and np.allclose(points, keypoints, atol=1e-4)
    assert np.allclose(H, np.eye(3), atol=1e-6)
    assert valid[2:-2, 2:-2].all() and not valid[0].any() and not valid[:, 0].any()


def test_a_window_is_warped_with_its_surroundings():
    y, x = np.mgrid[:96, :128].astype(np.float32)
    picture = (0.5 + 0.25 * np.sin(x / 9) + 0.25 * np.cos(y / 7)).astype(np.float32)
    keypoints = np.array([[60.0, 50.0], [2.0, 2.0]], np.float32)
    # A view of 48 x 64: pixels 20..., 10... of the picture, half as large again.
    window = np.array([[1.5, 0, -29.75], [0, 1.5, -14.75], [0, 0, 1]])
    beyond = 0
    for seed in range(6):
        warped, points, valid, H = augment_homographic(
            picture,
            keypoints,
            HOMOGRAPHY_PRESETS["any-scale"],
            _rng(seed),
            window=window,
            size=(48, 64),
        )
        assert warped.shape == valid.shape == (48, 64)
        moved = warp_points(keypoints.astype(np.float64), H @ window)
        on = (moved > 0).all(1) & (moved < (63, 47)).all(1)
        for point in moved[on]:
            assert np.abs(points - point).max(1).min() < 1e-3
        v, u = np.mgrid[:48, :64]
        places = np.stack((u, v), -1).reshape(-1, 2).astype(np.float64)
        source = warp_points(places, np.linalg.inv(H @ window)).reshape(48, 64, 2)
        expected = 0.5 + 0.25 * np.sin(source[..., 0] / 9) + 0.25 * np.cos(source[..., 1] / 7)
        assert np.abs(warped - expected)[valid].mean() < 0.02
        view = warp_points(places, np.linalg.inv(H)).reshape(48, 64, 2)
        outside = (view < 0).any(-1) | (view > (63, 47)).any(-1)
        beyond += (valid & outside).sum()
    assert beyond > 100


def test_a_window_made_smaller_is_free_of_aliasing():
    stripes = np.tile(np.float32([0, 1]), (96, 64))
    small = np.diag([0.45, 0.45, 1.0])
    look = (stripes, np.zeros((0, 2)), HOMOGRAPHY_PRESETS["identity"])
    smooth, _, valid, _ = augment_homographic(*look, _rng(), window=small, size=(24, 40))
    rough = cv2.warpPerspective(stripes, small, (40, 24))
    inner = valid & (rough > 0)
    assert np.ptp(smooth[valid]) < 0.3 and np.ptp(rough[inner]) > 0.7


def test_of_several_ways_to_change_gray_levels_one_is_drawn():
    darker = dataclasses.replace(
        PHOTOMETRIC_PRESETS["none"], contrast=True, contrast_range=(0.5, 0.5)
    )
    image = _rng().random((8, 8), dtype=np.float32)
    one = augment_photometric(image, darker, _rng())
    assert np.array_equal(augment_photometric(image, [darker], _rng()), one)
    ways = [PHOTOMETRIC_PRESETS["none"], darker]
    rng = _rng()
    seen = [augment_photometric(image, ways, rng) for _ in range(40)]
    unchanged = sum(np.array_equal(each, image) for each in seen)
    assert 8 < unchanged < 32
    assert all(np.array_equal(each, image) or np.allclose(each, one) for each in seen)


def test_pictures_without_keypoints_stay_without():
    _, points, _, _ = augment_homographic(
        _gray(), np.zeros((0, 2), np.float32), HOMOGRAPHY_PRESETS["synthetic"], _rng()
    )
    assert points.shape == (0, 2) and points.dtype == np.float32


def test_effects_match_the_switches():
    assert len(augmentation._effects(PhotometricConfig())) == 6
    assert len(augmentation._effects(PHOTOMETRIC_PRESETS["strong"])) == 7
    assert augmentation._effects(PHOTOMETRIC_PRESETS["none"]) == []


def test_strong_and_harsh_changes_are_what_they_are():
    strong, harsh = (PHOTOMETRIC_PRESETS[name] for name in ("strong", "harsh"))
    for preset, noise, kernel, sigma in ((strong, 15, 7, 1.5), (harsh, 30, 9, 3.0)):
        assert preset.contrast_range == (0.3, 1.5) and preset.noise_sigma == (0, noise)
        assert preset.motion_kernel == kernel and preset.defocus_sigma == (0, sigma)
        assert preset.defocus and preset.motion_blur and preset.shade and preset.speckle
    assert not any(PHOTOMETRIC_PRESETS[n].defocus for n in ("synthetic", "coco_superpoint"))
