"""Self-attention between queries, and multi-scale deformable attention into a feature pyramid."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from ..ops import linear, ms_deform_attn, sampling_points, takes, takes_points
from .context import Block, Context
from .linear import Linear
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
        return self._of_heads(query, key, value, mask).reshape(batch, -1, dim)

    def _of_heads(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """What ``self.attention`` computes, with one product for queries and keys where they are the same.

        query, key, value: [B, ..., C]; mask: True where a query must not look.
        """
        inner, dim = self.attention, query.shape[-1]
        weights, biases = (x.split([2 * dim, dim]) for x in (inner.in_proj_weight, inner.in_proj_bias))
        if key is query:
            query, key = linear(query, weights[0], biases[0]).chunk(2, dim=-1)
        else:
            query, key = (linear(*x) for x in zip((query, key), weights[0].chunk(2), biases[0].chunk(2)))
        value = linear(value, weights[1], biases[1])
        query, key, value = (x.unflatten(-1, (inner.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        attended = _attention(query, key, value, mask, inner.dropout if self.training else 0.0)
        in_order = attended.permute(2, 0, 1, 3).flatten(2)  # [Q, B, C] as there: a dropout after it draws in this order
        return linear(in_order, inner.out_proj.weight, inner.out_proj.bias).transpose(0, 1)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """PyTorch's attention. On a processor in fp32: its backward pass takes four times as long in bf16."""
    settings = {"attn_mask": None if mask is None else ~mask, "dropout_p": dropout}
    if query.dtype != torch.bfloat16 or not takes(query, key, value):
        return scaled_dot_product_attention(query, key, value, **settings)
    with torch.autocast("cpu", enabled=False):
        return scaled_dot_product_attention(query.float(), key.float(), value.float(), **settings)


class MultiScaleDeformableAttention(nn.Module):
    """Each query looks at a few learned points around its reference, on every level (Deformable DETR, Eq. 3).

    A query predicts, per head, level and point, an offset from its reference and a weight; the values bilinearly
    sampled there are summed by weight.
    """

    def __init__(self, dim: int, num_heads: int, num_levels: int, num_points: int):
        super().__init__()
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.sampling_offsets = Linear(dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = Linear(dim, num_heads * num_levels * num_points)
        self.value_proj = Linear(dim, dim)
        self.output_proj = Linear(dim, dim)
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
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def sampling_locations(self, queries: Tensor, references: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
        """[B, Q, M, L, P, 2]: where each query looks, (x, y) in [0, 1] of each padded level.

        Offsets are counted in cells of a level around a reference point, in fractions of the size of a reference box.
        """
        offsets = self.sampling_offsets(queries).unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        references = references[:, :, None, :, None]  # [B, Q, 1, L, 1, 2 or 4]
        if references.shape[-1] == 2:
            return references + offsets / level_sizes(shapes, references)[:, None]
        return references[..., :2] + offsets / self.num_points * references[..., 2:] * 0.5

    def points(self, queries: Tensor, references: Tensor, shapes: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
        """Where each query looks [B, Q, M, L, P, 2], and how much each point counts [B, Q, M, L, P]."""
        weights = self.attention_weights(queries).unflatten(-1, (self.num_heads, -1)).softmax(-1)
        weights = weights.unflatten(-1, (self.num_levels, self.num_points))
        return self.sampling_locations(queries, references, shapes), weights

    def _points_at_once(
        self, queries: Tensor, references: Tensor, shapes: tuple[tuple[int, int], ...]
    ) -> tuple[Tensor, Tensor]:
        """The same numbers from one matrix product and one pass over them."""
        both = self.sampling_offsets, self.attention_weights
        projected = linear(queries, torch.cat([x.weight for x in both]), torch.cat([x.bias for x in both]))
        if references.shape[-1] == 2:
            base, scale = references, 1 / level_sizes(shapes, references)
        else:
            base, scale = references[..., :2], references[..., 2:] * (0.5 / self.num_points)
        return sampling_points(projected, base, scale, self.num_heads, self.num_points)

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
        if mask is not None and (not takes(values) or mask.any()):  # on a processor looking is cheaper than copying
            values = values.masked_fill(mask[..., None], 0)
        values = values.unflatten(-1, (self.num_heads, -1))  # [B, S, M, D]
        whole = references.shape[:3] == (*queries.shape[:2], self.num_levels) and len(shapes) == self.num_levels
        points = self._points_at_once if whole and takes_points(queries, references) else self.points
        locations, weights = points(queries, references, shapes)
        return self.output_proj(ms_deform_attn(values, shapes, locations, weights))
