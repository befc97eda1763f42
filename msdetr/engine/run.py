"""A run directory: one process at a time, plain files that say at any moment how the run stands.

runs/NAME/ config.yaml, data.json, metrics.jsonl, results.json, checkpoints/, figures/, tensorboard/ if asked for
"""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from pathlib import Path
from typing import Any, Self

from .. import files
from ..config import RunConfig
from ..errors import CheckpointError, FileError, MSDETRError, RunDirectoryError, Terminated
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
        except (OSError, MSDETRError):
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
        """Raises WriteError."""
        if self.world.main:
            config.save(self.path / "config.yaml")

    def write_data_location(self, config: RunConfig, place: str | Path) -> None:
        """Writes down where the data set of a configuration is; see ``location``."""
        if self.world.main:
            files.write_json(self.path / location.RECORD, location.record(self.path, config, place))

    def results(self) -> dict[str, Any]:
        """What results.json says, {} where there is none. Raises CheckpointError where it is damaged."""
        return read_results(self.path)

    def write_results(self, **values: Any) -> dict[str, Any]:
        """Updates results.json, whole or not at all. Raises WriteError, and CheckpointError where it is damaged."""
        results = self.results() | values
        if self.world.main:
            files.write_json(self.path / "results.json", results)
        return results

    def log(self, kind: str, **values: Any) -> None:
        """Appends a line to metrics.jsonl. Raises WriteError; no part of the line is then left."""
        if self.world.main:
            files.append_json_line(self.path / "metrics.jsonl", {"kind": kind, **values})
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
        for line in files.read_bytes(path, RunDirectoryError).splitlines(keepends=True):
            try:
                if files.parse_json(line, path)["step"] <= step and line.endswith(b"\n"):
                    kept.append(line)
            except (FileError, KeyError, TypeError):
                continue  # a line that was being written when the process was killed
        files.write_atomically(path, b"".join(kept))


STATUSES = ("running", "finished", "failed", "interrupted", "terminated")


def read_results(run_dir: str | Path) -> dict[str, Any]:
    """What a run's results.json says, {} where there is none. Raises CheckpointError where a part of it cannot be."""
    path = Path(run_dir, "results.json")
    if not path.exists():
        return {}
    results = files.read_json(path, CheckpointError)
    problem = None
    if not isinstance(results, dict):
        problem = f"holds a {type(results).__name__}, not an object"
    elif results.get("status", "running") not in STATUSES:
        problem = f"status is {str(results['status'])[:80]!r}, not one of {', '.join(STATUSES)}"
    elif results.get("status") == "finished" and not isinstance(results.get("metrics"), dict):
        problem = "is of a finished run, but has no metrics"
    else:
        for name, (kinds, expected) in _RESULTS.items():
            if not isinstance(results.get(name), (*kinds, type(None))) or isinstance(results.get(name), bool):
                problem = f"{name} is {str(results[name])[:80]!r}, not {expected}"
        for section in ("metrics", "best"):
            for name, value in (results.get(section) or {}).items() if problem is None else ():
                if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
                    problem = f"{section}.{name} is {str(value)[:80]!r}, not a number"
    if problem is not None:
        raise CheckpointError(
            f"{path}: {problem}; move this file away, and a run that resumes writes it anew from its checkpoints"
        )
    return results


_RESULTS = {
    **{name: ((dict,), "an object") for name in ("metrics", "best", "parameters", "init_from")},
    **{name: ((int,), "a whole number") for name in ("steps", "seed", "world_size")},
    **{name: ((int, float), "a number") for name in ("epochs", "seconds")},
    **{name: ((str,), "text") for name in ("error", "recipe", "device", "torch")},
    **{name: ((list,), "a list") for name in ("evaluations", "class_names", "image_remarks")},
}
