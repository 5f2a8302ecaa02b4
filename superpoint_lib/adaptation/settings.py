"""What homographic adaptation does to which pictures.

Of the published defaults, 100 warps, the mean, the threshold and the border are those of
rpautrat/SuperPoint, 600 keypoints, sub-pixels and the radius those of pytorch-superpoint. Unlike
both, keypoints within the border of the picture's own end are kept, where the picture as it is
counts, and few warps beside it. (The first divides by the warps that the border leaves out, too, so
that nothing is left there; the second drops what lies within 4 pixels.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from superpoint_lib.extraction import MIN_IMAGE_SIZE
from superpoint_lib.geometry import HOMOGRAPHY_PRESETS
from superpoint_lib.geometry.cells import CELL_SIZE
from superpoint_lib.model import Precision


@dataclass(frozen=True)
class AdaptConfig:
    """Label pictures by homographic adaptation; the defaults are published values.

    Attributes:
        weights: bundled name or path of a MagicPoint or SuperPoint; a second round of adaptation
            is the same export with the weights trained on the first round's labels.
        images: folders of pictures, searched recursively.
        output: where the labels go: ``output/<relative stem>.npz`` for one folder, and
            ``output/<folder name>/<relative stem>.npz`` for several.
        limit: label at most so many pictures, spread evenly over all of them; 0 labels all.
        warps: homographies for each picture, the identity included.
        aggregation: "mean" of the responses of the warps that see a pixel, or their "max", whose
            labels have no probabilities.
        threshold: least aggregated response of a keypoint, in [0, 1].
        nms_radius: radius of non-maximum suppression, in pixels.
        top_k: most keypoints for a picture, best first; 0 keeps all.
        border: pixels near the end of the picture or of a warped frame that do not count.
        filter_counts: pixels seen by fewer warps than this give no keypoint.
        height: of the pictures that are labelled, a multiple of 8: ratio-preserving resize and
            centre crop; 0 and 0 leave each picture as it is.
        width: likewise.
        homography: name of the homography preset.
        sizes: the warps take these in turn: a warped picture is so many times as large as the
            picture, on whose pixels the labels are in any case. A network sees where a corner is
            more exactly in an enlarged picture (notebook 06, two sizes that must agree).
        agree: look at every warp at each of the ``sizes``, not in turn, and take the geometric mean
            of the responses: a pixel counts where all sizes see a keypoint. Costs as many looks as
            there are sizes.
        share_warps: one set of homographies for all pictures instead of one for each. The masks
            and counts are then computed once for a batch; the price is that whatever the
            set favours (a missing rotation, say) is the same in every label.
        batch: images in one forward, over pictures and warps together; 0 takes 4 on a CPU (more
            leave its cache) and 128 on a GPU.
        subpixel: refine keypoints by a soft-argmax over the aggregated response.
        device: cpu, cuda, mps and so on; "auto" is the CUDA GPU where there is one, else the
            processor.
        precision: "bf16" autocast, "float32", or "auto": bfloat16 where that is faster.
        seed: seeds the homographies, together with each picture's relative path.
    """

    weights: str = "magicpoint-synthetic"
    images: tuple[str, ...] = ()
    output: str = "runs/labels"
    limit: int = 0
    warps: int = 100
    aggregation: Literal["mean", "max"] = "mean"
    threshold: float = 0.015
    nms_radius: int = 4
    top_k: int = 600
    border: int = 3
    filter_counts: int = 0
    height: int = 240
    width: int = 320
    homography: str = "adaptation"
    sizes: tuple[float, ...] = (1.0,)
    agree: bool = False
    share_warps: bool = False
    batch: int = 0
    subpixel: bool = True
    device: str = "auto"
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.warps < 1:
            raise ValueError(f"warps must be at least 1, got {self.warps}")
        for key in ("batch", "border", "limit", "nms_radius", "seed", "threshold", "top_k"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")
        if (
            self.height % CELL_SIZE
            or self.width % CELL_SIZE
            or (self.height == 0) != (self.width == 0)
        ):
            raise ValueError(
                "height and width must be multiples of 8, or both 0 for native sizes; "
                f"got {self.height} x {self.width}"
            )
        if not 0 <= self.filter_counts <= self.warps:
            raise ValueError(
                f"filter_counts must be between 0 and warps, got {self.filter_counts} of "
                f"{self.warps}: no pixel is seen by more"
            )
        if not self.threshold <= 1:
            raise ValueError(f"threshold must be in 0..1, got {self.threshold}")
        if not self.sizes or not all(0 < size < math.inf for size in self.sizes):
            raise ValueError(f"sizes must be positive and finite, at least one, got {self.sizes}")
        side = min(self.height, self.width)
        if side and round(side * min(self.sizes)) < MIN_IMAGE_SIZE:
            raise ValueError(
                f"sizes must leave pictures of {MIN_IMAGE_SIZE} px or more, got {self.sizes} for "
                f"{self.height} x {self.width}"
            )
        if self.homography not in HOMOGRAPHY_PRESETS:
            raise ValueError(
                f"unknown homography preset {self.homography!r}; "
                f"choose one of {', '.join(sorted(HOMOGRAPHY_PRESETS))}"
            )
