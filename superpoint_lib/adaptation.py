"""Homographic adaptation: let a detector label real pictures by asking it about many warps of each.

A detector trained on drawn shapes misses corners of real pictures that it would find from another
viewpoint. Averaging its answers over random homographies, each answer carried back to the original
picture, keeps what is found from most viewpoints (DeTone et al. 2018, section 5, equation 10)::

    F(I) = 1/N_h  sum_k  H_k^-1 f(H_k I)        with H_1 = identity

Derived in notebook 03.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from superpoint_lib.config import to_dict
from superpoint_lib.datasets import label_folders, load_labels, read_label_image, save_labels
from superpoint_lib.extraction import Features, decode_heatmap, nms, soft_argmax
from superpoint_lib.geometry import (
    HOMOGRAPHY_PRESETS,
    sample_homographies,
    valid_mask,
    warp_images,
)
from superpoint_lib.geometry.cells import CELL_SIZE
from superpoint_lib.memory import keep_freed_memory
from superpoint_lib.model import (
    MagicPoint,
    Precision,
    fold_batch_norm,
    uses_bfloat16,
)
from superpoint_lib.paths import list_images

_READERS = 2
_WAITING = 4  # pictures that wait for others of their size, in batches


@dataclass(frozen=True)
class AdaptConfig:
    """What homographic adaptation does to which pictures; the defaults are the published values.

    Attributes:
        weights: bundled name or path of a MagicPoint or SuperPoint; a second round of adaptation
            is the same export with the weights trained on the first round's labels.
        images: folders of pictures, searched recursively.
        output: where the labels go: ``output/<relative stem>.npz`` for one folder, and
            ``output/<folder name>/<relative stem>.npz`` for several.
        limit: label at most so many pictures, spread evenly over all of them; 0 labels all.
        warps: homographies for each picture, the identity included.
        aggregation: "mean" of the responses of the warps that see a pixel, or their "max", whose
            labels have no probabilities.
        threshold: least aggregated response of a keypoint, in [0, 1].
        nms_radius: radius of non-maximum suppression, in pixels.
        top_k: most keypoints for a picture, best first; 0 keeps all.
        border: pixels near the end of the picture or of a warped frame that do not count.
        filter_counts: pixels seen by fewer warps than this give no keypoint.
        height: of the pictures that are labelled, a multiple of 8: ratio-preserving resize and
            centre crop; 0 and 0 leave each picture as it is.
        width: likewise.
        homography: name of the homography preset.
        sizes: the warps take these in turn: a warped picture is so many times as large as the
            picture, on whose pixels the labels are in any case. A network sees where a corner is
            more exactly in an enlarged picture (notebook 06, two sizes that must agree).
        agree: look at every warp at each of the ``sizes``, not in turn, and take the geometric mean
            of the responses: a pixel counts where all sizes see a keypoint. Costs as many looks as
            there are sizes.
        share_warps: one set of homographies for all pictures instead of one for each. The masks
            and counts are then computed once for a batch; the price is that whatever the
            set favours (a missing rotation, say) is the same in every label.
        batch: images in one forward, over pictures and warps together; 0 takes 4 on a CPU (more
            leave its cache) and 128 on a GPU.
        subpixel: refine keypoints by a soft-argmax over the aggregated response.
        precision: "bf16" autocast, "float32", or "auto": bfloat16 where the hardware computes it.
        seed: seeds the homographies, together with each picture's relative path.
    """

    weights: str = "magicpoint-synthetic"
    images: tuple[str, ...] = ()
    output: str = "runs/labels"
    limit: int = 0
    warps: int = 100
    aggregation: Literal["mean", "max"] = "mean"
    threshold: float = 0.015
    nms_radius: int = 4
    top_k: int = 600
    border: int = 3
    filter_counts: int = 0
    height: int = 240
    width: int = 320
    homography: str = "adaptation"
    sizes: tuple[float, ...] = (1.0,)
    agree: bool = False
    share_warps: bool = False
    batch: int = 0
    subpixel: bool = True
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.warps < 1:
            raise ValueError(f"warps must be at least 1, got {self.warps}")
        for key in ("batch", "border", "limit", "nms_radius", "seed", "threshold", "top_k"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must not be negative, got {getattr(self, key)}")
        if (
            self.height % CELL_SIZE
            or self.width % CELL_SIZE
            or (self.height == 0) != (self.width == 0)
        ):
            raise ValueError(
                "height and width must be multiples of 8, or both 0 for native sizes; "
                f"got {self.height} x {self.width}"
            )
        if not 0 <= self.filter_counts <= self.warps:
            raise ValueError(
                f"filter_counts must be between 0 and warps, got {self.filter_counts} of "
                f"{self.warps}: no pixel is seen by more"
            )
        if not self.sizes or min(self.sizes) <= 0:
            raise ValueError(f"sizes must be positive, at least one, got {self.sizes}")
        if self.homography not in HOMOGRAPHY_PRESETS:
            raise ValueError(
                f"unknown homography preset {self.homography!r}; "
                f"choose one of {', '.join(sorted(HOMOGRAPHY_PRESETS))}"
            )


# What decides the labels of a picture. The rest (where, how fast) may change between two starts
# of one export.
_LABEL_SETTINGS = (
    "warps",
    "aggregation",
    "threshold",
    "nms_radius",
    "top_k",
    "border",
    "filter_counts",
    "height",
    "width",
    "homography",
    "sizes",
    "agree",
    "share_warps",
    "subpixel",
    "seed",
)


@dataclass(frozen=True)
class ExportReport:
    """What an export did: files written, files found complete, and pictures left out with why."""

    written: list[Path] = field(default_factory=list)
    skipped_existing: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{len(self.written)} label files written, {len(self.skipped_existing)} already there, "
            f"{len(self.failed)} pictures left out"
        ]
        lines += [f"  {path}: {reason}" for path, reason in self.failed]
        return "\n".join(lines)


def adaptation_homographies(
    warps: int, height: int, width: int, preset: str, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw the homographies of one adaptation: the identity first, then ``warps - 1`` random ones.

    Returns:
        (warps, 3, 3) float64, mapping picture pixels to warped pixels.
    """
    drawn = sample_homographies(warps - 1, height, width, HOMOGRAPHY_PRESETS[preset], rng)
    return np.concatenate([np.eye(3)[None], drawn])


def _batch_size(config: AdaptConfig, device: torch.device) -> int:
    return config.batch or (4 if device.type == "cpu" else 128)


@dataclass(frozen=True)
class _Frame:
    """The pixels of warped pictures, ``size`` times as many along each side as the picture has."""

    height: int
    width: int
    enlarge: NDArray[np.float64]  # (3, 3), picture pixels to pixels of the picture so enlarged
    area: float  # pixels for each pixel of the picture


def _frame(height: int, width: int, size: float) -> _Frame:
    sides = [max(1, round(side * size / CELL_SIZE)) * CELL_SIZE for side in (height, width)]
    y, x = sides[0] / height, sides[1] / width
    enlarge = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    return _Frame(sides[0], sides[1], enlarge, x * y)


def _observed_area(homographies: Tensor, height: int, width: int, border: int) -> Tensor:
    """Where a warped image is worth asking: (n, H, W) float32, 1 inside and 0 near any edge.

    Away from the end of the picture (black beyond it looks like an edge of the scene) and from
    the frame of the warped image (the network sees only half a neighbourhood there). The identity
    counts everywhere: it is the picture, and nothing else ever sees its rim.
    """
    observed = valid_mask(homographies, height, width, border, device=homographies.device)
    inner = torch.zeros((height, width), dtype=torch.bool, device=observed.device)
    inner[border : height - border, border : width - border] = True
    identity = torch.eye(3, dtype=homographies.dtype, device=homographies.device)
    is_identity = (homographies - identity).abs().amax((1, 2)) < 1e-12
    return ((observed & inner) | is_identity[:, None, None]).float()


def adapt_heatmap(
    model: nn.Module,
    images: Tensor,
    homographies: NDArray[np.float64] | Tensor,
    config: AdaptConfig,
) -> tuple[Tensor, Tensor]:
    """Aggregate a detector's responses over homographies of each image (equation 10).

    Each image is warped by each homography, the network answers for ``config.batch`` warped
    images at a time (at least one warp of every image), and the answers are warped back and added
    up in place, together with the mask of what each warp could see::

        mean: F(p) = sum_k m_k(H_k p) f_k(H_k p) / sum_k m_k(H_k p)
        max:  F(p) = max_k m_k(H_k p) f_k(H_k p)

    Where warped images are s times as large (``config.sizes``), a pixel of the picture becomes s^2
    pixels, which share its probability: f_k(H_k p) is then s^2 times the response, at most 1.
    With ``config.agree``, f_k and m_k are the geometric means over all sizes, of one warp each.

    Args:
        model: gives {"logits": (B, 65, H/8, W/8)}; used in the mode it is in.
        images: (B, 1, H, W) float32 in [0, 1], H and W multiples of 8, on the model's device.
        homographies: (N, 3, 3) shared by the images, or (B, N, 3, 3), picture pixels to warped
            pixels; the first should be the identity (see ``adaptation_homographies``).
        config: ``aggregation``, ``border``, ``filter_counts``, ``sizes``, ``agree``, ``batch``
            and ``precision`` count.

    Returns:
        heatmap (B, H, W) float32 in [0, 1], and counts (B, H, W) float32: how many warps saw a
        pixel, fractional where the edge of a mask falls between pixels. The heatmap is 0 where
        no warp, or fewer than ``filter_counts``, saw the pixel.

    Raises:
        ValueError: for homographies of another shape.

    Convention: a warp sees a pixel when the pixel falls inside the warped frame, at least
    ``border`` pixels from its edge and from the end of the picture; the identity sees all.

    Derived in notebook 03.
    """
    batch, _, height, width = images.shape
    matrices = torch.as_tensor(homographies, dtype=torch.float64, device=images.device)
    if matrices.ndim == 3:
        matrices = matrices[None]
    if matrices.ndim != 4 or matrices.shape[0] not in (1, batch) or matrices.shape[2:] != (3, 3):
        raise ValueError(
            f"homographies must be (N, 3, 3) or ({batch}, N, 3, 3), got {tuple(matrices.shape)}"
        )
    heatmap = torch.zeros((batch, height, width), device=images.device)
    counts = torch.zeros((matrices.shape[0], height, width), device=images.device)
    for some, frames in _portions(matrices, images, config):
        looks = [_observe(model, images, some, frame, config) for frame in frames]
        response, seen = (_geometric_mean(values) for values in zip(*looks, strict=True))
        counts += seen.sum(1)
        if config.aggregation == "mean":
            heatmap += response.sum(1)
        else:
            torch.maximum(heatmap, response.amax(1), out=heatmap)
    if config.aggregation == "mean":
        heatmap /= counts.clamp_min(1e-6)
    heatmap *= counts >= max(config.filter_counts, 1e-3)
    return heatmap, counts.expand(batch, -1, -1)


def _portions(
    matrices: Tensor, images: Tensor, config: AdaptConfig
) -> Iterator[tuple[Tensor, list[_Frame]]]:
    """Homographies that go through the network at once, and the frames to look at each in."""
    batch, _, height, width = images.shape
    room = _batch_size(config, images.device) // batch
    frames = [_frame(height, width, size) for size in config.sizes]
    groups = [frames] if config.agree else [[frame] for frame in frames]
    for turn, group in enumerate(groups):
        largest = max(frame.area for frame in group)
        for some in matrices[:, turn :: len(groups)].split(max(1, round(room / largest)), dim=1):
            if some.shape[1]:
                yield some, group


def _geometric_mean(values: Sequence[Tensor]) -> Tensor:
    if len(values) == 1:
        return values[0]
    return torch.stack(tuple(values)).log().mean(0).exp()


def _observe(
    model: nn.Module, images: Tensor, matrices: Tensor, frame: _Frame, config: AdaptConfig
) -> tuple[Tensor, Tensor]:
    """Masked responses (B, n, H, W) to n warps and masks (1 or B, n, H, W), on the picture."""
    batch, _, height, width = images.shape
    sets, number = matrices.shape[:2]
    enlarge = torch.as_tensor(frame.enlarge, device=matrices.device)
    forth = enlarge @ matrices  # picture to warped picture
    back = torch.linalg.inv(forth).flatten(0, 1)
    within = (forth @ torch.linalg.inv(enlarge)).flatten(0, 1)  # between pixels of the same size
    observed = _observed_area(within, frame.height, frame.width, config.border)
    seen = warp_images(observed[:, None], back, (height, width)).view(sets, number, height, width)

    repeated = images.repeat_interleave(number, 0)
    per_image = forth.expand(batch, -1, -1, -1).flatten(0, 1)
    warped = warp_images(repeated, per_image, (frame.height, frame.width))
    warped = warped.to(memory_format=torch.channels_last)
    with (
        torch.inference_mode(),
        torch.autocast(
            images.device.type,
            dtype=torch.bfloat16,
            enabled=uses_bfloat16(config.precision, images.device),
        ),
    ):
        logits = model(warped)["logits"]
    response = decode_heatmap(logits.float()).view(batch, number, frame.height, frame.width)
    response = response * observed.view(sets, number, frame.height, frame.width)
    back = back.view(sets, number, 3, 3).expand(batch, -1, -1, -1).flatten(0, 1)
    response = warp_images(response.flatten(0, 1)[:, None], back, (height, width))
    if frame.area != 1:
        response = (response * frame.area).clamp_max(1)
    return response.view(batch, number, height, width), seen


def heatmap_keypoints(heatmap: Tensor, config: AdaptConfig) -> list[Features]:
    """Pick the keypoints of aggregated heatmaps (B, H, W): suppression, threshold, best ``top_k``.

    Returns:
        One ``Features`` for each image, best first, without descriptors; keypoints are (x, y) in
        pixels of the heatmap, refined by a soft-argmax when ``config.subpixel``. A heatmap with
        no response above ``config.threshold`` gives no keypoints.
    """
    kept = nms(heatmap, config.nms_radius, config.threshold)
    return [
        _image_keypoints(plane, maxima, config) for plane, maxima in zip(heatmap, kept, strict=True)
    ]


def _image_keypoints(heatmap: Tensor, maxima: Tensor, config: AdaptConfig) -> Features:
    rows, columns = maxima.nonzero(as_tuple=True)
    scores = maxima[rows, columns]
    # A stable sort leaves equal scores in row-major order, as the suppression ranks them.
    scores, order = scores.sort(descending=True, stable=True)
    if config.top_k:
        scores, order = scores[: config.top_k], order[: config.top_k]
    keypoints = torch.stack([columns[order], rows[order]], -1).float()
    if config.subpixel:
        keypoints = soft_argmax(heatmap, keypoints)
    return Features(keypoints, scores, None, (heatmap.shape[0], heatmap.shape[1]))


def adapted_keypoints(
    model: nn.Module,
    images: Tensor,
    homographies: NDArray[np.float64] | Tensor,
    config: AdaptConfig,
) -> list[Features]:
    """Detect the keypoints of a batch of images by homographic adaptation.

    Arguments as in ``adapt_heatmap``, for any height and width: sizes that are not multiples of 8
    are padded by replication on the right and bottom, and what is found there is dropped.

    Returns:
        One ``Features`` for each image, best first, without descriptors.

    Derived in notebook 03.
    """
    return heatmap_keypoints(_adapt_any_size(model, images, homographies, config), config)


def _adapt_any_size(
    model: nn.Module,
    images: Tensor,
    homographies: NDArray[np.float64] | Tensor,
    config: AdaptConfig,
) -> Tensor:
    height, width = images.shape[-2:]
    padded = functional.pad(
        images, (0, -width % CELL_SIZE, 0, -height % CELL_SIZE), mode="replicate"
    )
    heatmap, _ = adapt_heatmap(model, padded, homographies, config)
    return heatmap[:, :height, :width].contiguous()


def keypoint_probabilities(heatmap: Tensor, keypoints: Tensor) -> Tensor:
    """How likely one look at the picture is to find each keypoint where it is.

    The aggregated response of a pixel is the mean over looks of the probability that the keypoint
    is at that pixel; looks differ by a pixel or so, so the nine pixels around it are added up.

    Args:
        heatmap: (H, W), aggregated by "mean".
        keypoints: (N, 2), (x, y) in its pixels.

    Returns:
        (N,) in [0, 1].

    Shown in notebook 03.
    """
    sums = functional.avg_pool2d(heatmap[None], 3, 1, 1, divisor_override=1)[0]
    x, y = keypoints.round().long().unbind(-1)
    return sums[y.clamp(0, sums.shape[0] - 1), x.clamp(0, sums.shape[1] - 1)].clamp(0, 1)


@dataclass(frozen=True)
class _Job:
    picture: Path
    name: str
    label: Path


def _list_jobs(config: AdaptConfig) -> tuple[list[_Job], list[tuple[Path, str]]]:
    """Every picture with the label it is to get, and the pictures whose label is already taken."""
    jobs: dict[Path, _Job] = {}
    clashes: list[tuple[Path, str]] = []
    for folder, labels in zip(
        config.images, label_folders(config.images, config.output), strict=True
    ):
        for picture in list_images(folder):
            relative = picture.relative_to(folder)
            label = labels / relative.with_suffix(".npz")
            if label in jobs:
                clashes.append(
                    (picture, f"its label would overwrite that of {jobs[label].picture}")
                )
            else:
                jobs[label] = _Job(picture, relative.as_posix(), label)
    found = list(jobs.values())
    if 0 < config.limit < len(found):
        found = [found[i * len(found) // config.limit] for i in range(config.limit)]
    return found, clashes


def _settings(config: AdaptConfig, model: nn.Module) -> dict[str, object]:
    """What is written into each label file: the settings that decide it, and which weights."""
    digest = hashlib.sha256()
    for name, values in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return _plain_settings(config) | {"weights_sha256": digest.hexdigest()[:16]}


def _plain_settings(config: AdaptConfig) -> dict[str, object]:
    values = to_dict(config)
    return {name: values[name] for name in _LABEL_SETTINGS}


def _already_there(job: _Job, settings: dict[str, object]) -> bool:
    """Whether a job's label is complete; one made with other settings is refused, not mixed in."""
    if not job.label.exists():
        return False
    try:
        found = load_labels(job.label).settings
    except ValueError:
        return False
    # A setting that is younger than the label had its default then.
    before = _plain_settings(AdaptConfig()) | found
    differing = sorted(key for key in settings if before.get(key) != settings[key])
    if differing:
        raise ValueError(
            f"{job.label} was made with other settings ({', '.join(differing)}); "
            "choose another output folder, or delete these labels"
        )
    return True


def _read(job: _Job, config: AdaptConfig) -> NDArray[np.float32] | str:
    """The picture at label size, or the reason why there is none."""
    # Whatever is wrong with one file must not end an export of many hours.
    try:
        image = read_label_image(job.picture, (config.height, config.width))
    except Exception as error:
        return str(error) or type(error).__name__
    if min(image.shape) < 2 * CELL_SIZE:
        return f"picture of {image.shape[0]} x {image.shape[1]} is smaller than 16 x 16"
    return image


def _read_ahead(
    jobs: list[_Job], config: AdaptConfig, ahead: int
) -> Iterator[tuple[_Job, NDArray[np.float32] | str]]:
    """Pictures in order, read by threads while the network works on earlier ones."""
    remaining = iter(jobs)
    with ThreadPoolExecutor(_READERS) as pool:
        pending: deque[tuple[_Job, Future[NDArray[np.float32] | str]]] = deque(
            (job, pool.submit(_read, job, config)) for job in islice(remaining, ahead)
        )
        while pending:
            job, future = pending.popleft()
            yield job, future.result()
            pending.extend((j, pool.submit(_read, j, config)) for j in islice(remaining, 1))


def _same_size(
    pictures: Iterable[tuple[_Job, NDArray[np.float32]]], number: int
) -> Iterator[list[tuple[_Job, NDArray[np.float32]]]]:
    """Batches of ``number`` pictures of one size; fewer where too many of other sizes wait."""
    waiting: dict[tuple[int, ...], list[tuple[_Job, NDArray[np.float32]]]] = {}
    for job, image in pictures:
        waiting.setdefault(image.shape, []).append((job, image))
        if len(waiting[image.shape]) == number:
            yield waiting.pop(image.shape)
        # Where every picture has a size of its own, all would be in memory before the first label.
        # The oldest go: were it the most, rare sizes would fill the places and never leave them.
        elif sum(map(len, waiting.values())) > _WAITING * number:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _picture_homographies(
    name: str, shape: tuple[int, int], config: AdaptConfig
) -> NDArray[np.float64]:
    # Seeded by the picture, not by its place in the list, so that batches, resuming and sharding
    # change nothing.
    key = 0 if config.share_warps else zlib.crc32(name.encode())
    rng = np.random.default_rng([config.seed, key, 1])
    return adaptation_homographies(config.warps, *shape, config.homography, rng)


def _label_batch(
    model: nn.Module,
    batch: list[tuple[_Job, NDArray[np.float32]]],
    config: AdaptConfig,
    settings: dict[str, object],
    device: torch.device,
) -> None:
    images = torch.from_numpy(np.stack([image for _, image in batch]))[:, None].to(device)
    shape = batch[0][1].shape
    names = [batch[0][0].name] if config.share_warps else [job.name for job, _ in batch]
    drawn = np.stack([_picture_homographies(name, shape, config) for name in names])
    homographies = drawn[0] if config.share_warps else drawn
    heatmaps = _adapt_any_size(model, images, homographies, config)
    features = heatmap_keypoints(heatmaps, config)
    for (job, _), heatmap, found in zip(batch, heatmaps, features, strict=True):
        # The largest response of many looks says nothing about how often one finds the keypoint.
        mean = config.aggregation == "mean"
        seen = keypoint_probabilities(heatmap, found.keypoints).cpu().numpy() if mean else None
        save_labels(
            job.label,
            found.keypoints.cpu().numpy(),
            found.keypoint_scores.cpu().numpy(),
            shape,
            settings,
            seen,
        )


def export_labels(
    config: AdaptConfig, progress: bool = True, rank: int = 0, world: int = 1
) -> ExportReport:
    """Label folders of pictures by homographic adaptation: one ``.npz`` for each picture.

    ::

        config = AdaptConfig(
            weights="magicpoint-synthetic", images=("data/coco/train2017",), output="runs/labels"
        )
        print(export_labels(config))

    An export can be stopped at any moment and started again: each file is written whole or not
    at all, complete ones are kept, and labels made with other settings or other weights are
    refused rather than mixed. A picture that cannot be read is listed in the report and changes
    nothing else. The labels of a picture depend on the settings and its relative path only, not
    on batches, order or number of processes. Several processes share the work by ``rank`` and
    ``world``; each writes its own pictures, and none waits for another.

    Args:
        config: what to label and how.
        progress: show a progress bar.
        rank, world: this process and how many there are.

    Returns:
        What was written, found and left out by this process.

    Raises:
        FileNotFoundError: when a folder of pictures, or the weights, do not exist.
        ValueError: when there is no folder to label, when the label folders of two image folders
            would be one, or when the output holds labels made with other settings.

    Convention: keypoints are in pixels of the picture after ``geometry.resize_and_crop`` to the
    label's ``size``; see ``datasets.read_label_image``.

    Derived in notebook 03.
    """
    if not config.images:
        raise ValueError("no pictures to label: give at least one folder in images")
    keep_freed_memory()
    device = _device(rank)
    model = MagicPoint.from_pretrained(config.weights).eval()
    settings = _settings(config, model)
    if model.config.norm == "batch" and model.config.norm_order == "conv-norm-relu":
        # The same answers, a quarter sooner.
        model = fold_batch_norm(model)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    jobs, clashes = _list_jobs(config)
    report = ExportReport(failed=clashes if rank == 0 else [])
    todo: list[_Job] = []
    for job in jobs[rank::world]:
        if _already_there(job, settings):
            report.skipped_existing.append(job.label)
        else:
            todo.append(job)
    pictures = max(1, _batch_size(config, device) // config.warps)
    with tqdm(total=len(todo), desc="adapting", unit="image", disable=not progress) as bar:

        def readable() -> Iterator[tuple[_Job, NDArray[np.float32]]]:
            for job, image in _read_ahead(todo, config, 2 * pictures):
                if isinstance(image, str):
                    report.failed.append((job.picture, image))
                    bar.update()
                else:
                    yield job, image

        # Pictures of one size go through the network together.
        for batch in _same_size(readable(), pictures):
            _label_batch(model, batch, config, settings, device)
            report.written.extend(job.label for job, _ in batch)
            bar.update(len(batch))
    return report


def _device(rank: int) -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")
