"""What all matchers share: the two phases, and the check of their input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..structures import Matches, Predictions, Targets
from .explain import Decisions

_LARGE_TABLE = 2**19  # entries


class Matcher:
    """Assigns queries to objects. Subclasses define ``prepare`` (on the device, no synchronisation) and ``assign``
    (on the host), and ``decisions`` where it can be asked for its reasons.

    each_object: how many queries every object is to get, 1 in one-to-one matching; None: that depends on the predictions.
    most: how many queries an object can get; None: there is no limit.
    image_by_image: whether what is found in an image depends on its own queries and objects alone.
    """

    image_by_image: ClassVar[bool] = True

    @property
    def each_object(self) -> int | None:
        return None

    @property
    def most(self) -> int | None:
        return self.each_object

    def prepare(self, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
        """The tensors ``assign`` needs, each [K, T, ...], row t depending on the image of object t alone."""
        raise NotImplementedError

    def assign(self, host: Sequence[Tensor], predictions: Predictions, targets: Targets) -> Matches:
        """Matches on the CPU from host copies of what ``prepare`` returned, and the targets on the host. ``predictions``
        serves for its shape and, in messages about bad input, its values."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets) -> Matches:
        """Matches of all K layers, on the device of the predictions.

        predictions: logits [K, B, Q, C], boxes [K, B, Q, 4] cxcywh. targets: flat over the B images.
        Raises InputError naming image, layer and query where a score or box is NaN or infinite (F48), or naming
        image and label where a label is outside [0, C) (F50).
        """
        return to_device(match_all([(self, predictions, targets)])[0], predictions.logits.device)

    def decisions(self, matches: Matches, predictions: Predictions, targets: Targets) -> Decisions:
        """Why the matcher made these matches and no others; everything on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} does not explain its matches: define its method decisions")

    @torch.no_grad()
    def explain(self, predictions: Predictions, targets: Targets) -> Decisions:
        """Matches as calling the matcher does, and keeps what became of every pair and why.

        Shapes and errors as in ``__call__``, but all of it on the CPU, so that matches and reasons come from the same
        numbers. A rule that draws random numbers draws them once.
        """
        predictions, targets = predictions.detach().to("cpu").float(), targets.on_host
        return self.decisions(match_all([(self, predictions, targets)])[0], predictions, targets)


@torch.no_grad()
def match_all(problems: Sequence[tuple[Matcher, Predictions, Targets]]) -> list[Matches]:
    """Solves several matching problems with one wait for the device: everything is prepared first, copied to the host
    together, then assigned. The matches are on the CPU; see ``to_device``."""
    problems = [(matcher, predictions.detach().float(), targets) for matcher, predictions, targets in problems]
    for _, predictions, targets in problems:
        if len(predictions.logits[0]) != targets.num_images:
            raise InputError(
                f"predictions are of {len(predictions.logits[0])} images, targets of {targets.num_images}; "
                "give both for the same batch"
            )
        if targets.labels.device.type == "cpu" or targets.host is not None:
            check_labels(targets.on_host, predictions.logits.shape[-1])
    prepared = [
        (all_finite(predictions, targets), *_prepare(matcher, predictions, targets))
        for matcher, predictions, targets in problems
    ]
    host = [[t.to("cpu", non_blocking=True) for t in tensors] for tensors in prepared]
    for device in {p.logits.device for _, p, _ in problems if p.logits.is_cuda}:
        torch.cuda.current_stream(device).synchronize()  # the one wait of a step
    matches = []
    for (matcher, predictions, targets), (finite, *tensors) in zip(problems, host):
        if not finite:
            raise InputError(_not_finite(predictions, targets))
        matches.append(matcher.assign(tensors, predictions, targets.on_host))
    return matches


def to_device(matches: Matches, device: torch.device) -> Matches:
    """Matches on a device, copied without waiting for it."""
    if device.type != "cuda":
        return matches.to(device)
    columns = torch.stack([matches.layer, matches.image, matches.query, matches.target]).pin_memory()
    return Matches(*columns.to(device, non_blocking=True))


def _prepare(matcher: Matcher, predictions: Predictions, targets: Targets) -> tuple[Tensor, ...]:
    """Everything at once, but large tables on the CPU image by image: its caches hold those of one image."""
    depth, _, num_queries, _ = predictions.logits.shape
    if (
        not matcher.image_by_image
        or targets.image.device.type != "cpu"
        or depth * len(targets) * num_queries < _LARGE_TABLE
    ):
        return matcher.prepare(predictions, targets)
    images = targets.image.unique().tolist()
    parts = [matcher.prepare(predictions.of_image(b), targets.of_image(b)) for b in images]
    return tuple(torch.cat(part, dim=1) for part in zip(*parts))


def all_finite(predictions: Predictions, targets: Targets) -> Tensor:
    """0-d bool, on the device: no NaN and no infinity in scores and boxes."""
    return torch.stack([x.isfinite().all() for x in (predictions.logits, predictions.boxes, targets.boxes)]).all()


def check_labels(targets: Targets, num_classes: int) -> None:
    """Raises InputError naming image and label where a label is outside [0, C) (F50)."""
    wrong = (targets.labels < 0) | (targets.labels >= num_classes)
    if wrong.any():
        t = int(wrong.nonzero()[0])
        raise InputError(
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
