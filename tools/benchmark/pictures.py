"""The figures of growth and of parts, from what the tools wrote to results/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from superpoint_lib.plotting import COLORS, WIDTH, Picture, new_figure
from superpoint_lib.plotting.style import styled

from .measuring import Row

TIME, MEMORY, IDEAL = COLORS["blue"], COLORS["orange"], "#9A9A9A"
_COLUMNS = 4


@styled
def growth_figure(rows: Sequence[Row]) -> Picture:
    """Seconds and memory against size, a panel for each curve.

    Args:
        rows: of the stages "growth_..." in results/benchmark.json.

    Returns:
        Logarithmic panels: seconds (blue, left) with the fitted exponent, a thin gray line with the
        exponent expected through the first value, and the memory taken (orange, right).
    """
    lines = -(-len(rows) // _COLUMNS)
    figure = new_figure(WIDTH * 1.2, 2.15 * lines + 0.3)
    for index, row in enumerate(rows):
        ax = figure.add_subplot(lines, _COLUMNS, index + 1)
        _draw_growth(ax, row)
    figure.supylabel("seconds (blue, left)", color=TIME, fontsize=11)
    figure.text(
        1.0, 0.5, "gigabytes taken (orange, right)", color=MEMORY, rotation=90, va="center",
        fontsize=11,
    )  # fmt: skip
    return figure


def _draw_growth(ax: Axes, row: Row) -> None:
    sizes, seconds = np.array(row["sizes"], float), np.array(row["seconds"])
    ideal = seconds[0] * (sizes / sizes[0]) ** row["expected"]
    ax.plot(sizes, ideal, color=IDEAL, lw=1, label=f"expected {row['expected']:g}")
    ax.plot(sizes, seconds, "o-", color=TIME, ms=4, label=f"fitted {row['value']:.2f}")
    right = ax.twinx()
    # Less than a megabyte cannot be told from the noise of the allocator.
    memory = np.maximum(row["memory_gb"], 1e-3)
    right.plot(sizes, memory, "s:", color=MEMORY, ms=3, lw=1.2)
    right.spines["right"].set_visible(True)
    for axes, values in ((ax, [*seconds, *ideal]), (right, memory)):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(min(values) / 1.6, max(values) * 1.6)
        axes.yaxis.set_major_locator(LogLocator(subs=_subs(min(values), max(values))))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=8)
    ax.set_xticks(sizes, [_short(size) for size in sizes])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(which="minor", bottom=False)
    ax.set_title(row["curve"], fontsize=10)
    ax.set_xlabel(row["against"], fontsize=9)
    ax.set_zorder(right.get_zorder() + 1)
    ax.patch.set_visible(False)
    ax.legend(fontsize=8, handlelength=1.2, labelspacing=0.2, borderaxespad=0.1)


def _subs(low: float, high: float) -> tuple[float, ...]:
    """Which numbers of a decade get a tick: fewer, the more decades there are."""
    decades = np.log10(high / low)
    return (1.0,) if decades > 1.6 else (1.0, 3.0) if decades > 0.8 else (1.0, 2.0, 5.0)


def _short(size: float) -> str:
    """77k and 1.2M for pixels, other sizes as they are."""
    if size >= 1e6:
        return f"{size / 1e6:.1f}M"
    return f"{size / 1e3:.0f}k" if size >= 1e4 else f"{size:g}"


@styled
def profile_figure(runs: Mapping[str, Mapping[str, Any]]) -> Picture:
    """Where the time goes, a panel for each stage and a bar of each run for each part.

    Args:
        runs: of results/profile.json, the oldest first.

    Returns:
        The figure; the parts are sorted by the time they took in the first run.
    """
    stages = list(dict.fromkeys(key for run in runs.values() for key in run["stages"]))
    parts = {stage: _sorted_parts(runs, stage) for stage in stages}
    heights = [len(parts[stage]) for stage in stages]
    figure = new_figure(WIDTH, 0.25 * len(runs) * sum(heights) + 0.7 * len(stages))
    axes = np.atleast_1d(figure.subplots(len(stages), 1, height_ratios=heights))
    for ax, stage in zip(axes, stages, strict=True):
        _draw_parts(ax, runs, stage, parts[stage])
    axes[0].legend(loc="lower right")
    return figure


def _digits(value: float, count: int = 3) -> str:
    """At least so many digits, without an exponent: 3264, 29.4, 0.32."""
    return f"{value:.0f}" if value >= 10 ** (count - 1) else f"{value:.{count}g}"


def _sorted_parts(runs: Mapping[str, Mapping[str, Any]], stage: str) -> list[str]:
    parts: dict[str, float] = {}
    for run in runs.values():
        for part, value in run["stages"].get(stage, {"seconds": {}})["seconds"].items():
            parts.setdefault(part, value)
    return sorted(parts, key=lambda part: -parts[part])


def _draw_parts(
    ax: Axes, runs: Mapping[str, Mapping[str, Any]], stage: str, parts: Sequence[str]
) -> None:
    colors = [IDEAL, TIME, COLORS["orange"], COLORS["green"]]
    thick = 0.8 / len(runs)
    largest = 0.0
    wholes: dict[str, float] = {}
    for index, (name, run) in enumerate(runs.items()):
        if stage not in run["stages"]:
            continue
        seconds = run["stages"][stage]["seconds"]
        values = np.array([1000 * seconds.get(part, 0.0) for part in parts])
        places = np.arange(len(parts)) + (index - (len(runs) - 1) / 2) * thick
        whole = wholes[name] = float(values.sum())
        label = f"{name} ({run['commit'][:7]})"
        ax.barh(places, values, height=0.92 * thick, color=colors[index % len(colors)], label=label)
        for place, value in zip(places, values, strict=True):
            ax.text(
                value, place, f" {_digits(value)} ms, {_digits(100 * value / whole, 2)} %",
                va="center", fontsize=9,
            )  # fmt: skip
        largest = max(largest, *values)
    what = next(run["stages"][stage]["what"] for name, run in runs.items() if name in wholes)
    times = ", ".join(f"{name} {_digits(whole)} ms" for name, whole in wholes.items())
    ax.set_title(f"{what}: {times}", loc="left")
    ax.set_yticks(range(len(parts)), parts)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.25 * largest)
    ax.spines[["bottom"]].set_visible(False)
    ax.tick_params(bottom=False, labelbottom=False, left=False)
