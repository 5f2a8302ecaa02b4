"""Descriptors of keypoints, and the matches between those of two images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from superpoint_lib.extraction.features import HasDescriptors
from superpoint_lib.extraction.images import from_numpy
from superpoint_lib.geometry.cells import CELL_SIZE

_LENGTH_SLACK = 0.1  # of squared lengths: numbers of 8 bits are off by some hundredths
_BLOCK = 64  # similarities in a block of `_nearest`


def sample_descriptors(descriptors: Tensor, keypoints: Tensor) -> Tensor:
    """Sample a coarse descriptor map at keypoints and scale the result to unit length.

    Convention: the descriptor of cell j stands at pixel 8 j + 3.5, the middle of its 8 pixels;
    between cells interpolation is bilinear, beyond the outermost ones their value is repeated.
    Derived in notebook 04.

    Args:
        descriptors: (D, Hc, Wc), or (B, D, Hc, Wc) with batched keypoints.
        keypoints: (N, 2), or (B, K, 2), in pixels of the (8 Hc, 8 Wc) image, N or K may be 0.

    Returns:
        (N, D), or (B, K, D), each row of L2 norm 1, float32 or better.

    Raises:
        ValueError: another shape.
    """
    if descriptors.ndim == 3 and keypoints.ndim == 2:
        return sample_descriptors(descriptors[None], keypoints[None])[0]
    if descriptors.ndim != 4 or keypoints.ndim != 3 or keypoints.shape[2] != 2:
        raise ValueError(
            "sample_descriptors needs (D, Hc, Wc) with (N, 2) or (B, D, Hc, Wc) with (B, K, 2), "
            f"got {tuple(descriptors.shape)} with {tuple(keypoints.shape)}"
        )
    precise = descriptors.to(torch.promote_types(descriptors.dtype, torch.float32))
    if not keypoints.shape[1]:
        return precise.new_zeros((len(precise), 0, precise.shape[1]))
    if precise.device.type == "mps":  # channels last is read wrongly there: PyTorch's issue 174339
        precise = precise.contiguous()
    # grid_sample without align_corners puts -1 and 1 at the outer edges of the outermost cells.
    x, y = (2 * keypoints.to(precise) + 1).unbind(-1)
    rows, columns = descriptors.shape[2:]
    grid = torch.stack([x / (CELL_SIZE * columns) - 1, y / (CELL_SIZE * rows) - 1], dim=-1)
    sampled = F.grid_sample(precise, grid[:, None], padding_mode="border", align_corners=False)
    return F.normalize(sampled[:, :, 0].mT, dim=2)


def match(
    features0: HasDescriptors,
    features1: HasDescriptors,
    ratio: float | None = None,
    min_similarity: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Match two sets of descriptors by mutual nearest neighbours.

    Convention: descriptors have unit length, so the nearest one is that of greatest dot product,
    and their distance is sqrt(2 - 2 similarity). Of equally near ones the lower index is taken.
    The ratio test (Lowe, 2004) is made in both directions, so exchanging the images exchanges the
    columns of the matches; it passes where there is no second neighbour. Shown in notebook 00.

    Args:
        features0: ``Features`` or any object with ``descriptors`` (N0, D), tensor or numpy.
        features1: likewise (N1, D); moved to the device of the first.
        ratio: keep a match only if its distance is less than ``ratio`` times that to the second
            nearest neighbour, on both sides; None for no test.
        min_similarity: keep a match only if its similarity is at least this; None for no test.

    Returns:
        matches int64 (M, 2), indices into image 0 and image 1 by rising index 0, and similarity
        (M,) in [-1, 1]. Empty where either image has no descriptors to match.

    Raises:
        ValueError: ``descriptors`` is None (a detector alone), not (N, D) floating point, not
            finite or not of unit length (zero is allowed), or the two have different D; a ratio
            outside (0, 1] or a similarity outside [-1, 1].
        TypeError: something without ``descriptors``.
    """
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio must be above 0 and at most 1, or None, got {ratio}")
    if min_similarity is not None and not -1 <= min_similarity <= 1:
        raise ValueError(f"min_similarity must be in -1..1, or None, got {min_similarity}")
    descriptors0 = _descriptors(features0, "features0")
    descriptors1 = _descriptors(features1, "features1").to(descriptors0.device)
    precision = torch.promote_types(descriptors0.dtype, descriptors1.dtype)
    descriptors0, descriptors1 = descriptors0.to(precision), descriptors1.to(precision)
    if not (len(descriptors0) and len(descriptors1)):
        return torch.zeros((0, 2), dtype=torch.int64, device=descriptors0.device), (
            descriptors0.new_zeros(0)
        )
    if descriptors0.shape[1] != descriptors1.shape[1]:
        raise ValueError(
            f"descriptors have different lengths: {descriptors0.shape[1]} in features0, "
            f"{descriptors1.shape[1]} in features1"
        )
    with torch.autocast(descriptors0.device.type, enabled=False):
        table = descriptors0 @ descriptors1.T
    nearest1, nearest0 = _nearest(table, dim=1), _nearest(table, dim=0)
    index0 = torch.arange(len(table), device=table.device)
    similarity = table[index0, nearest1]
    keep = nearest0[nearest1] == index0
    if ratio is not None:
        keep &= passes_ratio(table, ratio) & passes_ratio(table.T, ratio)[nearest1]
    if min_similarity is not None:
        keep &= similarity >= min_similarity
    # Rounding takes the product of equal descriptors above 1, where a distance would be NaN.
    return torch.stack([index0, nearest1], dim=1)[keep], similarity[keep].clamp(-1, 1)


def _descriptors(features: HasDescriptors, name: str) -> Tensor:
    if not hasattr(features, "descriptors"):
        raise TypeError(
            f"{name} is a {type(features).__name__} without .descriptors: match one picture's "
            "Features with another's (of a mapping d: types.SimpleNamespace(**d))"
        )
    descriptors = features.descriptors
    if descriptors is None:
        raise ValueError(
            f"{name} has no descriptors (a detector alone, such as MagicPoint, gives none); "
            "extract with a SuperPoint"
        )
    is_tensor = isinstance(descriptors, Tensor)
    tensor = descriptors if is_tensor else from_numpy(np.asarray(descriptors))
    if not len(tensor):
        return tensor.float()
    if tensor.ndim != 2 or not tensor.is_floating_point():
        hint = "" if tensor.is_floating_point() else "; write binary ones as +-1 / sqrt(D)"
        raise ValueError(
            f"{name}.descriptors must be floating point of shape (N, D) and unit length, got "
            f"{tensor.dtype} {tuple(tensor.shape)}{hint}"
        )
    squares = tensor.float().square().sum(1)
    # A descriptor of an empty place may be zero; NaN compares with nothing.
    if not ((squares - 1).abs().le(_LENGTH_SLACK) | squares.eq(0)).all():
        raise ValueError(
            f"{name}.descriptors must be finite and of unit length, but lengths are "
            f"{float(squares.amin().sqrt()):g} to {float(squares.amax().sqrt()):g}; "
            "scale them with torch.nn.functional.normalize, or transpose them if they are (D, N)"
        )
    return tensor


def _nearest(table: Tensor, dim: int) -> Tensor:
    """Return ``table.argmax(dim)`` of similarities (N0, N1).

    On a CPU a maximum is found many times as fast as its place: the maxima of blocks come first,
    and the place is looked for in the first block that holds the greatest.
    """
    length = table.shape[dim]
    if table.device.type != "cpu" or length <= _BLOCK:
        return table.argmax(dim)
    tops = torch.stack([block.amax(dim) for block in table.split(_BLOCK, dim)])
    start = tops.argmax(0) * _BLOCK
    # Beyond the end the last place is repeated, behind itself, where it is never the first.
    places = (start + torch.arange(_BLOCK, device=table.device)[:, None]).clamp_(max=length - 1)
    return start + table.gather(dim, places if dim == 0 else places.T).argmax(dim)


def passes_ratio(table: Tensor, ratio: float) -> Tensor:
    """Tell for each row of similarities whether the nearest is clearly nearer than the second.

    Args:
        table: (N0, N1), of descriptors of unit length.
        ratio: as in ``match``.

    Returns:
        bool (N0,); true where there is no second.
    """
    if table.shape[1] < 2:
        return torch.ones(len(table), dtype=torch.bool, device=table.device)
    best = table.topk(2, dim=1).values
    distances = (2 - 2 * best).clamp(min=0).sqrt()
    return distances[:, 0] < ratio * distances[:, 1]
