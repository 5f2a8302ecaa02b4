"""What the tests of the notebooks share: which there are, and what nbval compares in them."""

import configparser
import re
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SANITIZE = ROOT / "tests" / "nbval_sanitize.cfg"


def listed(variable: str) -> list[str]:
    """The notebook numbers in a variable of the Makefile."""
    (numbers,) = re.findall(rf"^{variable} := (.*)$", (ROOT / "Makefile").read_text(), re.M)
    return numbers.split()


STRICT, LAX = listed("NBVAL_STRICT"), listed("NBVAL_LAX")


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def marked(cell: NotebookNode, marker: str) -> bool:
    """Whether a cell carries one of nbval's markers, as a tag or as a line of comment."""
    comments = [line.strip().lstrip("#").strip() for line in cell.source.splitlines()]
    return marker in tags(cell) or marker.upper().replace("-", "_") in comments


def is_compared(cell: NotebookNode, lax: bool) -> bool:
    """Whether nbval compares this cell's outputs; a cell without a count never is."""
    if cell.execution_count is None or marked(cell, "nbval-skip"):
        return False
    if lax:
        return marked(cell, "nbval-check-output")
    return not marked(cell, "nbval-ignore-output")


def texts(cell: NotebookNode) -> list[str]:
    """The text outputs of a cell, without the text that stands in for a picture."""
    found = []
    for output in cell.outputs:
        if output.output_type == "stream":
            found.append(output.text)
        elif "data" in output and "image/png" not in output.data:
            found.append(output.data.get("text/plain", ""))
    return [text for text in found if text.strip()]


def sanitized(text: str) -> str:
    """The text as nbval sees it, after the replacements."""
    rules = configparser.RawConfigParser()
    rules.read(SANITIZE)
    for name in rules.sections():
        text = re.sub(rules[name]["regex"], rules[name]["replace"], text)
    return text
