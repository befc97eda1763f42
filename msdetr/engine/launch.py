"""Starting the ranks of a distributed run from Python, e.g. from a notebook, and watching them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import RunConfig
from ..errors import TrainingError
from ..files import make_folder
from ..processes import end_with_parent
from ..streams import Forgiving
from .run import read_results
from .signals import StopRequest, StopRequested


def launch(
    config: RunConfig,
    run_dir: str | Path,
    nproc: int | None = None,
    device: str = "auto",
    resume: str = "auto",
    show: Callable[[str], Any] | None = None,
    max_restarts: int = 0,
    arguments: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains on ``nproc`` ranks of this machine, started by torchrun, and returns what results.json says.

    nproc: one per GPU by default. show: called with every line of progress; by default they go to standard error.
    max_restarts: how often to start all ranks again, from the last checkpoint, when one dies.
    arguments: further ones of ``msdetr train``, e.g. ``["--init-from", "runs/old"]``.

    Raises TrainingError with the last lines if the run fails, and KeyboardInterrupt or Terminated after passing it on to the
    ranks, which save first.
    """
    nproc = nproc or max(torch.cuda.device_count(), 1)
    run_dir = Path(run_dir)
    make_folder(run_dir)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(nproc)]
    command += ["--max-restarts", str(max_restarts), "-m", "msdetr", "train"]
    options = ["--run-dir", str(run_dir), "--device", device, "--resume", resume, *arguments]
    environment = {"OMP_NUM_THREADS": "1", "MSDETR_PROGRESS": "lines"} | os.environ
    last: deque[str] = deque(maxlen=20)
    said: list[str] = []  # what the ranks themselves give as the reason
    with tempfile.TemporaryDirectory(prefix="msdetr-") as folder, StopRequest() as stop:
        wanted = Path(folder, "launch.yaml")
        config.save(wanted)
        process = subprocess.Popen(
            [*command, str(wanted), *options],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            preexec_fn=_end_with_launcher,  # noqa: PLW1509 (one system call, looked up before)
        )
        try:
            with contextlib.suppress(StopRequested), stop.interrupting():
                for line in process.stdout:
                    last.append(line.rstrip())
                    if is_reason(line):
                        said.append(line.rstrip())
                    (show or _to_stderr)(line.rstrip())
        finally:
            if stop.requested or process.poll() is None:
                process.terminate()  # the ranks finish their step and save
                for line in process.stdout:
                    last.append(line.rstrip())
            status = process.wait()
            process.stdout.close()
    if stop.requested and status != 0:
        raise stop.exit(f"stopped; start {run_dir} again to go on")
    if status != 0:
        raise TrainingError(f"the ranks of {run_dir} failed with exit status {status}:\n" + "\n".join([*said, *last]))
    return read_results(run_dir)


def is_reason(line: str) -> bool:
    """Whether a line that ``msdetr`` printed gives the reason why it failed."""
    return line.startswith("msdetr: ") and not line.startswith("msdetr: warning: ")


def _end_with_launcher() -> None:
    end_with_parent(signal.SIGTERM)


def _to_stderr(line: str) -> None:
    stream = Forgiving(sys.stderr)
    stream.write(line + "\n")
    stream.flush()
