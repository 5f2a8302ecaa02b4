"""Training targets and losses of the detector and of the descriptor.

Everything works on the coarse grid: one cell per 8 x 8 pixels, cell (row, column) centred at pixel
``(8 column + 3.5, 8 row + 3.5)``. Each loss is a mean over the valid cells within an image, then
over the images of the batch, so that several processes agree with one. Images without a valid cell
count as zero. Losses are computed in float32 (float64 if given float64), also under autocast, but
for InfoNCE's products of descriptors.

Derived in notebook 04.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from superpoint_lib.geometry import adjugate, warp_points
from superpoint_lib.geometry.cells import CELL_SIZE, DUSTBIN

HingeNormalisation = Literal["valid", "batch", "all"]
ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, Tensor)


# ------------------------------------------------------------------------------- targets


def keypoints_to_labels(
    keypoints: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> np.ndarray:
    """Class of each cell: which of its 64 pixels is a keypoint, or the dustbin.

    Args:
        keypoints: (N, 2) positions (x, y) in pixels, rounded to the nearest pixel (halves up);
            those outside the image are dropped.
        height, width: image size, multiples of 8.
        rng: draws the winner, each with equal chance, where a cell holds several keypoint pixels.

    Returns:
        int64 (height / 8, width / 8), 0..63 for pixel ``dy * 8 + dx`` of the cell, 64 = dustbin.

    Raises:
        ValueError: sizes that are not multiples of 8, or keypoints not shaped (N, 2).

    Source: DeTone et al., SuperPoint (2018), section 3.4. Derived in notebook 02.
    """
    _check_size(height, width)
    keypoints = np.asarray(keypoints, dtype=np.float64)
    if keypoints.ndim != 2 or keypoints.shape[1] != 2:
        raise ValueError(f"keypoints have shape {keypoints.shape}, expected (N, 2) as (x, y)")
    rows, columns = height // CELL_SIZE, width // CELL_SIZE
    labels = np.full(rows * columns, DUSTBIN, dtype=np.int64)

    x, y = np.floor(keypoints + 0.5).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x[inside].astype(np.int64), y[inside].astype(np.int64)
    cell = (y // CELL_SIZE) * columns + x // CELL_SIZE
    pixel = (y % CELL_SIZE) * CELL_SIZE + x % CELL_SIZE

    # Unique pixels first: two keypoints on one pixel are one candidate, and input order is moot.
    candidates = rng.permutation(np.unique(cell * DUSTBIN + pixel))
    # The first of a cell wins: numpy keeps what is written last.
    labels[candidates[::-1] // DUSTBIN] = candidates[::-1] % DUSTBIN
    return labels.reshape(rows, columns)


def _check_size(height: int, width: int) -> None:
    if height % CELL_SIZE or width % CELL_SIZE:
        raise ValueError(
            f"image size {height} x {width} is not a multiple of {CELL_SIZE}: resize or crop"
        )


def label_offsets(labels: np.ndarray, keypoints: np.ndarray) -> np.ndarray:
    """Where within its labelled pixel the keypoint of each cell lies.

    Args:
        labels: int64 (Hc, Wc), 0..64, made by `keypoints_to_labels` of the same keypoints.
        keypoints: (N, 2) positions (x, y) in pixels.

    Returns:
        float32 (2, Hc, Wc): (x, y) of the keypoint less its pixel's centre, in -0.5..0.5; zero for
        the dustbin. Of several keypoints on one pixel the last given counts.

    Derived in notebook 04.
    """
    rows, columns = labels.shape
    offsets = np.zeros((2, rows, columns), np.float32)
    keypoints = np.asarray(keypoints, dtype=np.float64).reshape(-1, 2)
    pixels = np.floor(keypoints + 0.5)
    inside = ((pixels >= 0) & (pixels < (columns * CELL_SIZE, rows * CELL_SIZE))).all(1)
    keypoints, pixels = keypoints[inside], pixels[inside]
    x, y = pixels.astype(np.int64).T
    row, column = y // CELL_SIZE, x // CELL_SIZE
    won = labels[row, column] == (y % CELL_SIZE) * CELL_SIZE + x % CELL_SIZE
    offsets[:, row[won], column[won]] = (keypoints - pixels)[won].T
    return offsets


def keypoints_to_targets(
    keypoints: np.ndarray, probabilities: np.ndarray, height: int, width: int
) -> np.ndarray:
    """What the detector should answer in each cell, where keypoints are more or less certain.

    A keypoint of probability p between pixels gives each of the four around it p times its
    bilinear weight; the dustbin takes what the pixels of a cell leave of 1. Where they add up to
    more than 1, they are scaled down to that.

    Args:
        keypoints: (N, 2) positions (x, y) in pixels; what falls outside the image is dropped.
        probabilities: (N,) in [0, 1], that a look at the picture finds the keypoint.
        height, width: image size, multiples of 8.

    Returns:
        float32 (65, height / 8, width / 8), >= 0, of sum 1 in each cell; channel ``dy * 8 + dx`` is
        a pixel of the cell, 64 the dustbin.

    Raises:
        ValueError: sizes that are not multiples of 8, or shapes that do not belong together.

    Derived in notebook 04.
    """
    _check_size(height, width)
    keypoints = np.asarray(keypoints, np.float64)
    if keypoints.ndim != 2 or keypoints.shape[1] != 2 or len(keypoints) != len(probabilities):
        raise ValueError(
            f"keypoints and probabilities have shapes {keypoints.shape} and "
            f"{np.shape(probabilities)}, expected (N, 2) as (x, y) and (N,)"
        )
    near = ((keypoints > -1) & (keypoints < (width, height))).all(1)
    keypoints, probabilities = keypoints[near], np.asarray(probabilities)[near]
    first = np.floor(keypoints)
    weights = np.stack([1 - keypoints + first, keypoints - first])  # of the two pixels along x, y
    heatmap = np.zeros((height, width))
    for dy, dx in np.ndindex(2, 2):
        x, y = (first + np.array((dx, dy))).astype(np.int64).T
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        mass = probabilities * weights[dx, :, 0] * weights[dy, :, 1]
        np.add.at(heatmap, (y[inside], x[inside]), mass[inside])
    rows, columns = height // CELL_SIZE, width // CELL_SIZE
    blocks = heatmap.reshape(rows, CELL_SIZE, columns, CELL_SIZE).transpose(1, 3, 0, 2)
    cells = blocks.reshape(DUSTBIN, rows, columns)
    cells = cells / np.maximum(cells.sum(0), 1)
    return np.concatenate([cells, 1 - cells.sum(0, keepdims=True)]).astype(np.float32)


def sharpen_probabilities(probabilities: np.ndarray, exponent: float) -> np.ndarray:
    """Move probabilities away from one half: p^g / (p^g + (1 - p)^g), the log-odds times g.

    Rounds of adaptation blur: a network that learns how likely its teacher is to see a keypoint is
    less certain than the teacher was. What is seen by few looks then keeps a small response for
    ever, hardly ever found again; with g > 1 it fades, and what is seen by most becomes certain.

    Args:
        probabilities: of any shape, in [0, 1].
        exponent: g > 0; 1 changes nothing.

    Returns:
        The same shape and type, in [0, 1]; 0, 1/2 and 1 stay, and so does the order.

    Raises:
        ValueError: an exponent that is not positive.

    Source: the sharpening of Berthelot et al., MixMatch (2019), equation 7, for two classes and
    g = 1 / T. Derived in notebook 04.
    """
    if exponent <= 0:
        raise ValueError(f"exponent is {exponent}, must be above 0")
    p, q = probabilities**exponent, (1 - probabilities) ** exponent
    return np.asarray(p / (p + q), probabilities.dtype)


def cell_validity(valid: ArrayOrTensor) -> ArrayOrTensor:
    """Cells all of whose 64 pixels are valid.

    Args:
        valid: bool (..., H, W), numpy or tensor, H and W multiples of 8.

    Returns:
        bool (..., H / 8, W / 8), of the kind given.

    Raises:
        ValueError: H or W not a multiple of 8.
    """
    *batch, height, width = valid.shape
    if height % CELL_SIZE or width % CELL_SIZE:
        raise ValueError(f"mask size {height} x {width} is not a multiple of {CELL_SIZE}")
    cells: Any = valid.reshape(
        *batch, height // CELL_SIZE, CELL_SIZE, width // CELL_SIZE, CELL_SIZE
    )
    # Whole rows first, which lie side by side in memory.
    return cells.all(-3).all(-1)


# ------------------------------------------------------------------------------ detector


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
    with _full_precision(logits):
        losses = F.cross_entropy(_promote(logits), labels, reduction="none")
        weights = _cell_weights(valid, losses)
        return _mean((losses * weights).flatten(1).sum(1), weights.flatten(1).sum(1), normalisation)


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
    with _full_precision(logits):
        label = _labelled_pixels(labels)
        found, value = _find_near(_log_heatmap(logits), label, reach, window)
        true = label + offsets.flatten(2).to(found)
        losses = F.huber_loss(found, true, reduction="none").sum(1)
        counted = (labels < DUSTBIN).flatten(1) & (value > math.log(threshold))
        weights = counted.to(losses.dtype)
        if valid is not None:
            weights = weights * valid.flatten(1)
        return _mean((losses * weights).sum(1), weights.sum(1), "image")


def agreement_loss(
    logits0: Tensor,
    logits1: Tensor,
    labels0: Tensor,
    H_0to1: Tensor,
    valid1: Tensor | None = None,
    threshold: float = 0.015,
    reach: int = 3,
    window: int = 5,
) -> Tensor:
    """How far the keypoints of two views lie apart, as extraction finds and refines them.

    Near each label of view 0 a keypoint is found in it as in `position_loss`, then another one in
    view 1 near where the first lands; the loss is Huber's of their distances in x and y, as there.
    Labels only say where to look: a keypoint may lie elsewhere, as long as both views agree. Alone,
    this asks for nothing but flat heatmaps or constant ones, so it goes beside `detector_loss`.

    Args:
        logits0: (B, 65, Hc, Wc) of view 0.
        logits1: the same of view 1.
        labels0: int64 (B, Hc, Wc), 0..64, of view 0.
        H_0to1: (B, 3, 3), pixels of view 0 to pixels of view 1.
        valid1: bool (B, Hc, Wc) of view 1, or None for all.
        threshold: least probability of the highest pixel near a label, in both views, exclusive.
        reach: how far the highest pixel is looked for, in pixels along x and y.
        window: side of the window in pixels, odd; pixels outside the image do not count.

    Returns:
        Scalar, >= 0: mean over the labels that count in an image, then over images.

    Source: the idea is that of the position loss of Christiansen et al., UnsuperPoint (2019), which
    regresses positions where this reads them off the heatmap. Derived in notebook 04.
    """
    with _full_precision(logits0):
        found0, value0 = _find_near(_log_heatmap(logits0), _labelled_pixels(labels0), reach, window)
        moved = warp_points(found0.mT, H_0to1.to(found0)).mT
        pixel, inside = _pixels_of(moved, logits1.shape[2:])
        found1, value1 = _find_near(_log_heatmap(logits1), pixel, reach, window)
        counted = inside & (labels0 < DUSTBIN).flatten(1)
        counted = counted & (torch.minimum(value0, value1) > math.log(threshold))
        if valid1 is not None:
            counted = counted & _valid_at(valid1, pixel)
        # Points at infinity are replaced: times a weight of 0 they would still be infinite.
        moved = torch.where(inside[:, None], moved, pixel.to(moved))
        losses = F.huber_loss(found1, moved, reduction="none").sum(1)
        weights = counted.to(losses.dtype)
        return _mean((losses * weights).sum(1), weights.sum(1), "image")


def repeatability_loss(
    logits0: Tensor,
    logits1: Tensor,
    H_0to1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    cost: float = 0.2,
    reach: int = 2,
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

    Args:
        logits0: (B, 65, Hc, Wc) of view 0.
        logits1: the same of view 1.
        H_0to1: (B, 3, 3), pixels of view 0 to pixels of view 1.
        valid0, valid1: bool (B, Hc, Wc), or None for all.
        cost: of a keypoint, in keypoints found again. As each of a pair finds the other, a keypoint
            pays from a chance of half as much on.
        reach: pixels along x and y within which a keypoint is found again.

    Returns:
        Scalar, from cost - 1 to cost.

    Source: to reward right matches, and charge for keypoints, is the idea of Tyszkiewicz et al.,
    DISK (2020), section 3; they sample, this is an expectation, and without the descriptors.
    Derived in notebook 04.
    """
    with _full_precision(logits0):
        heatmap0, heatmap1 = (_log_heatmap(logits).exp() for logits in (logits0, logits1))
        inputs = (valid0, valid1, cost, reach)
        forward = _unrepeated(heatmap0, heatmap1, H_0to1, *inputs)
        inputs = (valid1, valid0, cost, reach)
        backward = _unrepeated(heatmap1, heatmap0, adjugate(H_0to1), *inputs)
        return (forward + backward) / 2


def _unrepeated(
    heatmap: Tensor,
    other: Tensor,
    H: Tensor,
    valid: Tensor | None,
    valid_other: Tensor | None,
    cost: float,
    reach: int,
) -> Tensor:
    """`repeatability_loss` in one direction, of heatmaps (B, H, W)."""
    batch, height, width = heatmap.shape
    cells = height // CELL_SIZE, width // CELL_SIZE
    x, y = torch.arange(width).to(heatmap), torch.arange(height).to(heatmap)
    pixels = torch.stack(torch.meshgrid(x, y, indexing="xy")).flatten(1).expand(batch, -1, -1)
    landed = warp_points(pixels.mT, H.to(heatmap)).mT
    nearest, counted = _pixels_of(landed, cells)
    landed = torch.where(counted[:, None], landed, nearest.to(landed))
    counts = heatmap.new_full((batch,), math.prod(cells))
    if valid is not None:
        counted = counted & _valid_at(valid, pixels.long())
        counts = valid.flatten(1).sum(1).to(heatmap)
    if valid_other is not None:
        counted = counted & _valid_at(valid_other, nearest)
    grid = (2 * landed + 1) / landed.new_tensor([[width], [height]]) - 1
    found = F.grid_sample(
        _sum_near(other, reach).clamp(max=1)[:, None],
        grid.mT.view(batch, height, width, 2),
        padding_mode="border",
        align_corners=False,
    )
    losses = heatmap.flatten(1) * (cost - found.flatten(1)) * counted
    return _mean(losses.sum(1), counts, "image")


def _sum_near(heatmap: Tensor, reach: int) -> Tensor:
    """Sums (B, H, W) over squares of 2 ``reach`` + 1 pixels, the outermost ring counted by half."""
    # Two means of squares, of 2 reach and of 2 pixels: many times faster than one convolution.
    squares = F.avg_pool2d(F.pad(heatmap, [reach] * 4), 2 * reach, 1)
    return F.avg_pool2d(squares, 2, 1) * (2 * reach) ** 2


def _log_heatmap(logits: Tensor) -> Tensor:
    """(B, 8 Hc, 8 Wc): the logarithm of `extraction.decode_heatmap`."""
    return F.pixel_shuffle(_promote(logits).log_softmax(1)[:, :-1], CELL_SIZE)[:, 0]


def _pixels_of(points: Tensor, cells: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Whole pixels (B, 2, N) of points, moved to the nearest of the image, and which were in it."""
    x, y = points.detach().round().nan_to_num(-1.0, -1.0, -1.0).unbind(1)
    height, width = (CELL_SIZE * n for n in cells)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return torch.stack((x.clamp(0, width - 1), y.clamp(0, height - 1)), 1).long(), inside


def _valid_at(valid: Tensor, pixels: Tensor) -> Tensor:
    """Whether whole pixels (B, 2, N) of the image lie in cells that are ``valid`` (B, Hc, Wc)."""
    x, y = (pixels // CELL_SIZE).unbind(1)
    return valid.flatten(1).gather(1, y * valid.shape[2] + x)


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


def _labelled_pixels(labels: Tensor) -> Tensor:
    """Labelled pixels (B, 2, N) as (x, y), a cell after the other; of the dustbin, the last one."""
    rows, columns = labels.shape[1:]
    cell_y = torch.arange(rows, device=labels.device)[:, None] * CELL_SIZE
    cell_x = torch.arange(columns, device=labels.device) * CELL_SIZE
    inner = labels.clamp(max=DUSTBIN - 1)
    pixels = (cell_x + inner % CELL_SIZE, cell_y + inner // CELL_SIZE)
    return torch.stack(pixels, dim=1).flatten(2)


# ------------------------------------------------------------------------------ geometry


def cell_centers(
    rows: int,
    columns: int,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Pixel positions (x, y) of the cell centres, row-major: (rows * columns, 2).

    Convention: 8 i + 3.5, the middle of pixels 8 i .. 8 i + 7 with pixel centres at integers.
    """
    y, x = torch.meshgrid(
        torch.arange(rows, device=device, dtype=dtype),
        torch.arange(columns, device=device, dtype=dtype),
        indexing="ij",
    )
    return torch.stack((x, y), dim=-1).reshape(-1, 2) * CELL_SIZE + (CELL_SIZE - 1) / 2


def positive_pairs(H_0to1: Tensor, rows: int, columns: int, distance: float = 7.5) -> Tensor:
    """Which cells of image 1 lie where a cell of image 0 lands.

    Args:
        H_0to1: (B, 3, 3), pixels of image 0 to pixels of image 1.
        rows, columns: size of the coarse grid, Hc and Wc.
        distance: pixels, inclusive. 7.5 leaves one positive per cell under the identity; the
            paper's 8 makes the four direct neighbours positive too.

    Returns:
        bool (B, N, N), N = Hc * Wc: [b, i, j] true where the centre of cell i of image 0, warped,
        is within ``distance`` of the centre of cell j of image 1.

    Source: DeTone et al., SuperPoint (2018), equation 4. Derived in notebook 04.
    """
    centers, warped = _warped_centers(H_0to1, rows, columns)
    return _within(warped[:, :, None], centers[None, None], distance)


def _warped_centers(H_0to1: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cell centres (N, 2) and where they land in image 1 (B, N, 2)."""
    centers = cell_centers(rows, columns, H_0to1.device, H_0to1.dtype)
    return centers, warp_points(centers.expand(len(H_0to1), -1, -1), H_0to1)


def _within(a: Tensor, b: Tensor, distance: float) -> Tensor:
    """Euclidean distance <= ``distance``, broadcast, without a square root."""
    return (a[..., 0] - b[..., 0]).square() + (a[..., 1] - b[..., 1]).square() <= distance**2


def _nearby_cells(
    H_0to1: Tensor, rows: int, columns: int, distance: float
) -> tuple[Tensor, Tensor]:
    """The true entries of `positive_pairs` without its (B, N, N) table.

    Returns flat indices (B, N, K) of the cells of image 1 around each landing place and which of
    them are positive; K = 9 for distances up to 12 px.
    """
    centers, warped = _warped_centers(H_0to1, rows, columns)
    reach = math.floor(distance / CELL_SIZE + 0.5)
    steps = torch.arange(-reach, reach + 1, device=warped.device)
    offset_x, offset_y = torch.cartesian_prod(steps, steps).unbind(-1)
    # Points at infinity have no cell; any far index will do, the distance below refuses them.
    grid = (
        ((warped - (CELL_SIZE - 1) / 2) / CELL_SIZE)
        .nan_to_num(-1e6)
        .clamp(-1e6, 1e6)
        .round()
        .long()
    )
    x, y = grid[:, :, :1] + offset_x, grid[:, :, 1:] + offset_y
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    index = y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1)
    return index, inside & _within(warped[:, :, None], centers[index], distance)


# --------------------------------------------------------------------------- dense hinge


@dataclass(frozen=True)
class HingeConfig:
    """Settings of the dense hinge loss; ``HINGE_PRESETS`` holds the published ones.

    lambda_d weighs the few positive pairs against the many negative ones. ``relu`` and
    ``double_normalisation`` act on the similarity matrix before the hinge: negative similarities
    become 0, then each row (cells of image 1) and after it each column (cells of image 0) is scaled
    to unit length, which asks for mutually unique matches. ``normalisation``: "valid" divides by
    the valid pairs of each image, "batch" by the valid pairs of the whole batch, "all" by every
    pair, (Hc Wc)^2 per image.
    """

    lambda_d: float = 250.0
    positive_margin: float = 1.0
    negative_margin: float = 0.2
    positive_distance: float = 7.5
    relu: bool = False
    double_normalisation: bool = False
    normalisation: HingeNormalisation = "valid"


#: paper: DeTone et al. 2018. rpautrat: superpoint_coco.yaml of the TensorFlow implementation by
#: Pautrat and Sarlin. eric: dense loss of pytorch-superpoint by Jau et al., with the lambda_d that
#: took effect. zeng-stage1: SuperPoint-Pytorch's training steps, normalisations commented out;
#: zeng: the same file as published.
HINGE_PRESETS: dict[str, HingeConfig] = {
    "default": HingeConfig(),
    "paper": HingeConfig(positive_distance=8.0, normalisation="all"),
    "rpautrat": HingeConfig(
        lambda_d=0.05, relu=True, double_normalisation=True, normalisation="batch"
    ),
    "eric": HingeConfig(positive_distance=4.0),
    "zeng": HingeConfig(lambda_d=0.05, relu=True, double_normalisation=True, normalisation="batch"),
    "zeng-stage1": HingeConfig(lambda_d=0.05, relu=True, normalisation="batch"),
}

#: The weight (lambda) each publication gives the descriptor loss beside the detector losses.
HINGE_LAMBDAS: dict[str, float] = {
    "default": 1.0,
    "paper": 1e-4,
    "rpautrat": 10000.0,
    "eric": 1.0,
    "zeng": 10000.0,
    "zeng-stage1": 10000.0,
}


def descriptor_hinge_loss(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H_0to1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    config: HingeConfig = HingeConfig(),
) -> Tensor:
    """Hinge loss over all pairs of cells, exact, with one matrix product.

    With s = `positive_pairs` and d the similarity of a pair, the mean over valid pairs of
    ``lambda_d s max(0, m_p - d) + (1 - s) max(0, d - m_n)``. The negative term is summed over the
    whole similarity matrix, then corrected at the few positives: no other N x N table is needed.

    Args:
        descriptors0, descriptors1: (B, D, Hc, Wc), unit length along D.
        H_0to1: (B, 3, 3), pixels of image 0 to pixels of image 1.
        valid0, valid1: bool (B, Hc, Wc), or None for all.
        config: margins, weights and the variants of the implementations.

    Returns:
        Scalar, >= 0.

    Raises:
        ValueError: shapes that do not belong together.

    Source: DeTone et al., SuperPoint (2018), equations 4-6. Derived in notebook 04.
    """
    rows, columns = _check_pair(descriptors0, descriptors1, H_0to1)
    with _full_precision(descriptors0):
        similarity = _similarity(descriptors0, descriptors1, config)
        index, positive = _nearby_cells(H_0to1, rows, columns, config.positive_distance)
        weights0 = _pair_weights(valid0, descriptors0, similarity)
        weights1 = _pair_weights(valid1, descriptors1, similarity)

        as_negative = (similarity - config.negative_margin).relu_()
        everywhere = (weights0[:, None] @ as_negative @ weights1[:, :, None]).flatten()
        close = similarity.gather(2, index)
        correction = config.lambda_d * F.relu(config.positive_margin - close) - F.relu(
            close - config.negative_margin
        )
        near = weights1.gather(1, index.flatten(1)).view_as(close)
        totals = everywhere + (correction * near * positive * weights0[:, :, None]).sum((1, 2))
        return _mean(totals, _pair_counts(weights0, weights1, config), _over(config))


def descriptor_hinge_loss_broadcast(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H_0to1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    config: HingeConfig = HingeConfig(),
) -> Tensor:
    """`descriptor_hinge_loss` written as its definition: every pair of cells spelled out.

    Builds a (B, D, Hc, Wc, Hc, Wc) tensor, 1.5 GB per image at 240 x 320: for toy sizes, to read
    and to test against. Same arguments and value.
    """
    rows, columns = _check_pair(descriptors0, descriptors1, H_0to1)
    shape = (len(H_0to1), rows, columns, rows, columns)
    products = descriptors0[:, :, :, :, None, None] * descriptors1[:, :, None, None, :, :]
    similarity = products.sum(1)
    if config.relu:
        similarity = F.relu(similarity)
    if config.double_normalisation:
        similarity = F.normalize(similarity.flatten(3), dim=3).view(shape)
        similarity = F.normalize(similarity.flatten(1, 2), dim=1).view(shape)
    s = positive_pairs(H_0to1, rows, columns, config.positive_distance).view(shape)
    losses = torch.where(
        s,
        config.lambda_d * (config.positive_margin - similarity).clamp_min(0),
        (similarity - config.negative_margin).clamp_min(0),
    )
    pairs = torch.ones_like(s)
    if valid0 is not None:
        pairs = pairs & valid0[:, :, :, None, None]
    if valid1 is not None:
        pairs = pairs & valid1[:, None, None, :, :]
    totals = (losses * pairs).flatten(1).sum(1)
    if config.normalisation == "all":
        return (totals / (rows * columns) ** 2).mean()
    return _mean(totals, pairs.flatten(1).sum(1), _over(config))


def _similarity(descriptors0: Tensor, descriptors1: Tensor, config: HingeConfig) -> Tensor:
    """(B, N, N) products of all descriptors, after the optional ReLU and normalisations."""
    flat0, flat1 = _promote(descriptors0).flatten(2), _promote(descriptors1).flatten(2)
    similarity = flat0.transpose(1, 2) @ flat1
    if config.relu:
        similarity = F.relu(similarity)
    if config.double_normalisation:
        similarity = F.normalize(F.normalize(similarity, dim=2), dim=1)
    return similarity


def _pair_counts(weights0: Tensor, weights1: Tensor, config: HingeConfig) -> Tensor:
    if config.normalisation == "all":
        return torch.full_like(weights0[:, 0], weights0.shape[1] * weights1.shape[1])
    return weights0.sum(1) * weights1.sum(1)


def _over(config: HingeConfig) -> Literal["image", "batch"]:
    return "batch" if config.normalisation == "batch" else "image"


# -------------------------------------------------------------------- InfoNCE and sparse


def descriptor_infonce_loss(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H_0to1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    temperature: float = 0.05,
    exclusion: float = 8.0,
) -> Tensor:
    """Cross-entropy of finding each cell of one image among the places of the other.

    Cell i of image 0 lands at w_i in image 1, where the descriptor p_i is sampled bilinearly and
    normalised again. The loss of the cell is ``-log softmax_k(<d_i, p_k> / temperature)`` at
    k = i, over the landing places k of the valid cells, without those other than i within
    ``exclusion`` px of w_i: too close to call wrong. Means over cells with a valid place in the
    other image, then over images, then over the two directions.

    Args:
        descriptors0, descriptors1: (B, D, Hc, Wc), unit length along D.
        H_0to1: (B, 3, 3), pixels of image 0 to pixels of image 1.
        valid0, valid1: bool (B, Hc, Wc), or None for all.
        temperature: of the softmax, > 0.
        exclusion: pixels, inclusive.

    Returns:
        Scalar, >= 0; about log N for descriptors that tell nothing.

    Raises:
        ValueError: shapes that do not belong together, or a temperature that is not positive.

    Source: van den Oord et al., Representation Learning with Contrastive Predictive Coding (2018),
    equation 4. Derived in notebook 04.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, must be above 0")
    _check_pair(descriptors0, descriptors1, H_0to1)
    d0, d1 = _promote(descriptors0), _promote(descriptors1)
    forward = _infonce_one_way(d0, d1, H_0to1, valid0, valid1, temperature, exclusion)
    backward = _infonce_one_way(d1, d0, adjugate(H_0to1), valid1, valid0, temperature, exclusion)
    return (forward + backward) / 2


def _infonce_one_way(
    source: Tensor,
    target: Tensor,
    H: Tensor,
    valid_source: Tensor | None,
    valid_target: Tensor | None,
    temperature: float,
    exclusion: float,
) -> Tensor:
    with _full_precision(source):
        warped, usable = _landing(H, valid_source, valid_target, source)
        sampled = _sample(target, warped)
    # Under autocast in bfloat16, a product of unit vectors is off by 0.002 at most, and it is most
    # of the work. Everything that adds up, the softmax above all, is computed in full.
    similarity = (source.flatten(2) / temperature).transpose(1, 2) @ sampled
    with _full_precision(source):
        logits = _promote(similarity)
        with torch.no_grad():
            left_out = torch.cdist(warped, warped) <= exclusion
            left_out |= ~usable[:, None]
            # The diagonal always stays, so that no row is empty: an empty one has NaN gradients.
            left_out.diagonal(dim1=1, dim2=2).fill_(False)
        batch, cells = usable.shape
        own_place = torch.arange(cells, device=logits.device).repeat(batch)
        rows = logits.masked_fill_(left_out, -math.inf).flatten(0, 1)
        losses = F.cross_entropy(rows, own_place, reduction="none").view(batch, cells)
        weights = usable.to(losses.dtype)
        return _mean((losses * weights).sum(1), weights.sum(1), "image")


def descriptor_sparse_loss(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H_0to1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    generator: torch.Generator | None = None,
    matches: int = 1000,
    negatives: int = 100,
    lambda_d: float = 1.0,
    positive_margin: float = 1.0,
    negative_margin: float = 0.2,
    exclusion: float = 8.0,
) -> Tensor:
    """Hinge loss on a random sample of matches and of negatives for each.

    ``lambda_d mean max(0, m_p - d_match) + mean max(0, d_negative - m_n)``, each mean over its own
    pairs within an image, then over images: the balance no longer depends on the image size. The
    descriptor of image 1 is sampled bilinearly where the cell of image 0 lands.

    Args:
        descriptors0, descriptors1: (B, D, Hc, Wc), unit length along D.
        H_0to1: (B, 3, 3), pixels of image 0 to pixels of image 1.
        valid0, valid1: bool (B, Hc, Wc), or None for all.
        generator: source of the sample; None takes PyTorch's global one.
        matches: cells of image 0 drawn per image, without repetition (all when there are fewer).
        negatives: cells of image 1 drawn per match; those within ``exclusion`` px of the true
            place, or not valid, are dropped.

    Returns:
        Scalar, >= 0.

    Raises:
        ValueError: shapes that do not belong together.

    Source: after the sparse loss of Jau et al., pytorch-superpoint. Derived in notebook 04.
    """
    rows, columns = _check_pair(descriptors0, descriptors1, H_0to1)
    device = descriptors0.device
    draw_on = device if generator is None else generator.device
    with _full_precision(descriptors0):
        d0, d1 = _promote(descriptors0).flatten(2), _promote(descriptors1)
        warped, usable = _landing(H_0to1, valid0, valid1, d1)
        batch, cells = usable.shape
        order = torch.rand(batch, cells, generator=generator, device=draw_on).to(device)
        chosen = (order - 2.0 * ~usable).topk(min(matches, cells), dim=1).indices
        drawn = torch.randint(
            cells, (batch, chosen.shape[1], negatives), generator=generator, device=draw_on
        ).to(device)

        anchors = d0.gather(2, chosen[:, None].expand(-1, d0.shape[1], -1))
        places = warped.gather(1, chosen[:, :, None].expand(-1, -1, 2))
        kept = usable.gather(1, chosen)
        match = (anchors * _sample(d1, places)).sum(1)
        wrong = (anchors.transpose(1, 2) @ d1.flatten(2)).gather(2, drawn)

        centers = cell_centers(rows, columns, device, warped.dtype)
        countable = kept[:, :, None] & ~_within(places[:, :, None], centers[drawn], exclusion)
        if valid1 is not None:
            countable &= valid1.flatten(1).gather(1, drawn.flatten(1)).view_as(drawn)
        positive = F.relu(positive_margin - match) * kept
        negative = F.relu(wrong - negative_margin) * countable
        return lambda_d * _mean(positive.sum(1), kept.sum(1), "image") + _mean(
            negative.sum((1, 2)), countable.sum((1, 2)), "image"
        )


def _landing(
    H: Tensor, valid_source: Tensor | None, valid_target: Tensor | None, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the cells land (B, N, 2), and whether both ends are valid and inside (B, N).

    Places outside are moved to the border, finite, so that sampling there stays harmless.
    """
    rows, columns = like.shape[-2:]
    x, y = _warped_centers(H, rows, columns)[1].unbind(-1)
    last_x, last_y = columns * CELL_SIZE - 1, rows * CELL_SIZE - 1
    usable = (x >= 0) & (x <= last_x) & (y >= 0) & (y <= last_y)
    x, y = x.nan_to_num(0.0).clamp(0, last_x), y.nan_to_num(0.0).clamp(0, last_y)
    if valid_source is not None:
        usable = usable & valid_source.flatten(1)
    if valid_target is not None:
        cell_x, cell_y = (((v + 0.5) / CELL_SIZE).floor().long() for v in (x, y))
        usable = usable & valid_target.flatten(1).gather(1, cell_y * columns + cell_x)
    return torch.stack((x, y), dim=-1), usable


def _sample(descriptors: Tensor, points: Tensor) -> Tensor:
    """Unit descriptors (B, D, K) at pixels ``points`` (B, K, 2): bilinear, border padding."""
    rows, columns = descriptors.shape[-2:]
    x, y = points.to(descriptors.dtype).unbind(-1)
    # grid_sample puts the image edges, pixels -0.5 and size - 0.5, at -1 and 1.
    scaled = ((2 * x + 1) / (columns * CELL_SIZE) - 1, (2 * y + 1) / (rows * CELL_SIZE) - 1)
    grid = torch.stack(scaled, dim=-1)[:, :, None]
    sampled = F.grid_sample(descriptors, grid, padding_mode="border", align_corners=False)
    return F.normalize(sampled.squeeze(-1), dim=1)


# -------------------------------------------------------------------------------- shared


def _full_precision(like: Tensor) -> torch.autocast:
    """Switches autocast off: sums over thousands of pairs need float32."""
    return torch.autocast(like.device.type, enabled=False)


def _promote(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _cell_weights(valid: Tensor | None, like: Tensor) -> Tensor:
    return torch.ones_like(like) if valid is None else valid.to(like.dtype)


def _pair_weights(valid: Tensor | None, descriptors: Tensor, like: Tensor) -> Tensor:
    """(B, N) one for valid cells, zero for the others."""
    if valid is None:
        return like.new_ones(descriptors.shape[0], descriptors.shape[2] * descriptors.shape[3])
    return valid.flatten(1).to(like.dtype)


def _mean(totals: Tensor, counts: Tensor, over: Literal["image", "batch"]) -> Tensor:
    """Totals (B,) divided by counts (B,) per image and averaged, or in one division."""
    if over == "batch":
        return totals.sum() / counts.sum().clamp_min(1)
    return (totals / counts.clamp_min(1)).mean()


def _check_pair(descriptors0: Tensor, descriptors1: Tensor, H_0to1: Tensor) -> tuple[int, int]:
    """Rows and columns of the coarse grid."""
    if descriptors0.shape != descriptors1.shape or descriptors0.ndim != 4:
        raise ValueError(
            f"descriptors have shapes {tuple(descriptors0.shape)} and {tuple(descriptors1.shape)}, "
            "expected (B, D, Hc, Wc) twice"
        )
    if H_0to1.shape != (len(descriptors0), 3, 3):
        raise ValueError(
            f"H_0to1 has shape {tuple(H_0to1.shape)}, expected ({len(descriptors0)}, 3, 3)"
        )
    return descriptors0.shape[2], descriptors0.shape[3]
