"""The cause of every error in one image.

What a detection is on. Let v be its highest IoU with an object of its class, w that with an object of another class (crowds are
left out), t the IoU threshold, and ``ON`` = 0.5 the IoU from which two boxes are taken to be of the same thing (t where t is
lower). A false detection is

1. a *duplicate*, if v >= t: COCO let a detection with a higher score take the object;
2. of the *wrong class*, if w >= ON and w > v;
3. a *duplicate*, if v >= ON and a detection with a higher score takes the object: in the right place it would be one;
4. *badly placed*, if v >= ``NEAR`` = 0.1;
5. *background* otherwise.

At t = 0.5 rule 3 never applies. A missed object is

1. of the *wrong class*, if a false detection of that cause is on it with w >= t;
2. *outranked*, if a query of the last layer reaches t and its pair with the object's class is not among the detections kept
   (of plain detections: if one beyond the number that counts reaches t). A query whose pair is kept counts for another object;
3. *lost on the way*, if a query of an earlier decoder layer reaches t: the last such layer, and in it the query with the highest
   probability of the object's class;
4. *badly placed* or of the *wrong class*, as the best false detection that is on it with IoU >= ON;
5. *never a candidate* otherwise.

So an object with a detection on it is called badly placed at IoU 0.95 rather than never a candidate, though no box reaches 0.95.
Where training was recorded, *outranked* becomes *rarely matched* or *switched* if the record shows that (``history``).

A true detection that a false one of its class outranks is *outranked*, too; that is decided over all images (``ledger``).

Shape legend: I IoU thresholds, T objects, N detections, Q queries.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from msdetr.analysis.budget.causes import Cause
from msdetr.analysis.budget.scene import Objects, Scene
from msdetr.analysis.budget.scoring import EVERY_AREA, Matched, match, overlaps

CAUSES = tuple(Cause)
ON, NEAR = 0.5, 0.1
NONE = -1
_CODE = {cause: code for code, cause in enumerate(CAUSES)}


@dataclass(frozen=True)
class FalseDetections:
    """cause [I, N]: index into ``CAUSES``, -1 where a detection is no error. object [I, N]: the object it is put down to,
    -1 for background. pair [I, N]: of a duplicate or of a wrong class, the detection that takes the object, else -1. iou
    [I, N]: with the object."""

    cause: np.ndarray
    object: np.ndarray
    pair: np.ndarray
    iou: np.ndarray


@dataclass(frozen=True)
class MissedObjects:
    """cause [I, T]: index into ``CAUSES``, -1 where an object is found or does not count. detection [I, T]: the one that its
    cause refers to, -1 for none; query, layer [I, T]: likewise, layers counted from 1: the first that lost it.
    score [I, T]: of the detection or query; iou [I, T]: of its box, or of the closest one; ends [I, T]: of a lost candidate, the
    IoU that it has in the last layer."""

    cause: np.ndarray
    detection: np.ndarray
    query: np.ndarray
    layer: np.ndarray
    score: np.ndarray
    iou: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class SceneErrors:
    """All errors of a scene but those of rank. scene: without its layers; num_layers: how many there were, 0 where they are not
    known. outranked [T]: what an object that is outranked is called. by_score: the answer are the pairs with the best scores."""

    scene: Scene
    num_layers: int
    matched: Matched
    false: FalseDetections
    missed: MissedObjects
    outranked: np.ndarray
    by_score: bool = True


class SceneOverlaps:
    """IoUs of a scene that do not depend on what counts: detections [N, T], and queries of all layers [K, Q, T]."""

    def __init__(self, scene: Scene) -> None:
        objects, layers = scene.objects, scene.layers
        self.scored = overlaps(scene.found.boxes, objects)
        self.detections = self.scored
        if objects.crowd.any():
            self.detections = overlaps(scene.found.boxes, objects, crowd=False)
            self.detections[:, objects.crowd] = -1.0
        self.queries = None
        if layers is not None:
            flat = overlaps(layers.boxes.reshape(-1, 4), objects, crowd=False)
            self.queries = flat.reshape(*layers.boxes.shape[:2], len(objects))


def attribute(
    scene: Scene,
    thresholds: np.ndarray,
    max_detections: int = 100,
    area: tuple[float, float] = EVERY_AREA,
    outranked: np.ndarray | None = None,
    overlap: SceneOverlaps | None = None,
) -> SceneErrors:
    """Every false detection and every missed object of an image with its cause, by the rules above, at each threshold [I].

    area: of the objects that count. outranked [T]: indices into ``CAUSES``, what history says of objects that are outranked.
    """
    overlap = SceneOverlaps(scene) if overlap is None else overlap
    matched = match(scene.objects, scene.found, thresholds, max_detections, area, overlap.scored)
    if outranked is None:
        outranked = np.full(len(scene.objects), _CODE[Cause.OUTRANKED])
    false = _false(scene, matched, overlap.detections, thresholds)
    missed = _missed(scene, matched, overlap, false, thresholds, outranked)
    number = 0 if scene.layers is None else len(scene.layers)
    by_score = scene.layers is None or scene.layers.answers is None
    return SceneErrors(replace(scene, layers=None), number, matched, false, missed, outranked, by_score)


def only_matched(scene: Scene, thresholds: np.ndarray, max_detections: int = 100) -> SceneErrors:
    """The errors of an image without looking for their causes, where only AP is wanted: objects are missed as *never a candidate*,
    and false detections are *background*."""
    matched = match(scene.objects, scene.found, thresholds, max_detections)
    missing, shape = matched.counts & (matched.by < 0), matched.by.shape
    none, zeros = np.full(matched.false.shape, NONE), np.zeros(matched.false.shape)
    false = FalseDetections(np.where(matched.false, _CODE[Cause.BACKGROUND], NONE), none, none, zeros)
    missed = MissedObjects(
        np.where(missing, _CODE[Cause.NEVER], NONE),
        *(np.full(shape, NONE) for _ in range(3)),
        *(np.zeros(shape) for _ in range(3)),
    )
    outranked = np.full(len(scene.objects), _CODE[Cause.OUTRANKED])
    return SceneErrors(replace(scene, layers=None), 0, matched, false, missed, outranked)


def _false(scene: Scene, matched: Matched, overlap: np.ndarray, thresholds: np.ndarray) -> FalseDetections:
    number, shape = len(scene.found), matched.false.shape
    if not len(scene.objects):
        cause = np.where(matched.false, _CODE[Cause.BACKGROUND], NONE)
        return FalseDetections(cause, np.full(shape, NONE), np.full(shape, NONE), np.zeros(shape))
    same = scene.found.labels[:, None] == scene.objects.labels
    right, wrong = np.where(same, overlap, -1.0), np.where(same, -1.0, overlap)
    own, other = right.argmax(axis=1), wrong.argmax(axis=1)
    v, w = right.max(axis=1), wrong.max(axis=1)
    reach = np.minimum(thresholds, 1 - 1e-10)[:, None]
    on = np.minimum(ON, reach)
    taker = matched.by[:, own]  # [I, N]
    late = (taker >= 0) & (taker < np.arange(number))
    elsewhere = (w >= on) & (w > v)
    rules = [v >= reach, elsewhere, (v >= on) & late, np.broadcast_to(v >= NEAR, shape)]
    causes = [Cause.DUPLICATE, Cause.CLASS, Cause.DUPLICATE, Cause.PLACED]
    cause = np.select(rules, [_CODE[one] for one in causes], _CODE[Cause.BACKGROUND])
    cause = np.where(matched.false, cause, NONE)
    target = np.select(
        [cause == _CODE[Cause.CLASS], (cause >= 0) & (cause != _CODE[Cause.BACKGROUND])], [other, own], NONE
    )
    iou = np.where(target >= 0, np.where(cause == _CODE[Cause.CLASS], w, v), np.maximum(np.maximum(v, w), 0))
    pair = np.where(target >= 0, np.take_along_axis(matched.by, np.maximum(target, 0), axis=1), NONE)
    pair = np.where(cause == _CODE[Cause.PLACED], NONE, pair)
    return FalseDetections(cause, target, pair, iou)


def _missed(
    scene: Scene,
    matched: Matched,
    overlap: SceneOverlaps,
    false: FalseDetections,
    thresholds: np.ndarray,
    outranked: np.ndarray,
) -> MissedObjects:
    shape = matched.by.shape
    missed = MissedObjects(*(np.full(shape, NONE) for _ in range(4)), *(np.zeros(shape) for _ in range(3)))
    for at, target in np.argwhere(matched.counts & (matched.by < 0)):
        reach = min(thresholds[at], 1 - 1e-10)
        found = _why_missed(scene, matched, overlap, false, at, target, reach)
        cause, detection, query, layer, score, iou = found
        missed.cause[at, target] = outranked[target] if cause is Cause.OUTRANKED else _CODE[cause]
        missed.detection[at, target], missed.query[at, target], missed.layer[at, target] = detection, query, layer
        missed.score[at, target], missed.iou[at, target] = score, iou
        missed.ends[at, target] = overlap.queries[-1, query, target] if cause is Cause.LOST else 0.0
    return missed


def _why_missed(
    scene: Scene,
    matched: Matched,
    overlap: SceneOverlaps,
    false: FalseDetections,
    at: int,
    target: int,
    reach: float,
) -> tuple[Cause, int, int, int, float, float]:
    """Cause, detection, query, layer, score and IoU of an object missed at a threshold."""
    found, label = scene.found, scene.objects.labels[target]
    blamed = np.flatnonzero(false.object[at] == target)  # best first
    wrong = blamed[(false.cause[at, blamed] == _CODE[Cause.CLASS]) & (false.iou[at, blamed] >= reach)]
    if len(wrong):
        return _of_detection(Cause.CLASS, scene, false, at, wrong[0])
    beyond = np.flatnonzero(~matched.kept & (found.labels == label) & (overlap.detections[:, target] >= reach))
    if len(beyond):
        first = int(beyond[0])
        values = (
            first,
            int(found.query[first]),
            NONE,
            float(found.scores[first]),
            float(overlap.detections[first, target]),
        )
        return Cause.OUTRANKED, *values
    closest = max([overlap.detections[:, target].max(initial=0.0), 0.0])
    if scene.layers is not None:
        ious = overlap.queries[:, :, target]  # [K, Q]
        scores = scene.layers.scores[:, :, label]
        kept = found.query[matched.kept & (found.labels == label)]
        free = ious[-1] >= reach
        free[kept] = False
        if free.any():
            query = _best(scores[-1], free)
            return Cause.OUTRANKED, NONE, query, NONE, float(scores[-1, query]), float(ious[-1, query])
        for layer in range(len(ious) - 2, -1, -1):
            good = ious[layer] >= reach
            if good.any():
                query = _best(scores[layer], good)
                values = NONE, query, layer + 2, float(scores[layer, query]), float(ious[layer, query])
                return Cause.LOST, *values
        closest = max(closest, float(ious.max(initial=0.0)))
    near = blamed[false.iou[at, blamed] >= min(ON, reach)]
    if len(near):
        return _of_detection(CAUSES[false.cause[at, near[0]]], scene, false, at, near[0])
    return Cause.NEVER, NONE, NONE, NONE, 0.0, float(closest)


def _of_detection(cause: Cause, scene: Scene, false: FalseDetections, at: int, detection: int):
    found = scene.found
    return (
        cause,
        int(detection),
        int(found.query[detection]),
        NONE,
        float(found.scores[detection]),
        float(false.iou[at, detection]),
    )


def _best(scores: np.ndarray, among: np.ndarray) -> int:
    """The query with the highest score among some; ties: the lower index."""
    return int(np.where(among, scores, -np.inf).argmax())


def objects_without_crowds(objects: Objects) -> np.ndarray:
    """[T] the place of each object among those that are no crowds, as data sets count them; -1 for a crowd."""
    return np.where(objects.crowd, NONE, np.cumsum(~objects.crowd) - 1)
