"""Figures of images and what was found in them: keypoints, heatmaps, cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from superpoint_lib.plotting.arrays import (
    Array,
    as_list,
    heat,
    score_colors,
    score_strength,
    to_numpy,
    to_points,
    to_rgb,
)
from superpoint_lib.plotting.style import COLORS, WIDTH, Picture, new_figure, styled


@styled
def plot_images(
    images: Sequence[Array] | Array,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    width: float = WIDTH,
    colormap: str | None = None,
) -> Picture:
    """Show images in a grid with titles.

    Args:
        images: a list of images ((H, W), (H, W, 3) ...), a stack (N, H, W), or one (H, W) array.
            Their sizes may differ.
        titles: one text per image.
        columns: images per row; by default all in one row up to four.
        width: of the figure in inches.
        colormap: a matplotlib colour map for (H, W) arrays of numbers, scaled to each array's own
            range; None shows them as gray images in [0, 1].

    Returns:
        The figure; empty when there are no images.

    Raises:
        ValueError: an image that cannot be drawn, or fewer titles than images.
    """
    return image_axes(as_list(images, 2), titles, columns, width, colormap)[0]


def draw_keypoints(
    ax: Axes, keypoints: Array, scores: Array | None = None, color: str | None = None
) -> None:
    """Draw keypoints as circles on axes that show an image.

    Args:
        ax: axes whose data coordinates are pixels.
        keypoints: (N, 2) as (x, y); N may be 0.
        scores: (N,); larger and brighter circles for higher scores. None draws all alike.
        color: one colour for all; by default the score's colour, or green without scores.

    Raises:
        ValueError: shapes that do not fit together.
    """
    points = to_points(keypoints)
    strength = score_strength(scores, len(points))
    order = np.argsort(strength)
    points, strength = points[order], strength[order]
    edge: Any
    if color is not None or scores is None:
        edge = color or COLORS["green"]
    else:
        edge = score_colors(strength)
    area: Any = (3.5 + 4.5 * strength) ** 2 if scores is not None else 36.0
    for color_, thickness in (("#00000099", 2.6), (edge, 1.3)):
        ax.scatter(
            points[:, 0], points[:, 1], s=area, facecolors="none", edgecolors=color_, lw=thickness
        )


@styled
def plot_keypoints(
    images: Sequence[Array] | Array,
    keypoints: Sequence[Array] | Array,
    scores: Sequence[Array] | Array | None = None,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    width: float = WIDTH,
) -> Picture:
    """Show images with their keypoints.

    Args:
        images: as for :func:`plot_images`.
        keypoints: (N, 2) as (x, y) for each image (one array for one image); N may be 0.
        scores: (N,) for each image; larger and brighter circles for higher scores.
        titles: one text per image; by default the number of keypoints.
        columns: images per row.
        width: of the figure in inches.

    Returns:
        The figure.

    Raises:
        ValueError: lists of different lengths, or arrays that do not fit together.
    """
    pictures = as_list(images, 2)
    points = as_list(keypoints, 2)
    values = [None] * len(points) if scores is None else as_list(scores, 1)
    if not len(pictures) == len(points) == len(values):
        raise ValueError(
            f"{len(pictures)} images, {len(points)} keypoint arrays, {len(values)} score arrays: "
            "give one of each per image"
        )
    if titles is None:
        titles = [f"{len(p)} keypoints" for p in points]
    figure, axes = image_axes(pictures, titles, columns, width)
    for ax, kpts, score in zip(axes, points, values, strict=True):
        draw_keypoints(ax, kpts, score)
    return figure


@styled
def plot_heatmap(
    images: Sequence[Array] | Array,
    heatmaps: Sequence[Array] | Array,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    width: float = WIDTH,
    exponent: float = 0.5,
) -> Picture:
    """Lay detection heatmaps over images.

    Args:
        images: (H, W) for each heatmap, or one image for all of them.
        heatmaps: (H, W) for each panel: a list, a stack (N, H, W) or one array; non-negative.
        titles: one text per heatmap.
        columns: panels per row.
        width: of the figure in inches.
        exponent: shown is (heatmap / maximum over all panels) ** exponent, so that weak responses
            stay visible when it is below 1.

    Returns:
        The figure, with a colour bar in the heatmap's own units.

    Raises:
        ValueError: shapes that do not fit together.
    """
    maps = [to_numpy(h).astype(np.float64) for h in as_list(heatmaps, 2)]
    pictures = as_list(images, 2)
    if len(pictures) == 1:
        pictures = pictures * len(maps)
    if len(pictures) != len(maps):
        raise ValueError(f"{len(pictures)} images and {len(maps)} heatmaps")
    highest = max((float(h.max()) for h in maps), default=0.0) or 1.0
    figure, axes = image_axes([to_rgb(p) // 2 for p in pictures], titles, columns, width, bar=True)
    norm = matplotlib.colors.PowerNorm(exponent, 0.0, highest)
    shown = None
    for ax, heatmap in zip(axes, maps, strict=True):
        _, alpha = heat(heatmap, highest, exponent)
        shown = ax.imshow(heatmap, cmap="inferno", norm=norm, alpha=alpha)
    if shown is not None:
        solid = matplotlib.cm.ScalarMappable(norm, "inferno")
        bar = figure.colorbar(
            solid, ax=axes, fraction=0.03, pad=0.01, aspect=25, ticks=MaxNLocator(4)
        )
        bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


@styled
def plot_cells(
    image: Array,
    keypoints: Array,
    labels: Array | None = None,
    origin: tuple[int, int] = (0, 0),
    cells: tuple[int, int] = (5, 8),
    width: float = WIDTH,
) -> Picture:
    """Lay the 8 x 8 cell grid over part of an image and write each cell's class into it.

    Args:
        image: (H, W) or (H, W, 3).
        keypoints: (N, 2) as (x, y).
        labels: (H/8, W/8) integers in 0..64; a cell's number dy * 8 + dx is written in its corner
            and the pixel it names is framed; the dustbin (64) is left blank. None draws the grid
            alone.
        origin: (row, column) of the first cell shown.
        cells: (rows, columns) of cells shown.
        width: of the figure in inches.

    Returns:
        The figure.

    Raises:
        ValueError: the chosen part lies outside the image.

    Convention: cell (r, c) covers pixels 8 c .. 8 c + 7 by 8 r .. 8 r + 7.
    """
    rgb = to_rgb(image)
    (row, column), (rows, columns) = origin, cells
    rows, columns = min(rows, rgb.shape[0] // 8 - row), min(columns, rgb.shape[1] // 8 - column)
    if rows <= 0 or columns <= 0:
        raise ValueError(
            f"cell {origin} lies outside an image of {rgb.shape[0]} x {rgb.shape[1]} pixels"
        )
    figure, (ax,) = image_axes([rgb], None, 1, width)
    left, top = 8 * column - 0.5, 8 * row - 0.5
    figure.set_size_inches(width, width * rows / columns)
    vertical = [[(left + 8 * i, top), (left + 8 * i, top + 8 * rows)] for i in range(columns + 1)]
    horizontal = [[(left, top + 8 * i), (left + 8 * columns, top + 8 * i)] for i in range(rows + 1)]
    ax.add_collection(LineCollection(vertical + horizontal, colors=COLORS["sky"], linewidths=1.2))
    if labels is not None:
        _write_cell_labels(
            ax, to_numpy(labels)[row : row + rows, column : column + columns], row, column
        )
    points = to_points(keypoints)
    inside = ((points > (left, top)) & (points < (left + 8 * columns, top + 8 * rows))).all(axis=1)
    ax.scatter(
        points[inside, 0],
        points[inside, 1],
        s=26,
        color=COLORS["orange"],
        edgecolors="black",
        linewidths=0.8,
        zorder=3,
    )
    ax.set_xlim(left, left + 8 * columns)
    ax.set_ylim(top + 8 * rows, top)
    return figure


def _write_cell_labels(ax: Axes, labels: NDArray[Any], row: int, column: int) -> None:
    box = {"facecolor": "black", "alpha": 0.65, "edgecolor": "none", "pad": 1.5}
    for r, c in np.argwhere(labels < 64):
        y, x = 8 * (row + r), 8 * (column + c)
        dy, dx = divmod(int(labels[r, c]), 8)
        ax.add_patch(
            Rectangle((x + dx - 0.5, y + dy - 0.5), 1, 1, fill=False, ec=COLORS["yellow"], lw=1.6)
        )
        # The number stands in the corner farthest from the pixel that it names.
        at_x, side = (x + 7.3, "right") if dx < 4 else (x - 0.3, "left")
        at_y, level = (y + 7.2, "bottom") if dy < 4 else (y - 0.2, "top")
        ax.text(
            at_x, at_y, str(labels[r, c]), color="white", ha=side, va=level, fontsize=10, bbox=box
        )


def image_axes(
    images: Sequence[Array],
    titles: Sequence[str] | None,
    columns: int | None,
    width: float,
    colormap: str | None = None,
    bar: bool = False,
) -> tuple[Picture, list[Axes]]:
    """A grid of axes that show images, sized so that the pictures fill the figure's width."""
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(images)} images but {len(titles)} titles")
    if not len(images):
        return new_figure(width, 0.2), []
    pictures = [to_numpy(i) if colormap else to_rgb(i) for i in images]
    columns = min(columns or 4, len(pictures))
    rows = -(-len(pictures) // columns)
    aspects = [p.shape[1] / p.shape[0] for p in pictures]
    # In a single row, widths follow the aspect ratios so that all pictures are equally high.
    ratios = aspects if rows == 1 else [max(aspects)] * columns
    lines = max((t.count("\n") + 1 for t in titles), default=0) if titles is not None else 0
    tallest = 1.0 if rows == 1 else max(aspects) / min(aspects)
    row_height = (width - 0.08 * columns - 0.5 * bar) / sum(ratios) * tallest
    figure = new_figure(width, rows * (row_height + 0.22 * lines + 0.06))
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.01, hspace=0.01)
    grid = figure.add_gridspec(rows, columns, width_ratios=ratios)
    axes = [figure.add_subplot(grid[divmod(i, columns)]) for i in range(len(pictures))]
    for i, (ax, picture) in enumerate(zip(axes, pictures, strict=True)):
        ax.imshow(picture, cmap=colormap)
        ax.set_axis_off()
        ax.autoscale(False)
        if titles is not None:
            ax.set_title(titles[i], pad=4)
    return figure, axes
