"""The training objective: a list of branches, each a set of predictions with its own matcher and terms."""

from .branches import (
    answer,
    candidates,
    detection_terms,
    encoder_boxes,
    encoder_proposals,
    encoder_proposals_of,
    of_group,
    of_queries,
)
from .criterion import Branch, Criterion, Losses, OfSomePairs, Supervised, Term
from .iou_aware import aligned_loss, position_supervised_loss, ranked_giou_loss, ranked_l1_loss, varifocal_loss
from .terms import focal_loss, giou_loss, l1_loss

__all__ = [
    "Branch",
    "Criterion",
    "Losses",
    "OfSomePairs",
    "Supervised",
    "Term",
    "aligned_loss",
    "answer",
    "candidates",
    "detection_terms",
    "encoder_boxes",
    "encoder_proposals",
    "encoder_proposals_of",
    "focal_loss",
    "giou_loss",
    "l1_loss",
    "of_group",
    "of_queries",
    "position_supervised_loss",
    "ranked_giou_loss",
    "ranked_l1_loss",
    "varifocal_loss",
]
