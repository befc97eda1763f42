"""What DN-DETR's denoising has beyond the plain one: an indicator channel, no loss where an image does not fill its queries,
and the negatives of its two-stage code (Li et al., CVPR 2022; IDEA-Research/DN-DETR)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..losses import OfSomePairs, Supervised, Term
from ..structures import DetectorOutput, Matches, Predictions, Targets
from .denoising_queries import DenoisingQueries, Draws, Slots, move_corners, noised_labels


class IndicatedQueries(DenoisingQueries):
    """Labels are embedded in all channels but the last, which is 1 in denoising queries (DN-DETR, Section 4.3); the
    detector's own have a 0 there, learned (two-stage) or fixed (``dab.indicator``). There is a row for "no object", too."""

    def __init__(self, dim, num_classes, config):
        super().__init__(dim, num_classes, config)
        self.label_embedding = nn.Embedding(num_classes + 1, dim - 1)

    def embed(self, labels: Tensor) -> Tensor:
        return nn.functional.pad(self.label_embedding(labels), (0, 1), value=1.0)


class ReleasedContrastiveQueries(IndicatedQueries):
    """The negatives of DN-DETR's released two-stage code, to reproduce its training.

    An image lists its objects, then a copy of each with the class "no object". The code means the copies to be the
    negatives, but takes the second half of the *batch's* list: with more than one image some copies are moved as little
    as positives and learn boxes, and some objects are moved as far as negatives, have the content of "no object", and
    learn no box. All learn the class of their list.
    """

    def slots(self, targets: Targets, groups: int) -> Slots:
        listed = _with_copies(targets, self.num_classes)
        slots = Slots.of(listed, groups, contrastive=False)
        second_half = slots.object >= len(targets)
        return replace(slots, object=listed.original[slots.object], negative=second_half)

    def noised(self, targets: Targets, slots: Slots, draws: Draws) -> tuple[Tensor, Tensor]:
        own, listed = self.config, _with_copies(targets, self.num_classes)
        times = len(slots.object) // max(len(listed), 1)
        labels = noised_labels(listed.labels.repeat(times), draws, own.label_noise)
        labels = labels.masked_fill(slots.negative, self.num_classes)
        return labels, move_corners(targets.boxes[slots.object], draws, own.box_noise, slots.negative)

    def supervision(self, targets: Targets, slots: Slots) -> tuple[Targets, Matches]:
        """Everything is paired with its entry of the list; ``released_contrastive_terms`` tell which learn what."""
        listed = _with_copies(targets, self.num_classes)
        times = len(slots.object) // max(len(listed), 1)
        entry = torch.arange(len(listed), device=slots.slot.device).repeat(times)
        return listed, Matches(torch.zeros_like(entry), listed.image[entry], slots.slot, entry)


def _with_copies(targets: Targets, none: int) -> Targets:
    """Every image's objects, then the same with the label ``none``."""
    count = torch.arange(len(targets), device=targets.labels.device)
    order = torch.argsort(torch.cat([targets.image, targets.image]), stable=True)
    labels = torch.cat([targets.labels, torch.full_like(targets.labels, none)])
    host = None if targets.host is None else _with_copies(targets.host, none)
    original = torch.cat([count, count])[order]
    return replace(
        targets,
        labels=labels[order],
        boxes=targets.boxes[original],
        image=targets.image[original],
        original=original,
        host=host,
    )


def released_contrastive_terms(
    terms: Mapping[str, tuple[float, Term]], num_classes: int
) -> Mapping[str, tuple[float, Term]]:
    """The terms of a branch of ``ReleasedContrastiveQueries``: copies have no class to learn, the second half no box."""

    def of_objects(targets: Targets, matches: Matches) -> Tensor:
        return targets.labels[matches.target] < num_classes

    def of_first_half(targets: Targets, matches: Matches) -> Tensor:
        return matches.target < len(targets) // 2

    return {
        name: (weight, OfSomePairs(term, of_objects if name == "class" else of_first_half))
        for name, (weight, term) in terms.items()
    }


def without_filling(
    select: Callable[[DetectorOutput, Targets], Supervised | None],
) -> Callable[[DetectorOutput, Targets], Supervised | None]:
    """Supervises the same queries but those that fill up an image with fewer objects than others: a probability of 0 costs
    nothing as background, and nothing is learned from it."""

    def selected(output: DetectorOutput, targets: Targets) -> Supervised | None:
        given = select(output, targets)
        if given is None or given.objects is None:
            return given
        filling = given.objects[None, :, :, None] < 0
        logits = given.predictions.logits.masked_fill(filling, -torch.inf)
        return replace(given, predictions=Predictions(logits, given.predictions.boxes))

    return selected
