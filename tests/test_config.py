import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest

from superpoint_lib.config import ConfigError, from_dict, load_yaml, replace, to_dict


@dataclasses.dataclass(frozen=True)
class Inner:
    amplitude: float = 0.5
    switch: bool = True


@dataclasses.dataclass(frozen=True)
class Outer:
    name: str
    steps: int = 10
    rate: float = 1e-3
    kind: Literal["mean", "max", 1] = "mean"
    folders: tuple[str, ...] = ()
    size: tuple[int, float] = (1, 2.0)
    limit: float | None = None
    count: int | float = 0
    inner: Inner = Inner()
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    path: Path = Path("runs")
    anything: Any = None


def build(**values):
    return from_dict(Outer, {"name": "a", **values}, where="quick.yaml")


def test_values_take_the_types_of_their_fields():
    config = build(
        rate=1,
        folders=["x", "y"],
        size=[3, 4],
        limit=5,
        count=2,
        inner={"amplitude": 2},
        weights={"a": 1},
        path="here",
        anything=[1, "two"],
    )
    assert config == Outer(
        name="a",
        rate=1.0,
        folders=("x", "y"),
        size=(3, 4.0),
        limit=5.0,
        count=2,
        inner=Inner(2.0),
        weights={"a": 1.0},
        path=Path("here"),
        anything=[1, "two"],
    )
    assert [type(v) for v in (config.rate, config.size[1], config.limit, config.count)] == [
        float,
        float,
        float,
        int,
    ]


def test_missing_values_keep_their_defaults():
    assert build() == Outer(name="a")
    with pytest.raises(ConfigError, match=r"quick.yaml: missing key 'name' for Outer"):
        from_dict(Outer, {}, where="quick.yaml")


def test_an_unknown_key_is_named_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"quick.yaml: unknown key 'step' .*known keys: name, steps"
    ):
        build(step=3)
    with pytest.raises(ConfigError, match=r"quick.yaml.inner: unknown key 'x' .*amplitude, switch"):
        build(inner={"x": 3})
    with pytest.raises(ConfigError, match="unknown key '3'"):
        from_dict(Inner, {3: 4})


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("steps", 1.0, "an integer"),
        ("steps", True, "an integer"),
        ("steps", "10", "an integer.*without quotes"),
        ("rate", True, "a number"),
        ("rate", "1e-3", r"a number, got '1e-3'; write it .*0\.001 or 1\.0e-3"),
        ("rate", None, "a number"),
        ("limit", "low", "a number"),
        ("count", "many", "an integer.*or.*a number"),
        ("name", 3, "a string"),
        ("kind", "median", "one of 'mean', 'max', 1"),
        ("kind", True, "one of"),
        ("folders", "abc", "a list"),
        ("folders", [1], r"\[0\]: expected a string"),
        ("size", [1], "expected 2 items, got 1"),
        ("inner", 3, "a mapping"),
        ("weights", [1], "a mapping"),
        ("weights", {"a": "b"}, r"\.a: expected a number"),
        ("path", 3, "a path"),
    ],
)
def test_wrong_values_are_refused_by_name(key, value, expected):
    with pytest.raises(ConfigError, match=rf"quick\.yaml\.{key}.*{expected}"):
        build(**{key: value})


def test_a_configuration_survives_json():
    config = build(
        folders=["x"], inner={"switch": False}, weights={"a": 2}, limit=0.25, path="here"
    )
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config
    assert to_dict(config)["folders"] == ["x"]
    assert to_dict(config)["inner"] == {"amplitude": 0.5, "switch": False}
    with pytest.raises(TypeError, match="dataclass instance"):
        to_dict({"a": 1})


def test_replace_is_as_strict_and_leaves_the_original():
    config = build(steps=1)
    changed = replace(config, rate=2, inner=Inner(0.25))
    assert changed.rate == 2.0
    assert changed.steps == 1
    assert changed.inner == Inner(0.25)
    assert config.rate == 1e-3
    with pytest.raises(ConfigError, match="unknown key 'rates'"):
        replace(config, rates=2)
    with pytest.raises(ConfigError, match="steps"):
        replace(config, steps="2")


def test_fields_that_are_computed_cannot_be_given():
    @dataclasses.dataclass(frozen=True)
    class Derived:
        a: int = 1
        b: int = dataclasses.field(default=2, init=False)

    assert replace(Derived(), a=3) == Derived(a=3)
    with pytest.raises(ConfigError, match="unknown key 'b'"):
        from_dict(Derived, {"b": 3})
    assert from_dict(Derived, to_dict(Derived(a=3))) == Derived(a=3)


def test_load_yaml(tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("steps: 3\nrate: 1.0e-3\n")
    assert load_yaml(path) == {"steps": 3, "rate": 1e-3}
    path.write_text("# nothing yet\n")
    assert load_yaml(path) == {}


@pytest.mark.parametrize("content", [b"- a\n- b\n", b"a: [1, 2\n", b"\xff\xfe\x00\x01"])
def test_files_that_are_no_mapping_are_named(tmp_path, content):
    path = tmp_path / "profile.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"profile\.yaml"):
        load_yaml(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_yaml(tmp_path / "none.yaml")


def test_a_key_given_twice_is_refused(tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("steps: 3\nrate: 0.1\nsteps: 4\n")
    with pytest.raises(ConfigError, match=r"profile\.yaml.*'steps'.*twice"):
        load_yaml(path)
