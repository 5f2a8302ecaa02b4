"""``superpoint match``: the matches of two images, drawn and written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tyro
from tyro.conf import Positional

from superpoint_lib.cli.features import (
    ExtractorOptions,
    feature_finder,
    naming,
    reduce_image,
    size_text,
)
from superpoint_lib.cli.shared import CommandError, UsageError, check_file, parse

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class MatchOptions(ExtractorOptions):
    """Match two images and draw the matches."""

    image0: Positional[Path] = tyro.MISSING
    """First image."""
    image1: Positional[Path] = tyro.MISSING
    """Second image."""
    ratio: float | None = None
    """Leave out matches whose second nearest descriptor is nearly as near: 0.9 is mild, 0.8
    strict."""
    min_similarity: float | None = None
    """Leave out matches whose descriptors have a smaller dot product, of at most 1."""
    refine: bool = False
    """Move the matches to where both images agree, to a small part of a pixel, and leave out those
    that do not: for homographies, poses and panoramas."""
    output: Path = Path("matches.png")
    """The picture to write; its ending chooses the format."""
    table: Path | None = None
    """A .csv to write besides: x0, y0, x1, y1 in pixels of the files, and the similarity of every
    match."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(f"--ratio must be above 0 and at most 1, got {self.ratio}")
        if self.min_similarity is not None and not -1 <= self.min_similarity <= 1:
            raise ValueError(f"--min-similarity must be in -1..1, got {self.min_similarity}")


def command(arguments: Sequence[str]) -> int:
    """Match two images; returns the exit status."""
    options = parse(MatchOptions, "match", arguments)
    import numpy as np

    from superpoint_lib.evaluation.hpatches import refine_by_ransac
    from superpoint_lib.extraction import match
    from superpoint_lib.geometry import warp_points
    from superpoint_lib.paths import atomic_path, read_gray
    from superpoint_lib.plotting import plot_matches

    _check_outputs(options)
    find = feature_finder(options)
    (image0, to_file0), (image1, to_file1) = (
        reduce_image(read_gray(path), options.longest) for path in (options.image0, options.image1)
    )
    with naming(options.image0):
        features0 = find(image0)
    with naming(options.image1):
        features1 = find(image1)
    if features0.descriptors is None:
        raise CommandError(f"{options.weights} has no descriptors: choose a SuperPoint to match")
    found = match(features0, features1, options.ratio, options.min_similarity)
    matches, similarity = (tensor.cpu().numpy() for tensor in found)
    keypoints0, keypoints1 = features0.numpy().keypoints, features1.numpy().keypoints
    told = f"{len(matches)} matches"
    if options.refine:
        ends = keypoints0[matches[:, 0]], keypoints1[matches[:, 1]]
        moved, confirmed = refine_by_ransac(image0, image1, *ends)
        keypoints1 = keypoints1.astype(np.float64)
        keypoints1[matches[:, 1]] = moved
        matches, similarity = matches[confirmed], similarity[confirmed]
        told += f", {len(matches)} of them confirmed and refined"
    figure = plot_matches(image0, image1, keypoints0, keypoints1, matches)
    with atomic_path(options.output) as temporary:
        figure.savefig(temporary, bbox_inches="tight", dpi=160)
    if options.table:
        ends0 = warp_points(keypoints0[matches[:, 0]], to_file0)
        ends1 = warp_points(keypoints1[matches[:, 1]], to_file1)
        _write_table(options.table, ends0, ends1, similarity)
    reduced = not (np.array_equal(to_file0, np.eye(3)) and np.array_equal(to_file1, np.eye(3)))
    sizes = f", looked at in {size_text(image0)} and {size_text(image1)} pixels" if reduced else ""
    print(
        f"{len(features0)} and {len(features1)} keypoints, computed in {features0.computed_in}"
        f"{sizes}, {told}: {options.output}{f' and {options.table}' if options.table else ''}"
    )
    return 0


def _check_outputs(options: MatchOptions) -> None:
    """Refuse what could not be written, or would overwrite what is read.

    Raises:
        UsageError: it is so.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    # Without what needs TeX, what a viewer does not open, and what knows no transparency.
    known = FigureCanvasBase.get_supported_filetypes().keys() - {"pgf", "raw", "rgba", "eps", "ps"}
    # Behind a name without an ending, matplotlib would put one of its own.
    if options.output.suffix.lower().removeprefix(".") not in known:
        raise UsageError(
            f"match: --output {options.output}: choose a name that ends in "
            f"{', '.join(f'.{ending}' for ending in sorted(known))}"
        )
    check_file("match: --output", options.output)
    if options.table:
        check_file("match: --table", options.table)
    places = [options.image0, options.image1]
    for key, place in (("output", options.output), ("table", options.table)):
        if place and any(place.resolve() == taken.resolve() for taken in places):
            raise UsageError(f"match: --{key} {place} would overwrite a file of this command")
        places += [place] if place else []


def _write_table(path: Path, ends0: np.ndarray, ends1: np.ndarray, similarity: np.ndarray) -> None:
    """Write matches (M, 2) and (M, 2) with their similarity (M,), a line for each."""
    import numpy as np

    from superpoint_lib.paths import write_text

    rows = np.column_stack([ends0, ends1, similarity])
    lines = ["x0,y0,x1,y1,similarity", *(",".join(f"{v:.4f}" for v in row) for row in rows)]
    write_text(path, "\n".join([*lines, ""]))
