"""Folders of pictures, labelled: an export that can be stopped and goes on."""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from superpoint_lib.adaptation.heatmaps import (
    adapt_any_size,
    adaptation_homographies,
    batch_size,
    heatmap_keypoints,
    keypoint_probabilities,
)
from superpoint_lib.adaptation.settings import AdaptConfig
from superpoint_lib.config import to_dict
from superpoint_lib.datasets import label_folders, load_labels, read_label_image, save_labels
from superpoint_lib.digests import digest, weights_digest
from superpoint_lib.extraction import MIN_IMAGE_SIZE
from superpoint_lib.machine import choose_device
from superpoint_lib.memory import keep_freed_memory
from superpoint_lib.model import MagicPoint, fold_batch_norm
from superpoint_lib.paths import list_images

_READERS = 2
_WAITING = 4  # pictures that wait for others of their size, in batches

# What decides the labels of a picture. The rest (where, how fast, how exactly) may change between
# two starts of one export: bfloat16 moves keypoints by a small part of a pixel, and an export may
# go on on another machine.
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
    """What an export did: files written, the number of keypoints in each, files found complete, and
    pictures left out with why."""

    written: list[Path] = field(default_factory=list)
    skipped_existing: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    keypoints: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"{len(self.written)} label files written, {sum(self.keypoints)} keypoints in all, "
            f"{len(self.skipped_existing)} already there, {len(self.failed)} pictures left out"
        ]
        lines += [f"  {path}: {reason}" for path, reason in self.failed]
        return "\n".join(lines)


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
    return _plain_settings(config) | {"weights": weights_digest(model.state_dict())}


def _plain_settings(config: AdaptConfig) -> dict[str, object]:
    values = to_dict(config)
    return {name: values[name] for name in _LABEL_SETTINGS}


def _already_there(job: _Job, settings: dict[str, object]) -> bool:
    """Whether a job's label is complete; one made otherwise is refused, not mixed in."""
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
    labelled, now = found.get("picture"), _picture_digest(job)
    if labelled and now and labelled != now:
        raise ValueError(
            f"{job.label} holds the labels of another picture than {job.picture}; choose another "
            "output folder, or delete it"
        )
    return True


def _picture_digest(job: _Job) -> str:
    """Names the picture by its bytes; empty where it cannot be read, for that ends no export."""
    try:
        return digest([job.picture.read_bytes()])
    except OSError:
        return ""


def _read(job: _Job, config: AdaptConfig) -> NDArray[np.float32] | str:
    """The picture at label size, or the reason why there is none."""
    # Whatever is wrong with one file must not end an export of many hours.
    try:
        image = read_label_image(job.picture, (config.height, config.width))
    except Exception as error:
        return str(error) or type(error).__name__
    if min(image.shape) < MIN_IMAGE_SIZE:
        least = f"{MIN_IMAGE_SIZE} x {MIN_IMAGE_SIZE}"
        return f"picture of {image.shape[0]} x {image.shape[1]} is smaller than {least}"
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
    key = 0 if config.share_warps else zlib.crc32(os.fsencode(name))
    rng = np.random.default_rng([config.seed, key, 1])
    return adaptation_homographies(config.warps, *shape, config.homography, rng)


def _label_batch(
    model: nn.Module,
    batch: list[tuple[_Job, NDArray[np.float32]]],
    config: AdaptConfig,
    settings: dict[str, object],
    device: torch.device,
) -> list[int]:
    """Writes the labels of pictures of one size; how many keypoints each has."""
    images = torch.from_numpy(np.stack([image for _, image in batch]))[:, None].to(device)
    shape = batch[0][1].shape
    names = [batch[0][0].name] if config.share_warps else [job.name for job, _ in batch]
    drawn = np.stack([_picture_homographies(name, shape, config) for name in names])
    homographies = drawn[0] if config.share_warps else drawn
    heatmaps = adapt_any_size(model, images, homographies, config)
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
            settings | {"picture": _picture_digest(job)},
            seen,
        )
    return [len(found) for found in features]


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
    on batches, order or number of processes (nor, but for parts of a pixel, on ``precision``, which
    may differ between two starts). Several processes share the work by ``rank`` and
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
            would be one, or when the output holds labels made with other settings or of other
            pictures.

    Convention: keypoints are in pixels of the picture after ``geometry.resize_and_crop`` to the
    label's ``size``; see ``datasets.read_label_image``.

    Derived in notebook 03.
    """
    if not config.images:
        raise ValueError("no pictures to label: give at least one folder of images")
    keep_freed_memory()
    device = choose_device(config.device)
    if device == torch.device("cuda"):
        device = torch.device("cuda", rank % torch.cuda.device_count())
    model = MagicPoint.from_pretrained(config.weights)
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
    pictures = max(1, batch_size(config, device) // config.warps)
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
            report.keypoints.extend(_label_batch(model, batch, config, settings, device))
            report.written.extend(job.label for job, _ in batch)
            bar.update(len(batch))
    return report
