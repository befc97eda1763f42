"""The detector's answer: which objects are found, missed or doubled in its output, and why.

Shape legend: T objects of the image, Q queries, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from msdetr.analysis.reasons import object_name
from msdetr.boxes import pairwise_iou, predicted_corners
from msdetr.errors import InputError
from msdetr.matching import pair_iou
from msdetr.structures import Detections, Predictions, Targets


class Outcome(StrEnum):
    """What became of an object in the detector's output."""

    FOUND = "found"
    DOUBLED = "doubled"
    NO_BOX = "missed: no box is close enough"
    WRONG_CLASS = "missed: seen as another class"
    LOW_SCORE = "missed: score too low"
    ASSIGNED_ELSEWHERE = "missed: its detection counts for another object"
    CROWDED_OUT = "missed: not among the detections kept"


@dataclass(frozen=True)
class ObjectOutcome:
    """What became of an object in the output: its detections as (query, score, IoU), the first being the one that
    counts, others duplicates; and the reason in words."""

    target: int
    outcome: Outcome
    detections: tuple[tuple[int, float, float], ...]
    text: str
    numbers: dict[str, float | int]


def explain_output(
    predictions: Predictions,
    targets: Targets,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    max_detections: int = 100,
    class_names: Sequence[str] = (),
    answer: Detections | None = None,
) -> list[ObjectOutcome]:
    """Which objects of one image are found, missed or doubled in a detector's output, and why.

    predictions: one layer (the last), one image. Detections are the ``max_detections`` best pairs of query and class, no
    suppression, or those of ``answer``, what post-processing of the detector's own made of the predictions; of these the ones
    with a score of at least ``score_threshold``. As in COCO's evaluation, detections in
    descending score each take the object of their class with the highest IoU, at least ``iou_threshold``, that is not
    taken yet. A detection left over that overlaps an object taken by another one is a duplicate of the object it
    overlaps most.
    """
    if predictions.logits.shape[:2] != (1, 1) or targets.num_images != 1:
        raise InputError(
            "explain_output looks at one layer of one image: use predictions.layer(-1) and targets.of_image"
        )
    predictions, targets = predictions.detach().to("cpu").float(), targets.to("cpu")
    probability = predictions.logits[0, 0].sigmoid().numpy()  # [Q, C]
    overlap = pair_iou(predictions, targets)[0].numpy()  # [T, Q]
    labels = targets.labels.numpy()
    if answer is None:
        best = np.argsort(-probability, axis=None, kind="stable")[:max_detections]
        query, label = np.unravel_index(best, probability.shape)
        beyond = f"{max_detections} pairs of query and class score higher"
    else:
        query, label = answer.query.cpu().numpy(), answer.labels.cpu().numpy()
        probability[query, label] = answer.scores.cpu().numpy()  # may be others than the last layer's
        beyond = "the detector's post-processing does not keep it"
    kept = [(int(q), int(c)) for q, c in zip(query, label, strict=True)]
    detections = [(q, c) for q, c in kept if probability[q, c] >= score_threshold]
    owner, copies = _assign_detections(detections, labels, overlap, iou_threshold)
    boxes = predicted_corners(predictions.boxes[0, 0])
    between = pairwise_iou(boxes, boxes).numpy()
    outcomes = []
    for target, label in enumerate(labels.tolist()):
        mine = [detection for detection in detections if owner.get(detection) == target]
        mine += [detection for detection in detections if copies.get(detection) == target]
        found = tuple((q, float(probability[q, label]), float(overlap[target, q])) for q, _ in mine)
        name = object_name(target, targets, class_names)
        if not found:
            shown = (detections, kept, probability, overlap[target], label, owner)
            outcome, text, numbers = _why_missed(*shown, score_threshold, iou_threshold, beyond, class_names)
        elif len(found) == 1:
            (query, s, value), outcome = found[0], Outcome.FOUND
            text, numbers = f"query {query} finds it with probability {s:.2f} at IoU {value:.2f}", {}
        else:
            outcome, (first, second) = Outcome.DOUBLED, found[:2]
            numbers = {"gap": first[1] - second[1], "overlap": float(between[first[0], second[0]])}
            text = (
                f"query {first[0]} finds it ({first[1]:.2f}), and so does query {second[0]} ({second[1]:.2f}), both at or "
                f"over the score threshold {score_threshold:.3g}; their boxes overlap with IoU {numbers['overlap']:.2f}. "
                f"One-to-one supervision should have pushed the second score down: the gap is {numbers['gap']:.2f}"
            )
            text += f"; {len(found) - 1} duplicates in all" if len(found) > 2 else ""
        outcomes.append(ObjectOutcome(target, outcome, found, f"{name}: {text}.", numbers))
    return outcomes


def _assign_detections(
    detections: Sequence[tuple[int, int]], labels: np.ndarray, overlap: np.ndarray, iou_threshold: float
) -> tuple[dict[tuple[int, int], int], dict[tuple[int, int], int]]:
    """Which object each detection (query, class) takes, and which one a left-over detection is a duplicate of."""
    owner: dict[tuple[int, int], int] = {}
    copies: dict[tuple[int, int], int] = {}
    for query, label in detections:
        reachable = [t for t in np.flatnonzero(labels == label).tolist() if overlap[t, query] >= iou_threshold]
        free = [t for t in reachable if t not in owner.values()]
        if free:
            owner[query, label] = max(free, key=lambda t: overlap[t, query])
        elif reachable:
            copies[query, label] = max(reachable, key=lambda t: overlap[t, query])
    return owner, copies


def _why_missed(
    detections: Sequence[tuple[int, int]],
    kept: Sequence[tuple[int, int]],
    probability: np.ndarray,
    overlap: np.ndarray,
    label: int,
    owner: dict[tuple[int, int], int],
    score_threshold: float,
    iou_threshold: float,
    beyond: str,
    class_names: Sequence[str],
) -> tuple[Outcome, str, dict[str, float | int]]:
    placed = np.flatnonzero(overlap >= iou_threshold)
    if not len(placed):
        if not len(overlap):
            return Outcome.NO_BOX, "there are no queries", {}
        best = int(overlap.argmax())
        numbers = {"query": best, "iou": float(overlap[best])}
        return (
            Outcome.NO_BOX,
            f"the closest box, of query {best}, has IoU {overlap[best]:.2f} < {iou_threshold:g}",
            numbers,
        )
    best = int(placed[probability[placed, label].argmax()])
    own = float(probability[best, label])
    numbers = {"query": best, "probability": own, "iou": float(overlap[best])}
    if own >= score_threshold:
        if (best, label) not in kept:
            return Outcome.CROWDED_OUT, f"query {best} sees it ({own:.2f}), but {beyond}", numbers
        other = owner[best, label]
        numbers |= {"rival": other}
        text = f"query {best} ({own:.2f}, IoU {overlap[best]:.2f}) counts for object {other}, which it overlaps no less"
        return Outcome.ASSIGNED_ELSEWHERE, text, numbers
    wrong = [(float(probability[q, c]), q, c) for q, c in detections if q in placed and c != label]
    if wrong:
        value, query, other = max(wrong)
        name = class_names[other] if other < len(class_names) else f"class {other}"
        numbers |= {"query": query, "class": other, "class_probability": value, "iou": float(overlap[query])}
        numbers |= {"probability": float(probability[query, label])}
        text = f"query {query}, at IoU {overlap[query]:.2f}, calls it {name} ({value:.2f}); its own class gets "
        return Outcome.WRONG_CLASS, text + f"{probability[query, label]:.2f} there", numbers
    boxes = "1 box has" if len(placed) == 1 else f"{len(placed)} boxes have"
    text = f"{boxes} IoU ≥ {iou_threshold:g}, but the highest probability among them is {own:.2f} "
    return Outcome.LOW_SCORE, text + f"(query {best}) < {score_threshold:.3g}", numbers
