"""Mending in the data: the detections as they would be without the errors of some causes, for any evaluation to score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from msdetr.analysis.budget.attribution import CAUSES
from msdetr.analysis.budget.causes import Cause
from msdetr.analysis.budget.ledger import Ledger
from msdetr.analysis.budget.ranking import MISSED, TOP
from msdetr.engine.metric import DETECTION


def mended_detections(
    ledger: Ledger, causes: Iterable[Cause], at: int, category_ids: Sequence[int | None] | None = None
) -> np.ndarray:
    """The detections with some causes mended at the IoU threshold of this index, [N] of ``DETECTION``.

    False detections of these causes are gone. An object has the detection that ranks first among its own and those that
    the causes offer it; an offered one has the object's box and class, and its own score, or one above all others where it is
    to come first. What does not count stays; what is beyond the number that counts is left out. Scored at this threshold this
    gives ``ledger.ap(causes, at)``; score it with a ``max_detections`` that nothing is beyond.

    category_ids: class index -> category id; the class indices themselves by default.
    """
    mended = [CAUSES.index(Cause(cause)) for cause in causes]
    kept = np.concatenate([np.zeros(0, bool), *(one.matched.kept for one in ledger.scenes)])
    kept &= ~np.isin(ledger.cause[at], mended)
    boxes = np.concatenate([np.zeros((0, 4)), *(one.scene.found.boxes for one in ledger.scenes)])
    object_boxes = np.concatenate([np.zeros((0, 4)), *(one.scene.objects.boxes for one in ledger.scenes)])
    labels, scores, image = ledger.labels.copy(), ledger.scores, ledger.image
    new = []  # (object, score)
    at_rank = {int(rank): detection for detection, rank in enumerate(ledger.ranks.detections)}
    for label in ledger.scored_classes:
        ranking, objects = ledger.ranking(at, label), ledger.objects_of[label]
        best = np.min([np.full(len(objects), MISSED), *(ranking.offers[code] for code in mended)], axis=0)
        for place in np.flatnonzero(best < ranking.found):
            target, rank = int(objects[place]), int(best[place])
            if ranking.found[place] != MISSED:
                kept[ledger.by[at, target]] = False
            if rank == TOP:
                new.append((target, max(scores.max(initial=0.0), 0.0) + 1))
            elif rank in at_rank:
                detection = at_rank[rank]
                kept[detection], boxes[detection], labels[detection] = True, object_boxes[target], label
            else:
                new.append((target, float(ledger.lost_score[at, target])))
    new.sort()
    targets = np.array([target for target, _ in new], np.int64)
    ids = np.array([one.scene.image_id for one in ledger.scenes], np.int64)
    rows = np.zeros(kept.sum() + len(new), DETECTION)
    rows["image_id"] = ids[np.concatenate([image[kept], ledger.object_image[targets]])]
    rows["box"] = np.concatenate([boxes[kept], object_boxes[targets]])
    rows["score"] = np.concatenate([scores[kept], [score for _, score in new]])
    label = np.concatenate([labels[kept], ledger.object_label[targets]])
    used = np.arange(ledger.num_classes) if category_ids is None else np.array(category_ids, np.int64)
    rows["category_id"] = used[label]
    return rows
