"""Augmentation: random gray-level changes and random homographies of a labelled picture.

Pictures are float32 (H, W) in [0, 1]. The photometric effects and their published strengths are
those of the public SuperPoint trainings; strengths are given in gray levels of 0..255, as there.
Shades differ, as the bundled weights were trained with them: but for "synthetic" they are four
times as large (`PhotometricConfig.shade_size`), and all are blurred more widely, by a twentieth
("synthetic") to a quarter: OpenCV's rule gives the deviation at the resolution they are made at.
Shown in notebook 01.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from superpoint_lib.geometry import (
    HomographyConfig,
    on_pixels,
    sample_homographies,
    turn_and_zoom,
    warp_points,
    warp_with_mask,
)

Image = NDArray[np.float32]
Warp = HomographyConfig | NDArray[np.float64]
"""How a homography is drawn, or one (3, 3)."""

#: The shade is made at the resolution where its kernel is about so many pixels wide.
SHADE_DETAIL = 12

# Samples along the side of a pixel where a picture is made smaller: more cost more than they show.
_MOST_SAMPLES = 4


@dataclass(frozen=True)
class PhotometricConfig:
    """Strength of each photometric effect; each has a switch of its own.

    Attributes:
        brightness: switch. brightness_change: the picture gets up to this many gray levels (of
            255) darker or lighter.
        contrast: switch. contrast_range: factor on the difference from the mean.
        noise: switch. noise_sigma: range of the standard deviation of additive Gaussian noise, in
            gray levels.
        speckle: switch. speckle_probability: range of the chance of a pixel to turn black, and
            again of the chance to turn white (salt and pepper).
        shade: switch. shade_ellipses: number of blurred ellipses. shade_size: largest half axis, of
            the picture's smaller side; published is 0.25. shade_transparency: range of the strength
            at the heart of the shade, negative lightens. shade_kernel: range of the blur kernel's
            side, in pixels.
        motion_blur: switch. motion_kernel: largest side of the kernel, in pixels; the side is
            drawn among the odd numbers up to it, 1 changes nothing.
        defocus: switch. defocus_sigma: range of the deviation of a Gaussian blur, in pixels.
    """

    brightness: bool = True
    brightness_change: float = 50.0
    contrast: bool = True
    contrast_range: tuple[float, float] = (0.5, 1.5)
    noise: bool = True
    noise_sigma: tuple[float, float] = (0.0, 10.0)
    speckle: bool = True
    speckle_probability: tuple[float, float] = (0.0, 0.0035)
    shade: bool = True
    shade_ellipses: int = 20
    shade_size: float = 1.0
    shade_transparency: tuple[float, float] = (-0.5, 0.5)
    shade_kernel: tuple[int, int] = (100, 150)
    motion_blur: bool = True
    motion_kernel: int = 3
    defocus: bool = False
    defocus_sigma: tuple[float, float] = (0.0, 1.5)


#: How gray levels change, or several ways, one of which is drawn for each picture.
Photometric = PhotometricConfig | Sequence[PhotometricConfig]

PHOTOMETRIC_PRESETS: dict[str, PhotometricConfig] = {
    "none": PhotometricConfig(
        brightness=False,
        contrast=False,
        noise=False,
        speckle=False,
        shade=False,
        motion_blur=False,
    ),
    "synthetic": PhotometricConfig(
        brightness_change=75.0,
        contrast_range=(0.3, 1.8),
        noise_sigma=(0.0, 15.0),
        shade_size=0.25,
        shade_transparency=(-0.5, 0.8),
        shade_kernel=(50, 100),
        motion_kernel=7,
    ),
    "coco_magicpoint": PhotometricConfig(contrast_range=(0.3, 1.5)),
    "coco_superpoint": PhotometricConfig(),
    "strong": PhotometricConfig(
        contrast_range=(0.3, 1.5), noise_sigma=(0.0, 15.0), motion_kernel=7, defocus=True
    ),
    "harsh": PhotometricConfig(
        contrast_range=(0.3, 1.5),
        noise_sigma=(0.0, 30.0),
        motion_kernel=9,
        defocus=True,
        defocus_sigma=(0.0, 3.0),
    ),
}


def augment_photometric(image: Image, config: Photometric, rng: np.random.Generator) -> Image:
    """Change the gray levels of a picture at random.

    Args:
        image: float32 (H, W) in [0, 1]; left as it is.
        config: which effects and how strong; of several, one is drawn.
        rng: source of every random number used.

    Returns:
        A new float32 (H, W), clipped to [0, 1] after every effect.

    Convention: every effect that is switched on is applied once, in random order.

    Shown in notebook 01.
    """
    if not isinstance(config, PhotometricConfig):
        config = config[int(rng.integers(len(config)))] if len(config) > 1 else config[0]
    effects = _effects(config)
    image = np.array(image, np.float32)
    for i in rng.permutation(len(effects)):
        image = effects[i](image, rng)
        np.clip(image, 0, 1, out=image)
    return image


def _effects(config: PhotometricConfig) -> list[Callable[[Image, np.random.Generator], Image]]:
    choices: list[tuple[bool, Callable[[Image, np.random.Generator], Image]]] = [
        (config.brightness, lambda im, rng: change_brightness(im, config.brightness_change, rng)),
        (config.contrast, lambda im, rng: change_contrast(im, config.contrast_range, rng)),
        (config.noise, lambda im, rng: add_gaussian_noise(im, config.noise_sigma, rng)),
        (config.speckle, lambda im, rng: add_speckle_noise(im, config.speckle_probability, rng)),
        (
            config.shade,
            lambda im, rng: add_shade(
                im,
                config.shade_ellipses,
                config.shade_size,
                config.shade_transparency,
                config.shade_kernel,
                rng,
            ),
        ),
        (config.motion_blur, lambda im, rng: add_motion_blur(im, config.motion_kernel, rng)),
        (config.defocus, lambda im, rng: add_defocus(im, config.defocus_sigma, rng)),
    ]
    return [effect for wanted, effect in choices if wanted]


def change_brightness(image: Image, largest: float, rng: np.random.Generator) -> Image:
    """Add one number, uniform in -largest..largest gray levels of 255, to every pixel."""
    return image + np.float32(rng.uniform(-largest, largest) / 255)


def change_contrast(image: Image, limits: tuple[float, float], rng: np.random.Generator) -> Image:
    """Scale the differences from the picture's mean by one factor, uniform in `limits`."""
    mean = image.mean()
    return (image - mean) * np.float32(rng.uniform(*limits)) + mean


def add_gaussian_noise(image: Image, sigma: tuple[float, float], rng: np.random.Generator) -> Image:
    """Add Gaussian noise; its deviation in gray levels of 255 is uniform in `sigma`.

    Sets the seed of OpenCV's global generator.
    """
    noise: Image = np.empty(image.shape, np.float32)
    # OpenCV's generator takes a quarter of the time of numpy's; `rng` decides what it gives. The
    # seed has a sign, since the first number is made from it.
    cv2.setRNGSeed(int(rng.integers(-(1 << 31), 1 << 31)))
    cv2.randn(noise, np.zeros(1), np.array([rng.uniform(*sigma) / 255]))
    noise += image
    return noise


def add_speckle_noise(
    image: Image, probability: tuple[float, float], rng: np.random.Generator
) -> Image:
    """Turn pixels black, and as many white, each with a chance uniform in `probability`."""
    image = image.copy()
    chance = rng.uniform(*probability)
    for value in (0.0, 1.0):
        count = rng.binomial(image.size, chance)
        image.flat[rng.integers(0, image.size, count)] = value
    return image


def add_shade(
    image: Image,
    ellipses: int,
    size: float,
    transparency: tuple[float, float],
    kernel: tuple[int, int],
    rng: np.random.Generator,
) -> Image:
    """Darken or lighten soft patches: I (1 - t m), m the blurred mask of random ellipses.

    The mask is drawn and blurred at a low resolution and enlarged: after a blur that wide nothing
    fine is left in it.

    Args:
        image: float32 (H, W).
        ellipses: how many.
        size: their largest half axis, of the picture's smaller side; the smallest is a fifth of it.
        transparency: range of t.
        kernel: range of the side of the Gaussian kernel that blurs the mask, in pixels.
        rng: source of every random number used.
    """
    height, width = image.shape
    side = rng.uniform(*kernel)
    coarsest = min(1.0, size) * min(height, width) / 16  # ellipses keep their shape
    factor = max(1.0, min(side / SHADE_DETAIL, coarsest))
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    mask = np.zeros((rows, columns), np.uint8)
    axes = np.maximum(rng.random((ellipses, 2)), 0.2) * size * min(rows, columns)
    largest = axes.max(axis=1, keepdims=True)
    room = np.maximum(np.array((columns, rows)) - 2 * largest, 0)
    centers = largest + rng.random((ellipses, 2)) * room
    angles = rng.uniform(0, 90, ellipses)
    for box in zip(centers.tolist(), (2 * axes).tolist(), angles.tolist(), strict=True):
        cv2.ellipse(mask, box, 255, -1)
    odd = 2 * round(side / factor / 2) + 1
    soft = cv2.GaussianBlur(mask.astype(np.float32), (odd, odd), 0)
    wide = cv2.resize(soft, (width, height), interpolation=cv2.INTER_LINEAR)
    shade: Image = np.asarray(wide, np.float32)
    shade *= np.float32(rng.uniform(*transparency) / -255)
    shade += 1
    shade *= image
    return shade


def add_motion_blur(image: Image, largest: int, rng: np.random.Generator) -> Image:
    """Blur along a random direction with a line that fades towards its ends.

    Args:
        image: float32 (H, W).
        largest: the kernel's side is drawn among the odd numbers 1..largest.
        rng: source of every random number used.

    Convention: the kernel sums to 1 and is symmetric, so that corners stay where they are.
    """
    side = 1 + 2 * int(rng.integers(0, (largest + 1) // 2))
    angle = rng.uniform(0, np.pi)
    if side == 1:
        return image
    blurred = cv2.filter2D(image, -1, motion_kernel(side, angle))
    return np.asarray(blurred, np.float32)


def add_defocus(image: Image, sigma: tuple[float, float], rng: np.random.Generator) -> Image:
    """Blur evenly in all directions; the Gaussian's deviation in pixels is uniform in `sigma`."""
    drawn = rng.uniform(*sigma)
    if drawn < 0.1:  # Less than a pixel's own width: nothing would change.
        return image
    return np.asarray(cv2.GaussianBlur(image, (0, 0), drawn), np.float32)


def motion_kernel(side: int, angle: float) -> Image:
    """A (side, side) blur kernel along `angle` (radians), one pixel thick, summing to 1."""
    steps = np.arange(side) - side // 2
    x, y = steps[None, :], steps[:, None]
    along = x * np.cos(angle) + y * np.sin(angle)
    across = y * np.cos(angle) - x * np.sin(angle)
    weight = np.maximum(0, 1 - np.abs(across)) * np.exp(-8 * (along / side) ** 2)
    return (weight / weight.sum()).astype(np.float32)


def draw_homography(
    homography: Warp, height: int, width: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """One random homography (3, 3) of a picture; the given one, if it is one already."""
    if isinstance(homography, HomographyConfig):
        return sample_homographies(1, height, width, homography, rng)[0]
    return homography


def augment_homographic(
    image: Image,
    keypoints: NDArray[np.floating],
    homography: Warp,
    rng: np.random.Generator,
    border: int = 3,
    window: NDArray[np.float64] | None = None,
    size: tuple[int, int] | None = None,
) -> tuple[Image, NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Look at a labelled picture through one random homography.

    Args:
        image: float32 (H, W) in [0, 1], or uint8; the view has the same type.
        keypoints: (N, 2) in its pixels.
        homography: how it is drawn, or itself, (3, 3).
        rng: source of every random number used.
        border: pixels within this distance of where the source picture ends are not valid.
        window: (3, 3), from pixels of ``image`` to those of a view of it, which is what the
            homography turns and bends; None for the picture itself. Its warp shows the picture's
            own detail, and what lies beyond the view; where it is made smaller, pixels are means.
        size: (height, width) of the view and of the result; that of ``image`` if None.

    Returns:
        image float32 (height, width), zero where the source has nothing; keypoints float32 (M, 2),
        those on its pixels, moved to 0..width-1, 0..height-1 where they lie in the outer half of
        one; valid bool (height, width); H float64 (3, 3).

    Convention: H maps pixels of the view, or of the given picture, to pixels of the returned one.

    Derived in notebook 03.
    """
    height, width = image.shape if size is None else size
    H = draw_homography(homography, height, width, rng)
    if window is None:
        to_warped, samples = H, 1
    else:
        to_warped = H @ window
        zoom = turn_and_zoom(H, height, width)[1] * turn_and_zoom(window, *image.shape)[1]
        samples = min(math.ceil(1 / zoom), _MOST_SAMPLES)
    warped, valid = warp_with_mask(image, to_warped, border, (height, width), samples)
    points = warp_points(np.asarray(keypoints, np.float64).reshape(-1, 2), to_warped)
    kept = np.clip(points[on_pixels(points, height, width)], 0, (width - 1, height - 1)).astype(
        np.float32
    )
    return warped, kept, valid, H
