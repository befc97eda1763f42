"""Proposals after suppression within each level, against a plain transcription."""

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msdetr.boxes import cxcywh_to_xyxy
from msdetr.model import without_duplicates


def proposals(seed: int, shapes, images=2, crowded=False):
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * width for height, width in shapes)
    boxes = 0.2 + 0.5 * torch.rand(images, tokens, 4, generator=generator)
    if crowded:
        boxes = 0.5 + 0.02 * torch.rand(images, tokens, 4, generator=generator)
    return torch.randn(images, tokens, generator=generator), boxes


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4),
    first=st.integers(1, 30),
    further=st.integers(0, 10),
    iou_threshold=st.sampled_from([0.3, 0.6, 0.9]),
    per_level=st.sampled_from([3, 1000]),
    crowded=st.booleans(),
)
def test_against_brute_force(seed, shapes, first, further, iou_threshold, per_level, crowded):
    scores, boxes = proposals(seed, shapes, crowded=crowded)
    found = without_duplicates(scores, boxes, shapes, first + further, first, iou_threshold, per_level)
    tokens = scores.shape[1]
    assert found.shape == (2, min(first + further, tokens))
    levels = [level for level, (height, width) in enumerate(shapes) for _ in range(height * width)]
    corners = cxcywh_to_xyxy(boxes).clamp(0, 1).double()
    for image in range(2):
        row = found[image].tolist()
        assert len(set(row)) == len(row)
        expected = oracles.without_duplicates(
            scores[image].tolist(), corners[image].tolist(), levels, first, iou_threshold, per_level
        )
        if expected is None:  # too few survive
            assert row == scores[image].sort(descending=True).indices.tolist()[: first + further]
        else:
            assert row[:first] == expected


def test_the_first_are_spread_over_levels():
    shapes = [(8, 8), (4, 4)]
    scores, boxes = proposals(0, shapes)
    scores[:, 64:] -= 100  # the coarse level would never be chosen by score
    found = without_duplicates(scores, boxes, shapes, 20, first=20)
    assert (found >= 64).sum(1).tolist() == [10, 10]
    assert torch.equal(scores.gather(1, found), scores.gather(1, found).sort(descending=True).values)


def test_fewer_tokens_than_are_asked_for():
    scores, boxes = proposals(0, [(2, 2), (1, 1)])
    found = without_duplicates(scores, boxes, [(2, 2), (1, 1)], 50, first=50)
    assert torch.equal(found, scores.sort(descending=True).indices)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype):
    scores, boxes = proposals(3, [(4, 4), (2, 2)])
    found = without_duplicates(scores.to(dtype), boxes.to(dtype), [(4, 4), (2, 2)], 8, first=8)
    assert found.dtype == torch.int64 and found.shape == (2, 8)
