"""TensorBoard event files of a run: what metrics.jsonl says, for those who watch runs there (``train.tensorboard``)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import write_error
from .tracking import numbers


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
            for name, value in numbers(values, kind):
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except OSError as error:
            raise write_error(self._folder, error) from error

    def close(self, status: str) -> None:
        """Closes the files; what could not be written has been an error of ``add``."""
        with contextlib.suppress(OSError):
            self._writer.close()
