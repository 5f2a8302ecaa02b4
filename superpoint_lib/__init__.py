"""SuperPoint: keypoints and descriptors, taught step by step and ready to use.

    from superpoint_lib import SuperPoint, extract, match

    model = SuperPoint.from_pretrained("superpoint")
    features0, features1 = extract(model, image0), extract(model, image1)
    matches, similarity = match(features0, features1)

Conventions, for every module:

* **Image**: float32 (B, 1, H, W) in [0, 1]. ``extract`` also takes uint8, single images and RGB
  (not BGR), numpy or torch, of any height and width from 16 px up: sizes that are not multiples of
  8 are padded by replication on the right and bottom, and nothing is detected there.
* **Keypoints**: float (N, 2) as (x, y) in pixels, pixel centres at integers, as in OpenCV.
  ``keypoint_scores`` (N,), highest first; ``descriptors`` (N, D) of unit length.
  Matches are (M, 2) index pairs; -1 where an array with one entry a keypoint says unmatched.
* **Non-maximum suppression** of radius r: greedy by score; a point falls if a kept one lies within
  Chebyshev distance r; ties go to the lower row-major index.
* **Homography** ``H_0to1`` (..., 3, 3): maps pixels of image 0 to pixels of image 1, as in OpenCV.
  Resizing by s maps x to s (x + 0.5) - 0.5; one function resizes or crops an image together with
  its homography.
* **Cells** are 8x8 pixels; pixel (dx, dy) of a cell has class dy * 8 + dx, and class 64, the
  dustbin, means no keypoint. The descriptor of cell i stands at pixel 8 i + 3.5. Descriptor maps
  leave ``forward`` with unit length in every cell, are sampled bilinearly with the border repeated,
  and are scaled to unit length again.
* **Losses** are means over the valid cells of an image, then over images; other normalisations are
  named presets. Positive pairs are cell centres within 7.5 px of each other.
* **Random numbers** come from generators handed in; a seed fixes a run on a given machine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from superpoint_lib.extraction import Features, extract, match
    from superpoint_lib.model import MagicPoint, SuperPoint

__version__ = "0.1.0"

__all__ = ["Features", "MagicPoint", "SuperPoint", "__version__", "extract", "match"]

_HOMES = {
    "Features": "extraction",
    "MagicPoint": "model",
    "SuperPoint": "model",
    "extract": "extraction",
    "match": "extraction",
}


def __getattr__(name: str) -> Any:
    """Import a name of the public face at first use: the command line's help needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
