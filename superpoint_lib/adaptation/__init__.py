"""Homographic adaptation: let a detector label real pictures by asking it about many warps of each.

A detector trained on drawn shapes misses corners of real pictures that it would find from another
viewpoint. Averaging its answers over random homographies, each answer carried back to the original
picture, keeps what is found from most viewpoints (DeTone et al. 2018, section 5, equation 10)::

    F(I) = 1/N_h  sum_k  H_k^-1 f(H_k I)        with H_1 = identity

Derived in notebook 03.
"""

from superpoint_lib.adaptation.export import ExportReport, export_labels
from superpoint_lib.adaptation.heatmaps import (
    adapt_heatmap,
    adaptation_homographies,
    adapted_keypoints,
    heatmap_keypoints,
    keypoint_probabilities,
)
from superpoint_lib.adaptation.settings import AdaptConfig

__all__ = [
    "AdaptConfig",
    "ExportReport",
    "adapt_heatmap",
    "adaptation_homographies",
    "adapted_keypoints",
    "export_labels",
    "heatmap_keypoints",
    "keypoint_probabilities",
]
