"""Strict configuration: plain mappings in, frozen dataclasses out, and back.

The same dataclass fields serve the YAML profiles, the command line and the metadata stored beside
the weights, so a misspelt key or a value of the wrong type must stop a run at once, by name.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration key or value is wrong; the message names the key and what is allowed."""


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build the dataclass ``cls`` from a mapping, refusing unknown keys and wrong types.

    Convention: an ``int`` is taken for a ``float`` field; a ``bool`` is never a number; a list
    becomes a tuple; a nested mapping becomes the nested dataclass; ``None`` only where the field is
    optional.

    Args:
        cls: a dataclass type with annotated fields.
        values: field names and plain values (as read from YAML or JSON); missing fields keep their
            defaults.
        where: what is being read (a file, a section), put before the key in messages.

    Returns:
        An instance of ``cls``.

    Raises:
        ConfigError: an unknown or missing key, or a value of the wrong type, named with ``where``.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping of keys, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = _settable(cls)
    unknown = [str(key) for key in values if key not in fields]
    if unknown:
        raise ConfigError(
            f"{_prefix(where)}unknown key {', '.join(map(repr, unknown))} for {cls.__name__}; "
            f"known keys: {', '.join(fields)}"
        )
    missing = [name for name, f in fields.items() if name not in values and not _has_default(f)]
    if missing:
        raise ConfigError(
            f"{_prefix(where)}missing key {', '.join(map(repr, missing))} for {cls.__name__}"
        )
    return cls(
        **{key: _convert(hints[key], value, _join(where, key)) for key, value in values.items()}
    )


def to_dict(config: Any) -> dict[str, Any]:
    """Return a dataclass as plain JSON types: mappings, lists, strings, numbers, booleans, None.

    ``from_dict(type(config), to_dict(config))`` gives an equal configuration.

    Raises:
        TypeError: ``config`` is not a dataclass instance.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"to_dict needs a dataclass instance, got {config!r}")
    return {name: _plain(getattr(config, name)) for name in _settable(type(config))}


def replace(config: T, **changes: Any) -> T:
    """Return a copy of a dataclass with some fields changed, checked like ``from_dict``.

    Raises:
        ConfigError: an unknown field or a value of the wrong type.
    """
    values = {name: getattr(config, name) for name in _settable(type(config))}
    return from_dict(type(config), {**values, **changes})


def check_types(config: Any) -> None:
    """Refuse what ``from_dict`` would refuse, in a dataclass that was built without it.

    Raises:
        ConfigError: a value of the wrong type, under the name of its field.
    """
    hints = typing.get_type_hints(type(config))
    for name in _settable(type(config)):
        _convert(hints[name], getattr(config, name), name)


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file holding one mapping; an empty file gives an empty mapping.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the file is not YAML, gives a key twice, or is no mapping; the file is named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file {path}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of keys to values")
    return values


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which would let the second of two equal keys win in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                message = f"the key {key!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)
        return super().construct_mapping(node, deep)


def _settable(cls: type) -> dict[str, "dataclasses.Field[Any]"]:
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def _prefix(where: str) -> str:
    return f"{where}: " if where else ""


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _has_default(field: "dataclasses.Field[Any]") -> bool:
    return not (
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _convert(hint: Any, value: Any, key: str) -> Any:
    """Check ``value`` against a type hint and return it in the hinted type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is typing.Literal:
        return _convert_literal(arguments, value, key)
    if origin in (typing.Union, types.UnionType):
        return _convert_union(arguments, value, key)
    if origin is tuple:
        return _convert_tuple(arguments, value, key)
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong_type("a mapping", value, key)
        return {
            _convert(arguments[0], k, key): _convert(arguments[1], v, _join(key, str(k)))
            for k, v in value.items()
        }
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, key)  # type: ignore[arg-type]
    if hint is Path:
        if not isinstance(value, str | Path):
            raise _wrong_type("a path", value, key)
        return Path(value)
    return _convert_scalar(hint, value, key)


def _convert_literal(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    # 1 == True in Python: the type must agree as well as the value.
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise ConfigError(
            f"{key}: {value!r} is not allowed; choose one of {', '.join(map(repr, choices))}"
        )
    return value


def _convert_union(members: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in members:
        return None
    candidates = [member for member in members if member is not type(None)]
    # An exact match first, so that 1 stays an int under `float | int`.
    candidates.sort(key=lambda member: type(value) is not member)
    errors = []
    for member in candidates:
        try:
            return _convert(member, value, key)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise ConfigError("; or ".join(str(error) for error in errors))


def _convert_tuple(items: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _wrong_type("a list", value, key)
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise ConfigError(f"{key}: expected {len(items)} items, got {len(value)}: {value!r}")
    return tuple(
        _convert(t, v, f"{key}[{i}]") for i, (t, v) in enumerate(zip(items, value, strict=True))
    )


_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def _convert_scalar(hint: Any, value: Any, key: str) -> Any:
    if hint not in _NAMES:
        raise TypeError(f"{key}: fields of type {hint!r} cannot be read from a configuration")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    raise _wrong_type(_NAMES[hint], value, key)


def _wrong_type(expected: str, value: Any, key: str) -> ConfigError:
    hint = ""
    if expected in ("a number", "an integer") and isinstance(value, str):
        # YAML 1.1 takes 1e-3 for a string: a dot and a signed exponent are needed.
        hint = "; write it without quotes, as 0.001 or 1.0e-3"
    return ConfigError(f"{key}: expected {expected}, got {value!r}{hint}")
