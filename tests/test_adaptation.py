import dataclasses
import json
import os
from pathlib import Path

import cv2
import kornia
import numpy as np
import pytest
import torch
from torch import nn

from superpoint_lib.adaptation import (
    AdaptConfig,
    adapt_heatmap,
    adaptation_homographies,
    adapted_keypoints,
    export,
    export_labels,
    heatmap_keypoints,
    keypoint_probabilities,
)
from superpoint_lib.checkpoints import save_weights
from superpoint_lib.config import replace, to_dict
from superpoint_lib.datasets import PhotoDataset, load_labels
from superpoint_lib.extraction import decode_heatmap
from superpoint_lib.geometry import HOMOGRAPHY_PRESETS, resize_and_crop, valid_mask
from superpoint_lib.model import MagicPoint, ModelConfig
from superpoint_lib.paths import read_gray

HEIGHT, WIDTH = 48, 64
CONFIG = AdaptConfig(precision="float32", batch=3)
IDENTITY = np.eye(3)
SHIFT = np.array([[1.0, 0, 20], [0, 1, 0], [0, 0, 1]])


def logits_of(response: torch.Tensor) -> torch.Tensor:
    """Logits (B, 65, h, w) whose softmax is ``response`` (B, 1, H, W), at most 1/64 a pixel."""
    cells = torch.nn.functional.pixel_unshuffle(response, 8)
    dustbin = 1 - cells.sum(1, keepdim=True)
    return torch.cat([cells, dustbin], 1).clamp_min(1e-12).log()


class BrightnessDetector(nn.Module):
    """Responds to each pixel with its gray level / 64: a detector that every warp agrees with."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": logits_of(images / 64)}


class RampDetector(nn.Module):
    """Responds with (x + 1) / 6400 whatever it is shown: a detector that no two warps agree on."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        ramp = (torch.arange(images.shape[-1]) + 1) / 6400
        return {"logits": logits_of(ramp.expand(images.shape))}


def blobs(height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    image = np.zeros((height, width), np.float32)
    for x, y in ((20, 12), (44, 30), (24, 33)):
        image[y, x] = 1
    image = cv2.GaussianBlur(image, (0, 0), 2)
    return torch.from_numpy(image / image.max())[None, None]


def drawn(warps: int, seed: int = 0) -> np.ndarray:
    return adaptation_homographies(warps, HEIGHT, WIDTH, "adaptation", np.random.default_rng(seed))


# --- aggregation ---------------------------------------------------------------------------------


def test_the_first_homography_is_the_identity():
    homographies = drawn(5)
    assert homographies.shape == (5, 3, 3)
    assert np.array_equal(homographies[0], IDENTITY)
    assert not np.allclose(homographies[1:], IDENTITY)
    assert drawn(1).shape == (1, 3, 3)


def test_identity_alone_gives_the_response_itself():
    heatmap, counts = adapt_heatmap(BrightnessDetector(), blobs(), IDENTITY[None], CONFIG)
    assert heatmap.shape == counts.shape == (1, HEIGHT, WIDTH)
    assert torch.allclose(heatmap * 64, blobs()[0], atol=1e-6)
    assert (counts == 1).all()


def test_a_detector_that_agrees_with_itself_is_left_as_it_is():
    image = blobs()
    heatmap, counts = adapt_heatmap(BrightnessDetector(), image, drawn(30), CONFIG)
    assert counts.max() > 25
    # Two bilinear warps smooth the blobs a little.
    assert (heatmap * 64 - image[0]).abs().max() < 0.1


def test_counts_of_a_shift_by_hand():
    _, counts = adapt_heatmap(BrightnessDetector(), blobs(), np.stack([IDENTITY, SHIFT]), CONFIG)
    # x falls on x + 20: 3 pixels inside the warped frame (x <= 40) and 3 from the picture's end.
    expected = np.ones((HEIGHT, WIDTH))
    expected[3 : HEIGHT - 3, 3 : WIDTH - 3 - 20] = 2
    assert np.array_equal(counts[0].numpy(), expected)


def test_mean_and_max_by_hand():
    homographies = np.stack([IDENTITY, SHIFT])
    mean, _ = adapt_heatmap(RampDetector(), blobs(), homographies, CONFIG)
    largest, _ = adapt_heatmap(
        RampDetector(), blobs(), homographies, replace(CONFIG, aggregation="max")
    )
    # At x = 9 the identity answers 10 / 6400 and the shift 30 / 6400; at x = 59 only the former.
    assert mean[0, 24, 9].item() * 6400 == pytest.approx(20, rel=1e-4)
    assert largest[0, 24, 9].item() * 6400 == pytest.approx(30, rel=1e-4)
    assert mean[0, 24, 59].item() * 6400 == pytest.approx(60, rel=1e-4)
    assert largest[0, 24, 59].item() * 6400 == pytest.approx(60, rel=1e-4)


def test_pixels_seen_too_seldom_are_dropped():
    heatmap, counts = adapt_heatmap(
        RampDetector(), blobs(), np.stack([IDENTITY, SHIFT]), replace(CONFIG, filter_counts=2)
    )
    assert torch.equal(heatmap > 0, counts == 2)


def test_pixels_never_seen_respond_with_nothing():
    heatmap, counts = adapt_heatmap(RampDetector(), blobs(), SHIFT[None], CONFIG)
    assert counts[0, 24, 60] == 0 and heatmap[0, 24, 60] == 0
    assert heatmap.isfinite().all()


def test_aggregation_agrees_with_kornia():
    homographies = drawn(6)
    heatmap, counts = adapt_heatmap(RampDetector(), blobs(), homographies, CONFIG)
    forth = torch.from_numpy(homographies).float()
    observed = valid_mask(forth, HEIGHT, WIDTH, 3).float()
    observed[:, :3] = observed[:, -3:] = observed[:, :, :3] = observed[:, :, -3:] = 0
    observed[0] = 1
    ramp = (torch.arange(WIDTH) + 1) / 6400
    planes = torch.stack([observed * ramp, observed], 1)
    back = kornia.geometry.warp_perspective(planes, forth.inverse(), (HEIGHT, WIDTH))
    response, seen = back.sum(0)
    # OpenCV rounds its bilinear weights to 1/32 of a pixel: compare away from the masks' edges.
    level = (seen.round() - seen).abs() < 1e-3
    assert level.float().mean() > 0.5
    assert (counts[0] - seen)[level].abs().max() < 0.2
    assert (heatmap[0] - response / seen)[level].abs().max() * 6400 < 0.6


def peak(heatmap: torch.Tensor) -> list[float]:
    """(x, y) of the one spot of a heatmap (H, W)."""
    y, x = torch.meshgrid(*(torch.arange(side) for side in heatmap.shape), indexing="ij")
    return [float((heatmap * axis).sum() / heatmap.sum()) for axis in (x, y)]


class SpotDetector(nn.Module):
    """Responds at the brightest pixel of each image, and nowhere else."""

    def __init__(self, response: float = 0.5) -> None:
        super().__init__()
        self.response = response
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        self.seen.append(tuple(images.shape))
        best = images.flatten(1).argmax(1)
        response = torch.zeros_like(images).flatten(1)
        response[torch.arange(len(images)), best] = self.response
        return {"logits": logits_of(response.view(images.shape))}


def test_enlarged_looks_land_on_the_pixels_of_the_picture():
    image = torch.zeros(1, 1, HEIGHT, WIDTH)
    image[0, 0, 20, 30] = 1
    detector, twice = SpotDetector(), replace(CONFIG, sizes=(2.0,))
    heatmap, counts = adapt_heatmap(detector, image, IDENTITY[None], twice)
    assert detector.seen == [(1, 1, 2 * HEIGHT, 2 * WIDTH)]
    assert heatmap.shape == counts.shape == (1, HEIGHT, WIDTH) and (counts == 1).all()
    # Pixel (30, 20) becomes the square from 60 to 61 and 40 to 41, of which one responds with 1/2.
    # A quarter of that is interpolated at the middle of the four, which 4 times the area makes up.
    assert peak(heatmap[0]) == pytest.approx([30, 20])
    assert heatmap[0, 20, 30].item() == pytest.approx(0.5, rel=1e-4)
    # x = 30 falls on 45.25: 0.9 (3/4)^2 is interpolated, 1.5^2 times that is more than certainty.
    half_more = replace(CONFIG, sizes=(1.5,))
    heatmap, _ = adapt_heatmap(SpotDetector(0.9), image, IDENTITY[None], half_more)
    assert heatmap.max() == 1


class SureDetector(torch.nn.Module):
    """Sure of one pixel (x, y) of every cell, which depends on the width of the picture."""

    def __init__(self, pixels: dict[int, tuple[int, int]]) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        height, width = images.shape[2:]
        x, y = self.pixels[width]
        logits = torch.zeros(len(images), 65, height // 8, width // 8)
        logits[:, 8 * y + x] = 100.0
        return {"logits": logits}


def test_no_look_at_an_enlarged_picture_answers_more_than_it_counts():
    # Pixel (3, 3) lands at (2.5, 6.5) of the enlarged and moved picture, of whose pixels those from
    # x = 3 on count: half a look. One of the four around it is certain: 1/4, times 4 is one answer.
    shift = np.array([[1.0, 0, -2], [0, 1, 0], [0, 0, 1]])
    image, both = torch.zeros(1, 1, HEIGHT, WIDTH), np.stack([IDENTITY, shift])
    settings = replace(CONFIG, sizes=(1.0, 2.0), border=3, filter_counts=0)
    detector = SureDetector({WIDTH: (3, 3), 2 * WIDTH: (3, 7)})
    heatmap, counts = adapt_heatmap(detector, image, both, settings)
    assert counts[0, 3, 3].item() == pytest.approx(1.5, abs=0.02)
    assert heatmap[0, 3, 3].item() == pytest.approx(1.0) and heatmap.max() <= 1 + 1e-6


def test_warps_take_the_sizes_in_turn_and_agree():
    image = blobs()
    detector = SpotDetector()
    adapt_heatmap(detector, image, drawn(5), replace(CONFIG, sizes=(1.0, 1.5)))
    sizes = [shape for shape in detector.seen for _ in range(shape[0])]
    assert [shape[2:] for shape in sizes] == [(48, 64)] * 3 + [(72, 96)] * 2
    smooth, counts = adapt_heatmap(
        BrightnessDetector(), image, drawn(30), replace(CONFIG, sizes=(1.0, 1.5))
    )
    plain, plain_counts = adapt_heatmap(BrightnessDetector(), image, drawn(30), CONFIG)
    # The rims that do not count are 3 pixels of the warped pictures, thinner on enlarged ones.
    assert (counts - plain_counts).min() > -0.2 and 0 < (counts - plain_counts).max() <= 15
    # Enlarged pictures are 1.5^2 times as bright: the mean of both is 1.625 times the plain one.
    assert float(smooth.max() / plain.max()) == pytest.approx((1 + 1.5**2) / 2, rel=0.05)


def test_sizes_that_must_agree_give_the_geometric_mean_of_their_responses():
    gray = torch.full((1, 1, HEIGHT, WIDTH), 0.2)
    both = replace(CONFIG, sizes=(1.0, 2.0), agree=True)
    heatmap, counts = adapt_heatmap(BrightnessDetector(), gray, IDENTITY[None], both)
    # 0.2 / 64 at the first size, four times that at the second; in turn, one would get the first.
    assert heatmap[0, 20, 30].item() == pytest.approx(np.sqrt(0.2 / 64 * 0.8 / 64), rel=1e-4)
    assert (counts == 1).all()
    detector = SpotDetector()
    adapt_heatmap(detector, gray, drawn(5), both)
    sides = [shape[2:] for shape in detector.seen for _ in range(shape[0])]
    assert sorted(sides) == [(HEIGHT, WIDTH)] * 5 + [(2 * HEIGHT, 2 * WIDTH)] * 5


def test_what_one_size_does_not_see_does_not_count_where_sizes_must_agree():
    class OnlySmall(SpotDetector):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = super().forward(images)["logits"]
            if images.shape[-1] > WIDTH:
                logits[:, :64] -= 30
            return {"logits": logits}

    image = torch.zeros(1, 1, HEIGHT, WIDTH)
    image[0, 0, 20, 30] = 1
    in_turn = replace(CONFIG, sizes=(1.0, 2.0))
    twice = np.stack([IDENTITY, IDENTITY])
    heatmap, _ = adapt_heatmap(OnlySmall(), image, twice, in_turn)
    assert heatmap.max().item() == pytest.approx(0.25, rel=1e-4)
    heatmap, _ = adapt_heatmap(OnlySmall(), image, twice, replace(in_turn, agree=True))
    assert heatmap.isfinite().all() and heatmap.max() < 1e-5


def test_sizes_that_are_no_multiples_of_cells_are_rounded_to_them():
    detector = SpotDetector()
    image = torch.zeros(1, 1, HEIGHT, WIDTH)
    image[0, 0, 20, 30] = 1
    heatmap, _ = adapt_heatmap(detector, image, IDENTITY[None], replace(CONFIG, sizes=(1.3,)))
    assert detector.seen == [(1, 1, 64, 80)]  # 62.4 x 83.2
    assert peak(heatmap[0]) == pytest.approx([30, 20], abs=0.5)


def test_shared_and_separate_homographies_agree():
    images = torch.cat([blobs(), blobs().flip(-1)])
    shared, shared_counts = adapt_heatmap(BrightnessDetector(), images, drawn(7), CONFIG)
    separate, counts = adapt_heatmap(
        BrightnessDetector(), images, np.stack([drawn(7), drawn(7)]), CONFIG
    )
    assert torch.allclose(shared, separate, atol=1e-7)
    assert torch.equal(shared_counts, counts) and counts.shape == (2, HEIGHT, WIDTH)


def test_batches_change_nothing():
    images = torch.cat([blobs(), blobs().flip(-1)])
    sets = np.stack([drawn(7, 1), drawn(7, 2)])
    reference, _ = adapt_heatmap(BrightnessDetector(), images, sets, CONFIG)
    for batch in (1, 64):
        other, _ = adapt_heatmap(BrightnessDetector(), images, sets, replace(CONFIG, batch=batch))
        assert torch.allclose(reference, other, atol=1e-7)
    alone, _ = adapt_heatmap(BrightnessDetector(), images[1:], sets[1], CONFIG)
    assert torch.allclose(reference[1:], alone, atol=1e-7)


def test_homographies_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="homographies"):
        adapt_heatmap(BrightnessDetector(), blobs(), np.zeros((3, 5, 3, 3)), CONFIG)
    with pytest.raises(ValueError, match="homographies"):
        adapt_heatmap(BrightnessDetector(), blobs(), np.eye(3), CONFIG)


# --- keypoints -----------------------------------------------------------------------------------


def peaks() -> torch.Tensor:
    heatmap = torch.zeros(1, HEIGHT, WIDTH)
    heatmap[0, 10, 20], heatmap[0, 11, 23], heatmap[0, 30, 40] = 0.5, 0.4, 0.3
    heatmap[0, 40, 8] = 0.01
    return heatmap


def test_keypoints_of_a_heatmap_by_hand():
    (found,) = heatmap_keypoints(peaks(), replace(CONFIG, subpixel=False))
    assert found.keypoints.tolist() == [[20, 10], [40, 30]]
    assert found.keypoint_scores.tolist() == pytest.approx([0.5, 0.3])
    assert found.descriptors is None
    (close,) = heatmap_keypoints(peaks(), replace(CONFIG, subpixel=False, nms_radius=2))
    assert len(close.keypoints) == 3
    (best,) = heatmap_keypoints(peaks(), replace(CONFIG, subpixel=False, top_k=1))
    assert best.keypoints.tolist() == [[20, 10]]
    (faint,) = heatmap_keypoints(peaks(), replace(CONFIG, subpixel=False, threshold=0.001))
    assert len(faint.keypoints) == 3


def test_subpixel_keypoints_lie_between_pixels():
    heatmap = torch.zeros(1, HEIGHT, WIDTH)
    heatmap[0, 10, 20], heatmap[0, 10, 21] = 0.5, 0.25
    (found,) = heatmap_keypoints(heatmap, CONFIG)
    x, y = found.keypoints[0].tolist()
    assert 20.1 < x < 20.5 and abs(y - 10) < 0.05


def test_a_heatmap_without_response_has_no_keypoints():
    (found,) = heatmap_keypoints(torch.zeros(1, HEIGHT, WIDTH), CONFIG)
    assert found.keypoints.shape == (0, 2) and found.keypoint_scores.shape == (0,)


def test_any_size_is_adapted_and_padding_dropped():
    image = blobs(45, 61)
    image[..., -1, -1] = 1
    homographies = adaptation_homographies(8, 48, 64, "adaptation", np.random.default_rng(0))
    config = replace(CONFIG, threshold=0.3 / 64, border=2)
    (found,) = adapted_keypoints(BrightnessDetector(), image, homographies, config)
    assert found.image_size == (45, 61)
    assert (found.keypoints <= torch.tensor([60.0, 44.0])).all()
    for x, y in ((20, 12), (44, 30), (24, 33)):
        offsets = found.keypoints - torch.tensor([x, y])
        assert offsets.norm(dim=1).min() < 0.6


# --- export --------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(norm="none", channels=(4, 4, 8, 8), head_channels=8)
    path = tmp_path / "small.safetensors"
    save_weights(path, MagicPoint(config).state_dict(), to_dict(config), {})
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.jpg", "sub/c.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (60, 90), dtype=np.uint8))
    return tmp_path / "images"


@pytest.fixture
def config(weights: Path, images: Path, tmp_path: Path) -> AdaptConfig:
    return AdaptConfig(
        weights=str(weights),
        images=(str(images),),
        output=str(tmp_path / "labels"),
        warps=3,
        threshold=0.0,
        top_k=20,
        height=HEIGHT,
        width=WIDTH,
        precision="float32",
    )


def names(paths: list[Path]) -> set[str]:
    return {path.name for path in paths}


def test_export_writes_a_label_file_for_each_picture(config, images):
    report = export_labels(config, progress=False)
    assert len(report.written) == 3 and not report.failed and not report.skipped_existing
    output = Path(config.output)
    for stem in ("a", "b", "sub/c"):
        labels = load_labels(output / f"{stem}.npz")
        assert labels.size == (HEIGHT, WIDTH)
        assert 0 < len(labels.keypoints) <= 20
        assert (np.diff(labels.keypoint_scores) <= 0).all()
        # The pixel itself is among the nine that are added up.
        assert labels.probabilities is not None and (labels.probabilities <= 1).all()
        assert (labels.probabilities >= labels.keypoint_scores - 1e-6).all()
        assert labels.settings["warps"] == 3 and len(labels.settings["weights"]) == 16
    dataset = PhotoDataset([images], [output], HEIGHT, WIDTH)
    assert len(dataset.pictures) == 3 and not dataset.skipped
    assert (dataset[0]["labels0"] < 64).any()


def test_export_goes_on_where_it_stopped(config):
    export_labels(config, progress=False)
    kept, lost, damaged = (Path(config.output) / f"{s}.npz" for s in ("a", "b", "sub/c"))
    before, reference = kept.stat().st_mtime_ns, load_labels(damaged)
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:100])
    report = export_labels(config, progress=False)
    assert names(report.skipped_existing) == {"a.npz"}
    assert names(report.written) == {"b.npz", "c.npz"}
    assert kept.stat().st_mtime_ns == before
    assert np.allclose(load_labels(damaged).keypoints, reference.keypoints, atol=1e-4)


def test_labels_from_before_a_setting_existed_had_its_default(config):
    export_labels(config, progress=False)
    for path in Path(config.output).rglob("*.npz"):
        arrays = dict(np.load(path))
        settings = json.loads(str(arrays["settings"]))
        del settings["sizes"], settings["share_warps"]
        np.savez(path, **(arrays | {"settings": np.asarray(json.dumps(settings))}))
    assert len(export_labels(config, progress=False).skipped_existing) == 3
    with pytest.raises(ValueError, match=r"other settings \(sizes\)"):
        export_labels(replace(config, sizes=(1.0, 2.0)), progress=False)


def test_labels_made_with_other_settings_are_refused(config, weights):
    export_labels(config, progress=False)
    with pytest.raises(ValueError, match=r"a\.npz.*threshold, warps"):
        export_labels(replace(config, warps=4, threshold=0.5), progress=False)
    retrained = ModelConfig(norm="none", channels=(4, 4, 8, 8), head_channels=8)
    save_weights(weights, MagicPoint(retrained).state_dict(), to_dict(retrained), {})
    with pytest.raises(ValueError, match="weights"):
        export_labels(config, progress=False)


def test_labels_of_another_picture_of_the_same_name_are_refused(config):
    export_labels(config, progress=False)
    pictures = sorted(Path(config.images[0]).rglob("*.png"))
    other = cv2.imread(str(pictures[0]), cv2.IMREAD_GRAYSCALE)[::-1]
    cv2.imwrite(str(pictures[0]), other)
    told = rf"{pictures[0].stem}\.npz holds the labels of another picture than"
    with pytest.raises(ValueError, match=told):
        export_labels(config, progress=False)
    pictures[0].unlink()
    assert len(export_labels(config, progress=False).skipped_existing) == 2


def test_how_fast_it_is_made_is_not_a_setting(config):
    export_labels(config, progress=False)
    report = export_labels(replace(config, batch=1), progress=False)
    assert len(report.skipped_existing) == 3


def test_a_limit_labels_so_many_pictures(config):
    report = export_labels(replace(config, limit=2), progress=False)
    assert names(report.written) == {"a.npz", "b.npz"}
    report = export_labels(replace(config, limit=1, output=config.output + "1"), progress=False)
    assert names(report.written) == {"a.npz"}
    # Raising it adds what is missing; more than there are is all of them.
    report = export_labels(replace(config, limit=9), progress=False)
    assert names(report.written) == {"c.npz"} and len(report.skipped_existing) == 2


def test_a_limit_spreads_over_the_folder(config, images):
    for i in range(7):
        cv2.imwrite(str(images / f"many{i}.png"), np.zeros((60, 90), np.uint8))
    report = export_labels(replace(config, limit=3), progress=False)
    assert names(report.written) == {"a.npz", "many1.npz", "many4.npz"}


def test_labels_do_not_depend_on_batches_or_neighbours(config, images, tmp_path):
    export_labels(replace(config, batch=9), progress=False)
    (images / "a.png").unlink()
    alone = replace(config, batch=1, output=str(tmp_path / "alone"))
    export_labels(alone, progress=False)
    together, apart = (load_labels(Path(c.output) / "sub/c.npz") for c in (config, alone))
    assert np.allclose(together.keypoints, apart.keypoints, atol=1e-3)
    assert np.allclose(together.keypoint_scores, apart.keypoint_scores, atol=1e-6)


def test_processes_share_the_pictures(config):
    reports = [export_labels(config, progress=False, rank=rank, world=2) for rank in (0, 1)]
    assert [len(report.written) for report in reports] == [2, 1]
    assert names(reports[0].written) | names(reports[1].written) == {"a.npz", "b.npz", "c.npz"}


def test_unreadable_pictures_are_listed_at_the_end(config, images):
    (images / "empty.png").write_bytes(b"")
    (images / "text.jpg").write_bytes(b"this is no picture")
    report = export_labels(config, progress=False)
    assert len(report.written) == 3
    assert names([path for path, _ in report.failed]) == {"empty.png", "text.jpg"}
    assert "3 label files written" in str(report) and "text.jpg" in str(report)


def test_names_that_are_no_text_are_names(config, images):
    try:
        os.rename(images / "b.jpg", os.fsencode(images) + b"/caf\xe9.jpg")
    except OSError:
        pytest.skip("this file system has no such names")
    report = export_labels(config, progress=False)
    assert names(report.written) == {"a.npz", os.fsdecode(b"caf\xe9.npz"), "c.npz"}
    assert not export_labels(config, progress=False).written  # all there already


def test_any_failure_to_read_one_picture_leaves_the_others(config, monkeypatch):
    read = export.read_label_image

    def broken(path, size):
        if path.name == "b.jpg":
            raise MemoryError
        return read(path, size)

    monkeypatch.setattr(export, "read_label_image", broken)
    report = export_labels(config, progress=False)
    assert names(report.written) == {"a.npz", "c.npz"}
    assert [(path.name, reason) for path, reason in report.failed] == [("b.jpg", "MemoryError")]


def test_two_pictures_that_want_one_label_file(config, images):
    cv2.imwrite(str(images / "a.jpg"), np.zeros((60, 90), np.uint8))
    report = export_labels(config, progress=False)
    assert len(report.written) == 3
    ((path, reason),) = report.failed
    assert path.name == "a.png" and "a.jpg" in reason


def test_blank_pictures_get_empty_labels(config, images):
    cv2.imwrite(str(images / "blank.png"), np.zeros((60, 90), np.uint8))
    export_labels(replace(config, threshold=0.5), progress=False)
    assert load_labels(Path(config.output) / "blank.npz").keypoints.shape == (0, 2)


def test_native_sizes(config, images):
    cv2.imwrite(str(images / "tall.png"), np.full((70, 33), 99, np.uint8))
    cv2.imwrite(str(images / "tiny.png"), np.full((9, 40), 99, np.uint8))
    report = export_labels(replace(config, height=0, width=0), progress=False)
    assert load_labels(Path(config.output) / "a.npz").size == (60, 90)
    assert load_labels(Path(config.output) / "tall.npz").size == (70, 33)
    assert [path.name for path, _ in report.failed] == ["tiny.png"]


def test_pictures_of_many_sizes_do_not_all_wait_in_memory(config, images, monkeypatch):
    for i in range(40):
        cv2.imwrite(str(images / f"{i:02}.png"), np.full((40, 40 + i), 99, np.uint8))
    read, reads, batches = export._read, [], []

    def count(job, config):
        reads.append(job.name)
        return read(job, config)

    def record(model, batch, *settings):
        batches.append((len(reads), [image.shape for _, image in batch]))
        return [1] * len(batch)

    monkeypatch.setattr(export, "_read", count)
    monkeypatch.setattr(export, "_label_batch", record)
    report = export_labels(replace(config, height=0, width=0, batch=9), progress=False)
    # Three go through the network together: twelve wait, six are read ahead.
    assert batches[0][0] <= 12 + 6 + 1
    # The three of one size are the last to come, and still go together.
    assert [(60, 90)] * 3 in [shapes for _, shapes in batches]
    assert len(report.written) == len({*report.written}) == sum(report.keypoints) == 43


def test_several_folders(config, images, tmp_path):
    other = tmp_path / "more"
    other.mkdir()
    cv2.imwrite(str(other / "a.png"), np.zeros((60, 90), np.uint8))
    both = replace(config, images=(str(images), str(other)))
    assert len(export_labels(both, progress=False).written) == 4
    output = Path(config.output)
    assert (output / "images/a.npz").is_file() and (output / "more/a.npz").is_file()
    assert len(PhotoDataset([images, other], [output], HEIGHT, WIDTH).pictures) == 4


def test_shared_warps_are_the_same_for_every_picture(config):
    export_labels(replace(config, share_warps=True, batch=9), progress=False)
    shared = replace(config, share_warps=True)
    first, second = (export._picture_homographies(n, (48, 64), shared) for n in "ab")
    assert np.array_equal(first, second)
    first, second = (export._picture_homographies(n, (48, 64), config) for n in "ab")
    assert not np.allclose(first, second)


def test_nothing_to_label_and_missing_folders(config, tmp_path):
    with pytest.raises(ValueError, match="at least one folder"):
        export_labels(replace(config, images=()), progress=False)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export_labels(replace(config, images=(str(tmp_path / "nowhere"),)), progress=False)
    (tmp_path / "empty").mkdir()
    report = export_labels(replace(config, images=(str(tmp_path / "empty"),)), progress=False)
    assert not report.written and not report.failed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warps": 0}, "at least 1"),
        ({"batch": -1}, "batch must not be negative, got -1"),
        ({"limit": -1}, "limit must not be negative"),
        ({"top_k": -1}, "top_k must not be negative"),
        ({"seed": -1}, "seed must not be negative"),
        ({"height": 100}, "multiples of 8"),
        ({"nms_radius": -1}, "nms_radius must not be negative"),
        ({"threshold": -0.1}, "threshold must not be negative"),
        (
            {"warps": 16, "filter_counts": 20},
            "filter_counts must be between 0 and warps, got 20 of 16",
        ),
        ({"sizes": ()}, "sizes must be positive"),
        ({"sizes": (1.0, -1.5)}, "sizes must be positive"),
        ({"height": 0}, "both 0"),
        ({"homography": "sideways"}, "sideways"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(AdaptConfig(), **changes)


def test_batch_normalised_weights_label_as_they_detect(config, weights, images):
    torch.manual_seed(1)
    normed = ModelConfig(norm="batch", channels=(4, 4, 8, 8), head_channels=8)
    model = MagicPoint(normed)
    for _ in range(5):
        model(torch.rand(2, 1, HEIGHT, WIDTH))
    save_weights(weights, model.state_dict(), to_dict(normed), {}, dtype=torch.float32)
    once = replace(config, warps=1, subpixel=False)
    export_labels(once, progress=False)
    labels = load_labels(Path(config.output) / "a.npz")
    image, _ = resize_and_crop(read_gray(images / "a.png"), HEIGHT, WIDTH)
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(image)[None, None])["logits"]
    (found,) = heatmap_keypoints(decode_heatmap(logits), once)
    assert np.allclose(labels.keypoint_scores, found.keypoint_scores, rtol=1e-3)
    assert np.mean((labels.keypoints == found.keypoints.numpy()).all(1)) > 0.8


def test_labels_of_the_largest_response_have_no_probabilities(config, images):
    export_labels(replace(config, aggregation="max"), progress=False)
    assert load_labels(Path(config.output) / "a.npz").probabilities is None
    with pytest.raises(ValueError, match=r'no probabilities.*"mean"'):
        PhotoDataset([images], [config.output], HEIGHT, WIDTH, targets=True)


def test_probabilities_add_up_the_nine_pixels_around():
    heatmap = torch.zeros(6, 7)
    heatmap[2, 3], heatmap[3, 4], heatmap[2, 5] = 0.5, 0.25, 0.125  # the last is two pixels away
    heatmap[0, 0], heatmap[5, 6] = 0.75, 0.5
    keypoints = torch.tensor([[3.4, 2.1], [-0.3, 0.2], [6.3, 5.3], [0.0, 5.0]])
    found = keypoint_probabilities(heatmap, keypoints)
    assert found.tolist() == pytest.approx([0.75, 0.75, 0.5, 0.0])
    assert float(keypoint_probabilities(heatmap + 0.2, keypoints)[0]) == 1.0  # clipped


def test_presets_named_in_the_defaults_exist():
    assert AdaptConfig().homography in HOMOGRAPHY_PRESETS
    assert (AdaptConfig().warps, AdaptConfig().threshold) == (100, 0.015)


def test_no_more_images_go_through_the_network_at_once_than_asked_for():
    sizes = []

    class Counting(BrightnessDetector):
        def forward(self, images):
            sizes.append(len(images))
            return super().forward(images)

    images = torch.cat([blobs(), blobs().flip(3)])
    adapt_heatmap(Counting(), images, drawn(7), replace(CONFIG, batch=6))
    assert sizes == [6, 6, 2]
    sizes.clear()
    adapt_heatmap(Counting(), images, drawn(7), replace(CONFIG, batch=1))
    assert sizes == [2] * 7  # one warp of every image at least


def test_a_top_k_of_zero_keeps_all():
    heatmap = torch.zeros(1, 48, 64)
    heatmap[0, 10, 20], heatmap[0, 30, 40] = 0.5, 0.3
    (found,) = heatmap_keypoints(heatmap, AdaptConfig(top_k=0, subpixel=False))
    assert found.keypoints.tolist() == [[20, 10], [40, 30]]


def test_labels_are_refined_over_five_pixels():
    heatmap = torch.zeros(1, 48, 64)
    heatmap[0, 10, 20], heatmap[0, 10, 22] = 0.5, 0.25
    (found,) = heatmap_keypoints(heatmap, AdaptConfig())
    assert found.keypoints[0].tolist() == pytest.approx([20 + 2 / 3, 10])


def test_all_of_a_picture_lies_in_its_enlarged_frame():
    class Silent(torch.nn.Module):
        def forward(self, images):
            return {
                "logits": images.new_zeros(len(images), 65, *(n // 8 for n in images.shape[2:]))
            }

    config = AdaptConfig(sizes=(1.3,), precision="float32")  # 48 x 64 becomes 64 x 80
    _, counts = adapt_heatmap(Silent(), torch.zeros(1, 1, 48, 64), np.eye(3)[None], config)
    assert (counts > 1 - 1e-6).all()


def test_every_setting_that_decides_a_label_is_written_into_it():
    where_and_how_fast = {"weights", "images", "output", "limit", "batch", "device", "precision"}
    every = {field.name for field in dataclasses.fields(AdaptConfig)}
    assert every - where_and_how_fast == set(export._LABEL_SETTINGS)


def test_the_defaults_are_the_published_values():
    default = AdaptConfig()
    assert (default.nms_radius, default.top_k, default.border) == (4, 600, 3)
    assert (default.height, default.width) == (240, 320)
    assert (default.aggregation, default.filter_counts, default.sizes) == ("mean", 0, (1.0,))
    assert default.subpixel and not default.share_warps and not default.agree


def test_warps_depend_on_the_seed_and_on_the_relative_path(config):
    first, again, other = (
        export._picture_homographies("a.png", (48, 64), replace(config, seed=seed))
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again) and not np.allclose(first, other)
    jobs, _ = export._list_jobs(config)
    assert [job.name for job in jobs] == ["a.png", "b.jpg", "sub/c.png"]


def test_one_process_alone_tells_of_labels_already_taken(config, images):
    cv2.imwrite(str(images / "a.jpg"), np.zeros((60, 90), np.uint8))
    reports = [export_labels(config, progress=False, rank=rank, world=2) for rank in (0, 1)]
    assert [len(report.failed) for report in reports] == [1, 0]
