"""The usual parts of branches: which predictions, and the three terms of a detection loss with their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import torch

from ..structures import DetectorOutput, EncoderOutput, GroupOutput, Matches, Predictions, Targets
from .criterion import Supervised, Term
from .terms import focal_loss, giou_loss, l1_loss


def detection_terms(
    classification: float,
    l1: float,
    giou: float,
    focal_alpha: float = 0.25,
    focal_gamma: float = 2.0,
    giou_eps: float = 0.0,
) -> Mapping[str, tuple[float, Term]]:
    """Focal loss of the classes, L1 and generalised IoU of the boxes, with their weights."""
    return {
        "class": (classification, partial(focal_loss, alpha=focal_alpha, gamma=focal_gamma)),
        "l1": (l1, l1_loss),
        "giou": (giou, partial(giou_loss, eps=giou_eps) if giou_eps else giou_loss),
    }


def answer(output: DetectorOutput, targets: Targets) -> Supervised:
    """The detector's own predictions, for one-to-one supervision."""
    return Supervised(output.one_to_one, targets, selected=output.selected)


def candidates(output: DetectorOutput, targets: Targets) -> Supervised | None:
    """What the candidates inside each decoder layer predict, for one-to-many supervision."""
    return None if output.one_to_many is None else Supervised(output.one_to_many, targets, selected=output.selected)


def encoder_proposals(output: DetectorOutput, targets: Targets) -> Supervised | None:
    """The two-stage encoder's proposals: class-agnostic, matched on their anchors.

    Paper: silent.  Released: anchors, class cost 0, for MS-DETR and baseline alike.  Here: as released.
    """
    return None if output.encoder is None else _on_anchors(output.encoder, targets)


def encoder_proposals_of(name: str, boxes: bool = False):
    """Selects the proposals of a query group that has its own, as ``encoder_proposals`` does those of the primary one, or as
    ``encoder_boxes`` does."""

    def select(output: DetectorOutput, targets: Targets) -> Supervised | None:
        group = output.groups.get(name)
        if group is None or group.encoder is None:
            return None
        return (_on_boxes if boxes else _on_anchors)(group.encoder, targets)

    return select


def _on_anchors(encoder: EncoderOutput, targets: Targets) -> Supervised:
    anchors = Predictions(encoder.predictions.logits, encoder.anchors[None])
    return Supervised(encoder.predictions, targets.class_agnostic(), match_on=anchors)


def encoder_boxes(output: DetectorOutput, targets: Targets) -> Supervised | None:
    """The two-stage encoder's proposals: class-agnostic, matched as they are predicted (Deformable DETR, H-DETR)."""
    return None if output.encoder is None else _on_boxes(output.encoder, targets)


def _on_boxes(encoder: EncoderOutput, targets: Targets) -> Supervised:
    return Supervised(encoder.predictions, targets.class_agnostic())


def of_queries(select: Callable[[DetectorOutput, Targets], Supervised | None], group: str | None = None):
    """Of what is supervised of the encoder, only the tokens that became queries, with the objects' own classes (DINO).
    group: whose queries; None: the primary group's."""

    def selected(output: DetectorOutput, targets: Targets) -> Supervised | None:
        given = select(output, targets)
        tokens = output.selected if group is None or given is None else output.groups[group].selected
        if given is None or tokens is None:
            return None
        where = tokens[None, ..., None]
        taken = {
            name: Predictions(
                *(x.gather(2, where.expand(-1, -1, -1, x.shape[-1])) for x in (whole.logits, whole.boxes))
            )
            for name in ("predictions", "match_on")
            if (whole := getattr(given, name)) is not None
        }
        return replace(given, targets=targets, selected=tokens, **taken)

    return selected


def of_group(name: str, candidates: bool = False):
    """Selects the predictions of a query group (or those of its candidates) with its own targets, pairs and divisor."""

    def select(output: DetectorOutput, targets: Targets) -> Supervised | None:
        group = output.groups.get(name)
        if group is None or (candidates and group.candidates is None):
            return None
        predictions = group.candidates if candidates else group.predictions
        own = targets if group.targets is None else group.targets
        pairs = None if group.pairs is None or candidates else in_every_layer(group, predictions)
        origin = {name: getattr(group, name) for name in ("parts", "selected", "objects")}
        return Supervised(predictions, own, pairs=pairs, divisor=group.divisor, **origin)

    return select


def in_every_layer(group: GroupOutput, predictions: Predictions) -> Matches:
    """A group's known pairs, repeated for each of the K layers."""
    depth, count = len(predictions.logits), len(group.pairs)
    layer = torch.arange(depth, device=group.pairs.query.device).repeat_interleave(count)
    columns = (getattr(group.pairs, name).repeat(depth) for name in ("image", "query", "target"))
    return Matches(layer, *columns)
