"""Where a run's numbers go beside metrics.jsonl: TensorBoard, MLflow."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from ..errors import ConfigError


class Tracker(Protocol):
    """Takes what metrics.jsonl gets."""

    def add(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Every number in ``values``, of one kind ("train", "eval"), after ``step`` steps."""

    def close(self, status: str) -> None:
        """status: what results.json says of the run: finished, failed, interrupted or terminated. Raises nothing."""


def numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """The numbers in nested values by name, e.g. "train/terms/one_to_many/giou/layer_6"."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from numbers(inner, f"{name}/{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, inner in enumerate(value, start=1):
            yield from numbers(inner, f"{name}/layer_{number}")
    elif isinstance(value, (int, float)):
        yield name, value


def require(module: str, setting: str, package: str) -> None:
    """Raises ConfigError naming the setting where a tracker's library is not installed."""
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{setting}: {package} is not installed; pip install {module}, or set it to false")
