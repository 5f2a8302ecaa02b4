"""Figures of numbers: curves, the history of a training, bars, and the hinge loss."""

from __future__ import annotations

import csv
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from superpoint_lib.plotting.arrays import Array, to_numpy
from superpoint_lib.plotting.style import (
    COLORS,
    CORRECT,
    SERIES,
    WIDTH,
    WRONG,
    Picture,
    new_figure,
    styled,
)

_INSIDE = 4  # names that a legend holds without hiding curves

History: TypeAlias = Sequence[Mapping[str, Any]] | str | Path

Value: TypeAlias = float | tuple[float, float, float]
"""A number, or (number, lower end, upper end) with the interval drawn as an error bar."""


@styled
def plot_curves(
    curves: Mapping[str, tuple[Sequence[float] | Array, Sequence[float] | Array]],
    xlabel: str = "",
    ylabel: str = "",
    title: str | None = None,
    intervals: Mapping[str, tuple[Sequence[float] | Array, Sequence[float] | Array]] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = True,
    width: float = 6.5,
    height: float = 3.6,
) -> Picture:
    """Draw named curves in one pair of axes.

    Args:
        curves: {name: (x, y)}; a legend appears when there is more than one.
        xlabel: text below.
        ylabel: text beside.
        title: text above.
        intervals: {name: (lower, upper)} shaded around the curve of that name.
        log_x: logarithmic x axis.
        log_y: logarithmic y axis.
        markers: a dot at each value.
        width: of the figure in inches.
        height: of the figure in inches.

    Returns:
        The figure.

    Raises:
        ValueError: x and y of different lengths.
    """
    figure = new_figure(width, height)
    ax = figure.add_subplot()
    for index, (name, (x, y)) in enumerate(curves.items()):
        color = SERIES[index % len(SERIES)]
        ax.plot(to_numpy(x), to_numpy(y), "o-" if markers else "-", ms=4, color=color, label=name)
        if intervals and name in intervals:
            low, high = intervals[name]
            ax.fill_between(
                to_numpy(x), to_numpy(low), to_numpy(high), color=color, alpha=0.18, lw=0
            )
    _finish_chart(ax, xlabel, ylabel, title, log_x, log_y, legend=len(curves) > 1)
    return figure


@styled
def plot_precision_recall(
    curves: Mapping[str, tuple[Sequence[float] | Array, Sequence[float] | Array]],
    average_precision: Mapping[str, float] | None = None,
    title: str | None = None,
    width: float = 5.5,
    height: float = 4.0,
) -> Picture:
    """Draw precision against recall.

    Args:
        curves: {name: (recall, precision)}, both in [0, 1], recall rising.
        average_precision: {name: value} written into the legend.
        title: text above.
        width: of the figure in inches.
        height: of the figure in inches.

    Returns:
        The figure.
    """
    figure = new_figure(width, height)
    ax = figure.add_subplot()
    for index, (name, (recall, precision)) in enumerate(curves.items()):
        label = name
        if average_precision and name in average_precision:
            label = f"{name} (AP {average_precision[name]:.3f})"
        ax.plot(
            to_numpy(recall), to_numpy(precision), color=SERIES[index % len(SERIES)], label=label
        )
    ax.set_xlim(0, 1.01)
    ax.set_ylim(0, 1.03)
    _finish_chart(ax, "recall", "precision", title, legend=bool(curves))
    return figure


@styled
def plot_history(
    history: History | Mapping[str, History],
    quantities: Sequence[str] | None = None,
    log_x: bool = False,
    log_y: bool = True,
    x: str = "step",
    width: float = WIDTH,
    height: float = 2.9,
) -> Picture:
    """Draw what training recorded, one panel per quantity.

    Args:
        history: a list of dicts, or the path of a history.csv; or {name: such a history} to compare
            runs, one colour each, dashed where colours are taken. Missing values are skipped.
        quantities: columns to draw; by default all numeric ones but ``x``.
        log_x: logarithmic x axis.
        log_y: logarithmic y axis, where all values are positive.
        x: the column for the x axis.
        width: of the figure in inches.
        height: of a row of panels in inches.

    Returns:
        The figure: raw values faint, their running mean (over up to a twentieth of the run) strong.

    Raises:
        FileNotFoundError: the CSV file does not exist.
        ValueError: no run holds the wanted column.
    """
    runs = history if isinstance(history, Mapping) else {"": history}
    columns = {name: _history_columns(run) for name, run in runs.items()}
    known = list(dict.fromkeys(key for run in columns.values() for key in run))
    wanted = list(quantities) if quantities is not None else [key for key in known if key != x]
    for key in [x, *wanted]:
        if known and key not in known:
            raise ValueError(f"the history has no column {key!r}; it has {known}")
    per_row = min(max(len(wanted), 1), 3)
    rows = max(1, -(-len(wanted) // per_row))
    figure = new_figure(width, height * rows)
    axes = [figure.add_subplot(rows, per_row, i + 1) for i in range(len(wanted))]
    for ax, key in zip(axes, wanted, strict=True):
        for index, (name, run) in enumerate(columns.items()):
            if key in run:
                again, color = divmod(index, len(SERIES))
                _draw_run(ax, run[x], run[key], SERIES[color], name, "--" if again else "-")
        positive = all(
            (v[np.isfinite(v)] > 0).all()
            for v in (run.get(key, np.ones(1)) for run in columns.values())
        )
        _finish_chart(ax, x, "", key.replace("_", " "), log_x, log_y and positive, legend=False)
    if len(runs) > _INSIDE and axes:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
    elif len(runs) > 1 and axes:
        axes[0].legend()
    return figure


def _history_columns(history: History) -> dict[str, NDArray[np.float64]]:
    if isinstance(history, str | Path):
        path = Path(history)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: no such history file; training writes it as history.csv"
            )
        with path.open(newline="") as file:
            history = list(csv.DictReader(file))
    keys = dict.fromkeys(key for row in history for key in row)
    columns = {key: np.array([_number(row.get(key)) for row in history]) for key in keys}
    return {key: values for key, values in columns.items() if np.isfinite(values).any()}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _draw_run(ax: Axes, x: NDArray[Any], y: NDArray[Any], color: str, name: str, line: str) -> None:
    there = np.isfinite(x) & np.isfinite(y)
    x, y = x[there], y[there]
    half = len(y) // 40
    if half:
        ax.plot(x, y, color=color, alpha=0.25, lw=1)
    # A centred mean, over fewer values near both ends: it neither lags nor starts late.
    index = np.arange(len(y))
    reach = np.minimum(half, np.minimum(index, len(y) - 1 - index))
    sums = np.concatenate([[0.0], np.cumsum(y)])
    mean = (sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1)
    ax.plot(x, mean, line, color=color, label=name)


@styled
def plot_bars(
    rows: Mapping[str, Mapping[str, Value]],
    title: str | None = None,
    highlight: str | None = None,
    digits: int = 3,
    limit: float | None = None,
    width: float = WIDTH,
) -> Picture:
    """Draw a table of numbers as horizontal bars, one panel per column.

    Args:
        rows: {row: {column: value or (value, lower, upper)}}; rows are e.g. methods and columns
            metrics. A missing entry or a NaN is shown as a dash.
        title: text above.
        highlight: the row to draw in full colour; by default all are.
        digits: decimals of the numbers beside the bars.
        limit: upper end of every panel's axis; by default each panel's own largest value.
        width: of the figure in inches.

    Returns:
        The figure; intervals are drawn as error bars.
    """
    colors = [SERIES[0] if highlight in (None, name) else COLORS["sky"] for name in rows]

    def draw(ax: Axes, column: str, triples: NDArray[np.float64]) -> None:
        _draw_bars(ax, triples, colors, digits, limit)

    return _panels(rows, draw, title, width, 0.45)


def _panels(
    rows: Mapping[str, Mapping[str, Value]],
    draw: Callable[[Axes, str, NDArray[np.float64]], None],
    title: str | None,
    width: float,
    margin: float,
) -> Picture:
    """One panel per column, whose rows (value, lower, upper) ``draw`` draws; NaN where missing.

    ``margin`` is what the rows leave of the figure's height, in inches, without the title.
    """
    names = list(rows)
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    figure = new_figure(width, 0.34 * max(len(names), 1) + margin + (0.3 if title else 0.0))
    if not columns:
        return figure
    axes = np.atleast_1d(figure.subplots(1, len(columns), sharey=True))
    for ax, column in zip(axes, columns, strict=True):
        draw(ax, column, np.array([_triple(rows[name].get(column)) for name in names]))
        ax.set_title(column)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    if title:
        figure.suptitle(title, fontsize=12)
    return figure


def _triple(value: Value | None) -> tuple[float, float, float]:
    if value is None:
        return (np.nan, np.nan, np.nan)
    if isinstance(value, tuple | list):
        middle, low, high = value
        return float(middle), float(low), float(high)
    return float(value), np.nan, np.nan


def _draw_bars(
    ax: Axes, triples: NDArray[np.float64], colors: Sequence[str], digits: int, limit: float | None
) -> None:
    values, low, high = triples.T
    places = np.arange(len(values))
    ends = np.fmax(values, high)
    largest = limit or (float(np.nanmax(ends)) if np.isfinite(ends).any() else 1.0) or 1.0
    ax.barh(places, np.nan_to_num(values), color=colors, height=0.62)
    known = np.isfinite(low) & np.isfinite(high)
    ax.errorbar(
        values[known], places[known],
        xerr=np.maximum(np.stack([values - low, high - values])[:, known], 0.0),
        fmt="none", ecolor="black", elinewidth=1.1, capsize=3,
    )  # fmt: skip
    for place, (value, end) in enumerate(zip(values, ends, strict=True)):
        text = f"{value:.{digits}f}" if np.isfinite(value) else "–"
        at = (end if np.isfinite(end) else 0.0) + 0.03 * largest
        ax.text(at, place, text, va="center", fontsize=10)
    ax.set_xlim(0, largest * 1.42)  # room for the numbers
    ax.spines[["bottom"]].set_visible(False)
    ax.tick_params(bottom=False, labelbottom=False, left=False)


@styled
def plot_differences(
    rows: Mapping[str, Mapping[str, tuple[float, float, float]]],
    lower_is_better: Collection[str] = (),
    title: str | None = None,
    digits: int = 3,
    width: float = WIDTH,
) -> Picture:
    """Draw differences with their intervals around zero, one panel per column.

    Args:
        rows: {row: {column: (difference, lower end, upper end)}}; a missing entry stays empty.
        lower_is_better: columns in which a negative difference is a gain.
        title: text above.
        digits: decimals of the numbers beside the points.
        width: of the figure in inches.

    Returns:
        The figure: green where the whole interval is a gain, vermillion where it is a loss, gray
        where it holds zero.
    """

    def draw(ax: Axes, column: str, triples: NDArray[np.float64]) -> None:
        _draw_differences(ax, triples, -1 if column in lower_is_better else 1, digits)

    return _panels(rows, draw, title, width, 0.5)


def _draw_differences(ax: Axes, triples: NDArray[np.float64], sign: int, digits: int) -> None:
    ends = np.abs(triples)
    reach = (float(np.nanmax(ends)) if np.isfinite(ends).any() else 1.0) or 1.0
    ax.axvline(0, color="black", linewidth=0.8)
    for place, (value, low, high) in enumerate(triples):
        if not np.isfinite(value):
            continue
        worst, best = sorted((sign * low, sign * high))
        color = CORRECT if worst > 0 else WRONG if best < 0 else "#777777"
        ax.plot([low, high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
        ax.plot(value, place, "o", color=color, markersize=4.5)
        text = f"{value:+.{digits}f}"
        ax.text(1.3 * reach, place, text, va="center", fontsize=10, color=color)
    ax.set_xlim(-1.35 * reach, 2.55 * reach)  # room for the numbers
    ax.set_ylim(-0.5, len(triples) - 0.5)
    ax.spines[["bottom", "left"]].set_visible(False)
    ax.tick_params(bottom=False, labelbottom=False, left=False)


@styled
def plot_hinge_loss(
    lambda_d: float = 250.0,
    positive_margin: float = 1.0,
    negative_margin: float = 0.2,
    positive_similarity: float = 0.8,
    negative_similarity: float = 0.25,
    cells: int = 1200,
    figure: Picture | None = None,
) -> Picture:
    """Draw what one pair of cells costs in the descriptor hinge loss, and what all cost together.

    A corresponding pair costs lambda_d max(0, positive_margin - d . d'), any other pair
    max(0, d . d' - negative_margin) (DeTone et al. 2018, "SuperPoint", equation 6). Derived in
    notebook 04.

    Args:
        lambda_d: weight of corresponding pairs.
        positive_margin: similarity from which a corresponding pair costs nothing.
        negative_margin: similarity up to which another pair costs nothing.
        positive_similarity: d . d' in [-1, 1] taken for every corresponding pair in the bars.
        negative_similarity: likewise for every other pair.
        cells: cells N of each image (1200 for 240 x 320 pixels): N corresponding pairs, N (N - 1)
            others.
        figure: an earlier result, to be drawn anew with these values in half the time; None makes
            a new figure.

    Returns:
        The figure: the two costs against the similarity, and what both kinds add to the loss
        (their sums divided by the N^2 pairs).
    """
    figure = figure or _hinge_figure()
    first, second, bars = figure.axes
    for artist in [item for ax in figure.axes for item in (*ax.lines, *ax.patches, *ax.texts)]:
        artist.remove()
    similarity = np.linspace(-1.0, 1.0, 201)
    positive = lambda_d * np.maximum(0.0, positive_margin - similarity)
    negative = np.maximum(0.0, similarity - negative_margin)
    at_positive = lambda_d * max(0.0, positive_margin - positive_similarity)
    at_negative = max(0.0, negative_similarity - negative_margin)
    first.plot(similarity, positive, color=CORRECT)
    first.plot([positive_similarity], [at_positive], "o", color="black", ms=7, zorder=3)
    second.plot(similarity, negative, color=WRONG)
    second.plot([negative_similarity], [at_negative], "o", color="black", ms=7, zorder=3)
    for ax, highest in ((first, positive[0]), (second, negative[-1])):
        ax.set_ylim(-0.05 * highest, 1.05 * highest or 1.0)
    totals = [at_positive / cells, at_negative * (cells - 1) / cells]
    bars.bar([0, 1], totals, color=[CORRECT, WRONG], width=0.6)
    bars.set_ylim(0, 1.2 * max(*totals, 1e-6))
    for place, total in enumerate(totals):
        bars.text(place, total, f"{total:.3g}", ha="center", va="bottom")
    return figure


def _hinge_figure() -> Picture:
    figure = new_figure(9.0, 2.9)
    # Fixed margins: laying out anew would double the time, and widgets draw this figure often.
    figure.set_layout_engine("none")
    margins = {"left": 0.07, "right": 0.99, "bottom": 0.2, "top": 0.89, "wspace": 0.22}
    first, second, bars = figure.subplots(1, 3, width_ratios=[1.2, 1.2, 1.0], gridspec_kw=margins)
    for ax, title in ((first, "a corresponding pair"), (second, "any other pair")):
        ax.set_xlim(-1.05, 1.05)
        ax.set_xticks([-1, 0, 1])
        ax.locator_params(axis="y", nbins=3)
        _finish_chart(ax, "similarity d·d'", "cost" if ax is first else "", title)
    bars.set_title("mean over all pairs")
    bars.set_xlim(-0.6, 1.6)
    bars.set_xticks([0, 1], ["corresponding", "others"])
    bars.set_yticks([])
    bars.spines[["left"]].set_visible(False)
    return figure


def _finish_chart(
    ax: Axes,
    xlabel: str,
    ylabel: str,
    title: str | None,
    log_x: bool = False,
    log_y: bool = False,
    legend: bool = False,
) -> None:
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if title:
        ax.set_title(title)
    if log_x:
        ax.set_xscale("log")
        _plain_log_ticks(ax.xaxis)
    if log_y:
        ax.set_yscale("log")
        _plain_log_ticks(ax.yaxis)
    ax.grid(True)
    ax.set_axisbelow(True)
    if legend:
        ax.legend()


def _plain_log_ticks(axis: Axis) -> None:
    """Numbers such as 0.2 and 50 instead of powers of ten; as many as the range asks for."""
    low, high = axis.get_view_interval()
    decades = np.log10(high / low) if 0 < low < high else 1.0
    subs = (1.0,) if decades > 2 else (1.0, 2.0, 5.0) if decades > 0.7 else tuple(range(1, 10))
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
