"""Synthetic shapes: unlimited labelled pictures for the first detector.

Nine primitives of the MagicPoint data set (DeTone et al., "SuperPoint", 2018; parameters after
the public generators) are drawn with OpenCV at sub-pixel coordinates on a large canvas, blurred
and reduced. The corners are known exactly because they were drawn. Derived in notebook 01.

Convention: keypoints are (x, y), pixel centres at integers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.floating]
Inked = NDArray[np.int32]  # corners of polygons (..., 2) as they are drawn, see `_inked`
Parts = Sequence[tuple[Inked, Sequence[float]]]  # polygons (M, K, 2) with M gray levels
_Scalar = TypeVar("_Scalar", np.uint8, np.float32)

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
_SPREAD = 0.62  # measured: an anti-aliased fill reaches this far beyond its outline, in pixels
_COVER_MARGIN = 0.005  # labels this close to a later shape's edge are covered; of the canvas


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
        min_contrast: smallest difference in gray level between a shape and what it touches; of a
            checkerboard half of it between neighbours, and three quarters to the background.
        background_contrast: range of the standard deviation of the background, gray levels.
        texture_contrast: the same for the texture inside multiple polygons.
        noise_contrast: the noise primitive's strength varies smoothly over the picture between
            these; 1 is uniform noise over 0..255.
        gap_fraction: smallest distance between separate shapes.
        overlap_probability: share of multiple-polygon pictures whose polygons may cover earlier
            ones; corners that are covered lose their label.
        edge_line_probability: chance that a cube or a board gets lines along its edges.
    """

    canvas_height: int = 240
    canvas_width: int = 320
    height: int = 120
    width: int = 160
    blur_kernel: int = 3
    primitives: tuple[str, ...] = PRIMITIVES
    primitive_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 0.3, 1.0, 1.0, 0.2, 1.0, 0.1)
    min_contrast: int = 30
    background_contrast: tuple[float, float] = (2.0, 10.0)
    texture_contrast: tuple[float, float] = (2.0, 12.0)
    noise_contrast: tuple[float, float] = (0.05, 1.5)
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
        if not 0 <= self.min_contrast <= 40:
            raise ValueError(
                f"min_contrast: {self.min_contrast} is outside 0..40; four gray levels further "
                "apart do not fit into 0..255 wherever the first three lie"
            )
        if not 0 < self.noise_contrast[0] <= self.noise_contrast[1]:
            raise ValueError(f"noise_contrast: {self.noise_contrast} is not 0 < low <= high")
        if self.blur_kernel < 1 or self.blur_kernel % 2 == 0:
            raise ValueError(f"blur_kernel: {self.blur_kernel} is not an odd number >= 1")
        if min(self.canvas_height, self.canvas_width, self.height, self.width) < 16:
            raise ValueError("canvas and image need at least 16 pixels a side")


SHAPES_PRESETS: dict[str, ShapesConfig] = {
    "default": ShapesConfig(),
    "published": ShapesConfig(canvas_height=960, canvas_width=1280, blur_kernel=21),
}
"""Canvases: "published" has the size and the blur of the public generator (rpautrat/SuperPoint).

What is drawn on them is ours, after the paper, and differs from its drawings in detail.
There a cube has one gray level and always edge lines, boards and stripes have at least four random
lines across, the branches of a star differ in gray level, polygons never overlap and may be larger,
noise is uniform over the whole picture, and the background is made of blurred blobs. Without noise
ours are the easier ones for classical detectors (notebook 02).
"""


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
    cumulative = list(accumulate(config.primitive_weights))
    chosen = bisect_right(cumulative, rng.random() * cumulative[-1])
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
        self.size = np.array((self.width - 1, self.height - 1))
        self.unit = float(min(self.height, self.width))
        self.background = 255 * rng.random()
        texture = self.smooth_noise(0.15, 0.5) * rng.uniform(*config.background_contrast)
        self.image = self.enlarge(np.clip(self.background + texture, 0, 255).astype(np.uint8))
        self.occupied: NDArray[np.uint8] = np.zeros((self.height, self.width), np.uint8)
        self.keypoints: FloatArray = np.zeros((0, 2))

    def random_points(self, shape: tuple[int, ...], margin: FloatArray | float) -> FloatArray:
        """Points (*shape, 2) at least `margin` (broadcast to the result) inside the frame.

        The frame is that of the outermost pixel centres after reduction, where labels end.
        """
        rim = margin + 0.5 * max(self.height / self.config.height, self.width / self.config.width)
        return rim + self.rng.random((*shape, 2)) * (self.size - 2 * rim)

    def smooth_noise(self, finest: float, coarsest: float) -> NDArray[np.float32]:
        """Noise of deviation about 1 that varies over a random fraction of the canvas' height.

        It comes at a quarter of the canvas' size: nothing finer is in it.
        """
        scale = self.rng.uniform(finest, coarsest)
        cells = (2 + round(1 / scale), 2 + round(self.width / (self.height * scale)))
        noise = 1.4 * self.rng.standard_normal(cells, dtype=np.float32)
        quarter = (self.width // 4, self.height // 4)
        return np.asarray(cv2.resize(noise, quarter, interpolation=cv2.INTER_CUBIC), np.float32)

    def enlarge(self, picture: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """Bring a smaller picture to the canvas' size."""
        full = cv2.resize(picture, (self.width, self.height), interpolation=cv2.INTER_LINEAR)
        return np.asarray(full, picture.dtype)

    def color(self, *others: float) -> float:
        """A gray level that differs from the background and from up to two `others`."""
        while True:
            candidate = 255 * self.rng.random()
            distance = min(abs(candidate - other) for other in (self.background, *others))
            if distance >= self.config.min_contrast:
                return candidate

    def color_over(self, corners: FloatArray) -> float | None:
        """A gray level that differs from the background and from what lies under the corners.

        None if sixteen random ones do not.
        """
        x, y = np.clip(np.rint(corners).astype(int), 0, self.size).T
        under = np.append(self.image[y, x], self.background)
        candidates = 255 * self.rng.random(16)
        far = (np.abs(candidates[:, None] - under) >= self.config.min_contrast).all(axis=1)
        return float(candidates[far.argmax()]) if far.any() else None

    def colors(self, count: int) -> NDArray[np.float64]:
        """Gray levels of which each differs from the one before it and from the background."""
        levels = [self.color()]
        while len(levels) < count:
            levels.append(self.color(levels[-1]))
        return np.array(levels)

    def add(self, outline: FloatArray, parts: Parts, keypoints: FloatArray) -> None:
        """Draw a shape over what is there; labels of earlier shapes under its outline go."""
        if len(self.keypoints):
            hidden = _covered(self.keypoints, outline, margin=_COVER_MARGIN * self.unit)
            self.keypoints = self.keypoints[~hidden]
        self._draw(parts, keypoints)

    def add_separate(self, outline: FloatArray, parts: Parts, keypoints: FloatArray) -> bool:
        """Draw a shape where it keeps the gap to all others; tell whether it does."""
        corners = np.rint(outline).astype(np.int32)
        if not self._is_free(corners):
            return False
        gap = max(1, round(2 * self.config.gap_fraction * self.unit))
        cv2.fillPoly(self.occupied, [corners], 255)
        cv2.polylines(self.occupied, [corners], True, 255, gap)
        self._draw(parts, keypoints)
        return True

    def _is_free(self, corners: NDArray[np.int32]) -> bool:
        x, y, width, height = cv2.boundingRect(corners)
        x, y, right, bottom = max(x, 0), max(y, 0), x + width, y + height
        region = self.occupied[y:bottom, x:right]
        if region.size == 0:
            return False
        inside = np.zeros(region.shape, np.uint8)
        cv2.fillPoly(inside, [corners], 255, offset=(-x, -y))
        return not cv2.hasNonZero(cv2.bitwise_and(inside, region))

    def _draw(self, parts: Parts, keypoints: FloatArray) -> None:
        for polygons, levels in parts:
            _fill(self.image, polygons, levels)
        self.keypoints = np.concatenate((self.keypoints, keypoints))

    def draw_edges(self, edges: Iterable[FloatArray]) -> None:
        """Lines of one colour along edges (K, 2) of a shape; its corners stay where they are."""
        color = self.color()
        thickness = max(1, round(self.rng.uniform(0.003, 0.012) * self.unit))
        for edge in edges:
            ends = _fixed_point(edge)
            cv2.polylines(self.image, [ends], False, color, thickness, cv2.LINE_AA, _SHIFT)

    def render(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Blur, reduce, and move the keypoints along."""
        config = self.config
        blurred = cv2.GaussianBlur(self.image, (config.blur_kernel, config.blur_kernel), 0)
        size = (config.width, config.height)
        reduced = cv2.resize(blurred, size, interpolation=cv2.INTER_AREA)
        scale = np.array((config.width / self.width, config.height / self.height))
        keypoints = scale * (self.keypoints + 0.5) - 0.5
        inside = ((keypoints >= 0) & (keypoints <= np.array(size) - 1)).all(axis=1)
        image = np.asarray(reduced, np.float32) * np.float32(1 / 255)
        return image, keypoints[inside].astype(np.float32)


def fill_polygons(image: NDArray[np.uint8], polygons: FloatArray, levels: FloatArray) -> None:
    """Fill convex polygons one over the other, anti-aliased, with edges where the coordinates say.

    OpenCV's anti-aliased fill reaches about 0.6 pixels beyond the outline; the corners
    are moved inwards by as much before they are drawn.

    Args:
        image: uint8 (H, W), drawn into.
        polygons: (M, K, 2) corners in order; each polygon convex.
        levels: (M,) gray levels, 0..255.
    """
    _fill(image, _inked(polygons), levels.tolist())


def _inked(polygons: FloatArray) -> Inked:
    """What to tell OpenCV so that polygons (M, K, 2) come out with their edges in place."""
    return _fixed_point(_inset(polygons, _SPREAD))


def _inked_each(polygons: Sequence[FloatArray]) -> list[Inked]:
    """`_inked` polygons (1, K, 2) of polygons (K, 2) that may differ in K."""
    inked: dict[int, Inked] = {}
    for number in {len(polygon) for polygon in polygons}:
        places = [i for i, polygon in enumerate(polygons) if len(polygon) == number]
        inked |= zip(places, _inked(np.stack([polygons[i] for i in places])), strict=True)
    return [inked[i][None] for i in range(len(polygons))]


def _fill(image: NDArray[np.uint8], polygons: Inked, levels: Sequence[float]) -> None:
    for polygon, level in zip(polygons, levels, strict=True):
        # fillPoly would also take others, but places edges half a pixel off now and then.
        cv2.fillConvexPoly(image, polygon, level, cv2.LINE_AA, _SHIFT)


def _fixed_point(points: FloatArray) -> NDArray[np.int32]:
    return np.rint(points * (1 << _SHIFT)).astype(np.int32)


def _as_complex(points: FloatArray) -> NDArray[np.complex128]:
    """(..., 2) points as numbers x + iy, for which turning is multiplying."""
    return np.ascontiguousarray(points, np.float64).view(np.complex128)[..., 0]


def _as_points(numbers: NDArray[np.complex128]) -> NDArray[np.float64]:
    return np.ascontiguousarray(numbers)[..., None].view(np.float64)


def _turns(polygon: NDArray[np.complex128], corners: ArrayLike | None = None) -> FloatArray:
    """How far the outline turns at each corner, in -pi..pi; the angle there is pi - |turn|.

    Args:
        polygon: (..., K) corners.
        corners: (n, 1) for polygons (n, K): how many of the K belong to each, those in front; all
            if None.
    """
    count = np.asarray(polygon.shape[-1] if corners is None else corners)
    place = np.arange(polygon.shape[-1])
    flat = polygon.reshape(-1, polygon.shape[-1])
    row = np.arange(len(flat))[:, None]
    leaving = flat[row, (place + 1) % count] - flat
    arriving = flat - flat[row, (place - 1) % count]
    return np.angle(leaving * np.conj(arriving)).reshape(polygon.shape)


def _inset(polygons: FloatArray, distance: float) -> FloatArray:
    """Move every edge of polygons (M, K, 2) inwards by `distance`.

    A corner between unit edges a (arriving) and b (leaving) moves by d (b - a) / (a x b), limited
    to 3 d for needle-sharp corners and left alone on straight ones.
    """
    z = _as_complex(polygons)
    leaving = np.concatenate((z[:, 1:], z[:, :1]), axis=1) - z
    area = (np.conj(z) * leaving).imag.sum(axis=1, keepdims=True)
    leaving /= np.maximum(np.abs(leaving), 1e-9)
    arriving = np.concatenate((leaving[:, -1:], leaving[:, :-1]), axis=1)
    cross = (np.conj(arriving) * leaving).imag * np.sign(area)
    move = (leaving - arriving) / np.where(np.abs(cross) < 1e-6, np.inf, cross)
    move *= distance * np.minimum(1, 3 / np.maximum(np.abs(move), 1e-9))
    return _as_points(z + move)


def _covered(points: FloatArray, outline: FloatArray, margin: float) -> NDArray[np.bool_]:
    """Which of (N, 2) points lie inside the outline (K, 2) or within `margin` of it."""
    start, end = outline, np.roll(outline, -1, axis=0)
    edge = end - start
    relative = points[:, None] - start  # (N, K, 2)
    crosses = (points[:, None, 1] < start[:, 1]) != (points[:, None, 1] < end[:, 1])
    side = edge[:, 0] * relative[..., 1] - edge[:, 1] * relative[..., 0]
    inside = (crosses & ((side > 0) == (edge[:, 1] > 0))).sum(axis=1) % 2 == 1
    along = (relative * edge).sum(axis=-1) / np.maximum((edge**2).sum(axis=-1), 1e-9)
    nearest = np.clip(along, 0, 1)[..., None] * edge
    distance = ((relative - nearest) ** 2).sum(axis=-1).min(axis=1)
    return inside | (distance <= margin**2)


def _strips(ends: FloatArray, thickness: ArrayLike) -> FloatArray:
    """The outlines (n, 4, 2) of segments (n, 2, 2) of a thickness, cut square at their ends."""
    z = _as_complex(ends)
    along = z[:, 1] - z[:, 0]
    across = 0.5j * np.asarray(thickness) * along / np.maximum(np.abs(along), 1e-9)
    corners = (z[:, 0] + across, z[:, 1] + across, z[:, 1] - across, z[:, 0] - across)
    return _as_points(np.stack(corners, axis=1))


def _ellipses(centers: FloatArray, axes: FloatArray, angles: FloatArray) -> FloatArray:
    """Ellipses as polygons (n, 40, 2), from centres (n, 2), half axes (n, 2), angles (n,)."""
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    upright = axes[:, :1] * np.cos(t) + 1j * axes[:, 1:] * np.sin(t)
    return _as_points(_as_complex(centers)[:, None] + np.exp(1j * angles)[:, None] * upright)


def _draw_lines(canvas: _Canvas) -> None:
    """One to nine separate segments, labelled at both ends."""
    rng, unit = canvas.rng, canvas.unit
    count = int(rng.integers(1, 10))
    segments = canvas.random_points((3 * count, 2), 0.0)
    long_enough = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1) > 0.08 * unit
    segments = segments[long_enough]
    outlines = _strips(segments, rng.uniform(0.01, 0.02, len(segments)) * unit)
    for ends, outline, inked in zip(segments, outlines, _inked(outlines), strict=True):
        parts = [(inked[None], (canvas.color(),))]
        count -= canvas.add_separate(outline, parts, ends)
        if count == 0:
            break


def _random_polygons(
    count: int, min_radius: float, max_radius: float, canvas: _Canvas
) -> list[FloatArray]:
    """Up to `count` convex polygons of three to five corners, each of 20 to 120 degrees.

    Three to seven are placed around a centre, one in each of k equal sectors; corners too close to
    the next one or too flat to be told apart are left out, and so are polygons that then have fewer
    than three, or hollow, flat or needle-sharp ones. (With six or more, some angle exceeds 120.)
    """
    rng = canvas.rng
    corners = rng.integers(3, 8, (count, 1))
    place = np.arange(7)
    angle = (place + rng.random((count, 7))) * (2 * np.pi / corners)
    radius = np.maximum(rng.random((count, 1)) * max_radius, min_radius)
    center = canvas.random_points((count,), radius)
    reach = radius * np.maximum(rng.random((count, 7)), 0.4)
    z = _as_complex(center)[:, None] + reach * np.exp(1j * angle)
    gap = np.abs(z[np.arange(count)[:, None], (place + 1) % corners] - z)
    z, corners = _select_corners(z, corners, gap > 0.05 * canvas.unit)
    z, corners = _select_corners(z, corners, np.abs(_turns(z, corners)) > np.pi / 3)
    turns = _turns(z, corners)
    good = (turns > np.pi / 3) & (turns < 8 * np.pi / 9) | (place >= corners)
    usable = (corners[:, 0] >= 3) & good.all(axis=1)
    return [_as_points(z[i, : corners[i, 0]]) for i in np.flatnonzero(usable)]


def _select_corners(
    z: NDArray[np.complex128], corners: NDArray[np.int64], keep: NDArray[np.bool_]
) -> tuple[NDArray[np.complex128], NDArray[np.int64]]:
    """Move the corners (n, K) to keep to the front; the new (n, 1) counts, at least 1."""
    keep = keep & (np.arange(z.shape[1]) < corners)
    order = np.argsort(~keep, axis=1, kind="stable")
    front = z[np.arange(len(z))[:, None], order]
    return front, np.maximum(keep.sum(axis=1, keepdims=True), 1)


def _draw_polygon(canvas: _Canvas) -> None:
    """One polygon of three to five corners, labelled at the corners."""
    found: list[FloatArray] = []
    while not found:
        found = _random_polygons(4, canvas.unit / 10, canvas.unit / 2, canvas)
    canvas.add(found[0], [(_inked(found[0][None]), (canvas.color(),))], found[0])


def _draw_multiple_polygons(canvas: _Canvas) -> None:
    """Up to thirty textured polygons, apart from each other unless overlaps are drawn."""
    config, rng, unit = canvas.config, canvas.rng, canvas.unit
    overlap = rng.random() < config.overlap_probability
    strength = np.zeros_like(canvas.image)  # of the texture, in tenths of a gray level
    candidates = (8, 0.35 * unit) if overlap else (30, 0.25 * unit)
    polygons = _random_polygons(candidates[0], 0.1 * unit, candidates[1], canvas)
    for polygon, inked in zip(polygons, _inked_each(polygons), strict=True):
        color = canvas.color_over(polygon) if overlap else canvas.color()
        if color is None:
            continue
        parts = [(inked, (color,))]
        if overlap:
            canvas.add(polygon, parts, polygon)
        elif not canvas.add_separate(polygon, parts, polygon):
            continue
        _fill(strength, inked, (10 * rng.uniform(*config.texture_contrast),))
    texture = canvas.enlarge(canvas.smooth_noise(0.05, 0.1))
    change = cv2.multiply(texture, strength, scale=0.1, dtype=cv2.CV_32F)
    canvas.image = np.asarray(cv2.add(canvas.image, change, dtype=cv2.CV_8U), np.uint8)


def _draw_ellipses(canvas: _Canvas) -> None:
    """Up to twenty separate ellipses: edges, and nothing to label."""
    rng = canvas.rng
    count = int(rng.integers(1, 21))
    axes = np.maximum(rng.random((count, 2)) / 4, 0.03) * canvas.unit
    centers = canvas.random_points((count,), axes.max(axis=1, keepdims=True))
    outlines = _ellipses(centers, axes, rng.uniform(0, np.pi, count))
    for outline, inked in zip(outlines, _inked(outlines), strict=True):
        canvas.add_separate(outline, [(inked[None], (canvas.color(),))], outline[:0])


def _draw_star(canvas: _Canvas) -> None:
    """Three to five branches from a centre, labelled at the centre and at the branch ends."""
    rng, unit = canvas.rng, canvas.unit
    branches = int(rng.integers(3, 6))
    thickness = rng.uniform(0.01, 0.02) * unit
    radius = max(rng.random() / 2, 0.2) * unit
    center = canvas.random_points((), radius)
    # Neighbouring branches stay at least 0.3 of a sector apart, so that their ends do.
    sector = 2 * np.pi / branches
    angle = rng.uniform(0, sector) + (np.arange(branches) + 0.7 * rng.random(branches)) * sector
    reach = radius * rng.uniform(0.4, 1.0, branches)
    ends = center + _as_points(reach * np.exp(1j * angle))
    segments = np.stack((np.broadcast_to(center, ends.shape), ends), axis=1)
    color = canvas.color()
    hub = _ellipses(center[None], np.full((1, 2), thickness / 2), np.zeros(1))
    parts = [
        (_inked(_strips(segments, thickness)), branches * (color,)),
        (_inked(hub), (color,)),
    ]
    canvas.add(ends, parts, np.concatenate((center[None], ends)))


def _draw_checkerboard(canvas: _Canvas) -> None:
    """Three to six rows and columns of alternating cells, seen in perspective."""
    rng = canvas.rng
    rows, columns = (int(n) for n in rng.integers(3, 7, 2))
    cell = float((canvas.size / (columns, rows)).min())
    x, y = np.arange(columns + 1) * cell, np.arange(rows + 1) * cell
    jitter = rng.uniform(0.05, 0.2) * max(canvas.height, canvas.width)
    grid = _perspective_grid(x, y, jitter, canvas)
    first, second = canvas.colors(2)
    spread = 0.25 * canvas.config.min_contrast
    levels = np.where(_parity((rows, columns)) == 0, first, second)
    levels += rng.uniform(-spread, spread, levels.shape)
    _draw_board(grid, np.clip(levels, 0, 255), canvas)


def _draw_stripes(canvas: _Canvas) -> None:
    """Five to twelve stripes of uneven width, labelled where their borders end."""
    rng, unit = canvas.rng, canvas.unit
    columns = int(rng.integers(5, 13))
    width, height = unit * rng.uniform((1.0, 0.7), (2.0, 1.5))
    share = rng.random(columns)
    share = 0.04 + (1 - 0.04 * columns) * share / share.sum()
    x = np.concatenate(([0.0], np.cumsum(share))) * width
    grid = _perspective_grid(x, np.array((0.0, height)), 0.1 * unit, canvas)
    _draw_board(grid, canvas.colors(columns)[None], canvas)


def _perspective_grid(
    x: FloatArray, y: FloatArray, jitter: float, canvas: _Canvas
) -> NDArray[np.float64]:
    """The grid (len(y), len(x), 2) of a board whose four corners are moved by up to `jitter`.

    Boards that come out folded, with a corner below 36 degrees or with cells too small for their
    corners to be told apart are drawn again, with a little less jitter.
    """
    board = np.array((x[-1], y[-1]))
    square = np.array(((0, 0), (1, 0), (1, 1), (0, 1))) * board
    place = square + (canvas.size - board) * canvas.rng.uniform(0.25, 0.75, 2)
    grid = np.empty((len(y), len(x), 2))
    grid[..., 0], grid[..., 1] = x, y[:, None]
    while True:
        corners = place + canvas.rng.uniform(-jitter, jitter, (4, 2))
        turns = _turns(_as_complex(corners))
        matrix = cv2.getPerspectiveTransform(square.astype(np.float32), corners.astype(np.float32))
        warped = np.asarray(cv2.perspectiveTransform(grid, matrix), np.float64)
        z = _as_complex(warped)
        smallest = min(np.abs(np.diff(z, axis=0)).min(), np.abs(np.diff(z, axis=1)).min())
        if turns.min() > 0 and turns.max() < 0.8 * np.pi and smallest >= 0.035 * canvas.unit:
            return warped
        jitter *= 0.95


def _parity(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The colour class 0 or 1 of the cells of a board (rows, columns)."""
    return np.indices(shape).sum(axis=0) % 2


def _draw_board(grid: FloatArray, levels: FloatArray, canvas: _Canvas) -> None:
    """Draw the cells of a grid (R+1, C+1, 2) at levels (R, C); every grid point is a label.

    The board is filled first, all but its rim, so that no background shows in the seams between
    cells. What is drawn last gains a little at a seam, so one colour of the checkerboard comes
    after the other: its cells grow alike on all sides, and the corners between them stay in place.
    """
    outline = np.stack((grid[0, 0], grid[0, -1], grid[-1, -1], grid[-1, 0]))
    cells = np.stack((grid[:-1, :-1], grid[:-1, 1:], grid[1:, 1:], grid[1:, :-1]), axis=2)
    parity = _parity(levels.shape)
    order = np.argsort(parity, axis=None, kind="stable")
    polygons = np.concatenate((_inset(outline[None], 1.0), cells.reshape(-1, 4, 2)[order]))
    grays = [levels.mean(), *levels.flat[order].tolist()]
    canvas.add(outline, [(_inked(polygons), grays)], grid.reshape(-1, 2))
    if canvas.rng.random() < canvas.config.edge_line_probability:
        canvas.draw_edges(line[[0, -1]] for line in (*grid, *np.swapaxes(grid, 0, 1)))


def _draw_cube(canvas: _Canvas) -> None:
    """A box under three rotations: seven corners seen, the hidden one unlabelled."""
    rng, unit = canvas.rng, canvas.unit
    sharpest = 0.0
    while sharpest < np.pi / 9:
        sides = unit * (0.2 + rng.random(3) * 2 / 3) * rng.uniform(0.4, 1.0)
        rotation = _rotation(rng.uniform(0.1, 0.4, 3) * np.pi)
        corners = (_BOX - 0.5) * sides @ rotation.T
        nearest = int(corners[:, 2].argmax())
        faces = _box_faces(nearest)
        sharpest = np.pi - np.abs(_turns(_as_complex(corners[faces, :2]))).max()
    flat = corners[:, :2] + canvas.size * rng.uniform(0.3, 0.7, 2)
    # The three faces around the nearest corner show every corner but the one opposite to it.
    seen = np.arange(8) != 7 - nearest
    hull = cv2.convexHull(flat.astype(np.float32))[:, 0].astype(np.float64)
    levels = [canvas.color()]
    levels.append(canvas.color(*levels))
    levels.append(canvas.color(*levels))
    parts = [
        (_inked(_inset(hull[None], 1.0)), (sum(levels) / 3,)),
        (_inked(flat[faces]), levels),
    ]
    canvas.add(hull, parts, flat[seen])
    if rng.random() < canvas.config.edge_line_probability:
        canvas.draw_edges(flat[[*face, face[0]]] for face in faces)


_BOX = np.stack(np.meshgrid((0, 1), (0, 1), (0, 1), indexing="ij"), axis=-1).reshape(8, 3)


def _box_faces(corner: int) -> NDArray[np.int64]:
    """The corners (3, 4), in order, of the three box faces that meet in `corner`."""
    pairs = np.array(((1, 2), (1, 4), (2, 4)))
    first, second = pairs[:, 0], pairs[:, 1]
    return corner ^ np.stack((0 * first, first, first | second, second), axis=1)


def _rotation(angles: FloatArray) -> NDArray[np.float64]:
    """The product of the rotations about x, y and z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array(((1, 0, 0), (0, cx, -sx), (0, sx, cx)))
    about_y = np.array(((cy, 0, sy), (0, 1, 0), (-sy, 0, cy)))
    about_z = np.array(((cz, -sz, 0), (sz, cz, 0), (0, 0, 1)))
    return about_x @ about_y @ about_z


def _draw_gaussian_noise(canvas: _Canvas) -> None:
    """Nothing but noise: the detector has to stay silent.

    Uniform noise, which blur and reduction turn into nearly Gaussian noise; it is stronger in some
    places than in others.
    """
    noise = canvas.rng.integers(0, 256, canvas.image.shape, dtype=np.uint8) - np.float32(127.5)
    place = canvas.smooth_noise(0.15, 0.5)
    low, high = np.log(canvas.config.noise_contrast)
    place = low + (place - place.min()) * ((high - low) / np.ptp(place))
    noise *= canvas.enlarge(np.exp(place, dtype=np.float32))
    canvas.image = np.clip(canvas.image + noise, 0, 255).astype(np.uint8)


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
