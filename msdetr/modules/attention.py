"""Self-attention between queries, and multi-scale deformable attention into a feature pyramid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops import ms_deform_attn
from .pyramid import level_sizes


class SelfAttention(nn.Module):
    """Multi-head attention of queries to each other; positions are added to queries and keys, not to values."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)

    def forward(self, queries: Tensor, positions: Tensor) -> Tensor:
        placed = queries + positions  # [B, Q, C]
        return self.attention(placed, placed, queries, need_weights=False)[0]


class MultiScaleDeformableAttention(nn.Module):
    """Each query looks at a few learned points around its reference, on every level (Deformable DETR, Eq. 3).

    A query predicts, per head, level and point, an offset from its reference and a weight; the values bilinearly
    sampled there are summed by weight.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = nn.Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Points start on rays, one direction per head, point p at distance p; weights start equal."""
        angle = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
        ray = ray / ray.abs().amax(-1, keepdim=True)
        distance = torch.arange(1, self.num_points + 1)
        grid = ray[:, None, None] * distance[:, None]  # [M, 1, P, 2]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(grid.expand(-1, self.num_levels, -1, -1).flatten())
        for zeros in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zeros)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def sampling_locations(self, queries: Tensor, references: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
        """[B, Q, M, L, P, 2]: where each query looks, (x, y) in [0, 1] of each padded level.

        Offsets are counted in cells of a level around a reference point, in fractions of the size of a reference box.
        """
        offsets = self.sampling_offsets(queries).unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        references = references[:, :, None, :, None]  # [B, Q, 1, L, 1, 2 or 4]
        if references.shape[-1] == 2:
            return references + offsets / level_sizes(shapes, references)[:, None]
        return references[..., :2] + offsets / self.num_points * references[..., 2:] * 0.5

    def forward(
        self,
        queries: Tensor,
        references: Tensor,
        tokens: Tensor,
        shapes: tuple[tuple[int, int], ...],
        mask: Tensor | None = None,
    ) -> Tensor:
        """queries [B, Q, C], references [B, Q, L, 2 or 4] (points or boxes), tokens [B, S, C], mask [B, S] True on
        padding -> [B, Q, C]."""
        values = self.value_proj(tokens)
        if mask is not None:
            values = values.masked_fill(mask[..., None], 0)
        values = values.unflatten(-1, (self.num_heads, -1))  # [B, S, M, D]
        weights = self.attention_weights(queries).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (self.num_levels, self.num_points))  # [B, Q, M, L, P]
        locations = self.sampling_locations(queries, references, shapes)
        return self.output_proj(ms_deform_attn(values, shapes, locations, weights))
