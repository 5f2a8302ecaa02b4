"""What the commands have in common: their errors, how options are read, what is checked first."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import tyro

if TYPE_CHECKING:
    from superpoint_lib.model import MagicPoint

T = TypeVar("T")


class UsageError(Exception):
    """Options that do not hold together; the message is one line."""


class CommandError(Exception):
    """What was asked cannot be done; the message is one line."""


def option_name(key: str) -> str:
    """What a field of options is called on the command line."""
    return f"--{key.replace('_', '-')}"


def all_positive(values: Sequence[float]) -> bool:
    """Whether all are finite numbers above 0."""
    return all(0 < value < math.inf for value in values)  # which NaN is not, either


@contextlib.contextmanager
def keeping(kept: bool = True) -> Iterator[None]:
    """Says, if the block is stopped, that what it has finished is kept, where that is so."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not kept or str(stop):
            raise
        raise KeyboardInterrupt("stopped; what was finished is kept") from stop


def check_file(what: str, path: Path) -> None:
    """Refuse a file that could not be written in the end, before anything is computed for it.

    Args:
        what: command and option, for the message, such as "match: --output".
        path: the file.

    Raises:
        UsageError: it is a folder, or cannot be in the one it is to be in.
    """
    if path.is_dir():
        raise UsageError(f"{what} {path} is a folder: name a file")
    _check_place(what, path, path.parent)


def check_folder(what: str, path: Path) -> None:
    """Refuse a folder that could not be made or written to, as `_check_file` does a file.

    Raises:
        UsageError: it is a file, or cannot be where it is to be.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{what} {path} is a file: name a folder")
    _check_place(what, path, path)


def _check_place(what: str, path: Path, folder: Path) -> None:
    # A link that leads nowhere exists in so far as no folder can be made of its name.
    there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise UsageError(f"{what} {path}: {there} is no folder: name another place")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"{what} {path}: {there} is not to be written to: name another place")


def parse(options: Callable[..., T] | type[T], command: str, arguments: Sequence[str]) -> T:
    """Parse with tyro, whose boxed messages become one line."""
    captured = io.StringIO()
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(
                options,
                prog=f"superpoint {command}",
                args=list(arguments),
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(f"{command}: {one_line(captured.getvalue())}") from None


def one_line(box: str) -> str:
    """The words inside one of tyro's message boxes, up to its pointer to the help text."""
    lines = [line.strip(" │") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    text = " ".join(line for line in lines if line.strip("─ "))
    text = re.split(r"Argument helptext:|For full helptext", text)[0]
    return " ".join(text.split()) or "wrong usage"


def load_model(weights: str, device: str) -> MagicPoint:
    """A SuperPoint where the weights have descriptors, else a MagicPoint; in eval mode."""
    from superpoint_lib.checkpoints import load_weights
    from superpoint_lib.machine import choose_device
    from superpoint_lib.model import MagicPoint, SuperPoint

    chosen = choose_device(device)
    has_descriptors = any(key.startswith("descriptor.") for key in load_weights(weights).state_dict)
    network = SuperPoint if has_descriptors else MagicPoint
    return network.from_pretrained(weights).to(chosen)
