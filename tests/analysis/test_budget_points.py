"""What errors cost: AP is COCO's, mending in the data gives the AP that is stated, shares and losses add up."""

import itertools

import numpy as np
import pytest
from budget_scenes import CLASSES, NAMES, ap_by_pycocotools, coco_of, random_data, rows_of

from msdetr.analysis.budget import Cause, Ledger, Scene, budget, mended_detections
from msdetr.analysis.budget.attribution import attribute
from msdetr.analysis.budget.marginal import marginal
from msdetr.analysis.budget.ranking import MISSED, TOP
from msdetr.analysis.budget.scoring import EVERY_AREA, IOU_THRESHOLDS, SIZES
from msdetr.analysis.budget.shapley import shapley
from msdetr.engine.metric import coco_metrics
from msdetr.errors import InputError


def ledger_of(scenes, most=100, area=EVERY_AREA):
    return Ledger([attribute(one, np.array(IOU_THRESHOLDS), most, area) for one in scenes], IOU_THRESHOLDS, CLASSES)


@pytest.mark.fault("F17")
def test_ap_is_cocos_with_crowds_sizes_and_limits():
    areas = {"AP": EVERY_AREA, "APs": SIZES["small"], "APm": SIZES["medium"], "APl": SIZES["large"]}
    for seed in range(30):
        scenes = random_data(seed)
        most = (1, 3, 100)[seed % 3]
        theirs = coco_metrics(coco_of(scenes), rows_of(scenes), max_detections=most).metrics
        for name, area in areas.items():
            ours = ledger_of(scenes, most, area).ap()
            assert ours == (None if theirs[name] is None else pytest.approx(theirs[name], abs=1e-9)), (seed, name)


def test_mending_in_the_data_gives_the_stated_ap():
    for seed in range(25):
        rng, scenes = np.random.default_rng(seed), random_data(seed, images=4)
        ledger, coco = ledger_of(scenes, (2, 100)[seed % 2]), coco_of(scenes)
        for causes in ([one for one in Cause if rng.random() < 0.5], list(Cause)):
            for at in (0, int(rng.integers(1, 10))):
                theirs = ap_by_pycocotools(coco, mended_detections(ledger, causes, at))[at]
                ours = ledger.ap(causes, at)
                assert (ours is None and np.isnan(theirs)) or ours == pytest.approx(theirs, abs=1e-9), (
                    seed,
                    causes,
                    at,
                )
                assert ours is None or len(causes) < len(Cause) or ours == 1


def test_every_set_of_causes_at_once_is_each_alone_and_mending_more_never_loses():
    for seed in range(30):
        ledger = ledger_of(random_data(seed))
        for label in ledger.scored_classes:
            ranking = ledger.ranking(seed % 10, label)
            causes, values = ranking.every_ap()
            assert len(values) == 2 ** len(causes)
            for index in {0, len(values) - 1, seed % len(values), (7 * seed) % len(values)}:
                mended = [cause for i, cause in enumerate(causes) if index >> i & 1]
                assert values[index] == pytest.approx(ranking.ap(mended), abs=1e-12)
                for i in range(len(causes)):
                    assert values[index | 1 << i] >= values[index] - 1e-12
            assert values[-1] == 1


def test_shares_add_up_to_what_is_lost_everywhere():
    for seed in range(5):
        found = budget(random_data(seed, images=6), NAMES)
        for part in (found.whole, *found.classes, *found.sizes, *found.layers):
            assert sum(one.share for one in part.causes) == pytest.approx(part.lost, abs=1e-6), (seed, part.name)
            assert all(one.gain >= -1e-9 and one.share >= -1e-9 for one in part.causes)
        assert sum(found.lost_in.values()) == pytest.approx(found.whole["lost"].share, abs=1e-9)
        ledger = found.ledger
        errors = (ledger.cause >= 0).sum() + (ledger.missed >= 0).sum() + ledger.low.sum()
        assert errors == sum(one.errors for one in found.whole.causes) == sum(len(f.thresholds) for f in found.failures)


def test_shapley_is_the_mean_over_all_orders():
    values = np.random.default_rng(0).random((16, 2))
    expected, orders = np.zeros((4, 2)), list(itertools.permutations(range(4)))
    for order in orders:
        joined = 0
        for player in order:
            expected[player] += (values[joined | 1 << player] - values[joined]) / len(orders)
            joined |= 1 << player
    np.testing.assert_allclose(shapley(values), expected, atol=1e-12)
    np.testing.assert_allclose(shapley(values).sum(axis=0), values[-1] - values[0], atol=1e-12)
    assert shapley(np.array([0.3])).shape == (0,)


def test_the_loss_of_an_error_is_the_ap_gained_by_mending_it_alone():
    for seed in range(30):
        ledger = ledger_of(random_data(seed))
        for label in ledger.scored_classes:
            ranking = ledger.ranking((3 * seed) % 10, label)
            game = marginal(ranking)
            none = np.zeros(0, np.int64)
            for place in range(len(ranking.found)):
                assert game.first[place] == pytest.approx(
                    game.changed(np.array([place]), np.array([TOP]), none), abs=1e-12
                )
            missed = np.flatnonzero(ranking.found == MISSED)[:1]
            for rank in game.false:
                one = np.array([rank])
                assert game.without(one)[0] == pytest.approx(game.changed(none, none, one), abs=1e-12)
                if len(missed):
                    for instead, gone in ((True, one), (False, none)):
                        gain = game.inserted(one, instead)[0]
                        assert gain == pytest.approx(game.changed(missed, one, gone), abs=1e-12)


def test_the_loss_of_an_image_is_the_ap_gained_by_answering_it_perfectly():
    scenes = random_data(3, images=6)
    found = budget(scenes, NAMES)
    for loss in found.images:
        mended = [
            Scene.of_detections(
                one.image_id, one.objects.boxes, one.objects.labels, one.objects.boxes[~one.objects.crowd],
                np.full((~one.objects.crowd).sum(), 2.0), one.objects.labels[~one.objects.crowd],
                box_format="xywh", crowd=one.objects.crowd, areas=one.objects.areas,
            )
            if one.image_id == loss.image_id else one
            for one in scenes
        ]  # fmt: skip
        after = 100 * ledger_of(mended).ap()
        assert after - found.ap == pytest.approx(loss.lost_ap, abs=1e-6)
    assert [one.lost_ap for one in found.images] == sorted((one.lost_ap for one in found.images), reverse=True)


def test_a_failure_says_what_it_is_of_and_what_it_costs():
    boxes = [[10, 10, 50, 50], [100, 100, 160, 160]]
    scene = Scene.of_detections(
        7, boxes, [0, 1], [boxes[0], [12, 10, 52, 50], boxes[1], [200, 200, 220, 220]], [0.9, 0.8, 0.7, 0.95], [0, 0, 2, 0],
        name="seven.jpg",
    )  # fmt: skip
    found = budget([scene], NAMES)
    assert [one.known for one in found.whole.causes if one.cause in ("lost", "rarely", "switched")] == [False] * 3
    assert found.layers == () and found.images[0].name == "seven.jpg"
    background, duplicate = found.failures_of(cause="background")[0], found.failures_of(cause="duplicate")[0]
    assert (background.detection, background.object, background.lost_ap) == (0, None, pytest.approx(25))
    assert (
        background.sentence
        == "Detection 0 (circle 0.95) is false at IoU 0.50 to 0.95: it is on nothing; it overlaps no object."
    )
    assert (duplicate.detection, duplicate.pair, duplicate.gap) == (2, 1, pytest.approx(0.1))
    missed = found.failures_of(kind="missed")[0]
    assert (missed.cause, missed.object, missed.detection) == (Cause.CLASS, 1, 3)
    assert missed.lost_ap == pytest.approx(50) and missed.thresholds == found.thresholds
    assert (missed.size, background.size) == ("medium", "small") and len(found.failures_of(size="large")) == 0
    low = found.failures_of(kind="low")[0]
    assert (low.object, low.detection, low.cause) == (0, 1, Cause.OUTRANKED)


def test_every_failure_is_listed_however_many_there_are():
    number = 20_001
    boxes = np.vstack([[[10, 10, 50, 50]], np.tile([100, 100, 150, 150], (number, 1))])
    scores = np.linspace(0.9, 0.1, number + 1)
    scene = Scene.of_detections(1, boxes[:1], [0], boxes, scores, np.zeros(number + 1, int))
    found = budget([scene], NAMES, max_detections=number + 1)
    assert found.whole["background"].errors == 10 * number and len(found.failures) == number
    last = found.failures_of(image_id=1, kind="false")[-1]
    assert last.detection == number and last.sentence.startswith(f"Detection {number} (circle 0.10) is false")


def test_an_object_whose_box_counts_for_its_neighbour_is_told_so():
    boxes = [[0, 0, 100, 100], [20, 0, 120, 100]]  # IoU 0.67
    plain = Scene.of_detections(1, boxes, [0, 0], boxes[:1], [0.9], [0])
    queries = Scene.of_predictions(2, boxes, [0, 0], [[[0, 0, 9, 9]], boxes[:1]], [[[0.1]], [[0.9]]])
    for scene in (plain, queries):
        [one] = budget([scene], NAMES).failures_of(cause="never")
        assert one.sentence.endswith("a box reaches it (IoU 0.67), but counts for another object.")


@pytest.mark.fault("F80", "F75")
def test_nothing_to_score_is_undefined_and_no_detections_are_all_lost():
    none = np.zeros((0, 4))
    empty = budget([Scene.of_detections(1, none, [], [[0, 0, 9, 9]], [0.5], [1])], NAMES)
    assert empty.ap is None and empty.whole.lost == 0 and empty.whole[Cause.BACKGROUND].errors == 10
    assert budget([], NAMES).ap is None
    missed = budget([Scene.of_detections(1, [[0, 0, 9, 9]], [1], none, [], [])], NAMES)
    assert missed.ap == 0 and missed.whole[Cause.NEVER].share == pytest.approx(100)


@pytest.mark.fault("F150")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": 5.0}, "the last dimension must be 4"),
        ({"boxes": [[0, 0, 5]]}, "the last dimension must be 4"),
        ({"boxes": [[9, 0, 5, 5]]}, "number 0 has a negative width or height"),
        ({"boxes": [[0, 0, np.nan, 5]]}, "boxes: has a NaN or infinite value"),
        ({"scores": [0.5, 0.4]}, "1 boxes, 2 scores and 1 labels"),
        ({"scores": ["high"]}, "not an array of numbers"),
        ({"labels": [0.5]}, "whole numbers"),
        ({"labels": [-1]}, "count from 0"),
        ({"object_labels": [0, 1]}, "1 boxes, 2 labels"),
        ({"box_format": "yolo"}, "none of xyxy, xywh, cxcywh"),
    ],
)
def test_arrays_that_do_not_fit_are_named(change, message):
    given = {
        "object_boxes": [[0, 0, 5, 5]],
        "object_labels": [0],
        "boxes": [[0, 0, 5, 5]],
        "scores": [0.5],
        "labels": [0],
    }
    with pytest.raises(InputError, match=message):
        Scene.of_detections(4, **{**given, **change})


@pytest.mark.fault("F151")
def test_images_that_do_not_go_together_are_named():
    scenes = random_data(2, images=6)
    with pytest.raises(InputError, match=r"image 0: given twice"):
        budget([scenes[0], scenes[0]], NAMES)
    with pytest.raises(InputError, match=r"class \d, but there are 1 class names"):
        budget(scenes, NAMES[:1])
    with pytest.raises(InputError, match=r"predictions of 0 layers after images with 3"):
        budget([scenes[0], Scene.of_detections(99, np.zeros((0, 4)), [], np.zeros((0, 4)), [], [])], NAMES)
    with pytest.raises(InputError, match=r"boxes \[2, 4\] and scores \[3, 2\]"):
        Scene.of_predictions(4, [[0, 0, 5, 5]], [0], np.zeros((2, 4)), np.zeros((3, 2)))


@pytest.mark.fault("F150")
def test_predictions_of_other_classes_or_of_no_query():
    boxes, none = [[0, 0, 10, 10], [50, 50, 60, 60]], np.zeros((0, 4))
    with pytest.raises(InputError, match="image 1: object 1 is of class 2, but scores are of 2 classes"):
        Scene.of_predictions(1, boxes, [0, 2], boxes, [[0.9, 0.1], [0.1, 0.8]])
    with pytest.raises(InputError, match=r"expected \[Q, 4\]"):
        Scene.of_predictions(1, boxes, [0, 1], np.zeros((0, 2, 4)), np.zeros((0, 2, 3)))
    found = budget([Scene.of_predictions(1, boxes, [0, 1], none, np.zeros((0, 3)))], NAMES)
    assert found.ap == 0 and found.num_detections == 0 and found.whole[Cause.NEVER].share == pytest.approx(100)
