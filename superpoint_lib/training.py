"""Training of the detector and of SuperPoint: one written-out loop, resumable at any step.

The batch of step t is ``dataset[t B] .. dataset[t B + B - 1]``, the learning rate is a function of
t, and a checkpoint holds weights, their moving average and the optimiser's state: a run that was
interrupted and resumed ends with the same weights as one that was not. PyTorch Lightning's Fabric
chooses the device and the precision; under torchrun it trains on several.

Derived in notebooks 02 (detector) and 05 (both heads).
"""

from __future__ import annotations

import copy
import csv
import json
import logging
import math
import os
import platform
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import cv2
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from superpoint_lib.augmentation import PHOTOMETRIC_PRESETS
from superpoint_lib.checkpoints import load_weights, save_weights
from superpoint_lib.config import ConfigError, replace, to_dict
from superpoint_lib.datasets import PhotoDataset, ShapesDataset, resolve_images
from superpoint_lib.geometry import HOMOGRAPHY_PRESETS
from superpoint_lib.losses import (
    HINGE_LAMBDAS,
    HINGE_PRESETS,
    descriptor_hinge_loss,
    descriptor_infonce_loss,
    descriptor_sparse_loss,
    detector_loss,
)
from superpoint_lib.model import (
    MagicPoint,
    ModelConfig,
    Precision,
    SuperPoint,
    fold_batch_norm,
    uses_bfloat16,
)
from superpoint_lib.paths import atomic_path, write_json
from superpoint_lib.shapes import ShapesConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Batch = dict[str, Tensor]
Losses = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)

#: Keys that change how a run is watched or fed, not what it computes.
_FREE_KEYS = frozenset({"log_every", "checkpoint_every", "workers"})
_COLUMNS = (
    "step",
    "loss",
    "detector",
    "descriptor",
    "gradient_norm",
    "learning_rate",
    "images_per_second",
    "seconds",
)
_PARTS = ("loss", "detector", "descriptor", "gradient_norm")


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became infinite or not a number; the message says where."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a training run. ``RECIPES`` holds ready ones.

    Sizes are in pixels, of the pictures the network sees. ``init`` is a bundled name or a weight
    file to start from, "" for random weights; a file without a descriptor head leaves that one
    random. ``freeze_norm_after`` is the fraction of the steps after which batch normalisation uses,
    and no longer changes, its running statistics. ``one_forward`` sends both views of a pair
    through the network together, so that batch normalisation sees them with the same statistics;
    False sends one after the other, as the published implementations do. ``descriptor_weight`` is
    lambda of the published loss; 0 trains the detector alone. ``ema_decay`` 0 turns the moving
    average of the weights off, ``gradient_clip`` 0 the clipping of the gradient's norm.
    ``precision`` "auto" is bfloat16 where the processor multiplies it in hardware. ``workers`` None
    loads data in processes of its own on a GPU, in the training process on a CPU, where they would
    compete for the cores.

    Raises:
        ConfigError: values that contradict each other, naming the keys.
    """

    model: Literal["magicpoint", "superpoint"] = "magicpoint"
    norm: Literal["none", "batch", "group"] = "batch"
    norm_order: Literal["conv-norm-relu", "conv-relu-norm"] = "conv-norm-relu"
    norm_outputs: bool = False
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    norm_groups: int = 8
    channels: tuple[int, int, int, int] = (64, 64, 128, 128)
    head_channels: int = 256
    descriptor_dim: int = 256
    init: str = ""

    data: Literal["shapes", "photos"] = "shapes"
    images: tuple[str, ...] = ("bundled",)
    labels: tuple[str, ...] = ()
    height: int = 120
    width: int = 160
    photometric: str = "synthetic"
    homography: str = "synthetic"
    views: int = 1

    detector_weight: float = 1.0
    descriptor_weight: float = 0.0
    descriptor_loss: Literal["hinge", "infonce", "sparse"] = "infonce"
    hinge: str = "default"
    temperature: float = 0.05
    freeze_norm_after: float = 1.0
    one_forward: bool = True

    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 2e-3
    optimizer: Literal["adam", "adamw"] = "adamw"
    weight_decay: float = 1e-4
    schedule: Literal["one-cycle", "constant", "cosine"] = "one-cycle"
    gradient_clip: float = 0.0
    ema_decay: float = 0.0
    precision: Precision = "auto"
    compile: bool = False
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.views not in (1, 2):
            raise ConfigError(f"views: must be 1 or 2, got {self.views}")
        for key, table in (
            ("photometric", PHOTOMETRIC_PRESETS),
            ("homography", HOMOGRAPHY_PRESETS),
            ("hinge", HINGE_PRESETS),
        ):
            if getattr(self, key) not in table:
                raise ConfigError(f"{key}: no preset {getattr(self, key)!r}; known: {list(table)}")
        for key in ("steps", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key}: must be at least 1, got {getattr(self, key)}")
        if self.descriptor_weight and (self.model != "superpoint" or self.views != 2):
            raise ConfigError(
                "descriptor_weight: a descriptor loss needs model 'superpoint' and views 2, got "
                f"model {self.model!r} and views {self.views}"
            )
        if not self.detector_weight and not self.descriptor_weight:
            raise ConfigError("detector_weight and descriptor_weight are both 0: nothing to train")
        if self.data == "photos" and not self.labels:
            raise ConfigError(
                "labels: training on photos needs a folder of pseudo-labels for each folder of "
                "images (superpoint adapt, notebook 03)"
            )

    @property
    def model_config(self) -> ModelConfig:
        """The fields that describe the network."""
        names = [field.name for field in fields(ModelConfig)]
        return ModelConfig(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves: ``model`` in eval mode on the training device (averaged weights if the

    average is on), ``history`` one dictionary per row of history.csv, ``weights_path`` the same
    weights as a float32 safetensors file, ``skipped`` the pictures left out and why.
    """

    model: nn.Module
    history: list[dict[str, float]]
    weights_path: Path
    skipped: list[tuple[Path, str]]


# ------------------------------------------------------------------------- one step's loss


def detector_step(model: nn.Module, batch: Batch, config: TrainConfig) -> Losses:
    """Loss of the detector on a batch of one view.

    Args:
        model: gives {"logits" (B, 65, H/8, W/8)} for images (B, 1, H, W).
        batch: "image" (B, 1, H, W), "labels" (B, H/8, W/8) and "valid" (B, H/8, W/8).
        config: ``detector_weight``.

    Returns:
        "loss", to be minimised, and "detector", its part before weighting; scalars.

    Derived in notebook 02.
    """
    maps = model(batch["image"])
    detector = detector_loss(maps["logits"], batch["labels"], batch["valid"])
    return {"loss": config.detector_weight * detector, "detector": detector}


def pair_step(model: nn.Module, batch: Batch, config: TrainConfig, step: int = 0) -> Losses:
    """Loss of a batch of image pairs: detector on both views, and descriptors across them.

    Both views go through the network in one forward pass unless ``config.one_forward`` says
    otherwise (notebook 07 shows what happens then). The descriptor loss is left out when its weight
    is 0.

    Args:
        model: gives {"logits", "descriptors"} for images (2 B, 1, H, W).
        batch: "image0", "labels0", "valid0", the same with 1, and "H_0to1" (B, 3, 3).
        config: weights and kind of the losses.
        step: seeds the sample of the sparse loss.

    Returns:
        "loss", to be minimised, and its parts before weighting, "detector" (the sum over the two
        views) and "descriptor"; scalars.

    Source: DeTone et al., SuperPoint (2018), equation 1. Derived in notebook 05.
    """
    maps0, maps1 = _pair_maps(model, batch["image0"], batch["image1"], config.one_forward)
    detector = detector_loss(maps0["logits"], batch["labels0"], batch["valid0"]) + detector_loss(
        maps1["logits"], batch["labels1"], batch["valid1"]
    )
    if not config.descriptor_weight:
        return {"loss": config.detector_weight * detector, "detector": detector}
    descriptors0, descriptors1 = maps0["descriptors"], maps1["descriptors"]
    pair = (descriptors0, descriptors1, batch["H_0to1"], batch["valid0"], batch["valid1"])
    match config.descriptor_loss:
        case "hinge":
            descriptor = descriptor_hinge_loss(*pair, config=HINGE_PRESETS[config.hinge])
        case "infonce":
            descriptor = descriptor_infonce_loss(*pair, temperature=config.temperature)
        case "sparse":
            generator = torch.Generator(descriptors0.device)
            generator.manual_seed(config.seed * 1_000_003 + step)
            descriptor = descriptor_sparse_loss(*pair, generator=generator)
    loss = config.detector_weight * detector + config.descriptor_weight * descriptor
    return {"loss": loss, "detector": detector, "descriptor": descriptor}


def _pair_maps(
    model: nn.Module, images0: Tensor, images1: Tensor, one_forward: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    if not one_forward:
        return model(images0), model(images1)
    maps = model(torch.cat((images0, images1)))
    first, second = ({name: m.chunk(2)[view] for name, m in maps.items()} for view in (0, 1))
    return first, second


def _step(model: nn.Module, batch: Batch, config: TrainConfig, step: int = 0) -> Losses:
    if config.views == 2:
        return pair_step(model, batch, config, step)
    return detector_step(model, batch, config)


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """Learning rate of a step, 0 .. steps - 1.

    "one-cycle" rises along a cosine from 1/25 of ``learning_rate`` during the first 30 % of the
    steps, then falls along another to nothing (Smith and Topin, Super-Convergence, 2018, with the
    defaults of ``torch.optim.lr_scheduler.OneCycleLR``); "cosine" only falls.
    """
    peak, last = config.learning_rate, max(config.steps - 1, 1)
    if config.schedule == "constant":
        return peak
    if config.schedule == "cosine":
        return _cosine(peak, 0.0, step / last)
    rise = 0.3 * config.steps - 1
    if step <= rise:
        return _cosine(peak / 25, peak, step / rise)
    return _cosine(peak, peak / 25e4, (step - rise) / (last - rise))


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * fraction)) / 2


# ----------------------------------------------------------------------------- the pieces


def make_model(config: TrainConfig) -> MagicPoint | SuperPoint:
    """The network of a run, with seeded random weights or those of ``config.init``.

    Raises:
        ConfigError: weights that do not fit the network, naming the first differing key.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        kind = SuperPoint if config.model == "superpoint" else MagicPoint
        net = kind(config.model_config)
    if config.init:
        _load_partly(net, config.init)
    return net


def _load_partly(net: nn.Module, name: str) -> None:
    """Loads weights of another run; only a descriptor head may be missing or left over."""
    own, given = net.state_dict(), load_weights(name).state_dict
    fitting = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    free = ("descriptor.", "num_batches_tracked")
    odd = [k for k in [*own, *given] if k not in fitting and not any(part in k for part in free)]
    if odd:
        raise ConfigError(
            f"init: the weights of {name} do not fit this network: {odd[0]!r} and "
            f"{len(odd) - 1} more differ; set norm, norm_order, norm_outputs and channels as there"
        )
    net.load_state_dict(fitting, strict=False)


def _is_descriptor(name: str) -> bool:
    return name.startswith("descriptor")


def make_dataset(config: TrainConfig) -> ShapesDataset | PhotoDataset:
    """The samples of a run, see the ``datasets`` module."""
    photometric = PHOTOMETRIC_PRESETS[config.photometric]
    homography = HOMOGRAPHY_PRESETS[config.homography]
    if config.data == "shapes":
        shapes = ShapesConfig(
            canvas_height=2 * config.height,
            canvas_width=2 * config.width,
            height=config.height,
            width=config.width,
        )
        return ShapesDataset(shapes, photometric, homography, config.seed, config.views)
    return PhotoDataset(
        [resolve_images(source, "training") for source in config.images],
        list(config.labels),
        config.height,
        config.width,
        photometric,
        homography,
        config.seed,
        config.views,
    )


def _make_fabric(config: TrainConfig) -> Fabric:
    from lightning_fabric import Fabric

    processes = int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    with _quiet("lightning_fabric"):  # `_describe` says it in one line
        fabric = Fabric(
            devices=local,
            num_nodes=processes // local,
            strategy="ddp" if processes > 1 else "auto",
            precision="bf16-mixed" if _precision_name(config) == "bfloat16" else "32-true",
        )
        fabric.launch()
    if config.batch_size % fabric.world_size:
        raise ConfigError(
            f"batch_size: {config.batch_size} is no multiple of the {fabric.world_size} processes"
        )
    return fabric


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _make_optimizer(net: nn.Module, config: TrainConfig, device: torch.device) -> Any:
    """Weight decay acts on the kernels only, not on biases and normalisation scales."""
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    fused = device.type in ("cpu", "cuda")
    return kind(groups, lr=config.learning_rate, betas=(0.9, 0.999), fused=fused)


class _Average:
    """Exponential moving average of weights and running statistics.

    The decay starts low, (1 + t) / (10 + t), so that the random start is forgotten.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.live = net.state_dict()
        self.state = {name: value.clone() for name, value in self.live.items()}

    def update(self, step: int) -> None:
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        floats = [name for name, value in self.live.items() if value.is_floating_point()]
        averages = [self.state[name] for name in floats]
        torch._foreach_lerp_(averages, [self.live[name] for name in floats], weight)
        for name in self.live.keys() - set(floats):
            self.state[name].copy_(self.live[name])


def _batches(
    dataset: ShapesDataset | PhotoDataset, config: TrainConfig, fabric: Fabric, start: int
) -> Iterator[Batch]:
    """Batches of steps start .. steps - 1 on the device; each process takes its share."""
    on_gpu = fabric.device.type == "cuda"
    share = config.batch_size // fabric.world_size
    first = fabric.global_rank * share
    starts = (t * config.batch_size + first for t in range(start, config.steps))
    workers = config.workers
    if workers is None:
        workers = max(1, min(12, (os.cpu_count() or 1) - 2)) if on_gpu else 0
    loader = DataLoader(
        dataset,
        batch_sampler=(list(range(i, i + share)) for i in starts),
        num_workers=workers,
        pin_memory=on_gpu,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )
    for batch in loader:
        yield {key: value.to(fabric.device, non_blocking=True) for key, value in batch.items()}


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process decides when to stop
    cv2.setNumThreads(0)


@contextmanager
def _deferred_interrupt(enabled: bool) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a flag, so that no step is left half done; a second one raises.

    Only the main thread may handle signals; elsewhere, and under torchrun, nothing is changed.
    """
    asked = False

    def remember(signum: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    if not enabled or threading.current_thread() is not threading.main_thread():
        yield lambda: asked
        return
    previous = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, previous)


# -------------------------------------------------------------------------------- the run


class _Run:
    """State of a run between steps, and its checkpoints.

    A checkpoint is a set of files named by their step and ``checkpoint.json``, which is replaced
    last: whatever is interrupted, it names a complete set.
    """

    def __init__(self, config: TrainConfig, run_dir: Path, fabric: Fabric) -> None:
        self.config, self.run_dir, self.fabric = config, run_dir, fabric
        self.net = make_model(config).to(fabric.device)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if not config.descriptor_weight:
            for name, parameter in self.net.named_parameters():
                parameter.requires_grad_(not _is_descriptor(name))
        self.optimizer = _make_optimizer(self.net, config, fabric.device)
        self.average = _Average(self.net, config.ema_decay) if config.ema_decay else None
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.sums = torch.zeros(len(_PARTS), device=fabric.device)
        self.summed = 0

    @property
    def folder(self) -> Path:
        return self.run_dir / "checkpoint"

    def files(self, step: int) -> dict[str, Path]:
        stem = f"step-{step:08d}"
        return {
            "model": self.folder / f"{stem}.model.safetensors",
            "ema": self.folder / f"{stem}.ema.safetensors",
            "optimizer": self.folder / f"{stem}.optimizer.pt",
        }

    def save(self) -> None:
        if not self.fabric.is_global_zero:
            return
        files = self.files(self.step)
        self.write_weights(files["model"], self.net.state_dict())
        if self.average:
            self.write_weights(files["ema"], self.average.state)
        rest = {
            "optimizer": self.optimizer.state_dict(),
            "sums": self.sums.cpu(),
            "summed": self.summed,
        }
        with atomic_path(files["optimizer"]) as path:
            torch.save(rest, path)
        record = {"step": self.step, "seconds": round(self.seconds, 3)}
        write_json(self.run_dir / "checkpoint.json", record)
        for path in self.folder.iterdir():
            if path not in files.values():
                path.unlink()

    def write_weights(self, path: Path, state: dict[str, Tensor]) -> None:
        metadata = {"step": self.step, "seconds": round(self.seconds, 3)}
        save_weights(path, state, to_dict(self.net.config), metadata, dtype=torch.float32)

    def load(self) -> None:
        record = self.run_dir / "checkpoint.json"
        if not record.is_file():
            return
        values = json.loads(record.read_text())
        self.step, self.seconds = values["step"], values["seconds"]
        files = self.files(self.step)
        self.net.load_state_dict(load_weights(files["model"]).state_dict)
        if self.average:
            for name, value in load_weights(files["ema"]).state_dict.items():
                self.average.state[name].copy_(value)
        rest = torch.load(files["optimizer"], map_location=self.fabric.device, weights_only=True)
        self.optimizer.load_state_dict(rest["optimizer"])
        self.sums.copy_(rest["sums"])
        self.summed = rest["summed"]
        self.history = [
            row for row in read_history(self.run_dir / "history.csv") if row["step"] <= self.step
        ]

    def add(self, losses: Losses, gradient_norm: Tensor) -> None:
        zero = self.sums.new_zeros(())
        parts = {**losses, "gradient_norm": gradient_norm}
        self.sums += torch.stack([parts.get(name, zero).detach().float() for name in _PARTS])
        self.summed += 1

    def check_finite(self) -> None:
        """One look at the device for all steps since the last look."""
        if bool(self.sums.isfinite().all()):
            return
        means = dict(zip(_PARTS, (self.sums / self.summed).tolist(), strict=True))
        kept = (self.run_dir / "checkpoint.json").is_file()
        raise NonFiniteLossError(
            f"the loss or its gradient is not finite in the {self.summed} steps up to {self.step} "
            f"(means {means}): lower learning_rate, set gradient_clip (for example 1.0) or "
            "precision 'float32'."
            + (f" The last good checkpoint is kept in {self.folder}" if kept else "")
        )

    def log(self, images_per_second: float) -> dict[str, float]:
        """Means of the parts since the last row; a new row of history.csv."""
        means = cast(Tensor, self.fabric.all_reduce(self.sums / self.summed, reduce_op="mean"))
        row: dict[str, float] = {"step": self.step}
        row |= dict(zip(_PARTS, means.tolist(), strict=True))
        row["learning_rate"] = learning_rate_at(self.step - 1, self.config)
        row["images_per_second"] = round(images_per_second, 2)
        row["seconds"] = round(self.seconds, 3)
        self.history.append(row)
        self.sums.zero_()
        self.summed = 0
        return row


def train(
    config: TrainConfig, run_dir: str | Path, resume: bool = True, progress: bool = True
) -> TrainResult:
    """Train a network, or carry on where an earlier call for the same folder stopped.

    Args:
        config: the run; ``RECIPES`` has ready ones.
        run_dir: folder of the run: config.json, history.csv (flushed at every row), checkpoint/,
            and at the end weights.safetensors and run.json (versions, machine, duration).
        resume: go on from the folder's checkpoint; False starts again and drops it.
        progress: show a progress bar and a line about the device.

    Returns:
        The trained network and its history; at once, without training, where the run is complete.

    Raises:
        ConfigError: the folder belongs to a run with another configuration (keys are named), or
            ``init`` does not fit.
        NonFiniteLossError: the loss or the gradient is not finite; the checkpoint before is kept.
        KeyboardInterrupt: after Ctrl-C, once the running step is finished and saved.

    Convention: resuming is exact to the bit on a CPU at a fixed number of threads; on a GPU some
    sums are made in changing order.

    Derived in notebooks 02 and 05.
    """
    run_dir = Path(run_dir)
    fabric = _make_fabric(config)
    if fabric.is_global_zero:
        _claim(run_dir, config, resume)
    fabric.barrier()
    dataset = make_dataset(config)
    run = _Run(config, run_dir, fabric)
    run.load()
    if run.step < config.steps:
        if progress and fabric.is_global_zero:
            print(_describe(config, fabric))
        _train_steps(run, dataset, progress and fabric.is_global_zero)
    return _finish(run, dataset)


def _train_steps(run: _Run, dataset: ShapesDataset | PhotoDataset, progress: bool) -> None:
    config, fabric = run.config, run.fabric
    module = cast(nn.Module, torch.compile(run.net)) if config.compile else run.net
    model, optimizer = fabric.setup(module, run.optimizer)
    freeze_at = config.freeze_norm_after * config.steps
    clip = config.gradient_clip or math.inf
    model.train()
    if fabric.is_global_zero:
        _write_history(run.run_dir / "history.csv", run.history)
    earlier, started = run.seconds, time.perf_counter()
    logged_at, logged_step = started, run.step
    bar = tqdm(total=config.steps, initial=run.step, disable=not progress, unit="step")

    with _deferred_interrupt(fabric.world_size == 1) as interrupted, bar:
        for batch in _batches(dataset, config, fabric, run.step):
            if run.step >= freeze_at:
                _freeze_norm(run.net)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(run.step, config)
            losses = _step(model, batch, config, run.step)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(losses["loss"])
            norm = nn.utils.clip_grad_norm_(run.net.parameters(), clip)
            optimizer.step()
            if run.average:
                run.average.update(run.step)
            run.add(losses, norm)
            run.step += 1
            bar.update()

            stop = interrupted()
            last = run.step == config.steps
            log = run.step % config.log_every == 0 or last
            checkpoint = run.step % config.checkpoint_every == 0 or last or stop
            if log or checkpoint:
                run.check_finite()
                now = time.perf_counter()
                run.seconds = earlier + now - started
            if log:
                images = (run.step - logged_step) * config.batch_size * config.views
                row = run.log(images / (now - logged_at))
                logged_at, logged_step = now, run.step
                bar.set_postfix(loss=f"{row['loss']:.3f}", lr=f"{row['learning_rate']:.1e}")
                if fabric.is_global_zero:
                    _append_history(run.run_dir / "history.csv", row)
            if checkpoint:
                run.save()
            if stop:
                raise KeyboardInterrupt(
                    f"stopped after step {run.step} of {config.steps}; saved in {run.run_dir}, the "
                    "same call carries on"
                )


def _freeze_norm(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _finish(run: _Run, dataset: ShapesDataset | PhotoDataset) -> TrainResult:
    weights_path = run.run_dir / "weights.safetensors"
    if run.average:
        run.net.load_state_dict(run.average.state)
    run.net.eval().requires_grad_(True)
    if run.fabric.is_global_zero and not weights_path.is_file():
        run.write_weights(weights_path, run.net.state_dict())
        facts = _facts(run.config, run.fabric) | {
            "steps": run.step,
            "seconds": round(run.seconds, 1),
        }
        write_json(run.run_dir / "run.json", facts)
    run.fabric.barrier()
    skipped = list(getattr(dataset, "skipped", []))
    return TrainResult(run.net, run.history, weights_path, skipped)


def _claim(run_dir: Path, config: TrainConfig, resume: bool) -> None:
    """Checks that the folder holds this run or none, and writes its configuration."""
    path = run_dir / "config.json"
    if not resume:
        for name in ("checkpoint.json", "weights.safetensors", "history.csv", "run.json"):
            (run_dir / name).unlink(missing_ok=True)
        shutil.rmtree(run_dir / "checkpoint", ignore_errors=True)
    elif path.is_file():
        # A field that is younger than the run had its default then.
        before, now = to_dict(TrainConfig()) | json.loads(path.read_text()), to_dict(config)
        changed = [
            key
            for key in sorted(before.keys() | now.keys())
            if key not in _FREE_KEYS and before.get(key) != now.get(key)
        ]
        if changed:
            listed = ", ".join(f"{k} ({before.get(k)!r} -> {now.get(k)!r})" for k in changed)
            raise ConfigError(
                f"{run_dir} holds a run with another configuration: {listed}. Use another folder, "
                "or resume=False to drop it and start again"
            )
    write_json(path, to_dict(config))


def _describe(config: TrainConfig, fabric: Fabric) -> str:
    kind = "pairs" if config.views == 2 else "images"
    processes = f"{fabric.world_size} x " if fabric.world_size > 1 else ""
    return (
        f"{config.model}: {config.steps} steps of {config.batch_size} {kind}, {config.height} x "
        f"{config.width}, on {processes}{_machine(fabric.device)}, {_precision_name(config)}"
    )


def _precision_name(config: TrainConfig) -> str:
    """What the configuration means on the device that Fabric will choose."""
    mps = torch.backends.mps.is_available()
    name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    return "bfloat16" if uses_bfloat16(config.precision, torch.device(name)) else "float32"


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)} of {_processor()}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _facts(config: TrainConfig, fabric: Fabric) -> dict[str, Any]:
    return {
        "commit": _commit(),
        "machine": _machine(fabric.device),
        "processes": fabric.world_size,
        "precision": _precision_name(config),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _commit() -> str:
    """The checkout's commit, with "+" for uncommitted changes; "unknown" outside a checkout."""
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


# ---------------------------------------------------------------------------- its results


def read_history(path: str | Path) -> list[dict[str, float]]:
    """Rows of a run's history.csv; empty where there is none yet.

    "loss", "detector", "descriptor" and "gradient_norm" are means since the row before, "step" is
    the number of steps done, "seconds" counts training only, over all sessions.
    """
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [
            {key: int(value) if key == "step" else float(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def _write_history(path: Path, rows: list[dict[str, float]]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _append_history(path: Path, row: dict[str, float]) -> None:
    with path.open("a", newline="") as file:
        csv.DictWriter(file, _COLUMNS).writerow(row)


def release(
    run_dir: str | Path, output: str | Path, metadata: dict[str, Any] | None = None
) -> Path:
    """Write the weights of a finished run for others: folded, float16, with their origin.

    Batch normalisation between convolution and ReLU is folded into the convolutions; the released
    network has none and so cannot behave differently in train mode. Other networks are written as
    they are. A descriptor head that no loss has trained is left out.

    Args:
        run_dir: folder of a finished ``train``.
        output: the .safetensors file to write.
        metadata: more to say (title, licence, figures); goes before what the run recorded: its
            configuration, seed, steps, commit, duration in seconds and machine.

    Returns:
        ``output``.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    run_dir, output = Path(run_dir), Path(output)
    weights_path = run_dir / "weights.safetensors"
    if not weights_path.is_file():
        raise FileNotFoundError(
            f"{weights_path} is missing: finish the training of {run_dir} first"
        )
    config = json.loads((run_dir / "config.json").read_text())
    kind = SuperPoint if config["descriptor_weight"] else MagicPoint
    net = kind.from_pretrained(str(weights_path)).eval()
    if net.config.norm == "batch" and net.config.norm_order == "conv-norm-relu":
        net = fold_batch_norm(net)
    facts = json.loads((run_dir / "run.json").read_text())
    # Of paths, what means something on another machine.
    config |= {key: [_short(path) for path in config[key]] for key in ("images", "labels")}
    config["init"] = _short(config["init"])
    everything = {**(metadata or {}), **facts, "seed": config["seed"], "training": config}
    save_weights(output, net.state_dict(), to_dict(net.config), everything, dtype=torch.float16)
    return output


# --------------------------------------------------------------------- the two modes of a network


def mode_losses(
    model: nn.Module, config: TrainConfig, batches: Iterable[Batch]
) -> dict[str, dict[str, float]]:
    """Mean losses of a network in train mode and in eval mode, on the same batches.

    In train mode batch normalisation uses the statistics of each batch (of each view of it, unless
    ``config.one_forward``), in eval mode its running statistics. A network without it gives the
    same losses twice.

    Args:
        model: a network that fits ``config``. It stays as it is: mode, weights and statistics.
        config: which losses; ``detector_step`` or ``pair_step`` by ``views``.
        batches: at least one, on any device. For held-out ones, collate a dataset of another seed.

    Returns:
        {"train": losses, "eval": losses}, each with the keys of the step, means over the batches.

    Raises:
        ValueError: there is no batch.

    Derived in notebook 07.
    """
    twins = {"train": copy.deepcopy(model).train(), "eval": copy.deepcopy(model).eval()}
    sums: dict[str, dict[str, float]] = {mode: {} for mode in twins}
    count = 0
    with torch.no_grad():
        for batch in _on_device_of(model, batches):
            for mode, twin in twins.items():
                for name, value in _step(twin, batch, config, count).items():
                    sums[mode][name] = sums[mode].get(name, 0.0) + value.item()
            count += 1
    if not count:
        raise ValueError("mode_losses needs at least one batch, got none")
    return {
        mode: {name: total / count for name, total in parts.items()} for mode, parts in sums.items()
    }


def reestimate_norm(model: M, config: TrainConfig, batches: Iterable[Batch]) -> M:
    """Measure the running statistics of batch normalisation anew, with the weights held still.

    The running statistics of training are an exponential average over batches that the network saw
    with earlier weights; here they become the plain average over ``batches`` with the last ones
    ("precise" batch normalisation: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021,
    section 3).

    Args:
        model: a network that fits ``config``; left as it was.
        config: how a batch is sent through (``views``, ``one_forward``).
        batches: at least one; two passes count as two batches.

    Returns:
        A copy in eval mode. A network without batch normalisation is only copied.

    Raises:
        ValueError: there is no batch.

    Derived in notebook 07.
    """
    twin = copy.deepcopy(model).train()
    norms = [module for module in twin.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    count = 0
    with torch.no_grad():
        for batch in _on_device_of(model, batches):
            _step(twin, batch, config)
            count += 1
    if not count:
        raise ValueError("reestimate_norm needs at least one batch, got none")
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return twin.eval()


def _on_device_of(model: nn.Module, batches: Iterable[Batch]) -> Iterator[Batch]:
    device = next(model.parameters()).device
    for batch in batches:
        yield {key: value.to(device) for key, value in batch.items()}


def _short(path: str) -> str:
    return "/".join(Path(path).parts[-2:])


# -------------------------------------------------------------------------------- recipes

_ORIGINAL = TrainConfig(
    model="superpoint",
    norm="batch",
    norm_order="conv-relu-norm",
    norm_outputs=True,
    one_forward=False,
    data="photos",
    images=("auto",),
    labels=("runs/labels",),
    height=240,
    width=320,
    photometric="coco_superpoint",
    homography="coco",
    views=2,
    descriptor_loss="hinge",
    steps=200_000,
    batch_size=2,
    optimizer="adam",
    weight_decay=0.0,
    schedule="constant",
)

_PAIRS = TrainConfig(
    model="superpoint",
    data="photos",
    images=("auto",),
    labels=("runs/labels",),
    photometric="coco_superpoint",
    homography="coco",
    views=2,
    batch_size=12,
    gradient_clip=5.0,
)

#: Ready configurations. magicpoint-synthetic, magicpoint-adapted and superpoint train the bundled
#: weights, each starting from the one before (``init``). original-stage1 and -stage2 (to be given
#: stage 1's weights) are the training steps of SuperPoint-Pytorch's README, one-stage its loss as
#: published, both heads from scratch.
RECIPES: dict[str, TrainConfig] = {
    "magicpoint-synthetic": TrainConfig(steps=1500, freeze_norm_after=0.85, gradient_clip=5.0),
    "magicpoint-adapted": replace(
        _PAIRS, height=120, width=160, steps=500, learning_rate=1e-3, freeze_norm_after=0.8
    ),
    "superpoint": replace(
        _PAIRS,
        height=144,
        width=192,
        descriptor_weight=1.0,
        descriptor_loss="infonce",
        temperature=0.05,
        steps=1300,
        batch_size=10,
        learning_rate=1.5e-3,
        freeze_norm_after=0.85,
    ),
    "original-stage1": replace(_ORIGINAL, learning_rate=0.01),
    "original-stage2": replace(
        _ORIGINAL,
        learning_rate=1e-4,
        hinge="zeng-stage1",
        descriptor_weight=HINGE_LAMBDAS["zeng-stage1"],
    ),
    "one-stage": replace(
        _ORIGINAL,
        learning_rate=1e-4,
        hinge="zeng",
        descriptor_weight=HINGE_LAMBDAS["zeng"],
    ),
}
