"""Sine embeddings of positions in an image and of boxes, and the positions of queries made from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .heads import MLP
from .pyramid import Pyramid

TEMPERATURE = 10000


def _waves(positions: Tensor, num_features: int, temperature: float = TEMPERATURE) -> Tensor:
    """[...] positions in radians -> [..., num_features]: sine and cosine in turn, at falling frequencies."""
    exponent = torch.arange(0, num_features, 2, device=positions.device, dtype=positions.dtype) / -num_features
    angle = positions[..., None] * temperature**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def sine_embedding_2d(
    mask: Tensor,
    dim: int,
    dtype: torch.dtype = torch.float32,
    temperature: float = TEMPERATURE,
    offset: float = -0.5,
) -> Tensor:
    """Position embedding of a feature map: mask [B, H, W] (True on padding) -> [B, H, W, dim].

    Row and column of each cell's centre, divided by the unpadded size and scaled to 2 pi, half of the channels each
    (the row first), as in Deformable DETR. offset: from a cell's far edge, in cells; -0.5 is its centre.
    """
    eps = 1e-6
    shown = ~mask
    y, x = (shown.cumsum(axis).to(dtype) for axis in (1, 2))  # counted in integers: deterministic on CUDA, too
    y = (y + offset) / (y[:, -1:, :] + eps)
    x = (x + offset) / (x[:, :, -1:] + eps)
    return _waves(torch.stack([y, x], dim=-1) * (2 * math.pi), dim // 2, temperature).flatten(-2)


class MapPositions(nn.Module):
    """``sine_embedding_2d`` with settings: what a detector places its feature maps with."""

    def __init__(self, temperature: float = TEMPERATURE, offset: float = -0.5):
        super().__init__()
        self.temperature, self.offset = temperature, offset

    def forward(self, mask: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return sine_embedding_2d(mask, dim, dtype, self.temperature, self.offset)


def sine_embedding_of_boxes(boxes: Tensor, dim: int) -> Tensor:
    """[..., 4] cxcywh in [0, 1] -> [..., 2 * dim]: dim / 2 channels for each of cx, cy, w, h."""
    return _waves(boxes * (2 * math.pi), dim // 2).flatten(-2)


class ReferencePositions(nn.Module):
    """Positions of queries, made in every decoder layer from the boxes that it starts from: an MLP of their sine
    embedding (DAB-DETR, Section 4.2; DINO).

    Released: the MLP's weights, and those of the factor of ``ScaledReferencePositions``, start from Xavier's uniform
    distribution.   Here: from torch's default for linear layers, about half as wide.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.mlp = MLP(2 * dim, dim, dim)

    def forward(self, layer: int, queries: Tensor, references: Tensor, memory: Pyramid) -> Tensor:
        """The layer's number, its queries [B, Q, C] and references [B, Q, 4], the encoded image -> [B, Q, C].

        Paper: the reference itself.   Released: relative to the padded image (as on the first level), its row before its
        column.   Here: as released.
        """
        padded = memory.per_level(references)[:, :, 0]
        x, y, width, height = padded.unbind(-1)
        return self.mlp(sine_embedding_of_boxes(torch.stack([y, x, width, height], -1), queries.shape[-1]))


class ScaledReferencePositions(ReferencePositions):
    """As above, times a factor for each channel that an MLP reads off the query's content; the first layer, whose contents
    know nothing of the image, does without (DAB-DETR, Section 4.2, "scale transformation")."""

    def __init__(self, dim: int):
        super().__init__(dim)
        self.scale = MLP(dim, dim, dim)

    def forward(self, layer, queries, references, memory):
        positions = super().forward(layer, queries, references, memory)
        return positions if layer == 0 else positions * self.scale(queries)


QUERY_POSITIONS: dict[str, type[ReferencePositions] | None] = {
    "once": None,  # the groups' own positions serve all layers
    "references": ReferencePositions,
    "scaled_references": ScaledReferencePositions,
}
