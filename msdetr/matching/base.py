"""What all matchers share: the two phases, and the check of their input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..structures import Matches, Predictions, Targets

_LARGE_TABLE = 2**19  # entries


class Matcher:
    """Assigns queries to objects. Subclasses define ``prepare`` (on the device, no synchronisation) and ``assign``
    (on the host)."""

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
        """The tensors ``assign`` needs, each [K, T, ...], row t depending on the image of object t alone."""
        raise NotImplementedError

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        """Matches on the CPU from host copies of what ``prepare`` returned. ``predictions`` serves for its shape and,
        in messages about bad input, its values."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets) -> Matches:
        """Matches of all K layers, on the device of the predictions.

        predictions: logits [K, B, Q, C], boxes [K, B, Q, 4] cxcywh. targets: flat over the B images.
        Raises ValueError naming image, layer and query where a score or box is NaN or infinite (F48), or naming
        image and label where a label is outside [0, C) (F50).
        """
        return match_all([(self, predictions, targets)])[0]


@torch.no_grad()
def match_all(problems: Sequence[tuple[Matcher, Predictions, Targets]]) -> list[Matches]:
    """Solves several matching problems with one wait for the device: everything is prepared first, copied to the host
    together, then assigned."""
    problems = [(matcher, predictions.detach().float(), targets) for matcher, predictions, targets in problems]
    for _, predictions, targets in problems:
        if len(predictions.logits[0]) != targets.num_images:
            raise ValueError(
                f"predictions are of {len(predictions.logits[0])} images, targets of {targets.num_images}; "
                "give both for the same batch"
            )
        if targets.labels.device.type == "cpu":
            check_labels(targets, predictions.logits.shape[-1])
    prepared = [
        (all_finite(predictions, targets), *_prepare(matcher, predictions, targets))
        for matcher, predictions, targets in problems
    ]
    on_gpu = any(p.logits.is_cuda for _, p, _ in problems)
    host = [[t.to("cpu", non_blocking=True) for t in tensors] for tensors in prepared]
    if on_gpu:
        torch.cuda.current_stream().synchronize()
    matches = []
    for (matcher, predictions, targets), (finite, *tensors) in zip(problems, host):
        if not finite:
            raise ValueError(_not_finite(predictions, targets))
        found = matcher.assign(tensors, predictions, targets)
        matches.append(found.to(predictions.logits.device, non_blocking=True))
    return matches


def _prepare(matcher: Matcher, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
    """Everything at once, but large tables on the CPU image by image: its caches hold those of one image."""
    depth, _, num_queries, _ = predictions.logits.shape
    if targets.image.device.type != "cpu" or depth * len(targets) * num_queries < _LARGE_TABLE:
        return matcher.prepare(predictions, targets)
    images = targets.image.unique().tolist()
    parts = [matcher.prepare(predictions.of_image(b), targets.of_image(b)) for b in images]
    return tuple(torch.cat(part, dim=1) for part in zip(*parts))


def all_finite(predictions: Predictions, targets: Targets) -> Tensor:
    """0-d bool, on the device: no NaN and no infinity in scores and boxes."""
    return torch.stack([x.isfinite().all() for x in (predictions.logits, predictions.boxes, targets.boxes)]).all()


def check_labels(targets: Targets, num_classes: int) -> None:
    """Raises ValueError naming image and label where a label is outside [0, C) (F50)."""
    wrong = (targets.labels < 0) | (targets.labels >= num_classes)
    if wrong.any():
        t = int(wrong.nonzero()[0])
        raise ValueError(
            f"label {int(targets.labels[t])} of object {t} in {image_name(targets, int(targets.image[t]))} is outside "
            f"[0, {num_classes}); the model has {num_classes} classes: set model.num_classes to the data set's"
        )


def _not_finite(predictions: Predictions, targets: Targets) -> str:
    """Says which layer, image and query have a NaN or an infinity (F48)."""
    bad = ~predictions.boxes.isfinite().all(-1) | ~predictions.logits.isfinite().all(-1)
    if not bad.any():
        t = int((~targets.boxes.isfinite().all(-1)).nonzero()[0])
        where = image_name(targets, int(targets.image[t]))
        return f"object {t} in {where} has a NaN or infinite box {targets.boxes[t].tolist()}; correct its annotation"
    layer, image, query = (int(i) for i in bad.nonzero()[0])
    return (
        f"layer {layer}, {image_name(targets, image)}, query {query} has a NaN or infinite prediction: box "
        f"{predictions.boxes[layer, image, query].tolist()}, highest logit {predictions.logits[layer, image, query].max()}; "
        "lower the learning rate, or look at the images of this step"
    )


def image_name(targets: Targets, image: int) -> str:
    """'image id 139 (number 0 of the batch)', for messages."""
    if targets.image_ids:
        return f"image id {targets.image_ids[image]} (number {image} of the batch)"
    return f"image number {image} of the batch"
