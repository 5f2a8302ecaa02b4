"""The machine that computes: which of its devices, and what is right and fast there."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from superpoint_lib.config import ConfigError


def choose_device(name: str = "auto") -> torch.device:
    """The device of a name, such as cpu, cuda, cuda:1, xpu or mps.

    Args:
        name: "auto" takes the NVIDIA or AMD GPU where there is one, and the processor elsewhere.
            Apple's GPUs, mps, have to be asked for: nothing here has been tried on them.

    Raises:
        ConfigError: there is none of that name here.
    """
    found = ["cpu"]
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
    found += ["xpu"] if torch.xpu.is_available() else []
    found += ["mps"] if torch.backends.mps.is_available() else []
    if name == "auto":
        return torch.device("cuda" if "cuda" in found else "cpu")
    if name not in found:
        lacking = "such device" if "cuda" in found or not name.startswith("cuda") else "CUDA GPU"
        raise ConfigError(
            f"device {name}: PyTorch {torch.__version__} finds no {lacking} here; choose "
            f"{', '.join(found)} or auto"
        )
    return torch.device(name)


def training_format(device: torch.device) -> torch.memory_format:
    """The order in which a network that is trained has its numbers in memory.

    Channels last, which is the fastest; but not on Apple's GPUs, where batch normalisation then has
    wrong gradients.

    Source: PyTorch's issue 175189.
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


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

    A processor needs AMX for it, or AVX-512's product of bfloat16, but not Intel's: with that
    alone, as where a virtual machine hides AMX, float32 is faster.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    return _supports("amx_tile") or (_supports("avx512_bf16") and "Intel" not in processor_name())


def _supports(feature: str) -> bool:
    check = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return check is not None and check()
