"""Inputs of the operator, for its tests."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import msdetr.ops


@dataclass(frozen=True)
class Inputs:
    """Arguments of the operator and a gradient of its output."""

    value: Tensor
    shapes: list[tuple[int, int]]
    locations: Tensor
    weights: Tensor
    grad_output: Tensor

    @classmethod
    def random(
        cls, *, batch=2, heads=2, channels=4, shapes=((5, 4), (3, 2)), queries=3, points=2, margin=0.2, seed=0
    ) -> Inputs:
        """In fp64; locations reach `margin` of a level's size beyond it."""
        generator = torch.Generator().manual_seed(seed)
        tokens = sum(height * width for height, width in shapes)
        place = (batch, queries, heads, len(shapes), points)
        uniform = torch.rand(*place, 2, generator=generator, dtype=torch.float64)
        return cls(
            value=torch.randn(batch, tokens, heads, channels, generator=generator, dtype=torch.float64),
            shapes=list(shapes),
            locations=uniform * (1 + 2 * margin) - margin,
            weights=torch.rand(place, generator=generator, dtype=torch.float64),
            grad_output=torch.randn(batch, queries, heads * channels, generator=generator, dtype=torch.float64),
        )

    def to(self, *args) -> Inputs:
        tensors = (x.to(*args) for x in (self.value, self.locations, self.weights, self.grad_output))
        value, locations, weights, grad_output = tensors
        return Inputs(value, self.shapes, locations, weights, grad_output)

    def run(self, function=msdetr.ops.ms_deform_attn) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Output, and the gradients of value, locations and weights."""
        leaves = [x.detach().requires_grad_() for x in (self.value, self.locations, self.weights)]
        output = function(leaves[0], self.shapes, leaves[1], leaves[2])
        return output.detach(), *torch.autograd.grad(output, leaves, self.grad_output)
