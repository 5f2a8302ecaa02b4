"""Seconds, ratios, peak memory, and rows of figures with their goals."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

Row = dict[str, Any]
Work = Callable[[], Any]
Times = dict[str, list[float]]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_PROCESS = Path("/proc/self")
_STARTED = time.perf_counter()


def report(text: str) -> None:
    """Tell what is being measured, beside the results on standard output."""
    print(f"  {time.perf_counter() - _STARTED:4.0f} s: {text}", file=sys.stderr, flush=True)


# --------------------------------------------------------------------------------- seconds


def seconds(work: Work) -> float:
    """Wall-clock seconds of one call; waits for a GPU."""
    started = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(works: Mapping[str, Work], turns: int, budget: float = 0.0) -> Times:
    """Time works in turns, so that a machine that slows down slows all of them.

    Args:
        works: {name: work}.
        turns: how often each is timed, after one call of each to warm up.
        budget: seconds; more turns are taken until they are spent.

    Returns:
        {name: seconds of each turn}.
    """
    for work in works.values():
        work()
    times: Times = {name: [] for name in works}
    started = time.perf_counter()
    done = 0
    while done < turns or time.perf_counter() - started < budget:
        for name, work in works.items():
            times[name].append(seconds(work))
        done += 1
    return times


def ratio(times: Times, over: str, under: str) -> float:
    """Median over the turns of one time divided by another."""
    pairs = zip(times[over], times[under], strict=True)
    return statistics.median(a / b for a, b in pairs)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The power p of the law ``value ~ size ** p`` that fits best, by least squares of the logs."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


# ---------------------------------------------------------------------------------- memory

_earlier_peak = 0.0


def peak_memory() -> float:
    """Gigabytes that this process, or its GPU, has held at most so far."""
    return max(_earlier_peak, _peak_since_reset())


def memory_taken(work: Work) -> float:
    """Gigabytes that a call holds at most, beyond what was held before it.

    On Linux and on a GPU the peak is set back before the call. Elsewhere it cannot be: the figure
    is then by how much the call raises the peak of the process, right for the first call and for
    calls that take more than all before them, too small for others.
    """
    global _earlier_peak
    _earlier_peak = peak_memory()
    gc.collect()
    before = _reset_peak()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return max(0.0, _peak_since_reset() - before)


def _reset_peak() -> float:
    """Set the peak back to what is held now, where that is possible; returns it in gigabytes."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e9
    if sys.platform == "linux":
        # Freed blocks that the allocator keeps would hide what the next call takes.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim:
            trim(0)
        # See "clear_refs" in man 5 proc: 5 sets VmHWM back to VmRSS.
        (_PROCESS / "clear_refs").write_text("5")
    return _peak_since_reset()


def _peak_since_reset() -> float:
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "linux":
        lines = (_PROCESS / "status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e9
    import resource  # which Windows has not

    # macOS counts in bytes, others in kilobytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


# ------------------------------------------------------------------------------------ rows


def at_least(what: str, value: float, goal: float, unit: str = "x") -> Row:
    """A figure that should be large."""
    goal_text = f">= {goal:g} {unit}"
    return {"what": what, "value": value, "unit": unit, "goal": goal_text, "met": value >= goal}


def at_most(what: str, value: float, goal: float, unit: str = "x") -> Row:
    """A figure that should be small."""
    goal_text = f"<= {goal:.3g} {unit}"
    return {"what": what, "value": value, "unit": unit, "goal": goal_text, "met": value <= goal}


def plain(what: str, value: float, unit: str = "x") -> Row:
    """A figure without a goal."""
    return {"what": what, "value": value, "unit": unit, "goal": "", "met": None}


def no_slower(what: str, gains: Sequence[float]) -> Row:
    """A row of a speed against another's, measured in several turns, with its standard error.

    The goal, 1, is met where it lies within two standard errors of the mean or below it: what the
    turns cannot tell from luck is no loss.
    """
    logs = np.log(gains)
    value = float(np.exp(logs.mean()))
    error = value * float(logs.std(ddof=1)) / len(gains) ** 0.5
    return at_least(what, value, 1) | {"error": error, "met": value + 2 * error >= 1}
