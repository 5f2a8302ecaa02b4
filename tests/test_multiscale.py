import inspect

import numpy as np
import pytest
import torch
from toy_networks import Blob, Places

from superpoint_lib import MagicPoint, SuperPoint, extract, match, multiscale
from superpoint_lib.datasets import bundled_photos
from superpoint_lib.geometry import resize_and_crop, warp_image, warp_points
from superpoint_lib.multiscale import agreement, extract_multiscale

H_0TO1 = np.array([[0.9, 0.12, 20], [-0.1, 0.85, 30], [1e-4, -5e-5, 1]])


@pytest.fixture(scope="module")
def model():
    return SuperPoint.from_pretrained("superpoint")


@pytest.fixture(scope="module")
def photo():
    # Sides that are not multiples of 8, and whose enlargement is not a whole number of pixels.
    return resize_and_crop(bundled_photos("benchmark")["motorcycle_left"], 181, 243)[0]


def test_one_scale_is_extract(model, photo):
    once = extract(model, photo, 100, precision="float32")
    again = extract_multiscale(model, photo, (1.0,), 100, precision="float32")
    torch.testing.assert_close(again.keypoints, once.keypoints, atol=1e-3, rtol=0)
    assert torch.equal(again.keypoint_scores, once.keypoint_scores)
    torch.testing.assert_close(again.descriptors, once.descriptors, atol=1e-3, rtol=0)
    assert again.image_size == once.image_size == (181, 243)
    assert again.computed_in == "float32"


def test_agreement_is_the_geometric_mean():
    first, second = torch.rand(2, 1, 6, 8).unbind(0)
    torch.testing.assert_close(agreement([first, second], (6, 8)), (first * second).sqrt())
    # What one scale does not see is not there, however sure another is.
    assert agreement([torch.zeros(1, 6, 8), torch.ones(1, 6, 8)], (6, 8)).max() < 1e-3
    assert agreement([torch.full((1, 3, 4), 0.25), torch.ones(1, 6, 8)], (6, 8)).shape[1:] == (
        6,
        8,
    )


@pytest.mark.parametrize("scales", [(1.0,), (2.0,), (1.0, 1.5), (2.0, 1.0, 0.5)])
def test_keypoints_are_where_they_are_at_any_scale(scales):
    y, x = np.mgrid[:70, :90]
    truth = np.array([[20.3, 30.6], [61.0, 42.25]])
    image = sum(0.02 * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 3) for u, v in truth)
    features = extract_multiscale(Blob().eval(), image.astype(np.float32), scales, 2, nms_radius=8)
    found = features.keypoints.numpy()
    assert np.abs(found[np.argsort(found[:, 0])] - truth).max() < 0.3
    torch.testing.assert_close(features.descriptors.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("scales", [(1.0,), (1.0, 1.5)])
def test_the_turned_image_has_the_same_keypoints_turned(model, photo, scales):
    """A quarter turn of the image only changes the order of the looks."""
    upright, turned = (
        extract_multiscale(model, image, scales, 60, precision="float32", turned=True)
        for image in (photo, np.rot90(photo).copy())
    )
    # rot90 turns against the clock: the last column becomes the first row.
    x, y = turned.keypoints.unbind(1)
    back = torch.stack((photo.shape[1] - 1 - y, x), 1)
    assert _nearest(upright.keypoints, back).quantile(0.9) < 0.01
    single = extract_multiscale(model, photo, (1.0,), 60, precision="float32")
    assert _nearest(upright.keypoints, single.keypoints).quantile(0.5) > 0.05


def _nearest(points, others):
    return (points[:, None] - others).norm(dim=2).amin(1)


def test_turned_heatmaps_agree_by_their_geometric_mean():
    image = np.zeros((32, 48), np.float32)
    image[10, 20], image[25, 40] = 0.02, 0.01
    found = extract_multiscale(
        Blob().eval(), image, (1.0,), 2, threshold=1e-4, subpixel=False, turned=True
    )
    assert found.keypoints.tolist() == [[20, 10], [40, 25]]
    torch.testing.assert_close(found.keypoint_scores, torch.tensor([0.02, 0.01]), rtol=0.1, atol=0)


def test_radius_and_border_are_in_pixels_of_the_image(model, photo):
    features = extract_multiscale(
        model, photo, (1.0, 2.0), None, nms_radius=6, border=10, subpixel=False
    )
    keypoints = features.keypoints
    apart = (keypoints[:, None] - keypoints[None]).abs().amax(-1)
    apart.fill_diagonal_(99)
    assert len(keypoints) > 20 and apart.min() >= 6.4
    assert keypoints.min() >= 10
    assert (keypoints <= torch.tensor([243 - 11, 181 - 11])).all()


def test_keypoints_of_an_enlarged_image_lie_within_the_image():
    model = Blob().eval()
    image = np.zeros((64, 96), np.float32)
    image[0, 0] = image[-1, -1] = 0.02
    keypoints = extract_multiscale(model, image, (2.0,), subpixel=False).keypoints
    assert sorted(keypoints.tolist()) == [[0, 0], [95, 63]]


@pytest.mark.parametrize("scale", [0.5, 0.2, 0.12])
def test_a_picture_made_smaller_is_suppressed_in_its_own_pixels(model, photo, scale):
    large = np.kron(photo, np.ones((2, 2), np.float32))
    found = extract_multiscale(model, large, (scale,), None).keypoints
    apart = scale * (found[:, None] - found[None]).abs().amax(-1)
    apart.fill_diagonal_(99)
    assert len(found) > 5 and apart.min() > 1  # 5 whole pixels, less what sub-pixels may give


def test_scales_may_come_from_a_generator(model, photo):
    found = extract_multiscale(model, photo, (s for s in (1.0, 1.5)), 9, pyramid=iter([0.5]))
    assert torch.equal(
        found.keypoints, extract_multiscale(model, photo, (1.0, 1.5), 9, pyramid=(0.5,)).keypoints
    )


def test_a_known_homography_is_matched_closer_than_at_one_scale(model, photo):
    warped = warp_image(photo, H_0TO1)
    errors = []
    for scales in ((1.0,), (1.0, 2.0)):
        first, second = (
            extract_multiscale(model, image, scales, 200, precision="float32")
            for image in (photo, warped)
        )
        matches, _ = match(first, second)
        places = warp_points(first.keypoints[matches[:, 0]], H_0TO1)
        distance = (places - second.keypoints[matches[:, 1]]).norm(dim=1)
        errors.append(float(distance[distance <= 3].mean()))
        assert (distance <= 3).float().mean() > 0.6
    assert errors[1] < errors[0]


def test_a_pyramid_adds_what_each_level_finds_best_score_first(model, photo):
    whole, *levels = (
        extract_multiscale(model, photo, (f, 1.5 * f), 80, nms_radius=radius)
        for f, radius in ((1.0, 4), (0.5, 6))  # in pixels of the level's largest picture both 6
    )
    both = extract_multiscale(model, photo, (1.0, 1.5), 80, pyramid=(0.5,))
    scores = torch.cat([whole.keypoint_scores, levels[0].keypoint_scores])
    order = scores.argsort(descending=True)[:80]
    torch.testing.assert_close(both.keypoint_scores, scores[order])
    for part in ("keypoints", "descriptors"):
        parts = torch.cat([getattr(whole, part), getattr(levels[0], part)])
        torch.testing.assert_close(getattr(both, part), parts[order])
    assert 20 < (order < len(whole)).sum() < 75 and both.image_size == (181, 243)


def test_a_pyramid_recognises_what_is_seen_from_twice_as_near(model):
    photo, _ = resize_and_crop(bundled_photos("benchmark")["motorcycle_left"], 240, 320)
    far, H_0to1 = resize_and_crop(photo, 120, 160)
    right = []
    for pyramid in ((), (0.7, 0.5)):
        near, small = (
            extract_multiscale(model, one, (1.0,), pyramid=pyramid) for one in (photo, far)
        )
        matches, _ = match(near, small)
        places = warp_points(near.keypoints[matches[:, 0]], H_0to1)
        distance = (places - small.keypoints[matches[:, 1]]).norm(dim=1)
        right.append(float((distance <= 1.5).float().mean()))
    assert right[1] > max(0.8, right[0] + 0.1)


def test_a_detector_alone_gives_no_descriptors_and_a_batch_a_list(photo):
    detector = MagicPoint.from_pretrained("magicpoint")
    batch = torch.from_numpy(photo)[None, None].repeat(2, 1, 1, 1)
    both = extract_multiscale(detector, batch, max_keypoints=5)
    assert [len(features) for features in both] == [5, 5]
    assert both[0].descriptors is None
    more = extract_multiscale(detector, batch, max_keypoints=5, pyramid=(0.5,))
    assert [len(features) for features in more] == [5, 5] and more[0].descriptors is None
    blank = extract_multiscale(detector, np.zeros((40, 40), np.float32), threshold=0.5)
    assert len(blank) == 0


@pytest.mark.parametrize("setting", [{"nms_radius": -1}, {"border": -1}])
def test_negative_settings_are_refused_though_they_round_to_none(model, photo, setting):
    with pytest.raises(ValueError, match="must be 0 or more"):
        extract_multiscale(model, photo, (0.4,), **setting)
    fraction = {name: 1.5 for name in setting}
    with pytest.raises(ValueError, match="must be a whole number"):
        extract_multiscale(model, photo, (0.4,), **fraction)


@pytest.mark.parametrize("scales", [(), (0.0,), (-1.0, 1.0), (0.05,), (np.inf,), (1.0, np.nan)])
def test_scales_are_checked(model, photo, scales):
    with pytest.raises(ValueError, match="scales must be positive"):
        extract_multiscale(model, photo, scales)


@pytest.mark.parametrize("pyramid", [(0.0,), (0.5, -1.0), (0.05,)])
def test_levels_of_a_pyramid_are_checked(model, photo, pyramid):
    with pytest.raises(ValueError, match=r"leave images of 16 px or more, got .* times"):
        extract_multiscale(model, photo, pyramid=pyramid)


@pytest.mark.parametrize("pyramid", [(0.9,), (0.7, 0.5), (2.0,)])
def test_the_radius_is_in_pixels_of_a_smaller_level_or_of_the_image(monkeypatch, pyramid):
    asked = []

    def spy(heatmap, sizes, most, threshold, radius, window, border):
        asked.append((radius, window, border))
        return find(heatmap, sizes, most, threshold, radius, window, border)

    find = multiscale.find_keypoints
    monkeypatch.setattr(multiscale, "find_keypoints", spy)
    image = np.random.default_rng(0).random((96, 128), dtype=np.float32)
    extract_multiscale(Blob().eval(), image, (1.0,), nms_radius=5, border=10, pyramid=pyramid)
    # The window of the refinement grows with the level. Pixel 10 of the picture is not in its
    # border of 10: it lies at 10.5 f - 0.5 of a level.
    first = {1.0: 10, 0.9: 9, 0.7: 7, 0.5: 5, 2.0: 21}
    radius = {2.0: 10}  # five pixels of the image
    assert asked == [
        (radius.get(f, 5), 2 * max(1, round(2 * f)) + 1, first[f]) for f in (1.0, *pyramid)
    ]


def test_the_window_of_the_refinement_grows_with_the_scale(monkeypatch):
    windows = []

    def spy(*arguments):
        windows.append(arguments[5])
        return find(*arguments)

    find = multiscale.find_keypoints
    monkeypatch.setattr(multiscale, "find_keypoints", spy)
    image = np.zeros((64, 64), np.float32)
    for scales in ((0.3,), (0.5,), (0.25, 1.0), (1.5,), (2.0,)):
        extract_multiscale(Blob().eval(), image, scales)
    # Five pixels of the picture, and never less than three of what the network sees.
    assert windows == [3, 3, 5, 7, 9]
    extract_multiscale(Blob().eval(), image, (2.0,), subpixel=False)
    assert windows[-1] == 1


def test_of_equal_scores_the_first_level_comes_first():
    from superpoint_lib.extraction import Features

    levels = [
        Features(torch.full((30, 2), float(k)), torch.full((30,), 0.5), None, (8, 8))
        for k in range(3)
    ]
    best = multiscale._best(levels, 40)
    assert best.keypoints[:, 0].tolist() == [0.0] * 30 + [1.0] * 10


@pytest.mark.parametrize("scales", [(2.0,), (1.0, 2.0)])
def test_descriptors_are_those_of_the_place_at_every_scale(scales):
    image = np.zeros((64, 96), np.float32)
    image[20, 30] = image[41, 70] = 0.02
    features = extract_multiscale(Places().eval(), image, scales, 2, nms_radius=8, subpixel=False)
    place = (features.keypoints + 0.5) / torch.tensor([96, 64])
    told = features.descriptors[:, :2] / features.descriptors[:, 2:]
    torch.testing.assert_close(told, place, atol=3e-3, rtol=0)


def test_the_descriptor_is_the_mean_over_scales():
    class ByWidth(Blob):
        def forward(self, images):
            maps = super().forward(images)
            own = torch.tensor([1.0, 0] if images.shape[3] == 96 else [0, 1.0]).view(1, 2, 1, 1)
            size = maps["descriptors"].shape[2:]
            return maps | {"descriptors": own.expand(-1, -1, *size).contiguous()}

    image = np.zeros((64, 96), np.float32)
    image[20, 30] = 0.02
    features = extract_multiscale(ByWidth().eval(), image, (1.0, 2.0), 1)
    torch.testing.assert_close(features.descriptors, torch.full((1, 2), 0.5**0.5))


def test_agreement_brings_heatmaps_together_by_the_extent_of_pixels():
    small = torch.tensor([[[0.1, 0.2]]])
    # The four pixels of the large one lie at -0.25, 0.25, 0.75 and 1.25 of the small one.
    expected = torch.tensor([[[0.1, 0.125, 0.175, 0.2]]]).sqrt()
    torch.testing.assert_close(agreement([small, torch.ones(1, 1, 4)], (1, 4)), expected)


def test_a_picture_made_smaller_is_averaged():
    class Seen(Blob):
        def forward(self, images):
            self.images = images
            return super().forward(images)

    model = Seen().eval()
    stripes = np.tile(np.float32([0, 1, 0, 0]), (64, 24))  # a quarter of it is light
    extract_multiscale(model, stripes, (0.25,))
    assert (model.images[..., 2:-2, 2:-2] - 0.25).abs().max() < 0.02


@pytest.mark.parametrize("settings", [{"scales": (1.0, 2.0)}, {"pyramid": (0.5,)}])
def test_several_looks_tell_what_they_were_computed_in(settings):
    image = np.zeros((64, 96), np.float32)
    image[20, 30] = 0.02
    found = extract_multiscale(Blob().eval(), image, precision="float32", **settings)
    assert len(found) and found.computed_in == "float32"


def test_the_defaults_are_those_of_extract_and_two_scales():
    ours, theirs = (inspect.signature(f).parameters for f in (extract_multiscale, extract))
    assert all(ours[name].default == theirs[name].default for name in theirs)
    more = {name: ours[name].default for name in ours if name not in theirs}
    assert more == {"scales": (1.0, 1.5), "turned": False, "pyramid": ()}
