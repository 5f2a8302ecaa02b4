"""From images to features: the network, then everything that comes after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from superpoint_lib.extraction.descriptors import sample_descriptors
from superpoint_lib.extraction.features import Features
from superpoint_lib.extraction.images import prepare_images
from superpoint_lib.extraction.keypoints import decode_heatmap, find_keypoints, frame
from superpoint_lib.geometry.cells import CELL_SIZE
from superpoint_lib.model import Precision, exact_float32, uses_bfloat16

# On a CPU, pictures that go through the network together: their maps should stay in its caches.
_CHUNK_PIXELS = 240 * 320


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
        heatmap = heatmap * frame(heatmap, sizes, 0)
    found = find_keypoints(
        heatmap, sizes, max_keypoints, threshold, nms_radius, 5 if subpixel else 1, border
    )
    descriptors = maps.get("descriptors")
    features = []
    for i, (keypoints, scores) in enumerate(found):
        sampled = None if descriptors is None else sample_descriptors(descriptors[i], keypoints)
        features.append(Features(keypoints, scores, sampled, sizes[i]))
    return features


def _check_sizes(sizes: Sequence[tuple[int, int]], heatmap: Tensor) -> list[tuple[int, int]]:
    batch, height, width = heatmap.shape
    checked = [(int(h), int(w)) for h, w in sizes]
    if len(checked) != batch:
        raise ValueError(f"{len(checked)} image sizes for maps of {batch} images")
    for size in checked:
        if size[0] > height or size[1] > width:
            raise ValueError(f"image size {size} is larger than its maps' ({height}, {width})")
    return checked
