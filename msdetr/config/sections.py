"""Sections of the configuration that a method brings along, registered by name."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any, TypeVar

from ..errors import ConfigError

Section = TypeVar("Section")

_registered: dict[str, type] = {}
_on_by_default: set[str] = set()
_BUILT_IN = "msdetr.methods"  # registers its sections when it is imported, at the latest when a configuration is made


def register_section(name: str, section: type[Section], on: bool = False) -> type[Section]:
    """Adds an optional section to every run's configuration; returns the class.

    name: what it is called in YAML and dotted paths: ``hybrid`` for ``hybrid.k=3``.
    section: a frozen dataclass whose fields all have defaults, annotated as in ``msdetr.config.schema``. It may have a
        method ``check(run)`` that raises ConfigError where it does not go with the rest of a ``RunConfig``.

    on: whether a configuration that does not mention the section has it, with its defaults.

    The section is absent from ``RunConfig.methods`` until it is given: any field of it turns it on, and so does ``true``
    for all its defaults; ``null`` or ``false`` turns it off. Registering a redefined class under its old name replaces it
    (a notebook's cell run again). Raises ConfigError for a name that is taken, or another kind of class.
    """
    from .schema import RunConfig

    if not name.isidentifier() or name in {field.name for field in dataclasses.fields(RunConfig)}:
        raise ConfigError(f"section '{name}': not a free name of the configuration")
    if not (dataclasses.is_dataclass(section) and section.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise ConfigError(f"section '{name}': {section!r} is not a frozen dataclass")
    for field in dataclasses.fields(section):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"section '{name}': its field '{field.name}' needs a default")
    known = _registered.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (section.__module__, section.__qualname__):
        raise ConfigError(f"section '{name}': is registered already, as {known.__module__}.{known.__qualname__}")
    _registered[name] = section
    if on:
        _on_by_default.add(name)
    return section


def unregister_section(name: str) -> None:
    """Forgets a registered section; nothing happens where there is none."""
    _registered.pop(name, None)
    _on_by_default.discard(name)


def registered_sections() -> dict[str, type[Any]]:
    """Name -> class of all registered sections, those of the built-in methods first."""
    importlib.import_module(_BUILT_IN)
    return dict(_registered)


def default_sections() -> dict[str, Any]:
    """The sections, with their defaults, of a configuration that mentions none."""
    return {name: section() for name, section in registered_sections().items() if name in _on_by_default}
