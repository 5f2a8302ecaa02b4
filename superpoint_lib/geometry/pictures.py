"""Pictures: resized, cropped and warped, and which of their pixels a warp leaves valid."""

from collections.abc import Iterable
from typing import Literal, TypeVar, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from superpoint_lib.geometry.homographies import (
    Array,
    adjugate,
    crop_transform,
    invert_homographies,
    resize_transform,
)

Padding = Literal["zeros", "border"]
Mode = Literal["bilinear", "nearest"]
Backend = Literal["auto", "opencv", "torch"]
_Pixel = TypeVar("_Pixel", np.float32, np.float64, np.uint8)

_CV_MODES = {"bilinear": cv2.INTER_LINEAR, "nearest": cv2.INTER_NEAREST}
_CV_BORDERS = {"zeros": cv2.BORDER_CONSTANT, "border": cv2.BORDER_REPLICATE}
_CV_DTYPES = (torch.float32, torch.float64, torch.uint8)


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
    return crop, crop_transform(x, y) @ transform


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
    # OpenCV drops a channel that is alone.
    resized = resized.reshape(height, width, *image.shape[2:])
    return resized, resize_transform(width / old_width, height / old_height)


def on_pixels(points: Array, height: int, width: int) -> Array:
    """Tell which points lie on a pixel of a picture, whose squares reach half a pixel each way.

    Args:
        points: (..., 2) as (x, y) in pixels, numpy or tensor; NaN lies on none.
        height, width: of the picture.

    Returns:
        (...) bool: -0.5 <= x < width - 0.5 and -0.5 <= y < height - 0.5, as labels count them.
    """
    x, y = points[..., 0], points[..., 1]
    return (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)


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
    inverse = invert_homographies(H.astype(np.float64))
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
) -> np.ndarray:
    """Warp one numpy picture: ``warp_images`` for the data-making side.

    Args:
        image: (H, W), float32, float64 or uint8.
        H: (3, 3), from picture pixels to warped pixels.
        size: (height, width) of the result; that of ``image`` if None.
        padding: "zeros" or "border".

    Returns:
        (height, width), the type of ``image``.

    Raises:
        ValueError: wrong shapes or a singular homography.
    """
    if image.ndim != 2 or np.shape(H) != (3, 3):
        raise ValueError(
            f"warp_image needs an image (H, W) and H (3, 3), got {image.shape} and {np.shape(H)}"
        )
    # Copied: PyTorch takes no reversed axis, not even one of length 1, which counts as contiguous.
    tensor = torch.from_numpy(np.array(image, order="C"))[None, None]
    warped = warp_images(tensor, np.asarray(H)[None], size, padding, backend="opencv")
    return warped[0, 0].numpy()


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
        _drop_nan(warped[i], matrix)
    return torch.from_numpy(warped).to(kind)


def _drop_nan(warped: np.ndarray, inverse: np.ndarray) -> None:
    """Make black, in place, what OpenCV could not tell.

    Its float32 warps (..., H, W) are NaN at pixels that lie exactly on the horizon, w = 0.
    """
    height, width = warped.shape[-2:]
    w = inverse[2] @ np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    if warped.dtype == np.float32 and w.min() <= 0 <= w.max():
        np.nan_to_num(warped, copy=False)


def _warp_torch(
    images: torch.Tensor,
    inverse: np.ndarray | torch.Tensor,
    count: int,
    height: int,
    width: int,
    padding: str = "zeros",
    mode: str = "bilinear",
) -> torch.Tensor:
    work = torch.float64 if images.dtype == torch.float64 else torch.float32
    source_height, source_width = images.shape[-2:]
    # Converted first: there are devices without float64.
    matrix = torch.as_tensor(inverse).to(work).to(images.device)[:, None, None]
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


def valid_mask(H: Array, height: int, width: int, border: float = 0) -> Array:
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

    Returns:
        bool (n, height, width), of the same kind as ``H`` (numpy or tensor, device).

    Raises:
        ValueError: a wrong shape, a negative border, or a singular homography.

    Used from notebook 03 on.
    """
    if H.ndim != 3 or border < 0:
        raise ValueError(
            f"valid_mask needs H (n, 3, 3) and border >= 0, got {tuple(H.shape)} and {border}"
        )
    matrices = H.detach().cpu().numpy() if isinstance(H, torch.Tensor) else H
    inverse = invert_homographies(matrices.astype(np.float64))
    size = (height, width)
    bounds, x = _mask_bounds(inverse, size, size, border), np.arange(width, dtype=np.float32)
    if isinstance(H, torch.Tensor):
        on_device = (torch.from_numpy(array).to(H.device) for array in (bounds, x))
        return cast(Array, _between(*on_device))
    return cast(Array, _between(bounds, x))


def warp_with_mask(
    image: NDArray[_Pixel],
    H: np.ndarray,
    border: float = 0,
    size: tuple[int, int] | None = None,
    samples: int = 1,
) -> tuple[NDArray[_Pixel], NDArray[np.bool_]]:
    """Do ``warp_image`` and ``valid_mask`` of one picture, with one inversion for both.

    Args:
        image: (H, W), float32, float64 or uint8.
        H: (3, 3), from picture pixels to warped pixels.
        border: as in ``valid_mask``.
        size: (height, width) of the result; that of ``image`` if None.
        samples: a warped pixel is the mean of so many squared, spread evenly over it. Where a
            picture is made smaller, one alone would miss what lies between.

    Returns:
        The warped picture (height, width), zero where the source has nothing, and bool of the same
        shape.

    Raises:
        ValueError: wrong shapes, a negative border, no sample, or a singular homography.
    """
    if image.ndim != 2 or np.shape(H) != (3, 3) or border < 0 or samples < 1:
        raise ValueError(
            "warp_with_mask needs an image (H, W), H (3, 3), border >= 0 and samples >= 1, got "
            f"{image.shape}, {np.shape(H)}, {border} and {samples}"
        )
    height, width = image.shape if size is None else size
    inverse = invert_homographies(np.asarray(H, np.float64))
    fine = inverse
    if samples > 1:
        # From pixels of a picture so many times as large: the source is sampled at their centres.
        fine = inverse @ invert_homographies(resize_transform(samples, samples))
    warped = cv2.warpPerspective(
        np.ascontiguousarray(image),
        fine,
        (samples * width, samples * height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    )
    _drop_nan(warped, fine)
    if samples > 1:
        warped = cv2.resize(warped, (width, height), interpolation=cv2.INTER_AREA)
    bounds = _mask_bounds(inverse[None], image.shape, (height, width), border)
    valid = _between(bounds, np.arange(width, dtype=np.float32))[0]
    return np.asarray(warped, image.dtype), np.asarray(valid)


def warp_batch_with_masks(
    images: torch.Tensor, H: torch.Tensor, border: float = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do ``warp_with_mask`` for a batch on its own device, without waiting for it.

    Args:
        images: (B, C, H, W), floating.
        H: (B, 3, 3) float64 on the same device, from picture pixels to warped pixels. Nothing is
            checked: that would be waiting.
        border: as in ``valid_mask``.

    Returns:
        The warped pictures (B, C, H, W), and bool (B, H, W).
    """
    height, width = images.shape[-2:]
    inverse = adjugate(H)
    inverse = inverse / inverse.abs().amax((1, 2), keepdim=True)  # float32 is enough from here
    warped = _warp_torch(images, inverse, len(images), height, width)
    to_x, to_y, to_w = inverse.unbind(1)
    ends = [(to_x, width), (to_y, height)]
    lines = torch.stack(
        [line for to, n in ends for line in (to + 0.5 * to_w, (n - 0.5) * to_w - to)], 1
    )
    slope = lines[..., :2].norm(dim=-1, keepdim=True)
    lines = (lines / slope.clamp_min(1e-30)).to(images.dtype)[..., None, None]
    x = torch.arange(width, device=images.device)
    y = torch.arange(height, device=images.device)[:, None]
    distances = lines[:, :, 0] * x + lines[:, :, 1] * y + lines[:, :, 2]
    # Behind the horizon the source lies on the negative side of its lines.
    return warped, (distances >= border).all(1) | (distances <= -border).all(1)


def _between(bounds: Array, x: Array) -> Array:
    """Pixels (n, height, width) within the bounds (sides, 2, n, height, 1) of any side."""
    first, *behind = ((x >= low) & (x <= high) for low, high in bounds)
    return first | behind[0] if behind else first


def _mask_bounds(
    inverse: np.ndarray, source: tuple[int, ...], warped: tuple[int, int], border: float
) -> NDArray[np.float32]:
    """Least and greatest valid x in each row, (sides, 2, n, height, 1).

    Args:
        inverse: float64 (n, 3, 3), from warped pixels to source pixels.
        source, warped: (height, width) of the pictures.
        border: as in ``valid_mask``.

    Seen from behind (past the horizon), the source lies on the negative side of its four lines:
    a second side, left out when the horizon crosses none of the warped pictures.
    """
    lines = _edge_lines(inverse, *source)
    height, width = warped
    w = inverse[:, 2]
    nearest = w[:, 2] + np.minimum(w[:, 0] * (width - 1), 0) + np.minimum(w[:, 1] * (height - 1), 0)
    sides = [_row_bounds(lines, border, height)]
    if not (nearest > 0).all():
        sides.append(_row_bounds(-lines, border, height))
    # Float32, for devices without float64; what it cannot hold is far outside anyway.
    return np.clip(sides, -1e30, 1e30).astype(np.float32)[..., None]


def _row_bounds(
    lines: np.ndarray, border: float, height: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Least and greatest x (n, height) in a row with a x + b y + c >= border for all (n, 4, 3).

    Each line bounds x from one side, so only two numbers a row are compared with all pixels.
    """
    a, b, c = lines[..., 0:1], lines[..., 1:2], lines[..., 2:3]
    least = border - (b * np.arange(height) + c)  # of a x
    with np.errstate(divide="ignore", invalid="ignore"):
        bound = least / a
    first = np.where(a > 0, bound, np.where((a == 0) & (least > 0), np.inf, -np.inf))
    last = np.where(a < 0, bound, np.inf)
    return first.max(1), last.min(1)


def _edge_lines(inverse: np.ndarray, height: int, width: int) -> np.ndarray:
    """Lines (n, 4, 3) that the source's edges become, giving signed distances in pixels."""
    to_x, to_y, to_w = inverse[:, 0], inverse[:, 1], inverse[:, 2]
    lines = np.empty((len(inverse), 4, 3))
    lines[:, 0] = to_x + 0.5 * to_w
    lines[:, 1] = (width - 0.5) * to_w - to_x
    lines[:, 2] = to_y + 0.5 * to_w
    lines[:, 3] = (height - 0.5) * to_w - to_y
    slope = np.sqrt((lines[..., :2] ** 2).sum(-1, keepdims=True))
    # An edge seen at infinity has no slope: every pixel is then far on the side its sign says.
    return lines / np.maximum(slope, np.finfo(np.float32).tiny)
