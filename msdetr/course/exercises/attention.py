"""Notebook 01, deformable attention: read a level, place points in a box, sum over levels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...modules import MultiScaleDeformableAttention
from ...ops.reference import bilinear, ms_deform_attn_loop
from .exercise import Case, Exercise


def _read_level(level: Tensor, x: float, y: float) -> float:
    return bilinear(level[:, :, None], x, y).item()


def _levels_to_read(draw: np.random.Generator) -> Iterator[Case]:
    level = torch.arange(1.0, 13).view(3, 4)
    for about, x, y in (
        ("a point on the center of a pixel", 2.0, 1.0),
        ("a point between two columns", 1.25, 1.0),
        ("a point between two rows", 1.0, 0.75),
        ("a point between four pixels", 1.7, 0.6),
        ("a point half outside at the left", -0.5, 1.0),
        ("a point partly outside at the right", 3.4, 1.0),
        ("a point partly outside at the top", 1.0, -0.3),
        ("a point partly outside at the bottom", 1.5, 2.25),
        ("a point wholly outside", 7.0, 1.0),
        ("a point wholly outside, above", 1.0, -2.5),
    ):
        yield Case(about, (level, x, y))
    for _ in range(20):
        height, width = draw.integers(1, 6, 2).tolist()
        level = torch.from_numpy(draw.normal(size=(height, width)))
        yield Case(
            "a random level and point", (level, draw.uniform(-1.5, width + 0.5), draw.uniform(-1.5, height + 0.5))
        )


def _locations_in_box(box: Tensor, offsets: Tensor) -> Tensor:
    attention = MultiScaleDeformableAttention(dim=4, num_heads=1, num_levels=1, num_points=len(offsets)).to(
        offsets.dtype
    )
    attention.sampling_offsets.bias.data.copy_(offsets.flatten())
    places = attention.sampling_locations(torch.zeros(1, 1, 4, dtype=offsets.dtype), box.view(1, 1, 1, 4), ((1, 1),))
    return places[0, 0, 0, 0].detach()


def _boxes_to_look_in(draw: np.random.Generator) -> Iterator[Case]:
    wide = torch.tensor([0.5, 0.4, 0.6, 0.2], dtype=torch.float64)
    yield Case("offsets of 0", (wide, torch.zeros(3, 2, dtype=torch.float64)))
    corners = torch.tensor([[4.0, 4], [-4, 4], [4, -4], [0, 4]], dtype=torch.float64)
    yield Case("four points, at corners of a wide box and in the middle of an edge", (wide, corners))
    for _ in range(10):
        box = torch.from_numpy(np.concatenate([draw.uniform(0.2, 0.8, 2), draw.uniform(0.05, 0.9, 2)]))
        yield Case("a random box", (box, torch.from_numpy(draw.normal(0, 3, (int(draw.integers(1, 6)), 2)))))


def _attend(levels: list[Tensor], locations: Tensor, weights: Tensor) -> float:
    value = torch.cat([level.flatten() for level in levels]).view(1, -1, 1, 1)
    shapes = [tuple(level.shape) for level in levels]
    return ms_deform_attn_loop(value, shapes, locations[None, None, None], weights[None, None, None]).item()


def _things_to_attend_to(draw: np.random.Generator) -> Iterator[Case]:
    level, middle = torch.arange(1.0, 13).view(3, 4), torch.tensor([[[0.5, 0.5]]])
    yield Case("one level and one point, in its middle", ([level], middle, torch.ones(1, 1)))
    yield Case("one point at a quarter of the width", ([level], torch.tensor([[[0.25, 0.5]]]), torch.ones(1, 1)))
    yield Case("one point at the left edge of a level", ([level], torch.tensor([[[0.0, 0.5]]]), torch.ones(1, 1)))
    yield Case("a weight of 0.5", ([level], middle, torch.full((1, 1), 0.5)))
    for _ in range(12):
        count, points = int(draw.integers(1, 4)), int(draw.integers(1, 4))
        levels = [torch.from_numpy(draw.normal(size=tuple(draw.integers(1, 6, 2)))) for _ in range(count)]
        locations = torch.from_numpy(draw.uniform(-0.1, 1.1, (count, points, 2)))
        weights = torch.from_numpy(draw.dirichlet(np.ones(count * points))).view(count, points)
        yield Case(f"{count} level(s) and {points} point(s) on each", (levels, locations, weights))


EXERCISES = (
    Exercise("1.1", "read_level", _read_level, _levels_to_read),
    Exercise("1.2", "locations_in_box", _locations_in_box, _boxes_to_look_in),
    Exercise("1.3", "attend", _attend, _things_to_attend_to),
)
