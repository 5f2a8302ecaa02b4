"""OpenCV's detectors and extractors in the shape of ours, to compare with.

Detectors (Harris, Shi-Tomasi, FAST) take an image float32 (H, W) in [0, 1] and give keypoints and
scores; extractors (SIFT, RootSIFT, ORB) give `Features`. Used in notebooks 02, 06 and 08.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from superpoint_lib.evaluation import extractors
from superpoint_lib.evaluation.detection import Detector
from superpoint_lib.extraction import Features, nms

Image = NDArray[np.float32]

_ORB_KEYPOINTS = 10_000  # ORB has no "all"; more than an image of a megapixel gives
_MEASURED_KEYPOINTS = 2000  # as many as the protocols take of a network


def harris_response(image: Image) -> Image:
    """Harris' cornerness, det M - k (trace M)^2, at every pixel.

    M is the structure tensor over 4 x 4 pixels with 3 x 3 Sobel derivatives, k = 0.04 (Harris and
    Stephens, 1988), the settings of the published MagicPoint evaluation.

    Args:
        image: float32 (H, W) in [0, 1].

    Returns:
        float32 (H, W); negative on edges.
    """
    return np.asarray(cv2.cornerHarris(_float_image(image), 4, 3, 0.04), np.float32)


def shi_tomasi_response(image: Image) -> Image:
    """The smaller eigenvalue of the structure tensor, relative to the picture's largest one.

    Args:
        image: float32 (H, W) in [0, 1].

    Returns:
        float32 (H, W) in [0, 1], zero everywhere on a blank picture.

    Convention: relative, as the quality level of OpenCV's ``goodFeaturesToTrack`` is: every
    picture has a corner of score 1, also one that shows nothing but noise (Shi and Tomasi, 1994).
    """
    eigenvalue = np.asarray(cv2.cornerMinEigenVal(_float_image(image), 3, ksize=3), np.float32)
    relative = np.maximum(eigenvalue, 0) / max(float(eigenvalue.max()), 1e-12)
    return relative.astype(np.float32)


def fast_response(image: Image, threshold: int = 10) -> Image:
    """FAST's score where it finds a corner, zero elsewhere (Rosten and Drummond, 2006).

    Args:
        image: float32 (H, W) in [0, 1].
        threshold: smallest difference in gray levels of 255.

    Returns:
        float32 (H, W), scores divided by 255.
    """
    response = np.zeros(image.shape, np.float32)
    corners = cv2.FastFeatureDetector.create(threshold).detect(_byte_image(image), None)
    x, y = np.array([corner.pt for corner in corners], int).reshape(-1, 2).T
    response[y, x] = [corner.response / 255 for corner in corners]
    return response


def harris(image: Image, nms_radius: int = 4) -> tuple[Image, Image]:
    """Local maxima of `harris_response`: keypoints (N, 2) and scores (N,), best first."""
    return _local_maxima(harris_response(image), nms_radius)


def shi_tomasi(image: Image, nms_radius: int = 4) -> tuple[Image, Image]:
    """Local maxima of `shi_tomasi_response`: keypoints (N, 2) and scores (N,), best first."""
    return _local_maxima(shi_tomasi_response(image), nms_radius)


def fast(image: Image, nms_radius: int = 4, threshold: int = 10) -> tuple[Image, Image]:
    """Local maxima of `fast_response`: keypoints (N, 2) and scores (N,), best first."""
    return _local_maxima(fast_response(image, threshold), nms_radius)


def _local_maxima(response: Image, nms_radius: int) -> tuple[Image, Image]:
    # As OpenCV's goodFeaturesToTrack does it: local maxima, then greedy suppression. Without the
    # first step, slopes just outside the radius would stay, for these maps are smooth. A single
    # pass in place of the second (only what is greatest in its whole square stays) would drop the
    # neighbours of points that fall themselves, and makes repeatability lower for networks, too.
    peaks = np.where(response >= cv2.dilate(response, np.ones((3, 3))), response, 0)
    kept = nms(torch.from_numpy(peaks.astype(np.float32))[None], nms_radius)[0].numpy()
    y, x = np.nonzero(kept > 0)
    order = np.argsort(-kept[y, x], kind="stable")
    keypoints = np.stack((x, y), axis=1)[order].astype(np.float32)
    return keypoints, kept[y, x][order]


def sift(image: Image, max_keypoints: int | None = None) -> Features:
    """SIFT (Lowe, 2004), descriptors (N, 128) scaled to unit length.

    Args:
        image: float32 (H, W) in [0, 1].
        max_keypoints: the best so many; None for all.

    Returns:
        `Features`, sub-pixel keypoints, best score first; empty for a blank picture.
    """
    return _extract(cv2.SIFT.create(), _unit_length, image, 128, max_keypoints)


def rootsift(image: Image, max_keypoints: int | None = None) -> Features:
    """SIFT with RootSIFT descriptors (Arandjelovic and Zisserman, 2012).

    Each descriptor is divided by its L1 norm and the root of every entry is taken: unit length, and
    the dot product is the Hellinger kernel. Arguments and result as `sift`.
    """
    return _extract(cv2.SIFT.create(), _root, image, 128, max_keypoints)


def orb(image: Image, max_keypoints: int | None = None) -> Features:
    """ORB (Rublee et al., 2011), its 256 bits written as numbers +-1/16.

    Arguments and result as `sift`, descriptors (N, 256).

    Convention: written so, descriptors have unit length and dot product 1 - d / 128 with d the
    Hamming distance, so that `superpoint_lib.match` ranks them as Hamming distance does.
    """
    detector = cv2.ORB.create(max_keypoints or _ORB_KEYPOINTS)
    return _extract(detector, bits_as_signs, image, 32, max_keypoints)


def as_extractor(detector: Detector) -> Callable[[Image], Features]:
    """Let a detector take part where `Features` are wanted, without descriptors."""

    def extractor(image: Image) -> Features:
        keypoints, scores = detector(image)
        return Features(
            torch.from_numpy(np.asarray(keypoints, np.float32)),
            torch.from_numpy(np.asarray(scores, np.float32)),
            None,
            (image.shape[0], image.shape[1]),
        )

    return extractor


DETECTORS: dict[str, Callable[..., tuple[Image, Image]]] = {
    "harris": harris,
    "shi_tomasi": shi_tomasi,
    "fast": fast,
}
EXTRACTORS: dict[str, Callable[..., Features]] = {"sift": sift, "rootsift": rootsift, "orb": orb}


def classical_extractor(name: str) -> extractors.Extractor:
    """One of `DETECTORS` or `EXTRACTORS` as `evaluate` wants it.

    Convention: a detector gives all its local maxima, so that the protocol's own suppression
    decides, as it does for networks. SIFT and ORB come with their own suppression, and with as many
    keypoints as the protocols take of a network before they choose among the visible ones.

    Raises:
        KeyError: an unknown name.
    """
    if name in DETECTORS:
        everything = as_extractor(partial(DETECTORS[name], nms_radius=0))
        return extractors.plain_extractor(everything, suppress=True)
    return extractors.plain_extractor(partial(EXTRACTORS[name], max_keypoints=_MEASURED_KEYPOINTS))


def _extract(
    detector: cv2.Feature2D,
    normalize: Callable[[NDArray[Any]], NDArray[np.floating]],
    image: Image,
    width: int,
    max_keypoints: int | None,
) -> Features:
    found, raw = detector.detectAndCompute(_byte_image(image), None)
    descriptors = np.zeros((0, width), np.float32) if raw is None else np.asarray(raw)
    keypoints = np.array([k.pt for k in found], np.float32).reshape(-1, 2)
    scores = np.array([k.response for k in found], np.float32)
    order = np.argsort(-scores, kind="stable")[:max_keypoints]
    return Features(
        torch.from_numpy(keypoints[order]),
        torch.from_numpy(scores[order]),
        torch.from_numpy(normalize(descriptors[order]).astype(np.float32)),
        (image.shape[0], image.shape[1]),
    )


def _unit_length(descriptors: NDArray[Any]) -> NDArray[np.floating]:
    return descriptors / np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), 1e-12)


def _root(descriptors: NDArray[Any]) -> NDArray[np.floating]:
    return np.sqrt(descriptors / np.maximum(descriptors.sum(axis=1, keepdims=True), 1e-12))


def bits_as_signs(descriptors: NDArray[Any]) -> NDArray[np.float32]:
    """Write binary descriptors (N, B) of B bytes as (N, 8 B) numbers of unit length.

    A set bit is 1 / sqrt(8 B), another one the same below zero: the larger the dot product of two,
    the smaller their Hamming distance.
    """
    bits = np.unpackbits(np.asarray(descriptors, np.uint8), axis=1)
    return (2 * bits.astype(np.float32) - 1) / np.float32(max(bits.shape[1], 1) ** 0.5)


def _float_image(image: Image) -> Image:
    _check(image)
    return np.ascontiguousarray(image, np.float32)


def _byte_image(image: Image) -> NDArray[np.uint8]:
    _check(image)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _check(image: Image) -> None:
    if image.ndim != 2 or not np.issubdtype(image.dtype, np.floating):
        raise ValueError(
            f"need a float image (H, W) in [0, 1], got {image.dtype} of shape {image.shape}"
        )
