"""One function for each stage: rows of figures, most of them ratios, with the goals they have."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import torch
from torch.nn import functional

from superpoint_lib import Features, MagicPoint, SuperPoint, extract, match
from superpoint_lib.config import replace
from superpoint_lib.memory import keep_freed_memory
from superpoint_lib.model import Precision, uses_bfloat16
from superpoint_lib.training import TrainConfig

from .growth import growth_area, growth_batch, growth_number, growth_threads
from .loading import watched
from .measuring import (
    DEVICE,
    Row,
    Times,
    Work,
    at_least,
    at_most,
    in_turns,
    memory_taken,
    no_slower,
    plain,
    ratio,
    report,
    seconds,
)
from .works import (
    bare_forward,
    bare_step,
    photographs,
    picture_batch,
    plain_extract,
    training_configs,
    unit_maps,
)

WAITING = "of the time, waiting for data"


def drawing() -> list[Row]:
    """Synthetic shapes, on one core."""
    from superpoint_lib.augmentation import PHOTOMETRIC_PRESETS
    from superpoint_lib.datasets import ShapesDataset
    from superpoint_lib.geometry import HOMOGRAPHY_PRESETS

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    still = ShapesDataset(
        photometric=PHOTOMETRIC_PRESETS["none"], homography=HOMOGRAPHY_PRESETS["identity"], seed=1
    )
    datasets = {"augmented": ShapesDataset(seed=1), "plain": still}
    count = 300

    def samples(dataset: ShapesDataset) -> Work:
        return lambda: [dataset[i] for i in range(count)]

    times = in_turns({name: samples(dataset) for name, dataset in datasets.items()}, 5)
    rate = {name: count / statistics.median(values) for name, values in times.items()}
    return [
        at_least("samples of 120 x 160, augmented", rate["augmented"], 600, "/s"),
        plain("samples without augmentation", rate["plain"], "/s"),
    ]


def training() -> list[Row]:
    """A training with its data against bare steps of the same network on random tensors."""
    measured = _training_on_gpu if DEVICE.type == "cuda" else _training_on_cpu
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, config in training_configs(folder).items():
            report(name)
            rows += measured(name, config, Path(folder) / name)
    return rows


def _training_on_gpu(name: str, config: TrainConfig, folder: Path) -> list[Row]:
    # A step is short there, and a row of the history waits for it: few rows, of many steps.
    config = replace(config, steps=180, log_every=20)
    step, images = bare_step(config)
    step()
    with watched() as watch:
        rate = _train_rate(config, folder)
    bare = images / statistics.median(seconds(step) for _ in range(config.steps))
    return [
        plain(f"{name}: images/s, of bare steps'", rate / bare),
        plain(f"{name}: images", rate, "/s"),
        at_most(f"{name}: {WAITING}", 100 * watch.share(skip=config.steps // 3), 5, "%"),
    ]


def _training_on_cpu(name: str, config: TrainConfig, folder: Path) -> list[Row]:
    step, images = bare_step(config)
    step()
    # As many steps as take about 20 seconds, so that a slow processor has done in minutes, too.
    config = replace(config, steps=min(20, max(6, round(20 / seconds(step)))), log_every=1)
    with watched() as watch:
        _train_rate(config, folder / "watched")
    rates: Times = {"bare": [], "trained": []}
    for turn in range(5):
        took = statistics.fmean(seconds(step) for _ in range(config.steps))
        rates["bare"].append(images / took)
        rates["trained"].append(_train_rate(config, folder / str(turn)))
    return [
        at_least(f"{name}: images/s, of bare steps'", ratio(rates, "trained", "bare"), 0.85),
        plain(f"{name}: images", statistics.median(rates["trained"]), "/s"),
        no_slower(
            f"{name}: with one loader process, of without", _loader_gains(config, folder / "loader")
        ),
        plain(f"{name}: {WAITING}", 100 * watch.share(skip=config.steps // 3), "%"),
    ]


def _loader_gains(config: TrainConfig, folder: Path) -> list[float]:
    """The speed of a training with one loader process, of its speed without, in each turn."""
    # They differ by less than one turn from the next: steps of a quarter of the size, of which a
    # turn has four times as many, in changing order.
    config = replace(config, batch_size=config.batch_size // 4, steps=4 * config.steps)
    gains = []
    for turn in range(10):
        rates = {
            workers: _train_rate(replace(config, workers=workers), folder / f"{turn} {workers}")
            for workers in ((0, 1) if turn % 2 else (1, 0))
        }
        gains.append(rates[1] / rates[0])
    return gains


def _train_rate(config: TrainConfig, folder: Path) -> float:
    """Images a second of a training, after a third of its steps."""
    from superpoint_lib.training import read_history, train

    train(config, folder, progress=False)
    history = read_history(folder / "history.csv")
    return statistics.harmonic_mean(
        row["images_per_second"] for row in history[len(history) // 3 :]
    )


def descriptor_loss() -> list[Row]:
    """The dense losses, forward and backward, for one picture of 240 x 320."""
    from superpoint_lib import losses

    d0, d1 = unit_maps(30, 40), unit_maps(30, 40)
    H = torch.eye(3, device=DEVICE)[None]
    zeng = losses.HINGE_PRESETS["zeng"]
    works: dict[str, Work] = {
        "product": lambda: (d0.flatten(2).mT @ d1.flatten(2)).relu().sum().backward(),
        "hinge": lambda: losses.descriptor_hinge_loss(d0, d1, H).backward(),
        "normalised hinge": lambda: losses.descriptor_hinge_loss(d0, d1, H, config=zeng).backward(),
        "InfoNCE": lambda: losses.descriptor_infonce_loss(d0, d1, H).backward(),
        "sparse": lambda: losses.descriptor_sparse_loss(d0, d1, H).backward(),
    }
    times = in_turns(works, 15)
    rows = [at_most("hinge, of its bare product", ratio(times, "hinge", "product"), 3)]
    rows += [
        plain(f"{name}, of the same product", ratio(times, name, "product"))
        for name in ("normalised hinge", "InfoNCE", "sparse")
    ]
    slow: list[float] = []
    memory = memory_taken(
        lambda: slow.append(
            seconds(lambda: losses.descriptor_hinge_loss_broadcast(d0, d1, H).backward())
        )
    )
    longer = slow[0] / statistics.median(times["hinge"])
    rows.append(at_least("broadcast form, of the hinge's time", longer, 50))
    return [*rows, plain("broadcast form, memory", memory, "GB")]


def loss_memory() -> list[Row]:
    """Memory of the dense hinge loss, forward and backward, at 240 x 320."""
    from superpoint_lib.losses import descriptor_hinge_loss

    def taken(batch: int) -> float:
        d0, d1 = unit_maps(30, 40, batch), unit_maps(30, 40, batch)
        H = torch.eye(3, device=DEVICE).expand(batch, 3, 3)
        return memory_taken(lambda: descriptor_hinge_loss(d0, d1, H).backward())

    taken(1)
    return [
        at_most("hinge, one picture (broadcast form: 2.94 GB)", taken(4) / 4, 2.94 / 30, "GB"),
        at_most("hinge, batch of 32", taken(32), 2, "GB"),
    ]


def adaptation() -> list[Row]:
    """Homographic adaptation of a 240 x 320 picture, 100 warps, against the bare network."""
    from superpoint_lib.adaptation import AdaptConfig, adaptation_homographies, adapted_keypoints

    keep_freed_memory()  # as export_labels does
    model = MagicPoint.from_pretrained("magicpoint").to(DEVICE)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    config = AdaptConfig("magicpoint", (".",), ".", warps=100)
    homographies = adaptation_homographies(
        100, 240, 320, config.homography, np.random.default_rng(0)
    )
    image = picture_batch(1, 240, 320)
    size = 4 if DEVICE.type == "cpu" else 100
    bf16 = uses_bfloat16(config.precision, DEVICE)
    times = in_turns(
        {
            "bare": bare_forward(model, image.expand(size, -1, -1, -1), bf16, times=100 // size),
            "adapted": lambda: adapted_keypoints(model, image, homographies, config),
        },
        3,
    )
    rate = 100 / statistics.median(times["adapted"])
    return [
        at_least("warped pictures/s, of bare inference", ratio(times, "bare", "adapted"), 0.8),
        plain("warped pictures", rate, "/s"),
    ]


def extraction() -> list[Row]:
    """``extract`` at 480 x 640, 1000 keypoints, against the bare forward and a plain version."""
    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    standard = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    standard.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    precisions = _precisions()
    rows = []
    for batch, turns in ((1, 9), (8, 3)):
        report(f"batch {batch}, {' and '.join(precisions)}")
        images = picture_batch(batch, 480, 640)
        works: dict[str, Work] = {"plain": partial(plain_extract, standard, images)}
        for name, precision in precisions.items():
            works[f"bare {name}"] = bare_forward(model, images, name == "bfloat16")
            works[name] = partial(extract, model, images, precision=precision)
        times = in_turns(works, turns)
        for name in precisions:
            label = f"batch {batch}, {name}"
            share = ratio(times, f"bare {name}", name)
            rows.append(at_least(f"{label}: of the bare forward's speed", share, 0.85))
            what, faster = f"{label}: of the plain form's speed", ratio(times, "plain", name)
            # The goal is for processors with bfloat16: in float32 both do the same convolutions.
            lower = name == "bfloat16"
            rows.append(at_least(what, faster, 3) if lower else plain(what, faster))
            rate = batch / statistics.median(times[name])
            rows.append(plain(f"{label}: pictures", rate, "/s"))
    return rows


def _precisions() -> dict[str, Precision]:
    """What the network can compute in here, the default first, and how to ask for it."""
    if uses_bfloat16("auto", DEVICE):
        return {"bfloat16": "auto", "float32": "float32"}
    return {"float32": "auto"}


def matching() -> list[Row]:
    """Mutual nearest neighbours, against kornia and OpenCV."""
    from types import SimpleNamespace

    from kornia.feature import match_mnn

    brute = cv2.BFMatcher(cv2.NORM_L2, crossCheck=True)
    rows = []
    for count in (1000, 4000):
        generator = torch.Generator().manual_seed(0)
        first = functional.normalize(torch.randn(count, 256, generator=generator), dim=1)
        noise = 0.05 * torch.randn(count, 256, generator=generator)
        second = functional.normalize(first + noise, dim=1)
        tensors = (first.to(DEVICE), second.to(DEVICE))
        end0, end1 = (SimpleNamespace(descriptors=one) for one in tensors)
        works: dict[str, Work] = {
            "ours": partial(match, end0, end1),
            "kornia": partial(match_mnn, *tensors),
            "OpenCV": partial(brute.match, first.numpy(), second.numpy()),
        }
        times = in_turns(works, 60 if count == 1000 else 5)
        for other in ("kornia", "OpenCV"):
            faster = ratio(times, other, "ours")
            rows.append(at_least(f"{count} x {count}: of {other}'s speed", faster, 1))
    return rows


def refinement() -> list[Row]:
    """Matches moved to where both pictures agree, against one look at one of the pictures."""
    from superpoint_lib.refinement import refine_matches

    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    image0 = picture_batch(1, 480, 640)
    image1 = image0.roll(5, dims=-1)
    features0, features1 = extract(model, image0[0]), extract(model, image1[0])
    assert isinstance(features0, Features) and isinstance(features1, Features)
    matches, _ = match(features0, features1)
    ends = features0.keypoints[matches[:, 0]], features1.keypoints[matches[:, 1]]
    looks: dict[str, Work] = {
        name: partial(extract, model, image0, precision=precision)
        for name, precision in _precisions().items()
    }
    refine = partial(refine_matches, image0, image1, *ends, np.eye(3))
    times = in_turns({"refine": refine, **looks}, 9)
    return [
        plain(
            f"refining all matches: of the time of one look in {name}", ratio(times, "refine", name)
        )
        for name in looks
    ]


def evaluation() -> list[Row]:
    """The mini benchmark: what is neither network nor RANSAC."""
    from superpoint_lib.evaluation import hpatches, metrics
    from superpoint_lib.evaluation.mini import mini_benchmark

    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    sequences = hpatches.load_sequences(mini_benchmark())
    inside = 0.0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            started = time.perf_counter()
            result = function(*arguments, **options)
            inside += time.perf_counter() - started
            return result

        return call

    with (
        mock.patch.object(model, "forward", timed(model.forward)),
        mock.patch.object(metrics, "estimate_homography", timed(metrics.estimate_homography)),
    ):
        whole = seconds(
            lambda: hpatches.evaluate(
                {"superpoint": hpatches.superpoint_extractor(model)}, sequences, progress=False
            )
        )
    return [
        at_most("outside network and RANSAC", 100 * (1 - inside / whole), 25, "%"),
        plain("whole evaluation", whole, "s"),
    ]


def start() -> list[Row]:
    """From a cold process to an import, and to the first match."""

    def cold(code: str) -> float:
        return statistics.median(
            seconds(lambda: subprocess.run([sys.executable, "-c", code], check=True))
            for _ in range(3)
        )

    torch_alone = cold("import torch")
    imported = cold("import torch; from superpoint_lib import SuperPoint, extract, match")
    first = cold(
        "from superpoint_lib import SuperPoint, extract, match\n"
        "from superpoint_lib.datasets import motorcycle_pair\n"
        "model = SuperPoint.from_pretrained('superpoint')\n"
        "match(*(extract(model, image) for image in motorcycle_pair()))"
    )
    return [
        at_most("import beyond torch's own", imported - torch_alone, 1, "s"),
        plain("torch's own", torch_alone, "s"),
        plain("cold start to the first match", first, "s"),
    ]


def widgets() -> list[Row]:
    """From a control's change to the encoded picture, 480 x 640, no new forward."""
    from superpoint_lib.widgets import explore_detections, explore_matches

    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    left, right = photographs(480, 640)[:2, 0].numpy()
    features0, features1 = extract(model, left), extract(model, right)
    assert isinstance(features0, Features) and isinstance(features1, Features)
    cases = {
        "detections, threshold": (explore_detections(model, left), "threshold", (0.004, 0.02)),
        "detections, radius": (explore_detections(model, left), "nms_radius", (3, 6)),
        "matches, keypoints": (
            explore_matches(features0, features1, left, right),
            "max_keypoints",
            (400, 600),
        ),
    }
    rows = []
    for name, (explorer, control, values) in cases.items():
        times = []
        for turn in range(20):
            slider = explorer.controls[control]
            times.append(seconds(partial(setattr, slider, "value", values[turn % 2])))
        rows.append(at_most(name, 1000 * statistics.median(times), 50, "ms"))
    return rows


STAGES: dict[str, Callable[[], list[Row]]] = {
    stage.__name__: stage
    for stage in (
        drawing,
        training,
        descriptor_loss,
        loss_memory,
        adaptation,
        extraction,
        matching,
        refinement,
        evaluation,
        start,
        widgets,
        growth_area,
        growth_number,
        growth_batch,
        growth_threads,
    )
}
