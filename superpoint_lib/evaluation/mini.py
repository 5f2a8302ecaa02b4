"""A small benchmark in the HPatches layout, made from photographs by random homographies.

It is no replacement for HPatches: one photograph warped has no parallax, no second camera and no
second day. It serves where HPatches is not at hand, and shows the same effects within seconds.
Made once, it is read like the real thing::

    sequences = load_sequences(mini_benchmark())

``make_benchmark`` does the same for any photographs and any number of pairs. Derived in
notebook 06.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from superpoint_lib.augmentation import PHOTOMETRIC_PRESETS, PhotometricConfig, augment_photometric
from superpoint_lib.config import to_dict
from superpoint_lib.datasets import bundled_photos, resolve_images
from superpoint_lib.geometry import (
    HOMOGRAPHY_PRESETS,
    HomographyConfig,
    resize_and_crop,
    resize_transform,
    sample_homographies,
    turn_and_zoom,
)
from superpoint_lib.paths import data_dir, list_images, read_gray, runs_dir

Image = NDArray[np.float32]
_SETTINGS = "benchmark.json"
# Raised whenever the same settings would give other pictures, so that old caches are made anew.
_VERSION = 3
# The two motorcycle pictures show one scene: as two sequences they would count it twice.
_SAME_SCENE = ("motorcycle_right",)
# As training on photographs has them, but for salt and pepper, which no change of light makes.
_LIGHT = dataclasses.replace(PHOTOMETRIC_PRESETS["coco_superpoint"], speckle=False)


@dataclass(frozen=True)
class MiniConfig:
    """What a made benchmark looks like.

    Attributes:
        height: Of every image, in pixels.
        width: Of every image, in pixels.
        pairs: Pairs per sequence: images 2 to ``pairs`` + 1, each against image 1.
        illumination: Make an ``i_*`` sequence of each photograph (gray levels change).
        viewpoint: Make a ``v_*`` sequence of each photograph (a homography, and noise).
        homography: The hardest of a sequence's homographies; the k-th pair has k / ``pairs`` of
            its amplitudes, as the images of HPatches are sorted by difficulty.
        zooms: In place of random homographies, one for each pair: how many times as large image 1
            shows the photograph as the other image does, both sharp.
        photometric: How the images of ``i_*`` sequences change.
        noise: Standard deviation of the noise every image gets, in gray levels of 255.
        seed: Of everything random; a sequence depends on it, its name and its photograph alone.
    """

    height: int = 480
    width: int = 640
    pairs: int = 2
    illumination: bool = True
    viewpoint: bool = True
    homography: HomographyConfig = field(
        default_factory=lambda: HomographyConfig(scale_amplitude=0.5, max_angle=np.pi / 4)
    )
    zooms: tuple[float, ...] = ()
    photometric: PhotometricConfig = _LIGHT
    noise: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pairs < 1 or not (self.illumination or self.viewpoint):
            raise ValueError("a benchmark needs at least one pair, and illumination or viewpoint")
        if self.zooms and (len(self.zooms) != self.pairs or min(self.zooms) <= 0):
            raise ValueError(f"zooms are positive, one for each pair, got {self.zooms}")


#: The settings of ``warped_pairs``.
WARPED = MiniConfig(
    height=240,
    width=320,
    homography=HomographyConfig(scale_amplitude=0.5, max_angle=np.pi / 2, angles="normal"),
)

#: Pairs as hard as the last ones of real sequences: out of focus, noisy, or from far away.
HARD = dataclasses.replace(
    WARPED,
    homography=HOMOGRAPHY_PRESETS["any-scale"],
    photometric=dataclasses.replace(PHOTOMETRIC_PRESETS["harsh"], speckle=False),
)

#: Pairs that differ in nothing but zoom. The nearer view has the photograph's own detail, where the
#: zooms of the others enlarge and blur it.
ZOOMED = dataclasses.replace(WARPED, illumination=False, pairs=4, zooms=(1.4, 1.7, 2.0, 2.5))

#: By the name of ``warped_pairs``.
WARPED_KINDS = {"warped": WARPED, "warped-hard": HARD, "warped-zoomed": ZOOMED}


def mini_benchmark(folder: str | Path | None = None, config: MiniConfig | None = None) -> Path:
    """Make the mini benchmark of the bundled photographs set aside for it, or find it made.

    Args:
        folder: Where; ``runs/mini-hpatches`` by default.
        config: Its settings; ``MiniConfig()`` by default.

    Returns:
        The folder, for ``load_sequences``. Nothing is downloaded.

    Raises:
        FileExistsError: The folder holds something else.
    """
    photos = {
        name: photo
        for name, photo in bundled_photos("benchmark").items()
        if name not in _SAME_SCENE
    }
    return make_benchmark(
        runs_dir() / "mini-hpatches" if folder is None else folder, photos, config
    )


def warped_pairs(
    folder: str | Path | None = None, source: str | Path = "auto", kind: str = "warped"
) -> Path:
    """Make pairs to choose between trainings on, many and small, or find them made.

    Two sequences of two pairs from every picture, 240 x 320: gray levels changed, and warped by
    homographies with any rotation up to a right angle and a zoom between two thirds and twice.
    Whoever chooses a setting on HPatches cannot report HPatches as a test any more; these are for
    choosing.

    Args:
        folder: Where; ``runs/warped-pairs/<source>`` by default, of hard ones ``<source>-hard``, of
            zoomed ones ``<source>-zoomed``.
        source: A folder of pictures no network was trained on; "auto" takes ``data/coco/test2017``
            if it is there (306 pictures of it make 1,224 pairs), else the bundled photographs.
        kind: "warped"; "warped-hard": any turn, zooms of up to two and a half both ways,
            foreshortening, blur of up to 3 pixels, and noise of up to 30 gray levels;
            "warped-zoomed": one sequence of four pairs from every picture, which zoom by 1.4 to 2.5
            and do nothing else.

    Returns:
        The folder, for ``load_sequences`` and the protocol ``warped``.

    Raises:
        FileNotFoundError: No such folder of pictures.
        ValueError: An unknown kind, a folder without pictures, or two pictures of one name.
    """
    if kind not in WARPED_KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(WARPED_KINDS)}")
    pictures = resolve_images(source, "benchmark")
    photos: dict[str, Image | Path] = {}
    for path in list_images(pictures):
        name = "_".join(path.relative_to(pictures).with_suffix("").parts)
        if name in photos:
            raise ValueError(f"{photos[name]} and {path} would both be called {name}: rename one")
        if path.stem not in _SAME_SCENE:
            photos[name] = path
    if not photos:
        instead = (
            "remove the folder, and the bundled photographs are taken"
            if source == "auto"
            else "name another folder"
        )
        raise ValueError(f"no pictures in {pictures}: put some there, or {instead}")
    # "." has no name of its own; a link keeps its name.
    name = Path(os.path.abspath(pictures)).name + kind.removeprefix("warped")
    target = runs_dir() / "warped-pairs" / name if folder is None else Path(folder)
    return make_benchmark(target, photos, WARPED_KINDS[kind], progress=True)


def benchmark_folder(source: str | Path = "auto") -> Path:
    """Find the sequences to measure on.

    Args:
        source: A folder in the HPatches layout; "auto": ``data/hpatches`` if it is there, else the
            mini benchmark, made if needed; a name in ``WARPED_KINDS``: ``warped_pairs``.

    Returns:
        The folder, for ``load_sequences``.
    """
    if source in WARPED_KINDS:
        return warped_pairs(kind=str(source))
    if source != "auto":
        return Path(source)
    linked = data_dir() / "hpatches"
    return linked if linked.is_dir() else mini_benchmark()


def make_benchmark(
    folder: str | Path,
    photos: Mapping[str, Image | Path],
    config: MiniConfig | None = None,
    progress: bool = False,
) -> Path:
    """Make a benchmark in the HPatches layout from photographs.

    A benchmark made before with the same settings from the same photographs is kept; one made with
    others is replaced. It appears under its name only when complete.

    Args:
        folder: Where; holds ``i_<name>`` and ``v_<name>``, each with ``1.png`` and so on,
            ``H_1_2`` and so on, and the settings in ``benchmark.json``.
        photos: Name to an image, float32 (H, W) in [0, 1], or to the file of one.
        config: Settings; ``MiniConfig()`` by default. 500 photographs with ``pairs=1`` make 1,000
            pairs.
        progress: Show a progress bar.

    Returns:
        The folder.

    Raises:
        ValueError: No photographs.
        FileExistsError: The folder holds something that was not made here.
        UnreadableImageError: A file that is not an image, by name.
    """
    config = MiniConfig() if config is None else config
    if not photos:
        raise ValueError("a benchmark needs at least one photograph")
    target = Path(folder)
    settings = {
        "version": _VERSION,
        "config": to_dict(config),
        "photos": {name: _fingerprint(photo) for name, photo in photos.items()},
    }
    made = _made_with(target)
    if made == settings:
        return target
    if target.exists() and made is None:
        raise FileExistsError(f"{target} exists and is no benchmark of ours: choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}")
    try:
        for name, photo in tqdm(photos.items(), disable=not progress, unit="photo"):
            _write_sequences(temporary, name, _read(photo), config)
        (temporary / _SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        _move(temporary, target, settings)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _read(photo: Image | Path) -> Image:
    return read_gray(photo) if isinstance(photo, str | Path) else photo


def _fingerprint(photo: Image | Path) -> str:
    if isinstance(photo, str | Path):
        return f"{zlib.crc32(Path(photo).read_bytes()):08x}"
    return f"{zlib.crc32(np.ascontiguousarray(photo).tobytes()):08x}"


def _made_with(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _move(temporary: Path, target: Path, settings: dict[str, Any]) -> None:
    """Put the finished folder in place; another process may have done the same meanwhile."""
    if _made_with(target) == settings:
        return
    outdated = target.with_name(f"{temporary.name}.old")
    try:
        if target.exists():
            target.rename(outdated)
            shutil.rmtree(outdated, ignore_errors=True)
        temporary.rename(target)
    except OSError:
        if _made_with(target) != settings:
            raise


def _write_sequences(root: Path, name: str, photo: Image, config: MiniConfig) -> None:
    kinds = {"i": config.illumination, "v": config.viewpoint}
    for kind in (letter for letter, wanted in kinds.items() if wanted):
        rng = np.random.default_rng([config.seed, zlib.crc32(os.fsencode(f"{kind}_{name}"))])
        homographies = (
            _viewpoints(config, rng)
            if kind == "v"
            else np.broadcast_to(np.eye(3), (config.pairs, 3, 3))
        )
        images = _views(photo, homographies, config)
        if kind == "i":
            images[1:] = [augment_photometric(v, config.photometric, rng) for v in images[1:]]
        folder = root / f"{kind}_{_shortened(name)}"
        folder.mkdir(parents=True)
        for number, image in enumerate(images, start=1):
            noisy = image + rng.normal(0, config.noise / 255, image.shape)
            gray = np.round(np.clip(noisy, 0, 1) * 255).astype(np.uint8)
            (folder / f"{number}.png").write_bytes(cv2.imencode(".png", gray)[1].tobytes())
        for number, H in enumerate(homographies, start=2):
            np.savetxt(folder / f"H_1_{number}", H, fmt="%.12g")


def _shortened(name: str) -> str:
    """A name that a folder can have: what is too long ends in a digest of the whole."""
    encoded = os.fsencode(name)
    if len(encoded) <= 200:
        return name
    return f"{encoded[:180].decode('utf-8', 'ignore')}_{zlib.crc32(encoded):08x}"


def _viewpoints(config: MiniConfig, rng: np.random.Generator) -> NDArray[np.float64]:
    """Homographies (pairs, 3, 3) of growing difficulty, image 1 to image k."""
    if config.zooms:
        scales = 1 / np.array(config.zooms)
        about_middle = np.tile(np.eye(3), (config.pairs, 1, 1))
        about_middle[:, [0, 1], [0, 1]] = scales[:, None]
        middle = np.array([config.width - 1, config.height - 1]) / 2
        about_middle[:, :2, 2] = (1 - scales[:, None]) * middle
        return about_middle
    hardest = config.homography
    levels = [
        dataclasses.replace(
            hardest,
            scale_amplitude=hardest.scale_amplitude * level,
            stretch_amplitude=hardest.stretch_amplitude * level,
            perspective_amplitude_x=hardest.perspective_amplitude_x * level,
            perspective_amplitude_y=hardest.perspective_amplitude_y * level,
            max_angle=hardest.max_angle * level,
        )
        for level in np.arange(1, config.pairs + 1) / config.pairs
    ]
    # Drawn on the square in the middle: on an oblong a rotation would stretch.
    side = min(config.height, config.width)
    drawn = np.concatenate([sample_homographies(1, side, side, level, rng) for level in levels])
    centre = np.eye(3)
    centre[:2, 2] = (config.width - side) / 2, (config.height - side) / 2
    moved = centre @ drawn @ np.linalg.inv(centre)
    return moved / moved[:, 2:, 2:]


def _views(photo: Image, homographies: NDArray[np.float64], config: MiniConfig) -> list[Image]:
    """The reference and one image per homography, each sampled from the photograph itself.

    What lies beyond the photograph is its mirror image: a black frame would be an edge that no
    real picture has. Each pixel is the mean of samples that leave none of the photograph's out, or
    zoomed-out views would be aliased.
    """
    covering = (2 * config.height, 2 * config.width)
    if min(photo.shape[0] / covering[0], photo.shape[1] / covering[1]) > 1:
        photo, _ = resize_and_crop(photo, *covering)
    _, to_reference = resize_and_crop(photo, config.height, config.width)
    size = (config.width, config.height)
    images: list[Image] = []
    for H in (np.eye(3), *homographies):
        to_view = H @ to_reference
        n = _samples(to_view, config.height, config.width)
        fine = cv2.warpPerspective(
            photo,
            resize_transform(n, n) @ to_view,
            (n * config.width, n * config.height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        view = cv2.resize(fine, size, interpolation=cv2.INTER_AREA)
        images.append(np.asarray(view, np.float32))
    return images


def _samples(to_view: NDArray[np.float64], height: int, width: int) -> int:
    """How many samples along the side of a view's pixel: at least two.

    In the middle they lie at most 4/3 of a pixel of the photograph apart, and each covers two.
    """
    _, photo_pixels = turn_and_zoom(np.linalg.inv(to_view), height, width)
    return max(2, math.ceil(0.75 * photo_pixels))
