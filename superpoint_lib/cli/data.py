"""``superpoint data``: which data sets are there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from superpoint_lib.cli.shared import CommandError, parse

# Neither publisher gives checksums, so nothing is downloaded unchecked: the links are the reader's.
HOW_TO_GET = """
MS-COCO   https://cocodataset.org (2017 train and test images), then
          ln -s /where/coco/is {folder}/coco
HPatches  https://github.com/hpatches/hpatches-dataset (full image sequences), then
          ln -s /where/hpatches-sequences-release/is {folder}/hpatches"""


@dataclass(frozen=True)
class DataOptions:
    """Say which data sets are linked, what is missing in them, and how to get them."""

    action: Positional[Literal["check", "fetch"]] = "check"
    """check: look at what is there. fetch: say, in addition, how to get what is not."""


def command(arguments: Sequence[str]) -> int:
    """Look at the data sets; returns the exit status."""
    options = parse(DataOptions, "data", arguments)
    from superpoint_lib.paths import data_dir

    folder = data_dir()
    states = {}
    for name, (look, unit) in _data_sets().items():
        states[name], text = _state(folder / name, look, unit)
        print(f"{name:<15} {text}")
    missing = [name for name, state in states.items() if state == "missing"]
    broken = [name for name, state in states.items() if state == "broken"]
    if missing:
        print("What is not there is replaced by pictures from inside the dependencies.")
    if broken:
        raise CommandError(f"incomplete in {folder}: {', '.join(broken)}")
    if missing and options.action == "fetch":
        print(HOW_TO_GET.format(folder=folder))
        raise CommandError(f"nothing fetched: {', '.join(missing)} must be linked by hand")
    return 0


def _data_sets() -> dict[str, tuple[Callable[[Path], Sequence[object]], str]]:
    """Folders below data/, how to read them (which raises when files lack), and what they hold."""
    from superpoint_lib.evaluation.hpatches import load_sequences
    from superpoint_lib.paths import list_images

    return {
        "coco/train2017": (list_images, "pictures"),
        "coco/test2017": (list_images, "pictures"),
        "hpatches": (load_sequences, "sequences"),
    }


def _state(
    path: Path, look: Callable[[Path], Sequence[object]], unit: str
) -> tuple[Literal["found", "missing", "broken"], str]:
    if not path.exists():
        links = [link for link in (path, path.parent) if link.is_symlink() and not link.exists()]
        return (
            ("broken", f"the link {links[0]} leads nowhere") if links else ("missing", "not there")
        )
    try:
        found = look(path)
    except (OSError, ValueError) as error:
        return "broken", str(error)
    return ("found", f"{len(found)} {unit}") if found else ("broken", f"no {unit} in {path}")
