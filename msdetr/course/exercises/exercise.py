"""What an exercise is, and how an answer to it is judged."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .values import differs, show

SEED = 0  # every check of an answer sees the same inputs
LONGEST = 400  # characters of a message's value


@dataclass(frozen=True)
class Case:
    """An input. about: what is special about it, in words that complete "with ..."."""

    about: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of an answer; shown as its ``text``. answered: something was written in place of the dots."""

    number: str
    answered: bool
    solved: bool
    text: str

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Exercise:
    """A function to write.

    number: notebook and place, "3.1". name: of the function. oracle: the right answer to every case; its signature is that of
    the function asked for.
    cases: the inputs, from a generator of random numbers.
    observe: what is compared, from a function and the arguments; by default what it returns.
    compare: how: what is wrong, in words, or None, from found, expected and arguments.
    """

    number: str
    name: str
    oracle: Callable[..., Any]
    cases: Callable[[np.random.Generator], Iterable[Case]]
    observe: Callable[..., Any] = lambda function, *arguments: function(*arguments)
    compare: Callable[[Any, Any, tuple[Any, ...]], str | None] = lambda found, expected, arguments: differs(
        found, expected
    )

    def check(self, answer: Callable[..., Any], seed: int = SEED) -> Verdict:
        """The verdict on an answer; errors that it raises are part of the verdict."""
        if not callable(answer):
            return self._not_yet(f"{show(answer)} is not a function; define `{self.name}` and give it to the check")
        if is_stub(answer):
            return Verdict(self.number, False, False, f"{self.number}: not answered yet")
        questions = _questions(self, seed)
        for case, expected in questions:
            if (wrong := self.wrong(answer, case, expected)) is not None:
                return self._not_yet(wrong)
        return Verdict(self.number, True, True, f"{self.number}: solved; right on all {len(questions)} inputs")

    def wrong(self, answer: Callable[..., Any], case: Case, expected: Any) -> str | None:
        """What is wrong about an answer to one case, None where it is right."""
        try:
            found = self.observe(answer, *copy.deepcopy(case.arguments))
        except Exception as error:  # noqa: BLE001 (whatever the answer of a student raises belongs into the verdict)
            what = f"raises {type(error).__name__}: {error}"
        else:
            if found is None and expected is not None:
                what = "returns nothing (None); is there a `return` on every way through?"
            else:
                what = self.compare(found, expected, case.arguments)
        if what is None:
            return None
        return f"with {case.about}:\n{self.call(case)}\n  {self.name} {what}"

    def call(self, case: Case) -> str:
        """The arguments of a case, one a line, as they are called in the exercise."""
        names = inspect.signature(self.oracle).parameters
        return "\n".join(f"  {name} = {show(value, LONGEST)}" for name, value in zip(names, case.arguments))

    def _not_yet(self, wrong: str) -> Verdict:
        return Verdict(self.number, True, False, f"{self.number}: not yet, {wrong}")


@functools.lru_cache(maxsize=8)
def _questions(exercise: Exercise, seed: int) -> list[tuple[Case, Any]]:
    """All cases, with what the oracle says; kept, since people try more than once."""
    cases = exercise.cases(np.random.default_rng(seed))
    return [(case, exercise.observe(exercise.oracle, *copy.deepcopy(case.arguments))) for case in cases]


def is_stub(function: Callable[..., Any]) -> bool:
    """Whether nothing was written into a function yet: its body is a docstring, dots, ``pass`` or NotImplementedError."""
    code = getattr(function, "__code__", None)
    if code is None or set(code.co_consts) - {None, function.__doc__} or set(code.co_names) - {"NotImplementedError"}:
        return False
    return code.co_code in _STUBS


def _dots(): ...


def _documented():
    """As stubs in the notebooks are."""


def _raises():
    raise NotImplementedError


def _raises_documented():
    """As above."""
    raise NotImplementedError


_STUBS = {function.__code__.co_code for function in (_dots, _documented, _raises, _raises_documented)}
