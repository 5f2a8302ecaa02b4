"""The command line: ``superpoint <command> --help``.

Each command's options come from the same dataclasses that the library and the notebooks use. A
command imports what it needs when it is called, so that help is quick. Every failure prints one
line and exits with 1, a wrong usage with 2; ``SUPERPOINT_TRACEBACK=1`` shows where it came from.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Sequence

from superpoint_lib import __version__
from superpoint_lib.cli import adapt, data, evaluate, export, extract, match, run, train
from superpoint_lib.cli.shared import CommandError, UsageError
from superpoint_lib.memory import keep_freed_memory


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 for a failure, 2 for wrong usage."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the name of a file may be no text
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _help_or_command(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever was to read it, such as head, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _help_or_command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"superpoint {__version__}")
        return 0
    name, *rest = arguments
    try:
        if name not in COMMANDS:
            raise UsageError(f"no command {name!r}: known are {', '.join(COMMANDS)}")
        keep_freed_memory()
        return COMMANDS[name][1](rest)
    except UsageError as error:
        return _fail(f"{error} (see superpoint --help)" if name not in COMMANDS else error, 2)
    except KeyboardInterrupt as stop:
        logging.disable()  # asyncio would report the notebook that was stopped, at length
        return _fail(f"{name}: {str(stop) or 'stopped'}", 130)
    except Exception as error:
        if os.environ.get("SUPERPOINT_TRACEBACK") or isinstance(error, BrokenPipeError):
            raise
        known = isinstance(error, CommandError | ValueError | OSError | KeyError)
        text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
        return _fail(f"{name}: {text}" if known else f"{name}: {type(error).__name__}: {text}", 1)


def _fail(message: object, status: int) -> int:
    print(f"superpoint {message}", file=sys.stderr)
    return status


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = ["usage: superpoint COMMAND [OPTIONS]", ""]
    lines += ["Find, describe and match keypoints with SuperPoint; train and measure it.", ""]
    lines += [f"  {name:<{width}}  {text}" for name, (text, _) in COMMANDS.items()]
    lines += ["", "superpoint COMMAND --help lists a command's options. To begin with:", ""]
    return "\n".join([*lines, "  superpoint match a.jpg b.jpg --refine"])


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "run": ("run the notebooks of a profile", run.command),
    "train": ("train a detector, or a detector with descriptors", train.command),
    "adapt": ("label pictures by homographic adaptation", adapt.command),
    "evaluate": (
        "measure extractors on HPatches, the mini benchmark or drawn shapes",
        evaluate.command,
    ),
    "extract": ("write the features of images to files", extract.command),
    "match": ("match two images and draw the matches", match.command),
    "export": ("write a model as an ONNX file, or a training as a weight file", export.command),
    "data": ("check which data sets are linked, or say how to get them", data.command),
}
