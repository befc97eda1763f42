"""All errors of a data set, ranked: what AP is, and what it would be were some causes mended.

Shape legend: I IoU thresholds, D detections and O objects of all images, n objects of a class that count.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from msdetr.analysis.budget.attribution import CAUSES, NONE, SceneErrors
from msdetr.analysis.budget.causes import Cause
from msdetr.analysis.budget.ranking import MISSED, TOP, Ranking

_CODE = {cause: code for code, cause in enumerate(CAUSES)}
_OFFERED = (_CODE[Cause.CLASS], _CODE[Cause.PLACED])  # causes whose false detections become those of their objects
_LOST = _CODE[Cause.LOST]


@dataclass(frozen=True)
class Ranks:
    """detections [D], and lost candidates [I, O] (``MISSED`` where there is none): places in the order in which COCO ranks: by
    score, then by image, then as they stand in it."""

    detections: np.ndarray
    lost: np.ndarray


class Ledger:
    """The errors of all images as flat arrays, by ascending image id.

    first_detection, first_object: where an image's detections and objects begin. labels, scores, image: of detections [D];
    object_label, object_image, counts, outranked: of objects [O]. cause, object [I, D]: of false detections, as
    ``FalseDetections`` has them; by, missed [I, O]: the detection that finds an object, and the cause where none does.
    Objects and detections are numbered over all images.
    """

    def __init__(self, scenes: Iterable[SceneErrors], thresholds: Sequence[float], num_classes: int) -> None:
        self.scenes = sorted(scenes, key=lambda one: one.scene.image_id)
        self.thresholds, self.num_classes = tuple(thresholds), num_classes
        found = [one.scene.found for one in self.scenes]
        objects = [one.scene.objects for one in self.scenes]
        self.first_detection = np.cumsum([0, *map(len, found)])
        self.first_object = np.cumsum([0, *map(len, objects)])
        self.labels = _joined([one.labels for one in found], np.int64)
        self.scores = _joined([one.scores for one in found], np.float64)
        self.image = np.repeat(np.arange(len(found)), [len(one) for one in found])
        self.object_label = _joined([one.labels for one in objects], np.int64)
        self.object_image = np.repeat(np.arange(len(objects)), [len(one) for one in objects])
        self.counts = _joined([one.matched.counts for one in self.scenes], bool)
        self.outranked = _joined([one.outranked for one in self.scenes], np.int64)
        rows = len(self.thresholds)
        self.cause = _columns([one.false.cause for one in self.scenes], rows)
        self.object = self._numbered([one.false.object for one in self.scenes], self.first_object)
        self.by = self._numbered([one.matched.by for one in self.scenes], self.first_detection)
        self.missed = _columns([one.missed.cause for one in self.scenes], rows)
        self.lost_score = _columns([one.missed.score for one in self.scenes], rows)
        self.detections_of = [np.flatnonzero(self.labels == label) for label in range(num_classes)]
        self.objects_of = [np.flatnonzero((self.object_label == c) & self.counts) for c in range(num_classes)]

    def _numbered(self, tables: list[np.ndarray], first: np.ndarray) -> np.ndarray:
        shifted = [np.where(table == NONE, NONE, table + start) for table, start in zip(tables, first)]
        return _columns(shifted, len(self.thresholds))

    @cached_property
    def ranks(self) -> Ranks:
        at, target = np.nonzero(self.missed == _LOST)
        score = np.concatenate([self.scores, self.lost_score[at, target]])
        image = np.concatenate([self.image, self.object_image[target]])
        place = np.concatenate([np.arange(len(self.scores)), len(self.scores) + target])  # lost candidates come last
        rank = np.empty(len(score), np.int64)
        rank[np.lexsort((place, image, -score))] = np.arange(len(score))
        lost = np.full(self.missed.shape, MISSED)
        lost[at, target] = rank[len(self.scores) :]
        return Ranks(rank[: len(self.scores)], lost)

    @cached_property
    def low(self) -> np.ndarray:
        """[I, O] objects whose detection is outranked by a false one of its class."""
        low = np.zeros(self.by.shape, bool)
        for label in range(self.num_classes):
            objects, detections = self.objects_of[label], self.detections_of[label]
            if not len(objects) or not len(detections):
                continue
            rank = self.ranks.detections
            best = np.where(self.cause[:, detections] >= 0, rank[detections], MISSED).min(axis=1, keepdims=True)
            by = self.by[:, objects]
            low[:, objects] = (by >= 0) & (rank[by] > best)
        return low

    @cached_property
    def offered(self) -> np.ndarray:
        """[I, D] the object that a false detection would find were its cause mended; -1 for none that counts."""
        able = np.isin(self.cause, _OFFERED) & (self.object >= 0)
        return np.where(able & self.counts[np.maximum(self.object, 0)] if len(self.counts) else able, self.object, NONE)

    def ranking(self, at: int, label: int) -> Ranking:
        """The ranking of a class at the IoU threshold of this index."""
        objects, detections = self.objects_of[label], self.detections_of[label]
        rank, causes = self.ranks, self.cause[at, detections]
        false = tuple(np.sort(rank.detections[detections[causes == code]]) for code in range(len(CAUSES)))
        by = self.by[at, objects]
        found = np.where(by >= 0, rank.detections[by] if len(rank.detections) else MISSED, MISSED)
        offers = np.full((len(CAUSES), len(objects)), MISSED)
        columns = np.arange(len(objects))
        missed = self.missed[at, objects]
        first = (missed >= 0) & (missed != _LOST) & ~np.isin(missed, _OFFERED)
        offers[missed[first], columns[first]] = TOP
        lost = missed == _LOST
        offers[_LOST, lost] = rank.lost[at, objects[lost]]
        low = self.low[at, objects]
        offers[self.outranked[objects[low]], columns[low]] = TOP
        offering = np.flatnonzero(self.offered[at] >= 0)
        offering = offering[self.object_label[self.offered[at, offering]] == label]
        place = np.searchsorted(objects, self.offered[at, offering])
        np.minimum.at(offers, (self.cause[at, offering], place), rank.detections[offering])
        return Ranking(found, offers, false)

    @cached_property
    def scored_classes(self) -> list[int]:
        """The classes that have an object that counts: AP is the mean over them."""
        return [label for label in range(self.num_classes) if len(self.objects_of[label])]

    def errors(self, label: int) -> np.ndarray:
        """[causes] how many errors of a class each cause has, over all thresholds: missed objects and outranked detections of
        the class, and false detections that say it is the class."""
        objects, detections = self.objects_of[label], self.detections_of[label]
        low = np.where(self.low[:, objects], self.outranked[objects], NONE)
        codes = [self.missed[:, objects], low, self.cause[:, detections]]
        flat = np.concatenate([table.ravel() for table in codes])
        return np.bincount(flat[flat >= 0], minlength=len(CAUSES))

    def ap(self, mended: Iterable[Cause] = (), at: int | None = None, label: int | None = None) -> float | None:
        """AP in [0, 1] with some causes mended, of all thresholds or one, all classes or one; None without objects."""
        codes = [_CODE[Cause(cause)] for cause in mended]
        labels = self.scored_classes if label is None else [c for c in self.scored_classes if c == label]
        rows = range(len(self.thresholds)) if at is None else [at]
        values = [self.ranking(i, c).ap(codes) for i in rows for c in labels]
        return float(np.mean(values)) if values else None


def _joined(arrays: list[np.ndarray], dtype) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)


def _columns(tables: list[np.ndarray], rows: int) -> np.ndarray:
    return np.concatenate([np.zeros((rows, 0), tables[0].dtype if tables else np.int64), *tables], axis=1)
