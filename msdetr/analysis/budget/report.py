"""What a budget says: how much AP is lost, to which cause, where, and by which images and objects.

AP and everything that is measured in it are in points, 0 to 100. ``to_json`` gives plain values for files and pages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, overload

from msdetr.analysis.budget.causes import Cause, Kind
from msdetr.errors import InputLookupError

if TYPE_CHECKING:
    from msdetr.analysis.budget.ledger import Ledger

FORMAT = 1  # of what to_json gives; raised with every change that a reader of it would notice


@dataclass(frozen=True)
class CauseShare:
    """What a cause takes.

    errors: how many errors are put down to it, over all IoU thresholds. gain: dAP, the AP that would be gained were it
    alone mended. share: its Shapley value, which with those of the other causes adds up to 100 - AP. known: whether it could
    be told from what was given (layers, a recorded training).
    """

    cause: Cause
    errors: int
    gain: float
    share: float
    known: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the words that explain the cause."""
        words = {"id": self.cause.value, "name": self.cause.title, "description": self.cause.description}
        numbers = {"errors": self.errors, "d_ap": self.gain, "share": self.share, "available": self.known}
        return words | {"mended": self.cause.mended} | numbers


@dataclass(frozen=True)
class Part:
    """The budget of a part of the data: everything, a class, a size, or the answer that a decoder layer would have given.

    ap: None where it is undefined (no objects); all shares are 0 then. objects: those that count.
    """

    name: str
    objects: int
    ap: float | None
    causes: tuple[CauseShare, ...]

    def __getitem__(self, cause: Cause | str) -> CauseShare:
        for one in self.causes:
            if one.cause == cause:
                return one
        raise InputLookupError(f"cause: {cause!r} is none of {', '.join(Cause)}")

    @property
    def lost(self) -> float:
        """100 - AP; 0 where AP is undefined."""
        return 0.0 if self.ap is None else 100 - self.ap

    def to_json(self) -> dict[str, Any]:
        """Plain values; causes by id."""
        causes = {one.cause.value: {"errors": one.errors, "d_ap": one.gain, "share": one.share} for one in self.causes}
        return {"name": self.name, "objects": self.objects, "ap": self.ap, "causes": causes}


@dataclass(frozen=True)
class Failure:
    """An error, at those IoU thresholds at which it has this cause.

    image_id: of the data set. kind, cause: what it is and why. lost_ap: what AP would gain if it alone were mended.
    object: its place among the image's objects without crowds, from 0; None for background. detection: its place among
    the image's detections, best first; None where nothing was detected. query: that made it; None where it is not known.
    label: class index of the object, or of a false detection. size: small, medium or large by COCO's ranges of area, of the object, or of
    the box of a detection without one. box: (left, top, right, bottom) in pixels. score, iou: of the
    detection, with the object; None where there is none. thresholds: IoU thresholds. layer: the decoder layer, from 1,
    that moved a candidate away. pair: of a duplicate or a wrong class, the detection that finds the object. gap: by how much the
    score of the pair is higher. sentence: all of it in words.
    """

    image_id: int
    kind: Kind
    cause: Cause
    lost_ap: float
    object: int | None
    detection: int | None
    query: int | None
    label: int
    size: str
    box: tuple[float, float, float, float]
    score: float | None
    iou: float | None
    thresholds: tuple[float, ...]
    sentence: str
    layer: int | None = None
    pair: int | None = None
    gap: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "kind": self.kind.value, "cause": self.cause.value, "box": list(self.box),
                "thresholds": list(self.thresholds)}  # fmt: skip


class Failures(Sequence[Failure]):
    """Failures, most lost AP first. A large data set has millions, so each is put together when it is asked for.

    entries: what can be looked for, with the fields image_id, kind, cause, label and size of a ``Failure``. told: makes the
    failure of an entry.
    """

    def __init__(self, entries: Sequence[Any], told: Callable[[Any], Failure] = lambda entry: entry) -> None:
        self._entries, self._told = entries, told

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Failure: ...

    @overload
    def __getitem__(self, index: slice) -> Failures: ...

    def __getitem__(self, index):
        entries = self._entries[index]
        return Failures(entries, self._told) if isinstance(index, slice) else self._told(entries)

    def __repr__(self) -> str:
        return f"Failures({len(self)} of them)"

    def where(self, wanted: Callable[[Any], bool]) -> Failures:
        """Those of the entries that are wanted."""
        return Failures([entry for entry in self._entries if wanted(entry)], self._told)


@dataclass(frozen=True)
class ImageLoss:
    """An image: what AP would gain if all of its errors were mended, how many objects it has, how many are found at
    IoU 0.5, and how many false detections at IoU 0.5 score at least as high as the weakest of those."""

    image_id: int
    name: str
    lost_ap: float
    objects: int
    found: int
    false: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Budget:
    """Where every lost point of AP went.

    recorded_images: whose training was recorded; only their objects can be rarely matched or switched.
    whole: over everything. classes, sizes, layers: the same for each class, COCO's small, medium and large objects, and
    for what each decoder layer would have answered (empty where layers are not known). lost_in: the share of "lost on
    the way" by the decoder layer, from 1, that moved the candidate away, in proportion to their errors. images, failures: by
    lost AP, most first. ledger: all errors as arrays, and AP with any causes mended.
    """

    class_names: tuple[str, ...]
    num_images: int
    num_detections: int
    max_detections: int
    thresholds: tuple[float, ...]
    recorded_images: int
    whole: Part
    classes: tuple[Part, ...]
    sizes: tuple[Part, ...]
    layers: tuple[Part, ...]
    lost_in: dict[int, float]
    images: tuple[ImageLoss, ...]
    failures: Failures = field(repr=False)
    ledger: Ledger | None = field(default=None, repr=False, compare=False)

    @property
    def ap(self) -> float | None:
        """AP in points."""
        return self.whole.ap

    def failures_of(
        self,
        image_id: int | None = None,
        cause: Cause | str | None = None,
        label: int | None = None,
        kind: Kind | str | None = None,
        size: str | None = None,
    ) -> Failures:
        """The failures of an image, of a cause, a class, a kind or a size, by lost AP."""
        given = {"image_id": image_id, "cause": cause, "label": label, "kind": kind, "size": size}
        wanted = {name: value for name, value in given.items() if value is not None}
        return self.failures.where(lambda one: all(getattr(one, name) == value for name, value in wanted.items()))

    def to_json(self, failures: int | None = None, image_ids: Sequence[int] | None = None) -> dict[str, Any]:
        """Plain values, ready for ``json.dumps``. failures: how many at most. image_ids: failures of these images only."""
        images = None if image_ids is None else set(image_ids)
        shown = self.failures.where(lambda one: images is None or one.image_id in images)[:failures]
        return {
            "format": FORMAT,
            "classes": list(self.class_names),
            "num_images": self.num_images,
            "num_objects": self.whole.objects,
            "num_detections": self.num_detections,
            "max_detections": self.max_detections,
            "recorded_images": self.recorded_images,
            "thresholds": list(self.thresholds),
            "ap": self.ap,
            "causes": [one.to_json() for one in self.whole.causes],
            "by_class": [part.to_json() for part in self.classes],
            "by_size": [part.to_json() for part in self.sizes],
            "by_layer": [part.to_json() for part in self.layers],
            "lost_in_layer": {str(layer): share for layer, share in self.lost_in.items()},
            "images": [one.to_json() for one in self.images],
            "failures": [one.to_json() for one in shown],
        }
