"""What AP gains when one error alone is mended, for every error of a class at an IoU threshold.

With the found objects in order, p_k = k / (k + F_k) is the precision at the k-th (``ranking``), and AP is the mean over 101
recalls r of the highest p_k with k >= K_r. An error that is mended changes some p_k in front of a place and the others behind
it in another way, so that a running maximum from each K_r on gives AP for every place at once.

Shape legend: n objects that count, m of them found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from msdetr.analysis.budget.ranking import MISSED, RECALLS, Ranking, average_precision, first_reaching


@dataclass(frozen=True)
class Marginal:
    """All gains are of the AP of the class, in [0, 1].

    ranks [m]: of the objects found, ascending. false: ranks of all false detections, ascending. reached [101]: K_r - 1.
    dropped [m + 1]: the gain of dropping a false detection that so many found objects rank above.
    first [n]: the gain of putting an object first.
    """

    ranking: Ranking
    base: float
    ranks: np.ndarray
    false: np.ndarray
    reached: np.ndarray
    dropped: np.ndarray
    first: np.ndarray

    def without(self, ranks: np.ndarray) -> np.ndarray:
        """The gain of dropping each of some false detections, given by their ranks."""
        return self.dropped[np.searchsorted(self.ranks, ranks)]

    def inserted(self, ranks: np.ndarray, instead: bool) -> np.ndarray:
        """The gain of finding a missed object at each of some ranks; instead: of a false detection that had the rank."""
        after = np.searchsorted(self.ranks, ranks)  # so many objects rank above
        new = (after + 1) / (after + 1 + np.searchsorted(self.false, ranks))
        place = np.arange(1, len(self.ranks) + 1)
        above = np.searchsorted(self.false, self.ranks)
        behind = (place + 1) / (place + 1 + np.maximum(above - instead, 0))
        rest = np.append(_from(behind), 0.0)
        before = place / (place + above)
        total = np.zeros(len(ranks))
        for first, times in zip(*np.unique(self.reached, return_counts=True)):
            if first > len(place):
                continue
            highest = rest.copy()
            highest[first + 1 :] = np.maximum(np.maximum.accumulate(before[first:]), rest[first + 1 :])
            total += times * np.where(after < first, rest[max(first - 1, 0)], np.maximum(highest[after], new))
        return np.maximum(total / len(RECALLS) - self.base, 0.0)

    def changed(self, places: np.ndarray, ranks: np.ndarray, gone: np.ndarray) -> float:
        """The gain where objects [places] are found no later than at some ranks, and false detections of ranks ``gone`` are gone."""
        found = self.ranking.found.copy()
        np.minimum.at(found, places, ranks)
        found = np.sort(found[found != MISSED])
        above = np.searchsorted(self.false, found) - np.searchsorted(np.sort(gone), found)
        value = average_precision(above[None], np.array([len(found)]), len(self.ranking.found))[0]
        return float(value - self.base)


def marginal(ranking: Ranking) -> Marginal:
    """What one error alone costs in a class at a threshold."""
    order = np.argsort(ranking.found, kind="stable")
    order = order[ranking.found[order] != MISSED]
    ranks = ranking.found[order]
    false = np.sort(np.concatenate([np.zeros(0, np.int64), *ranking.false]))
    above = np.searchsorted(false, ranks)
    objects, reached = len(ranking.found), first_reaching(len(ranking.found))
    place = np.arange(1, len(ranks) + 1)
    precision = place / (place + above)
    base = float(average_precision(above[None], np.array([len(ranks)]), objects)[0])
    dropped = _joined_ap(precision, place / (place + np.maximum(above - 1, 0)), reached) - base
    # an object put first is right at once, and those that ranked above it are found together with one more
    moved = np.concatenate([[1.0], (place + 1) / (place + 1 + above)])
    first = np.empty(objects)
    first[ranking.found == MISSED] = _from(moved)[reached[reached < len(moved)]].sum() / len(RECALLS) - base
    first[order] = (_joined_ap(moved[:-1], precision, reached) - base)[1:]
    return Marginal(ranking, base, ranks, false, reached, np.maximum(dropped, 0.0), np.maximum(first, 0.0))


def _joined_ap(front: np.ndarray, back: np.ndarray, reached: np.ndarray) -> np.ndarray:
    """[m + 1] AP where the first j places have the precisions of ``front`` and the others those of ``back``, for j = 0 ... m."""
    number = len(front)
    rest = np.append(_from(back), 0.0)
    total = np.zeros(number + 1)
    for first, times in zip(*np.unique(reached, return_counts=True)):
        if first < number:
            highest = np.full(number + 1, rest[first])
            highest[first + 1 :] = np.maximum(np.maximum.accumulate(front[first:]), rest[first + 1 :])
            total += times * highest
    return total / len(RECALLS)


def _from(values: np.ndarray) -> np.ndarray:
    """The highest value at or after each place."""
    return np.maximum.accumulate(values[::-1])[::-1]
