"""The pipeline on a throw-away project of small notebooks, executed for real."""

import contextlib
import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from superpoint_lib import pipeline, report
from superpoint_lib.locks import locked
from superpoint_lib.pipeline import PipelineError, plan, run_profile, summary, widget_errors

PARAMETERS = """
output: str = "runs/quick/{name}"  # folder for artefacts
steps: int = 2  # steps to take
rate: float = 0.5  # size of a step
source: str = "bundled"  # where the input comes from
folders: tuple[str, ...] = ()  # image folders
"""
SAVE = """
import json, pathlib
folder = pathlib.Path(output)
folder.mkdir(parents=True, exist_ok=True)
(folder / "weights.txt").write_text(str(steps))
(folder / "results.json").write_text(json.dumps({"distance": steps * rate}))
"""
BROKEN_RESULTS = """Path(output, "results.json").write_text("[1")"""
READ = """
import pathlib
if source != "bundled":
    print(pathlib.Path(source).read_text())
"""
FIGURE = """
import base64
from IPython.display import Image
Image(base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="))
"""
WIDGET = """
import ipywidgets
def draw(radius):
    raise ValueError(f"radius {radius} is too small")
ipywidgets.interact(draw, radius=(1, 5));
"""


def write_notebook(folder: Path, name: str, *cells: str) -> Path:
    notebook = new_notebook(
        cells=[
            new_markdown_cell(f"# Title of {name}"),
            new_code_cell(PARAMETERS.format(name=name), metadata={"tags": ["parameters"]}),
            *(new_code_cell(cell) for cell in cells),
        ],
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    path = folder / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def write_profile(folder: Path, name: str, text: str) -> None:
    (folder / "notebooks" / "profiles" / f"{name}.yaml").write_text(text)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A checkout with two notebooks, the second able to read what the first leaves."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    write_profile(tmp_path, "quick", "{}")
    write_notebook(tmp_path, "00_first", SAVE, FIGURE)
    write_notebook(tmp_path, "01_second", READ)
    monkeypatch.chdir(tmp_path)
    return tmp_path


LINKED = "00_first: {steps: 4}\n01_second: {source: '{run}/00_first/weights.txt'}\n"


def statuses(result):
    return {stage.name: stage.status for stage in result.stages}


def test_one_process_at_a_time_in_a_folder(project):
    with locked(project / "runs" / "quick", PipelineError):
        with pytest.raises(PipelineError, match=r"another process is at work in .*quick"):
            run_profile("quick")
        assert [path.name for path in (project / "runs" / "quick").iterdir()] == [".lock"]


def test_braces_in_a_path_are_no_parameters(project):
    result = run_profile("quick", only=["00"], run_dir=project / "runs" / "a{x}b{")
    assert not result.failed
    assert (project / "runs" / "a{x}b{" / "00_first.ipynb").is_file()


def test_run_leaves_notebooks_figures_results_and_index(project, capsys):
    result = run_profile("quick")
    run = project / "runs" / "quick"
    assert not result.failed
    assert result.stages[0].results == {"distance": 1.0}
    assert json.loads((run / "results.json").read_text())["results"] == {
        "00_first": {"distance": 1.0}
    }
    assert (run / "figures" / "00_first_01.png").read_bytes().startswith(b"\x89PNG")
    index = (run / "index.html").read_text()
    for shown in ("Title of 00_first", "00_first.html", "figures/00_first_01.png", "1.000"):
        assert shown in index
    assert (run / "01_second.html").is_file()
    assert (run / "00_first.ipynb").is_file()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("[1/2] 00_first")
    assert lines[0].rstrip().endswith(" s")
    assert "distance" in summary(result)
    assert str(run / "index.html") in summary(result)


def test_artefacts_are_passed_on_and_resume_keeps_what_has_not_changed(project):
    write_profile(project, "long", LINKED)
    run_profile("long")
    executed = (project / "runs" / "long" / "01_second.ipynb").read_text()
    assert "runs/long/00_first/weights.txt" in executed
    assert str(project) not in json.dumps(nbformat.reads(executed, 4).cells)

    again = run_profile("long", resume=True)
    assert set(statuses(again).values()) == {"kept"}
    assert again.stages[0].results == {"distance": 2.0}

    # New artefacts of the first make the second stale, though its own parameters are the same.
    write_profile(project, "long", LINKED.replace("4", "6"))
    assert set(statuses(run_profile("long", resume=True)).values()) == {"done"}

    # Changed code runs again as well.
    write_notebook(project, "01_second", READ, "1 + 1")
    assert statuses(run_profile("long", resume=True)) == {"00_first": "kept", "01_second": "done"}


def test_a_failure_keeps_the_earlier_result_and_stops_only_its_readers(project):
    write_profile(project, "long", LINKED)
    write_notebook(project, "02_alone", "1 + 1")
    run_profile("long", only=["00"])
    kept = (project / "runs" / "long" / "00_first.ipynb").read_text()

    write_notebook(project, "00_first", "raise RuntimeError('no luck\\nat all')")
    result = run_profile("long")
    assert statuses(result) == {"00_first": "failed", "01_second": "left out", "02_alone": "done"}
    assert "cell 3: RuntimeError: no luck" in result.stages[0].message
    assert [stage.name for stage in result.failed] == ["00_first", "01_second"]
    assert (project / "runs" / "long" / "00_first.ipynb").read_text() == kept
    assert (project / "runs" / "long" / "00_first.failed.ipynb").is_file()
    assert "failed: cell 3" in result.index.read_text()
    assert "2 of 3 notebooks did not finish" in summary(result)


ROUNDS = """
02_third: {source: '{run}/01_second_round2/seen.txt'}
01_second: {source: '{run}/00_first/weights.txt'}
01_second_round3: {source: '{run}/00_first/weights.txt'}
01_second_round2: {source: '{run}/00_first_round2/weights.txt'}
00_first_round2: {steps: 7, source: '{run}/01_second/seen.txt'}
"""
KEEP = "pathlib.Path(output, 'seen.txt').write_text(pathlib.Path(source).read_text())"


def test_later_rounds_run_before_what_comes_after_them(project):
    write_profile(project, "rounds", ROUNDS)
    write_notebook(project, "01_second", READ, KEEP)
    write_notebook(project, "02_third", READ)
    result = run_profile("rounds")
    assert list(statuses(result)) == [
        "00_first",
        "01_second",
        "00_first_round2",
        "01_second_round2",
        "01_second_round3",
        "02_third",
    ]
    assert not result.failed
    run = project / "runs" / "rounds"
    seen = {
        round_: (run / f"01_second{round_}" / "seen.txt").read_text() for round_ in ("", "_round2")
    }
    assert seen == {"": "2", "_round2": "7"}
    assert (run / "01_second_round2.html").is_file()
    assert "figures/00_first_round2_01.png" in result.index.read_text()
    assert set(statuses(run_profile("rounds", resume=True)).values()) == {"kept"}

    # A number means all rounds of a notebook, a name one of them.
    assert [stage.name for stage in plan("rounds", only=["00"])] == ["00_first", "00_first_round2"]
    assert [stage.name for stage in plan("rounds", only=["00_first_round2"])] == ["00_first_round2"]
    # What changes in a later round leaves the earlier ones as they are.
    write_profile(project, "rounds", ROUNDS.replace("7", "8"))
    again = statuses(run_profile("rounds", resume=True))
    assert [name for name, status in again.items() if status == "done"] == [
        "00_first_round2",
        "01_second_round2",
        "02_third",
    ]


def test_a_later_round_keeps_the_parameters_of_the_round_before(project):
    text = (
        "00_first: {steps: 4, rate: 0.2}\n00_first_round3: {rate: 0.1}\n00_first_round2: {steps: 5}"
    )
    write_profile(project, "rounds", text)
    rounds = {stage.name: dict(stage.parameters) for stage in plan("rounds", only=["00"])}
    assert rounds == {
        f"00_first{name}": {"steps": steps, "rate": rate, "output": f"runs/rounds/00_first{name}"}
        for name, steps, rate in (("", 4, 0.2), ("_round2", 5, 0.2), ("_round3", 5, 0.1))
    }


@pytest.mark.parametrize("stopped", [False, True])
def test_what_a_failed_run_left_half_done_is_not_kept(project, monkeypatch, stopped):
    run_profile("quick", only=["00"])
    artefact = project / "runs" / "quick" / "00_first" / "weights.txt"

    def broken(stage, target, cell_timeout):
        artefact.write_text("half")
        if stopped:
            raise KeyboardInterrupt
        return "cell 3: OSError: disk full"

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_execute", broken)
        with pytest.raises(KeyboardInterrupt) if stopped else contextlib.nullcontext():
            run_profile("quick", only=["00"])
    again = run_profile("quick", only=["00"], resume=True)
    assert statuses(again) == {"00_first": "done"}
    assert artefact.read_text() == "2"


def test_what_is_left_out_passes_nothing_old_for_new(project):
    write_profile(project, "long", LINKED)
    write_notebook(project, "01_second", READ, SAVE)
    assert not run_profile("long").failed
    write_notebook(project, "00_first", "1 / 0")
    result = run_profile("long")
    assert statuses(result) == {"00_first": "failed", "01_second": "left out"}
    kept = json.loads((project / "runs" / "long" / "results.json").read_text())
    assert kept["results"] == {}
    index = (project / "runs" / "long" / "index.html").read_text()
    assert "of an earlier run: it reads from 00_first, which failed" in index


def test_a_profile_edited_while_it_runs_does_not_cost_the_report(project):
    def edit(line):
        write_profile(project, "quick", "00_first: {no_such: 1}")

    result = run_profile("quick", say=edit)
    assert not result.failed and result.index.is_file()


def test_what_other_code_of_the_library_made_is_kept_and_told(project, monkeypatch):
    run_profile("quick")
    lines = []
    run_profile("quick", resume=True, say=lines.append)
    assert all(" kept " in line and "other code" not in line for line in lines)
    monkeypatch.setattr(pipeline, "code_digest", lambda: "another")
    lines.clear()
    run_profile("quick", resume=True, say=lines.append)
    assert all(line.endswith("made by other code of the library") for line in lines)
    record = json.loads((project / "runs" / "quick" / "00_first" / "run.json").read_text())
    assert {"library", "commit"} <= record.keys()


def test_a_notebook_saved_while_it_runs_is_run_again(project, monkeypatch):
    execute = pipeline._execute

    def saved_meanwhile(stage, target, cell_timeout):
        message = execute(stage, target, cell_timeout)
        write_notebook(project, "00_first", SAVE, "1 + 1")
        return message

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_execute", saved_meanwhile)
        assert not run_profile("quick", only=["00"]).failed
    # What was computed is not by the notebook as it is now.
    for status in ("done", "kept"):
        assert statuses(run_profile("quick", only=["00"], resume=True)) == {"00_first": status}


def test_an_exception_inside_a_widget_callback_fails_the_notebook(project):
    write_notebook(project, "00_first", WIDGET)
    result = run_profile("quick", only=["00_first"])
    assert statuses(result) == {"00_first": "failed"}
    assert "inside a widget: ValueError: radius 3 is too small" in result.stages[0].message


def test_a_cell_that_takes_too_long_fails(project):
    write_notebook(project, "00_first", "import time\ntime.sleep(60)")
    result = run_profile("quick", only=["00"], cell_timeout=1)
    assert "CellTimeoutError" in result.stages[0].message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("03_third: {}", "unknown notebook '03_third'"),
        ("03_third_round2: {}", "unknown notebook '03_third'"),
        ("00_first_round1: {}", "unknown notebook '00_first_round1'"),
        ("00_first: {step: 2}", "unknown parameter 'step': known are output, steps"),
        ("00_first: {steps: 2.5}", "steps must be int, not 2.5"),
        ("00_first: {steps: true}", "steps must be int, not True"),
        ("00_first: {rate: 1e-3}", "rate must be float, not '1e-3'.*1.0e-3"),
        ("00_first: {folders: data}", "folders must be tuple"),
        ("00_first: {output: here}", "output is set by the pipeline"),
        ("00_first: 3", "must hold a mapping"),
        ("00: {steps: 2}", r"bad.yaml: the key 0 is not a string"),
        ("on: {steps: 2}", r"bad.yaml: the key True is not a string"),
        ("00_first: {source: '{run}/01_second/x'}", "must name an earlier notebook"),
        ("00_first: {source: '{run}/00_first_round2/x'}", "must name an earlier notebook"),
    ],
)
def test_a_profile_that_does_not_hold_is_refused_before_anything_runs(project, text, message):
    write_profile(project, "bad", text)
    with pytest.raises(PipelineError, match=message):
        run_profile("bad")
    assert not (project / "runs").exists()


def test_unknown_names_and_missing_inputs_are_refused(project):
    write_profile(project, "long", LINKED)
    with pytest.raises(PipelineError, match="unknown profile 'slow': known are long, quick"):
        plan("slow")
    with pytest.raises(PipelineError, match="no notebook '07'"):
        plan("quick", only=["00", "07"])
    with pytest.raises(PipelineError, match="add 00 to --only"):
        plan("long", only=["01"])


def test_what_is_needed_comes_with_what_it_needs_itself(project):
    write_profile(project, "rounds", ROUNDS)
    write_notebook(project, "02_third")
    stages = plan("rounds")
    assert pipeline.unfinished(["01_second_round2"], stages) == [
        "00_first",
        "01_second",
        "00_first_round2",
        "01_second_round2",
    ]
    done = project / "runs" / "rounds" / "01_second"
    done.mkdir(parents=True)
    (done / "run.json").touch()
    assert pipeline.unfinished(["00_first_round2"], stages) == ["00_first_round2"]
    assert pipeline.unfinished(["01_second"], stages) == []


def test_defaults_of_a_notebook_are_what_its_parameters_cell_says(project):
    (first, _) = pipeline.list_notebooks()
    assert pipeline.notebook_defaults(first) == {
        "output": "runs/quick/00_first",
        "steps": 2,
        "rate": 0.5,
        "source": "bundled",
        "folders": (),
    }


def test_lists_of_placeholders_are_filled(project):
    write_profile(project, "long", "01_second: {folders: ['{run}/00_first/a', data/b]}")
    second = plan("long")[1]
    assert second.parameters["folders"] == ["runs/long/00_first/a", "data/b"]
    assert second.inputs == ("00_first",)


def test_a_notebook_without_an_output_parameter_is_refused(project):
    path = project / "notebooks" / "00_first.ipynb"
    path.write_text(path.read_text().replace("output: str", "outlet: str"))
    with pytest.raises(PipelineError, match="no output: str"):
        plan("quick")


def test_outside_a_checkout_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "project_root", lambda: tmp_path)
    for look in (pipeline.list_notebooks, lambda: plan("quick")):
        with pytest.raises(PipelineError, match="inside a clone"):
            look()


def test_results_that_cannot_be_read_fail_the_notebook(project):
    write_notebook(project, "00_first", "from pathlib import Path", BROKEN_RESULTS)
    result = run_profile("quick", only=["00"])
    assert "runs/quick/00_first/results.json is not JSON" in result.stages[0].message


def test_site_renders_the_committed_notebooks(project):
    index = pipeline.write_site()
    assert index == project / "site" / "index.html"
    assert "Title of 01_second" in index.read_text()
    assert (project / "site" / "01_second.html").is_file()


def test_widget_errors_are_found_in_the_stored_state():
    notebook = new_notebook()
    assert widget_errors(notebook) == []
    error = {"output_type": "error", "ename": "KeyError", "evalue": "'x'"}
    state = {"a": {"state": {"outputs": [{"output_type": "stream"}, error]}}, "b": {"state": {}}}
    notebook.metadata["widgets"] = {pipeline.WIDGET_STATE: {"state": state}}
    assert widget_errors(notebook) == ["KeyError: 'x'"]


def test_results_table_aligns_and_formats():
    table = report.results_table({"00": {"mAP": 0.98765, "pairs": 35}, "01": {"loss": 2e-5}})
    assert table.splitlines() == [
        "notebook  figure      value",
        "00        mAP         0.988",
        "          pairs          35",
        "01        loss    2.000e-05",
    ]
    assert report.results_table({"00": {}}) == ""


def test_extracted_figures_replace_older_ones(tmp_path):
    (tmp_path / "nb_07.png").touch()
    image = new_output("display_data", {"image/png": "iVBORw0KGgo="})
    notebook = new_notebook(cells=[new_code_cell("", outputs=[image])])
    assert report.extract_figures(notebook, tmp_path, "nb") == (tmp_path / "nb_01.png",)
    assert not (tmp_path / "nb_07.png").exists()
    assert report.notebook_title(notebook) == ""


def test_a_page_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    def half(self, *_, **__):
        self.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", half)
    for name, write in (
        ("index.html", lambda: report.write_index(tmp_path, "title", [])),
        ("a.html", lambda: report.render_html(new_notebook(), tmp_path / "a.html", "title")),
    ):
        (tmp_path / name).write_bytes(b"earlier")
        with pytest.raises(OSError, match="disk full"):
            write()
        assert (tmp_path / name).read_bytes() == b"earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "index.html"]


def test_stored_progress_bars_are_dropped_and_nothing_else():
    texts = [
        "  0%|          | 0/600 [00:00<?, ?step/s]",
        "adapting:   0%|          | 0/8 [00:00<?, ?image/s]",
        "Explorer(threshold=0.005)",
        "100%",
    ]
    outputs = [new_output("display_data", {"text/plain": text}) for text in texts]
    notebook = new_notebook(cells=[new_code_cell("train()", outputs=outputs)])
    assert report.drop_progress_bars(notebook) == 2
    assert [o.data["text/plain"] for o in notebook.cells[0].outputs] == texts[2:]
    assert report.drop_progress_bars(notebook) == 0


def test_values_have_three_decimals_or_four_digits():
    values = {0.0: "0.000", -0.25: "-0.250", 0.001: "0.001", -0.0005: "-5.000e-04", 3: "3"}
    assert [report.format_value(value) for value in values] == list(values.values())


@pytest.mark.parametrize(
    ("value", "annotation", "fits"),
    [
        (1, "float", True),
        (1.0, "int", False),
        (None, "int | None", True),
        (None, "int", False),
        (3, "int | None", True),
        (True, "bool", True),
        (1, "bool", False),
        ({"a": 1}, "dict[str, int]", True),
        (["a"], "tuple[str, ...]", True),
        ("a", "list[str]", False),
    ],
)
def test_what_a_profile_may_hold(value, annotation, fits):
    assert pipeline._fits(value, annotation) is fits


def test_placeholders_are_filled_at_any_depth(project):
    value = {"a": ["{run}/00_first/x", "b"], "c": {"d": "{run}/00_first/y"}}
    assert list(pipeline._placeholders(value)) == ["{run}/00_first/x", "{run}/00_first/y"]
    filled = pipeline._fill(value, project / "runs" / "quick")
    assert filled == {
        "a": ["runs/quick/00_first/x", "b"],
        "c": {"d": "runs/quick/00_first/y"},
    }


def test_results_are_one_object(tmp_path):
    path = tmp_path / "results.json"
    assert pipeline._read_results(path) == ({}, "")
    path.write_text("[1]")
    results, message = pipeline._read_results(path)
    assert results == {} and "must hold one object" in message


def test_the_index_shows_text_as_text_and_failures_as_such(tmp_path):
    page = report.Page(
        "01", "a < b & c", tmp_path / "01.html", results={"<x>": 1}, note="a > b", failed=True
    )
    index = report.write_index(tmp_path, "<all>", [page]).read_text()
    for shown in ("a &lt; b &amp; c", "&lt;x&gt;", "a &gt; b", "<h1>&lt;all&gt;", "class=failed"):
        assert shown in index
    page = report.Page("01", "a", tmp_path / "01.html", note="3 s")
    assert "class=failed" not in report.write_index(tmp_path, "all", [page]).read_text()


def test_figures_are_numbered_in_order_and_keep_their_kind(tmp_path):
    data = {"image/png": "AAAA"}, {"image/jpeg": "/9j/"}, {"text/plain": "none"}
    outputs = [new_output("display_data", one) for one in data]
    cells = [new_code_cell("", outputs=outputs), new_code_cell("", outputs=outputs[:1])]
    written = report.extract_figures(new_notebook(cells=cells), tmp_path, "nb")
    assert [path.name for path in written] == ["nb_01.png", "nb_02.jpg", "nb_03.png"]
    assert written[1].read_bytes() == b"\xff\xd8\xff"


def test_the_title_is_the_first_heading_of_the_first_level():
    cells = [
        new_code_cell("# no"),
        new_markdown_cell("## Part\n#hash\n# Title "),
        new_markdown_cell("# B"),
    ]
    assert report.notebook_title(new_notebook(cells=cells)) == "Title"
