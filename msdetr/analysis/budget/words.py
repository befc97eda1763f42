"""Failures in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from msdetr.analysis.budget.attribution import CAUSES, SceneErrors, objects_without_crowds
from msdetr.analysis.budget.causes import Cause


class Words:
    """Puts the errors of one image into words. class_names: index = class."""

    def __init__(self, errors: SceneErrors, class_names: Sequence[str]) -> None:
        self.errors, self.class_names = errors, class_names
        self.number = objects_without_crowds(errors.scene.objects)

    def missed(self, at: int, target: int, thresholds: Sequence[float]) -> str:
        """Why an object is missed, in the numbers of the IoU threshold of index ``at``."""
        one = self.errors.missed
        cause, iou = CAUSES[one.cause[at, target]], one.iou[at, target]
        detection, query, score = one.detection[at, target], one.query[at, target], one.score[at, target]
        start = f"{self._object(target)} is missed {_at(thresholds)}: "
        label = self._class(self.errors.scene.objects.labels[target])
        if cause is Cause.CLASS:
            return start + f"{self._detection(detection)} is on it (IoU {iou:.2f}), with the wrong class."
        if cause is Cause.PLACED:
            return start + f"{self._detection(detection)} has its class, but an IoU of {iou:.2f}."
        if cause is Cause.LOST:
            layer = one.layer[at, target]
            now = one.ends[at, target]
            where = f"it ends at IoU {now:.2f}" if now < thresholds[0] else "it ends as the detection of another object"
            return start + (
                f"query {query} had a box with IoU {iou:.2f} in layer {layer - 1} ({label} {score:.2f}), and layer {layer} "
                f"moved it away; {where}."
            )
        if cause is Cause.NEVER:
            if iou >= thresholds[0]:
                return start + f"a box reaches it (IoU {iou:.2f}), but counts for another object."
            if not self.errors.num_layers:
                return (
                    start
                    + f"no detection reaches it; the closest has IoU {iou:.2f} (what other queries predict is not known)."
                )
            return start + f"no query of any layer reaches it; the closest box has IoU {iou:.2f}."
        if detection >= 0:
            return start + f"{self._detection(detection)} is good (IoU {iou:.2f}), but beyond the number that counts."
        text = f"query {query} has a good box (IoU {iou:.2f}), but "
        if self.errors.by_score:
            text += f"{label} only {score:.3g}, too little to be kept"
        else:
            text += f"the detector's post-processing does not keep it ({label} {score:.3g})"
        return start + text + self._history(cause) + "."

    def low(self, at: int, target: int, above: int, thresholds: Sequence[float], cause: Cause) -> str:
        """What outranks an object's detection: so many false detections of its class."""
        detection = self.errors.matched.by[at, target]
        many = "a false detection ranks" if above == 1 else f"{above:,} false detections rank"
        return (
            f"{self._object(target)} is found by {self._detection(detection)} {_at(thresholds)}, but {many} above it"
            f"{self._history(cause)}."
        )

    def false(self, at: int, detection: int, thresholds: Sequence[float]) -> str:
        """What is wrong with a false detection."""
        one = self.errors.false
        cause, iou = CAUSES[one.cause[at, detection]], one.iou[at, detection]
        target, pair = one.object[at, detection], one.pair[at, detection]
        start = f"{self._detection(detection, capital=True)} is false {_at(thresholds)}: "
        if cause is Cause.BACKGROUND:
            near = f"the most it overlaps any object is IoU {iou:.2f}" if iou > 0 else "it overlaps no object"
            return start + f"it is on nothing; {near}."
        name = self._object(target, capital=False)
        if cause is Cause.DUPLICATE:
            gap = self.errors.scene.found.scores[pair] - self.errors.scene.found.scores[detection]
            return start + (
                f"a duplicate on {name} (IoU {iou:.2f}), which {self._detection(pair)} finds; the gap of their scores is "
                f"{gap:.2f}."
            )
        if cause is Cause.CLASS:
            found = f", which {self._detection(pair)} finds" if pair >= 0 else ""
            return start + f"it is on {name} (IoU {iou:.2f}){found}: the wrong class."
        return start + f"it is meant for {name}, but badly placed (IoU {iou:.2f})."

    def _object(self, target: int, capital: bool = True) -> str:
        label = self._class(self.errors.scene.objects.labels[target])
        return f"{'Object' if capital else 'object'} {self.number[target]} ({label})"

    def _detection(self, detection: int, capital: bool = False) -> str:
        found = self.errors.scene.found
        name = "Detection" if capital else "detection"
        return f"{name} {detection} ({self._class(found.labels[detection])} {found.scores[detection]:.2f})"

    def _class(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else f"class {label}"

    def _history(self, cause: Cause) -> str:
        if cause is Cause.RARELY:
            return "; in training, one-to-many matching seldom gave it a query"
        if cause is Cause.SWITCHED:
            return "; in training, it kept changing its one-to-one query"
        return ""


def _at(thresholds: Sequence[float]) -> str:
    low, high = min(thresholds), max(thresholds)
    return f"at IoU {low:.2f}" if low == high else f"at IoU {low:.2f} to {high:.2f}"
