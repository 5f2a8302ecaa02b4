"""Published ways of evaluating on HPatches, as data.

Sizes, suppression, which keypoints take part, RANSAC settings: what makes the figures of different
publications differ although the extractor is the same. Derived in notebook 06.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from superpoint_lib.evaluation.metrics import RansacConfig


@dataclass(frozen=True)
class TaskConfig:
    """How images are prepared and which keypoints take part.

    Attributes:
        resize: "crop": ratio-preserving resize, then a centre crop to height x width;
            "short-side": the shorter side becomes ``height``, nothing is cropped; "none".
        height: Target height in pixels (or the shorter side).
        width: Target width in pixels; unused by "short-side".
        threshold: Smallest keypoint score, for extractors whose scores are probabilities.
        nms: "radius": a keypoint falls if a stronger one lies within ``nms_radius`` (Chebyshev);
            "box": if squares of side ``nms_radius`` around both overlap by more than ``nms_iou``.
        nms_radius: In pixels; 0 turns suppression off.
        nms_iou: Largest intersection over union of two boxes that both stay.
        border: Keypoints of a network within so many pixels of the frame are dropped before the
            best are taken; classical detectors keep theirs.
        extract_keypoints: How many keypoints an extractor returns per image.
        max_keypoints: How many of them take part in a pair.
        shared_first: Keep the points visible in the other image first and the best
            ``max_keypoints`` of those; otherwise the best of all.
    """

    resize: Literal["crop", "short-side", "none"] = "crop"
    height: int = 480
    width: int = 640
    threshold: float = 0.001
    nms: Literal["radius", "box"] = "radius"
    nms_radius: int = 4
    nms_iou: float = 0.1
    border: int = 0
    extract_keypoints: int = 1000
    max_keypoints: int = 1000
    shared_first: bool = True


@dataclass(frozen=True)
class ProtocolConfig:
    """A published way of evaluating on HPatches.

    Attributes:
        detector: Preparation for repeatability and localisation error.
        descriptor: Preparation for everything that needs matches.
        distance: Pixels within which a keypoint is repeated, or a match correct.
        corner_thresholds: epsilons of homography accuracy and AUC, in pixels.
        match_distances: Distances in pixels for the share of correct mutual nearest neighbours.
        ransac: Settings of the homography estimate.
        reference: What makes a match correct for matching score and mAP: the known homography
            within ``distance``, or being an inlier of the estimated one.
        excluded: Names of sequences left out.
    """

    detector: TaskConfig = field(default_factory=TaskConfig)
    descriptor: TaskConfig = field(default_factory=TaskConfig)
    distance: float = 3.0
    corner_thresholds: tuple[float, ...] = (1.0, 3.0, 5.0)
    match_distances: tuple[float, ...] = (1.0, 3.0)
    ransac: RansacConfig = field(default_factory=RansacConfig)
    reference: Literal["ground_truth", "ransac"] = "ground_truth"
    excluded: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics in a record, in the order of the tables."""
        corners = [f"homography@{eps:g}" for eps in self.corner_thresholds]
        areas = [f"auc@{eps:g}" for eps in self.corner_thresholds]
        shares = [f"correct_matches@{distance:g}" for distance in self.match_distances]
        return (
            "repeatability",
            "localization_error",
            *corners,
            *areas,
            *shares,
            "matching_score",
            "average_precision",
        )


def _rpautrat(kind: Literal["radius", "box"]) -> ProtocolConfig:
    return ProtocolConfig(
        detector=TaskConfig(
            height=240,
            width=320,
            nms=kind,
            nms_radius=4,
            extract_keypoints=1000,
            max_keypoints=300,
        ),
        descriptor=TaskConfig(nms=kind, nms_radius=8, extract_keypoints=2000),
    )


_ERIC_TASK = TaskConfig(height=240, width=320, threshold=0.015, border=4, shared_first=False)
_GLUEFACTORY_TASK = TaskConfig(
    resize="short-side",
    threshold=0.0,
    nms_radius=3,
    border=4,
    extract_keypoints=1024,
    max_keypoints=1024,
    shared_first=False,
)
_WARPED_TASK = TaskConfig(height=240, width=320, max_keypoints=300)
# The scenes with images above 1600 pixels that D2-Net (Dusmanu et al., CVPR 2019) left out first.
_LARGE_SCENES = (
    "i_contruction",
    "i_crownnight",
    "i_dc",
    "i_pencils",
    "i_whitebuilding",
    "v_artisans",
    "v_astronautis",
    "v_talent",
)

PROTOCOLS: dict[str, ProtocolConfig] = {
    "rpautrat": _rpautrat("radius"),
    "rpautrat-box": _rpautrat("box"),
    "eric": ProtocolConfig(detector=_ERIC_TASK, descriptor=_ERIC_TASK, reference="ransac"),
    "gluefactory": ProtocolConfig(
        detector=_GLUEFACTORY_TASK,
        descriptor=_GLUEFACTORY_TASK,
        ransac=RansacConfig(threshold=0.5, iterations=3000),
        excluded=_LARGE_SCENES,
    ),
    "warped": ProtocolConfig(detector=_WARPED_TASK, descriptor=_WARPED_TASK),
}
"""Protocols by name. The choices are the publications', but for the last; their slips are not
repeated.

* ``rpautrat``: github.com/rpautrat/SuperPoint. Detector at 240x320, NMS 4, 300 points; descriptors
  at 480x640, NMS 8, 1000 points; keypoints seen by both images first. They are chosen from 1000 and
  2000 here; its stored configurations, which changed over time, extract 300 to 1000. Its NMS is by
  boxes: ``rpautrat-box`` is that, ``rpautrat`` the same with the usual radius. It reports no
  localisation error, matching score or mAP.
* ``eric``: github.com/eric-yyjau/pytorch-superpoint. All at 240x320, 1000 points, RANSAC inliers as
  the reference of matching score and mAP. Each image's own resize is followed exactly, where the
  original scales both homography sides by image 1's factor; crops are from the middle, where the
  original's begin top left; and the best 1000 are taken before, not after those that are seen by
  both, which touches classical detectors only.
* ``gluefactory``: github.com/cvg/glue-factory, its OpenCV estimator. Shorter side 480, 1024
  points, RANSAC at 0.5 px (its setting for Magic Leap's weights), eight large scenes left out. Its
  detectors run on the same images. It reports AUC, and medians of the share of right matches, whose
  errors it takes in both directions; here they are means of one direction.
* ``warped``: ours, for choosing on many small pairs (``mini.warped_pairs``): detector and
  descriptors at 240x320, NMS 4, 300 points.

No preset rounds coordinates: sub-pixel keypoints stay as the extractor gave them. All shrink
pictures by area averaging. rpautrat/SuperPoint interpolates bilinearly, at the price of aliasing
and of some repeatability; glue-factory does so with anti-aliasing. The first also suppresses SIFT
and ORB, and suppresses Harris' response itself, not its local maxima. Here SIFT and ORB keep all
they find, clusters included; local maxima of Harris and Shi-Tomasi and the corners of FAST are
suppressed as a network's points are. In ``eric`` the matching score counts the keypoints that both
images can see, where the original counts all of the first image's; its mAP leaves out no match for
the distance of its descriptors.
"""


def protocol_config(protocol: str | ProtocolConfig) -> ProtocolConfig:
    """The protocol of that name; a configuration is its own.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(protocol, ProtocolConfig):
        return protocol
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]
