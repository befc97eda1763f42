"""The course's view of one-to-many matching agrees with the plain transcription and with the matchers."""

import itertools

import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from msdetr.analysis.algorithm import (
    LISTED,
    RELEASED,
    SECTION_C,
    rules,
    scene_of_scores,
    simulated_scenes,
    steps,
    sweep,
    toy_scene,
)
from msdetr.matching import MatchingRules, score

tables = st.tuples(st.integers(1, 4), st.integers(1, 7)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 10).map(lambda tenths: tenths / 10))
)


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 7), st.booleans())
def test_the_last_step_is_what_the_rule_matches(table, k, exclusive):
    oracle = oracles.section_c if exclusive else oracles.algorithm_1
    done = steps(table, threshold=0.35, k=k, exclusive=exclusive)
    target, query = done[-1].alive.nonzero()
    assert set(zip(query.tolist(), target.tolist(), strict=True)) == oracle(table.tolist(), 0.35, k)
    for before, after in itertools.pairwise(done):
        assert not (after.alive & ~before.alive).any(), "no line brings a pair back"


@pytest.mark.filterwarnings("ignore:one-to-many matching. k", "ignore:.*stay unmatched")
@settings(max_examples=60, deadline=None)
@given(tables, st.integers(1, 7))
def test_rules_of_any_table_agree_with_the_plain_transcriptions(table, k):
    found = rules(*scene_of_scores(table), alpha=1.0, threshold=0.35, k=k)
    for name, oracle in ((SECTION_C, oracles.section_c), (LISTED, oracles.algorithm_1), (RELEASED, oracles.released)):
        target, query = found[name].nonzero()
        assert set(zip(query.tolist(), target.tolist(), strict=True)) == oracle(table.tolist(), 0.35, k)


def test_the_toy_scene_separates_all_rules():
    predictions, targets = toy_scene()
    table = score(predictions, targets, 0.3)[0].numpy()
    found = rules(predictions, targets, k=3)
    assert len({matched.tobytes() for matched in found.values()}) == len(found) == 5
    np.testing.assert_array_equal(found[SECTION_C], steps(table, 0.4, 3)[-1].alive)
    np.testing.assert_array_equal(found[LISTED], steps(table, 0.4, 3, exclusive=False)[-1].alive)


def test_a_sweep_counts_what_is_matched():
    predictions, targets = toy_scene()
    found = sweep(predictions, targets, "threshold", [0.0, 0.4, 1.0], MatchingRules(rule="literal", k=3))
    np.testing.assert_allclose(found.positives, [3, 2, 0])  # at 0 object 2 has queries 4, 5 and 6
    np.testing.assert_allclose(found.without, [0, 1 / 3, 1])
    np.testing.assert_allclose(found.shared[1:], [1 / 5, 0])


def test_simulated_scenes_are_the_same_for_the_same_seed():
    (a, targets), (b, _) = simulated_scenes(3, 10, seed=1), simulated_scenes(3, 10, seed=1)
    assert torch.equal(a.boxes, b.boxes) and torch.equal(a.logits, b.logits)
    assert a.boxes.shape == (1, 3, 10, 4) and targets.num_images == 3
