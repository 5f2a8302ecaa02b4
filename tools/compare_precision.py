"""Measure what bfloat16 costs in accuracy: homographies of warped pictures, pair by pair.

    python tools/compare_precision.py                # writes results/precision.json

Each pair is matched twice, with the network in float32 and in bfloat16. RANSAC's draws magnify tiny
differences of its input, in both directions. So the same matches are also given to it in many
shuffled orders, whose mean is its accuracy apart from the luck of one draw, and to an estimator
without chance, least squares on the matches within 3 px of the truth. The pictures are those of
data/coco/test2017, else the bundled ones. With it, whether train mode and eval mode differ.
"""

from __future__ import annotations

import shlex
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import tyro
from tqdm.auto import tqdm

from superpoint_lib import SuperPoint
from superpoint_lib.datasets import bundled_photos
from superpoint_lib.digests import commit_name
from superpoint_lib.evaluation.hpatches import (
    Extractor,
    HPatchesSequence,
    MatchedPair,
    Results,
    compare,
    corner_errors,
    inspect_pair,
    load_sequences,
    superpoint_extractor,
)
from superpoint_lib.evaluation.metrics import homography_accuracy
from superpoint_lib.evaluation.mini import MiniConfig, make_benchmark
from superpoint_lib.evaluation.protocols import ProtocolConfig, TaskConfig
from superpoint_lib.evaluation.results import Record, json_ready
from superpoint_lib.geometry import mean_corner_error
from superpoint_lib.machine import machine_name
from superpoint_lib.model import Precision
from superpoint_lib.paths import data_dir, list_images, read_gray, results_dir, runs_dir, write_json

TASK = TaskConfig(height=240, width=320)
PROTOCOL = ProtocolConfig(detector=TASK, descriptor=TASK)
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")
ESTIMATORS = ("ransac", "ransac, shuffled", "least squares")


@dataclass(frozen=True)
class Options:
    """Compare bfloat16 with float32 on warped pictures."""

    pictures: int = 306
    """How many, evenly from the folder."""
    pairs: int = 5
    """Pairs of each sequence; each picture gives one of light and one of viewpoint."""
    shuffles: int = 20
    """Orders of a pair's matches in which RANSAC gets them."""
    weights: str = "superpoint"
    """A bundled name or the path of a weight file."""
    output: Path = results_dir() / "precision.json"
    """The file to write."""


def main(options: Options) -> None:
    """Measure, print and write."""
    commit = commit_name()
    source, photos = _pictures(options.pictures)
    config = MiniConfig(height=TASK.height, width=TASK.width, pairs=options.pairs)
    folder = make_benchmark(runs_dir() / "precision-pairs", photos, config, progress=True)
    sequences = load_sequences(folder)
    model = SuperPoint.from_pretrained(options.weights)
    results = _measure(model, sequences, options.shuffles)
    rows = [
        {"estimator": estimator, "part": part, **row}
        for estimator in ESTIMATORS
        for part in ("all", "illumination", "viewpoint")
        for row in compare(results[estimator, "float32"], results[estimator, "bf16"], part=part)
    ]
    content = {
        "command": shlex.join(["python", "tools/compare_precision.py", *sys.argv[1:]]),
        "commit": commit,
        "machine": machine_name(torch.device("cpu")),
        "pictures": f"{len(photos)} of {source}",
        "pairs": len(results["ransac", "bf16"].records),
        "shuffles": options.shuffles,
        "a": "float32",
        "b": "bf16",
        "intervals": "95 %, bootstrap of the paired differences b - a, whole sequences drawn",
        "differences": rows,
        "train_and_eval_mode": _modes(model, sequences),
    }
    print(f"written: {write_json(options.output, json_ready(content))}")
    for row in rows:
        print(
            f"{row['estimator']:16} {row['part']:12} {row['metric']:13} {row['a']:.4f} "
            f"{row['b']:.4f}  {row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        )
    print(content["train_and_eval_mode"])


def _pictures(number: int) -> tuple[str, dict[str, Any]]:
    """Name of the source, and up to ``number`` pictures of it."""
    linked = data_dir() / "coco" / "test2017"
    if linked.is_dir():
        source: str = "coco/test2017"
        found: dict[str, Any] = {path.stem: path for path in list_images(linked)}
    else:
        source, found = "the bundled photographs", dict(bundled_photos("benchmark"))
    kept = np.unique(np.linspace(0, len(found) - 1, min(number, len(found))).round().astype(int))
    names = sorted(found)
    return source, {names[index]: found[names[index]] for index in kept}


def _measure(
    model: SuperPoint, sequences: Iterable[HPatchesSequence], shuffles: int
) -> dict[tuple[str, str], Results]:
    """Results by estimator and precision."""
    records: dict[tuple[str, str], list[Record]] = {
        (estimator, name): [] for estimator in ESTIMATORS for name in PRECISIONS
    }
    for sequence in tqdm(sequences, unit="sequence"):
        for name in PRECISIONS:
            extractor = _once(superpoint_extractor(model, precision=name))
            for number in range(2, len(sequence.image_paths) + 1):
                pair = inspect_pair(extractor, sequence, number, PROTOCOL)
                errors = {
                    "ransac": [pair.corner_error],
                    "ransac, shuffled": corner_errors(
                        pair, replace(PROTOCOL.ransac, orders=shuffles)
                    ),
                    "least squares": [_least_squares(pair)],
                }
                for estimator, values in errors.items():
                    records[estimator, name].append(_record(name, sequence, number, values))
    return {key: Results("custom", PROTOCOL, tuple(found)) for key, found in records.items()}


def _once(extractor: Extractor) -> Extractor:
    """Let the extractor see an image once, though it takes part in several pairs."""
    known: dict[int, Any] = {}

    def remembering(image: Any, task: TaskConfig) -> Any:
        key = zlib.crc32(np.ascontiguousarray(image).tobytes())
        if key not in known:
            known[key] = extractor(image, task)
        return known[key]

    return remembering


def _least_squares(pair: MatchedPair) -> float:
    """Corner error in pixels of the fit to all matches within 3 px of the truth."""
    close = pair.errors <= PROTOCOL.distance
    if close.sum() < 4:
        return float("inf")
    ends = (pair.keypoints0[pair.matches[close, 0]], pair.keypoints1[pair.matches[close, 1]])
    H, _ = cv2.findHomography(*ends, 0)
    return mean_corner_error(H, pair.H_0to1, *pair.image0.shape)


def _record(name: str, sequence: HPatchesSequence, number: int, errors: list[float]) -> Record:
    record: Record = {
        "extractor": name,
        "sequence": sequence.name,
        "split": sequence.split,
        "pair": number,
    }
    return record | {
        f"homography@{eps:g}": homography_accuracy(errors, eps)
        for eps in PROTOCOL.corner_thresholds
    }


@torch.inference_mode()
def _modes(model: SuperPoint, sequences: Iterable[HPatchesSequence]) -> dict[str, float]:
    """Largest differences of the maps of the sequences' first images between the two modes."""
    largest = {"pictures": 0.0, "logits": 0.0, "descriptors": 0.0}
    for sequence in sequences:
        image = torch.from_numpy(read_gray(sequence.image_paths[0]))[None, None]
        in_eval, in_train = model.eval()(image), model.train()(image)
        for name, values in in_eval.items():
            largest[name] = max(largest[name], float((values - in_train[name]).abs().max()))
        largest["pictures"] += 1
    model.eval()
    return largest


if __name__ == "__main__":
    main(tyro.cli(Options))
