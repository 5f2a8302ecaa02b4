"""``superpoint run``: the notebooks of a profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from superpoint_lib.cli.shared import check_folder, keeping, parse


@dataclass(frozen=True)
class RunOptions:
    """Run the notebooks of a profile in order and collect the figures they reach."""

    profile: str = "quick"
    """A file in notebooks/profiles, without its ending: quick, standard or full."""
    only: str = ""
    """Numbers or names of the notebooks to run, such as 02,03; all by default."""
    resume: bool = False
    """Keep notebooks that finished with the same code, parameters and inputs."""
    run_dir: Path | None = None
    """Folder of the run; runs/<profile> by default."""
    cell_timeout: int = 6 * 3600
    """Seconds after which a cell counts as failed."""


def command(arguments: Sequence[str]) -> int:
    """Run the notebooks of a profile; returns the exit status."""
    options = parse(RunOptions, "run", arguments)
    from superpoint_lib.pipeline import run_profile, summary

    if options.run_dir:
        check_folder("run: --run-dir", options.run_dir)
    with keeping():
        report = run_profile(
            options.profile,
            only=[part.strip() for part in options.only.split(",") if part.strip()] or None,
            resume=options.resume,
            run_dir=options.run_dir,
            cell_timeout=options.cell_timeout,
            say=lambda line: print(line, flush=True),
        )
    print(f"\n{summary(report)}")
    return 1 if report.failed else 0
