"""Every error has one cause: the definitions of ``attribution``, written down again as loops over plain numbers."""

import numpy as np
import pytest
from budget_scenes import CLASSES, plain_iou, random_data

from msdetr.analysis.budget.attribution import CAUSES, attribute
from msdetr.analysis.budget.ledger import Ledger
from msdetr.analysis.budget.scoring import EVERY_AREA, SIZES

THRESHOLDS = np.array([0.5, 0.7, 0.9])


class Loops:
    """One scene at one threshold, in the words of the definitions."""

    def __init__(self, scene, t, max_detections, area):
        self.scene, self.t, self.area = scene, t, area
        objects, found = scene.objects, scene.found
        self.objects, self.detections = range(len(objects)), range(len(found))
        self.iou = [[plain_iou(b, o) for o in objects.boxes] for b in found.boxes]
        self.inside = [
            [self._part_inside(b, o) if c else plain_iou(b, o) for o, c in zip(objects.boxes, objects.crowd)]
            for b in found.boxes
        ]
        self.counts = [not c and area[0] <= a <= area[1] for a, c in zip(objects.areas, objects.crowd)]
        seen = dict.fromkeys(range(CLASSES), 0)
        self.takes, self.taker, self.false, self.kept = {}, {}, set(), set()
        for d in self.detections:
            label = int(found.labels[d])
            seen[label] += 1
            if seen[label] <= max_detections:
                self.kept.add(d)
                self._match(d, label)

    @staticmethod
    def _part_inside(box, crowd):
        w = min(box[0] + box[2], crowd[0] + crowd[2]) - max(box[0], crowd[0])
        h = min(box[1] + box[3], crowd[1] + crowd[3]) - max(box[1], crowd[1])
        return max(w, 0) * max(h, 0) / (box[2] * box[3])

    def _match(self, d, label):
        objects = self.scene.objects
        able = [
            o
            for o in self.objects
            if objects.labels[o] == label and self.inside[d][o] >= self.t and (objects.crowd[o] or o not in self.taker)
        ]
        able = [o for o in able if self.counts[o]] or able
        if able:
            best = max(able, key=lambda o: (self.inside[d][o], o))
            self.takes[d], self.taker[best] = best, d
        elif self.area[0] <= self.scene.found.boxes[d][2] * self.scene.found.boxes[d][3] <= self.area[1]:
            self.false.add(d)

    def best(self, d, same_class):
        """The object without crowds that a detection overlaps most, of its class or of others, and the IoU."""
        label, objects = self.scene.found.labels[d], self.scene.objects
        able = [o for o in self.objects if not objects.crowd[o] and (objects.labels[o] == label) == same_class]
        return max(((self.iou[d][o], -o) for o in able), default=(-1.0, 1))

    def cause_of_detection(self, d):
        (v, own), (w, other) = self.best(d, True), self.best(d, False)
        own, other, on = -own, -other, min(0.5, self.t)
        if v >= self.t:
            return "duplicate", own
        if w >= on and w > v:
            return "class", other
        if v >= on and self.taker.get(own, d) < d:
            return "duplicate", own
        return ("placed", own) if v >= 0.1 else ("background", -1)

    def cause_of_object(self, o):
        scene, label = self.scene, self.scene.objects.labels[o]
        blamed = [d for d in sorted(self.false) if self.cause_of_detection(d)[1] == o]
        if any(self.cause_of_detection(d)[0] == "class" and self.iou[d][o] >= self.t for d in blamed):
            return "class"
        uncounted = [d for d in self.detections if d not in self.kept and scene.found.labels[d] == label]
        if any(self.iou[d][o] >= self.t for d in uncounted):
            return "outranked"
        if scene.layers is not None:
            paired = {int(scene.found.query[d]) for d in self.kept if scene.found.labels[d] == label}
            reach = [
                {q for q, box in enumerate(layer) if plain_iou(box, scene.objects.boxes[o]) >= self.t}
                for layer in scene.layers.boxes
            ]
            if reach[-1] - paired:
                return "outranked"
            if any(reach[:-1]):
                return "lost"
        near = [d for d in blamed if self.iou[d][o] >= min(0.5, self.t)]
        return self.cause_of_detection(near[0])[0] if near else "never"


@pytest.mark.parametrize("area", [EVERY_AREA, SIZES["medium"]])
@pytest.mark.parametrize("plain", [False, True])
def test_causes_are_those_of_the_definitions(area, plain):
    seen = set()
    for seed in range(200):
        scenes = random_data(seed, plain=plain)
        most = (2, 5, 100)[seed % 3]
        errors = [attribute(scene, THRESHOLDS, most, area) for scene in scenes]
        for one, (at, t) in ((one, pair) for one in errors for pair in enumerate(THRESHOLDS)):
            loops = Loops(one.scene if plain else scenes[one.scene.image_id], t, most, area)
            for d in loops.detections:
                code = one.false.cause[at, d]
                assert (code >= 0) == (d in loops.false)  # every false detection has a cause, nothing else has
                if code >= 0:
                    cause, target = loops.cause_of_detection(d)
                    assert (CAUSES[code], one.false.object[at, d]) == (cause, target), (seed, t, d)
                    seen.add(CAUSES[code])
            for o in loops.objects:
                code = one.missed.cause[at, o]
                assert (code >= 0) == (loops.counts[o] and o not in loops.taker)
                if code >= 0:
                    assert CAUSES[code] == loops.cause_of_object(o), (seed, t, o)
                    seen.add(CAUSES[code])
    assert seen == {"never", "class", "placed", "outranked", "duplicate", "background", *([] if plain else ["lost"])}


def test_low_ranked_are_the_true_detections_behind_a_false_one_of_their_class():
    for seed in range(60):
        scenes = random_data(seed)
        ledger = Ledger([attribute(scene, THRESHOLDS) for scene in scenes], THRESHOLDS, CLASSES)
        for at, t in enumerate(THRESHOLDS):
            loops = [Loops(scene, t, 100, EVERY_AREA) for scene in scenes]
            worst = [-1.0] * CLASSES  # of each class the highest score of a false detection, and where it stands
            first = {}
            for i, one in enumerate(loops):
                for d in sorted(one.false):
                    score, label = float(scenes[i].found.scores[d]), int(scenes[i].found.labels[d])
                    if score > worst[label]:
                        worst[label], first[label] = score, (i, d)
            for i, one in enumerate(loops):
                for o, d in one.taker.items():
                    if not one.counts[o]:
                        continue
                    label = int(scenes[i].objects.labels[o])
                    own = (-float(scenes[i].found.scores[d]), i, d)
                    low = label in first and own > (-worst[label], *first[label])
                    assert ledger.low[at, ledger.first_object[i] + o] == low, (seed, t, i, o)
