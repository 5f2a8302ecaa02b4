"""The machine that computes: what it is called, and whether bfloat16 is its faster number."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def machine_name(device: torch.device) -> str:
    """The GPU, or the processor and how many threads of it are in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} of {processor_name()}"
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)} of {processor_name()}"


def processor_name() -> str:
    """The model's name where Linux tells it, else what Python knows of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def bfloat16_is_faster(device: torch.device) -> bool:
    """Whether convolutions of bfloat16 take less time on ``device`` than those of float32.

    A processor needs AMX for it, or AVX-512's product of bfloat16; that of Intel's, which is left
    where a virtual machine hides AMX, takes longer than two products of float32, as emulation does.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return _supports("amx_tile") or (_supports("avx512_bf16") and "Intel" not in processor_name())


def _supports(feature: str) -> bool:
    check = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return check is not None and check()
