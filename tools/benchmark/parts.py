"""The time of a call by named parts, without a line of measuring in the library.

Functions are wrapped from outside while a call is measured, wherever the library has bound them.
The time of a part is its own: what another part takes inside it counts there.
"""

from __future__ import annotations

import functools
import importlib
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch

from .measuring import DEVICE, Work

REST = "the rest"


@dataclass(frozen=True)
class Part:
    """A part of a stage, and the functions that do it.

    Attributes:
        name: of the part.
        functions: "module:name" or "module:class.method"; those that do not exist are passed over,
            as long as one does.
        after: {part finished last: name this one goes by then}, for a function of two uses.
        counts: False for what is no part of the stage and is left out.
    """

    name: str
    functions: Sequence[str]
    after: Mapping[str, str] | None = None
    counts: bool = True


class Stopwatch:
    """Seconds by part; entering a part stops the clock of the one around it."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self.last = ""
        self._clock = clock or _device_clock
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as part ``name``."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self.last = self._open.pop()

    def _switch(self) -> None:
        now = self._clock()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now


def measured(
    work: Work, parts: Sequence[Part], turns: int, per: int = 1, around: str = REST
) -> dict[str, float]:
    """Median seconds of each part of a call, over some turns after one to warm up.

    Args:
        work: the call.
        parts: what to tell apart.
        turns: calls to measure.
        per: what a call does so many times over (steps, say); the seconds are of one of them.
        around: the name of what is in no part; "" leaves it out.

    Returns:
        {part: seconds}, without parts that did not occur or do not count.

    Raises:
        LookupError: none of a part's functions exists any more; the message names them.
    """
    work()
    taken = []
    for _ in range(turns):
        watch = Stopwatch()
        with watching(watch, parts), watch.part(around):
            work()
        taken.append(watch.seconds)
    hidden = {"", *(part.name for part in parts if not part.counts)}
    names = [name for name in dict.fromkeys(n for one in taken for n in one) if name not in hidden]
    return {name: statistics.median(one.get(name, 0.0) for one in taken) / per for name in names}


@contextmanager
def watching(watch: Stopwatch, parts: Sequence[Part]) -> Iterator[None]:
    """Wrap the functions of all parts inside the block."""
    with ExitStack() as stack:
        for part in parts:
            found = [place for text in part.functions for place in _places(text)]
            if not found:
                raise LookupError(
                    f"profile: none of {', '.join(part.functions)} exists, which did the part "
                    f"{part.name!r}; name the function that does it now in profile_stages.py"
                )
            for holder, name in found:
                wrapped = _wrapped(getattr(holder, name), part, watch)
                stack.enter_context(mock.patch.object(holder, name, wrapped))
        yield


def _places(text: str) -> list[tuple[Any, str]]:
    """Where a function is bound: its class, or every module of the library that knows it."""
    module_name, path = text.split(":")
    *classes, name = path.split(".")
    try:
        module = importlib.import_module(module_name)
        holder = functools.reduce(getattr, classes, module)
        function = getattr(holder, name)
    except (ImportError, AttributeError):
        return []
    if classes:
        return [(holder, name)]
    others = [m for key, m in sys.modules.items() if key.split(".")[0] == "superpoint_lib"]
    holders = [holder, *(other for other in others if other is not holder)]
    return [(one, name) for one in holders if vars(one).get(name) is function]


def _wrapped(function: Callable[..., Any], part: Part, watch: Stopwatch) -> Callable[..., Any]:
    owner = threading.current_thread()

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        # Other threads work beside the one that waits for them, whose time is counted.
        if threading.current_thread() is not owner:
            return function(*arguments, **options)
        with watch.part((part.after or {}).get(watch.last, part.name)):
            return function(*arguments, **options)

    return call


def _device_clock() -> float:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
