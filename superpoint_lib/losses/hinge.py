"""The published loss of descriptors: a hinge over all pairs of cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from superpoint_lib.losses.pairs import nearby_cells, positive_pairs
from superpoint_lib.losses.shared import (
    check_pair,
    full_precision,
    image_mean,
    promote,
)

HingeNormalisation = Literal["valid", "batch", "all"]


@dataclass(frozen=True)
class HingeConfig:
    """Settings of the dense hinge loss; ``HINGE_PRESETS`` holds the published ones.

    lambda_d weighs the few positive pairs against the many negative ones. ``relu`` and
    ``double_normalisation`` act on the similarity matrix before the hinge: negative similarities
    become 0, then each row (cells of image 1) and after it each column (cells of image 0) is scaled
    to unit length, which asks for mutually unique matches. ``normalisation``: "valid" divides by
    the valid pairs of each image, "batch" by the valid pairs of the whole batch, "all" by every
    pair, (Hc Wc)^2 per image.
    """

    lambda_d: float = 250.0
    positive_margin: float = 1.0
    negative_margin: float = 0.2
    positive_distance: float = 7.5
    relu: bool = False
    double_normalisation: bool = False
    normalisation: HingeNormalisation = "valid"


#: paper: DeTone et al. 2018. rpautrat: superpoint_coco.yaml of the TensorFlow implementation by
#: Pautrat and Sarlin. eric: dense loss of pytorch-superpoint by Jau et al., with the lambda_d that
#: took effect; the original divides once more, by the number of pictures in the batch.
#: zeng-stage1: SuperPoint-Pytorch's training steps, normalisations commented out; zeng: the same
#: file as published.
HINGE_PRESETS: dict[str, HingeConfig] = {
    "default": HingeConfig(),
    "paper": HingeConfig(positive_distance=8.0, normalisation="all"),
    "rpautrat": HingeConfig(
        lambda_d=0.05, relu=True, double_normalisation=True, normalisation="batch"
    ),
    "eric": HingeConfig(positive_distance=4.0),
    "zeng": HingeConfig(lambda_d=0.05, relu=True, double_normalisation=True, normalisation="batch"),
    "zeng-stage1": HingeConfig(lambda_d=0.05, relu=True, normalisation="batch"),
}

#: The weight (lambda) each publication gives the descriptor loss beside the detector losses.
HINGE_LAMBDAS: dict[str, float] = {
    "default": 1.0,
    "paper": 1e-4,
    "rpautrat": 10000.0,
    "eric": 1.0,
    "zeng": 10000.0,
    "zeng-stage1": 10000.0,
}


def descriptor_hinge_loss(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H_0to1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    config: HingeConfig = HingeConfig(),
) -> Tensor:
    """Hinge loss over all pairs of cells, exact, with one matrix product.

    With s = `positive_pairs` and d the similarity of a pair, the mean over valid pairs of
    ``lambda_d s max(0, m_p - d) + (1 - s) max(0, d - m_n)``. The negative term is summed over the
    whole similarity matrix, then corrected at the few positives: no other N x N table is needed.

    Args:
        descriptors0, descriptors1: (B, D, Hc, Wc), unit length along D.
        H_0to1: (B, 3, 3), pixels of image 0 to pixels of image 1.
        valid0, valid1: bool (B, Hc, Wc), or None for all.
        config: margins, weights and the variants of the implementations.

    Returns:
        Scalar, >= 0.

    Raises:
        ValueError: shapes that do not belong together.

    Source: DeTone et al., SuperPoint (2018), equations 4-6. Derived in notebook 04.
    """
    rows, columns = check_pair(descriptors0, descriptors1, H_0to1)
    with full_precision(descriptors0):
        similarity = _similarity(descriptors0, descriptors1, config)
        index, positive = nearby_cells(H_0to1, rows, columns, config.positive_distance)
        weights0 = _pair_weights(valid0, descriptors0, similarity)
        weights1 = _pair_weights(valid1, descriptors1, similarity)

        as_negative = (similarity - config.negative_margin).relu_()
        everywhere = (weights0[:, None] @ as_negative @ weights1[:, :, None]).flatten()
        close = similarity.gather(2, index)
        correction = config.lambda_d * F.relu(config.positive_margin - close) - F.relu(
            close - config.negative_margin
        )
        near = weights1.gather(1, index.flatten(1)).view_as(close)
        totals = everywhere + (correction * near * positive * weights0[:, :, None]).sum((1, 2))
        return image_mean(totals, _pair_counts(weights0, weights1, config), _over(config))


def descriptor_hinge_loss_broadcast(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H_0to1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    config: HingeConfig = HingeConfig(),
) -> Tensor:
    """`descriptor_hinge_loss` written as its definition: every pair of cells spelled out.

    Builds a (B, D, Hc, Wc, Hc, Wc) tensor, 1.5 GB per image at 240 x 320: for toy sizes, to read
    and to test against. Same arguments and value.
    """
    rows, columns = check_pair(descriptors0, descriptors1, H_0to1)
    shape = (len(H_0to1), rows, columns, rows, columns)
    products = descriptors0[:, :, :, :, None, None] * descriptors1[:, :, None, None, :, :]
    similarity = products.sum(1)
    if config.relu:
        similarity = F.relu(similarity)
    if config.double_normalisation:
        similarity = F.normalize(similarity.flatten(3), dim=3).view(shape)
        similarity = F.normalize(similarity.flatten(1, 2), dim=1).view(shape)
    s = positive_pairs(H_0to1, rows, columns, config.positive_distance).view(shape)
    losses = torch.where(
        s,
        config.lambda_d * (config.positive_margin - similarity).clamp_min(0),
        (similarity - config.negative_margin).clamp_min(0),
    )
    pairs = torch.ones_like(s)
    if valid0 is not None:
        pairs = pairs & valid0[:, :, :, None, None]
    if valid1 is not None:
        pairs = pairs & valid1[:, None, None, :, :]
    totals = (losses * pairs).flatten(1).sum(1)
    if config.normalisation == "all":
        return (totals / (rows * columns) ** 2).mean()
    return image_mean(totals, pairs.flatten(1).sum(1), _over(config))


def _similarity(descriptors0: Tensor, descriptors1: Tensor, config: HingeConfig) -> Tensor:
    """(B, N, N) products of all descriptors, after the optional ReLU and normalisations."""
    flat0, flat1 = promote(descriptors0).flatten(2), promote(descriptors1).flatten(2)
    similarity = flat0.transpose(1, 2) @ flat1
    if config.relu:
        similarity = F.relu(similarity)
    if config.double_normalisation:
        similarity = F.normalize(F.normalize(similarity, dim=2), dim=1)
    return similarity


def _pair_weights(valid: Tensor | None, descriptors: Tensor, like: Tensor) -> Tensor:
    """(B, N) one for valid cells, zero for the others."""
    if valid is None:
        return like.new_ones(descriptors.shape[0], descriptors.shape[2] * descriptors.shape[3])
    return valid.flatten(1).to(like.dtype)


def _pair_counts(weights0: Tensor, weights1: Tensor, config: HingeConfig) -> Tensor:
    if config.normalisation == "all":
        return torch.full_like(weights0[:, 0], weights0.shape[1] * weights1.shape[1])
    return weights0.sum(1) * weights1.sum(1)


def _over(config: HingeConfig) -> Literal["image", "batch"]:
    return "batch" if config.normalisation == "batch" else "image"
