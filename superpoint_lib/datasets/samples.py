"""One training sample: a labelled picture, turned into one or two augmented views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from superpoint_lib.augmentation import (
    Photometric,
    Warp,
    augment_homographic,
    augment_photometric,
)
from superpoint_lib.geometry import HomographyConfig, warp_points
from superpoint_lib.geometry.cells import CELL_SIZE
from superpoint_lib.losses import (
    cell_validity,
    keypoints_to_labels,
    keypoints_to_targets,
    label_offsets,
)

Sample = dict[str, Tensor]
Homographies = HomographyConfig | Sequence[HomographyConfig]

# Separates the random stream of a sample's augmentation from the one that drew its shapes, which
# is seeded by (seed, index) alone, and from that of the order of pictures (2). Not 0: a seed
# sequence is padded with zeros.
_AUGMENTATION_STREAM = 1


class Whole(NamedTuple):
    """A picture that another one was cut out of: itself (H, W), its keypoints (N, 2) and their
    probabilities (N,) or None, and the transform (3, 3) from its pixels to those of the cut."""

    image: NDArray[Any]
    keypoints: NDArray[np.float32]
    probabilities: NDArray[np.floating] | None
    window: NDArray[np.float64]


class Labelled(NamedTuple):
    """A picture (H, W), float32 in [0, 1] or uint8, its keypoints (N, 2), their probabilities (N,)
    or None, how it is to be warped, the generator that its augmentation draws from; where samples
    differ in it, whether descriptors are to be learnt from it; and what its warp is to be made
    from, if not from itself."""

    image: NDArray[Any]
    keypoints: NDArray[np.float32]
    probabilities: NDArray[np.float32] | None
    homography: Warp
    rng: np.random.Generator
    described: bool | None = None
    whole: Whole | None = None


class Samples(Dataset[Sample]):
    """A dataset of labelled pictures, each turned into views when it is asked for; a base class.

    Attributes:
        photometric: what happens to the gray levels of each view.
        views: 1, or 2 for a picture and its warp.
        border: erosion of the valid area of a warped view, in pixels.
    """

    photometric: Photometric
    views: int
    border: int

    def labelled(self, index: int) -> Labelled:
        """Sample ``index`` before it is augmented."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Sample:
        labelled = self.labelled(index)
        whole = labelled.whole
        sample = make_views(
            _as_float(labelled.image),
            labelled.keypoints,
            self.views,
            self.photometric,
            labelled.homography,
            labelled.rng,
            self.border,
            labelled.probabilities,
            None if whole is None else whole._replace(image=_as_float(whole.image)),
        )
        if labelled.described is not None:
            sample["described"] = torch.tensor(labelled.described)
        return sample


def make_views(
    image: NDArray[np.float32],
    keypoints: NDArray[np.floating],
    views: int,
    photometric: Photometric,
    homography: Warp,
    rng: np.random.Generator,
    border: int = 3,
    probabilities: NDArray[np.floating] | None = None,
    whole: Whole | None = None,
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
        homography: how the warp is drawn, or its homography (3, 3); the "identity" preset turns it
            off.
        rng: source of every random choice.
        border: pixels by which the valid area of a warped view is eroded.
        probabilities: (N,) in [0, 1], how likely each keypoint is to be seen; None for certain
            ones.
        whole: the picture that ``image`` was cut out of, float32 as well, to make the warped view
            from: it then has the detail, and what lies around, that ``image`` has not.

    Returns:
        The sample that ``superpoint_lib.datasets`` describes: labels are int64 in 0..64 (64 is the
        dustbin), ``offsets`` tell where in its pixel a keypoint is, ``valid`` is true for cells
        whose 64 pixels all show the picture, ``H_0to1`` is float32, and ``targets``, there if
        ``probabilities`` are given, are those of ``losses.keypoints_to_targets``.

    Raises:
        ValueError: for other values of ``views`` and sizes that are not multiples of 8.

    Convention: geometry first, gray levels second, so that noise is not smoothed by the warp and
    the unfilled area outside the picture is noisy too; that area is masked by ``valid``. The public
    trainings change gray levels first where there is one view.

    Derived in notebook 05.
    """
    check_view_arguments(image.shape[0], image.shape[1], views)
    cut = Whole(np.asarray(image), np.asarray(keypoints, np.float32), probabilities, np.eye(3))
    source = cut if whole is None else whole
    warped, warped_keypoints, warped_valid, matrix = augment_homographic(
        source.image,
        source.keypoints,
        homography,
        rng,
        border,
        None if whole is None else whole.window,
        image.shape,
    )
    if np.abs(matrix - np.eye(3)).max() < 1e-8:
        # The frame of a picture that was not warped is no artefact: nothing is eroded.
        warped_valid = np.ones_like(warped_valid)
    second = "" if views == 1 else "1"
    seen = {second: (source, matrix @ source.window)}
    sample: Sample = {}
    if views == 2:
        everywhere = np.ones(image.shape, dtype=bool)
        sample = _view(image, keypoints, everywhere, "0", photometric, rng)
        sample["H_0to1"] = torch.from_numpy(np.asarray(matrix, np.float32))
        seen["0"] = cut, cut.window
    sample |= _view(warped, warped_keypoints, warped_valid, second, photometric, rng)
    for suffix, (picture, to_view) in seen.items():
        if picture.probabilities is not None:
            moved = warp_points(np.asarray(picture.keypoints, np.float64), to_view)
            targets = keypoints_to_targets(moved, picture.probabilities, *image.shape)
            sample[f"targets{suffix}"] = torch.from_numpy(targets)
    return sample


def _as_float(image: NDArray[Any]) -> NDArray[np.float32]:
    """A picture in [0, 1], also of bytes."""
    if image.dtype == np.uint8:
        return image.astype(np.float32) / np.float32(255)
    return image


def _view(
    image: NDArray[np.float32],
    keypoints: NDArray[np.floating],
    valid: NDArray[np.bool_],
    suffix: str,
    photometric: Photometric,
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


def in_turn(homography: Homographies, index: int) -> HomographyConfig:
    """How sample ``index`` is warped: by the one way there is, or by several that take turns."""
    if isinstance(homography, HomographyConfig):
        return homography
    return homography[index % len(homography)]


def check_view_arguments(height: int, width: int, views: int) -> None:
    """Raise ``ValueError`` for sizes and numbers of views that no sample can have."""
    if height % CELL_SIZE or width % CELL_SIZE or min(height, width) < CELL_SIZE:
        raise ValueError(f"height and width must be multiples of 8, got {height} x {width}")
    if views not in (1, 2):
        raise ValueError(f"views must be 1 or 2, got {views}")


def augmentation_rng(seed: int, index: int) -> np.random.Generator:
    """What a sample's augmentation draws from; raises ``IndexError`` for a negative index."""
    if index < 0:
        raise IndexError(f"sample indices start at 0 and have no end; got {index}")
    return np.random.default_rng([seed, index, _AUGMENTATION_STREAM])
