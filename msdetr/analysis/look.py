"""Looking inside a detector: everything that it predicts, in eval mode, and where the queries sample the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from msdetr.structures import DetectorOutput, ImageBatch, Targets


@dataclass(frozen=True)
class SamplingPoints:
    """Where the queries of one image look in one decoder layer (M heads, L levels, P points).

    locations: [Q, M, L, P, 2] (x, y) relative to the image without padding; outside [0, 1] nothing is there.
    weights: [Q, M, L, P] attention weights, which sum to 1 over L and P.
    """

    locations: np.ndarray
    weights: np.ndarray


@contextmanager
def same_draws(device: torch.device | None = None) -> Iterator[None]:
    """What is drawn at random here, on the CPU and on ``device``, is the same each time; torch's generators are left as
    they were."""
    gpu = device if device is not None and device.type == "cuda" else None
    with torch.random.fork_rng(devices=[] if gpu is None else [gpu]):
        torch.default_generator.manual_seed(0)  # torch.manual_seed would seed all GPUs, and nothing would put them back
        if gpu is not None:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(0)
        yield


@contextmanager
def evaluating(detector: nn.Module) -> Iterator[nn.Module]:
    """The detector in eval mode without gradients; put back into the mode it was in."""
    training = detector.training
    detector.eval()
    try:
        with torch.no_grad():
            yield detector
    finally:
        detector.train(training)


def both_branches(detector: nn.Module, batch: ImageBatch) -> DetectorOutput:
    """Predictions in eval mode, with the one-to-many branch where the detector has one. Draws no random number."""
    with evaluating(detector):
        return detector(batch, one_to_many=detector.decoder.one_to_many is not None)


def training_output(detector: nn.Module, batch: ImageBatch, targets: Targets) -> DetectorOutput:
    """As ``both_branches``, with the query groups that only training has. What they draw at random (noised objects) is the
    same at every look, and torch's generators are left as they were."""
    with evaluating(detector), same_draws(batch.images.device):
        return detector(batch, targets, one_to_many=detector.decoder.one_to_many is not None)


def sampling_points(detector: nn.Module, batch: ImageBatch, image: int = 0) -> list[SamplingPoints]:
    """The sampling points of every decoder layer's cross-attention, for one image of a batch."""
    found: list[SamplingPoints] = []

    def record(attention: nn.Module, inputs: tuple) -> None:
        queries, context = inputs
        placed, memory = queries + context.positions, context.memory
        locations = attention.sampling_locations(placed, memory.per_level(context.references), memory.shapes)
        locations = locations / memory.valid_ratios[:, None, None, :, None]  # from padded levels to the image
        weights = attention.attention_weights(placed).unflatten(-1, (attention.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (attention.num_levels, attention.num_points))
        found.append(SamplingPoints(locations[image].cpu().numpy(), weights[image].cpu().numpy()))

    hooks = [layer.cross_attention.inner.register_forward_pre_hook(record) for layer in detector.decoder.layers]
    try:
        with evaluating(detector):
            detector(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found
