"""Decoding, suppression, refinement, sampling, matching, and extract as a whole."""

import math
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from kornia.feature import match_mnn, match_smnn
from kornia.geometry.subpix import spatial_soft_argmax2d
from PIL import Image
from torch import nn
from torch.nn import functional as F

from superpoint_lib.adaptation import AdaptConfig, adapt_heatmap
from superpoint_lib.datasets import bundled_photos
from superpoint_lib.extraction import (
    FeatureArrays,
    Features,
    box_nms,
    decode_heatmap,
    extract,
    extract_from_maps,
    find_keypoints,
    inference,
    match,
    nms,
    prepare_images,
    sample_descriptors,
    soft_argmax,
)
from superpoint_lib.extraction.descriptors import _nearest
from superpoint_lib.model import (
    MagicPoint,
    ModelConfig,
    SuperPoint,
    exact_float32,
    fold_batch_norm,
)

SMALL = ModelConfig(descriptor_dim=16, channels=(8, 8, 16, 16), head_channels=24, norm="none")


def rng(seed=0):
    return np.random.default_rng(seed)


def uniform(*shape, seed=0):
    return torch.from_numpy(rng(seed).random(shape, dtype=np.float32))


def superpoint(kind=SuperPoint):
    torch.manual_seed(0)
    return kind(SMALL).eval()


# ------------------------------------------------------------------ decode_heatmap


def test_decode_puts_every_class_at_its_pixel():
    logits = torch.from_numpy(rng().normal(size=(2, 65, 3, 4)).astype(np.float32))
    heatmap = decode_heatmap(logits)
    assert heatmap.shape == (2, 24, 32)
    values = logits.double().numpy()
    for b, i, j in np.ndindex(2, 3, 4):
        exponentials = np.exp(values[b, :, i, j])
        for dy, dx in np.ndindex(8, 8):
            expected = exponentials[8 * dy + dx] / exponentials.sum()
            assert abs(float(heatmap[b, 8 * i + dy, 8 * j + dx]) - expected) < 1e-6


def test_decode_dustbin_and_extreme_logits():
    logits = torch.zeros(1, 65, 2, 2)
    logits[0, 64] = 200.0
    logits[0, 9, 1, 0] = 500.0
    heatmap = decode_heatmap(logits.bfloat16())
    assert heatmap.dtype == torch.float32
    assert heatmap.nonzero().tolist() == [[0, 9, 1]]
    assert heatmap[0, 9, 1] == 1


def test_decode_of_double_is_differentiable():
    logits = torch.randn(1, 65, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(decode_heatmap, logits)


def test_decode_refuses_another_shape():
    with pytest.raises(ValueError, match=r"\(1, 64, 2, 2\)"):
        decode_heatmap(torch.zeros(1, 64, 2, 2))


# ------------------------------------------------------------------ nms


def naive_nms(heatmap, radius, threshold=0.0):
    """One pixel after the other, by falling score, then by rising row-major index."""
    height, width = heatmap.shape
    order = sorted(range(height * width), key=lambda k: (-heatmap.flat[k], k))
    kept = np.zeros_like(heatmap)
    for k in order:
        y, x = divmod(k, width)
        if heatmap[y, x] <= threshold:
            break
        square = kept[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
        if not square.any():
            kept[y, x] = heatmap[y, x]
    return kept


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 4, 8, 40])
@pytest.mark.parametrize("levels", [3, 20, None])
def test_nms_equals_greedy(radius, levels):
    """Few levels: many ties; None: none."""
    maps = rng(radius).random((3, 23, 31)).astype(np.float32)
    if levels:
        maps = np.round(maps * levels) / np.float32(levels)
    for threshold in (0.0, 0.4):
        found = nms(torch.from_numpy(maps), radius, threshold).numpy()
        expected = np.stack([naive_nms(m, radius, threshold) for m in maps])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("radius", [1, 4])
def test_nms_on_chains_and_plateaus(radius):
    ramp = np.arange(1, 20 * 30 + 1, dtype=np.float32).reshape(20, 30)
    plateau = np.ones((20, 30), np.float32)
    maps = np.stack([ramp, ramp[::-1, ::-1], plateau])
    expected = np.stack([naive_nms(m, radius) for m in maps])
    np.testing.assert_array_equal(nms(torch.from_numpy(maps), radius).numpy(), expected)


def test_nms_by_hand():
    heatmap = torch.zeros(1, 5, 9)
    heatmap[0, 2, 1], heatmap[0, 2, 4], heatmap[0, 2, 7] = 0.5, 0.7, 0.6
    # Distance 3: at radius 3 the middle one fells both, at radius 2 all stay.
    assert nms(heatmap, 3).nonzero().tolist() == [[0, 2, 4]]
    assert torch.equal(nms(heatmap, 2), heatmap)
    # The best one fells the middle, which can then no longer fell the third.
    heatmap[0, 2, 1] = 0.9
    assert nms(heatmap, 3).nonzero().tolist() == [[0, 2, 1], [0, 2, 7]]


def test_nms_threshold_is_exclusive_and_empty_maps_stay_empty():
    heatmap = torch.full((2, 8, 8), 0.25)
    assert nms(heatmap, 2, 0.25).count_nonzero() == 0
    assert nms(torch.zeros(2, 8, 8), 2).count_nonzero() == 0
    assert nms(torch.zeros(0, 8, 8), 2).shape == (0, 8, 8)
    negative = torch.full((1, 8, 8), -1.0)
    assert nms(negative, 2).count_nonzero() == 0


def test_nms_refuses_wrong_arguments():
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        nms(torch.zeros(8, 8), 2)
    with pytest.raises(ValueError, match="radius -1"):
        nms(torch.zeros(1, 8, 8), -1)


def test_box_nms_equals_greedy_on_boxes():
    generator = rng(1)
    keypoints = generator.uniform(0, 30, (150, 2)).round(1)
    scores = generator.integers(1, 20, 150).astype(np.float32)
    for size, iou in ((4, 0.1), (8, 0.3), (3, 0.05)):
        kept = []
        for k in np.argsort(-scores, kind="stable"):
            overlap = np.prod(np.clip(size - np.abs(keypoints[kept] - keypoints[k]), 0, None), -1)
            if not (overlap / (2 * size**2 - overlap) > iou).any():
                kept.append(int(k))
        found = box_nms(torch.from_numpy(keypoints), torch.from_numpy(scores), size, iou)
        assert found.tolist() == kept
        assert 5 < len(kept) < 150


def test_box_nms_by_hand_and_empty():
    points = torch.tensor([[10.0, 10.0], [13.0, 10.0], [12.0, 10.0]])
    # Boxes of side 4, one pixel wide overlap: 4 / 28 = 0.14 falls, as does 8 / 24.
    assert box_nms(points, torch.tensor([0.9, 0.8, 0.7]), 4, 0.1).tolist() == [0]
    assert box_nms(points, torch.tensor([0.9, 0.8, 0.7]), 4, 0.2).tolist() == [0, 1]
    assert box_nms(points, torch.tensor([0.0, -1.0, 0.0]), 4, 0.7).tolist() == [0, 2, 1]
    empty = box_nms(torch.zeros(0, 2), torch.zeros(0), 4, 0.1)
    assert (empty.shape, empty.dtype) == ((0,), torch.int64)
    with pytest.raises(ValueError, match="3 keypoints but 2 scores"):
        box_nms(points, torch.zeros(2), 4, 0.1)


# ------------------------------------------------------------------ soft_argmax


def test_soft_argmax_equals_kornia_on_a_window():
    heatmap = uniform(20, 30)
    keypoints = torch.tensor([[5.0, 7.0], [27.0, 17.0], [2.0, 2.0]])
    found = soft_argmax(heatmap, keypoints)
    for (x, y), refined in zip(keypoints.long().tolist(), found, strict=True):
        window = heatmap[y - 2 : y + 3, x - 2 : x + 3]
        offset = spatial_soft_argmax2d(window.log()[None, None], normalized_coordinates=False)
        expected = offset[0, 0] - 2 + torch.tensor([x, y])
        torch.testing.assert_close(refined, expected, rtol=0, atol=1e-5)


def test_soft_argmax_by_hand():
    heatmap = torch.zeros(9, 9)
    heatmap[4, 4], heatmap[4, 5], heatmap[3, 4] = 0.5, 0.3, 0.2
    refined = soft_argmax(heatmap, torch.tensor([[4.0, 4.0]]))
    torch.testing.assert_close(refined, torch.tensor([[4.3, 3.8]]))
    # A window of one pixel is the pixel itself; no mass leaves the keypoint where it is.
    assert soft_argmax(heatmap, torch.tensor([[4.0, 4.0]]), window=1).tolist() == [[4.0, 4.0]]
    assert soft_argmax(torch.zeros(9, 9), torch.tensor([[4.2, 7.9]])).tolist()[0] == pytest.approx(
        [4.2, 7.9]
    )


def test_soft_argmax_stays_inside_at_the_frame():
    heatmap = torch.ones(6, 7)
    corners = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 5.0], [6.0, 5.0]])
    refined = soft_argmax(heatmap, corners)
    assert refined.tolist() == [[1.0, 1.0], [5.0, 1.0], [1.0, 4.0], [5.0, 4.0]]


def test_soft_argmax_counts_pixels_exactly_whatever_the_type():
    heatmap = torch.zeros(8, 5001, dtype=torch.bfloat16)  # whose integers end at 256
    heatmap[4, 5000] = 1
    corner = torch.tensor([[5000.0, 4.0]])
    assert torch.equal(soft_argmax(heatmap, corner), corner)


def test_soft_argmax_batch_and_empty():
    heatmaps, keypoints = uniform(2, 16, 16), (uniform(2, 5, 2, seed=1) * 15).round()
    together = soft_argmax(heatmaps, keypoints)
    one_by_one = [soft_argmax(h, k) for h, k in zip(heatmaps, keypoints, strict=True)]
    torch.testing.assert_close(together, torch.stack(one_by_one))
    assert soft_argmax(heatmaps[0], torch.zeros(0, 2)).shape == (0, 2)
    with pytest.raises(ValueError, match="odd"):
        soft_argmax(heatmaps[0], keypoints[0], window=4)
    with pytest.raises(ValueError, match="soft_argmax needs"):
        soft_argmax(heatmaps, keypoints[0])


# ------------------------------------------------------------------ sample_descriptors


def test_sampling_at_cell_centres_gives_the_cells():
    descriptors = F.normalize(uniform(16, 3, 4) - 0.5, dim=0)
    cells = [(i, j) for i in range(3) for j in range(4)]
    centres = torch.tensor([[8 * j + 3.5, 8 * i + 3.5] for i, j in cells])
    expected = torch.stack([descriptors[:, i, j] for i, j in cells])
    torch.testing.assert_close(sample_descriptors(descriptors, centres), expected)


def test_sampling_equals_grid_sample_with_aligned_corners():
    """The same places by grid_sample's other convention: -1 and 1 at the outermost centres."""
    descriptors = uniform(16, 5, 7) - 0.5
    points = uniform(50, 2, seed=1) * torch.tensor([55.0, 39.0])
    coarse = (points - 3.5) / 8
    grid = 2 * coarse / torch.tensor([6.0, 4.0]) - 1
    expected = F.grid_sample(
        descriptors[None], grid[None, None], align_corners=True, padding_mode="border"
    )[0, :, 0].T
    expected = expected / expected.norm(dim=1, keepdim=True)
    found = sample_descriptors(descriptors, points)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(50))


def test_sampling_beyond_the_outermost_centres_repeats_them():
    descriptors = uniform(16, 2, 2)
    found = sample_descriptors(descriptors, torch.tensor([[0.0, 0.0], [15.0, 15.0]]))
    expected = F.normalize(torch.stack([descriptors[:, 0, 0], descriptors[:, 1, 1]]), dim=1)
    torch.testing.assert_close(found, expected)


def test_sampling_nothing_half_precision_and_wrong_shape():
    assert sample_descriptors(uniform(16, 2, 2), torch.zeros(0, 2)).shape == (0, 16)
    half = sample_descriptors(uniform(16, 2, 2).bfloat16(), torch.tensor([[3.0, 4.0]]))
    assert half.dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(1, 16, 2, 2\)"):
        sample_descriptors(uniform(1, 16, 2, 2), torch.zeros(0, 2))


# ------------------------------------------------------------------ extract


class FixedMaps(nn.Module):
    """Stands in for a network: given probabilities, whatever the image; remembers its input."""

    def __init__(self, heatmap):
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        dustbin = 1 - F.avg_pool2d(heatmap[:, None], 8) * 64
        cells = F.pixel_unshuffle(heatmap[:, None], 8)
        self.logits = torch.cat([cells, dustbin], dim=1).clamp(min=1e-12).log()

    def forward(self, images):
        self.images = images
        return {"logits": self.logits}


def test_extract_orders_cuts_and_refines():
    heatmap = torch.zeros(1, 24, 32)
    points = {(4, 3): 0.3, (20, 3): 0.8, (12, 20): 0.3, (28, 20): 0.5, (20, 12): 0.004}
    for (x, y), score in points.items():
        heatmap[0, y, x] = score
    heatmap[0, 3, 21] = 0.1
    model = FixedMaps(heatmap)
    image = torch.zeros(24, 32)
    features = extract(model, image, subpixel=False)
    # Equal scores: the upper one first. Below 0.005: none. Beside a better one: none.
    assert features.keypoints.tolist() == [[20, 3], [28, 20], [4, 3], [12, 20]]
    torch.testing.assert_close(features.keypoint_scores, torch.tensor([0.8, 0.5, 0.3, 0.3]))
    assert features.descriptors is None
    assert features.image_size == (24, 32)
    assert len(features) == 4
    assert extract(model, image, max_keypoints=3, subpixel=False).keypoints.tolist() == [
        [20, 3],
        [28, 20],
        [4, 3],
    ]
    assert len(extract(model, image, max_keypoints=0)) == 0
    assert len(extract(model, image, max_keypoints=None, threshold=0.001)) == 5
    assert len(extract(model, image, nms_radius=0)) == 5
    refined = extract(model, image).keypoints[0]
    torch.testing.assert_close(refined, torch.tensor([20 + 0.1 / 0.9, 3.0]), rtol=0, atol=1e-4)
    assert extract(model, image, subpixel=False, border=4).keypoints.tolist() == []
    assert len(extract(model, image, subpixel=False, border=3)) == 4


def test_padding_is_replicated_and_neither_detects_nor_suppresses():
    heatmap = torch.zeros(1, 24, 32)
    heatmap[0, 18, 10] = 0.3  # in the image of 19 rows and 27 columns
    heatmap[0, 19, 10] = 0.9  # in the padding, one pixel below
    heatmap[0, 5, 28] = 0.9
    model = FixedMaps(heatmap)
    image = uniform(19, 27)
    features = extract(model, image)
    assert features.keypoints.tolist() == [[10, 18]]
    assert features.image_size == (19, 27)
    seen = model.images[0, 0]
    assert torch.equal(seen[:19, :27], image)
    assert torch.equal(seen[19:, :27], image[18:].expand(5, 27))
    assert torch.equal(seen[:, 27:], seen[:, 26:27].expand(24, 5))


@pytest.mark.parametrize("size", [(16, 16), (17, 23), (40, 31), (64, 48)])
def test_any_size_from_16_pixels(size):
    features = extract(superpoint(), uniform(*size), threshold=0.0)
    assert len(features) > 0
    height, width = size
    assert float(features.keypoints.min()) >= 0
    assert float(features.keypoints[:, 0].max()) <= width - 1
    assert float(features.keypoints[:, 1].max()) <= height - 1
    assert features.descriptors.shape == (len(features), 16)
    torch.testing.assert_close(features.descriptors.norm(dim=1), torch.ones(len(features)))
    scores = features.keypoint_scores
    assert torch.equal(scores, scores.sort(descending=True).values)


def same(found, expected, atol=1e-5):
    assert len(found) == len(expected) > 0
    for name in ("keypoints", "keypoint_scores", "descriptors"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=atol)
    assert found.image_size == expected.image_size


def test_every_form_of_the_same_image_gives_the_same():
    model = superpoint()
    gray = rng().integers(0, 256, (37, 45), dtype=np.uint8)
    expected = extract(model, gray)
    unit = gray.astype(np.float32) / 255
    for image in (
        torch.from_numpy(gray),
        unit,
        torch.from_numpy(unit),
        unit.astype(np.float64),
        torch.from_numpy(unit)[None],
        np.repeat(gray[:, :, None], 3, axis=2),
        np.ascontiguousarray(gray[:, ::-1])[:, ::-1],
    ):
        same(extract(model, image), expected, atol=1e-4)


def test_colours_are_rgb():
    model = superpoint()
    rgb = rng().integers(0, 256, (32, 40, 3), dtype=np.uint8)
    gray = (rgb @ np.array([0.299, 0.587, 0.114])) / 255
    same(extract(model, rgb), extract(model, gray), atol=1e-4)
    same(extract(model, torch.from_numpy(rgb)), extract(model, gray), atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = prepare_images(rgb)
    torch.testing.assert_close(found[0, 0].double(), torch.from_numpy(gray), atol=1e-6, rtol=0)
    bgr = extract(model, np.ascontiguousarray(rgb[..., ::-1]))
    assert not torch.equal(bgr.keypoint_scores, extract(model, rgb).keypoint_scores)


def test_batch_gives_a_list_equal_to_one_by_one():
    model = superpoint()
    images = uniform(3, 1, 30, 44)
    found = extract(model, images, max_keypoints=20)
    assert isinstance(found, list)
    for image, features in zip(images, found, strict=True):
        same(features, extract(model, image[0], max_keypoints=20), atol=1e-4)
    alone = extract(model, images[:1].numpy(), max_keypoints=20)
    assert isinstance(alone, list) and len(alone) == 1
    same(alone[0], found[0], atol=1e-4)
    assert extract(model, images[:0]) == []


@pytest.mark.parametrize("value", [0, 128, 255])
def test_blank_image_gives_a_valid_result(value):
    blank = np.full((32, 40), value, np.uint8)
    for threshold in (0.005, 1.0):
        features = extract(superpoint(), blank, threshold=threshold)
        count = len(features)
        assert features.keypoints.shape == (count, 2)
        assert features.descriptors.shape == (count, 16)
        assert features.keypoints.isfinite().all() and features.descriptors.isfinite().all()
    assert count == 0
    matches, similarity = match(features, features)
    assert matches.shape == (0, 2) and similarity.shape == (0,)


def as_most_write_it(model, image, number, radius, threshold):
    """Maps to keypoints by repeated max-pooling, top-k, 5x5 windows and bilinear sampling."""
    with torch.no_grad():
        maps = model(image[None, None])
    _, _, rows, columns = maps["logits"].shape
    cells = maps["logits"].softmax(1)[0, :64].reshape(8, 8, rows, columns)
    heatmap = cells.permute(2, 0, 3, 1).reshape(1, 1, rows * 8, columns * 8)

    def pooled(x):
        return F.max_pool2d(x, 2 * radius + 1, 1, radius)

    rest, kept = torch.where(heatmap > threshold, heatmap, 0), torch.zeros_like(heatmap)
    while rest.any():
        best = (rest == pooled(rest)) & (rest > 0)
        kept = torch.where(best, rest, kept)
        rest = torch.where(pooled(best.float()) > 0, 0, rest)
    scores, places = kept.flatten().topk(number)
    assert scores[-1] > 0
    y, x = places // (columns * 8), places % (columns * 8)
    windows = F.unfold(heatmap, 5, padding=2)[0][:, places]
    windows = (windows / windows.sum(0)).reshape(5, 5, -1)
    steps = torch.arange(-2.0, 3.0)
    dx = (windows.sum(0) * steps[:, None]).sum(0)
    dy = (windows.sum(1) * steps[:, None]).sum(0)
    keypoints = torch.stack([x + dx, y + dy], dim=1)
    # Cell j stands at 8 j + 3.5; with aligned corners -1 and 1 are the first and the last cell.
    grid = (keypoints - 3.5) / 8 / torch.tensor([columns - 1, rows - 1]) * 2 - 1
    sampled = F.grid_sample(
        maps["descriptors"], grid[None, None], padding_mode="border", align_corners=True
    )
    return keypoints, scores, F.normalize(sampled[0, :, 0], dim=0).T


def test_float32_gives_the_same_as_the_plain_form():
    model = SuperPoint.from_pretrained("superpoint")
    photo = bundled_photos("benchmark")["motorcycle_left"][:240, :320].copy()
    features = extract(model, photo, max_keypoints=200, precision="float32")
    model.to(memory_format=torch.contiguous_format)
    keypoints, scores, descriptors = as_most_write_it(
        model, torch.from_numpy(photo), number=200, radius=4, threshold=0.005
    )
    assert len(features) == 200
    distances, nearest = (keypoints[:, None] - features.keypoints).norm(dim=2).min(dim=1)
    assert sorted(nearest.tolist()) == list(range(200))
    assert float(distances.max()) < 0.01
    torch.testing.assert_close(features.keypoint_scores, scores, rtol=0, atol=1e-4)
    torch.testing.assert_close(features.descriptors[nearest], descriptors, rtol=0, atol=1e-3)


def test_bfloat16_is_chosen_where_the_processor_has_it_and_told(monkeypatch):
    model, image = superpoint(), uniform(32, 40)
    exact, rounded = (
        extract(model, image, threshold=0.0, precision=precision)
        for precision in ("float32", "bf16")
    )
    assert (exact.computed_in, rounded.computed_in) == ("float32", "bfloat16")
    assert rounded.numpy().computed_in == "bfloat16"
    assert rounded.descriptors.dtype == rounded.keypoint_scores.dtype == torch.float32
    assert not torch.equal(exact.keypoint_scores, rounded.keypoint_scores)
    for has_it, expected in ((False, exact), (True, rounded)):
        monkeypatch.setattr(
            inference, "uses_bfloat16", lambda precision, device, has_it=has_it: has_it
        )
        found = extract(model, image, threshold=0.0)
        assert found.computed_in == expected.computed_in
        assert torch.equal(found.keypoint_scores, expected.keypoint_scores)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["auto", "bf16", "float32"])
def test_a_converted_model_computes_in_its_own_type(dtype, precision):
    features = extract(superpoint().to(dtype), uniform(32, 40), threshold=0.0, precision=precision)
    assert features.computed_in == str(dtype).removeprefix("torch.")
    assert len(features) > 0
    assert features.descriptors.dtype in (torch.float32, torch.float64)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_results_do_not_depend_on_what_is_computed_together(monkeypatch, precision):
    model, images = superpoint(), uniform(5, 1, 32, 48)
    together = extract(model, images, precision=precision, threshold=0.0)
    monkeypatch.setattr(inference, "_CHUNK_PIXELS", 2 * 32 * 48)
    sizes = []
    with model.register_forward_hook(lambda module, inputs, maps: sizes.append(len(inputs[0]))):
        in_parts = extract(model, images, precision=precision, threshold=0.0)
    assert sizes == [2, 2, 1]
    for a, b in zip(together, in_parts, strict=True):
        same(a, b)


def test_batch_statistics_are_those_of_the_whole_batch(monkeypatch):
    monkeypatch.setattr(inference, "_CHUNK_PIXELS", 1)
    model = SuperPoint(ModelConfig(channels=(8, 8, 16, 16), head_channels=24)).eval()
    sizes = []
    with model.register_forward_hook(lambda module, inputs, maps: sizes.append(len(inputs[0]))):
        extract(model, uniform(3, 1, 32, 48))
        model.encoder.train()  # such as a network frozen in part
        extract(model, uniform(3, 1, 32, 48))
    assert sizes == [1, 1, 1, 3]


def test_magicpoint_has_no_descriptors():
    features = extract(superpoint(MagicPoint), uniform(32, 40), threshold=0.0)
    assert features.descriptors is None and len(features) > 0
    assert features.numpy().descriptors is None
    with pytest.raises(ValueError, match=r"features0 has no descriptors.*MagicPoint"):
        match(features, features)


def test_mode_is_kept_and_results_are_ordinary_tensors():
    torch.manual_seed(0)
    model = SuperPoint(ModelConfig(channels=(8, 8, 16, 16), head_channels=24))
    for training in (True, False):
        features = extract(model.train(training), uniform(32, 40))
        assert model.training is training
    assert not features.keypoints.requires_grad
    features.keypoints.add_(1)
    features.descriptors.mul_(2)


def test_features_as_numpy_can_be_matched():
    features = extract(superpoint(), uniform(32, 40), max_keypoints=10)
    arrays = features.numpy()
    assert isinstance(arrays, FeatureArrays) and len(arrays) == len(features)
    for name in ("keypoints", "keypoint_scores", "descriptors"):
        np.testing.assert_array_equal(getattr(arrays, name), getattr(features, name).numpy())
    assert torch.equal(match(arrays, features)[0], match(features, features)[0])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((32, 32), float("nan")), "non-finite"),
        (np.full((32, 32), np.inf), "non-finite"),
        (np.full((32, 32), 200.0), "divide 8-bit values by 255"),
        (np.zeros((32, 32), np.int64), "int64"),
        (torch.zeros(32, 32, dtype=torch.int32), "int32"),
        (np.zeros((32, 32), bool), "bool"),
        (np.zeros((15, 32), np.uint8), r"at least 16 px.*\(15, 32\)"),
        (np.zeros((0, 32), np.float32), r"\(0, 32\)"),
        (np.zeros((3, 32, 32), np.uint8), r"\(3, 32, 32\)"),
        (np.zeros((2, 32, 32, 3), np.uint8), r"\(2, 32, 32, 3\)"),
        (np.zeros(32, np.uint8), r"\(32,\)"),
        (None, "cv2.imread"),
        ("photo.jpg", r"is a path: .*read_gray\('photo.jpg'\)"),
        (uniform(32, 40) - 0.5, "values from -0"),  # a usual way to centre, not an image
        (Image.new("P", (32, 32)), r'mode P: pass image.convert\("RGB"\)'),
        (Image.new("YCbCr", (32, 32)), "mode YCbCr"),
        (np.zeros((32, 32, 1), np.uint8), r"of \(H, W, 1\) image\[\.\.\., 0\]"),
    ],
)
def test_bad_images_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        extract(superpoint(), image)


def test_one_bad_pixel_among_good_ones():
    image = uniform(32, 32)
    image[3, 4] = float("nan")
    with pytest.raises(ValueError, match="non-finite"):
        extract(superpoint(), image)


@pytest.mark.parametrize(
    "setting", [{"max_keypoints": -1}, {"border": -1}, {"nms_radius": -1}, {"threshold": -0.1}]
)
def test_negative_settings_are_refused(setting):
    with pytest.raises(ValueError, match=r"-"):
        extract(superpoint(), uniform(32, 32), **setting)


@pytest.mark.parametrize("setting", [{"threshold": None}, {"nms_radius": None}])
def test_no_limit_is_zero_where_none_means_nothing(setting):
    with pytest.raises(ValueError, match="cannot be None: 0 turns them off"):
        extract(superpoint(), uniform(32, 32), **setting)


def test_extract_from_maps_with_a_size_for_each_image():
    model = superpoint()
    small, large = uniform(24, 40), uniform(32, 33, seed=1)
    rest = [(0, 40 - i.shape[1], 0, 32 - i.shape[0]) for i in (small, large)]
    padded = torch.stack(
        [F.pad(i[None], r, "replicate") for i, r in zip((small, large), rest, strict=True)]
    )
    with torch.no_grad():
        maps = model(padded)
    found = extract_from_maps(maps, [(24, 40), (32, 33)], threshold=0.0)
    assert [f.image_size for f in found] == [(24, 40), (32, 33)]
    assert float(found[0].keypoints[:, 1].max()) <= 23
    assert float(found[1].keypoints[:, 0].max()) <= 32
    same(found[1], extract(model, large, threshold=0.0, precision="float32"), atol=1e-4)
    with pytest.raises(ValueError, match="1 image sizes for maps of 2"):
        extract_from_maps(maps, [(24, 40)])
    with pytest.raises(ValueError, match=r"\(33, 40\) is larger"):
        extract_from_maps(maps, [(24, 40), (33, 40)])


# ------------------------------------------------------------------ match


def described(descriptors):
    return SimpleNamespace(descriptors=descriptors)


def noisy_pair(count0=60, count1=80, noise=0.4, seed=0):
    """Unit descriptors of which 50 are seen twice, in another order and with noise."""
    generator = rng(seed)
    base = generator.normal(size=(50, 32))
    order = generator.permutation(count1)
    d0 = np.concatenate([base, generator.normal(size=(count0 - 50, 32))])
    again = base + noise * generator.normal(size=base.shape)
    d1 = np.concatenate([again, generator.normal(size=(count1 - 50, 32))])[order]
    unit = [d / np.linalg.norm(d, axis=1, keepdims=True) for d in (d0, d1)]
    return [torch.from_numpy(d.astype(np.float32)) for d in unit]


def test_match_equals_kornia_and_opencv():
    d0, d1 = noisy_pair()
    matches, similarity = match(described(d0), described(d1))
    assert matches.dtype == torch.int64 and 45 <= len(matches) < 60
    distances, pairs = match_mnn(d0, d1)
    assert {tuple(p) for p in matches.tolist()} == {tuple(p) for p in pairs.tolist()}
    by_pair = {tuple(p): float(d) for p, d in zip(pairs.tolist(), distances, strict=True)}
    for pair, s in zip(matches.tolist(), similarity.tolist(), strict=True):
        assert abs((2 - 2 * s) ** 0.5 - by_pair[tuple(pair)]) < 1e-4
    opencv = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True).match(d0.numpy(), d1.numpy())
    assert matches.tolist() == sorted([m.queryIdx, m.trainIdx] for m in opencv)


@pytest.mark.parametrize("ratio", [0.6, 0.8, 0.95])
def test_ratio_equals_kornia_in_both_directions(ratio):
    d0, d1 = noisy_pair(noise=1.0)
    matches, _ = match(described(d0), described(d1), ratio=ratio)
    _, pairs = match_smnn(d0, d1, ratio)
    assert {tuple(p) for p in matches.tolist()} == {tuple(p) for p in pairs.tolist()}
    back, _ = match(described(d1), described(d0), ratio=ratio)
    assert sorted(back.flip(1).tolist()) == matches.tolist()
    assert 0 < len(matches) < len(match(described(d0), described(d1))[0])


@pytest.mark.parametrize("shape", [(64, 65), (65, 64), (130, 7), (1, 200), (300, 333)])
def test_the_nearest_of_equals_is_the_first(shape):
    table = torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0)) / 2
    for dim in (0, 1):
        assert torch.equal(_nearest(table, dim), table.argmax(dim))


def test_match_by_hand():
    d0 = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    d1 = torch.tensor([[0.8, 0.6], [0.0, 1.0], [1.0, 0.0]])
    # Similarities: [0.8, 0, 1] and [0.96, 0.8, 0.6].
    matches, similarity = match(described(d0), described(d1))
    assert matches.tolist() == [[0, 2], [1, 0]]
    torch.testing.assert_close(similarity, torch.tensor([1.0, 0.96]))
    matches, similarity = match(described(d0), described(d1), min_similarity=0.97)
    assert matches.tolist() == [[0, 2]]
    # Distances of row 1: sqrt(0.08) to the nearest, sqrt(0.4) to the second: ratio 0.447;
    # seen from its match, column 0: sqrt(0.08) and sqrt(0.4) again.
    assert match(described(d0), described(d1), ratio=0.45)[0].tolist() == [[0, 2], [1, 0]]
    assert match(described(d0), described(d1), ratio=0.44)[0].tolist() == [[0, 2]]


def test_ambiguous_and_lonely_descriptors():
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    # Of equal ones the first; the ratio test refuses them; without a second one it passes.
    assert match(described(two), described(two))[0].tolist() == [[0, 0]]
    assert match(described(two), described(two), ratio=1.0)[0].tolist() == []
    assert match(described(one), described(one), ratio=0.5)[0].tolist() == [[0, 0]]


@pytest.mark.parametrize("empty", [torch.zeros(0, 32), np.zeros((0, 32), np.float32), np.zeros(0)])
def test_match_of_nothing(empty):
    some = noisy_pair()[0]
    for pair in ((empty, some), (some, empty), (empty, empty)):
        matches, similarity = match(*map(described, pair), ratio=0.8, min_similarity=0.5)
        assert matches.shape == (0, 2) and matches.dtype == torch.int64
        assert similarity.shape == (0,)


def test_match_takes_numpy_and_mixed_precision():
    d0, d1 = noisy_pair()
    expected = match(described(d0), described(d1))[0]
    found, similarity = match(described(d0.numpy()), described(d1.numpy().astype(np.float64)))
    assert torch.equal(found, expected)
    assert isinstance(similarity, torch.Tensor)
    features = Features(torch.zeros(60, 2), torch.zeros(60), d0, (10, 10))
    assert torch.equal(match(features, described(d1))[0], expected)


@pytest.mark.filterwarnings("error")
def test_arrays_may_lie_in_memory_in_any_order():
    d0, d1 = noisy_pair()
    backwards = d0.numpy()[::-1]
    backwards.flags.writeable = False
    expected = match(described(d0.flip(0)), described(d1))[0]
    assert torch.equal(match(described(backwards), described(d1))[0], expected)
    swapped = d0.numpy().astype(">f4")
    assert torch.equal(
        match(described(swapped), described(d1))[0], match(described(d0), described(d1))[0]
    )
    image = rng().random((32, 40), dtype=np.float32)
    plain = extract(superpoint(), image, threshold=0, precision="float32")
    other = extract(superpoint(), image.astype(">f4"), threshold=0, precision="float32")
    assert torch.equal(plain.keypoints, other.keypoints)
    with pytest.raises(ValueError, match=r"longdouble|float128"):
        extract(superpoint(), image.astype(np.longdouble))


def test_match_refuses_what_it_cannot_compare():
    some = described(torch.eye(2, 4))
    with pytest.raises(ValueError, match="4 in features0, 8 in features1"):
        match(some, described(torch.eye(2, 8)))
    with pytest.raises(ValueError, match=r"features1.descriptors.*uint8"):
        match(some, described(np.ones((2, 4), np.uint8)))
    with pytest.raises(ValueError, match="features1 has no descriptors"):
        match(some, described(None))
    for bad, lengths in ((torch.nan, "nan to nan"), (torch.inf, "1 to inf"), (512.0, "1 to 512")):
        rows = torch.eye(3, 4)
        rows[1, 1] = bad
        with pytest.raises(ValueError, match=f"features1.*unit length.*{lengths}"):
            match(some, described(rows))
    with pytest.raises(ValueError, match=r"\(1, 2, 4\)$"):
        match(some, described(torch.eye(2, 4)[None]))
    with pytest.raises(TypeError, match=r"features1 is a dict without .descriptors.*Namespace"):
        match(some, {"descriptors": some.descriptors})


@pytest.mark.parametrize("ratio", [0, -0.8, 80, math.nan])
def test_a_ratio_is_a_share(ratio):
    some = described(torch.eye(2, 4))
    with pytest.raises(ValueError, match="ratio must be above 0 and at most 1"):
        match(some, some, ratio=ratio)
    assert len(match(some, some, ratio=1)[0]) == 2


@pytest.mark.parametrize("similarity", [5, -1.1, math.nan])
def test_a_similarity_is_a_cosine(similarity):
    some = described(torch.eye(2, 4))
    with pytest.raises(ValueError, match=r"min_similarity must be in -1\.\.1"):
        match(some, some, min_similarity=similarity)
    assert len(match(some, some, min_similarity=-1)[0]) == 2


def test_match_takes_zero_descriptors_and_those_of_few_bits():
    rows = torch.nn.functional.normalize(uniform(40, 16), dim=1)
    rounded = described(rows.bfloat16())
    expected, _ = match(described(rows), described(rows))
    assert torch.equal(match(rounded, rounded)[0], expected)
    empty = rows.clone()
    empty[3] = 0
    assert 3 not in match(described(empty), described(rows))[0][:, 0]


def test_match_does_not_depend_on_the_default_device():
    rows = torch.nn.functional.normalize(uniform(200, 16), dim=1)
    expected, _ = match(described(rows), described(rows))
    with torch.device("meta"):
        found, _ = match(described(rows), described(rows))
        numpy_found, _ = match(described(rows.numpy()), described(rows.numpy()))
        model = SuperPoint.from_pretrained("superpoint-open")
    assert torch.equal(found, expected) and torch.equal(numpy_found, expected)
    assert all(p.device.type == "cpu" for p in model.parameters())


def test_features_are_compared_as_objects_and_not_number_by_number():
    some = described(torch.eye(2, 4))
    features = Features(torch.zeros(2, 2), torch.zeros(2), some.descriptors, (16, 16))
    assert features == features and features != Features(*(features.__dict__.values()))
    assert len({features, features}) == 1


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"nms_radius": 1.5}, "nms_radius must be a whole number, got 1.5"),
        ({"max_keypoints": 2.5}, "max_keypoints must be a whole number"),
        ({"threshold": float("nan")}, r"threshold must be in 0\.\.1, got nan"),
        ({"threshold": 1.5}, r"threshold must be in 0\.\.1"),
    ],
)
def test_settings_that_mean_nothing_are_named(setting, told):
    with pytest.raises(ValueError, match=told):
        extract(superpoint(), uniform(32, 40), **setting)
    few = extract(superpoint(), uniform(32, 40), np.int64(2), 0.0, np.int32(2))
    assert len(few) == 2


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (2 * uniform(32, 40) - 1, r"\(x \+ 1\) / 2"),
        (2 * uniform(32, 40), r"values from .* to 1\.9"),
        ([uniform(32, 40), uniform(16, 40)], "a list: extract its pictures one by one"),
        (uniform(3, 32, 40), r"permute\(1, 2, 0\)"),
        (uniform(32, 40, 4), r"RGBA image\[\.\.\., :3\]"),
        (np.zeros((32, 40), np.uint16), "uint16; divide it by 65535"),
    ],
)
def test_images_of_other_kinds_are_refused_with_what_to_do(image, told):
    with pytest.raises(ValueError, match=told):
        extract(superpoint(), image)


def test_a_little_beyond_black_and_white_is_an_image():
    image = 1.2 * uniform(32, 40) - 0.1
    assert len(extract(superpoint(), image, threshold=0.0)) > 0
    extract(superpoint(), image.requires_grad_())  # without a warning, which would fail


def test_similarity_never_leaves_its_range():
    rows = torch.nn.functional.normalize(uniform(400, 256) - 0.5, dim=1)
    assert (rows @ rows.T).max() > 1  # by rounding
    for sign in (1, -1):
        _, similarity = match(described(rows), described(sign * rows[:1]))
        assert similarity.abs().max() <= 1
    assert (2 - 2 * match(described(rows), described(rows))[1]).sqrt().isfinite().all()


def test_match_computes_in_float32_under_autocast():
    rows = torch.nn.functional.normalize(uniform(40, 16), dim=1)
    expected = match(described(rows), described(rows.flip(0)))
    with torch.autocast("cpu", torch.bfloat16):
        found = match(described(rows), described(rows.flip(0)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# ------------------------------------------------------------------ devices


@pytest.mark.parametrize(("precision", "rounding"), [("float32", "ieee"), ("bf16", "tf32")])
def test_float32_asked_for_is_not_rounded_by_a_gpu(precision, rounding):
    """The switch is PyTorch's for cuDNN; it can be set and read without a GPU."""
    switch = torch.backends.cudnn.conv
    assert switch.fp32_precision == "tf32"  # PyTorch's default
    model, seen = superpoint(), []
    model.register_forward_hook(lambda *_: seen.append(switch.fp32_precision))
    extract(model, uniform(1, 32, 40), precision=precision)
    config = AdaptConfig(warps=1, precision=precision)
    adapt_heatmap(model, uniform(1, 1, 32, 40), np.eye(3, dtype=np.float32)[None], config)
    assert seen == [rounding, rounding]
    assert switch.fp32_precision == "tf32"


def test_the_switch_of_older_pytorch_is_used_where_there_is_no_other(monkeypatch):
    older = SimpleNamespace(allow_tf32=True)
    monkeypatch.setattr(torch.backends, "cudnn", older)
    with exact_float32(False):
        assert older.allow_tf32
    with exact_float32(True):
        assert not older.allow_tf32
    assert older.allow_tf32


def test_whoever_sets_how_float32_is_rounded_keeps_it():
    """In a process of its own: PyTorch remembers which of its switches were used."""
    code = """
import numpy as np, torch
from superpoint_lib import MagicPoint, extract
torch.backends.fp32_precision = "ieee"
model, image = MagicPoint(), np.zeros((32, 40), np.float32)
for precision in ("auto", "float32"):
    extract(model, image, precision=precision)
    print(torch.backends.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ieee"] * 4


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match=r"precision must be one of auto, bf16, float32.*bfloat16"):
        extract(superpoint(), uniform(1, 32, 40), precision="bfloat16")


def test_reading_weights_takes_nothing_from_anyones_random_numbers():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    fold_batch_norm(MagicPoint.from_pretrained("magicpoint"))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_agrees_with_cpu():
    images = uniform(2, 1, 61, 83)
    heatmap = uniform(2, 60, 80)
    assert torch.equal(nms(heatmap.cuda(), 4).cpu(), nms(heatmap, 4))
    on_gpu = extract(superpoint().cuda(), images, max_keypoints=50, precision="float32")
    on_cpu = extract(superpoint(), images, max_keypoints=50, precision="float32")
    for a, b in zip(on_gpu, on_cpu, strict=True):
        assert a.keypoints.is_cuda and a.descriptors.is_cuda
        torch.testing.assert_close(a.keypoint_scores.cpu(), b.keypoint_scores, rtol=0, atol=1e-4)
        matches, _ = match(a, b)
        assert matches.is_cuda and len(matches) > 30


def test_the_border_is_counted_from_the_picture_not_its_padding():
    heatmap = torch.zeros(1, 24, 32)
    heatmap[0, 10, 24] = heatmap[0, 16, 10] = heatmap[0, 14, 22] = 0.5
    image = torch.zeros(19, 27)
    found = extract(FixedMaps(heatmap), image, subpixel=False, border=4, nms_radius=1)
    assert found.keypoints.tolist() == [[22, 14]]


def test_whole_keypoints_are_refined_to_fractions():
    heatmap = torch.zeros(12, 16)
    heatmap[5, 7:9] = torch.tensor([0.3, 0.1])
    whole = soft_argmax(heatmap, torch.tensor([[7, 5]]))
    torch.testing.assert_close(whole, torch.tensor([[7.25, 5.0]]))


@pytest.mark.parametrize("half_first", [True, False])
def test_descriptors_of_two_precisions_are_compared_in_the_finer(half_first):
    fine = F.normalize(torch.randn(40, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    half = F.normalize(fine + 0.3, dim=1).half()
    pair = (half, fine) if half_first else (fine, half)
    first, second = (SimpleNamespace(descriptors=one) for one in pair)
    matches, similarity = match(first, second)
    swapped, again = match(second, first)
    assert similarity.dtype == torch.float32 and len(matches) > 30
    order = swapped[:, 1].argsort()
    assert torch.equal(matches, swapped[order].flip(1))
    torch.testing.assert_close(similarity, again[order])


def test_reversed_arrays_of_length_one_are_taken():
    descriptor = np.float32([[0.6, 0.8]])
    first = SimpleNamespace(descriptors=descriptor[::-1])
    matches, similarity = match(first, first)
    assert matches.tolist() == [[0, 0]] and similarity.item() == pytest.approx(1)


def test_what_lies_in_the_border_suppresses_before_it_is_dropped():
    heatmap = torch.zeros(1, 24, 32)
    heatmap[0, 10, 2], heatmap[0, 10, 5] = 0.9, 0.5
    (found,) = find_keypoints(heatmap, [(24, 32)], None, 0.1, 4, 1, border=4)
    assert len(found[0]) == 0


def test_the_least_similarity_is_inclusive():
    features = Features(torch.zeros(2, 2), torch.ones(2), torch.eye(2), (16, 16))
    assert len(match(features, features, min_similarity=1.0)[0]) == 2
