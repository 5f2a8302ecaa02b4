"""Draw the pictures of README.md into figures/: python tools/make_figures.py."""

from __future__ import annotations

from superpoint_lib import SuperPoint, extract, match
from superpoint_lib.datasets import motorcycle_pair
from superpoint_lib.paths import figures_dir
from superpoint_lib.plotting import plot_matches


def main() -> None:
    """Match the two motorcycle photographs; green lines stay on their row, as they must."""
    left, right = motorcycle_pair()
    model = SuperPoint.from_pretrained("superpoint")
    features = [extract(model, image, max_keypoints=300) for image in (left, right)]
    matches, _ = match(*features)
    points0, points1 = (f.keypoints[matches[:, i]] for i, f in enumerate(features))
    correct = (points0[:, 1] - points1[:, 1]).abs() <= 2
    figure = plot_matches(
        left, right, features[0].keypoints, features[1].keypoints, matches, correct
    )
    figure.savefig(figures_dir() / "matches.jpg", dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
