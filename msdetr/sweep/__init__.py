"""Sweeps: a study's recipes, data sets, changes and seeds, trained cell by cell, with what comes of it at the end.

``msdetr sweep STUDY.yaml``, or from Python:

    study = load_study("study.yaml")
    run_study(study, "runs/study")
    write_report(study, "runs/study")
"""

from .cluster import submit_study
from .report import write_report
from .run import CellInUse, SweepStatus, run_cell, run_study
from .study import PlannedCell, Study, load_study

__all__ = [
    "CellInUse",
    "PlannedCell",
    "Study",
    "SweepStatus",
    "load_study",
    "run_cell",
    "run_study",
    "submit_study",
    "write_report",
]
