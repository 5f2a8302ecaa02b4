"""What the detector should answer: classes or probabilities of cells, and which cells count."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from superpoint_lib.geometry.cells import CELL_SIZE, DUSTBIN

ArrayOrTensor = TypeVar("ArrayOrTensor", np.ndarray, Tensor)


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
        float32 (65, height / 8, width / 8), >= 0 up to rounding, of sum 1 in each cell;
        channel ``dy * 8 + dx`` is a pixel of the cell, 64 the dustbin.

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
    # Divided by the larger one first, or both would vanish with a large exponent.
    larger = np.maximum(probabilities, 1 - probabilities)
    p, q = (probabilities / larger) ** exponent, ((1 - probabilities) / larger) ** exponent
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
