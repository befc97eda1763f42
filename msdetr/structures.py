"""The data that flows between the parts of the package: frozen dataclasses instead of string-keyed dicts.

Shape legend: B images in a batch, K decoder layers (depth), Q queries, C classes, T objects in the whole batch,
M matched pairs, S tokens of the flattened feature pyramid. Boxes are (cx, cy, w, h), normalised to [0, 1] by the
width and height of the image without padding, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from .errors import InputError


class _Movable:
    """Gives a dataclass of tensors ``to(...)``, which moves every tensor field (and nested structure)."""

    def to(self, *args, **kwargs):
        return replace(self, **{f.name: _moved(getattr(self, f.name), args, kwargs) for f in fields(self) if f.init})


def _moved(value, args, kwargs):
    if isinstance(value, (Tensor, _Movable)):
        return value.to(*args, **kwargs)
    if isinstance(value, Mapping):
        return {name: _moved(entry, args, kwargs) for name, entry in value.items()}
    return value


@dataclass(frozen=True)
class ImageBatch(_Movable):
    """Images of different sizes, padded at the right and bottom to a common size.

    images: [B, 3, H, W] float, normalised; zero on padding.
    mask:   [B, H, W] bool, True on padding (the convention of DETR).
    """

    images: Tensor
    mask: Tensor

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> ImageBatch:
        """Pads normalised images, each [3, h, w], to the largest height and width among them."""
        height = max(image.shape[-2] for image in images)
        width = max(image.shape[-1] for image in images)
        batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        mask = torch.ones(len(images), height, width, dtype=torch.bool, device=images[0].device)
        for i, image in enumerate(images):
            h, w = image.shape[-2:]
            batch[i, :, :h, :w] = image
            mask[i, :h, :w] = False
        return cls(batch, mask)

    @classmethod
    def of(cls, images: ImageBatch | Tensor | Sequence[Tensor]) -> ImageBatch:
        """A batch from itself, from images of one size [B, 3, H, W], or from a list of images [3, h, w]; normalised.

        Raises InputError for anything else.
        """
        if isinstance(images, ImageBatch):
            return images
        if isinstance(images, Tensor) and images.dim() != 4:
            raise InputError(
                f"images: expected a tensor [B, 3, H, W], got {list(images.shape)}; images[None] is a batch of 1"
            )
        if not isinstance(images, (Tensor, list, tuple)) or not all(isinstance(image, Tensor) for image in images):
            raise InputError(
                "images: expected an ImageBatch, a tensor [B, 3, H, W] or a list of tensors [3, h, w]; got "
                f"{type(images).__name__}. `msdetr.load(...).predict` takes files, arrays and PIL images"
            )
        if not len(images):
            raise InputError("images: none were given")
        for image in images:
            if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape or not image.is_floating_point():
                raise InputError(
                    f"images: expected normalised floating-point images [3, h, w], got {list(image.shape)} {image.dtype}"
                )
        return cls.from_images(list(images))

    def __len__(self) -> int:
        return len(self.images)

    def to(self, *args, **kwargs) -> ImageBatch:
        images = self.images.to(*args, **kwargs)
        return ImageBatch(images, self.mask.to(images.device, non_blocking=kwargs.get("non_blocking", False)))

    def pin_memory(self) -> ImageBatch:
        return ImageBatch(self.images.pin_memory(), self.mask.pin_memory())


@dataclass(frozen=True)
class Targets(_Movable):
    """The annotated objects of a batch, flat: object t lies in image ``image[t]``. Sorted by image.

    labels: [T] int64 in [0, C).   boxes: [T, 4] cxcywh in [0, 1].   image: [T] int64 in [0, B), non-decreasing.
    num_images: B.   image_ids: the B ids of the data set (empty where there are none), for messages and evaluation.
    sizes: [B, 2] int64, original (height, width) in pixels, for post-processing; None where it is not known.
    host: the same objects on the CPU, kept when they are moved to a device, so that nothing waits to read them back.
    original: [T] int64, which object of the batch each is a copy of, where objects are repeated; else None.
    """

    labels: Tensor
    boxes: Tensor
    image: Tensor
    num_images: int
    image_ids: tuple[int, ...] = ()
    sizes: Tensor | None = None
    host: Targets | None = None
    original: Tensor | None = None

    @classmethod
    def from_list(
        cls,
        labels: Sequence[Tensor],
        boxes: Sequence[Tensor],
        image_ids: Sequence[int] = (),
        sizes: Tensor | None = None,
    ) -> Targets:
        """From one labels tensor [t_b] and one boxes tensor [t_b, 4] per image."""
        counts = torch.tensor([len(x) for x in labels])
        device = labels[0].device if labels else None
        return cls(
            labels=torch.cat(list(labels)).long() if labels else torch.zeros(0, dtype=torch.long),
            boxes=torch.cat([b.reshape(-1, 4) for b in boxes]) if boxes else torch.zeros(0, 4),
            image=torch.arange(len(labels)).repeat_interleave(counts).to(device),
            num_images=len(labels),
            image_ids=tuple(image_ids),
            sizes=sizes,
        )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, *args, **kwargs) -> Targets:
        boxes, non_blocking = self.boxes.to(*args, **kwargs), kwargs.get("non_blocking", False)

        def moved(numbers: Tensor) -> Tensor:
            """Whole numbers, which no dtype of the boxes may change."""
            return numbers.to(boxes.device, non_blocking=non_blocking)

        host = self if self.labels.device.type == "cpu" else self.host
        return replace(
            self,
            labels=moved(self.labels),
            boxes=boxes,
            image=moved(self.image),
            sizes=None if self.sizes is None else moved(self.sizes),
            original=None if self.original is None else moved(self.original),
            host=None if boxes.device.type == "cpu" else host,
        )

    @property
    def on_host(self) -> Targets:
        """These objects on the CPU; waits for the device only if they were made there."""
        if self.labels.device.type == "cpu":
            return self
        return self.host if self.host is not None else self.to("cpu")

    @property
    def counts(self) -> Tensor:
        """[B] int64, on the CPU: number of objects of each image."""
        return torch.bincount(self.on_host.image, minlength=self.num_images)

    def repeated(self, times: int) -> Targets:
        """Every object ``times`` times in a row, as hybrid matching supervises it (H-DETR, Section 3)."""
        original = torch.arange(len(self), device=self.labels.device) if self.original is None else self.original
        return replace(
            self,
            labels=self.labels.repeat_interleave(times),
            boxes=self.boxes.repeat_interleave(times, dim=0),
            image=self.image.repeat_interleave(times),
            original=original.repeat_interleave(times),
            host=None if self.host is None else self.host.repeated(times),
        )

    def of_image(self, index: int) -> Targets:
        """The objects of one image, as a batch of one."""
        keep = self.image == index
        original = None if self.original is None else self.original[keep]
        return Targets(
            self.labels[keep],
            self.boxes[keep],
            torch.zeros_like(self.image[keep]),
            num_images=1,
            image_ids=self.image_ids[index : index + 1],
            sizes=None if self.sizes is None else self.sizes[index : index + 1],
            original=original if original is None or not len(original) else original - original.min(),
        )

    def class_agnostic(self) -> Targets:
        """The same objects, every label 0: what the two-stage encoder is trained with."""
        return replace(
            self,
            labels=torch.zeros_like(self.labels),
            host=None if self.host is None else self.host.class_agnostic(),
        )

    def pin_memory(self) -> Targets:
        return replace(
            self,
            labels=self.labels.pin_memory(),
            boxes=self.boxes.pin_memory(),
            image=self.image.pin_memory(),
            sizes=None if self.sizes is None else self.sizes.pin_memory(),
        )


@dataclass(frozen=True)
class Predictions(_Movable):
    """Class logits [K, B, Q, C] and boxes [K, B, Q, 4] (cxcywh in [0, 1]) of K layers."""

    logits: Tensor
    boxes: Tensor

    def layer(self, index: int) -> Predictions:
        """One layer, the depth dimension kept (K = 1)."""
        index = range(len(self.logits))[index]
        return Predictions(self.logits[index : index + 1], self.boxes[index : index + 1])

    def of_image(self, index: int) -> Predictions:
        """One image, the batch dimension kept (B = 1)."""
        index = range(self.logits.shape[1])[index]
        return Predictions(self.logits[:, index : index + 1], self.boxes[:, index : index + 1])

    def detach(self) -> Predictions:
        return Predictions(self.logits.detach(), self.boxes.detach())

    def float(self) -> Predictions:
        """In fp32 at least: half types are widened, float64 stays."""
        wide = torch.promote_types(self.logits.dtype, torch.float32)
        return Predictions(self.logits.to(wide), self.boxes.to(wide))


@dataclass(frozen=True)
class Matches(_Movable):
    """Matched pairs, flat over layers and images, all [M] int64: query ``query`` of image ``image``, as predicted by
    layer ``layer``, serves object ``target``, an index into the *flat* targets of the batch.

    Where a query serves two objects (``exclusive=False`` or the released rule), the pair that comes later gives the
    query its class.
    """

    layer: Tensor
    image: Tensor
    query: Tensor
    target: Tensor

    def __len__(self) -> int:
        return len(self.query)

    def select(self, keep: Tensor) -> Matches:
        """The pairs that a mask or an index picks."""
        return Matches(self.layer[keep], self.image[keep], self.query[keep], self.target[keep])


@dataclass(frozen=True)
class QueryGroup:
    """One slice of the query axis: Q queries that attend to each other, and what they are supervised with.

    contents, positions: [B, Q, C].   references: [B, Q, 2 or 4] in [0, 1].
    parts: the group consists of so many equal parts that do not see each other (Q = parts x size of a part).
    mask: [Q / parts, Q / parts] bool, True where a query of a part may not attend to another.
    reads: names of the groups it also attends to; the primary group reads none.
    targets: the objects of its own, where they are not those of the batch (noised, repeated).
    pairs: a known assignment, as matches of one layer; None: it is matched.
    divisor: what sums are divided by, beyond the number of objects.
    selected: [B, Q] token each query was made from, where it was made from one.
    objects: [B, Q] object each query was made from, an index into the batch's targets; -1 for a query that fills up. None
    where they are not made from objects.
    encoder: the encoder's proposals that it was made from, where they are its own.
    """

    name: str
    contents: Tensor
    positions: Tensor
    references: Tensor
    parts: int = 1
    mask: Tensor | None = None
    reads: tuple[str, ...] = ()
    targets: Targets | None = None
    pairs: Matches | None = None
    divisor: float = 1.0
    selected: Tensor | None = None
    objects: Tensor | None = None
    encoder: EncoderOutput | None = None


@dataclass(frozen=True)
class GroupOutput(_Movable):
    """What the decoder makes of a query group; see ``QueryGroup`` for the fields they share.

    predictions: of all K layers.   candidates: predictions of the candidates inside each layer, None where they are not
    asked for.   references: [K, B, Q, 4] the reference each layer started from, for looking at; detached.
    """

    predictions: Predictions
    candidates: Predictions | None
    references: Tensor
    parts: int = 1
    targets: Targets | None = None
    pairs: Matches | None = None
    divisor: float = 1.0
    selected: Tensor | None = None
    objects: Tensor | None = None
    encoder: EncoderOutput | None = None

    def layer(self, index: int) -> GroupOutput:
        """The predictions of one decoder layer (K = 1)."""
        candidates = None if self.candidates is None else self.candidates.layer(index)
        return replace(self, predictions=self.predictions.layer(index), candidates=candidates)


@dataclass(frozen=True)
class EncoderOutput(_Movable):
    """What the two-stage encoder proposes, per token: logits [1, B, S, C] (objectness is channel 0), boxes and
    anchors [1, B, S, 4] cxcywh. Tokens on padding or too close to the border have the box (1, 1, 1, 1)."""

    predictions: Predictions
    anchors: Tensor


@dataclass(frozen=True)
class DetectorOutput(_Movable):
    """Everything a detector returns. The primary query group is the detector's answer; others only train it.

    one_to_one:  predictions of all decoder layers; the last layer is the answer.
    one_to_many: predictions of the candidates inside each layer, None in eval mode unless asked for, or for a baseline.
    encoder:     proposals of the two-stage encoder, None for one-stage models.
    references:  [K, B, Q, 2 or 4] the reference each layer started from, for looking at; detached.
    selected:    [B, Q] token each query was made from (two-stage), else None.
    groups:      further query groups by name, empty unless targets were given.
    """

    one_to_one: Predictions
    one_to_many: Predictions | None = None
    encoder: EncoderOutput | None = None
    references: Tensor | None = None
    selected: Tensor | None = None
    groups: Mapping[str, GroupOutput] = field(default_factory=dict)

    def layer(self, index: int) -> DetectorOutput:
        """The predictions of one decoder layer (K = 1); references, proposals and selection as they are."""
        return replace(
            self,
            one_to_one=self.one_to_one.layer(index),
            one_to_many=None if self.one_to_many is None else self.one_to_many.layer(index),
            groups={name: group.layer(index) for name, group in self.groups.items()},
        )


@dataclass(frozen=True)
class Detections(_Movable):
    """Final detections of one image, best first: scores [N], labels [N] int64 (class indices), boxes [N, 4] xyxy in
    pixels of the original image, query [N] int64 the query each came from."""

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    query: Tensor

    def __len__(self) -> int:
        return len(self.scores)
