"""The two modes of a network with batch normalisation: compared, and brought together."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import nn

from superpoint_lib.training.config import TrainConfig
from superpoint_lib.training.steps import Batch, batch_losses

M = TypeVar("M", bound=nn.Module)


def mode_losses(
    model: nn.Module, config: TrainConfig, batches: Iterable[Batch]
) -> dict[str, dict[str, float]]:
    """Mean losses of a network in train mode and in eval mode, on the same batches.

    In train mode batch normalisation uses the statistics of each batch (of each view of it, unless
    ``config.one_forward``), in eval mode its running statistics. A network without it gives the
    same losses twice.

    Args:
        model: a network that fits ``config``. It stays as it is: mode, weights and statistics.
        config: which losses; ``detector_step`` or ``pair_step`` by ``views``.
        batches: at least one, on any device. For held-out ones, collate a dataset of another seed.

    Returns:
        {"train": losses, "eval": losses}, each with the keys of the step, means over the batches.

    Raises:
        ValueError: there is no batch.

    Derived in notebook 07.
    """
    twins = {"train": copy.deepcopy(model).train(), "eval": copy.deepcopy(model).eval()}
    sums: dict[str, dict[str, float]] = {mode: {} for mode in twins}
    count = 0
    with torch.no_grad():
        for batch in _on_device_of(model, batches):
            for mode, twin in twins.items():
                for name, value in batch_losses(twin, batch, config, count).items():
                    sums[mode][name] = sums[mode].get(name, 0.0) + value.item()
            count += 1
    if not count:
        raise ValueError("mode_losses needs at least one batch, got none")
    return {
        mode: {name: total / count for name, total in parts.items()} for mode, parts in sums.items()
    }


def reestimate_norm(model: M, config: TrainConfig, batches: Iterable[Batch]) -> M:
    """Measure the running statistics of batch normalisation anew, with the weights held still.

    The running statistics of training are an exponential average over batches that the network saw
    with earlier weights; here they become the plain average over ``batches`` with the last ones
    ("precise" batch normalisation: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021,
    section 3).

    Args:
        model: a network that fits ``config``; left as it was.
        config: how a batch is sent through (``views``, ``one_forward``).
        batches: at least one; two passes count as two batches.

    Returns:
        A copy in eval mode. A network without batch normalisation is only copied.

    Raises:
        ValueError: there is no batch.

    Derived in notebook 07.
    """
    twin = copy.deepcopy(model).train()
    norms = [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    count = 0
    with torch.no_grad():
        for batch in _on_device_of(model, batches):
            batch_losses(twin, batch, config)
            count += 1
    if not count:
        raise ValueError("reestimate_norm needs at least one batch, got none")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return twin.eval()


def _on_device_of(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    device = next(model.parameters()).device
    for batch in batches:
        yield {key: value.to(device) for key, value in batch.items()}
