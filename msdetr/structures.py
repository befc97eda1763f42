"""The data that flows between the parts of the package: frozen dataclasses instead of string-keyed dicts.

Shape legend: B images in a batch, K decoder layers (depth), Q queries, C classes, T objects in the whole batch,
M matched pairs, S tokens of the flattened feature pyramid. Boxes are (cx, cy, w, h), normalised to [0, 1] by the
width and height of the image without padding, unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .errors import InputError


class _Movable:
    """Gives a dataclass of tensors ``to(...)``, which moves every tensor field (and nested structure)."""

    def to(self, *args, **kwargs):
        moved = {
            f.name: value.to(*args, **kwargs)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), (Tensor, _Movable))
        }
        return replace(self, **moved)


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
    """

    labels: Tensor
    boxes: Tensor
    image: Tensor
    num_images: int
    image_ids: tuple[int, ...] = ()
    sizes: Tensor | None = None

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

    @property
    def counts(self) -> Tensor:
        """[B] int64: number of objects of each image."""
        return torch.bincount(self.image, minlength=self.num_images)

    def of_image(self, index: int) -> Targets:
        """The objects of one image, as a batch of one."""
        keep = self.image == index
        return Targets(
            self.labels[keep],
            self.boxes[keep],
            torch.zeros_like(self.image[keep]),
            num_images=1,
            image_ids=self.image_ids[index : index + 1],
            sizes=None if self.sizes is None else self.sizes[index : index + 1],
        )

    def class_agnostic(self) -> Targets:
        """The same objects, every label 0: what the two-stage encoder is trained with."""
        return replace(self, labels=torch.zeros_like(self.labels))

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
class EncoderOutput(_Movable):
    """What the two-stage encoder proposes, per token: logits [1, B, S, C] (objectness is channel 0), boxes and
    anchors [1, B, S, 4] cxcywh. Tokens on padding or too close to the border have the box (1, 1, 1, 1)."""

    predictions: Predictions
    anchors: Tensor


@dataclass(frozen=True)
class DetectorOutput(_Movable):
    """Everything a detector returns.

    one_to_one:  predictions of all decoder layers; the last layer is the detector's answer.
    one_to_many: predictions of the second branch, None in eval mode unless asked for, or for a baseline.
    encoder:     proposals of the two-stage encoder, None for one-stage models.
    references:  [K, B, Q, 2 or 4] the reference each layer started from, for looking at; detached.
    selected:    [B, Q] token each query was made from (two-stage), else None.
    """

    one_to_one: Predictions
    one_to_many: Predictions | None = None
    encoder: EncoderOutput | None = None
    references: Tensor | None = None
    selected: Tensor | None = None


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
