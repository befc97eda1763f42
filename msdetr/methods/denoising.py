"""Denoising training: noised objects as further queries whose objects are known (DN-DETR, Li et al., CVPR 2022; with
negatives, DINO, Zhang et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch, of_group
from ..model import QuerySource
from .base import Method, weighted_terms
from .denoising_queries import DenoisingQueries
from .dn_detr import IndicatedQueries, ReleasedContrastiveQueries, released_contrastive_terms, without_filling


@dataclass(frozen=True)
class DenoisingConfig:
    """Denoising queries: how many, with which noise, and how much their loss weighs. The defaults are DINO's.

    Paper, released: DN-DETR 20 % of labels, box noise 0.4; DINO a label noise ratio of 0.5, which replaces half as many,
    25 %, and box noise 0.4 (released) or 1.0 (its port in detrex).
    """

    queries: Annotated[int, Range(1, 10**5)] = 100  # noised objects of an image at most; as many negatives besides
    contrastive: bool = True  # DINO's positives and negatives; false: DN-DETR's positives only
    label_noise: Annotated[float, Range(0, 1)] = 0.25  # share of labels that are replaced
    box_noise: Annotated[float, Range(0, 2)] = 0.4  # how far boxes are moved, in half their sizes
    weight: Annotated[float, Range(0, 10**6)] = (
        1.0  # of the denoising loss, times the weights of one-to-one supervision
    )
    class_weight: Annotated[float, Range(0, 10**6)] | None = (
        None  # of its class loss; null: as of one-to-one supervision
    )
    groups: Annotated[int, Range(1, 1000)] | None = None  # noise every object so often; null: as often as queries hold
    style: Literal["plain", "indicated", "released_contrastive"] = "plain"  # indicated: DN-DETR's, a channel says which
    # queries are denoising ones, and there is no loss where an image does not fill its queries; released_contrastive: so,
    # with negatives as DN-DETR's two-stage code mixes them up
    noise: Literal["auto", "corners", "clamped_corners", "centers"] = (
        "auto"  # of boxes: corners move (contrastive), or centers
    )
    # and sizes; clamped_corners: corners, and a size that comes out below 0 becomes 0 (Stable-DINO)
    negatives: Annotated[int, Range(1, 100)] = 1  # of each positive, in contrastive denoising
    negative_step: Annotated[float, Range(0, 2)] = 1.0  # how much further each of them is moved than the one before, in
    # box_noise half sizes; 0: Stable-DINO, whose negatives are moved as little as positives

    def check(self, run: RunConfig) -> None:
        if not {"two_stage", "dab"} & run.methods.keys():
            raise ConfigError(
                "denoising: makes queries from boxes as a two-stage model does, but two_stage is off; switch it on "
                "(two_stage=true), or denoising off (denoising=null)"
            )
        if self.contrastive and self.noise == "centers":
            raise ConfigError(
                "denoising.noise: negatives are made by moving corners; use corners, or contrastive=false"
            )
        if self.noise == "clamped_corners" and not self.contrastive:
            raise ConfigError(
                "denoising.noise: clamped_corners is a contrastive noise; use corners, or contrastive=true"
            )
        if not (self.contrastive and self.style == "plain") and (self.negatives, self.negative_step) != (1, 1.0):
            raise ConfigError(
                "denoising.negatives, denoising.negative_step: say how plain contrastive denoising makes negatives; leave them "
                "at 1, or set contrastive=true and style=plain"
            )
        if self.style == "released_contrastive" and not self.contrastive:
            raise ConfigError(
                "denoising.style: released_contrastive is a way to make negatives; it needs contrastive=true"
            )
        if not self.contrastive and self.noise != "corners" and self.box_noise > 1:
            raise ConfigError(
                f"denoising.box_noise: {self.box_noise} would make sizes negative; at most 1 without contrastive noise"
            )


class Denoising(Method):
    """DN-DETR's denoising (``contrastive=false``) or DINO's, alone, on any model whose queries start from boxes.

    Positives are to reconstruct their object; negatives are background. All sums are divided by the number of objects
    times groups.
    Paper: silent.  Released: queries that an image does not fill are background in DINO, not supervised in DN-DETR; DINO
    averages the number of objects over processes, DN-DETR does not.  Here: as DINO, for both; with the style "indicated"
    queries that an image does not fill are not supervised.
    """

    name = "denoising"
    Config = DenoisingConfig

    def sources(self) -> Mapping[str, QuerySource]:
        kind = {"indicated": IndicatedQueries, "released_contrastive": ReleasedContrastiveQueries}.get(
            self.config.style, DenoisingQueries
        )
        return {self.name: kind(self.run.model.hidden_dim, self.run.model.num_classes, self.config)}

    def branches(self, groups: Sequence[str]) -> Sequence[Branch]:
        terms, select = weighted_terms(self.run.loss, self.run, self.config.weight), of_group(self.name)
        if self.config.class_weight is not None:
            terms = {**terms, "class": (self.config.weight * self.config.class_weight, terms["class"][1])}
        if self.config.style != "plain":
            select = without_filling(select)
        if self.config.style == "released_contrastive":
            terms = released_contrastive_terms(terms, self.run.model.num_classes)
        return [Branch(self.name, select, None, terms)]
