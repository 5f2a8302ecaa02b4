"""Train the bundled SuperPoint a little further in several ways, and compare them pair by pair.

    python tools/ablate.py --labels runs/labels    # writes results/ablations.json

Each variant differs from ``plain`` in what it is named after and starts from the same weights with
the same seed. All are measured on warped pairs of pictures that no network was trained on
(``evaluation.mini.warped_pairs``); the intervals are paired bootstraps over pictures. Interrupted,
the same command goes on where it stopped.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from superpoint_lib import SuperPoint
from superpoint_lib.config import replace, to_dict
from superpoint_lib.evaluation import hpatches
from superpoint_lib.evaluation.mini import warped_pairs
from superpoint_lib.evaluation.results import json_ready
from superpoint_lib.paths import results_dir, runs_dir, write_json
from superpoint_lib.training import RECIPES, TrainConfig, train
from superpoint_lib.training.facts import commit_name, machine_name

#: What each variant changes.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "soft targets": {"soft_targets": True, "label_threshold": 0.0},
    "positions": {"position_weight": 0.5},
    "agreement": {"agreement_weight": 2.0},
    "repeatability": {"repeatability_weight": 6.0},
    "any angle": {"homography": "any-angle"},
    "any scale": {"homography": "any-scale"},
    "strong changes of gray levels": {"photometric": "strong"},
    "enlarged photographs": {"enlarge": 1.5},
    "sharpened targets": {"soft_targets": True, "label_threshold": 0.0, "sharpen": 2.0},
    "drawn shapes among them": {"drawn_every": 9},
}
SHOWN = ("repeatability", "localization_error", "homography@1", "homography@3", "correct_matches@3")


@dataclass(frozen=True)
class Options:
    """Train and compare the variants."""

    labels: Path
    """Folder of pseudo-labels of data/coco/train2017."""
    init: str = "superpoint"
    """Weights they all start from; also measured as they are."""
    steps: int = 150
    """Steps of each training, 10 pairs each."""
    only: tuple[str, ...] = ()
    """Some of the variants; plain is always among them."""
    run_dir: Path = runs_dir() / "ablations"
    """Where the trainings lie."""
    output: Path = results_dir() / "ablations.json"
    """Where the comparison goes."""


def configuration(options: Options, name: str) -> TrainConfig:
    """The training of a variant: the recipe of the bundled weights, from finished ones on."""
    further = {
        "norm": "none",
        "init": options.init,
        "labels": (str(options.labels),),
        "label_threshold": 0.015,
        "learning_rate": 5e-4,
        "ema_decay": 0.99,
    }
    base = replace(RECIPES["superpoint"], **further)
    return replace(base, steps=options.steps, **VARIANTS[name])


def main(options: Options, command: str) -> None:
    """Train, measure, compare, write."""
    commit = commit_name()
    unknown = [name for name in options.only if name not in VARIANTS]
    if unknown:
        sys.exit(f"ablate: no variant {unknown[0]!r}; there are {', '.join(VARIANTS)}")
    if options.only and options.output == Options.output:
        sys.exit("ablate: a part of the variants would replace the whole: give --output as well")
    models = {"before": SuperPoint.from_pretrained(options.init)}
    for name in [name for name in VARIANTS if name in {"plain", *(options.only or VARIANTS)}]:
        print(f"{name}: {VARIANTS[name]}", flush=True)
        run_dir = options.run_dir / name.replace(" ", "-")
        models[name] = train(configuration(options, name), run_dir).model  # type: ignore[assignment]
    machine = machine_name(next(models["plain"].parameters()).device)
    extractors = {
        name: hpatches.superpoint_extractor(model.float().cpu(), precision="auto")
        for name, model in models.items()
    }
    results = hpatches.evaluate(extractors, hpatches.load_sequences(warped_pairs()), "warped")
    rows = results.differences("plain")
    for row in rows:
        if row["metric"] in SHOWN and row["part"] == "all":
            print(
                f"{row['extractor']:32} {row['metric']:20} {row['b']:.4f}  "
                f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
            )
    facts = {
        "command": command,
        "commit": commit,
        "machine": machine,
        "reference": "plain",
        "plain": to_dict(configuration(options, "plain")),
        "variants": {name: VARIANTS[name] for name in models if name in VARIANTS},
    }
    measured = {"summary": results.summary(), "differences": rows}
    write_json(options.output, json_ready(facts | measured))


if __name__ == "__main__":
    main(tyro.cli(Options), shlex.join(["python", "tools/ablate.py", *sys.argv[1:]]))
