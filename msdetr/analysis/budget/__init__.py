"""The budget of lost AP: every error of a detector with its cause, and what each cause costs."""

from msdetr.analysis.budget.causes import Cause, Kind
from msdetr.analysis.budget.report import Budget, CauseShare, Failure, ImageLoss, Part

__all__ = ["Budget", "Cause", "CauseShare", "Failure", "ImageLoss", "Kind", "Part"]
