"""What is kept of a run of a profile."""

import json

import pytest
import record_run as tool

from superpoint_lib.paths import write_json


def test_times_figures_and_origin_of_a_run_are_kept(tmp_path, capsys):
    run = tmp_path / "run"
    for name, seconds in (("02_first", 60.0), ("05_second", 30.5)):
        record = {"seconds": seconds, "parameters": {"steps": 3}, "results": {"reached": 0.5}}
        write_json(run / name / "run.json", record | {"code": "not kept"})
    facts = {"commit": "abc", "machine": "2 threads", "torch": "2"}
    write_json(run / "02_first" / "training" / "run.json", facts)
    write_json(run / "05_second" / "stage1" / "run.json", facts | {"commit": "def"})
    output = tmp_path / "kept.json"
    tool.main(tool.Options("standard", run, output))
    found = json.loads(output.read_text())
    assert found["command"].startswith("superpoint run --profile standard && ")
    assert (found["commit"], found["machine"], found["seconds"]) == ("abc, def", "2 threads", 90.5)
    assert list(found["notebooks"]) == ["02_first", "05_second"]
    assert found["notebooks"]["05_second"] == {
        "seconds": 30.5,
        "parameters": {"steps": 3},
        "results": {"reached": 0.5},
    }
    assert "2 notebooks, 2 minutes" in capsys.readouterr().out


def test_a_run_that_has_not_begun_is_named(tmp_path):
    with pytest.raises(SystemExit, match="no finished notebooks in"):
        tool.main(tool.Options("standard", tmp_path, tmp_path / "kept.json"))
