"""Fill the tables of the README files from results/ and the weight files.

    python tools/update_tables.py            # write them
    python tools/update_tables.py --check    # fail if a file differs from its sources

A table stands between ``<!-- table:NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from superpoint_lib.checkpoints import load_weights
from superpoint_lib.evaluation.results import Results
from superpoint_lib.paths import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
FILES = ("README.md", "results/README.md", "superpoint_lib/weights/README.md")
#: Weights that came of more trainings than their metadata tell of.
LAST_OF = {
    "superpoint": " (the last of 14 trainings)",
    "superpoint-open": " (the last of 6 trainings)",
}
BUNDLED = ("magicpoint-synthetic", "magicpoint", "superpoint", "superpoint-open")

HPATCHES_COLUMNS = {
    "repeatability": ("all", "repeatability"),
    "illumination": ("illumination", "repeatability"),
    "viewpoint": ("viewpoint", "repeatability"),
    "off by (px)": ("all", "localization_error"),
    "homography ε = 1": ("all", "homography@1"),
    "ε = 3": ("all", "homography@3"),
    "ε = 5": ("all", "homography@5"),
    "matches within 3 px": ("all", "correct_matches@3"),
}


#: Notebooks of the standard profile, and what those of their figures are called that it earns.
STANDARD_FIGURES = {
    "02_magicpoint_training": "this training",
    "03_homographic_adaptation": "photograph",
    "05_staged_training": "two stages",
    "06_hpatches_evaluation": "superpoint",
}


#: What the first table of the README shows: rows and what they are called there.
HEADLINE = {
    "superpoint": "as it is",
    "superpoint:refined": "`--refine`",
    "superpoint@1+0.7+0.5:refined": "`--pyramid 0.7 0.5 --refine`",
    "superpoint-open": "weights learnt from openly licensed pictures alone",
    "superpoint-open:refined": "the same, `--refine`",
    "sift": "OpenCV's SIFT",
    "sift:refined": "the same, refined likewise",
    "orb": "OpenCV's ORB",
}


def _real_photographs() -> tuple[Results, int, dict[tuple[str, str, str], float | None]]:
    """The results, the number of orders of matches, and means by extractor, part and metric.

    Homographies are means over many orders: RANSAC finds another one in another order.
    """
    results = Results.load(RESULTS / "hpatches_like.json")
    orders = Results.load(RESULTS / "ransac_orders.json")
    one_order = replace(orders.protocol, ransac=replace(orders.protocol.ransac, orders=1))
    assert one_order == results.protocol, "measured by different protocols"
    found = ({_pair(r): r["repeatability"] for r in run.records} for run in (orders, results))
    assert next(found).items() <= next(found).items(), "measured of different weights or pictures"
    rows = [row for row in results.summary() if not row["metric"].startswith("homography@")]
    rows += [row for row in orders.summary() if row["metric"].startswith("homography@")]
    means = {(row["extractor"], row["part"], row["metric"]): row["value"] for row in rows}
    return results, orders.protocol.ransac.orders, means


def _pair(record: dict[str, Any]) -> tuple[Any, ...]:
    return record["extractor"], record["sequence"], record["pair"]


def headline() -> str:
    """What a visitor wants to know first."""
    _, _, means = _real_photographs()
    columns = ("correct_matches@3", "homography@1", "homography@3", "homography@5")
    rows = [
        [f"`{name.split(':')[0].split('@')[0]}`", told]
        + [_decimals(means[name, "all", column]) for column in columns]
        for name, told in HEADLINE.items()
    ]
    head = ["", "", "correct matches", "homography within 1 px", "3 px", "5 px"]
    return _table(head, rows)


def hpatches() -> str:
    """Real sequences, by the rpautrat protocol."""
    results, orders, means = _real_photographs()
    rows = [
        [name, *(_decimals(means.get((name, *key))) for key in HPATCHES_COLUMNS.values())]
        for name in results.extractors
    ]
    pairs = len(results.select(results.extractors[0]).records)
    caption = (
        f"**Real photographs**: {len(results.sequences)} sequences, {pairs} pairs in the layout of "
        f"HPatches, protocol `{results.protocol_name}`. RANSAC finds another homography when the "
        f"matches come in another order, so the homography columns are means over {orders} orders "
        f"([`results/ransac_orders.json`](results/ransac_orders.json)). One pair is worth "
        f"{1 / pairs:.3f}; notebook 06 shows pair by pair what a difference is worth."
    )
    return _with_source(caption, ["", *HPATCHES_COLUMNS], rows, RESULTS / "hpatches_like.json")


def shapes() -> str:
    """Detectors on drawn shapes."""
    path = RESULTS / "shapes.json"
    content = _read(path)
    head = ["", *(f"{d} px, {part}" for part in ("clean", "noise") for d in (4, 2))]
    rows = [
        [
            name,
            *(
                _decimals(content[part]["detectors"][name][d]["average_precision"])
                for part in ("clean", "noise")
                for d in ("4", "2")
            ),
        ]
        for name in content["clean"]["detectors"]
    ]
    height, width = content["clean"]["size"]
    caption = (
        f"**Drawn shapes**: average precision, {content['clean']['images_per_primitive']} pictures "
        f"of {height} × {width} for each primitive."
    )
    return _with_source(caption, head, rows, path)


def speed() -> str:
    """What is fast and how fast, and then what has a goal; of the exponents only how many."""
    cpu, float32 = (_read(RESULTS / f"benchmark{kind}.json") for kind in ("", "_float32"))
    growth = _counted(_rows(cpu, growth=True), "goals for how cost grows with size are met")
    goals = _counted([*_rows(float32, growth=False), *_rows(float32, growth=True)], "goals are met")
    without_bfloat16 = (
        f"Without bfloat16 ({_measured_on(float32)}; "
        f"[`results/benchmark_float32.json`](results/benchmark_float32.json)) {goals}"
    )
    on_cpu, on_gpu = (_speed(RESULTS / f"benchmark{kind}.json") for kind in ("", "_gpu"))
    details = ["<details><summary>Every stage against its goal</summary>", on_cpu, growth]
    details += [without_bfloat16, on_gpu, "</details>"]
    return "\n\n".join([_throughput(cpu, float32), *details])


def _throughput(cpu: dict[str, Any], float32: dict[str, Any]) -> str:
    """What matters to those who only want to use it."""
    fast, slow = (
        {row["what"]: row["value"] for row in _rows(content, growth=False)}
        for content in (cpu, float32)
    )
    pictures = "batch 1, {}: pictures"
    refining = fast["refining all matches: of the time of one look in float32"]
    return (
        f"`extract` on pictures of 480 × 640 with {cpu['stages']['extraction']['machine']}: "
        f"{fast[pictures.format('bfloat16')]:.1f} a second in bfloat16, "
        f"{fast[pictures.format('float32')]:.1f} in float32; on an older processor, without "
        f"bfloat16, {slow[pictures.format('float32')]:.1f}. Refining the matches of a pair takes "
        f"{refining:.0%} of the time of looking at a picture in float32. A new process has its "
        f"first match after {fast['cold start to the first match']:.1f} s."
    )


def _rows(content: dict[str, Any], growth: bool) -> list[dict[str, Any]]:
    return [
        row
        for stage, result in content["stages"].items()
        if stage.startswith("growth") == growth
        for row in result["rows"]
    ]


_ERRORS = "; ± is a standard error, and a goal within two of them is met"


def _speed(path: Path) -> str:
    content = _read(path)
    rows = [
        [
            stage.replace("_", " "),
            row["what"],
            _value(row),
            _goal(row),
            "met" if row["met"] else "**missed**",
        ]
        for stage, result in content["stages"].items()
        if not stage.startswith("growth")
        for row in result["rows"]
        if row["goal"]
    ]
    caption = (
        f"**Speed**: {_measured_on(content)}. × stands for times as fast, or as long, as what is "
        f"named{_ERRORS if any('±' in row[2] for row in rows) else ''}."
    )
    return _with_source(caption, ["stage", "what", "measured", "goal", ""], rows, path)


def _measured_on(content: dict[str, Any]) -> str:
    """Machine, versions and commit; several of these where stages were measured anew."""
    stages = content["stages"].values()
    commits = ", ".join(dict.fromkeys(_short(one["commit"]) for one in stages))
    machines = ", ".join(dict.fromkeys(one["machine"] for one in stages))
    versions = ", ".join(dict.fromkeys(one.get("torch", content["torch"]) for one in stages))
    changed = " (+: with uncommitted changes)" if "+" in commits else ""
    return f"{machines}, PyTorch {versions}, commit {commits}{changed}"


def _short(commit: str) -> str:
    """Ten digits, and the sign of uncommitted changes."""
    return f"`{commit[:10]}{'+' * commit.endswith('+')}`"


def _counted(rows: Sequence[dict[str, Any]], what: str) -> str:
    """How many goals are met, and those that are not."""
    goals = [row for row in rows if row["goal"]]
    missed = [f"{row['what']} {_value(row)} ({_goal(row)})" for row in goals if not row["met"]]
    met = f"{len(goals) - len(missed)} of {len(goals)} {what}"
    return f"{met}; missed: {', '.join(missed)}." if missed else f"{met}."


def _value(row: dict[str, Any]) -> str:
    error = f" ± {row['error']:.1g}" if "error" in row else ""
    return _with_unit(f"{row['value']:.3g}{error} {row['unit']}")


def _goal(row: dict[str, Any]) -> str:
    return _with_unit(str(row["goal"]).replace(">=", "≥").replace("<=", "≤"))


def _with_unit(text: str) -> str:
    return text.removesuffix(" exponent").replace(" x", " ×")


def standard() -> str:
    """What the standard profile takes and reaches."""
    path = RESULTS / "standard.json"
    content = _read(path)
    rows = []
    for name, word in STANDARD_FIGURES.items():
        notebook = content["notebooks"][name]
        told = "; ".join(
            f"{key.replace('_', ' ')} {_few(value)}"
            for key, value in notebook["results"].items()
            if word in key
        )
        title = f"{name[3:].replace('_', ' ')} ({name[:2]})"
        rows.append([title, f"{notebook['seconds'] / 60:.0f}", told])
    caption = (
        f"**`standard`**, from nothing to a SuperPoint: {content['seconds'] / 60:.0f} minutes in "
        f"all on {content['machine']}, commit "
        f"{', '.join(map(_short, content['commit'].split(', ')))}."
    )
    return _with_source(caption, ["notebook", "minutes", "reached"], rows, path)


def weights() -> str:
    """What the weight files say of themselves."""
    rows = []
    for name in BUNDLED:
        facts = load_weights(name).metadata
        training = facts["training"]
        rows.append(
            [
                f"`{name}`",
                str(facts["steps"]),
                f"{training['batch_size']} × {training['height']} × {training['width']}",
                str(facts["seed"]),
                # The first run was recorded by a version that wrote "1 threads".
                f"{facts['seconds'] / 60:.0f} min, {facts['machine']}".replace(
                    " 1 threads", " 1 thread"
                )
                + LAST_OF.get(name, ""),
                _short(facts["commit"]),
                str(facts["learnt_from"]),
            ]
        )
    head = ["weights", "steps", "batch", "seed", "duration", "commit", "learnt from"]
    return _table(head, rows)


def commands() -> str:
    """Which command made which file."""
    rows = [
        [f"`{path.name}`", f"`{_read(path)['command']}`"] for path in sorted(RESULTS.glob("*.json"))
    ]
    return _table(["file", "made by"], rows)


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "hpatches": hpatches,
    "shapes": shapes,
    "speed": speed,
    "standard": standard,
    "weights": weights,
    "commands": commands,
}


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def _few(value: float) -> str:
    """Whole numbers as they are, others with one decimal, or three below ten."""
    return str(value) if isinstance(value, int) else f"{value:.{1 if value >= 10 else 3}f}"


def _decimals(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---:" if cell[:1] in "–0123456789" else "---" for cell in rows[0]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ruler, *rows])


def _with_source(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], path: Path
) -> str:
    command = _read(path)["command"]
    told = f"`{command}`" if len(command) < 200 else "made by the command in that file"
    source = f"[`results/{path.name}`](results/{path.name}): {told}"
    return f"{caption}\n\n{_table(head, rows)}\n\n{source}"


def filled(text: str) -> str:
    """The text with every table as its sources have it."""
    return re.sub(
        r"<!-- table:(\w+) -->\n.*?<!-- end -->",
        lambda found: f"<!-- table:{found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def main(arguments: Sequence[str]) -> None:
    """Write the tables, or check them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    for name in FILES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = filled(before)
        if before == after:
            continue
        if options.check:
            sys.exit(f"{name} differs from its sources: run python tools/update_tables.py")
        write_text(path, after)
        print(f"updated {name}")


if __name__ == "__main__":
    main(sys.argv[1:])
