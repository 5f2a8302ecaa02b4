"""Metrics for a pair of images related by a known homography, and bootstrap intervals.

Everything here is plain NumPy on the keypoints and matches of one pair: no model, no files, no
protocol (which points are kept is decided in :mod:`superpoint_lib.evaluation.hpatches`).

Sources: DeTone et al., "SuperPoint", CVPRW 2018, section 7 and appendix (repeatability,
localisation error, NN mAP, matching score, homography estimation); Mikolajczyk et al., "A
comparison of affine region detectors", IJCV 2005 (repeatability); Efron and Tibshirani, "An
Introduction to the Bootstrap", 1993. Derived in notebook 06.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from superpoint_lib.geometry import invert_homographies, warp_points

FloatArray = NDArray[np.floating]
BoolArray = NDArray[np.bool_]

_SLACK = 1e-3  # in pixels: a point on the frame survives rounding errors of a homography


class Repeatability(NamedTuple):
    """Repeatability of one pair and the counts behind it."""

    repeatability: float
    localization_error: float
    n_visible0: int
    n_visible1: int


class Interval(NamedTuple):
    """A mean with the ends of its bootstrap interval (NaN ends: fewer than two clusters)."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class RansacConfig:
    """Settings of ``cv2.findHomography``: inlier distance in pixels, iterations, confidence.

    RANSAC draws its samples from the matches as they are ordered, and one draw is luck: of the same
    matches in another order another homography comes. With ``orders`` above 1 homography accuracy
    and its AUC are means over so many random orders.
    """

    threshold: float = 3.0
    iterations: int = 2000
    confidence: float = 0.995
    orders: int = 1

    def __post_init__(self) -> None:
        if self.orders < 1:
            raise ValueError(f"orders must be at least 1, got {self.orders}")


def visible_mask(keypoints: FloatArray, H_0to1: FloatArray, size1: tuple[int, int]) -> BoolArray:
    """Tell which keypoints of image 0 fall inside image 1.

    Args:
        keypoints: (N, 2) as (x, y) in image 0.
        H_0to1: (3, 3), image-0 pixels to image-1 pixels.
        size1: (height, width) of image 1.

    Returns:
        (N,) bool. Points at infinity are not visible.

    Convention:
        Inside means 0 <= x <= width - 1 and 0 <= y <= height - 1 (pixel centres at integers), up
        to a thousandth of a pixel.
    """
    warped = warp_points(_as_points(keypoints), np.asarray(H_0to1, np.float64))
    height, width = size1
    limit = np.array([width - 1, height - 1]) + _SLACK
    return np.all((warped >= -_SLACK) & (warped <= limit), axis=1)


def repeatability(
    keypoints0: FloatArray,
    keypoints1: FloatArray,
    H_0to1: FloatArray,
    size0: tuple[int, int],
    size1: tuple[int, int],
    distance: float = 3.0,
) -> Repeatability:
    """Share of keypoints that the other image has too, and how far off those are.

    With V0 and V1 the keypoints visible in the other image and d(p) the distance, measured in
    image 1, from p to the nearest keypoint of the other set::

        R = {p in V0 or V1: d(p) <= distance}        (the repeated points of both images)
        repeatability = |R| / (|V0| + |V1|)
        localisation error = mean of d(p) over R

    Args:
        keypoints0: (N0, 2) as (x, y) in image 0.
        keypoints1: (N1, 2) in image 1.
        H_0to1: (3, 3), image-0 pixels to image-1 pixels.
        size0: (height, width) of image 0.
        size1: (height, width) of image 1.
        distance: Largest distance in pixels that counts as the same point.

    Returns:
        ``Repeatability``; repeatability in [0, 1], the error in [0, distance] pixels. No visible
        point at all gives repeatability 0; no repeated point gives a NaN error, which averages
        skip.

    Convention:
        A point may be the nearest one of several others: the match is not one-to-one (as in
        the SuperPoint paper's public evaluations).
    """
    H = np.asarray(H_0to1, np.float64)
    visible0 = _as_points(keypoints0)[visible_mask(keypoints0, H, size1)]
    visible1 = _as_points(keypoints1)[visible_mask(keypoints1, invert_homographies(H), size0)]
    n0, n1 = len(visible0), len(visible1)
    if n0 == 0 or n1 == 0:
        return Repeatability(0.0, float("nan"), n0, n1)
    offsets = warp_points(visible0, H)[:, None] - visible1[None]
    distances = np.linalg.norm(offsets, axis=2)
    nearest = np.concatenate([distances.min(axis=1), distances.min(axis=0)])
    repeated = nearest[nearest <= distance]
    error = float(repeated.mean()) if len(repeated) else float("nan")
    return Repeatability(len(repeated) / (n0 + n1), error, n0, n1)


def reprojection_errors(
    points0: FloatArray, points1: FloatArray, H_0to1: FloatArray
) -> NDArray[np.float64]:
    """Distance in image 1 between each warped point of image 0 and its match.

    Args:
        points0: (M, 2) matched points of image 0, as (x, y).
        points1: (M, 2) their matches in image 1.
        H_0to1: (3, 3), image-0 pixels to image-1 pixels.

    Returns:
        (M,) distances in pixels; infinity where the warped point lies at infinity.
    """
    warped = warp_points(_as_points(points0), np.asarray(H_0to1, np.float64))
    return np.linalg.norm(warped - _as_points(points1), axis=1)


def estimate_homography(
    points0: FloatArray, points1: FloatArray, ransac: RansacConfig | None = None
) -> tuple[NDArray[np.float64] | None, BoolArray]:
    """Fit a homography to matches with OpenCV's RANSAC.

    Args:
        points0: (M, 2) matched points of image 0, as (x, y).
        points1: (M, 2) their matches in image 1.
        ransac: Settings; ``RansacConfig()`` (OpenCV's own defaults) when left out.

    Returns:
        The homography (3, 3) float64, image 0 to image 1, or None when there are fewer than four
        matches, RANSAC finds no model, or one that has no inverse; and the (M,) bool inliers, all
        False without a model.
        The same matches always give the same result: OpenCV seeds RANSAC itself.
    """
    ransac = RansacConfig() if ransac is None else ransac
    nothing = np.zeros(len(points0), dtype=bool)
    if len(points0) < 4:
        return None, nothing
    H, inliers = cv2.findHomography(
        _as_points(points0).astype(np.float32),
        _as_points(points1).astype(np.float32),
        cv2.RANSAC,
        ransac.threshold,
        maxIters=ransac.iterations,
        confidence=ransac.confidence,
    )
    # Of matches on a line, OpenCV makes a matrix that takes the whole picture to that line.
    if H is None or not np.isfinite(H).all() or np.linalg.matrix_rank(H) < 3:
        return None, nothing
    return np.asarray(H, np.float64), inliers.ravel().astype(bool)


def homography_accuracy(corner_errors: ArrayLike, threshold: float) -> float:
    """Share of pairs whose homography is correct: mean corner error <= threshold pixels.

    Args:
        corner_errors: (P,) mean corner errors in pixels; infinity for a failed pair.
        threshold: epsilon, in pixels.

    Returns:
        A value in [0, 1]; NaN without pairs.
    """
    return _mean(np.asarray(corner_errors, np.float64) <= threshold)


def homography_auc(corner_errors: ArrayLike, threshold: float) -> float:
    """Area under the cumulative curve of corner errors, from 0 to the threshold, over it.

    The curve ``r(t) = share of pairs with error <= t`` is a staircase, so that its area is exact::

        1/eps * integral_0^eps r(t) dt = mean over pairs of max(0, 1 - error / eps)

    Args:
        corner_errors: (P,) mean corner errors in pixels; infinity for a failed pair.
        threshold: epsilon, in pixels.

    Returns:
        A value in [0, 1]; NaN without pairs.

    Convention:
        SuperGlue's and glue-factory's code join the steps by straight lines instead (trapezoids);
        the two differ by less than 1 / P.
    """
    return _mean(np.maximum(0.0, 1.0 - np.asarray(corner_errors, np.float64) / threshold))


def matching_score(n_correct: int, n_visible0: int, n_visible1: int) -> float:
    """Correct matches over the keypoints that could have matched, averaged over both images.

    ``2 * n_correct / (n_visible0 + n_visible1)``: it joins detector and descriptor.

    Args:
        n_correct: Number of correct matches between visible keypoints.
        n_visible0: Keypoints of image 0 that fall inside image 1.
        n_visible1: Keypoints of image 1 that fall inside image 0.

    Returns:
        A value in [0, 1]; 0 when no keypoint is visible.
    """
    total = n_visible0 + n_visible1
    return 2.0 * n_correct / total if total else 0.0


def match_average_precision(correct: ArrayLike, confidence: ArrayLike) -> float:
    """Average precision of matches ranked by confidence.

    ``AP = sum_n (R_n - R_{n-1}) P_n`` over the distinct confidences from high to low, with P_n the
    share of correct matches so far and R_n the share of all correct matches found so far. Its mean
    over pairs is the "nearest-neighbour mAP".

    Args:
        correct: (M,) bool, whether each match is right.
        confidence: (M,) larger is surer: a similarity, or minus a distance.

    Returns:
        A value in [0, 1]; 0 when nothing is correct, including no matches at all.

    Raises:
        ValueError: not one confidence for each match.

    Convention:
        Recall is relative to the correct ones among the matches given, as in scikit-learn's
        ``average_precision_score``; equally confident matches enter together.
    """
    labels = np.asarray(correct, bool).ravel()
    scores = np.asarray(confidence, np.float64).ravel()
    if labels.shape != scores.shape:
        raise ValueError(f"{len(labels)} labels but {len(scores)} confidences: give one for each")
    if not labels.any():
        return 0.0
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(labels[order])[last_of_ties]
    ranks = np.flatnonzero(last_of_ties) + 1
    return float(np.sum(np.diff(found, prepend=0) * found / ranks) / labels.sum())


def bootstrap_mean(
    values: ArrayLike,
    clusters: ArrayLike | None = None,
    samples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Mean of the values with a percentile bootstrap interval.

    Pairs of one sequence share the reference image and its detections, so they are not
    independent; drawing whole sequences (clusters) keeps that dependence and gives the honest,
    wider interval. Drawing single pairs is what ``clusters=None`` does.

    Args:
        values: (P,) one number per pair; NaNs are left out.
        clusters: (P,) labels, such as sequence names; None draws the values one by one.
        samples: Number of bootstrap samples.
        confidence: Coverage, in (0, 1).
        seed: Of the draws: the same input gives the same interval.

    Returns:
        ``Interval(mean, low, high)``. All NaN without values; NaN ends with fewer than two
        clusters, where nothing can be said about the spread.
    """
    array = np.asarray(values, np.float64).ravel()
    known = ~np.isnan(array)
    if not known.any():
        return Interval(float("nan"), float("nan"), float("nan"))
    labels = np.arange(len(array)) if clusters is None else np.asarray(clusters).ravel()
    _, members = np.unique(labels[known], return_inverse=True)
    sums, counts = np.bincount(members, array[known]), np.bincount(members)
    mean = float(array[known].mean())
    if len(counts) < 2:
        return Interval(mean, float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(len(counts), size=(samples, len(counts)))
    means = sums[draws].sum(axis=1) / counts[draws].sum(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, float(low), float(high))


def _as_points(points: FloatArray) -> NDArray[np.float64]:
    """(N, 2) float64; an empty list becomes (0, 2)."""
    array = np.asarray(points, np.float64)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"points must have shape (N, 2) as (x, y), not {array.shape}")
    return array


def _mean(values: NDArray) -> float:
    return float(values.mean()) if values.size else float("nan")
