import math
from types import SimpleNamespace

import cv2
import kornia
import numpy as np
import pytest
import torch
from labelled_scene import uneven_scene, write_scene

from superpoint_lib import augmentation, batches
from superpoint_lib.augmentation import (
    PHOTOMETRIC_PRESETS,
    PhotometricConfig,
    augment_photometric,
    motion_kernel,
)
from superpoint_lib.batches import (
    Draws,
    RawSamples,
    augment_batch,
    collate_raw,
    label_cells,
    make_batch,
    target_cells,
)
from superpoint_lib.config import replace
from superpoint_lib.datasets import MixedDataset, PhotoDataset, ShapesDataset, make_views
from superpoint_lib.geometry import (
    HOMOGRAPHY_PRESETS,
    sample_homographies,
    valid_mask,
    warp_batch_with_masks,
    warp_image,
)
from superpoint_lib.geometry.cells import DUSTBIN
from superpoint_lib.losses import keypoints_to_labels, keypoints_to_targets, label_offsets
from superpoint_lib.shapes import ShapesConfig

CPU = torch.device("cpu")
NONE = PHOTOMETRIC_PRESETS["none"]


def draws(*seeds: int) -> Draws:
    return Draws(CPU, *(seeds or (0,)))


def smooth_images(batch: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    noise = np.random.default_rng(seed).random((batch, height, width), dtype=np.float32)
    return torch.from_numpy(np.stack([cv2.GaussianBlur(one, (0, 0), 3) for one in noise]))[:, None]


def only(**settings: object) -> PhotometricConfig:
    return replace(NONE, **settings)


# ------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("preset", ["coco", "any-angle", "wide"])
def test_warps_and_masks_are_those_of_the_checked_functions(preset):
    images = smooth_images(6, 48, 64)
    H = sample_homographies(6, 48, 64, HOMOGRAPHY_PRESETS[preset], np.random.default_rng(1))
    warped, valid = warp_batch_with_masks(images, torch.from_numpy(H), border=3)
    expected = valid_mask(H, 48, 64, 3)
    assert (valid.numpy() != expected).mean() < 1e-4 and 0.2 < expected.mean() < 1
    for i in range(6):
        opencv = warp_image(images[i, 0].numpy(), H[i])
        assert np.abs(warped[i, 0].numpy() - opencv)[expected[i]].max() < 0.01
    oracle = kornia.geometry.warp_perspective(
        images.double(), torch.from_numpy(H), (48, 64), align_corners=True
    )
    inner = torch.from_numpy(expected)[:, None]
    assert (warped - oracle).abs()[inner].max() < 1e-4


def test_masks_behind_the_horizon_and_of_a_mirrored_view():
    flipped = np.array([[-1.0, 0, 40], [0, 1, 3], [0, 0, 1]])
    steep = np.array([[1.0, 0.1, 2], [0.2, 1, -3], [0.03, 0.01, 0.5]])
    H = np.stack([flipped, steep, -2.5 * flipped])
    _, valid = warp_batch_with_masks(smooth_images(3, 48, 64), torch.from_numpy(H), border=1)
    assert (valid.numpy() != valid_mask(H, 48, 64, 1)).mean() < 1e-3
    assert torch.equal(valid[0], valid[2]) and valid[0].any()


def raw_shapes(views: int, homography: str, count: int = 8):
    ways = [HOMOGRAPHY_PRESETS[name] for name in homography.split("+")]
    dataset = ShapesDataset(photometric=NONE, homography=ways, seed=3, views=views)
    raw = collate_raw([RawSamples(dataset)[i] for i in range(count)])
    return dataset, raw


@pytest.mark.parametrize(
    "homography", ["coco", "any-angle", "any-scale", "identity", "coco+any-scale"]
)
def test_batches_are_the_samples_of_the_loader(homography):
    """The same homography is drawn for the same sample; only ties within a cell may differ."""
    dataset, raw = raw_shapes(2, homography)
    batch = make_batch(raw, 2, NONE, draws(), dataset.border)
    expected = torch.utils.data.default_collate([dataset[i] for i in range(8)])
    assert set(batch) == set(expected)
    assert all(batch[name].dtype == expected[name].dtype for name in batch)
    assert all(batch[name].shape == expected[name].shape for name in batch)
    torch.testing.assert_close(batch["H_0to1"], expected["H_0to1"])
    torch.testing.assert_close(batch["image0"], expected["image0"], atol=1e-6, rtol=0)
    for view in "01":
        assert (batch[f"valid{view}"] != expected[f"valid{view}"]).float().mean() < 2e-3
        ours, theirs = batch[f"labels{view}"], expected[f"labels{view}"]
        assert torch.equal(ours == DUSTBIN, theirs == DUSTBIN)
        assert (ours == theirs).float().mean() > 0.97 and (ours < DUSTBIN).any()
        same = (ours == theirs)[:, None].expand(-1, 2, -1, -1)
        torch.testing.assert_close(
            batch[f"offsets{view}"][same], expected[f"offsets{view}"][same], atol=1e-4, rtol=0
        )
    inside = expected["valid1"].repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    # OpenCV places samples to 1/32 px, so hard edges differ a little.
    assert (batch["image1"] - expected["image1"]).abs()[inside].mean() < 2e-3


@pytest.mark.parametrize("targets", [False, True])
def test_views_of_whole_pictures_are_those_of_the_loader(tmp_path, targets):
    dataset = PhotoDataset(
        *write_scene(tmp_path),
        48,
        64,
        NONE,
        HOMOGRAPHY_PRESETS["any-scale"],
        targets=targets,
        whole_picture=True,
    )
    raw = collate_raw([RawSamples(dataset)[i] for i in range(6)])
    batch = make_batch(raw, 2, NONE, draws(), dataset.border)
    expected = torch.utils.data.default_collate([dataset[i] for i in range(6)])
    assert set(batch) == set(expected) and ("targets1" in batch) == targets
    for name, value in expected.items():
        if name.startswith("targets"):
            torch.testing.assert_close(batch[name], value, atol=1e-4, rtol=0)
        elif name.startswith(("image", "H")):
            # The loader hands the warp on in bytes, rounded to gray levels.
            atol = 1.01 / 255 if name == "image1" else 1e-6
            torch.testing.assert_close(batch[name], value, atol=atol, rtol=1e-5)
        elif name.startswith("valid"):
            assert torch.equal(batch[name], value)
        elif name.startswith("labels"):
            assert (batch[name] == value).float().mean() > 0.97 and (value < DUSTBIN).any()


def test_of_several_ways_each_changes_its_share_of_a_batch():
    images = smooth_images(5, 32, 40)
    lighter = replace(NONE, contrast=True, contrast_range=(0.5, 0.5))
    both = augment_batch(images, [NONE, lighter], draws())
    shares = [augment_batch(images, [NONE, lighter], draws(seed)) for seed in range(12)]
    unchanged = [(one == images).flatten(1).all(1).sum().item() for one in shares]
    assert set(unchanged) == {2, 3}
    changed = augment_batch(images, lighter, draws())
    same = [torch.equal(one, image) for one, image in zip(both, images, strict=True)]
    assert sum(same) in (2, 3)
    for one, image, other in zip(both, images, changed, strict=True):
        assert torch.equal(one, image) or torch.allclose(one, other)
    assert torch.equal(augment_batch(images, [lighter], draws()), changed)
    # A way that is named twice gets two shares.
    more = augment_batch(images, [NONE, lighter, lighter], draws())
    assert sum(torch.equal(a, b) for a, b in zip(more, images, strict=True)) in (1, 2)


def test_a_batch_remembers_which_pairs_are_described():
    dataset, raw = raw_shapes(2, "coco", 2)
    raw["described"] = torch.tensor([True, False])
    for views in (1, 2):
        batch = make_batch(raw, views, NONE, draws(), dataset.border)
        assert batch["described"].tolist() == [True, False]


def test_one_view_is_the_warped_one():
    dataset, raw = raw_shapes(1, "coco")
    batch = make_batch(raw, 1, NONE, draws(), dataset.border)
    expected = torch.utils.data.default_collate([dataset[i] for i in range(8)])
    assert set(batch) == set(expected) == {"image", "labels", "offsets", "valid"}
    assert torch.equal(batch["labels"] == DUSTBIN, expected["labels"] == DUSTBIN)


def test_bytes_and_probabilities_make_images_and_targets():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (48, 64), np.uint8)
    keypoints = rng.uniform(0, 47, (5, 2)).astype(np.float32)
    probabilities = rng.random(5, dtype=np.float32)
    config = HOMOGRAPHY_PRESETS["coco"]
    expected = make_views(
        image.astype(np.float32) / np.float32(255),
        keypoints,
        2,
        NONE,
        config,
        np.random.default_rng(1),
        probabilities=probabilities,
    )
    H = sample_homographies(1, 48, 64, config, np.random.default_rng(1))[0]
    sample = {"image": image, "keypoints": keypoints, "probabilities": probabilities, "H_0to1": H}
    fewer = sample | {"keypoints": keypoints[:2], "probabilities": probabilities[:2]}
    raw = collate_raw([{k: torch.from_numpy(v) for k, v in one.items()} for one in (sample, fewer)])
    assert raw["keypoints"].shape == (2, 5, 2) and raw["keypoints"][1, 2:].isnan().all()
    batch = make_batch(raw, 2, NONE, draws())
    torch.testing.assert_close(batch["image0"][0], expected["image0"])
    for view in "01":
        torch.testing.assert_close(
            batch[f"targets{view}"][0], expected[f"targets{view}"], atol=1e-5, rtol=0
        )
    seen = (1 - batch["targets0"][1, DUSTBIN]).sum()
    assert float(seen) == pytest.approx(float(probabilities[:2].sum()), abs=1e-4)


# ------------------------------------------------------------------------------- targets


def test_labels_offsets_and_targets_by_hand_and_by_the_numpy_functions():
    # One keypoint a cell, so that there is nothing to draw.
    cells = np.stack(np.meshgrid(np.arange(4), np.arange(3)), -1).reshape(-1, 2) * 8
    rng = np.random.default_rng(0)
    points = cells + rng.uniform(-0.49, 7.49, cells.shape)
    outside = np.array([[-0.6, 3.0], [31.6, 2.0], [5.0, 23.5], [np.nan, np.nan], [1e9, 4.0]])
    keypoints = torch.from_numpy(np.concatenate([points, outside]))[None]
    labels, offsets = label_cells(keypoints, 24, 32, draws())
    expected = keypoints_to_labels(points, 24, 32, rng)
    assert np.array_equal(labels[0], expected) and labels.dtype == torch.int64
    np.testing.assert_allclose(offsets[0], label_offsets(expected, points), atol=1e-6)

    chance = rng.random(len(keypoints[0]))
    targets = target_cells(keypoints, torch.from_numpy(chance)[None], 24, 32)[0]
    finite = np.isfinite(keypoints[0].numpy()).all(1)
    by_numpy = keypoints_to_targets(keypoints[0].numpy()[finite], chance[finite], 24, 32)
    np.testing.assert_allclose(targets, by_numpy, atol=1e-6)


def test_cells_with_several_keypoints_draw_one_of_them():
    keypoints = torch.tensor([[[1.0, 1.0], [6.2, 5.0], [3.0, 3.0]]]).expand(3000, -1, -1)
    labels, offsets = label_cells(keypoints, 8, 8, draws())
    counts = torch.bincount(labels.flatten(), minlength=65)
    assert counts.sum() == counts[[9, 46, 27]].sum() == 3000
    assert counts[[9, 46, 27]].min() > 900
    picked = labels.flatten() == 46
    torch.testing.assert_close(offsets[picked, 0].flatten(), torch.full((int(picked.sum()),), 0.2))
    assert not offsets[~picked].any()


def test_keypoints_that_draw_the_same_lot_do_not_add_up():
    same = SimpleNamespace(uniform=lambda low, high, *shape: torch.full(shape, 0.5))
    labels, offsets = label_cells(torch.tensor([[[1.4, 1.4], [3.4, 3.4]]]), 8, 8, same)
    assert labels.item() == 27
    torch.testing.assert_close(offsets.flatten(), torch.tensor([0.4, 0.4]))


def test_batches_without_keypoints_are_all_dustbin():
    labels, offsets = label_cells(torch.full((2, 1, 2), math.nan), 16, 24, draws())
    assert (labels == DUSTBIN).all() and not offsets.any()
    targets = target_cells(torch.full((2, 1, 2), math.nan), torch.full((2, 1), math.nan), 16, 24)
    assert (targets[:, DUSTBIN] == 1).all()


# --------------------------------------------------------------------------- gray levels


def test_brightness_contrast_and_noise_have_the_strengths_asked_for():
    images = torch.full((4000, 1, 8, 8), 0.5)
    brighter = augment_batch(images, only(brightness=True, brightness_change=51.0), draws())
    shift = (brighter - images)[:, 0, 0, 0] * 255
    assert -51 <= shift.min() < -49 and 49 < shift.max() <= 51 and abs(shift.mean()) < 2

    images[:, :, :4] = 0.4
    stretched = augment_batch(images, only(contrast=True, contrast_range=(0.5, 1.5)), draws())
    factor = (stretched[:, 0, 7, 0] - stretched[:, 0, 0, 0]) / 0.1
    assert 0.5 <= factor.min() < 0.52 and 1.48 < factor.max() <= 1.5 + 1e-5
    assert (stretched.mean((1, 2, 3)) - 0.45).abs().max() < 1e-5

    images = torch.full((200, 1, 40, 40), 0.5)
    noisy = augment_batch(images, only(noise=True, noise_sigma=(5.0, 15.0)), draws())
    sigma = 255 * noisy.std((1, 2, 3))
    assert 4.5 < sigma.min() < 6 and 14 < sigma.max() < 15.8
    assert abs(float(noisy.mean()) - 0.5) < 1e-3


def test_speckle_turns_as_many_pixels_black_as_white():
    images = torch.full((100, 1, 50, 50), 0.5)
    spotted = augment_batch(images, only(speckle=True, speckle_probability=(0.02, 0.02)), draws())
    for value in (0.0, 1.0):
        assert (spotted == value).float().mean() == pytest.approx(0.02, rel=0.1)
    assert set(spotted.unique().tolist()) == {0.0, 0.5, 1.0}


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_blur_is_that_of_kornia_and_opencv(sigma):
    images = torch.rand(2, 1, 20, 31, generator=torch.Generator().manual_seed(0))
    reach = math.ceil(4 * sigma)
    ours = batches._blur(images, torch.full((2, 1), sigma), reach)
    side = 2 * reach + 1
    oracle = kornia.filters.gaussian_blur2d(images, (side, side), (sigma, sigma), "reflect")
    torch.testing.assert_close(ours, oracle, atol=1e-5, rtol=0)
    opencv = cv2.GaussianBlur(images[0, 0].numpy(), (side, side), sigma)
    np.testing.assert_allclose(ours[0, 0], opencv, atol=1e-5)


def test_blur_mirrors_pictures_smaller_than_the_kernel():
    row = torch.tensor([[[[1.0, 0.0, 0.0]]]])
    blurred = batches._blur(row, torch.full((1, 1), 50.0), reach=4)
    # Mirrored without the end: 1 0 0 0 1 0 0 0 1; places 0, 4 and -4 of the nine around pixel 0.
    torch.testing.assert_close(blurred[0, 0, 0, 0], torch.tensor(3 / 9), atol=2e-3, rtol=0)


def test_each_image_is_blurred_by_its_own_deviation():
    images = smooth_images(1, 24, 24).expand(3, -1, -1, -1)
    sigma = torch.tensor([[0.3], [1.0], [2.0]])
    together = batches._blur(images, sigma, 8)
    for i in range(3):
        apart = batches._blur(images[i : i + 1], sigma[i : i + 1], 8)
        torch.testing.assert_close(together[i : i + 1], apart)


class FixedDraws(Draws):
    """Uniform numbers from a list, as fractions of their range, broadcast to the shape."""

    def __init__(self, *fractions: float | list[float]) -> None:
        super().__init__(CPU, 0)
        self.fractions = list(fractions)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return (low + (high - low) * torch.tensor(self.fractions.pop(0))).expand(shape)


@pytest.mark.parametrize(("fraction", "side"), [(0.1, 1), (0.4, 3), (0.6, 5), (0.99, 7)])
def test_motion_blur_is_that_of_opencv(fraction, side):
    images = torch.rand(2, 1, 20, 31, generator=torch.Generator().manual_seed(0))
    ours = batches._motion_blur(images, 7, FixedDraws(fraction, 0.3))
    kernel = motion_kernel(side, 0.3 * math.pi)
    for image, blurred in zip(images[:, 0].numpy(), ours[:, 0].numpy(), strict=True):
        np.testing.assert_allclose(blurred, cv2.filter2D(image, -1, kernel), atol=1e-5)


def test_defocus_by_less_than_a_pixel_changes_nothing():
    images = smooth_images(2, 16, 16)
    assert torch.equal(batches._defocus(images, (0.0, 1.0), FixedDraws(0.05)), images)
    assert not torch.equal(batches._defocus(images, (0.0, 1.0), FixedDraws(0.9)), images)


def test_ellipses_are_those_that_opencv_fills():
    # One ellipse: half axes .5 and .25 of 40 px, in the middle, turned by 30 degrees.
    ours = batches._ellipses(1, 1, 1.0, 40, 60, FixedDraws([0.5, 0.25], 0.5, 0.5, 1 / 3))[0].numpy()
    filled = np.zeros((40, 60), np.uint8)
    cv2.ellipse(filled, ((30.0, 20.0), (40.0, 20.0), 30.0), 1, -1)
    assert (ours != filled).mean() < 0.02
    assert ours.sum() == pytest.approx(math.pi * 20 * 10, rel=0.02)


def test_shade_darkens_softly_and_no_more_than_asked():
    images = torch.ones(64, 1, 120, 160)
    shaded = augment_batch(images, only(shade=True, shade_transparency=(0.2, 0.5)), draws())
    assert shaded.min() > 0.49 and shaded.mean() < 0.95
    assert (shaded[..., 1:] - shaded[..., :-1]).abs().max() < 0.03


def test_gray_levels_have_the_statistics_of_the_loader():
    """The same picture through both: mean and spread over many draws agree."""

    image = smooth_images(1, 48, 64)[0, 0].numpy()
    image = (image - image.min()) / np.ptp(image)
    for preset in ("synthetic", "strong"):
        config = PHOTOMETRIC_PRESETS[preset]
        rng = np.random.default_rng(0)
        theirs = np.stack([augment_photometric(image, config, rng) for _ in range(400)])
        same = torch.from_numpy(image).expand(20, 1, -1, -1)
        ours = torch.cat([augment_batch(same, config, draws(i)) for i in range(20)])[:, 0].numpy()
        for measure in (np.mean, np.std):
            values = [[measure(one) for one in some] for some in (ours, theirs)]
            gap = abs(np.mean(values[0]) - np.mean(values[1]))
            assert gap < 4 * np.std(values[1]) * math.sqrt(2 / 400), (preset, measure)


def test_the_same_seeds_give_the_same_batch_and_others_another():
    config = PHOTOMETRIC_PRESETS["strong"]
    images = smooth_images(3, 32, 40)
    before = images.clone()
    one, again, other = (augment_batch(images, config, draws(0, step)) for step in (5, 5, 6))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(images, before)
    assert one.min() >= 0 and one.max() <= 1 and not torch.equal(one[0], one[1])


def test_a_batch_may_be_smaller_than_the_number_of_ways():
    ways = [PHOTOMETRIC_PRESETS[name] for name in ("harsh", "strong", "synthetic")]
    images = smooth_images(2, 32, 40)
    changed = augment_batch(images, ways, draws(0))
    assert (changed != images).flatten(1).any(1).all()


def test_no_way_is_drawn_more_often_where_the_batch_does_not_divide():
    # Two pictures, three ways: each way changes two thirds of the pictures in the long run.
    ways = [only(brightness=True, brightness_change=change) for change in (0.0, 51.0, 102.0)]
    images = torch.full((2, 1, 16, 16), 0.5)
    changed = torch.cat([augment_batch(images, ways, draws(seed)) for seed in range(300)])
    far = (changed - 0.5).abs().amax((1, 2, 3))
    assert (far == 0).float().mean() == pytest.approx(1 / 3, abs=0.08)
    # Of the last way's half lie beyond what the second reaches.
    assert (far > 0.2).float().mean() == pytest.approx(1 / 6, abs=0.08)


def test_nothing_waits_for_the_device():
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    dataset, raw = raw_shapes(2, "any-angle")
    raw = {name: value.cuda() for name, value in raw.items()}
    config = [PHOTOMETRIC_PRESETS[name] for name in ("strong", "harsh")]
    make_batch(raw, 2, config, Draws(torch.device("cuda"), 0), dataset.border)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch = make_batch(raw, 2, config, Draws(torch.device("cuda"), 1), dataset.border)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert batch["image1"].is_cuda


@pytest.mark.parametrize("where", ["loader", "device"])
def test_gray_levels_are_clipped_after_every_effect_whose_order_is_drawn(where, monkeypatch):
    # 0.8 + 0.5 is clipped to 1, less 0.5 is 0.5; the other way round 0.8 comes back.
    moves = [lambda image, _: image + 0.5, lambda image, _: image - 0.5]
    monkeypatch.setattr(augmentation, "_effects", lambda config: moves)
    monkeypatch.setattr(batches, "_effects", lambda config: moves)
    config, image, found = PHOTOMETRIC_PRESETS["none"], np.full((8, 8), 0.8, np.float32), set()
    for seed in range(20):
        if where == "loader":
            out = augment_photometric(image, config, np.random.default_rng(seed))
        else:
            tensor = torch.from_numpy(image)[None, None]
            out = augment_batch(tensor, config, Draws(torch.device("cpu"), seed))
        found.add(round(float(out.max()), 4))
    assert found == {0.5, 0.8}


@pytest.mark.parametrize("whole", [False, True])
def test_the_border_of_a_dataset_counts_in_the_loader_and_on_the_device(tmp_path, whole):
    folders = uneven_scene(tmp_path)
    shift = np.array([[1.0, 0, 4.0], [0, 1, 0], [0, 0, 1]])
    plain = PHOTOMETRIC_PRESETS["none"]
    settings = {"photometric": plain, "homography": HOMOGRAPHY_PRESETS["identity"]}
    settings |= {"crop": "centre", "whole_picture": whole}
    columns = []
    for border in (3, 12):
        dataset = PhotoDataset(*folders, 48, 64, **settings, border=border)
        labelled = dataset.labelled
        dataset.labelled = lambda i, labelled=labelled: labelled(i)._replace(homography=shift)
        drawn = ShapesDataset(
            ShapesConfig(canvas_height=96, canvas_width=128, height=48, width=64), views=2
        )
        mixed = MixedDataset(dataset, drawn, 2)
        assert mixed.border == border and mixed.photometric is dataset.photometric
        raw = collate_raw([RawSamples(dataset)[0]])
        batch = make_batch(raw, 2, plain, Draws(torch.device("cpu"), 0), border)
        loaded = dataset[0]["valid1"]
        assert torch.equal(batch["valid1"][0], loaded)
        columns.append(int(loaded[3].sum()))
    # The picture begins at x = 4; with 3 px more the first cell is left out, with 12 the second.
    assert columns[0] - columns[1] >= 1


def test_pictures_that_stay_still_make_no_others_valid():
    raw = {
        "image": torch.zeros(2, 48, 64),
        "keypoints": torch.full((2, 1, 2), math.nan),
        "H_0to1": torch.stack(
            [torch.eye(3), torch.tensor([[1.0, 0, 20], [0, 1, 0], [0, 0, 1]])]
        ).double(),
    }
    config = PHOTOMETRIC_PRESETS["none"]
    valid = make_batch(raw, 2, config, Draws(torch.device("cpu"), 0))["valid1"]
    assert valid[0].all() and not valid[1, :, :3].any()


def test_probabilities_that_add_up_to_more_than_one_are_scaled_down():
    keypoints, chance = np.array([[1.0, 2.0], [5.0, 6.0]]), np.array([0.9, 0.8])
    by_numpy = keypoints_to_targets(keypoints, chance, 8, 8)[:, 0, 0]
    on_device = target_cells(
        torch.from_numpy(keypoints)[None], torch.from_numpy(chance)[None], 8, 8
    )
    for targets in (by_numpy, on_device[0, :, 0, 0].numpy()):
        np.testing.assert_allclose(targets[[17, 53, 64]], [0.9 / 1.7, 0.8 / 1.7, 0], atol=1e-6)


def test_shade_is_blurred_as_opencv_blurs_it():
    # A kernel too small for a lower resolution: 13.8 pixels, rounded to 7 on each side of one.
    config = only(
        shade=True,
        shade_ellipses=1,
        shade_size=0.5,
        shade_transparency=(0, 0.5),
        shade_kernel=(9, 21),
    )
    ellipse = [[0.8, 0.5], 0.5, 0.5, 1 / 3]
    ours = batches._shade(torch.ones(1, 1, 40, 60), config, FixedDraws(*ellipse, 0.4, 0.6))
    mask = batches._ellipses(1, 1, 0.5, 40, 60, FixedDraws(*ellipse))[0].numpy()
    expected = 1 - 0.3 * cv2.GaussianBlur(mask, (15, 15), 0)
    assert expected.min() < 0.75
    np.testing.assert_allclose(ours[0, 0], expected, atol=1e-4)


def test_no_ellipse_is_thinner_than_a_fifth_of_the_largest():
    drawn = batches._ellipses(1, 1, 1.0, 40, 60, FixedDraws([0.0, 0.1], 0.5, 0.5, 0.0))
    assert drawn.sum().item() == pytest.approx(math.pi * 8**2, rel=0.05)


def moved_by(dx: float, dy: float, x: float, y: float) -> dict[str, torch.Tensor]:
    """A raw picture of 16 x 24 pixels with one keypoint."""
    return {
        "image": torch.zeros(1, 16, 24),
        "keypoints": torch.tensor([[[x, y]]]),
        "probabilities": torch.tensor([[0.5]]),
        "H_0to1": torch.tensor([[[1.0, 0, dx], [0, 1, dy], [0, 0, 1]]]).double(),
    }


def test_one_view_has_the_targets_of_the_warped_one():
    targets = make_batch(moved_by(8, 3, 3, 4), 1, NONE, draws())["targets"]
    assert targets[0, 8 * 7 + 3, 0, 1].item() == pytest.approx(0.5)  # (11, 7)
    assert targets[0, DUSTBIN].flatten().tolist() == pytest.approx([1, 0.5, 1, 1, 1, 1])


def test_keypoints_on_the_outer_half_of_the_first_pixel_come_to_lie_on_it():
    batch = make_batch(moved_by(-0.25, 0, 0, 4), 2, NONE, draws())
    assert batch["labels1"][0, 0, 0] == 8 * 4
    assert batch["offsets1"][0, :, 0, 0].tolist() == [0, 0]
