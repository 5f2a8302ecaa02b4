"""Training targets and losses of the detector and of the descriptor.

Everything works on the coarse grid: one cell per 8 x 8 pixels, cell (row, column) centred at pixel
``(8 column + 3.5, 8 row + 3.5)``. Each loss is a mean over the valid cells within an image, then
over the images of the batch, so that several processes agree with one. Images without a valid cell
count as zero. Losses are computed in float32 (float64 if given float64), also under autocast, but
for InfoNCE's products of descriptors.

Derived in notebook 04.
"""

from superpoint_lib.losses.contrast import descriptor_infonce_loss, descriptor_sparse_loss
from superpoint_lib.losses.detector import (
    agreement_loss,
    detector_loss,
    position_loss,
    repeatability_loss,
)
from superpoint_lib.losses.hinge import (
    HINGE_LAMBDAS,
    HINGE_PRESETS,
    HingeConfig,
    descriptor_hinge_loss,
    descriptor_hinge_loss_broadcast,
)
from superpoint_lib.losses.pairs import cell_centers, keypoint_places, positive_pairs
from superpoint_lib.losses.targets import (
    cell_validity,
    keypoints_to_labels,
    keypoints_to_targets,
    label_offsets,
    sharpen_probabilities,
)

__all__ = [
    "HINGE_LAMBDAS",
    "HINGE_PRESETS",
    "HingeConfig",
    "agreement_loss",
    "cell_centers",
    "cell_validity",
    "descriptor_hinge_loss",
    "descriptor_hinge_loss_broadcast",
    "descriptor_infonce_loss",
    "descriptor_sparse_loss",
    "detector_loss",
    "keypoint_places",
    "keypoints_to_labels",
    "keypoints_to_targets",
    "label_offsets",
    "position_loss",
    "positive_pairs",
    "repeatability_loss",
    "sharpen_probabilities",
]
