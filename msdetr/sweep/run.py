"""Training the cells of a study: several at once, each in a process of its own, finished ones never again.

A sweep's folder: cells/NAME.json, a file per finished cell; runs/NAME/, the run directories, with what their processes
wrote in log.txt. A cell is finished once its file is there, and it gets there whole or not at all. Whoever trains a cell
holds its lock, so two sweeps of one study share the work.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from .. import course, files
from ..analysis.cells import Cell
from ..engine import train
from ..engine.launch import is_reason
from ..engine.run import LOCK, read_results
from ..engine.signals import StopRequest
from ..errors import FileError, MSDETRError, RunError
from ..lock import FileLock, InUse, LockError
from ..notebook import require_papermill, run_notebook
from ..processes import end_with_parent
from .study import PlannedCell, Study, digests_once, kept

IN_USE = 75  # exit status of a process whose cell another one holds (EX_TEMPFAIL)
CELL_LOCK = ".cell.lock"
LET_GO_SECONDS = 60  # for a notebook's kernel to notice that its process was killed
POLL_SECONDS = 0.2
TELL_SECONDS = 60


class CellInUse(SystemExit):
    """Another process trains this cell. Exits with 75."""

    def __init__(self, message: str):
        super().__init__(IN_USE)
        self.message = message


@dataclass(frozen=True)
class SweepStatus:
    """How many cells a study has, how many of them are finished, and why others failed."""

    total: int
    finished: int
    failures: dict[str, str]


# ---------------------------------------------------------------- one cell, in this process


def run_cell(study: Study, cell: PlannedCell, out: str | Path, device: str = "auto", progress: bool = True) -> Cell:
    """Trains a cell, going on from its last checkpoint, measures and keeps it; a finished one is returned as it is.

    Raises CellInUse where another process holds it, LockError where it cannot be held, Terminated or KeyboardInterrupt
    once all is saved, and what training and notebooks raise.
    """
    out = Path(out).absolute()
    folder, cells = out / "runs" / cell.name, out / "cells"
    for place in (folder, cells):
        files.make_folder(place)
    try:
        lock = FileLock(folder / CELL_LOCK)
    except InUse as error:
        raise CellInUse(f"{cell.name}: {error.owner} is at it") from None
    try:
        if (found := kept(cell, cells)) is not None:
            return found
        FileLock(folder / LOCK, patience=LET_GO_SECONDS).close()  # a kernel that outlived its process ends first
        if study.run == "train":
            train(cell.config, folder, device, progress=progress)
        else:
            values = {
                "recipe": cell.source,
                "overrides": cell.overrides,
                "seed": cell.seed,
                "data": str(cell.folder),
                "device": device,
                "runs": str(folder.parent),
                "run_name": cell.name,
            }
            run_notebook(course.find("05_train"), folder / "05_train.ipynb", values, progress)
        found = Cell.of_run(folder, device)
        found.save(cells / f"{cell.name}.json")
        return found
    finally:
        lock.close()


# ---------------------------------------------------------------- all cells, in processes of their own


def default_jobs(device: str) -> int:
    """Cells at once: one per GPU, or one per core, eight at most."""
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return torch.cuda.device_count()
    return 1 if device.startswith("cuda") else max(1, min(os.cpu_count() or 1, 8))


def run_study(
    study: Study,
    out: str | Path,
    jobs: int | None = None,
    device: str = "auto",
    say: Callable[[str], None] | None = None,
) -> SweepStatus:
    """Trains the cells that are not finished, ``jobs`` at a time (default: see ``default_jobs``); ``say`` is told what happens.

    A cell that fails does not stop the others. Started again after whatever end, it trains no finished cell and goes on
    with the others where they stopped. Raises Terminated or KeyboardInterrupt, once all processes have saved, where a signal
    asked for it, RunError where a finished cell is of other settings, and ConfigError where notebooks are to run and papermill
    is missing.
    """
    say = say or (lambda text: None)
    out, planned = Path(out).absolute(), study.cells()
    files.make_folder(out / "cells")
    digests = digests_once()
    waiting = [cell for cell in planned if kept(cell, out / "cells", digests) is None]
    if waiting and study.run == "notebook":
        require_papermill()
    say(f"{study.title}: {len(planned) - len(waiting)} of {len(planned)} cells are finished")
    jobs = min(jobs or default_jobs(device), max(len(waiting), 1))
    free, failures = list(range(jobs)), {}
    running: dict[int, _Process] = {}
    told = time.monotonic()
    with StopRequest() as stop:
        try:
            while (waiting or running) and not stop.requested:
                for cell in list(waiting):
                    if not free:
                        break
                    if _is_held(out / "runs" / cell.name / CELL_LOCK):
                        continue
                    waiting.remove(cell)
                    slot = free.pop(0)
                    running[slot] = _Process(study, cell, out, device, slot, jobs)
                    say(f"{cell.name}: {running[slot].where()}")
                for slot, process in list(running.items()):
                    status = process.poll()
                    if status is None:
                        continue
                    free.append(slot)
                    del running[slot]
                    if status == IN_USE:
                        waiting.append(process.cell)
                    elif status == 0 and kept(process.cell, out / "cells", digests) is not None:
                        say(f"{process.cell.name}: finished; {finished_cells(planned, out)} of {len(planned)} cells")
                    else:
                        failures[process.cell.name] = process.reason(status)
                        say(f"{process.cell.name}: failed: {failures[process.cell.name]}")
                if time.monotonic() - told > TELL_SECONDS:
                    told = time.monotonic()
                    say(
                        "; ".join(f"{process.cell.name}: {process.where()}" for process in running.values())
                        or "waiting"
                    )
                waiting = [cell for cell in waiting if not (out / "cells" / f"{cell.name}.json").exists()]
                time.sleep(POLL_SECONDS)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
        if stop.requested:
            done = f"{finished_cells(planned, out)} of {len(planned)} cells are finished"
            raise stop.exit(f"stopped and saved, {done}; start it again to go on")
    return SweepStatus(len(planned), finished_cells(planned, out), failures)


def finished_cells(planned: list[PlannedCell], out: Path) -> int:
    """How many of them are finished."""
    return sum((out / "cells" / f"{cell.name}.json").exists() for cell in planned)


def _is_held(path: Path) -> bool:
    """Whether another process holds a lock. Of one that cannot be had the cell's own process says why."""
    if not path.exists():
        return False
    try:
        FileLock(path, patience=0).close()
    except InUse:
        return True
    except LockError:
        pass
    return False


class _Process:
    """One cell in a process of its own, which ends with this one."""

    def __init__(self, study: Study, cell: PlannedCell, out: Path, device: str, slot: int, jobs: int):
        self.cell, self.folder = cell, out / "runs" / cell.name
        files.make_folder(self.folder)
        threads = max(1, (os.cpu_count() or 1) // jobs)
        environment = {"OMP_NUM_THREADS": str(threads), "MSDETR_PROGRESS": "lines"} | os.environ
        if device in ("auto", "cuda") and torch.cuda.is_available():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            devices = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
            environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
        command = [sys.executable, "-m", "msdetr", "sweep", str(study.path.absolute()), "--out", str(out)]
        self.log = self.folder / "log.txt"
        with self.log.open("ab") as log:
            self._from = log.tell()
            self._process = subprocess.Popen(
                [*command, "--only", cell.name, "--device", device],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the sweep, which then asks its processes to stop
                preexec_fn=_end_with_sweep,  # noqa: PLW1509 (one system call, looked up before)
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        if self.poll() is None:
            self._process.terminate()

    def wait(self) -> None:
        self._process.wait()

    def where(self) -> str:
        """How far it is, in words."""
        try:
            lines = files.read_bytes(self.folder / "metrics.jsonl").splitlines()
            last = files.parse_json(lines[-1], self.folder)
            return f"epoch {last['epoch']:.2f}" if "epoch" in last else f"step {last['step']}"
        except (FileError, OSError, IndexError, KeyError, TypeError):
            return "starts"

    def reason(self, status: int) -> str:
        """Why it failed: the last thing it said of that kind, else its exit status."""
        said = [line for line in self._said() if is_reason(line)]
        text = said[-1].removeprefix("msdetr: ") if said else f"exit status {status}"
        if not said:
            try:
                text = (read_results(self.folder).get("error") or text).splitlines()[0]
            except MSDETRError:
                pass
        return f"{text} (see {self.log})"

    def _said(self) -> list[str]:
        with self.log.open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace").splitlines()


def _end_with_sweep() -> None:
    end_with_parent(signal.SIGTERM)


def require_finished(status: SweepStatus) -> None:
    """Raises RunError naming the cells that failed."""
    if status.failures:
        failed = "\n".join(f"  {name}: {reason}" for name, reason in status.failures.items())
        raise RunError(
            f"{status.finished} of {status.total} cells are finished, {len(status.failures)} failed:\n{failed}\n"
            "Started again, the sweep tries them again"
        )
