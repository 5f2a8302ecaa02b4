"""Where and with what a run takes place: for its first line, and for run.json."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

import torch

from superpoint_lib.machine import choose_device, machine_name
from superpoint_lib.model import uses_bfloat16
from superpoint_lib.training.config import TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def describe(config: TrainConfig, fabric: Fabric) -> str:
    """The line that a run starts with."""
    kind = "pairs" if config.views == 2 else "images"
    processes = f"{fabric.world_size} x " if fabric.world_size > 1 else ""
    return (
        f"{config.model}: {config.steps} steps of {config.batch_size} {kind}, {config.height} x "
        f"{config.width}, on {processes}{machine_name(fabric.device)}, {precision_name(config)}"
    )


def precision_name(config: TrainConfig) -> str:
    """What the configuration means on its device."""
    lower = uses_bfloat16(config.precision, choose_device(config.device))
    return "bfloat16" if lower else "float32"


def run_facts(config: TrainConfig, fabric: Fabric) -> dict[str, Any]:
    """What run.json says of machine and versions."""
    return {
        "machine": machine_name(fabric.device),
        "processes": fabric.world_size,
        "precision": precision_name(config),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
