"""The branches of a configuration: one-to-one, one-to-many, encoder."""

from __future__ import annotations

from dataclasses import replace

from ..config import MatchingConfig, RunConfig
from ..matching import HungarianMatcher, OneToManyMatcher, ReleasedOneToMany
from ..structures import DetectorOutput, Predictions, Targets
from .criterion import Branch, Criterion, Weights


def build_one_to_many_matcher(config: MatchingConfig) -> OneToManyMatcher:
    """The matcher that ``one_to_many`` names, with the configured alpha, tau and k."""
    parameters = {"alpha": config.alpha, "threshold": config.threshold, "k": config.k}
    if config.one_to_many == "released":
        return ReleasedOneToMany(**parameters)
    return OneToManyMatcher(**parameters, exclusive=config.one_to_many == "exclusive")


def build_criterion(config: RunConfig) -> Criterion:
    """The objective of a run: sum over branches and layers of the weighted class, L1 and GIoU terms.

    The encoder's proposals are matched class-agnostically on their anchors.
    Paper: silent.  Released: anchors, class cost 0, for MS-DETR and baseline alike.  Here: as released.
    """
    loss, matching = config.loss, config.matching
    focal = {"focal_alpha": loss.focal_alpha, "focal_gamma": loss.focal_gamma}
    hungarian = HungarianMatcher(matching.cost_class, matching.cost_l1, matching.cost_giou)
    branches = [
        Branch(
            "one_to_one",
            predictions=lambda output: output.one_to_one,
            matcher=hungarian,
            weights=Weights(loss.class_weight, loss.l1_weight, loss.giou_weight, **focal),
        )
    ]
    if config.model.variant != "baseline":
        branches.append(
            Branch(
                "one_to_many",
                predictions=lambda output: output.one_to_many,
                matcher=build_one_to_many_matcher(matching),
                weights=Weights(
                    loss.one_to_many_class_weight, loss.one_to_many_l1_weight, loss.one_to_many_giou_weight, **focal
                ),
                merge_from="one_to_one" if matching.merge else None,
                merge_exclusive=matching.one_to_many != "literal",
            )
        )
    if config.model.two_stage:
        branches.append(
            Branch(
                "encoder",
                predictions=lambda output: output.encoder.predictions if output.encoder is not None else None,
                matcher=replace(hungarian, cost_class=0.0),
                weights=Weights(loss.encoder_class_weight, loss.encoder_l1_weight, loss.encoder_giou_weight, **focal),
                targets=Targets.class_agnostic,
                match_on=_anchors,
            )
        )
    return Criterion(branches)


def _anchors(output: DetectorOutput) -> Predictions:
    return Predictions(output.encoder.predictions.logits, output.encoder.anchors[None])
