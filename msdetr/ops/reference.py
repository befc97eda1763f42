"""Multi-scale deformable attention as a loop that can be read next to the equation, the oracle of the tests; and in the
vectorised form that is commonly used where there is no native kernel.

Equation 3 of Deformable DETR (Zhu et al., ICLR 2021), without the projections before and after it: for image b,
query q and head m,

    output[b, q, m] = sum over levels l and points p of  weight[b, q, m, l, p] * value_l[b, m](x, y)

where value_l(x, y) is level l read at the sampling location by bilinear interpolation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
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


def ms_deform_attn_composite(
    value: Tensor, spatial_shapes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """The operator composed of PyTorch's own: ``grid_sample`` per level, all samples stacked, then weighted and summed.

    Everything is computed and kept in the inputs' dtype, so this is also what precision is compared with. Arguments
    and result as ``msdetr.ops.ms_deform_attn``, for finite locations.
    """
    batch, _, heads, channels = value.shape
    queries, levels, points = sampling_locations.shape[1], *sampling_locations.shape[3:5]
    samples = []
    for l, level in enumerate(value.split([height * width for height, width in spatial_shapes], dim=1)):
        image = level.flatten(2).transpose(1, 2).reshape(batch * heads, channels, *spatial_shapes[l])
        grid = 2 * sampling_locations[:, :, :, l].transpose(1, 2).flatten(0, 1) - 1  # grid_sample's level is [-1, 1]
        samples.append(F.grid_sample(image, grid, align_corners=False))  # [B * M, D, Q, P]
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(samples, dim=-2).flatten(-2) * weights).sum(-1)  # [B * M, D, Q]
    return output.view(batch, heads * channels, queries).transpose(1, 2)
