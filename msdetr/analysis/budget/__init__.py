"""The budget of lost AP: every error of a detector with its cause, and what each cause costs.

From plain arrays of any detector: ``budget([Scene.of_detections(...), ...], class_names)``; of a trained run:
``msdetr.analysis.budget.run.measure_budget(run)``. The definitions are in ``attribution``, what mending means in ``ranking``.
"""

from msdetr.analysis.budget.assemble import Accounts, budget
from msdetr.analysis.budget.causes import Cause, Kind
from msdetr.analysis.budget.comparison import Comparison, compare_budgets
from msdetr.analysis.budget.doctor import Diagnosis, Effect, Remedy, Suppression, diagnose, effects
from msdetr.analysis.budget.ledger import Ledger
from msdetr.analysis.budget.mending import mended_detections
from msdetr.analysis.budget.report import Budget, CauseShare, Failure, ImageLoss, Part
from msdetr.analysis.budget.scene import Scene

__all__ = [
    "Accounts",
    "Budget",
    "Cause",
    "CauseShare",
    "Comparison",
    "Diagnosis",
    "Effect",
    "Failure",
    "ImageLoss",
    "Kind",
    "Ledger",
    "Part",
    "Remedy",
    "Scene",
    "Suppression",
    "budget",
    "compare_budgets",
    "diagnose",
    "effects",
    "mended_detections",
]
