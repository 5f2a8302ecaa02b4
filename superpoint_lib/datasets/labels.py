"""Label files: the keypoints found in a picture, one ``.npz`` for each."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from superpoint_lib.geometry import on_pixels, resize_and_crop
from superpoint_lib.paths import atomic_path, read_gray


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
    keypoints: ArrayLike,
    keypoint_scores: ArrayLike,
    size: tuple[int, int],
    settings: dict[str, Any],
    probabilities: ArrayLike | None = None,
) -> None:
    """Write a label file (``.npz``), whole or not at all; folders are made as needed.

    Args:
        path: where to.
        keypoints: (N, 2), (x, y) in pixels of the label image.
        keypoint_scores: (N,), best first.
        size: (H, W) of the label image, see ``Labels``.
        settings: plain JSON types.
        probabilities: (N,), see ``Labels``.

    Raises:
        ValueError: for arrays of other shapes, numbers that are not finite, probabilities outside
            0..1 and keypoints outside the label image.
    """
    _check_labels(path, keypoints, keypoint_scores, size, probabilities)
    arrays: dict[str, Any] = {
        "keypoints": np.asarray(keypoints, np.float32),
        "keypoint_scores": np.asarray(keypoint_scores, np.float32),
        "size": np.asarray(size, np.int64),
        "settings": np.asarray(json.dumps(settings, sort_keys=True)),
    }
    if probabilities is not None:
        arrays["probabilities"] = np.asarray(probabilities, np.float32)

    # Given a name, numpy would add an ending of its own.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


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
    except (OSError, KeyError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        # RuntimeError: damage can look like encryption, or like an unknown compression.
        raise ValueError(f"{path} is not a readable label file: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a readable label file: its settings are {settings!r}")
    _check_labels(path, keypoints, scores, (height, width), probabilities)
    return Labels(keypoints, scores, (height, width), settings, probabilities)


def _check_labels(
    path: str | Path,
    keypoints: ArrayLike,
    scores: ArrayLike,
    size: tuple[int, int],
    probabilities: ArrayLike | None,
) -> None:
    keypoints, scores = np.asarray(keypoints), np.asarray(scores)
    likely = scores if probabilities is None else np.asarray(probabilities)
    one_each = scores.shape == likely.shape == keypoints.shape[:1]
    if keypoints.ndim != 2 or keypoints.shape[1] != 2 or not one_each:
        raise ValueError(
            f"{path}: keypoints must be (N, 2) and their scores and probabilities (N,), got "
            f"{keypoints.shape}, {scores.shape} and {likely.shape}"
        )
    if not (np.isfinite(keypoints).all() and np.isfinite(scores).all()):
        raise ValueError(f"{path}: keypoints or scores are not finite")
    if probabilities is not None and not ((likely >= 0) & (likely <= 1)).all():
        raise ValueError(f"{path}: probabilities must be in 0..1")
    if tuple(size) != (0, 0) and len(keypoints) and not on_pixels(keypoints, *size).all():
        raise ValueError(
            f"{path}: keypoints (x, y) outside the image, whose size is given as (height, width) "
            f"{tuple(size)}"
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
    # A soft link has the name that it was given, not that of what it leads to.
    names = [Path(os.path.abspath(folder)).name for folder in image_folders]
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
