"""Turns executed notebooks into pages one can look at: HTML, their figures, and an index.

The notebooks keep their figures inside themselves; here they are written out as files, the
notebooks are rendered by nbconvert, and one small page links them all.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat

from superpoint_lib.paths import atomic_path, write_text

# What stands for a progress bar where its widget cannot be drawn: it says 0 % for ever.
_BAR = re.compile(r"^([\w ]+: )?\s*\d+%\|")

INDEX_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #222; }}
h2 {{ margin: 2rem 0 .3rem; font-size: 1.2rem; }} h2 small {{ color: #666; font-weight: normal; }}
table {{ border-collapse: collapse; }} td {{ padding: .1rem 1.5rem .1rem 0; }}
td:last-child {{ font-variant-numeric: tabular-nums; }}
.figures {{ display: flex; flex-wrap: wrap; gap: .5rem; margin-top: .5rem; }}
.figures img {{ height: 9rem; border: 1px solid #ddd; border-radius: 3px; }}
.failed {{ color: #b00020; }}
</style></head><body><h1>{title}</h1>
"""


@dataclass(frozen=True)
class Page:
    """One notebook on the index page.

    Attributes:
        name: the notebook's file name without its ending, such as ``01_synthetic_shapes``.
        title: the notebook's first heading.
        path: the rendered HTML file.
        figures: the picture files drawn in it.
        results: the figures reached, ``{metric: value}``.
        note: shown beside the title, such as the time taken.
        failed: whether the run of this notebook failed.
    """

    name: str
    title: str
    path: Path
    figures: tuple[Path, ...] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    failed: bool = False


def notebook_title(notebook: nbformat.NotebookNode) -> str:
    """The first markdown heading of a notebook, without its ``#``; empty when there is none."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("# "):
                    return str(line[2:].strip())
    return ""


def extract_figures(notebook: nbformat.NotebookNode, folder: Path, prefix: str) -> tuple[Path, ...]:
    """Write a notebook's pictures to ``folder/prefix_01.png`` (or .jpg) and on, over older ones.

    Args:
        notebook: an executed notebook.
        folder: where to write; made when missing.
        prefix: the beginning of the file names.

    Returns:
        The files written, in the order of the notebook.
    """
    folder.mkdir(parents=True, exist_ok=True)
    endings = {"image/png": ".png", "image/jpeg": ".jpg"}
    for old in folder.glob(f"{prefix}_[0-9]*"):
        if old.suffix in endings.values():
            old.unlink()
    images = [
        (output["data"][kind], ending)
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        for kind, ending in endings.items()
        if kind in output.get("data", {})
    ]
    written = []
    for number, (image, ending) in enumerate(images, start=1):
        path = folder / f"{prefix}_{number:02d}{ending}"
        with atomic_path(path) as temporary:
            temporary.write_bytes(base64.b64decode(image))
        written.append(path)
    return tuple(written)


def drop_progress_bars(notebook: nbformat.NotebookNode) -> int:
    """Take stored progress bars out of a notebook's outputs, in place; returns how many."""
    dropped = 0
    for cell in notebook.cells:
        outputs = cell.get("outputs", [])
        kept = [o for o in outputs if not _BAR.match(o.get("data", {}).get("text/plain", ""))]
        if len(kept) < len(outputs):
            dropped += len(outputs) - len(kept)
            cell.outputs = kept
    return dropped


def render_html(notebook: nbformat.NotebookNode, path: Path, title: str) -> None:
    """Render a notebook to one HTML file with its figures inside."""
    from nbconvert import HTMLExporter

    body, _ = HTMLExporter().from_notebook_node(
        notebook, resources={"metadata": {"name": title or path.stem}}
    )
    write_text(path, body)


def render_page(source: Path, folder: Path, name: str | None = None, **details: Any) -> Page:
    """Render one notebook file into ``folder`` and pull its figures out into ``folder/figures``.

    Args:
        source: a notebook file.
        folder: where the HTML file goes.
        name: what to call the page; the file's own name by default.
        details: further fields of `Page`.
    """
    notebook = nbformat.read(source, as_version=4)
    name = name or source.stem
    title = notebook_title(notebook) or name
    figures = extract_figures(notebook, folder / "figures", name)
    drop_progress_bars(notebook)
    path = folder / f"{name}.html"
    render_html(notebook, path, title)
    return Page(name=name, title=title, path=path, figures=figures, **details)


def write_index(folder: Path, title: str, pages: Sequence[Page]) -> Path:
    """Write ``folder/index.html``: every page with its figures as thumbnails and its results."""
    parts = [INDEX_HEAD.format(title=html.escape(title))]
    parts += [_section(page, folder) for page in pages]
    parts.append("</body></html>\n")
    return write_text(folder / "index.html", "\n".join(parts))


def _section(page: Page, folder: Path) -> str:
    link = html.escape(page.path.relative_to(folder).as_posix())
    note = f" <small{' class=failed' if page.failed else ''}>{html.escape(page.note)}</small>"
    rows = "".join(
        f"<tr><td>{html.escape(metric)}</td><td>{html.escape(format_value(value))}</td></tr>"
        for metric, value in page.results.items()
    )
    images = "".join(
        f'<a href="{source}"><img src="{source}" alt="{html.escape(page.name)}" loading="lazy"></a>'
        for source in (html.escape(f.relative_to(folder).as_posix()) for f in page.figures)
    )
    return (
        f'<h2><a href="{link}">{html.escape(page.title)}</a>{note}</h2>\n'
        + (f"<table>{rows}</table>\n" if rows else "")
        + (f'<div class="figures">{images}</div>' if images else "")
    )


def format_value(value: Any) -> str:
    """A result as text: floats with three decimals, or four significant digits when small."""
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.001 else f"{value:.3e}"
    return str(value)


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures reached, ``{notebook: {metric: value}}``, as aligned lines; empty for none."""
    rows = [
        (name, metric, format_value(value))
        for name, metrics in results.items()
        for metric, value in metrics.items()
    ]
    if not rows:
        return ""
    rows.insert(0, ("notebook", "figure", "value"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    shown = None
    for name, metric, value in rows:
        first = name if name != shown else ""
        shown = name
        lines.append(f"{first:<{widths[0]}}  {metric:<{widths[1]}}  {value:>{widths[2]}}")
    return "\n".join(lines)
