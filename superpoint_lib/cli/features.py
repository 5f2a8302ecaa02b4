"""What ``superpoint extract`` and ``superpoint match`` have in common: how keypoints are found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from superpoint_lib.cli.shared import all_positive, load_model, option_name

if TYPE_CHECKING:
    import numpy as np

    from superpoint_lib.extraction import Features


@dataclass(frozen=True)
class ExtractorOptions:
    """How keypoints are found."""

    weights: str = "superpoint"
    """A bundled name or the path of a weight file."""
    max_keypoints: int = 1000
    """Most keypoints for an image, best first."""
    threshold: float = 0.005
    """Least score of a keypoint, in [0, 1]."""
    nms_radius: int = 4
    """Radius of non-maximum suppression, in pixels."""
    subpixel: bool = True
    """Refine keypoints by a soft-argmax."""
    device: str = "auto"
    """cpu, cuda, mps and so on; auto: the CUDA GPU where there is one, else the processor."""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """What the network computes in; auto: bfloat16 where that is faster, else float32."""
    longest: int = 1600
    """Reduce images whose longer side has more pixels to that many: time and memory grow with the
    area. What is written stays in pixels of the file, turned upright as its orientation tag says.
    0: never."""
    scales: tuple[float, ...] = (1.0,)
    """Look at each image at these scales and keep what they agree on: 1 1.5 places keypoints
    better, in three times the time."""
    turned: bool = False
    """Look at each image turned by each quarter too: keypoints better placed, in four times the
    time."""
    pyramid: tuple[float, ...] = ()
    """Find keypoints in copies of each image scaled by these factors, too: 0.7 0.5 matches images
    of which one was taken up to two and a half times as near, in less than twice the time."""

    def __post_init__(self) -> None:
        # tyro makes a wrong usage of it; later, every single picture would seem to be at fault.
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"--threshold must be in 0..1, got {self.threshold}")
        for key in ("max_keypoints", "nms_radius", "longest"):
            if getattr(self, key) < 0:
                raise ValueError(f"{option_name(key)} must be 0 or more, got {getattr(self, key)}")
        if not self.scales:
            raise ValueError("--scales needs at least one scale, such as 1")
        for key in ("scales", "pyramid"):
            values = getattr(self, key)
            if not all_positive(values):
                told = " ".join(f"{value:g}" for value in values)
                raise ValueError(f"{option_name(key)} must be finite and above 0, got {told}")


def reduce_image(image: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W) with a longer side of at most ``longest`` pixels, unless that is 0, and the
    transform (3, 3) from its pixels to those it had."""
    import numpy as np

    from superpoint_lib.extraction import MIN_IMAGE_SIZE
    from superpoint_lib.geometry import invert_homographies, resize_short_side

    longer, shorter = max(image.shape), min(image.shape)
    wanted = max(MIN_IMAGE_SIZE, round(longest * shorter / longer))
    if longest == 0 or wanted >= shorter:
        return image, np.eye(3)
    smaller, transform = resize_short_side(image, wanted)
    return smaller, invert_homographies(transform)


def size_text(image: np.ndarray) -> str:
    """An image's width x height."""
    return f"{image.shape[1]} x {image.shape[0]}"


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's name before a message that does not have it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def feature_finder(options: ExtractorOptions) -> Callable[[np.ndarray], Features]:
    """Load the model once; the result takes an image (H, W) to its features."""
    from superpoint_lib.extraction import Features
    from superpoint_lib.multiscale import extract_multiscale

    model = load_model(options.weights, options.device)

    def find(image: np.ndarray) -> Features:
        features = extract_multiscale(
            model,
            image,
            options.scales,
            max_keypoints=options.max_keypoints,
            threshold=options.threshold,
            nms_radius=options.nms_radius,
            subpixel=options.subpixel,
            precision=options.precision,
            turned=options.turned,
            pyramid=options.pyramid,
        )
        assert isinstance(features, Features)  # one image gives one, a batch a list
        return features

    return find
