"""The form in which a budget is handed on."""

import json

import pytest

from msdetr.analysis.budget import Budget, Cause, CauseShare, Failure, ImageLoss, Kind, Part
from msdetr.analysis.budget.report import Failures
from msdetr.errors import InputLookupError


def part(name="all", ap=40.0):
    shares = (CauseShare(Cause.NEVER, 3, 20.0, 35.0), CauseShare(Cause.BACKGROUND, 9, 10.0, 25.0))
    return Part(name, 7, ap, shares)


def failure(image_id, cause, lost_ap, **more):
    given = {
        "kind": Kind.MISSED,
        "object": 0,
        "detection": None,
        "query": None,
        "label": 1,
        "size": "small",
        "score": None,
        "iou": None,
    }
    box, sentence = (0.0, 1.0, 2.0, 3.0), "object 0 (<script>) is missed"
    return Failure(image_id=image_id, cause=cause, lost_ap=lost_ap, box=box, thresholds=(0.5,), sentence=sentence, **{**given, **more})  # fmt: skip


BUDGET = Budget(
    class_names=("circle", "<script>"),
    num_images=2,
    num_detections=20,
    max_detections=100,
    thresholds=(0.5, 0.75),
    recorded_images=0,
    whole=part(),
    classes=(part("circle"), part("<script>", None)),
    sizes=(part("small"),),
    layers=(),
    lost_in={2: 1.5},
    images=(ImageLoss(5, "a.png", 12.0, 4, 2, 1),),
    failures=Failures([failure(5, Cause.NEVER, 4.0), failure(9, Cause.BACKGROUND, 1.0, kind=Kind.FALSE, object=None)]),
)


def test_a_budget_is_plain_json_with_every_cause_explained():
    told = json.loads(json.dumps(BUDGET.to_json(), allow_nan=False))
    assert told["ap"] + sum(cause["share"] for cause in told["causes"]) == 100
    assert all(cause["name"] and cause["description"] and cause["mended"] for cause in told["causes"])
    assert told["by_class"][1]["ap"] is None and told["lost_in_layer"] == {"2": 1.5}
    assert [one["image_id"] for one in told["failures"]] == [5, 9]
    assert [one["image_id"] for one in BUDGET.to_json(image_ids=[9])["failures"]] == [9]
    assert len(BUDGET.to_json(failures=1)["failures"]) == 1


def test_failures_are_found_by_cause_class_kind_and_image():
    assert [one.image_id for one in BUDGET.failures_of(cause="background", kind="false")] == [9]
    assert list(BUDGET.failures_of(image_id=5, cause=Cause.BACKGROUND)) == []
    assert [one.image_id for one in BUDGET.failures[1:]] == [9] and BUDGET.failures[-1].cause is Cause.BACKGROUND
    assert BUDGET.whole[Cause.NEVER].share == 35 and BUDGET.whole.lost == 60
    with pytest.raises(InputLookupError, match="'weather' is none of never"):
        BUDGET.whole["weather"]
