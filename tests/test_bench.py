"""The benchmark's arithmetic; what it measures is no matter of tests."""

import json

import pytest
from notebook_cells import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import bench

    return bench


def test_a_ratio_is_the_median_over_the_turns(bench):
    times = {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 1.0]}
    assert bench.ratio(times, "a", "b") == 3.0


def test_works_take_turns_after_a_call_to_warm_up(bench):
    calls = []
    times = bench.in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in times.values()] == [2, 2]


def test_goals_are_met_from_the_right_side(bench):
    assert bench.at_least("speed", 3.0, 3)["met"]
    assert not bench.at_least("speed", 2.9, 3)["met"]
    assert bench.at_most("time", 50.0, 50, "ms")["met"]
    assert not bench.at_most("time", 50.1, 50, "ms")["met"]


def test_one_stage_goes_to_the_screen_only(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "OUTPUT", tmp_path / "benchmark.json")
    bench.main(["matching"])
    shown = capsys.readouterr().out
    assert "1000 x 1000: of OpenCV's speed" in shown
    assert not bench.OUTPUT.exists()


def test_the_plain_version_finds_our_keypoints(bench):
    import torch

    from superpoint_lib import SuperPoint, extract

    model = SuperPoint.from_pretrained("superpoint")
    images = bench._photographs(240, 320)[:1]
    x, y, scores, _ = bench._plain_extract(model, images)[0]
    ours = extract(model, images, nms_radius=4, subpixel=False, precision="float32")[0]
    plain = {(int(a), int(b)) for a, b in zip(x, y, strict=True)}
    found = set(map(tuple, ours.keypoints.int().tolist()))
    assert len(plain & found) > 0.95 * len(found)
    assert torch.isclose(scores[0], ours.keypoint_scores[0])


def test_results_are_json(bench, monkeypatch, capsys):
    monkeypatch.setitem(bench.STAGES, "nothing", lambda: [bench.plain("zero", 0.0)])
    bench.main(["--json", "nothing"])
    assert json.loads(capsys.readouterr().out)["rows"][0]["value"] == 0.0
