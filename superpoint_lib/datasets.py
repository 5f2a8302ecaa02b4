"""Training samples: drawn shapes and photographs with pseudo-labels, as dictionaries of tensors.

A sample with one view is ``{"image" (1, H, W), "labels" (H/8, W/8), "offsets" (2, H/8, W/8),
"valid" (H/8, W/8)}``, and ``"targets"`` (65, H/8, W/8) where keypoints have probabilities; with two
views it has ``image0``, ``image1`` and so on, and ``H_0to1`` (3, 3). Where photographs and drawn
shapes are mixed, ``"described"`` () is true for photographs. Every dataset is map-style and
unbounded: ``dataset[i]`` depends on the seed and ``i`` alone, for any ``i >= 0``, so a run that
resumes at step t needs to know nothing but t.
"""

from __future__ import annotations

import importlib.util
import json
import zipfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from superpoint_lib.augmentation import (
    PHOTOMETRIC_PRESETS,
    PhotometricConfig,
    augment_homographic,
    augment_photometric,
)
from superpoint_lib.geometry import (
    HOMOGRAPHY_PRESETS,
    HomographyConfig,
    on_pixels,
    resize_and_crop,
    warp_points,
)
from superpoint_lib.geometry.cells import CELL_SIZE
from superpoint_lib.losses import (
    cell_validity,
    keypoints_to_labels,
    keypoints_to_targets,
    label_offsets,
    sharpen_probabilities,
)
from superpoint_lib.paths import atomic_path, data_dir, list_images, read_gray, runs_dir
from superpoint_lib.shapes import ShapesConfig, draw_sample

Sample = dict[str, Tensor]
Split = Literal["training", "benchmark"]

# Separates the random stream of a sample's augmentation from the one that drew its shapes, which
# is seeded by (seed, index) alone. Not 0: a seed sequence is padded with zeros.
_AUGMENTATION_STREAM = 1
_ORDER_STREAM = 2

_READ_CHUNK = 256


def _check_view_arguments(height: int, width: int, views: int) -> None:
    if height % CELL_SIZE or width % CELL_SIZE or min(height, width) < CELL_SIZE:
        raise ValueError(f"height and width must be multiples of 8, got {height} x {width}")
    if views not in (1, 2):
        raise ValueError(f"views must be 1 or 2, got {views}")


def _check_index(index: int) -> None:
    if index < 0:
        raise IndexError(f"sample indices start at 0 and have no end; got {index}")


def _view(
    image: NDArray[np.float32],
    keypoints: NDArray[np.floating],
    valid: NDArray[np.bool_],
    suffix: str,
    photometric: PhotometricConfig,
    rng: np.random.Generator,
) -> Sample:
    height, width = image.shape
    augmented = augment_photometric(image, photometric, rng)
    labels = keypoints_to_labels(keypoints, height, width, rng)
    return {
        f"image{suffix}": torch.from_numpy(np.ascontiguousarray(augmented, np.float32))[None],
        f"labels{suffix}": torch.from_numpy(labels),
        f"offsets{suffix}": torch.from_numpy(label_offsets(labels, keypoints)),
        f"valid{suffix}": torch.from_numpy(np.asarray(cell_validity(valid))),
    }


def make_views(
    image: NDArray[np.float32],
    keypoints: NDArray[np.floating],
    views: int,
    photometric: PhotometricConfig,
    homography: HomographyConfig,
    rng: np.random.Generator,
    border: int = 3,
    probabilities: NDArray[np.floating] | None = None,
) -> Sample:
    """Turn a labelled picture into a training sample of one or two augmented views.

    One view: the picture is warped by a random homography, then changed photometrically. Two
    views: view 0 is the picture itself, view 1 its warp, and each is changed photometrically on
    its own. The labels of both views come from the same keypoints, so they correspond exactly.

    Args:
        image: (H, W) float32 in [0, 1]; H and W multiples of 8.
        keypoints: (N, 2) as (x, y) in pixels of ``image``; N may be 0.
        views: 1 or 2.
        photometric: what happens to the gray levels.
        homography: how warps are drawn; the "identity" preset turns them off.
        rng: source of every random choice.
        border: pixels by which the valid area of a warped view is eroded.
        probabilities: (N,) in [0, 1], how likely each keypoint is to be seen; None for certain
            ones.

    Returns:
        The sample described at the top of this module: labels are int64 in 0..64 (64 is the
        dustbin), ``offsets`` tell where in its pixel a keypoint is, ``valid`` is true for cells
        whose 64 pixels all show the picture, ``H_0to1`` is float32, and ``targets``, there if
        ``probabilities`` are given, are those of ``losses.keypoints_to_targets``.

    Raises:
        ValueError: for other values of ``views`` and sizes that are not multiples of 8.

    Convention: geometry first, gray levels second, so that noise is not smoothed by the warp and
    the unfilled area outside the picture is noisy too; that area is masked by ``valid``.

    Derived in notebook 05.
    """
    _check_view_arguments(image.shape[0], image.shape[1], views)
    warped, warped_keypoints, warped_valid, matrix = augment_homographic(
        image, keypoints, homography, rng, border
    )
    if np.abs(matrix - np.eye(3)).max() < 1e-8:
        # The frame of a picture that was not warped is no artefact: nothing is eroded.
        warped_valid = np.ones_like(warped_valid)
    if views == 1:
        sample = _view(warped, warped_keypoints, warped_valid, "", photometric, rng)
    else:
        everywhere = np.ones(image.shape, dtype=bool)
        sample = _view(image, keypoints, everywhere, "0", photometric, rng)
        sample |= _view(warped, warped_keypoints, warped_valid, "1", photometric, rng)
        sample["H_0to1"] = torch.from_numpy(np.asarray(matrix, np.float32))
    if probabilities is not None:
        homographies = {"": matrix} if views == 1 else {"0": np.eye(3), "1": matrix}
        for suffix, H in homographies.items():
            moved = warp_points(np.asarray(keypoints, np.float64), H)
            targets = keypoints_to_targets(moved, probabilities, *image.shape)
            sample[f"targets{suffix}"] = torch.from_numpy(targets)
    return sample


class Labelled(NamedTuple):
    """A picture (H, W), float32 in [0, 1] or uint8, its keypoints (N, 2), their probabilities (N,)
    or None, how it is to be warped, the generator that its augmentation draws from, and, where
    samples differ in it, whether descriptors are to be learnt from it."""

    image: NDArray[Any]
    keypoints: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None
    homography: HomographyConfig
    rng: np.random.Generator
    described: bool | None = None


def _views_of(labelled: Labelled, dataset: Samples) -> Sample:
    image = labelled.image
    if image.dtype == np.uint8:
        image = image.astype(np.float32) / np.float32(255)
    sample = make_views(
        image,
        labelled.keypoints,
        dataset.views,
        dataset.photometric,
        labelled.homography,
        labelled.rng,
        dataset.border,
        labelled.probabilities,
    )
    if labelled.described is not None:
        sample["described"] = torch.tensor(labelled.described)
    return sample


Homographies = HomographyConfig | Sequence[HomographyConfig]


def _in_turn(homography: Homographies, index: int) -> HomographyConfig:
    """How sample ``index`` is warped: by the one way there is, or by several that take turns."""
    if isinstance(homography, HomographyConfig):
        return homography
    return homography[index % len(homography)]


class ShapesDataset(Dataset[Sample]):
    """Synthetic shapes, drawn when they are asked for; no picture is ever seen twice.

    ``dataset[i]`` draws sample ``i`` of ``seed``, warps and changes it photometrically, and gives
    the tensors described at the top of the module, the same whatever worker process draws it::

        dataset = ShapesDataset(seed=7)
        dataset[0]["image"]      # (1, 120, 160) float32 in [0, 1]
        dataset[0]["labels"]     # (15, 20) int64, 64 where a cell holds no keypoint

    Published training sets draw once and keep the pictures on disk; drawing on the fly is what the
    paper describes (DeTone et al. 2018, section 4) and costs about a millisecond a sample.

    Args:
        shapes: primitives and sizes; ``height`` and ``width`` must be multiples of 8.
        photometric: gray-level changes; the published synthetic set by default.
        homography: random warps; the published synthetic set by default. Of several, sample i
            takes number i modulo how many there are.
        seed: non-negative.
        views: 1, or 2 for a picture and its warp.
        border: erosion of the valid area of a warped view, in pixels (published: 2 for shapes).

    Raises:
        ValueError: for sizes that are not multiples of 8 and ``views`` other than 1 and 2.
        IndexError: for a negative index.

    Derived in notebook 01.
    """

    def __init__(
        self,
        shapes: ShapesConfig | None = None,
        photometric: PhotometricConfig = PHOTOMETRIC_PRESETS["synthetic"],
        homography: Homographies = HOMOGRAPHY_PRESETS["synthetic"],
        seed: int = 0,
        views: int = 1,
        border: int = 2,
    ) -> None:
        self.shapes = ShapesConfig() if shapes is None else shapes
        _check_view_arguments(self.shapes.height, self.shapes.width, views)
        self.photometric = photometric
        self.homography = homography
        self.seed = seed
        self.views = views
        self.border = border

    def labelled(self, index: int) -> Labelled:
        """Sample ``index`` before it is augmented."""
        _check_index(index)
        image, keypoints, _ = draw_sample(index, self.shapes, self.seed)
        rng = np.random.default_rng([self.seed, index, _AUGMENTATION_STREAM])
        return Labelled(image, keypoints, None, _in_turn(self.homography, index), rng)

    def __getitem__(self, index: int) -> Sample:
        return _views_of(self.labelled(index), self)


# --- label files ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """The keypoints found in one picture, as a label file holds them.

    Attributes:
        keypoints: (N, 2) float32, (x, y) in pixels of the label image; N may be 0.
        keypoint_scores: (N,) float32, best first.
        size: (H, W) of the label image.
        settings: how the labels were made.
        probabilities: (N,) float32 in [0, 1], how likely a look at the picture is to find each
            keypoint (``adaptation.keypoint_probabilities``); None where the file has none.

    Convention: the label image is the picture after ``geometry.resize_and_crop(picture, *size)``,
    which is the picture itself when ``size`` is its own; ``read_label_image`` gives it.
    """

    keypoints: NDArray[np.float32]
    keypoint_scores: NDArray[np.float32]
    size: tuple[int, int]
    settings: dict[str, Any]
    probabilities: NDArray[np.float32] | None = None


def save_labels(
    path: str | Path,
    keypoints: NDArray[np.floating],
    keypoint_scores: NDArray[np.floating],
    size: tuple[int, int],
    settings: dict[str, Any],
    probabilities: NDArray[np.floating] | None = None,
) -> None:
    """Write a label file (``.npz``), whole or not at all; folders are made as needed.

    Args:
        path: where to.
        keypoints: (N, 2), (x, y) in pixels of the label image.
        keypoint_scores: (N,).
        size: (H, W) of the label image, see ``Labels``.
        settings: plain JSON types.
        probabilities: (N,), see ``Labels``.

    Raises:
        ValueError: for arrays of other shapes.
    """
    _check_keypoints(path, keypoints, keypoint_scores)
    arrays: dict[str, Any] = {
        "keypoints": np.asarray(keypoints, np.float32),
        "keypoint_scores": np.asarray(keypoint_scores, np.float32),
        "size": np.asarray(size, np.int64),
        "settings": np.asarray(json.dumps(settings, sort_keys=True)),
    }
    if probabilities is not None:
        _check_keypoints(path, keypoints, probabilities)
        arrays["probabilities"] = np.asarray(probabilities, np.float32)

    with atomic_path(path) as temporary:
        np.savez(temporary, **arrays)


def load_labels(path: str | Path) -> Labels:
    """Read a label file written by ``save_labels``; nothing in it is ever executed.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged or lacks something, named with the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no label file {path}")
    try:
        with np.load(path, allow_pickle=False) as file:
            keypoints, scores = file["keypoints"], file["keypoint_scores"]
            height, width = (int(side) for side in file["size"])
            settings = json.loads(str(file["settings"]))
            probabilities = file.get("probabilities")
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a readable label file: {error}") from error
    _check_keypoints(path, keypoints, scores)
    return Labels(keypoints, scores, (height, width), settings, probabilities)


def _check_keypoints(path: str | Path, keypoints: NDArray[Any], scores: NDArray[Any]) -> None:
    if keypoints.ndim != 2 or keypoints.shape[1] != 2 or scores.shape != keypoints.shape[:1]:
        raise ValueError(
            f"{path}: keypoints must be (N, 2) and their scores (N,), "
            f"got {keypoints.shape} and {scores.shape}"
        )


def label_folders(image_folders: Sequence[str | Path], output: str | Path) -> list[Path]:
    """Return the folder that holds, or is to hold, the labels of each image folder.

    ``output`` itself for one image folder; ``output/<name of the image folder>`` for each of
    several.

    Raises:
        ValueError: when two image folders have the same name.
    """
    if len(image_folders) == 1:
        return [Path(output)]
    names = [Path(folder).resolve().name for folder in image_folders]
    if len(set(names)) < len(names):
        raise ValueError(
            f"image folders need different names to share the label folder {output}: "
            f"{', '.join(map(str, image_folders))}"
        )
    return [Path(output) / name for name in names]


def read_label_image(path: str | Path, size: tuple[int, int]) -> NDArray[np.float32]:
    """Read a picture as its labels see it: gray, resized and cropped to (H, W); (0, 0) keeps it.

    Raises:
        UnreadableImageError: naming the file.
    """
    image = read_gray(path)
    if size not in ((0, 0), image.shape):
        image, _ = resize_and_crop(image, *size)
    return image


# --- photographs ---------------------------------------------------------------------------------


def crop_and_resize(
    image: NDArray[np.uint8],
    keypoints: NDArray[np.float32],
    height: int,
    width: int,
    crop: Literal["random", "centre"],
    rng: np.random.Generator,
    enlarge: float = 1.0,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_]]:
    """Cut a window of the wanted proportions out of a labelled picture and resize it.

    "centre" takes the largest window, in the middle. "random" draws its scale evenly between
    that of the largest window and ``enlarge``, then its place. With 1, the picture's own pixels,
    nothing is enlarged unless the picture is smaller than what is wanted.

    Args:
        image: (H, W) uint8.
        keypoints: (N, 2), (x, y) in pixels of ``image``.
        height, width: size wanted.
        crop: "random" or "centre".
        rng: source of the window; unused for "centre".
        enlarge: largest scale of "random".

    Returns:
        The (height, width) picture, the (M, 2) keypoints that are on it, and (N,) which of the
        given ones they are.

    Convention: a window at (x0, y0) resized by s moves pixel x to s (x - x0 + 0.5) - 0.5. Window
    sides are whole pixels, so that the two scales may differ by less than one pixel in a side.
    """
    cover = max(height / image.shape[0], width / image.shape[1])
    scale = rng.uniform(cover, max(cover, enlarge)) if crop == "random" else cover
    window = np.array([width / scale, height / scale]).round().astype(int)
    room = np.array(image.shape[::-1]) - window
    room, window = room.clip(0), window + room.clip(None, 0)
    x, y = rng.integers(room + 1) if crop == "random" else room // 2
    factor = np.array([width, height]) / window
    # Area averaging is the anti-aliased way down; on the way up it would repeat pixels.
    interpolation = cv2.INTER_AREA if factor.min() < 1 else cv2.INTER_LINEAR
    region = image[y : y + window[1], x : x + window[0]]
    resized = cv2.resize(region, (width, height), interpolation=interpolation)
    moved = ((keypoints - (x, y) + 0.5) * factor - 0.5).astype(np.float32)
    inside = on_pixels(moved, height, width)
    return np.asarray(resized, np.uint8), moved[inside], inside


@dataclass(frozen=True)
class _Picture:
    image: NDArray[np.uint8]
    keypoints: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None


class PhotoDataset(Dataset[Sample]):
    """Photographs with pseudo-labels, cropped, warped and changed anew each time they are seen.

    Pictures come from any number of folders, searched recursively; the labels of
    ``images/a/b.jpg`` are in ``labels/a/b.npz``, as ``adaptation.export_labels`` writes them::

        dataset = PhotoDataset(["data/coco/train2017"], ["runs/labels"], 240, 320)
        dataset[0]["image0"], dataset[0]["image1"]     # (1, 240, 320) each
        dataset[0]["H_0to1"]                           # (3, 3), pixels of image0 to image1

    ``dataset[i]`` takes picture ``i mod n`` of a permutation drawn for each epoch ``i // n``, then
    crops, warps and augments it with random numbers seeded by (seed, i).

    Pictures are decoded once, at the size of their labels, and kept as uint8 while they fit in
    ``cache_bytes``; the rest is decoded at each access. Set it to 0 to start at once.

    Args:
        image_folders: one or more folders of pictures.
        label_folders: one folder for each image folder, or the one ``output`` of an export that
            labelled them all.
        height, width: size of the samples, multiples of 8.
        photometric: gray-level changes, drawn separately for each view.
        homography: the warp between the views (or of the only view). Of several, sample i takes
            number i modulo how many there are.
        seed: non-negative.
        views: 2 for a picture and its warp, or 1.
        crop: "random" or "centre", see ``crop_and_resize``.
        border: erosion of the valid area of a warped view, in pixels.
        cache_bytes: most memory for decoded pictures.
        threshold: least score of a label; those below it do not count.
        targets: give samples ``targets`` too, from the probabilities of the labels.
        enlarge: largest scale of a random crop, see ``crop_and_resize``.
        sharpen: exponent of the probabilities, see ``losses.sharpen_probabilities``.

    Attributes:
        pictures: paths of the pictures in use.
        skipped: (path, reason) of each picture left out: it cannot be read, or has no usable
            labels. A picture beyond the cache that turns out unreadable is replaced by the next
            one and listed when it is met (by the process that met it).

    Raises:
        FileNotFoundError: when a folder does not exist.
        ValueError: when no picture is left, for other sizes and numbers of views, and for lists of
            folders that do not correspond.
        IndexError: for a negative index.

    Derived in notebook 03.
    """

    def __init__(
        self,
        image_folders: Sequence[str | Path],
        label_folders: Sequence[str | Path],
        height: int = 240,
        width: int = 320,
        photometric: PhotometricConfig = PHOTOMETRIC_PRESETS["coco_superpoint"],
        homography: Homographies = HOMOGRAPHY_PRESETS["coco"],
        seed: int = 0,
        views: int = 2,
        crop: Literal["random", "centre"] = "random",
        border: int = 3,
        cache_bytes: int = 1 << 30,
        threshold: float = 0.0,
        targets: bool = False,
        enlarge: float = 1.0,
        sharpen: float = 1.0,
    ) -> None:
        _check_view_arguments(height, width, views)
        self.height = height
        self.width = width
        self.photometric = photometric
        self.homography = homography
        self.seed = seed
        self.views = views
        self.enlarge = enlarge
        self.sharpen = sharpen
        self.crop: Literal["random", "centre"] = crop
        self.border = border
        self.threshold = threshold
        self.targets = targets
        self.skipped: list[tuple[Path, str]] = []
        self._unreadable: set[Path] = set()
        self._labels: dict[Path, Path] = {}
        for images, labels in _paired_folders(image_folders, label_folders):
            self._find_labels(images, labels)
        self._cache = self._fill_cache(cache_bytes)
        self.pictures = list(self._labels)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
        if not self.pictures:
            example = f" ({self.skipped[0][1]})" if self.skipped else ""
            raise ValueError(
                f"none of the pictures in {_join(image_folders)} has usable labels in "
                f"{_join(label_folders)}{example}; make them with homographic adaptation "
                "(notebook 03)"
            )

    def _find_labels(self, images: Path, labels: Path) -> None:
        if not labels.is_dir():
            raise FileNotFoundError(
                f"no label folder {labels}; make it with homographic adaptation (notebook 03)"
            )
        taken: dict[Path, Path] = {}
        for picture in list_images(images):
            label = labels / picture.relative_to(images).with_suffix(".npz")
            if label in taken:
                self.skipped.append((picture, f"{label} holds the labels of {taken[label]}"))
            elif label.is_file():
                self._labels[picture] = label
                taken[label] = picture
            else:
                self.skipped.append((picture, f"no label file {label}"))

    def _fill_cache(self, cache_bytes: int) -> dict[Path, _Picture]:
        """Decode pictures until the cache is full; leave out the ones that cannot be read."""
        cache: dict[Path, _Picture] = {}
        pictures = list(self._labels)
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(pictures) if cache_bytes else 0, _READ_CHUNK):
                chunk = pictures[start : start + _READ_CHUNK]
                for picture, loaded in zip(chunk, pool.map(self._try_load, chunk), strict=True):
                    if loaded is None:
                        del self._labels[picture]
                    else:
                        cache[picture] = loaded
                        cache_bytes -= loaded.image.nbytes + loaded.keypoints.nbytes
                if cache_bytes <= 0:
                    break
        return cache

    def _try_load(self, picture: Path) -> _Picture | None:
        try:
            labels = load_labels(self._labels[picture])
            if self.targets and labels.probabilities is None:
                raise ValueError(
                    f"{self._labels[picture]} has no probabilities: make the labels again with "
                    'homographic adaptation (aggregation "mean"), into another folder'
                )
            image = read_label_image(picture, labels.size)
        except (ValueError, OSError) as error:
            self.skipped.append((picture, str(error)))
            self._unreadable.add(picture)
            return None
        kept = labels.keypoint_scores >= self.threshold
        probabilities = None
        if self.targets and labels.probabilities is not None:
            probabilities = sharpen_probabilities(labels.probabilities[kept], self.sharpen)
        return _Picture(
            (image * 255).round().astype(np.uint8), labels.keypoints[kept], probabilities
        )

    def _picture(self, index: int) -> _Picture:
        epoch, position = divmod(index, len(self.pictures))
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch, _ORDER_STREAM])
            self._order = (epoch, rng.permutation(len(self.pictures)))
        for shift in range(len(self.pictures)):
            picture = self.pictures[self._order[1][(position + shift) % len(self.pictures)]]
            if picture in self._unreadable:
                continue
            loaded = self._cache.get(picture) or self._try_load(picture)
            if loaded is not None:
                return loaded
        raise ValueError(f"none of the {len(self.pictures)} pictures can be read any more")

    def labelled(self, index: int) -> Labelled:
        """Sample ``index`` after cropping, before it is augmented."""
        _check_index(index)
        rng = np.random.default_rng([self.seed, index, _AUGMENTATION_STREAM])
        picture = self._picture(index)
        cropped, keypoints, kept = crop_and_resize(
            picture.image,
            picture.keypoints,
            self.height,
            self.width,
            self.crop,
            rng,
            self.enlarge,
        )
        probabilities = None if picture.probabilities is None else picture.probabilities[kept]
        homography = _in_turn(self.homography, index)
        return Labelled(cropped, keypoints, probabilities, homography, rng)

    def __getitem__(self, index: int) -> Sample:
        return _views_of(self.labelled(index), self)


class MixedDataset(Dataset[Sample]):
    """Photographs with pseudo-labels, and drawn shapes among them.

    What a network learns from photographs alone, it forgets of drawn corners. Every ``every``-th
    sample is drawn here, its keypoints certain, changed in gray levels as the photographs are; the
    others are those of ``photos``. The samples have one more entry, ``"described"`` (), bool: false
    for drawn ones, whose flat parts no descriptor can tell apart.

    Args:
        photos: the photographs; their gray-level changes, views and borders count for all.
        shapes: of the same size.
        every: at least 1.

    Attributes:
        skipped: see ``PhotoDataset``.

    Raises:
        ValueError: for shapes of another size, and ``every`` below 1.
    """

    def __init__(self, photos: PhotoDataset, shapes: ShapesDataset, every: int) -> None:
        sizes = (photos.height, photos.width), (shapes.shapes.height, shapes.shapes.width)
        if sizes[0] != sizes[1]:
            raise ValueError(f"photographs of {sizes[0]} and shapes of {sizes[1]} do not mix")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.photos = photos
        self.shapes = shapes
        self.every = every
        self.photometric = photos.photometric
        self.views = photos.views
        self.border = photos.border
        self.skipped = photos.skipped

    def labelled(self, index: int) -> Labelled:
        """Sample ``index`` before it is augmented; drawn pictures are uint8 like photographs."""
        if index % self.every:
            return self.photos.labelled(index)._replace(described=True)
        drawn = self.shapes.labelled(index // self.every)
        certain = np.ones(len(drawn.keypoints), np.float32) if self.photos.targets else None
        return drawn._replace(
            image=(drawn.image * 255).round().astype(np.uint8),
            probabilities=certain,
            described=False,
        )

    def __getitem__(self, index: int) -> Sample:
        return _views_of(self.labelled(index), self)


Samples = ShapesDataset | PhotoDataset | MixedDataset


def _paired_folders(
    image_folders: Sequence[str | Path], labels: Sequence[str | Path]
) -> list[tuple[Path, Path]]:
    if len(labels) == 1:
        labels = label_folders(image_folders, labels[0])
    if len(image_folders) != len(labels) or not image_folders:
        raise ValueError(
            f"give one label folder for each image folder, or one for all: got "
            f"{len(image_folders)} image folders and {len(labels)} label folders"
        )
    return [(Path(i), Path(j)) for i, j in zip(image_folders, labels, strict=True)]


def _join(paths: Iterable[str | Path]) -> str:
    return ", ".join(map(str, paths))


# --- photographs that come with the dependencies -------------------------------------------------

_SKIMAGE = ("skimage", "data")
_SKLEARN = ("sklearn", "datasets/images")

BUNDLED_PHOTOS: dict[Split, dict[str, tuple[str, str, str]]] = {
    "training": {
        "astronaut": (*_SKIMAGE, "astronaut.png"),
        "brick": (*_SKIMAGE, "brick.png"),
        "chelsea": (*_SKIMAGE, "chelsea.png"),
        "coins": (*_SKIMAGE, "coins.png"),
        "flower": (*_SKLEARN, "flower.jpg"),
        "grass": (*_SKIMAGE, "grass.png"),
        "hubble_deep_field": (*_SKIMAGE, "hubble_deep_field.jpg"),
        "ihc": (*_SKIMAGE, "ihc.png"),
        "moon": (*_SKIMAGE, "moon.png"),
        "retina": (*_SKIMAGE, "retina.jpg"),
        "rocket": (*_SKIMAGE, "rocket.jpg"),
        "text": (*_SKIMAGE, "text.png"),
    },
    "benchmark": {
        "camera": (*_SKIMAGE, "camera.png"),
        "china": (*_SKLEARN, "china.jpg"),
        "coffee": (*_SKIMAGE, "coffee.png"),
        "gravel": (*_SKIMAGE, "gravel.png"),
        "motorcycle_left": (*_SKIMAGE, "motorcycle_left.png"),
        "motorcycle_right": (*_SKIMAGE, "motorcycle_right.png"),
        "page": (*_SKIMAGE, "page.png"),
    },
}
"""Where the photographs inside the scikit-image and scikit-learn wheels are: package, folder, file.

Split once, by name: no network is trained on a picture that it is shown or measured on.
"""


def _bundled_path(package: str, folder: str, file: str) -> Path:
    spec = importlib.util.find_spec(package)
    roots = [] if spec is None else list(spec.submodule_search_locations or [])
    for root in roots:
        path = Path(root) / folder / file
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{file} is not in the installed {package}; install the version pinned by this project"
    )


def _bundled_split(split: Split) -> dict[str, Path]:
    if split not in BUNDLED_PHOTOS:
        raise ValueError(f"unknown split {split!r}; choose one of {_join(BUNDLED_PHOTOS)}")
    return {name: _bundled_path(*where) for name, where in BUNDLED_PHOTOS[split].items()}


def bundled_photos(split: Split) -> dict[str, NDArray[np.float32]]:
    """Return the photographs that come inside the scikit-image and scikit-learn wheels, by name.

    Nothing is downloaded. "training" is for adaptation and training; "benchmark" for the
    quickstart, the mini benchmark and every figure that judges a network. The two share no scene.

    Args:
        split: "training" or "benchmark".

    Returns:
        Name to (H, W) float32 gray picture in [0, 1].

    Raises:
        ValueError: for another split.
        FileNotFoundError: when an installed wheel lacks a picture, naming both.
    """
    return {name: read_gray(path) for name, path in _bundled_split(split).items()}


def motorcycle_pair() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return two photographs of one scene from two viewpoints, left and right.

    A Middlebury 2014 stereo pair (Scharstein et al. 2014) from scikit-image, of the "benchmark"
    split; each (500, 741) float32 in [0, 1].
    """
    left, right = (
        read_gray(_bundled_path(*BUNDLED_PHOTOS["benchmark"][f"motorcycle_{side}"]))
        for side in ("left", "right")
    )
    return left, right


def export_bundled_photos(folder: str | Path, split: Split) -> list[Path]:
    """Write the bundled photographs of a split as gray PNG files; existing files are kept.

    Returns:
        The paths, ``folder/<name>.png``, sorted.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, source in sorted(_bundled_split(split).items()):
        path = folder / f"{name}.png"
        if not path.exists():
            gray = (read_gray(source) * 255).round().astype(np.uint8)
            with atomic_path(path) as temporary:
                temporary.write_bytes(cv2.imencode(".png", gray)[1].tobytes())
        paths.append(path)
    return paths


_AUTO_FOLDERS: dict[Split, str] = {"training": "train2017", "benchmark": "test2017"}


def resolve_images(source: str | Path, split: Split) -> Path:
    """Find the folder of pictures that a notebook's or a profile's ``images`` parameter names.

    Args:
        source: "bundled" for the photographs inside the dependencies (written once to
            ``runs/bundled/<split>``); "auto" for ``data/coco/train2017`` (training) or
            ``data/coco/test2017`` (benchmark) where it exists, else bundled; or a folder.
        split: "training" or "benchmark".

    Raises:
        ValueError: for another split.
        FileNotFoundError: when the folder does not exist, saying how to link data.
    """
    if split not in BUNDLED_PHOTOS:
        raise ValueError(f"unknown split {split!r}; choose one of {_join(BUNDLED_PHOTOS)}")
    if source == "auto":
        linked = data_dir() / "coco" / _AUTO_FOLDERS[split]
        source = linked if linked.is_dir() else "bundled"
    if source == "bundled":
        folder = runs_dir() / "bundled" / split
        export_bundled_photos(folder, split)
        return folder
    if not Path(source).is_dir():
        raise FileNotFoundError(
            f"no folder of pictures {source}; link one (ln -s /path/to/pictures {source}), "
            'or use "bundled" (data/README.md shows the layout)'
        )
    return Path(source)
