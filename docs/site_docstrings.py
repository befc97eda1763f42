"""The package's docstrings, plain English with ``name: what it is`` for parameters, as reStructuredText for autodoc.

- ``name: ...``, for a parameter or field of that name, becomes an entry of the list of parameters.
- A block whose lines are continued by indented ones becomes a list; a block that is indented as a whole is code.
- ``|`` is a bar, never a substitution.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterable, Iterator

from docutils import nodes
from sphinx.domains.python import PyClasslike
from sphinx.util.inspect import stringify_signature
from sphinx.util.nodes import make_refnode

BULLET = re.compile(r"[-*] |\(?\d+[.)] |:\w|\.\. |>>> ")


def parameter_names(thing: object) -> set[str]:
    """The names that a docstring may explain: of parameters, and of a dataclass's fields."""
    names = set(getattr(thing, "__annotations__", {})) if inspect.isclass(thing) else set()
    if dataclasses.is_dataclass(thing):
        names |= {field.name for field in dataclasses.fields(thing)}
    try:
        names |= set(inspect.signature(thing).parameters)
    except (TypeError, ValueError):
        pass
    return names


def restructured(lines: Iterable[str], names: Iterable[str] = ()) -> list[str]:
    """A docstring's lines as reStructuredText; ``names`` are the parameters that it may explain."""
    result, code_follows = [], False
    for block in _blocks(lines):
        indented = all(line.startswith(" ") for line in block if line)
        if indented:
            result += [] if code_follows else ["::", ""]
            result += [*block, ""]
        else:
            result += [*_block(block, set(names)), ""]
            code_follows = block[-1].rstrip().endswith("::")
    return result


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """Runs of lines without empty ones between them; indented runs after one another are one block of code."""
    block: list[str] = []
    blank = 0
    for line in lines:
        if not line.strip():
            blank += 1
            continue
        same_code = block and block[0].startswith(" ") and line.startswith(" ")
        if blank and block and not same_code:
            yield block
            block = []
        block += [""] * (blank if same_code else 0)
        block, blank = [*block, line], 0
    if block:
        yield block


def _block(block: list[str], names: set[str]) -> list[str]:
    if BULLET.match(block[0]) and all(line.startswith(" ") or BULLET.match(line) for line in block):
        return [_escaped(line) for line in block]
    items = _items(block)
    listed = len(items) < len(block) and len(items) > 1
    result: list[str] = []
    for item in items if listed else [" ".join(" ".join(block).split())]:
        if ":: " not in item and not item.endswith("::") and (parts := _parameters(item, names)):
            result += parts
        else:
            result.append(f"- {_escaped(item)}" if listed else _escaped(item))
    return _with_blank_lines(result)


def _items(block: list[str]) -> list[str]:
    """The lines of a block, each with its indented continuation lines, spaces put in order."""
    items: list[str] = []
    for line in block:
        if line.startswith(" ") and items:
            items[-1] += f" {line.strip()}"
        else:
            items.append(re.sub(r"\s+", " ", line.strip()))
    return items


def _parameters(text: str, names: set[str]) -> list[str]:
    """``text`` cut where it starts to explain a parameter, [] where it explains none."""
    name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    start = re.compile(rf"(?:^|(?<=[.)] ))((?:{name})(?:, (?:{name}))*): ")
    if not names or not start.search(text):
        return []
    before, *rest = start.split(text)
    result = [_escaped(before.strip())] if before.strip() else []
    for label, explained in zip(rest[::2], rest[1::2], strict=True):
        explained, raises, more = explained.partition(". Raises ")
        result.append(f":param {label}: {_escaped(explained.strip())}{'.' if raises else ''}")
        if raises:
            result.append(_escaped(f"Raises {more}"))
    return result


def _with_blank_lines(lines: list[str]) -> list[str]:
    """Empty lines where a list or list of parameters begins or ends."""
    result: list[str] = []
    for line in lines:
        if result and _kind(line) != _kind(result[-1]):
            result.append("")
        result.append(line)
    return result


def _kind(line: str) -> str:
    return next((mark for mark in ("- ", ":param ") if line.startswith(mark)), "")


def _escaped(text: str) -> str:
    """Bars outside of ``code`` are no markup."""
    parts = re.split(r"(``.*?``)", text)
    return "".join(part if part.startswith("``") else part.replace("|", r"\|") for part in parts)


def _process(app, what, name, thing, options, lines):
    lines[:] = restructured(textwrap.dedent("\n".join(lines)).splitlines(), parameter_names(thing))


def _signature(app, what, name, thing, options, signature, returns):
    """Types without the ranges beside them, which Settings has; ``...`` for a default that Python cannot read."""
    if signature and "Annotated[" in signature:
        plain, hints = inspect.signature(thing), typing.get_type_hints(thing)
        parameters = [p.replace(annotation=hints.get(p.name, p.annotation)) for p in plain.parameters.values()]
        plain = plain.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
        signature = stringify_signature(plain, unqualified_typehints=True)
    return (re.sub(r"<[^<>]*>", "...", signature) if signature else signature), returns


def _skip(app, what, name, thing, skip, options):
    """Leaves out what a class only borrows, such as a function of torch as a default."""
    module = getattr(thing, "__module__", None) or ""
    return True if callable(thing) and not module.startswith("msdetr") else None


def _drop_plain_bases(app, doctree):
    """ "Bases: object" says nothing."""
    for paragraph in list(doctree.findall(nodes.paragraph)):
        if paragraph.astext() == "Bases: object":
            paragraph.parent.remove(paragraph)


def _drop_ways_back(app, pagename, templatename, context, doctree):
    """Pages with source code link back to where a class is documented, by a name that it may not be documented under."""
    if pagename.startswith("_modules/") and "body" in context:
        context["body"] = re.sub(r'<a class="viewcode-back".*?</a>', "", context["body"])


class Class(PyClasslike):
    """A class that is documented under several names, each with its own entry; ``_resolve`` finds one of them."""

    def run(self):
        self.options.pop("canonical", None)
        return super().run()


def _resolve(app, env, node, contnode):
    """A link to where a class is documented from the module that defines it, as type annotations name it."""
    if node.get("refdomain") != "py":
        return None
    objects = env.get_domain("py").objects
    if not hasattr(env, "documented_homes"):
        env.documented_homes = {}
        for name in sorted(objects, key=lambda name: name.count(".")):  # the most special one last
            module, _, attribute = name.rpartition(".")
            thing = getattr(sys.modules.get(module), attribute, None)
            if getattr(thing, "__module__", None) and getattr(thing, "__qualname__", None):
                env.documented_homes[f"{thing.__module__}.{thing.__qualname__}"] = name
    home = env.documented_homes.get(node.get("reftarget"))
    if home is None:
        return None
    entry = objects[home]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, home)


def setup(app):
    app.connect("autodoc-process-docstring", _process)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-skip-member", _skip)
    app.connect("doctree-read", _drop_plain_bases)
    app.connect("missing-reference", _resolve)
    app.connect("html-page-context", _drop_ways_back)
    app.add_directive_to_domain("py", "class", Class, override=True)
    app.add_directive_to_domain("py", "exception", Class, override=True)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
