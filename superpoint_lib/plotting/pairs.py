"""Figures of two images and what connects them: matches and homographies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from superpoint_lib.geometry import invert_homographies, warp_image, warp_points
from superpoint_lib.plotting.arrays import (
    Array,
    match_segments,
    side_by_side,
    to_matches,
    to_numpy,
    to_points,
    to_rgb,
)
from superpoint_lib.plotting.images import image_axes
from superpoint_lib.plotting.style import COLORS, CORRECT, SERIES, WIDTH, WRONG, Picture, styled


@dataclass(frozen=True)
class MatchedPair:
    """Two images and the matches between them, for :func:`plot_pairs`.

    Shapes are those of :func:`plot_matches`; ``title`` stands above the pair.
    """

    image0: Array
    image1: Array
    keypoints0: Array
    keypoints1: Array
    matches: Array
    correct: Array | None = None
    title: str | None = None


@styled
def plot_matches(
    image0: Array,
    image1: Array,
    keypoints0: Array,
    keypoints1: Array,
    matches: Array,
    correct: Array | None = None,
    title: str | None = None,
    width: float = WIDTH,
) -> Picture:
    """Draw matches as lines between two images.

    Args:
        image0: (H0, W0) or (H0, W0, 3).
        image1: (H1, W1) or (H1, W1, 3).
        keypoints0: (N0, 2) as (x, y); all are drawn as dots.
        keypoints1: (N1, 2) as (x, y).
        matches: (M, 2) indices into the two keypoint arrays; M may be 0.
        correct: (M,) bool; correct matches are green, wrong ones vermillion, with a legend. None
            draws all sky blue.
        title: by default the number of matches (and of correct ones).
        width: of the figure in inches.

    Returns:
        The figure.

    Raises:
        ValueError: shapes that do not fit together.
    """
    pair = MatchedPair(image0, image1, keypoints0, keypoints1, matches, correct, title)
    return plot_pairs([pair], columns=1, width=width)


@styled
def plot_pairs(pairs: Sequence[MatchedPair], columns: int = 2, width: float = WIDTH) -> Picture:
    """Draw several matched pairs in a grid, e.g. the ones with the largest errors.

    Args:
        pairs: what to draw; see :class:`MatchedPair`.
        columns: pairs per row.
        width: of the figure in inches.

    Returns:
        The figure, with one legend when any pair knows which matches are correct; empty without
        pairs.

    Raises:
        ValueError: shapes that do not fit together.
    """
    canvases = [side_by_side(to_rgb(p.image0), to_rgb(p.image1)) for p in pairs]
    titles = [_pair_title(p) for p in pairs]
    figure, axes = image_axes(
        [c for c, _ in canvases], titles, min(columns, max(len(pairs), 1)), width
    )
    for ax, pair, (_, offset) in zip(axes, pairs, canvases, strict=True):
        _draw_matches(ax, pair, offset)
    if any(p.correct is not None for p in pairs):
        lines = [Line2D([], [], color=c, lw=2) for c in (CORRECT, WRONG)]
        if len(pairs) == 1:
            axes[0].set_title(titles[0], loc="left", pad=4)
            axes[0].set_title("")
            axes[0].legend(
                lines, ["correct", "wrong"], ncols=2, loc="lower right",
                bbox_to_anchor=(1.0, 1.0), borderaxespad=0.0, borderpad=0.2,
            )  # fmt: skip
        else:
            figure.legend(lines, ["correct", "wrong"], ncols=2, loc="outside lower center")
            figure.set_figheight(figure.get_figheight() + 0.3)
    return figure


def _pair_title(pair: MatchedPair) -> str:
    if pair.title is not None:
        return pair.title
    count = len(to_matches(pair.matches))
    if pair.correct is None:
        return f"{count} matches"
    return f"{count} matches, {int(to_numpy(pair.correct).astype(bool).sum())} correct"


def _draw_matches(ax: Axes, pair: MatchedPair, offset: NDArray[np.float64]) -> None:
    points0, points1 = to_points(pair.keypoints0), to_points(pair.keypoints1) + offset
    everything = np.concatenate([points0, points1])
    ax.scatter(
        everything[:, 0], everything[:, 1], s=5, color=COLORS["yellow"], linewidths=0, alpha=0.8
    )
    segments, colors = match_segments(points0, points1, pair.matches, pair.correct)
    # Wrong matches go on top, and many lines get thinner and paler so that the images stay visible.
    order = np.argsort(colors == WRONG, kind="stable")
    crowd = np.sqrt(len(segments) + 1.0)
    lines = LineCollection(
        list(segments[order]),
        colors=list(colors[order]),
        linewidths=float(np.clip(12.0 / crowd, 0.6, 1.6)),
        alpha=float(np.clip(10.0 / crowd, 0.5, 0.85)),
    )
    ax.add_collection(lines)
    ends = segments[order].reshape(-1, 2)
    ax.scatter(ends[:, 0], ends[:, 1], s=9, c=list(np.repeat(colors[order], 2)), linewidths=0)


@styled
def plot_warps(
    image: Array,
    homographies: Array,
    titles: Sequence[str] | None = None,
    columns: int | None = None,
    width: float = WIDTH,
) -> Picture:
    """Show an image before and after homographies.

    The first panel is the image with the outline of what each warped picture shows; the others are
    the warped pictures, framed in the same colours.

    Args:
        image: float (H, W) in [0, 1].
        homographies: (N, 3, 3), image pixels to warped-image pixels.
        titles: one text per homography.
        columns: panels per row.
        width: of the figure in inches.

    Returns:
        The figure.

    Raises:
        ValueError: shapes that do not fit together.
    """
    gray = to_numpy(image).astype(np.float32)
    matrices = to_numpy(homographies).astype(np.float64).reshape(-1, 3, 3)
    height, width_px = gray.shape
    warped = [warp_image(gray, matrix) for matrix in matrices]
    labels = [
        "image",
        *(titles if titles is not None else [f"warp {i + 1}" for i in range(len(warped))]),
    ]
    figure, axes = image_axes([gray, *warped], labels, columns, width)
    frame = np.array(
        [[0, 0], [width_px - 1, 0], [width_px - 1, height - 1], [0, height - 1]], float
    )
    outlines = warp_points(
        np.broadcast_to(frame, (len(matrices), 4, 2)), invert_homographies(matrices)
    )
    colors = [SERIES[i % len(SERIES)] for i in range(len(matrices))]
    axes[0].add_collection(
        PolyCollection(list(outlines), facecolors="none", edgecolors=colors, linewidths=2)
    )
    for ax, color in zip(axes[1:], colors, strict=True):
        ax.add_patch(Rectangle((0, 0), width_px - 1, height - 1, fill=False, ec=color, lw=4))
    return figure
