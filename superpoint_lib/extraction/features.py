"""Features: keypoints of an image, with scores and descriptors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """Keypoints of one image, highest score first.

    Attributes:
        keypoints: (N, 2) float, (x, y) in pixels, pixel centres at integers.
        keypoint_scores: (N,) float; probabilities for our networks.
        descriptors: (N, D) float of unit length, or None from a detector alone.
        image_size: (H, W) of the image.
        computed_in: data type the network computed in, such as "bfloat16" or "float32"; None where
            no network did. The numbers themselves are float32 or better.
    """

    keypoints: Tensor
    keypoint_scores: Tensor
    descriptors: Tensor | None
    image_size: tuple[int, int]
    computed_in: str | None = None

    def __len__(self) -> int:
        return len(self.keypoints)

    def numpy(self) -> FeatureArrays:
        """Return the same fields as numpy arrays on the CPU."""
        descriptors = None if self.descriptors is None else to_array(self.descriptors)
        return FeatureArrays(
            to_array(self.keypoints),
            to_array(self.keypoint_scores),
            descriptors,
            self.image_size,
            self.computed_in,
        )


@dataclass(frozen=True, eq=False)
class FeatureArrays:
    """``Features`` as numpy arrays; the attributes have the same names and shapes."""

    keypoints: NDArray[Any]
    keypoint_scores: NDArray[Any]
    descriptors: NDArray[Any] | None
    image_size: tuple[int, int]
    computed_in: str | None = None

    def __len__(self) -> int:
        return len(self.keypoints)


class HasDescriptors(Protocol):
    """Anything with ``descriptors``: (N, D) tensor or array of unit length."""

    @property
    def descriptors(self) -> Any:
        """(N, D) descriptors, N may be 0."""


def to_array(tensor: Tensor) -> NDArray[Any]:
    """Return a numpy array on the CPU, of whatever device and history the tensor is."""
    return tensor.detach().cpu().numpy()
