"""Samples of synthetic shapes, drawn when they are asked for."""

from __future__ import annotations

from superpoint_lib.augmentation import PHOTOMETRIC_PRESETS, Photometric
from superpoint_lib.datasets.samples import (
    Homographies,
    Labelled,
    Samples,
    augmentation_rng,
    check_view_arguments,
    in_turn,
)
from superpoint_lib.geometry import HOMOGRAPHY_PRESETS
from superpoint_lib.shapes import ShapesConfig, draw_sample


class ShapesDataset(Samples):
    """Synthetic shapes, drawn when they are asked for; no picture is ever seen twice.

    ``dataset[i]`` draws sample ``i`` of ``seed``, warps and changes it photometrically, and gives
    the tensors that ``superpoint_lib.datasets`` describes, the same whatever process draws it::

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
        photometric: Photometric = PHOTOMETRIC_PRESETS["synthetic"],
        homography: Homographies = HOMOGRAPHY_PRESETS["synthetic"],
        seed: int = 0,
        views: int = 1,
        border: int = 2,
    ) -> None:
        self.shapes = ShapesConfig() if shapes is None else shapes
        check_view_arguments(self.shapes.height, self.shapes.width, views)
        self.photometric = photometric
        self.homography = homography
        self.seed = seed
        self.views = views
        self.border = border

    def labelled(self, index: int) -> Labelled:
        """Sample ``index`` before it is augmented."""
        rng = augmentation_rng(self.seed, index)
        image, keypoints, _ = draw_sample(index, self.shapes, self.seed)
        return Labelled(image, keypoints, None, in_turn(self.homography, index), rng)
