"""Training samples: drawn shapes and photographs with pseudo-labels, as dictionaries of tensors.

A sample with one view is ``{"image" (1, H, W), "labels" (H/8, W/8), "valid" (H/8, W/8)}``; with two
views ``{"image0", "labels0", "valid0", "image1", "labels1", "valid1", "H_0to1" (3, 3)}``. Every
dataset is map-style and unbounded: ``dataset[i]`` depends on the seed and ``i`` alone, for any
``i >= 0``, so a run that resumes at step t needs to know nothing but t.
"""

from __future__ import annotations

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
from superpoint_lib.geometry import HOMOGRAPHY_PRESETS, HomographyConfig
from superpoint_lib.losses import cell_validity, keypoints_to_labels
from superpoint_lib.shapes import ShapesConfig, draw_sample

Sample = dict[str, Tensor]

# Separates the random stream of a sample's augmentation from the one that drew its shapes, which
# is seeded by (seed, index) alone. Not 0: a seed sequence is padded with zeros.
_AUGMENTATION_STREAM = 1


def _check_view_arguments(height: int, width: int, views: int) -> None:
    if height % 8 or width % 8 or min(height, width) < 8:
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

    Returns:
        The sample described at the top of this module: labels are int64 in 0..64 (64 is the
        dustbin), ``valid`` is true for cells whose 64 pixels all show the picture, and
        ``H_0to1`` is float32.

    Raises:
        ValueError: for other values of ``views`` and sizes that are not multiples of 8.

    Convention: geometry first, gray levels second, so that noise is not smoothed by the warp and
    the unfilled area outside the picture is noisy too; that area is masked by ``valid``.

    Derived in notebook 05.
    """
    _check_view_arguments(*image.shape, views)
    warped, warped_keypoints, warped_valid, matrix = augment_homographic(
        image, keypoints, homography, rng, border
    )
    if views == 1:
        return _view(warped, warped_keypoints, warped_valid, "", photometric, rng)
    everywhere = np.ones(image.shape, dtype=bool)
    sample = _view(image, keypoints, everywhere, "0", photometric, rng)
    sample |= _view(warped, warped_keypoints, warped_valid, "1", photometric, rng)
    sample["H_0to1"] = torch.from_numpy(np.asarray(matrix, np.float32))
    return sample


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
        homography: random warps; the published synthetic set by default.
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
        homography: HomographyConfig = HOMOGRAPHY_PRESETS["synthetic"],
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

    def __getitem__(self, index: int) -> Sample:
        _check_index(index)
        image, keypoints, _ = draw_sample(index, self.shapes, self.seed)
        rng = np.random.default_rng([self.seed, index, _AUGMENTATION_STREAM])
        return make_views(
            image, keypoints, self.views, self.photometric, self.homography, rng, self.border
        )
