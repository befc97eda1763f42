"""AP as a game: what one class scores at one IoU threshold when the errors of some causes are mended.

AP depends on nothing but the order of a class's detections, so a *ranking* is all that is kept. Let the detections of all
images, best first, have ranks 0, 1, ... A found object has the rank of its detection, a missed one infinity; a false detection has a
rank and a cause. Mending a cause takes its false detections away, and offers objects a better rank (``Cause.mended`` says which): the first
place for what was never a candidate or is outranked, that of the false detection for what is badly placed or of the wrong class, that
of the score in the earlier layer for what was lost on the way. An object takes the best of those that the mended causes offer and
its own. With n objects of which m are found, in order, and F_k false
detections ranked above the k-th, precision at it is k / (k + F_k) and recall k / n; AP is the mean of the highest precision
at or beyond recall 0, 0.01, ..., 1, as COCO computes it.

Mending more never lowers AP: false detections only vanish and ranks only improve. With every cause mended all objects are found
and nothing is false, so AP is 1.

Shape legend: n objects that count, m causes that occur, U different ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TOP, MISSED = -1, np.iinfo(np.int64).max
RECALLS = np.linspace(0.0, 1.00, 101)
_BLOCK = 4_000_000  # numbers handled at once


@dataclass(frozen=True)
class Ranking:
    """One class at one IoU threshold. found [n]: ranks of the objects, ``MISSED`` where they are. offers [causes, n]: the rank that
    mending a cause offers an object, ``TOP`` for the first place, ``MISSED`` for none. false: ranks of false detections, ascending,
    one array for each cause."""

    found: np.ndarray
    offers: np.ndarray
    false: tuple[np.ndarray, ...]

    @property
    def causes(self) -> list[int]:
        """The causes that occur."""
        return [i for i, ranks in enumerate(self.false) if len(ranks) or (self.offers[i] != MISSED).any()]

    def ap(self, mended=()) -> float:
        """AP in [0, 1] with some causes mended."""
        found = np.sort(np.min([self.found, *(self.offers[i] for i in mended)], axis=0))
        found = found[found != MISSED]
        above = sum(
            (np.searchsorted(ranks, found) for i, ranks in enumerate(self.false) if i not in mended),
            np.zeros(len(found), np.int64),
        )
        return float(average_precision(above[None], np.array([len(found)]), len(self.found))[0])

    def every_ap(self) -> tuple[list[int], np.ndarray]:
        """The causes that occur, and AP [2^m] with every set of them mended; bit i of an index is the i-th of them."""
        causes = self.causes
        ranks = np.unique(np.concatenate([self.found, *self.offers[causes]]))
        ranks = ranks[ranks != MISSED]
        above = (
            np.stack([np.searchsorted(self.false[i], ranks) for i in causes]) if causes else np.zeros((0, len(ranks)))
        )
        own, offers = (
            np.searchsorted(ranks, values).astype(np.int32) for values in (self.found, self.offers[causes])
        )  # MISSED becomes U
        best = own[None]
        for offer in offers:  # the sets with this cause are those without, with its offers
            best = np.concatenate([best, np.minimum(best, offer)])
        sets = np.arange(len(best))
        left = (sets[:, None] >> np.arange(len(causes)) & 1) == 0  # [2^m, m] causes that are not mended
        values = np.empty(len(best))
        step = max(_BLOCK // (len(ranks) + len(self.found) + 1), 1)
        for low in range(0, len(best), step):
            rows = slice(low, low + step)
            order = np.sort(best[rows], axis=1)
            number = (order < len(ranks)).sum(axis=1)
            counts = np.pad(left[rows].astype(np.float64) @ above, ((0, 0), (0, 1)))
            values[rows] = average_precision(np.take_along_axis(counts, order.astype(np.int64), 1), number, len(own))
        return causes, values


def average_precision(above: np.ndarray, number: np.ndarray, objects: int) -> np.ndarray:
    """AP [rows] in [0, 1] of several rankings of the same objects.

    above [rows, columns]: false detections ranked above the k-th object found; number [rows]: how many objects are found, the
    columns from there on are ignored. objects: how many there are, at least 1.
    """
    if not above.shape[1]:
        return np.zeros(len(above))
    place = np.arange(1, above.shape[1] + 1)
    precision = np.where(place <= number[:, None], place / (place + above), 0.0)
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    first = first_reaching(objects)
    first = first[first < above.shape[1]]
    return highest[:, first].sum(axis=1) / len(RECALLS)


def first_reaching(objects: int) -> np.ndarray:
    """[101] how many objects, less one, must be found to reach each recall."""
    return np.searchsorted(np.arange(1, objects + 1) / objects, RECALLS)
