"""Random homographies.

Sampling follows SuperPoint's homographic adaptation (DeTone et al. 2018, section 5.2) with the
published amplitudes as presets.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from superpoint_lib.geometry.homographies import homographies_from_corners


@dataclass(frozen=True)
class HomographyConfig:
    """What random homographies may do. Lengths are fractions of the picture's side.

    A patch of ``patch_ratio`` of the picture, centred, is bent, scaled, shifted and turned in this
    order; the homography shows the moved patch where the centred one was.

    Attributes:
        perspective: bend the patch: its left and right sides shift in x and change length in y.
        scale: change the size of the patch, and its proportions by ``stretch_amplitude``.
        rotation: turn by one of ``n_angles`` angles.
        translation: move the patch, uniformly over the room it has in the picture.
        perspective_amplitude_x: largest shift of a side in x.
        perspective_amplitude_y: largest shift of a corner in y.
        scale_amplitude: largest change of scale, a.
        scales: "linear" draws the factor from a normal distribution around 1, within 1 ± a; "log"
            draws its logarithm, within 1 / (1 + a) and 1 + a: twice is as likely as half;
            "log-even" draws the logarithm evenly, so that large changes are as likely as small.
        stretch_amplitude: largest change of the patch's proportions, b: by a factor within
            1 / (1 + b) and 1 + b, its logarithm normally distributed, the area kept. A plane seen
            at an angle.
        n_scales: scales tried, one of those that fit is taken.
        n_angles: angles tried, one of those that fit is taken.
        max_angle: radians.
        angles: "even" spaces the angles evenly over ± ``max_angle``; "normal" draws them from a
            normal distribution of half that deviation, cut there: small turns are most frequent.
        rotate_in: "unit-square" turns the patch in the unit square, as the published recipes do: on
            a picture that is not square this stretches it by up to its proportions. "pixels" turns
            without stretching.
        patch_ratio: side of the patch, in (0, 1].
        translation_overflow: how far beyond the picture a shift may go (with artifacts only).
        allow_artifacts: accept patches that leave the picture, so that parts of the warped picture
            are empty. If False, perspective is limited to the margin, and scales and angles are
            chosen among those that keep the patch inside.
    """

    perspective: bool = True
    scale: bool = True
    rotation: bool = True
    translation: bool = True
    perspective_amplitude_x: float = 0.2
    perspective_amplitude_y: float = 0.2
    scale_amplitude: float = 0.2
    scales: Literal["linear", "log", "log-even"] = "linear"
    stretch_amplitude: float = 0.0
    n_scales: int = 5
    n_angles: int = 25
    max_angle: float = math.pi / 2
    angles: Literal["even", "normal"] = "even"
    rotate_in: Literal["unit-square", "pixels"] = "unit-square"
    patch_ratio: float = 0.85
    translation_overflow: float = 0.0
    allow_artifacts: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.patch_ratio <= 1:
            raise ValueError(f"patch_ratio must be in (0, 1], got {self.patch_ratio}")
        if self.n_scales < 1 or self.n_angles < 1:
            raise ValueError("n_scales and n_angles must be at least 1")
        most = 1 if self.scales == "linear" else math.inf
        if not 0 <= self.scale_amplitude < most:
            raise ValueError(f"scale_amplitude must be in [0, {most}), got {self.scale_amplitude}")
        if self.stretch_amplitude < 0:
            raise ValueError(
                f"stretch_amplitude must not be negative, got {self.stretch_amplitude}"
            )
        if min(self.perspective_amplitude_x, self.perspective_amplitude_y) < 0:
            raise ValueError("perspective amplitudes must not be negative")


_ANY_SCALE = HomographyConfig(
    scale_amplitude=1.5,
    scales="log",
    stretch_amplitude=1.0,
    max_angle=math.pi,
    angles="normal",
    rotate_in="pixels",
)

HOMOGRAPHY_PRESETS: dict[str, HomographyConfig] = {
    "synthetic": HomographyConfig(patch_ratio=0.8, translation_overflow=0.05, max_angle=1.57),
    "coco": HomographyConfig(patch_ratio=0.85, max_angle=1.57),
    "adaptation": HomographyConfig(patch_ratio=0.85),
    "validation": HomographyConfig(
        patch_ratio=0.8,
        scale_amplitude=0.1,
        perspective_amplitude_x=0.05,
        perspective_amplitude_y=0.05,
        max_angle=3.14,
    ),
    "wide": HomographyConfig(scale_amplitude=0.5, max_angle=math.pi),
    "any-angle": HomographyConfig(
        scale_amplitude=0.6, max_angle=math.pi, angles="normal", rotate_in="pixels"
    ),
    "any-scale": _ANY_SCALE,
    "any-distance": replace(_ANY_SCALE, scale_amplitude=2.0, scales="log-even"),
    "identity": HomographyConfig(perspective=False, scale=False, rotation=False, translation=False),
}
"""Published parameter sets (synthetic shapes, COCO training, homographic adaptation, the COCO
patches used for validation, all after github.com/rpautrat/SuperPoint, with two differences: its
adaptation turns by up to 180 degrees where "adaptation", like pytorch-superpoint and
SuperPoint-Pytorch, turns by 90; its validation patches stay inside the picture), four of ours with
any rotation and a wider zoom ("wide"; "any-angle" without stretching, and small turns most often;
"any-scale", its zoom both ways alike and foreshortened besides; "any-distance", its zoom up to
three, large ones as often as small), and no warp at all ("identity")."""


def sample_homographies(
    n: int, height: int, width: int, config: HomographyConfig, rng: np.random.Generator
) -> np.ndarray:
    """Draw random homographies from picture pixels to warped-picture pixels.

    Convention: the centred patch of the *warped* picture shows the moved patch of the picture, so
    that what fills the warped picture comes from inside (the recipe of
    github.com/rpautrat/SuperPoint). By default the patch moves in the unit square, as there: on a
    picture that is not square a rotation then also stretches. Normal variates have a standard
    deviation of half the amplitude and are cut at the amplitude.

    Args:
        n: how many; 0 gives an empty array.
        height: of the picture and of the warped picture, in pixels.
        width: likewise.
        config: see ``HomographyConfig``.
        rng: the source of randomness.

    Returns:
        float64 (n, 3, 3), last entry 1.

    Derived in notebook 03.
    """
    patch = _centred_patch(config.patch_ratio)
    moved = np.repeat(patch[None], n, axis=0)
    if config.perspective:
        moved = moved + _perspective_shift(n, config, rng)
    if config.scale:
        moved = _scaled(moved, config, rng)
    if config.translation:
        moved = moved + _translation(moved, config, rng)
    if config.rotation:
        moved = _rotated(moved, width / height, config, rng)
    return homographies_from_corners(
        _unit_to_pixels(moved, height, width),
        _unit_to_pixels(np.broadcast_to(patch, moved.shape), height, width),
    )


def _centred_patch(ratio: float) -> np.ndarray:
    """Corners in the unit square: top left, bottom left, bottom right, top right."""
    low, high = (1 - ratio) / 2, (1 + ratio) / 2
    return np.array([[low, low], [low, high], [high, high], [high, low]])


def _unit_to_pixels(points: np.ndarray, height: int, width: int) -> np.ndarray:
    # The unit square is the picture with its pixels' full extent: 0 is half a pixel before pixel 0.
    return points * np.array([width, height]) - 0.5


def _truncated_normal(
    shape: tuple[int, ...], amplitude: float, rng: np.random.Generator
) -> np.ndarray:
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values * (amplitude / 2)


def _perspective_shift(n: int, config: HomographyConfig, rng: np.random.Generator) -> np.ndarray:
    limit = math.inf if config.allow_artifacts else (1 - config.patch_ratio) / 2
    left, right = _truncated_normal((2, n), min(config.perspective_amplitude_x, limit), rng)
    y = _truncated_normal((n,), min(config.perspective_amplitude_y, limit), rng)
    shift = np.empty((n, 4, 2))
    shift[:, :2, 0], shift[:, 2:, 0] = left[:, None], right[:, None]
    shift[:, ::2, 1], shift[:, 1::2, 1] = y[:, None], -y[:, None]
    return shift


def _inside(patches: np.ndarray) -> np.ndarray:
    return np.asarray(((patches >= 0) & (patches <= 1)).all((-2, -1)))


def _pick(
    candidates: np.ndarray, fallback: np.ndarray, anywhere: bool, rng: np.random.Generator
) -> np.ndarray:
    """Take one patch per row, evenly among those inside; rows without any take their fallback.

    Args:
        candidates: (n, m, 4, 2).
        fallback: (n, 4, 2).
        anywhere: all count as inside.
        rng: source of the lots.
    """
    rows = np.arange(len(candidates))
    lots = rng.random(candidates.shape[:2])
    if anywhere:
        return np.asarray(candidates[rows, lots.argmax(1)])
    allowed = _inside(candidates)
    chosen = candidates[rows, np.where(allowed, lots, -1.0).argmax(1)]
    possible = np.asarray(allowed.any(axis=1))[:, None, None]
    return np.where(possible, chosen, fallback)


def _scaled(moved: np.ndarray, config: HomographyConfig, rng: np.random.Generator) -> np.ndarray:
    shape = (len(moved), config.n_scales)
    if config.scales == "log":
        scales = (1 + config.scale_amplitude) ** _truncated_normal(shape, 1, rng)
    elif config.scales == "log-even":
        scales = (1 + config.scale_amplitude) ** rng.uniform(-1, 1, shape)
    else:
        scales = 1 + _truncated_normal(shape, config.scale_amplitude, rng)
    factors = scales[..., None, None]
    if config.stretch_amplitude:
        wider = (1 + config.stretch_amplitude) ** (_truncated_normal(shape, 1, rng) / 2)
        factors = factors * np.stack((wider, 1 / wider), -1)[:, :, None]
    centre = moved.mean(1, keepdims=True)
    candidates = centre[:, None] + (moved - centre)[:, None] * factors
    return _pick(candidates, moved, config.allow_artifacts, rng)


def _translation(
    moved: np.ndarray, config: HomographyConfig, rng: np.random.Generator
) -> np.ndarray:
    overflow = config.translation_overflow if config.allow_artifacts else 0.0
    low, high = -moved.min(1) - overflow, 1 - moved.max(1) + overflow
    return (low + (high - low) * rng.random(low.shape))[:, None]


def _turns(angles: np.ndarray) -> np.ndarray:
    """Matrices (..., 2, 2) that turn row vectors by angles (...)."""
    cos, sin = np.cos(angles), np.sin(angles)
    return np.moveaxis(np.array([[cos, sin], [-sin, cos]]), (0, 1), (-2, -1))


@cache
def _even_turns(max_angle: float, n_angles: int) -> np.ndarray:
    return _turns(np.linspace(-max_angle, max_angle, n_angles)[None])


def _rotated(
    moved: np.ndarray, aspect: float, config: HomographyConfig, rng: np.random.Generator
) -> np.ndarray:
    if config.angles == "normal":
        turns = _turns(_truncated_normal((len(moved), config.n_angles), config.max_angle, rng))
    else:
        turns = _even_turns(config.max_angle, config.n_angles)
    # A turn in pixels is one in a rectangle of the picture's proportions.
    shape = np.array([aspect if config.rotate_in == "pixels" else 1.0, 1.0])
    centre = moved.mean(1, keepdims=True)
    turned = ((moved - centre) * shape)[:, None] @ turns / shape
    candidates = centre[:, None] + turned
    return _pick(candidates, moved, config.allow_artifacts, rng)
