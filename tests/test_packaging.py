"""The files around the package agree with each other."""

import re
import subprocess
import tomllib

import ensure_opencv
import pytest
import update_tables
import yaml
from notebook_cells import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from superpoint_lib.cli import COMMANDS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> list[Requirement]:
    lists = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [Requirement(text) for texts in lists for text in texts]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    texts = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", text) for text in texts)
    return {canonicalize_name(name): version for name, version in (t.split("==") for t in texts)}


def test_every_dependency_is_pinned_inside_its_range():
    pinned = pins()
    for requirement in requirements():
        assert requirement.specifier, f"{requirement.name} has no range in pyproject.toml"
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier


def test_conda_environment_installs_the_package_and_nothing_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge"]
    *from_conda, from_pip = environment["dependencies"]
    assert [re.split(r"[<>=]", text)[0] for text in from_conda] == ["python", "pip"]
    python = Requirement(from_conda[0])
    assert str(python.specifier) == PROJECT["requires-python"]
    (editable,) = from_pip["pip"]
    assert editable == "-e .[notebooks,test]"
    extras = set(re.findall(r"\w+", editable.split("[")[1]))
    assert extras == set(PROJECT["optional-dependencies"])


def test_only_one_opencv_is_required():
    names = [canonicalize_name(requirement.name) for requirement in requirements()]
    assert [name for name in names if name.startswith("opencv")] == ["opencv-python"]
    assert pins()["opencv-python"] == pins()["opencv-python-headless"]


def test_pre_commit_uses_the_pinned_tools_and_keeps_outputs():
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    by_name = {repository["repo"].split("/")[-1]: repository for repository in repositories}
    assert by_name["ruff-pre-commit"]["rev"] == f"v{pins()['ruff']}"
    assert by_name["nbstripout"]["rev"] == pins()["nbstripout"]
    (hook,) = by_name["nbstripout"]["hooks"]
    assert hook["args"] == ["--keep-output", "--keep-count", "--keep-id"]
    assert " ".join(hook["args"]) in (ROOT / "Makefile").read_text()


def test_versions_and_licences_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_continuous_integration_calls_the_make_targets():
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    steps = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert steps == {".ci/run", "make tutorial"}


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*?[^\\])$", text, re.M | re.S).group(1)
    targets = set(phony.replace("\\", " ").split())
    assert targets == set(re.findall(r"^([a-z-]+):(?! export)", text, re.M))
    return targets


def test_every_make_target_is_in_the_help_or_part_of_a_listed_one():
    described = set(re.findall(r'@echo "make ([a-z-]+)', (ROOT / "Makefile").read_text()))
    targets = make_targets()
    parts = {target for target in targets if target.startswith("test-")} | {"lint", "setup", "help"}
    assert described == targets - parts


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "data/README.md"])
def test_the_documents_name_targets_and_commands_that_exist(name):
    code = re.findall(r"```.*?```|`[^`\n]+`", (ROOT / name).read_text(), re.S)
    named = {target for text in code for target in re.findall(r"\bmake ([a-z][a-z-]+)", text)}
    assert named <= make_targets()
    called = re.compile(r"(?:^|`)superpoint ([a-z]+)\b", re.M)
    commands = {word for text in code for word in called.findall(text)}
    assert commands <= set(COMMANDS)


@pytest.mark.parametrize(
    ("message", "replaced"),
    [
        ("libGL.so.1: cannot open shared object file: No such file or directory", True),
        (None, False),
    ],
)
def test_headless_opencv_replaces_the_other_where_that_cannot_load(message, replaced, monkeypatch):
    calls = []
    loads = iter([message, None])
    monkeypatch.setattr(ensure_opencv, "load_error", lambda: next(loads))
    monkeypatch.setattr(ensure_opencv, "pip", lambda *arguments: calls.append(arguments))
    ensure_opencv.main("constraints.txt")
    removed = [("uninstall", "--yes", "opencv-python")] if replaced else []
    added = [("install", "--constraint", "constraints.txt", "opencv-python-headless")]
    assert calls == (removed + added if replaced else [])


@pytest.mark.parametrize(
    "reason",
    [
        "ImportError: libGL.so.1: cannot open shared object file: No such file or directory",
        "ImportError: /lib/x86_64-linux-gnu/libGL.so.1: file too short",
        "ImportError: DLL load failed while importing cv2: not found",
    ],
)
def test_a_missing_shared_library_is_recognised(reason, monkeypatch):
    assert load_error_of(f"Traceback\n{reason}\n", monkeypatch) == reason


def test_another_failure_of_opencv_is_not_papered_over(monkeypatch):
    with pytest.raises(SystemExit, match="numpy is too old"):
        load_error_of("ImportError: numpy is too old", monkeypatch)


def load_error_of(stderr, monkeypatch):
    result = subprocess.CompletedProcess([], 1, stderr=stderr)
    monkeypatch.setattr(ensure_opencv.subprocess, "run", lambda *_, **__: result)
    return ensure_opencv.load_error()


def test_the_tables_of_the_readme_files_are_those_of_the_results():
    for name in update_tables.FILES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert update_tables.filled(text) == text, "run python tools/update_tables.py"
        assert "<!-- table:" in text


def test_the_check_of_the_tables_notices_another_figure():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "| superpoint | 0." in text
    changed = text.replace("| superpoint | 0.", "| superpoint | 9.")
    assert changed != update_tables.filled(changed) == text
