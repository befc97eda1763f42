"""Reading through data workers: they end with the process that trains, and the wait for them ends, too."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Self

from torch.utils.data import DataLoader

from ..errors import MSDETRError, WorkerError
from ..processes import end_with_parent

SHARED_MEMORY = "/dev/shm"
SLACK_SECONDS = 1  # after PyTorch's own timeout, which ends most waits, without ending the workers
SIGNS_OF_LITTLE_SHARED_MEMORY = ("shared memory", "</torch_", "Bus error")
SIGNS_OF_FEW_FILES = ("Too many open files", "ancdata")
REMEDY = "It may have run out of memory: lower data.workers or data.max_size, switch data.cache off; then resume"


def start_worker(worker: int) -> None:
    """Prepares a data worker: the process that trains decides when to stop, and its workers end when it does."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end_with_parent()


class WorkerLoader(DataLoader):
    """A loader whose workers (see ``start_worker``) end when Python exits, also if they are still being read from then:
    multiprocessing would ask them with a SIGTERM, which they ignore, and wait for ever."""

    def __iter__(self) -> Iterator[Any]:
        before = set(multiprocessing.active_children())
        batches = super().__iter__()
        _running.update(dict.fromkeys(set(multiprocessing.active_children()) - before, os.getpid()))
        return batches


_running: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # data worker -> who started it


@atexit.register
def _end_workers() -> None:
    alive = [worker for worker, owner in _running.items() if owner == os.getpid() and worker.is_alive()]
    if alive:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # PyTorch's handler calls the death of a worker an error
    for worker in alive:
        worker.kill()


_on_child_end: Any = signal.SIG_DFL  # PyTorch's, set once: raises, at whatever line, where a worker died


class Reader:
    """Reads the batches of a loader, one after the other; its workers are gone when the ``with`` block ends.

    waiting: makes a context that each wait for a batch happens in, e.g. ``StopRequest.interrupting``.

    Raises WorkerError where a worker died, did not answer for the loader's ``timeout`` or could not be started. The
    death of a worker is reported while its data are waited for, never in the middle of other work.
    """

    def __init__(self, loader: DataLoader, waiting: Callable[[], AbstractContextManager] = contextlib.nullcontext):
        self._loader, self._waiting = loader, waiting
        self.workers: list[Any] = []  # processes
        self._gave_up = False
        self._death: WorkerError | None = None  # before it gave up, and ended all workers
        self._in_main_thread = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        global _on_child_end
        before = set(multiprocessing.active_children())
        try:
            self._batches = iter(self._loader)
        except OSError as error:
            raise WorkerError(
                f"{self._loader.num_workers} data workers cannot be started ({error}); lower data.workers"
            ) from error
        self.workers = [process for process in multiprocessing.active_children() if process not in before]
        self._found = signal.getsignal(signal.SIGCHLD)
        if self.workers and callable(self._found):  # not so inside another Reader, which does not listen now
            _on_child_end = self._found
        self._listen(False)
        return self

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            with self._waiting(), self._listening():
                if death := self._dead_worker():
                    raise death
                with self._time_limit():
                    return next(self._batches)
        except MSDETRError as error:
            raise _as_raised_in_worker(error) from None
        except (RuntimeError, OSError, EOFError) as error:
            raise self._explained(error) from error

    def __exit__(self, kind, error, traceback) -> None:
        if kind is not None:  # one of them may be why: do not wait for it
            for worker in self.workers:
                worker.kill()
            for worker in self.workers:
                worker.join(10)
        self._batches = None  # ends the workers that are left
        if self.workers and self._in_main_thread:
            signal.signal(signal.SIGCHLD, self._found)

    @contextlib.contextmanager
    def _time_limit(self) -> Iterator[None]:
        """Ends the workers where the block takes longer than they may. PyTorch's own timeout is not enough: a worker that
        stops just after it announced a batch is waited for without one, while the memory of the batch is handed over."""
        if not self.workers or not self._loader.timeout:
            yield
            return
        timer = threading.Timer(self._loader.timeout + SLACK_SECONDS, self._give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _give_up(self) -> None:
        self._gave_up, self._death = True, self._dead_worker()
        for worker in self.workers:
            worker.kill()

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        self._listen(True)
        try:
            yield
        finally:
            self._listen(False)

    def _listen(self, wanted: bool) -> None:
        if self.workers and self._in_main_thread:
            signal.signal(signal.SIGCHLD, _on_child_end if wanted else signal.SIG_DFL)

    def _dead_worker(self) -> WorkerError | None:
        """The error that says which worker died, None where none did."""
        for worker in self.workers:
            if worker.exitcode:
                how = (
                    f"killed by signal {-worker.exitcode}" if worker.exitcode < 0 else f"exit status {worker.exitcode}"
                )
                return WorkerError(f"a data worker died (process {worker.pid}, {how}). {REMEDY}")
        return None

    def _explained(self, error: Exception) -> Exception:
        """Makes a WorkerError of what PyTorch says about its workers; any other error as it is."""
        text = str(error)
        if self._gave_up or "timed out after" in text:
            if death := self._death if self._gave_up else self._dead_worker():
                return death
            return WorkerError(
                f"no data worker answered for {self._loader.timeout:g} s (data.worker_timeout). Either reading is that slow "
                "(a network drive), or a worker is stuck, or shared memory, through which workers hand over images, is "
                f"full ({_shared_memory()}): give it more (docker run --shm-size=8g), lower data.workers or set it to 0, or "
                "raise data.worker_timeout; then resume"
            )
        if any(sign in text for sign in SIGNS_OF_LITTLE_SHARED_MEMORY):
            return WorkerError(
                f"shared memory, through which data workers hand over images, is too small ({_shared_memory()}): give it "
                f"more (docker run --shm-size=8g), lower data.workers or set it to 0; then resume. ({_last_line(text)})"
            )
        if any(sign in text for sign in SIGNS_OF_FEW_FILES):
            return WorkerError(
                f"too many open files: raise the limit (ulimit -n 65536) or lower data.workers. ({_last_line(text)})"
            )
        if isinstance(error, (EOFError, ConnectionError)) and "Original Traceback" not in text:
            return WorkerError(f"a data worker died while it handed over a batch ({type(error).__name__}). {REMEDY}")
        if "DataLoader worker" in text and "Original Traceback" not in text or "Pin memory thread" in text:
            return WorkerError(f"a data worker died ({_last_line(text)}). {REMEDY}")
        return error


def _as_raised_in_worker(error: MSDETRError) -> MSDETRError:
    """Restores the error as the worker raised it: PyTorch puts the worker's traceback into the message."""
    text = str(error)
    if "Original Traceback" not in text:
        return error
    name = f"{type(error).__module__}.{type(error).__qualname__}: "  # as the traceback has it, at the start of a line
    return type(error)(text.rpartition(f"\n{name}")[2].strip())


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def _shared_memory() -> str:
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return f"there is no {SHARED_MEMORY}"
    return f"{SHARED_MEMORY} has {usage.free / 2**20:.0f} of {usage.total / 2**20:.0f} MiB free"
