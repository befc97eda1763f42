"""The duplicate doctor: what would bring back some of the lost AP, as far as that is known.

What non-maximum suppression would change is computed on the run's own predictions, so it is exact. What another training would
change nobody can compute; where a study of this project has measured it, its effect there is given with its error, and
where none has, that is said.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
import torch
from torchvision.ops import batched_nms

from msdetr.analysis.budget.attribution import attribute
from msdetr.analysis.budget.causes import Cause
from msdetr.analysis.budget.ledger import Ledger
from msdetr.analysis.budget.report import Budget
from msdetr.analysis.budget.scene import Found, Scene
from msdetr.analysis.budget.scoring import IOU_THRESHOLDS
from msdetr.analysis.cells import Cell
from msdetr.analysis.study import Difference, paired_difference
from msdetr.checks import fraction
from msdetr.config import flatten, harmless_in_comparison
from msdetr.model.postprocess import PRE_NMS

USUAL = (0.5, 0.6, 0.7, 0.8, 0.9)


class Basis(StrEnum):
    """How an effect is known."""

    EXACT = "exact"
    MEASURED = "measured"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Remedy:
    """A change and what AP it brings, in points: computed exactly on this answer, measured in a study on other runs, or unknown
    (None). low, high: 95 % interval of a measured effect; seeds: over how many. text: for people."""

    change: str
    basis: Basis
    gain: float | None
    text: str
    low: float | None = None
    high: float | None = None
    seeds: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "basis": self.basis.value}


@dataclass(frozen=True)
class Diagnosis:
    """What would change the lost AP: remedies, best first, and what mending duplicates alone would gain; suppression can gain more, as
    other false detections overlap, too, or less, as it drops true ones."""

    duplicates: float
    remedies: tuple[Remedy, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"duplicates": self.duplicates, "remedies": [one.to_json() for one in self.remedies]}


class Suppression:
    """AP with class-wise non-maximum suppression, from the images one by one.

    iou: of two detections of one class whose boxes overlap more the weaker is dropped. pairs: it is done among the pairs of query
    and class of the last layer, as ``nms_postprocess`` does, so that others move up; else among the detections as they are.
    Raises InputError for an ``iou`` outside [0, 1].
    """

    def __init__(self, iou: float, max_detections: int = 100, pairs: bool = True) -> None:
        self.iou, self.max_detections, self.pairs = fraction(iou, "iou"), max_detections, pairs
        self._errors: list = []

    @classmethod
    def usual(cls, max_detections: int = 100, pairs: bool = True) -> list[Suppression]:
        """At several IoUs."""
        return [cls(iou, max_detections, pairs) for iou in USUAL]

    def add(self, scene: Scene) -> None:
        """Suppresses the duplicates of an image."""
        kept = suppressed(scene, self.iou, self.max_detections, self.pairs)
        self._errors.append(attribute(replace(kept, layers=None), np.array(IOU_THRESHOLDS), self.max_detections))

    def ap(self, num_classes: int) -> float | None:
        """AP in points."""
        value = Ledger(self._errors, IOU_THRESHOLDS, num_classes).ap()
        return None if value is None else 100 * value


def suppressed(scene: Scene, iou: float, max_detections: int = 100, pairs: bool = True) -> Scene:
    """The scene with class-wise non-maximum suppression; see ``Suppression``."""
    found = scene.found
    if pairs and scene.layers is not None:
        boxes, scores = scene.layers.boxes[-1], scene.layers.scores[-1]
        best = np.argsort(-scores, axis=None, kind="stable")[:PRE_NMS]
        query, label = np.unravel_index(best, scores.shape)
        found = Found(boxes[query], scores[query, label], label, query)
    corners = np.concatenate([found.boxes[:, :2], found.boxes[:, :2] + found.boxes[:, 2:]], axis=1)
    arrays = (torch.from_numpy(np.ascontiguousarray(one)) for one in (corners, found.scores, found.labels))
    keep = batched_nms(*arrays, iou).numpy()[:max_detections]
    return replace(scene, found=Found(*(getattr(found, name)[keep] for name in ("boxes", "scores", "labels", "query"))))


def diagnose(
    budget: Budget,
    suppressions: Iterable[Suppression] = (),
    cells: Sequence[Cell] = (),
    one_to_many: bool | None = None,
) -> Diagnosis:
    """What would change a budget.

    suppressions: that have seen the same images. cells: finished runs of studies, in which fewer queries, a higher k or a longer
    training may have been measured. one_to_many: whether the detector has such a branch; without one there is no k.
    """
    remedies = [_of_suppression(budget, one) for one in suppressions]
    remedies += [_of_setting(*one, cells, one_to_many) for one in SETTINGS]
    remedies.sort(key=lambda one: (one.basis is Basis.UNKNOWN, -(one.gain or 0)))
    return Diagnosis(budget.whole[Cause.DUPLICATE].gain, tuple(remedies))


def _of_suppression(budget: Budget, suppression: Suppression) -> Remedy:
    change, value = f"suppression at IoU {suppression.iou:g}", suppression.ap(len(budget.class_names))
    if value is None or budget.ap is None:
        return Remedy(change, Basis.UNKNOWN, None, f"{change}: AP is undefined")
    gain = value - budget.ap
    return Remedy(change, Basis.EXACT, gain, f"{change}: AP {gain:+.1f}, to {value:.1f} (exact, on these images)")


# what is changed, the setting, and whether a higher value of it is the remedy
SETTINGS = (
    ("fewer queries", "model.num_queries", False),
    ("a higher k", "ms_detr.k", True),
    ("longer training", "train.epochs", True),
)


def _of_setting(change: str, setting: str, higher: bool, cells: Sequence[Cell], one_to_many: bool | None) -> Remedy:
    if setting == "ms_detr.k" and one_to_many is False:
        text = f"{change}: does not apply, the detector has no one-to-many branch"
        return Remedy(change, Basis.UNKNOWN, None, text)
    found = [one for one in effects(cells, setting) if one.difference.mean is not None]
    if not found:
        return Remedy(change, Basis.UNKNOWN, None, f"{change}: not known, no study given here has measured it")
    best = max(found, key=lambda one: len(one.difference.values))
    sign = 1 if higher else -1
    low, high = (best.difference.low, best.difference.high) if higher else (best.difference.high, best.difference.low)
    values = [None if one is None else 100 * sign * one for one in (best.difference.mean, low, high)]
    frm, to = (best.low, best.high) if higher else (best.high, best.low)
    seeds = len(best.difference.values)
    error = (
        "error unknown, one seed"
        if low is None
        else f"95 % interval {values[1]:+.1f} to {values[2]:+.1f}, {seeds} seeds"
    )
    text = f"{change}: AP {values[0]:+.1f} from {frm:g} to {to:g} in {best.where} ({error}); here it may differ"
    return Remedy(change, Basis.MEASURED, values[0], text, values[1], values[2], seeds)


@dataclass(frozen=True)
class Effect:
    """AP of cells with the higher value of a setting minus that of those with the lower one, nothing else being different."""

    where: str
    low: float
    high: float
    difference: Difference


def effects(cells: Iterable[Cell], setting: str) -> list[Effect]:
    """What a setting was measured to do: an effect for any two of its values with which the same was trained."""
    groups: dict[str, dict[float, list[Cell]]] = {}
    harmless = harmless_in_comparison()
    for cell in cells:
        values = flatten(cell.run_config())
        if values.get(setting) is None:
            continue
        own = float(values.pop(setting))
        rest = {path: value for path, value in values.items() if path not in harmless}
        group = groups.setdefault(json.dumps(rest, sort_keys=True, default=str), {})
        group.setdefault(own, []).append(cell)
    found = []
    for group in groups.values():
        for low, high in itertools.combinations(sorted(group), 2):
            where = f"{group[low][0].config['recipe']} on {group[low][0].config['data']['root']}"
            found.append(Effect(where, low, high, paired_difference(group[high], group[low], "AP")))
    return found
