"""A run directory: one process at a time, plain files that say at any moment how the run stands.

runs/NAME/ config.yaml, data.json, metrics.jsonl, results.json, checkpoints/, figures/, README.md (the model card, once it is
finished), tensorboard/ if asked for, held_out.txt where validation images had to be chosen
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from .. import files
from ..config import RunConfig
from ..errors import CheckpointError, FileError, MSDETRError, RunDirectoryError, Terminated
from ..lock import FileLock, InUse, LockError
from . import checkpoint as checkpoints
from . import location
from .card import CARD, forget_candidates
from .distributed import ALONE, World
from .tracking import Tracker

LOCK = ".lock"


class RunDirectory:
    """Holds a run directory for as long as the ``with`` block lasts. Only rank 0 of ``world`` writes.

    results.json says ``status``: running, finished, failed, interrupted or terminated; a process that is killed leaves
    "running" behind and frees the directory; a start that is refused before ``begin`` leaves what it says. Raises
    RunDirectoryError where the directory cannot be written, is held by another process, or is no longer the one that this
    process holds: nothing is written then.
    """

    def __init__(self, path: str | Path, world: World = ALONE):
        self.path = Path(path).absolute()  # wherever the process stands later on
        self.world = world
        self._lock: FileLock | None = None
        self._began = False
        self._trackers: list[Tracker] = []
        self.notes: list[str] = []  # to be told to the person who started the run

    def __enter__(self) -> Self:
        # every rank learns whether rank 0 got hold of it
        self.world.on_main(self._acquire)
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if not self.world.main or self._lock is None:
            return
        status = "finished"
        try:
            if error is not None:
                status = "failed"
                if isinstance(error, Terminated):
                    status = "terminated"
                elif isinstance(error, KeyboardInterrupt):
                    status = "interrupted"
                if self._began:
                    self.write_results(status=status, error=described(error))
        except (OSError, MSDETRError):
            pass  # the disk may be what failed; the error itself goes on
        finally:
            for tracker in self._trackers:
                tracker.close(status)
            self._lock.close()
            self._lock = None

    def _acquire(self) -> None:
        try:
            for folder in (self.path, self.path / "checkpoints", self.path / "figures"):
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as probe:
                    probe.write(b"writable?")
            self._lock = FileLock(self.path / LOCK)
        except InUse as error:
            raise RunDirectoryError(
                f"{self.path}: in use by {error.owner}; two runs in one directory would overwrite each other: wait for it "
                "or give this one another name"
            ) from None
        except LockError as error:
            raise RunDirectoryError(str(error)) from error
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path}: cannot be written ({error.strerror or error}); give another run directory or make room"
            ) from error

    def check(self) -> None:
        """Raises RunDirectoryError where the directory is no longer the one that this process holds."""
        if self._lock is not None and not self._lock.is_held():
            raise RunDirectoryError(
                f"{self.path}: was deleted, moved or replaced while the run was going on (its {LOCK} is not the one that was "
                "locked). Nothing more is written, lest two runs meet in it. Put it back where it was, or name its new place, "
                "and start again: the run goes on from its last checkpoint"
            )

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[Path]:
        self.check()
        path = self.path / name
        try:
            yield path
        except OSError as error:
            raise files.write_error(path, error) from error

    def begin(self, config: RunConfig, step: int) -> None:
        """Starts, or goes on, after ``step`` steps: what is there of later ones, e.g. of a start that was killed, is gone."""
        if not self.world.main:
            return
        self._began = True
        if step == 0:
            for name in ("metrics.jsonl", "results.json", CARD):
                with self._writing(name) as path:
                    path.unlink(missing_ok=True)
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        for pattern, first in (("matching/step_*.npz", step + (step > 0)), ("failed_step_*.json", step)):
            for file in self.path.glob(pattern):
                if (number := re.search(r"step_(\d+)", file.name)) and int(number[1]) >= first:
                    file.unlink(missing_ok=True)
        forget_candidates(self.path, step + (step > 0))
        self.write_config(config)

    def owns(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is one of this run, by whatever path it is named."""
        return any(own.exists() and own.samefile(checkpoint) for own in checkpoints.available(self.path))

    def set_aside(self, abandoned: Sequence[Path], step: int) -> None:
        """Moves checkpoints that the run abandons, as it goes on from ``step`` again, to ``abandoned_1`` (or 2, 3, ...), with
        copies of the files that tell about them: a run directory of its own. Raises WriteError."""
        number = next(i for i in itertools.count(1) if not (self.path / f"abandoned_{i}").exists())
        with self._writing(f"abandoned_{number}") as folder:
            (folder / "checkpoints").mkdir(parents=True)
            for name in ("config.yaml", location.RECORD, "metrics.jsonl", "results.json"):
                if (self.path / name).exists():
                    shutil.copy2(self.path / name, folder / name)
            if (self.path / "matching").is_dir():
                shutil.copytree(self.path / "matching", folder / "matching")
            for checkpoint in abandoned:
                checkpoint.rename(folder / "checkpoints" / checkpoint.name)
        steps = ", ".join(str(int(checkpoint.name.removeprefix("step_"))) for checkpoint in abandoned)
        self.notes.append(
            f"{self.path.name}: goes on from step {step}; its checkpoints of step {steps}, which are not its own any more, are "
            f"in {folder}"
        )

    def write_config(self, config: RunConfig) -> None:
        """Raises WriteError."""
        if self.world.main:
            with self._writing("config.yaml") as path:
                config.save(path)

    def keep_lines(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Keeps only some lines of metrics.jsonl; a line cut short, as its process was killed, goes as well."""
        path = self.path / "metrics.jsonl"
        if not self.world.main or not path.exists():
            return
        kept = []
        for line in files.read_bytes(path, RunDirectoryError).splitlines(keepends=True):
            with contextlib.suppress(FileError, KeyError, TypeError):
                if line.endswith(b"\n") and wanted(files.parse_json(line, path)):
                    kept.append(line)
        with self._writing("metrics.jsonl"):
            files.write_atomically(path, b"".join(kept))

    def write_data_location(self, config: RunConfig, place: str | Path) -> None:
        """Writes down where the data set of a configuration is; see ``location``."""
        if self.world.main:
            with self._writing(location.RECORD) as path:
                files.write_json(path, location.record(self.path, config, place))

    def write_lines(self, name: str, lines: Sequence[str]) -> None:
        """Writes a text file. Raises WriteError."""
        if self.world.main:
            with self._writing(name) as path:
                files.write_atomically(path, "".join(f"{line}\n" for line in lines))

    def results(self) -> dict[str, Any]:
        """What results.json says, {} where there is none. Raises CheckpointError where it is damaged."""
        return read_results(self.path)

    def write_results(self, **values: Any) -> dict[str, Any]:
        """Updates results.json, whole or not at all, and returns what it says; {} on other ranks, who leave it alone.

        Raises WriteError, and CheckpointError where it is damaged.
        """
        if not self.world.main:
            return {}
        results = self.results() | values
        with self._writing("results.json") as path:
            files.write_json(path, results)
        return results

    def log(self, kind: str, **values: Any) -> None:
        """Appends a line to metrics.jsonl. Raises WriteError; no part of the line is then left."""
        if self.world.main:
            with self._writing("metrics.jsonl") as path:
                files.append_json_line(path, {"kind": kind, **values})
        for tracker in self._trackers:
            tracker.add(kind, values["step"], values)

    def log_also_to(self, tracker: Tracker) -> None:
        """What is logged from now on also goes to ``tracker``, which is closed with the run."""
        self._trackers.append(tracker)

    def report(self, name: str, values: Any) -> None:
        """Writes a JSON file of this rank, e.g. about a step that failed."""
        with self._writing(name) as path:
            files.write_json(path, values)


def described(error: BaseException) -> str:
    """An error in a line or two: its kind, what it says, and where it happened."""
    lines = [f"{type(error).__name__}: {error}".rstrip(": "), *getattr(error, "__notes__", ())]
    return "\n".join(lines)


def mark_failed(folder: Path, error: str) -> None:
    """Says in the results.json of a run directory that the run failed, where it still says that it is running. A run
    that goes on in another process, or has ended, keeps its records, and any other folder is left as it is."""
    with contextlib.suppress(MSDETRError, OSError):
        if (folder / "config.yaml").exists() and read_results(folder).get("status") == "running":
            with RunDirectory(folder) as run:
                if run.results().get("status") == "running":  # it may have ended in between
                    run.write_results(status="failed", error=error)


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
        for section in ("metrics", "best", "per_class"):
            for name, value in (results.get(section) or {}).items() if problem is None else ():
                if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
                    problem = f"{section}.{name} is {str(value)[:80]!r}, not a number"
        for section, names in _PARTS.items() if problem is None else ():
            if results.get(section) is not None and (missing := set(names) - set(results[section])):
                problem = f"{section} has no {', '.join(sorted(missing))}"
        if problem is None and results.get("data") is not None:
            problem = _problem_of_data(results["data"])
    if problem is not None:
        raise CheckpointError(
            f"{path}: {problem}; move this file away, and a run that resumes writes it anew from its checkpoints"
        )
    return results


_RESULTS = {
    **{
        name: ((dict,), "an object")
        for name in ("metrics", "best", "per_class", "data", "parameters", "init_from", "stopped_early", "mlflow")
    },
    **{name: ((int,), "a whole number") for name in ("steps", "seed", "world_size", "micro_batch")},
    **{name: ((int, float), "a number") for name in ("epochs", "seconds")},
    **{name: ((str,), "text") for name in ("error", "recipe", "device", "torch")},
    **{name: ((list,), "a list") for name in ("evaluations", "class_names", "image_remarks")},
}
_PARTS = {
    "best": ("step", "epoch", "AP"),
    "stopped_early": ("step", "epoch", "text"),
    "data": ("name", "train", "val"),
    "parameters": ("total", "trainable"),
}


def _problem_of_data(data: dict[str, Any]) -> str | None:
    """What is wrong with what results.json says of the data, None where nothing is."""
    if not isinstance(data.get("source"), (dict, type(None))):
        return f"data.source is {str(data['source'])[:80]!r}, not an object"
    for role in ("train", "val"):
        found = data[role]
        objects = found.get("objects") if isinstance(found, dict) else None
        if not isinstance(objects, dict) or not {"split", "images"} <= set(found):
            return f"data.{role} is {str(found)[:80]!r}, not an object with split, images and objects"
        for count in (found["images"], *objects.values()):
            if type(count) is not int:
                return f"data.{role} has {str(count)[:80]!r} where a whole number should be"
    return None
