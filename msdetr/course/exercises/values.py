"""Comparing what an answer returned with what was expected, and showing values in a few characters."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch

TOLERANCE = 1e-5  # absolute and relative


def differs(found: Any, expected: Any) -> str | None:
    """How ``found`` differs, in words that complete "your function ...", or None where it does not.

    Tensors, arrays and lists of the same numbers are alike, as are a set of pairs and a list of them in any order; numbers may
    differ by 1e-5, relatively or absolutely. NaN is like NaN, and what is empty like all that is empty: [] like an array [0, 2].
    """
    if alike(found, expected):
        return None
    if isinstance(found, Mapping) and isinstance(expected, Mapping) and len(expected) > 5:  # only where they differ
        keys = [key for key in expected if key in found and not alike(found[key], expected[key])]
        found, expected = ({key: one[key] for key in keys} or one for one in (found, expected))
    return f"returns {show(found)}{_hint(found, expected)}\n  expected {show(expected)}"


def alike(found: Any, expected: Any) -> bool:
    """Whether two values say the same; see ``differs``."""
    if isinstance(expected, Mapping):
        return (
            isinstance(found, Mapping)
            and _hashable(found) == _hashable(expected)
            and all(alike(_lookup(found, key), value) for key, value in expected.items())
        )
    if isinstance(expected, AbstractSet):
        elements = _elements(found)
        return elements is not None and elements == {_plain(value) for value in expected}
    if expected is None or isinstance(expected, (str, bool)) or isinstance(found, (str, bool, type(None))):
        return type(_plain(found)) is type(expected) and _plain(found) == expected
    numbers, wanted = _numbers(found), _numbers(expected)
    if numbers is not None and wanted is not None:
        if numbers.shape[:1] == wanted.shape[:1] == (0,):  # nothing in either: a list says no more of its rows
            return True
        close = numbers.shape == wanted.shape
        return close and bool(np.allclose(numbers, wanted, TOLERANCE, TOLERANCE, equal_nan=True))
    if isinstance(found, (list, tuple)) and isinstance(expected, (list, tuple)):
        return len(found) == len(expected) and all(map(alike, found, expected))
    return False


def show(value: Any, longest: int = 200) -> str:
    """A value in one line of at most so many characters; numbers with four digits."""
    text = _text(value)
    return text if len(text) <= longest else text[: longest - 4] + " ..."


def _hint(found: Any, expected: Any) -> str:
    numbers, wanted = _numbers(found), _numbers(expected)
    if (
        isinstance(expected, (AbstractSet, Mapping))
        or numbers is None
        or wanted is None
        or numbers.shape == wanted.shape
    ):
        return ""
    return f" (shape {list(numbers.shape)} instead of {list(wanted.shape)})"


def _numbers(value: Any) -> np.ndarray | None:
    """A tensor, array, number or nested list as float64, None for anything else."""
    if isinstance(value, torch.Tensor):
        return value.detach().double().cpu().numpy()
    try:
        numbers = np.asarray(_plain(value))
        return numbers.astype(np.float64) if numbers.dtype.kind in "biuf" else None
    except (TypeError, ValueError):  # rows of different lengths
        return None


def _elements(value: Any) -> set[Any] | None:
    """The elements of a set, list or tensor of pairs; None for what has none, or one of them twice."""
    value = _plain(value)
    if isinstance(value, (str, Mapping)) or not hasattr(value, "__iter__"):
        return None
    elements = [tuple(element) if isinstance(element, list) else element for element in value]
    try:
        return set(elements) if len(set(elements)) == len(elements) else None
    except TypeError:
        return None


def _hashable(mapping: Mapping[Any, Any]) -> set[Any]:
    return {_plain(key) for key in mapping}


def _lookup(mapping: Mapping[Any, Any], key: Any) -> Any:
    return next(value for other, value in mapping.items() if _plain(other) == key)


def _plain(value: Any) -> Any:
    """Without tensors and arrays: numbers, and lists of them; containers keep their kind, but tuples of 0-d tensors become
    tuples of numbers."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value)) if type(value) in (list, tuple) else tuple(map(_plain, value))
    if isinstance(value, (set, frozenset)):
        return {_plain(element) for element in value}
    return value


def _text(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(map(_text, sorted(value, key=repr)))}}}" if value else "set()"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(key)}: {_text(entry)}' for key, entry in value.items())}}}"
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return repr(value)
