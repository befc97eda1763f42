"""Two-stage Deformable DETR: queries are the encoder's best proposals, which are supervised, too (Zhu et al., 2021,
Section 4.3; mixed query selection: Deformable DETR++)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ..config import Range
from ..losses import Branch, encoder_boxes, encoder_proposals
from ..matching import HungarianMatcher, detection_costs
from ..model import ProposedQueries, ReferenceQueries, TwoStageQueries
from .base import Method, hungarian, weighted_terms


@dataclass(frozen=True)
class TwoStageConfig:
    """Queries from the encoder's proposals, and the weights of the encoder's losses."""

    mixed_selection: bool = True  # Deformable DETR++: positions from proposals, contents learned
    rank_by: Literal["first_class", "best_class"] = "first_class"  # a token's first class logit, or its largest (DINO)
    class_weight: Annotated[float, Range(0)] = 2.0
    l1_weight: Annotated[float, Range(0)] = 5.0
    giou_weight: Annotated[float, Range(0)] = 2.0
    match_on: Literal["anchors", "boxes"] = (
        "anchors"  # objects are matched to the tokens' anchors, by place alone; or to
    )
    # the predicted boxes, with the class cost


class TwoStage(Method):
    """Two-stage Deformable DETR.

    Paper: silent on how proposals are matched.   Released: MS-DETR and its baselines on anchors, without the class cost;
    Deformable DETR and H-DETR on predicted boxes, with it.   Here: as MS-DETR for all methods, unless ``match_on`` is "boxes".
    """

    name = "two_stage"
    Config = TwoStageConfig

    def query_selection(self) -> ProposedQueries:
        model, own = self.run.model, self.config
        kind = TwoStageQueries if model.query_positions == "once" else ReferenceQueries
        return kind(
            model.hidden_dim, model.num_queries, model.num_classes, own.mixed_selection, model.box_refine, own.rank_by
        )

    def branches(self, groups: Sequence[str]) -> Sequence[Branch]:
        costs, terms = self.run.matching, weighted_terms(self.config, self.run)
        if self.config.match_on == "boxes":
            return [Branch("encoder", encoder_boxes, hungarian(self.run), terms)]
        matcher = HungarianMatcher(detection_costs(0.0, costs.cost_l1, costs.cost_giou))
        return [Branch("encoder", encoder_proposals, matcher, terms)]
