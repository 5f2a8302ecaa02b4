"""Pictures: functions that turn arrays into matplotlib figures or into RGB arrays.

``plot_*`` functions return a :class:`Picture`, a matplotlib figure that pyplot does not know of:
nothing has to be closed, nothing is drawn twice, and a notebook shows it when it is the last line
of a cell (or through ``display``). ``render_*`` functions draw with OpenCV and return a uint8 RGB
array; they are for pictures redrawn often (widgets) and for files written by the command line.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color), which colour-blind readers can
tell apart. Arrays may be numpy arrays or tensors. Keypoints are (x, y) with pixel centres at
integers.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

from superpoint_lib.geometry import invert_homographies, warp_image, warp_points

Array: TypeAlias = NDArray[Any] | torch.Tensor
Value: TypeAlias = float | tuple[float, float, float]
"""A number, or (number, lower end, upper end) with the interval drawn as an error bar."""

COLORS = {
    "blue": "#0072B2",
    "orange": "#E69F00",
    "green": "#009E73",
    "vermillion": "#D55E00",
    "sky": "#56B4E9",
    "purple": "#CC79A7",
    "yellow": "#F0E442",
    "black": "#000000",
}
CORRECT, WRONG, UNKNOWN = COLORS["green"], COLORS["vermillion"], COLORS["sky"]
SCORE_COLORMAP = "plasma"

WIDTH = 10.0
"""Width of a full-width figure in inches: 800 pixels."""

_SERIES = [COLORS[name] for name in ("blue", "orange", "green", "vermillion", "sky", "purple")]
_STYLE: Any = {
    "figure.dpi": 80,
    "savefig.dpi": 80,
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.prop_cycle": cycler(color=_SERIES),
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.7,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "image.cmap": "gray",
}
_styled = matplotlib.rc_context(_STYLE)

_SMALL_PNG = 20_000
_CHART_COLORS = 4096  # smooth lines and letters have hundreds; photographs many more
_LEVELS = 8
_SHIFT = 4


class Picture(Figure):
    """A matplotlib figure that shows itself in a notebook, once, and belongs to no global state.

    Charts are embedded as PNG, photographs (whose PNG would be large) as JPEG, so that an executed
    notebook stays small. ``savefig`` works as for any matplotlib figure.
    """

    def encode(self) -> tuple[str, bytes]:
        """Encode the figure for a web page.

        Returns:
            MIME type ("image/png" or "image/jpeg") and the encoded bytes, margins trimmed.
        """
        png = _with_palette(self._encode("png"))
        if len(png) < _SMALL_PNG:
            return "image/png", png
        # 4:4:4 keeps thin coloured lines sharp; the default chroma subsampling smears them.
        jpeg = self._encode("jpeg", quality=76, subsampling=0)
        # Of photographs the JPEG is a fraction of the PNG; of charts it is as large, and blurred.
        return ("image/jpeg", jpeg) if len(jpeg) < 0.6 * len(png) else ("image/png", png)

    def _encode(self, kind: str, **options: int) -> bytes:
        buffer = io.BytesIO()
        self.savefig(
            buffer, format=kind, bbox_inches="tight", pad_inches=0.05, pil_kwargs=options or None
        )
        return buffer.getvalue()

    def _ipython_display_(self) -> None:
        from IPython.display import display

        mime, data = self.encode()
        display({mime: data, "text/plain": repr(self)}, raw=True)  # type: ignore[no-untyped-call]


def _with_palette(png: bytes) -> bytes:
    """A chart's PNG with a palette: a third as large, no level off by more than a few of 255."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    if image.getcolors(_CHART_COLORS) is None:
        return png
    buffer = io.BytesIO()
    few = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(buffer, "png", optimize=True)
    return buffer.getvalue()


@_styled
def new_figure(width: float = WIDTH, height: float = 3.0) -> Picture:
    """Make an empty figure in this project's style.

    Args:
        width: inches (80 pixels each).
        height: inches.

    Returns:
        An empty :class:`Picture` with constrained layout.
    """
    figure = Picture(figsize=(width, height), dpi=_STYLE["figure.dpi"], layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render_figure(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure into an array.

    Args:
        figure: any matplotlib figure.

    Returns:
        uint8 (height, width, 3) RGB, the whole canvas at the figure's own resolution.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


# Arrays in ----------------------------------------------------------------------------------------


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
    array = _numpy(image)
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


def _numpy(array: Array | Sequence[Any]) -> NDArray[Any]:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return np.asarray(array)


def _points(keypoints: Array | Sequence[Any]) -> NDArray[np.float64]:
    points = _numpy(keypoints).astype(np.float64)
    if points.size == 0:
        return np.zeros((0, 2))
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"keypoints must be (N, 2) as (x, y), got shape {points.shape}")
    return points


def _matches(matches: Array | Sequence[Any]) -> NDArray[np.int64]:
    pairs = _numpy(matches)
    if pairs.size == 0:
        return np.zeros((0, 2), np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"matches must be (M, 2) index pairs, got shape {pairs.shape}")
    return pairs.astype(np.int64)


def _strength(scores: Array | None, count: int) -> NDArray[np.float64]:
    """Scores as (N,) in [0, 1]: square root of the share of the highest one, 1 without scores."""
    if scores is None or count == 0:
        return np.ones(count)
    values = np.maximum(_numpy(scores).astype(np.float64), 0.0)
    if values.shape != (count,):
        raise ValueError(f"{count} keypoints but scores of shape {values.shape}")
    highest = values.max()
    return np.sqrt(values / highest) if highest > 0 else np.ones(count)


def _score_colors(strength: NDArray[np.float64]) -> NDArray[np.float64]:
    # The dark part of the map would vanish on dark photographs.
    return np.asarray(matplotlib.colormaps[SCORE_COLORMAP](0.4 + 0.6 * strength))


def _as_list(items: Any, single_ndim: int) -> list[Any]:
    """A list of arrays, from a list, a stacked array or one array of ``single_ndim`` dimensions."""
    if isinstance(items, list | tuple):
        return list(items)
    return [items] if items.ndim == single_ndim else list(items)


# OpenCV drawing -----------------------------------------------------------------------------------


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
    points = scale * (_points(keypoints) + 0.5) - 0.5
    strength = _strength(scores, len(points))
    level = np.minimum((strength * _LEVELS).astype(int), _LEVELS - 1)
    middles = (np.arange(_LEVELS) + 0.5) / _LEVELS
    colors = _score_colors(middles)
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
    dark, values = to_rgb(image) // 2, _numpy(heatmap).astype(np.float32)
    if values.shape != dark.shape[:2]:
        raise ValueError(f"image of {dark.shape[:2]} pixels, but heatmap of shape {values.shape}")
    shown, alpha = _heat(values, float(values.max(initial=0.0)), exponent)
    colors = cv2.applyColorMap((255 * shown).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return (dark + alpha[..., None] * (colors.astype(np.float32) - dark)).astype(np.uint8)


def _heat(
    values: NDArray[Any], highest: float, exponent: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """What a heatmap shows: its values in [0, 1] and their opacity."""
    shown = np.clip(values / (highest or 1.0), 0.0, 1.0) ** exponent
    return shown, np.minimum(2.0 * shown, 1.0)


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
    canvas, offset = _side_by_side(to_rgb(image0), to_rgb(image1))
    canvas, scale = _resize_to(canvas, width)
    points0 = scale * (_points(keypoints0) + 0.5) - 0.5
    points1 = scale * (_points(keypoints1) + offset + 0.5) - 0.5
    dots = _circles(np.concatenate([points0, points1]), 1.5)
    _polylines(canvas, dots, _rgb(matplotlib.colors.to_rgb(COLORS["yellow"])), closed=True)
    segments, colors = _match_segments(points0, points1, matches, correct)
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
        ValueError: an image that cannot be drawn.
    """
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


def _side_by_side(
    image0: NDArray[np.uint8], image1: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Both images on one white canvas, and the (x, y) offset of the second."""
    gap = max(4, image0.shape[1] // 64)
    (height0, width0), (height1, width1) = image0.shape[:2], image1.shape[:2]
    canvas = np.full((max(height0, height1), width0 + gap + width1, 3), 255, np.uint8)
    canvas[:height0, :width0] = image0
    canvas[:height1, width0 + gap :] = image1
    return canvas, np.array([width0 + gap, 0.0])


def _match_segments(
    points0: NDArray[np.float64],
    points1: NDArray[np.float64],
    matches: Array,
    correct: Array | None,
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Line ends (M, 2, 2) and colour names (M,) of matches."""
    pairs = _matches(matches)
    segments = np.stack([points0[pairs[:, 0]], points1[pairs[:, 1]]], axis=1)
    if correct is None:
        return segments, np.full(len(pairs), UNKNOWN)
    flags = _numpy(correct).astype(bool).reshape(-1)
    if len(flags) != len(pairs):
        raise ValueError(f"{len(pairs)} matches but {len(flags)} values in 'correct'")
    return segments, np.where(flags, CORRECT, WRONG)


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


# Images and keypoints -----------------------------------------------------------------------------


@_styled
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
    figure, axes = _image_axes(_as_list(images, 2), titles, columns, width, colormap)
    del axes
    return figure


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
    points = _points(keypoints)
    strength = _strength(scores, len(points))
    order = np.argsort(strength)
    points, strength = points[order], strength[order]
    edge: Any
    if color is not None or scores is None:
        edge = color or COLORS["green"]
    else:
        edge = _score_colors(strength)
    area: Any = (3.5 + 4.5 * strength) ** 2 if scores is not None else 36.0
    for color_, thickness in (("#00000099", 2.6), (edge, 1.3)):
        ax.scatter(
            points[:, 0], points[:, 1], s=area, facecolors="none", edgecolors=color_, lw=thickness
        )


@_styled
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
    pictures = _as_list(images, 2)
    points = _as_list(keypoints, 2)
    values = [None] * len(points) if scores is None else _as_list(scores, 1)
    if not len(pictures) == len(points) == len(values):
        raise ValueError(
            f"{len(pictures)} images, {len(points)} keypoint arrays, {len(values)} score arrays: "
            "give one of each per image"
        )
    if titles is None:
        titles = [f"{len(p)} keypoints" for p in points]
    figure, axes = _image_axes(pictures, titles, columns, width)
    for ax, kpts, score in zip(axes, points, values, strict=True):
        draw_keypoints(ax, kpts, score)
    return figure


@_styled
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
    maps = [_numpy(h).astype(np.float64) for h in _as_list(heatmaps, 2)]
    pictures = _as_list(images, 2)
    if len(pictures) == 1:
        pictures = pictures * len(maps)
    if len(pictures) != len(maps):
        raise ValueError(f"{len(pictures)} images and {len(maps)} heatmaps")
    highest = max((float(h.max()) for h in maps), default=0.0) or 1.0
    figure, axes = _image_axes([to_rgb(p) // 2 for p in pictures], titles, columns, width, bar=True)
    norm = matplotlib.colors.PowerNorm(exponent, 0.0, highest)
    shown = None
    for ax, heatmap in zip(axes, maps, strict=True):
        _, alpha = _heat(heatmap, highest, exponent)
        shown = ax.imshow(heatmap, cmap="inferno", norm=norm, alpha=alpha)
    if shown is not None:
        solid = matplotlib.cm.ScalarMappable(norm, "inferno")
        bar = figure.colorbar(
            solid, ax=axes, fraction=0.03, pad=0.01, aspect=25, ticks=MaxNLocator(4)
        )
        bar.outline.set_visible(False)  # type: ignore[operator]
    return figure


@_styled
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
    figure, (ax,) = _image_axes([rgb], None, 1, width)
    left, top = 8 * column - 0.5, 8 * row - 0.5
    figure.set_size_inches(width, width * rows / columns)
    vertical = [[(left + 8 * i, top), (left + 8 * i, top + 8 * rows)] for i in range(columns + 1)]
    horizontal = [[(left, top + 8 * i), (left + 8 * columns, top + 8 * i)] for i in range(rows + 1)]
    ax.add_collection(LineCollection(vertical + horizontal, colors=COLORS["sky"], linewidths=1.2))
    if labels is not None:
        _write_cell_labels(
            ax, _numpy(labels)[row : row + rows, column : column + columns], row, column
        )
    points = _points(keypoints)
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


def _image_axes(
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
    pictures = [_numpy(i) if colormap else to_rgb(i) for i in images]
    columns = columns or (len(pictures) if len(pictures) <= 4 else 4)
    rows = -(-len(pictures) // columns)
    aspects = [p.shape[1] / p.shape[0] for p in pictures]
    # In a single row, widths follow the aspect ratios so that all pictures are equally high.
    ratios = aspects if rows == 1 else [max(aspects)] * columns
    lines = max((t.count("\n") + 1 for t in titles), default=0) if titles is not None else 0
    row_height = (
        (width - 0.08 * columns - 0.5 * bar)
        / sum(ratios)
        * (
            1.0
            if rows == 1
            else max(a / b for a, b in zip([max(aspects)] * len(aspects), aspects, strict=True))
        )
    )
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


# Two images ---------------------------------------------------------------------------------------


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


@_styled
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


@_styled
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
    canvases = [_side_by_side(to_rgb(p.image0), to_rgb(p.image1)) for p in pairs]
    titles = [_pair_title(p) for p in pairs]
    figure, axes = _image_axes(
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
    count = len(_matches(pair.matches))
    if pair.correct is None:
        return f"{count} matches"
    return f"{count} matches, {int(_numpy(pair.correct).astype(bool).sum())} correct"


def _draw_matches(ax: Axes, pair: MatchedPair, offset: NDArray[np.float64]) -> None:
    points0, points1 = _points(pair.keypoints0), _points(pair.keypoints1) + offset
    everything = np.concatenate([points0, points1])
    ax.scatter(
        everything[:, 0], everything[:, 1], s=5, color=COLORS["yellow"], linewidths=0, alpha=0.8
    )
    segments, colors = _match_segments(points0, points1, pair.matches, pair.correct)
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


@_styled
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
    gray = _numpy(image).astype(np.float32)
    matrices = _numpy(homographies).astype(np.float64).reshape(-1, 3, 3)
    height, width_px = gray.shape
    warped = [warp_image(gray, matrix) for matrix in matrices]
    labels = [
        "image",
        *(titles if titles is not None else [f"warp {i + 1}" for i in range(len(warped))]),
    ]
    figure, axes = _image_axes([gray, *warped], labels, columns, width)
    frame = np.array(
        [[0, 0], [width_px - 1, 0], [width_px - 1, height - 1], [0, height - 1]], float
    )
    outlines = warp_points(
        np.broadcast_to(frame, (len(matrices), 4, 2)), invert_homographies(matrices)
    )
    colors = [_SERIES[i % len(_SERIES)] for i in range(len(matrices))]
    axes[0].add_collection(
        PolyCollection(list(outlines), facecolors="none", edgecolors=colors, linewidths=2)
    )
    for ax, color in zip(axes[1:], colors, strict=True):
        ax.add_patch(Rectangle((0, 0), width_px - 1, height - 1, fill=False, ec=color, lw=4))
    return figure


# Numbers ------------------------------------------------------------------------------------------


@_styled
def plot_curves(
    curves: Mapping[str, tuple[Sequence[float] | Array, Sequence[float] | Array]],
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    intervals: Mapping[str, tuple[Sequence[float] | Array, Sequence[float] | Array]] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = True,
    width: float = 6.5,
    height: float = 3.6,
) -> Picture:
    """Draw named curves in one pair of axes.

    Args:
        curves: {name: (x, y)}; a legend appears when there is more than one.
        xlabel: text below.
        ylabel: text beside.
        title: text above.
        intervals: {name: (lower, upper)} shaded around the curve of that name.
        log_x: logarithmic x axis.
        log_y: logarithmic y axis.
        markers: a dot at each value.
        width: of the figure in inches.
        height: of the figure in inches.

    Returns:
        The figure.

    Raises:
        ValueError: x and y of different lengths.
    """
    figure = new_figure(width, height)
    ax = figure.add_subplot()
    for index, (name, (x, y)) in enumerate(curves.items()):
        color = _SERIES[index % len(_SERIES)]
        ax.plot(_numpy(x), _numpy(y), "o-" if markers else "-", ms=4, color=color, label=name)
        if intervals and name in intervals:
            low, high = intervals[name]
            ax.fill_between(_numpy(x), _numpy(low), _numpy(high), color=color, alpha=0.18, lw=0)
    _finish_chart(ax, xlabel, ylabel, title, log_x, log_y, legend=len(curves) > 1)
    return figure


@_styled
def plot_precision_recall(
    curves: Mapping[str, tuple[Sequence[float] | Array, Sequence[float] | Array]],
    average_precision: Mapping[str, float] | None = None,
    title: str | None = None,
    width: float = 5.5,
    height: float = 4.0,
) -> Picture:
    """Draw precision against recall.

    Args:
        curves: {name: (recall, precision)}, both in [0, 1], recall rising.
        average_precision: {name: value} written into the legend.
        title: text above.
        width: of the figure in inches.
        height: of the figure in inches.

    Returns:
        The figure.
    """
    figure = new_figure(width, height)
    ax = figure.add_subplot()
    for index, (name, (recall, precision)) in enumerate(curves.items()):
        label = name
        if average_precision and name in average_precision:
            label = f"{name} (AP {average_precision[name]:.3f})"
        ax.plot(_numpy(recall), _numpy(precision), color=_SERIES[index % len(_SERIES)], label=label)
    ax.set_xlim(0, 1.01)
    ax.set_ylim(0, 1.03)
    _finish_chart(ax, "recall", "precision", title, legend=bool(curves))
    return figure


History: TypeAlias = Sequence[Mapping[str, Any]] | str | Path


@_styled
def plot_history(
    history: History | Mapping[str, History],
    quantities: Sequence[str] | None = None,
    log_x: bool = False,
    log_y: bool = True,
    x: str = "step",
    width: float = WIDTH,
    height: float = 2.9,
) -> Picture:
    """Draw what training recorded, one panel per quantity.

    Args:
        history: a list of dicts, or the path of a history.csv; or {name: such a history} to compare
            runs, one colour each. Missing values are skipped.
        quantities: columns to draw; by default all numeric ones but ``x``.
        log_x: logarithmic x axis.
        log_y: logarithmic y axis, where all values are positive.
        x: the column for the x axis.
        width: of the figure in inches.
        height: of a row of panels in inches.

    Returns:
        The figure: raw values faint, their running mean (over up to a twentieth of the run) strong.

    Raises:
        FileNotFoundError: the CSV file does not exist.
        ValueError: no run holds the wanted column.
    """
    runs = history if isinstance(history, Mapping) else {"": history}
    columns = {name: _history_columns(run) for name, run in runs.items()}
    known = list(dict.fromkeys(key for run in columns.values() for key in run))
    wanted = list(quantities) if quantities is not None else [key for key in known if key != x]
    for key in [x, *wanted]:
        if known and key not in known:
            raise ValueError(f"the history has no column {key!r}; it has {known}")
    per_row = min(max(len(wanted), 1), 3)
    rows = max(1, -(-len(wanted) // per_row))
    figure = new_figure(width, height * rows)
    axes = [figure.add_subplot(rows, per_row, i + 1) for i in range(len(wanted))]
    for ax, key in zip(axes, wanted, strict=True):
        for index, (name, run) in enumerate(columns.items()):
            if key in run:
                _draw_run(ax, run[x], run[key], _SERIES[index % len(_SERIES)], name)
        positive = all(
            (v[np.isfinite(v)] > 0).all()
            for v in (run.get(key, np.ones(1)) for run in columns.values())
        )
        _finish_chart(ax, x, "", key.replace("_", " "), log_x, log_y and positive, legend=False)
    if len(runs) > 1:
        axes[0].legend()
    return figure


def _history_columns(history: History) -> dict[str, NDArray[np.float64]]:
    if isinstance(history, str | Path):
        path = Path(history)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such history file; training writes it as history.csv"
            )
        with path.open(newline="") as file:
            history = list(csv.DictReader(file))
    keys = dict.fromkeys(key for row in history for key in row)
    columns = {key: np.array([_number(row.get(key)) for row in history]) for key in keys}
    return {key: values for key, values in columns.items() if np.isfinite(values).any()}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _draw_run(ax: Axes, x: NDArray[Any], y: NDArray[Any], color: str, name: str) -> None:
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    half = len(y) // 40
    if half:
        ax.plot(x, y, color=color, alpha=0.25, lw=1)
    # A centred mean, over fewer values near both ends: it neither lags nor starts late.
    index = np.arange(len(y))
    reach = np.minimum(half, np.minimum(index, len(y) - 1 - index))
    sums = np.concatenate([[0.0], np.cumsum(y)])
    mean = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    ax.plot(x, mean, color=color, label=name)


@_styled
def plot_bars(
    rows: Mapping[str, Mapping[str, Value]],
    title: str | None = None,
    highlight: str | None = None,
    digits: int = 3,
    limit: float | None = None,
    width: float = WIDTH,
) -> Picture:
    """Draw a table of numbers as horizontal bars, one panel per column.

    Args:
        rows: {row: {column: value or (value, lower, upper)}}; rows are e.g. methods and columns
            metrics. A missing entry or a NaN is shown as a dash.
        title: text above.
        highlight: the row to draw in full colour; by default all are.
        digits: decimals of the numbers beside the bars.
        limit: upper end of every panel's axis; by default each panel's own largest value.
        width: of the figure in inches.

    Returns:
        The figure; intervals are drawn as error bars.
    """
    names = list(rows)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    figure = new_figure(width, 0.34 * max(len(names), 1) + 0.45 + (0.3 if title else 0.0))
    if not columns:
        return figure
    axes = np.atleast_1d(figure.subplots(1, len(columns), sharey=True))
    colors = [_SERIES[0] if highlight in (None, name) else COLORS["sky"] for name in names]
    for ax, column in zip(axes, columns, strict=True):
        triples = np.array([_triple(rows[name].get(column)) for name in names])
        _draw_bars(ax, triples, colors, digits, limit)
        ax.set_title(column)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _triple(value: Value | None) -> tuple[float, float, float]:
    if value is None:
        return (np.nan, np.nan, np.nan)
    if isinstance(value, tuple | list):
        middle, low, high = value
        return float(middle), float(low), float(high)
    return float(value), np.nan, np.nan


def _draw_bars(
    ax: Axes, triples: NDArray[np.float64], colors: Sequence[str], digits: int, limit: float | None
) -> None:
    values, low, high = triples.T
    places = np.arange(len(values))
    ends = np.fmax(values, high)
    largest = limit or (float(np.nanmax(ends)) if np.isfinite(ends).any() else 1.0) or 1.0
    ax.barh(places, np.nan_to_num(values), color=colors, height=0.62)
    known = np.isfinite(low) & np.isfinite(high)
    ax.errorbar(
        values[known], places[known],
        xerr=np.maximum(np.stack([values - low, high - values])[:, known], 0.0),
        fmt="none", ecolor="black", elinewidth=1.1, capsize=3,
    )  # fmt: skip
    for place, (value, end) in enumerate(zip(values, ends, strict=True)):
        text = f"{value:.{digits}f}" if np.isfinite(value) else "–"
        at = (end if np.isfinite(end) else 0.0) + 0.03 * largest
        ax.text(at, place, text, va="center", fontsize=10)
    ax.set_xlim(0, largest * 1.42)  # room for the numbers
    ax.spines[["bottom"]].set_visible(False)
    ax.tick_params(bottom=False, labelbottom=False, left=False)


@_styled
def plot_hinge_loss(
    lambda_d: float = 250.0,
    positive_margin: float = 1.0,
    negative_margin: float = 0.2,
    positive_similarity: float = 0.8,
    negative_similarity: float = 0.25,
    cells: int = 1200,
    figure: Picture | None = None,
) -> Picture:
    """Draw what one pair of cells costs in the descriptor hinge loss, and what all cost together.

    A corresponding pair costs lambda_d max(0, positive_margin - d . d'), any other pair
    max(0, d . d' - negative_margin) (DeTone et al. 2018, "SuperPoint", equation 6). Derived in
    notebook 04.

    Args:
        lambda_d: weight of corresponding pairs.
        positive_margin: similarity from which a corresponding pair costs nothing.
        negative_margin: similarity up to which another pair costs nothing.
        positive_similarity: d . d' in [-1, 1] taken for every corresponding pair in the bars.
        negative_similarity: likewise for every other pair.
        cells: cells N of each image (1200 for 240 x 320 pixels): N corresponding pairs, N (N - 1)
            others.
        figure: an earlier result, to be drawn anew with these values in half the time; None makes
            a new figure.

    Returns:
        The figure: the two costs against the similarity, and both kinds' share of the loss
        (sum over all pairs divided by N^2).
    """
    figure = figure or _hinge_figure()
    first, second, bars = figure.axes
    for artist in [item for ax in figure.axes for item in (*ax.lines, *ax.patches, *ax.texts)]:
        artist.remove()
    similarity = np.linspace(-1.0, 1.0, 201)
    positive = lambda_d * np.maximum(0.0, positive_margin - similarity)
    negative = np.maximum(0.0, similarity - negative_margin)
    at_positive = lambda_d * max(0.0, positive_margin - positive_similarity)
    at_negative = max(0.0, negative_similarity - negative_margin)
    first.plot(similarity, positive, color=CORRECT)
    first.plot([positive_similarity], [at_positive], "o", color="black", ms=7, zorder=3)
    second.plot(similarity, negative, color=WRONG)
    second.plot([negative_similarity], [at_negative], "o", color="black", ms=7, zorder=3)
    for ax, highest in ((first, positive[0]), (second, negative[-1])):
        ax.set_ylim(-0.05 * highest, 1.05 * highest or 1.0)
    totals = [at_positive / cells, at_negative * (cells - 1) / cells]
    bars.bar([0, 1], totals, color=[CORRECT, WRONG], width=0.6)
    bars.set_ylim(0, 1.2 * max(*totals, 1e-6))
    for place, total in enumerate(totals):
        bars.text(place, total, f"{total:.3g}", ha="center", va="bottom")
    return figure


def _hinge_figure() -> Picture:
    figure = new_figure(9.0, 2.9)
    # Fixed margins: laying out anew would double the time, and widgets draw this figure often.
    figure.set_layout_engine("none")
    margins = {"left": 0.07, "right": 0.99, "bottom": 0.2, "top": 0.89, "wspace": 0.22}
    first, second, bars = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1.0], gridspec_kw=margins)
    for ax, title in ((first, "a corresponding pair"), (second, "any other pair")):
        ax.set_xlim(-1.05, 1.05)
        ax.set_xticks([-1, 0, 1])
        ax.locator_params(axis="y", nbins=3)
        _finish_chart(ax, "similarity d·d'", "cost" if ax is first else "", title)
    bars.set_title("share of the loss")
    bars.set_xlim(-0.6, 1.6)
    bars.set_xticks([0, 1], ["corresponding", "others"])
    bars.set_yticks([])
    bars.spines[["left"]].set_visible(False)
    return figure


def _finish_chart(
    ax: Axes,
    xlabel: str,
    ylabel: str,
    title: str | None,
    log_x: bool = False,
    log_y: bool = False,
    legend: bool = False,
) -> None:
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if title:
        ax.set_title(title)
    if log_x:
        ax.set_xscale("log")
        _plain_log_ticks(ax.xaxis)
    if log_y:
        ax.set_yscale("log")
        _plain_log_ticks(ax.yaxis)
    ax.grid(True)
    ax.set_axisbelow(True)
    if legend:
        ax.legend()


def _plain_log_ticks(axis: Axis) -> None:
    """Numbers such as 0.2 and 50 instead of powers of ten; as many as the range asks for."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low) if 0 < low < high else 1.0
    subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.7 else tuple(range(1, 10))
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
