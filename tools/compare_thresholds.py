"""Measure what the least score of a keypoint does to every figure, on warped pictures.

    python tools/compare_thresholds.py superpoint runs/other.safetensors  # results/thresholds.json

Protocols leave the threshold to the network: rpautrat's takes all that score 0.001 or more. Two
networks that rank the same keypoints alike, one sure of itself and one not, then take part with
different numbers of them. So each is measured at several thresholds, and can be compared at equal
numbers of keypoints. The pairs are those of ``evaluation.mini.warped_pairs``, every n-th.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from tqdm.auto import tqdm

from superpoint_lib import SuperPoint
from superpoint_lib.digests import commit_name
from superpoint_lib.evaluation import hpatches
from superpoint_lib.evaluation.mini import warped_pairs
from superpoint_lib.evaluation.protocols import PROTOCOLS, ProtocolConfig
from superpoint_lib.evaluation.results import Results, json_ready
from superpoint_lib.machine import machine_name
from superpoint_lib.paths import results_dir, write_json

FIGURES = (
    "repeatability",
    "localization_error",
    "homography@1",
    "homography@3",
    "correct_matches@3",
    "matching_score",
)


@dataclass(frozen=True)
class Options:
    """Compare weights at several thresholds."""

    weights: Annotated[tuple[str, ...], tyro.conf.Positional] = ("superpoint",)
    """Bundled names or paths of weight files."""
    thresholds: tuple[float, ...] = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05)
    """Least scores."""
    every: int = 4
    """Every n-th sequence of pairs."""
    output: Path = field(default_factory=lambda: results_dir() / "thresholds.json")
    """The file to write."""


def main(options: Options, command: str) -> None:
    """Measure, print and write."""
    commit = commit_name()
    sequences = hpatches.load_sequences(warped_pairs())[:: options.every]
    rows = []
    runs = [(name, threshold) for name in options.weights for threshold in options.thresholds]
    for name, threshold in tqdm(runs, desc="thresholds"):
        model = SuperPoint.from_pretrained(name)
        extractor = hpatches.superpoint_extractor(model, precision="auto")
        protocol = at_least(threshold)
        results = hpatches.evaluate({name: extractor}, sequences, protocol, progress=False)
        row = {"weights": name, "threshold": threshold, **averages(results)}
        rows.append(row)
        tqdm.write("  ".join(f"{key} {value}" for key, value in row.items()))
    content = {
        "command": command,
        "commit": commit,
        "machine": machine_name(torch.device("cpu")),
        "pairs": sum(len(sequence.homographies) for sequence in sequences),
        "rows": rows,
    }
    print(f"written: {write_json(options.output, json_ready(content))}")


def at_least(threshold: float) -> ProtocolConfig:
    """The protocol of warped pairs, with keypoints of this score or more."""
    protocol = PROTOCOLS["warped"]
    return replace(
        protocol,
        detector=replace(protocol.detector, threshold=threshold),
        descriptor=replace(protocol.descriptor, threshold=threshold),
    )


def averages(results: Results) -> dict[str, float]:
    """Means over pairs; "keypoints" is how many of a picture are inside the other."""
    numbers = [(record["n_visible0"] + record["n_visible1"]) / 2 for record in results.records]
    means = {"keypoints": np.mean(numbers)}
    means |= {figure: np.nanmean(results.values(figure)) for figure in FIGURES}
    return {name: round(float(value), 5) for name, value in means.items()}


if __name__ == "__main__":
    main(tyro.cli(Options), shlex.join(["python", "tools/compare_thresholds.py", *sys.argv[1:]]))
