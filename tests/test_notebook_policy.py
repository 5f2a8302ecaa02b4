"""What every notebook of the tutorial keeps to; CONTRIBUTING.md says why."""

import ast
import json
import re
from collections import defaultdict
from dataclasses import fields

import pytest
from notebook_cells import (
    LAX,
    NOTEBOOKS,
    ROOT,
    STRICT,
    code_cells,
    is_compared,
    marked,
    read,
    tags,
    texts,
)

from superpoint_lib.config import replace
from superpoint_lib.pipeline import notebook_defaults, notebook_parameters, plan
from superpoint_lib.report import drop_progress_bars
from superpoint_lib.training import RECIPES, TrainConfig

PROFILES = sorted(path.stem for path in (ROOT / "notebooks" / "profiles").glob("*.yaml"))
MACHINE_PATH = re.compile(
    r"(?<![\w.~/:-])/(home|root|tmp|work|Users|mnt|opt|usr|var)/|\b[A-Z]:\\\\"
)
WIDGET = "application/vnd.jupyter.widget-view+json"
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_notebooks_are_numbered_and_each_is_in_one_nbval_list():
    numbers = [path.stem[:2] for path in NOTEBOOKS]
    assert numbers == sorted(STRICT + LAX) == [f"{number:02d}" for number in range(9)]


@each_notebook
def test_is_executed_from_top_to_bottom_and_stored_clean(path):
    notebook = read(path)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run it once from the top: make refresh"
    assert notebook.metadata.kernelspec.name == "python3"
    assert not {"widgets", "papermill", "jupytext"} & set(notebook.metadata)
    errors = [o for cell in code_cells(notebook) for o in cell.outputs if o.output_type == "error"]
    assert not errors
    assert path.stat().st_size < 400_000


@each_notebook
def test_has_one_annotated_parameters_cell(path):
    (cell,) = (cell for cell in read(path).cells if "parameters" in tags(cell))
    statements = ast.parse(cell.source).body
    assert all(isinstance(statement, ast.AnnAssign) for statement in statements)
    names = [ast.unparse(statement.target) for statement in statements]
    assert all(name.islower() for name in names), names
    assert statements[names.index("output")].value.value == f"runs/quick/{path.stem}"
    lines = cell.source.splitlines()
    unexplained = [
        name
        for name, statement in zip(names, statements, strict=True)
        if "  # " not in lines[statement.end_lineno - 1]
    ]
    assert not unexplained, "a comment behind a parameter is its help text"


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_name_known_parameters_with_values_of_their_types(profile):
    assert sorted({stage.notebook for stage in plan(profile)}) == NOTEBOOKS


def test_profile_full_trains_what_the_recipes_say():
    """Whoever trains the recipes one by one gets what the profile trains."""
    free = {"init", "images", "labels", "log_every", "checkpoint_every"}
    names = {field.name for field in fields(TrainConfig)} - free
    trained = []
    for stage in plan("full"):
        if stage.name == "02_magicpoint_training":
            recipe, base = "full-magicpoint", TrainConfig()
        elif stage.notebook.stem == "05_staged_training":
            recipe = stage.parameters["recipe"]
            base = RECIPES[recipe]
        else:
            continue
        trained.append(recipe)
        chosen = notebook_defaults(stage.notebook) | stage.parameters
        config = replace(base, **{name: chosen[name] for name in names & set(chosen)})
        same = {name: getattr(RECIPES[recipe], name) for name in free}
        assert replace(config, **same) == RECIPES[recipe]
    assert trained == ["full-magicpoint", "full-first", "full-second", "full-superpoint"]


def test_profiles_are_those_that_the_documentation_names():
    assert PROFILES == ["full", "quick", "standard"]


@each_notebook
def test_follows_the_template(path):
    markdown = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    assert markdown[0].startswith(f"# {path.stem[:2]}. ")
    assert re.search(r"you can", "\n".join(markdown[:3])), "say what the reader can do afterwards"
    headings = re.findall(r"^## (.*)$", "\n".join(markdown), re.M)
    assert headings[-3:] == ["Summary", "Exercises", "References"]
    assert "<details>" in "\n".join(markdown), "exercises have hidden hints"


@each_notebook
def test_code_cells_are_short(path):
    cells = code_cells(read(path))
    # A parameter has a line of its own, with what it means.
    most = [30 if "parameters" in cell.metadata.get("tags", ()) else 25 for cell in cells]
    lines = [len(cell.source.splitlines()) for cell in cells]
    assert not [c.source for c, n, m in zip(cells, lines, most, strict=True) if n > m]


@each_notebook
def test_names_no_machine_path(path):
    for cell in read(path).cells:
        stored = [cell.source, *(json.dumps(output) for output in cell.get("outputs", []))]
        for text in stored:
            found = MACHINE_PATH.search(text)
            assert not found, text[max(0, found.start() - 60) : found.end() + 60]


@each_notebook
def test_stores_no_progress_bar(path):
    assert not drop_progress_bars(read(path)), "make refresh leaves them out"


@each_notebook
def test_cells_that_show_a_widget_are_not_compared(path):
    for cell in code_cells(read(path)):
        shows = any(WIDGET in output.get("data", {}) for output in cell.outputs)
        calls = re.search(r"^\w*\.?(explore_\w+|interact\w*)\(", cell.source, re.M)
        if shows or calls:
            assert marked(cell, "nbval-ignore-output"), cell.source


@each_notebook
def test_compares_enough_and_only_what_is_stable(path):
    lax = path.stem[:2] in LAX
    compared = [cell for cell in code_cells(read(path)) if is_compared(cell, lax)]
    assert sum(bool(texts(cell)) for cell in compared) >= 3
    for cell in compared:
        for text in texts(cell):
            assert not re.search(r"\d\.\d{4}", text), f"at most three decimals: {text}"
            assert not re.search(r"<Figure|\bat 0x", text), f"end the cell with a figure: {text}"


def test_no_function_is_copied_from_notebook_to_notebook():
    owners = defaultdict(set)
    for path in NOTEBOOKS:
        for cell in code_cells(read(path)):
            # IPython's own lines are no Python.
            source = re.sub(r"^[%!].*$", "pass", cell.source, flags=re.M)
            for statement in ast.parse(source).body:
                if isinstance(statement, ast.FunctionDef):
                    owners[ast.dump(statement)].add(path.stem)
    assert not [names for names in owners.values() if len(names) > 1]


def test_the_parameters_are_read_as_papermill_would():
    for path in NOTEBOOKS:
        assert notebook_parameters(path)["output"] == "str"
