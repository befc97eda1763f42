import itertools

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_one_to_many import pairs_of, scene

from msdetr.config import RunConfig
from msdetr.errors import ConfigError, InputError
from msdetr.matching import (
    HungarianMatcher,
    MatchingRules,
    OneToManyMatcher,
    ReleasedOneToMany,
    RepeatedHungarianMatcher,
    base,
    class_probability,
    detection_costs,
    match_all,
    pair_iou,
)
from msdetr.methods import build_criterion


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 3), min_size=1, max_size=3), st.integers(3, 6))
def test_total_cost_is_least(seed, counts, num_queries):
    """Against all injective assignments of objects to queries."""
    predictions, targets = scene(seed, counts=tuple(counts), num_queries=num_queries)
    matches = HungarianMatcher()(predictions, targets)
    cost = HungarianMatcher().cost(predictions, targets)
    for layer in range(2):
        for image, count in enumerate(counts):
            table = cost[layer][targets.image == image]
            pairs = pairs_of(matches, targets, layer, image)
            assert [q for q, _ in pairs] == sorted({q for q, _ in pairs})
            assert sorted(t for _, t in pairs) == list(range(count))
            found = sum(table[t, q].item() for q, t in pairs)
            least = min(
                sum(table[t, q].item() for t, q in enumerate(queries))
                for queries in itertools.permutations(range(num_queries), count)
            )
            assert found == pytest.approx(least)


def test_tables_against_a_loop():
    predictions, targets = scene(1)
    probability, overlap = class_probability(predictions, targets), pair_iou(predictions, targets)
    for layer, t, q in [(0, 0, 0), (1, 2, 19), (0, 7, 5), (1, 4, 11)]:
        image, label = int(targets.image[t]), int(targets.labels[t])
        logit = predictions.logits[layer, image, q, label].item()
        assert probability[layer, t, q].item() == pytest.approx(1 / (1 + np.exp(-logit)))
        expected = oracles.iou(predictions.boxes[layer, image, q].tolist(), targets.boxes[t].tolist())
        assert overlap[layer, t, q].item() == pytest.approx(expected)


@pytest.mark.fault("F45")
def test_more_objects_than_queries():
    predictions, targets = scene(0, counts=(5, 2), num_queries=3)
    with pytest.warns(UserWarning, match="2 objects of this batch stay unmatched"):
        matches = HungarianMatcher()(predictions, targets)
    assert len(pairs_of(matches, targets, 0, 0)) == 3
    assert len(pairs_of(matches, targets, 0, 1)) == 2


def test_images_do_not_influence_each_other():
    """The pairs of an image are the same alone and in a batch."""
    predictions, targets = scene(3, counts=(3, 4))
    together = HungarianMatcher()(predictions, targets)
    for image in range(2):
        alone, single = predictions.of_image(image), targets.of_image(image)
        assert pairs_of(HungarianMatcher()(alone, single), single, 1, 0) == pairs_of(together, targets, 1, image)


@pytest.mark.parametrize(
    "matcher",
    [HungarianMatcher(), OneToManyMatcher(), ReleasedOneToMany(positive_fraction=1.0)],
    ids=lambda m: type(m).__name__,
)
def test_prepared_as_a_batch_or_image_by_image(matcher, monkeypatch):
    """Large tables on the CPU are made image by image."""
    predictions, targets = scene(5, counts=(3, 0, 4), crowded=True)
    whole = matcher(predictions, targets)
    monkeypatch.setattr(base, "_LARGE_TABLE", 0)
    parts = matcher(predictions, targets)
    assert len(whole)
    assert all(torch.equal(getattr(whole, f), getattr(parts, f)) for f in ("layer", "image", "query", "target"))


def test_several_problems_at_once():
    problems = [(HungarianMatcher(), *scene(s)) for s in range(3)]
    for (matcher, predictions, targets), found in zip(problems, match_all(problems)):
        alone = matcher(predictions, targets)
        assert all(torch.equal(getattr(alone, f), getattr(found, f)) for f in ("layer", "image", "query", "target"))


def test_batch_sizes_must_agree():
    predictions, targets = scene(0)
    with pytest.raises(ValueError, match="predictions are of 3 images, targets of 1"):
        HungarianMatcher()(predictions, targets.of_image(0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: HungarianMatcher(detection_costs(0, 0, 0)),
        lambda: RepeatedHungarianMatcher(detection_costs(0, 0, 0)),
        lambda: MatchingRules(0, 0, 0).hungarian(),
    ],
)
def test_costs_without_any_weight_are_refused(make):
    with pytest.raises(InputError, match="all costs .l1, class, giou. are 0"):
        make()


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict.fromkeys(("cost_class", "cost_l1", "cost_giou"), 0), "^matching.cost_class, .*all are 0"),
        (dict.fromkeys(("cost_l1", "cost_giou"), 0), "^two_stage.match_on: .*two_stage.match_on=boxes"),
    ],
)
def test_runs_whose_matching_has_no_cost_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig().override({f"matching.{name}": weight for name, weight in changes.items()})


@pytest.mark.parametrize("changes", [{"two_stage.match_on": "boxes"}, {"two_stage": None}])
def test_the_class_cost_alone_is_enough_without_anchors(changes):
    run = RunConfig().override({"matching.cost_l1": 0, "matching.cost_giou": 0, **changes})
    assert len(build_criterion(run).branches[0].matcher(*scene(0)))
