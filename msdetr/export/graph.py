"""What is exported: a detector as a function of tensors, with as much before and after it as is asked for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..checks import count
from ..data.transforms import IMAGE_MEAN, IMAGE_STD
from ..errors import ConfigError
from ..model.postprocess import best_pairs, postprocess
from ..predictor import Predictor
from ..structures import ImageBatch


class Graph(nn.Module):
    """A detector with pre- and post-processing, of any batch and image size.

    ``forward(images, mask, sizes)`` with

    - images [B, 3, H, W] uint8 RGB, resized but not normalised (``raw``: float, normalised), anything on padding,
    - mask [B, H, W] bool, True on padding at the right and bottom,
    - sizes [B, 2] int64: height and width of the images that the boxes are wanted in (``raw``: no such input),

    gives scores [B, N], labels [B, N] int64 and boxes [B, N, 4] (left, top, right, bottom in pixels, clipped to the image), the best
    first; ``raw``: logits [B, Q, C] and boxes [B, Q, 4] cxcywh in [0, 1].

    Resizing is left to the caller, since only images that have one size fit into a batch. Raises ConfigError for a method
    that brings its own post-processing, unless ``raw``.
    """

    def __init__(self, predictor: Predictor, raw: bool = False, max_detections: int | None = None):
        super().__init__()
        if not raw and predictor.postprocess is not postprocess:
            raise ConfigError(
                f"{predictor.config.recipe} has a post-processing of its own, which is not a graph of tensors; export it "
                "raw, and apply that to the logits and boxes"
            )
        self.detector = predictor.detector
        self.raw = raw
        kept = predictor.config.train.max_detections if max_detections is None else max_detections
        self.max_detections = count(kept, "max_detections")
        self.register_buffer("pixel_mean", torch.tensor(IMAGE_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(IMAGE_STD).view(3, 1, 1), persistent=False)

    @property
    def inputs(self) -> tuple[str, ...]:
        return ("images", "mask") if self.raw else ("images", "mask", "sizes")

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("logits", "boxes") if self.raw else ("scores", "labels", "boxes")

    def forward(self, images: Tensor, mask: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        predictions = self.detector(self.batch(images, mask), one_to_many=False).one_to_one.layer(-1)
        if self.raw:
            return predictions.logits[0], predictions.boxes[0]
        height, width = sizes.unbind(-1)
        limits = torch.stack([width, height, width, height], dim=-1)[:, None]  # [B, 1, 4]
        scores, labels, boxes = best_pairs(predictions, sizes, self.max_detections)[:3]
        return scores, labels, boxes.clamp(min=0).minimum(limits.to(boxes.dtype))

    def batch(self, images: Tensor, mask: Tensor) -> ImageBatch:
        """What the detector gets: normalised, zero on padding."""
        if not self.raw:
            images = (images.to(self.pixel_mean.dtype) / 255 - self.pixel_mean) / self.pixel_std
        return ImageBatch(images.masked_fill(mask[:, None], 0), mask)
