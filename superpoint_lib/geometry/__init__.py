"""Homographies: how points and pictures move together.

Pixel centres sit at integer coordinates (x right, y down), as in OpenCV. A homography maps the
pixels of a first picture to those of a second, ``x1 ~ H_0to1 x0`` in homogeneous coordinates
(Hartley and Zisserman, *Multiple View Geometry*, section 2.3).

* ``cells``: the grid of the network's heads;
* ``homographies``: points and matrices;
* ``sampling``: random homographies;
* ``pictures``: resizing, cropping, warping, and masks of valid pixels.
"""

from superpoint_lib.geometry.homographies import (
    Array,
    adjugate,
    crop_homography,
    crop_transform,
    homographies_from_corners,
    invert_homographies,
    mean_corner_error,
    resize_transform,
    transform_homography,
    turn_and_zoom,
    warp_points,
)
from superpoint_lib.geometry.pictures import (
    Backend,
    Mode,
    Padding,
    on_pixels,
    resize_and_crop,
    resize_short_side,
    valid_mask,
    warp_batch_with_masks,
    warp_image,
    warp_images,
    warp_with_mask,
)
from superpoint_lib.geometry.sampling import (
    HOMOGRAPHY_PRESETS,
    HomographyConfig,
    sample_homographies,
)

__all__ = [
    "HOMOGRAPHY_PRESETS",
    "Array",
    "Backend",
    "HomographyConfig",
    "Mode",
    "Padding",
    "adjugate",
    "crop_homography",
    "crop_transform",
    "homographies_from_corners",
    "invert_homographies",
    "mean_corner_error",
    "on_pixels",
    "resize_and_crop",
    "resize_short_side",
    "resize_transform",
    "sample_homographies",
    "transform_homography",
    "turn_and_zoom",
    "valid_mask",
    "warp_batch_with_masks",
    "warp_image",
    "warp_images",
    "warp_points",
    "warp_with_mask",
]
