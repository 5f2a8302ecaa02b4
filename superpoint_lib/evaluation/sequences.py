"""Image sequences with known homographies, in folders laid out as HPatches is.

Derived in notebook 06.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from superpoint_lib.geometry import invert_homographies
from superpoint_lib.paths import list_images

Homography = NDArray[np.float64]
Split = Literal["illumination", "viewpoint"]

_SPLITS: dict[str, Split] = {"i": "illumination", "v": "viewpoint"}
_LINK_HINT = (
    "expected one folder per sequence, named i_* or v_*, with images 1 to 6 (any extension OpenCV "
    "reads) and homographies H_1_2 to H_1_6; download HPatches (hpatches-sequences-release, "
    "https://github.com/hpatches/hpatches-dataset) and link it: "
    "ln -s /path/to/hpatches data/hpatches; of pictures of your own "
    "evaluation.mini.warped_pairs(source=folder) makes such folders"
)


@dataclass(frozen=True)
class HPatchesSequence:
    """One scene: a reference image, other images of it, and the homographies between them.

    Attributes:
        name: Folder name, ``i_*`` or ``v_*``.
        image_paths: The reference first.
        homographies: (len(image_paths) - 1, 3, 3) float64, reference pixels to image-k pixels.
    """

    name: str
    image_paths: tuple[Path, ...]
    homographies: NDArray[np.float64]

    @property
    def split(self) -> Split:
        """ "illumination" or "viewpoint", from the name's first letter."""
        return _SPLITS[self.name[0]]


def load_sequences(folder: str | Path) -> list[HPatchesSequence]:
    """Find the sequences of a folder in the HPatches layout.

    Args:
        folder: Holds one folder per sequence, ``i_*`` or ``v_*`` (soft links are followed), each
            with images ``1``, ``2``, ... (any extension OpenCV reads) and text files ``H_1_2``, ...
            HPatches has six images in each.

    Returns:
        The sequences sorted by name. Pictures are not read yet.

    Raises:
        FileNotFoundError: No such folder, no sequence in it, or a file missing: every sequence
            must have as many images as the longest one, and the message names what lacks.
        ValueError: A homography file that is not an invertible 3 x 3 matrix, or a sequence whose
            name begins otherwise, by name.
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}: {_LINK_HINT}")
    found = sorted(p for p in root.iterdir() if p.is_dir())
    folders = [p for p in found if p.name[:2] in ("i_", "v_")]
    others = [p.name for p in found if p not in folders and (p / "H_1_2").is_file()]
    if others:
        raise ValueError(
            f"{root}: {', '.join(others)}: call a sequence i_* where the light changes, "
            "v_* where the view does"
        )
    if not folders:
        raise FileNotFoundError(f"no sequences in {root}: {_LINK_HINT}")
    pictures = {sequence: _numbered_images(sequence) for sequence in folders}
    count = max([2, *(number for found in pictures.values() for number in found)])
    missing = [
        name for sequence in folders for name in _missing(sequence, pictures[sequence], count)
    ]
    if missing:
        raise FileNotFoundError(
            f"{root} lacks {len(missing)} files of sequences with {count} images: "
            f"{', '.join(missing[:10])}{', ...' if len(missing) > 10 else ''}"
        )
    return [_load_sequence(sequence, pictures[sequence], count) for sequence in folders]


def _numbered_images(folder: Path) -> dict[int, Path]:
    """Images by number; of "1.png" and "1.ppm" the first in the alphabet counts."""
    paths = reversed(list_images(folder, recursive=False))
    return {int(path.stem): path for path in paths if path.stem.isdecimal()}


def _missing(folder: Path, found: dict[int, Path], count: int) -> list[str]:
    pictures = [f"{folder.name}/{k}.*" for k in range(1, count + 1) if k not in found]
    matrices = [f"{folder.name}/H_1_{k}" for k in range(2, count + 1)]
    return pictures + [name for name in matrices if not (folder.parent / name).is_file()]


def _load_sequence(folder: Path, found: dict[int, Path], count: int) -> HPatchesSequence:
    homographies = [_read_homography(folder / f"H_1_{k}") for k in range(2, count + 1)]
    paths = tuple(found[k] for k in range(1, count + 1))
    return HPatchesSequence(folder.name, paths, np.stack(homographies))


def _read_homography(path: Path) -> Homography:
    try:
        H = np.loadtxt(path, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{path}: not a text file of numbers ({error})") from error
    if H.shape != (3, 3):
        raise ValueError(f"{path}: a homography has 3 x 3 numbers, this file {H.shape}")
    try:
        invert_homographies(H)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return H
