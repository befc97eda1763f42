"""The budget of a data set, from its images one by one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from msdetr.analysis.budget.attribution import CAUSES, SceneErrors, SceneOverlaps, attribute
from msdetr.analysis.budget.causes import NEED_HISTORY, Cause
from msdetr.analysis.budget.failures import failures, image_losses, losses
from msdetr.analysis.budget.history import recorded_causes, told
from msdetr.analysis.budget.ledger import Ledger
from msdetr.analysis.budget.report import Budget, CauseShare, Part
from msdetr.analysis.budget.scene import Scene, best_pairs
from msdetr.analysis.budget.scoring import EVERY_AREA, IOU_THRESHOLDS, SIZES
from msdetr.analysis.budget.shapley import shapley
from msdetr.analysis.stability import MatchHistory
from msdetr.checks import count
from msdetr.errors import InputError


class Accounts:
    """Takes the images of a data set one by one, so that what the queries predicted need not be in memory at once.

    class_names: index = class. max_detections: that count, per image and class, as in COCO's evaluation. history: of the recorded
    training, for "rarely matched" and "switched". Raises InputError for a ``max_detections`` below 1.
    """

    def __init__(
        self, class_names: Sequence[str], max_detections: int = 100, history: MatchHistory | None = None
    ) -> None:
        self.class_names, self.history = tuple(class_names), history
        self.max_detections = count(max_detections, "max_detections")
        self._recorded = {} if history is None else recorded_causes(history)
        self._whole: list[SceneErrors] = []
        self._sizes: dict[str, list[SceneErrors]] = {name: [] for name in SIZES}
        self._layers: list[list[SceneErrors]] = []  # as answers, without the last
        self._seen: dict[int, int] = {}  # image id -> number of layers

    def add(self, scene: Scene) -> None:
        """Finds the errors of an image. Raises InputError for an image id that was there before, for labels that have no
        name, or where some images have layers and others not (F151)."""
        number = 0 if scene.layers is None else len(scene.layers)
        self._check(scene, number)
        if not self._seen:
            self._layers = [[] for _ in range(max(number - 1, 0))]
        self._seen[scene.image_id] = number
        thresholds, overlap = np.array(IOU_THRESHOLDS), SceneOverlaps(scene)
        outranked = _of_objects(scene, self._recorded)
        for area, errors in ((EVERY_AREA, self._whole), *((SIZES[name], self._sizes[name]) for name in SIZES)):
            errors.append(attribute(scene, thresholds, self.max_detections, area, outranked, overlap))
        for i, errors in enumerate(self._layers):
            answer = answer_of(scene, i, self.max_detections)
            errors.append(attribute(answer, thresholds, self.max_detections, outranked=outranked))

    def budget(self) -> Budget:
        """The budget of the images so far."""
        names = self.class_names
        layers = [*self._layers, self._whole] if any(self._seen.values()) else []
        known = _known(len(layers), told(self.history))
        ledger = Ledger(self._whole, IOU_THRESHOLDS, len(names))
        part, classes, lost_in = _parts("all", ledger, names, known)
        lost = losses(ledger)
        return Budget(
            class_names=names,
            num_images=len(self._whole),
            num_detections=len(ledger.labels),
            max_detections=self.max_detections,
            thresholds=tuple(round(t, 2) for t in IOU_THRESHOLDS),
            recorded_images=len(self._recorded.keys() & self._seen.keys()),
            whole=part,
            classes=classes,
            sizes=tuple(_part(name, errors, names, known) for name, errors in self._sizes.items()),
            layers=tuple(_part(str(i), errors, names, known) for i, errors in enumerate(layers, start=1)),
            lost_in=lost_in,
            images=image_losses(ledger, lost),
            failures=failures(ledger, lost, names),
            ledger=ledger,
        )

    def _check(self, scene: Scene, number: int) -> None:
        where, classes = f"image {scene.image_id}", len(self.class_names)
        if scene.image_id in self._seen:
            raise InputError(f"{where}: given twice; every image needs an id of its own")
        for what, labels in (("object", scene.objects.labels), ("detection", scene.found.labels)):
            if len(labels) and labels.max() >= classes:
                raise InputError(
                    f"{where}: {what} {labels.argmax()} is of class {labels.max()}, but there are {classes} class names; class "
                    "indices count from 0"
                )
        before = next(iter(self._seen.values()), number)
        if number != before:
            raise InputError(f"{where}: predictions of {number} layers after images with {before}; give all or none")


def budget(
    scenes: Iterable[Scene],
    class_names: Sequence[str],
    max_detections: int = 100,
    history: MatchHistory | None = None,
) -> Budget:
    """Where every lost point of AP went, for the images of a data set, of any detector; see ``Accounts`` and ``Budget``."""
    accounts = Accounts(class_names, max_detections, history)
    for scene in scenes:
        accounts.add(scene)
    return accounts.budget()


def answer_of(scene: Scene, layer: int, max_detections: int) -> Scene:
    """The scene as if a decoder layer had been the last: its ``max_detections`` best pairs of query and class, or what was
    answered where that is known."""
    layers = scene.layers
    if layers.answers is None:
        found = best_pairs(layers.boxes[layer], layers.scores[layer], max_detections)
    else:
        found = layers.answers[layer]
    cut = replace(layers, boxes=layers.boxes[: layer + 1], scores=layers.scores[: layer + 1])
    return replace(scene, found=found, layers=cut)


def _of_objects(scene: Scene, recorded: Mapping[int, np.ndarray]) -> np.ndarray:
    """[T] what each object is called where it is outranked; records know nothing of crowds."""
    codes = np.full(len(scene.objects), CAUSES.index(Cause.OUTRANKED))
    found = recorded.get(scene.image_id)
    inside = ~scene.objects.crowd
    if found is not None and len(found) == inside.sum():  # else the objects have changed since
        codes[inside] = found
    return codes


def _known(num_layers: int, recorded: Sequence[Cause]) -> dict[Cause, bool]:
    known = dict.fromkeys(CAUSES, True)
    known[Cause.LOST] = num_layers > 1
    return known | {cause: cause in recorded for cause in NEED_HISTORY}


def _part(name: str, errors: list[SceneErrors], class_names: Sequence[str], known: Mapping[Cause, bool]) -> Part:
    ledger = Ledger(errors, IOU_THRESHOLDS, len(class_names))
    return _parts(name, ledger, class_names, known)[0]


def _parts(
    name: str, ledger: Ledger, class_names: Sequence[str], known: Mapping[Cause, bool]
) -> tuple[Part, tuple[Part, ...], dict[int, float]]:
    """The budget of everything, of each class, and what each layer has of "lost on the way"."""
    scored, rows = ledger.scored_classes, range(len(ledger.thresholds))
    ap, gain, share = (np.zeros((ledger.num_classes, *shape)) for shape in ((), (len(CAUSES),), (len(CAUSES),)))
    for label in scored:
        for at in rows:
            causes, values = ledger.ranking(at, label).every_ap()
            ap[label] += values[0] / len(rows)
            gain[label, causes] += (values[1 << np.arange(len(causes))] - values[0]) / len(rows)
            share[label, causes] += shapley(values) / len(rows)
    errors = np.array([ledger.errors(label) for label in range(ledger.num_classes)])
    parts = tuple(
        Part(
            class_names[label],
            len(ledger.objects_of[label]),
            100 * float(ap[label]) if label in scored else None,
            _shares(errors[label], gain[label], share[label], known),
        )
        for label in range(ledger.num_classes)
    )
    mean = [table[scored].mean(axis=0) if scored else table[:0].sum(axis=0) for table in (ap, gain, share)]
    total = Part(
        name,
        int(ledger.counts.sum()),
        100 * float(mean[0]) if scored else None,
        _shares(errors.sum(axis=0), mean[1], mean[2], known),
    )
    return total, parts, _lost_in(ledger, total[Cause.LOST].share)


def _shares(errors: np.ndarray, gain: np.ndarray, share: np.ndarray, known: Mapping[Cause, bool]):
    return tuple(
        CauseShare(cause, int(errors[i]), 100 * float(gain[i]), 100 * float(share[i]), known[cause])
        for i, cause in enumerate(CAUSES)
    )


def _lost_in(ledger: Ledger, share: float) -> dict[int, float]:
    """A share, divided among the layers that lost candidates by how many errors they made."""
    code = CAUSES.index(Cause.LOST)
    layers = [one.missed.layer[one.missed.cause == code] for one in ledger.scenes]
    values, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *layers]), return_counts=True)
    return {int(layer): share * float(n / counts.sum()) for layer, n in zip(values, counts)}
