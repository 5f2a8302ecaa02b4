"""What is measured, and the plain forms it is measured against."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import default_collate

from superpoint_lib.config import replace
from superpoint_lib.geometry import resize_and_crop
from superpoint_lib.memory import keep_freed_memory
from superpoint_lib.model import uses_bfloat16
from superpoint_lib.training import RECIPES, TrainConfig

from .measuring import DEVICE, Work


def photographs(height: int, width: int) -> Tensor:
    """The bundled benchmark photographs, (N, 1, height, width)."""
    from superpoint_lib.datasets import bundled_photos

    photos = bundled_photos("benchmark").values()
    return torch.stack(
        [torch.from_numpy(resize_and_crop(photo, height, width)[0])[None] for photo in photos]
    )


def picture_batch(batch: int, height: int, width: int) -> Tensor:
    """So many photographs, repeated as needed, (batch, 1, height, width) on the device."""
    images = photographs(height, width)
    return images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch].to(DEVICE)


def unit_maps(rows: int, columns: int, batch: int = 1) -> Tensor:
    """Random descriptor maps (batch, 256, rows, columns) of unit vectors that ask for gradients."""
    return functional.normalize(
        torch.randn(batch, 256, rows, columns, device=DEVICE), dim=1
    ).requires_grad_()


def bare_forward(model: torch.nn.Module, images: Tensor, bf16: bool, times: int = 1) -> Work:
    """The network alone, at its best: channels-last, in bfloat16 where asked."""
    images = images.contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            for _ in range(times):
                model(images)

    return forward


@torch.inference_mode()
def plain_extract(model: torch.nn.Module, images: Tensor) -> list[tuple[Tensor, ...]]:
    """As most implementations do it: float32, NCHW, repeated max-pooling, top-k, grid sampling."""
    maps = model(images)
    batch, _, rows, columns = maps["logits"].shape
    heatmap = maps["logits"].softmax(1)[:, :-1].permute(0, 2, 3, 1)
    heatmap = heatmap.reshape(batch, rows, columns, 8, 8).permute(0, 1, 3, 2, 4)
    heatmap = heatmap.reshape(batch, 1, rows * 8, columns * 8)

    def pooled(x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 9, 1, 4)

    kept = heatmap == pooled(heatmap)
    for _ in range(2):
        near = pooled(kept.float()) > 0
        rest = torch.where(near, 0.0, heatmap)
        kept |= (rest == pooled(rest)) & ~near
    scores = torch.where(kept, heatmap, 0.0).flatten(1)
    found: list[tuple[Tensor, ...]] = []
    for image in range(batch):
        best, index = scores[image].topk(1000)
        index, best = index[best > 0.005], best[best > 0.005]
        x, y = index % (columns * 8), index // (columns * 8)
        grid = torch.stack(((x + 0.5) / (columns * 4) - 1, (y + 0.5) / (rows * 4) - 1), -1)
        sampled = functional.grid_sample(
            maps["descriptors"][image : image + 1], grid[None, None].float(), align_corners=False
        )
        found.append((x, y, best, functional.normalize(sampled[0, :, 0], dim=0)))
    return found


def training_configs(folder: str) -> dict[str, TrainConfig]:
    """The trainings that are measured: those for the device, in small batches on a CPU.

    SuperPoint's learns from labels made here, into ``folder``.
    """
    from superpoint_lib.adaptation import AdaptConfig, export_labels
    from superpoint_lib.datasets import resolve_images

    photos = str(resolve_images("bundled", "training"))
    labels = f"{folder}/labels"
    export_labels(AdaptConfig("magicpoint", (photos,), labels, warps=1), progress=False)
    if DEVICE.type == "cuda":
        magicpoint = RECIPES["full-magicpoint"]
        superpoint = replace(RECIPES["full-superpoint"], init="superpoint")
    else:
        magicpoint = replace(RECIPES["magicpoint-synthetic"], batch_size=16)
        superpoint = replace(RECIPES["superpoint"], batch_size=8)
    superpoint = replace(superpoint, images=("bundled",), labels=(labels,))
    return {"MagicPoint": magicpoint, "SuperPoint": superpoint}


def bare_step(config: TrainConfig) -> tuple[Work, int]:
    """A step of the same network on random tensors; and how many images it sees."""
    trained, optimizer, bf16 = _trained(config)
    net = torch.compile(trained) if config.compile else trained
    shape = (config.batch_size * config.views, 1, config.height, config.width)
    images = torch.rand(shape, device=DEVICE)

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            maps = net(images)
        optimizer.zero_grad(set_to_none=True)
        torch.stack([one.float().square().mean() for one in maps.values()]).sum().backward()
        optimizer.step()

    return step, len(images)


def training_step(config: TrainConfig) -> Work:
    """A step with the real losses, on drawn shapes that lie in memory already."""
    from superpoint_lib.datasets import ShapesDataset
    from superpoint_lib.shapes import ShapesConfig
    from superpoint_lib.training import detector_step, pair_step

    net, optimizer, bf16 = _trained(config)
    height, width = config.height, config.width
    shapes = ShapesConfig(canvas_height=height, canvas_width=width, height=height, width=width)
    dataset = ShapesDataset(shapes, views=config.views)
    batch = default_collate([dataset[i] for i in range(config.batch_size)])
    batch = {key: value.to(DEVICE) for key, value in batch.items()}
    losses_of = pair_step if config.views == 2 else detector_step

    def step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = losses_of(net, batch, config)["loss"]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _trained(config: TrainConfig) -> tuple[torch.nn.Module, Any, bool]:
    from superpoint_lib.training import make_model

    keep_freed_memory()  # as train does
    net = make_model(config).to(DEVICE).train()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    return net, optimizer, uses_bfloat16(config.precision, DEVICE)
