"""Draw the pictures of README.md into figures/: python tools/make_figures.py."""

from __future__ import annotations

import argparse
import json

import numpy as np
from benchmark.pictures import growth_figure, profile_figure
from PIL import Image

from superpoint_lib import Features, SuperPoint, extract, match
from superpoint_lib.datasets import motorcycle_pair
from superpoint_lib.evaluation.results import Results
from superpoint_lib.geometry import resize_and_crop, warp_points
from superpoint_lib.multiscale import extract_multiscale
from superpoint_lib.paths import figures_dir, results_dir
from superpoint_lib.plotting import (
    MatchedPair,
    Picture,
    plot_curves,
    plot_matches,
    plot_pairs,
    render_grid,
    render_keypoints,
)
from superpoint_lib.shapes import PRIMITIVES, SHAPES_PRESETS, draw_shape


def draw_matches() -> None:
    """Match the two motorcycle photographs; green lines stay on their row, as they must."""
    left, right = motorcycle_pair()
    model = SuperPoint.from_pretrained("superpoint")
    features0, features1 = (extract(model, image, max_keypoints=300) for image in (left, right))
    assert isinstance(features0, Features) and isinstance(features1, Features)
    matches, _ = match(features0, features1)
    points0, points1 = features0.keypoints[matches[:, 0]], features1.keypoints[matches[:, 1]]
    correct = (points0[:, 1] - points1[:, 1]).abs() <= 2
    figure = plot_matches(left, right, features0.keypoints, features1.keypoints, matches, correct)
    figure.savefig(figures_dir() / "matches.jpg", dpi=100, bbox_inches="tight")


def draw_pyramid() -> None:
    """Match the left photograph with the right one at half its size, in one look and more.

    Green lines stay on their row.
    """
    left, right = motorcycle_pair()
    height, width = right.shape
    far, H = resize_and_crop(right, height // 2, width // 2)
    model = SuperPoint.from_pretrained("superpoint")
    pairs = []
    looks: dict[str, tuple[float, ...]] = {"one look": (), "--pyramid 0.7 0.5": (0.7, 0.5)}
    for title, pyramid in looks.items():
        near, small = (extract_multiscale(model, im, (1.0,), pyramid=pyramid) for im in (left, far))
        assert isinstance(near, Features) and isinstance(small, Features)
        matches, _ = match(near, small)
        points0, points1 = near.keypoints[matches[:, 0]], small.keypoints[matches[:, 1]]
        rows_apart = (warp_points(points0.numpy(), H) - points1.numpy())[:, 1]
        correct = np.abs(rows_apart) <= 1.5
        told = f"{title}: {correct.sum()} of {len(matches)} correct"
        numbers = np.stack([np.arange(len(matches))] * 2, axis=1)
        pairs.append(MatchedPair(left, far, points0, points1, numbers, correct, told))
    figure = plot_pairs(pairs, width=9)
    figure.savefig(figures_dir() / "pyramid.jpg", dpi=100, bbox_inches="tight")


def draw_homographies() -> None:
    """How many homographies of real photographs are right to so many pixels."""
    results = Results.load(results_dir() / "hpatches_like.json")
    errors = np.linspace(0, 5, 101)
    names = (
        "superpoint@1+0.7+0.5:refined",
        "superpoint:refined",
        "superpoint",
        "sift:refined",
        "sift",
    )
    curves = {name: (errors, results.curve(name, errors.tolist())) for name in names}
    axes = ("corners of the homography off by at most (px)", "share of pairs")
    figure = plot_curves(curves, *axes, markers=False, width=6.5, height=2.8)
    figure.axes[0].set(xlim=(0, 5), ylim=(0, 1))
    write_chart("homographies.png", figure)


def draw_shapes() -> None:
    """Two pictures of each primitive, with their keypoints, as at the top of notebook 01."""
    rng = np.random.default_rng(5)
    twice = [name for name in PRIMITIVES for _ in range(2)]
    tiles = [draw_shape(name, SHAPES_PRESETS["default"], rng) for name in twice]
    marked = [render_keypoints(image, keypoints, width=320) for image, keypoints in tiles]
    gallery = render_grid(marked, [name.replace("_", " ") for name in twice], columns=6, width=960)
    # 4:4:4 keeps the thin circles sharp.
    path = figures_dir() / "synthetic_shapes.jpg"
    Image.fromarray(gallery).save(path, quality=80, subsampling=0)


def draw_growth() -> None:
    """How cost grows, as the benchmark measured it."""
    content = json.loads((results_dir() / "benchmark.json").read_text(encoding="utf-8"))
    stages = content["stages"]
    rows = [row for name in stages if name.startswith("growth") for row in stages[name]["rows"]]
    write_chart("benchmark_growth.png", growth_figure(rows))


def draw_profile() -> None:
    """Where the time of the heaviest stages goes, before and after."""
    content = json.loads((results_dir() / "profile.json").read_text(encoding="utf-8"))
    write_chart("profile.png", profile_figure(content["runs"]))


def write_chart(name: str, figure: Picture) -> None:
    """Write a chart as small as it is in a notebook."""
    kind, data = figure.encode()
    assert kind == "image/png"
    (figures_dir() / name).write_bytes(data)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    draw_matches()
    draw_pyramid()
    draw_homographies()
    draw_shapes()
    draw_growth()
    draw_profile()
