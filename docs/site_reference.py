"""Reference pages read from the package itself: ``{settings}``, ``{recipes}``, ``{commands}`` and ``{api} MODULE``."""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import os
import re
import textwrap
import tokenize
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from unittest import mock

from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective

from msdetr.cli import main
from msdetr.config import NonEmpty, Range, RunConfig, flatten, registered_sections
from msdetr.config.schema import all_settings
from msdetr.recipes import describe


def field_comments(section: type) -> dict[str, str]:
    """Field -> the comment beside and below it in the source of a section's class."""
    source = inspect.getsource(section)
    fields = [node for node in ast.parse(source).body[0].body if isinstance(node, ast.AnnAssign)]
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    ends = [field.lineno for field in fields[1:]] + [len(source.splitlines()) + 1]
    return {
        field.target.id: " ".join(text for line, text in comments.items() if field.lineno <= line < end)
        for field, end in zip(fields, ends, strict=True)
    }


def allowed(kind: Any, markers: tuple[Any, ...]) -> str:
    """The values of a setting in words."""
    if get_origin(kind) in (Union, types.UnionType):
        return ", or ".join("`null`" if part is type(None) else allowed(part, markers) for part in get_args(kind))
    if get_origin(kind) is Annotated:
        return allowed(get_args(kind)[0], get_args(kind)[1:])
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    limits = next((marker for marker in markers if isinstance(marker, Range)), Range())
    names = {bool: "`true`, `false`", int: "whole number", float: "number", str: "text"}
    words = names.get(kind, "list" if get_origin(kind) is tuple else "text")
    if limits.low is not None:
        words += f" from {limits.low:,}"
    if limits.high is not None:
        words += f" to {limits.high:,}"
    if limits.below is not None:
        words += f" below {limits.below:,}"
    return words + (", not empty" if kind is str and NonEmpty() in markers else "")


def settings_tables() -> str:
    """Markdown: a table for every section, those of methods included."""
    defaults = flatten(RunConfig())
    plain = {name: type(value) for name, value in vars(RunConfig()).items() if hasattr(value, "__dataclass_fields__")}
    groups: dict[str, list] = {}
    for setting in all_settings():
        groups.setdefault(setting.path.rpartition(".")[0], []).append(setting)
    lines = []
    for name, group in groups.items():
        section = {"": RunConfig, **plain, **registered_sections()}[name]
        comments, fresh = field_comments(section), section()
        title, about = (name, inspect.getdoc(section)) if name else ("The run", "")
        state = "" if name not in registered_sections() or defaults[group[0].path] is not None else "Off by default."
        lines += ["", f"## {title}", "", (about or "").split("\n\n")[0], "", state, ""]
        lines += ["| setting | values | default | |", "|---|---|---|---|"]
        for setting in group:
            field = setting.path.rpartition(".")[2]
            cells = [f"`{setting.path}`", allowed(setting.kind, setting.markers), f"`{_plain(getattr(fresh, field))}`"]
            lines.append(f"| {' | '.join(map(_cell, [*cells, comments[field]]))} |")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def recipes_tables() -> str:
    """Markdown: a table for every family of recipes, the part of their names before the slash."""
    families: dict[str, list[str]] = {}
    for name, description in describe().items():
        families.setdefault(name.partition("/")[0], []).append(f"| `{name}` | {_cell(description)} |")
    return "\n".join(
        line
        for family, rows in families.items()
        for line in ["", f"## {family}", "", "| recipe | |", "|---|---|", *rows]
    )


def help_text(arguments: list[str]) -> str:
    """What the command line prints for ``--help``, 96 columns wide."""
    printed = io.StringIO()
    with mock.patch.dict(os.environ, COLUMNS="96"), contextlib.redirect_stdout(printed):
        main([*arguments, "--help"])
    return printed.getvalue().strip()


def commands_pages() -> str:
    """Markdown: a section for every command with its help."""
    names = re.search(r"\{([a-z,-]+)\}", help_text([]))[1].split(",")
    return "\n".join(
        f"## msdetr {name}\n\n```{{code-block}} text\n:class: help\n\n{help_text([name])}\n```\n" for name in names
    )


def modules(name: str, files: bool = False) -> list[str]:
    """A module and those inside it that are public: that have an ``__all__``, or all of them with ``files``."""
    found, package = [name], importlib.import_module(name)
    for folder in getattr(package, "__path__", []) if name != "msdetr" else []:
        for path in sorted(Path(folder).iterdir()):
            inner = f"{name}.{path.stem}"
            if path.stem.startswith("_") or not (path.suffix == ".py" or (path / "__init__.py").exists()):
                continue
            if files or hasattr(importlib.import_module(inner), "__all__"):
                found += modules(inner)
    return found


def constants(module: str) -> list[str]:
    """The public names of a module that are no class, function or module: autodoc leaves them out, having no docstring."""
    found = importlib.import_module(module)
    kinds = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)
    return [name for name in getattr(found, "__all__", []) if not isinstance(getattr(found, name), kinds)]


def described(module: str, name: str) -> list[str]:
    """reStructuredText for a constant: its value, where it fits on a line."""
    value = repr(getattr(importlib.import_module(module), name))
    shown = [f"   :value: {value}"] if len(value) <= 100 else []
    return [f".. py:data:: {name}", f"   :module: {module}", *shown, ""]


class Api(SphinxDirective):
    """What autodoc says about a module and the public ones inside it, each below a heading of its own."""

    required_arguments = 1
    option_spec = {"files": directives.flag, "exclude": directives.unchanged}  # noqa: RUF012 (docutils' way)

    def run(self):
        name, lines = self.arguments[0], []
        for module in modules(name, "files" in self.options):
            left_out = f"   :exclude-members: {self.options.get('exclude', '')}" if module == name else ""
            lines += [f"## {module}", "", "```{eval-rst}", f".. automodule:: {module}", left_out, ""]
            lines += [line for constant in constants(module) for line in described(module, constant)] + ["```", ""]
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def generated(make):
    """A directive whose content is the Markdown that ``make()`` returns."""

    class Generated(SphinxDirective):
        def run(self):
            return self.parse_text_to_nodes(textwrap.dedent(make()), allow_section_headings=True)

    return Generated


def setup(app):
    app.add_directive("api", Api)
    for name, make in [("settings", settings_tables), ("recipes", recipes_tables), ("commands", commands_pages)]:
        app.add_directive(name, generated(make))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
