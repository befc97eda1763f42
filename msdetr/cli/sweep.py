"""``msdetr sweep``."""

from __future__ import annotations

import sys
from pathlib import Path

from ..config import nearest
from ..errors import ConfigError
from ..notebook import project_root
from ..streams import Forgiving
from .app import Argument, Count, Pairs, command, listed
from .output import require_folder


@command("sweep")
def sweep(
    study: Argument[Path],
    out: Path | None = None,
    jobs: Count | None = None,
    device: str = "auto",
    cluster: str | None = None,
    job: Pairs = (),
    report: bool = False,
    only: str | None = None,
    quiet: bool = False,
) -> None:
    """Train all cells of a study (recipes, data sets, changes, seeds) and compare them.

    For example:
        msdetr sweep study.yaml
        msdetr sweep study.yaml --jobs 2 --out runs/mine
        msdetr sweep study.yaml --report

    Stopped at any moment and started again, it repeats no finished cell and goes on with the others. At the end there are
    tables and figures, with differences seed by seed and their intervals. docs/studies.md says what a study file
    looks like.

    Args:
        study: The study, a YAML file.
        out: Where to leave everything; runs/STUDY of the project by default.
        jobs: Cells at once; by default one per GPU, or one per core, eight at most.
        device: auto, cpu, cuda or cuda:N.
        cluster: slurm: a job of the queue for each cell, through submitit; local: the same on this machine.
        job: Settings of the jobs, as submitit names them, e.g. timeout_min=600 slurm_partition=gpu gpus_per_node=1.
        report: Train nothing; tables and figures of the cells that are finished. Needs no data.
        only: Train only the cell of this name, in this process; for queues that start processes themselves.
        quiet: No progress.
    """
    from ..sweep import load_study, run_cell, run_study, submit_study, write_report
    from ..sweep.run import require_finished

    planned = load_study(study, trains=not report)
    out = (out or project_root() / "runs" / study.stem).absolute()
    require_folder(out, "--out")
    if only is not None:
        named = {cell.name: cell for cell in planned.cells()}
        if only not in named:
            raise ConfigError(f"--only: the study has no cell '{only}'; {nearest(only, named)}")
        run_cell(planned, named[only], out, device, progress=not quiet)
        return
    say, status = None if quiet else _say, None
    if job and cluster is None:
        raise ConfigError("--job: settings of a queue's jobs, but no --cluster")
    if not report and cluster is not None:
        status = submit_study(planned, out, cluster, tuple(listed(job)), device, say)
    elif not report:
        status = run_study(planned, out, jobs, device, say)
    written = write_report(planned, out)
    if written:
        print(written[0].read_text())
        print("written:", *written, sep="\n  ")
    else:
        print(f"no cell of {study} is finished in {out}")
    if status is not None:
        require_finished(status)


def _say(text: str) -> None:
    stream = Forgiving(sys.stderr)
    stream.write(text + "\n")
    stream.flush()
