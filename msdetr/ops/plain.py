"""The plain PyTorch backend: ``grid_sample`` per level, everywhere PyTorch runs; native autograd, exports to ONNX.

Shape legend: B images, S tokens of all levels, M heads, D channels per head, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """[B, Q, M * D]: what ``msdetr.ops.ms_deform_attn`` documents; half types are widened to fp32 inside."""
    wide = torch.promote_types(value.dtype, torch.float32)
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    grids = _grid(locations.to(wide))
    output = torch.zeros((), dtype=wide, device=value.device)
    for level, grid, weight in zip(_levels(value.to(wide), shapes), grids, _by_level(weights.to(wide)), strict=True):
        samples = F.grid_sample(level, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        output = output + (samples * weight).sum(-1)  # [B * M, D, Q]
    output = output.reshape(batch, heads, channels, queries).permute(0, 3, 1, 2)
    return output.reshape(batch, queries, heads * channels).to(value.dtype)


def _levels(value: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Each level of value [B, S, M, D] as images, one per head: [B * M, D, H, W]."""
    batch, _, heads, channels = value.shape
    levels = value.split([height * width for height, width in shapes], dim=1)
    return [
        level.permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        for level, (height, width) in zip(levels, shapes, strict=True)
    ]


def _grid(locations: Tensor) -> tuple[Tensor, ...]:
    """Sampling locations [B, Q, M, L, P, 2] as grid_sample's coordinates, L times [B * M, Q, P, 2].

    A level spans [-1, 1] there, and no pixel reaches beyond [-2, 2]; what lies outside, or is not finite, is moved to
    3, where it samples zero and has no gradient.
    """
    grid = torch.nan_to_num(2 * locations - 1, nan=3.0, posinf=3.0, neginf=-3.0).clamp(-3, 3)
    return grid.transpose(1, 2).flatten(0, 1).unbind(2)


def _by_level(weights: Tensor) -> tuple[Tensor, ...]:
    """Attention weights [B, Q, M, L, P] as L times [B * M, 1, Q, P]."""
    return weights.transpose(1, 2).flatten(0, 1).unsqueeze(1).unbind(3)


def backward(
    grad_output: Tensor,
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    need_value: bool,
    need_points: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, each empty where it is not needed (points: the latter two)."""
    wide = torch.promote_types(value.dtype, torch.float32)
    batch, _, heads, channels = value.shape
    grad = grad_output.to(wide).unflatten(2, (heads, channels)).permute(0, 2, 3, 1).flatten(0, 1)  # [B * M, D, Q]
    grads_value, grads_grid, grads_weight = [], [], []
    for level, grid, weight in zip(
        _levels(value.to(wide), shapes), _grid(locations.to(wide)), _by_level(weights.to(wide)), strict=True
    ):
        if need_points:
            samples = F.grid_sample(level, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
            grads_weight.append((samples * grad.unsqueeze(-1)).sum(1))  # [B * M, Q, P]
        grad_level, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
            grad.unsqueeze(-1) * weight, level, grid, 0, 0, False, (need_value, need_points)
        )
        if need_value:
            grads_value.append(grad_level.unflatten(0, (batch, heads)).flatten(3).permute(0, 3, 1, 2))
        if need_points:
            grads_grid.append(2 * grad_grid)  # a level spans 2 in grid_sample's coordinates, 1 in ours
    nothing = value.new_empty(0)
    grad_value = torch.cat(grads_value, dim=1).to(value.dtype) if need_value else nothing
    if not need_points:
        return grad_value, nothing, nothing.clone()
    grad_locations, grad_weights = (
        torch.stack(grads, dim=2).unflatten(0, (batch, heads)).transpose(1, 2).contiguous()
        for grads in (grads_grid, grads_weight)
    )
    return grad_value, grad_locations.to(locations.dtype), grad_weights.to(weights.dtype)
