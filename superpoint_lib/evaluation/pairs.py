"""One pair of images: what is found in both, what of it matches, and how well.

Derived in notebook 06.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from superpoint_lib.evaluation import metrics
from superpoint_lib.evaluation.extractors import Extractor, Image, Refined, checked, take
from superpoint_lib.evaluation.protocols import (
    ProtocolConfig,
    TaskConfig,
    protocol_config,
)
from superpoint_lib.evaluation.results import Record
from superpoint_lib.evaluation.sequences import Homography, HPatchesSequence
from superpoint_lib.extraction import Features, match
from superpoint_lib.geometry import (
    invert_homographies,
    mean_corner_error,
    resize_and_crop,
    resize_short_side,
    transform_homography,
    turn_and_zoom,
)
from superpoint_lib.paths import read_gray
from superpoint_lib.refinement import refine_matches


@dataclass(frozen=True)
class View:
    """An image as the protocol prepares it, with what an extractor found there.

    Attributes:
        image: float32 (H, W) in [0, 1].
        transform: (3, 3), pixels of the file to pixels of ``image``.
        features: All keypoints of the image, best first.
    """

    image: Image
    transform: Homography
    features: Features


@dataclass(frozen=True)
class MatchedPair:
    """Everything the descriptor metrics of a pair are made of, ready to be drawn.

    Attributes:
        image0: The prepared reference, float32 (H0, W0) in [0, 1].
        image1: The other image.
        H_0to1: (3, 3) true homography between the prepared images.
        keypoints0: (N0, 2) keypoints that took part; their indices are those of ``matches``.
        keypoints1: (N1, 2); of a ``Refined`` extractor, where they were moved to.
        matches: (M, 2) int64 mutual nearest neighbours; of a ``Refined`` one, the confirmed ones.
        similarity: (M,) confidences.
        errors: (M,) distances in image 1 to the true place, in pixels.
        inliers: (M,) bool, of the estimated homography.
        H_estimated: (3, 3), or None where none was found.
        corner_error: Mean corner error in pixels; infinity where none was found.
    """

    image0: Image
    image1: Image
    H_0to1: Homography
    keypoints0: NDArray[np.float64]
    keypoints1: NDArray[np.float64]
    matches: NDArray[np.int64]
    similarity: NDArray[np.float64]
    errors: NDArray[np.float64]
    inliers: NDArray[np.bool_]
    H_estimated: Homography | None
    corner_error: float


def prepare_image(image: Image, task: TaskConfig) -> tuple[Image, Homography]:
    """Resize and crop an image as the task says.

    Returns:
        The image and the transform (3, 3) from old to new pixels.
    """
    if task.resize == "crop":
        return resize_and_crop(image, task.height, task.width)
    if task.resize == "short-side":
        return resize_short_side(image, task.height)
    return image, np.eye(3)


def inspect_pair(
    extractor: Extractor,
    sequence: HPatchesSequence,
    pair: int,
    protocol: str | ProtocolConfig = "rpautrat",
) -> MatchedPair:
    """Redo one pair, to draw it: images, keypoints, matches and how wrong each is.

    Args:
        extractor: With descriptors.
        sequence: One of ``load_sequences``.
        pair: Number of the second image, 2 to 6: the ``pair`` of a record.
        protocol: Name in ``PROTOCOLS`` or a configuration.

    Returns:
        A ``MatchedPair``, with the numbers ``evaluate`` gets.

    Raises:
        ValueError: No such pair, or the extractor gives no descriptors.
    """
    if not 2 <= pair <= len(sequence.image_paths):
        raise ValueError(f"{sequence.name} has pairs 2 to {len(sequence.image_paths)}, not {pair}")
    config = protocol_config(protocol)
    paths = (sequence.image_paths[0], sequence.image_paths[pair - 1])
    view0, view1 = (look_at(extractor, read_gray(path), config.descriptor) for path in paths)
    if view0.features.descriptors is None:
        raise ValueError("this extractor gives no descriptors: there are no matches to inspect")
    refined = isinstance(extractor, Refined)
    return match_pair(view0, view1, sequence.homographies[pair - 2], config, refined)


def corner_errors(pair: MatchedPair, ransac: metrics.RansacConfig) -> list[float]:
    """Mean corner errors of RANSAC on a pair's matches in ``ransac.orders`` orders.

    Returns:
        Pixels, infinity where no homography was found. One order: that of the matches; of more,
        each is random, the same ones each time.
    """
    if ransac.orders == 1:
        return [pair.corner_error]
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(ransac.orders):
        matches = pair.matches[rng.permutation(len(pair.matches))]
        ends = pair.keypoints0[matches[:, 0]], pair.keypoints1[matches[:, 1]]
        H, _inliers = metrics.estimate_homography(*ends, ransac)
        errors.append(mean_corner_error(H, pair.H_0to1, *pair.image0.shape))
    return errors


def look_at(extractor: Extractor, image: Image, task: TaskConfig) -> View:
    """Prepare an image (H, W) of a file and extract from it.

    Raises:
        ValueError: The features do not fit together, or are of an image of another size.
    """
    prepared, transform = prepare_image(image, task)
    return View(prepared, transform, checked(extractor(prepared, task), prepared))


def _select(features: Features, H: Homography, size: tuple[int, int], task: TaskConfig) -> Features:
    """The keypoints that take part in a pair; ``H`` leads to the other image, of ``size``."""
    if task.shared_first:
        visible = metrics.visible_mask(_points(features), H, size)
        features = take(features, torch.from_numpy(np.flatnonzero(visible)))
    return take(features, slice(task.max_keypoints))


def _select_pair(
    view0: View, view1: View, H_files: Homography, task: TaskConfig
) -> tuple[Features, Features, Homography]:
    H = transform_homography(H_files, view0.transform, view1.transform)
    selected0 = _select(view0.features, H, view1.image.shape, task)
    selected1 = _select(view1.features, invert_homographies(H), view0.image.shape, task)
    return selected0, selected1, H


def detector_record(
    view0: View, view1: View, H_files: Homography, protocol: ProtocolConfig
) -> Record:
    """What of a pair's record is about keypoints alone; ``H_files`` is of the files' pixels."""
    features0, features1, H = _select_pair(view0, view1, H_files, protocol.detector)
    result = metrics.repeatability(
        _points(features0),
        _points(features1),
        H,
        view0.image.shape,
        view1.image.shape,
        protocol.distance,
    )
    turn, zoom = turn_and_zoom(H, *view0.image.shape)
    return {
        "turn": round(turn, 3),
        "zoom": round(zoom, 5),
        "n_visible0": result.n_visible0,
        "n_visible1": result.n_visible1,
        "repeatability": result.repeatability,
        "localization_error": result.localization_error,
    }


def match_pair(
    view0: View, view1: View, H_files: Homography, protocol: ProtocolConfig, refined: bool
) -> MatchedPair:
    """Match the keypoints of two views that take part; ``H_files`` is of the files' pixels."""
    features0, features1, H = _select_pair(view0, view1, H_files, protocol.descriptor)
    found, similarity = (tensor.cpu().numpy() for tensor in match(features0, features1))
    keypoints0, keypoints1 = _points(features0), _points(features1)
    points0, points1 = keypoints0[found[:, 0]], keypoints1[found[:, 1]]
    if refined:
        moved, confirmed = refine_by_ransac(
            view0.image, view1.image, points0, points1, protocol.ransac
        )
        keypoints1[found[:, 1]] = moved
        found, similarity = found[confirmed], similarity[confirmed]
        points0, points1 = points0[confirmed], moved[confirmed]
    estimate, inliers = metrics.estimate_homography(points0, points1, protocol.ransac)
    return MatchedPair(
        view0.image,
        view1.image,
        H,
        keypoints0,
        keypoints1,
        found,
        similarity.astype(np.float64),
        metrics.reprojection_errors(points0, points1, H),
        inliers,
        estimate,
        mean_corner_error(estimate, H, *view0.image.shape),
    )


def refine_by_ransac(
    image0: Image,
    image1: Image,
    points0: NDArray[np.floating],
    points1: NDArray[np.floating],
    ransac: metrics.RansacConfig | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Do ``refine_matches`` by the homography that RANSAC finds in the matches themselves.

    Args:
        image0: As there.
        image1: As there.
        points0: As there.
        points1: As there.
        ransac: As in ``metrics.estimate_homography``.

    Returns:
        As there: (M, 2) and (M,). Where RANSAC finds no homography nothing is confirmed.
    """
    H, inliers = metrics.estimate_homography(points0, points1, ransac)
    if H is None:
        return np.array(points1, np.float64), inliers  # all False
    return refine_matches(image0, image1, points0, points1, H)


def descriptor_record(pair: MatchedPair, protocol: ProtocolConfig) -> Record:
    """What of a pair's record is about descriptors and matches."""
    visible0 = metrics.visible_mask(pair.keypoints0, pair.H_0to1, pair.image1.shape)
    visible1 = metrics.visible_mask(
        pair.keypoints1, invert_homographies(pair.H_0to1), pair.image0.shape
    )
    close = pair.errors <= protocol.distance
    correct = close if protocol.reference == "ground_truth" else pair.inliers
    both_visible = visible0[pair.matches[:, 0]] & visible1[pair.matches[:, 1]]
    record: Record = {
        "n_keypoints0": len(pair.keypoints0),
        "n_keypoints1": len(pair.keypoints1),
        "n_matches": len(pair.matches),
        "n_inliers": int(pair.inliers.sum()),
        "corner_error": pair.corner_error,
    }
    errors = corner_errors(pair, protocol.ransac)
    for eps in protocol.corner_thresholds:
        record[f"homography@{eps:g}"] = metrics.homography_accuracy(errors, eps)
    for eps in protocol.corner_thresholds:
        record[f"auc@{eps:g}"] = metrics.homography_auc(errors, eps)
    for distance in protocol.match_distances:
        share = (pair.errors <= distance).mean() if len(pair.errors) else 0.0
        record[f"correct_matches@{distance:g}"] = float(share)
    record["matching_score"] = metrics.matching_score(
        int((correct & both_visible).sum()), int(visible0.sum()), int(visible1.sum())
    )
    record["average_precision"] = metrics.match_average_precision(correct, pair.similarity)
    return record


def _points(features: Features) -> NDArray[np.float64]:
    return features.keypoints.detach().cpu().numpy().astype(np.float64)
