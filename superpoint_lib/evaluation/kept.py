"""Records kept while an evaluation runs: one that was stopped goes on where it was.

What an extractor makes of a sequence depends on both, on the protocol, and on code and machine.
Each of these is part of the name under which its records are kept, so that what is found under it
is what would be measured again. Nothing else is asked: another command with the same extractor on
the same sequences finds them, too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from superpoint_lib.digests import code_digest, digest
from superpoint_lib.evaluation.results import Record

_A_MONTH = 30 * 24 * 3600.0  # in seconds
# What an evaluation computes comes from none of these; what cli chooses is part of the identity.
_NOT_BELOW = (
    "adaptation",
    "batches",
    "cli",
    "exported",
    "interop",
    "pipeline",
    "plotting",
    "report",
    "training",
    "widgets",
)


class KeptRecords:
    """The records of one extractor under one protocol, in a file that grows by each sequence.

    What other code has measured in the same folder is dropped once it has not grown for a month.

    Args:
        folder: where; a folder for the code is made in it, and in that a file of JSON lines.
        identity: what the records depend on besides sequence, code and the versions of the
            libraries that compute them; anything JSON can tell, as records must be, too.

    Attributes:
        taken: of how many sequences the records were there when they were asked for.
    """

    def __init__(self, folder: str | Path, identity: Mapping[str, Any]) -> None:
        code = Path(folder) / measuring_code()
        _forget_old(code.parent, code)
        everything = json.dumps([identity, _versions()], sort_keys=True)
        self._path = code / f"{digest([everything.encode()])}.jsonl"
        self._found = dict(_lines(self._path))
        self.taken = 0

    def take(
        self, sequence: str, extractor: str, measure: Callable[[], list[Record]]
    ) -> list[Record]:
        """The records kept of a sequence, or, where there are none, those measured now and kept.

        Args:
            sequence: its ``sequence_digest``.
            extractor: the name the records are to bear; they may have been kept under another.
            measure: gives them.
        """
        if sequence in self._found:
            self.taken += 1
        else:
            self._found[sequence] = measure()
            self._append(json.dumps([sequence, self._found[sequence]]))
        return [record | {"extractor": extractor} for record in self._found[sequence]]

    def _append(self, line: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                # Before the line, lest it be written behind one that was not written to its end.
                file.write(f"\n{line}")
        except OSError as error:  # what has been measured goes into the results all the same
            warnings.warn(f"records cannot be kept in {self._path}: {error}", stacklevel=3)


@functools.cache
def measuring_code() -> str:
    """Name the code that an evaluation may run, as it was when first asked for."""
    return code_digest(_NOT_BELOW)


def sequence_digest(paths: Iterable[Path], homographies: np.ndarray) -> str:
    """Name a sequence by the name of its folder, the bytes of its images and its homographies.

    Args:
        paths: of the images, in their order; they may be unreadable as images, but must exist.
        homographies: (N, 3, 3).

    Returns:
        Sixteen hexadecimal digits.
    """
    images = [part for path in paths for part in (os.fsencode(path.parent.name), path.read_bytes())]
    return digest([*images, np.ascontiguousarray(homographies).tobytes()])


def _versions() -> list[str]:
    return [torch.__version__, cv2.__version__, np.__version__]


def _lines(path: Path) -> Iterable[tuple[str, list[Record]]]:
    """What the file holds; lines that are damaged are left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        try:
            sequence, records = json.loads(line)
        except (TypeError, ValueError):
            continue
        yield sequence, records


def _forget_old(folder: Path, mine: Path) -> None:
    """Remove what other code has kept here, unless it may still be at work."""
    for other in folder.glob("[0-9a-f]" * 16):
        if other == mine or not other.is_dir():
            continue
        with contextlib.suppress(OSError):  # another command may be removing it, too
            touched = max((path.stat().st_mtime for path in other.iterdir()), default=0.0)
            if time.time() - touched > _A_MONTH:
                shutil.rmtree(other)
