"""LW-DETR's decoder (Chen et al., "LW-DETR: A Transformer Replacement to YOLO for Real-Time Detection", 2024), which is how
Group DETR was published: proposals, learned offsets and queries of every group, and a class loss that knows the IoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch, Supervised, Term, aligned_loss, focal_loss, of_group
from ..losses.lw_detr import fit_supervised_loss, weighted_varifocal_loss
from ..model import BoxCoding, FurtherOffsetQueries, LogitBoxes, OffsetQueries, QuerySource, RelativeBoxes
from ..structures import DetectorOutput, Targets
from .base import Method, hungarian, weighted_terms
from .group import grouped

CLASS_LOSSES: dict[str, Term] = {
    "iou_aware": partial(aligned_loss, eps=0.0),
    "focal": focal_loss,
    "varifocal": weighted_varifocal_loss,
    "position_supervised": fit_supervised_loss,
}


@dataclass(frozen=True)
class LWDETRConfig:
    """Query groups and their supervision. Defaults are those published for COCO."""

    groups: Annotated[int, Range(1, 1000)] = 13  # the primary one included, each of model.num_queries
    two_stage: bool = True  # references are learned offsets to proposals; false: they are learned
    relative_boxes: bool = True  # boxes are coded in sizes of their reference, not in logits
    class_loss: Literal["iou_aware", "focal", "varifocal", "position_supervised"] = "iou_aware"
    group_losses: Literal["mean", "sum"] = "mean"  # over groups
    few_tokens: Literal["fewer", "learned"] = "fewer"  # an image of fewer tokens than queries has fewer queries; or, as
    # RF-DETR, proposals go to the first queries of all groups, wherever groups end, and the others start as learned

    def check(self, run: RunConfig) -> None:
        if run.model.query_positions == "once":
            raise ConfigError(
                "lw_detr: its queries have boxes and no positions; make these from the boxes "
                "(model.query_positions=references), or switch it off (lw_detr=null)"
            )
        if others := {"two_stage", "group", "hybrid", "dab"} & run.methods.keys():
            raise ConfigError(
                f"lw_detr: makes queries and groups itself, and so does {min(others)}; switch one of them off "
                f"({min(others)}=null)"
            )


class LWDETR(Method):
    """Group DETR as published, with LW-DETR: every group has its own encoder head, which proposes the group's references and
    is supervised with the real labels, and its own learned contents and offsets; self-attention within a group only, one
    Hungarian matching per group, losses divided by objects times groups. Its recipe is coco/lw-detr.

    Paper: box refinement from layer to layer.   Released: ``model.box_refine=false``: every layer predicts boxes relative
    to the same references ("lite reference refinement").
    Released: at least 1 object times groups (``loss.floor=product``).
    Released: RF-DETR's few tokens, see ``few_tokens``.   Here: every group is as small as the image.

    Released: a ViT of one or two levels, trained on Objects365 before.   Here: the recipe has a ResNet-50 of three levels.
    Released: the decoder learns at 0.7 of ``train.lr``.   Here: at all of it, as heads and queries do.
    Released: square images, sides of 448 to 896 in training and 640 in the test.   Here: ``data``'s sizes, shapes as they are.
    """

    name = "lw_detr"
    Config = LWDETRConfig

    def coding(self) -> BoxCoding:
        return RelativeBoxes() if self.config.relative_boxes else LogitBoxes(self.run.model.reference_eps)

    def query_selection(self) -> OffsetQueries:
        model, own = self.run.model, self.config
        return OffsetQueries(
            model.hidden_dim,
            model.num_queries,
            model.num_classes,
            own.groups,
            own.two_stage,
            self.coding(),
            own.few_tokens,
        )

    def sources(self) -> Mapping[str, QuerySource]:
        model, own = self.run.model, self.config
        if own.groups == 1:
            return {}
        return {
            self.name: FurtherOffsetQueries(
                self.name, model.hidden_dim, model.num_queries, own.groups, own.two_stage, own.few_tokens
            )
        }

    def branches(self, groups: Sequence[str]) -> Sequence[Branch]:
        terms, branches = weighted_terms(self.run.loss, self.run), []
        if self.config.groups > 1:
            matcher = hungarian(self.run, parts=self.config.groups - 1)
            branches.append(Branch(self.name, of_group(self.name), matcher, terms))
        if self.config.two_stage:
            branches.append(Branch("encoder", proposals_of_groups, hungarian(self.run), terms))
        return branches

    def revised(self, branches: Sequence[Branch]) -> Sequence[Branch]:
        """All groups weigh the same, and every branch has the class loss of this method."""
        own, loss = self.config, self.run.loss
        classes = partial(CLASS_LOSSES[own.class_loss], alpha=loss.focal_alpha, gamma=loss.focal_gamma)
        revised = []
        for branch in grouped(branches, self.name, own.groups):
            if "class" in branch.terms:
                branch = replace(branch, terms={**branch.terms, "class": (branch.terms["class"][0], classes)})
            if own.group_losses == "sum":
                branch = replace(branch, select=_undivided(branch.select))
            revised.append(branch)
        return revised


def proposals_of_groups(output: DetectorOutput, targets: Targets) -> Supervised | None:
    """The chosen proposals of all groups, which lie along the depth dimension; with the real labels."""
    if output.encoder is None:
        return None
    predictions = output.encoder.predictions
    return Supervised(predictions, targets, divisor=len(predictions.logits))


def _undivided(select):
    """Supervises the same, with the sum over groups."""

    def selected(output: DetectorOutput, targets: Targets):
        given = select(output, targets)
        return given and replace(given, divisor=1.0)

    return selected
