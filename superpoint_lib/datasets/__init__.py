"""Training samples: drawn shapes and photographs with pseudo-labels, as dictionaries of tensors.

A sample with one view is ``{"image" (1, H, W), "labels" (H/8, W/8), "offsets" (2, H/8, W/8),
"valid" (H/8, W/8)}``, and ``"targets"`` (65, H/8, W/8) where keypoints have probabilities; with two
views it has ``image0``, ``image1`` and so on, and ``H_0to1`` (3, 3). Where photographs and drawn
shapes are mixed, ``"described"`` () is true for photographs. Every dataset is map-style and
unbounded: ``dataset[i]`` depends on the seed and ``i`` alone, for any ``i >= 0``, so a run that
resumes at step t needs to know nothing but t.
"""

from superpoint_lib.datasets.bundled import (
    BUNDLED_PHOTOS,
    Split,
    bundled_photos,
    export_bundled_photos,
    motorcycle_pair,
    resolve_images,
)
from superpoint_lib.datasets.drawn import ShapesDataset
from superpoint_lib.datasets.labels import (
    Labels,
    label_folders,
    load_labels,
    read_label_image,
    save_labels,
)
from superpoint_lib.datasets.mixed import MixedDataset
from superpoint_lib.datasets.photos import PhotoDataset, crop_and_resize
from superpoint_lib.datasets.samples import (
    Homographies,
    Labelled,
    Sample,
    Samples,
    Whole,
    make_views,
)

__all__ = [
    "BUNDLED_PHOTOS",
    "Homographies",
    "Labelled",
    "Labels",
    "MixedDataset",
    "PhotoDataset",
    "Sample",
    "Samples",
    "ShapesDataset",
    "Split",
    "Whole",
    "bundled_photos",
    "crop_and_resize",
    "export_bundled_photos",
    "label_folders",
    "load_labels",
    "make_views",
    "motorcycle_pair",
    "read_label_image",
    "resolve_images",
    "save_labels",
]
