"""The measurement of what bfloat16 costs, on a small network and few pairs."""

import json

import compare_precision as tool
import numpy as np
import torch

from superpoint_lib.checkpoints import save_weights
from superpoint_lib.config import to_dict
from superpoint_lib.model import ModelConfig, SuperPoint


def test_the_file_names_pairs_differences_and_modes(monkeypatch, tmp_path, capsys):
    torch.manual_seed(0)
    small = ModelConfig(norm="none", channels=(8, 8, 8, 8), head_channels=8)
    path = tmp_path / "net.safetensors"
    save_weights(path, SuperPoint(small).state_dict(), to_dict(small), {})
    monkeypatch.setattr(tool, "runs_dir", lambda: tmp_path)
    monkeypatch.setattr(tool, "data_dir", lambda: tmp_path / "nothing")
    monkeypatch.setattr(tool.sys, "argv", ["compare_precision.py", "--pictures", "2"])
    tool.main(tool.Options(2, 1, 3, str(path), tmp_path / "precision.json"))
    found = json.loads((tmp_path / "precision.json").read_text())
    assert found["command"] == "python tools/compare_precision.py --pictures 2"
    assert (found["pictures"], found["pairs"]) == ("2 of the bundled photographs", 4)
    assert found["commit"] and found["machine"]
    assert {row["estimator"] for row in found["differences"]} == set(tool.ESTIMATORS)
    assert {row["part"] for row in found["differences"]} == {"all", "illumination", "viewpoint"}
    assert {row["metric"] for row in found["differences"]} >= {"homography@1", "homography@5"}
    # Without batch normalisation the two modes are one.
    assert found["train_and_eval_mode"] == {"pictures": 4.0, "logits": 0.0, "descriptors": 0.0}
    assert "homography@3" in capsys.readouterr().out


def test_least_squares_takes_the_matches_near_the_truth_and_no_others():
    from superpoint_lib.evaluation.hpatches import MatchedPair

    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (20, 2))
    moved = points + np.array([5.0, -3.0])
    moved[:8] += 50  # wrong matches, more than 3 px off
    H = np.array([[1.0, 0, 5], [0, 1, -3], [0, 0, 1]])
    errors = np.where(np.arange(20) < 8, 70.0, 0.0)
    image = np.zeros((100, 100), np.float32)
    pairs = np.stack([np.arange(20)] * 2, axis=1)
    pair = MatchedPair(
        image, image, H, points, moved, pairs, np.ones(20), errors, errors < 3, None, np.inf
    )
    assert tool._least_squares(pair) < 1e-3
    nothing = MatchedPair(
        image, image, H, points, moved, pairs, np.ones(20), errors + 70, errors < 3, None, np.inf
    )
    assert tool._least_squares(nothing) == np.inf
