"""Pictures drawn with OpenCV into uint8 RGB arrays: fast, for what is redrawn often."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from superpoint_lib.plotting.arrays import (
    Array,
    heat,
    match_segments,
    score_colors,
    score_strength,
    side_by_side,
    to_numpy,
    to_points,
    to_rgb,
)
from superpoint_lib.plotting.style import COLORS, CORRECT, UNKNOWN, WRONG

_LEVELS = 8
_SHIFT = 4


def render_keypoints(
    image: Array,
    keypoints: Array,
    scores: Array | None = None,
    width: int | None = None,
) -> NDArray[np.uint8]:
    """Draw keypoints as circles on an image, fast.

    Strong keypoints are larger and brighter (both follow the square root of the score over the
    highest score).

    Args:
        image: (H, W) or (H, W, 3), see :func:`to_rgb`.
        keypoints: (N, 2) as (x, y) in pixels of ``image``; N may be 0.
        scores: (N,), any non-negative scale; None draws all alike.
        width: width of the result in pixels; None keeps the image's own.

    Returns:
        uint8 (height, width, 3) RGB.

    Raises:
        ValueError: shapes that do not fit together.

    Convention: pixel centres at integers, so enlarging by s moves x to s (x + 0.5) - 0.5.
    """
    canvas, scale = _resize_to(to_rgb(image), width)
    points = scale * (to_points(keypoints) + 0.5) - 0.5
    strength = score_strength(scores, len(points))
    level = np.minimum((strength * _LEVELS).astype(int), _LEVELS - 1)
    middles = (np.arange(_LEVELS) + 0.5) / _LEVELS
    colors = score_colors(middles)
    for index in np.unique(level):  # weakest first: strong points end on top
        chosen, radius = points[level == index], 2.0 + 3.2 * middles[index]
        # A dark rim outside the ring keeps it visible on white without filling its middle.
        _polylines(canvas, _circles(chosen, radius + 1.2), (0, 0, 0), closed=True)
        _polylines(canvas, _circles(chosen, radius), _rgb(colors[index]), closed=True)
    return canvas


def render_heatmap(image: Array, heatmap: Array, exponent: float = 0.5) -> NDArray[np.uint8]:
    """Lay a detection heatmap over an image, fast; the colours are those of :func:`plot_heatmap`.

    Args:
        image: (H, W) or (H, W, 3), see :func:`to_rgb`; darkened to half.
        heatmap: (H, W), non-negative.
        exponent: shown is (heatmap / its maximum) ** exponent.

    Returns:
        uint8 (H, W, 3) RGB.

    Raises:
        ValueError: image and heatmap of different sizes.
    """
    dark, values = to_rgb(image) // 2, to_numpy(heatmap).astype(np.float32)
    if values.shape != dark.shape[:2]:
        raise ValueError(f"image of {dark.shape[:2]} pixels, but heatmap of shape {values.shape}")
    shown, alpha = heat(values, float(values.max(initial=0.0)), exponent)
    colors = cv2.applyColorMap((255 * shown).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return (dark + alpha[..., None] * (colors.astype(np.float32) - dark)).astype(np.uint8)


def render_matches(
    image0: Array,
    image1: Array,
    keypoints0: Array,
    keypoints1: Array,
    matches: Array,
    correct: Array | None = None,
    width: int | None = None,
) -> NDArray[np.uint8]:
    """Draw two images side by side with a line for each match, fast.

    Args:
        image0: (H0, W0) or (H0, W0, 3), see :func:`to_rgb`.
        image1: (H1, W1) or (H1, W1, 3).
        keypoints0: (N0, 2) as (x, y); drawn as small dots.
        keypoints1: (N1, 2) as (x, y).
        matches: (M, 2) indices into the two keypoint arrays; M may be 0.
        correct: (M,) bool colours the lines green (correct) or vermillion (wrong); None: all sky
            blue.
        width: width of the result in pixels; None keeps the images' own size.

    Returns:
        uint8 (height, width, 3) RGB.

    Raises:
        ValueError: shapes that do not fit together.
    """
    canvas, offset = side_by_side(to_rgb(image0), to_rgb(image1))
    canvas, scale = _resize_to(canvas, width)
    points0 = scale * (to_points(keypoints0) + 0.5) - 0.5
    points1 = scale * (to_points(keypoints1) + offset + 0.5) - 0.5
    dots = _circles(np.concatenate([points0, points1]), 1.5)
    _polylines(canvas, dots, _rgb(matplotlib.colors.to_rgb(COLORS["yellow"])), closed=True)
    segments, colors = match_segments(points0, points1, matches, correct)
    for color in (UNKNOWN, CORRECT, WRONG):  # wrong ones last: they are what one looks for
        chosen = segments[colors == color]
        rgb = _rgb(matplotlib.colors.to_rgb(color))
        _polylines(canvas, chosen, rgb)
        _polylines(canvas, _circles(chosen.reshape(-1, 2), 2.5), rgb, closed=True)
    return canvas


def render_grid(
    images: Sequence[Array],
    titles: Sequence[str] | None = None,
    columns: int = 4,
    width: int = 800,
) -> NDArray[np.uint8]:
    """Lay images out in a grid, fast.

    Args:
        images: each (H, W) or (H, W, 3), see :func:`to_rgb`; shown in tiles of the first one's
            shape.
        titles: a short ASCII text above each image.
        columns: images per row.
        width: width of the result in pixels.

    Returns:
        uint8 (height, width, 3) RGB on white; (1, width, 3) when there are no images.

    Raises:
        ValueError: an image that cannot be drawn, or titles that are not one for each.
    """
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"{len(images)} images but {len(titles)} titles")
    gap, header = 4, 20 if titles is not None else 0
    columns = max(1, min(columns, len(images)))
    tile = (width - gap * (columns - 1)) // columns
    rows = [
        list(range(start, min(start + columns, len(images))))
        for start in range(0, len(images), columns)
    ]
    if not rows:
        return np.full((1, width, 3), 255, np.uint8)
    height = round(tile * to_rgb(images[0]).shape[0] / to_rgb(images[0]).shape[1])
    canvas = np.full((len(rows) * (height + header + gap) - gap, width, 3), 255, np.uint8)
    for row, indices in enumerate(rows):
        top = row * (height + header + gap) + header
        for column, index in enumerate(indices):
            left = column * (tile + gap)
            canvas[top : top + height, left : left + tile] = _resize(
                to_rgb(images[index]), tile, height
            )
            if titles is not None:
                cv2.putText(
                    canvas, titles[index], (left + 2, top - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.45,
                    (0, 0, 0), 1, cv2.LINE_AA,
                )  # fmt: skip
    return canvas


def _resize(image: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    if image.shape[:2] == (height, width):
        return image
    shrinking = width < image.shape[1]
    resized = cv2.resize(
        image, (width, height), interpolation=cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR
    )
    return np.asarray(resized, np.uint8)


def _resize_to(
    image: NDArray[np.uint8], width: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """The image at a given width (a copy that may be drawn on) and its (sx, sy) scale."""
    old_height, old_width = image.shape[:2]
    if width is None or width == old_width:
        return image.copy(), np.ones(2)
    height = max(1, round(old_height * width / old_width))
    return _resize(image, width, height), np.array([width / old_width, height / old_height])


def _circles(centers: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Polygons (N, 12, 2) around centres: OpenCV draws all of them in one call."""
    angles = np.arange(12) * (2 * np.pi / 12)
    return centers[:, None] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=-1)


def _polylines(
    canvas: NDArray[np.uint8],
    lines: NDArray[np.float64],
    color: tuple[int, int, int],
    closed: bool = False,
    thickness: int = 1,
) -> None:
    finite = lines[np.isfinite(lines).all(axis=(1, 2))]
    if len(finite):
        # Fixed-point coordinates keep sub-pixel positions; the bound keeps them inside int32.
        fixed = np.rint(np.clip(finite, -1e6, 1e6) * 2**_SHIFT).astype(np.int32)
        cv2.polylines(canvas, list(fixed), closed, color, thickness, cv2.LINE_AA, _SHIFT)


def _rgb(color: Iterable[float]) -> tuple[int, int, int]:
    red, green, blue = [round(float(c) * 255) for c in color][:3]
    return red, green, blue
