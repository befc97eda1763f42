"""Cells as jobs of a queue, through submitit: Slurm, or ``local``, processes of this machine to try it out."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..config import parse_overrides
from ..engine.signals import StopRequest
from ..errors import ConfigError, RunError
from ..files import make_folder, parse_scalar, write_atomically
from ..notebook import require_papermill
from .run import TELL_SECONDS, CellInUse, SweepStatus, finished_cells, run_cell
from .study import Study, digests_once, kept, load_study

CLUSTERS = ("slurm", "local")
ASK_SECONDS = 2.0


class CellJob:
    """What the queue runs: one cell. Out of time or preempted it is queued again, and goes on from its last checkpoint."""

    def __init__(self, study: Path, name: str, out: Path, device: str):
        self.study, self.name, self.out, self.device = study, name, out, device

    def __call__(self) -> None:
        """A cell that another job is at is waited for."""
        study = load_study(self.study)
        [cell] = [cell for cell in study.cells() if cell.name == self.name]
        while True:
            try:
                run_cell(study, cell, self.out, self.device)
                return
            except CellInUse:
                time.sleep(10 * ASK_SECONDS)

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit_study(
    study: Study,
    out: str | Path,
    cluster: str = "slurm",
    settings: Mapping[str, Any] | str | tuple[str, ...] = (),
    device: str = "auto",
    say: Callable[[str], None] | None = None,
) -> SweepStatus:
    """Has a queue train the cells that are not finished, a job each, and waits for them.

    settings: of the jobs, as submitit names them, e.g. ``{"timeout_min": 600, "slurm_partition": "gpu", "gpus_per_node": 1}``. The
    folder must be one that all machines see. Jobs of a queue outlive this process; started again it submits
    no cell whose job is still there.

    Raises ConfigError where submitit is missing or does not know a setting, or where notebooks are to run and papermill is
    missing, and RunError where the queue cannot be asked.
    """
    if cluster not in CLUSTERS:
        raise ConfigError(f"cluster: {cluster!r} is none of {', '.join(CLUSTERS)}")
    if importlib.util.find_spec("submitit") is None:
        raise ConfigError("cluster: submitit is not installed; pip install 'msdetr[cluster]', or leave --cluster out")
    import submitit

    say = say or (lambda text: None)
    out, planned = Path(out).absolute(), study.cells()
    folder = out / "jobs"
    make_folder(folder)
    given = {name: parse_scalar(v) if isinstance(v, str) else v for name, v in parse_overrides(settings).items()}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
        executor.update_parameters(**({"name": study.path.stem, "timeout_min": 24 * 60} | given))
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cluster: {cluster} with {given or 'its own settings'}: {error}") from error
    digests = digests_once()
    waiting = [cell for cell in planned if kept(cell, out / "cells", digests) is None]
    if waiting and study.run == "notebook":
        require_papermill()
    say(f"{study.title}: {len(planned) - len(waiting)} of {len(planned)} cells are finished")
    jobs: dict[str, Any] = {}
    for cell in waiting:
        record = folder / f"{cell.name}.job"
        job = executor.job_class(folder, record.read_text()) if record.exists() and cluster == "slurm" else None
        if job is None or job.done():
            try:
                job = executor.submit(CellJob(study.path.absolute(), cell.name, out, device))
            except (OSError, RuntimeError, submitit.core.utils.FailedJobError) as error:
                raise RunError(f"{cell.name}: the queue did not take it: {error}") from error
            write_atomically(record, job.job_id)
        jobs[cell.name] = job
        say(f"{cell.name}: job {job.job_id}")
    told = time.monotonic()
    with StopRequest() as stop:
        while any(not job.done() for job in jobs.values()):
            if stop.requested:
                raise stop.exit(f"no longer waiting; {cluster} goes on with its jobs; start it again to wait for them")
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                say(f"{finished_cells(planned, out)} of {len(planned)} cells are finished")
            time.sleep(ASK_SECONDS)
    failures = {name: _reason(job) for name, job in jobs.items() if not (out / "cells" / f"{name}.json").exists()}
    return SweepStatus(len(planned), finished_cells(planned, out), failures)


def _reason(job: Any) -> str:
    lines = (job.stderr() or "").strip().splitlines()
    return f"{lines[-1] if lines else job.state} (see {job.paths.stderr})"
