"""Queries made from noised objects: the noise, their places on the query axis, and the group (DN-DETR, Li et al., CVPR 2022;
with negatives, DINO, Zhang et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..boxes import cxcywh_to_xyxy, logit, xyxy_to_cxcywh
from ..matching.base import check_labels
from ..model import PRIMARY, Proposals, QuerySource
from ..structures import Matches, QueryGroup, Targets

if TYPE_CHECKING:
    from .denoising import DenoisingConfig

# ---------------------------------------------------------------- noise, as a function of its random numbers


@dataclass(frozen=True)
class Draws:
    """The random numbers of N noised objects.

    label: [N] in [0, 1), decides whether a label is replaced.   new_label: [N] int64, by what.
    box: [N, 4] in [0, 1), how far a box is moved.   sign: [N, 4], -1 or 1, where to (contrastive noise only).
    """

    label: Tensor
    new_label: Tensor
    box: Tensor
    sign: Tensor

    @classmethod
    def of(cls, count: int, num_classes: int, like: Tensor) -> Draws:
        """Drawn from torch's generator of the device of ``like``, in its dtype; new labels may be the old ones."""
        return cls(
            torch.rand(count, device=like.device, dtype=like.dtype),
            torch.randint(num_classes, (count,), device=like.device),
            torch.rand(count, 4, device=like.device, dtype=like.dtype),
            torch.randint(2, (count, 4), device=like.device).to(like.dtype) * 2 - 1,
        )


def noised_labels(labels: Tensor, draws: Draws, share: float) -> Tensor:
    """Labels [N], a ``share`` of them replaced by others drawn uniformly."""
    return draws.new_label.where(draws.label < share, labels)


def move_centers_and_sizes(boxes: Tensor, draws: Draws, scale: float) -> Tensor:
    """DN-DETR's noise, Section 4.2: a center moves by up to ``scale`` half sizes, a size changes by up to its ``scale``.

    boxes [N, 4] cxcywh -> the same, clamped to [0, 1].
    """
    extent = torch.cat([boxes[:, 2:] / 2, boxes[:, 2:]], dim=-1)
    return (boxes + (2 * draws.box - 1) * extent * scale).clamp(0, 1)


def move_corners(boxes: Tensor, draws: Draws, scale: float, further: Tensor, clamp_sizes: bool = False) -> Tensor:
    """DINO's noise, Section 3.3: every corner coordinate moves by up to ``scale`` half sizes, or ``further`` [N] to
    ``further`` + 1 times that: 0 for positives, 1 for DINO's negatives; may be bool.

    boxes [N, 4] cxcywh -> the same, corners clamped to [0, 1]; a negative's size may come out below 0 where scale >= 1.
    clamp_sizes: such a size becomes 0, as in Stable-DINO's code.
    """
    half = boxes[:, 2:].repeat(1, 2) / 2
    distance = draws.sign * (draws.box + further[:, None].to(draws.box.dtype))
    moved = xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + distance * half * scale).clamp(0, 1))
    return moved.clamp(min=0) if clamp_sizes else moved


def move_corners_both_ways(boxes: Tensor, draws: Draws, scale: float) -> Tensor:
    """DN-DETR's noise in its two-stage model: every corner coordinate moves by up to ``scale`` half sizes; one number says how
    far and where to.

    boxes [N, 4] cxcywh -> the same, corners clamped to [0, 1].
    """
    half = boxes[:, 2:].repeat(1, 2) / 2
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + (2 * draws.box - 1) * half * scale).clamp(0, 1))


# ---------------------------------------------------------------- where noised objects lie on the query axis


def number_of_groups(queries: int, most: int) -> int:
    """How many times every object is noised so that the image with the ``most`` objects has at most ``queries`` queries;
    once at least.

    Paper: DN-DETR 5 times.  Released: DN-DETR 5 times; DINO as here for 50 queries and more, but below that number twice
    ``queries`` times.  Here: the same rule for all numbers and both methods; ``denoising.groups`` sets a number.
    """
    return max(queries // most, 1) if most else 1


@dataclass(frozen=True)
class Slots:
    """The places of N noised objects: those of one group are together, padded to the image with most objects.

    groups: G.   size: queries of a group; positives come first, then, as many each, the kinds of negatives.
    object: [N] index into the targets.   slot: [N] in [0, G x size).   negative: [N] bool.
    positive: which of the N are to reconstruct their object.   kind: [N] 0 for positives, from 1 on the kind of a negative.
    """

    groups: int
    size: int
    object: Tensor
    slot: Tensor
    negative: Tensor
    positive: Tensor
    kind: Tensor

    @classmethod
    def of(cls, targets: Targets, groups: int, contrastive: bool, negatives: int = 1) -> Slots:
        """All objects, ``groups`` times, each time (contrastive) first as positives, then ``negatives`` times as negatives."""
        count, kinds = len(targets), 1 + negatives if contrastive else 1
        most = int(targets.counts.max()) if targets.num_images else 0
        repetition, number = torch.meshgrid(
            torch.arange(groups * kinds, device=targets.image.device),
            torch.arange(count, device=targets.image.device),
            indexing="ij",
        )
        place = number[0] - torch.searchsorted(targets.image, targets.image)  # of an object among those of its image
        position = torch.arange(groups * kinds * count, device=targets.image.device).view(groups, kinds, count)
        return cls(
            groups,
            most * kinds,
            number.flatten(),
            (repetition * most + place).flatten(),
            (repetition % kinds > 0).flatten(),
            position[:, 0].flatten(),
            (repetition % kinds).flatten(),
        )


# ---------------------------------------------------------------- the group


class DenoisingQueries(QuerySource):
    """Noised objects as queries: contents from their labels, references from their boxes. A subclass says otherwise what is
    noised and where it lies (``slots``), how (``noised``), and what becomes of a label (``embed``).

    Groups do not see each other; all see the primary group, which sees none of them. Queries that an image does not fill
    have no content and a box in the middle of the image; neither paper nor released code hides them from the others.
    Boxes are kept 1e-3 away from 0 and 1, as released.
    Released: the label embedding has a row for a class that does not exist (DINO), or a channel that says which queries
    are denoising ones (DN-DETR).  Here: neither; see ``IndicatedQueries`` for the latter.
    """

    name = "denoising"

    def __init__(self, dim: int, num_classes: int, config: DenoisingConfig):
        super().__init__()
        self.config, self.num_classes = config, num_classes
        self.label_embedding = nn.Embedding(num_classes, dim)

    def slots(self, targets: Targets, groups: int) -> Slots:
        """Where the noised objects lie."""
        return Slots.of(targets, groups, self.config.contrastive, self.config.negatives)

    def noised(self, targets: Targets, slots: Slots, draws: Draws) -> tuple[Tensor, Tensor]:
        """Their labels [N] and boxes [N, 4]."""
        own, boxes = self.config, targets.boxes[slots.object]
        labels = noised_labels(targets.labels[slots.object], draws, own.label_noise)
        if own.contrastive:
            further = slots.kind * own.negative_step
            return labels, move_corners(boxes, draws, own.box_noise, further, own.noise == "clamped_corners")
        move = move_corners_both_ways if own.noise == "corners" else move_centers_and_sizes
        return labels, move(boxes, draws, own.box_noise)

    def embed(self, labels: Tensor) -> Tensor:
        """Contents [N, C] from labels [N]."""
        return self.label_embedding(labels)

    def supervision(self, targets: Targets, slots: Slots) -> tuple[Targets | None, Matches]:
        """The group's own objects, None where they are those of the batch, and who is to reconstruct which."""
        known = slots.positive
        image, target = targets.image[slots.object[known]], slots.object[known]
        return None, Matches(torch.zeros_like(known), image, slots.slot[known], target)

    def forward(
        self, proposals: Proposals, targets: Targets, earlier: Mapping[str, QueryGroup], draws: Draws | None = None
    ) -> QueryGroup:
        """draws: the random numbers; None: drawn from torch's generator. Raises InputError for a label that is no class."""
        if targets.labels.device.type == "cpu" or targets.host is not None:
            check_labels(targets.on_host, self.num_classes)
        most = int(targets.counts.max()) if targets.num_images else 0
        slots = self.slots(targets, self.config.groups or number_of_groups(self.config.queries, most))
        if draws is None:
            draws = Draws.of(len(slots.object), self.num_classes, like=targets.boxes)
        labels, boxes = self.noised(targets, slots, draws)

        image = targets.image[slots.object]
        shape = targets.num_images, slots.groups * slots.size
        embedded = self.embed(labels)
        contents = embedded.new_zeros(*shape, embedded.shape[-1]).index_put((image, slots.slot), embedded)
        boxes = logit(boxes, eps=1e-3).sigmoid().to(earlier[PRIMARY].references.dtype)
        references = boxes.new_full((*shape, 4), 0.5).index_put((image, slots.slot), boxes)
        objects = torch.full(shape, -1, device=image.device).index_put((image, slots.slot), slots.object)
        own_targets, pairs = self.supervision(targets, slots)
        return QueryGroup(
            self.name,
            contents,
            proposals.embed(references)[0],
            references,
            parts=slots.groups,
            reads=(PRIMARY,),
            targets=own_targets,
            pairs=pairs,
            divisor=slots.groups,
            objects=objects,
        )
