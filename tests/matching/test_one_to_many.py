import numpy as np
import oracles
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msdetr.matching import (
    HungarianMatcher,
    IoUMatcher,
    OneToManyMatcher,
    ReleasedIoUMatcher,
    ReleasedMrDETR,
    ReleasedOneToMany,
    merge_matches,
    score,
)
from msdetr.structures import Matches, Predictions, Targets


def scene(seed: int, num_layers=2, counts=(3, 0, 5), num_queries=20, num_classes=4, ties=False, crowded=False):
    """Random predictions and targets; ``ties`` rounds everything to a coarse grid so that equal scores are common, and
    ``crowded`` puts all objects and queries at about the same place."""
    rng = np.random.default_rng(seed)
    depth_shape = (num_layers, len(counts), num_queries)
    spread = 0.05 if crowded else 0.5

    def draw_boxes(*shape):
        centers = 0.5 + spread * (rng.random((*shape, 2)) - 0.5)
        return np.concatenate([centers, rng.uniform(0.1, 0.5, (*shape, 2))], -1)

    logits, boxes = rng.normal(0, 2, (*depth_shape, num_classes)), draw_boxes(*depth_shape)
    true = [draw_boxes(n) for n in counts]
    if ties:
        logits, boxes, true = np.round(logits), np.round(boxes * 4) / 4, [np.round(b * 4) / 4 for b in true]
    labels = [rng.integers(0, num_classes, n) for n in counts]
    targets = Targets.from_list([torch.tensor(x) for x in labels], [torch.tensor(b).reshape(-1, 4) for b in true])
    return Predictions(torch.tensor(logits), torch.tensor(boxes)), targets


def pairs_of(matches: Matches, targets: Targets, layer: int, image: int) -> list[tuple[int, int]]:
    start = int((targets.image < image).sum())
    keep = (matches.layer == layer) & (matches.image == image)
    return [(q, t - start) for q, t in zip(matches.query[keep].tolist(), matches.target[keep].tolist())]


def tables(predictions, targets, alpha):
    """[layer][image] -> table[object][query] of scores, as nested lists."""
    values = score(predictions, targets, alpha)
    return [[layer[targets.image == b].tolist() for b in range(targets.num_images)] for layer in values]


scenes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "counts": st.lists(st.integers(0, 6), min_size=1, max_size=3),
        "num_queries": st.integers(1, 15),
        "ties": st.booleans(),
        "crowded": st.booleans(),
    }
)


@pytest.mark.parametrize(
    "matcher_class, options, oracle",
    [
        (OneToManyMatcher, {"exclusive": False}, oracles.algorithm_1),
        (OneToManyMatcher, {"exclusive": True}, oracles.section_c),
        (ReleasedOneToMany, {"positive_fraction": 1.0}, oracles.released),
    ],
    ids=["literal", "exclusive", "released"],
)
@pytest.mark.filterwarnings("ignore:one-to-many matching. k")
@settings(max_examples=700, deadline=None)
@given(scenes, st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.25, 0.4, 0.9]), st.sampled_from([1, 2, 6, 30]))
def test_against_brute_force(matcher_class, options, oracle, description, alpha, threshold, k):
    predictions, targets = scene(**description)
    matches = matcher_class(alpha=alpha, threshold=threshold, k=k, **options)(predictions, targets)
    for layer, images in enumerate(tables(predictions, targets, alpha)):
        for image, table in enumerate(images):
            found = pairs_of(matches, targets, layer, image)
            assert len(found) == len(set(found))
            assert set(found) == oracle(table, threshold, min(k, description["num_queries"]))


@pytest.mark.fault("F51")
@settings(max_examples=300, deadline=None)
@given(scenes, st.booleans())
@pytest.mark.filterwarnings("ignore")
def test_exclusive_query_serves_one_object(description, merge):
    predictions, targets = scene(**description)
    matches = OneToManyMatcher(threshold=0.1, exclusive=True)(predictions, targets)
    if merge:
        one_to_one = HungarianMatcher()(predictions, targets)
        matches = merge_matches(matches, one_to_one, description["num_queries"], targets.num_images)
    slots = list(zip(matches.layer.tolist(), matches.image.tolist(), matches.query.tolist()))
    assert len(slots) == len(set(slots))


@pytest.mark.fault("F51")
@settings(max_examples=300, deadline=None)
@given(scenes, st.booleans())
@pytest.mark.filterwarnings("ignore")
def test_merge_rule(description, exclusive):
    """One-to-many pairs stay; one-to-one pairs are added, in exclusive mode only for queries that serve nobody yet."""
    predictions, targets = scene(**description)
    many = OneToManyMatcher(threshold=0.3, exclusive=exclusive)(predictions, targets)
    one = HungarianMatcher()(predictions, targets)
    merged = merge_matches(many, one, description["num_queries"], targets.num_images, exclusive)

    def as_set(m):
        return set(zip(m.layer.tolist(), m.image.tolist(), m.query.tolist(), m.target.tolist()))

    taken = {pair[:3] for pair in as_set(many)}
    added = {pair for pair in as_set(one) if not exclusive or pair[:3] not in taken}
    assert as_set(merged) == as_set(many) | added
    assert len(merged) == len(as_set(merged))


@settings(max_examples=100, deadline=None)
@given(scenes)
@pytest.mark.filterwarnings("ignore")
def test_merged_or_not_the_best_object_gives_a_query_its_class(description):
    """With the literal rule a query may serve several objects; the pair that comes last decides."""
    predictions, targets = scene(**description)
    many = OneToManyMatcher(threshold=0.3, exclusive=False)(predictions, targets)
    one = HungarianMatcher()(predictions, targets)
    merged = merge_matches(many, one, description["num_queries"], targets.num_images, exclusive=False)

    def classes(m):
        slots = zip(m.layer.tolist(), m.image.tolist(), m.query.tolist())
        return dict(zip(slots, m.target.tolist()))

    assert classes(merged) == classes(one) | classes(many)
    assert merged.layer.tolist() == sorted(merged.layer.tolist())


@pytest.mark.filterwarnings("ignore:one-to-many matching. k")
def test_threshold_is_strict():
    """A perfect box of a certain class scores alpha * 1 + (1 - alpha) * 1 = 1 at most; at tau = IoU it is dropped."""
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]], dtype=torch.float64)
    predictions = Predictions(torch.zeros(1, 1, 1, 1, dtype=torch.float64), box[None, None])
    targets = Targets.from_list([torch.tensor([0])], [box])
    assert score(predictions, targets, 0.5).item() == 0.75
    assert len(OneToManyMatcher(alpha=0.5, threshold=0.75)(predictions, targets)) == 0
    assert len(OneToManyMatcher(alpha=0.5, threshold=0.74)(predictions, targets)) == 1
    assert len(ReleasedOneToMany(alpha=0.5, threshold=0.75, positive_fraction=1.0)(predictions, targets)) == 1


@pytest.mark.fault("F49")
@pytest.mark.filterwarnings("ignore:one-to-many matching. k")
def test_ties_have_an_order():
    """Equal queries: the lower index first. A query equal for two objects: the first object."""
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(1, 1, 5, 4)
    predictions = Predictions(torch.zeros(1, 1, 5, 1), boxes)
    targets = Targets.from_list([torch.tensor([0, 0])], [boxes[0, 0, :2]])
    matches = OneToManyMatcher(k=2)(predictions, targets)
    assert sorted(matches.query.tolist()) == [0, 1]
    assert matches.target.tolist() == [0, 0]


@pytest.mark.fault("F46")
@pytest.mark.parametrize("matcher", [OneToManyMatcher, ReleasedOneToMany])
def test_k_above_the_number_of_queries_is_clamped(matcher):
    predictions, targets = scene(0, num_queries=5)
    with pytest.warns(UserWarning, match="k = 6 is more than the 5 queries"):
        matches = matcher(threshold=0.0)(predictions, targets)
    assert len(matches)


@pytest.mark.fault("F47")
@pytest.mark.parametrize("bad", [{"k": 0}, {"threshold": 1.1}, {"threshold": float("nan")}, {"alpha": -0.1}])
def test_impossible_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        OneToManyMatcher(**bad)


@pytest.mark.fault("F44")
def test_no_objects_at_all():
    predictions, targets = scene(0, counts=(0, 0))
    for matcher in (OneToManyMatcher(), OneToManyMatcher(exclusive=False), ReleasedOneToMany(), HungarianMatcher()):
        assert len(matcher(predictions, targets)) == 0


@pytest.mark.parametrize(
    "kind", [OneToManyMatcher, ReleasedOneToMany, ReleasedMrDETR, HungarianMatcher, IoUMatcher, ReleasedIoUMatcher]
)
@pytest.mark.filterwarnings("ignore:.*stay unmatched")
def test_no_queries_at_all(kind):
    """A further group of a small image may have none."""
    predictions, targets = scene(0)
    nobody = Predictions(predictions.logits[:, :, :0], predictions.boxes[:, :, :0])
    assert len(kind()(nobody, targets)) == 0


@pytest.mark.fault("F48")
@pytest.mark.parametrize("matcher", [OneToManyMatcher(), ReleasedOneToMany(), HungarianMatcher()])
@pytest.mark.parametrize("field", ["logits", "boxes"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_is_named(matcher, field, value):
    predictions, targets = scene(0)
    targets = Targets(targets.labels, targets.boxes, targets.image, 3, image_ids=(7, 8, 139))
    bad = getattr(predictions, field).clone()
    bad[1, 2, 4] = value
    predictions = Predictions(**{"logits": predictions.logits, "boxes": predictions.boxes} | {field: bad})
    with pytest.raises(ValueError, match=r"layer 1, image id 139 .*query 4"):
        matcher(predictions, targets)


@pytest.mark.fault("F50")
def test_label_outside_the_classes():
    predictions, targets = scene(0)
    targets = Targets(targets.labels + 3, targets.boxes, targets.image, 3)
    with pytest.raises(ValueError, match=r"label \d+ of object \d+ .* outside \[0, 4\)"):
        OneToManyMatcher()(predictions, targets)


def test_random_cap_of_the_released_rule():
    """More than a quarter of the queries positive: a random quarter is kept, so at most that many votes."""
    predictions, targets = scene(0, num_layers=1, counts=(4,), num_queries=40, crowded=True)
    matcher = ReleasedOneToMany(threshold=0.1)
    torch.manual_seed(0)
    first = len(matcher(predictions, targets))
    assert first <= 10
    draws = {tuple(matcher(predictions, targets).query.tolist()) for _ in range(20)}
    assert len(draws) > 1
