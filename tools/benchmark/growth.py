"""How cost grows: seconds and memory against size, with the exponent of the fitted power law.

The sizes of a curve are measured in turns, and a size counts with the shortest of its turns. The
exponent is that of the line through all sizes, in logarithms; constant costs bend it down at small
sizes, so that the last step, between the two largest sizes, is recorded too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import torch

from superpoint_lib import MagicPoint, SuperPoint, extract, match
from superpoint_lib.config import replace
from superpoint_lib.memory import keep_freed_memory
from superpoint_lib.model import uses_bfloat16
from superpoint_lib.training import RECIPES

from .measuring import (
    DEVICE,
    Row,
    Work,
    at_most,
    exponent,
    in_turns,
    memory_taken,
    plain,
    report,
)
from .works import bare_forward, picture_batch, training_step, unit_maps

_BUDGET = 5.0
"""Seconds for the turns of one curve."""

AREA, KEYPOINTS, WARPS = "image area (pixels)", "keypoints", "warps"
BATCH, PAIRS, THREADS = "batch", "pairs", "threads"


@dataclass(frozen=True)
class Curve:
    """What is done, what of it grows, and by which power the cost may grow.

    Attributes:
        what: is done.
        against: is what grows, with its unit.
        works: {size: makes the work of that size}, sizes rising.
        expected: the exponent of a good implementation; 0.1 more meets the goal.
        is_goal: False where the exponent is no goal.
    """

    what: str
    against: str
    works: Mapping[int, Callable[[], Work]]
    expected: float
    is_goal: bool = True


def growth_area() -> list[Row]:
    """Against the area of the image."""
    return [measured(curve) for curve in _area_curves()]


def growth_number() -> list[Row]:
    """Against the number of keypoints, warps and pairs."""
    curves = [*_keypoint_curves(), *_warp_curves(), *_pair_curves()]
    return [measured(curve) for curve in curves]


def growth_batch() -> list[Row]:
    """Against the batch."""
    return [measured(curve) for curve in _batch_curves()]


def growth_threads() -> list[Row]:
    """Against the threads of a CPU, where there are several."""
    return [measured(curve) for curve in _thread_curves()] if DEVICE.type == "cpu" else []


def measured(curve: Curve, budget: float = _BUDGET) -> Row:
    """Measure one curve.

    Args:
        curve: what to measure.
        budget: seconds for its turns; at least three are taken.

    Returns:
        A row with the exponent, and beside it "sizes", "seconds" (the shortest turn of each size),
        "memory_gb" (what a call takes at most), "last_step" (the exponent between the two largest
        sizes), "turns", and the curve's own fields.
    """
    name = f"{curve.what}, {curve.against}"
    report(name)
    works = {str(size): make() for size, make in curve.works.items()}
    times = in_turns(works, 3, budget)
    best = [min(times[key]) for key in works]
    sizes = list(curve.works)
    slope = exponent(sizes, best)
    text = name.split(" (")[0]
    row = (
        at_most(text, slope, curve.expected + 0.1, "exponent")
        if curve.is_goal
        else plain(text, slope, "exponent")
    )
    return row | {
        "curve": curve.what,
        "against": curve.against,
        "expected": curve.expected,
        "last_step": exponent(sizes[-2:], best[-2:]),
        "sizes": sizes,
        "seconds": best,
        "memory_gb": [memory_taken(work) for work in works.values()],
        "turns": len(times[str(sizes[0])]),
    }


def _area_curves() -> list[Curve]:
    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    # 120 x 160 and its multiples; descriptor maps have a cell for 8 x 8 pixels.
    areas = {k: 120 * k * 160 * k for k in range(1, 9)}
    return [
        Curve(
            "drawing a shape",
            AREA,
            {areas[k]: partial(_drawing, 120 * k, 160 * k) for k in (1, 2, 4, 8)},
            1,
        ),
        Curve(
            "extract",
            AREA,
            {areas[k]: partial(_extracting, model, 1, 120 * k, 160 * k) for k in (1, 2, 4, 8)},
            1,
        ),
        Curve(
            "adaptation, 4 warps",
            AREA,
            {areas[k]: partial(_adapting, 4, 120 * k, 160 * k) for k in (1, 2, 4)},
            1,
        ),
        *(
            Curve(
                name,
                AREA,
                {areas[k]: partial(_losing, loss, 15 * k, 20 * k) for k in (1, 2, 3)},
                # All cells of one picture with all of the other.
                2,
            )
            for name, loss in (
                ("hinge loss", "descriptor_hinge_loss"),
                ("InfoNCE loss", "descriptor_infonce_loss"),
            )
        ),
    ]


def _keypoint_curves() -> list[Curve]:
    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    return [
        Curve(
            "extract, 480 x 640",
            KEYPOINTS,
            {n: partial(_extracting, model, 1, 480, 640, n) for n in (200, 400, 800, 1600)},
            1,
        ),
        Curve("match", KEYPOINTS, {n: partial(_matching, n) for n in (500, 1000, 2000, 4000)}, 2),
    ]


def _warp_curves() -> list[Curve]:
    works = {n: partial(_adapting, n, 240, 320) for n in (4, 8, 16, 32)}
    return [Curve("adaptation", WARPS, works, 1)]


def _batch_curves() -> list[Curve]:
    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    configs = {
        "MagicPoint": (RECIPES["magicpoint-synthetic"], (4, 8, 16, 32)),
        "SuperPoint": (RECIPES["superpoint"], (2, 4, 8)),
    }
    return [
        Curve(
            "extract, 240 x 320",
            BATCH,
            {n: partial(_extracting, model, n, 240, 320) for n in (1, 2, 4, 8)},
            1,
        ),
        *(
            Curve(
                f"training step, {name}",
                BATCH,
                {n: partial(training_step, replace(config, batch_size=n)) for n in sizes},
                1,
            )
            for name, (config, sizes) in configs.items()
        ),
    ]


def _pair_curves() -> list[Curve]:
    """Without a network, which would hide everything else: ORB is quick."""
    from superpoint_lib.evaluation import hpatches
    from superpoint_lib.evaluation.classical import classical_extractor
    from superpoint_lib.evaluation.mini import mini_benchmark

    sequences = hpatches.load_sequences(mini_benchmark())
    orb = {"orb": classical_extractor("orb")}
    pairs = len(sequences[0].homographies)

    def evaluating(number: int) -> Work:
        # The same sequence over and over: sequences differ in what they cost.
        chosen = sequences[:1] * number
        return lambda: hpatches.evaluate(orb, chosen, progress=False)

    works = {pairs * n: partial(evaluating, n) for n in (1, 2, 4)}
    return [Curve("evaluation of ORB", PAIRS, works, 1)]


def _thread_curves() -> list[Curve]:
    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    cores = _cores()
    counts = sorted({min(2**power, cores) for power in range(cores.bit_length() + 1)})
    works: dict[str, Callable[[], Work]] = {
        "forward, 480 x 640": lambda: bare_forward(
            model, picture_batch(1, 480, 640), uses_bfloat16("auto", DEVICE)
        ),
        "extract, 480 x 640": lambda: _extracting(model, 1, 480, 640),
        "training step, MagicPoint": lambda: training_step(
            replace(RECIPES["magicpoint-synthetic"], batch_size=16)
        ),
        "adaptation, 8 warps": lambda: _adapting(8, 240, 320),
    }

    def threaded(count: int, make: Callable[[], Work]) -> Work:
        return _with_threads(count, make())

    return [
        Curve(
            name,
            THREADS,
            {n: partial(threaded, n, make) for n in counts},
            -1,
            is_goal=False,
        )
        for name, make in works.items()
        if len(counts) > 1
    ]


def _cores() -> int:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ----------------------------------------------------------------------------------- works


def _drawing(height: int, width: int) -> Work:
    from superpoint_lib.augmentation import PHOTOMETRIC_PRESETS
    from superpoint_lib.datasets import ShapesDataset
    from superpoint_lib.geometry import HOMOGRAPHY_PRESETS
    from superpoint_lib.shapes import ShapesConfig

    shapes = ShapesConfig(
        canvas_height=2 * height, canvas_width=2 * width, height=height, width=width
    )
    still = (PHOTOMETRIC_PRESETS["none"], HOMOGRAPHY_PRESETS["identity"])
    dataset = ShapesDataset(shapes, *still)
    return lambda: [dataset[i] for i in range(10)]


def _extracting(
    model: torch.nn.Module, batch: int, height: int, width: int, keypoints: int = 1000
) -> Work:
    images = picture_batch(batch, height, width)
    # A threshold so low that the first photograph, at 480 x 640, has some 1900 keypoints to give.
    return lambda: extract(model, images, max_keypoints=keypoints, threshold=0.001)


def _adapting(warps: int, height: int, width: int) -> Work:
    from superpoint_lib.adaptation import AdaptConfig, adaptation_homographies, adapted_keypoints

    keep_freed_memory()  # as export_labels does
    model = MagicPoint.from_pretrained("magicpoint").to(DEVICE)
    config = AdaptConfig("magicpoint", (".",), ".")
    rng = np.random.default_rng(0)
    drawn = adaptation_homographies(warps, height, width, config.homography, rng)
    image = picture_batch(1, height, width)
    return lambda: adapted_keypoints(model, image, drawn, config)


def _losing(name: str, rows: int, columns: int) -> Work:
    from superpoint_lib import losses

    loss = getattr(losses, name)
    maps = unit_maps(rows, columns), unit_maps(rows, columns)
    H = torch.eye(3, device=DEVICE)[None]
    return lambda: loss(*maps, H).backward()


def _matching(count: int) -> Work:
    end0, end1 = (
        SimpleNamespace(descriptors=unit_maps(1, count)[0, :, 0].mT.detach()) for _ in "01"
    )
    return lambda: match(end0, end1)


def _with_threads(count: int, work: Work) -> Work:
    def call() -> None:
        before = torch.get_num_threads(), cv2.getNumThreads()
        torch.set_num_threads(count)
        cv2.setNumThreads(count)
        try:
            work()
        finally:
            torch.set_num_threads(before[0])
            cv2.setNumThreads(before[1])

    return call
