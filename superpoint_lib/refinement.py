"""Matches moved to where the pictures themselves agree.

A network places a keypoint to about a pixel, in each picture by what it sees in that one alone.
What both show around a match tells more: it is the same, and least squares find to a fraction of a
pixel where it lies. This needs the pictures, which matching does not; where one pixel counts (for a
homography, a pose, a panorama) it is worth some ten milliseconds of a processor.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from superpoint_lib.extraction import prepare_images
from superpoint_lib.geometry import invert_homographies, warp_image, warp_points

Array = Tensor | NDArray[Any]

# Sides of the neighbourhood that gray levels are compared with (weights fall to all sides, as a
# Gaussian's of deviation 8 would, at a quarter of the time), and what counts as no contrast there.
_NEIGHBOURHOOD = (39, 39)
_FAINT = 4 / 255
# Steps of the least squares, and how short the last one is, in pixels.
_STEPS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 1e-3)


def refine_matches(
    image0: Array,
    image1: Array,
    points0: Array,
    points1: Array,
    H_0to1: Array,
    window: int = 21,
    reach: float = 8.0,
    tolerance: float = 0.5,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Move the second point of every match to where both images look alike around it.

    Image 1 is warped into the frame of image 0, so that both show things at the same size and
    equally turned, and the gray levels of both are told from the mean around them, in deviations.
    There the displacement d of image 1 is looked for that minimises ``sum_w (I0(x) - I1(x + d))^2``
    over a window, for each match from where it is on, and back from the place found. A match is
    confirmed where the way back ends where it began. Shown in notebook 08.

    Convention: ``reach`` and ``tolerance`` are in pixels of image 0.

    Args:
        image0: one image, as in ``extract``.
        image1: the other.
        points0: (M, 2) ends of the matches in image 0 as (x, y), tensor or numpy; they stay.
        points1: (M, 2) ends in image 1.
        H_0to1: (3, 3), roughly: RANSAC's from these matches, or the identity where a camera has
            hardly moved. It need not hold everywhere: where things stand nearer or farther, or lie
            slanted, the window still finds its place, if it looks much the same.
        window: side of the window, odd. A smaller one suits scenes of many depths, a larger one
            blur and noise.
        reach: no match moves farther than this and is confirmed.
        tolerance: largest distance between beginning and end of the way there and back.

    Returns:
        (M, 2) float64, the ends in image 1, those of unconfirmed matches as they were; and (M,)
        bool, which are confirmed: none by a homography that cannot be inverted, and none that leads
        out of either image.

    Raises:
        ValueError: no homography, shapes that do not fit together, an even window, images as in
            ``extract``, or more than one of them.

    Source: Lucas and Kanade, An Iterative Image Registration Technique (1981), in Bouguet's coarse
    to fine form, ``cv2.calcOpticalFlowPyrLK``; there and back: Kalal et al., Forward-Backward Error
    (2010).
    """
    gray0, gray1 = _one_gray(image0, "image0"), _one_gray(image1, "image1")
    if H_0to1 is None:
        raise ValueError("H_0to1 is None: no homography was found")
    first, second, H = _array(points0), _array(points1), _array(H_0to1)
    if first.ndim != 2 or first.shape != second.shape or first.shape[1] != 2 or H.shape != (3, 3):
        raise ValueError(
            "refine_matches needs points0 and points1 (M, 2) and H_0to1 (3, 3), got "
            f"{first.shape}, {second.shape} and {H.shape}"
        )
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be odd, and 3 or more, got {window}")
    moved, confirmed = second.copy(), np.zeros(len(first), bool)
    try:
        H_1to0 = invert_homographies(H)
        aligned = warp_image(gray1, H_1to0, gray0.shape, padding="border")
    except ValueError:  # RANSAC on few matches may give one that folds the image to a line, nearly
        return moved, confirmed
    start, somewhere = np.full_like(second, np.inf), np.isfinite(second).all(axis=1)
    start[somewhere] = warp_points(second[somewhere], H_1to0)
    seen = _inside(first, gray0.shape) & _inside(start, gray0.shape)
    if not seen.any():
        return moved, confirmed
    there, back, found = _there_and_back(
        _contrast(gray0), _contrast(aligned), first[seen], start[seen], window
    )
    ends = warp_points(there, H)
    confirmed[seen] = (
        found
        & _inside(ends, gray1.shape)
        & (np.linalg.norm(back - first[seen], axis=1) <= tolerance)
        & (np.linalg.norm(there - start[seen], axis=1) <= reach)
    )
    moved[confirmed] = ends[confirmed[seen]]
    return moved, confirmed


def _there_and_back(
    image0: NDArray[np.uint8],
    image1: NDArray[np.uint8],
    points0: NDArray[np.float64],
    points1: NDArray[np.float64],
    window: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Where points lie in the second image, where those lie in the first, and if both were found.

    One level of half the size comes first: from a start that is some pixels off, the window at full
    size would hold to the wrong side of an edge.
    """
    options: dict[str, Any] = {
        "winSize": (window, window),
        "maxLevel": 1,
        "criteria": _STEPS,
        "flags": cv2.OPTFLOW_USE_INITIAL_FLOW,
    }
    ends0, ends1 = (points.astype(np.float32)[:, None] for points in (points0, points1))
    # Copies, for OpenCV writes its result into the start it is given.
    there, found, _ = cv2.calcOpticalFlowPyrLK(image0, image1, ends0, ends1.copy(), **options)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(image1, image0, there, ends0.copy(), **options)
    both = np.logical_and(found, found_back).ravel()
    return np.asarray(there, np.float64)[:, 0], np.asarray(back, np.float64)[:, 0], both


def _inside(points: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.bool_]:
    """(M,) bool; points that are nowhere are not inside."""
    height, width = size
    return np.all((points >= 0) & (points <= np.array([width - 1, height - 1])), axis=1)


def _contrast(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """How much lighter or darker than its neighbourhood a pixel is, in its deviations.

    Eight bits, 128 where it is no different, 40 for each deviation: what OpenCV's flow takes.
    """
    difference = image - cv2.stackBlur(image, _NEIGHBOURHOOD)
    # Its running sums may end a little below zero where nothing differs.
    variance = cv2.stackBlur(difference * difference, _NEIGHBOURHOOD).clip(min=0)
    deviation = np.sqrt(variance)
    return np.clip(np.rint(128 + 40 * difference / (deviation + _FAINT)), 0, 255).astype(np.uint8)


def _one_gray(image: Array, name: str) -> NDArray[np.float32]:
    try:
        images, _ = prepare_images(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if len(images) != 1:
        raise ValueError(f"{name}: refine_matches takes one image, got a batch of {len(images)}")
    return images[0, 0].detach().cpu().numpy()


def _array(points: Array) -> NDArray[np.float64]:
    array = points.detach().cpu().double().numpy() if isinstance(points, Tensor) else points
    return np.asarray(array, np.float64)
