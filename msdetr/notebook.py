"""Notebooks as runs: papermill's parameters checked and turned into a configuration, and a runner that tells the truth.

papermill assigns whatever it is given, under any name: a mistyped parameter changes nothing and a wrong type surprises
much later. ``parameters`` and ``check_parameters`` stop the run instead.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import environment
from .config import RunConfig, nearest
from .errors import ConfigError, NotebookError, Terminated
from .lock import FileLock, InUse, LockError
from .recipes import requested
from .recipes import run_name as default_name

ROOT_VARIABLE = "MSDETR_ROOT"
START_SECONDS = 600  # for a kernel to start: on a busy machine or a network drive, importing takes minutes


def project_root() -> Path:
    """The folder that holds a project's ``data/`` and ``runs/``, wherever a notebook was started.

    The folder that the environment variable MSDETR_ROOT names; else the nearest one, from the current folder upwards, whose
    ``notebooks/`` holds numbered notebooks; else the source tree that this package is imported from, if it has them; else the
    current folder. Raises ConfigError where MSDETR_ROOT is no folder.
    """
    if named := environment.text(ROOT_VARIABLE):
        if not Path(named).is_dir():
            raise ConfigError(f"{ROOT_VARIABLE}: {named!r} is no folder; name the one that holds data/ and runs/")
        return Path(named).absolute()
    here, sources = Path.cwd(), Path(__file__).resolve().parents[1]
    for folder in (here, *here.parents, sources):
        if any((folder / "notebooks").glob("[0-9][0-9]_*.ipynb")):
            return folder
    return here


@dataclass(frozen=True)
class NotebookRun:
    """What a training notebook was asked for."""

    config: RunConfig
    run_dir: Path
    device: str = "auto"


def parameters(
    recipe: str = "shapes/ms-detr-c",
    data: str | None = None,
    epochs: float | str | None = None,
    seed: int | str | None = None,
    device: str = "auto",
    overrides: Mapping[str, Any] | str | None = None,
    run_name: str | None = None,
    runs: str | Path = "runs",
    **unknown: Any,
) -> NotebookRun:
    """The configuration a notebook's parameters ask for. Empty text and None mean: as the recipe says.

    recipe: a recipe's name or a .yaml file. data: folder with the data set. overrides: ``{"train.lr": 1e-4}`` or text as
    in a shell, ``"train.lr=1e-4 ms_detr.variant=d"``. run_name: the folder under ``runs``; recipe and seed by default.

    Raises ConfigError for an unknown parameter or recipe, a wrong type or a value out of range.
    """
    if unknown:
        known = [name for name in inspect.signature(parameters).parameters if name != "unknown"]
        name = next(iter(unknown))
        raise ConfigError(f"parameter '{name}': unknown; {nearest(name, known)}")
    _expect(recipe, str, "recipe")
    config = requested(recipe, data, epochs, seed, overrides)
    _expect(device, str, "device")
    if run_name is not None:
        _expect(run_name, str, "run_name")
        if Path(run_name).is_absolute() or ".." in Path(run_name).parts:
            raise ConfigError(f"run_name: {run_name!r} must be the name of a folder under {runs}")
    return NotebookRun(config, Path(runs) / (run_name or default_name(recipe, config)), device or "auto")


def _expect(value: Any, kind: type, name: str) -> None:
    if not isinstance(value, kind):
        raise ConfigError(f"parameter '{name}': expected text, got {value!r}")


FROM_PAPERMILL = ("PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH")  # what its own --inject-paths gives a notebook


def check_parameters(namespace: Mapping[str, Any], known: Iterable[str]) -> None:
    """Raises ConfigError if papermill injected a variable that the notebook does not know.

    namespace: the notebook's ``globals()``. known: the names of its parameters. By hand, without papermill, all is well.
    """
    known = list(known)
    for source in namespace.get("In", ()):
        if not source.lstrip().startswith("# Parameters"):
            continue
        with contextlib.suppress(SyntaxError):
            for node in ast.parse(source).body:
                for target in node.targets if isinstance(node, ast.Assign) else ():
                    if isinstance(target, ast.Name) and target.id not in known and target.id not in FROM_PAPERMILL:
                        raise ConfigError(f"papermill parameter '{target.id}': unknown; {nearest(target.id, known)}")


def require_papermill() -> None:
    """Raises ConfigError where what executes notebooks is not installed."""
    if importlib.util.find_spec("papermill") is None:
        raise ConfigError(
            'executing notebooks needs papermill, which is not installed; pip install "msdetr[notebooks]"'
        )


def run_notebook(
    notebook: str | Path,
    output: str | Path | None = None,
    values: Mapping[str, Any] | None = None,
    progress: bool = True,
    kernel: str | None = None,
) -> Path:
    """Executes a notebook with papermill, its parameters checked beforehand, and verifies that it ran to its end.

    output: the executed notebook, ``runs/NOTEBOOK.ipynb`` of the project by default; kept, as far as it got, when a
    cell fails. A run in the same folder whose results.json still says "running" is then marked as failed.

    Raises ConfigError without papermill and for an unknown parameter (with the nearest), NotebookError naming the cell
    that failed, called ``sys.exit()``, or never ran, and one for a file that is no notebook, or an output that cannot be
    written or that another process is writing. SIGTERM,
    SIGHUP and Ctrl-C go on to the kernel, so that a training saves and stops; then raises Terminated (exit 143), or
    KeyboardInterrupt after Ctrl-C. A second Ctrl-C does not wait for that.
    """
    require_papermill()
    import nbformat
    import papermill

    notebook, values = Path(notebook), dict(values or {})
    if not notebook.is_file():
        raise NotebookError(f"{notebook}: there is no such notebook")
    output = Path(output) if output is not None else project_root() / "runs" / notebook.name
    try:
        known = list(papermill.inspect_notebook(str(notebook)))
    except Exception as error:  # there is no end to what may be in a file
        reason = str(error).partition("\n")[0]
        raise NotebookError(f"{notebook}: is not a Jupyter notebook that can be read: {reason}") from error
    for name in values:
        if name not in known:
            raise ConfigError(f"parameter '{name}': {notebook.name} does not have it; {nearest(name, known)}")
    failure, kernels = None, []
    with (
        _holding(output),
        _told_once(),
        passing_signals_to_kernels(kernels) as received,
        _private_transport(kernels) as config,
    ):

        def go_on(cell: Any, cell_index: int) -> None:
            """Raises where a signal came while no cell ran: a kernel that is starting, or idle, may have missed it."""
            if received:
                raise _Stopped

        try:
            papermill.execute_notebook(
                str(notebook),
                str(output),
                parameters=values,
                kernel_name=kernel,
                progress_bar=False,
                stdout_file=sys.stdout if progress else None,
                stderr_file=sys.stderr if progress else None,
                cwd=None,
                start_timeout=START_SECONDS,
                config=config,
                on_cell_start=go_on,
            )
        except papermill.PapermillExecutionError as error:
            failure = f"cell {error.exec_count}: {error.ename}: {error.evalue}"
        except Exception as error:  # noqa: BLE001 (a kernel that dies raises what it likes)
            failure = f"{type(error).__name__}: {error}"
            if received and isinstance(error, RuntimeError):  # _Stopped, or a kernel that has no way to stop died
                failure = f"stopped by {signal.Signals(received[0]).name}"
        failure = failure or _incomplete(nbformat.read(output, as_version=4))
    if received:
        message = f"{notebook}, {failure or 'which ran to its end'}\nWhat ran is in {output}; run it again to go on"
        raise KeyboardInterrupt(message) if signal.SIGINT in received else Terminated(message)
    if failure:
        from .engine.run import mark_failed

        mark_failed(output.parent, f"notebook: {failure}")
        raise NotebookError(f"{notebook} failed in {failure}\nWhat ran is in {output}")
    return output


class _Stopped(RuntimeError):
    """A signal came."""


def _incomplete(executed) -> str | None:
    """What is wrong with an executed notebook that papermill calls done."""
    for number, cell in enumerate(executed.cells):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        for result in cell.outputs:
            if result.output_type == "error":
                return f"cell {cell.execution_count or number}: {result.ename}: {result.evalue or 'left the notebook'}"
        if cell.metadata.get("papermill", {}).get("status") != "completed" or cell.execution_count is None:
            return f"cell {number}: it never ran"
    return None


@contextlib.contextmanager
def _holding(output: Path) -> Iterator[None]:
    """Holds a file that is about to be written, so that no other process writes it, too. Raises NotebookError."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output.with_name(f".{output.name}.lock"))
    except InUse as error:
        raise NotebookError(
            f"{output}: is being written by {error.owner}; wait for it, or give another output"
        ) from None
    except LockError as error:
        raise NotebookError(f"{output}: cannot be written: {error}") from error
    except OSError as error:
        raise NotebookError(f"{output}: cannot be written ({error.strerror or error}); give another output") from error
    try:
        if output.is_dir() or (output.exists() and not os.access(output, os.W_OK)):
            raise NotebookError(f"{output}: cannot be written; give the name of another file")
        yield
    finally:
        lock.close()


@contextlib.contextmanager
def _private_transport(kernels: list):
    """Yields the settings of a kernel that is reached through sockets in a folder of this user alone, and that is shut down without
    an interrupt. The default, TCP, is open to everybody on the machine, and kernels warn of it. Where a socket cannot have such a
    name, TCP it is. kernels: gets the managers of those that are made."""
    from jupyter_client import AsyncKernelManager
    from traitlets.config import Config

    class Uninterrupted(AsyncKernelManager):
        """Shuts a kernel down without interrupting it first: one that has just replied to its last request is still in that request's
        handler, and would report the interrupt as an error of a run that went well."""

        def __init__(self, *arguments: Any, **settings: Any):
            super().__init__(*arguments, **settings)
            kernels.append(self)

        async def _async_interrupt_kernel(self) -> None:
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

    settings = {"NotebookClient": {"kernel_manager_class": Uninterrupted}}
    with tempfile.TemporaryDirectory(prefix="msdetr-") as folder:
        fits = (
            hasattr(socket, "AF_UNIX") and len(os.fsencode(folder)) < 90
        )  # a socket's name has at most 103 bytes on macOS
        yield Config(settings | ({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}} if fits else {}))


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Keeps papermill's log from saying that a kernel died: the error that follows says it, and why."""
    logger = logging.getLogger("papermill")

    def is_news(record: logging.LogRecord) -> bool:
        return "Kernel died" not in record.getMessage()

    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


@contextlib.contextmanager
def passing_signals_to_kernels(kernels: list) -> Iterator[list[int]]:
    """While the block lasts, SIGTERM and SIGHUP go on to these kernels as SIGTERM and Ctrl-C as SIGINT, so that a
    training in one saves and stops; the second Ctrl-C interrupts both at once. Kernels get no Ctrl-C of the terminal
    themselves, and take one only while a cell runs. kernels: their managers, whose processes need not be there yet.
    Yields the signals that came, none as long as nothing happened."""
    from .engine.signals import TERMINATING

    received: list[int] = []

    def forward(number, frame):
        again = number == signal.SIGINT and number in received
        received.append(number)
        for kernel in kernels:
            process = getattr(kernel.provisioner, "process", None)  # one of this machine, as long as it is there
            if process is not None:
                process.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
        if again:
            raise KeyboardInterrupt

    previous = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [n for n in (*TERMINATING, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
        previous = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
