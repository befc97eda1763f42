"""Which query learns which object: Hungarian (one-to-one), Algorithm 1 and by IoU (one-to-many).

A matcher works in two phases, so that a training step waits for the device once, whatever the number of branches:
``prepare`` runs on the device, over all layers and images at once, and returns the tensors the host needs;
``assign`` turns their host copies into ``Matches``. Calling a matcher does both.
"""

from .base import Matcher, match_all, to_device
from .explain import STATUSES, Decisions, Status, known_pairs
from .hungarian import Cost, HungarianMatcher, detection_costs
from .iou import IoUMatcher, ReleasedIoUMatcher
from .one_to_many import OneToManyMatcher, merge_matches
from .partwise import PartwiseMatcher
from .position import ReleasedModulatedMatcher, modulated_focal_cost
from .released import ReleasedMrDETR, ReleasedOneToMany
from .repeated import ReleasedRepeatedMatcher, RepeatedHungarianMatcher
from .rules import MatchingRules
from .score import CostTerms, class_probability, cost_terms, pair_iou, places, score
from .shared import SharedMatcher

__all__ = [
    "STATUSES",
    "Cost",
    "CostTerms",
    "Decisions",
    "HungarianMatcher",
    "IoUMatcher",
    "Matcher",
    "MatchingRules",
    "OneToManyMatcher",
    "PartwiseMatcher",
    "ReleasedIoUMatcher",
    "ReleasedModulatedMatcher",
    "ReleasedMrDETR",
    "ReleasedOneToMany",
    "ReleasedRepeatedMatcher",
    "RepeatedHungarianMatcher",
    "SharedMatcher",
    "Status",
    "class_probability",
    "cost_terms",
    "detection_costs",
    "known_pairs",
    "match_all",
    "merge_matches",
    "modulated_focal_cost",
    "pair_iou",
    "places",
    "score",
    "to_device",
]
