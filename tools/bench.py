"""Measure each stage against what it can hardly be faster than, and against what others do.

    make bench                          # all stages; writes results/benchmark.json
    python tools/bench.py matching ...  # some stages, to the screen only

Each stage runs in a process of its own, so that its peak memory is its own. What is compared runs
in turns in that process: a busy machine slows both, and a ratio is the median over the turns.
"""

from __future__ import annotations

import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from superpoint_lib import MagicPoint, SuperPoint, extract, match
from superpoint_lib.config import replace
from superpoint_lib.geometry import resize_and_crop
from superpoint_lib.model import uses_bfloat16
from superpoint_lib.paths import project_root, results_dir, write_json
from superpoint_lib.training.facts import commit_name, machine_name

Row = dict[str, Any]
Work = Callable[[], Any]

OUTPUT = results_dir() / "benchmark.json"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


# ------------------------------------------------------------------------------- measuring


def seconds(work: Work) -> float:
    """Wall-clock seconds of one call; waits for a GPU."""
    started = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(works: dict[str, Work], turns: int) -> dict[str, list[float]]:
    """Seconds of each work in each turn, after one call of each to warm up."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(turns):
        for name, work in works.items():
            times[name].append(seconds(work))
    return times


def ratio(times: dict[str, list[float]], over: str, under: str) -> float:
    """Median over the turns of one time divided by another."""
    pairs = zip(times[over], times[under], strict=True)
    return statistics.median(a / b for a, b in pairs)


def peak_memory() -> float:
    """Gigabytes that this process, or its GPU, has held at most so far."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    # Linux counts in kilobytes, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def at_least(what: str, value: float, goal: float, unit: str = "x") -> Row:
    """A figure that should be large."""
    goal_text = f">= {goal:g} {unit}"
    return {"what": what, "value": value, "unit": unit, "goal": goal_text, "met": value >= goal}


def at_most(what: str, value: float, goal: float, unit: str = "x") -> Row:
    """A figure that should be small."""
    goal_text = f"<= {goal:g} {unit}"
    return {"what": what, "value": value, "unit": unit, "goal": goal_text, "met": value <= goal}


def plain(what: str, value: float, unit: str = "x") -> Row:
    """A figure without a goal."""
    return {"what": what, "value": value, "unit": unit, "goal": "", "met": None}


# ---------------------------------------------------------------------------------- stages


def drawing() -> list[Row]:
    """Synthetic shapes, on one core."""
    from superpoint_lib.augmentation import PHOTOMETRIC_PRESETS
    from superpoint_lib.datasets import ShapesDataset
    from superpoint_lib.geometry import HOMOGRAPHY_PRESETS

    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    still = {
        "photometric": PHOTOMETRIC_PRESETS["none"],
        "homography": HOMOGRAPHY_PRESETS["identity"],
    }
    datasets = {"augmented": ShapesDataset(seed=1), "plain": ShapesDataset(seed=1, **still)}
    count = 300
    times = in_turns(
        {name: lambda d=d: [d[i] for i in range(count)] for name, d in datasets.items()}, 5
    )
    rate = {name: count / statistics.median(values) for name, values in times.items()}
    return [
        at_least("samples of 120 x 160, augmented", rate["augmented"], 600, "/s"),
        plain("samples without augmentation", rate["plain"], "/s"),
    ]


def training() -> list[Row]:
    """A training with its data against bare steps of the same network on random tensors."""
    from superpoint_lib.adaptation import AdaptConfig, export_labels
    from superpoint_lib.datasets import resolve_images
    from superpoint_lib.training import RECIPES

    with tempfile.TemporaryDirectory() as folder:
        photos = str(resolve_images("bundled", "training"))
        labels = f"{folder}/labels"
        export_labels(AdaptConfig("magicpoint", (photos,), labels, warps=1), progress=False)
        configs = {
            "MagicPoint": replace(RECIPES["magicpoint-synthetic"], batch_size=16),
            "SuperPoint": replace(
                RECIPES["superpoint"], images=("bundled",), labels=(labels,), batch_size=8
            ),
        }
        return [
            at_least(f"{name}: images/s, of bare steps'", _share(config, Path(folder) / name), 0.85)
            for name, config in configs.items()
        ]


def _share(config: Any, folder: Path, steps: int = 10) -> float:
    """Images a second of ``train`` over those of bare steps, in turns."""
    from superpoint_lib.training import make_model, read_history, train

    config = replace(config, log_every=1, steps=steps)
    net = make_model(config).to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    shape = (config.batch_size * config.views, 1, config.height, config.width)
    images = torch.rand(shape, device=DEVICE)
    bf16 = uses_bfloat16(config.precision, DEVICE)

    def bare_step() -> None:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            maps = net(images)
        optimizer.zero_grad(set_to_none=True)
        torch.stack([one.float().square().mean() for one in maps.values()]).sum().backward()
        optimizer.step()

    bare_step()
    shares = []
    for turn in range(5):
        bare = len(images) / statistics.median(seconds(bare_step) for _ in range(steps))
        train(config, folder / str(turn), progress=False)
        rates = [
            row["images_per_second"] for row in read_history(folder / str(turn) / "history.csv")
        ]
        shares.append(statistics.median(rates[2:]) / bare)
    return statistics.median(shares)


def _unit_maps(batch: int) -> Tensor:
    """Random descriptor maps of 240 x 320 pictures that ask for gradients."""
    return functional.normalize(
        torch.randn(batch, 256, 30, 40, device=DEVICE), dim=1
    ).requires_grad_()


def descriptor_loss() -> list[Row]:
    """The dense losses, forward and backward, for one picture of 240 x 320."""
    from superpoint_lib import losses

    d0, d1 = _unit_maps(1), _unit_maps(1)
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
    before = peak_memory()
    whole = seconds(lambda: losses.descriptor_hinge_loss_broadcast(d0, d1, H).backward())
    rows.append(
        at_least(
            "broadcast form, of the hinge's time", whole / statistics.median(times["hinge"]), 50
        )
    )
    return [*rows, plain("broadcast form, memory", peak_memory() - before, "GB")]


def loss_memory() -> list[Row]:
    """Memory of the dense hinge loss, forward and backward, at 240 x 320."""
    from superpoint_lib.losses import descriptor_hinge_loss

    def taken(batch: int) -> float:
        d0, d1 = _unit_maps(batch), _unit_maps(batch)
        H = torch.eye(3, device=DEVICE).expand(batch, 3, 3)
        before = peak_memory()
        descriptor_hinge_loss(d0, d1, H).backward()
        return peak_memory() - before

    taken(1)
    return [
        at_most("hinge, one picture (broadcast form: 2.94 GB)", taken(4) / 4, 2.94 / 30, "GB"),
        at_most("hinge, batch of 32", taken(32), 2, "GB"),
    ]


def adaptation() -> list[Row]:
    """Homographic adaptation of a 240 x 320 picture, 100 warps, against the bare network."""
    from superpoint_lib.adaptation import AdaptConfig, adaptation_homographies, adapted_keypoints

    model = MagicPoint.from_pretrained("magicpoint").to(DEVICE)
    model.to(memory_format=torch.channels_last)
    config = AdaptConfig("magicpoint", (".",), ".", warps=100)
    homographies = adaptation_homographies(
        100, 240, 320, config.homography, np.random.default_rng(0)
    )
    image = _photographs(240, 320)[:1].to(DEVICE)
    size = 4 if DEVICE.type == "cpu" else 100
    batch = image.expand(size, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    bf16 = uses_bfloat16(config.precision, DEVICE)

    def bare() -> None:
        with torch.inference_mode(), torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            for _ in range(100 // size):
                model(batch)

    times = in_turns(
        {
            "bare": bare,
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
    standard.to(memory_format=torch.contiguous_format)
    rows = []
    for batch in (1, 8):
        images = _photographs(480, 640)
        images = images.repeat(-(-batch // len(images)), 1, 1, 1)[:batch].to(DEVICE)

        def bare(images: Tensor = images) -> None:
            with torch.inference_mode():
                model(images)

        times = in_turns(
            {
                "bare": bare,
                "extract": lambda images=images: extract(model, images),
                "plain": lambda images=images: _plain_extract(standard, images),
            },
            9 if batch == 1 else 3,
        )
        share = ratio(times, "bare", "extract")
        rows.append(at_least(f"batch {batch}: of the bare forward's speed", share, 0.85))
        faster = ratio(times, "plain", "extract")
        rows.append(at_least(f"batch {batch}: of the plain form's speed", faster, 3))
        rows.append(
            plain(f"batch {batch}: pictures", batch / statistics.median(times["extract"]), "/s")
        )
    return rows


@torch.inference_mode()
def _plain_extract(model: torch.nn.Module, images: Tensor) -> list[tuple[Tensor, ...]]:
    """As most implementations do it: float32, NCHW, repeated max-pooling, top-k, grid sampling."""
    maps = model(images)
    batch, _, rows, columns = maps["logits"].shape
    heatmap = maps["logits"].softmax(1)[:, :-1].permute(0, 2, 3, 1)
    heatmap = heatmap.reshape(batch, rows, columns, 8, 8).permute(0, 1, 3, 2, 4)
    heatmap = heatmap.reshape(batch, 1, rows * 8, columns * 8)

    def pooled(x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 9, 1, 4)

    kept = heatmap == pooled(heatmap)
    for _ in range(2):
        near = pooled(kept.float()) > 0
        rest = torch.where(near, 0.0, heatmap)
        kept |= (rest == pooled(rest)) & ~near
    scores = torch.where(kept, heatmap, 0.0).flatten(1)
    found = []
    for image in range(batch):
        best, index = scores[image].topk(1000)
        index, best = index[best > 0.005], best[best > 0.005]
        x, y = index % (columns * 8), index // (columns * 8)
        grid = torch.stack(((x + 0.5) / (columns * 4) - 1, (y + 0.5) / (rows * 4) - 1), -1)
        sampled = functional.grid_sample(
            maps["descriptors"][image : image + 1], grid[None, None].float(), align_corners=False
        )
        found.append((x, y, best, functional.normalize(sampled[0, :, 0], dim=0)))
    return found


def _photographs(height: int, width: int) -> Tensor:
    """The bundled benchmark photographs, (N, 1, height, width)."""
    from superpoint_lib.datasets import bundled_photos

    photos = bundled_photos("benchmark").values()
    return torch.stack(
        [torch.from_numpy(resize_and_crop(photo, height, width)[0])[None] for photo in photos]
    )


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
        ends = [SimpleNamespace(descriptors=d.to(DEVICE)) for d in (first, second)]
        arrays = (first.numpy(), second.numpy())
        works: dict[str, Work] = {
            "ours": lambda ends=ends: match(*ends),
            "kornia": lambda ends=ends: match_mnn(*(end.descriptors for end in ends)),
            "OpenCV": lambda pair=arrays: brute.match(*pair),
        }
        times = in_turns(works, 15 if count == 1000 else 5)
        for other in ("kornia", "OpenCV"):
            faster = ratio(times, other, "ours")
            rows.append(at_least(f"{count} x {count}: of {other}'s speed", faster, 1))
    return rows


def evaluation() -> list[Row]:
    """The mini benchmark: what is neither network nor RANSAC."""
    from superpoint_lib.evaluation import hpatches, metrics
    from superpoint_lib.evaluation.mini import mini_benchmark

    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    sequences = hpatches.load_sequences(mini_benchmark())
    inside = 0.0

    def timed(function: Work) -> Work:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal inside
            started = time.perf_counter()
            result = function(*arguments, **options)
            inside += time.perf_counter() - started
            return result

        return call

    model.forward = timed(model.forward)
    ransac = metrics.estimate_homography
    metrics.estimate_homography = timed(ransac)
    try:
        whole = seconds(
            lambda: hpatches.evaluate(
                {"superpoint": hpatches.superpoint_extractor(model)}, sequences, progress=False
            )
        )
    finally:
        metrics.estimate_homography = ransac
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
    left, right = _photographs(480, 640)[:2, 0].numpy()
    features = [extract(model, image) for image in (left, right)]
    cases = {
        "detections, threshold": (explore_detections(model, left), "threshold", (0.004, 0.02)),
        "detections, radius": (explore_detections(model, left), "nms_radius", (3, 6)),
        "matches, keypoints": (
            explore_matches(*features, left, right),
            "max_keypoints",
            (400, 600),
        ),
    }
    rows = []
    for name, (explorer, control, values) in cases.items():
        times = []
        for turn in range(20):
            slider = explorer.controls[control]
            times.append(seconds(lambda s=slider, v=values[turn % 2]: setattr(s, "value", v)))
        rows.append(at_most(name, 1000 * statistics.median(times), 50, "ms"))
    return rows


def growth() -> list[Row]:
    """How cost grows: exponents of a power law fitted to a few sizes."""
    from types import SimpleNamespace

    from superpoint_lib.adaptation import AdaptConfig, adaptation_homographies, adapted_keypoints
    from superpoint_lib.losses import descriptor_hinge_loss

    model = SuperPoint.from_pretrained("superpoint").to(DEVICE)
    config = AdaptConfig("superpoint", (".",), ".")
    image = _photographs(240, 320)[:1].to(DEVICE)
    H = torch.eye(3, device=DEVICE)[None]

    def extracting(scale: int) -> Work:
        picture = _photographs(120 * scale, 160 * scale)[:1].to(DEVICE)
        return lambda: extract(model, picture)

    def losing(rows: int) -> Work:
        maps = [torch.randn(1, 256, rows, rows * 4 // 3, device=DEVICE) for _ in range(2)]
        unit = [functional.normalize(one, dim=1).requires_grad_() for one in maps]
        return lambda: descriptor_hinge_loss(*unit, H).backward()

    def matching_of(count: int) -> Work:
        ends = [functional.normalize(torch.randn(count, 256, device=DEVICE)) for _ in range(2)]
        return lambda: match(*(SimpleNamespace(descriptors=end) for end in ends))

    def adapting(warps: int) -> Work:
        rng = np.random.default_rng(0)
        drawn = adaptation_homographies(warps, 240, 320, config.homography, rng)
        return lambda: adapted_keypoints(model, image, drawn, config)

    def batches(size: int) -> Work:
        pictures = image.repeat(size, 1, 1, 1)
        return lambda: extract(model, pictures)

    # What grows, its sizes as multiples of the first, and the exponent one would expect.
    cases: dict[str, tuple[Callable[[int], Work], dict[int, float], float]] = {
        "extract, image area": (extracting, {k: k * k for k in (1, 2, 4, 8)}, 1),
        "extract, batch": (batches, {k: k for k in (1, 2, 4, 8)}, 1),
        "dense hinge loss, image area": (losing, {k: k * k for k in (15, 30, 60)}, 2),
        "match, keypoints": (matching_of, {k: k for k in (500, 1000, 2000, 4000)}, 2),
        "adaptation, warps": (adapting, {k: k for k in (5, 10, 20, 40)}, 1),
    }
    rows = []
    for name, (make, sizes, expected) in cases.items():
        times = in_turns({str(k): make(k) for k in sizes}, 5)
        medians = [statistics.median(times[str(k)]) for k in sizes]
        slope = float(np.polyfit(np.log(list(sizes.values())), np.log(medians), 1)[0])
        rows.append(at_most(name, slope, expected + 0.1, "exponent"))
        rows[-1] |= {"sizes": list(sizes.values()), "seconds": medians}
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
        evaluation,
        start,
        widgets,
        growth,
    )
}


# --------------------------------------------------------------------------------- running


def measure(stage: str) -> dict[str, Any]:
    """Run one stage in a process of its own."""
    command = [sys.executable, __file__, "--json", stage]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"bench: {stage} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main(arguments: Sequence[str]) -> None:
    """Measure the stages named, or all; all are also written to results/benchmark.json."""
    if arguments[:1] == ["--json"]:
        rows = STAGES[arguments[1]]()
        print(json.dumps({"rows": rows, "peak_memory_gb": round(peak_memory(), 2)}))
        return
    results = {}
    for stage in arguments or STAGES:
        results[stage] = measure(stage)
        print(f"{stage}  (peak memory {results[stage]['peak_memory_gb']} GB)", flush=True)
        for row in results[stage]["rows"]:
            verdict = {True: "met", False: "missed", None: ""}[row["met"]]
            value = f"{row['value']:.3g} {row['unit']}"
            print(f"  {row['what']:46}{value:>14}   {row['goal']:14}{verdict}", flush=True)
    if not arguments:
        facts = {
            "command": "make bench",
            "commit": commit_name(),
            "machine": machine_name(DEVICE),
            "system": platform.platform(),
            "torch": torch.__version__,
        }
        write_json(OUTPUT, facts | {"stages": results})
        print(OUTPUT.relative_to(project_root()))


if __name__ == "__main__":
    main(sys.argv[1:])
