"""Each reason the microscope states, against a brute-force recomputation by loops and enumeration."""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from msdetr import recipes
from msdetr.analysis.arrays import predictions_from_arrays, targets_from_arrays
from msdetr.analysis.look import training_output
from msdetr.analysis.matching import STATUSES, Outcome, Status, explain, explain_output
from msdetr.boxes import cxcywh_to_xyxy, iou
from msdetr.losses import Branch, Criterion, answer
from msdetr.matching import HungarianMatcher, Matcher, MatchingRules, OneToManyMatcher
from msdetr.methods import build_criterion, build_detector, matching_rules
from msdetr.model.postprocess import nms_postprocess
from msdetr.structures import DetectorOutput, ImageBatch, Predictions, Targets
from msdetr.viz.text import assignment_text, candidate_text

COARSE = st.sampled_from([0.0, 0.1, 0.25, 0.4, 0.5, 0.7, 0.9])


def scene(seed, layers=2, queries=6, objects=3, classes=3, images=1):
    """Coarse boxes and probabilities, so that ties and crowded places are common."""
    rng = np.random.default_rng(seed)
    grid = np.array([0.2, 0.3, 0.4])
    box = np.concatenate([rng.choice(grid, (images, objects, 2)), rng.choice(grid, (images, objects, 2))], -1)
    labels = rng.integers(0, classes, (images, objects))
    queries_boxes = np.concatenate([rng.choice(grid, (layers, images, queries, 2)) for _ in range(2)], -1)
    scores = rng.choice([0.05, 0.3, 0.6, 0.9], (layers, images, queries, classes))
    predictions = predictions_from_arrays(queries_boxes, scores)
    targets = Targets.from_list([torch.from_numpy(x) for x in labels], [torch.from_numpy(x) for x in box])
    return predictions, targets


def pair_scores(predictions, targets, alpha, layer):
    """score[t][q] by loops."""
    rows = []
    for label, box in zip(targets.labels.tolist(), targets.boxes, strict=True):
        row = []
        for logits, candidate in zip(predictions.logits[layer, 0], predictions.boxes[layer, 0], strict=True):
            overlap = float(iou(cxcywh_to_xyxy(candidate), cxcywh_to_xyxy(box)))
            row.append(alpha * float(torch.sigmoid(logits[label])) + (1 - alpha) * overlap)
        rows.append(row)
    return rows


def brute_obstacles(table, target, query, config):
    """Which steps of the rule stop the pair, and its place among the object's candidates."""
    value, obstacles = table[target][query], set()
    goes_to = [max(range(len(table)), key=lambda t, q=q: (table[t][q], -t)) for q in range(len(table[0]))]
    exclusive = config.rule == "exclusive"
    if value <= config.threshold:
        obstacles.add(Status.BELOW)
    if exclusive and goes_to[query] != target:
        obstacles.add(Status.LOST)
    ahead = [
        q for q, other in enumerate(table[target])
        if q != query and (not exclusive or goes_to[q] == target) and (other > value or (other == value and q < query))
    ]  # fmt: skip
    if len(ahead) + 1 > config.k:
        obstacles.add(Status.BEYOND)
    return obstacles, len(ahead) + 1


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), alpha=COARSE, threshold=COARSE, k=st.integers(1, 8), literal=st.booleans())
def test_one_to_many_reasons(seed, alpha, threshold, k, literal):
    predictions, targets = scene(seed)
    config = MatchingRules(alpha=alpha, threshold=threshold, k=k, rule="literal" if literal else "exclusive")
    branch = explain(predictions, targets, config).one_to_many
    first = {Status.BELOW: 0, Status.LOST: 1, Status.BEYOND: 2}
    for layer in range(2):
        # the numbers the package decides on, so that rounding cannot turn a tie; their values are compared below
        table = branch.score[layer].tolist()
        np.testing.assert_allclose(table, pair_scores(predictions, targets, alpha, layer), atol=1e-12)
        for target, query in itertools.product(range(3), range(6)):
            expected, place = brute_obstacles(table, target, query, config)
            reason = branch.why_not(query, target, layer)
            assert set(reason.obstacles) == expected
            assert (reason.status is Status.MATCHED) == (not expected) == bool(branch.matched[layer, target, query])
            assert branch.place[layer, target, query] == place
            if expected:
                assert reason.status is min(expected, key=first.get)
            if "rival" in reason.numbers:
                rival = reason.numbers["rival"]
                assert table[rival][query] >= table[target][query] and rival != target
                assert reason.numbers["rival_score"] == table[rival][query]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=COARSE, k=st.integers(1, 4), literal=st.booleans())
def test_removing_the_stated_obstacles_matches_the_pair(seed, threshold, k, literal):
    """What a reason says is enough: with tau just under the score and k at the place, the matcher takes the pair."""
    predictions, targets = scene(seed, layers=1)
    config = MatchingRules(threshold=threshold, k=k, rule="literal" if literal else "exclusive")
    branch = explain(predictions, targets, config).one_to_many
    for target, query in itertools.product(range(3), range(6)):
        reason = branch.why_not(query, target)
        if Status.LOST in reason.obstacles or branch.score[0, target, query] <= 0:
            continue
        change = {}
        if Status.BELOW in reason.obstacles:
            change["threshold"] = float(np.nextafter(reason.numbers["score"], 0))
        if Status.BEYOND in reason.obstacles:
            change["k"] = reason.numbers["place"]
        pairs = replace(config, **change).one_to_many()(predictions, targets)
        assert (target, query) in set(zip(pairs.target.tolist(), pairs.query.tolist(), strict=True))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), queries=st.integers(1, 5), objects=st.integers(0, 4))
@pytest.mark.filterwarnings("ignore:.*stay unmatched")
def test_one_to_one_reasons_by_enumeration(seed, queries, objects):
    predictions, targets = scene(seed, layers=1, queries=queries, objects=objects)
    branch = explain(predictions, targets).one_to_one
    cost = branch.cost[0]

    def totals():  # every assignment of as many pairs as possible
        size = min(objects, queries)
        for rows in itertools.combinations(range(objects), size):
            for columns in itertools.permutations(range(queries), size):
                pairs = set(zip(rows, columns, strict=True))
                yield pairs, sum(cost[pair] for pair in pairs)

    least = min(total for _, total in totals())
    for target, query in itertools.product(range(objects), range(queries)):
        forced = min((total for pairs, total in totals() if (target, query) in pairs), default=None)
        assert branch.regret(query, target) == pytest.approx(forced - least, abs=1e-9)
        reason, serving = branch.why_not(query, target), branch.serving(target)
        if reason.status is Status.MATCHED:
            assert serving == [query] and not reason.obstacles
            continue
        assert reason.obstacles == (reason.status,)
        if reason.status is Status.COSTLIER:
            assert branch.served(query) == [] and serving == [reason.numbers["winner"]]
            assert reason.numbers["winner_cost"] <= reason.numbers["cost"] + 1e-9
        else:
            assert reason.status is Status.TAKEN and branch.served(query) == [reason.numbers["rival"]]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 6), rule=st.sampled_from(["exclusive", "literal"]))
def test_merge_is_told_apart(seed, k, rule):
    predictions, targets = scene(seed, layers=1)
    config = MatchingRules(threshold=0.6, k=k, rule=rule)
    before = explain(predictions, targets, config)
    after = explain(predictions, targets, replace(config, merge=True)).one_to_many
    pairs = before.one_to_one.matched[0]
    busy = before.one_to_many.matched[0].any(0)
    for target, query in itertools.product(range(3), range(6)):
        had, has = before.one_to_many.matched[0, target, query], after.matched[0, target, query]
        merged = STATUSES[after.status[0, target, query]] is Status.MERGED
        may = pairs[target, query] and not had and (rule == "literal" or not busy[query])
        assert merged == bool(may) and has == (had or merged)
        assert ("merge" in after.why_not(query, target).text) == merged


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 8), merge=st.booleans())
def test_released_rule_statuses_fit_its_matches(seed, k, merge):
    predictions, targets = scene(seed, layers=1, queries=12)
    branch = explain(predictions, targets, MatchingRules(k=k, rule="released", merge=merge)).one_to_many
    for target, query in itertools.product(range(3), range(12)):
        reason = branch.why_not(query, target)
        assert (reason.status in (Status.MATCHED, Status.MERGED)) == bool(branch.matched[0, target, query])
        if reason.status in (Status.BEYOND, Status.UNVOTED):
            ahead = sum(
                s > branch.score[0, target, query] or (s == branch.score[0, target, query] and q < query)
                for q, s in enumerate(branch.score[0, target])
            )
            assert ahead >= (k if reason.status is Status.BEYOND else branch.votes[0, target])


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    threshold=st.sampled_from([0.04, 0.2, 0.5, 0.8]),
    least=st.sampled_from([0.15, 0.35, 0.5]),
    most=st.integers(1, 18),
)
def test_outcomes_against_loops(seed, threshold, least, most):
    predictions, targets = scene(seed, layers=1)
    outcomes = explain_output(predictions, targets, threshold, least, most)
    probability = predictions.logits[0, 0].sigmoid().tolist()
    overlap = [
        [float(iou(cxcywh_to_xyxy(c), cxcywh_to_xyxy(b))) for c in predictions.boxes[0, 0]] for b in targets.boxes
    ]
    order = sorted((-probability[q][c], q * 3 + c) for q in range(6) for c in range(3))[:most]
    taken, spare = {}, []
    for value, place in order:
        q, c = divmod(place, 3)
        if -value < threshold:
            continue
        near = [t for t in range(3) if int(targets.labels[t]) == c and overlap[t][q] >= least]
        open_ = [t for t in near if t not in taken]
        if open_:
            taken[max(open_, key=lambda t: overlap[t][q])] = q
        elif near:
            spare.append((max(near, key=lambda t: overlap[t][q]), q))
    for t, outcome in enumerate(outcomes):
        label = int(targets.labels[t])
        placed = [q for q in range(6) if overlap[t][q] >= least]
        if t in taken:
            copies = [q for owner, q in spare if owner == t]
            assert [q for q, _, _ in outcome.detections] == [taken[t], *copies]
            assert outcome.outcome is (Outcome.DOUBLED if copies else Outcome.FOUND)
        elif not placed:
            assert outcome.outcome is Outcome.NO_BOX and outcome.numbers["iou"] == pytest.approx(max(overlap[t]))
        elif max(probability[q][label] for q in placed) >= threshold:
            allowed = {place for _, place in order}
            kept = outcome.numbers["query"] * 3 + label in allowed
            assert outcome.outcome is (Outcome.ASSIGNED_ELSEWHERE if kept else Outcome.CROWDED_OUT)
            if kept:
                assert taken[outcome.numbers["rival"]] == outcome.numbers["query"]
        else:
            others = [
                probability[q][c] for value, place in order for q, c in [divmod(place, 3)]
                if q in placed and c != label and -value >= threshold
            ]  # fmt: skip
            assert outcome.outcome is (Outcome.WRONG_CLASS if others else Outcome.LOW_SCORE)
            if others:
                assert outcome.numbers["class_probability"] == pytest.approx(max(others))


def test_in_words():
    """One object; five candidates worth reading."""
    boxes = [[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.3], [0.5, 0.5, 0.4, 0.2], [0.1, 0.1, 0.1, 0.1]]
    predictions = predictions_from_arrays(boxes, [[0.9], [0.8], [0.7], [0.6]])
    targets = targets_from_arrays([[0.5, 0.5, 0.4, 0.4]], [0])
    found = explain(predictions, targets, MatchingRules(k=2), class_names=["circle"])
    texts = [found.one_to_many.why_not(q, 0).text for q in range(4)]
    assert texts == [
        "Query 0 serves object 0 (circle): its score is 0.3 · 0.900 + 0.7 · 1.000 = 0.970, its place 1 of at most 2.",
        "Query 1 serves object 0 (circle): its score is 0.3 · 0.800 + 0.7 · 0.750 = 0.765, its place 2 of at most 2.",
        "Query 2 does not serve object 0 (circle): it is number 3 among the object's candidates and k = 2.",
        "Query 3 does not serve object 0 (circle): its score, 0.3 · 0.600 + 0.7 · 0.000 = 0.180, is not above τ = 0.4; it "
        + "is number 4 among the object's candidates and k = 2.",
    ]
    ranked = found.one_to_many.candidates(0, top=3)
    assert [(c.query, c.rank, c.status) for c in ranked] == [
        (0, 1, Status.MATCHED), (1, 2, Status.MATCHED), (2, 3, Status.BEYOND)]  # fmt: skip
    assert all(c.cost == pytest.approx(c.cost_class + c.cost_l1 + c.cost_giou) for c in ranked)
    assert "query 0 costs" in found.one_to_one.why_not(1, 0).text
    assert [o.outcome for o in found.outcomes(score_threshold=0.75)] == [Outcome.DOUBLED]
    assert "query 0 finds it (0.90), and so does query 1 (0.80)" in found.outcomes(score_threshold=0.75)[0].text


def test_what_post_processing_drops_is_in_no_outcome():
    boxes, near = [[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.3]], [[0.5, 0.5, 0.4, 0.4], [0.5, 0.5, 0.4, 0.3]]
    predictions, targets = predictions_from_arrays(boxes, [[0.9], [0.8]]), targets_from_arrays(near, [0, 0])
    plain = explain(predictions, targets).outcomes()
    assert [one.outcome for one in plain] == [Outcome.FOUND, Outcome.FOUND]
    own = explain(predictions, targets, postprocess=partial(nms_postprocess, iou_threshold=0.7)).outcomes(
        iou_threshold=0.9
    )
    assert [one.outcome for one in own] == [Outcome.FOUND, Outcome.CROWDED_OUT]
    assert "query 1 sees it (0.80), but the detector's post-processing does not keep it" in own[1].text


def test_path_of_a_query_and_both_branches():
    first, targets = scene(3, images=2)
    second, _ = scene(4, images=2)
    references = torch.rand(2, 2, 6, 4)
    found = explain(DetectorOutput(first, second, references=references), targets, image=1)
    assert not found.one_to_many.hypothetical and explain(first, targets).one_to_many.hypothetical
    for query in range(6):
        for step in found.query_path(query):
            np.testing.assert_array_equal(step.box, first.boxes[step.layer, 1, query])
            np.testing.assert_array_equal(step.reference, references[step.layer, 1, query])
            assert ([] if step.one_to_one is None else [step.one_to_one]) == found.one_to_one.served(query, step.layer)
            assert list(step.one_to_many) == found.one_to_many.served(query, step.layer)
            assert step.iou == found.one_to_one.iou[step.layer, step.nearest, query]


@pytest.mark.fault("F44")
def test_image_without_objects():
    predictions, _ = scene(0)
    found = explain(predictions, Targets.from_list([torch.zeros(0)], [torch.zeros(0, 4)]))
    assert found.outcomes() == [] and found.query_path(0)[0].nearest is None
    with pytest.raises(IndexError, match="the image has 0"):
        found.one_to_many.candidates(0)


@pytest.mark.fault("F48")
def test_not_a_number_is_an_error():
    predictions, targets = scene(0)
    predictions.boxes[1, 0, 2, 0] = float("nan")
    with pytest.raises(ValueError, match="query 2"):
        explain(predictions, targets)


def test_arrays_of_other_detectors():
    pixels = predictions_from_arrays([[10, 20, 30, 60]], [[0.5, 1.0]], "xyxy", image_size=(100, 50))
    corner = predictions_from_arrays([[10, 20, 20, 40]], [[0.5, 1.0]], "xywh", image_size=(100, 50))
    torch.testing.assert_close(pixels.boxes, torch.tensor([[[[0.4, 0.4, 0.4, 0.4]]]], dtype=torch.float64))
    torch.testing.assert_close(corner.boxes, pixels.boxes)
    assert torch.isfinite(pixels.logits).all() and isinstance(pixels, Predictions)
    for wrong, message in (
        (([[0.5] * 4], [[2.0]]), "sigmoid"),
        (([[0.5] * 4], [[0.1], [0.2]]), "same leading"),
        (([[0.5] * 3], [[0.1]]), "must be 4"),
        (([[0.5] * 4], [[0.1]], "yxyx"), "none of"),
    ):
        with pytest.raises(ValueError, match=message):
            predictions_from_arrays(*wrong)


@pytest.mark.parametrize(
    "changes",
    [{}, {"deta.k": 2}, {"stable.cost_power": 0.5}, {"ms_detr.merge": True, "ms_detr.groups": "primary"}],
)
def test_every_branch_of_a_run_is_explained_as_it_was_matched(changes):
    """Further query groups, repeated objects, known pairs and the encoder among them, whatever the image of the batch."""
    config = small.config("c", **{
        "hybrid.queries": 8, "hybrid.k": 2, "group.groups": 3, "denoising.queries": 4, "ms_detr.groups": "all",
        "ms_detr.threshold": 0.05, "ms_detr.k": 2, **changes,
    })  # fmt: skip
    torch.manual_seed(0)
    detector, criterion = build_detector(config), build_criterion(config)
    batch = ImageBatch.from_images(list(torch.randn(2, 3, 64, 64)))
    boxes = torch.rand(5, 4) * 0.3 + 0.3
    targets = Targets.from_list([torch.tensor([0, 1]), torch.tensor([2, 3, 3])], [boxes[:2], boxes[2:]])
    output = training_output(detector, batch, targets)
    supervised = criterion.supervised(output, targets)
    matches = criterion.match(supervised)
    found = explain(output, targets, matching_rules(config), image=1, criterion=criterion, class_names="abcdefgh")
    assert list(found.branches) == list(supervised) and len(found.further) == len(supervised) - 2
    for name, branch in found.branches.items():
        first = int((supervised[name].targets.image < 1).sum())
        here = matches[name].select(matches[name].image == 1)
        expected = {(k, t - first, q) for k, t, q in zip(*(x.tolist() for x in (here.layer, here.target, here.query)))}
        assert expected == set(map(tuple, np.argwhere(branch.matched).tolist())), name
        for target in range(len(branch.targets)):
            for query in {0, branch.score.shape[-1] - 1, *branch.serving(target)}:
                reason = branch.why_not(query, target)
                assert (not reason.obstacles) == bool(branch.matched[-1, target, query]) and reason.text.endswith(".")
        assert branch.object_name(0).endswith("object 0 (c)"), "the encoder's objects have their names, too"
    assert found.branch("hybrid").object_name(3) == "copy 2 of object 1 (d)"
    assert "was made to find object 0 (c)" in found.branch("denoising").why_not(0, 0).text
    assert "copy 1 of object 0 (c)" in found.branch("hybrid").why_not(0, 0).text
    with pytest.raises(LookupError, match="none of one_to_one, one_to_many"):
        found.branch("hybird")


def test_a_query_matched_by_where_it_starts_is_followed_by_what_it_predicts():
    """DETA: reasons are of starting boxes and by IoU alone; the path of a query is of its boxes."""
    predictions, targets = scene(4, objects=2)
    predictions.boxes[-1, 0, 3] = targets.boxes[1]
    start = predictions.boxes.flip(2)
    output = DetectorOutput(predictions, references=start)
    found = explain(output, targets, criterion=build_criterion(recipes.get("shapes/deta")))
    branch, last = found.one_to_one, found.query_path(3)[-1]
    assert last.iou == pytest.approx(1) and last.nearest in np.flatnonzero((targets.boxes == targets.boxes[1]).all(-1))
    by_loops = [[float(iou(cxcywh_to_xyxy(b), cxcywh_to_xyxy(t))) for b in start[0, 0]] for t in targets.boxes]
    np.testing.assert_allclose(branch.iou[-1], by_loops, atol=1e-6)
    np.testing.assert_array_equal(branch.score, branch.iou)
    assert branch.by_overlap and (branch.matching.threshold, branch.matching.k) == (0.6, 4)
    text = candidate_text(branch, 1)
    assert "boxes that queries start from" in text and "IoU: from 0.6 on" in text
    assert "τ" not in text and "GIoU" not in text


def test_branches_whose_matchers_do_not_explain_themselves_are_named():
    class Silent(OneToManyMatcher):
        decisions = Matcher.decisions

    predictions, targets = scene(0)
    branches = [Branch("one_to_one", answer, HungarianMatcher())]
    branches += [Branch(name, answer, Silent()) for name in ("one_to_many", "third")]
    found = explain(predictions, targets, criterion=Criterion(branches))
    assert found.unexplained == ("one_to_many", "third") and found.one_to_many.hypothetical
    text = assignment_text(found)
    assert "(third: its matcher does not explain itself)" in text and "(one-to-many is shown as it would be" in text
    with pytest.raises(LookupError, match="does not explain itself"):
        found.branch("third")


def test_a_route_is_explained_by_its_own_settings():
    config = small.config("c", **{"mr_detr.alpha": 0.9, "mr_detr.threshold": 0.2, "mr_detr.k": 2, "ms_detr.k": 5})
    torch.manual_seed(0)
    detector, batch = build_detector(config), ImageBatch.from_images([torch.randn(3, 64, 64)])
    targets = Targets.from_list([torch.tensor([0, 1])], [torch.rand(2, 4) * 0.3 + 0.3])
    output = training_output(detector, batch, targets)
    found = explain(output, targets, matching_rules(config), criterion=build_criterion(config))
    for route in found.further:
        if route.name.endswith("route"):
            expected = 0.9 * route.probability + 0.1 * route.iou
            np.testing.assert_allclose(route.score, expected, rtol=1e-5)
            numbers = route.why_not(0, 0).numbers
            assert numbers["threshold"] == 0.2 and numbers["k"] == 2
    assert found.one_to_many.matching.k == 5
    assert sum(route.name.endswith("route") for route in found.further) == 2
