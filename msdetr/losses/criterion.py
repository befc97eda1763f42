"""One loss mechanism for every kind of supervision: a criterion is a list of branches."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..matching import Matcher, match_all, merge_matches, to_device
from ..structures import DetectorOutput, Matches, Predictions, Targets

Term = Callable[[Predictions, Targets, Matches], Tensor]  # -> [K], summed over the pairs of each layer


@dataclass(frozen=True)
class Supervised:
    """What a branch supervises, and with what.

    match_on: what the matcher sees, where that is not what is supervised (anchors for the encoder).
    pairs: a known assignment of all layers; None: the branch's matcher finds it.
    divisor: what the sums are divided by, beyond the number of objects (repetitions, denoising groups).
    parts, selected, objects: where the queries come from, see ``QueryGroup``; for looking at.
    """

    predictions: Predictions
    targets: Targets
    match_on: Predictions | None = None
    pairs: Matches | None = None
    divisor: float = 1.0
    parts: int = 1
    selected: Tensor | None = None
    objects: Tensor | None = None

    @property
    def identity(self) -> Tensor:
        """[B, Q] int64: what a query is known by from one step to the next. In a two-stage detector query 7 is another
        proposal at every look, so it is the token that it was made from (times the number of parts, plus its part); else
        the query's number."""
        _, images, queries = self.predictions.logits.shape[:3]
        number = torch.arange(queries, device=self.predictions.logits.device).expand(images, -1)
        if self.selected is None:
            return number
        return self.selected * self.parts + number // max(queries // self.parts, 1)


@dataclass(frozen=True)
class Branch:
    """One kind of supervision: these predictions, matched to these targets by this matcher, with these terms.

    select: picks what is supervised from a detector's output and the targets of the batch; None (the model has no such
    output) leaves the branch out.
    matcher: None where the pairs are known.
    terms: name -> (weight, term); a weight of 0 reports the term without learning from it.
    merge_from: name of an earlier branch whose pairs are added; ``merge_exclusive`` says whether a query then serves
    one object only (see ``merge_matches``).
    fade: last part of a training, 0 to 1, over which the weights fall to 0; 0: they stay as they are.
    """

    name: str
    select: Callable[[DetectorOutput, Targets], Supervised | None]
    matcher: Matcher | None
    terms: Mapping[str, tuple[float, Term]] = field(default_factory=dict)
    merge_from: str | None = None
    merge_exclusive: bool = True
    fade: float = 0.0

    def factor(self, progress: float) -> float:
        """What all weights are multiplied by at this progress of a training, 0 to 1: 1, and along half a cosine down to 0 over
        the last part, ``fade``."""
        faded = min(progress, 1.0) - (1 - self.fade)
        return (1 + math.cos(math.pi * faded / self.fade)) / 2 if faded > 0 else 1.0

    @property
    def each_object(self) -> int | None:
        """How many queries every object is to get; None where that depends on the predictions, or pairs are known."""
        return None if self.matcher is None else self.matcher.each_object

    @property
    def weights(self) -> dict[str, float]:
        """Term name -> weight."""
        return {name: weight for name, (weight, _) in self.terms.items()}

    def with_weights(self, weights: Mapping[str, float]) -> Branch:
        """The same branch, some of its terms weighed otherwise."""
        return replace(self, terms={name: (weights.get(name, w), term) for name, (w, term) in self.terms.items()})


@dataclass(frozen=True)
class OfSomePairs:
    """A term that sees some of the pairs only. keep: which, [M] bool."""

    term: Term
    keep: Callable[[Targets, Matches], Tensor]

    def __call__(self, predictions: Predictions, targets: Targets, matches: Matches) -> Tensor:
        return self.term(predictions, targets, matches.select(self.keep(targets, matches)))


@dataclass(frozen=True)
class Losses:
    """What a step learns from. total: 0-d, weighted, with gradient. terms: "branch/term" -> [K] per decoder layer,
    unweighted, normalised, detached. matches: branch name -> Matches. queries: branch name -> number of queries of all
    images in a layer. wanted: branch name -> number of pairs in a layer where every object has all its queries, for
    branches in which it is to have a certain number."""

    total: Tensor
    terms: dict[str, Tensor]
    matches: dict[str, Matches]
    queries: dict[str, int] = field(default_factory=dict)
    wanted: dict[str, int] = field(default_factory=dict)


class Criterion:
    """Sums the weighted terms of all branches. A new kind of supervision is a new entry of the list."""

    def __init__(self, branches: Sequence[Branch], floor: Literal["objects", "product"] = "objects"):
        self.branches = list(branches)
        self.floor = floor

    def __call__(
        self, output: DetectorOutput, targets: Targets, num_boxes: float | None = None, progress: float = 0.0
    ) -> Losses:
        """Losses of a batch, in fp32 also under autocast.

        num_boxes: what sums are divided by, if it is at least 1: the objects of the global batch divided by the number of
        ranks (gradients are averaged over ranks, summed over micro-batches). None: the objects of ``targets``.
        Paper: silent.  Released: number of objects for every branch, also one-to-many.  Here: as released.
        A branch's ``divisor`` multiplies it; with ``floor="product"`` their product is at least 1, not the number of objects.

        progress: of the training, 0 (first step) to 1, for branches that fade.
        """
        num_boxes = float(len(targets) if num_boxes is None else num_boxes)
        with torch.autocast(targets.boxes.device.type, enabled=False):
            supervised = self.supervised(output, targets)
            matches = self.match(supervised)
            terms, total = {}, 0.0
            for branch in self.branches:
                if (given := supervised.get(branch.name)) is None:
                    continue
                divisor = self.divisor(num_boxes, given)
                values = {
                    name: term(given.predictions, given.targets, matches[branch.name]) / divisor
                    for name, (_, term) in branch.terms.items()
                }
                weighted = sum(branch.weights[name] * value for name, value in values.items()).sum()
                total = total + weighted * branch.factor(progress)
                terms |= {f"{branch.name}/{name}": value.detach() for name, value in values.items()}
        queries = {name: given.predictions.logits.shape[1:3].numel() for name, given in supervised.items()}
        wanted = {
            branch.name: branch.each_object * len(supervised[branch.name].targets)
            for branch in self.branches
            if branch.name in supervised and branch.each_object is not None
        }
        return Losses(total, terms, matches, queries, wanted)

    def divisor(self, num_boxes: float, given: Supervised) -> float:
        """What a branch's sums are divided by, in a step of ``num_boxes`` objects."""
        if self.floor == "product":
            return max(num_boxes * given.divisor, 1.0)
        return max(num_boxes, 1.0) * given.divisor

    def supervised(self, output: DetectorOutput, targets: Targets) -> dict[str, Supervised]:
        """Branch name -> what it supervises, predictions in fp32; without the branches that the model has no output for."""
        found = {}
        for branch in self.branches:
            given = branch.select(output, targets)
            if given is not None:
                found[branch.name] = replace(given, predictions=given.predictions.float())
        return found

    def match(self, supervised: Mapping[str, Supervised], merge: bool = True) -> dict[str, Matches]:
        """Branch name -> Matches, on the device of the predictions; all matching problems are solved with one wait for it.
        merge: False leaves out the pairs that a branch takes over from another."""
        active = [branch for branch in self.branches if branch.name in supervised]
        unknown = [branch for branch in active if supervised[branch.name].pairs is None]
        problems = [(b.matcher, (s := supervised[b.name]).match_on or s.predictions, s.targets) for b in unknown]
        matches = {branch.name: found for branch, found in zip(unknown, match_all(problems))}
        for branch in unknown:
            if merge and branch.merge_from is not None:
                _, num_images, num_queries = supervised[branch.name].predictions.logits.shape[:3]
                matches[branch.name] = merge_matches(
                    matches[branch.name], matches[branch.merge_from], num_queries, num_images, branch.merge_exclusive
                )
        devices = {name: given.predictions.logits.device for name, given in supervised.items()}
        return {
            branch.name: to_device(matches[branch.name], devices[branch.name])
            if branch.name in matches
            else supervised[branch.name].pairs
            for branch in active
        }
