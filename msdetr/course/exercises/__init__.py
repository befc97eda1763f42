"""Exercises that check themselves: ``check("3.1", my_function)`` compares an answer with the package.

One file per notebook says what is asked (``Exercise``): inputs, edge cases among them, and an oracle, which is the package
itself or a search by brute force. Right answers are apart, in ``notebooks/solutions``.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from ...errors import InputLookupError
from .exercise import Case, Exercise, Verdict

__all__ = ["NOTEBOOKS", "Case", "Exercise", "Verdict", "check", "exercise", "exercises"]

NOTEBOOKS = {  # number of the notebook -> file with its exercises
    1: "attention",
    2: "architecture",
    3: "matching",
    4: "supervision",
    5: "training",
    6: "runs",
    7: "candidates",
    8: "microscope",
    9: "coco",
    10: "mistakes",
    11: "ladder",
    12: "photographs",
}


def exercises(notebook: int) -> tuple[Exercise, ...]:
    """The exercises of a notebook, in order. Raises InputLookupError for a notebook without any."""
    if notebook not in NOTEBOOKS:
        raise InputLookupError(f"notebook {notebook} has no exercises; those with some are {sorted(NOTEBOOKS)}")
    return importlib.import_module(f".{NOTEBOOKS[notebook]}", __name__).EXERCISES


def exercise(number: str) -> Exercise:
    """An exercise by its number, such as "3.1". Raises InputLookupError where there is none of that number."""
    notebook, _, _ = str(number).partition(".")
    known = exercises(int(notebook)) if notebook.isdigit() and int(notebook) in NOTEBOOKS else ()
    for one in known:
        if one.number == str(number):
            return one
    names = ", ".join(one.number for one in known) or "1.1, 1.2, ..."
    raise InputLookupError(f"there is no exercise {number}; there are {names}")


def check(number: str, answer: Callable[..., Any]) -> Verdict:
    """What an answer is worth: not answered yet, not yet right (on which input, and what was expected there), or solved.

    number: of the exercise, such as "3.1". answer: the function that the notebook asks for. Whatever an answer does, also
    raising an error, ends in a verdict; only a number that does not exist raises (InputLookupError).
    """
    return exercise(number).check(answer)
