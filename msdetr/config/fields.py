"""What a field says about itself beside its type: ``k: Annotated[int, Range(1)] = 6``.

A marker with a ``check`` method is a condition on the field's value; ``Harmless`` says what a change of it does not affect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both allowed, and less than ``below``."""

    low: float | None = None
    high: float | None = None
    below: float | None = None

    def check(self, value: float, where: str) -> None:
        if self.low is not None and not value >= self.low:  # NaN is outside every range
            raise ConfigError(f"{where}: must be at least {self.low:,}, got {value}")
        if self.high is not None and not value <= self.high:
            raise ConfigError(f"{where}: must be at most {self.high:,}, got {value}")
        if self.below is not None and not value < self.below:
            raise ConfigError(f"{where}: must be less than {self.below:,}, got {value}")


@dataclass(frozen=True)
class NonEmpty:
    """A list or text with something in it."""

    def check(self, value: Any, where: str) -> None:
        if not value:
            raise ConfigError(f"{where}: must not be empty")


@dataclass(frozen=True)
class Harmless:
    """A setting that may differ without being another experiment.

    on_resume: a resumed run may change it without changing what is computed.
    in_comparison: runs that differ in nothing else (but the seed) are repetitions of one experiment.
    """

    on_resume: bool = True
    in_comparison: bool = True


@dataclass(frozen=True)
class Registered:
    """Marks the field that holds the sections that were registered by name (see ``register_section``)."""
