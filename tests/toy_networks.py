"""Networks whose answers are known, in place of trained ones."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Blob(nn.Module):
    """A network whose heatmap is the picture, and whose descriptors are constant."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        cells = F.pixel_unshuffle(images.clamp(1e-6, 0.02), 8).log()
        dustbin = torch.log1p(-cells.exp().sum(1, keepdim=True).clamp(max=0.999))
        maps = torch.ones(len(images), 4, images.shape[2] // 8, images.shape[3] // 8)
        return {"logits": torch.cat([cells, dustbin], 1), "descriptors": maps / 2}


class Places(Blob):
    """The same; a descriptor (x, y, 1), normalised, says where it lies, as parts of the sides."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        rows, columns = images.shape[2] // 8, images.shape[3] // 8
        y, x = (torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns
        x, y = torch.meshgrid(x, y, indexing="xy")
        descriptors = F.normalize(torch.stack([x, y, torch.ones_like(x)])[None], dim=1)
        return super().forward(images) | {"descriptors": descriptors}
