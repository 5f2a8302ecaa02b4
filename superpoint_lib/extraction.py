"""From the network's maps to keypoints, descriptors and matches.

Decoding, non-maximum suppression, sub-pixel refinement, descriptor sampling and matching: functions
of tensors, on whatever device those are, and none of them ever runs inside training.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from superpoint_lib.geometry.cells import CELL_SIZE
from superpoint_lib.model import Precision, exact_float32, uses_bfloat16

MIN_IMAGE_SIZE = 16
_LENGTH_SLACK = 0.1  # of squared lengths: numbers of 8 bits are off by some hundredths
_FLOATING = (np.float16, np.float32, np.float64)
_RGB_WEIGHTS = (0.299, 0.587, 0.114)
_FLOAT32_INTEGERS = 2**24
_BLOCK = 64  # similarities in a block of `_nearest`
# On a CPU, pictures that go through the network together: their maps should stay in its caches.
_CHUNK_PIXELS = 240 * 320


@dataclass(frozen=True, eq=False)
class Features:
    """Keypoints of one image, highest score first.

    Attributes:
        keypoints: (N, 2) float, (x, y) in pixels, pixel centres at integers.
        keypoint_scores: (N,) float; probabilities for our networks.
        descriptors: (N, D) float of unit length, or None from a detector alone.
        image_size: (H, W) of the image.
        computed_in: data type the network computed in, such as "bfloat16" or "float32"; None where
            no network did. The numbers themselves are float32 or better.
    """

    keypoints: Tensor
    keypoint_scores: Tensor
    descriptors: Tensor | None
    image_size: tuple[int, int]
    computed_in: str | None = None

    def __len__(self) -> int:
        return len(self.keypoints)

    def numpy(self) -> FeatureArrays:
        """Return the same fields as numpy arrays on the CPU."""
        descriptors = None if self.descriptors is None else _array(self.descriptors)
        return FeatureArrays(
            _array(self.keypoints),
            _array(self.keypoint_scores),
            descriptors,
            self.image_size,
            self.computed_in,
        )


@dataclass(frozen=True, eq=False)
class FeatureArrays:
    """``Features`` as numpy arrays; the attributes have the same names and shapes."""

    keypoints: NDArray[Any]
    keypoint_scores: NDArray[Any]
    descriptors: NDArray[Any] | None
    image_size: tuple[int, int]
    computed_in: str | None = None

    def __len__(self) -> int:
        return len(self.keypoints)


class HasDescriptors(Protocol):
    """Anything with ``descriptors``: (N, D) tensor or array of unit length."""

    @property
    def descriptors(self) -> Any:
        """(N, D) descriptors, N may be 0."""


def extract(
    model: nn.Module,
    image: Tensor | NDArray[Any],
    max_keypoints: int | None = 1000,
    threshold: float = 0.005,
    nms_radius: int = 4,
    subpixel: bool = True,
    border: int = 0,
    precision: Precision = "auto",
) -> Features | list[Features]:
    """Detect and describe the keypoints of an image, or of each image of a batch.

    Sizes that are not multiples of 8 are padded on the right and bottom by replication; nothing is
    detected in the padding, nor suppressed by it. Used in notebook 00; its steps are derived in
    notebooks 02 to 04.

    Convention: an image of two or three dimensions gives ``Features``, a batch of four dimensions
    gives a list, also for a batch of one. The model stays in the mode it is in: ``from_pretrained``
    gives eval mode; batch normalisation left in train mode uses, and updates by, these images.

    Precision: by itself the network computes in bfloat16 where that is faster on the device
    (``model.uses_bfloat16("auto", device)`` tells, and ``Features.computed_in`` afterwards).
    Keypoints move by a small part of a pixel, and some of the weakest come or go;
    results/precision.json says what that does to homographies. Ask for ``precision="float32"``
    where the same numbers are wanted on every machine.

    Args:
        model: a ``SuperPoint``, or a ``MagicPoint`` (no descriptors), on any device.
        image: grayscale (H, W), (1, H, W) or a batch (B, 1, H, W), or RGB (not BGR) (H, W, 3); a
            tensor or array, uint8 in 0..255 or floating point in [0, 1]; H and W from 16 px up.
        max_keypoints: the best so many are kept; None keeps all.
        threshold: keypoints have a probability above this.
        nms_radius: see ``nms``; 0 keeps every pixel.
        subpixel: refine keypoints by ``soft_argmax`` over 5x5 pixels.
        border: drop what is found, after suppression, nearer than this many pixels to the frame.
        precision: of the network: "auto", "bf16" or "float32". A model that was itself converted
            to another type than float32 computes in that.

    Returns:
        ``Features`` on the model's device, highest score first (equal scores in row-major order);
        empty where nothing is found.

    Raises:
        ValueError: a shape, size, data type or range that is not as above, non-finite pixels, or a
            setting out of range; the message names it.
    """
    images, is_batch = prepare_images(image)
    size = (images.shape[-2], images.shape[-1])
    features: list[Features] = []
    for part in images.split(_chunk_length(model, images)):
        maps, computed_in = network_maps(model, part, precision)
        # Outside inference mode, so that the results are ordinary tensors.
        with torch.no_grad():
            found = extract_from_maps(
                maps,
                [size] * len(part),
                max_keypoints=max_keypoints,
                threshold=threshold,
                nms_radius=nms_radius,
                subpixel=subpixel,
                border=border,
            )
        features += [dataclasses.replace(item, computed_in=computed_in) for item in found]
    return features if is_batch else features[0]


@torch.inference_mode()
def network_maps(
    model: nn.Module, images: Tensor, precision: Precision
) -> tuple[Mapping[str, Tensor], str]:
    """Do the part of ``extract`` that is the network: pad the images and compute their maps.

    Args:
        model: as in ``extract``.
        images: (B, 1, H, W) float in [0, 1], on any device; H and W need not be multiples of 8.
        precision: as in ``extract``.

    Returns:
        The maps for ``extract_from_maps``, and the data type the network computed in, such as
        "bfloat16".
    """
    height, width = images.shape[-2:]
    like = next(model.parameters())
    padding = (0, -width % CELL_SIZE, 0, -height % CELL_SIZE)
    padded = F.pad(images.to(like.device, like.dtype), padding, mode="replicate")
    lower = like.dtype == torch.float32 and uses_bfloat16(precision, like.device)
    autocast = torch.autocast(like.device.type, torch.bfloat16, enabled=lower)
    with autocast, exact_float32(precision == "float32"):
        maps = model(padded)
    return maps, str(torch.bfloat16 if lower else like.dtype).removeprefix("torch.")


def _chunk_length(model: nn.Module, images: Tensor) -> int:
    """How many pictures of a batch go through the network together."""
    # Batch normalisation in train mode needs the whole batch; a GPU is faster with it.
    whole = next(model.parameters()).is_cuda or any(part.training for part in model.modules())
    pixels = images.shape[-2] * images.shape[-1]
    return max(1, len(images) if whole else _CHUNK_PIXELS // pixels)


def extract_from_maps(
    maps: Mapping[str, Tensor],
    image_sizes: Sequence[tuple[int, int]],
    max_keypoints: int | None = 1000,
    threshold: float = 0.005,
    nms_radius: int = 4,
    subpixel: bool = True,
    border: int = 0,
) -> list[Features]:
    """Do all of ``extract`` that comes after the network.

    Args:
        maps: "logits" (B, 65, Hc, Wc) and, optionally, "descriptors" (B, D, Hc, Wc).
        image_sizes: (H, W) of each image without padding, at most (8 Hc, 8 Wc).
        max_keypoints: as in ``extract``.
        threshold: as in ``extract``.
        nms_radius: as in ``extract``.
        subpixel: as in ``extract``.
        border: as in ``extract``.

    Returns:
        One ``Features`` for each image, on the maps' device.

    Raises:
        ValueError: a setting out of range, or sizes that do not belong to the maps.
    """
    heatmap = decode_heatmap(maps["logits"])
    sizes = _check_sizes(image_sizes, heatmap)
    if any(size != heatmap.shape[1:] for size in sizes):
        # Outside the image the heatmap is zero before suppression, so that a maximum of the padding
        # neither counts nor suppresses one of the image.
        heatmap = heatmap * _frame(heatmap, sizes, 0)
    found = find_keypoints(
        heatmap, sizes, max_keypoints, threshold, nms_radius, 5 if subpixel else 1, border
    )
    descriptors = maps.get("descriptors")
    features = []
    for i, (keypoints, scores) in enumerate(found):
        sampled = None if descriptors is None else sample_descriptors(descriptors[i], keypoints)
        features.append(Features(keypoints, scores, sampled, sizes[i]))
    return features


def find_keypoints(
    heatmap: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    max_keypoints: int | None,
    threshold: float,
    nms_radius: int,
    window: int,
    border: int = 0,
) -> list[tuple[Tensor, Tensor]]:
    """Find the keypoints of heatmaps: suppression, the strongest, sub-pixel refinement.

    Args:
        heatmap: (B, H, W) of keypoint probabilities, zero outside each image.
        image_sizes: (H, W) of each image.
        max_keypoints: as in ``extract``.
        threshold: as in ``extract``.
        nms_radius: as in ``extract``.
        window: side of the window of ``soft_argmax``; 1 leaves keypoints on their pixels.
        border: as in ``extract``.

    Returns:
        For each heatmap its keypoints (N, 2) in pixels of the heatmap and scores (N,), best first.

    Raises:
        ValueError: a negative or fractional setting, or no threshold.
    """
    refuse_fractions(max_keypoints=max_keypoints, nms_radius=nms_radius, border=border)
    if not threshold <= 1:  # which NaN is not, either
        raise ValueError(f"threshold must be in 0..1, got {threshold}")
    if max_keypoints is not None and max_keypoints < 0:
        raise ValueError(f"max_keypoints must be 0 or more, or None for all, got {max_keypoints}")
    if border < 0:
        raise ValueError(f"border must be 0 px or more, got {border}")
    maxima = nms(heatmap, nms_radius, threshold)
    if border:
        maxima = maxima * _frame(heatmap, image_sizes, border)
    found = []
    for one, peaks in zip(heatmap, maxima, strict=True):
        keypoints, scores = _strongest(peaks, max_keypoints)
        if window > 1:
            keypoints = soft_argmax(one, keypoints, window)
        found.append((keypoints, scores))
    return found


def decode_heatmap(logits: Tensor) -> Tensor:
    """Turn cell logits into the probability of a keypoint at every pixel.

    A softmax over the 65 classes of each cell, of which the dustbin is dropped and the others are
    put in place: ``heatmap[8 i + dy, 8 j + dx] = softmax(logits[:, i, j])[8 dy + dx]``. Derived in
    notebook 02.

    Args:
        logits: (B, 65, Hc, Wc).

    Returns:
        (B, 8 Hc, 8 Wc) in [0, 1], float32 or better; the 64 pixels of a cell sum to at most 1.

    Raises:
        ValueError: another shape.
    """
    if logits.ndim != 4 or logits.shape[1] != CELL_SIZE**2 + 1:
        raise ValueError(f"logits must have shape (B, 65, Hc, Wc), got {tuple(logits.shape)}")
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.pixel_shuffle(precise.softmax(dim=1)[:, :-1], CELL_SIZE)[:, 0]


def nms(heatmap: Tensor, radius: int, threshold: float = 0.0) -> Tensor:
    """Non-maximum suppression: greedy, exact, for a whole batch at once.

    Pixels are taken by falling score; one is kept unless a kept one lies within Chebyshev distance
    ``radius``, that is in the square of side 2 radius + 1 around it. Rather than one by one, every
    pixel that is the best of the undecided ones in its square is kept in the same round, and rounds
    go on until all are decided: the same result. Few are left to sort after the first round. Shown
    in notebook 00.

    Convention: equal scores go to the lower row-major index. Scores must exceed ``threshold``.

    Args:
        heatmap: (B, H, W) scores.
        radius: in pixels, 0 or more.
        threshold: 0 or more.

    Returns:
        (B, H, W): the scores of what is kept, 0 elsewhere.

    Raises:
        ValueError: another shape, a negative radius or threshold.
    """
    if heatmap.ndim != 3:
        raise ValueError(f"heatmap must have shape (B, H, W), got {tuple(heatmap.shape)}")
    if radius < 0 or threshold < 0:
        raise ValueError(
            f"radius and threshold must be 0 or more, got radius {radius}, threshold {threshold}"
        )
    if radius == 0:
        return torch.where(heatmap > threshold, heatmap, 0)
    candidates = heatmap > threshold
    kept = _first_round(heatmap, candidates, radius)
    undecided = _ranks(heatmap, candidates & ~_window_max(kept, radius))
    while undecided.any():
        best = (undecided == _window_max(undecided, radius)) & (undecided > 0)
        kept |= best
        undecided = torch.where(_window_max(best, radius), 0, undecided)
    return torch.where(kept, heatmap, 0)


def box_nms(keypoints: Tensor, scores: Tensor, size: float, iou: float) -> Tensor:
    """Greedy suppression of square boxes around the keypoints, as rpautrat/SuperPoint does it.

    A keypoint falls if its box of side ``size`` overlaps that of a kept one by more than ``iou``,
    intersection over union. With size 4 and IoU 0.1 two keypoints 4 px apart along an axis both
    stay, where ``nms`` with radius 4 keeps one: the two are different protocols.

    Args:
        keypoints: (N, 2) in pixels, N may be 0.
        scores: (N,); equal scores keep their order.
        size: side of a box in pixels.
        iou: in [0, 1].

    Returns:
        int64 (K,) indices of the keypoints kept, highest score first.

    Raises:
        ValueError: the numbers of keypoints and scores differ.
    """
    if len(keypoints) != len(scores):
        raise ValueError(f"{len(keypoints)} keypoints but {len(scores)} scores")
    order = torch.sort(scores, descending=True, stable=True).indices
    if not len(order):
        return order
    corners = _array(keypoints[order]).astype(np.float64) - size / 2
    boxes = np.concatenate([corners, np.full_like(corners, size)], axis=1)
    # Ranks instead of scores: OpenCV takes positive ones only.
    ranks = np.arange(len(order), 0, -1, dtype=np.float32)
    kept = cv2.dnn.NMSBoxes(boxes, ranks, 0.0, iou)  # type: ignore[arg-type]
    return order[torch.as_tensor(np.asarray(kept, np.int64), device=order.device)]


def soft_argmax(heatmap: Tensor, keypoints: Tensor, window: int = 5) -> Tensor:
    """Refine keypoints to the centre of mass of the heatmap around them.

    ``x' = sum p(x, y) x / sum p(x, y)`` over the window centred at the nearest pixel, likewise y.
    It is the soft-argmax of log p. Parts of the window outside the heatmap weigh nothing. Shown in
    notebook 03.

    Args:
        heatmap: (H, W), or (B, H, W) with batched keypoints; non-negative.
        keypoints: (N, 2), or (B, K, 2), in pixels, N or K may be 0.
        window: side of the window in pixels, odd.

    Returns:
        Keypoints of the same shape, each within ``window // 2`` of its pixel and inside the image;
        unchanged where the window holds no mass.

    Raises:
        ValueError: shapes that do not belong together, or an even window.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")
    if heatmap.ndim == 2 and keypoints.ndim == 2:
        return soft_argmax(heatmap[None], keypoints[None], window)[0]
    if heatmap.ndim != 3 or keypoints.ndim != 3 or heatmap.shape[0] != keypoints.shape[0]:
        raise ValueError(
            "soft_argmax needs (H, W) with (N, 2) or (B, H, W) with (B, K, 2), got "
            f"{tuple(heatmap.shape)} with {tuple(keypoints.shape)}"
        )
    heatmap = heatmap.to(torch.promote_types(heatmap.dtype, torch.float32))
    height, width = heatmap.shape[1:]
    steps = torch.arange(window, device=heatmap.device) - window // 2
    dy, dx = (grid.flatten() for grid in torch.meshgrid(steps, steps, indexing="ij"))
    center = keypoints.round().long()
    x, y = center[..., :1] + dx, center[..., 1:] + dy
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    flat = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    mass = heatmap.flatten(1).gather(1, flat.flatten(1)).view(flat.shape) * inside
    total = mass.sum(-1, keepdim=True)
    offset = torch.stack([(mass * dx).sum(-1), (mass * dy).sum(-1)], dim=-1) / total
    return torch.where(total > 0, (center + offset).to(keypoints), keypoints)


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
            finite or not of unit length (zero is allowed), or the two have different D.
    """
    descriptors0 = _descriptors(features0, "features0")
    descriptors1 = _descriptors(features1, "features1").to(descriptors0)
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
        keep &= _passes_ratio(table, ratio) & _passes_ratio(table.T, ratio)[nearest1]
    if min_similarity is not None:
        keep &= similarity >= min_similarity
    # Rounding takes the product of equal descriptors above 1, where a distance would be NaN.
    return torch.stack([index0, nearest1], dim=1)[keep], similarity[keep].clamp(-1, 1)


def refuse_fractions(**settings: float | None) -> None:
    """Raise ValueError, naming it, for a setting that is neither a whole number nor None."""
    for name, value in settings.items():
        if value is not None and not isinstance(value, numbers.Integral):
            raise ValueError(f"{name} must be a whole number, got {value!r}")


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


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
            "(3, H, W) take image.permute(1, 2, 0), of RGBA image[..., :3]; got shape "
            f"{shape}"
        )
    if min(images.shape[-2:]) < MIN_IMAGE_SIZE:
        raise ValueError(
            f"image is too small: height and width must be at least {MIN_IMAGE_SIZE} px, got "
            f"shape {shape}"
        )
    return images, len(shape) == 4


def _tensor(image: Any) -> Tensor:
    array = np.asarray(image)
    if array.dtype != np.uint8 and array.dtype.newbyteorder("=") not in _FLOATING:
        raise _wrong_type(array.dtype)
    return _from_numpy(array)


def _from_numpy(array: NDArray[Any]) -> Tensor:
    """A tensor of any array that PyTorch has a type for, whatever its order in memory."""
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("="))
    return torch.from_numpy(native if native.flags.writeable else native.copy())


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
    if low < -0.5 or high > 1.5:
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


def _check_sizes(sizes: Sequence[tuple[int, int]], heatmap: Tensor) -> list[tuple[int, int]]:
    batch, height, width = heatmap.shape
    checked = [(int(h), int(w)) for h, w in sizes]
    if len(checked) != batch:
        raise ValueError(f"{len(checked)} image sizes for maps of {batch} images")
    for size in checked:
        if size[0] > height or size[1] > width:
            raise ValueError(f"image size {size} is larger than its maps' ({height}, {width})")
    return checked


def _frame(heatmap: Tensor, sizes: Sequence[tuple[int, int]], border: int) -> Tensor:
    """Return (B, H, W) bool: pixels of the image at least ``border`` from its frame."""
    ends = torch.tensor(sizes, device=heatmap.device).reshape(-1, 2, 1) - border
    y = torch.arange(heatmap.shape[1], device=heatmap.device)
    x = torch.arange(heatmap.shape[2], device=heatmap.device)
    rows = (y >= border) & (y < ends[:, 0])
    columns = (x >= border) & (x < ends[:, 1])
    return rows[:, :, None] & columns[:, None, :]


def _strongest(maxima: Tensor, number: int | None) -> tuple[Tensor, Tensor]:
    """Return keypoints (N, 2) and scores (N,) of the non-zero pixels of (H, W), best first."""
    rows, columns = maxima.nonzero(as_tuple=True)
    # nonzero goes row by row, and a stable sort leaves equal scores so.
    scores, order = maxima[rows, columns].sort(descending=True, stable=True)
    scores, order = scores[:number], order[:number]
    return torch.stack([columns[order], rows[order]], dim=1).to(maxima), scores


def _first_round(heatmap: Tensor, candidates: Tensor, radius: int) -> Tensor:
    """Tell which candidates have no better one in their square, nor an equal one before them."""
    rows = _running_max(heatmap, 2, -radius, radius)
    best = candidates & (heatmap == _running_max(rows, 1, -radius, radius))
    best &= heatmap > _running_max(rows, 1, -radius, -1)
    return best & (heatmap > _running_max(heatmap, 2, -radius, -1))


def _ranks(heatmap: Tensor, mask: Tensor) -> Tensor:
    """Number the scores where ``mask`` is set from the lowest, 1; 0 elsewhere.

    Unlike scores, ranks have no ties.
    """
    candidates = mask.flatten().nonzero()[:, 0]
    order = heatmap.flatten()[candidates].sort(descending=True, stable=True).indices
    exact = torch.float32 if len(candidates) < _FLOAT32_INTEGERS else torch.float64
    ranks = torch.zeros(heatmap.numel(), dtype=exact, device=heatmap.device)
    falling = torch.arange(len(candidates), 0, -1, dtype=exact, device=heatmap.device)
    ranks[candidates[order]] = falling
    return ranks.view(heatmap.shape)


def _window_max(x: Tensor, radius: int) -> Tensor:
    """Return the maximum of (B, H, W), non-negative or bool, in the square around each pixel."""
    return _running_max(_running_max(x, 1, -radius, radius), 2, -radius, radius)


def _running_max(x: Tensor, dim: int, first: int, last: int) -> Tensor:
    """Return the maximum of ``x[i + first]`` to ``x[i + last]`` along rows (2) or columns (1).

    (B, H, W) of non-negative numbers or bool; what lies outside counts as 0.
    """
    x = F.pad(x, (-first, last) if dim == 2 else (0, 0, -first, last))
    # Maxima over 1, 2, 4, ... neighbours: a few whole-map operations for any length.
    length, covered = last - first + 1, 1
    while covered < length:
        step = min(covered, length - covered)
        rest = x.shape[dim] - step
        x = torch.maximum(x.narrow(dim, 0, rest), x.narrow(dim, step, rest))
        covered += step
    return x


def _descriptors(features: HasDescriptors, name: str) -> Tensor:
    descriptors = features.descriptors
    if descriptors is None:
        raise ValueError(
            f"{name} has no descriptors (a detector alone, such as MagicPoint, gives none); "
            "extract with a SuperPoint"
        )
    is_tensor = isinstance(descriptors, Tensor)
    tensor = descriptors if is_tensor else _from_numpy(np.asarray(descriptors))
    if not len(tensor):
        return tensor.float()
    if tensor.ndim != 2 or not tensor.is_floating_point():
        raise ValueError(
            f"{name}.descriptors must be floating point of shape (N, D) and unit length, got "
            f"{tensor.dtype} {tuple(tensor.shape)}; write binary ones as numbers +-1 / sqrt(D)"
        )
    squares = tensor.float().square().sum(1)
    # A descriptor of an empty place may be zero; NaN compares with nothing.
    if not ((squares - 1).abs().le(_LENGTH_SLACK) | squares.eq(0)).all():
        raise ValueError(
            f"{name}.descriptors must be finite and of unit length, but lengths are "
            f"{float(squares.amin().sqrt()):g} to {float(squares.amax().sqrt()):g}; "
            "scale them with torch.nn.functional.normalize"
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


def _passes_ratio(table: Tensor, ratio: float) -> Tensor:
    """Tell for each row of similarities whether the nearest is clearly nearer than the second."""
    if table.shape[1] < 2:
        return torch.ones(len(table), dtype=torch.bool, device=table.device)
    best = table.topk(2, dim=1).values
    distances = (2 - 2 * best).clamp(min=0).sqrt()
    return distances[:, 0] < ratio * distances[:, 1]
