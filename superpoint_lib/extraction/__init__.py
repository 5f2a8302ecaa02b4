"""From the network's maps to keypoints, descriptors and matches.

Decoding, non-maximum suppression, sub-pixel refinement, descriptor sampling and matching: functions
of tensors, on whatever device those are, and none of them ever runs inside training.
"""

from superpoint_lib.extraction.descriptors import match, sample_descriptors
from superpoint_lib.extraction.features import FeatureArrays, Features, HasDescriptors
from superpoint_lib.extraction.images import MIN_IMAGE_SIZE, prepare_images
from superpoint_lib.extraction.inference import extract, extract_from_maps, network_maps
from superpoint_lib.extraction.keypoints import (
    decode_heatmap,
    find_keypoints,
    refuse_fractions,
    soft_argmax,
)
from superpoint_lib.extraction.suppression import box_nms, nms

__all__ = [
    "MIN_IMAGE_SIZE",
    "FeatureArrays",
    "Features",
    "HasDescriptors",
    "box_nms",
    "decode_heatmap",
    "extract",
    "extract_from_maps",
    "find_keypoints",
    "match",
    "network_maps",
    "nms",
    "prepare_images",
    "refuse_fractions",
    "sample_descriptors",
    "soft_argmax",
]
