"""What comparisons with published systems share: pairs as they are recorded, logged errors, features instead of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from msdetr.modules import Layout
from msdetr.structures import Matches, Predictions, Targets

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def per_image(matches: Matches, targets: Targets, layer: int = 0) -> list[list[tuple[int, int]]]:
    """(query, object of the image) pairs of each image, sorted."""
    starts = np.cumsum([0, *targets.counts.tolist()])
    pairs = [[] for _ in range(targets.num_images)]
    for k, image, query, target in zip(
        *(x.tolist() for x in (matches.layer, matches.image, matches.query, matches.target))
    ):
        if k == layer:
            pairs[image].append((query, target - int(starts[image])))
    return [sorted(p) for p in pairs]


def as_pairs(array: np.ndarray) -> list[tuple[int, int]]:
    return sorted(tuple(row) for row in array.tolist())


def made_by(predictions: Predictions, layer: int, image: int) -> Tensor:
    """[Q, C + 4]: what each query of a layer and image predicts."""
    return torch.cat([predictions.logits[layer, image], predictions.boxes[layer, image]], -1)


def of_image(matches: Matches, targets: Targets, layer: int, image: int) -> list[tuple[int, int]]:
    """(query, object of the image) pairs of one image and layer, sorted."""
    return per_image(matches, targets, layer)[image]


def dense_mask(layout: Layout) -> Tensor:
    """[Q, Q] bool: True where a query (row) does not attend to another (column)."""
    size = max(where.stop for where in layout.groups.values())
    hidden = torch.ones(size, size, dtype=torch.bool)
    for block in layout.blocks:
        for start in range(block.start, block.stop, block.size):
            own = slice(start, start + block.size)
            hidden[own, own] = False if block.mask is None else block.mask
            for where in block.reads:
                hidden[own, where] = False
    return hidden


def recorded_errors(predictions: Predictions, matches: Matches, targets: Targets) -> dict[str, list[float]]:
    """What published criteria log besides losses, per layer: the share of matched queries whose best class is wrong, in
    percent, and how far the number of queries whose best class is not the last one is from that of the objects."""
    errors: dict[str, list[float]] = {"class_error": [], "cardinality_error": []}
    for layer, logits in enumerate(predictions.logits):
        pairs = matches.select(matches.layer == layer)
        hit = logits[pairs.image, pairs.query].argmax(-1) == targets.labels[pairs.target]
        errors["class_error"].append(100 - 100 * hit.double().mean().item() if len(hit) else 100.0)
        named = (logits.argmax(-1) != logits.shape[-1] - 1).sum(1)
        errors["cardinality_error"].append((named - targets.counts).abs().double().mean().item())
    return errors


class Maps(nn.Module):
    """Stands in for a backbone: gives recorded feature maps, whatever the image."""

    def __init__(self, maps: Sequence[Tensor]):
        super().__init__()
        self.maps = list(maps)
        self.channels = tuple(x.shape[1] for x in maps)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.maps
