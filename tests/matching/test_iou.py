"""Assignment by overlap, against plain transcriptions of its rules."""

import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_one_to_many import pairs_of, scene, scenes, tables

from msdetr.errors import InputError
from msdetr.matching import IoUMatcher, ReleasedIoUMatcher, SharedMatcher
from msdetr.structures import Predictions

ANY_K = pytest.mark.filterwarnings("ignore:IoU matching. k")


@pytest.mark.parametrize(
    "matcher, oracle",
    [(IoUMatcher, oracles.by_iou), (ReleasedIoUMatcher, oracles.released_by_iou)],
    ids=["exclusive", "released"],
)
@ANY_K
@settings(max_examples=80, deadline=None)
@given(scenes, st.sampled_from([0.0, 0.25, 0.6, 1.0]), st.sampled_from([1, 2, 4, 30]))
def test_against_brute_force(matcher, oracle, description, threshold, k):
    predictions, targets = scene(**description)
    matches = matcher(threshold, k)(predictions, targets)
    for layer, images in enumerate(tables(predictions, targets, alpha=0.0)):
        for image, table in enumerate(images):
            found = pairs_of(matches, targets, layer, image)
            assert len(found) == len(set(found))
            assert set(found) == oracle(table, threshold, min(k, description["num_queries"]))


@ANY_K
@settings(max_examples=60, deadline=None)
@given(scenes)
def test_a_query_serves_one_object_and_the_best_of_an_object_serves_it(description):
    predictions, targets = scene(**description)
    matches = IoUMatcher()(predictions, targets)
    slots = list(zip(matches.layer.tolist(), matches.image.tolist(), matches.query.tolist()))
    assert len(slots) == len(set(slots))
    for layer, images in enumerate(tables(predictions, targets, alpha=0.0)):
        for image, table in enumerate(images):
            served = {target for _, target in pairs_of(matches, targets, layer, image)}
            for target, row in enumerate(table):
                own = [
                    v
                    for q, v in enumerate(row)
                    if v > 0 and target == max(range(len(table)), key=lambda t: (table[t][q], -t))
                ]
                assert (target in served) == bool(own)


def test_released_an_object_that_nothing_overlaps_takes_queries_all_the_same():
    predictions, targets = scene(0, num_layers=1, counts=(2,), num_queries=6)
    targets.boxes[0] = torch.tensor([0.99, 0.99, 0.001, 0.001]).double()
    assert (IoUMatcher()(predictions, targets).target == 1).all()
    assert (ReleasedIoUMatcher(k=2)(predictions, targets).target == 0).sum() == 2


def test_a_cap_keeps_a_random_subset_that_can_be_given():
    predictions, targets = scene(0, num_layers=1, counts=(2,), num_queries=40, crowded=True)
    everything = ReleasedIoUMatcher(0.1, k=40)(predictions, targets)
    capped = ReleasedIoUMatcher(0.1, 40, cap=3, permutation=lambda n: torch.arange(n - 1, -1, -1))
    first, second = capped(predictions, targets), capped(predictions, targets)
    assert len(everything) > len(first) == 3
    assert torch.equal(first.query, second.query)
    assert not len(ReleasedIoUMatcher(0.1, 40, cap=0)(predictions, targets))


def test_one_assignment_for_all_layers():
    predictions, targets = scene(1)
    same = Predictions(predictions.logits, predictions.boxes[:1].expand_as(predictions.boxes))
    own, shared = IoUMatcher(0.3), SharedMatcher(IoUMatcher(0.3))
    expected, found = own(same, targets), shared(same, targets)
    for layer in range(2):
        for image in range(3):
            assert sorted(pairs_of(found, targets, layer, image)) == sorted(pairs_of(expected, targets, layer, image))
    capped = SharedMatcher(ReleasedIoUMatcher(0.1, cap=2))(same, targets)
    assert len(capped) and pairs_of(capped, targets, 0, 0) == pairs_of(capped, targets, 1, 0)


@pytest.mark.fault("F47")
@pytest.mark.parametrize("matcher", [IoUMatcher, ReleasedIoUMatcher])
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"threshold": -0.1}, "threshold"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": float("nan")}, "threshold"),
        ({"k": 0}, "k"),
        ({"k": 1.5}, "k"),
    ],
    ids=str,
)
def test_numbers_out_of_range(matcher, settings, message):
    with pytest.raises(InputError, match=f"^IoU matching: {message}"):
        matcher(**settings)


def test_a_negative_cap_is_refused():
    with pytest.raises(InputError, match="^IoU matching: cap"):
        ReleasedIoUMatcher(cap=-1)


@pytest.mark.fault("F46")
@pytest.mark.parametrize("matcher", [IoUMatcher, ReleasedIoUMatcher])
def test_k_beyond_the_queries_is_told(matcher):
    predictions, targets = scene(0, num_queries=3)
    with pytest.warns(UserWarning, match="k = 9 is more than the 3 queries"):
        matcher(k=9)(predictions, targets)


@pytest.mark.fault("F44")
@pytest.mark.parametrize("matcher", [IoUMatcher(), ReleasedIoUMatcher(cap=4), SharedMatcher(IoUMatcher())])
def test_no_objects(matcher):
    predictions, targets = scene(0, counts=(0, 0, 0))
    assert len(matcher(predictions, targets)) == 0
