"""Predictors: a linear layer for classes, a small MLP for boxes."""

from __future__ import annotations

import itertools
import math

from torch import Tensor, nn

from .linear import Linear

PRIOR_PROBABILITY = 0.01


def class_head(dim: int, num_classes: int) -> Linear:
    """Linear class head whose untrained probabilities are 1 % (focal loss, Section 4.1 of Lin et al., 2017)."""
    head = Linear(dim, num_classes)
    nn.init.constant_(head.bias, -math.log((1 - PRIOR_PROBABILITY) / PRIOR_PROBABILITY))
    return head


class MLP(nn.Module):
    """Linear layers with ReLU in between, [..., widths[0]] -> [..., widths[-1]]."""

    def __init__(self, *widths: int):
        super().__init__()
        self.layers = nn.ModuleList(Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = layer(x, relu=True)
        return self.layers[-1](x)


class BoxHead(MLP):
    """Three-layer MLP [..., dim] -> [..., 4]: offsets to a reference, in logits. Starts as zero, or with boxes whose
    sides are sigmoid(-2), about 12 % of the image, where ``size_bias`` is -2."""

    def __init__(self, dim: int, size_bias: float = 0.0):
        super().__init__(dim, dim, dim, 4)
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)
        nn.init.constant_(self.layers[-1].bias[2:], size_bias)
