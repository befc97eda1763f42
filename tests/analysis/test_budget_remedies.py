"""What would change a budget: suppression of duplicates, another training, another run; and what recorded training says."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from budget_scenes import CLASSES, NAMES, coco_of, random_data
from cells import made_up

from msdetr import recipes
from msdetr.analysis.budget import Cause, Scene, budget, compare_budgets, diagnose
from msdetr.analysis.budget.attribution import CAUSES
from msdetr.analysis.budget.doctor import Basis, Suppression, effects
from msdetr.analysis.budget.history import recorded_causes, told
from msdetr.analysis.stability import BranchHistory, MatchHistory
from msdetr.boxes import xyxy_to_cxcywh
from msdetr.engine.metric import coco_metrics, coco_rows
from msdetr.errors import InputError
from msdetr.matching import MatchingRules
from msdetr.model.postprocess import nms_postprocess
from msdetr.structures import Predictions, Targets


def scenes_of_a_detector(seed, images=4, queries=12, side=200.0):
    """Predictions in float32 as a detector makes them, and the scenes that they are."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(2, images, queries, 2, generator=generator) * 0.6
    boxes = torch.cat([corners, corners + 0.1 + 0.3 * torch.rand(corners.shape, generator=generator)], -1)
    boxes[:, :, 1::2] = (boxes[:, :, ::2] + 0.02 * torch.rand(boxes[:, :, ::2].shape, generator=generator)).clamp(max=1)
    logits = torch.randn(2, images, queries, CLASSES, generator=generator)
    predictions = Predictions(logits, xyxy_to_cxcywh(boxes))
    pixels = (boxes * side).double().numpy()
    scores = logits.sigmoid().double().numpy()
    labels = logits[-1, :, ::3].argmax(-1).numpy()
    return predictions, [
        Scene.of_predictions(i, pixels[-1, i, ::3] + 1, labels[i], pixels[:, i], scores[:, i], max_detections=20)
        for i in range(images)
    ]


def test_the_effect_of_suppression_is_that_of_doing_it():
    predictions, scenes = scenes_of_a_detector(0)
    sizes, coco = torch.full((len(scenes), 2), 200), coco_of(scenes)
    before = budget(scenes, NAMES)
    for iou in (0.5, 0.8):
        suppression = Suppression(iou, 20)
        for scene in scenes:
            suppression.add(scene)
        answers = nms_postprocess(predictions, sizes, 20, iou)
        rows = np.concatenate([coco_rows(i, answer, range(CLASSES)) for i, answer in enumerate(answers)])
        theirs = 100 * coco_metrics(coco, rows).metrics["AP"]
        assert suppression.ap(CLASSES) == pytest.approx(theirs, abs=1e-4)
        remedy = next(one for one in diagnose(before, [suppression]).remedies if one.basis is Basis.EXACT)
        assert remedy.gain == pytest.approx(theirs - before.ap, abs=1e-4) and remedy.gain != 0
    with pytest.raises(InputError, match="iou"):
        Suppression(1.5)


def test_suppression_of_plain_detections_keeps_as_many_of_each_class_as_count():
    objects = np.array([[30 * x, 30 * y, 30 * x + 20, 30 * y + 20] for x in range(16) for y in range(10)])
    labels = np.arange(160) % 2
    scene = Scene.of_detections(1, objects, labels, objects, np.linspace(0.9, 0.5, 160), labels)
    for pairs in (False, True):
        suppression = Suppression(0.5, 100, pairs)
        suppression.add(scene)
        assert suppression.ap(2) == pytest.approx(budget([scene], ("a", "b")).ap) == pytest.approx(100)


def test_other_training_has_the_effect_that_studies_measured_or_none_is_claimed():
    found = budget(random_data(1), NAMES)
    unknown = diagnose(found, config=recipes.get("shapes/baseline")).remedies
    assert [one.basis for one in unknown] == [Basis.UNKNOWN] * 3 and all(one.gain is None for one in unknown)
    assert "does not apply" in next(one.text for one in unknown if one.change == "a higher k")

    def cell(seed, ap, **changes):
        return made_up(recipes.get("shapes/ms-detr-c").override({"seed": seed, **changes}), ap)

    cells = [cell(seed, 0.40 + 0.01 * seed) for seed in range(3)]
    cells += [cell(seed, 0.43 + 0.02 * seed, **{"train.epochs": 12}) for seed in range(3)]
    cells += [cell(0, 0.38, **{"model.num_queries": 300})]
    cells += [cell(0, 0.9, **{"ms_detr.k": 9, "train.lr": 5e-4})]  # two things differ: says nothing of k
    assert [(one.start, one.end) for one in effects(cells, "train.epochs")] == [(6, 12)]
    told_by = {one.change: one for one in diagnose(found, cells=cells).remedies}
    longer, fewer = told_by["longer training"], told_by["fewer queries"]
    assert longer.basis is Basis.MEASURED and longer.gain == pytest.approx(4) and longer.seeds == 3
    assert longer.low <= longer.gain <= longer.high
    assert fewer.gain == pytest.approx(2) and fewer.low is None and "one seed" in fewer.text
    assert told_by["a higher k"].basis is Basis.UNKNOWN
    json.dumps(diagnose(found, cells=cells).to_json(), allow_nan=False)
    cells += [cell(0, 0.5, **{"train.epochs": 24})]
    longer = recipes.get("shapes/ms-detr-c").override({"train.epochs": 12})
    told_by = {one.change: one for one in diagnose(found, cells=cells, config=longer).remedies}
    assert told_by["longer training"].gain == pytest.approx(7), "from the run's own 12 epochs, though on one seed"


def test_two_budgets_differ_by_their_causes_and_by_objects_with_reasons():
    rng, first = np.random.default_rng(0), random_data(12, images=6)
    other = [
        Scene.of_predictions(
            one.image_id, one.objects.boxes, one.objects.labels, one.layers.boxes, rng.permuted(one.layers.scores),
            box_format="xywh", max_detections=8, crowd=one.objects.crowd, areas=one.objects.areas,
        )
        for one in first
    ]  # fmt: skip
    ours, theirs = budget(first, NAMES), budget(other, NAMES)
    compared = compare_budgets(ours, theirs)
    assert compared.objects
    assert sum(one.won for one in compared.causes) == pytest.approx(theirs.ap - ours.ap, abs=1e-6)
    finds = [(ledger.by[0] >= 0) & ledger.counts for ledger in (ours.ledger, theirs.ledger)]
    assert (
        compared.both == (finds[0] & finds[1]).sum()
        and compared.neither == ours.whole.objects - (finds[0] | finds[1]).sum()
    )
    assert [sum(one.found_by == who for one in compared.objects) for who in (0, 1)] == [
        (finds[0] & ~finds[1]).sum(), (finds[1] & ~finds[0]).sum(),
    ]  # fmt: skip
    for one in compared.objects:
        missing = (theirs, ours)[one.found_by]
        same = [f for f in missing.failures_of(one.image_id, one.cause, kind="missed") if f.object == one.object]
        assert 0.5 in same[0].thresholds and "is missed at IoU 0.50" in one.sentence
    json.dumps(compared.to_json(), allow_nan=False)
    itself = compare_budgets(ours, ours)
    assert itself.objects == () and all(one.won == 0 for one in itself.causes)


@pytest.mark.fault("F152")
def test_budgets_of_other_data_are_not_compared():
    scenes = random_data(2, images=6)
    ours = budget(scenes, NAMES)
    with pytest.raises(InputError, match=r"different images: \d is in one of them"):
        compare_budgets(ours, budget(scenes[1:], NAMES))
    with pytest.raises(InputError, match="different classes"):
        compare_budgets(ours, budget(scenes, ("a", "b", "c")))
    moved = [replace(one, objects=replace(one.objects, boxes=one.objects.boxes + 5)) for one in scenes]
    with pytest.raises(InputError, match=r"image \d: its objects are not the same"):
        compare_budgets(ours, budget(moved, NAMES))
    for name, change in (("crowd", np.logical_not), ("areas", lambda areas: 2 * areas)):
        other = [
            replace(one, objects=replace(one.objects, **{name: change(getattr(one.objects, name))})) for one in scenes
        ]
        with pytest.raises(InputError, match=r"image \d: its objects are not the same"):
            compare_budgets(ours, budget(other, NAMES))
    with pytest.raises(InputError, match="count 100 and 300 detections of an image and class"):
        compare_budgets(ours, budget(scenes, NAMES, max_detections=300))
    with pytest.raises(InputError, match=r"iou: 0.3 is none of the thresholds"):
        compare_budgets(ours, ours, iou=0.3)


def history_of(one_to_one, one_to_many=None):
    """Four records of one image with two objects: per record and object, its queries in the last of two layers."""

    def rows(table):
        pairs = [[(1, target, query) for target, queries in enumerate(row) for query in queries] for row in table]
        return [np.array(one, np.int32).reshape(-1, 3) for one in pairs]

    branches = {"one_to_one": BranchHistory(rows(one_to_one), 2, False, {})}
    if one_to_many is not None:
        branches["one_to_many"] = BranchHistory(rows(one_to_many), 2, False, {})
    targets = Targets.from_list([torch.tensor([0, 1])], [torch.rand(2, 4)], image_ids=[5])
    return MatchHistory(np.arange(4), np.arange(4.0), targets, MatchingRules(), branches, [], [], NAMES)


def test_recorded_training_tells_seldom_matched_and_switching_objects_from_outranked_ones():
    steady, restless = [[[1], [2]]] * 4, [[[1], [2]], [[1], [2]], [[1], [3]], [[1], [2]]]
    outranked, rarely, switched = (CAUSES.index(one) for one in (Cause.OUTRANKED, Cause.RARELY, Cause.SWITCHED))
    assert recorded_causes(history_of(steady))[5].tolist() == [outranked] * 2
    assert recorded_causes(history_of(restless))[5].tolist() == [outranked, switched]
    seldom = [[[4, 5], [6]], [[4], [6]], [[4], []], [[], []]]  # half of the later records is not seldom
    assert recorded_causes(history_of(restless, seldom))[5].tolist() == [outranked, rarely]
    assert told(None) == () and set(told(history_of(steady, seldom))) == {Cause.RARELY, Cause.SWITCHED}
    assert told(history_of(steady)) == (Cause.SWITCHED,)


def test_outranked_objects_of_recorded_images_have_the_cause_that_the_record_shows():
    boxes = np.array([[10, 10, 50, 50], [100, 100, 160, 160], [150, 10, 190, 40]])
    found = [boxes[0], boxes[1], [0, 0, 9, 9], [0, 0, 9, 9]]
    scene = Scene.of_detections(
        5, boxes, [0, 1, 1], found, [0.5, 0.4, 0.9, 0.8], [0, 1, 0, 1], crowd=[False, False, True]
    )
    recorded = budget([scene], NAMES, history=history_of([[[1], [2]], [[1], [2]], [[1], [3]], [[1], [2]]]))
    assert {f.object: f.cause for f in recorded.failures_of(kind="low")} == {0: Cause.OUTRANKED, 1: Cause.SWITCHED}
    assert recorded.recorded_images == 1 and recorded.whole[Cause.SWITCHED].known
    assert not recorded.whole[Cause.RARELY].known
    assert "kept changing its one-to-one query" in recorded.failures_of(cause="switched")[0].sentence
    plain = budget([scene], NAMES)
    assert plain.whole[Cause.OUTRANKED].share == pytest.approx(
        recorded.whole[Cause.OUTRANKED].share + recorded.whole[Cause.SWITCHED].share
    )
