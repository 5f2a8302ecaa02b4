"""Samples of photographs, and drawn shapes among them."""

from __future__ import annotations

import numpy as np

from superpoint_lib.datasets.drawn import ShapesDataset
from superpoint_lib.datasets.photos import PhotoDataset
from superpoint_lib.datasets.samples import Labelled, Samples, Whole


class MixedDataset(Samples):
    """Photographs with pseudo-labels, and drawn shapes among them.

    What a network learns from photographs alone, it forgets of drawn corners. Every ``every``-th
    sample is drawn here, its keypoints certain, changed in gray levels as the photographs are; the
    others are those of ``photos``. The samples have one more entry, ``"described"`` (), bool: false
    for drawn ones, whose flat parts no descriptor can tell apart.

    Args:
        photos: the photographs; what they say of views, gray levels and borders counts for all.
        shapes: of the same size.
        every: at least 1.

    Attributes:
        skipped: see ``PhotoDataset``.

    Raises:
        ValueError: for shapes of another size, and ``every`` below 1.
    """

    def __init__(self, photos: PhotoDataset, shapes: ShapesDataset, every: int) -> None:
        sizes = (photos.height, photos.width), (shapes.shapes.height, shapes.shapes.width)
        if sizes[0] != sizes[1]:
            raise ValueError(f"photographs of {sizes[0]} and shapes of {sizes[1]} do not mix")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.photos = photos
        self.shapes = shapes
        self.every = every
        self.photometric = photos.photometric
        self.views = photos.views
        self.border = photos.border
        self.skipped = photos.skipped

    def labelled(self, index: int) -> Labelled:
        """Sample ``index`` before it is augmented; drawn pictures are uint8 like photographs."""
        if index % self.every:
            # Numbered on their own, so that they see every picture and take every warp in turn.
            return self.photos.labelled(index - index // self.every - 1)._replace(described=True)
        drawn = self.shapes.labelled(index // self.every)
        certain = np.ones(len(drawn.keypoints), np.float32) if self.photos.targets else None
        image = (drawn.image * 255).round().astype(np.uint8)
        whole = Whole(image, drawn.keypoints, certain, np.eye(3))
        return drawn._replace(
            image=image,
            probabilities=certain,
            described=False,
            whole=whole if self.photos.whole_picture else None,
        )
