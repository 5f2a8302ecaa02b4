"""Several looks at an image: enlarged and turned, which must agree, or smaller and smaller.

The network sees no more than pixels, and places a keypoint to about one of them. An enlarged image
has more of them for the same corner, but also more noise to fall for. Where both see a keypoint, it
is there, and the enlarged one knows better where. Of a corner that is turned, the network places
the keypoint a little elsewhere; over four quarter turns, that averages out.

What a picture shows from twice as near looks to the network like another place: it learns to
recognise a corner that is somewhat larger or smaller, not one of another size altogether. In the
nearer picture made smaller it is of the same size again. So a pyramid of smaller and smaller images
is no agreement: each finds keypoints of its own, as SIFT finds them in its octaves.

Test-time options: they cost as many forward passes as there are looks, larger and smaller ones the
square of their scale.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from superpoint_lib.extraction import (
    MIN_IMAGE_SIZE,
    Features,
    decode_heatmap,
    extract,
    find_keypoints,
    network_maps,
    prepare_images,
    refuse_fractions,
    sample_descriptors,
)
from superpoint_lib.model import Precision

_LEAST = 1e-8  # taken for less, whose logarithm may not be finite


def extract_multiscale(
    model: nn.Module,
    image: Tensor | NDArray[Any],
    scales: Sequence[float] = (1.0, 1.5),
    max_keypoints: int | None = 1000,
    threshold: float = 0.005,
    nms_radius: int = 4,
    subpixel: bool = True,
    border: int = 0,
    precision: Precision = "auto",
    turned: bool = False,
    pyramid: Sequence[float] = (),
) -> Features | list[Features]:
    """Do ``extract`` on the geometric mean of the heatmaps of several looks at an image.

    With p_s the heatmap of the image enlarged s times, brought to the size of the largest,
    keypoints are the maxima of ``(p_1 p_2 ... p_n)^(1/n)``: a pixel counts where every look sees a
    keypoint. ``turned`` looks four times at each scale, at the image turned by each quarter, the
    heatmaps turned back. The descriptor of a keypoint is the mean of those of the upright image at
    every scale, of unit length.

    With a ``pyramid`` of factors f the same is done again at every scale times f, and what all
    levels find is put together, best score first: a corner may be found at several of them, each
    time with another descriptor, and one of these is like that of a picture taken from nearer or
    farther away. Shown in notebook 06.

    Convention: keypoints and border are in pixels of ``image``, whatever the scales. So is the
    radius, but where the image is made smaller, by all of the scales or as a level of the pyramid,
    it is in pixels of that: suppression has to reach beyond the window of sub-pixels. Pixel x of an
    image resized by s lies at (x + 0.5) / s - 0.5. With ``scales=(1.0,)``, not turned, without
    pyramid, this is ``extract``.

    Args:
        model: as in ``extract``.
        image: as in ``extract``; the images of a batch are looked at one by one.
        scales: factors of the image's size, above 0, in any order.
        max_keypoints: as in ``extract``.
        threshold: as in ``extract``, for the geometric mean.
        nms_radius: as in ``extract``.
        subpixel: as in ``extract``; the window grows with the largest scale.
        border: as in ``extract``.
        precision: as in ``extract``.
        turned: look at the turned image too.
        pyramid: further levels, say (0.7, 0.5), above 0.

    Returns:
        As ``extract``.

    Raises:
        ValueError: as ``extract``, and for scales that are none, not positive, or make the image
            smaller than 16 px.
    """
    scales, pyramid = tuple(scales), tuple(pyramid)
    if scales == (1.0,) and not turned and not pyramid:
        return extract(
            model, image, max_keypoints, threshold, nms_radius, subpixel, border, precision
        )
    images, is_batch = prepare_images(image)
    size = (images.shape[-2], images.shape[-1])
    levels = (1.0, *pyramid)
    refuse_fractions(max_keypoints=max_keypoints, nms_radius=nms_radius, border=border)
    # Rounded to pixels of a smaller picture, -1 may become 0.
    if min(nms_radius, border) < 0:
        raise ValueError(f"nms_radius and border must be 0 or more, got {nms_radius} and {border}")
    least = min(scales, default=0) * min(levels) * min(size)
    if least < MIN_IMAGE_SIZE or not all(map(math.isfinite, (*scales, *levels))):
        raise ValueError(
            f"scales must be positive and leave images of {MIN_IMAGE_SIZE} px or more, got "
            f"{scales}{f', times {pyramid}' if pyramid else ''}, for an image of {size}"
        )

    def find(one: Tensor, level: float) -> Features:
        radius = round(nms_radius * max(1.0, *scales) * max(1.0, level))
        looks = [_look(model, one[None], level * scale, turned, precision) for scale in scales]
        with torch.no_grad():
            return _find(looks, size, max_keypoints, threshold, radius, subpixel, border)

    features = [_best([find(one, level) for level in levels], max_keypoints) for one in images]
    return features if is_batch else features[0]


def _best(levels: Sequence[Features], max_keypoints: int | None) -> Features:
    """What several levels found, as one: the best scores first."""
    if len(levels) == 1:
        return levels[0]
    scores = torch.cat([level.keypoint_scores for level in levels])
    order = scores.argsort(descending=True, stable=True)[:max_keypoints]
    keypoints = torch.cat([level.keypoints for level in levels])[order]
    described = [level.descriptors for level in levels if level.descriptors is not None]
    descriptors = torch.cat(described)[order] if described else None
    first = levels[0]
    return Features(keypoints, scores[order], descriptors, first.image_size, first.computed_in)


@dataclass(frozen=True)
class _Look:
    """What the network sees at one scale: a heatmap (1, h, w), descriptors (D, hc, wc) or None."""

    scale: float
    heatmap: Tensor
    descriptors: Tensor | None
    computed_in: str

    def factors(self, size: tuple[int, int]) -> Tensor:
        """Exact factors (x, y) from an image of ``size`` to this one, whose sides are whole."""
        height, width = self.heatmap.shape[-2:]
        return self.heatmap.new_tensor([width / size[1], height / size[0]])


def _look(
    model: nn.Module, image: Tensor, scale: float, turned: bool, precision: Precision
) -> _Look:
    height, width = (round(side * scale) for side in image.shape[-2:])
    if scale != 1:
        resized = F.interpolate(image, (height, width), mode="bicubic", antialias=scale < 1)
        image = resized.clamp(0, 1)
    maps, computed_in = network_maps(model, image, precision)
    heatmap = _heatmap(maps, image)
    if turned:
        views = [torch.rot90(image, quarter, (2, 3)) for quarter in (1, 2, 3)]
        heatmaps = [_heatmap(network_maps(model, view, precision)[0], view) for view in views]
        upright = [torch.rot90(heatmaps[i], -1 - i, (1, 2)) for i in range(3)]
        heatmap = agreement([heatmap, *upright], (height, width))
    descriptors = maps["descriptors"][0] if "descriptors" in maps else None
    return _Look(scale, heatmap, descriptors, computed_in)


@torch.no_grad()
def _heatmap(maps: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """(1, H, W), without what the network saw of its padding."""
    return decode_heatmap(maps["logits"])[:, : image.shape[-2], : image.shape[-1]]


def _find(
    looks: Sequence[_Look],
    size: tuple[int, int],
    max_keypoints: int | None,
    threshold: float,
    nms_radius: int,
    subpixel: bool,
    border: int,
) -> Features:
    finest = max(looks, key=lambda look: look.scale)
    shape = (finest.heatmap.shape[-2], finest.heatmap.shape[-1])
    # Pixel x lies at (x + 0.5) s - 0.5 there: what is nearer to the edge is left out.
    near_edge = math.ceil((border + 0.5) * finest.scale - 0.5) if border else 0
    ((found, scores),) = find_keypoints(
        agreement([look.heatmap for look in looks], shape),
        [shape],
        max_keypoints,
        threshold,
        nms_radius,
        2 * max(1, round(2 * finest.scale)) + 1 if subpixel else 1,
        near_edge,
    )
    last = found.new_tensor([size[1] - 1, size[0] - 1])
    # The outermost pixels of an enlarged image lie outside the first and last of the image itself.
    keypoints = (found + 0.5) / finest.factors(size) - 0.5
    keypoints = keypoints.clamp(found.new_zeros(2), last)
    sampled = [
        sample_descriptors(look.descriptors, (keypoints + 0.5) * look.factors(size) - 0.5)
        for look in looks
        if look.descriptors is not None
    ]
    descriptors = F.normalize(torch.stack(sampled).sum(0), dim=1) if sampled else None
    return Features(keypoints, scores, descriptors, size, finest.computed_in)


def agreement(heatmaps: Sequence[Tensor], shape: tuple[int, int]) -> Tensor:
    """Geometric mean of several heatmaps of one image.

    Args:
        heatmaps: (1, h, w) each, of probabilities; interpolated bilinearly to ``shape``.
        shape: (H, W).

    Returns:
        (1, H, W) of ``(p_1 p_2 ... p_n)^(1/n)``, probabilities below 1e-8 taken as that.

    Shown in notebook 06.
    """
    if len(heatmaps) == 1:
        return heatmaps[0]
    same = [
        F.interpolate(heatmap[None], shape, mode="bilinear", align_corners=False)[0]
        for heatmap in heatmaps
    ]
    return geometric_mean([heatmap.clamp_min(_LEAST) for heatmap in same])


def geometric_mean(values: Sequence[Tensor]) -> Tensor:
    """``(v_1 ... v_n)^(1/n)`` of tensors of one shape, none negative; 0 where one of them is."""
    return values[0] if len(values) == 1 else torch.stack(tuple(values)).log().mean(0).exp()
