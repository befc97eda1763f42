"""One loss mechanism for every kind of supervision: a criterion is a list of branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..matching import Matcher, match_all, merge_matches
from ..structures import DetectorOutput, Matches, Predictions, Targets
from .terms import focal_loss, giou_loss, l1_loss


@dataclass(frozen=True)
class Weights:
    """Weights of the class, box L1 and generalised IoU terms, and the parameters of the focal loss."""

    classification: float
    l1: float
    giou: float
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0


@dataclass(frozen=True)
class Branch:
    """One kind of supervision: these predictions, matched to these targets by this matcher, weigh this much.

    predictions: picks what is supervised; None (the model has no such output) leaves the branch out.
    targets:     what it is supervised with, e.g. ``Targets.class_agnostic``.
    match_on:    picks what the matcher sees, where that is not what is supervised (anchors for the encoder).
    merge_from:  name of an earlier branch whose pairs are added; ``merge_exclusive`` says whether a query then serves
                 one object only (see ``merge_matches``).
    normalizer:  turns the number of objects into what the sums are divided by.
    """

    name: str
    predictions: Callable[[DetectorOutput], Predictions | None]
    matcher: Matcher
    weights: Weights
    targets: Callable[[Targets], Targets] = lambda targets: targets
    match_on: Callable[[DetectorOutput], Predictions] | None = None
    merge_from: str | None = None
    merge_exclusive: bool = True
    normalizer: Callable[[float], float] = lambda num_boxes: num_boxes


@dataclass(frozen=True)
class Losses:
    """What a step learns from. total: 0-d, weighted, with gradient. terms: "branch/term" -> [K] per decoder layer,
    unweighted, normalised, detached. matches: branch name -> Matches."""

    total: Tensor
    terms: dict[str, Tensor]
    matches: dict[str, Matches]


class Criterion:
    """Sums the weighted losses of all branches. A new kind of supervision is a new entry of the list."""

    def __init__(self, branches: Sequence[Branch]):
        self.branches = list(branches)

    def __call__(self, output: DetectorOutput, targets: Targets, num_boxes: float | None = None) -> Losses:
        """Losses of a batch, in fp32 also under autocast.

        num_boxes: what sums are divided by, at least 1: the objects of the global batch divided by the number of
        ranks (gradients are averaged over ranks, summed over micro-batches). None: the objects of ``targets``.
        Paper: silent.  Released: number of objects for every branch, also one-to-many.  Here: as released.
        """
        num_boxes = max(float(len(targets) if num_boxes is None else num_boxes), 1.0)
        with torch.autocast(targets.boxes.device.type, enabled=False):
            active = [(branch, p.float()) for branch in self.branches if (p := branch.predictions(output)) is not None]
            matches = self.match(output, targets, active)
            terms = {}
            total = output.one_to_one.logits.new_zeros((), dtype=active[0][1].logits.dtype)
            for branch, predictions in active:
                w, pairs, of = branch.weights, matches[branch.name], branch.targets(targets)
                divisor = branch.normalizer(num_boxes)
                values = {
                    "class": focal_loss(predictions, of, pairs, w.focal_alpha, w.focal_gamma) / divisor,
                    "l1": l1_loss(predictions, of, pairs) / divisor,
                    "giou": giou_loss(predictions, of, pairs) / divisor,
                }
                total = (
                    total + (w.classification * values["class"] + w.l1 * values["l1"] + w.giou * values["giou"]).sum()
                )
                terms |= {f"{branch.name}/{term}": value.detach() for term, value in values.items()}
        return Losses(total, terms, matches)

    def match(
        self, output: DetectorOutput, targets: Targets, active: Sequence[tuple[Branch, Predictions]] | None = None
    ) -> dict[str, Matches]:
        """Branch name -> Matches, all matching problems solved with one wait for the device."""
        if active is None:
            active = [(branch, p.float()) for branch in self.branches if (p := branch.predictions(output)) is not None]
        problems = [
            (
                branch.matcher,
                predictions if branch.match_on is None else branch.match_on(output),
                branch.targets(targets),
            )
            for branch, predictions in active
        ]
        matches = {branch.name: found for (branch, _), found in zip(active, match_all(problems))}
        for branch, predictions in active:
            if branch.merge_from is not None:
                _, num_images, num_queries = predictions.logits.shape[:3]
                matches[branch.name] = merge_matches(
                    matches[branch.name], matches[branch.merge_from], num_queries, num_images, branch.merge_exclusive
                )
        return matches
