"""The errors of a ledger one by one: what each costs, and in which words.

Shape legend: I IoU thresholds, D detections and O objects of all images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from msdetr.analysis.budget.attribution import CAUSES, NONE
from msdetr.analysis.budget.causes import Cause, Kind
from msdetr.analysis.budget.ledger import Ledger
from msdetr.analysis.budget.marginal import Marginal, marginal
from msdetr.analysis.budget.ranking import MISSED, TOP
from msdetr.analysis.budget.report import Failure, Failures, ImageLoss
from msdetr.analysis.budget.scoring import SIZES
from msdetr.analysis.budget.words import Words

_OF_DETECTIONS = tuple(CAUSES.index(cause) for cause in (Cause.CLASS, Cause.PLACED))
_LOST = CAUSES.index(Cause.LOST)


@dataclass(frozen=True)
class Losses:
    """What AP in points would gain were one error alone mended, at one threshold. false [I, D]: of false detections; objects
    [I, O]: of missed objects and of outranked detections; images: of all errors of an image."""

    false: np.ndarray
    objects: np.ndarray
    images: np.ndarray


def losses(ledger: Ledger) -> Losses:
    """What each error costs, in points of AP: the parts that the thresholds have in it add up."""
    false, objects = np.zeros(ledger.cause.shape), np.zeros(ledger.by.shape)
    images = np.zeros(len(ledger.scenes))
    share = 100 / max(len(ledger.thresholds) * len(ledger.scored_classes), 1)
    for at in range(len(ledger.thresholds)):
        games = {label: marginal(ledger.ranking(at, label)) for label in ledger.scored_classes}
        _false_losses(ledger, at, games, false[at])
        for label, game in games.items():
            _object_losses(ledger, at, label, game, false[at], objects[at])
            _image_losses(ledger, at, label, game, images)
    return Losses(false * share, objects * share, images * share)


def _false_losses(ledger: Ledger, at: int, games: dict[int, Marginal], lost: np.ndarray) -> None:
    rank, cause, offered = ledger.ranks.detections, ledger.cause[at], ledger.offered[at]
    target = np.maximum(offered, 0)
    by = ledger.by[at, target] if len(ledger.counts) else offered
    found = np.where(by >= 0, rank[np.maximum(by, 0)], MISSED)
    moves = (offered >= 0) & (found > rank)  # mended, these find their object, or find it earlier
    for label, game in games.items():
        mine = ledger.detections_of[label]
        mine = mine[cause[mine] >= 0]
        lost[mine] += game.without(rank[mine])
        gains = np.flatnonzero(moves)
        gains = gains[ledger.object_label[offered[gains]] == label]
        same = ledger.labels[gains] == label
        fresh = found[gains] == MISSED
        for own in (True, False):
            chosen = gains[fresh & (same == own)]
            new = game.inserted(rank[chosen], instead=own)
            lost[chosen] = new if own else lost[chosen] + new
        places = np.searchsorted(ledger.objects_of[label], offered[gains])
        for i in np.flatnonzero(~fresh):
            gone = rank[gains[i : i + 1]] if same[i] else rank[:0]
            gain = game.changed(places[i : i + 1], rank[gains[i : i + 1]], gone)
            lost[gains[i]] = gain if same[i] else lost[gains[i]] + gain


def _object_losses(ledger: Ledger, at: int, label: int, game: Marginal, false: np.ndarray, lost: np.ndarray) -> None:
    objects = ledger.objects_of[label]
    cause = ledger.missed[at, objects]
    first = ((cause >= 0) & ~np.isin(cause, (_LOST, *_OF_DETECTIONS))) | ledger.low[at, objects]
    lost[objects[first]] = game.first[first]
    gone = objects[cause == _LOST]
    lost[gone] = game.inserted(ledger.ranks.lost[at, gone], instead=False)
    blamed = objects[np.isin(cause, _OF_DETECTIONS)]
    lost[blamed] = false[_blamed(ledger, at, blamed)]


def _blamed(ledger: Ledger, at: int, objects: np.ndarray) -> np.ndarray:
    """The false detections that missed objects are put down to."""
    image = ledger.object_image[objects]
    inside = [
        ledger.scenes[i].missed.detection[at, target - ledger.first_object[i]] for i, target in zip(image, objects)
    ]
    return ledger.first_detection[image] + np.array(inside, np.int64)


def _image_losses(ledger: Ledger, at: int, label: int, game: Marginal, lost: np.ndarray) -> None:
    objects, detections = ledger.objects_of[label], ledger.detections_of[label]
    wrong = detections[ledger.cause[at, detections] >= 0]
    worst = game.ranks[-1] if len(game.ranks) else TOP
    wrong = wrong[ledger.ranks.detections[wrong] < worst]  # those behind the last object found change nothing
    late = np.flatnonzero((ledger.missed[at, objects] >= 0) | ledger.low[at, objects])
    touched = np.union1d(ledger.image[wrong], ledger.object_image[objects[late]])
    every = detections[ledger.cause[at, detections] >= 0]
    for image in touched:
        places = late[ledger.object_image[objects[late]] == image]
        gone = every[ledger.image[every] == image]
        lost[image] += game.changed(places, np.full(len(places), TOP), ledger.ranks.detections[gone])


def image_losses(ledger: Ledger, lost: Losses) -> tuple[ImageLoss, ...]:
    """The images, worst first (ties: by id)."""
    found = []
    for place, errors in enumerate(ledger.scenes):
        counts = errors.matched.counts
        hit = errors.matched.by[0, counts]
        hit = hit[hit >= 0]
        wrong = np.flatnonzero(errors.false.cause[0] >= 0)
        found.append(
            ImageLoss(
                errors.scene.image_id,
                errors.scene.name,
                float(lost.images[place]),
                int(counts.sum()),
                len(hit),
                int((wrong < hit.max()).sum()) if len(hit) else len(wrong),
            )
        )
    return tuple(sorted(found, key=lambda one: -one.lost_ap))


def failures(ledger: Ledger, lost: Losses, class_names: Sequence[str]) -> Failures:
    """Every error, those of one thing with one cause together, by lost AP."""
    entries = sorted(_entries(ledger, lost), key=lambda one: (-one.lost_ap, one.image, one.kind, one.item))
    return Failures(entries, partial(_failure, ledger, tuple(class_names)))


@dataclass(frozen=True, slots=True)
class _Entry:
    """An object or detection of an image, with one cause at some thresholds."""

    lost_ap: float
    image: int
    image_id: int
    kind: Kind
    item: int
    cause: Cause
    label: int
    size: str
    rows: tuple[int, ...]


def _entries(ledger: Ledger, lost: Losses) -> Iterator[_Entry]:
    low = np.where(ledger.low, ledger.outranked, NONE)
    areas = np.concatenate([np.zeros(0), *(one.scene.objects.areas for one in ledger.scenes)])
    boxes = np.concatenate([np.zeros((0, 4)), *(one.scene.found.boxes for one in ledger.scenes)])
    tables = (
        (
            Kind.MISSED,
            np.where(ledger.counts, ledger.missed, NONE),
            lost.objects,
            ledger.object_image,
            ledger.first_object,
            ledger.object_label,
            None,
        ),
        (Kind.LOW, low, lost.objects, ledger.object_image, ledger.first_object, ledger.object_label, ledger.by),
        (Kind.FALSE, ledger.cause, lost.false, ledger.image, ledger.first_detection, ledger.labels, ledger.object),
    )
    for kind, causes, values, image, first, labels, refers in tables:
        for column in np.flatnonzero((causes >= 0).any(axis=0)):
            rows = np.flatnonzero(causes[:, column] >= 0)
            keys = [(int(causes[i, column]), NONE if refers is None else int(refers[i, column])) for i in rows]
            for key in dict.fromkeys(keys):
                cause, target = key
                mine = [int(i) for i, own in zip(rows, keys) if own == key]
                place = int(image[column])
                area = areas[column] if kind is not Kind.FALSE else boxes[column, 2] * boxes[column, 3]
                yield _Entry(
                    float(values[mine, column].sum()),
                    place,
                    ledger.scenes[place].scene.image_id,
                    kind,
                    int(column - first[place]),
                    CAUSES[cause],
                    int(labels[column]),
                    _size(areas[target] if kind is Kind.FALSE and target >= 0 else area),
                    tuple(mine),
                )


def _failure(ledger: Ledger, class_names: Sequence[str], entry: _Entry) -> Failure:
    errors, at, item = ledger.scenes[entry.image], entry.rows[0], entry.item
    words = Words(errors, class_names)
    thresholds = tuple(round(ledger.thresholds[i], 2) for i in entry.rows)
    cause, found, objects = entry.cause, errors.scene.found, errors.scene.objects
    layer = pair = query = detection = None
    if entry.kind is Kind.FALSE:
        detection, iou = item, float(errors.false.iou[at, item])
        target, pair = _known(errors.false.object[at, item]), _known(errors.false.pair[at, item])
        sentence, box = words.false(at, item, thresholds), found.boxes[item]
    else:
        target, box = item, objects.boxes[item]
        if entry.kind is Kind.LOW:
            detection = int(errors.matched.by[at, item])
            iou = float(errors.matched.overlap[detection, item])
            sentence = words.low(at, item, _above(ledger, at, entry.image, detection), thresholds, cause)
        else:
            missed = errors.missed
            detection, query = _known(missed.detection[at, item]), _known(missed.query[at, item])
            layer, iou = _known(missed.layer[at, item]), float(missed.iou[at, item])
            sentence = words.missed(at, item, thresholds)
    if detection is not None:
        query = _known(found.query[detection])
    score = float(found.scores[detection]) if detection is not None else None
    if score is None and query is not None:
        score = float(errors.missed.score[at, item])
    return Failure(
        image_id=entry.image_id,
        kind=entry.kind,
        cause=cause,
        lost_ap=entry.lost_ap,
        object=None if target is None else int(words.number[target]),
        detection=detection,
        query=query,
        label=entry.label,
        size=entry.size,
        box=(float(box[0]), float(box[1]), float(box[0] + box[2]), float(box[1] + box[3])),
        score=score,
        iou=iou,
        thresholds=thresholds,
        sentence=sentence,
        layer=layer,
        pair=pair,
        gap=None if pair is None else float(found.scores[pair] - found.scores[detection]),
    )


def _above(ledger: Ledger, at: int, image: int, detection: int) -> int:
    """How many false detections of its class rank above a detection."""
    place = ledger.first_detection[image] + detection
    others = ledger.detections_of[ledger.labels[place]]
    rank = ledger.ranks.detections
    return int(((ledger.cause[at, others] >= 0) & (rank[others] < rank[place])).sum())


def _size(area: float) -> str:
    """Of an area on the limit of two, the smaller."""
    return next((name for name, (_, most) in SIZES.items() if area <= most), "large")


def _known(value) -> int | None:
    return None if value < 0 else int(value)
