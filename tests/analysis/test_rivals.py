"""Duplicates with and without self-attention: the cut, the recorded attention, and the counting."""

import small
import torch

from msdetr.analysis.arrays import predictions_from_arrays, targets_from_arrays
from msdetr.analysis.rivals import attention_maps, attention_recorded, rivals_of, self_attention_cut
from msdetr.methods import build_detector
from msdetr.modules import SelfAttention
from msdetr.structures import ImageBatch


def detector(variant="c"):
    torch.manual_seed(0)
    return build_detector(small.config(variant)).eval()


def batch():
    return ImageBatch.from_images([torch.randn(3, 64, 64), torch.randn(3, 64, 64)])


def test_the_cut_is_attention_to_oneself_alone():
    """Against PyTorch's own attention with a mask that leaves the diagonal."""
    model, images = detector(), batch()

    def masked(module, inputs, output):
        queries, context = inputs
        placed, count = queries + context.positions, queries.shape[1]
        mask = ~torch.eye(count, dtype=torch.bool)
        return module.attention(placed, placed, queries, attn_mask=mask, need_weights=False)[0]

    attentions = [m for m in model.decoder.modules() if isinstance(m, SelfAttention)]
    hooks = [m.register_forward_hook(masked) for m in attentions]
    with torch.no_grad():
        expected = model(images).one_to_one
        for hook in hooks:
            hook.remove()
        whole = model(images).one_to_one
        with self_attention_cut(model):
            found = model(images).one_to_one
        again = model(images).one_to_one
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.boxes, expected.boxes)
    assert not torch.allclose(found.logits, whole.logits) and torch.equal(again.logits, whole.logits)


def test_recorded_attention_sums_to_one_and_changes_nothing():
    model, images = detector("baseline"), batch()
    maps = attention_maps(model, images)
    count = model(images).one_to_one.logits.shape[2]
    assert maps.shape == (len(model.decoder.layers), 2, count, count)
    torch.testing.assert_close(maps.sum(-1), torch.ones(maps.shape[:-1]))
    with torch.no_grad(), attention_recorded(model):
        recorded = model(images).one_to_one
    with torch.no_grad():
        torch.testing.assert_close(recorded.logits, model(images).one_to_one.logits, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_winner_rivals_and_duplicates_of_a_scene():
    box = [0.5, 0.5, 0.4, 0.4]
    boxes = [box, [0.52, 0.5, 0.4, 0.4], [0.55, 0.5, 0.4, 0.4], [0.1, 0.1, 0.1, 0.1]]
    scores = [[0.3, 0.9], [0.8, 0.1], [0.35, 0.1], [0.99, 0.1]]  # query 3 is surest and lies elsewhere
    targets = targets_from_arrays([box, [0.9, 0.9, 0.1, 0.1]], [0, 1])
    [(winner, rivals, duplicates)] = rivals_of(
        predictions_from_arrays(boxes, scores), targets, 0
    )  # nobody finds object 1
    assert (winner, rivals.tolist(), duplicates) == (1, [0, 2], 0)
    scores[2][0] = 0.4  # half of 0.8
    [(_, _, duplicates)] = rivals_of(predictions_from_arrays(boxes, scores), targets, 0)
    assert duplicates == 1
