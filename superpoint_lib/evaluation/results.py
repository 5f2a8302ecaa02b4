"""Results of an evaluation: records per pair, summaries with intervals, files, comparisons.

Derived in notebook 06.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superpoint_lib.config import from_dict, to_dict
from superpoint_lib.evaluation import metrics
from superpoint_lib.evaluation.protocols import ProtocolConfig
from superpoint_lib.paths import write_json, write_text

Record = dict[str, Any]
TEXT_KEYS = ("extractor", "sequence", "split")
KEYS = (*TEXT_KEYS, "pair")
SPLITS = ("illumination", "viewpoint")


@dataclass(frozen=True)
class Results:
    """The records of an evaluation, and the ways to summarise and keep them.

    Attributes:
        protocol_name: Name of the protocol ("custom" for a configuration of one's own).
        protocol: Its configuration.
        records: One dictionary per extractor and pair: who, where, ``turn`` in degrees and ``zoom``
            of the true homography (``geometry.turn_and_zoom``), counts, ``corner_error`` in pixels
            (infinity: failed) and every metric of ``protocol.metrics`` it has.
        skipped: Sequences left out, with the reason.
    """

    protocol_name: str
    protocol: ProtocolConfig
    records: tuple[Record, ...]
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def extractors(self) -> tuple[str, ...]:
        """Names, in the order of the evaluation."""
        return tuple(dict.fromkeys(record["extractor"] for record in self.records))

    @property
    def splits(self) -> tuple[str, ...]:
        """ "all", and the parts that are there."""
        present = {record["split"] for record in self.records}
        return ("all", *(split for split in SPLITS if split in present))

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences measured."""
        return tuple(dict.fromkeys(record["sequence"] for record in self.records))

    def select(self, extractor: str | None = None, part: str = "all") -> Results:
        """Keep one extractor (None: every) and one part: "all", a split, or a sequence's name.

        Raises:
            KeyError: An extractor or part that is not in these results.
        """
        if extractor is not None and extractor not in self.extractors:
            raise KeyError(f"no extractor {extractor!r} here; there are {self.extractors}")
        if part not in self.splits and part not in self.sequences:
            raise KeyError(f"no part {part!r} here; there are {self.splits + self.sequences}")
        kept = tuple(
            record
            for record in self.records
            if extractor in (None, record["extractor"])
            and part in ("all", record["split"], record["sequence"])
        )
        return dataclasses.replace(self, records=kept)

    def values(self, metric: str) -> NDArray[np.float64]:
        """One number per record, NaN where it has none (a detector's homography accuracy).

        Raises:
            KeyError: Neither a metric of the protocol nor anything that a record holds.
        """
        known = self.protocol.metrics
        if metric not in known and not any(metric in record for record in self.records):
            raise KeyError(f"no metric {metric!r} here; there are {list(known)}")
        return np.array([record.get(metric, math.nan) for record in self.records], np.float64)

    def summary(
        self,
        parts: Iterable[str] | None = None,
        confidence: float = 0.95,
        clustered: bool = True,
    ) -> list[Record]:
        """Mean and bootstrap interval of every metric, by part and extractor.

        Args:
            parts: Splits or sequence names; "all" and the splits when left out.
            confidence: Coverage of the intervals.
            clustered: Draw whole sequences, whose pairs share an image and stand or fall together;
                otherwise single pairs, which gives narrower intervals that trust the pairs to be
                independent.

        Returns:
            Rows with the keys extractor, part, metric, value, low, high, pairs.
        """
        rows = []
        for part in self.splits if parts is None else parts:
            for extractor in self.extractors:
                rows += self.select(extractor, part)._means(part, confidence, clustered)
        return rows

    def _means(self, part: str, confidence: float, clustered: bool) -> list[Record]:
        """The rows of ``summary`` for the one extractor these results hold."""
        clusters = self._clusters() if clustered else None
        rows = []
        for metric in self.protocol.metrics:
            values = self.values(metric)
            known = int((~np.isnan(values)).sum())
            if known:
                interval = metrics.bootstrap_mean(values, clusters, confidence=confidence)
                rows.append(
                    {
                        "extractor": self.extractors[0],
                        "part": part,
                        "metric": metric,
                        "value": interval.mean,
                        "low": interval.low,
                        "high": interval.high,
                        "pairs": known,
                    }
                )
        return rows

    def table(
        self,
        part: str = "all",
        columns: Sequence[str] | None = None,
        intervals: bool = False,
        confidence: float = 0.95,
    ) -> str:
        """A Markdown table: a row for each extractor, a column for each metric.

        An extractor that has none of the metrics, such as a detector where only metrics of matches
        are wanted, has no row.

        Args:
            part: "all", a split, or the name of a sequence.
            columns: Metrics; all of the protocol when left out.
            intervals: Add the bootstrap intervals (sequences drawn whole).
            confidence: Their coverage.
        """
        names = tuple(self.protocol.metrics if columns is None else columns)
        rows = self.summary([part], confidence)
        cells = {(row["extractor"], row["metric"]): _cell(row, intervals) for row in rows}
        lines = [
            f"| {part} | {' | '.join(names)} |",
            "|---" + "|---:" * len(names) + "|",
            *(
                f"| {extractor} | {' | '.join(cells.get((extractor, n), '–') for n in names)} |"
                for extractor in self.extractors
                if any((extractor, name) in cells for name in names)
            ),
        ]
        notes = [f"\nleft out: {name} ({reason})" for name, reason in self.skipped.items()]
        return "\n".join(lines + notes)

    def differences(self, reference: str) -> list[Record]:
        """What every other extractor gains on ``reference``, pair by pair (see ``compare``).

        Returns:
            Rows of ``compare`` with the keys extractor and part besides, for "all" and each split;
            a positive difference is more than the reference has.

        Raises:
            KeyError: No extractor of that name.
        """
        base = self.select(reference)
        return [
            {"extractor": name, "part": part} | row
            for name in self.extractors
            if name != reference
            for part in self.splits
            for row in compare(base, self.select(name), part)
        ]

    def worst_pairs(self, extractor: str, count: int = 5) -> list[Record]:
        """The records with the largest corner errors, worst first (failed pairs lead)."""
        records = [r for r in self.select(extractor).records if "corner_error" in r]
        return sorted(records, key=lambda r: -r["corner_error"])[:count]

    def curve(self, extractor: str, thresholds: Sequence[float]) -> NDArray[np.float64]:
        """Homography accuracy at each threshold in pixels, (len(thresholds),) in [0, 1].

        Of the matches in their own order, however many orders the table's means are over; NaN for
        a detector alone.
        """
        errors = self.select(extractor).values("corner_error")
        errors = errors[~np.isnan(errors)]
        return np.array([metrics.homography_accuracy(errors, eps) for eps in thresholds])

    def save(
        self, path: str | Path, command: str, reference: str | None = None
    ) -> tuple[Path, Path]:
        """Write ``path`` with the suffixes .json (protocol, summary) and .csv (the records).

        Args:
            path: With or without a suffix; missing folders are made.
            command: What a reader types to get these results again; stored in both files.
            reference: Name of an extractor: the JSON then holds the ``differences`` from it, too.

        Returns:
            The two paths. In the JSON NaN is null; the CSV's first line is the command behind a
            ``#``, a value that a record does not have is empty.
        """
        json_path, csv_path = result_paths(path)
        content: dict[str, Any] = {
            "command": command,
            "protocol_name": self.protocol_name,
            "protocol": to_dict(self.protocol),
            "skipped": self.skipped,
            "summary": json_ready(self.summary()),
        }
        if reference is not None:
            content["differences"] = json_ready(self.differences(reference))
        write_json(json_path, content)
        write_text(csv_path, f"# {' '.join(command.splitlines())}\n{self._csv()}")
        return json_path, csv_path

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read what ``save`` wrote: the .json file named, and the .csv file beside it.

        Raises:
            FileNotFoundError: One of the two is not there.
            ValueError: Not a file of results, by name.
        """
        json_path = Path(path)
        try:
            content = json.loads(json_path.read_text(encoding="utf-8"))
            name, skipped = content["protocol_name"], content["skipped"]
            protocol = from_dict(ProtocolConfig, content["protocol"], str(path))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: not a file of evaluation results ({error!r})") from error
        return cls(
            name, protocol, _read_records(json_path.with_name(f"{json_path.stem}.csv")), skipped
        )

    def _clusters(self) -> NDArray[np.str_]:
        return np.array([record["sequence"] for record in self.records])

    def _csv(self) -> str:
        columns = list(dict.fromkeys([*KEYS, *(key for r in self.records for key in r)]))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.records)
        return text.getvalue()


def compare(
    results_a: Results,
    results_b: Results,
    part: str = "all",
    confidence: float = 0.95,
    clustered: bool = True,
) -> list[Record]:
    """Compare two extractors pair by pair: the mean difference b - a and its bootstrap interval.

    Both saw the same pairs, so the difficulty of a pair cancels in the difference; the interval
    is often far narrower than the two separate ones suggest.

    Args:
        results_a: Of one extractor (``results.select("SIFT")``).
        results_b: Of the other, on the same pairs under the same protocol.
        part: "all", a split, or a sequence's name.
        confidence: Coverage of the intervals.
        clustered: Draw whole sequences instead of single pairs.

    Returns:
        Rows with the keys metric, a, b, difference, low, high, pairs for every metric both have.
        An interval that excludes 0 means a difference at that confidence.

    Raises:
        ValueError: More than one extractor in either, other pairs, or another protocol.
    """
    a, b = (results.select(part=part) for results in (results_a, results_b))
    if len(a.extractors) != 1 or len(b.extractors) != 1:
        raise ValueError(
            f"compare takes one extractor each, not {a.extractors} and {b.extractors}: use "
            "results.select(name)"
        )
    if a.protocol != b.protocol:
        raise ValueError("the two results come from different protocols")
    b_records = {_pair_key(record): record for record in b.records}
    different = {_pair_key(record) for record in a.records} ^ set(b_records)
    if different:
        raise ValueError(f"the two results cover different pairs, such as {min(different)}")
    b = dataclasses.replace(b, records=tuple(b_records[_pair_key(record)] for record in a.records))
    clusters = a._clusters() if clustered else None
    rows = []
    for metric in a.protocol.metrics:
        values_a, values_b = a.values(metric), b.values(metric)
        known = ~(np.isnan(values_a) | np.isnan(values_b))
        if known.any():
            difference = metrics.bootstrap_mean(
                values_b - values_a, clusters, confidence=confidence
            )
            rows.append(
                {
                    "metric": metric,
                    "a": float(values_a[known].mean()),
                    "b": float(values_b[known].mean()),
                    "difference": difference.mean,
                    "low": difference.low,
                    "high": difference.high,
                    "pairs": int(known.sum()),
                }
            )
    return rows


def _pair_key(record: Record) -> tuple[str, int]:
    return record["sequence"], record["pair"]


def _cell(row: Record, intervals: bool) -> str:
    value = f"{row['value']:.3f}"
    return f"{value} [{row['low']:.3f}, {row['high']:.3f}]" if intervals else value


def result_paths(path: str | Path) -> tuple[Path, Path]:
    """The .json and the .csv file that ``Results.save`` writes; ``path`` may end in either."""
    stem = str(path).removesuffix(".json").removesuffix(".csv")
    return Path(f"{stem}.json"), Path(f"{stem}.csv")


def json_ready(value: Any) -> Any:
    """Round the numbers in lists and dictionaries as `shortened` does; JSON has no NaN: None."""
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else shortened(value)


def shortened(value: Any) -> Any:
    """Round a number to eight digits: the rest is noise that no two machines share."""
    return float(f"{value:.8g}") if isinstance(value, float) else value


def _read_records(path: Path) -> tuple[Record, ...]:
    text = path.read_bytes().decode("utf-8", "surrogateescape")  # as write_text has it
    rows = csv.DictReader(io.StringIO(text.partition("\n")[2], newline=""))
    if not set(KEYS) <= set(rows.fieldnames or ()):
        raise ValueError(f"{path}: not a file of evaluation results (no columns {KEYS})")
    return tuple(
        {key: _from_text(key, text) for key, text in row.items() if text != ""} for row in rows
    )


def _from_text(key: str, text: str) -> str | int | float:
    if key in TEXT_KEYS:
        return text
    return int(text) if text.isdecimal() else float(text)
