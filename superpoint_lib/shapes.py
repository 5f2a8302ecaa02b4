"""Synthetic shapes: unlimited labelled pictures for the first detector.

Nine primitives of the MagicPoint data set (DeTone et al., "SuperPoint", 2018; parameters after
the public generators) are drawn with OpenCV at sub-pixel coordinates on a large canvas, blurred
and reduced. The corners are known exactly because they were drawn. Derived in notebook 01.

Convention: keypoints are (x, y), pixel centres at integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

PRIMITIVES: tuple[str, ...] = (
    "lines",
    "polygon",
    "multiple_polygons",
    "ellipses",
    "star",
    "checkerboard",
    "stripes",
    "cube",
    "gaussian_noise",
)

_SHIFT = 8  # fractional bits of the coordinates OpenCV draws with
_SPREAD = 0.67  # measured: an anti-aliased fill reaches this far beyond its outline, in pixels


@dataclass(frozen=True)
class ShapesConfig:
    """How the shapes are drawn.

    Lengths named `*_fraction` are fractions of the canvas' shorter side; gray levels are in
    0..255.

    Attributes:
        canvas_height, canvas_width: size drawn at, in pixels.
        height, width: size returned, in pixels (the canvas is reduced by area averaging).
        blur_kernel: side of the Gaussian kernel applied to the canvas, in canvas pixels, odd;
            OpenCV derives sigma from it. 1 switches the blur off.
        primitives: which primitives `draw_sample` draws.
        primitive_weights: relative frequency of each of `primitives`. The default thins out
            ellipses, stripes and noise as the published MagicPoint training does.
        min_contrast: smallest difference in gray level between a shape and what it touches.
        background_contrast: range of the standard deviation of the background, gray levels.
        texture_contrast: the same for the texture inside multiple polygons.
        noise_contrast: range of the noise primitive's strength; 1 is uniform over 0..255.
        gap_fraction: smallest distance between separate shapes.
        overlap_probability: share of multiple-polygon pictures whose polygons may cover earlier
            ones; corners that are covered lose their label.
        edge_line_probability: chance that a cube or a board gets lines along its edges.
    """

    canvas_height: int = 240
    canvas_width: int = 320
    height: int = 120
    width: int = 160
    blur_kernel: int = 5
    primitives: tuple[str, ...] = PRIMITIVES
    primitive_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 0.3, 1.0, 1.0, 0.2, 1.0, 0.1)
    min_contrast: int = 30
    background_contrast: tuple[float, float] = (2.0, 12.0)
    texture_contrast: tuple[float, float] = (2.0, 20.0)
    noise_contrast: tuple[float, float] = (0.2, 0.8)
    gap_fraction: float = 0.03
    overlap_probability: float = 0.1
    edge_line_probability: float = 0.3

    def __post_init__(self) -> None:
        unknown = sorted(set(self.primitives) - set(PRIMITIVES))
        if unknown:
            raise ValueError(f"primitives: unknown {unknown}; known are {list(PRIMITIVES)}")
        if len(self.primitives) != len(self.primitive_weights) or not self.primitives:
            raise ValueError(
                f"primitive_weights: {len(self.primitive_weights)} weights for "
                f"{len(self.primitives)} primitives; give one each"
            )
        if min(self.primitive_weights) < 0 or sum(self.primitive_weights) <= 0:
            raise ValueError("primitive_weights: need weights >= 0 with a positive sum")
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel: {self.blur_kernel} is not an odd number >= 1")
        if min(self.canvas_height, self.canvas_width, self.height, self.width) < 16:
            raise ValueError("canvas and image need at least 16 pixels a side")


SHAPES_PRESETS: dict[str, ShapesConfig] = {
    "default": ShapesConfig(),
    "published": ShapesConfig(canvas_height=960, canvas_width=1280, blur_kernel=21),
}


def draw_sample(
    index: int, config: ShapesConfig, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    """Draw picture number `index` of the endless set that `seed` stands for.

    Args:
        index: any integer >= 0.
        config: how to draw; its weights decide which primitive is drawn.
        seed: integer >= 0. The result depends on (seed, index, config) alone, whichever worker
            draws it and in whatever order.

    Returns:
        image float32 (height, width) in [0, 1], keypoints float32 (N, 2), name of the primitive.

    Derived in notebook 01.
    """
    rng = np.random.default_rng((seed, index))
    cumulative = np.cumsum(config.primitive_weights)
    chosen = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    primitive = config.primitives[min(chosen, len(config.primitives) - 1)]
    image, keypoints = draw_shape(primitive, config, rng)
    return image, keypoints, primitive


def draw_shape(
    primitive: str, config: ShapesConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw one picture of a primitive.

    Args:
        primitive: one of `PRIMITIVES`.
        config: how to draw.
        rng: source of every random number used.

    Returns:
        image float32 (height, width) in [0, 1] and keypoints float32 (N, 2), sub-pixel, all with
        0 <= x <= width - 1 and 0 <= y <= height - 1. N is 0 for ellipses and gaussian_noise.

    Raises:
        ValueError: the primitive is not known.

    Convention: reducing the canvas by s moves x to s (x + 0.5) - 0.5.

    Derived in notebook 01.
    """
    if primitive not in _DRAWERS:
        raise ValueError(f"unknown primitive {primitive!r}; known are {list(PRIMITIVES)}")
    canvas = _Canvas(config, rng)
    _DRAWERS[primitive](canvas)
    return canvas.render()


class _Canvas:
    """The picture being drawn, with the labels still visible in it."""

    def __init__(self, config: ShapesConfig, rng: np.random.Generator) -> None:
        self.config = config
        self.rng = rng
        self.height, self.width = config.canvas_height, config.canvas_width
        self.unit = float(min(self.height, self.width))
        self.background = float(rng.uniform(0, 255))
        contrast = rng.uniform(*config.background_contrast)
        texture = _smooth_noise(self.height, self.width, rng.uniform(0.12, 0.4), rng)
        self.image = _to_gray_levels(texture * contrast + self.background)
        self.occupied = np.zeros((self.height, self.width), np.uint8)
        self.keypoints = np.zeros((0, 2))

    def color(self, *others: float) -> float:
        """A gray level that differs from the background and from `others`."""
        candidates = self.rng.uniform(0, 255, 16)
        away = np.array((self.background, *others))
        distance = np.abs(candidates[:, None] - away).min(axis=1)
        far = distance >= self.config.min_contrast
        return float(candidates[np.argmax(far) if far.any() else np.argmax(distance)])

    def is_free(self, outline: FloatArray) -> bool:
        """Whether the filled outline touches nothing drawn so far, the gap included."""
        corners = np.rint(outline).astype(np.int32)
        x0, y0 = np.maximum(corners.min(axis=0), 0)
        x1, y1 = corners.max(axis=0) + 1
        region = self.occupied[y0:y1, x0:x1]
        if region.size == 0:
            return False
        filled = np.zeros(region.shape, np.uint8)
        cv2.fillPoly(filled, [corners - np.array((x0, y0), np.int32)], 255)
        return not cv2.hasNonZero(cv2.bitwise_and(filled, region))

    def add(
        self, outline: FloatArray, parts: Sequence[tuple[FloatArray, float]], keypoints: FloatArray
    ) -> None:
        """Draw a shape made of coloured parts; labels of earlier shapes under `outline` go."""
        if len(self.keypoints):
            hidden = _covered(self.keypoints, outline, margin=0.005 * self.unit)
            self.keypoints = self.keypoints[~hidden]
        for polygon, color in parts:
            fill_polygon(self.image, polygon, color)
        self.keypoints = np.concatenate((self.keypoints, keypoints))

    def reserve(self, outline: FloatArray) -> None:
        """Keep later shapes that ask `is_free` away from this outline."""
        corners = [np.rint(outline).astype(np.int32)]
        gap = max(1, round(2 * self.config.gap_fraction * self.unit))
        cv2.fillPoly(self.occupied, corners, 255)
        cv2.polylines(self.occupied, corners, True, 255, gap)

    def render(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Blur, reduce, and move the keypoints along."""
        config = self.config
        image = self.image
        if config.blur_kernel > 1:
            image = cv2.GaussianBlur(image, (config.blur_kernel, config.blur_kernel), 0)
        size = (config.width, config.height)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        scale = np.array((config.width / self.width, config.height / self.height))
        keypoints = scale * (self.keypoints + 0.5) - 0.5
        inside = ((keypoints >= 0) & (keypoints <= np.array(size) - 1)).all(axis=1)
        return image.astype(np.float32) / 255, keypoints[inside].astype(np.float32)


def fill_polygon(image: NDArray[np.uint8], polygon: FloatArray, color: float) -> None:
    """Fill a polygon, anti-aliased, so that its edges lie where its coordinates say.

    OpenCV's anti-aliased fill reaches about two thirds of a pixel beyond the outline; the corners
    are moved inwards by as much before they are drawn.

    Args:
        image: uint8 (H, W), drawn into.
        polygon: (K, 2) corners in order, simple, convex or not.
        color: gray level, 0..255.
    """
    corners = np.rint(_inset(polygon, _SPREAD) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(image, [corners], float(color), cv2.LINE_AA, _SHIFT)


def _inset(polygon: FloatArray, distance: float) -> FloatArray:
    """Move every edge of (..., K, 2) polygons inwards by `distance`.

    A corner between unit edges a (arriving) and b (leaving) moves by d (b - a) / (a x b), limited
    to 3 d for needle-sharp corners and left alone on straight ones.
    """
    leaving = np.roll(polygon, -1, axis=-2) - polygon
    length = np.sqrt((leaving**2).sum(axis=-1, keepdims=True))
    leaving = leaving / np.maximum(length, 1e-9)
    arriving = np.roll(leaving, 1, axis=-2)
    cross = arriving[..., 0] * leaving[..., 1] - arriving[..., 1] * leaving[..., 0]
    x, y = polygon[..., 0], polygon[..., 1]
    area = (x * np.roll(y, -1, axis=-1) - y * np.roll(x, -1, axis=-1)).sum(axis=-1)
    turn = np.sign(area)[..., None] * np.where(np.abs(cross) < 1e-6, np.inf, cross)
    move = (leaving - arriving) / turn[..., None]
    reach = np.sqrt((move**2).sum(axis=-1, keepdims=True))
    return polygon + distance * move * np.minimum(1.0, 3.0 / np.maximum(reach, 1e-9))


def _covered(points: FloatArray, outline: FloatArray, margin: float) -> NDArray[np.bool_]:
    """Which of (N, 2) points lie inside the outline (K, 2) or within `margin` of it."""
    start, end = outline, np.roll(outline, -1, axis=0)
    edge = end - start
    relative = points[:, None] - start  # (N, K, 2)
    above = points[:, None, 1] < start[:, 1]
    crosses = above != (points[:, None, 1] < end[:, 1])
    side = edge[:, 0] * relative[..., 1] - edge[:, 1] * relative[..., 0]
    inside = (crosses & ((side > 0) == (edge[:, 1] > 0))).sum(axis=1) % 2 == 1
    along = (relative * edge).sum(axis=-1) / np.maximum((edge**2).sum(axis=-1), 1e-9)
    nearest = np.clip(along, 0, 1)[..., None] * edge
    distance = ((relative - nearest) ** 2).sum(axis=-1).min(axis=1)
    return inside | (distance <= margin**2)


def _smooth_noise(
    height: int, width: int, scale: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Noise of mean about 0 and deviation about 1 that varies over `scale` of the height.

    It is made on a coarse grid and enlarged: nothing finer is left after a wide blur anyway.
    """
    rows = 2 + round(2 / scale)
    columns = 2 + round(2 * width / (height * scale))
    coarse = rng.standard_normal((rows, columns), dtype=np.float32)
    finer = cv2.resize(coarse, (4 * columns, 4 * rows), interpolation=cv2.INTER_CUBIC)
    full = cv2.resize(finer, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(1.4 * full, np.float32)


def _to_gray_levels(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Cut to whole numbers in 0..255, clipping."""
    return np.clip(values, 0, 255).astype(np.uint8)


def _strip(ends: FloatArray, thickness: float) -> FloatArray:
    """The (4, 2) outline of a segment (2, 2) drawn with a thickness, cut square at its ends."""
    along = ends[1] - ends[0]
    normal = np.array((-along[1], along[0])) * (0.5 * thickness / max(np.hypot(*along), 1e-9))
    return np.stack((ends[0] + normal, ends[1] + normal, ends[1] - normal, ends[0] - normal))


def _disc(center: FloatArray, axes: FloatArray, angle: float, corners: int = 40) -> FloatArray:
    """An ellipse as a polygon (corners, 2)."""
    t = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    x, y = axes[0] * np.cos(t), axes[1] * np.sin(t)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack((center[0] + cos * x - sin * y, center[1] + sin * x + cos * y), axis=1)


def _draw_lines(canvas: _Canvas) -> None:
    """One to nine separate segments, labelled at both ends."""
    rng, unit = canvas.rng, canvas.unit
    count = int(rng.integers(1, 10))
    size = np.array((canvas.width - 1, canvas.height - 1))
    segments = rng.uniform(0, 1, (3 * count, 2, 2)) * size
    for ends in segments:
        if count == 0:
            break
        outline = _strip(ends, rng.uniform(0.01, 0.02) * unit)
        if np.hypot(*(ends[1] - ends[0])) < 0.08 * unit or not canvas.is_free(outline):
            continue
        canvas.add(outline, [(outline, canvas.color())], ends)
        canvas.reserve(outline)
        count -= 1


def _random_polygons(
    count: int, min_radius: float, max_radius: float, canvas: _Canvas
) -> list[FloatArray]:
    """Up to `count` polygons of three to seven corners, each corner at 20 to 120 degrees.

    Corners are placed around a centre, one in each of k equal sectors; corners too close to the
    next one or too flat to be told apart are left out, polygons left with fewer than three too.
    """
    rng, unit = canvas.rng, canvas.unit
    corners = rng.integers(3, 8, (count, 1))
    slot = np.arange(7)
    angle = (slot + rng.random((count, 7))) * (2 * np.pi / corners)
    radius = np.clip(rng.random((count, 1)) * max_radius, min_radius, None)
    center = radius + rng.random((count, 2)) * (
        np.array((canvas.width, canvas.height)) - 1 - 2 * radius
    )
    reach = radius * np.clip(rng.random((count, 7)), 0.4, None)
    points = center[:, None] + reach[..., None] * np.stack((np.cos(angle), np.sin(angle)), axis=-1)
    keep = slot < corners
    following = np.take_along_axis(points, ((slot + 1) % corners)[..., None], axis=1) - points
    keep &= np.hypot(following[..., 0], following[..., 1]) > 0.05 * unit
    polygons = (polygon[kept] for polygon, kept in zip(points, keep, strict=True))
    return [p for p in map(_drop_flat_corners, polygons) if len(p) >= 3]


def _drop_flat_corners(polygon: FloatArray) -> FloatArray:
    """Leave out corners above 120 degrees; nothing is left when one is below 20 degrees."""
    if len(polygon) < 3:
        return polygon[:0]
    angle = _corner_angles(polygon)
    polygon = polygon[angle < 2 * np.pi / 3]
    if len(polygon) < 3 or _corner_angles(polygon).min() < np.pi / 9:
        return polygon[:0]
    return polygon


def _corner_angles(polygon: FloatArray) -> FloatArray:
    """The (K,) angles between the two edges at each corner, in 0..pi."""
    leaving = np.roll(polygon, -1, axis=0) - polygon
    arriving = np.roll(leaving, 1, axis=0)
    dot = -(leaving * arriving).sum(axis=1)
    cross = leaving[:, 0] * arriving[:, 1] - leaving[:, 1] * arriving[:, 0]
    return np.arctan2(np.abs(cross), dot)


def _draw_polygon(canvas: _Canvas) -> None:
    """One polygon of three to seven corners, labelled at the corners."""
    found: list[FloatArray] = []
    while not found:
        found = _random_polygons(4, canvas.unit / 10, canvas.unit / 2, canvas)
    canvas.add(found[0], [(found[0], canvas.color())], found[0])


def _draw_multiple_polygons(canvas: _Canvas) -> None:
    """Up to thirty textured polygons, apart from each other unless overlaps are drawn."""
    config, rng, unit = canvas.config, canvas.rng, canvas.unit
    overlap = rng.random() < config.overlap_probability
    gain = np.zeros_like(canvas.image)
    for polygon in _random_polygons(30, unit / 10, unit / 4, canvas):
        if not overlap and not canvas.is_free(polygon):
            continue
        canvas.add(polygon, [(polygon, canvas.color())], polygon)
        canvas.reserve(polygon)
        fill_polygon(gain, polygon, 10 * rng.uniform(*config.texture_contrast))
    texture = _smooth_noise(canvas.height, canvas.width, rng.uniform(0.06, 0.12), rng)
    canvas.image = _to_gray_levels(canvas.image + 0.1 * gain * texture)


def _draw_ellipses(canvas: _Canvas) -> None:
    """Up to twenty separate ellipses: edges, and nothing to label."""
    rng, unit = canvas.rng, canvas.unit
    count = int(rng.integers(1, 21))
    axes = np.clip(rng.random((count, 2)) / 4, 0.03, None) * unit
    margin = axes.max(axis=1, keepdims=True)
    size = np.array((canvas.width, canvas.height)) - 1
    centers = margin + rng.random((count, 2)) * (size - 2 * margin)
    angles = rng.uniform(0, np.pi, count)
    for center, axis, angle in zip(centers, axes, angles, strict=True):
        outline = _disc(center, axis, angle)
        if canvas.is_free(outline):
            canvas.add(outline, [(outline, canvas.color())], outline[:0])
            canvas.reserve(outline)


def _draw_star(canvas: _Canvas) -> None:
    """Three to five branches from a centre, labelled at the centre and at the branch ends."""
    rng, unit = canvas.rng, canvas.unit
    branches = int(rng.integers(3, 6))
    thickness = rng.uniform(0.01, 0.02) * unit
    radius = max(rng.random() / 2, 0.2) * unit
    size = np.array((canvas.width, canvas.height)) - 1
    center = radius + rng.random(2) * (size - 2 * radius)
    sector = 2 * np.pi / branches
    angle = rng.uniform(0, 2 * np.pi) + (np.arange(branches) + 0.7 * rng.random(branches)) * sector
    reach = radius * rng.uniform(0.4, 1.0, (branches, 1))
    ends = center + reach * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    color = canvas.color()
    parts = [(_strip(np.stack((center, end)), thickness), color) for end in ends]
    parts.append((_disc(center, np.full(2, thickness / 2), 0.0, corners=12), color))
    canvas.add(ends, parts, np.concatenate((center[None], ends)))


def _draw_checkerboard(canvas: _Canvas) -> None:
    """Three to six rows and columns of alternating cells, seen in perspective."""
    rng = canvas.rng
    rows, columns = (int(n) for n in rng.integers(3, 7, 2))
    cell = min((canvas.width - 1) / columns, (canvas.height - 1) / rows)
    x, y = np.arange(columns + 1) * cell, np.arange(rows + 1) * cell
    jitter = rng.uniform(0.05, 0.2) * max(canvas.height, canvas.width)
    grid = _perspective_grid(x, y, jitter, canvas)
    parity = np.add.outer(np.arange(rows), np.arange(columns)) % 2
    first = canvas.color()
    second = canvas.color(first)
    spread = 0.25 * canvas.config.min_contrast
    colors = np.where(parity == 0, first, second) + rng.uniform(-spread, spread, parity.shape)
    _draw_board(grid, colors, canvas)


def _draw_stripes(canvas: _Canvas) -> None:
    """Five to twelve stripes of uneven width, labelled where their borders end."""
    rng, unit = canvas.rng, canvas.unit
    columns = int(rng.integers(5, 13))
    width, height = unit * (1 + rng.random(2))
    share = rng.random(columns)
    share = 0.04 + (1 - 0.04 * columns) * share / share.sum()
    x = np.concatenate(([0.0], np.cumsum(share))) * width
    grid = _perspective_grid(x, np.array((0.0, height)), 0.1 * unit, canvas)
    colors = [canvas.color()]
    while len(colors) < columns:
        colors.append(canvas.color(colors[-1]))
    _draw_board(grid, np.array([colors]), canvas)


def _perspective_grid(
    x: FloatArray, y: FloatArray, jitter: float, canvas: _Canvas
) -> NDArray[np.float64]:
    """The grid (len(y), len(x), 2) of a board whose four corners are moved by up to `jitter`."""
    size = np.array((canvas.width - 1, canvas.height - 1))
    board = np.array((x[-1], y[-1]))
    square = np.array(((0, 0), (1, 0), (1, 1), (0, 1)), np.float32) * board
    shift = (size - board) * canvas.rng.uniform(0.25, 0.75, 2)
    grid = np.stack(np.meshgrid(x, y), axis=-1)
    smallest = 0.035 * canvas.unit
    while True:
        moved = square + shift + canvas.rng.uniform(-jitter, jitter, (4, 2))
        if _corner_angles(moved).min() < np.pi / 5 or not _is_convex(moved):
            continue
        matrix = cv2.getPerspectiveTransform(square.astype(np.float32), moved.astype(np.float32))
        warped = np.asarray(cv2.perspectiveTransform(grid, matrix), np.float64)
        steps = np.concatenate(
            [np.linalg.norm(np.diff(warped, axis=a), axis=-1).ravel() for a in (0, 1)]
        )
        if steps.min() >= smallest:
            return warped
        jitter *= 0.9


def _is_convex(polygon: FloatArray) -> bool:
    edge = np.roll(polygon, -1, axis=0) - polygon
    following = np.roll(edge, -1, axis=0)
    cross = edge[:, 0] * following[:, 1] - edge[:, 1] * following[:, 0]
    return bool((cross > 0).all() or (cross < 0).all())


def _draw_board(grid: FloatArray, colors: FloatArray, canvas: _Canvas) -> None:
    """Draw the cells of a grid (R+1, C+1, 2) in colors (R, C); every grid point is a label.

    The whole board is filled first, so that no background shows in the seams between cells.
    """
    outline = np.stack((grid[0, 0], grid[0, -1], grid[-1, -1], grid[-1, 0]))
    cells = np.stack((grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]), axis=2)
    parts = [(outline, float(colors.mean()))]
    parts += list(zip(cells.reshape(-1, 4, 2), np.clip(colors, 0, 255).ravel(), strict=True))
    canvas.add(outline, parts, grid.reshape(-1, 2))
    if canvas.rng.random() < canvas.config.edge_line_probability:
        lines = [*grid, *np.swapaxes(grid, 0, 1)]
        _draw_edges([line[[0, -1]] for line in lines], canvas)


def _draw_edges(edges: Sequence[FloatArray], canvas: _Canvas) -> None:
    """Lines of one colour along the edges of a shape, which leave its corners where they are."""
    color = canvas.color()
    thickness = max(1, round(canvas.rng.uniform(0.003, 0.012) * canvas.unit))
    for edge in edges:
        ends = np.rint(edge * (1 << _SHIFT)).astype(np.int32)
        cv2.polylines(canvas.image, [ends], False, color, thickness, cv2.LINE_AA, _SHIFT)


def _draw_cube(canvas: _Canvas) -> None:
    """A box under three rotations: seven corners seen, the hidden one unlabelled."""
    rng, unit = canvas.rng, canvas.unit
    bits = np.stack(np.meshgrid((0, 1), (0, 1), (0, 1), indexing="ij"), axis=-1).reshape(8, 3)
    while True:
        sides = unit * (0.2 + rng.random(3) * 2 / 3) * rng.uniform(0.4, 1.0)
        corners = (bits - 0.5) * sides @ _rotation(rng.uniform(0.1, 0.4, 3) * np.pi).T
        nearest = int(corners[:, 2].argmax())
        flat = corners[:, :2]
        faces = [_face(nearest, axis) for axis in range(3)]
        if min(_corner_angles(flat[face]).min() for face in faces) > np.pi / 9:
            break
    size = np.array((canvas.width, canvas.height)) - 1
    flat = flat + size * rng.uniform(0.3, 0.7, 2)
    seen = np.delete(np.arange(8), 7 - nearest)
    colors: list[float] = []
    while len(colors) < 3:
        colors.append(canvas.color(*colors))
    hull = cv2.convexHull(flat.astype(np.float32))[:, 0].astype(np.float64)
    parts = [(hull, float(np.mean(colors)))]
    parts += [(flat[face], color) for face, color in zip(faces, colors, strict=True)]
    canvas.add(hull, parts, flat[seen])
    if rng.random() < canvas.config.edge_line_probability:
        _draw_edges([flat[[*face, face[0]]] for face in faces], canvas)


def _face(corner: int, axis: int) -> list[int]:
    """The four corners, in order, of the box face through `corner` across `axis`."""
    first, second = (1 << (2 - other) for other in range(3) if other != axis)
    return [corner, corner ^ first, corner ^ first ^ second, corner ^ second]


def _rotation(angles: FloatArray) -> NDArray[np.float64]:
    """The product of the rotations about x, y and z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array(((1, 0, 0), (0, cx, -sx), (0, sx, cx)))
    about_y = np.array(((cy, 0, sy), (0, 1, 0), (-sy, 0, cy)))
    about_z = np.array(((cz, -sz, 0), (sz, cz, 0), (0, 0, 1)))
    return about_x @ about_y @ about_z


def _draw_gaussian_noise(canvas: _Canvas) -> None:
    """Nothing but noise: the detector has to stay silent.

    Uniform noise, which blur and reduction turn into nearly Gaussian noise.
    """
    noise = canvas.rng.integers(0, 256, canvas.image.shape, dtype=np.uint8)
    contrast = canvas.rng.uniform(*canvas.config.noise_contrast)
    level = canvas.background - contrast * (canvas.background - 128)
    canvas.image = _to_gray_levels(noise * np.float32(contrast) + (level - 127.5 * contrast))


_DRAWERS: dict[str, Callable[[_Canvas], None]] = {
    "lines": _draw_lines,
    "polygon": _draw_polygon,
    "multiple_polygons": _draw_multiple_polygons,
    "ellipses": _draw_ellipses,
    "star": _draw_star,
    "checkerboard": _draw_checkerboard,
    "stripes": _draw_stripes,
    "cube": _draw_cube,
    "gaussian_noise": _draw_gaussian_noise,
}
