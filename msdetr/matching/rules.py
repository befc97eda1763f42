"""Both matchings of a run as plain numbers: what can be turned, compared and written down."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

from ..config import Range, RunConfig, from_dict
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

    cost_class: Annotated[float, Range(0)] = 2.0
    cost_l1: Annotated[float, Range(0)] = 5.0
    cost_giou: Annotated[float, Range(0)] = 2.0
    rule: Rule = "exclusive"
    alpha: Annotated[float, Range(0, 1)] = 0.3  # score = alpha * class probability + (1 - alpha) * IoU
    threshold: Annotated[float, Range(0, 1)] = 0.4  # tau: pairs with score <= tau are dropped
    k: Annotated[int, Range(1)] = 6  # queries per object at most
    merge: bool = False  # add one-to-one pairs that one-to-many matching missed

    def changed(self, **changes: Any) -> MatchingRules:
        """With some settings changed; text is read as in a configuration. Raises ConfigError for a setting that does not
        exist or a value out of range."""
        return from_dict(asdict(self) | changes, MatchingRules, "matching")

    def applied(self, run: RunConfig) -> RunConfig:
        """A run's configuration with these rules; those of one-to-many matching where it has any."""
        costs = {f"matching.{name}": getattr(self, name) for name in ("cost_class", "cost_l1", "cost_giou")}
        names = ("rule", "alpha", "threshold", "k", "merge") if run.ms_detr is not None else ()
        return run.override(costs | {f"ms_detr.{name}": getattr(self, name) for name in names})

    def hungarian(self) -> HungarianMatcher:
        """The one-to-one matcher. Raises InputError where the three costs are 0."""
        return HungarianMatcher(detection_costs(self.cost_class, self.cost_l1, self.cost_giou))

    def one_to_many(self) -> OneToManyMatcher:
        """The one-to-many matcher; merging is the criterion's."""
        parameters = {"alpha": self.alpha, "threshold": self.threshold, "k": self.k}
        if self.rule == "released":
            return ReleasedOneToMany(**parameters)
        if self.rule not in ("exclusive", "literal"):
            raise InputError(f"one-to-many matching: rule {self.rule!r} is none of exclusive, literal, released")
        return OneToManyMatcher(**parameters, exclusive=self.rule == "exclusive")
