"""Costs and matchings of Stable-DINO and Align-DETR, against plain transcriptions."""

import itertools
import math

import pytest
import torch
from test_one_to_many import pairs_of, scene

from msdetr.boxes import cxcywh_to_xyxy, giou
from msdetr.errors import InputError
from msdetr.matching import (
    HungarianMatcher,
    ReleasedModulatedMatcher,
    ReleasedRepeatedMatcher,
    RepeatedHungarianMatcher,
    detection_costs,
    modulated_focal_cost,
)


def focal_cost(p: float) -> float:
    return -0.25 * (1 - p) ** 2 * math.log(p + 1e-8) + 0.75 * p**2 * math.log(1 - p + 1e-8)


def fit(predictions, targets, layer, query, target) -> float:
    """(GIoU + 1) / 2 of a query of the object's image."""
    boxes = predictions.boxes[layer, targets.image[target], query], targets.boxes[target]
    return (float(giou(*(cxcywh_to_xyxy(box) for box in boxes))) + 1) / 2


def test_modulated_cost_pair_by_pair():
    predictions, targets = scene(3, counts=(3, 0, 4), num_classes=3)
    found = modulated_focal_cost(predictions, targets, power=0.5)
    depth, _, queries = found.shape
    for layer in range(depth):
        for image in range(3):
            own = [t for t in range(len(targets)) if targets.image[t] == image]
            fits = {(q, t): fit(predictions, targets, layer, q, t) for q, t in itertools.product(range(queries), own)}
            for (query, target), value in fits.items():
                p = predictions.logits[layer, image, query, targets.labels[target]].sigmoid().item()
                expected = focal_cost(p * (value / max(fits.values())) ** 0.5)
                assert found[layer, target, query].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


def test_an_object_does_not_change_the_costs_of_another_image():
    """The released code lets the last object of a class decide for all of that class in the batch."""
    predictions, targets = scene(0, counts=(2, 2), num_classes=1)
    alone = targets.of_image(0), predictions.of_image(0)
    ours = HungarianMatcher({"class": (2.0, modulated_focal_cost)})
    theirs = ReleasedModulatedMatcher(detection_costs(2.0, 0.0, 0.0))
    for matcher, same in ((ours, True), (theirs, False)):
        whole = matcher.cost(predictions, targets)[:, :2]
        assert torch.allclose(whole, matcher.cost(alone[1], alone[0])) == same


def test_released_and_pairwise_agree_where_classes_differ():
    predictions, targets = scene(0, counts=(4,), num_classes=4)
    targets.labels[:] = torch.tensor([2, 0, 3, 1])
    theirs = ReleasedModulatedMatcher(detection_costs(2.0, 0.0, 0.0)).cost(predictions, targets)
    torch.testing.assert_close(theirs, 2 * modulated_focal_cost(predictions, targets), rtol=1e-4, atol=1e-4)


def test_batches_are_not_split_where_images_depend_on_each_other(monkeypatch):
    """Large tables are otherwise computed image by image."""
    predictions, targets = scene(0, counts=(4, 6), num_classes=2)
    matcher = ReleasedModulatedMatcher(detection_costs(2.0, 0.0, 0.0))
    whole = matcher(predictions, targets)
    monkeypatch.setattr("msdetr.matching.base._LARGE_TABLE", 0)
    found = matcher(predictions, targets)
    assert torch.equal(found.query, whole.query) and torch.equal(found.target, whole.target)


@pytest.mark.parametrize("counts", [(0,), (0, 3)])
@pytest.mark.parametrize("cost", ["pairwise", "released"])
def test_images_without_objects(cost, counts):
    predictions, targets = scene(0, counts=counts)
    plain = HungarianMatcher({"class": (2.0, modulated_focal_cost)})
    matcher = plain if cost == "pairwise" else ReleasedModulatedMatcher()
    assert len(matcher(predictions, targets)) == 2 * sum(counts)


# ---------------------------------------------------------------- objects repeated


def brute_force(table, k):
    """Total of the cheapest choice of k queries for each object, no query twice."""
    queries, objects = range(len(table[0])), len(table)
    choices = itertools.permutations(queries, objects * k)
    return min(sum(table[i // k][q] for i, q in enumerate(choice)) for choice in choices)


@pytest.mark.parametrize("seed", range(3))
def test_the_cheapest_k_queries_of_every_object(seed):
    predictions, targets = scene(seed, num_layers=2, counts=(1, 2), num_queries=6)
    matcher = RepeatedHungarianMatcher(copies=(3, 1))
    cost, matches = matcher.cost(predictions, targets), matcher(predictions, targets)
    for layer, image in itertools.product(range(2), range(2)):
        found = pairs_of(matches, targets, layer, image)
        own = cost[layer, targets.image == image]
        k = min((3, 1)[layer], 6 // 2 // len(own))
        assert len(found) == k * len(own) == len({query for query, _ in found})
        assert sorted(t for _, t in found) == sorted(list(range(len(own))) * k)
        total = sum(own[t, q].item() for q, t in found)
        assert total == pytest.approx(brute_force(own.tolist(), k))


def test_once_is_hungarian_matching():
    predictions, targets = scene(1)
    once, plain = RepeatedHungarianMatcher()(predictions, targets), HungarianMatcher()(predictions, targets)
    pairs = [set(zip(m.layer.tolist(), m.query.tolist(), m.target.tolist())) for m in (once, plain)]
    assert pairs[0] == pairs[1]


def test_a_crowded_image_lowers_k_for_itself_alone():
    predictions, targets = scene(0, num_layers=1, counts=(1, 5, 1), num_queries=12)
    per_image = {}
    for matcher in (RepeatedHungarianMatcher, ReleasedRepeatedMatcher):
        matches = matcher(copies=4)(predictions, targets)
        per_image[matcher] = torch.bincount(matches.image, minlength=3).tolist()
    assert per_image == {RepeatedHungarianMatcher: [4, 5, 4], ReleasedRepeatedMatcher: [4, 5, 1]}


@pytest.mark.fault("F47")
@pytest.mark.parametrize("copies", [0, -1, 1.5, (2, 0)])
def test_numbers_out_of_range(copies):
    with pytest.raises(InputError, match="^repeated matching: copies"):
        RepeatedHungarianMatcher(copies=copies)


def test_a_k_for_every_layer():
    with pytest.raises(InputError, match="^repeated matching: copies are given for 3 layers, predictions of 2"):
        RepeatedHungarianMatcher(copies=(1, 2, 3))(*scene(0))


@pytest.mark.fault("F44")
def test_repeated_without_objects():
    predictions, targets = scene(0, counts=(0, 0, 0))
    assert len(RepeatedHungarianMatcher(copies=2)(predictions, targets)) == 0
