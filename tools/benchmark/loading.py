"""How long a training waits for its data, seen from the device that computes.

The loop's loader is watched from outside: a mark is set when the loop asks for a batch and another
when it has it. On a GPU the marks are events in its stream. While it still computes what was asked
of it before, both fall together, so that only the time counts in which it had nothing to do. On a
CPU, which computes and loads in turns, all loading is waiting unless another process does it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader

from .measuring import DEVICE


class Watch:
    """Marks around every batch that the loaders in use hand out.

    Args:
        mark: sets a mark and returns it; by default in the stream of the device.
        between: seconds from one mark to another.
    """

    def __init__(
        self,
        mark: Callable[[], Any] | None = None,
        between: Callable[[Any, Any], float] | None = None,
    ) -> None:
        on_gpu = DEVICE.type == "cuda"
        self._mark = mark or (_gpu_mark if on_gpu else time.perf_counter)
        self._between = between or (_gpu_between if on_gpu else lambda a, b: b - a)
        self._marks: list[tuple[Any, Any]] = []

    def batches(self, loader: Iterator[Any]) -> Iterator[Any]:
        """The same batches, with a mark before and after each."""
        while True:
            asked = self._mark()
            try:
                batch = next(loader)
            except StopIteration:
                return
            self._marks.append((asked, self._mark()))
            yield batch

    def share(self, skip: int = 2) -> float:
        """The part of the time that went into waiting, in 0..1.

        Args:
            skip: batches at the start that do not count: loaders and kernels warm up.

        Raises:
            ValueError: fewer than two batches are left.
        """
        marks = self._marks[skip:]
        if len(marks) < 2:
            raise ValueError(f"{len(self._marks)} batches are too few after leaving out {skip}")
        waited = sum(self._between(asked, got) for asked, got in marks[1:])
        return waited / self._between(marks[0][1], marks[-1][1])


@contextmanager
def watched() -> Iterator[Watch]:
    """Watch every ``DataLoader`` that is iterated inside the block."""
    watch = Watch()
    iterate = DataLoader.__iter__

    def watched_iterate(loader: DataLoader[Any]) -> Iterator[Any]:
        return watch.batches(iterate(loader))

    with mock.patch.object(DataLoader, "__iter__", watched_iterate):
        yield watch


def _gpu_mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _gpu_between(first: torch.cuda.Event, second: torch.cuda.Event) -> float:
    second.synchronize()
    return first.elapsed_time(second) / 1000
