"""What can take part in an evaluation: functions from an image and a task to ``Features``.

Networks, OpenCV's methods (``classical``), points drawn at random, and any of them with its matches
refined. Derived in notebook 06.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from superpoint_lib.evaluation.protocols import TaskConfig
from superpoint_lib.extraction import (
    FeatureArrays,
    Features,
    box_nms,
    decode_heatmap,
    extract_from_maps,
    network_maps,
    nms,
    sample_descriptors,
    soft_argmax,
)
from superpoint_lib.model import Precision
from superpoint_lib.multiscale import extract_multiscale

Image = NDArray[np.float32]
Extractor = Callable[[Image, TaskConfig], Features]

_RANDOM_KEYPOINTS = 10_000


def superpoint_extractor(
    model: torch.nn.Module,
    subpixel: bool = True,
    precision: Precision = "float32",
    scales: Sequence[float] = (1.0,),
    turned: bool = False,
    pyramid: Sequence[float] = (),
) -> Extractor:
    """Let a ``SuperPoint`` or ``MagicPoint`` take part, its knobs set by the protocol.

    Args:
        model: In the mode (train or eval) it should be measured in.
        subpixel: Refine keypoints by a soft-argmax, after suppression.
        precision: As in ``extract``; float32 by default, so that figures are the same everywhere.
        scales: More than one: as in ``extract_multiscale``.
        turned: As in ``extract_multiscale``.
        pyramid: As in ``extract_multiscale``.

    Returns:
        An ``Extractor``; a ``MagicPoint`` gives no descriptors. With several looks at an image it
        refuses protocols that suppress by boxes, with a ``ValueError``.
    """

    looks: dict[str, Any] = {"scales": scales, "turned": turned, "pyramid": pyramid}

    def extractor(image: Image, task: TaskConfig) -> Features:
        knobs: dict[str, Any] = {
            "max_keypoints": task.extract_keypoints,
            "threshold": task.threshold,
            "nms_radius": task.nms_radius,
            "border": task.border,
            "subpixel": subpixel,
            "precision": precision,
        }
        if task.nms == "box":
            if turned or pyramid or tuple(scales) != (1.0,):
                raise ValueError("suppression by boxes is for one look: choose another protocol")
            return _extract_with_boxes(model, image, task, subpixel, precision)
        return cast(Features, extract_multiscale(model, image, **looks, **knobs))

    return extractor


@torch.no_grad()
def _extract_with_boxes(
    model: torch.nn.Module, image: Image, task: TaskConfig, subpixel: bool, precision: Precision
) -> Features:
    maps, computed_in = network_maps(model, torch.from_numpy(image)[None, None], precision)
    # Descriptors are sampled after suppression: before it every pixel is a candidate.
    candidates = extract_from_maps(
        {"logits": maps["logits"]},
        [image.shape],
        max_keypoints=image.size,
        threshold=task.threshold,
        nms_radius=0,
        subpixel=False,
    )[0]
    survivors = _suppress(_best_first(candidates), task)
    last = survivors.keypoints.new_tensor(image.shape[::-1]) - 1 - task.border
    inside = (survivors.keypoints >= task.border) & (survivors.keypoints <= last)
    kept = take(take(survivors, inside.all(1)), slice(task.extract_keypoints))
    keypoints = kept.keypoints
    if subpixel:
        height, width = image.shape  # of the maps' padding nothing counts
        heatmap = decode_heatmap(maps["logits"])[0, :height, :width]
        keypoints = soft_argmax(heatmap, keypoints)
    descriptors = (
        sample_descriptors(maps["descriptors"][0], keypoints) if "descriptors" in maps else None
    )
    return Features(keypoints, kept.keypoint_scores, descriptors, kept.image_size, computed_in)


@dataclass(frozen=True)
class Refined:
    """An extractor whose matches are refined in both images (``refine_matches``).

    Unconfirmed matches are left out, and the others measured where they lie then; of its detector
    nothing changes. The rough homography is RANSAC's from all matches (``refine_by_ransac``).
    """

    extractor: Extractor

    def __call__(self, image: Image, task: TaskConfig) -> Features:
        """What the extractor finds."""
        return self.extractor(image, task)


def plain_extractor(function: Callable[[Image], Features], suppress: bool = False) -> Extractor:
    """Let any ``image -> Features`` function take part, such as OpenCV's extractors.

    Its best ``extract_keypoints`` keypoints count, coordinates as they are. The score threshold,
    which is meant for probabilities, does not apply.

    Args:
        function: Takes an image float32 (H, W) in [0, 1] and returns ``Features``.
        suppress: Put the protocol's NMS after it, for a detector without NMS of its own. Not for
            SIFT or ORB, which search scale space: one place may hold keypoints of several scales.

    Returns:
        An ``Extractor``.
    """

    def extractor(image: Image, task: TaskConfig) -> Features:
        features = _best_first(checked(function(image), image))
        return take(
            _suppress(features, task) if suppress else features, slice(task.extract_keypoints)
        )

    return extractor


def random_extractor(seed: int = 0) -> Extractor:
    """Keypoints drawn evenly over the image: the floor every detector has to beat.

    Each image has its own 10,000 points, which depend on its pixels and the seed alone, before the
    protocol's suppression.

    Args:
        seed: Non-negative.

    Returns:
        An ``Extractor`` without descriptors.
    """

    def draw(image: Image) -> Features:
        rng = np.random.default_rng([seed, zlib.crc32(np.ascontiguousarray(image).tobytes())])
        height, width = image.shape
        points = rng.uniform([0, 0], [width - 1, height - 1], size=(_RANDOM_KEYPOINTS, 2))
        scores = torch.from_numpy(rng.random(_RANDOM_KEYPOINTS).astype(np.float32))
        return Features(torch.from_numpy(points.astype(np.float32)), scores, None, (height, width))

    return plain_extractor(draw, suppress=True)


def checked(found: Features | FeatureArrays, image: Image) -> Features:
    """What an extractor found in an image, as tensors.

    Raises:
        ValueError: Not one score and one descriptor for each keypoint, or features of an image of
            another size.
    """
    keypoints, scores = torch.as_tensor(found.keypoints), torch.as_tensor(found.keypoint_scores)
    descriptors = None if found.descriptors is None else torch.as_tensor(found.descriptors)
    counts = [len(part) for part in (keypoints, scores, descriptors) if part is not None]
    if len(set(counts)) > 1:
        raise ValueError(
            "an extractor must give one score, and one descriptor or None, for each keypoint; it "
            f"gave {', '.join(map(str, counts))} keypoints, scores, descriptors"
        )
    if tuple(found.image_size) != image.shape:
        raise ValueError(
            f"the extractor was given an image of {image.shape} and returned features of one "
            f"of {tuple(found.image_size)}"
        )
    return Features(keypoints, scores, descriptors, found.image_size, found.computed_in)


def _best_first(features: Features) -> Features:
    order = torch.argsort(features.keypoint_scores, descending=True, stable=True)
    return take(features, order)


def _suppress(features: Features, task: TaskConfig) -> Features:
    """The protocol's NMS on features sorted best first, which they stay."""
    if task.nms_radius == 0 or len(features) == 0:
        return features
    if task.nms == "box":
        kept = box_nms(features.keypoints, features.keypoint_scores, task.nms_radius, task.nms_iou)
        return take(features, kept)
    return take(features, _radius_survivors(features, task.nms_radius))


def _radius_survivors(features: Features, radius: int) -> torch.Tensor:
    """Indices of the keypoints, sorted best first, that survive; distances between whole pixels."""
    height, width = features.image_size
    pixels = features.keypoints.round().long()
    x, y = pixels[:, 0].clamp(0, width - 1), pixels[:, 1].clamp(0, height - 1)
    flat = y * width + x
    # Ranks instead of scores: positive, without ties, and exact in float32.
    ranks = torch.arange(len(features), 0, -1, dtype=torch.float32, device=flat.device)
    heatmap = torch.zeros(height * width, device=flat.device)
    heatmap.scatter_reduce_(0, flat, ranks, "amax")
    survivors = nms(heatmap.reshape(1, height, width), radius).flatten()
    return torch.nonzero(survivors[flat] == ranks).flatten()


def take(features: Features, index: torch.Tensor | slice) -> Features:
    """Some of the keypoints, with their scores and descriptors."""
    descriptors = None if features.descriptors is None else features.descriptors[index]
    return dataclasses.replace(
        features,
        keypoints=features.keypoints[index],
        keypoint_scores=features.keypoint_scores[index],
        descriptors=descriptors,
    )
