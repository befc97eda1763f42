"""The training objective: a list of branches, each a set of predictions with its own matcher and weights."""

from .criterion import Branch, Criterion, Losses, Weights
from .objective import build_criterion, build_one_to_many_matcher
from .terms import focal_loss, giou_loss, l1_loss

__all__ = [
    "Branch",
    "Criterion",
    "Losses",
    "Weights",
    "build_criterion",
    "build_one_to_many_matcher",
    "focal_loss",
    "giou_loss",
    "l1_loss",
]
