"""What an ONNX file holds: the network, alone or with all that follows it, as a fixed graph.

``extract`` decides by the data how often it loops and how many keypoints it returns. A graph cannot
do that, so what depends on the data is written a second time here, and tested to be the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superpoint_lib.extraction import decode_heatmap, sample_descriptors, soft_argmax
from superpoint_lib.geometry.cells import CELL_SIZE


class NetworkGraph(nn.Module):
    """The network's maps of pictures of any size, as a tuple.

    Args:
        model: a SuperPoint or MagicPoint.
        names: of the maps, in the order of the outputs.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of images (B, 1, H, W), padded by replication to whole cells."""
        for dim in (2, 3):
            images = images.index_select(dim, _padded(images.shape[dim], images.device))
        maps = self.model(images)
        return tuple(maps[name] for name in self.names)


class FeatureGraph(nn.Module):
    """Keypoints, scores and descriptors of pictures of any size, as many for each.

    The same as ``extract`` with ``subpixel``, but for equal scores within ``nms_radius`` of each
    other, all of which stay.

    Args:
        network: gives "logits" and, unless it is a detector alone, "descriptors".
        max_keypoints: for each picture; what it lacks is filled up with scores of 0.
        threshold: as in ``extract``.
        nms_radius: as in ``extract``.
    """

    def __init__(
        self, network: NetworkGraph, max_keypoints: int, threshold: float, nms_radius: int
    ) -> None:
        super().__init__()
        self.network = network
        self.max_keypoints = max_keypoints
        self.threshold = threshold
        self.nms_radius = nms_radius

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Find and describe the keypoints of images (B, 1, H, W).

        Returns:
            Keypoints (B, K, 2), scores (B, K) and, unless it is a detector alone, descriptors
            (B, K, D), best first; scores are 0 where no more keypoints were found.
        """
        height, width = images.shape[-2:]
        maps = dict(zip(self.network.names, self.network(images), strict=True))
        heatmap = decode_heatmap(maps["logits"])
        rows, columns = heatmap.shape[1:]
        y, x = (torch.arange(n, device=heatmap.device) for n in (rows, columns))
        heatmap = heatmap * ((y < height)[:, None] & (x < width))  # nothing is in the padding
        peaks = suppress(heatmap, self.nms_radius, self.threshold).flatten(1)
        # Zeros behind, lest a small picture have fewer pixels than keypoints are asked for.
        peaks = F.pad(peaks, (0, self.max_keypoints))
        scores, places = peaks.topk(self.max_keypoints)
        places = places.clamp(max=rows * columns - 1)
        row = places // columns
        pixels = torch.stack([places - row * columns, row], dim=-1).to(heatmap)
        keypoints = soft_argmax(heatmap, pixels)
        if "descriptors" not in maps:
            return keypoints, scores
        return keypoints, scores, sample_descriptors(maps["descriptors"], keypoints)


def suppress(heatmap: Tensor, radius: int, threshold: float) -> Tensor:
    """Non-maximum suppression as ``extraction.nms`` does it, in a loop that a graph can hold.

    Convention: of equal scores within ``radius`` of each other all are kept; ``nms`` keeps one.

    Args:
        heatmap: (B, H, W) scores.
        radius: in pixels.
        threshold: scores must exceed it.

    Returns:
        (B, H, W): the scores of what is kept, 0 elsewhere.
    """
    scores = torch.where(heatmap > threshold, heatmap, 0)[:, None]

    def is_undecided(kept: Tensor, undecided: Tensor) -> Tensor:
        return (undecided > 0).sum() > 0  # ONNX Runtime takes any() of an empty batch for true

    def take_best(kept: Tensor, undecided: Tensor) -> tuple[Tensor, Tensor]:
        is_best = (undecided == _window_max(undecided, radius)) & (undecided > 0)
        best = torch.where(is_best, undecided, 0)
        return kept + best, torch.where(_window_max(best, radius) > 0, 0, undecided)

    loop = torch._higher_order_ops.while_loop  # the exporter knows it by no public name
    kept, _ = loop(is_undecided, take_best, (torch.zeros_like(scores), scores))
    return kept[:, 0]


def _window_max(values: Tensor, radius: int) -> Tensor:
    """The largest value within the square around each pixel, (B, 1, H, W).

    A node or two of the graph, where ``extraction`` needs a dozen (and is quicker in PyTorch).
    """
    side = 2 * radius + 1
    rows = F.max_pool2d(values, (1, side), stride=1, padding=(0, radius))
    return F.max_pool2d(rows, (side, 1), stride=1, padding=(radius, 0))


def _padded(length: int, device: torch.device) -> Tensor:
    """Rows or columns to take: all, and the last one again up to whole cells."""
    cells = (length + CELL_SIZE - 1) // CELL_SIZE
    return torch.arange(cells * CELL_SIZE, device=device).clamp(max=length - 1)
