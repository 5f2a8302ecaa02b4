"""What one step computes: the loss of a batch, and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from superpoint_lib.losses import (
    HINGE_PRESETS,
    agreement_loss,
    descriptor_hinge_loss,
    descriptor_infonce_loss,
    descriptor_sparse_loss,
    detector_loss,
    keypoint_places,
    position_loss,
    repeatability_loss,
)
from superpoint_lib.training.config import TrainConfig

Batch = dict[str, Tensor]
Maps = dict[str, Tensor]
Losses = dict[str, Tensor]
LossesOfMaps = Callable[..., Losses]


def losses_of_maps(
    maps: tuple[Maps, ...],
    batch: Batch,
    config: TrainConfig,
    generator: torch.Generator | None = None,
) -> Losses:
    """What ``detector_step`` and ``pair_step`` return, from the network's answers.

    Args:
        maps: of one view or of two, as the network gives them.
        batch: as there; the images are not needed.
        config: as there.
        generator: of the sample of the sparse loss.
    """
    if len(maps) == 1:
        return _detector_losses(maps[0]["logits"], batch, config, "")
    maps0, maps1 = maps
    views = [
        _detector_losses(maps["logits"], batch, config, view)
        for view, maps in (("0", maps0), ("1", maps1))
    ]
    losses = {name: views[0][name] + views[1][name] for name in views[0]}
    if config.agreement_weight:
        agreement = agreement_loss(
            maps0["logits"],
            maps1["logits"],
            batch["labels0"],
            batch["H_0to1"],
            batch["valid1"],
            within=config.agreement_within or math.inf,
        )
        losses = _add(losses, "agreement", agreement, config.agreement_weight)
    if config.repeatability_weight:
        repeatability = repeatability_loss(
            maps0["logits"],
            maps1["logits"],
            batch["H_0to1"],
            batch["valid0"],
            batch["valid1"],
            reach=config.repeatability_reach,
            zoom=config.repeatability_zoom or math.inf,
        )
        losses = _add(losses, "repeatability", repeatability, config.repeatability_weight)
    if not config.descriptor_weight:
        return losses
    descriptors0, descriptors1 = maps0["descriptors"], maps1["descriptors"]
    valid0, valid1 = batch["valid0"], batch["valid1"]
    if "described" in batch:
        valid0 = valid0 & batch["described"][:, None, None]
    pair = (descriptors0, descriptors1, batch["H_0to1"], valid0, valid1)
    match config.descriptor_loss:
        case "hinge":
            descriptor = descriptor_hinge_loss(*pair, config=HINGE_PRESETS[config.hinge])
        case "infonce":
            descriptor = descriptor_infonce_loss(
                *pair,
                temperature=config.temperature,
                exclusion=config.exclusion,
                everywhere=config.everywhere,
                places=_places(batch) if config.at_keypoints else None,
            )
        case "sparse":
            descriptor = descriptor_sparse_loss(*pair, generator=generator)
    return _add(losses, "descriptor", descriptor, config.descriptor_weight)


def _places(batch: Batch) -> tuple[Tensor, Tensor]:
    """A place in each cell of both views, its keypoint if it has one."""
    first, second = (keypoint_places(batch[f"labels{v}"], batch[f"offsets{v}"]) for v in "01")
    return first, second


def _add(losses: Losses, name: str, part: Tensor, weight: float) -> Losses:
    """The losses with one more part, weighed into their sum."""
    return losses | {"loss": losses["loss"] + weight * part, name: part}


def _detector_losses(logits: Tensor, batch: Batch, config: TrainConfig, view: str) -> Losses:
    labels, valid = batch[f"labels{view}"], batch[f"valid{view}"]
    wanted = batch[f"targets{view}"] if config.soft_targets else labels
    detector = detector_loss(logits, wanted, valid)
    losses = {"loss": config.detector_weight * detector, "detector": detector}
    if config.position_weight:
        position = position_loss(logits, labels, batch[f"offsets{view}"], valid)
        losses = _add(losses, "position", position, config.position_weight)
    return losses


def detector_step(model: nn.Module, batch: Batch, config: TrainConfig) -> Losses:
    """Loss of the detector on a batch of one view.

    Args:
        model: gives {"logits" (B, 65, H/8, W/8)} for images (B, 1, H, W).
        batch: "image" (B, 1, H, W), "labels" (B, H/8, W/8), "offsets" (B, 2, H/8, W/8) and "valid"
            (B, H/8, W/8).
        config: ``detector_weight`` and ``position_weight``.

    Returns:
        "loss", to be minimised, and its parts before weighting, "detector" and, where it has a
        weight, "position"; scalars.

    Derived in notebook 02.
    """
    return losses_of_maps((model(batch["image"]),), batch, config)


def pair_step(model: nn.Module, batch: Batch, config: TrainConfig, step: int = 0) -> Losses:
    """Loss of a batch of image pairs: detector on both views, and descriptors across them.

    Both views go through the network in one forward pass unless ``config.one_forward`` says
    otherwise (notebook 07 shows what happens then). The descriptor loss is left out when its weight
    is 0.

    Args:
        model: gives {"logits", "descriptors"} for images (2 B, 1, H, W).
        batch: "image0", "labels0", "offsets0", "valid0", the same with 1, and "H_0to1" (B, 3, 3);
            where it has "described" (B,), descriptors are learnt from the pairs where that is true.
        config: weights and kind of the losses.
        step: seeds the sample of the sparse loss.

    Returns:
        "loss", to be minimised, and its parts before weighting: "detector" and "position", each the
        sum over the two views, "agreement", "repeatability" and "descriptor"; scalars. A part
        without weight may be missing.

    Source: DeTone et al., SuperPoint (2018), equation 1. Derived in notebook 05.
    """
    maps = _pair_maps(model, batch, config)
    return losses_of_maps(maps, batch, config, _sampler(maps, config, step))


def _sampler(maps: tuple[Maps, ...], config: TrainConfig, step: int) -> torch.Generator | None:
    """Random numbers of the sparse loss, seeded by the step."""
    if config.descriptor_loss != "sparse":
        return None
    generator = torch.Generator(maps[0]["logits"].device)
    return generator.manual_seed(config.seed * 1_000_003 + step)


def _pair_maps(model: nn.Module, batch: Batch, config: TrainConfig) -> tuple[Maps, Maps]:
    images0, images1 = batch["image0"], batch["image1"]
    if not config.one_forward:
        return model(images0), model(images1)
    maps = model(torch.cat((images0, images1)))
    first, second = ({name: m.chunk(2)[view] for name, m in maps.items()} for view in (0, 1))
    return first, second


def batch_losses(
    model: nn.Module,
    batch: Batch,
    config: TrainConfig,
    step: int = 0,
    losses_of: LossesOfMaps = losses_of_maps,
) -> Losses:
    """What ``pair_step`` or ``detector_step`` gives, as ``config.views`` says.

    ``losses_of`` is ``losses_of_maps``, or what torch.compile makes of it. The number of the step
    is none of its arguments: it would be compiled anew for each.
    """
    two = config.views == 2
    maps = _pair_maps(model, batch, config) if two else (model(batch["image"]),)
    return losses_of(maps, batch, config, _sampler(maps, config, step))


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate of a step, 0 .. steps - 1.

    "one-cycle" rises along a cosine from 1/25 of ``learning_rate`` during the first 30 % of the
    steps, then falls along another to nothing (Smith and Topin, Super-Convergence, 2018, with the
    defaults of ``torch.optim.lr_scheduler.OneCycleLR``); "cosine" only falls.
    """
    peak, last = config.learning_rate, max(config.steps - 1, 1)
    if config.schedule == "constant":
        return peak
    if config.schedule == "cosine":
        return _cosine(peak, 0.0, step / last)
    rise = 0.3 * config.steps - 1
    if step <= rise:
        return _cosine(peak / 25, peak, step / rise)
    return _cosine(peak, peak / 25e4, (step - rise) / (last - rise))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2
