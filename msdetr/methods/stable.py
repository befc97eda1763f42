"""Stable matching (Stable-DINO; Liu et al., "Detection Transformer with Stable Matching", ICCV 2023): class losses and matching
costs in which boxes have a say, and optionally the encoder's dense memory fusion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch, OfSomePairs, Term, focal_loss, position_supervised_loss
from ..matching import HungarianMatcher, Matcher, ReleasedModulatedMatcher, modulated_focal_cost
from ..model import DenseFusion, Detector
from .base import Method

Power = Annotated[float, Range(0, 10)]


@dataclass(frozen=True)
class StableConfig:
    """Position-supervised class loss, position-modulated class cost, memory fusion. Powers are as published."""

    loss_iou_power: Power = 2.0  # target of a positive: IoU to this power, ...
    loss_probability_power: Power = 0.0  # ... times its probability to this one
    transform: Literal["none", "exp", "sin"] = "none"  # of that target
    cost_power: Power = 0.5  # class cost of probability x ((GIoU + 1) / 2)^power; 0 for the plain class cost
    cost: Literal["pairwise", "released"] = (
        "pairwise"  # released: objects of one class overwrite each other's modulation
    )
    memory_fusion: bool = False  # what the decoder reads is made from the outputs of all encoder layers

    def check(self, run: RunConfig) -> None:
        if not self.loss_iou_power and not self.loss_probability_power:
            raise ConfigError(
                "stable.loss_iou_power: one of loss_iou_power and loss_probability_power must be above 0, or every target is "
                "1; switch the method off (stable=null) for the plain class loss"
            )
        if self.memory_fusion and not run.model.encoder_layers:
            raise ConfigError("stable.memory_fusion: there are no encoder layers to fuse (model.encoder_layers=0)")
        if run.lw_detr is not None and run.lw_detr.class_loss != "focal":
            raise ConfigError(
                f"stable: makes the focal class loss position-supervised, and lw_detr.class_loss={run.lw_detr.class_loss} is "
                "another; set lw_detr.class_loss=focal, or switch the method off (stable=null)"
            )
        by_iou = run.deta is not None and run.deta.encoder and run.deta.decoder
        costless = by_iou and not {"hybrid", "group"} & run.methods.keys()
        if costless and (self.cost == "released" or self.cost_power not in (0, StableConfig.cost_power)):
            raise ConfigError(
                "stable.cost, stable.cost_power: modulate the class cost of matching, and deta assigns both stages by IoU, "
                "without costs; leave them as they are, or set deta.encoder=false or deta.decoder=false"
            )


class Stable(Method):
    """Stable-DINO's losses and costs on any model of this package. Only the memory fusion needs parameters, and these at
    inference, too.

    Every focal class loss of the run becomes position-supervised, also those of further query groups, of the encoder, and
    of candidates; every class cost of Hungarian matching is modulated, where there is one: ``deta`` has none in the stages
    that it assigns. One-to-many matching keeps its score.

    Released: class weight 6 (1 for denoising), where DINO has 1.  Here: weights are those of the run.
    Released: norms without weight decay.  Here: with, as all parameters.
    The recipe coco/stable-dino-4scale-r50 has the weights, and what the DINO it was built on has otherwise.
    """

    name = "stable"
    Config = StableConfig

    def extend(self, detector: Detector) -> None:
        if self.config.memory_fusion:
            detector.encoder.fusion = DenseFusion(len(detector.encoder.layers), self.run.model.hidden_dim)

    def revised(self, branches: Sequence[Branch]) -> Sequence[Branch]:
        return [
            replace(
                branch,
                matcher=self._modulated(branch.matcher),
                terms={name: (weight, self._supervised(term)) for name, (weight, term) in branch.terms.items()},
            )
            for branch in branches
        ]

    def _supervised(self, term: Term) -> Term:
        if isinstance(term, OfSomePairs):
            return replace(term, term=self._supervised(term.term))
        if not (isinstance(term, partial) and term.func is focal_loss):
            return term
        own = self.config
        return partial(
            position_supervised_loss,
            **term.keywords,
            iou_power=own.loss_iou_power,
            probability_power=own.loss_probability_power,
            transform=own.transform,
        )

    def _modulated(self, matcher: Matcher | None) -> Matcher | None:
        own, alpha = self.config, self.run.matching.focal_alpha
        if type(matcher) is not HungarianMatcher or not own.cost_power or not matcher.costs.get("class", (0,))[0]:
            return matcher
        if own.cost == "released":
            return ReleasedModulatedMatcher(matcher.costs, matcher.parts, own.cost_power, alpha)
        weight, _ = matcher.costs["class"]
        cost = partial(modulated_focal_cost, power=own.cost_power, alpha=alpha, giou_eps=self.run.loss.giou_eps)
        return replace(matcher, costs={**matcher.costs, "class": (weight, cost)})
