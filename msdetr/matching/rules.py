"""Both matchings of a run as plain numbers: what can be turned, compared and written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from .hungarian import HungarianMatcher, detection_costs
from .one_to_many import OneToManyMatcher
from .released import ReleasedOneToMany

Rule = Literal["exclusive", "literal", "released"]


@dataclass(frozen=True)
class MatchingRules:
    """Weights of the Hungarian costs, and the rule, alpha, tau, k and merge of one-to-many matching.

    Defaults are the released numbers with the paper's exclusive rule. Raises InputError for a rule that does not exist.
    """

    cost_class: float = 2.0
    cost_l1: float = 5.0
    cost_giou: float = 2.0
    rule: Rule = "exclusive"
    alpha: float = 0.3  # score = alpha * class probability + (1 - alpha) * IoU
    threshold: float = 0.4  # tau: pairs with score <= tau are dropped
    k: int = 6  # queries per object at most
    merge: bool = False  # add one-to-one pairs that one-to-many matching missed

    def hungarian(self) -> HungarianMatcher:
        """The one-to-one matcher."""
        return HungarianMatcher(detection_costs(self.cost_class, self.cost_l1, self.cost_giou))

    def one_to_many(self) -> OneToManyMatcher:
        """The one-to-many matcher; merging is the criterion's."""
        parameters = {"alpha": self.alpha, "threshold": self.threshold, "k": self.k}
        if self.rule == "released":
            return ReleasedOneToMany(**parameters)
        if self.rule not in ("exclusive", "literal"):
            raise InputError(f"one-to-many matching: rule {self.rule!r} is none of exclusive, literal, released")
        return OneToManyMatcher(**parameters, exclusive=self.rule == "exclusive")
