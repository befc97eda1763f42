"""From nested mappings and text to checked dataclasses, by the declared type of each field.

Text is accepted where it says a value unambiguously: YAML reads ``1e-4`` as text, and a command line has nothing else.
Every error names the field by its dotted path.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import operator
import os
import shlex
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from ..errors import ConfigError
from .fields import Registered
from .moved import moved_to
from .sections import default_sections, registered_sections

_OFF, _ON = ("none", "null", "false", "off"), ("true", "on")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of the configuration: its dotted path, its type without markers, and the markers beside it."""

    path: str
    kind: Any
    markers: tuple[Any, ...]


def settings(kind: type, prefix: str = "") -> Iterator[Setting]:
    """All settings of a configuration class, sections entered, whether on or off."""
    for name, declared in fields_of(kind).items():
        section, _ = section_of(declared)
        if section is not None:
            yield from settings(section, f"{prefix}{name}.")
        else:
            yield Setting(prefix + name, *_unmarked(declared))


def fields_of(kind: type) -> dict[str, Any]:
    """Field -> declared type. Registered sections stand in the place of the field that holds them."""
    declared = dict(_hints(kind))
    holder = holder_of(kind)
    if holder is not None:
        del declared[holder]
        declared |= {name: section | None for name, section in registered_sections().items()}
    return declared


def holder_of(kind: type) -> str | None:
    """The field in which a class keeps registered sections."""
    for name, declared in _hints(kind).items():
        if any(isinstance(marker, Registered) for marker in _unmarked(declared)[1]):
            return name
    return None


def section_of(declared: Any) -> tuple[Any, bool]:
    """(the dataclass that a field nests, or None; whether the field may be None instead)."""
    kind, _ = _unmarked(declared)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        options = [option for option in typing.get_args(kind) if option is not type(None)]
        return (options[0], True) if len(options) == 1 and dataclasses.is_dataclass(options[0]) else (None, False)
    return (kind, False) if dataclasses.is_dataclass(kind) else (None, False)


def build(kind: type, values: Any, path: str, known: Iterable[str]) -> Any:
    """A dataclass from nested values. path: its own, for messages. known: all names there are, to suggest from."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'configuration'}: expected a mapping, got {type(values).__name__}")
    declared, arguments = fields_of(kind), {}
    for name, value in values.items():
        where = f"{path}.{name}" if path else str(name)
        if name not in declared:
            raise unknown(where, known)
        section, optional = section_of(declared[name])
        if section is None:
            arguments[name] = coerce(value, declared[name], where)
        else:
            value = switched(value) if optional else value
            arguments[name] = None if value is None and optional else build(section, value, where, known)
    holder = holder_of(kind)
    if holder is not None:
        given = default_sections() | {name: arguments.pop(name) for name in registered_sections() if name in arguments}
        arguments[holder] = {name: section for name, section in given.items() if section is not None}
    return kind(**arguments)


def switched(value: Any) -> Any:
    """What is given for an optional section: None for off, {} for all its defaults, else as it is."""
    word = str(value).lower() if isinstance(value, (str, bool)) else None
    if value is None or word in _OFF:
        return None
    return {} if word in _ON else value


def assign(nested: dict[str, Any], kind: type, path: str, value: Any, known: Iterable[str]) -> None:
    """Sets the value at a dotted path in nested values, in place. Raises ConfigError for a path that leads nowhere."""
    *parents, name = path.split(".")
    level = nested
    for parent in parents:
        declared = fields_of(kind)
        if parent not in declared:
            raise unknown(path, known)
        section, _ = section_of(declared[parent])
        if section is None:
            raise ConfigError(f"{path}: '{parent}' has no parts")
        if level.get(parent) is None:
            level[parent] = {}  # any field given turns a section on
        level, kind = level[parent], section
    declared = fields_of(kind)
    if name not in declared:
        raise unknown(path, known)
    section, optional = section_of(declared[name])
    if section is not None and not optional:
        raise ConfigError(f"{path}: is a section; give one of its fields, e.g. {path}.{next(iter(fields_of(section)))}")
    if section is not None:
        value = switched(value)
        if isinstance(value, Mapping):
            value = dict(value)
        elif value is not None:
            raise ConfigError(
                f"{path}: expected true, false or one of its fields, e.g. {path}.{next(iter(fields_of(section)), '...')}"
            )
    level[name] = value


def check(value: Any, kind: type, path: str = "") -> None:
    """Raises ConfigError for the first field of a dataclass, however it was made, that is not of its declared type and
    range. Sections may have a further ``check(run)`` of their own (see ``RunConfig``)."""
    for name, declared in _hints(kind).items():
        if name == holder_of(kind):
            continue
        where, given = f"{path}{name}", getattr(value, name)
        section, optional = section_of(declared)
        if section is not None:
            if given is None and optional:
                continue
            if not isinstance(given, section):
                raise ConfigError(f"{where}: expected {section.__name__}, got {given!r}")
            check(given, section, f"{where}.")
        else:
            fits = coerce(given, declared, where)
            if (
                fits == given
                and not isinstance(given, list)
                and not (isinstance(fits, int) and isinstance(given, float))
            ):
                continue
            raise ConfigError(f"{where}: expected {_kind_name(declared)}, got {given!r}")


def coerce(value: Any, declared: Any, where: str) -> Any:
    """The value as the declared type, within what its markers allow; else ConfigError."""
    kind, markers = _unmarked(declared)
    value = _as_kind(value, kind, where)
    for marker in markers:
        if hasattr(marker, "check") and value is not None:
            marker.check(value, where)
    return value


def _as_kind(value: Any, kind: Any, where: str) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in options:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(str, options))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _as_option(value, options, where)
    if origin is tuple:
        return _as_tuple(value, options, where)
    if kind is bool:
        words = {"true": True, "false": False}
        word = value.strip().lower() if isinstance(value, str) else value
        if not isinstance(value, (bool, str)) or (word not in words and not isinstance(word, bool)):
            raise ConfigError(f"{where}: expected true or false, got {value!r}")
        return words.get(word, word) if isinstance(word, str) else word
    if kind in (int, float):
        return _as_number(value, kind, where)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{where}: expected text, got {value!r}")
    return value


def _as_option(value: Any, options: tuple[Any, ...], where: str) -> Any:
    """One of the words among the options, None where that is one, else what the remaining option makes of it."""
    words = [word for option in options if typing.get_origin(option) is Literal for word in typing.get_args(option)]
    if isinstance(value, str) and value.strip().lower() in words:
        return value.strip().lower()
    if type(None) in options and (
        value is None or (isinstance(value, str) and value.strip().lower() in ("none", "null"))
    ):
        return None
    kind = next(option for option in options if option is not type(None) and typing.get_origin(option) is not Literal)
    try:
        return coerce(value, kind, where)
    except ConfigError as error:
        raise (ConfigError(f"{error}, or {' or '.join(words)}") if words else error) from None


def _as_tuple(value: Any, options: tuple[Any, ...], where: str) -> tuple:
    if isinstance(value, str):
        value = [part for part in value.strip("()[] ").split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {value!r}")
    if options[-1] is not Ellipsis and len(value) != len(options):
        raise ConfigError(f"{where}: expected {len(options)} values, got {len(value)}")
    return tuple(coerce(part, options[0], f"{where}[{i}]") for i, part in enumerate(value))


def _as_number(value: Any, kind: type, where: str) -> int | float:
    if isinstance(value, bool):
        raise ConfigError(f"{where}: expected a number, got {value!r}")
    if kind is int:
        try:
            return int(value) if isinstance(value, str) else operator.index(value)
        except (TypeError, ValueError):
            pass  # 3.0 and "1e3" are whole numbers too
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise ConfigError(f"{where}: expected a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ConfigError(f"{where}: expected a finite number, got {value!r}")
    if kind is int and number != int(number):
        raise ConfigError(f"{where}: expected a whole number, got {value!r}")
    return kind(number)


def parse_overrides(overrides: Mapping[str, Any] | str | Iterable[str] | None) -> dict[str, Any]:
    """``{"train.lr": "1e-4"}`` from a mapping, from ``"train.lr=1e-4 seed=3"`` or from a list of such pairs.

    Raises ConfigError for anything else, and for a setting that is given two values.
    """
    if not overrides:
        return {}
    if isinstance(overrides, Mapping):
        return {str(path): value for path, value in overrides.items()}
    try:
        pairs = shlex.split(overrides) if isinstance(overrides, str) else list(overrides)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"overrides: {overrides!r} cannot be read ({error})") from error
    parsed: dict[str, Any] = {}
    for pair in pairs:
        path, equals, value = (part.strip() for part in str(pair).partition("="))
        if not equals or not path:
            raise ConfigError(f"overrides: {pair!r} is not of the form name=value, e.g. train.lr=1e-4")
        if parsed.get(path, value) != value:
            raise ConfigError(f"{path}: given twice, as {parsed[path]!r} and as {value!r}")
        parsed[path] = value
    return parsed


def unknown(where: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist."""
    if (moved := moved_to(where)) is not None:
        return ConfigError(f"{where}: {moved}")
    return ConfigError(f"{where}: unknown parameter; {nearest(where, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'X'?" for a mistyped name, also of a dotted one's last part; else a list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if not close:
        last = {path.rsplit(".", 1)[-1]: path for path in reversed(known)}
        close = [last[part] for part in difflib.get_close_matches(str(name).rsplit(".", 1)[-1], last, n=1, cutoff=0.6)]
    return f"did you mean '{close[0]}'?" if close else "known: " + ", ".join(known)


def plain(value: Any) -> Any:
    """Tuples as lists and mappings as dicts, so that YAML and JSON stay plain."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(v) for v in value]
    return value


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    return types.MappingProxyType(typing.get_type_hints(kind, include_extras=True))


def _unmarked(declared: Any) -> tuple[Any, tuple[Any, ...]]:
    """(type, markers) of ``Annotated[type, *markers]``."""
    if typing.get_origin(declared) is Annotated:
        return declared.__origin__, declared.__metadata__
    return declared, ()


def _kind_name(declared: Any) -> str:
    kind, _ = _unmarked(declared)
    return kind.__name__ if isinstance(kind, type) and not typing.get_args(kind) else str(kind)
