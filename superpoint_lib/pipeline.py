"""Runs the notebooks of a profile in order, headless, through papermill.

A profile is a YAML file in ``notebooks/profiles``: ``{notebook: {parameter: value}}``. Whatever it
leaves out keeps the notebook's own default, so an empty profile is the quick run. The code is the
same in every profile; only numbers and inputs differ. ``<notebook>_round2`` runs a notebook again,
into a folder of its own, with the parameters of the round before but for those it names: labels of
a second round, and a training on them.

Everything of a run lies in ``runs/<profile>``: the executed notebooks and their HTML,
``figures/``, ``index.html``, and a folder per notebook with its artefacts, its ``results.json`` and
``run.json``, the record by which a run is resumed. An executed notebook is put in place only when
it has finished, so that a failure never costs an earlier one. Artefacts are overwritten as a
notebook runs: the record goes when it starts, and is written when it has finished.
"""

from __future__ import annotations

import ast
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import nbformat

from superpoint_lib.config import load_yaml
from superpoint_lib.digests import code_digest, commit_name, digest
from superpoint_lib.locks import locked
from superpoint_lib.paths import project_root, runs_dir, write_json
from superpoint_lib.report import Page, render_page, results_table, write_index

DEFAULT_CELL_TIMEOUT = 6 * 3600
KERNEL_START_TIMEOUT = 300  # a busy machine takes its time
RUN_PLACEHOLDER = "{run}/"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
_LATER_ROUND = re.compile(r"(?P<notebook>.+)_round(?P<number>[2-9])")


class PipelineError(ValueError):
    """A profile, notebook or parameter that cannot be run as asked."""


@dataclass(frozen=True)
class Stage:
    """One notebook with the parameters of a profile.

    Attributes:
        name: the notebook's file name without its ending; ``_round2`` behind it, and so on, where
            a profile runs it again.
        notebook: the notebook file.
        output: the folder for its artefacts.
        parameters: what papermill injects, ``output`` included.
        inputs: the earlier stages whose artefacts the parameters name.
    """

    name: str
    notebook: Path
    output: Path
    parameters: Mapping[str, Any]
    inputs: tuple[str, ...]

    def is_called(self, wanted: str) -> bool:
        """Whether a number, which means all rounds of a notebook, or a name means this stage."""
        return wanted in (self.name, self.name[:2])


@dataclass(frozen=True)
class StageReport:
    """What became of one stage.

    Attributes:
        name: the stage.
        status: ``done`` now, ``kept`` from an earlier run, ``failed``, or ``left out`` because a
            stage it reads from failed.
        seconds: the time the notebook took, in this run or the earlier one.
        results: the figures reached, as the notebook wrote them to ``results.json``.
        message: why it failed or was left out; of one kept, whether the library has changed since.
    """

    name: str
    status: Literal["done", "kept", "failed", "left out"]
    seconds: float = 0.0
    results: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""

    @property
    def finished(self) -> bool:
        """Whether the stage's artefacts are there."""
        return self.status in ("done", "kept")


@dataclass(frozen=True)
class RunReport:
    """What became of a run: its folder, its stages in order, and the index page."""

    run_dir: Path
    stages: tuple[StageReport, ...]
    index: Path

    @property
    def failed(self) -> tuple[StageReport, ...]:
        """The stages that failed or were left out."""
        return tuple(stage for stage in self.stages if not stage.finished)


def list_notebooks() -> list[Path]:
    """The tutorial's notebooks in order, ``notebooks/NN_name.ipynb``.

    Raises:
        PipelineError: there are none, because this is not a checkout of the repository.
    """
    folder = project_root() / "notebooks"
    notebooks = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise PipelineError(f"no notebooks in {folder}: run this inside a clone of the repository")
    return notebooks


def load_profile(profile: str) -> dict[str, dict[str, Any]]:
    """Read ``notebooks/profiles/<profile>.yaml``.

    Returns:
        ``{notebook: {parameter: value}}``, placeholders not yet replaced.

    Raises:
        PipelineError: no such profile, a key that YAML takes for something else than a name, or a
            notebook's entry that is not a mapping.
    """
    folder = project_root() / "notebooks" / "profiles"
    path = folder / f"{profile}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise PipelineError(f"unknown profile {profile!r}: known are {known or 'none'} ({folder})")
    values = load_yaml(path)
    for name, parameters in values.items():
        if not isinstance(name, str):  # 02 without quotes is a number
            raise PipelineError(
                f"{path}: the key {name!r} is not a string: name a notebook, such as "
                "02_magicpoint_training"
            )
        if not isinstance(parameters, dict):
            raise PipelineError(f"{path}: {name} must hold a mapping of parameters")
    return values


def plan(
    profile: str, only: Sequence[str] | None = None, run_dir: Path | None = None
) -> list[Stage]:
    """The stages of a profile, checked in full before anything runs.

    Args:
        profile: the name of a file in ``notebooks/profiles``.
        only: numbers of the notebooks to run, in all their rounds, or names of stages, such as
            ``["02", "03_homographic_adaptation"]``; all by default.
        run_dir: the folder of the run, ``runs/<profile>`` by default.

    Raises:
        PipelineError: no checkout; an unknown profile, notebook or parameter; a value of the wrong
            type; a ``{run}/`` value that names no earlier notebook, or one that has not been run
            to its end.
    """
    run_dir = run_dir or runs_dir() / profile
    list_notebooks()  # where there are none, there are no profiles either: say so
    values = load_profile(profile)
    where = f"profile {profile}"
    stages: list[Stage] = []
    latest: dict[Path, dict[str, Any]] = {}  # of each notebook, the parameters of its last round
    for name, path in _stage_notebooks(values, where).items():
        latest[path] = latest.get(path, {}) | values.get(name, {})
        earlier = [stage.name for stage in stages]
        stages.append(_stage(name, path, latest[path], run_dir, earlier, where))
    chosen = _select(stages, only)
    available = {stage.name for stage in chosen}
    for stage in chosen:
        for needed in stage.inputs:
            if needed not in available and not _is_finished(run_dir / needed):
                raise PipelineError(
                    f"{where}: {stage.name} reads what {needed} leaves in {run_dir / needed}, "
                    f"which has not been run to its end: add {needed[:2]} to --only"
                )
    return chosen


def unfinished(needed: Iterable[str], stages: Sequence[Stage]) -> list[str]:
    """The stages to run, in order, before one can that needs some of a profile's stages.

    Those needed that have not been run to their end, and those that these read from likewise.
    """
    needed, found = set(needed), list[str]()
    for stage in reversed(stages):  # a stage reads from earlier ones only
        if stage.name in needed and not _is_finished(stage.output):
            found.insert(0, stage.name)
            needed |= set(stage.inputs)
    return found


def run_profile(
    profile: str = "quick",
    only: Sequence[str] | None = None,
    resume: bool = False,
    run_dir: Path | None = None,
    cell_timeout: int = DEFAULT_CELL_TIMEOUT,
    say: Callable[[str], None] = print,
) -> RunReport:
    """Run a profile's notebooks one after the other and collect what they reach.

    A failing notebook does not stop those that do not read from it.

    Args:
        profile: the name of a file in ``notebooks/profiles``.
        only: numbers or names of the notebooks to run; all by default.
        resume: keep notebooks that have finished with the same code, parameters and inputs.
        run_dir: the folder of the run, ``runs/<profile>`` by default.
        cell_timeout: seconds after which a cell counts as failed.
        say: gets one line per notebook.

    Returns:
        The report; its ``failed`` is empty when all is well.

    Raises:
        PipelineError: the plan does not hold (see `plan`), or another process has the folder;
            nothing has run then.
    """
    run_dir = run_dir or runs_dir() / profile
    everything = plan(profile, run_dir=run_dir)
    stages = plan(profile, only, run_dir)
    reports: list[StageReport] = []
    with locked(run_dir, PipelineError):
        for number, stage in enumerate(stages, start=1):
            missing = [r.name for r in reports if not r.finished and r.name in stage.inputs]
            record = _finished_record(stage, run_dir) if resume and not missing else None
            if missing:
                message = f"it reads from {', '.join(missing)}"
                report = StageReport(stage.name, "left out", message=message)
            elif record is not None:
                other = record.get("library") != code_digest()
                note = "made by other code of the library" if other else ""
                report = StageReport(stage.name, "kept", record["seconds"], record["results"], note)
            else:
                report = _run_stage(stage, run_dir, cell_timeout)
            reports.append(report)
            say(f"[{number}/{len(stages)}] {_progress(report)}")
        index = _write_pages(profile, run_dir, everything, reports)
    return RunReport(run_dir, tuple(reports), index)


def summary(report: RunReport) -> str:
    """The closing lines of a run: what failed, the figures reached, and where everything lies."""
    table = results_table({stage.name: stage.results for stage in report.stages})
    lines = [table, ""] if table else []
    lines += [
        f"executed notebooks  {report.run_dir}",
        f"figures             {report.run_dir / 'figures'}",
        f"index page          {report.index}",
    ]
    if report.failed:
        lines += ["", f"{len(report.failed)} of {len(report.stages)} notebooks did not finish:"]
        lines += [f"  {_progress(stage)}" for stage in report.failed]
    return "\n".join(lines)


def notebook_parameters(path: Path) -> dict[str, str]:
    """The annotated names in a notebook's cell tagged ``parameters``, with their annotations.

    Read from the source, as papermill itself knows no ``tuple[str, ...]`` and no ``int | None``.

    Returns:
        ``{name: annotation}``, such as ``{"steps": "int"}``; empty when there is no such cell.
    """
    return {
        ast.unparse(statement.target): ast.unparse(statement.annotation)
        for statement in _parameter_statements(path)
    }


def notebook_defaults(path: Path) -> dict[str, Any]:
    """What the parameters of a notebook are where a profile does not set them."""
    return {
        ast.unparse(statement.target): ast.literal_eval(statement.value)
        for statement in _parameter_statements(path)
        if statement.value is not None
    }


def write_site(folder: Path | None = None) -> Path:
    """Render the committed notebooks to HTML in ``site/``; returns the index page."""
    folder = folder or project_root() / "site"
    folder.mkdir(parents=True, exist_ok=True)
    pages = [render_page(path, folder) for path in list_notebooks()]
    return write_index(folder, "SuperPoint, step by step", pages)


def widget_errors(notebook: nbformat.NotebookNode) -> list[str]:
    """The exceptions raised inside widget callbacks, as ``Name: message``.

    nbclient stores them in the state of an Output widget and lets the cell pass.
    """
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    return [
        f"{output.get('ename', 'Error')}: {output.get('evalue', '')}"
        for model in state.values()
        for output in model.get("state", {}).get("outputs", ())
        if output.get("output_type") == "error"
    ]


def _parameter_statements(path: Path) -> list[ast.AnnAssign]:
    """The annotated names of a notebook's cell tagged ``parameters``, as they are written."""
    notebook = nbformat.read(path, as_version=4)
    cells = [c.source for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    statements = ast.parse(cells[0]).body if cells else []
    return [statement for statement in statements if isinstance(statement, ast.AnnAssign)]


def _stage_notebooks(values: Mapping[str, Any], where: str) -> dict[str, Path]:
    """The notebook of each stage of a profile, ``{stage: notebook}`` in the order they run.

    Each notebook once, in order. Those of later rounds follow, round by round, before the notebooks
    that come after the last of them, which read what the last round leaves.
    """
    notebooks = {path.stem: path for path in list_notebooks()}
    again: dict[int, list[str]] = {}
    for stage in values:
        later = None if stage in notebooks else _LATER_ROUND.fullmatch(stage)
        name = later["notebook"] if later else stage
        _refuse_unknown([name], notebooks, f"{where}: unknown notebook")
        if later:
            again.setdefault(int(later["number"]), []).append(name)
    order = list(notebooks)
    end = 1 + max((order.index(name) for names in again.values() for name in names), default=-1)
    stages = {name: notebooks[name] for name in order[:end]}
    for number, names in sorted(again.items()):
        stages |= {f"{name}_round{number}": notebooks[name] for name in sorted(names)}
    return stages | {name: notebooks[name] for name in order[end:]}


def _stage(
    name: str,
    path: Path,
    values: Mapping[str, Any],
    run_dir: Path,
    earlier: Sequence[str],
    where: str,
) -> Stage:
    where = f"{where}: {name}"
    known = notebook_parameters(path)
    if "output" not in known:
        raise PipelineError(f"{path}: its parameters cell has no output: str")
    if "output" in values:
        raise PipelineError(f"{where}: output is set by the pipeline, leave it out")
    _refuse_unknown(values, known, f"{where}: unknown parameter")
    for key, value in values.items():
        if not _fits(value, known[key]):
            hint = " (write 0.001 or 1.0e-3, not 1e-3)" if known[key] == "float" else ""
            raise PipelineError(f"{where}: {key} must be {known[key]}, not {value!r}{hint}")
    inputs = sorted({_input_stage(text, earlier, where) for text in _placeholders(values)})
    output = run_dir / name
    parameters = {key: _fill(value, run_dir) for key, value in values.items()}
    return Stage(name, path, output, parameters | {"output": _portable(output)}, tuple(inputs))


def _refuse_unknown(keys: Iterable[str], known: Iterable[str], what: str) -> None:
    known = list(known)
    for key in keys:
        if key not in known:
            raise PipelineError(f"{what} {key!r}: known are {', '.join(known)}")


def _fits(value: Any, annotation: str) -> bool:
    """Whether a YAML value suits an annotation such as ``float`` or ``tuple[str, ...]``."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "int": int,
        "float": (int, float),
        "str": str,
        "tuple": list,
        "list": list,
        "dict": dict,
        "None": type(None),
    }
    alternatives = [part.split("[")[0].strip() for part in annotation.split("|")]
    if isinstance(value, bool):
        return "bool" in alternatives
    accepted = [kinds[part] for part in alternatives if part in kinds]
    return any(isinstance(value, kind) for kind in accepted)


def _placeholders(value: Any) -> Iterator[str]:
    """Every string below ``value`` that begins with the placeholder."""
    if isinstance(value, str) and value.startswith(RUN_PLACEHOLDER):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _placeholders(item)
    elif isinstance(value, list):
        for item in value:
            yield from _placeholders(item)


def _input_stage(text: str, earlier: Sequence[str], where: str) -> str:
    name = text.removeprefix(RUN_PLACEHOLDER).split("/")[0]
    if name not in earlier:
        raise PipelineError(
            f"{where}: {text} must name an earlier notebook: {', '.join(earlier) or 'none'}"
        )
    return name


def _fill(value: Any, run_dir: Path) -> Any:
    """``value`` with the placeholder replaced by the folder of the run, at any depth."""
    if isinstance(value, str) and value.startswith(RUN_PLACEHOLDER):
        return _portable(run_dir / value.removeprefix(RUN_PLACEHOLDER))
    if isinstance(value, Mapping):
        return {key: _fill(item, run_dir) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, run_dir) for item in value]
    return value


def _portable(path: Path) -> str:
    """A path relative to the checkout, where the notebooks resolve it; absolute outside."""
    path = path.absolute()
    root = project_root().absolute()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _select(stages: Sequence[Stage], only: Sequence[str] | None) -> list[Stage]:
    if only is None:
        return list(stages)
    for wanted in only:
        if not any(stage.is_called(wanted) for stage in stages):
            names = ", ".join(stage.name for stage in stages)
            raise PipelineError(f"--only: no notebook {wanted!r}: known are {names}")
    return [stage for stage in stages if any(stage.is_called(wanted) for wanted in only)]


def _run_stage(stage: Stage, run_dir: Path, cell_timeout: int) -> StageReport:
    """Execute one notebook and record it; never raises for what happens inside the notebook."""
    running = run_dir / f"{stage.name}.running.ipynb"
    failed = run_dir / f"{stage.name}.failed.ipynb"
    stage.output.mkdir(parents=True, exist_ok=True)
    # The notebook overwrites its artefacts: until it has finished, nothing must vouch for them.
    for name in ("run.json", "results.json"):
        (stage.output / name).unlink(missing_ok=True)
    # Of the code that runs, not of what the notebook may be saved as in the meantime.
    identity = _identity(stage, run_dir)
    made_by = {"library": code_digest(), "commit": commit_name()}
    started = time.monotonic()
    message = _execute(stage, running, cell_timeout)
    seconds = round(time.monotonic() - started, 1)
    results: dict[str, Any] = {}
    if not message:
        results, message = _read_results(stage.output / "results.json")
    if message:
        if running.is_file():
            os.replace(running, failed)
            message += f" (see {_portable(failed)})"
        return StageReport(stage.name, "failed", seconds, message=message)
    os.replace(running, run_dir / f"{stage.name}.ipynb")
    failed.unlink(missing_ok=True)
    record = (
        identity
        | made_by
        | {
            "seconds": seconds,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "results": results,
        }
    )
    write_json(stage.output / "run.json", record)
    return StageReport(stage.name, "done", seconds, results)


def _unformatted(path: Path) -> str:
    """The path as papermill takes it, which fills in parameters in braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _execute(stage: Stage, target: Path, cell_timeout: int) -> str:
    """Run a notebook into ``target``; an empty string when every cell and callback went well."""
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    # It warns of parameters whose annotations it cannot read; `plan` has checked them all.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        notebook = papermill.execute_notebook(
            _unformatted(stage.notebook),
            _unformatted(target),
            parameters=dict(stage.parameters),
            kernel_name="python3",
            # Relative paths in a profile are meant from the top of the checkout.
            cwd=str(project_root()),
            progress_bar=False,
            start_timeout=KERNEL_START_TIMEOUT,
            execution_timeout=cell_timeout,
            # The kernel runs on this machine; without this it warns on every start.
            config=Config({"KernelManager": {"transport_encryption": "auto"}}),
            # What it logs as errors are its own interruptions when it is stopped; those of cells
            # and of widgets are in the notebook.
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
        )
    except PapermillExecutionError as error:
        return f"cell {error.exec_count}: {error.ename}: {_first_line(error.evalue)}"
    except Exception as error:  # a dead kernel, a timeout, a missing kernel: the next one may do
        return f"{type(error).__name__}: {_first_line(str(error))}"
    errors = widget_errors(notebook)
    return f"inside a widget: {_first_line(errors[0])}" if errors else ""


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""


def _read_results(path: Path) -> tuple[dict[str, Any], str]:
    """The figures a notebook wrote, and what is wrong with them (nothing: an empty string)."""
    if not path.is_file():
        return {}, ""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        return {}, f"{_portable(path)} is not JSON: {error}"
    if not isinstance(results, dict):
        return {}, f"{_portable(path)} must hold one object, metric to value"
    return results, ""


def _identity(stage: Stage, run_dir: Path) -> dict[str, Any]:
    """What a finished run must have in common with a stage to stand for it."""
    notebook = nbformat.read(stage.notebook, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return {
        "parameters": dict(stage.parameters),
        "code": digest([code.encode()]),
        "inputs": {name: (_record(run_dir / name) or {}).get("finished") for name in stage.inputs},
    }


def _is_finished(output: Path) -> bool:
    """Whether the stage with this folder has been run to its end."""
    return (output / "run.json").is_file()


def _record(output: Path) -> dict[str, Any] | None:
    path = output / "run.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


def _finished_record(stage: Stage, run_dir: Path) -> dict[str, Any] | None:
    """The record of an earlier run of the very same stage; None when it must run (again)."""
    record = _record(stage.output)
    if record is None or not (run_dir / f"{stage.name}.ipynb").is_file():
        return None
    identity = _identity(stage, run_dir)
    return record if all(record.get(key) == value for key, value in identity.items()) else None


def _progress(report: StageReport) -> str:
    note = f"  {report.message}" if report.message else ""
    return f"{report.name:<28} {report.status:<8} {report.seconds:7.1f} s{note}"


def _write_pages(
    profile: str, run_dir: Path, stages: Sequence[Stage], reports: Sequence[StageReport]
) -> Path:
    """Render what lies in the run's folder, whether of this call or of earlier ones."""
    failures = {report.name: report for report in reports if report.status == "failed"}
    left_out = {report.name: report for report in reports if report.status == "left out"}
    pages: list[Page] = []
    for stage in stages:
        name = stage.name
        record = _record(stage.output)
        if name in failures:
            failed = run_dir / f"{name}.failed.ipynb"
            source = failed if failed.is_file() else stage.notebook
            note = f"failed: {failures[name].message}"
            pages.append(render_page(source, run_dir, name, note=note, failed=True))
        elif record is not None and (run_dir / f"{name}.ipynb").is_file():
            details = {"results": record["results"], "note": f"{record['seconds']:.0f} s"}
            if name in left_out:
                note = f"of an earlier run: {left_out[name].message}, which failed"
                details = {"note": note}
            pages.append(render_page(run_dir / f"{name}.ipynb", run_dir, **details))
    results = {page.name: dict(page.results) for page in pages if page.results}
    write_json(run_dir / "results.json", {"profile": profile, "results": results})
    return write_index(run_dir, f"SuperPoint, step by step: {profile}", pages)
