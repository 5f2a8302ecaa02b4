"""Photographs that come with the dependencies, and the folders of pictures that names stand for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from superpoint_lib.paths import atomic_path, data_dir, read_gray, runs_dir

Split = Literal["training", "benchmark"]


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
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(BUNDLED_PHOTOS)}")
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
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(BUNDLED_PHOTOS)}")
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
