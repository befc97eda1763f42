"""Augmentation as compositions of torchvision's v2 transforms over (tv_tensors.Image, tv_tensors.BoundingBoxes).

Each pipeline takes an image of bytes [3, h, w] with xyxy boxes in pixels and returns a normalised float image with the
boxes moved along. Boxes that a crop leaves without area come back with zero size; the data set removes them with their
labels. Random parameters come from torch's global generator, as in torchvision; ``CocoDetection`` seeds it per image inside
``torch.random.fork_rng``, so a pipeline of your own needs no care for reproducibility.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from ..config import DataConfig
from ..errors import InputError

IMAGE_MEAN = (0.485, 0.456, 0.406)  # ImageNet's, of RGB in [0, 1]
IMAGE_STD = (0.229, 0.224, 0.225)

CROP_FIRST_SIZES = (400, 500, 600)  # DETR, section A.4: shorter side before a random crop ...
CROP_RANGE = (384, 600)  # ... and the sides of that crop, pixels
CROP_FIRST_LIMIT = 4000  # longer side before the crop; DETR has none, and a 1 × 900 strip becomes 400 × 360,000


def resized(height: int, width: int, size: int, max_size: int | None = None) -> tuple[int, int]:
    """Returns (height, width) with the shorter side at ``size``, less where the longer one would pass ``max_size``.

    DETR's rounding, which the released checkpoints were trained and evaluated with.
    """
    short, long = min(height, width), max(height, width)
    if max_size is not None and long / short * size > max_size:
        size = max(round(max_size * short / long), 1)
    other = int(size * long / short)
    if max_size is not None and size == 1:  # so thin that rounding decides
        other = min(other, max_size)
    return (size, other) if height <= width else (other, size)


class RandomShortestSize(v2.Transform):
    """Resizes to a shorter side drawn from ``sizes``, the longer one at most ``max_size`` pixels."""

    def __init__(self, sizes: Sequence[int], max_size: int | None = None):
        super().__init__()
        self.sizes, self.max_size = tuple(sizes), max_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        size = self.sizes[int(torch.randint(len(self.sizes), ()))] if len(self.sizes) > 1 else self.sizes[0]
        return {"size": resized(*v2.query_size(flat_inputs), size, self.max_size)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.resize(inpt, list(params["size"]), antialias=True)


class RandomSizeCrop(v2.Transform):
    """Cuts a window whose sides are drawn from [low, high] pixels, within the image."""

    def __init__(self, low: int, high: int):
        super().__init__()
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        window = {}
        for start, side, extent in zip(("top", "left"), ("height", "width"), v2.query_size(flat_inputs)):
            high = min(self.high, extent)
            window[side] = int(torch.randint(min(self.low, high), high + 1, ()))
            window[start] = int(torch.randint(0, extent - window[side] + 1, ()))
        return window

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


def normalized() -> v2.Compose:
    """Turns bytes into floats and normalises them by ImageNet's mean and deviation."""
    return v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGE_MEAN, IMAGE_STD, inplace=True)])


def eval_transform(config: DataConfig) -> v2.Compose:
    """Resizes to ``test_size`` (0: not at all) and normalises."""
    resize = [RandomShortestSize([config.test_size], config.max_size)] if config.test_size else []
    return v2.Compose([*resize, *normalized().transforms])


def train_transform(config: DataConfig) -> v2.Compose:
    """Builds what ``data.augment`` names: "detr" flips, then resizes to a random size either at once or around a random crop;
    "flip" flips and resizes as at evaluation; "none" is the evaluation pipeline."""
    if config.augment == "none":
        return eval_transform(config)
    flip = v2.RandomHorizontalFlip()
    if config.augment == "flip":
        return v2.Compose([flip, *eval_transform(config).transforms])
    if config.augment != "detr":
        raise InputError(f"data.augment: {config.augment!r} is none of detr, flip, none")
    resize = RandomShortestSize(config.train_sizes, config.max_size)
    crop = v2.Compose([RandomShortestSize(CROP_FIRST_SIZES, CROP_FIRST_LIMIT), RandomSizeCrop(*CROP_RANGE), resize])
    return v2.Compose([flip, v2.RandomChoice([resize, crop]), *normalized().transforms])
