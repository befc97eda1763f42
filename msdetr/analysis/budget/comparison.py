"""Two budgets of the same images side by side: what one finds and the other misses, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from msdetr.analysis.budget.attribution import CAUSES
from msdetr.analysis.budget.causes import Cause
from msdetr.analysis.budget.ledger import Ledger
from msdetr.analysis.budget.report import Budget
from msdetr.analysis.budget.words import Words
from msdetr.errors import InputError


@dataclass(frozen=True)
class CauseDifference:
    """A cause in two budgets. first, second: its Shapley shares, in points; won: the first minus the second, what the second
    run has won of it. lost_objects, found_objects: objects that only the first, or only the second, finds at the IoU
    of the comparison, and the other misses for this cause. false: false detections of the first and of the second."""

    cause: Cause
    first: float
    second: float
    lost_objects: int
    found_objects: int
    false: tuple[int, int]

    @property
    def won(self) -> float:
        return self.first - self.second

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"id": self.cause.value, "name": self.cause.title, "first": self.first, "second": self.second, "won": self.won,
                "only_first": self.lost_objects, "only_second": self.found_objects, "false": list(self.false)}  # fmt: skip


@dataclass(frozen=True)
class ObjectDifference:
    """An object that one run finds and the other misses. found_by: 0 for the first run, 1 for the second. object: its place
    among the objects of the image without crowds. sentence: why the other misses it."""

    image_id: int
    object: int
    label: int
    found_by: int
    cause: Cause
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "cause": self.cause.value}


@dataclass(frozen=True)
class Comparison:
    """Two budgets of the same images. first, second: AP in points. iou: at which objects are found or missed. both, neither: how
    many objects both runs find, and none does. causes: by what the second run has won of them; these add up to the
    difference in AP exactly."""

    names: tuple[str, str]
    first: float | None
    second: float | None
    iou: float
    both: int
    neither: int
    causes: tuple[CauseDifference, ...]
    objects: tuple[ObjectDifference, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "names": list(self.names),
            "first": self.first,
            "second": self.second,
            "iou": self.iou,
            "both": self.both,
            "neither": self.neither,
            "causes": [one.to_json() for one in self.causes],
            "objects": [one.to_json() for one in self.objects],
        }


def compare_budgets(
    first: Budget, second: Budget, names: tuple[str, str] = ("first", "second"), iou: float = 0.5
) -> Comparison:
    """What the second run wins and loses against the first, by cause.

    iou: one of the budget's thresholds. Raises InputError where the budgets are of different images, objects or classes, or count
    another number of detections, and for another threshold (F152).
    """
    one, other = first.ledger, second.ledger
    _require_same(first, second)
    if round(iou, 2) not in first.thresholds:
        raise InputError(f"iou: {iou:g} is none of the thresholds, {', '.join(f'{t:g}' for t in first.thresholds)}")
    at = first.thresholds.index(round(iou, 2))
    counts = one.counts
    found = [(ledger.by[at] >= 0) & counts for ledger in (one, other)]
    only = [np.flatnonzero(found[0] & ~found[1]), np.flatnonzero(found[1] & ~found[0])]
    missed_by = (other, one)
    objects = [_object(missed_by[who], first, at, target, who) for who in (0, 1) for target in only[who].tolist()]
    tallies = [np.bincount(missed_by[who].missed[at, only[who]], minlength=len(CAUSES)) for who in (0, 1)]
    false = [np.bincount(ledger.cause[at][ledger.cause[at] >= 0], minlength=len(CAUSES)) for ledger in (one, other)]
    causes = [
        CauseDifference(
            cause,
            first.whole[cause].share,
            second.whole[cause].share,
            int(tallies[0][code]),
            int(tallies[1][code]),
            (int(false[0][code]), int(false[1][code])),
        )
        for code, cause in enumerate(CAUSES)
    ]
    return Comparison(
        names,
        first.ap,
        second.ap,
        first.thresholds[at],
        int((found[0] & found[1]).sum()),
        int((counts & ~found[0] & ~found[1]).sum()),
        tuple(sorted(causes, key=lambda one: -one.won)),
        tuple(sorted(objects, key=lambda one: (one.image_id, one.object))),
    )


def _object(ledger: Ledger, budget: Budget, at: int, target: int, found_by: int) -> ObjectDifference:
    image = int(ledger.object_image[target])
    errors, place = ledger.scenes[image], int(target - ledger.first_object[image])
    words = Words(errors, budget.class_names)
    return ObjectDifference(
        errors.scene.image_id,
        int(words.number[place]),
        int(ledger.object_label[target]),
        found_by,
        CAUSES[ledger.missed[at, target]],
        words.missed(at, place, budget.thresholds[at : at + 1]),
    )


def _require_same(first: Budget, second: Budget) -> None:
    if first.class_names != second.class_names:
        raise InputError("the two budgets are of different classes; compare runs on one data set")
    if first.max_detections != second.max_detections:
        raise InputError(
            f"the two budgets count {first.max_detections} and {second.max_detections} detections of an image and class, so their "
            "APs cannot be compared; measure both with the same max_detections"
        )
    ids = [[one.scene.image_id for one in budget.ledger.scenes] for budget in (first, second)]
    if ids[0] != ids[1]:
        differ = sorted(set(ids[0]) ^ set(ids[1]))
        raise InputError(
            f"the two budgets are of different images: {differ[0]} is in one of them; compare the same images"
        )
    for a, b in zip(first.ledger.scenes, second.ledger.scenes):
        ours, theirs = a.scene.objects, b.scene.objects
        if len(ours) != len(theirs) or not (
            np.array_equal(ours.labels, theirs.labels)
            and np.array_equal(ours.crowd, theirs.crowd)
            and np.allclose(ours.boxes, theirs.boxes, atol=1e-6)
            and np.allclose(ours.areas, theirs.areas)
        ):
            raise InputError(
                f"image {a.scene.image_id}: its objects are not the same in the two budgets; compare the same data"
            )
