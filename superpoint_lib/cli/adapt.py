"""``superpoint adapt``: pseudo-labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from superpoint_lib.cli.shared import CommandError, check_folder, keeping, parse


def command(arguments: Sequence[str]) -> int:
    """Label pictures; returns the exit status."""
    from superpoint_lib.adaptation import AdaptConfig, export_labels

    config = parse(AdaptConfig, "adapt", arguments)
    check_folder("adapt: --output", Path(config.output))
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    with keeping():
        report = export_labels(config, rank=rank, world=world)
    print(report)
    # Of several processes, one may well have no share, or a bad one; the first has a share of
    # whatever there is.
    alone_or_empty = world == 1 or (rank == 0 and not report.failed)
    if alone_or_empty and not (report.written or report.skipped_existing):
        missing = f"no pictures in {', '.join(config.images)}"
        why = "every picture was left out" if report.failed else missing
        raise CommandError(f"nothing labelled: {why}")
    if report.written and not any(report.keypoints):
        raise CommandError("no keypoint found in any picture: lower --threshold")
    return 0
