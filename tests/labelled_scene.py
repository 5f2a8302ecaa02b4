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
