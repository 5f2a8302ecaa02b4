"""nbval must notice when a number in a notebook is not the one that its code gives.

A notebook is cut after the first compared cell that prints a number, one digit of the stored number
is changed, and nbval must fail in that very cell: comparing would also "pass" in a notebook whose
counts were stripped, or whose cells are all marked to be ignored.
"""

import copy
import os
import re
import subprocess
import sys

import nbformat
import pytest
from nbformat import NotebookNode
from notebook_cells import LAX, NOTEBOOKS, ROOT, SANITIZE, code_cells, is_compared, read, sanitized

DIGIT = re.compile(r"\d(?=[\d.]*)")


def change_digit(text: str) -> str | None:
    """The text with one digit changed, such that nbval's replacements do not hide it."""
    for found in DIGIT.finditer(text):
        digit = str((int(found.group()) + 1) % 10)
        changed = text[: found.start()] + digit + text[found.end() :]
        if sanitized(changed) != sanitized(text):
            return changed
    return None


def doctored(notebook: NotebookNode, lax: bool) -> tuple[NotebookNode, int]:
    """The notebook up to the first number that is compared, changed, and that cell's number."""
    notebook = copy.deepcopy(notebook)
    for number, cell in enumerate(code_cells(notebook)):
        if not is_compared(cell, lax):
            continue
        for output in cell.outputs:
            holder, key = output, "text"
            if output.output_type != "stream":
                holder, key = output.get("data", {}), "text/plain"
                if "image/png" in holder:
                    continue
            changed = change_digit(holder.get(key, ""))
            if changed is not None:
                holder[key] = changed
                notebook.cells = notebook.cells[: notebook.cells.index(cell) + 1]
                return notebook, number
    raise AssertionError("no compared cell prints a number")


def run_nbval(path, lax: bool) -> subprocess.CompletedProcess:
    options = ["-c", "pyproject.toml", "--rootdir", ".", "-p", "no:cacheprovider", "--color=no"]
    mode = "--nbval-lax" if lax else "--nbval"
    return subprocess.run(
        [sys.executable, "-m", "pytest", mode, *options, f"--nbval-sanitize-with={SANITIZE}", path],
        cwd=ROOT,
        env=os.environ | {"PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nbval_notices_a_changed_number(path, tmp_path):
    lax = path.stem[:2] in LAX
    notebook, number = doctored(read(path), lax)
    copied = tmp_path / path.name
    nbformat.write(notebook, copied)
    result = run_nbval(copied, lax)
    assert result.returncode == 1, result.stdout[-2000:]
    failed = re.findall(r"^FAILED .*::Cell (\d+)", result.stdout, re.M)
    assert failed == [str(number)], result.stdout[-2000:]


def test_a_changed_digit_is_one_that_nbval_sees():
    assert change_digit("took 12 s, 35 pairs") == "took 12 s, 45 pairs"
    assert change_digit("took 12 s") is None
    assert change_digit("no number") is None
