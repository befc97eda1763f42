"""Methods by the name of their config section."""

from __future__ import annotations

from ..config import register_section
from .base import Method

_METHODS: dict[str, type[Method]] = {}


def register(method: type[Method], on: bool = False) -> type[Method]:
    """Makes a method known, and with it its config section; usable as a decorator.

    on: whether a configuration that does not mention the section has it.

    The section is then accepted wherever a configuration is written: in YAML, on the command line
    (``NAME.field=value``), and in ``RunConfig.override``.
    """
    register_section(method.name, method.Config, on)
    _METHODS[method.name] = method
    return method


def registered_methods() -> dict[str, type[Method]]:
    """Section name -> method, in the order of registration."""
    return dict(_METHODS)
