"""What the losses share: precision, and how means are taken."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def full_precision(like: Tensor) -> torch.autocast:
    """Switches autocast off: sums over thousands of pairs need float32."""
    return torch.autocast(like.device.type, enabled=False)


def promote(values: Tensor) -> Tensor:
    """Float32, or float64 where it is that."""
    return values if values.dtype == torch.float64 else values.float()


def image_mean(totals: Tensor, counts: Tensor, over: Literal["image", "batch"]) -> Tensor:
    """Totals (B,) divided by counts (B,) per image and averaged, or in one division."""
    if over == "batch":
        return totals.sum() / counts.sum().clamp_min(1)
    return (totals / counts.clamp_min(1)).mean()


def check_pair(descriptors0: Tensor, descriptors1: Tensor, H_0to1: Tensor) -> tuple[int, int]:
    """Rows and columns of the coarse grid."""
    if descriptors0.shape != descriptors1.shape or descriptors0.ndim != 4:
        raise ValueError(
            f"descriptors have shapes {tuple(descriptors0.shape)} and {tuple(descriptors1.shape)}, "
            "expected (B, D, Hc, Wc) twice"
        )
    if H_0to1.shape != (len(descriptors0), 3, 3):
        raise ValueError(
            f"H_0to1 has shape {tuple(H_0to1.shape)}, expected ({len(descriptors0)}, 3, 3)"
        )
    return descriptors0.shape[2], descriptors0.shape[3]
