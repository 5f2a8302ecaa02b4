"""The loop: batch after batch, until the last step, a loss that is not finite, or Ctrl-C."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import cv2
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from superpoint_lib.batches import Draws, RawSamples, collate_raw, make_batch
from superpoint_lib.config import ConfigError
from superpoint_lib.datasets import Samples
from superpoint_lib.locks import locked
from superpoint_lib.memory import keep_freed_memory
from superpoint_lib.paths import write_json
from superpoint_lib.training.config import TrainConfig
from superpoint_lib.training.facts import describe, run_facts
from superpoint_lib.training.pieces import make_dataset, make_fabric
from superpoint_lib.training.run import Run, append_history, claim, steps_done, write_history
from superpoint_lib.training.steps import (
    Batch,
    batch_losses,
    learning_rate_at,
    losses_of_maps,
)

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_DRAWS_STREAM = 3  # another than those of the datasets, whose seeds begin alike


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves.

    Attributes:
        model: in eval mode on the training device, with averaged weights if the average is on.
        history: one dictionary per row of history.csv.
        weights_path: the same weights as a float32 safetensors file.
        skipped: the pictures left out and why; none where the run was complete before, for then
            it looks at no picture.
    """

    model: nn.Module
    history: list[dict[str, float]]
    weights_path: Path
    skipped: list[tuple[Path, str]]


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
        The trained network and its history; at once, without training, where the run is complete:
        its pictures, labels and ``init`` may be gone by then.

    Raises:
        ConfigError: the folder belongs to a run with another configuration (keys are named), or
            another process is training in it, or its checkpoint is damaged, or ``init`` does not
            fit.
        NonFiniteLossError: the loss or the gradient is not finite; the checkpoint before is kept.
        KeyboardInterrupt: after Ctrl-C, once the running step is finished and saved.

    Convention: resuming is exact to the bit on a CPU at a fixed number of threads; on a GPU some
    sums are made in changing order.

    Derived in notebooks 02 and 05.
    """
    keep_freed_memory()
    run_dir = Path(run_dir)
    fabric = make_fabric(config)
    done = steps_done(run_dir, config) if resume else None
    # What cannot start leaves nothing behind that a corrected call would trip over.
    dataset = None if done == config.steps else make_dataset(config)
    run = Run(config, run_dir, fabric, begun=done is not None)
    with locked(run_dir, ConfigError) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            claim(run_dir, config, resume)
        fabric.barrier()
        run.load()
        if dataset is not None:
            if progress and fabric.is_global_zero:
                print(describe(config, fabric))
            _train_steps(run, dataset, progress and fabric.is_global_zero)
        return _finish(run, list(getattr(dataset, "skipped", [])), trained=dataset is not None)


def _train_steps(run: Run, dataset: Samples, progress: bool) -> None:
    config, fabric = run.config, run.fabric
    module = cast(nn.Module, torch.compile(run.net)) if config.compile else run.net
    losses_of = torch.compile(losses_of_maps) if config.compile else losses_of_maps
    model, optimizer = fabric.setup(module, run.optimizer)
    freeze_at = config.freeze_norm_after * config.steps
    clip = config.gradient_clip or math.inf
    model.train()
    if fabric.is_global_zero:
        write_history(run.run_dir / "history.csv", run.history)
    earlier, started = run.seconds, time.perf_counter()
    logged_at, logged_step = started, run.step
    # Ten times a second, a minute of a notebook's bar is 2,000 messages. A client that reads none
    # while a cell runs, such as nbval, loses those beyond, the cell's end among them.
    bar = tqdm(
        total=config.steps, initial=run.step, mininterval=0.5, disable=not progress, unit="step"
    )

    with _deferred_interrupt(fabric.world_size == 1) as interrupted, bar:
        for batch in _batches(dataset, config, fabric, run.step):
            if run.step >= freeze_at:
                _freeze_norm(run.net)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(run.step, config)
            with fabric.autocast():
                losses = batch_losses(model, batch, config, run.step, losses_of)
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
                    append_history(run.run_dir / "history.csv", row)
            if checkpoint:
                run.save()
            if stop:
                break
        # Asked again: it may have come while the last step was saved.
        if interrupted():
            raise KeyboardInterrupt(
                f"stopped after step {run.step} of {config.steps}; saved in {run.run_dir}, the "
                "same call carries on"
            )


def _freeze_norm(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


def _finish(run: Run, skipped: list[tuple[Path, str]], trained: bool) -> TrainResult:
    weights_path, facts_path = run.run_dir / "weights.safetensors", run.run_dir / "run.json"
    if run.average:
        run.net.load_state_dict(run.average.state)
    run.net.eval().requires_grad_(True)
    complete = not trained and weights_path.is_file() and facts_path.is_file()
    if run.fabric.is_global_zero and not complete:
        commits = run.commits or ["unknown"]
        facts = {"commit": commits[-1], "earlier_commits": commits[:-1]}
        facts |= run_facts(run.config, run.fabric) | {
            "steps": run.step,
            "seconds": round(run.seconds, 1),
        }
        write_json(facts_path, facts)
        # Last, for whoever finds the weights takes the run for complete.
        run.write_weights(weights_path, run.net.state_dict())
    run.fabric.barrier()
    return TrainResult(run.net, run.history, weights_path, skipped)


def _batches(dataset: Samples, config: TrainConfig, fabric: Fabric, start: int) -> Iterator[Batch]:
    """Batches of steps start .. steps - 1 on the device; each process takes its share."""
    on_gpu = fabric.device.type == "cuda"
    share = config.batch_size // fabric.world_size
    first = fabric.global_rank * share
    starts = (t * config.batch_size + first for t in range(start, config.steps))
    workers = config.workers
    if workers is None:
        workers = max(1, min(12, (os.cpu_count() or 1) - 2)) if on_gpu else 0
    on_device = config.augment_on == "device" or (config.augment_on == "auto" and on_gpu)
    loader = DataLoader(
        RawSamples(dataset) if on_device else dataset,
        collate_fn=collate_raw if on_device else None,
        batch_sampler=(list(range(i, i + share)) for i in starts),
        num_workers=workers,
        pin_memory=on_gpu,
        prefetch_factor=4 if workers else None,
        # Forked workers share the pictures that are in memory already.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )
    for step, loaded in enumerate(loader, start):
        batch = {key: value.to(fabric.device, non_blocking=True) for key, value in loaded.items()}
        if on_device:
            draws = Draws(fabric.device, config.seed, step, fabric.global_rank, _DRAWS_STREAM)
            batch = make_batch(batch, config.views, dataset.photometric, draws, dataset.border)
        yield batch


def _start_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training process decides when to stop
    # One thread each. On a CPU the network keeps all of its own: a batch costs a worker a small
    # part of a step, a thread less would cost the network much more.
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    # It works where the network leaves a core idle: batches wait for it, rarely it for them.
    if hasattr(os, "nice"):
        os.nice(19)


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
