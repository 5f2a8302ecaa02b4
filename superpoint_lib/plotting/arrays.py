"""What is drawn, brought into one form: images, keypoints, matches, scores and heatmaps.

Arrays may be numpy arrays or tensors; everything that draws takes them through here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import cv2
import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray

from superpoint_lib.plotting.style import CORRECT, SCORE_COLORMAP, UNKNOWN, WRONG

Array: TypeAlias = NDArray[Any] | torch.Tensor


def to_rgb(image: Array) -> NDArray[np.uint8]:
    """Convert an image to what OpenCV and matplotlib draw on.

    Args:
        image: (H, W), (1, H, W), (H, W, 1), (H, W, 3) or (3, H, W); floats in [0, 1] (values
            outside are clipped), bool, or uint8; gray or RGB.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        ValueError: the shape is none of these.
    """
    array = to_numpy(image)
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ValueError(
            f"an image of shape {tuple(np.shape(image))} cannot be drawn; give (H, W), (1, H, W), "
            "(H, W, 3) or (3, H, W), one image at a time"
        )
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype != np.uint8:
        array = np.rint(np.clip(array, 0.0, 1.0) * 255.0).astype(np.uint8)
    if array.ndim == 2:
        array = cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_GRAY2RGB)
    return np.ascontiguousarray(array)


def to_numpy(array: Array | Sequence[Any]) -> NDArray[Any]:
    """The values as a numpy array; bfloat16, which numpy lacks, as float32."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return np.asarray(array)


def to_points(keypoints: Array | Sequence[Any]) -> NDArray[np.float64]:
    """Keypoints as (N, 2); (0, 2) for anything empty."""
    points = to_numpy(keypoints).astype(np.float64)
    if points.size == 0:
        return np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"keypoints must be (N, 2) as (x, y), got shape {points.shape}")
    return points


def to_matches(matches: Array | Sequence[Any]) -> NDArray[np.int64]:
    """Matches as (M, 2); (0, 2) for anything empty."""
    pairs = to_numpy(matches)
    if pairs.size == 0:
        return np.zeros((0, 2), np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"matches must be (M, 2) index pairs, got shape {pairs.shape}")
    return pairs.astype(np.int64)


def score_strength(scores: Array | None, count: int) -> NDArray[np.float64]:
    """Scores as (N,) in [0, 1]: square root of the share of the highest one, 1 without scores."""
    if scores is None or count == 0:
        return np.ones(count)
    values = np.maximum(to_numpy(scores).astype(np.float64), 0.0)
    if values.shape != (count,):
        raise ValueError(f"{count} keypoints but scores of shape {values.shape}")
    highest = values.max()
    return np.sqrt(values / highest) if highest > 0 else np.ones(count)


def score_colors(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    """RGBA colours (N, 4) of strengths in [0, 1]."""
    # The dark part of the map would vanish on dark photographs.
    return np.asarray(matplotlib.colormaps[SCORE_COLORMAP](0.4 + 0.6 * strength))


def as_list(items: Any, single_ndim: int) -> list[Any]:
    """A list of arrays, from a list, a stacked array or one array of ``single_ndim`` dimensions."""
    if isinstance(items, list | tuple):
        return list(items)
    return [items] if items.ndim == single_ndim else list(items)


def heat(
    values: NDArray[Any], highest: float, exponent: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What a heatmap shows: its values in [0, 1] and their opacity."""
    shown = np.clip(values / (highest or 1.0), 0.0, 1.0) ** exponent
    return shown, np.minimum(2.0 * shown, 1.0)


def side_by_side(
    image0: NDArray[np.uint8], image1: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Both images on one white canvas, and the (x, y) offset of the second."""
    gap = max(4, image0.shape[1] // 64)
    (height0, width0), (height1, width1) = image0.shape[:2], image1.shape[:2]
    canvas = np.full((max(height0, height1), width0 + gap + width1, 3), 255, np.uint8)
    canvas[:height0, :width0] = image0
    canvas[:height1, width0 + gap :] = image1
    return canvas, np.array([width0 + gap, 0.0])


def match_segments(
    points0: NDArray[np.float64],
    points1: NDArray[np.float64],
    matches: Array,
    correct: Array | None,
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Line ends (M, 2, 2) and colour names (M,) of matches."""
    pairs = to_matches(matches)
    segments = np.stack([points0[pairs[:, 0]], points1[pairs[:, 1]]], axis=1)
    if correct is None:
        return segments, np.full(len(pairs), UNKNOWN)
    flags = to_numpy(correct).astype(bool).reshape(-1)
    if len(flags) != len(pairs):
        raise ValueError(f"{len(pairs)} matches but {len(flags)} values in 'correct'")
    return segments, np.where(flags, CORRECT, WRONG)
