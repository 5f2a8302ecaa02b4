"""A run between its steps: its state, and what its folder holds of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from superpoint_lib.checkpoints import BUNDLED_NAMES, load_weights, save_weights
from superpoint_lib.config import ConfigError, to_dict
from superpoint_lib.digests import commit_name, digest, weights_digest
from superpoint_lib.machine import training_format
from superpoint_lib.paths import atomic_path, list_files, write_json
from superpoint_lib.training.config import TrainConfig
from superpoint_lib.training.pieces import Average, make_model, make_optimizer
from superpoint_lib.training.steps import Losses, learning_rate_at

if TYPE_CHECKING:
    from lightning_fabric import Fabric

#: Keys that change how a run is watched or fed, not what it computes.
_FREE_KEYS = frozenset({"log_every", "checkpoint_every", "workers", "device"})
_PARTS = (
    "loss",
    "detector",
    "position",
    "agreement",
    "repeatability",
    "descriptor",
    "gradient_norm",
)
_COLUMNS = ("step", *_PARTS, "learning_rate", "images_per_second", "seconds")


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient became infinite or not a number; the message says where."""


class Run:
    """State of a run between steps, and its checkpoints.

    A checkpoint is a set of files named by their step and ``checkpoint.json``, which is replaced
    last: whatever is interrupted, it names a complete set.

    Args:
        config: the run.
        run_dir: its folder.
        fabric: launched.
        begun: a checkpoint will be loaded: ``config.init`` is not read, and may be gone.
    """

    def __init__(
        self, config: TrainConfig, run_dir: Path, fabric: Fabric, begun: bool = False
    ) -> None:
        self.config, self.run_dir, self.fabric = config, run_dir, fabric
        start = dataclasses.replace(config, init="") if begun else config
        self.net = make_model(start).to(fabric.device)
        self.net.to(memory_format=training_format(fabric.device))  # type: ignore[call-overload]
        if not config.descriptor_weight:
            for name, parameter in self.net.named_parameters():
                parameter.requires_grad_(not _is_descriptor(name))
        self.optimizer = make_optimizer(self.net, config, fabric.device)
        self.average = Average(self.net, config.ema_decay) if config.ema_decay else None
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []
        self.sums = torch.zeros(len(_PARTS), device=fabric.device)
        self.summed = 0
        # Of the code at the start of each session: by the end of a long one it may be another.
        self.commits = [commit_name()]

    @property
    def folder(self) -> Path:
        """Where the checkpoint's files lie."""
        return self.run_dir / "checkpoint"

    @property
    def files(self) -> dict[str, Path]:
        """The files of the checkpoint after as many steps as are done."""
        stem = f"step-{self.step:08d}"
        return {
            "model": self.folder / f"{stem}.model.safetensors",
            "ema": self.folder / f"{stem}.ema.safetensors",
            "optimizer": self.folder / f"{stem}.optimizer.pt",
        }

    def save(self) -> None:
        """Writes a checkpoint, then drops those before it, and what a kill left of one."""
        if not self.fabric.is_global_zero:
            return
        files = self.files
        self.write_weights(files["model"], self.net.state_dict())
        if self.average:
            self.write_weights(files["ema"], self.average.state)
        rest = {
            "optimizer": self.optimizer.state_dict(),
            "sums": dict(zip(_PARTS, self.sums.tolist(), strict=True)),
            "summed": self.summed,
        }
        with atomic_path(files["optimizer"]) as path:
            torch.save(rest, path)
        record = {
            "step": self.step,
            "seconds": round(self.seconds, 3),
            "commits": self.commits,
        }
        write_json(self.run_dir / "checkpoint.json", record)
        for path in (*self.folder.glob("step-*"), *self.folder.glob(f".{12 * '?'}.*")):
            if path not in files.values() and path.is_file():
                path.unlink()

    def write_weights(self, path: Path, state: dict[str, Tensor]) -> None:
        """Writes weights in float32, with the step and the seconds so far."""
        metadata = {"step": self.step, "seconds": round(self.seconds, 3)}
        save_weights(path, state, to_dict(self.net.config), metadata, dtype=torch.float32)

    def load(self) -> None:
        """Goes back to the checkpoint of the folder; does nothing where there is none.

        Raises:
            ConfigError: it is damaged, or files of it are missing.
        """
        record = self.run_dir / "checkpoint.json"
        if not record.is_file():
            return
        values = _read_record(record)
        self.step, self.seconds = values["step"], values["seconds"]
        earlier = values.get("commits", [])
        finished = self.step == self.config.steps  # and only looked at now
        self.commits = earlier if finished else list(dict.fromkeys(earlier + self.commits))
        try:
            self._load_files(self.files)
        except torch.OutOfMemoryError:  # a RuntimeError, like those of damaged files
            raise
        except (OSError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
            raise _damaged(self.folder, error) from error
        self.history = [
            row for row in read_history(self.run_dir / "history.csv") if row["step"] <= self.step
        ]

    def _load_files(self, files: dict[str, Path]) -> None:
        self.net.load_state_dict(load_weights(files["model"]).state_dict)
        if self.average:
            for name, value in load_weights(files["ema"]).state_dict.items():
                self.average.state[name].copy_(value)
        rest = torch.load(files["optimizer"], map_location=self.fabric.device, weights_only=True)
        self.optimizer.load_state_dict(rest["optimizer"])
        # Of a checkpoint that does not name its sums, the row that was begun starts again.
        if isinstance(rest["sums"], dict):
            sums = [rest["sums"].get(name, 0.0) for name in _PARTS]
            self.sums.copy_(torch.tensor(sums))
            self.summed = rest["summed"]

    def add(self, losses: Losses, gradient_norm: Tensor) -> None:
        """Adds a step's parts to the sums since the last row, without waiting for the device."""
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
            "precision 'float32', in another folder or with resume=False (--no-resume)."
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


def _is_descriptor(name: str) -> bool:
    return name.startswith("descriptor")


def steps_done(run_dir: Path, config: TrainConfig) -> int | None:
    """The step of the folder's checkpoint; None where there is none. Changes nothing.

    Raises:
        ConfigError: the folder belongs to a run with another configuration (keys are named), or the
            weights it started from or its labels are others by now. They may be gone.
    """
    path, record = run_dir / "config.json", run_dir / "checkpoint.json"
    # Where nothing was learnt there is nothing to protect.
    if path.is_file() and (record.is_file() or (run_dir / "weights.safetensors").is_file()):
        # A field that is younger than the run had its default then.
        before, now = to_dict(TrainConfig()) | _read_record(path), to_dict(config)
        changed = [
            key
            for key in sorted(before.keys() | now.keys())
            if key not in _FREE_KEYS and before.get(key) != now.get(key)
        ]
        if changed:
            listed = ", ".join(f"{k} ({before.get(k)!r} -> {now.get(k)!r})" for k in changed)
            raise ConfigError(
                f"{run_dir} holds a run with another configuration: {listed}. Use another folder, "
                "or resume=False (--no-resume) to drop it and start again"
            )
        sources = run_dir / "sources.json"
        learnt_from = _read_record(sources) if sources.is_file() else {}
        replaced = [
            source
            for source, content in _source_digests(config).items()
            if learnt_from.get(source, content) != content
        ]
        if replaced:
            raise ConfigError(
                f"{run_dir} holds a run of other contents of {', '.join(replaced)}. Use another "
                "folder, or resume=False (--no-resume) to drop it and start again"
            )
    return _read_record(record)["step"] if record.is_file() else None


def _source_digests(config: TrainConfig) -> dict[str, str]:
    """What a run starts and learns from, the weights and the labels, each by its contents."""
    digests = {}
    if config.init and (config.init in BUNDLED_NAMES or Path(config.init).exists()):
        # Two files of the same weights may differ in their bytes.
        state = load_weights(config.init).state_dict
        digests[config.init] = weights_digest(state)
    for folder in filter(os.path.isdir, config.labels):
        files = list_files(Path(folder), {".npz"})
        digests[folder] = digest(
            part
            for file in files
            for part in (os.fsencode(file.relative_to(folder)), file.read_bytes())
        )
    return digests


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError(f"it holds {record!r}")
    except ValueError as error:
        raise _damaged(path, error) from error
    return record


def _damaged(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} is damaged ({error}); resume=False (--no-resume) drops the run and starts anew"
    )


def claim(run_dir: Path, config: TrainConfig, resume: bool) -> None:
    """Writes the configuration; without ``resume``, drops the run that the folder holds.

    Raises:
        ConfigError: what would be dropped is what the run is to start from. Nothing is dropped.
    """
    if not resume:
        here = run_dir.resolve()
        own_file = config.init and config.init not in BUNDLED_NAMES
        if own_file and Path(config.init).resolve().is_relative_to(here):
            raise ConfigError(
                f"init: {config.init} belongs to the run that resume=False (--no-resume) drops; "
                "use another folder for the new run"
            )
        for name in (
            "checkpoint.json",
            "weights.safetensors",
            "history.csv",
            "run.json",
            "sources.json",
        ):
            (run_dir / name).unlink(missing_ok=True)
        shutil.rmtree(run_dir / "checkpoint", ignore_errors=True)
    write_json(run_dir / "config.json", to_dict(config))
    if not (run_dir / "checkpoint.json").is_file():
        write_json(run_dir / "sources.json", _source_digests(config))


def read_history(path: str | Path) -> list[dict[str, float]]:
    """Rows of a run's history.csv; empty where there is none yet.

    "loss", its parts and "gradient_norm" are means since the row before, "step" is
    the number of steps done, "seconds" counts training only, over all sessions. A part that the run
    did not record is NaN; a last row that was not written to its end is left out.
    """
    path = Path(path)
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[_COLUMNS[-1]]]
    return [
        {"step": int(row["step"])}
        | {key: float(row.get(key) or "nan") for key in _COLUMNS if key != "step"}
        for row in rows
    ]


def write_history(path: Path, rows: list[dict[str, float]]) -> None:
    """Writes history.csv anew."""
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def append_history(path: Path, row: dict[str, float]) -> None:
    """Adds a row to history.csv."""
    with path.open("a", newline="") as file:
        csv.DictWriter(file, _COLUMNS).writerow(row)
