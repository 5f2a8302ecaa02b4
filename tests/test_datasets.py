import json
import pickle
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from labelled_scene import uneven_scene, write_scene
from torch.utils.data import DataLoader

from superpoint_lib.augmentation import PHOTOMETRIC_PRESETS
from superpoint_lib.batches import RawSamples
from superpoint_lib.datasets import (
    BUNDLED_PHOTOS,
    MixedDataset,
    PhotoDataset,
    ShapesDataset,
    bundled_photos,
    crop_and_resize,
    export_bundled_photos,
    label_folders,
    load_labels,
    make_views,
    motorcycle_pair,
    read_label_image,
    resolve_images,
    save_labels,
)
from superpoint_lib.geometry import (
    HOMOGRAPHY_PRESETS,
    HomographyConfig,
    turn_and_zoom,
    warp_points,
)
from superpoint_lib.shapes import ShapesConfig, draw_sample

PLAIN = {
    "photometric": PHOTOMETRIC_PRESETS["none"],
    "homography": HOMOGRAPHY_PRESETS["identity"],
}


def positions(labels: torch.Tensor) -> np.ndarray:
    """Pixels (x, y) that the classes of a label map stand for."""
    row, column = (labels < 64).nonzero(as_tuple=True)
    inside = labels[row, column]
    return torch.stack([8 * column + inside % 8, 8 * row + inside // 8], -1).numpy()


def write_picture(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_labels(path: Path, keypoints: object, size: tuple[int, int]) -> None:
    points = np.asarray(keypoints, np.float32).reshape(-1, 2)
    save_labels(path, points, np.ones(len(points)), size, {"warps": 3})


def gray(level: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width), level, np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Six pictures of six gray levels, one keypoint each, one picture in a sub-folder."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    for i in range(6):
        stem = f"sub/{i}" if i == 5 else str(i)
        write_picture(images / f"{stem}.png", gray(20 * (i + 1)))
        write_labels(labels / f"{stem}.npz", [[10 + i, 20]], (48, 64))
    return images, labels


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


# --- shapes --------------------------------------------------------------------------------------


def test_shapes_sample_with_one_view():
    sample = ShapesDataset(seed=3)[0]
    assert set(sample) == {"image", "labels", "offsets", "valid"}
    assert sample["image"].shape == (1, 120, 160) and sample["image"].dtype == torch.float32
    assert sample["labels"].shape == (15, 20) and sample["labels"].dtype == torch.int64
    assert sample["valid"].shape == (15, 20) and sample["valid"].dtype == torch.bool
    assert sample["image"].min() >= 0 and sample["image"].max() <= 1
    assert sample["labels"].min() >= 0 and sample["labels"].max() <= 64


def test_shapes_depend_on_seed_and_index_only():
    first = ShapesDataset(seed=1, views=2)
    again = ShapesDataset(seed=1, views=2)
    _ = again[7]
    assert_same(first[2], again[2])
    assert_same(first[2], first[2])
    assert not torch.equal(first[2]["image0"], first[3]["image0"])
    assert not torch.equal(first[2]["image0"], ShapesDataset(seed=2, views=2)[2]["image0"])


def test_shapes_are_the_same_in_worker_processes():
    dataset = ShapesDataset(seed=5)
    loader = DataLoader(dataset, batch_size=2, sampler=range(4), num_workers=2)  # type: ignore[arg-type]
    batches = list(loader)
    for i in range(4):
        assert torch.equal(batches[i // 2]["image"][i % 2], dataset[i]["image"])
        assert torch.equal(batches[i // 2]["labels"][i % 2], dataset[i]["labels"])


def test_keypoint_free_primitives_give_dustbins_only():
    dataset = ShapesDataset(
        ShapesConfig(primitives=("gaussian_noise",), primitive_weights=(1.0,)), **PLAIN
    )
    assert (dataset[0]["labels"] == 64).all()


def test_views_of_shapes_correspond():
    dataset = ShapesDataset(seed=4, views=2, photometric=PHOTOMETRIC_PRESETS["none"])
    found = 0
    for i in range(12):
        sample = dataset[i]
        assert sample["H_0to1"].shape == (3, 3) and sample["H_0to1"].dtype == torch.float32
        assert sample["valid0"].all()
        _, keypoints, _ = draw_sample(i, dataset.shapes, dataset.seed)
        expected = warp_points(keypoints.astype(float), sample["H_0to1"].numpy().astype(float))
        for points, view in ((keypoints, "0"), (expected, "1")):
            for point in positions(sample[f"labels{view}"]):
                # Only the rounding to pixels is left.
                assert np.abs(points - point).max(1).min() <= 0.51
                found += 1
    assert found > 40


@pytest.mark.parametrize("views", [0, 3])
def test_number_of_views_is_checked(views):
    with pytest.raises(ValueError, match="views"):
        ShapesDataset(views=views)


def test_sizes_and_indices_are_checked():
    with pytest.raises(ValueError, match="multiples of 8"):
        ShapesDataset(ShapesConfig(height=100, width=160))
    with pytest.raises(IndexError, match="-1"):
        ShapesDataset()[-1]


def test_valid_cells_of_a_warped_view_are_those_filled_by_the_picture():
    rng = np.random.default_rng(0)
    image = np.ones((48, 64), np.float32)
    sample = make_views(
        image,
        np.empty((0, 2)),
        1,
        PHOTOMETRIC_PRESETS["none"],
        HOMOGRAPHY_PRESETS["synthetic"],
        rng,
        border=0,
    )
    cells = sample["image"][0].view(6, 8, 8, 8).amin((1, 3))
    assert not sample["valid"].all()
    assert (cells[sample["valid"]] > 0.49).all()


def test_a_picture_that_is_not_warped_is_valid_everywhere():
    sample = ShapesDataset(views=2, **PLAIN)[0]
    assert sample["valid1"].all()
    assert torch.equal(sample["image0"], sample["image1"])
    assert torch.allclose(sample["H_0to1"], torch.eye(3))


# --- label files ---------------------------------------------------------------------------------


def test_labels_come_back_as_they_were(tmp_path):
    keypoints = np.array([[1.25, 2.5], [3, 4]])
    save_labels(tmp_path / "a/b.npz", keypoints, np.array([0.5, 0.25]), (24, 32), {"warps": 100})
    labels = load_labels(tmp_path / "a/b.npz")
    assert labels.probabilities is None
    assert np.array_equal(labels.keypoints, keypoints) and labels.keypoints.dtype == np.float32
    assert labels.keypoint_scores.tolist() == [0.5, 0.25]
    assert labels.size == (24, 32) and labels.settings == {"warps": 100}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.npz"]
    # Whatever the ending.
    save_labels(tmp_path / "c/b.lbl", keypoints, np.array([0.5, 0.25]), (24, 32), {})
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["b.lbl"]


def test_labels_without_keypoints(tmp_path):
    save_labels(tmp_path / "a.npz", np.empty((0, 2)), np.empty(0), (24, 32), {})
    assert load_labels(tmp_path / "a.npz").keypoints.shape == (0, 2)


def test_bad_label_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        load_labels(tmp_path / "none.npz")
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(ValueError, match=r"cut\.npz"):
        load_labels(tmp_path / "cut.npz")
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.npz"):
        load_labels(tmp_path / "empty.npz")
    whole = tmp_path / "whole.npz"
    save_labels(whole, np.ones((3, 2)), np.ones(3), (8, 8), {}, np.ones(3))
    content = bytearray(whole.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # one bit, and it looks encrypted
    (tmp_path / "bit.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"bit\.npz"):
        load_labels(tmp_path / "bit.npz")
    for name, change in (
        ("two", {"probabilities": np.ones(2)}),
        ("nothing", {"settings": np.asarray("null")}),
    ):
        with np.load(whole) as arrays:
            np.savez(tmp_path / f"{name}.npz", **{**arrays, **change})
        with pytest.raises(ValueError, match=rf"{name}\.npz"):
            load_labels(tmp_path / f"{name}.npz")
    np.savez(tmp_path / "lacks.npz", keypoints=np.empty((0, 2)))
    with pytest.raises(ValueError, match="keypoint_scores"):
        load_labels(tmp_path / "lacks.npz")
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        save_labels(tmp_path / "x.npz", np.zeros((3, 3)), np.zeros(3), (8, 8), {})


@pytest.mark.parametrize(
    ("keypoint", "size", "probability", "told"),
    [
        ((np.nan, 1.0), (8, 12), 0.5, "not finite"),
        ((11.0, 2.0), (12, 8), 0.5, r"outside the image.*\(height, width\) \(12, 8\)"),
        ((11.0, 2.0), (8, 12), 50.0, r"probabilities must be in 0\.\.1"),
        ((11.0, 2.0), (8, 12), -0.1, r"probabilities must be in 0\.\.1"),
        ((11.0, 2.0), (8, 12), np.nan, r"probabilities must be in 0\.\.1"),
    ],
)
def test_labels_that_would_teach_nonsense_are_refused(tmp_path, keypoint, size, probability, told):
    path = tmp_path / "a.npz"
    with pytest.raises(ValueError, match=rf"a\.npz: .*{told}"):
        save_labels(path, [keypoint], [1.0], size, {}, [probability])
    assert not path.exists()
    save_labels(path, [(11.0, 2.0)], [1.0], (8, 12), {}, [0.5])
    with np.load(path) as arrays:
        broken = {**arrays, "keypoints": [keypoint], "size": size, "probabilities": [probability]}
    np.savez(path, **broken)
    with pytest.raises(ValueError, match=rf"a\.npz: .*{told}"):
        load_labels(path)


def test_label_files_are_never_unpickled(tmp_path):
    contents = {"keypoint_scores": np.zeros(0), "size": np.array([8, 8]), "settings": "{}"}
    np.savez(tmp_path / "p.npz", keypoints=np.array([print], dtype=object), **contents)
    with pytest.raises(ValueError, match=r"p\.npz"):
        load_labels(tmp_path / "p.npz")


def test_label_folder_of_each_image_folder(tmp_path, monkeypatch):
    assert label_folders(["data/a"], "out") == [Path("out")]
    assert label_folders(["data/a", "b"], "out") == [Path("out/a"), Path("out/b")]
    with pytest.raises(ValueError, match="different names"):
        label_folders(["x/train", "y/train"], "out")
    # A link has its own name, and "." the name of the folder that it is.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "open").symlink_to(tmp_path / "pictures")
    (tmp_path / "more").symlink_to(tmp_path / "other" / "pictures")
    assert label_folders(["open", "more/"], "out") == [Path("out/open"), Path("out/more")]
    assert label_folders([".", "open"], "out") == [Path("out") / tmp_path.name, Path("out/open")]


# --- crops ---------------------------------------------------------------------------------------


def test_centre_crop_by_hand():
    image = np.zeros((16, 32), np.uint8)
    image[4:6, 10:12] = 200
    # Window 16 x 16 at x0 = 8, halved: ((10.5 - 8 + .5) / 2 - .5, (4.5 + .5) / 2 - .5) = (1, 2).
    keypoints = np.array([[10.5, 4.5], [3, 3], [24, 3]], np.float32)
    cropped, window = crop_and_resize(image, 8, 8, "centre", np.random.default_rng(0))
    np.testing.assert_allclose(
        warp_points(keypoints, window), [[1, 2], [-2.75, 1.25], [7.75, 1.25]]
    )
    assert cropped[2, 1] == 200 and cropped.sum() == 200


@pytest.mark.parametrize("shape", [(48, 64), (200, 90), (60, 300), (20, 30)])
def test_random_crops_move_keypoints_with_the_picture(shape):
    rng = np.random.default_rng(1)
    image = np.zeros(shape, np.uint8)
    point = np.array([[shape[1] * 0.45, shape[0] * 0.5]], np.float32).round()
    cv2.circle(image, (int(point[0, 0]), int(point[0, 1])), 3, 255, -1)
    seen = 0
    for _ in range(20):
        cropped, window = crop_and_resize(image, 48, 64, "random", rng)
        moved = warp_points(point, window)
        assert cropped.shape == (48, 64)
        away = (moved > 8).all() and (moved < (55, 39)).all()
        if away:
            rows, columns = np.nonzero(cropped > 100)
            assert np.abs(moved[0] - (columns.mean(), rows.mean())).max() < 0.6
            seen += 1
    assert seen


@pytest.mark.parametrize(("enlarge", "least"), [(1.0, 126), (2.0, 62)])
def test_random_crops_are_between_the_whole_picture_and_the_largest_scale(enlarge, least):
    rng = np.random.default_rng(0)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (192, 1))
    crops = [crop_and_resize(ramp, 96, 128, "random", rng, enlarge) for _ in range(40)]
    spans = [np.ptp(cropped[48].astype(int)) for cropped, _ in crops]
    assert min(spans) >= least and max(spans) <= 255
    assert min(spans) < least + 24 and max(spans) > 230


@pytest.fixture
def scene(tmp_path: Path) -> tuple[list[Path], list[Path]]:
    return write_scene(tmp_path)


def test_a_window_has_one_pixel_at_least():
    ramp = np.arange(64 * 80, dtype=np.uint32).reshape(64, 80).astype(np.uint8)
    for seed in range(5):
        rng = np.random.default_rng(seed)
        cropped, window = crop_and_resize(ramp, 32, 40, "random", rng, enlarge=1e4)
        assert cropped.shape == (32, 40) and len(np.unique(cropped)) <= 4
        assert np.isfinite(window).all()


def test_a_view_from_the_whole_picture_shows_what_lies_beyond_the_crop(scene):
    settings = {"photometric": PLAIN["photometric"], "targets": True, "enlarge": 1.5, "seed": 3}
    ways = {"homography": HOMOGRAPHY_PRESETS["any-scale"], "whole_picture": True}
    dataset = PhotoDataset(*scene, 48, 64, **settings, **ways)
    more = 0
    for i in range(8):
        cut = dataset.labelled(i)
        one = make_views(
            cut.image.astype(np.float32) / 255,
            cut.keypoints,
            2,
            PLAIN["photometric"],
            cut.homography,
            cut.rng,
            probabilities=cut.probabilities,
        )
        other = dataset[i]
        assert one.keys() == other.keys()
        assert torch.equal(one["H_0to1"], other["H_0to1"])
        for name in ("image0", "labels0", "targets0", "valid0"):
            assert torch.equal(one[name], other[name])
        assert not (one["valid1"] & ~other["valid1"]).any()
        more += int((other["valid1"] & ~one["valid1"]).sum())
        both = one["valid1"].repeat_interleave(8, 0).repeat_interleave(8, 1)[None]
        assert (one["image1"] - other["image1"]).abs()[both].mean() < 0.03
        assert not ((one["labels1"] < 64) & (other["labels1"] == 64)).any()
        mass = [float((1 - sample["targets1"][64]).sum()) for sample in (one, other)]
        assert mass[0] <= mass[1] + 1e-4
    assert more > 40


@pytest.mark.parametrize(
    ("zoom", "least", "most"),
    [(0.4, 0.5, 1), (0.8, 0.5, 1), (1, 0.5, 1), (1.6, 0.5, 0.625), (3, 0.5, 0.5)],
)
def test_no_view_of_a_zoomed_pair_is_enlarged_where_the_picture_suffices(zoom, least, most):
    rng = np.random.default_rng(0)
    picture = np.zeros((192, 256), np.uint8)  # twice as large as the crops
    windows = [crop_and_resize(picture, 96, 128, "random", rng, 1.0, zoom)[1] for _ in range(200)]
    scales = np.array([turn_and_zoom(window, 192, 256)[1] for window in windows])
    assert scales.min() == pytest.approx(least, abs=0.02)
    assert scales.max() == pytest.approx(most, abs=0.02)


def test_views_from_whole_pictures_zoom_as_drawn_and_crops_make_room(scene):
    far = HomographyConfig(scale_amplitude=2.0, scales="log-even", perspective=False)
    settings = {"photometric": PLAIN["photometric"], "enlarge": 1.5, "homography": far}
    dataset = PhotoDataset(*scene, 48, 64, **settings, whole_picture=True)
    zooms, scales = [], []
    for i in range(60):
        cut = dataset.labelled(i)
        zooms.append(turn_and_zoom(cut.homography, 48, 64)[1])
        scales.append(turn_and_zoom(cut.whole.window, *cut.whole.image.shape)[1])
        np.testing.assert_allclose(dataset[i]["H_0to1"], cut.homography, atol=1e-5, rtol=1e-5)
    zooms, scales = np.array(zooms), np.array(scales)
    assert zooms.min() < 0.45 and zooms.max() > 2.2
    least = scales.min()
    assert (scales <= np.maximum(1.02 * least, 1.52 / zooms.clip(1))).all()
    assert scales[zooms < 0.7].min() < 0.7 < 1.1 < scales[zooms < 0.7].max()


def test_labels_that_crowd_in_a_view_are_thinned_there(scene):
    far = HomographyConfig(scale_amplitude=2.0, scales="log-even", perspective=False)
    settings = PLAIN | {"homography": far, "whole_picture": True, "targets": True, "enlarge": 1.5}
    every, apart = (PhotoDataset(*scene, 48, 64, **settings, label_radius=r) for r in (0.0, 12.0))
    thinned = 0
    for i in range(20):
        one, other = every.labelled(i), apart.labelled(i)
        np.testing.assert_array_equal(one.homography, other.homography)
        moved = warp_points(
            other.whole.keypoints.astype(float), other.homography @ one.whole.window
        )
        for points in (other.keypoints, moved):
            distances = np.abs(points[:, None] - points[None]).max(-1)
            assert (distances[np.triu_indices(len(points), 1)] >= 12).all()
        assert len(other.whole.probabilities) == len(other.whole.keypoints)
        assert len(other.probabilities) == len(other.keypoints)
        thinned += len(one.whole.keypoints) > len(other.whole.keypoints) > 0
    # The grid has a keypoint every 25 px: at less than half of its size, they crowd.
    assert 5 < thinned < 15


def test_whole_pictures_and_drawn_shapes_mix(scene):
    photos = PhotoDataset(*scene, 48, 64, targets=True, whole_picture=True, **PLAIN)
    config = ShapesConfig(canvas_height=96, canvas_width=128, height=48, width=64)
    dataset = MixedDataset(photos, ShapesDataset(config, views=2, **PLAIN), every=2)
    drawn, photo = dataset[0], dataset[1]
    assert drawn.keys() == photo.keys()
    torch.testing.assert_close(drawn["image0"], drawn["image1"], atol=1e-5, rtol=0)
    assert torch.equal(drawn["labels0"], drawn["labels1"]) and drawn["valid1"].all()
    assert RawSamples(dataset)[0].keys() == RawSamples(dataset)[1].keys()


def test_photographs_among_shapes_take_every_warp_and_every_picture_in_turn(folders):
    ways = HOMOGRAPHY_PRESETS["coco"], HOMOGRAPHY_PRESETS["identity"]
    config = ShapesConfig(canvas_height=96, canvas_width=128, height=48, width=64)
    photos = PhotoDataset([folders[0]], [folders[1]], 48, 64, homography=ways)
    mixed = MixedDataset(photos, ShapesDataset(config, views=2, **PLAIN), every=2)
    seen = [mixed.labelled(i) for i in range(1, 12, 2)]  # six pictures: an epoch
    assert [one.homography for one in seen] == 3 * list(ways)
    assert len({round(float(one.image.mean())) for one in seen}) == 6


def test_enlarged_photos_show_fewer_of_their_keypoints(folders):
    def seen(enlarge: float) -> int:
        dataset = PhotoDataset([folders[0]], [folders[1]], 48, 64, enlarge=enlarge)
        return sum(len(dataset.labelled(i).keypoints) for i in range(20))

    assert 0 < seen(4.0) < seen(1.0)


# --- photographs ---------------------------------------------------------------------------------


def test_photo_sample_with_two_views(folders):
    sample = PhotoDataset([folders[0]], [folders[1]], 48, 64, seed=1)[0]
    assert set(sample) == {
        "image0", "labels0", "offsets0", "valid0",
        "image1", "labels1", "offsets1", "valid1", "H_0to1",
    }  # fmt: skip
    for view in "01":
        assert sample[f"image{view}"].shape == (1, 48, 64)
        assert sample[f"image{view}"].dtype == torch.float32
        assert sample[f"labels{view}"].shape == sample[f"valid{view}"].shape == (6, 8)
        assert sample[f"offsets{view}"].shape == (2, 6, 8)
        assert sample[f"offsets{view}"].dtype == torch.float32
    assert (sample["labels0"] < 64).sum() == 1


def test_targets_follow_probabilities_scores_and_the_warp(tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (48, 64), np.uint8)
    write_picture(tmp_path / "images/a.png", image)
    keypoints = np.array([[20.0, 20.0], [44.25, 28.5], [30.0, 10.0]])
    save_labels(
        tmp_path / "labels/a.npz",
        keypoints,
        np.array([0.3, 0.2, 0.01]),
        (48, 64),
        {},
        np.array([0.9, 0.4, 0.1]),
    )
    folders = [tmp_path / "images"], [tmp_path / "labels"]
    dataset = PhotoDataset(*folders, 48, 64, seed=1, threshold=0.015, targets=True)
    for sample in (dataset[0], dataset[1]):
        # The keypoint below the threshold does not count.
        assert float(1 - sample["targets0"][64].min()) == pytest.approx(0.9, abs=1e-5)
        assert float((1 - sample["targets0"][64]).sum()) == pytest.approx(1.3, abs=1e-4)
        moved = warp_points(keypoints[:2], sample["H_0to1"].numpy().astype(float))
        heatmap = torch.pixel_shuffle(sample["targets1"][:64], 8)[0].numpy()
        for (x, y), probability in zip(moved, (0.9, 0.4), strict=True):
            if 3 < x < 60 and 3 < y < 44:
                row, column = round(y), round(x)
                near = heatmap[row - 2 : row + 3, column - 2 : column + 3]
                assert near.sum() == pytest.approx(probability, abs=1e-4)
                offset = np.arange(-2, 3)
                assert column + (near.sum(0) @ offset) / near.sum() == pytest.approx(x, abs=1e-3)
                assert row + (near.sum(1) @ offset) / near.sum() == pytest.approx(y, abs=1e-3)
    assert "targets0" not in PhotoDataset(*folders, 48, 64)[0]
    sharper = PhotoDataset(*folders, 48, 64, seed=1, targets=True, threshold=0.015, sharpen=2.0)[0]
    assert float(1 - sharper["targets0"][64].min()) == pytest.approx(0.81 / 0.82, abs=1e-5)
    sum_of_both = 0.81 / 0.82 + 0.16 / 0.52
    assert float((1 - sharper["targets0"][64]).sum()) == pytest.approx(sum_of_both, abs=1e-4)


def test_drawn_shapes_among_photographs(tmp_path):
    write_picture(tmp_path / "images/a.png", gray(100))
    save_labels(
        tmp_path / "labels/a.npz", np.array([[20, 20]]), np.ones(1), (48, 64), {}, np.array([0.25])
    )
    photos = PhotoDataset([tmp_path / "images"], [tmp_path / "labels"], 48, 64, targets=True)
    config = ShapesConfig(
        canvas_height=96,
        canvas_width=128,
        height=48,
        width=64,
        primitives=("checkerboard",),
        primitive_weights=(1.0,),
    )
    dataset = MixedDataset(photos, ShapesDataset(config, views=2), every=3)
    described = [bool(dataset[i]["described"]) for i in range(7)]
    assert described == [False, True, True, False, True, True, False]
    for i, own in zip((1, 2, 4, 5), range(4), strict=True):
        photo = dataset[i]
        del photo["described"]
        assert_same(photo, photos[own])
    for i in (0, 3):
        drawn = dataset[i]
        assert drawn.keys() == {*photos[1], "described"}
        found = drawn["labels0"] < 64
        # A cell with one keypoint is certain of it; drawn corners lie between pixels.
        assert found.any() and float(1 - drawn["targets0"][64].min()) == pytest.approx(1, abs=1e-5)
    raw = RawSamples(dataset)
    assert [bool(raw[i]["described"]) for i in range(3)] == described[:3]
    assert [raw[i]["image"].dtype for i in range(2)] == [torch.uint8, torch.uint8]
    assert raw[0]["described"].shape == dataset[0]["described"].shape == ()
    first, second = (dataset.labelled(i).image for i in (0, 3))
    assert first.dtype == np.uint8 and (first != second).any()
    plain = PhotoDataset([tmp_path / "images"], [tmp_path / "labels"], 48, 64)
    assert "targets0" not in MixedDataset(plain, ShapesDataset(config, views=2), 1)[0]


def test_what_does_not_mix_is_refused(folders):
    photos = PhotoDataset([folders[0]], [folders[1]], 48, 64)
    with pytest.raises(ValueError, match="do not mix"):
        MixedDataset(photos, ShapesDataset(), every=2)
    small = ShapesConfig(canvas_height=96, canvas_width=128, height=48, width=64)
    with pytest.raises(ValueError, match="every must be at least 1"):
        MixedDataset(photos, ShapesDataset(small), every=0)


def test_targets_need_labels_with_probabilities(folders):
    with pytest.raises(ValueError, match=r"none of the pictures.*no probabilities"):
        PhotoDataset([folders[0]], [folders[1]], 48, 64, targets=True)


def test_each_epoch_shows_every_picture_once_in_another_order(folders):
    dataset = PhotoDataset([folders[0]], [folders[1]], 48, 64, seed=0, views=1, **PLAIN)
    levels = [round(float(dataset[i]["image"].mean()) * 255) for i in range(18)]
    epochs = [levels[:6], levels[6:12], levels[12:]]
    assert all(sorted(epoch) == [20, 40, 60, 80, 100, 120] for epoch in epochs)
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_labels_follow_their_picture(folders):
    dataset = PhotoDataset([folders[0]], [folders[1]], 48, 64, views=1, **PLAIN)
    for i in range(6):
        number = round(float(dataset[i]["image"].mean()) * 255) // 20 - 1
        assert positions(dataset[i]["labels"]).tolist() == [[10 + number, 20]]


def test_photo_samples_depend_on_seed_and_index_only(folders):
    kept = PhotoDataset([folders[0]], [folders[1]], 48, 64, seed=3)
    decoded = PhotoDataset([folders[0]], [folders[1]], 48, 64, seed=3, cache_bytes=0)
    for i in (9, 0, 4):
        assert_same(kept[i], decoded[i])
    other = PhotoDataset([folders[0]], [folders[1]], 48, 64, seed=4)
    assert any(not torch.equal(kept[i]["image1"], other[i]["image1"]) for i in range(3))


def test_several_warps_take_turns(folders):
    """Even samples are warped one way, odd ones the other; nothing else depends on it."""
    ways = [HOMOGRAPHY_PRESETS["identity"], HOMOGRAPHY_PRESETS["coco"]]
    datasets = [
        PhotoDataset([folders[0]], [folders[1]], 48, 64, homography=way)
        for way in (ways, ways[0], ways[1])
    ]
    for i in range(4):
        mixed, *alone = (dataset[i] for dataset in datasets)
        assert_same(mixed, alone[i % 2])
        assert torch.allclose(mixed["H_0to1"], torch.eye(3), atol=1e-6) == (i % 2 == 0)
    shapes = [ShapesDataset(homography=way, views=2) for way in (ways, *ways)]
    for i in range(2):
        assert_same(shapes[0][i], shapes[1 + i][i])


def test_photo_views_correspond(tmp_path):
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(12, 190, 24), np.arange(12, 140, 24)), -1).reshape(-1, 2)
    write_picture(tmp_path / "i/a.png", rng.integers(0, 255, (144, 192), dtype=np.uint8))
    write_labels(tmp_path / "l/a.npz", grid, (144, 192))
    dataset = PhotoDataset([tmp_path / "i"], [tmp_path / "l"], 144, 192, seed=2)
    found = 0
    for i in range(4):
        sample = dataset[i]
        assert np.array_equal(positions(sample["labels0"]), grid)
        expected = warp_points(grid.astype(float), sample["H_0to1"].numpy())
        for point in positions(sample["labels1"]):
            # Only the rounding of the second view is left.
            assert np.abs(expected - point).max(1).min() <= 0.51
            found += 1
    assert found > 40


def test_labels_made_at_another_size(tmp_path):
    # 120 x 320 seen by its labels as 60 x 80: halved, then the middle 80 of 160 columns.
    image = np.zeros((120, 320), np.uint8)
    image[40:42, 140:142] = 255
    write_picture(tmp_path / "i/a.png", image)
    write_labels(tmp_path / "l/a.npz", [[30, 20]], (60, 80))
    seen = read_label_image(tmp_path / "i/a.png", (60, 80))
    assert seen[20, 30] == 1 and seen.sum() == 1
    dataset = PhotoDataset(
        [tmp_path / "i"], [tmp_path / "l"], 56, 72, views=1, crop="random", **PLAIN
    )
    for i in range(5):
        sample = dataset[i]
        (point,) = positions(sample["labels"])
        row, column = divmod(int(sample["image"].argmax()), 72)
        assert abs(point[0] - column) <= 1 and abs(point[1] - row) <= 1


def test_several_folders_with_one_export_or_a_folder_each(tmp_path):
    for name, level in (("a", 50), ("b", 150)):
        write_picture(tmp_path / name / "same.png", gray(level))
        write_labels(tmp_path / "out" / name / "same.npz", [[level // 5, 9]], (48, 64))
    images = [tmp_path / "a", tmp_path / "b"]
    for labels in ([tmp_path / "out"], [tmp_path / "out/a", tmp_path / "out/b"]):
        dataset = PhotoDataset(images, labels, 48, 64, views=1, **PLAIN)
        pairs = {
            (round(float(dataset[i]["image"].mean()) * 255), *positions(dataset[i]["labels"])[0])
            for i in range(2)
        }
        assert pairs == {(50, 10, 9), (150, 30, 9)}
    with pytest.raises(ValueError, match="one label folder for each"):
        PhotoDataset(images, labels * 2, 48, 64)


def test_what_cannot_be_used_is_listed(folders, monkeypatch):
    images, labels = folders
    write_picture(images / "unlabelled.png", gray(9))
    (images / "broken.jpg").write_bytes(b"not a picture")
    write_labels(labels / "broken.npz", [[1, 1]], (48, 64))
    write_picture(images / "odd.png", gray(9))
    (labels / "odd.npz").write_bytes(b"nor labels")
    dataset = PhotoDataset([images], [labels], 48, 64)
    assert len(dataset.pictures) == 6
    reasons = {path.name: reason for path, reason in dataset.skipped}
    assert set(reasons) == {"unlabelled.png", "broken.jpg", "odd.png"}
    assert "unlabelled.npz" in reasons["unlabelled.png"]
    assert "broken.jpg" in reasons["broken.jpg"]
    assert "odd.npz" in reasons["odd.png"]
    # Missing labels first, then in the order of the pictures, whichever was read sooner.
    slow = load_labels

    def late(path):
        time.sleep(0.1 * (Path(path).name == "broken.npz"))
        return slow(path)

    monkeypatch.setattr("superpoint_lib.datasets.photos.load_labels", late)
    again = PhotoDataset([images], [labels], 48, 64)
    assert again.skipped == dataset.skipped


def test_labels_belong_to_one_picture(folders):
    images, labels = folders
    write_picture(images / "0.jpg", gray(9))
    dataset = PhotoDataset([images], [labels], 48, 64)
    assert [path.name for path in dataset.pictures if path.stem == "0"] == ["0.jpg"]
    ((path, reason),) = dataset.skipped
    assert path.name == "0.png" and "0.jpg" in reason


def test_a_picture_found_unreadable_later_is_replaced(folders):
    images, labels = folders
    (images / "0.png").write_bytes(b"gone")
    dataset = PhotoDataset([images], [labels], 48, 64, views=1, cache_bytes=0, **PLAIN)
    levels = {round(float(dataset[i]["image"].mean()) * 255) for i in range(6)}
    assert levels == {40, 60, 80, 100, 120}
    assert [dataset[i] is not None for i in range(6, 18)]  # two more epochs
    assert [path.name for path, _ in dataset.skipped] == ["0.png"]


def test_the_cache_stops_at_its_limit(folders, monkeypatch):
    monkeypatch.setattr("superpoint_lib.datasets.photos._READ_CHUNK", 2)
    dataset = PhotoDataset([folders[0]], [folders[1]], 48, 64, cache_bytes=3 * 48 * 64)
    assert len(dataset._cache) == 3
    whole = PhotoDataset([folders[0]], [folders[1]], 48, 64)
    for i in range(6):
        assert_same(dataset[i], whole[i])


def test_pictures_without_keypoints(tmp_path):
    write_picture(tmp_path / "i/blank.png", gray(0))
    write_labels(tmp_path / "l/blank.npz", [], (48, 64))
    sample = PhotoDataset([tmp_path / "i"], [tmp_path / "l"], 48, 64)[0]
    assert (sample["labels0"] == 64).all() and (sample["labels1"] == 64).all()


def test_missing_and_useless_folders(tmp_path, folders):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        PhotoDataset([tmp_path / "nowhere"], [folders[1]])
    with pytest.raises(FileNotFoundError, match="no_labels"):
        PhotoDataset([folders[0]], [tmp_path / "no_labels"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="none of the pictures"):
        PhotoDataset([folders[0]], [tmp_path / "empty"])
    with pytest.raises(ValueError, match="image folders"):
        PhotoDataset([], [])


# --- bundled photographs -------------------------------------------------------------------------


def test_training_and_benchmark_photographs_are_disjoint():
    training, benchmark = BUNDLED_PHOTOS["training"], BUNDLED_PHOTOS["benchmark"]
    assert not set(training) & set(benchmark)
    assert not set(training.values()) & set(benchmark.values())
    assert {"motorcycle_left", "motorcycle_right"} <= set(benchmark)


def test_no_two_bundled_photographs_are_alike():
    photos = {**bundled_photos("training"), **bundled_photos("benchmark")}
    assert len(photos) == sum(map(len, BUNDLED_PHOTOS.values()))
    small = {
        name: cv2.resize(photo, (32, 32), interpolation=cv2.INTER_AREA).ravel()
        for name, photo in photos.items()
        if name != "motorcycle_right"
    }
    likeness = np.corrcoef(np.stack(list(small.values()))) - np.eye(len(small))
    assert likeness.max() < 0.7
    for photo in photos.values():
        assert photo.dtype == np.float32 and photo.ndim == 2 and photo.std() > 0.05
        assert photo.min() >= 0 and photo.max() <= 1


def test_motorcycle_pair_shows_one_scene():
    left, right = motorcycle_pair()
    assert left.shape == right.shape == (500, 741)
    assert 0.3 < np.corrcoef(left.ravel(), right.ravel())[0, 1] < 0.99


def test_export_and_resolve(tmp_path, monkeypatch):
    monkeypatch.setattr("superpoint_lib.datasets.bundled.runs_dir", lambda: tmp_path / "runs")
    monkeypatch.setattr("superpoint_lib.datasets.bundled.data_dir", lambda: tmp_path / "data")
    folder = resolve_images("auto", "benchmark")
    assert folder == resolve_images("bundled", "benchmark") == tmp_path / "runs/bundled/benchmark"
    paths = export_bundled_photos(folder, "benchmark")
    assert [path.stem for path in paths] == sorted(BUNDLED_PHOTOS["benchmark"])
    assert sorted(folder.iterdir()) == paths
    left = cv2.imread(str(folder / "motorcycle_left.png"), cv2.IMREAD_UNCHANGED)
    assert np.allclose(left / 255, motorcycle_pair()[0], atol=1e-6)
    (tmp_path / "data/coco/test2017").mkdir(parents=True)
    assert resolve_images("auto", "benchmark") == tmp_path / "data/coco/test2017"
    assert resolve_images(tmp_path / "data", "training") == tmp_path / "data"
    with pytest.raises(FileNotFoundError, match="ln -s"):
        resolve_images(tmp_path / "nowhere", "training")
    with pytest.raises(ValueError, match="validation"):
        bundled_photos("validation")  # type: ignore[arg-type]


def test_settings_are_plain_json(tmp_path):
    save_labels(tmp_path / "a.npz", np.empty((0, 2)), np.empty(0), (8, 8), {"b": 1, "a": [1, 2]})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert json.loads(str(file["settings"])) == {"a": [1, 2], "b": 1}


def test_a_dataset_sent_to_another_process_leaves_its_pictures_behind(tmp_path):
    write_picture(tmp_path / "images" / "a.png", gray(100))
    points = np.array([[10, 20], [30, 20]], np.float32)
    save_labels(tmp_path / "labels" / "a.npz", points, np.ones(2, np.float32), (48, 64), {})
    dataset = PhotoDataset([tmp_path / "images"], [tmp_path / "labels"], 48, 64, views=2)
    sent = pickle.dumps(dataset)
    assert len(sent) < 48 * 64  # bytes of the only picture
    there = pickle.loads(sent)
    assert all(torch.equal(there[3][key], value) for key, value in dataset[3].items())


def test_a_label_of_the_least_score_counts(tmp_path):
    write_picture(tmp_path / "images" / "a.png", gray(100))
    points, scores = np.array([[10, 20], [30, 20], [50, 20]], np.float32), [0.75, 0.5, 0.25]
    save_labels(tmp_path / "labels" / "a.npz", points, np.array(scores), (48, 64), {})
    folders = [tmp_path / "images"], [tmp_path / "labels"]
    dataset = PhotoDataset(*folders, 48, 64, **PLAIN, views=1, threshold=0.5)
    assert positions(dataset[0]["labels"])[:, 0].tolist() == [10, 30]


def test_of_crowding_labels_the_best_is_kept_with_its_probability(tmp_path):
    settings = PLAIN | {"targets": True, "whole_picture": True, "label_radius": 4.0}
    one = PhotoDataset(*uneven_scene(tmp_path), 48, 64, **settings).labelled(0)
    for part in (one, one.whole):
        np.testing.assert_allclose(part.keypoints, [[20, 20], [50, 10], [5, 40]], atol=1e-4)
        np.testing.assert_allclose(part.probabilities, [0.95, 0.75, 0.45], atol=1e-6)


def test_keypoints_that_a_view_loses_take_their_probabilities_along(tmp_path):
    shift = HomographyConfig(perspective=False, scale=False, rotation=False, patch_ratio=0.3)
    ways = PLAIN | {"homography": shift, "enlarge": 2.0, "targets": True, "whole_picture": True}
    folders = uneven_scene(tmp_path)
    known = dict(zip([20, 22, 50, 52, 5], [0.95, 0.15, 0.75, 0.25, 0.45], strict=True))
    dataset, fewer = PhotoDataset(*folders, 48, 64, **ways), set()
    for i in range(12):
        one = dataset.labelled(i)
        back = (one.keypoints - one.whole.window[:2, 2]) / np.diag(one.whole.window)[:2]
        for points, probabilities in (
            (back, one.probabilities),
            (one.whole.keypoints, one.whole.probabilities),
        ):
            expected = [known[round(float(x))] for x in points[:, 0]]
            np.testing.assert_allclose(probabilities, expected, atol=1e-6)
            fewer.add(tuple(expected) != tuple(known.values())[: len(expected)])
    assert fewer == {False, True}
