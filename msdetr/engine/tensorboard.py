"""TensorBoard event files of a run: what metrics.jsonl says, for those who watch runs there (``train.tensorboard``)."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import write_error


def require_tensorboard() -> None:
    """Raises ConfigError where TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "train.tensorboard: TensorBoard is not installed; pip install tensorboard, or set it to false"
        )


class EventFiles:
    """Event files in ``folder`` from ``step`` on; what an earlier run wrote beyond that step is hidden.

    Raises WriteError.
    """

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        try:
            self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)
        except OSError as error:
            raise write_error(folder, error) from error

    def add(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Every number of ``values`` as a scalar, e.g. "train/terms/one_to_many/giou/layer_6". Raises WriteError."""
        try:
            for name, value in _numbers(values, kind):
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as error:
            raise write_error(self._folder, error) from error

    def close(self) -> None:
        """Closes the files; what could not be written has been an error of ``add``."""
        with contextlib.suppress(OSError):
            self._writer.close()


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}/{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for number, inner in enumerate(value, start=1):
            yield from _numbers(inner, f"{name}/layer_{number}")
    elif isinstance(value, (int, float)):
        yield name, value
