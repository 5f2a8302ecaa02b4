"""Samples of photographs with pseudo-labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from superpoint_lib.augmentation import (
    PHOTOMETRIC_PRESETS,
    Photometric,
    Warp,
    draw_homography,
)
from superpoint_lib.datasets.labels import label_folders, load_labels, read_label_image
from superpoint_lib.datasets.samples import (
    Homographies,
    Labelled,
    Samples,
    Whole,
    augmentation_rng,
    check_view_arguments,
    in_turn,
)
from superpoint_lib.extraction import box_nms
from superpoint_lib.geometry import (
    HOMOGRAPHY_PRESETS,
    crop_transform,
    on_pixels,
    resize_transform,
    turn_and_zoom,
    warp_points,
)
from superpoint_lib.losses import sharpen_probabilities
from superpoint_lib.paths import list_images

_ORDER_STREAM = 2  # another than that of the augmentation, in samples.py
_READ_CHUNK = 256


def crop_and_resize(
    image: NDArray[np.uint8],
    height: int,
    width: int,
    crop: Literal["random", "centre"],
    rng: np.random.Generator,
    enlarge: float = 1.0,
    zoom: float = 1.0,
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Cut a window of the wanted proportions out of a picture and resize it.

    "centre" takes the largest window, in the middle. "random" draws its scale evenly between
    that of the largest window and ``enlarge``, then its place. With 1, the picture's own pixels,
    nothing is enlarged unless the picture is smaller than what is wanted.

    Args:
        image: (H, W) uint8.
        height, width: size wanted.
        crop: "random" or "centre".
        rng: source of the window; unused for "centre".
        enlarge: largest scale of "random".
        zoom: of a second view against this one. "random" does not enlarge that one beyond the limit
            either, as far as the largest window allows; a farther one may be as small as it gets.

    Returns:
        The (height, width) picture, and the transform (3, 3) from pixels of ``image`` to its own.

    Convention: a window at (x0, y0) resized by s moves pixel x to s (x - x0 + 0.5) - 0.5. Window
    sides are whole pixels, so that the two scales may differ by less than one pixel in a side.
    """
    cover = max(height / image.shape[0], width / image.shape[1])
    most = max(cover, min(enlarge, enlarge / zoom))
    scale = rng.uniform(cover, most) if crop == "random" else cover
    window = np.array([width / scale, height / scale]).round().astype(int).clip(1)
    room = np.array(image.shape[::-1]) - window
    room, window = room.clip(0), window + room.clip(None, 0)
    x, y = rng.integers(room + 1) if crop == "random" else room // 2
    factor = np.array([width, height]) / window
    # Area averaging is the anti-aliased way down; on the way up it would repeat pixels.
    interpolation = cv2.INTER_AREA if factor.min() < 1 else cv2.INTER_LINEAR
    region = image[y : y + window[1], x : x + window[0]]
    resized = cv2.resize(region, (width, height), interpolation=interpolation)
    return np.asarray(resized, np.uint8), resize_transform(*factor) @ crop_transform(x, y)


@dataclass(frozen=True)
class _Picture:
    image: NDArray[np.uint8]
    keypoints: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None


class PhotoDataset(Samples):
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
        whole_picture: make the warped view from the whole picture, with the detail that the crop
            has lost and what lies beyond it, instead of from the crop, whose scale minds the zoom
            of the warp, see ``crop_and_resize``.
        label_radius: of labels nearer to each other than that in a view, in its pixels along x and
            y, the best is kept: where a picture is made smaller, they crowd. Of the warped view
            only with ``whole_picture``. 0 keeps all.

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
        photometric: Photometric = PHOTOMETRIC_PRESETS["coco_superpoint"],
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
        whole_picture: bool = False,
        label_radius: float = 0.0,
    ) -> None:
        check_view_arguments(height, width, views)
        self.height = height
        self.width = width
        self.photometric = photometric
        self.homography = homography
        self.seed = seed
        self.views = views
        self.enlarge = enlarge
        self.sharpen = sharpen
        self.whole_picture = whole_picture
        self.label_radius = label_radius
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
                "(notebook 03), or write your own with save_labels"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Without the decoded pictures: workers that are not forked would each hold a copy."""
        return self.__dict__ | {"_cache": {}}

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
                for picture, loaded in zip(chunk, pool.map(self._load, chunk), strict=True):
                    if isinstance(loaded, str):
                        self.skipped.append((picture, loaded))
                        del self._labels[picture]
                    elif cache_bytes > 0:
                        cache[picture] = loaded
                        cache_bytes -= loaded.image.nbytes + loaded.keypoints.nbytes
                if cache_bytes <= 0:
                    break
        return cache

    def _load(self, picture: Path) -> _Picture | str:
        """The picture with its labels, or the reason why there is none."""
        try:
            labels = load_labels(self._labels[picture])
            if self.targets and labels.probabilities is None:
                raise ValueError(
                    f"{self._labels[picture]} has no probabilities: make the labels again with "
                    'homographic adaptation (aggregation "mean"), into another folder'
                )
            image = read_label_image(picture, labels.size)
        except (ValueError, OSError) as error:
            return str(error)
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
            loaded = self._cache.get(picture) or self._load(picture)
            if not isinstance(loaded, str):
                return loaded
            self.skipped.append((picture, loaded))
            self._unreadable.add(picture)
        raise ValueError(f"none of the {len(self.pictures)} pictures can be read any more")

    def labelled(self, index: int) -> Labelled:
        """Sample ``index`` after cropping, before it is augmented."""
        rng = augmentation_rng(self.seed, index)
        picture = self._picture(index)
        homography: Warp = in_turn(self.homography, index)
        zoom = 1.0
        if self.whole_picture:
            homography = draw_homography(homography, self.height, self.width, rng)
            zoom = turn_and_zoom(homography, self.height, self.width)[1]
        cropped, window = crop_and_resize(
            picture.image, self.height, self.width, self.crop, rng, self.enlarge, zoom
        )
        moved = _moved(picture, window)
        kept = self._seen(moved)
        probabilities = None if picture.probabilities is None else picture.probabilities[kept]
        whole = None
        if self.whole_picture:
            # Beyond the view's end, too: the pixels there take a part of a probability.
            far = self._seen(_moved(picture, np.asarray(homography) @ window), margin=1)
            source = picture.probabilities
            whole = Whole(
                picture.image,
                picture.keypoints[far],
                None if source is None else source[far],
                window,
            )
        return Labelled(cropped, moved[kept], probabilities, homography, rng, whole=whole)

    def _seen(self, keypoints: NDArray[np.float32], margin: int = 0) -> NDArray[np.int64]:
        """Which of (N, 2) keypoints, best first, a view or ``margin`` pixels around it has."""
        frame = self.height + 2 * margin, self.width + 2 * margin
        seen = np.flatnonzero(on_pixels(keypoints + margin, *frame))
        if self.label_radius:
            ranks = torch.arange(len(seen), 0, -1)
            kept = box_nms(torch.from_numpy(keypoints[seen]), ranks, self.label_radius, iou=0.0)
            seen = seen[kept.numpy()]
        return seen


def _moved(picture: _Picture, matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    return warp_points(picture.keypoints.astype(np.float64), matrix).astype(np.float32)


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
