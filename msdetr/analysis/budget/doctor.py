"""The duplicate doctor: what would bring back some of the lost AP, as far as that is known.

What non-maximum suppression would change is computed on the run's own predictions, so it is exact. What another training would
change nobody can compute; where a study of this project has measured it, its effect there is given with its error, and
where none has, that is said.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import batched_nms

from msdetr.analysis.budget.attribution import only_matched
from msdetr.analysis.budget.causes import Cause
from msdetr.analysis.budget.ledger import Ledger
from msdetr.analysis.budget.report import Budget
from msdetr.analysis.budget.scene import Found, Scene, best_pairs, corners
from msdetr.analysis.budget.scoring import IOU_THRESHOLDS
from msdetr.analysis.cells import Cell
from msdetr.analysis.study import Difference, paired_difference, varied
from msdetr.checks import fraction
from msdetr.config import RunConfig, flatten
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
    and class of the last layer, as ``nms_postprocess`` does, so that others move up, and the ``max_detections`` best are the answer;
    else, and where layers are not known, among the detections as they are, so many of which count in each class.
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
        self._errors.append(only_matched(kept, np.array(IOU_THRESHOLDS), self.max_detections))

    def ap(self, num_classes: int) -> float | None:
        """AP in points."""
        value = Ledger(self._errors, IOU_THRESHOLDS, num_classes).ap()
        return None if value is None else 100 * value


def suppressed(scene: Scene, iou: float, max_detections: int = 100, pairs: bool = True) -> Scene:
    """The scene with class-wise non-maximum suppression; see ``Suppression``."""
    found, most = scene.found, None  # of plain detections, so many count in each class
    if pairs and scene.layers is not None:
        found, most = best_pairs(scene.layers.boxes[-1], scene.layers.scores[-1], PRE_NMS), max_detections
    arrays = (torch.from_numpy(np.ascontiguousarray(one)) for one in (corners(found.boxes), found.scores, found.labels))
    keep = batched_nms(*arrays, iou).numpy()[:most]
    return replace(scene, found=Found(*(getattr(found, name)[keep] for name in ("boxes", "scores", "labels", "query"))))


def diagnose(
    budget: Budget,
    suppressions: Iterable[Suppression] = (),
    cells: Sequence[Cell] = (),
    config: RunConfig | None = None,
) -> Diagnosis:
    """What would change a budget.

    suppressions: that have seen the same images. cells: finished runs of studies, in which fewer queries, a higher k or a longer
    training may have been measured. config: the run's, so that what starts from its own settings is preferred; without a
    one-to-many branch there is no k.
    """
    remedies = [_of_suppression(budget, one) for one in suppressions]
    remedies += [_of_setting(*one, cells, config) for one in SETTINGS]
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


def _of_setting(change: str, setting: str, higher: bool, cells: Sequence[Cell], config: RunConfig | None) -> Remedy:
    own = None if config is None else flatten(config).get(setting)
    if config is not None and own is None:
        return Remedy(change, Basis.UNKNOWN, None, f"{change}: does not apply, the detector has no one-to-many branch")
    found = [one if higher else one.turned for one in effects(cells, setting) if one.difference.mean is not None]
    if not found:
        return Remedy(change, Basis.UNKNOWN, None, f"{change}: not known, no study given here has measured it")
    best = min(found, key=lambda one: (one.start != own, -len(one.difference.values), abs(one.end - one.start)))
    mean, low, high = (
        None if x is None else 100 * x for x in (best.difference.mean, best.difference.low, best.difference.high)
    )
    seeds = len(best.difference.values)
    error = "error unknown, one seed" if low is None else f"95 % interval {low:+.1f} to {high:+.1f}, {seeds} seeds"
    text = f"{change}: AP {mean:+.1f} from {best.start:g} to {best.end:g} in {best.where} ({error}); here it may differ"
    return Remedy(change, Basis.MEASURED, mean, text, low, high, seeds)


@dataclass(frozen=True)
class Effect:
    """AP of cells whose setting has the value ``end`` minus that of those that have ``start``, nothing else being different."""

    where: str
    start: float
    end: float
    difference: Difference

    @property
    def turned(self) -> Effect:
        """The effect of the change in the other direction."""
        one = self.difference
        mean, low, high = (None if value is None else -value for value in (one.mean, one.high, one.low))
        resampled = None if one.resampled is None else (-one.resampled[1], -one.resampled[0])
        turned = Difference(one.seeds, tuple(-value for value in one.values), mean, low, high, resampled)
        return Effect(self.where, self.end, self.start, turned)


def effects(cells: Iterable[Cell], setting: str) -> list[Effect]:
    """What a higher value of a setting was measured to do, for any two values with which the same was trained."""
    found = []
    for group in varied(cells, setting):
        for (low, before), (high, after) in itertools.combinations(group.items(), 2):
            where = f"{before[0].config['recipe']} on {Path(before[0].config['data']['root']).name}"
            found.append(Effect(where, low, high, paired_difference(after, before, "AP")))
    return found
