"""Which cells of two images correspond, and which count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from superpoint_lib.geometry import warp_points
from superpoint_lib.geometry.cells import CELL_SIZE, DUSTBIN


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
    centers, warped = warped_centers(H_0to1, rows, columns)
    return within(warped[:, :, None], centers[None, None], distance)


def warped_centers(H_0to1: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Cell centres (N, 2) and where they land in image 1 (B, N, 2)."""
    centers = cell_centers(rows, columns, H_0to1.device, H_0to1.dtype)
    return centers, warp_points(centers.expand(len(H_0to1), -1, -1), H_0to1)


def within(a: Tensor, b: Tensor, distance: float) -> Tensor:
    """Euclidean distance <= ``distance``, broadcast, without a square root."""
    return (a[..., 0] - b[..., 0]).square() + (a[..., 1] - b[..., 1]).square() <= distance**2


def valid_at(valid: Tensor, pixels: Tensor) -> Tensor:
    """Whether whole pixels (B, 2, N) of the image lie in cells that are ``valid`` (B, Hc, Wc)."""
    x, y = (pixels // CELL_SIZE).unbind(1)
    return valid.flatten(1).gather(1, y * valid.shape[2] + x)


def labelled_pixels(labels: Tensor) -> Tensor:
    """Labelled pixels (B, 2, N) as (x, y), a cell after the other; of the dustbin, the last one."""
    rows, columns = labels.shape[1:]
    cell_y = torch.arange(rows, device=labels.device)[:, None] * CELL_SIZE
    cell_x = torch.arange(columns, device=labels.device) * CELL_SIZE
    inner = labels.clamp(max=DUSTBIN - 1)
    pixels = (cell_x + inner % CELL_SIZE, cell_y + inner // CELL_SIZE)
    return torch.stack(pixels, dim=1).flatten(2)


def keypoint_places(labels: Tensor, offsets: Tensor) -> Tensor:
    """A pixel (x, y) of each cell: its keypoint, or its centre where it has none.

    Args:
        labels: int64 (B, Hc, Wc), 0..64.
        offsets: (B, 2, Hc, Wc), see `label_offsets`.

    Returns:
        (B, Hc Wc, 2), row-major, in the type of ``offsets``.
    """
    rows, columns = labels.shape[1:]
    centers = cell_centers(rows, columns, labels.device, offsets.dtype).T
    found = (labels < DUSTBIN).flatten(1)[:, None]
    keypoints = labelled_pixels(labels) + offsets.flatten(2)
    return torch.where(found, keypoints, centers).mT


def nearby_cells(H_0to1: Tensor, rows: int, columns: int, distance: float) -> tuple[Tensor, Tensor]:
    """The true entries of `positive_pairs` without its (B, N, N) table.

    Returns flat indices (B, N, K) of the cells of image 1 around each landing place and which of
    them are positive; K = 9 for distances below 12 px.
    """
    centers, warped = warped_centers(H_0to1, rows, columns)
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
    return index, inside & within(warped[:, :, None], centers[index], distance)
