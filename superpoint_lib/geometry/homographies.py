"""Points and matrices: apply, invert, follow, estimate and compare homographies."""

import math
from typing import Any, TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)


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
    floating = torch.promote_types(H.dtype, torch.float32)
    kind = points.dtype if points.is_floating_point() else floating
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
    points, H = points.astype(work), H.astype(work)[..., None]
    x, y = points[..., 0], points[..., 1]
    u, v, w = (H[..., r, 0, :] * x + H[..., r, 1, :] * y + H[..., r, 2, :] for r in range(3))
    at_infinity = w == 0
    w = np.where(at_infinity, 1, w)
    warped = np.empty((*w.shape, 2), kind)
    warped[..., 0], warped[..., 1] = u / w, v / w
    warped[at_infinity] = np.inf
    return warped


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


def adjugate(H: torch.Tensor) -> torch.Tensor:
    """Invert homographies up to scale, which is all they need, without waiting for the device.

    Args:
        H: (..., 3, 3). Nothing is checked: a singular matrix gives one, too.

    Returns:
        (..., 3, 3), ``det(H)`` times the inverse.
    """
    a, b, c = H.unbind(-2)
    cross = torch.linalg.cross
    return torch.stack((cross(b, c), cross(c, a), cross(a, b)), dim=-1)


_IDENTITY = np.eye(3)


def _invert(H: np.ndarray) -> np.ndarray:
    if H.ndim < 2 or H.shape[-2:] != (3, 3):
        raise ValueError(f"homographies must have shape (..., 3, 3), got {H.shape}")
    if H.size == 0:
        return H.copy()
    scale = np.abs(H).max((-2, -1), keepdims=True)
    _refuse(~np.isfinite(scale[..., 0, 0]), H, "has an entry that is not finite")
    _refuse(scale[..., 0, 0] == 0, H, "is zero")
    H = H / scale
    try:
        inverse = np.linalg.inv(H)
    except np.linalg.LinAlgError:
        _refuse(np.linalg.det(H) == 0, H, "is singular")
        raise
    # Rounding hides most singular matrices from the elimination; the product does not lie.
    residual = np.abs(H @ inverse - _IDENTITY).max((-2, -1))
    _refuse(~(residual < 1e-6), H, "is singular")
    return _with_unit_corner(inverse)


def _with_unit_corner(H: np.ndarray) -> np.ndarray:
    corner = H[..., 2:, 2:]
    usable = np.abs(corner) > 1e-12 * np.abs(H).max((-2, -1), keepdims=True)
    return H / np.where(usable, corner, 1.0)


def _refuse(bad: np.ndarray, H: np.ndarray, why: str) -> None:
    if bad.any():
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
    return transform_homography(H_0to1, crop_transform(*offset0), crop_transform(*offset1))


def resize_transform(sx: float, sy: float) -> np.ndarray:
    """Matrix from old to new pixels of a picture resized by (sx, sy).

    Convention: resizing by s moves pixel x to ``s (x + 0.5) - 0.5``: the borders of the picture
    stay borders, not the centres of its first pixels.
    """
    return np.array([[sx, 0, 0.5 * sx - 0.5], [0, sy, 0.5 * sy - 0.5], [0, 0, 1]], dtype=np.float64)


def crop_transform(x: float, y: float) -> np.ndarray:
    """Matrix from old to new pixels of a picture cropped so that its old (x, y) becomes (0, 0)."""
    return np.array([[1, 0, -x], [0, 1, -y], [0, 0, 1]], dtype=np.float64)


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
    u, v = corners1[..., 0], corners1[..., 1]
    system = np.zeros((len(x), 8, 8))
    for rows, start, places in ((slice(4), 0, u), (slice(4, 8), 3, v)):
        system[:, rows, start], system[:, rows, start + 1], system[:, rows, start + 2] = x, y, 1
        system[:, rows, 6], system[:, rows, 7] = -x * places, -y * places
    entries = np.ones((len(x), 9))
    entries[:, :8] = np.linalg.solve(system, np.concatenate([u, v], axis=-1)[..., None])[..., 0]
    return entries.reshape(-1, 3, 3)


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


def turn_and_zoom(H: np.ndarray, height: int, width: int) -> tuple[float, float]:
    """How far a homography turns the middle of a picture, and how many times it enlarges it.

    Both come from the derivative J of the warp there: the zoom is ``sqrt |det J|``, the turn that
    of the rotation nearest to J, ``atan2(J10 - J01, J00 + J11)``.

    Args:
        H: (3, 3).
        height: of the picture, in pixels.
        width: of the picture, in pixels.

    Returns:
        Degrees in (-180, 180], from x towards y, which is clockwise on a screen; and a factor. For
        a homography that sends the middle to infinity neither means anything.

    Used in notebook 06.
    """
    centre = np.array([(width - 1) / 2, (height - 1) / 2, 1.0])
    depth = H[2] @ centre
    J = (H[:2, :2] - np.outer(H[:2] @ centre / depth, H[2, :2])) / depth
    turn = math.degrees(math.atan2(J[1, 0] - J[0, 1], J[0, 0] + J[1, 1]))
    return turn, math.sqrt(abs(np.linalg.det(J)))
