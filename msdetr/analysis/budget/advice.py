"""What to try, from what a budget says: for each of the causes that cost most, where it strikes and what usually helps.

Only the effect of suppression is computed; the others are what one would try first, and are worded so.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from msdetr.analysis.budget.causes import Cause, Kind
from msdetr.analysis.budget.doctor import Basis, Diagnosis
from msdetr.analysis.budget.report import Budget

WORTH = 0.05  # of what is lost: causes that cost less get no advice
MOST = 4


def advice(budget: Budget, diagnosis: Diagnosis | None = None) -> list[str]:
    """Sentences, for the cause that costs most first; at most four, and one of suppression where it helps."""
    if not budget.whole.lost:
        return []
    costly = sorted(budget.whole.causes, key=lambda one: -one.share)
    costly = [one for one in costly if one.share >= WORTH * budget.whole.lost][:MOST]
    lines = [f"{one.cause.title} ({one.share:.1f} points): {_SAYS[one.cause](budget)}" for one in costly]
    exact = [one for one in diagnosis.remedies if one.basis is Basis.EXACT] if diagnosis else []
    best = max(exact, key=lambda one: one.gain or 0.0, default=None)
    if best is not None and best.gain is not None and best.gain >= 0.1:
        lines.append(f"{best.text}; it costs no training (msdetr.model.postprocess.nms_postprocess).")
    return lines


def _never(budget: Budget) -> str:
    worst = max(budget.sizes, key=lambda part: part[Cause.NEVER].share, default=None)
    where = "" if worst is None or worst.ap is None else f"most among {worst.name} objects; "
    return (
        f"{where}larger images (data.test_size, data.train_sizes), more queries (model.num_queries) or longer training."
    )


def _lost(budget: Budget) -> str:
    layer = max(budget.lost_in, key=lambda one: budget.lost_in[one], default=None)
    better = [part for part in budget.layers[:-1] if part.ap is not None and part.ap > (budget.ap or 0) + 0.1]
    text = "" if layer is None else f"layer {layer} moves most of them away; "
    if better:
        best = max(better, key=lambda part: part.ap)
        return (
            text
            + f"layer {best.name} alone would have reached AP {best.ap:.1f}: fewer decoder layers, or longer training."
        )
    return text + "look at the queries that moved (--image, --query); longer training steadies them."


def _class(budget: Budget) -> str:
    pairs = confusions(budget)
    most = "" if not pairs else "above all " + " and ".join(f"{a} taken for {b}" for a, b, _ in pairs[:2]) + "; "
    return f"{most}are both annotated consistently? More images of them, or a higher loss.class_weight."


def _placed(budget: Budget) -> str:
    ap50, ap75 = (_at(budget, iou) for iou in (0.5, 0.75))
    return (
        f"AP50 is {ap50:.1f}, AP75 {ap75:.1f}; longer training, larger images (data.test_size), or more weight on boxes "
        "(loss.l1_weight, loss.giou_weight). Are the annotated boxes tight?"
    )


def _outranked(budget: Budget) -> str:
    return (
        "good boxes have too low scores; class losses that know how well a box fits (the method stable), longer training, or a "
        "higher loss.class_weight."
    )


def _recorded(budget: Budget) -> str:
    if not budget.whole[Cause.RARELY].known:
        return "their matching is unsteady; longer training, or one-to-many supervision (the method ms_detr)."
    return "their matching is unsteady; longer training, a higher ms_detr.k or a lower ms_detr.threshold."


def _duplicate(budget: Budget) -> str:
    gaps = [one.gap for one in budget.failures_of(cause=Cause.DUPLICATE) if one.gap is not None]
    text = f"the median gap between their scores and the better ones is {np.median(gaps):.2f}; " if gaps else ""
    return text + "longer training, or more weight on the one-to-one class loss (loss.class_weight)."


def _background(budget: Budget) -> str:
    wrong = [one for one in budget.failures_of(cause=Cause.BACKGROUND, kind=Kind.FALSE) if one.score is not None]
    images = list(dict.fromkeys(one.image_id for one in sorted(wrong, key=lambda one: -one.score)))[:3]
    where = f"look at images {', '.join(map(str, images))} first: " if images else ""
    return f"{where}are these objects that nobody annotated? Otherwise images without objects, or longer training."


_SAYS: dict[Cause, Callable[[Budget], str]] = {
    Cause.NEVER: _never,
    Cause.LOST: _lost,
    Cause.CLASS: _class,
    Cause.PLACED: _placed,
    Cause.OUTRANKED: _outranked,
    Cause.RARELY: _recorded,
    Cause.SWITCHED: _recorded,
    Cause.DUPLICATE: _duplicate,
    Cause.BACKGROUND: _background,
}


def confusions(budget: Budget) -> list[tuple[str, str, float]]:
    """Classes that are taken for another: (the object's, the detection's, the lost AP of these detections), most first."""
    lost: dict[tuple[int, int], float] = {}
    labels = {one.scene.image_id: one.scene.objects for one in budget.ledger.scenes}
    for one in budget.failures_of(cause=Cause.CLASS, kind=Kind.FALSE):
        objects = labels[one.image_id]
        pair = int(objects.labels[~objects.crowd][one.object]), one.label
        lost[pair] = lost.get(pair, 0.0) + one.lost_ap
    names = budget.class_names
    return [(names[a], names[b], points) for (a, b), points in sorted(lost.items(), key=lambda pair: -pair[1])]


def _at(budget: Budget, iou: float) -> float:
    return 100 * (budget.ledger.ap(at=budget.thresholds.index(iou)) or 0.0)
