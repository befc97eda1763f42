"""Groups of queries on one axis: attention in batches of equal parts against attention under a dense mask."""

import pytest
import torch

from msdetr.errors import InputError
from msdetr.modules import Context, Layout, SelfAttention, concatenated
from msdetr.structures import QueryGroup

DIM, BATCH = 16, 2


def group(name, size, references=4, **more):
    return QueryGroup(
        name,
        torch.randn(BATCH, size, DIM, dtype=torch.float64),
        torch.randn(BATCH, size, DIM, dtype=torch.float64),
        torch.rand(BATCH, size, references, dtype=torch.float64),
        **more,
    )


def forbidden(groups):
    """[Q, Q] bool by brute force: whether query i may not see query j."""
    rows = [(g, i // (g.contents.shape[1] // g.parts), i) for g in groups for i in range(g.contents.shape[1])]
    mask = torch.ones(len(rows), len(rows), dtype=torch.bool)
    for a, (mine, part, i) in enumerate(rows):
        for b, (other, other_part, j) in enumerate(rows):
            if mine is other and part == other_part:
                size = mine.contents.shape[1] // mine.parts
                mask[a, b] = mine.mask is not None and bool(mine.mask[i % size, j % size])
            elif other.name in mine.reads:
                mask[a, b] = False
    return mask


SCENES = {
    "one group": lambda: [group("primary", 5)],
    "unequal groups": lambda: [group("primary", 5), group("hybrid", 7)],
    "equal groups": lambda: [group("primary", 4), group("a", 4), group("b", 8, parts=2)],
    "denoising": lambda: [group("primary", 5), group("dn", 12, parts=3, reads=("primary",))],
    "denoising of the same size": lambda: [group("primary", 4), group("dn", 8, parts=2, reads=("primary",))],
    "a mask inside": lambda: [
        group("primary", 3),
        group("dn", 8, parts=2, reads=("primary",), mask=torch.eye(4, dtype=torch.bool).roll(1, 0)),
        group("other", 4, parts=1, mask=torch.eye(4, dtype=torch.bool).roll(1, 0)),
    ],
    "an empty group": lambda: [group("primary", 5), group("dn", 0, reads=("primary",)), group("hybrid", 5)],
}


@pytest.mark.parametrize("scene", SCENES)
def test_attention_within_groups_is_attention_under_a_dense_mask(scene):
    torch.manual_seed(0)
    groups, attention = SCENES[scene](), SelfAttention(DIM, 4).double()
    contents, positions, references = concatenated(groups)
    found = attention(contents, Context(positions, references, None, Layout.of(groups)))
    placed = contents + positions
    want = attention.attention(placed, placed, contents, attn_mask=forbidden(groups), need_weights=False)[0]
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


def test_equal_groups_are_one_batch():
    groups = [group("primary", 4), group("a", 4), group("b", 8, parts=2)]
    assert [(block.size, block.parts) for block in Layout.of(groups).blocks] == [(4, 4)]


def test_a_group_that_reads_another_is_a_batch_of_its_own():
    groups = [group("primary", 4), group("dn", 8, parts=2, reads=("primary",))]
    blocks = Layout.of(groups).blocks
    assert [(block.size, block.parts, block.reads) for block in blocks] == [(4, 1, ()), (4, 2, (slice(0, 4),))]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (lambda: [group("a", 3), group("a", 3)], "given twice"),
        (lambda: [group("a", 5, parts=2)], "not 2 equal parts"),
        (lambda: [group("a", 5, parts=0)], "not 0 equal parts"),
        (lambda: [group("a", 3, reads=("b",))], "reads b"),
        (lambda: [group("a", 3, reads=("a",))], "reads a"),
    ],
)
def test_groups_that_do_not_fit_are_named(groups, message):
    with pytest.raises(InputError, match=message):
        Layout.of(groups())


def test_points_and_boxes_do_not_mix():
    with pytest.raises(InputError, match="all be points or all be boxes"):
        concatenated([group("a", 3), group("b", 3, references=2)])
