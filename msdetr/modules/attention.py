"""Self-attention between queries, and multi-scale deformable attention into a feature pyramid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..ops import ms_deform_attn
from .context import Block, Context
from .pyramid import level_sizes


class SelfAttention(nn.Module):
    """Multi-head attention of queries to each other; positions are added to queries and keys, not to values.

    Queries see those of their own part of a group and of the groups it reads (see ``Layout``).
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout=dropout, batch_first=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.attention.in_proj_weight)
        nn.init.xavier_uniform_(self.attention.out_proj.weight)

    def forward(self, queries: Tensor, context: Context) -> Tensor:
        placed = queries + context.positions  # [B, Q, C]
        attended = [self._attend(queries, placed, block) for block in context.layout.blocks]
        return attended[0] if len(attended) == 1 else torch.cat(attended, dim=1)

    def _attend(self, queries: Tensor, placed: Tensor, block: Block) -> Tensor:
        batch, _, dim = queries.shape
        whole = (block.start, block.stop, block.parts) == (0, queries.shape[1], 1)
        query, value = (
            x if whole else x[:, block.start : block.stop].reshape(batch * block.parts, block.size, dim)
            for x in (placed, queries)
        )
        key = query
        if block.reads:
            key, value = (
                torch.cat([own, *(x[:, where].repeat_interleave(block.parts, dim=0) for where in block.reads)], dim=1)
                for own, x in ((query, placed), (value, queries))
            )
        mask = block.mask
        if mask is not None and block.reads:
            mask = torch.nn.functional.pad(mask, (0, key.shape[1] - block.size), value=False)
        attended = self.attention(query, key, value, attn_mask=mask, need_weights=False)[0]
        return attended.reshape(batch, -1, dim)


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
        self.sampling_offsets.lr_group = "projection"
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
