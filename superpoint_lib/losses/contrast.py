"""Losses of descriptors by choice: each place among others (InfoNCE), or a sample of pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from superpoint_lib.geometry import adjugate, warp_points
from superpoint_lib.geometry.cells import CELL_SIZE
from superpoint_lib.losses.pairs import cell_centers, valid_at, warped_centers, within
from superpoint_lib.losses.shared import check_pair, full_precision, image_mean, promote


def descriptor_infonce_loss(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H_0to1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    temperature: float = 0.05,
    exclusion: float = 8.0,
    everywhere: bool = False,
    places: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Cross-entropy of finding each cell of one image among the places of the other.

    Cell i of image 0 lands at w_i in image 1, where the descriptor p_i is sampled bilinearly and
    normalised again. The loss of the cell is ``-log softmax_k(<d_i, p_k> / temperature)`` at
    k = i, over the landing places k of the valid cells, without those other than i within
    ``exclusion`` px of w_i: too close to call wrong. Means over cells with a valid place in the
    other image, then over images, then over the two directions.

    Args:
        descriptors0, descriptors1: (B, D, Hc, Wc), unit length along D.
        H_0to1: (B, 3, 3), pixels of image 0 to pixels of image 1.
        valid0, valid1: bool (B, Hc, Wc), or None for all.
        temperature: of the softmax, > 0.
        exclusion: pixels, inclusive.
        everywhere: choose among i's own place and all valid cells of the other image, instead of
            the places where cells land: what only one image shows counts, too, and where it is
            enlarged, what lies between the places.
        places: a pixel (x, y) of each cell of image 0, and of image 1, (B, Hc Wc, 2) each, to find,
            and with ``everywhere`` to choose from, instead of its centre, say its keypoint; its
            descriptor is sampled, too.

    Returns:
        Scalar, >= 0; about log N for descriptors that tell nothing.

    Raises:
        ValueError: shapes that do not belong together, or a temperature that is not positive.

    Source: van den Oord et al., Representation Learning with Contrastive Predictive Coding (2018),
    equation 4. Derived in notebook 04.
    """
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, must be above 0")
    check_pair(descriptors0, descriptors1, H_0to1)
    d0, d1 = promote(descriptors0), promote(descriptors1)
    places0, places1 = (None, None) if places is None else places
    rule = (temperature, exclusion, everywhere)
    forward = _infonce_one_way(d0, d1, H_0to1, valid0, valid1, places0, places1, *rule)
    backward = _infonce_one_way(d1, d0, adjugate(H_0to1), valid1, valid0, places1, places0, *rule)
    return (forward + backward) / 2


# A logit this low is no candidate; it is finite so that rows without any have gradients.
_NO_CANDIDATE = -1e4


def _infonce_one_way(
    source: Tensor,
    target: Tensor,
    H: Tensor,
    valid_source: Tensor | None,
    valid_target: Tensor | None,
    places_source: Tensor | None,
    places_target: Tensor | None,
    temperature: float,
    exclusion: float,
    everywhere: bool,
) -> Tensor:
    with full_precision(source):
        warped, usable = _landing(H, valid_source, valid_target, source, places_source)
        anchors = _described(source, places_source)
        own = _sample(target, warped)
        others = _described(target, places_target) if everywhere else own
        with torch.no_grad():
            if everywhere:
                left_out = _near_or_invalid(warped, valid_target, target, places_target, exclusion)
            else:
                left_out = _near_or_unusable(warped, usable, exclusion)
            mask = torch.zeros_like(left_out, dtype=source.dtype)
            mask.masked_fill_(left_out, _NO_CANDIDATE)
    # Under autocast in bfloat16, a product of unit vectors is off by 0.004 at most, and it is most
    # of the work. Everything that adds up, the softmax above all, is computed in full.
    logits = torch.baddbmm(mask, anchors.mT, others, alpha=1 / temperature)
    with full_precision(source):
        logits = promote(logits)
        if everywhere:
            right = (anchors * own).sum(1) / temperature
            losses = F.softplus(logits.logsumexp(2) - right)
        else:  # the own place is among the others, on the diagonal
            batch, cells = usable.shape
            own_place = torch.arange(cells, device=logits.device).repeat(batch)
            rows = F.cross_entropy(logits.flatten(0, 1), own_place, reduction="none")
            losses = rows.view(batch, cells)
        weights = usable.to(losses.dtype)
        return image_mean((losses * weights).sum(1), weights.sum(1), "image")


def _near_or_unusable(warped: Tensor, usable: Tensor, exclusion: float) -> Tensor:
    """Which landing places (B, N, N) do not compete for each cell: all but its own."""
    left_out = torch.cdist(warped, warped) <= exclusion
    left_out |= ~usable[:, None]
    left_out.diagonal(dim1=1, dim2=2).fill_(False)
    return left_out


def _near_or_invalid(
    warped: Tensor,
    valid_target: Tensor | None,
    target: Tensor,
    places: Tensor | None,
    exclusion: float,
) -> Tensor:
    """Which cells of the other image (B, N, K), at their places, do not compete for each cell."""
    if places is None:
        rows, columns = target.shape[2:]
        centers = cell_centers(rows, columns, warped.device, warped.dtype)
        places = centers.expand(len(warped), -1, -1)
    near = torch.cdist(warped, places.to(warped.dtype)) <= exclusion
    return near if valid_target is None else near | ~valid_target.flatten(1)[:, None]


def _described(descriptors: Tensor, places: Tensor | None) -> Tensor:
    """The descriptor (B, D, N) of each cell: at its place, or as it is."""
    return descriptors.flatten(2) if places is None else _sample(descriptors, places)


def descriptor_sparse_loss(
    descriptors0: Tensor,
    descriptors1: Tensor,
    H_0to1: Tensor,
    valid0: Tensor | None = None,
    valid1: Tensor | None = None,
    generator: torch.Generator | None = None,
    matches: int = 1000,
    negatives: int = 100,
    lambda_d: float = 1.0,
    positive_margin: float = 1.0,
    negative_margin: float = 0.2,
    exclusion: float = 8.0,
) -> Tensor:
    """Hinge loss on a random sample of matches and of negatives for each.

    ``lambda_d mean max(0, m_p - d_match) + mean max(0, d_negative - m_n)``, each mean over its own
    pairs within an image, then over images: the balance no longer depends on the image size. The
    descriptor of image 1 is sampled bilinearly where the cell of image 0 lands.

    Args:
        descriptors0, descriptors1: (B, D, Hc, Wc), unit length along D.
        H_0to1: (B, 3, 3), pixels of image 0 to pixels of image 1.
        valid0, valid1: bool (B, Hc, Wc), or None for all.
        generator: source of the sample; None takes PyTorch's global one.
        matches: cells of image 0 drawn per image, without repetition (all when there are fewer).
        negatives: cells of image 1 drawn per match; those within ``exclusion`` px of the true
            place, or not valid, are dropped.
        lambda_d: weight of the matches.
        positive_margin: m_p, the similarity from which a match costs nothing.
        negative_margin: m_n, the similarity up to which a negative costs nothing.
        exclusion: pixels, inclusive.

    Returns:
        Scalar, >= 0.

    Raises:
        ValueError: shapes that do not belong together.

    Source: after the sparse loss of Jau et al., pytorch-superpoint, which takes the mean of the
    negatives that violate the margin alone, so that it pushes harder the fewer they are, rounds
    places to cells, and excludes no neighbours. Derived in notebook 04.
    """
    rows, columns = check_pair(descriptors0, descriptors1, H_0to1)
    device = descriptors0.device
    draw_on = device if generator is None else generator.device
    with full_precision(descriptors0):
        d0, d1 = promote(descriptors0).flatten(2), promote(descriptors1)
        warped, usable = _landing(H_0to1, valid0, valid1, d1)
        batch, cells = usable.shape
        order = torch.rand(batch, cells, generator=generator, device=draw_on).to(device)
        chosen = (order - 2.0 * ~usable).topk(min(matches, cells), dim=1).indices
        drawn = torch.randint(
            cells, (batch, chosen.shape[1], negatives), generator=generator, device=draw_on
        ).to(device)

        anchors = d0.gather(2, chosen[:, None].expand(-1, d0.shape[1], -1))
        places = warped.gather(1, chosen[:, :, None].expand(-1, -1, 2))
        kept = usable.gather(1, chosen)
        match = (anchors * _sample(d1, places)).sum(1)
        wrong = (anchors.transpose(1, 2) @ d1.flatten(2)).gather(2, drawn)

        centers = cell_centers(rows, columns, device, warped.dtype)
        countable = kept[:, :, None] & ~within(places[:, :, None], centers[drawn], exclusion)
        if valid1 is not None:
            countable &= valid1.flatten(1).gather(1, drawn.flatten(1)).view_as(drawn)
        positive = F.relu(positive_margin - match) * kept
        negative = F.relu(wrong - negative_margin) * countable
        return lambda_d * image_mean(positive.sum(1), kept.sum(1), "image") + image_mean(
            negative.sum((1, 2)), countable.sum((1, 2)), "image"
        )


def _landing(
    H: Tensor,
    valid_source: Tensor | None,
    valid_target: Tensor | None,
    like: Tensor,
    places: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Where the cells land (B, N, 2), and whether both ends are valid and inside (B, N).

    Their centres, or the ``places`` (B, N, 2) in them.

    Places outside are moved to the border, finite, so that sampling there stays harmless.
    """
    rows, columns = like.shape[-2:]
    landed = warped_centers(H, rows, columns)[1] if places is None else warp_points(places, H)
    x, y = landed.unbind(-1)
    last_x, last_y = columns * CELL_SIZE - 1, rows * CELL_SIZE - 1
    usable = (x >= 0) & (x <= last_x) & (y >= 0) & (y <= last_y)
    x, y = x.nan_to_num(0.0).clamp(0, last_x), y.nan_to_num(0.0).clamp(0, last_y)
    if valid_source is not None:
        usable = usable & valid_source.flatten(1)
    if valid_target is not None:
        usable = usable & valid_at(valid_target, (torch.stack((x, y), dim=1) + 0.5).long())
    return torch.stack((x, y), dim=-1), usable


def _sample(descriptors: Tensor, points: Tensor) -> Tensor:
    """Unit descriptors (B, D, K) at pixels ``points`` (B, K, 2): bilinear, border padding.

    A weighted sum of four rows of a table.
    """
    batch, size, rows, columns = descriptors.shape
    x, y = ((points - (CELL_SIZE - 1) / 2) / CELL_SIZE).clamp_min(0).unbind(2)
    # Limits as numbers: a tensor of them would make the host wait for the GPU.
    cell = torch.stack((x.clamp_max(columns - 1), y.clamp_max(rows - 1)), dim=2)
    first = cell.floor()
    x, y = (first + 1).unbind(2)
    second = torch.stack((x.clamp_max(columns - 1), y.clamp_max(rows - 1)), dim=2)
    ends = torch.stack((first, second), dim=2).long()  # (B, K, 2 ends, x and y)
    shares = torch.stack((1 - cell + first, cell - first), dim=2).to(descriptors.dtype)
    image = torch.arange(batch, device=points.device)[:, None, None, None] * rows
    index = (image + ends[:, :, :, None, 1]) * columns + ends[:, :, None, :, 0]
    weights = shares[:, :, :, None, 1] * shares[:, :, None, :, 0]
    table = descriptors.permute(0, 2, 3, 1).reshape(-1, size)
    weighted_rows = _bagged_rows if table.device.type == "cpu" else _gathered_rows
    sampled = weighted_rows(table, index.view(-1, 4), weights.view(-1, 4))
    return F.normalize(sampled, dim=1).view(batch, -1, size).mT


def _bagged_rows(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sums (N, D) of the rows ``index`` (N, K) of ``table`` (M, D), times ``weights`` (N, K).

    Quicker than ``grid_sample`` on a CPU.
    """
    return F.embedding_bag(index, table, per_sample_weights=weights, mode="sum")


def _gathered_rows(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """The same for a GPU, where the gradient of ``embedding_bag`` sorts all rows first."""
    return (table[index] * weights[:, :, None]).sum(1)
