"""Denoising training: noised objects as further queries whose objects are known (DN-DETR, Li et al., CVPR 2022; with
negatives, DINO, Zhang et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from ..boxes import cxcywh_to_xyxy, logit, xyxy_to_cxcywh
from ..config import Range, RunConfig
from ..errors import ConfigError
from ..losses import Branch, of_group
from ..matching.base import check_labels
from ..model import PRIMARY, Proposals, QuerySource
from ..structures import Matches, QueryGroup, Targets
from .base import Method, weighted_terms

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


def move_corners(boxes: Tensor, draws: Draws, scale: float, negative: Tensor) -> Tensor:
    """DINO's noise, Section 3.3: every corner coordinate moves by up to ``scale`` half sizes, that of a negative [N] bool by
    one to two times ``scale`` half sizes.

    boxes [N, 4] cxcywh -> the same, corners clamped to [0, 1]; a negative's size may come out below 0 where scale >= 1.
    """
    half = boxes[:, 2:].repeat(1, 2) / 2
    distance = draws.sign * (draws.box + negative[:, None].to(draws.box.dtype))
    return xyxy_to_cxcywh((cxcywh_to_xyxy(boxes) + distance * half * scale).clamp(0, 1))


# ---------------------------------------------------------------- where noised objects lie on the query axis


def number_of_groups(queries: int, most: int) -> int:
    """How many times every object is noised so that the image with the ``most`` objects has at most ``queries`` queries;
    once at least.

    Paper: DN-DETR 5 times.  Released: DN-DETR 5 times; DINO as here for 50 queries and more, but below that number twice
    ``queries`` times.  Here: the same rule for all numbers and both methods.
    """
    return max(queries // most, 1) if most else 1


@dataclass(frozen=True)
class Slots:
    """The places of N noised objects: those of one group are together, padded to the image with most objects.

    groups: G.   size: queries of a group; with negatives the first half are positives, the second half negatives.
    object: [N] index into the targets.   slot: [N] in [0, G x size).   negative: [N] bool.
    positive: which of the N are to reconstruct their object.
    """

    groups: int
    size: int
    object: Tensor
    slot: Tensor
    negative: Tensor
    positive: Tensor

    @classmethod
    def of(cls, targets: Targets, groups: int, contrastive: bool) -> Slots:
        """All objects, ``groups`` times, each time (contrastive) first as positives, then as negatives."""
        count, kinds = len(targets), 2 if contrastive else 1
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
            (repetition % kinds == 1).flatten(),
            position[:, 0].flatten(),
        )


# ---------------------------------------------------------------- the method


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

    def check(self, run: RunConfig) -> None:
        if run.two_stage is None:
            raise ConfigError(
                "denoising: makes queries from boxes as a two-stage model does, but two_stage is off; switch it on "
                "(two_stage=true), or denoising off (denoising=null)"
            )
        if not self.contrastive and self.box_noise > 1:
            raise ConfigError(
                f"denoising.box_noise: {self.box_noise} would make sizes negative; at most 1 without contrastive noise"
            )


class DenoisingQueries(QuerySource):
    """Noised objects as queries: contents from their labels, references from their boxes.

    Groups do not see each other; all see the primary group, which sees none of them. Queries that an image does not fill
    have no content and a box in the middle of the image; neither paper nor released code hides them from the others.
    Boxes are kept 1e-3 away from 0 and 1, as released.
    Released: the label embedding has a row for a class that does not exist (DINO), or a channel that says which queries
    are denoising ones (DN-DETR).  Here: neither.
    """

    def __init__(self, dim: int, num_classes: int, config: DenoisingConfig):
        super().__init__()
        self.config = config
        self.label_embedding = nn.Embedding(num_classes, dim)

    def forward(
        self, proposals: Proposals, targets: Targets, earlier: Mapping[str, QueryGroup], draws: Draws | None = None
    ) -> QueryGroup:
        """draws: the random numbers; None: drawn from torch's generator. Raises InputError for a label that is no class."""
        own, num_classes = self.config, self.label_embedding.num_embeddings
        if targets.labels.device.type == "cpu" or targets.host is not None:
            check_labels(targets.on_host, num_classes)
        most = int(targets.counts.max()) if targets.num_images else 0
        slots = Slots.of(targets, number_of_groups(own.queries, most), own.contrastive)
        labels, boxes = targets.labels[slots.object], targets.boxes[slots.object]
        if draws is None:
            draws = Draws.of(len(labels), num_classes, like=boxes)
        labels = noised_labels(labels, draws, own.label_noise)
        if own.contrastive:
            boxes = move_corners(boxes, draws, own.box_noise, slots.negative)
        else:
            boxes = move_centers_and_sizes(boxes, draws, own.box_noise)

        image = targets.image[slots.object]
        shape = targets.num_images, slots.groups * slots.size
        embedded = self.label_embedding(labels)
        contents = embedded.new_zeros(*shape, embedded.shape[-1]).index_put((image, slots.slot), embedded)
        boxes = logit(boxes, eps=1e-3).sigmoid().to(proposals.box_logits.dtype)
        references = boxes.new_full((*shape, 4), 0.5).index_put((image, slots.slot), boxes)
        objects = torch.full(shape, -1, device=image.device).index_put((image, slots.slot), slots.object)
        known = slots.positive
        pairs = Matches(torch.zeros_like(known), image[known], slots.slot[known], slots.object[known])
        return QueryGroup(
            Denoising.name,
            contents,
            proposals.embed(references)[0],
            references,
            parts=slots.groups,
            reads=(PRIMARY,),
            pairs=pairs,
            divisor=slots.groups,
            objects=objects,
        )


class Denoising(Method):
    """DN-DETR's denoising (``contrastive=false``) or DINO's, alone, on any two-stage model.

    Positives are to reconstruct their object; negatives are background. All sums are divided by the number of objects
    times groups.
    Paper: silent.  Released: queries that an image does not fill are background in DINO, not supervised in DN-DETR; DINO
    averages the number of objects over processes, DN-DETR does not.  Here: as DINO, for both.
    """

    name = "denoising"
    Config = DenoisingConfig

    def sources(self) -> Mapping[str, QuerySource]:
        return {self.name: DenoisingQueries(self.run.model.hidden_dim, self.run.model.num_classes, self.config)}

    def branches(self, groups: Sequence[str]) -> Sequence[Branch]:
        terms = weighted_terms(self.run.loss, self.run, self.config.weight)
        return [Branch(self.name, of_group(self.name), None, terms)]
