"""Sine embeddings of positions in an image and of boxes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10000


def _waves(positions: Tensor, num_features: int) -> Tensor:
    """[...] positions in radians -> [..., num_features]: sine and cosine in turn, at falling frequencies."""
    pair = torch.arange(num_features, device=positions.device) // 2
    frequency = TEMPERATURE ** (-2 * pair.to(positions.dtype) / num_features)
    angle = positions[..., None] * frequency
    return torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-2)


def sine_embedding_2d(mask: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Position embedding of a feature map: mask [B, H, W] (True on padding) -> [B, H, W, dim].

    Row and column of each cell's centre, divided by the unpadded size and scaled to 2 pi, half of the channels each
    (the row first), as in Deformable DETR.
    """
    eps = 1e-6
    y, x = ((~mask).cumsum(axis).to(dtype) for axis in (1, 2))  # counted in integers: deterministic on CUDA, too
    y = (y - 0.5) / (y[:, -1:, :] + eps) * 2 * math.pi
    x = (x - 0.5) / (x[:, :, -1:] + eps) * 2 * math.pi
    return torch.cat([_waves(y, dim // 2), _waves(x, dim // 2)], dim=-1)


def sine_embedding_of_boxes(boxes: Tensor, dim: int) -> Tensor:
    """[..., 4] cxcywh in [0, 1] -> [..., 2 * dim]: dim / 2 channels for each of cx, cy, w, h."""
    return _waves(boxes * 2 * math.pi, dim // 2).flatten(-2)
