"""Wrong variants of a function, made by changing its source in one place: what a slip of the pen, or of the mind, would do.

    for mutant in mutants(source, "iou"):
        namespace = mutant.define(others)   # the functions of `source`, one of them wrong

What is changed, one at a time:

- comparisons: ``<`` and ``<=``, ``>`` and ``>=``, ``<`` and ``>``, ``==`` and ``!=``, ``in`` and ``not in``, ``is`` and ``is not``;
- arithmetic: ``+`` and ``-``, ``*`` and ``/``, ``//`` and ``%``, ``|`` and ``&``, ``|`` for ``^``; operands of ``-``, ``/``, ``//``, ``%``, ``**``
  swapped; either operand alone;
- numbers: one more, one less, doubled; True and False;
- signs and ``not`` left out; ``and`` and ``or``, and either operand alone;
- functions: min and max, any and all, floor and ceil, argmin and argmax, union and intersection, ...; a function that changes its
  argument (sorted, abs, clamp, ...) left out; an argument given by name left out; neighboring arguments swapped;
- slices: a bound one more, one less, left out; an index of a dimension swapped with the next;
- statements left out; conditions always or never true; a comprehension without its condition.

Not changed, since it would make no difference: the order of arguments of a symmetric function (``SYMMETRIC``), or of a difference
of which only the size counts (under ``abs`` or squared); and conversions (``float(...)``), since an answer may be of any type.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Mod,),
    ast.Mod: (ast.FloorDiv,), ast.BitOr: (ast.BitAnd,), ast.BitAnd: (ast.BitOr,), ast.BitXor: (ast.BitOr, ast.BitAnd),
}  # fmt: skip
ORDERED = (ast.Sub, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow, ast.MatMult)
PAIRS = (
    ("min", "max"), ("any", "all"), ("floor", "ceil"), ("argmin", "argmax"), ("minimum", "maximum"), ("amin", "amax"),
    ("sum", "mean"), ("zeros", "ones"), ("where", "where"), ("permutations", "combinations"), ("update", "setdefault"),
)  # fmt: skip
OPPOSITES = dict(PAIRS) | {b: a for a, b in PAIRS}
IDENTITIES = {
    "sorted",
    "abs",
    "clamp",
    "sigmoid",
    "exp",
    "log",
    "sqrt",
    "detach",
    "cumsum",
    "max",
    "min",
    "sum",
    "flip",
}
SYMMETRIC = {"min", "max", "minimum", "maximum", "iou", "giou", "generalized_box_iou", "l1_loss", "gap"}


@dataclass(frozen=True)
class Mutant:
    """about: what was changed, with its line within the function. source: of the function."""

    about: str
    source: str

    def define(self, others: dict[str, Any]) -> dict[str, Any]:
        """A namespace with the wrong function beside the right ones."""
        namespace = dict(others)
        exec(compile(self.source, "<mutant>", "exec"), namespace)  # noqa: S102 (made here)
        return namespace


def mutants(source: str, name: str) -> list[Mutant]:
    """All mutants of one function of a file, without those that compile to the same code as the original."""
    tree = ast.parse(source)
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    original, seen = ast.unparse(function), set()
    codes = {_code(original)}
    found = []
    for about, changed in _changes(_marked(function)):
        text = ast.unparse(ast.fix_missing_locations(changed))
        if text in seen or _code(text) in codes:
            continue
        seen.add(text)
        found.append(Mutant(about, text))
    return found


def _code(text: str) -> Any:
    """A function's compiled code without the places that its parts have in the source."""

    def bare(code: Any) -> tuple[Any, ...]:
        constants = tuple(bare(c) if hasattr(c, "co_code") else (type(c), repr(c)) for c in code.co_consts)
        return code.co_code, constants, code.co_names, code.co_varnames

    return bare(compile(text, "", "exec"))


def _changes(function: ast.FunctionDef) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Copies of the function, each changed in one place. A node is found again in a copy by its number in ``ast.walk``."""
    for number, node in enumerate(ast.walk(function)):
        if node is function or _is_docstring(node, function):
            continue
        for what, replacement in _replacements(node):
            changed = copy.deepcopy(function)
            old = next(n for i, n in enumerate(ast.walk(changed)) if i == number)
            _Replace(old, replacement).visit(changed)
            line = getattr(node, "lineno", None)
            text = ast.unparse(node).splitlines()[0] if isinstance(node, (ast.expr, ast.stmt)) else type(node).__name__
            yield f"line {line - function.lineno if line else '?'}: `{text}` {what}", changed


def _marked(function: ast.FunctionDef) -> ast.FunctionDef:
    """Differences of which only the size counts are marked."""
    for node in ast.walk(function):
        inside = []
        if isinstance(node, ast.Call) and "abs" in (getattr(node.func, "attr", ""), getattr(node.func, "id", "")):
            inside = [*node.args, getattr(node.func, "value", None)]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow) and getattr(node.right, "value", 1) % 2 == 0:
            inside = [node.left]
        for part in inside:
            if isinstance(part, ast.BinOp) and isinstance(part.op, ast.Sub):
                part.only_size = True
    return function


def _is_docstring(node: ast.AST, function: ast.FunctionDef) -> bool:
    return isinstance(node, ast.Expr) and node is function.body[0] and isinstance(node.value, ast.Constant)


class _Replace(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return copy.deepcopy(self.new) if node is self.old else super().visit(node)


def _replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """What a node may be changed to, and in words."""
    for kinds, change in (
        (ast.Compare, _compare), (ast.BinOp, _binary), (ast.AugAssign, _augmented), (ast.Constant, _constant), (ast.UnaryOp, _unary),
        (ast.BoolOp, _boolean), (ast.Call, _call), (ast.Slice, _slice), (ast.Subscript, _subscript), (ast.If, _if),
        (ast.IfExp, _if), (ast.comprehension, _comprehension),
    ):  # fmt: skip
        if isinstance(node, kinds):
            yield from change(node)
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr, ast.Return, ast.If, ast.For, ast.Delete)):
        yield "left out", ast.Pass()


def _with(node: Any, **changes: Any) -> Any:
    changed = copy.deepcopy(node)
    for name, value in changes.items():
        setattr(changed, name, value)
    return changed


def _compare(node: ast.Compare) -> Iterator[tuple[str, ast.AST]]:
    for place, operator in enumerate(node.ops):
        for other in COMPARISONS[type(operator)]:
            yield f"with {other.__name__}", _with(node, ops=[*node.ops[:place], other(), *node.ops[place + 1 :]])


def _binary(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    for other in ARITHMETIC.get(type(node.op), ()):
        yield f"with {other.__name__}", _with(node, op=other())
    if isinstance(node.op, ORDERED) and not getattr(node, "only_size", False):
        yield "with operands swapped", _with(node, left=node.right, right=node.left)
    yield "only the left operand", node.left
    yield "only the right operand", node.right


def _augmented(node: ast.AugAssign) -> Iterator[tuple[str, ast.AST]]:
    for other in ARITHMETIC.get(type(node.op), ()):
        yield f"with {other.__name__}", _with(node, op=other())
    yield "assigned", ast.Assign([_with(node.target, ctx=ast.Store())], node.value)


def _constant(node: ast.Constant) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.value, bool):
        yield "the other way", ast.Constant(not node.value)
    elif isinstance(node.value, (int, float)):
        for value in (node.value + 1, node.value - 1, node.value * 2):
            yield f"{value}", ast.Constant(value)


def _unary(node: ast.UnaryOp) -> Iterator[tuple[str, ast.AST]]:
    yield "without it", node.operand


def _boolean(node: ast.BoolOp) -> Iterator[tuple[str, ast.AST]]:
    yield "and/or", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
    for place in range(len(node.values)):
        rest = [*node.values[:place], *node.values[place + 1 :]]
        yield f"without part {place}", rest[0] if len(rest) == 1 else _with(node, values=rest)


def _call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if OPPOSITES.get(name, name) != name:
        other = OPPOSITES[name]
        yield (
            f"{other}",
            _with(node, func=_with(node.func, **{"attr" if isinstance(node.func, ast.Attribute) else "id": other})),
        )
    if name in IDENTITIES:
        method = isinstance(node.func, ast.Attribute) and not getattr(node.func.value, "id", "") in (
            "torch",
            "np",
            "math",
            "F",
        )
        if method or node.args:
            yield "left out", node.func.value if method else node.args[0]
    for place, keyword in enumerate(node.keywords):
        yield f"without {keyword.arg}", _with(node, keywords=[*node.keywords[:place], *node.keywords[place + 1 :]])
    for place in range(0 if name in SYMMETRIC else len(node.args) - 1):
        args = list(node.args)
        args[place], args[place + 1] = args[place + 1], args[place]
        yield f"arguments {place} and {place + 1} swapped", _with(node, args=args)


def _slice(node: ast.Slice) -> Iterator[tuple[str, ast.AST]]:
    for bound in ("lower", "upper"):
        value = getattr(node, bound)
        if value is not None:
            yield f"without {bound}", _with(node, **{bound: None})
            if not isinstance(value, ast.Constant):
                yield f"{bound} + 1", _with(node, **{bound: ast.BinOp(value, ast.Add(), ast.Constant(1))})
                yield f"{bound} - 1", _with(node, **{bound: ast.BinOp(value, ast.Sub(), ast.Constant(1))})


def _subscript(node: ast.Subscript) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.slice, ast.Tuple) and len(node.slice.elts) > 1 and isinstance(node.ctx, ast.Load):
        yield "indices swapped", _with(node, slice=ast.Tuple([*reversed(node.slice.elts)], ast.Load()))


def _if(node: ast.If | ast.IfExp) -> Iterator[tuple[str, ast.AST]]:
    yield "always", _with(node, test=ast.Constant(True))
    yield "never", _with(node, test=ast.Constant(False))


def _comprehension(node: ast.comprehension) -> Iterator[tuple[str, ast.AST]]:
    for place in range(len(node.ifs)):
        yield "without its condition", _with(node, ifs=[*node.ifs[:place], *node.ifs[place + 1 :]])
