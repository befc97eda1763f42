"""Saving in the background, and keeping the newest checkpoints and the best."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import CheckpointError
from .storage import Tensors, amend, available, identity, read, remove, write


class Writer:
    """Saves in the background, one checkpoint at a time, and keeps the newest two and the best.

    ``save`` returns as soon as tensors and manifest are copied in host memory: what training does to either afterwards
    is not part of the checkpoint. An error of the background work is raised by the next ``save`` or by ``wait``.

    saved: step of the checkpoint in ``run_dir`` that the run goes on from, None where there is none.
    """

    keep: ClassVar[int] = 2  # newest checkpoints, beside the best one

    def __init__(self, run_dir: str | Path, saved: int | None = None):
        self.directory = Path(run_dir, "checkpoints")
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved = saved
        for leftover in self.directory.glob(".step_*"):  # of a process that was killed while it saved
            remove(leftover)

    def save(self, step: int, files: Mapping[str, Tensors], manifest: Mapping[str, Any]) -> None:
        self.wait()
        copies = copy_to_host(files), deepcopy({"step": step, **manifest})
        arguments = (self.directory / f"step_{step:08d}", *copies)
        self._thread = threading.Thread(target=self._work, args=arguments, name="checkpoint")
        self._thread.start()

    def _work(self, *arguments) -> None:
        try:
            self._saved = write(*arguments).step
            self._prune()
        except BaseException as error:  # noqa: BLE001 (raised again by wait)
            self._error = error

    def record(self, step: int, metrics: Mapping[str, float | None], evaluations: Sequence[Mapping[str, Any]]) -> None:
        """Adds the evaluation of a checkpoint that was saved before to its manifest."""
        self.wait()
        directory = self.directory / f"step_{step:08d}"
        training = read(directory).manifest["training"] | {"evaluations": list(evaluations)}
        amend(directory, metrics=dict(metrics), training=training)
        self._prune()

    def has(self, step: int) -> bool:
        """Whether the checkpoint that was written last is that of ``step``, once none is being written."""
        if self._thread is not None:
            self._thread.join()
        return self._saved == step

    def wait(self) -> None:
        """Until the last save is on disk. Raises CheckpointError if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _prune(self) -> None:
        scores = {}
        for directory in available(self.directory.parent):
            try:
                scores[directory] = read(directory).metrics.get("AP")
            except CheckpointError:
                scores[directory] = None
        keep = set(list(scores)[-self.keep :])
        scored = [directory for directory, score in scores.items() if score is not None]
        if scored:
            keep.add(max(scored, key=lambda directory: (scores[directory], directory.name)))
        for directory in scores.keys() - keep:
            gone = directory.with_name(f".{directory.name}.{os.getpid()}.old")
            directory.rename(gone)  # so that an interrupted removal never looks like a checkpoint
            remove(gone)


def copy_to_host(files: Mapping[str, Tensors]) -> dict[str, dict[str, Tensor]]:
    """Copies that training does not change any more, aliases kept; waits for the device once."""
    copies: dict[tuple, Tensor] = {}
    on_gpu = False

    def copy(tensor: Tensor) -> Tensor:
        nonlocal on_gpu
        key = identity(tensor)
        if key not in copies:
            if tensor.is_cuda:
                on_gpu = True
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copies[key] = host.copy_(tensor.detach(), non_blocking=True)
            else:
                copies[key] = tensor.detach().clone(memory_format=torch.contiguous_format)
        return copies[key]

    result = {name: {key: copy(tensor) for key, tensor in tensors.items()} for name, tensors in files.items()}
    if on_gpu:
        torch.cuda.synchronize()
    return result
