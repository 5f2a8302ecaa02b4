"""Train the bundled SuperPoint a little further in several ways, and compare them pair by pair.

    python tools/ablate.py --labels runs/labels    # writes results/ablations.json
    python tools/ablate.py --study views --labels runs/labels    # results/ablations_views.json
    python tools/ablate.py --study agreement \
        --init runs/superpoint-open-second-shipped.safetensors \
        --labels runs/labels-open2/open runs/labels-open2/training   # ..._agreement.json

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
from typing import Any, Literal, NamedTuple

import tyro

from superpoint_lib import SuperPoint
from superpoint_lib.config import replace, to_dict
from superpoint_lib.digests import commit_name
from superpoint_lib.evaluation import hpatches
from superpoint_lib.evaluation.mini import warped_pairs
from superpoint_lib.evaluation.results import json_ready
from superpoint_lib.machine import machine_name
from superpoint_lib.paths import results_dir, runs_dir, write_json
from superpoint_lib.training import RECIPES, TrainConfig, train


class Study(NamedTuple):
    """A comparison: what its file and folder are called, the recipe and settings of ``plain``, what
    each variant changes, and the kind of pairs (``mini.WARPED_KINDS``)."""

    files: str
    recipe: str
    settings: dict[str, Any]
    variants: dict[str, dict[str, Any]]
    pairs: str


_TOLD_APART = {"everywhere": True, "at_keypoints": True}
_FOUND_AGAIN = {"repeatability_weight": 6.0}
STUDIES: dict[str, Study] = {
    "labels": Study(
        "ablations",
        "superpoint",
        {"norm": "none", "label_threshold": 0.015},
        {
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
        },
        pairs="warped",
    ),
    "views": Study(
        "ablations_views",
        "superpoint-agreed",
        {},
        {
            "whole photographs": {"whole_picture": True},
            "any distance": {"whole_picture": True, "homography": "coco+any-distance"},
            "told from everywhere": _TOLD_APART,
            "told from neighbours": _TOLD_APART | {"exclusion": 4.0},
            "descriptors count twice": {"descriptor_weight": 2.0},
            "every fourth view harsh": {"photometric": RECIPES["superpoint-sturdy"].photometric},
        },
        pairs="warped-hard",
    ),
    "agreement": Study(
        "ablations_agreement",
        "superpoint-open-second",
        {},
        {
            "agreement within 2 px": {"agreement_within": 2.0},
            "within 2 px, four times": {
                "agreement_within": 2.0,
                "agreement_weight": 4 * RECIPES["superpoint-open-second"].agreement_weight,
            },
            "labels apart": {"label_radius": 4.0},
            "found again": _FOUND_AGAIN,
            "found again up to 1.5": _FOUND_AGAIN | {"repeatability_zoom": 1.5},
        },
        pairs="warped",
    ),
}
SHOWN = ("repeatability", "localization_error", "homography@1", "homography@3", "correct_matches@3")


@dataclass(frozen=True)
class Options:
    """Train and compare the variants."""

    labels: tuple[Path, ...]
    """Folders of pseudo-labels, one for each folder of pictures of the study's recipe: of
    data/coco/train2017, or, for agreement, of data/open and of the bundled photographs."""
    study: Literal["labels", "views", "agreement"] = "labels"
    """What is varied: what the detector is asked for, measured on warped pairs; what both views
    show and descriptors are told from, measured on hard ones; or which keypoints of both views are
    to agree or to be found again, and which labels count, measured on warped pairs."""
    init: str = "superpoint"
    """Weights they all start from; also measured as they are."""
    steps: int = 150
    """Steps of each training, 10 pairs each."""
    only: tuple[str, ...] = ()
    """Some of the variants; plain is always among them."""
    run_dir: Path | None = None
    """Where the trainings lie; runs/ablations, or that with the name of another study."""
    output: Path | None = None
    """Where the comparison goes; results/ablations.json, or likewise."""


def configuration(options: Options, name: str) -> TrainConfig:
    """The training of a variant: the recipe of the bundled weights, from finished ones on."""
    study = STUDIES[options.study]
    further = {
        "init": options.init,
        "labels": tuple(map(str, options.labels)),
        "learning_rate": 5e-4,
        "ema_decay": 0.99,
        "steps": options.steps,
    }
    base = replace(RECIPES[study.recipe], **further | study.settings)
    return replace(base, **study.variants.get(name, {}))


def main(options: Options, command: str) -> None:
    """Train, measure, compare, write."""
    commit = commit_name()
    study = STUDIES[options.study]
    names = ["plain", *study.variants]
    unknown = [name for name in options.only if name not in names]
    if unknown:
        sys.exit(f"ablate: no variant {unknown[0]!r}; there are {', '.join(names)}")
    if options.only and options.output is None:
        sys.exit("ablate: a part of the variants would replace the whole: give --output as well")
    runs = options.run_dir or runs_dir() / study.files
    output = options.output or results_dir() / f"{study.files}.json"
    models = {"before": SuperPoint.from_pretrained(options.init)}
    for name in [name for name in names if name in {"plain", *(options.only or names)}]:
        print(f"{name}: {study.variants.get(name, {})}", flush=True)
        run_dir = runs / name.replace(" ", "-")
        models[name] = train(configuration(options, name), run_dir).model  # type: ignore[assignment]
    machine = machine_name(next(models["plain"].parameters()).device)
    extractors = {
        name: hpatches.superpoint_extractor(model.float().cpu(), precision="auto")
        for name, model in models.items()
    }
    pairs = hpatches.load_sequences(warped_pairs(kind=study.pairs))
    results = hpatches.evaluate(extractors, pairs, "warped")
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
        "variants": {name: study.variants.get(name, {}) for name in models if name in names},
    }
    measured = {"summary": results.summary(), "differences": rows}
    write_json(output, json_ready(facts | measured))


if __name__ == "__main__":
    main(tyro.cli(Options), shlex.join(["python", "tools/ablate.py", *sys.argv[1:]]))
