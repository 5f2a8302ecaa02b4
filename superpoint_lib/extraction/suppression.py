"""Non-maximum suppression, of heatmaps and of boxes around keypoints."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from superpoint_lib.extraction.features import to_array

_FLOAT32_INTEGERS = 2**24


def nms(heatmap: Tensor, radius: int, threshold: float = 0.0) -> Tensor:
    """Non-maximum suppression: greedy, exact, for a whole batch at once.

    Pixels are taken by falling score; one is kept unless a kept one lies within Chebyshev distance
    ``radius``, that is in the square of side 2 radius + 1 around it. Rather than one by one, every
    pixel that is the best of the undecided ones in its square is kept in the same round, and rounds
    go on until all are decided: the same result. Few are left to sort after the first round. Shown
    in notebook 00.

    Convention: equal scores go to the lower row-major index. Scores must exceed ``threshold``.

    Args:
        heatmap: (B, H, W) scores.
        radius: in pixels, 0 or more.
        threshold: 0 or more.

    Returns:
        (B, H, W): the scores of what is kept, 0 elsewhere.

    Raises:
        ValueError: another shape, a negative radius or threshold.
    """
    if heatmap.ndim != 3:
        raise ValueError(f"heatmap must have shape (B, H, W), got {tuple(heatmap.shape)}")
    if radius < 0 or threshold < 0:
        raise ValueError(
            f"radius and threshold must be 0 or more, got radius {radius}, threshold {threshold}"
        )
    if radius == 0:
        return torch.where(heatmap > threshold, heatmap, 0)
    candidates = heatmap > threshold
    kept = _first_round(heatmap, candidates, radius)
    undecided = _ranks(heatmap, candidates & ~_window_max(kept, radius))
    while undecided.any():
        best = (undecided == _window_max(undecided, radius)) & (undecided > 0)
        kept |= best
        undecided = torch.where(_window_max(best, radius), 0, undecided)
    return torch.where(kept, heatmap, 0)


def box_nms(keypoints: Tensor, scores: Tensor, size: float, iou: float) -> Tensor:
    """Greedy suppression of square boxes around the keypoints, as rpautrat/SuperPoint does it.

    A keypoint falls if its box of side ``size`` overlaps that of a kept one by more than ``iou``,
    intersection over union. With size 4 and IoU 0.1 two keypoints 4 px apart along an axis both
    stay, where ``nms`` with radius 4 keeps one: the two are different protocols.

    Args:
        keypoints: (N, 2) in pixels, N may be 0.
        scores: (N,); equal scores keep their order.
        size: side of a box in pixels.
        iou: in [0, 1].

    Returns:
        int64 (K,) indices of the keypoints kept, highest score first.

    Raises:
        ValueError: the numbers of keypoints and scores differ.
    """
    if len(keypoints) != len(scores):
        raise ValueError(f"{len(keypoints)} keypoints but {len(scores)} scores")
    order = torch.sort(scores, descending=True, stable=True).indices
    if not len(order):
        return order
    corners = to_array(keypoints[order]).astype(np.float64) - size / 2
    boxes = np.concatenate([corners, np.full_like(corners, size)], axis=1)
    # Ranks instead of scores: OpenCV takes positive ones only.
    ranks = np.arange(len(order), 0, -1, dtype=np.float32)
    kept = cv2.dnn.NMSBoxes(boxes, ranks, 0.0, iou)  # type: ignore[arg-type]
    return order[torch.as_tensor(np.asarray(kept, np.int64), device=order.device)]


def _first_round(heatmap: Tensor, candidates: Tensor, radius: int) -> Tensor:
    """Tell which candidates have no better one in their square, nor an equal one before them."""
    rows = _running_max(heatmap, 2, -radius, radius)
    best = candidates & (heatmap == _running_max(rows, 1, -radius, radius))
    best &= heatmap > _running_max(rows, 1, -radius, -1)
    return best & (heatmap > _running_max(heatmap, 2, -radius, -1))


def _ranks(heatmap: Tensor, mask: Tensor) -> Tensor:
    """Number the scores where ``mask`` is set from the lowest, 1; 0 elsewhere.

    Unlike scores, ranks have no ties.
    """
    candidates = mask.flatten().nonzero()[:, 0]
    order = heatmap.flatten()[candidates].sort(descending=True, stable=True).indices
    exact = torch.float32 if len(candidates) < _FLOAT32_INTEGERS else torch.float64
    ranks = torch.zeros(heatmap.numel(), dtype=exact, device=heatmap.device)
    falling = torch.arange(len(candidates), 0, -1, dtype=exact, device=heatmap.device)
    ranks[candidates[order]] = falling
    return ranks.view(heatmap.shape)


def _window_max(x: Tensor, radius: int) -> Tensor:
    """Return the maximum of (B, H, W), non-negative or bool, in the square around each pixel."""
    return _running_max(_running_max(x, 1, -radius, radius), 2, -radius, radius)


def _running_max(x: Tensor, dim: int, first: int, last: int) -> Tensor:
    """Return the maximum of ``x[i + first]`` to ``x[i + last]`` along rows (2) or columns (1).

    (B, H, W) of non-negative numbers or bool; what lies outside counts as 0.
    """
    x = F.pad(x, (-first, last) if dim == 2 else (0, 0, -first, last))
    # Maxima over 1, 2, 4, ... neighbours: a few whole-map operations for any length.
    length, covered = last - first + 1, 1
    while covered < length:
        step = min(covered, length - covered)
        rest = x.shape[dim] - step
        x = torch.maximum(x.narrow(dim, 0, rest), x.narrow(dim, step, rest))
        covered += step
    return x
