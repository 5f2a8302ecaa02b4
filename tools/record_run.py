"""Keep what a run of a profile took and reached: results/<profile>.json.

    superpoint run --profile standard
    python tools/record_run.py standard

Times and figures are those that ``superpoint run`` left beside each notebook's artefacts, commit
and machine those of its trainings.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from superpoint_lib.paths import results_dir, runs_dir, write_json


@dataclass(frozen=True)
class Options:
    """Keep what a run of a profile took and reached."""

    profile: Annotated[str, tyro.conf.Positional] = "standard"
    """The profile."""
    run_dir: Path | None = None
    """Folder of the run; runs/<profile> by default."""
    output: Path | None = None
    """The file to write; results/<profile>.json by default."""


def main(options: Options) -> None:
    """Collect, write, print."""
    folder = options.run_dir or runs_dir() / options.profile
    notebooks = {path.parent.name: _read(path) for path in sorted(folder.glob("*/run.json"))}
    if not notebooks:
        raise SystemExit(f"no finished notebooks in {folder}: superpoint run first")
    trainings = [_read(path) for path in sorted(folder.glob("*/*/run.json"))]
    record = {
        "command": f"superpoint run --profile {options.profile} && "
        f"python tools/record_run.py {options.profile}",
        "commit": _distinct(trainings, "commit"),
        "machine": _distinct(trainings, "machine"),
        "torch": _distinct(trainings, "torch"),
        "seconds": round(sum(one["seconds"] for one in notebooks.values()), 1),
        "notebooks": {
            name: {key: one[key] for key in ("seconds", "parameters", "results")}
            for name, one in notebooks.items()
        },
    }
    path = options.output or results_dir() / f"{options.profile}.json"
    write_json(path, record)
    print(f"{len(notebooks)} notebooks, {record['seconds'] / 60:.0f} minutes: {path}")


def _distinct(trainings: list[dict[str, Any]], key: str) -> str:
    """The different things that the trainings say, mostly one."""
    return ", ".join(dict.fromkeys(str(training[key]) for training in trainings))


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


if __name__ == "__main__":
    main(tyro.cli(Options))
