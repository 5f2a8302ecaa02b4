"""A picture with labels, for tests of what is made of photographs."""

from pathlib import Path

import cv2
import numpy as np

from superpoint_lib.datasets import save_labels


def write_scene(folder: Path) -> tuple[list[Path], list[Path]]:
    """A smooth picture of 120 x 160 with a grid of keypoints: folders of images and of labels."""
    noise = np.random.default_rng(0).random((12, 16), dtype=np.float32)
    image = cv2.resize(noise, (160, 120), interpolation=cv2.INTER_CUBIC)
    (folder / "images").mkdir()
    assert cv2.imwrite(str(folder / "images/a.png"), (image * 255).clip(0, 255).astype(np.uint8))
    grid = np.stack(np.meshgrid(np.arange(5, 160, 25), np.arange(5, 120, 25)), -1).reshape(-1, 2)
    scores = np.full(len(grid), 0.5)
    save_labels(folder / "labels/a.npz", grid, scores, (120, 160), {}, scores)
    return [folder / "images"], [folder / "labels"]


def uneven_scene(folder: Path) -> tuple[list[Path], list[Path]]:
    """One gray picture of 48 x 64, four keypoints, best first, no two alike."""
    (folder / "images").mkdir()
    cv2.imwrite(str(folder / "images/a.png"), np.full((48, 64), 99, np.uint8))
    keypoints = np.array([[20.0, 20.0], [22.0, 21.0], [50.0, 10.0], [52.0, 11.0], [5.0, 40.0]])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    probabilities = np.array([0.95, 0.15, 0.75, 0.25, 0.45])
    save_labels(folder / "labels/a.npz", keypoints, scores, (48, 64), {}, probabilities)
    return [folder / "images"], [folder / "labels"]
