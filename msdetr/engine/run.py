"""A run directory: one process at a time, plain files that say at any moment how the run stands.

runs/NAME/ config.yaml, data.json, metrics.jsonl, results.json, checkpoints/, figures/, tensorboard/ if asked for
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
from pathlib import Path
from typing import Any, Self

from ..config import RunConfig
from ..errors import RunDirectoryError, Terminated
from . import location
from .distributed import ALONE, World
from .tensorboard import EventFiles


class RunDirectory:
    """Holds a run directory for as long as the ``with`` block lasts. Only rank 0 of ``world`` writes.

    results.json says ``status``: running, finished, failed, interrupted or terminated; a process that is killed leaves
    "running" behind and frees the directory. Raises RunDirectoryError where the directory cannot be written or is
    held by another process.
    """

    def __init__(self, path: str | Path, world: World = ALONE):
        self.path = Path(path)
        self.world = world
        self._lock = None
        self._events: EventFiles | None = None

    def __enter__(self) -> Self:
        # every rank learns whether rank 0 got hold of it
        self.world.on_main(self._acquire)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if not self.world.main or self._lock is None:
            return
        try:
            if error is not None:
                status = "failed"
                if isinstance(error, Terminated):
                    status = "terminated"
                elif isinstance(error, KeyboardInterrupt):
                    status = "interrupted"
                self.write_results(status=status, error=f"{kind.__name__}: {error}".rstrip(": "))
        except OSError:
            pass  # the disk may be what failed; the error itself goes on
        finally:
            if self._events:
                self._events.close()
            self._lock.close()  # frees the lock
            self._lock = None

    def _acquire(self) -> None:
        try:
            for folder in (self.path, self.path / "checkpoints", self.path / "figures"):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(b"writable?")
            lock = open(self.path / ".lock", "a+")  # noqa: SIM115 (open as long as the run)
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path}: cannot be written ({error.strerror or error}); give another run directory or make room"
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise RunDirectoryError(
                f"{self.path}: in use by {owner}; two runs in one directory would overwrite each other: wait for it or "
                "give this one another name"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        self._lock = lock

    def write_config(self, config: RunConfig) -> None:
        if self.world.main:
            config.save(self.path / "config.yaml")

    def write_data_location(self, config: RunConfig, place: str | Path) -> None:
        """Writes down where the data set of a configuration is; see ``location``."""
        if self.world.main:
            write_json(self.path / location.RECORD, location.record(self.path, config, place))

    def results(self) -> dict[str, Any]:
        """What results.json says, {} where there is none."""
        try:
            return json.loads((self.path / "results.json").read_text())
        except (OSError, ValueError):
            return {}

    def write_results(self, **values: Any) -> dict[str, Any]:
        """Updates results.json, whole or not at all."""
        results = self.results() | values
        if self.world.main:
            write_json(self.path / "results.json", results)
        return results

    def log(self, kind: str, **values: Any) -> None:
        """Appends a line to metrics.jsonl."""
        if self.world.main:
            with open(self.path / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"kind": kind, **values}) + "\n")
        if self._events:
            self._events.add(kind, values["step"], values)

    def log_to_tensorboard(self, step: int) -> None:
        """From ``step`` on what is logged also goes to event files."""
        if self.world.main:
            self._events = EventFiles(self.path / "tensorboard", step)

    def forget_after(self, step: int) -> None:
        """Drops the lines of metrics.jsonl beyond a step: a resumed run writes them again."""
        path = self.path / "metrics.jsonl"
        if not self.world.main or not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                continue  # a line that was being written when the process was killed
        _replace(path, "".join(kept))


def write_json(path: Path, values: Any) -> None:
    _replace(path, json.dumps(values, indent=1) + "\n")


def _replace(path: Path, text: str) -> None:
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    staging.write_text(text)
    staging.replace(path)
