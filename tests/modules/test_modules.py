import math

import pytest
import torch

from msdetr.modules import (
    FFN,
    VARIANTS,
    BoxHead,
    Context,
    MultiScaleDeformableAttention,
    Pyramid,
    Residual,
    class_head,
    nearest,
    sine_embedding_2d,
    sine_embedding_of_boxes,
)
from msdetr.structures import QueryGroup


def test_position_embedding_by_hand():
    """Channel 2i of the row half at row r of H is sin(2 pi (r + 1/2) / H / 10000^(2i / (dim / 2)))."""
    height, width, dim = 4, 6, 16
    embedding = sine_embedding_2d(torch.zeros(1, height, width, dtype=torch.bool), dim, torch.float64)
    for r, c, i in [(0, 0, 0), (3, 5, 1), (2, 1, 3)]:
        frequency = 10000 ** (-2 * i / (dim // 2))
        row, column = 2 * math.pi * (r + 0.5) / height, 2 * math.pi * (c + 0.5) / width
        assert embedding[0, r, c, 2 * i].item() == pytest.approx(math.sin(row * frequency), abs=1e-5)
        assert embedding[0, r, c, 2 * i + 1].item() == pytest.approx(math.cos(row * frequency), abs=1e-5)
        assert embedding[0, r, c, dim // 2 + 2 * i].item() == pytest.approx(math.sin(column * frequency), abs=1e-5)


def test_position_embedding_does_not_see_padding():
    mask = torch.ones(1, 6, 8, dtype=torch.bool)
    mask[:, :4, :5] = False
    padded = sine_embedding_2d(mask, 32)[:, :4, :5]
    torch.testing.assert_close(padded, sine_embedding_2d(torch.zeros(1, 4, 5, dtype=torch.bool), 32))


def test_box_embedding_has_a_part_per_coordinate():
    boxes = torch.rand(2, 3, 4, dtype=torch.float64)
    embedding = sine_embedding_of_boxes(boxes, 16)
    assert embedding.shape == (2, 3, 32)
    moved = boxes.clone()
    moved[..., 2] += 0.1
    changed = (sine_embedding_of_boxes(moved, 16) != embedding).any(0).any(0)
    assert changed.nonzero().flatten().tolist() == list(range(16, 24))


def test_sampling_starts_on_rays():
    """Untrained: head m looks in its own direction, point p at p cells (of each level) from the reference point."""
    module = MultiScaleDeformableAttention(32, num_heads=4, num_levels=2, num_points=3)
    shapes = ((8, 16), (4, 8))
    locations = module.sampling_locations(torch.zeros(1, 1, 32), torch.full((1, 1, 2, 2), 0.5), shapes)
    for level, (height, width) in enumerate(shapes):
        offset = (locations[0, 0, :, level] - 0.5) * torch.tensor([width, height])
        for head, (x, y) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
            want = torch.tensor([[x * p, y * p] for p in (1, 2, 3)], dtype=torch.float32)
            torch.testing.assert_close(offset[head], want, atol=1e-5, rtol=0)


def test_residual_is_normalised_after_the_sum():
    block = Residual(FFN(8, 16), 8)
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(block(x), torch.nn.functional.layer_norm(x + block.inner(x), (8,)))


def test_heads_start_as_the_papers_say():
    assert class_head(8, 5)(torch.zeros(8)).sigmoid().tolist() == pytest.approx([0.01] * 5)
    assert BoxHead(8)(torch.randn(3, 8)).abs().max() == 0
    assert BoxHead(8, -2.0)(torch.randn(8)).tolist() == [0, 0, -2, -2]


@pytest.mark.parametrize("variant, reads", [("baseline", None), ("a", 2), ("b", 2), ("c", 0), ("d", 0)])
def test_order_of_the_sub_layers(variant, reads):
    """Figure 4: which sub-layer runs when, and after which of them the candidates are read."""
    layer = VARIANTS[variant](32, 4, 1, 2, 64, 0.0)
    ran, outputs = [], []

    def watch(name):
        def hook(_, __, output):
            ran.append(name)
            outputs.append(output)

        return hook

    for name in ("self_attention", "cross_attention", "ffn"):
        getattr(layer, name).register_forward_hook(watch(name))
    memory = Pyramid(
        torch.randn(1, 16, 32),
        torch.zeros(1, 16, 32),
        torch.zeros(1, 16, dtype=torch.bool),
        ((4, 4),),
        torch.ones(1, 1, 2),
    )
    group = QueryGroup("primary", torch.randn(1, 5, 32), torch.randn(1, 5, 32), torch.rand(1, 5, 4))
    output, candidates = layer(group.contents, Context.of(group, memory))
    first = (
        ["self_attention", "cross_attention"]
        if variant in ("baseline", "a", "d")
        else ["cross_attention", "self_attention"]
    )
    assert ran == [*first, "ffn"]
    assert output is outputs[-1]
    assert candidates is (None if reads is None else outputs[reads])


def test_a_mask_shrinks_as_interpolation_does_at_every_size():
    for size in range(33, 700):
        mask = torch.arange(size)[None, :, None] >= torch.arange(size)[None, None]
        small = size
        for level in range(6):
            small = -(-small // 2)
            if level >= 2:
                expected = torch.nn.functional.interpolate(mask[None].float(), size=(small, 7))[0].bool()
                assert torch.equal(nearest(mask, small, 7), expected), (size, small)
