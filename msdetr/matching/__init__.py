"""Which query learns which object: Hungarian (one-to-one) and Algorithm 1 (one-to-many).

A matcher works in two phases, so that a training step waits for the device once, whatever the number of branches:
``prepare`` runs on the device, over all layers and images at once, and returns the tensors the host needs;
``assign`` turns their host copies into ``Matches``. Calling a matcher does both.
"""

from .base import Matcher, match_all
from .hungarian import HungarianMatcher, hungarian_cost
from .one_to_many import OneToManyMatcher, merge_matches
from .released import ReleasedOneToMany
from .score import CostTerms, class_probability, cost_terms, pair_iou, score

__all__ = [
    "CostTerms",
    "HungarianMatcher",
    "Matcher",
    "OneToManyMatcher",
    "ReleasedOneToMany",
    "class_probability",
    "cost_terms",
    "hungarian_cost",
    "match_all",
    "merge_matches",
    "pair_iou",
    "score",
]
