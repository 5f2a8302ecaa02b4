"""Losses of the detector: its answers against labels, and against those of the other view."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from superpoint_lib.geometry import adjugate, warp_points
from superpoint_lib.geometry.cells import CELL_SIZE, DUSTBIN
from superpoint_lib.losses.pairs import labelled_pixels, valid_at
from superpoint_lib.losses.shared import full_precision, image_mean, promote


def detector_loss(
    logits: Tensor,
    labels: Tensor,
    valid: Tensor | None = None,
    normalisation: Literal["image", "batch"] = "image",
) -> Tensor:
    """65-way cross-entropy of each cell, averaged over the valid cells.

    Args:
        logits: (B, 65, Hc, Wc).
        labels: int64 (B, Hc, Wc), 0..64, see `keypoints_to_labels`; or float (B, 65, Hc, Wc),
            the probability of each class, see `keypoints_to_targets`.
        valid: bool (B, Hc, Wc), or None for all.
        normalisation: "image" averages within each image, then over images; "batch" over all
            valid cells of the batch at once (the TensorFlow implementation of Pautrat and Sarlin).

    Returns:
        Scalar, >= 0; log 65 for uniform logits.

    Source: DeTone et al., SuperPoint (2018), equation 2. Derived in notebook 02.
    """
    with full_precision(logits):
        losses = F.cross_entropy(promote(logits), labels, reduction="none")
        weights = _cell_weights(valid, losses)
        return image_mean(
            (losses * weights).flatten(1).sum(1), weights.flatten(1).sum(1), normalisation
        )


def _cell_weights(valid: Tensor | None, like: Tensor) -> Tensor:
    """One for valid cells, zero for the others, shaped and typed ``like`` another tensor."""
    return torch.ones_like(like) if valid is None else valid.to(like.dtype)


def position_loss(
    logits: Tensor,
    labels: Tensor,
    offsets: Tensor,
    valid: Tensor | None = None,
    threshold: float = 0.015,
    reach: int = 3,
    window: int = 5,
) -> Tensor:
    """How far keypoints lie from their labels as extraction finds and refines them.

    Near each label the heatmap's highest pixel is taken, then the centre of mass of the window
    around that, as ``extraction.soft_argmax`` does; the loss is Huber's of its errors in x and y:
    ``e^2 / 2`` up to one pixel, ``|e| - 1/2`` beyond. Cross-entropy alone knows whole pixels only.
    A window around the label itself would ask for too little: a flat heatmap has its centre there.
    Labels near which nothing exceeds ``threshold`` do not count: extraction would not find them,
    and any of such pixels may be the highest.

    Args:
        logits: (B, 65, Hc, Wc).
        labels: int64 (B, Hc, Wc), 0..64.
        offsets: (B, 2, Hc, Wc) of `label_offsets`.
        valid: bool (B, Hc, Wc), or None for all.
        threshold: least probability of the highest pixel, exclusive.
        reach: how far from its label the highest pixel is looked for, in pixels along x and y.
        window: side of the window in pixels, odd; pixels outside the image do not count.

    Returns:
        Scalar, >= 0: mean over the labels that count in valid cells of an image, then over images.

    Derived in notebook 04.
    """
    with full_precision(logits):
        label = labelled_pixels(labels)
        found, value = _find_near(_log_heatmap(logits), label, reach, window)
        true = label + offsets.flatten(2).to(found)
        losses = F.huber_loss(found, true, reduction="none").sum(1)
        counted = (labels < DUSTBIN).flatten(1) & (value > _log(threshold))
        weights = counted.to(losses.dtype)
        if valid is not None:
            weights = weights * valid.flatten(1)
        return image_mean((losses * weights).sum(1), weights.sum(1), "image")


def agreement_loss(
    logits0: Tensor,
    logits1: Tensor,
    labels0: Tensor,
    H_0to1: Tensor,
    valid1: Tensor | None = None,
    threshold: float = 0.015,
    reach: int = 3,
    window: int = 5,
    within: float = math.inf,
) -> Tensor:
    """How far the keypoints of two views lie apart, as extraction finds and refines them.

    Near each label of view 0 a keypoint is found in it as in `position_loss`, then another one in
    view 1 near where the first lands; the loss is Huber's of their distances in x and y, as there.
    Labels only say where to look: a keypoint may lie elsewhere, as long as both views agree. Alone,
    this asks for nothing but flat heatmaps or constant ones, so it goes beside `detector_loss`.

    What is found near there in view 1 may be a neighbour, the more often the smaller view 1 shows
    things. No small move makes two different keypoints one; ``within`` leaves such pairs out.

    Args:
        logits0: (B, 65, Hc, Wc) of view 0.
        logits1: the same of view 1.
        labels0: int64 (B, Hc, Wc), 0..64, of view 0.
        H_0to1: (B, 3, 3), pixels of view 0 to pixels of view 1.
        valid1: bool (B, Hc, Wc) of view 1, or None for all.
        threshold: least probability of the highest pixel near a label, in both views, exclusive.
        reach: how far the highest pixel is looked for, in pixels along x and y.
        window: side of the window in pixels, odd; pixels outside the image do not count.
        within: keypoints farther apart than so many pixels of view 1 are taken for two different
            ones and do not count.

    Returns:
        Scalar, >= 0: mean over the labels that count in an image, then over images.

    Source: the idea is that of the position loss of Christiansen et al., UnsuperPoint (2019), which
    regresses positions where this reads them off the heatmap. Derived in notebook 04.
    """
    with full_precision(logits0):
        found0, value0 = _find_near(_log_heatmap(logits0), labelled_pixels(labels0), reach, window)
        moved = warp_points(found0.mT, H_0to1.to(found0)).mT
        pixel, inside = _pixels_of(moved, logits1.shape[2:])
        found1, value1 = _find_near(_log_heatmap(logits1), pixel, reach, window)
        counted = inside & (labels0 < DUSTBIN).flatten(1)
        counted = counted & (torch.minimum(value0, value1) > _log(threshold))
        if valid1 is not None:
            counted = counted & valid_at(valid1, pixel)
        # Points at infinity are replaced: times a weight of 0 they would still be infinite.
        moved = torch.where(inside[:, None], moved, pixel.to(moved))
        losses = F.huber_loss(found1, moved, reduction="none").sum(1)
        counted = counted & ((found1 - moved).detach().norm(dim=1) <= within)
        weights = counted.to(losses.dtype)
        return image_mean((losses * weights).sum(1), weights.sum(1), "image")


def repeatability_loss(
    logits0: Tensor,
    logits1: Tensor,
    H_0to1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    cost: float = 0.2,
    reach: int = 2,
    zoom: float = math.inf,
) -> Tensor:
    """What keypoints cost, less what is found again of them: ``-sum p_x (q_x - cost)``.

    p_x is the heatmap of one view at pixel x, q_x the probability that the other view has a
    keypoint where x lands: the sum of its heatmap over the square of ``2 reach + 1`` pixels around
    that, its outermost ring counted by half, and at most 1. Summed over the pixels that land in the
    other view, divided by the number of valid cells, averaged over images, then over the two
    directions. What both views are sure of becomes surer, what the other view does not see fades:
    unlike a divergence of the two heatmaps, it is least where keypoints are certain, not where both
    are blurred. Alone, it asks for a keypoint in every cell or in none, so it goes beside
    `detector_loss`.

    Where the other view shows things larger, a pixel of this one is several there, and a keypoint
    that is right may lie beyond ``reach``: it is charged for. ``zoom`` leaves such places out.

    Args:
        logits0: (B, 65, Hc, Wc) of view 0.
        logits1: the same of view 1.
        H_0to1: (B, 3, 3), pixels of view 0 to pixels of view 1.
        valid0, valid1: bool (B, Hc, Wc), or None for all.
        cost: of a keypoint, in keypoints found again. As each of a pair finds the other, a keypoint
            pays from a chance of half as much on.
        reach: pixels along x and y within which a keypoint is found again, 1 or more.
        zoom: what the other view shows more than so many times larger neither costs nor gains.

    Returns:
        Scalar, from cost - 1 to cost.

    Raises:
        ValueError: a reach below 1.

    Source: to reward right matches, and charge for keypoints, is the idea of Tyszkiewicz et al.,
    DISK (2020), section 3; they sample, this is an expectation, and without the descriptors.
    Derived in notebook 04.
    """
    if reach < 1:
        raise ValueError(f"reach must be 1 px or more, got {reach}")
    with full_precision(logits0):
        heatmap0, heatmap1 = (_log_heatmap(logits).exp() for logits in (logits0, logits1))
        H_1to0 = adjugate(H_0to1)
        forward = _unrepeated(heatmap0, heatmap1, H_0to1, valid0, valid1, cost, reach, zoom)
        backward = _unrepeated(heatmap1, heatmap0, H_1to0, valid1, valid0, cost, reach, zoom)
        return (forward + backward) / 2


def _unrepeated(
    heatmap: Tensor,
    other: Tensor,
    H: Tensor,
    valid: Tensor | None,
    valid_other: Tensor | None,
    cost: float,
    reach: int,
    zoom: float,
) -> Tensor:
    """`repeatability_loss` in one direction, of heatmaps (B, H, W)."""
    batch, height, width = heatmap.shape
    cells = height // CELL_SIZE, width // CELL_SIZE
    x, y = (torch.arange(n, device=heatmap.device, dtype=heatmap.dtype) for n in (width, height))
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy")).flatten(1).expand(batch, -1, -1)
    landed = warp_points(pixels.mT, H.to(heatmap)).mT
    nearest, counted = _pixels_of(landed, cells)
    landed = torch.where(counted[:, None], landed, nearest.to(landed))
    if zoom < math.inf:
        counted = counted & (_magnification(H.to(heatmap), pixels) <= zoom)
    counts = heatmap.new_full((batch,), math.prod(cells))
    if valid is not None:
        counted = counted & valid_at(valid, pixels.long())
        counts = valid.flatten(1).sum(1).to(heatmap)
    if valid_other is not None:
        counted = counted & valid_at(valid_other, nearest)
    x, y = landed.unbind(1)
    grid = torch.stack(((2 * x + 1) / width, (2 * y + 1) / height), dim=1) - 1
    found = F.grid_sample(
        _sum_near(other, reach).clamp(max=1)[:, None],
        grid.mT.view(batch, height, width, 2),
        padding_mode="border",
        align_corners=False,
    )
    losses = heatmap.flatten(1) * (cost - found.flatten(1)) * counted
    return image_mean(losses.sum(1), counts, "image")


def _magnification(H: Tensor, pixels: Tensor) -> Tensor:
    """How many times larger H (B, 3, 3) makes what is at pixels (B, 2, N): (B, N).

    The root of its area, ``sqrt(|det H| / |w|^3)`` with ``w`` the third homogeneous coordinate.
    """
    a, b, c = H.unbind(1)
    determinant = (a * torch.linalg.cross(b, c)).sum(1, keepdim=True)
    w = (c[:, :2, None] * pixels).sum(1) + c[:, 2:]
    return (determinant / w**3).abs().sqrt()


def _sum_near(heatmap: Tensor, reach: int) -> Tensor:
    """Sums (B, H, W) over squares of 2 ``reach`` + 1 pixels.

    Along x and along y the outermost pixels count by half, so corners by a quarter.
    """
    # Two means of squares, of 2 reach and of 2 pixels: quicker than one convolution.
    squares = F.avg_pool2d(F.pad(heatmap, [reach] * 4), 2 * reach, 1)
    return F.avg_pool2d(squares, 2, 1) * (2 * reach) ** 2


def _log(threshold: float) -> float:
    return math.log(threshold) if threshold > 0 else -math.inf


def _log_heatmap(logits: Tensor) -> Tensor:
    """(B, 8 Hc, 8 Wc): the logarithm of `extraction.decode_heatmap`."""
    return F.pixel_shuffle(promote(logits).log_softmax(1)[:, :-1], CELL_SIZE)[:, 0]


def _pixels_of(points: Tensor, cells: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Whole pixels (B, 2, N) of points, moved to the nearest of the image, and which were in it."""
    x, y = points.detach().round().nan_to_num(-1.0, -1.0, -1.0).unbind(1)
    height, width = (CELL_SIZE * n for n in cells)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return torch.stack((x.clamp(0, width - 1), y.clamp(0, height - 1)), 1).long(), inside


def _find_near(
    log_heatmap: Tensor, pixels: Tensor, reach: int, window: int
) -> tuple[Tensor, Tensor]:
    """The keypoints that extraction would find near some pixels, differentiably.

    Args:
        log_heatmap: (B, H, W).
        pixels: int64 (B, 2, N) as (x, y), inside the image.
        reach, window: as in `position_loss`.

    Returns:
        Keypoints (B, 2, N), and the log heatmap (B, N) at the highest pixel of each.
    """
    with torch.no_grad():
        near, dx, dy = _window(log_heatmap, pixels, 2 * reach + 1)
        value, highest = near.max(-1)
        peak = pixels + torch.stack((dx[highest], dy[highest]), dim=1)
    near, dx, dy = _window(log_heatmap, peak, window)
    mass = near.softmax(-1)
    return peak + torch.stack(((mass * dx).sum(-1), (mass * dy).sum(-1)), dim=1), value


def _window(heatmap: Tensor, centre: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Values (B, N, side^2) around whole pixels (B, 2, N), -inf outside; steps in x and in y."""
    height, width = heatmap.shape[1:]
    steps = torch.arange(side, device=heatmap.device) - side // 2
    dy, dx = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing="ij"))
    x, y = centre[:, 0, :, None] + dx, centre[:, 1, :, None] + dy
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    flat = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(1)
    values = heatmap.flatten(1).gather(1, flat).view(inside.shape)
    return values.masked_fill(~inside, -math.inf), dx, dy
