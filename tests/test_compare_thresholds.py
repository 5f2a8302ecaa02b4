"""The measurement of what the least score of keypoints does, on a few pairs."""

import json

import compare_thresholds as tool

from superpoint_lib.datasets import bundled_photos
from superpoint_lib.evaluation.mini import MiniConfig, make_benchmark


def test_fewer_and_surer_keypoints_take_part_at_higher_thresholds(monkeypatch, tmp_path):
    photo = {"coffee": bundled_photos("benchmark")["coffee"]}
    config = MiniConfig(height=120, width=160, pairs=1)
    monkeypatch.setattr(
        tool, "warped_pairs", lambda: make_benchmark(tmp_path / "pairs", photo, config)
    )
    output = tmp_path / "thresholds.json"
    tool.main(tool.Options(("superpoint",), (0.001, 0.05), 1, output), "the command")
    found = json.loads(output.read_text())
    assert found["command"] == "the command" and found["commit"] and found["machine"]
    assert found["pairs"] == 2
    low, high = found["rows"]
    assert (low["threshold"], high["threshold"]) == (0.001, 0.05)
    assert low["keypoints"] > high["keypoints"] > 0
    assert all(0 <= row[f] <= 3 for row in (low, high) for f in tool.FIGURES)


def test_both_tasks_of_the_protocol_get_the_threshold():
    protocol = tool.at_least(0.02)
    assert protocol.detector.threshold == protocol.descriptor.threshold == 0.02
    assert protocol.detector.nms_radius == 4 and protocol.distance == 3
