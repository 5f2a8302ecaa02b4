"""What a run is put together from: network, data, device, optimiser and average."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from superpoint_lib.checkpoints import load_weights
from superpoint_lib.config import ConfigError, from_dict
from superpoint_lib.datasets import (
    MixedDataset,
    PhotoDataset,
    Samples,
    ShapesDataset,
    resolve_images,
)
from superpoint_lib.machine import choose_device
from superpoint_lib.model import MagicPoint, ModelConfig, SuperPoint
from superpoint_lib.shapes import ShapesConfig
from superpoint_lib.training.config import TrainConfig
from superpoint_lib.training.facts import precision_name

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# What of a network's configuration decides whether weights fit it.
_FORM = ("norm", "norm_order", "norm_outputs", "channels", "head_channels", "descriptor_dim")
# What leaves no trace in their names and shapes, but gives another network, by normalisation.
_SILENT: dict[str, tuple[str, ...]] = {
    "none": (),
    "batch": ("norm_order", "norm_eps"),
    "group": ("norm_order", "norm_eps", "norm_groups"),
}


def make_model(config: TrainConfig) -> MagicPoint | SuperPoint:
    """The network of a run, with seeded random weights or those of ``config.init``.

    Raises:
        ConfigError: weights that do not fit the network, naming the first differing key.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        kind = SuperPoint if config.model == "superpoint" else MagicPoint
        net = kind(config.model_config)
    if config.init:
        _load_partly(net, config.init)
    return net


def _load_partly(net: MagicPoint, name: str) -> None:
    """Loads weights of another run; only a descriptor head may be missing or left over."""
    weights = load_weights(name)
    own, given = net.state_dict(), weights.state_dict
    fitting = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    free = ("descriptor.", "num_batches_tracked")
    odd = [
        key
        for key in dict.fromkeys([*own, *given])
        if key not in fitting
        and ((key in own and key in given) or not any(part in key for part in free))
    ]
    theirs = from_dict(ModelConfig, weights.config, where=name)
    if odd:
        told = (f"{key}={getattr(theirs, key)!r}" for key in _FORM)
        raise ConfigError(
            f"init: the weights of {name} do not fit this network: {odd[0]!r} and "
            f"{len(odd) - 1} more differ; set {', '.join(told)} as there"
        )
    differ = [k for k in _SILENT[theirs.norm] if getattr(theirs, k) != getattr(net.config, k)]
    if differ:
        told = (f"{key}={getattr(theirs, key)!r}" for key in differ)
        raise ConfigError(f"init: the network of {name} has {', '.join(told)}; set it as there")
    net.load_state_dict(fitting, strict=False)


def make_dataset(config: TrainConfig) -> Samples:
    """The samples of a run, see the ``datasets`` module."""
    photometric = config.photometrics
    homography = config.homographies
    shapes = ShapesConfig(
        canvas_height=2 * config.height,
        canvas_width=2 * config.width,
        height=config.height,
        width=config.width,
    )
    drawn = ShapesDataset(shapes, photometric, homography, config.seed, config.views)
    if config.data == "shapes":
        return drawn
    photos = PhotoDataset(
        [resolve_images(source, "training") for source in config.images],
        list(config.labels),
        config.height,
        config.width,
        photometric,
        homography,
        config.seed,
        config.views,
        threshold=config.label_threshold,
        targets=config.soft_targets,
        enlarge=config.enlarge,
        sharpen=config.sharpen,
        whole_picture=config.whole_picture,
        label_radius=config.label_radius,
    )
    return MixedDataset(photos, drawn, config.drawn_every) if config.drawn_every else photos


def _leave_group() -> None:
    """Lightning does so for NCCL alone. Threads of gloo that outlive Python abort the process.

    Source: github.com/pytorch/pytorch/issues/190489.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def make_fabric(config: TrainConfig) -> Fabric:
    """Fabric, launched; imported here, so that only training needs it.

    Under torchrun it spans all processes.

    Raises:
        ConfigError: the batch cannot be shared evenly between the processes, or one device of
            several is chosen for all of them.
    """
    from lightning_fabric import Fabric

    processes = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    device = choose_device(config.device)
    if processes > 1 and device.index is not None:
        raise ConfigError(
            f"device: {config.device} is one for all {processes} processes; name {device.type}, "
            "and each takes its own"
        )
    with _quiet("lightning_fabric"):  # `describe` says it in one line
        fabric = Fabric(
            accelerator=device.type,
            devices=[device.index] if device.index is not None else local,
            num_nodes=processes // local,
            strategy="ddp" if processes > 1 else "auto",
            precision="bf16-mixed" if precision_name(config) == "bfloat16" else "32-true",
        )
        fabric.launch()
    if processes > 1:
        atexit.register(_leave_group)
    if config.batch_size % fabric.world_size:
        raise ConfigError(
            f"batch_size: {config.batch_size} is no multiple of the {fabric.world_size} processes"
        )
    return fabric


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def make_optimizer(net: nn.Module, config: TrainConfig, device: torch.device) -> Any:
    """Weight decay acts on the kernels only, not on biases and normalisation scales."""
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    fused = device.type in ("cpu", "cuda")
    return kind(groups, lr=config.learning_rate, betas=(0.9, 0.999), fused=fused)


class Average:
    """Exponential moving average of weights and running statistics.

    The decay starts low, (1 + t) / (10 + t), so that the random start is forgotten.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = net.state_dict()
        self.state = {name: value.clone() for name, value in self.live.items()}

    def update(self, step: int) -> None:
        """Moves the average towards the weights after step ``step``, 0 the first."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        floats = [name for name, value in self.live.items() if value.is_floating_point()]
        averages = [self.state[name] for name in floats]
        torch._foreach_lerp_(averages, [self.live[name] for name in floats], weight)
        for name in self.live.keys() - set(floats):
            self.state[name].copy_(self.live[name])
