"""Heatmaps of the network's logits, and the keypoints in them."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from superpoint_lib.extraction.suppression import nms
from superpoint_lib.geometry.cells import CELL_SIZE


def decode_heatmap(logits: Tensor) -> Tensor:
    """Turn cell logits into the probability of a keypoint at every pixel.

    A softmax over the 65 classes of each cell, of which the dustbin is dropped and the others are
    put in place: ``heatmap[8 i + dy, 8 j + dx] = softmax(logits[:, i, j])[8 dy + dx]``. Derived in
    notebook 02.

    Args:
        logits: (B, 65, Hc, Wc).

    Returns:
        (B, 8 Hc, 8 Wc) in [0, 1], float32 or better; the 64 pixels of a cell sum to at most 1.

    Raises:
        ValueError: another shape.
    """
    if logits.ndim != 4 or logits.shape[1] != CELL_SIZE**2 + 1:
        raise ValueError(f"logits must have shape (B, 65, Hc, Wc), got {tuple(logits.shape)}")
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.pixel_shuffle(precise.softmax(dim=1)[:, :-1], CELL_SIZE)[:, 0]


def find_keypoints(
    heatmap: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    max_keypoints: int | None,
    threshold: float,
    nms_radius: int,
    window: int,
    border: int = 0,
) -> list[tuple[Tensor, Tensor]]:
    """Find the keypoints of heatmaps: suppression, the strongest, sub-pixel refinement.

    Args:
        heatmap: (B, H, W) of keypoint probabilities, zero outside each image.
        image_sizes: (H, W) of each image.
        max_keypoints: as in ``extract``.
        threshold: as in ``extract``.
        nms_radius: as in ``extract``.
        window: side of the window of ``soft_argmax``; 1 leaves keypoints on their pixels.
        border: as in ``extract``.

    Returns:
        For each heatmap its keypoints (N, 2) in pixels of the heatmap and scores (N,), best first.

    Raises:
        ValueError: a negative or fractional setting, or no threshold.
    """
    refuse_fractions(max_keypoints=max_keypoints, nms_radius=nms_radius, border=border)
    if threshold is None or nms_radius is None:
        raise ValueError("threshold and nms_radius cannot be None: 0 turns them off")
    if not threshold <= 1:  # which NaN is not, either
        raise ValueError(f"threshold must be in 0..1, got {threshold}")
    if max_keypoints is not None and max_keypoints < 0:
        raise ValueError(f"max_keypoints must be 0 or more, or None for all, got {max_keypoints}")
    if border < 0:
        raise ValueError(f"border must be 0 px or more, got {border}")
    maxima = nms(heatmap, nms_radius, threshold)
    if border:
        maxima = maxima * frame(heatmap, image_sizes, border)
    found = []
    for one, peaks in zip(heatmap, maxima, strict=True):
        keypoints, scores = _strongest(peaks, max_keypoints)
        if window > 1:
            keypoints = soft_argmax(one, keypoints, window)
        found.append((keypoints, scores))
    return found


def soft_argmax(heatmap: Tensor, keypoints: Tensor, window: int = 5) -> Tensor:
    """Refine keypoints to the centre of mass of the heatmap around them.

    ``x' = sum p(x, y) x / sum p(x, y)`` over the window centred at the nearest pixel, likewise y.
    It is the soft-argmax of log p. Parts of the window outside the heatmap weigh nothing. Shown in
    notebook 03.

    Args:
        heatmap: (H, W), or (B, H, W) with batched keypoints; non-negative.
        keypoints: (N, 2), or (B, K, 2), in pixels, N or K may be 0. Whole numbers give fractions.
        window: side of the window in pixels, odd.

    Returns:
        Keypoints of the same shape, each within ``window // 2`` of its pixel and inside the image;
        unchanged where the window holds no mass.

    Raises:
        ValueError: shapes that do not belong together, or an even window.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")
    if heatmap.ndim == 2 and keypoints.ndim == 2:
        return soft_argmax(heatmap[None], keypoints[None], window)[0]
    if heatmap.ndim != 3 or keypoints.ndim != 3 or heatmap.shape[0] != keypoints.shape[0]:
        raise ValueError(
            "soft_argmax needs (H, W) with (N, 2) or (B, H, W) with (B, K, 2), got "
            f"{tuple(heatmap.shape)} with {tuple(keypoints.shape)}"
        )
    heatmap = heatmap.to(torch.promote_types(heatmap.dtype, torch.float32))
    if not keypoints.is_floating_point():
        keypoints = keypoints.to(heatmap.dtype)
    height, width = heatmap.shape[1:]
    steps = torch.arange(window, device=heatmap.device) - window // 2
    dy, dx = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing="ij"))
    center = keypoints.round().long()
    x, y = center[..., :1] + dx, center[..., 1:] + dy
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    flat = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    mass = heatmap.flatten(1).gather(1, flat.flatten(1)).view(flat.shape) * inside
    total = mass.sum(-1, keepdim=True)
    offset = torch.stack([(mass * dx).sum(-1), (mass * dy).sum(-1)], dim=-1) / total
    return torch.where(total > 0, (center + offset).to(keypoints), keypoints)


def refuse_fractions(**settings: float | None) -> None:
    """Raise ValueError, naming it, for a setting that is neither a whole number nor None."""
    for name, value in settings.items():
        if value is not None and not isinstance(value, numbers.Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")


def frame(heatmap: Tensor, sizes: Sequence[tuple[int, int]], border: int) -> Tensor:
    """Return (B, H, W) bool: pixels of the image at least ``border`` from its frame."""
    ends = torch.tensor(sizes, device=heatmap.device).reshape(-1, 2, 1) - border
    y = torch.arange(heatmap.shape[1], device=heatmap.device)
    x = torch.arange(heatmap.shape[2], device=heatmap.device)
    rows = (y >= border) & (y < ends[:, 0])
    columns = (x >= border) & (x < ends[:, 1])
    return rows[:, :, None] & columns[:, None, :]


def _strongest(maxima: Tensor, number: int | None) -> tuple[Tensor, Tensor]:
    """Return keypoints (N, 2) and scores (N,) of the non-zero pixels of (H, W), best first."""
    rows, columns = maxima.nonzero(as_tuple=True)
    # nonzero goes row by row, and a stable sort leaves equal scores so.
    scores, order = maxima[rows, columns].sort(descending=True, stable=True)
    scores, order = scores[:number], order[:number]
    return torch.stack([columns[order], rows[order]], dim=1).to(maxima), scores
