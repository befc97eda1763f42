"""The operator as row gathers and arithmetic alone, for exported graphs.

``plain`` is shorter and faster in PyTorch, but its ``grid_sample`` becomes ONNX's GridSample, which not every engine
implements to the letter: border handling and the half-pixel shift of ``align_corners=False`` are where they differ, and
a wrong one shows only as slightly worse boxes. A Gather of rows means the same everywhere.

Shape legend: B images, S tokens of all levels, M heads, D channels per head, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def forward(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """[B, Q, M * D]: what ``msdetr.ops.ms_deform_attn`` documents; half types are widened to fp32 inside."""
    wide = torch.promote_types(value.dtype, torch.float32)
    batch, _, heads, channels = value.shape
    locations = torch.nan_to_num(locations.to(wide), nan=3.0, posinf=3.0, neginf=-3.0).clamp(-3, 3)
    maps = torch.arange(batch * heads, device=value.device).view(
        batch, 1, heads, 1
    )  # which map a query reads, per head
    output = torch.zeros((), dtype=wide, device=value.device)
    levels = value.to(wide).split([height * width for height, width in shapes], dim=1)
    for level, (height, width), where, weight in zip(
        levels, shapes, locations.unbind(3), weights.to(wide).unbind(3), strict=True
    ):
        rows = level.transpose(1, 2).reshape(-1, channels)  # [B * M * H * W, D]
        x, y = where[..., 0] * width - 0.5, where[..., 1] * height - 0.5  # [B, Q, M, P], in pixels between centers
        left, top = x.floor(), y.floor()
        for column, across in ((left, left + 1 - x), (left + 1, x - left)):
            for row, down in ((top, top + 1 - y), (top + 1, y - top)):
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                pixel = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
                found = rows[maps * (height * width) + pixel.long()]  # [B, Q, M, P, D]
                output = output + (found * (across * down * inside * weight)[..., None]).sum(3)
    return output.flatten(2).to(value.dtype)
