"""Homographies: how points and pictures move together.

Pixel centres sit at integer coordinates (x right, y down), as in OpenCV. A homography maps the
pixels of a first picture to those of a second, ``x1 ~ H_0to1 x0`` in homogeneous coordinates
(Hartley and Zisserman, *Multiple View Geometry*, section 2.3). Sampling follows SuperPoint's
homographic adaptation (DeTone et al. 2018, section 5.2) with the published amplitudes as presets.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F

Array = TypeVar("Array", np.ndarray, torch.Tensor)
Padding = Literal["zeros", "border"]
Mode = Literal["bilinear", "nearest"]
Backend = Literal["auto", "opencv", "torch"]

_CV_MODES = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}
_CV_BORDERS = {"zeros": cv2.BORDER_CONSTANT, "border": cv2.BORDER_REPLICATE}
_CV_DTYPES = (torch.float32, torch.float64, torch.uint8)


# --- points and matrices -------------------------------------------------------------------------


def warp_points(points: Array, H: np.ndarray | torch.Tensor) -> Array:
    """Map points through homographies: ``(x', y', w') = H (x, y, 1)``, result ``(x'/w', y'/w')``.

    Convention: ``H`` maps the given points to the returned ones, as ``cv2.perspectiveTransform``
    does. A point sent to infinity comes back as ``inf``, never NaN.

    Args:
        points: (..., N, 2) as (x, y) in pixels, numpy or tensor; N may be 0.
        H: (..., 3, 3); leading dimensions broadcast with those of ``points``.

    Returns:
        (..., N, 2), of the same kind as ``points`` (numpy or tensor, device, floating type; integer
        points give the type of ``H``). Differentiable for tensors.

    Raises:
        ValueError: a shape other than (..., N, 2) and (..., 3, 3).

    Derived in notebook 03.
    """
    if points.ndim < 2 or points.shape[-1] != 2 or tuple(H.shape[-2:]) != (3, 3):
        raise ValueError(
            f"warp_points needs points (..., N, 2) and H (..., 3, 3), got {tuple(points.shape)} "
            f"and {tuple(H.shape)}"
        )
    if isinstance(points, torch.Tensor):
        return _warp_tensor_points(points, torch.as_tensor(H, device=points.device))
    return _warp_numpy_points(np.asarray(points), np.asarray(H))


# Both versions multiply element by element: a matrix product would run in bfloat16 under autocast
# and in TF32 on recent GPUs, and lose whole pixels.
def _warp_tensor_points(points: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    kind = points.dtype if points.is_floating_point() else H.dtype
    work = torch.promote_types(torch.promote_types(points.dtype, H.dtype), torch.float32)
    x, y = points.to(work).unbind(-1)
    row_x, row_y, row_w = H.to(work)[..., None, :, :].unbind(-2)
    u, v, w = (row[..., 0] * x + row[..., 1] * y + row[..., 2] for row in (row_x, row_y, row_w))
    at_infinity = (w == 0)[..., None]
    warped = torch.stack([u, v], -1) / torch.where(w == 0, torch.ones_like(w), w)[..., None]
    return torch.where(at_infinity, torch.full_like(warped, math.inf), warped).to(kind)


def _warp_numpy_points(points: np.ndarray, H: np.ndarray) -> np.ndarray:
    kind = points.dtype if points.dtype.kind == "f" else np.result_type(H.dtype, np.float32)
    work = np.result_type(points.dtype, H.dtype, np.float32)
    x, y = np.moveaxis(points.astype(work), -1, 0)
    row_x, row_y, row_w = np.moveaxis(H.astype(work)[..., None, :, :], -2, 0)
    u, v, w = (row[..., 0] * x + row[..., 1] * y + row[..., 2] for row in (row_x, row_y, row_w))
    at_infinity = (w == 0)[..., None]
    warped = np.stack([u, v], -1) / np.where(w == 0, 1, w)[..., None]
    return np.where(at_infinity, np.inf, warped).astype(kind)


def invert_homographies(H: Array) -> Array:
    """Invert homographies in double precision, scaled so that the last entry is 1.

    Args:
        H: (..., 3, 3), numpy or tensor; any overall scale.

    Returns:
        (..., 3, 3) of the same kind as ``H`` (float64 for integers). An inverse whose last entry is
        0 (a legal homography) keeps its own scale.

    Raises:
        ValueError: a wrong shape, an entry that is not finite, or a singular matrix, named by its
            index.
    """
    if isinstance(H, torch.Tensor):
        inverse = _invert(H.detach().cpu().double().numpy())
        kind = H.dtype if H.is_floating_point() else torch.float64
        return torch.from_numpy(inverse).to(kind).to(H.device)
    H = np.asarray(H)
    return _invert(H.astype(np.float64)).astype(H.dtype if H.dtype.kind == "f" else np.float64)


def _invert(H: np.ndarray) -> np.ndarray:
    if H.ndim < 2 or H.shape[-2:] != (3, 3):
        raise ValueError(f"homographies must have shape (..., 3, 3), got {H.shape}")
    if H.size == 0:
        return H.copy()
    _refuse(~np.isfinite(H).all((-2, -1)), H, "has an entry that is not finite")
    scale = np.abs(H).max((-2, -1), keepdims=True)
    _refuse(scale[..., 0, 0] == 0, H, "is zero")
    H = H / scale
    singular = np.linalg.det(H) == 0
    inverse = np.linalg.inv(np.where(singular[..., None, None], np.eye(3), H))
    # Rounding hides most singular matrices from the determinant; the product does not lie.
    residual = np.abs(H @ inverse - np.eye(3)).max((-2, -1))
    _refuse(singular | ~(residual < 1e-6), H, "is singular")
    return _with_unit_corner(inverse)


def _with_unit_corner(H: np.ndarray) -> np.ndarray:
    corner = H[..., 2:, 2:]
    usable = np.abs(corner) > 1e-12 * np.abs(H).max((-2, -1), keepdims=True)
    return H / np.where(usable, corner, 1.0)


def _refuse(bad: np.ndarray, H: np.ndarray, why: str) -> None:
    if np.any(bad):
        index = tuple(int(i) for i in np.argwhere(np.atleast_1d(bad))[0])
        where = f" {list(index)}" if np.ndim(bad) else ""
        raise ValueError(
            f"homography{where} {why}: {H[index] if np.ndim(bad) else H}".replace("\n", "")
        )


def transform_homography(H_0to1: Any, T0: Any, T1: Any) -> np.ndarray:
    """Follow a homography through changes of its two pictures: ``T1 H_0to1 T0^-1``.

    Convention: ``T0`` maps old pixels of picture 0 to its new pixels, ``T1`` those of picture 1
    (what ``resize_and_crop`` returns).

    Args:
        H_0to1: (..., 3, 3).
        T0: (..., 3, 3).
        T1: (..., 3, 3).

    Returns:
        float64 (..., 3, 3), last entry 1.

    Raises:
        ValueError: a wrong shape or a singular ``T0``.
    """
    T0_inverse = _invert(np.asarray(T0, dtype=np.float64))
    H = np.asarray(T1, dtype=np.float64) @ np.asarray(H_0to1, dtype=np.float64) @ T0_inverse
    return _with_unit_corner(H)


def resize_homography(
    H_0to1: Any, scale0: tuple[float, float], scale1: tuple[float, float]
) -> np.ndarray:
    """Return the homography between the two pictures after each was resized.

    Convention: resizing by s moves pixel x to ``s (x + 0.5) - 0.5``: the borders of the picture
    stay borders, not the centres of its first pixels.

    Args:
        H_0to1: (..., 3, 3).
        scale0: (sx, sy), new size over old size, of picture 0.
        scale1: the same for picture 1.

    Returns:
        float64 (..., 3, 3).
    """
    return transform_homography(H_0to1, _resize_transform(*scale0), _resize_transform(*scale1))


def crop_homography(
    H_0to1: Any, offset0: tuple[float, float], offset1: tuple[float, float]
) -> np.ndarray:
    """Return the homography between the two pictures after each was cropped.

    Args:
        H_0to1: (..., 3, 3).
        offset0: (x, y) of picture 0's old pixel that becomes its pixel (0, 0).
        offset1: the same for picture 1.

    Returns:
        float64 (..., 3, 3).
    """
    return transform_homography(H_0to1, _crop_transform(*offset0), _crop_transform(*offset1))


def _resize_transform(sx: float, sy: float) -> np.ndarray:
    return np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]], dtype=np.float64)


def _crop_transform(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]], dtype=np.float64)


def mean_corner_error(
    H_est: np.ndarray | None, H_true: np.ndarray, height: int, width: int
) -> float:
    """Mean distance in pixels between the picture's four corners warped by two homographies.

    The measure behind "homography accuracy" on HPatches (DeTone et al. 2018, section 7.3).

    Args:
        H_est: (3, 3) estimate; None (no estimate found) counts as infinitely wrong.
        H_true: (3, 3).
        height: of picture 0, in pixels.
        width: of picture 0, in pixels.

    Returns:
        A float in [0, inf].

    Used in notebook 06.
    """
    if H_est is None or not np.isfinite(H_est).all():
        return math.inf
    right, bottom = width - 1, height - 1
    corners = np.array([[0, 0], [right, 0], [right, bottom], [0, bottom]], dtype=np.float64)
    estimated, true = (warp_points(corners, np.asarray(H)) for H in (H_est, H_true))
    if not (np.isfinite(estimated).all() and np.isfinite(true).all()):
        return math.inf
    return float(np.linalg.norm(estimated - true, axis=-1).mean())


# --- resizing and cropping -----------------------------------------------------------------------


def resize_and_crop(
    image: np.ndarray, height: int, width: int, anchor: tuple[float, float] = (0.5, 0.5)
) -> tuple[np.ndarray, np.ndarray]:
    """Resize a picture, keeping its proportions, until it covers the wanted size; crop the rest.

    Args:
        image: (H, W) or (H, W, C), a type OpenCV resizes (float32, float64, uint8).
        height: wanted height in pixels.
        width: wanted width in pixels.
        anchor: (x, y) in [0, 1], where the crop sits in what is left over: (0.5, 0.5) the centre,
            (0, 0) the top left corner.

    Returns:
        The picture, (height, width[, C]), and the transform, float64 (3, 3), from old to new
        pixels.

    Raises:
        ValueError: an empty image or size.
    """
    _check_sizes(image, height, width)
    scale = max(height / image.shape[0], width / image.shape[1])
    full_height = max(height, round(image.shape[0] * scale))
    full_width = max(width, round(image.shape[1] * scale))
    resized, transform = _resize(image, full_height, full_width)
    x = round((full_width - width) * anchor[0])
    y = round((full_height - height) * anchor[1])
    crop = np.ascontiguousarray(resized[y : y + height, x : x + width])
    return crop, _crop_transform(x, y) @ transform


def resize_short_side(image: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Resize a picture so that its shorter side measures ``size`` pixels, keeping its proportions.

    Args:
        image: (H, W) or (H, W, C).
        size: wanted length of the shorter side, in pixels.

    Returns:
        The picture and the transform, float64 (3, 3), from old to new pixels (exact even where the
        longer side had to be rounded).

    Raises:
        ValueError: an empty image or size.
    """
    _check_sizes(image, size, size)
    scale = size / min(image.shape[:2])
    return _resize(image, round(image.shape[0] * scale), round(image.shape[1] * scale))


def _check_sizes(image: np.ndarray, height: int, width: int) -> None:
    if image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(f"expected a picture (H, W) or (H, W, C), got shape {image.shape}")
    if height < 1 or width < 1:
        raise ValueError(f"cannot resize to {height} x {width} pixels")


def _resize(image: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    old_height, old_width = image.shape[:2]
    shrinks = height < old_height or width < old_width
    # Area averaging is OpenCV's anti-aliased way down; it is plain nearest neighbour on the way up.
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = cv2.resize(image, (width, height), interpolation=interpolation)
    return resized, _resize_transform(width / old_width, height / old_height)


# --- sampling ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HomographyConfig:
    """What random homographies may do. Lengths are fractions of the picture's side.

    A patch of ``patch_ratio`` of the picture, centred, is bent, scaled, shifted and turned in this
    order; the homography shows the moved patch where the centred one was.

    Attributes:
        perspective: bend the patch: its left and right sides shift in x and change length in y.
        scale: zoom, factor in 1 ± ``scale_amplitude``.
        rotation: turn by one of ``n_angles`` angles spaced evenly over ± ``max_angle``.
        translation: move the patch, uniformly over the room it has in the picture.
        perspective_amplitude_x: largest shift of a side in x.
        perspective_amplitude_y: largest shift of a corner in y.
        scale_amplitude: largest change of scale.
        n_scales: scales tried, one of those that fit is taken.
        n_angles: angles tried, one of those that fit is taken.
        max_angle: radians.
        patch_ratio: side of the patch, in (0, 1].
        translation_overflow: how far beyond the picture a shift may go (with artifacts only).
        allow_artifacts: accept patches that leave the picture, so that parts of the warped picture
            are empty. If False, perspective is limited to the margin, and scales and angles are
            chosen among those that keep the patch inside.
    """

    perspective: bool = True
    scale: bool = True
    rotation: bool = True
    translation: bool = True
    perspective_amplitude_x: float = 0.2
    perspective_amplitude_y: float = 0.2
    scale_amplitude: float = 0.2
    n_scales: int = 5
    n_angles: int = 25
    max_angle: float = math.pi / 2
    patch_ratio: float = 0.85
    translation_overflow: float = 0.0
    allow_artifacts: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.patch_ratio <= 1:
            raise ValueError(f"patch_ratio must be in (0, 1], got {self.patch_ratio}")
        if self.n_scales < 1 or self.n_angles < 1:
            raise ValueError("n_scales and n_angles must be at least 1")
        if not 0 <= self.scale_amplitude < 1:
            raise ValueError(f"scale_amplitude must be in [0, 1), got {self.scale_amplitude}")
        if min(self.perspective_amplitude_x, self.perspective_amplitude_y) < 0:
            raise ValueError("perspective amplitudes must not be negative")


HOMOGRAPHY_PRESETS: dict[str, HomographyConfig] = {
    "synthetic": HomographyConfig(patch_ratio=0.8, translation_overflow=0.05, max_angle=1.57),
    "coco": HomographyConfig(patch_ratio=0.85, max_angle=1.57),
    "adaptation": HomographyConfig(patch_ratio=0.85),
    "validation": HomographyConfig(
        patch_ratio=0.8,
        scale_amplitude=0.1,
        perspective_amplitude_x=0.05,
        perspective_amplitude_y=0.05,
        max_angle=3.14,
    ),
    "wide": HomographyConfig(scale_amplitude=0.5, max_angle=math.pi),
    "identity": HomographyConfig(perspective=False, scale=False, rotation=False, translation=False),
}
"""Published parameter sets (synthetic shapes, COCO training, homographic adaptation, the COCO
patches used for validation, all after github.com/rpautrat/SuperPoint), one of ours with any
rotation and a wider zoom ("wide"), and no warp at all ("identity")."""


def sample_homographies(
    n: int, height: int, width: int, config: HomographyConfig, rng: np.random.Generator
) -> np.ndarray:
    """Draw random homographies from picture pixels to warped-picture pixels.

    Convention: the centred patch of the *warped* picture shows the moved patch of the picture, so
    that what fills the warped picture comes from inside (the recipe of
    github.com/rpautrat/SuperPoint). The patch moves in the unit square, as there: on a picture that
    is not square a rotation also stretches. Normal variates have a standard deviation of half the
    amplitude and are cut at the amplitude.

    Args:
        n: how many; 0 gives an empty array.
        height: of the picture and of the warped picture, in pixels.
        width: likewise.
        config: see ``HomographyConfig``.
        rng: the source of randomness.

    Returns:
        float64 (n, 3, 3), last entry 1.

    Derived in notebook 03.
    """
    patch = _centred_patch(config.patch_ratio)
    moved = np.repeat(patch[None], n, axis=0)
    if config.perspective:
        moved = moved + _perspective_shift(n, config, rng)
    if config.scale:
        moved = _scaled(moved, config, rng)
    if config.translation:
        moved = moved + _translation(moved, config, rng)
    if config.rotation:
        moved = _rotated(moved, config, rng)
    warped_to_picture = homographies_from_corners(
        _unit_to_pixels(np.broadcast_to(patch, moved.shape), height, width),
        _unit_to_pixels(moved, height, width),
    )
    return _invert(warped_to_picture)


def homographies_from_corners(corners0: np.ndarray, corners1: np.ndarray) -> np.ndarray:
    """Solve for the homographies that send four points to four others, all pairs at once.

    Each pair gives two rows of a linear system in the eight unknown entries,
    ``x' (h20 x + h21 y + 1) = h00 x + h01 y + h02`` and the same for y' (the direct linear
    transform; Hartley and Zisserman, section 4.1).

    Args:
        corners0: (n, 4, 2), no three on a line.
        corners1: (n, 4, 2), likewise.

    Returns:
        float64 (n, 3, 3), last entry 1.

    Raises:
        numpy.linalg.LinAlgError: degenerate corners.
    """
    x, y = corners0[..., 0], corners0[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    u, v = corners1[..., 0], corners1[..., 1]
    rows_u = np.stack([x, y, one, zero, zero, zero, -x * u, -y * u], -1)
    rows_v = np.stack([zero, zero, zero, x, y, one, -x * v, -y * v], -1)
    system = np.concatenate([rows_u, rows_v], axis=-2)
    entries = np.linalg.solve(system, np.concatenate([u, v], axis=-1)[..., None])[..., 0]
    return np.concatenate([entries, np.ones_like(entries[..., :1])], -1).reshape(-1, 3, 3)


def _centred_patch(ratio: float) -> np.ndarray:
    """Corners in the unit square: top left, bottom left, bottom right, top right."""
    low, high = (1 - ratio) / 2, (1 + ratio) / 2
    return np.array([[low, low], [low, high], [high, high], [high, low]])


def _unit_to_pixels(points: np.ndarray, height: int, width: int) -> np.ndarray:
    # The unit square is the picture with its pixels' full extent: 0 is half a pixel before pixel 0.
    return points * np.array([width, height]) - 0.5


def _truncated_normal(
    shape: tuple[int, ...], amplitude: float, rng: np.random.Generator
) -> np.ndarray:
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values * (amplitude / 2)


def _perspective_shift(n: int, config: HomographyConfig, rng: np.random.Generator) -> np.ndarray:
    limit = math.inf if config.allow_artifacts else (1 - config.patch_ratio) / 2
    left, right = _truncated_normal((2, n), min(config.perspective_amplitude_x, limit), rng)
    y = _truncated_normal((n,), min(config.perspective_amplitude_y, limit), rng)
    corners = [[left, y], [left, -y], [right, y], [right, -y]]
    return np.moveaxis(np.array(corners), -1, 0)


def _inside(patches: np.ndarray) -> np.ndarray:
    return np.asarray(((patches >= 0) & (patches <= 1)).all((-2, -1)))


def _pick(
    candidates: np.ndarray, fallback: np.ndarray, allowed: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Take one allowed candidate per row, evenly; rows without any take their fallback."""
    lots = np.where(allowed, rng.random(allowed.shape), -1.0)
    chosen = candidates[np.arange(len(candidates)), lots.argmax(1)]
    possible = np.asarray(allowed.any(axis=1)).reshape(-1, 1, 1)
    return np.where(possible, chosen, fallback)


def _scaled(moved: np.ndarray, config: HomographyConfig, rng: np.random.Generator) -> np.ndarray:
    scales = 1 + _truncated_normal((len(moved), config.n_scales), config.scale_amplitude, rng)
    centre = moved.mean(1, keepdims=True)
    candidates = centre[:, None] + (moved - centre)[:, None] * scales[..., None, None]
    allowed = _inside(candidates) | config.allow_artifacts
    return _pick(candidates, moved, allowed, rng)


def _translation(
    moved: np.ndarray, config: HomographyConfig, rng: np.random.Generator
) -> np.ndarray:
    overflow = config.translation_overflow if config.allow_artifacts else 0.0
    low, high = -moved.min(1) - overflow, 1 - moved.max(1) + overflow
    return (low + (high - low) * rng.random(low.shape))[:, None]


def _rotated(moved: np.ndarray, config: HomographyConfig, rng: np.random.Generator) -> np.ndarray:
    angles = np.linspace(-config.max_angle, config.max_angle, config.n_angles)
    cos, sin = np.cos(angles), np.sin(angles)
    turns = np.moveaxis(np.array([[cos, sin], [-sin, cos]]), -1, 0)
    centre = moved.mean(1, keepdims=True)
    candidates = centre[:, None] + (moved - centre)[:, None] @ turns[None]
    allowed = _inside(candidates) | config.allow_artifacts
    return _pick(candidates, moved, allowed, rng)


# --- warping pictures ----------------------------------------------------------------------------


def warp_images(
    images: torch.Tensor,
    H: torch.Tensor | np.ndarray,
    size: tuple[int, int] | None = None,
    padding: Padding = "zeros",
    mode: Mode = "bilinear",
    backend: Backend = "auto",
) -> torch.Tensor:
    """Warp pictures through homographies.

    Convention: ``H`` maps a pixel of the picture to its place in the warped picture, as in
    ``cv2.warpPerspective``: the warped picture at ``H x`` shows what the picture has at ``x``.

    Args:
        images: (B, C, H, W), floating point or uint8; bool with ``mode="nearest"``.
        H: (B, 3, 3). Either batch may be 1: many warps of one picture, or one warp of many.
        size: (height, width) of the result; that of ``images`` if None.
        padding: what lies outside the picture: "zeros", or its nearest "border" pixel.
        mode: "bilinear" or "nearest".
        backend: "opencv" (fast on the CPU; no gradient), "torch" (one ``grid_sample``; any device,
            differentiable in ``images``), "auto": OpenCV for CPU tensors without gradient.

    Returns:
        (B, C, height, width), type and device of ``images``. Half-precision pictures are
        interpolated in float32, integers rounded.

    Raises:
        ValueError: wrong shapes, a singular homography, OpenCV asked for a tensor on a GPU.
        TypeError: a type of picture that cannot be interpolated.

    Used from notebook 03 on.
    """
    _check_choice("padding", padding, _CV_BORDERS)
    _check_choice("mode", mode, _CV_MODES)
    _check_choice("backend", backend, ("auto", "opencv", "torch"))
    count = _check_warp(images, tuple(H.shape), mode)
    if backend == "opencv" and images.device.type != "cpu":
        raise ValueError(f"the opencv backend needs CPU tensors, got one on {images.device}")
    height, width = (int(images.shape[-2]), int(images.shape[-1])) if size is None else size
    H = H.detach().cpu().numpy() if isinstance(H, torch.Tensor) else np.asarray(H)
    inverse = _invert(H.astype(np.float64))
    if backend == "auto":
        tracked = images.requires_grad and torch.is_grad_enabled()
        backend = "opencv" if images.device.type == "cpu" and not tracked else "torch"
    warp = _warp_opencv if backend == "opencv" else _warp_torch
    return warp(images, inverse, count, height, width, padding, mode)


def warp_image(
    image: np.ndarray,
    H: np.ndarray,
    size: tuple[int, int] | None = None,
    padding: Padding = "zeros",
    mode: Mode = "bilinear",
) -> np.ndarray:
    """Warp one numpy picture: ``warp_images`` for the data-making side.

    Args:
        image: (H, W), float32, float64 or uint8; bool with ``mode="nearest"``.
        H: (3, 3), from picture pixels to warped pixels.
        size: (height, width) of the result; that of ``image`` if None.
        padding: "zeros" or "border".
        mode: "bilinear" or "nearest".

    Returns:
        (height, width), the type of ``image``.

    Raises:
        ValueError: wrong shapes or a singular homography.
    """
    if image.ndim != 2 or np.shape(H) != (3, 3):
        raise ValueError(
            f"warp_image needs an image (H, W) and H (3, 3), got {image.shape} and {np.shape(H)}"
        )
    tensor = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    return warp_images(tensor, np.asarray(H)[None], size, padding, mode, "opencv")[0, 0].numpy()


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_warp(images: torch.Tensor, H_shape: tuple[int, ...], mode: str) -> int:
    """Return the number of warped pictures, or say what is wrong with the input."""
    if images.ndim != 4 or len(H_shape) != 3 or H_shape[1:] != (3, 3):
        raise ValueError(
            "warp_images needs images (B, C, H, W) and H (B, 3, 3), got "
            f"{tuple(images.shape)} and {H_shape}"
        )
    counts = {images.shape[0], H_shape[0]}
    if len(counts) == 2 and 1 not in counts:
        raise ValueError(
            f"{images.shape[0]} images cannot be paired with {H_shape[0]} homographies"
        )
    allowed = images.is_floating_point() or images.dtype == torch.uint8
    if not allowed and not (images.dtype == torch.bool and mode == "nearest"):
        raise TypeError(
            f"cannot warp {images.dtype} images in {mode} mode; convert to float32, or a bool mask "
            "with mode='nearest'"
        )
    return next((n for n in counts if n != 1), 1)


def _warp_opencv(
    images: torch.Tensor,
    inverse: np.ndarray,
    count: int,
    height: int,
    width: int,
    padding: str,
    mode: str,
) -> torch.Tensor:
    kind = images.dtype
    if kind not in _CV_DTYPES:
        images = images.to(torch.uint8 if kind == torch.bool else torch.float32)
    source = images.detach().numpy()
    channels = source.shape[1]
    warped = np.empty((count, channels, height, width), dtype=source.dtype)
    flags = _CV_MODES[mode] | cv2.WARP_INVERSE_MAP
    for i in range(count):
        picture, matrix = source[min(i, len(source) - 1)], inverse[min(i, len(inverse) - 1)]
        for channel in range(channels):
            cv2.warpPerspective(
                np.ascontiguousarray(picture[channel]),
                matrix,
                (width, height),
                dst=warped[i, channel],
                flags=flags,
                borderMode=_CV_BORDERS[padding],
            )
    return torch.from_numpy(warped).to(kind)


def _warp_torch(
    images: torch.Tensor,
    inverse: np.ndarray,
    count: int,
    height: int,
    width: int,
    padding: str,
    mode: str,
) -> torch.Tensor:
    work = torch.float64 if images.dtype == torch.float64 else torch.float32
    source_height, source_width = images.shape[-2:]
    matrix = torch.from_numpy(inverse).to(work).to(images.device)[:, None, None]
    x = torch.arange(width, device=images.device, dtype=work)
    y = torch.arange(height, device=images.device, dtype=work)[:, None]
    u, v, w = (matrix[..., r, 0] * x + matrix[..., r, 1] * y + matrix[..., r, 2] for r in range(3))
    # Far outside is all the same to the sampler, but infinities are not.
    u = torch.nan_to_num(u / w, nan=-2.0).clamp(-2, source_width + 1)
    v = torch.nan_to_num(v / w, nan=-2.0).clamp(-2, source_height + 1)
    # grid_sample's own coordinates: -1 and 1 are the outer edges of the first and last pixels.
    grid = torch.stack([(2 * u + 1) / source_width - 1, (2 * v + 1) / source_height - 1], -1)
    warped = F.grid_sample(
        images.to(work).expand(count, -1, -1, -1),
        grid.expand(count, -1, -1, -1),
        mode=mode,
        padding_mode=padding,
        align_corners=False,
    )
    return (warped if images.is_floating_point() else warped.round()).to(images.dtype)


def valid_mask(
    H: Array,
    height: int,
    width: int,
    border: float = 0,
    device: torch.device | str | None = None,
) -> Array:
    """Mark the pixels of the warped pictures that show the inside of the source.

    The source seen through a homography is the quadrilateral between the four lines its edges
    become. A pixel is valid if it lies on the inner side of all four, at least ``border`` pixels
    away: the exact erosion of the quadrilateral by a disc of that radius.

    Convention: the source includes the full extent of its pixels, [-0.5, W - 0.5] x
    [-0.5, H - 0.5]. Only the ends of the source are eroded: where they fall on the frame (the
    identity), a rim of ``border`` pixels goes; where the warped picture ends but the source goes on
    (a zoom), nothing does.

    Args:
        H: (n, 3, 3), from source pixels to warped pixels, numpy or tensor.
        height: of the source and of the warped picture.
        width: likewise.
        border: pixels of the warped picture, at least 0.
        device: where to compute; the result is then a tensor there, also for numpy ``H``.

    Returns:
        bool (n, height, width), numpy for numpy and tensor for tensor unless ``device`` is given.

    Raises:
        ValueError: a wrong shape, a negative border, or a singular homography.

    Used from notebook 03 on.
    """
    if H.ndim != 3 or border < 0:
        raise ValueError(
            f"valid_mask needs H (n, 3, 3) and border >= 0, got {tuple(H.shape)} and {border}"
        )
    is_tensor = isinstance(H, torch.Tensor)
    matrices = H.detach().cpu().numpy() if isinstance(H, torch.Tensor) else H
    edges = torch.from_numpy(_edge_lines(matrices, height, width).astype(np.float32))
    edges = edges.to(device if device is not None else (H.device if is_tensor else "cpu"))
    x = torch.arange(width, device=edges.device, dtype=torch.float32)
    y = torch.arange(height, device=edges.device, dtype=torch.float32)[:, None]
    # Seen from behind (past the horizon), the source lies on the negative side of its four lines.
    front = torch.ones(len(edges), height, width, dtype=torch.bool, device=edges.device)
    back = front.clone()
    for line in edges.unbind(1):
        a, b, c = line[:, :, None, None].unbind(1)
        distance = a * x + (b * y + c)
        front &= distance >= border
        back &= distance <= -border
    mask = front | back
    return cast(Array, mask if is_tensor or device is not None else mask.numpy())


def _edge_lines(H: np.ndarray, height: int, width: int) -> np.ndarray:
    """Lines (n, 4, 3) that the source's edges become, giving signed distances in pixels."""
    to_x, to_y, to_w = np.moveaxis(_invert(H.astype(np.float64)), -2, 0)
    lines = np.stack(
        [
            to_x + 0.5 * to_w,
            (width - 0.5) * to_w - to_x,
            to_y + 0.5 * to_w,
            (height - 0.5) * to_w - to_y,
        ],
        axis=1,
    )
    slope = np.linalg.norm(lines[..., :2], axis=-1, keepdims=True)
    # An edge seen at infinity has no slope: every pixel is then far on the side its sign says.
    return lines / np.maximum(slope, np.finfo(np.float32).tiny)
