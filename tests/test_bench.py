"""The benchmark's arithmetic; what it measures is no matter of tests."""

import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from notebook_cells import ROOT
from torch.utils.data import DataLoader


@pytest.fixture
def bench():
    import bench

    return bench


@pytest.fixture
def measuring():
    from benchmark import measuring

    return measuring


def growth_row(measuring, value=1.5, goal=1.1):
    return measuring.at_most("extract, batch", value, goal, "exponent") | {
        "curve": "extract",
        "against": "batch",
        "expected": 1,
        "last_step": 1.6,
        "sizes": [1, 2, 4],
        "seconds": [0.1, 0.25, 0.8],
        "memory_gb": [0.1, 0.2, 0.4],
        "turns": 3,
    }


# --- measuring ------------------------------------------------------------------------------


def test_a_ratio_is_the_median_over_the_turns(measuring):
    times = {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 1.0]}
    assert measuring.ratio(times, "a", "b") == 3.0


def test_works_take_turns_after_a_call_to_warm_up(measuring):
    calls = []
    works = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    times = measuring.in_turns(works, 2)
    assert calls == ["a", "b"] * 3
    assert [len(values) for values in times.values()] == [2, 2]


def test_turns_go_on_until_the_budget_is_spent(measuring, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: float(next(clock)))
    # Each look at the clock passes a second; a turn looks at it three times.
    times = measuring.in_turns({"a": lambda: None}, 2, budget=20.0)
    assert len(times["a"]) == 7
    assert len(measuring.in_turns({"a": lambda: None}, 2, budget=1.0)["a"]) == 2


def test_goals_are_met_from_the_right_side(measuring):
    assert measuring.at_least("speed", 3.0, 3)["met"]
    assert not measuring.at_least("speed", 2.9, 3)["met"]
    assert measuring.at_most("time", 50.0, 50, "ms")["met"]
    assert not measuring.at_most("time", 50.1, 50, "ms")["met"]


def test_the_exponent_of_a_power_law_is_found(measuring):
    sizes = [1, 2, 4, 8]
    assert measuring.exponent(sizes, [3 * size**1.7 for size in sizes]) == pytest.approx(1.7)


@pytest.mark.skipif(
    sys.platform != "linux" and not torch.cuda.is_available(),
    reason="only Linux and GPUs set the peak back",
)
def test_memory_is_what_a_call_takes_and_not_what_an_earlier_one_took(measuring):
    def taking(megabytes):
        return lambda: torch.ones(megabytes * 250_000, device=measuring.DEVICE)

    large, small = (measuring.memory_taken(taking(size)) for size in (400, 100))
    assert large == pytest.approx(0.4, abs=0.03)
    assert small == pytest.approx(0.1, abs=0.03)
    assert measuring.peak_memory() > 0.4


# --- waiting for data -----------------------------------------------------------------------


class Clock:
    """A clock that the test sets forward."""

    now = 0.0

    def __call__(self):
        return self.now


def test_the_share_of_waiting_counts_from_the_batch_after_the_skipped_ones():
    from benchmark.loading import Watch

    clock = Clock()

    def loader():
        for seconds in (100, 3, 1, 1):
            clock.now += seconds
            yield seconds

    watch = Watch(clock, lambda a, b: b - a)
    with pytest.raises(ValueError, match="0 batches are too few"):
        watch.share()
    for _ in watch.batches(loader()):
        clock.now += 4
    # After the second batch: a step of 4, waiting 1, a step of 4, waiting 1.
    assert watch.share(skip=1) == pytest.approx(2 / 10)
    # After the first: a step, waiting 3, and the same.
    assert watch.share(skip=0) == pytest.approx(5 / 17)


def test_loaders_are_watched_only_inside_the_block():
    from benchmark.loading import watched

    loader = DataLoader(list(range(5)), batch_size=1)
    with watched() as watch:
        assert [int(batch) for batch in loader] == [0, 1, 2, 3, 4]
    assert 0 <= watch.share() <= 1
    marks = len(watch._marks)
    assert len(list(loader)) == marks == 5


@pytest.fixture
def training_rows(monkeypatch):
    """The rows of a training of 90 images/s (99 with a loader process) whose bare steps do 100."""
    from benchmark import stages

    from superpoint_lib.training import TrainConfig

    def rows(device, default_workers, bare_seconds=0.16, trained=None):
        @contextmanager
        def watched():
            yield SimpleNamespace(share=lambda skip: 0.07)

        def rate(config, folder):
            if trained is not None:
                trained.append(config)
            return 99 if (default_workers if config.workers is None else config.workers) else 90

        monkeypatch.setattr(stages, "DEVICE", torch.device(device))
        monkeypatch.setattr(stages, "watched", watched)
        monkeypatch.setattr(stages, "bare_step", lambda config: (lambda: None, 16))
        monkeypatch.setattr(stages, "seconds", lambda work: bare_seconds)
        monkeypatch.setattr(stages, "_train_rate", rate)
        monkeypatch.setattr(stages, "training_configs", lambda folder: {"Net": TrainConfig()})
        return {row["what"]: row for row in stages.training()}

    return rows


@pytest.mark.parametrize(("default_workers", "share"), [(0, 0.9), (1, 0.99), (2, 0.99)])
def test_on_a_cpu_a_loader_process_must_not_slow_training(training_rows, default_workers, share):
    rows = training_rows("cpu", default_workers)
    assert rows["Net: images/s, of bare steps'"]["value"] == pytest.approx(share)
    with_one = rows["Net: with one loader process, of without"]
    assert (with_one["value"], with_one["met"]) == (pytest.approx(1.1), True)
    waiting = rows["Net: of the time, waiting for data"]
    assert (waiting["value"], waiting["goal"]) == (pytest.approx(7), "")


@pytest.mark.parametrize(("bare_seconds", "steps"), [(0.16, 20), (2.0, 10), (9.0, 6)])
def test_a_slow_processor_trains_fewer_steps(training_rows, bare_seconds, steps):
    trained = []
    training_rows("cpu", 0, bare_seconds, trained)
    default = [config for config in trained if config.workers is None]
    assert {(config.steps, config.batch_size) for config in default} == {(steps, 32)}
    # With and without a loader process in steps of a quarter of the size, one after the other.
    compared = [config for config in trained if config.workers is not None]
    assert {(config.steps, config.batch_size) for config in compared} == {(4 * steps, 8)}
    order = [config.workers for config in compared]
    assert order == [1, 0, 0, 1] * 5


def test_on_a_gpu_waiting_for_data_has_a_goal(training_rows):
    rows = training_rows("cuda", 12)
    waiting = rows["Net: of the time, waiting for data"]
    assert (waiting["goal"], waiting["met"]) == ("<= 5 %", False)
    assert "Net: with one loader process, of without" not in rows


# --- parts ----------------------------------------------------------------------------------


def test_the_time_of_a_part_is_its_own():
    from benchmark.parts import Stopwatch

    clock = Clock()
    watch = Stopwatch(clock)
    with watch.part("outer"):
        clock.now += 1
        with watch.part("inner"):
            clock.now += 10
            with watch.part("outer"):
                clock.now += 100
        clock.now += 2
    assert watch.seconds == {"outer": 103, "inner": 10}
    assert watch.last == "outer"


def test_parts_of_extract_are_found_and_nothing_stays_wrapped():
    from benchmark.parts import measured
    from profile_stages import EXTRACT

    from superpoint_lib import SuperPoint, extract, extraction

    forward, nms = SuperPoint.forward, extraction.nms
    model = SuperPoint.from_pretrained("superpoint")
    seconds = measured(lambda: extract(model, np.ones((64, 64), np.float32)), EXTRACT, turns=1)
    assert {"network forward", "the rest"} <= set(seconds)
    assert all(value >= 0 for value in seconds.values())
    assert (SuperPoint.forward, extraction.nms) == (forward, nms)


@pytest.mark.parametrize("stage", ["TRAINING", "ADAPTATION", "EXTRACT"])
def test_every_part_of_the_profile_is_done_by_a_function_that_exists(stage):
    import profile_stages
    from benchmark.parts import Stopwatch, watching

    with watching(Stopwatch(), getattr(profile_stages, stage)):
        pass


def test_a_part_whose_functions_are_gone_is_named():
    from benchmark.parts import Part, Stopwatch, watching

    part = Part("suppression", ("superpoint_lib.extraction:no_such", "no_such_module:nms"))
    with (
        pytest.raises(LookupError, match=r"extraction:no_such, no_such_module:nms.*'suppression'"),
        watching(Stopwatch(), [part]),
    ):
        pass


def test_a_function_of_two_uses_goes_by_what_came_before():
    from benchmark.parts import Part, measured

    from superpoint_lib import paths

    parts = [
        Part("there", ("superpoint_lib.paths:data_dir",), after={"turn": "back"}),
        Part("turn", ("superpoint_lib.paths:runs_dir",)),
        Part("left out", ("superpoint_lib.paths:figures_dir",), counts=False),
    ]

    def work():
        paths.data_dir()
        paths.runs_dir()
        paths.data_dir()
        paths.figures_dir()

    assert list(measured(work, parts, turns=2, around="")) == ["there", "turn", "back"]


def test_a_profile_keeps_the_earlier_runs_and_replaces_its_own(monkeypatch, tmp_path):
    import profile_stages

    monkeypatch.setattr(profile_stages, "OUTPUT", tmp_path / "profile.json")
    for name, seconds in (("start", 1.0), ("now", 2.0), ("now", 3.0)):
        profile_stages.record(name, {"extract": {"what": "extract", "seconds": {"nms": seconds}}})
    content = json.loads(profile_stages.OUTPUT.read_text())
    assert content["command"] == "python tools/profile_stages.py"
    values = {
        name: run["stages"]["extract"]["seconds"]["nms"] for name, run in content["runs"].items()
    }
    assert values == {"start": 1.0, "now": 3.0}


# --- running and showing --------------------------------------------------------------------


def test_one_stage_goes_to_the_screen_only(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(bench, "OUTPUT", tmp_path / "benchmark.json")
    bench.main(["matching"])
    shown = capsys.readouterr().out
    assert "1000 x 1000: of OpenCV's speed" in shown
    assert not bench.OUTPUT.exists()


def test_an_unknown_stage_is_named_before_anything_runs(bench):
    with pytest.raises(SystemExit, match="no stage 'moon'; there are drawing"):
        bench.main(["matching", "moon"])


def test_a_stage_that_fails_loses_no_other(bench, monkeypatch, capsys, tmp_path):
    row = {"what": "a", "value": 1.0, "unit": "s", "goal": "", "met": None}
    monkeypatch.setattr(bench, "STAGES", {"good": None, "bad": None, "better": None})
    monkeypatch.setattr(bench, "OUTPUT", tmp_path / "benchmark.json")
    monkeypatch.setattr(bench, "project_root", lambda: tmp_path)
    # What was measured of the failing stage before is kept.
    (tmp_path / "benchmark.json").write_text(json.dumps({"stages": {"bad": "old"}}))
    measured = {"rows": [row], "seconds": 1.0, "peak_memory_gb": 0.1}
    monkeypatch.setattr(bench, "measure", lambda stage: None if stage == "bad" else measured)
    with pytest.raises(SystemExit, match="above: bad"):
        bench.main([])
    assert capsys.readouterr().out.count("peak memory") == 2
    stages = json.loads((tmp_path / "benchmark.json").read_text())["stages"]
    assert stages == {"good": measured, "bad": "old", "better": measured}


def test_an_update_replaces_its_stage_and_keeps_the_others(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "OUTPUT", tmp_path / "benchmark.json")
    monkeypatch.setattr(bench, "project_root", lambda: tmp_path)
    bench.record({"matching": {"rows": [1]}, "drawing": {"rows": [1]}}, fresh=True)
    bench.record({"matching": {"rows": [2]}}, fresh=False)
    stages = json.loads(bench.OUTPUT.read_text())["stages"]
    assert stages == {"drawing": {"rows": [1]}, "matching": {"rows": [2]}}
    bench.record({"matching": {"rows": [3]}}, fresh=True)
    assert list(json.loads(bench.OUTPUT.read_text())["stages"]) == ["matching"]


@pytest.mark.parametrize(
    ("gains", "error", "met"),
    [([1.0, 1.0], 0.0, True), ([0.8, 1.25], 0.223, True), ([0.90, 0.91, 0.92, 0.91], 0.004, False)],
)
def test_what_turns_cannot_tell_from_luck_is_no_loss(measuring, gains, error, met):
    row = measuring.no_slower("loader", gains)
    assert row["value"] == pytest.approx(np.prod(gains) ** (1 / len(gains)))
    assert (row["error"], row["met"]) == (pytest.approx(error, abs=5e-4), met)
    assert row["goal"] == ">= 1 x"


def test_a_row_with_an_error_shows_it(bench, measuring):
    assert "0.91 +- 0.004 x" in bench.show(measuring.no_slower("loader", [0.90, 0.91, 0.92, 0.91]))


def test_a_row_fits_into_100_columns_and_shows_its_curve(bench, measuring):
    shown = bench.show(growth_row(measuring)).splitlines()
    assert shown[0].split()[-1] == "missed"
    assert [line.split() for line in shown[1:]] == [
        ["1", "2", "4"],
        ["ms", "100", "250", "800"],
        ["MB", "100", "200", "400"],
    ]
    assert max(map(len, shown)) <= 100
    assert bench.show(measuring.plain("zero", 0.0)) == f"  {'zero':50}{'0 x':>15}"


def test_recorded_rows_fit_into_100_columns(bench):
    stages = json.loads((ROOT / "results/benchmark.json").read_text())["stages"]
    rows = [row for stage in stages.values() for row in stage["rows"]]
    assert max(len(line) for row in rows for line in bench.show(row).splitlines()) <= 100


def test_results_are_json(bench, measuring, monkeypatch, capsys):
    monkeypatch.setitem(bench.STAGES, "nothing", lambda: [measuring.plain("zero", 0.0)])
    bench.main(["--json", "nothing"])
    assert json.loads(capsys.readouterr().out)["rows"][0]["value"] == 0.0


def test_the_plain_version_finds_our_keypoints():
    from benchmark.works import photographs, plain_extract

    from superpoint_lib import SuperPoint, extract

    model = SuperPoint.from_pretrained("superpoint")
    images = photographs(240, 320)[:1]
    x, y, scores, _ = plain_extract(model, images)[0]
    ours = extract(model, images, nms_radius=4, subpixel=False, precision="float32")[0]
    plain = {(int(a), int(b)) for a, b in zip(x, y, strict=True)}
    found = set(map(tuple, ours.keypoints.int().tolist()))
    assert len(plain & found) > 0.95 * len(found)
    assert torch.isclose(scores[0], ours.keypoint_scores[0])


# --- curves ---------------------------------------------------------------------------------


def test_a_curve_is_measured_at_every_size(measuring):
    from benchmark import growth

    calls = []
    works = {n: lambda n=n: lambda: calls.append(n) or sum(range(20_000 * n)) for n in (1, 2)}
    row = growth.measured(growth.Curve("sum", "numbers", works, 1), budget=0.0)
    assert row["what"] == "sum, numbers"
    assert row["goal"] == "<= 1.1 exponent"
    assert (row["sizes"], row["turns"]) == ([1, 2], 3)
    assert len(row["seconds"]) == len(row["memory_gb"]) == 2
    # One call to warm up, three turns, one for the memory.
    assert sorted(calls) == [1] * 5 + [2] * 5
    goalless = growth.Curve("sum", "numbers", works, 1, is_goal=False)
    assert growth.measured(goalless, budget=0.0)["goal"] == ""


def test_a_work_with_threads_gives_them_back():
    from benchmark.growth import _with_threads

    before = torch.get_num_threads()
    seen = []
    _with_threads(before + 1, lambda: seen.append(torch.get_num_threads()))()
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_growth_is_drawn_with_its_exponent_and_the_expected_line(measuring):
    from benchmark.pictures import growth_figure

    figure = growth_figure([growth_row(measuring), growth_row(measuring, 1.0)])
    left = figure.axes[0]
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "expected 1",
        "fitted 1.50",
    ]
    ideal, fitted = left.lines
    np.testing.assert_allclose(ideal.get_ydata(), [0.1, 0.2, 0.4])
    np.testing.assert_allclose(fitted.get_ydata(), [0.1, 0.25, 0.8])
    assert len(figure.axes) == 4  # each panel with an axis of its own for the memory


def test_a_profile_is_drawn_with_a_bar_for_each_run_and_part():
    from benchmark.pictures import profile_figure

    def run(**seconds):
        stage = {"what": "one picture", "seconds": seconds}
        return {"commit": "0123456789", "stages": {"extract": stage}}

    figure = profile_figure({"start": run(nms=0.1, forward=0.3), "now": run(forward=0.2)})
    (ax,) = figure.axes
    assert ax.get_title(loc="left") == "one picture: start 400 ms, now 200 ms"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["forward", "nms"]
    np.testing.assert_allclose(
        [[bar.get_width() for bar in bars] for bars in ax.containers], [[300, 100], [200, 0]]
    )


def test_the_table_of_speed_tells_what_was_missed(measuring, monkeypatch, tmp_path):
    import update_tables

    content = {
        "command": "make bench",
        "torch": "2",
        "stages": {
            "loss_memory": {
                "commit": "abcdef0123456",
                "machine": "2 threads",
                "rows": [measuring.at_least("speed", 2.5, 3), measuring.plain("rate", 7.0, "/s")],
            },
            "extraction": {
                "commit": "abcdef0123456",
                "machine": "2 threads",
                "torch": "2",
                "rows": [
                    measuring.plain("batch 1, bfloat16: pictures", 9.0, "/s"),
                    measuring.plain("batch 1, float32: pictures", 4.0, "/s"),
                    measuring.plain(
                        "refining all matches: of the time of one look in float32", 0.03, "x"
                    ),
                    measuring.plain("cold start to the first match", 1.5, "s"),
                ],
            },
            "growth_batch": {
                "commit": "abcdef0123456+",
                "machine": "2 threads",
                "rows": [growth_row(measuring), growth_row(measuring, 1.0)],
            },
        },
    }
    (tmp_path / "benchmark.json").write_text(json.dumps(content))
    loss = content["stages"]["loss_memory"]
    waiting = measuring.at_most("waiting", 1.0, 5, "%")
    on_gpu = {
        "command": "bench",
        "torch": "3",
        "stages": {"training": loss | {"machine": "GPU", "rows": [waiting]}},
    }
    (tmp_path / "benchmark_gpu.json").write_text(json.dumps(on_gpu))
    (tmp_path / "benchmark_float32.json").write_text(json.dumps(content))
    monkeypatch.setattr(update_tables, "RESULTS", tmp_path)
    text = update_tables.speed()
    assert "| loss memory | speed | 2.5 × | ≥ 3 × | **missed** |" in text
    assert "rate" not in text
    assert text.startswith(
        "`extract` on pictures of 480 × 640 with 2 threads: 9.0 a second in bfloat16, 4.0 in"
    )
    assert "takes 3% of" in text and "first match after 1.5 s" in text
    told = "`abcdef0123+` (+: with uncommitted changes)"
    assert f"2 threads, PyTorch 2, commit `abcdef0123`, {told}." in text
    assert (
        "1 of 2 goals for how cost grows with size are met; missed: extract, batch 1.5 (≤ 1.1).\n\n"
        f"Without bfloat16 (2 threads, PyTorch 2, commit `abcdef0123`, {told}; "
        "[`results/benchmark_float32.json`](results/benchmark_float32.json)) 1 of 3 goals are met; "
        "missed: speed 2.5 × (≥ 3 ×), extract, batch 1.5 (≤ 1.1).\n\n"
        "**Speed**: GPU, PyTorch 3, commit `abcdef0123`."
    ) in text
    assert "| training | waiting | 1 % | ≤ 5 % | met |" in text
