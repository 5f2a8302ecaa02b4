"""Training batches made on the device that trains: what a GPU does while the CPU reads pictures.

``datasets.make_views`` makes one sample at a time with numpy and OpenCV. A GPU is quicker than the
processes that would have to keep up with it, so there the loader only reads and crops
(``RawSamples``), and the rest happens to whole batches: homographies, gray levels, labels, valid
cells. The effects and their strengths are those of ``augmentation``; the random numbers are others,
and the order of the effects is drawn once for a batch. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from superpoint_lib.augmentation import (
    SHADE_DETAIL,
    Photometric,
    PhotometricConfig,
    augment_homographic,
    draw_homography,
)
from superpoint_lib.datasets import Sample, Samples
from superpoint_lib.geometry import (
    on_pixels,
    warp_batch_with_masks,
    warp_points,
)
from superpoint_lib.geometry.cells import CELL_SIZE, DUSTBIN
from superpoint_lib.losses import cell_validity


class RawSamples(Dataset[Sample]):
    """The samples of a dataset before they are warped and changed.

    ``RawSamples(dataset)[i]`` is ``{"image" (H, W) uint8 or float32, "keypoints" (N, 2) float32,
    "H_0to1" (3, 3) float64}``, with "probabilities" (N,) where the dataset has targets, and
    "described" () where it mixes photographs and shapes. Where warps are made from the whole
    picture, which has a size of its own, they are made here: "image1" (H, W), "valid1" (H, W),
    "keypoints1" (M, 2), "probabilities1" (M,).
    """

    def __init__(self, dataset: Samples) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Sample:
        one = self.dataset.labelled(index)
        height, width = one.image.shape
        sample = {"image": one.image, "keypoints": one.keypoints}
        if one.probabilities is not None:
            sample["probabilities"] = one.probabilities
        if one.described is not None:
            sample["described"] = np.array(one.described)
        if one.whole is None:
            H = draw_homography(one.homography, height, width, one.rng)
        else:
            image, points, probabilities, window = one.whole
            warped, _, valid, H = augment_homographic(
                image, points, one.homography, one.rng, self.dataset.border, window, (height, width)
            )
            moved = warp_points(points.astype(np.float64), H @ window).astype(np.float32)
            sample |= {"image1": warped, "valid1": valid, "keypoints1": moved}
            if probabilities is not None:
                sample["probabilities1"] = probabilities
        sample["H_0to1"] = H
        return {name: torch.from_numpy(np.asarray(a, order="C")) for name, a in sample.items()}


def collate_raw(samples: Sequence[Sample]) -> Sample:
    """Stack raw samples; where there are fewer keypoints than in others, they are NaN."""
    return {
        name: torch.nn.utils.rnn.pad_sequence(
            [sample[name] for sample in samples], batch_first=True, padding_value=math.nan
        )
        if name.startswith(("keypoints", "probabilities"))
        else torch.stack([sample[name] for sample in samples])
        for name in samples[0]
    }


class Draws:
    """Random numbers for a batch, drawn where they are used.

    Args:
        device: of the batch.
        seeds: non-negative; the same ones give the same numbers on the same kind of device.
    """

    def __init__(self, device: torch.device, *seeds: int) -> None:
        self.host = np.random.default_rng(seeds)
        self.device = device
        self.generator = torch.Generator(device)
        self.generator.manual_seed(int(self.host.integers(1 << 62)))

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Float32 in [low, high)."""
        numbers = torch.rand(shape, device=self.device, generator=self.generator)
        return low + (high - low) * numbers

    def normal(self, *shape: int) -> Tensor:
        """Float32 of mean 0 and deviation 1."""
        return torch.randn(shape, device=self.device, generator=self.generator)


def make_batch(
    raw: Sample, views: int, photometric: Photometric, draws: Draws, border: int = 3
) -> Sample:
    """Turn raw samples into a batch of one or two augmented views; see ``datasets.make_views``.

    Args:
        raw: of ``collate_raw``, on the device.
        views: 1 or 2.
        photometric: what happens to the gray levels.
        draws: source of every random number.
        border: pixels by which the valid area of a warped view is eroded.

    Returns:
        What collated samples of ``make_views`` are, on the same device.
    """
    image = _as_float(raw["image"])
    H, keypoints = raw["H_0to1"], raw["keypoints"].double()
    probabilities = raw.get("probabilities")
    height, width = image.shape[-2:]
    if "image1" in raw:
        warped, valid, moved = _as_float(raw["image1"]), raw["valid1"], raw["keypoints1"].double()
        moved_probabilities = raw.get("probabilities1")
    else:
        warped, valid = warp_batch_with_masks(image, H, border)
        moved, moved_probabilities = warp_points(keypoints, H), probabilities
    # The frame of a picture that was not warped is no artefact: nothing is eroded.
    still = (H - torch.eye(3, dtype=H.dtype, device=H.device)).abs().amax((1, 2)) < 1e-8
    valid = valid | still[:, None, None]

    inside = _framed(moved, height, width)

    def view(
        suffix: str,
        image: Tensor,
        valid: Tensor,
        kept: Tensor,
        points: Tensor,
        probabilities: Tensor | None,
    ) -> Sample:
        labels, offsets = label_cells(kept, height, width, draws)
        sample = {
            "image": image,
            "labels": labels,
            "offsets": offsets,
            "valid": cell_validity(valid),
        }
        if probabilities is not None:
            sample["targets"] = target_cells(points, probabilities, height, width)
        return {name + suffix: value for name, value in sample.items()}

    batch = {"described": raw["described"]} if "described" in raw else {}
    if views == 1:
        warped = augment_batch(warped, photometric, draws)
        return batch | view("", warped, valid, inside, moved, moved_probabilities)
    # Both at once: a GPU computes sooner than it is told what to compute.
    image, warped = augment_batch(torch.cat((image, warped)), photometric, draws).chunk(2)
    batch |= view("0", image, torch.ones_like(valid), keypoints, keypoints, probabilities)
    batch |= view("1", warped, valid, inside, moved, moved_probabilities)
    return batch | {"H_0to1": H.float()}


def _as_float(images: Tensor) -> Tensor:
    """Images (B, 1, H, W) in [0, 1] of images (B, H, W), also of bytes."""
    return (images / 255.0 if images.dtype == torch.uint8 else images)[:, None]


def _framed(points: Tensor, height: int, width: int) -> Tensor:
    """Points (B, N, 2) on the pixels of the frame; the others become NaN."""
    x, y = points.unbind(-1)
    framed = torch.stack((x.clamp(0, width - 1), y.clamp(0, height - 1)), -1)
    return torch.where(on_pixels(points, height, width)[..., None], framed, math.nan)


# ------------------------------------------------------------------------------- targets


def label_cells(keypoints: Tensor, height: int, width: int, draws: Draws) -> tuple[Tensor, Tensor]:
    """Do ``losses.keypoints_to_labels`` and ``losses.label_offsets`` for a batch.

    Args:
        keypoints: (B, N, 2) in pixels; NaN for none.
        height, width: of the images, multiples of 8.
        draws: the winner, each keypoint with equal chance, where a cell holds several.

    Returns:
        labels int64 (B, Hc, Wc) and offsets float32 (B, 2, Hc, Wc).
    """
    rows, columns = height // CELL_SIZE, width // CELL_SIZE
    pixels = (keypoints + 0.5).floor()
    x, y = pixels.nan_to_num(-1.0, -1.0, -1.0).clamp(-1, max(height, width)).long().unbind(-1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    cell = torch.where(inside, (y // CELL_SIZE) * columns + x // CELL_SIZE, 0)
    lots = draws.uniform(0.0, 1.0, *cell.shape).masked_fill(~inside, -1.0)
    best = lots.new_full((len(cell), rows * columns), -1.0)
    best = best.scatter_reduce(1, cell, lots, "amax")
    won = inside & (lots == best.gather(1, cell))

    pixel = torch.where(won, (y % CELL_SIZE) * CELL_SIZE + x % CELL_SIZE, -1)
    found = pixel.new_full(best.shape, -1).scatter_reduce(1, cell, pixel, "amax")
    labels = torch.where(found < 0, DUSTBIN, found).view(-1, rows, columns)
    won &= pixel == found.gather(1, cell)  # two may have drawn the same lot
    shift = torch.where(won[..., None], keypoints - pixels, 0.0).float()
    offsets = shift.new_zeros((len(cell), 2, rows * columns))
    offsets = offsets.scatter_add(2, cell[:, None].expand(-1, 2, -1), shift.transpose(1, 2))
    return labels, offsets.view(-1, 2, rows, columns)


def target_cells(keypoints: Tensor, probabilities: Tensor, height: int, width: int) -> Tensor:
    """Do ``losses.keypoints_to_targets`` for a batch.

    Args:
        keypoints: (B, N, 2) in pixels; NaN for none.
        probabilities: (B, N) in [0, 1].
        height, width: of the images, multiples of 8.

    Returns:
        float32 (B, 65, Hc, Wc).
    """
    x, y = keypoints.unbind(-1)
    near = (x > -1) & (x < width) & (y > -1) & (y < height)
    points = torch.where(near[..., None], keypoints, 0.0)
    mass = torch.where(near, probabilities, 0.0)
    first = points.floor()
    part = points - first
    heatmap = torch.zeros((len(points), height * width), device=points.device)
    for dy, dx in np.ndindex(2, 2):
        x, y = (first[..., 0] + dx).long(), (first[..., 1] + dy).long()
        weight = (part[..., 0] if dx else 1 - part[..., 0]) * (
            part[..., 1] if dy else 1 - part[..., 1]
        )
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        flat = torch.where(inside, y * width + x, 0)
        heatmap = heatmap.scatter_add(1, flat, torch.where(inside, mass * weight, 0.0).float())
    cells = F.pixel_unshuffle(heatmap.view(-1, 1, height, width), CELL_SIZE)
    cells = cells / cells.sum(1, keepdim=True).clamp_min(1)
    return torch.cat((cells, 1 - cells.sum(1, keepdim=True)), dim=1)


# --------------------------------------------------------------------------- gray levels


def augment_batch(images: Tensor, config: Photometric, draws: Draws) -> Tensor:
    """Do ``augmentation.augment_photometric`` for a batch: other numbers for each image.

    Args:
        images: (B, 1, H, W) in [0, 1]; left as they are.
        config: which effects and how strong; of several, each for as many of the images.
        draws: source of every random number.

    Returns:
        (B, 1, H, W), clipped to [0, 1] after every effect.
    """
    if not isinstance(config, PhotometricConfig):
        # Which ones is drawn on the host, so that nothing waits for the device.
        ways = np.array_split(draws.host.permutation(len(images)), len(config))
        draws.host.shuffle(ways)  # the first are larger where the division leaves a rest
        changed = torch.empty_like(images)
        for one in dict.fromkeys(config):
            shares = [way for other, way in zip(config, ways, strict=True) if other == one]
            index = torch.from_numpy(np.concatenate(shares)).to(images.device, non_blocking=True)
            if len(index):  # there may be fewer images than ways
                changed[index] = augment_batch(images[index], one, draws)
        return changed
    effects = _effects(config)
    for i in draws.host.permutation(len(effects)):
        images = effects[i](images, draws).clamp(0, 1)
    return images


def _effects(config: PhotometricConfig) -> list[Callable[[Tensor, Draws], Tensor]]:
    choices: list[tuple[bool, Callable[[Tensor, Draws], Tensor]]] = [
        (config.brightness, lambda im, d: _brightness(im, config.brightness_change, d)),
        (config.contrast, lambda im, d: _contrast(im, config.contrast_range, d)),
        (config.noise, lambda im, d: _noise(im, config.noise_sigma, d)),
        (config.speckle, lambda im, d: _speckle(im, config.speckle_probability, d)),
        (config.shade, lambda im, d: _shade(im, config, d)),
        (config.motion_blur, lambda im, d: _motion_blur(im, config.motion_kernel, d)),
        (config.defocus, lambda im, d: _defocus(im, config.defocus_sigma, d)),
    ]
    return [effect for wanted, effect in choices if wanted]


def _brightness(images: Tensor, largest: float, draws: Draws) -> Tensor:
    return images + draws.uniform(-largest / 255, largest / 255, len(images), 1, 1, 1)


def _contrast(images: Tensor, limits: tuple[float, float], draws: Draws) -> Tensor:
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * draws.uniform(*limits, len(images), 1, 1, 1) + mean


def _noise(images: Tensor, sigma: tuple[float, float], draws: Draws) -> Tensor:
    low, high = (value / 255 for value in sigma)
    return images + draws.normal(*images.shape) * draws.uniform(low, high, len(images), 1, 1, 1)


def _speckle(images: Tensor, probability: tuple[float, float], draws: Draws) -> Tensor:
    chance = draws.uniform(*probability, len(images), 1, 1, 1)
    lots = draws.uniform(0, 1, *images.shape)
    return images.masked_fill(lots < chance, 0).masked_fill(lots > 1 - chance, 1)


def _shade(images: Tensor, config: PhotometricConfig, draws: Draws) -> Tensor:
    batch, _, height, width = images.shape
    least, most = config.shade_kernel
    coarsest = min(1.0, config.shade_size) * min(height, width) / 16
    factor = max(1.0, min(least / SHADE_DETAIL, coarsest))
    rows, columns = max(1, round(height / factor)), max(1, round(width / factor))
    mask = _ellipses(batch, config.shade_ellipses, config.shade_size, rows, columns, draws)
    half = (draws.uniform(least, most, batch, 1) / factor / 2).round()
    # OpenCV's deviation for a kernel of 2 half + 1 pixels.
    sigma = 0.3 * (half - 1) + 0.8
    soft = _blur(mask[:, None], sigma, math.ceil(most / factor / 2), half)
    wide = F.interpolate(soft, (height, width), mode="bilinear", align_corners=False)
    return images * (1 - wide * draws.uniform(*config.shade_transparency, batch, 1, 1, 1))


def _ellipses(
    batch: int, number: int, size: float, rows: int, columns: int, draws: Draws
) -> Tensor:
    """Random ellipses, filled: (batch, rows, columns) of 0 and 1."""
    axes = draws.uniform(0, 1, batch, number, 2).clamp_min(0.2) * size * min(rows, columns)
    largest = axes.amax(2)
    room_x, room_y = ((n - 2 * largest).clamp_min(0) for n in (columns, rows))
    centre_x = largest + draws.uniform(0, 1, batch, number) * room_x
    centre_y = largest + draws.uniform(0, 1, batch, number) * room_y
    angle = draws.uniform(0, math.pi / 2, batch, number)[..., None, None]
    x = torch.arange(columns, device=draws.device) - centre_x[..., None, None]
    y = torch.arange(rows, device=draws.device)[:, None] - centre_y[..., None, None]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    a, b = axes[..., None, None].unbind(2)
    return ((along / a).square() + (across / b).square() <= 1).any(1).float()


def _motion_blur(images: Tensor, largest: int, draws: Draws) -> Tensor:
    batch = len(images)
    halves = (largest + 1) // 2
    half = draws.uniform(0, halves, batch, 1, 1).floor().clamp_max(halves - 1)
    angle = draws.uniform(0, math.pi, batch, 1, 1)
    reach = halves - 1
    x = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
    y = x[:, None]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    weight = (1 - across.abs()).clamp_min(0) * (-8 * (along / (2 * half + 1)).square()).exp()
    weight = weight * ((x.abs() <= half) & (y.abs() <= half))
    kernels = (weight / weight.sum((1, 2), keepdim=True))[:, None]
    padded = F.pad(images, (reach,) * 4, mode="reflect").transpose(0, 1)
    return F.conv2d(padded, kernels.to(images), groups=batch).transpose(0, 1)


def _defocus(images: Tensor, sigma: tuple[float, float], draws: Draws) -> Tensor:
    drawn = draws.uniform(*sigma, len(images), 1)
    # Less than a pixel's own width: nothing would change.
    return torch.where(
        drawn[..., None, None] < 0.1, images, _blur(images, drawn, math.ceil(4 * sigma[1]))
    )


def _blur(images: Tensor, sigma: Tensor, reach: int, half: Tensor | None = None) -> Tensor:
    """Gaussian blur of images (B, 1, h, w) by deviations (B, 1), mirrored at the rim.

    ``reach`` is the most that any kernel reaches to each side, ``half`` (B, 1) what each does.
    A product with one matrix for the rows and one for the columns, as kernels differ.
    """
    steps = torch.arange(-reach, reach + 1, device=images.device)
    weights = (-0.5 * (steps / sigma.clamp_min(1e-3)).square()).exp()
    if half is not None:
        weights = weights * (steps.abs() <= half)
    weights = weights / weights.sum(1, keepdim=True)
    down, across = (_band(weights, n, steps) for n in images.shape[-2:])
    return (down[:, None] @ images.float() @ across[:, None].transpose(2, 3)).to(images)


def _band(weights: Tensor, n: int, steps: Tensor) -> Tensor:
    """Matrices (B, n, n) that blur n numbers by kernels (B, k), mirrored without the end."""
    period = max(2 * (n - 1), 1)
    place = (torch.arange(n, device=steps.device)[:, None] + steps) % period
    place = torch.where(place < n, place, period - place)
    bands = weights.new_zeros((len(weights), n, n))
    return bands.scatter_add(
        2, place.expand(len(weights), -1, -1), weights[:, None].expand(-1, n, -1)
    )
