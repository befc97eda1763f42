"""The operator as row gathers and arithmetic alone, for exported graphs, and its gradient as sums of rows in a fixed order.

``plain`` is shorter and faster in PyTorch, but its ``grid_sample`` becomes ONNX's GridSample, which not every engine
implements to the letter: border handling and the half-pixel shift of ``align_corners=False`` are where they differ, and
a wrong one shows only as slightly worse boxes. A Gather of rows means the same everywhere.

Shape legend: B images, S tokens of all levels, M heads, D channels per head, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def forward(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """[B, Q, M * D]: what ``msdetr.ops.ms_deform_attn`` documents; half types are widened to fp32 inside."""
    wide = torch.promote_types(value.dtype, torch.float32)
    output = torch.zeros((), dtype=wide, device=value.device)
    levels = value.to(wide).split([height * width for height, width in shapes], dim=1)
    for level, shape, where, weight in zip(
        levels, shapes, _finite(locations.to(wide)), weights.to(wide).unbind(3), strict=True
    ):
        rows = level.transpose(1, 2).flatten(0, 2)  # [B * M * H * W, D]
        for row, share in _corners(where, shape):
            output = output + (rows[row] * (share * weight)[..., None]).sum(3)  # [B, Q, M, P, D] over P
    return output.flatten(2).to(value.dtype)


def value_gradient(
    grad_output: Tensor, value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """The gradient of value, [B, S, M, D], as sums of rows: where PyTorch is told to be deterministic
    (``torch.use_deterministic_algorithms``) they are summed in the same order every time. Slow, and large inside:
    B * Q * M * P * D numbers at a time."""
    wide = torch.promote_types(value.dtype, torch.float32)
    batch, _, heads, channels = value.shape
    grad = grad_output.to(wide).unflatten(2, (heads, 1, channels))  # [B, Q, M, 1, D]
    levels = []
    for shape, where, weight in zip(shapes, _finite(locations.to(wide)), weights.to(wide).unbind(3), strict=True):
        rows = grad.new_zeros(batch * heads * shape[0] * shape[1], channels)
        for row, share in _corners(where, shape):
            rows.index_add_(0, row.flatten(), (grad * (share * weight)[..., None]).flatten(0, 3))
        levels.append(rows.view(batch, heads, -1, channels).transpose(1, 2))
    return torch.cat(levels, 1).to(value.dtype)


def _finite(locations: Tensor) -> tuple[Tensor, ...]:
    """Sampling locations [B, Q, M, L, P, 2], L times [B, Q, M, P, 2]; what is not finite, or far outside, is where no pixel
    reaches."""
    return torch.nan_to_num(locations, nan=3.0, posinf=3.0, neginf=-3.0).clamp(-3, 3).unbind(3)


def _corners(where: Tensor, shape: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """The four pixels around sampling locations [B, Q, M, P, 2] in a level: the row of each in all maps [B * M * H * W], one
    map per image and head, and its bilinear share, zero outside; both [B, Q, M, P]."""
    height, width = shape
    batch, _, heads = where.shape[:3]
    maps = torch.arange(batch * heads, device=where.device).view(batch, 1, heads, 1)
    x, y = where[..., 0] * width - 0.5, where[..., 1] * height - 0.5  # in pixels between centers
    left, top = x.floor(), y.floor()
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixel = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
            yield maps * (height * width) + pixel.long(), across * down * inside
