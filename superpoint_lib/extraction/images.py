"""Images as callers have them, made ready for a network, or refused with a reason."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MIN_IMAGE_SIZE = 16
_FLOATING = (np.float16, np.float32, np.float64)
_RGB_WEIGHTS = (0.299, 0.587, 0.114)


def prepare_images(image: Tensor | NDArray[Any]) -> tuple[Tensor, bool]:
    """Return floating-point images (B, 1, H, W) in [0, 1], and whether a batch was given.

    Takes and refuses what ``extract`` does.
    """
    if isinstance(image, list | tuple):
        raise ValueError(
            "image is a list: extract its pictures one by one, or stack gray ones of one size to "
            "(B, 1, H, W)"
        )
    pixels = image if isinstance(image, Tensor) else _tensor(image)
    shape = tuple(pixels.shape)
    if pixels.ndim == 3 and shape[2] == 3:
        weights = pixels.new_tensor(_RGB_WEIGHTS, dtype=torch.float32)
        # Not a matrix product, which a caller's autocast would compute in bfloat16.
        pixels = (_to_unit_range(pixels) * weights).sum(-1)
        images = pixels[None, None]
    elif pixels.ndim == 2 or (pixels.ndim == 3 and shape[0] == 1):
        images = _to_unit_range(pixels).reshape(1, 1, *shape[-2:])
    elif pixels.ndim == 4 and shape[1] == 1:
        images = _to_unit_range(pixels)
    else:
        raise ValueError(
            "image must be grayscale (H, W), (1, H, W) or (B, 1, H, W), or RGB (H, W, 3): of "
            "(3, H, W) take image.permute(1, 2, 0), of RGBA image[..., :3], of (H, W, 1) "
            "image[..., 0]; of a batch in colour its gray values, (B, 1, H, W); got shape "
            f"{shape}"
        )
    if min(images.shape[-2:]) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"image is too small: height and width must be at least {MIN_IMAGE_SIZE} px, got "
            f"shape {shape}"
        )
    return images, len(shape) == 4


def _tensor(image: Any) -> Tensor:
    if isinstance(image, str | Path):
        raise ValueError(
            f"image is a path: read it, with superpoint_lib.paths.read_gray({image!r})"
        )
    if image is None:
        raise ValueError("image is None, which cv2.imread returns for a file it cannot read")
    # A palette picture of PIL would give the numbers of its colours.
    if getattr(image, "mode", None) in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV"):
        raise ValueError(f'image has PIL mode {image.mode}: pass image.convert("RGB")')
    array = np.asarray(image)
    if array.dtype != np.uint8 and array.dtype.newbyteorder("=") not in _FLOATING:
        raise _wrong_type(array.dtype)
    return from_numpy(array)


def from_numpy(array: NDArray[Any]) -> Tensor:
    """A tensor of any array that PyTorch has a type for, whatever its order in memory."""
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    # A reversed axis of length 1 counts as contiguous; PyTorch refuses it nevertheless.
    fits = native.flags.writeable and min(native.strides, default=0) >= 0
    return torch.from_numpy(native if fits else native.copy())


def _to_unit_range(pixels: Tensor) -> Tensor:
    if pixels.dtype == torch.uint8:
        return pixels.float() / 255
    if not pixels.is_floating_point():
        raise _wrong_type(pixels.dtype)
    if not pixels.numel():
        return pixels.float()
    low, high = (float(value) for value in pixels.detach().aminmax())
    # Either end is NaN if any pixel is.
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("image has non-finite pixels (NaN or infinity)")
    # Some slack: interpolation and noise may leave [0, 1] a little.
    if low < -0.25 or high > 1.5:
        raise ValueError(
            f"floating-point images must lie in [0, 1], got values from {low:g} to {high:g}; "
            "divide 8-bit values by 255, or pass them as uint8; of values x in [-1, 1] take "
            "(x + 1) / 2"
        )
    return pixels.float()


def _wrong_type(dtype: Any) -> ValueError:
    hint = "; divide it by 65535" if str(dtype).endswith("uint16") else ""
    return ValueError(
        f"image must be uint8 in 0..255 or floating point in [0, 1], got {dtype}{hint}"
    )
