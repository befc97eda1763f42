import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from msdetr.engine import nms_postprocess, postprocess
from msdetr.structures import Predictions


def random_predictions(seed, images=2, queries=7, classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, images, queries, classes, generator=generator)
    boxes = torch.rand(1, images, queries, 4, generator=generator) / 2 + 0.1
    return Predictions(logits, boxes), torch.tensor([[50, 80]] * images)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 40))
def test_the_best_pairs_against_a_sort(seed, count):
    predictions, sizes = random_predictions(seed)
    for b, found in enumerate(postprocess(predictions, sizes, count)):
        probability = predictions.logits[0, b].sigmoid().numpy()
        order = np.argsort(-probability, axis=None, kind="stable")[:count]
        query, label = np.unravel_index(order, probability.shape)
        assert len(found) == min(count, probability.size)
        assert found.scores.tolist() == pytest.approx(probability[query, label].tolist())
        assert found.query.tolist() == query.tolist() and found.labels.tolist() == label.tolist()
        cx, cy, w, h = predictions.boxes[0, b, found.query].unbind(-1)
        expected = torch.stack([(cx - w / 2) * 80, (cy - h / 2) * 50, (cx + w / 2) * 80, (cy + h / 2) * 50], -1)
        torch.testing.assert_close(found.boxes, expected)


def test_nms_drops_duplicates_within_a_class_only():
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [0.51, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1]])[None, None]
    logits = torch.tensor([[3.0, 2.0], [2.0, 2.5], [1.0, -5.0]])[None, None]
    [found] = nms_postprocess(Predictions(logits, boxes), torch.tensor([[100, 100]]), 10, iou_threshold=0.7)
    assert list(zip(found.query.tolist(), found.labels.tolist())) == [(0, 0), (1, 1), (2, 0), (2, 1)]
    assert len(nms_postprocess(Predictions(logits, boxes), torch.tensor([[100, 100]]), 2)[0]) == 2


def test_of_several_layers_the_last_counts():
    predictions, sizes = random_predictions(0)
    more = Predictions(torch.cat([predictions.logits.flip(2), predictions.logits]), torch.cat([predictions.boxes] * 2))
    for ours, alone in zip(postprocess(more, sizes), postprocess(predictions, sizes)):
        assert torch.equal(ours.scores, alone.scores) and torch.equal(ours.query, alone.query)
