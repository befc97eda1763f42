"""Two-stage Deformable DETR: queries are the encoder's best proposals, which are supervised, too (Zhu et al., 2021,
Section 4.3; mixed query selection: Deformable DETR++)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch, encoder_boxes, encoder_proposals, encoder_proposals_of, of_queries
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

    def check(self, run: RunConfig) -> None:
        if self.match_on == "anchors" and not (run.matching.cost_l1 or run.matching.cost_giou):
            raise ConfigError(
                "two_stage.match_on: anchors are matched by place alone, and matching.cost_l1 and matching.cost_giou are 0; set "
                "two_stage.match_on=boxes, which takes the class cost, or give one of them a weight"
            )
        if self.supervise == "queries" and self.rank_by == "first_class":
            raise ConfigError(
                "two_stage.supervise: with queries, tokens learn the objects' classes, and two_stage.rank_by=first_class would "
                "choose them by the first class alone; set two_stage.rank_by=best_class, or two_stage.supervise=tokens"
            )


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
        return [encoder_branch(self.run)]


def encoder_branch(run: RunConfig, group: str | None = None) -> Branch:
    """The encoder's proposals, or those of a query group that has its own, supervised as the section ``two_stage`` says."""
    own, costs = run.two_stage, run.matching
    boxes = own.match_on == "boxes"
    if boxes:
        matcher = hungarian(run)
    else:
        matcher = HungarianMatcher(detection_costs(0.0, costs.cost_l1, costs.cost_giou, run.loss.giou_eps))
    if group is None:
        name, select = "encoder", encoder_boxes if boxes else encoder_proposals
    else:
        name, select = f"encoder_{group}", encoder_proposals_of(group, boxes)
    if own.supervise == "queries":
        select = of_queries(select, group)
    return Branch(name, select, matcher, weighted_terms(own, run))
