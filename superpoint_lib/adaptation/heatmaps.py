"""The aggregated response of a detector to many warps of a picture, and the keypoints in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from superpoint_lib.adaptation.settings import AdaptConfig
from superpoint_lib.extraction import Features, decode_heatmap, find_keypoints
from superpoint_lib.geometry import (
    HOMOGRAPHY_PRESETS,
    resize_transform,
    sample_homographies,
    valid_mask,
    warp_images,
)
from superpoint_lib.geometry.cells import CELL_SIZE
from superpoint_lib.model import exact_float32, uses_bfloat16
from superpoint_lib.multiscale import geometric_mean


def adaptation_homographies(
    warps: int, height: int, width: int, preset: str, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw the homographies of one adaptation: the identity first, then ``warps - 1`` random ones.

    Returns:
        (warps, 3, 3) float64, mapping picture pixels to warped pixels.
    """
    drawn = sample_homographies(warps - 1, height, width, HOMOGRAPHY_PRESETS[preset], rng)
    return np.concatenate([np.eye(3)[None], drawn])


def batch_size(config: AdaptConfig, device: torch.device) -> int:
    """How many warped images go through the network at once."""
    return config.batch or (4 if device.type == "cpu" else 128)


@dataclass(frozen=True)
class _Frame:
    """The pixels of warped pictures, ``size`` times as many along each side as the picture has."""

    height: int
    width: int
    enlarge: NDArray[np.float64]  # (3, 3), picture pixels to pixels of the picture so enlarged
    area: float  # pixels for each pixel of the picture


def _frame(height: int, width: int, size: float) -> _Frame:
    sides = [max(1, round(side * size / CELL_SIZE)) * CELL_SIZE for side in (height, width)]
    y, x = sides[0] / height, sides[1] / width
    return _Frame(sides[0], sides[1], resize_transform(x, y), x * y)


def _observed_area(homographies: Tensor, height: int, width: int, border: int) -> Tensor:
    """Where a warped image is worth asking: (n, H, W) float32, 1 inside and 0 near any edge.

    Away from the end of the picture (black beyond it looks like an edge of the scene) and from
    the frame of the warped image (the network sees only half a neighbourhood there). The identity
    counts everywhere: it is the picture, and nothing else ever sees its rim.
    """
    observed = valid_mask(homographies, height, width, border)
    inner = torch.zeros((height, width), dtype=torch.bool, device=observed.device)
    inner[border : height - border, border : width - border] = True
    identity = torch.eye(3, dtype=homographies.dtype, device=homographies.device)
    is_identity = (homographies - identity).abs().amax((1, 2)) < 1e-12
    return ((observed & inner) | is_identity[:, None, None]).float()


def adapt_heatmap(
    model: nn.Module,
    images: Tensor,
    homographies: NDArray[np.float64] | Tensor,
    config: AdaptConfig,
) -> tuple[Tensor, Tensor]:
    """Aggregate a detector's responses over homographies of each image (equation 10).

    Each image is warped by each homography, the network answers for ``config.batch`` warped
    images at a time (at least one warp of every image), and the answers are warped back and added
    up in place, together with the mask of what each warp could see::

        mean: F(p) = sum_k m_k(H_k p) f_k(H_k p) / sum_k m_k(H_k p)
        max:  F(p) = max_k m_k(H_k p) f_k(H_k p)

    Where warped images are s times as large (``config.sizes``), a pixel of the picture becomes s^2
    pixels, which share its probability: f_k(H_k p) is then s^2 times the response, at most 1.
    With ``config.agree``, f_k and m_k are the geometric means over all sizes, of one warp each.

    Args:
        model: gives {"logits": (B, 65, H/8, W/8)}; used in the mode it is in.
        images: (B, 1, H, W) float32 in [0, 1], H and W multiples of 8, on the model's device.
        homographies: (N, 3, 3) shared by the images, or (B, N, 3, 3), picture pixels to warped
            pixels; the first should be the identity (see ``adaptation_homographies``).
        config: ``aggregation``, ``border``, ``filter_counts``, ``sizes``, ``agree``, ``batch``
            and ``precision`` count.

    Returns:
        heatmap (B, H, W) float32 in [0, 1], and counts (B, H, W) float32: how many warps saw a
        pixel, fractional where the edge of a mask falls between pixels. The heatmap is 0 where
        no warp, or fewer than ``filter_counts``, saw the pixel.

    Raises:
        ValueError: for homographies of another shape.

    Convention: a warp sees a pixel when the pixel falls inside the warped frame, at least
    ``border`` pixels from its edge and from the end of the picture; the identity sees all.

    Derived in notebook 03.
    """
    batch, _, height, width = images.shape
    matrices = torch.as_tensor(homographies, dtype=torch.float64, device=images.device)
    if matrices.ndim == 3:
        matrices = matrices[None]
    if matrices.ndim != 4 or matrices.shape[0] not in (1, batch) or matrices.shape[2:] != (3, 3):
        raise ValueError(
            f"homographies must be (N, 3, 3) or ({batch}, N, 3, 3), got {tuple(matrices.shape)}"
        )
    heatmap = torch.zeros((batch, height, width), device=images.device)
    counts = torch.zeros((matrices.shape[0], height, width), device=images.device)
    for some, frames in _portions(matrices, images, config):
        looks = [_observe(model, images, some, frame, config) for frame in frames]
        response, seen = (geometric_mean(values) for values in zip(*looks, strict=True))
        counts += seen.sum(1)
        if config.aggregation == "mean":
            heatmap += response.sum(1)
        else:
            torch.maximum(heatmap, response.amax(1), out=heatmap)
    if config.aggregation == "mean":
        heatmap /= counts.clamp_min(1e-6)
    # A GPU may sample a mask of ones as a little less than 1.
    heatmap *= counts >= max(config.filter_counts - 1e-3, 1e-3)
    return heatmap, counts.expand(batch, -1, -1)


def _portions(
    matrices: Tensor, images: Tensor, config: AdaptConfig
) -> Iterator[tuple[Tensor, list[_Frame]]]:
    """Homographies that go through the network at once, and the frames to look at each in."""
    batch, _, height, width = images.shape
    room = batch_size(config, images.device) // batch
    frames = [_frame(height, width, size) for size in config.sizes]
    groups = [frames] if config.agree else [[frame] for frame in frames]
    for turn, group in enumerate(groups):
        largest = max(frame.area for frame in group)
        for some in matrices[:, turn :: len(groups)].split(max(1, round(room / largest)), dim=1):
            if some.shape[1]:
                yield some, group


def _observe(
    model: nn.Module, images: Tensor, matrices: Tensor, frame: _Frame, config: AdaptConfig
) -> tuple[Tensor, Tensor]:
    """Masked responses (B, n, H, W) to n warps and masks (1 or B, n, H, W), on the picture."""
    batch, _, height, width = images.shape
    sets, number = matrices.shape[:2]
    enlarge = torch.as_tensor(frame.enlarge, device=matrices.device)
    forth = enlarge @ matrices  # picture to warped picture
    back = torch.linalg.inv(forth).flatten(0, 1)
    within = (forth @ torch.linalg.inv(enlarge)).flatten(0, 1)  # between pixels of the same size
    observed = _observed_area(within, frame.height, frame.width, config.border)
    seen = warp_images(observed[:, None], back, (height, width)).view(sets, number, height, width)

    repeated = images.repeat_interleave(number, 0)
    per_image = forth.expand(batch, -1, -1, -1).flatten(0, 1)
    warped = warp_images(repeated, per_image, (frame.height, frame.width))
    warped = warped.to(memory_format=torch.channels_last)
    with (
        torch.inference_mode(),
        exact_float32(config.precision == "float32"),
        torch.autocast(
            images.device.type,
            dtype=torch.bfloat16,
            enabled=uses_bfloat16(config.precision, images.device),
        ),
    ):
        logits = model(warped)["logits"]
    response = decode_heatmap(logits.float()).view(batch, number, frame.height, frame.width)
    response = response * observed.view(sets, number, frame.height, frame.width)
    back = back.view(sets, number, 3, 3).expand(batch, -1, -1, -1).flatten(0, 1)
    response = warp_images(response.flatten(0, 1)[:, None], back, (height, width))
    response = response.view(batch, number, height, width)
    if frame.area != 1:
        response = torch.minimum(response * frame.area, seen)
    return response, seen


def heatmap_keypoints(heatmap: Tensor, config: AdaptConfig) -> list[Features]:
    """Pick the keypoints of aggregated heatmaps (B, H, W): suppression, threshold, best ``top_k``.

    Returns:
        One ``Features`` for each image, best first, without descriptors; keypoints are (x, y) in
        pixels of the heatmap, refined by a soft-argmax when ``config.subpixel``. A heatmap with
        no response above ``config.threshold`` gives no keypoints.
    """
    size = (heatmap.shape[1], heatmap.shape[2])
    window = 5 if config.subpixel else 1
    most = config.top_k or None
    found = find_keypoints(
        heatmap, [size] * len(heatmap), most, config.threshold, config.nms_radius, window
    )
    return [Features(keypoints, scores, None, size) for keypoints, scores in found]


def adapted_keypoints(
    model: nn.Module,
    images: Tensor,
    homographies: NDArray[np.float64] | Tensor,
    config: AdaptConfig,
) -> list[Features]:
    """Detect the keypoints of a batch of images by homographic adaptation.

    Arguments as in ``adapt_heatmap``, for any height and width: sizes that are not multiples of 8
    are padded by replication on the right and bottom, and what is found there is dropped.

    Returns:
        One ``Features`` for each image, best first, without descriptors.

    Derived in notebook 03.
    """
    return heatmap_keypoints(adapt_any_size(model, images, homographies, config), config)


def adapt_any_size(
    model: nn.Module,
    images: Tensor,
    homographies: NDArray[np.float64] | Tensor,
    config: AdaptConfig,
) -> Tensor:
    """Do `adapt_heatmap` on images of any size, padded to multiples of 8; (B, H, W)."""
    height, width = images.shape[-2:]
    padded = functional.pad(
        images, (0, -width % CELL_SIZE, 0, -height % CELL_SIZE), mode="replicate"
    )
    heatmap, _ = adapt_heatmap(model, padded, homographies, config)
    return heatmap[:, :height, :width].contiguous()


def keypoint_probabilities(heatmap: Tensor, keypoints: Tensor) -> Tensor:
    """How likely one look at the picture is to find each keypoint where it is.

    The aggregated response of a pixel is the mean over looks of the probability that the keypoint
    is at that pixel; looks differ by a pixel or so, so the nine pixels around it are added up.

    Args:
        heatmap: (H, W), aggregated by "mean".
        keypoints: (N, 2), (x, y) in its pixels.

    Returns:
        (N,) in [0, 1].

    Shown in notebook 03.
    """
    sums = functional.avg_pool2d(heatmap[None], 3, 1, 1, divisor_override=1)[0]
    x, y = keypoints.round().long().unbind(-1)
    return sums[y.clamp(0, sums.shape[0] - 1), x.clamp(0, sums.shape[1] - 1)].clamp(0, 1)
