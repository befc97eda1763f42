"""``train.micro_batch=auto``: as many images per forward pass as fit into a GPU's memory, found before the first step."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..config import DataConfig, RunConfig
from ..data import CocoDetection
from ..data.transforms import CROP_RANGE, resized
from ..errors import OutOfMemoryError
from ..structures import ImageBatch, Targets
from .evaluate import mixed_precision
from .trainer import Trainer, compiling, out_of_memory_advice

SPARE = 0.05  # share of the device's memory that is left free: fragments, and what other libraries keep


def micro_batch(config: RunConfig, trainer: Trainer, dataset: CocoDetection, known: int | None = None) -> int:
    """Images per forward pass on each rank: the configured number, or where that is "auto" the largest that fits.

    known: what an earlier start of the run found, tried first, so that a run that resumes on a device as large goes on in
    the same pieces. A CPU has no memory to fill: it gets ``TrainConfig.at_once``. All ranks get the same number.
    Raises OutOfMemoryError where not even one image fits.
    """
    settings, world = config.train, trainer.world
    if settings.micro_batch != "auto":
        return settings.micro_batch
    share = -(-settings.batch_size // world.size)
    if world.device.type != "cuda":
        return min(settings.at_once, share)
    start = min(known, share) if known else share
    height, width = largest_image(config.data, dataset.annotations.sizes)
    objects = int(np.bincount(dataset.annotations.image).max()) if len(dataset.annotations.image) else 0
    return min(world.gather(largest_fitting(trainer, start, height, width, objects)))


def largest_image(config: DataConfig, sizes: np.ndarray) -> tuple[int, int]:
    """The height and width in pixels that a batch of training images is padded to at most.

    sizes: [N, 2] heights and widths of the images. Landscapes and portraits may share a batch.
    """
    size = max(config.train_sizes) if config.augment == "detr" else config.test_size
    if not size:
        height, width = np.asarray(sizes).max(0).tolist()
        return height, width
    shapes = {resized(height, width, size, config.max_size) for height, width in np.unique(sizes, axis=0).tolist()}
    if config.augment == "detr":  # crops may be slimmer than the images they are cut from
        low, high = CROP_RANGE
        shapes |= {resized(low, high, size, config.max_size), resized(high, low, size, config.max_size)}
    return max(height for height, _ in shapes), max(width for _, width in shapes)


def largest_fitting(trainer: Trainer, start: int, height: int, width: int, objects: int) -> int:
    """The largest of ``start``, half of it, a quarter, ... images of a size, with so many objects each, whose forward and
    backward pass fit beside optimizer states and gradients. Weights, optimizer and random numbers stay as they are."""
    device, images = trainer.world.device, start
    while True:
        try:
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                _try(trainer, images, height, width, objects)
            return images
        except OutOfMemoryError:
            if images == 1:
                raise
            images //= 2
        finally:
            torch.cuda.empty_cache()


def _try(trainer: Trainer, images: int, height: int, width: int, objects: int) -> None:
    detector, device = trainer.detector.train(), trainer.world.device
    learned = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    batch = ImageBatch.from_images([torch.zeros(3, height, width) for _ in range(images)])
    boxes = torch.rand(objects, 4) * 0.5 + 0.25
    targets = Targets.from_list([torch.zeros(objects, dtype=torch.int64)] * images, [boxes] * images)
    with out_of_memory_advice(batch, targets, trainer.config), compiling(trainer.config):
        reserved = _reserve(learned, device)
        batch, targets = batch.to(device), targets.to(device)
        with mixed_precision(device, trainer.config.precision):
            output = detector(batch, targets)
        total = trainer.criterion(output, targets, float(max(len(targets), 1))).total
        torch.autograd.grad(total, learned, allow_unused=True)
        del reserved


def _reserve(learned: list[nn.Parameter], device: torch.device) -> list[Tensor]:
    """Memory of the size that a step needs beside the passes: two moments for each weight, and what is to be spared."""
    spare = round(SPARE * torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else 0
    moments = [torch.empty(2, *parameter.shape, dtype=parameter.dtype, device=device) for parameter in learned]
    return [*moments, torch.empty(spare, dtype=torch.uint8, device=device)]
