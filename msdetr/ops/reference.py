"""Multi-scale deformable attention as a loop that can be read next to the equation; the oracle of the tests.

Equation 3 of Deformable DETR (Zhu et al., ICLR 2021), without the projections before and after it: for image b,
query q and head m,

    output[b, q, m] = sum over levels l and points p of  weight[b, q, m, l, p] * value_l[b, m](x, y)

where value_l(x, y) is level l read at the sampling location by bilinear interpolation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bilinear(level: Tensor, x: float, y: float) -> Tensor:
    """Reads ``level`` [H, W, D] at the pixel coordinates (x, y), pixel centres at integers, zero outside: [D]."""
    height, width, channels = level.shape
    result = level.new_zeros(channels)
    if not (-1 < x < width and -1 < y < height):  # also false for NaN
        return result
    left, top = math.floor(x), math.floor(y)
    for column, weight_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, weight_y in ((top, top + 1 - y), (top + 1, y - top)):
            if 0 <= column < width and 0 <= row < height:
                result += weight_x * weight_y * level[row, column]
    return result


def ms_deform_attn_loop(value: Tensor, spatial_shapes, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """The operator, one sampling point at a time; arguments and result as ``msdetr.ops.ms_deform_attn``. Forward only."""
    batch, _, heads, channels = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    output = value.new_zeros(batch, queries, heads, channels)
    start = 0
    for l, (height, width) in enumerate(torch.as_tensor(spatial_shapes).tolist()):
        level = value[:, start : start + height * width].unflatten(1, (height, width))  # [B, H, W, M, D]
        start += height * width
        for b in range(batch):
            for q in range(queries):
                for m in range(heads):
                    for p in range(points):
                        x, y = sampling_locations[b, q, m, l, p].tolist()  # in units of the level: its size is 1
                        sample = bilinear(level[b, :, :, m], x * width - 0.5, y * height - 0.5)
                        output[b, q, m] += attention_weights[b, q, m, l, p] * sample
    return output.flatten(2)
