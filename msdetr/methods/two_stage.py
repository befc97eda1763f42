"""Two-stage Deformable DETR: queries are the encoder's best proposals, which are supervised, too (Zhu et al., 2021,
Section 4.3; mixed query selection: Deformable DETR++)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ..config import Range
from ..losses import Branch, encoder_boxes, encoder_proposals, of_queries
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
    match_on: Literal["anchors", "boxes"] = "anchors"  # objects are matched to tokens' anchors, by place alone; or to
    # the predicted boxes, with the class cost
    supervise: Literal["tokens", "queries"] = (
        "tokens"  # all tokens, which learn what is an object; or those that become
    )
    # queries, which learn the objects' classes (DINO)


class TwoStage(Method):
    """Two-stage Deformable DETR, or, where the decoder makes positions from references, two-stage DN-DETR and DINO.

    Paper: silent on how proposals are matched.   Released: MS-DETR and its baselines on anchors, without the class cost;
    Deformable DETR, H-DETR, DN-DETR and DINO on predicted boxes, with it.   Here: as MS-DETR for all methods, unless
    ``match_on`` is "boxes".
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
        own, costs = self.config, self.run.matching
        select, matcher = encoder_boxes, hungarian(self.run)
        if own.match_on == "anchors":
            select = encoder_proposals
            matcher = HungarianMatcher(detection_costs(0.0, costs.cost_l1, costs.cost_giou, self.run.loss.giou_eps))
        if own.supervise == "queries":
            select = of_queries(select)
        return [Branch("encoder", select, matcher, weighted_terms(own, self.run))]
