"""What reading annotations gives: ``Annotations``, plain arrays sorted by image, and a ``Report`` of what was put right or left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

LISTED = 5  # examples named in a message


class DataWarning(UserWarning):
    """Something in the data was put right or left out; the message counts it and names examples."""


@dataclass(frozen=True)
class Note:
    """One kind of thing that was put right or left out, with the ids it happened to."""

    kind: str
    ids: tuple

    @property
    def count(self) -> int:
        return len(self.ids)

    def __str__(self) -> str:
        return f"{self.count} × {self.kind} {listing(self.ids)}"


@dataclass
class Report:
    """What was put right or left out while reading ``file``. False when there was nothing."""

    file: Path
    notes: list[Note] = field(default_factory=list)

    def add(self, kind: str, ids: Sequence) -> None:
        if len(ids):
            self.notes.append(Note(kind, tuple(ids)))

    def __bool__(self) -> bool:
        return bool(self.notes)

    def __str__(self) -> str:
        return f"{self.file}: " + ("; ".join(map(str, self.notes)) or "nothing to report")


@dataclass(frozen=True)
class Annotations:
    """A checked annotation file as arrays: N images by ascending id, C categories by ascending id, A annotations by image.

    image_ids [N] int64, file_names N strings, sizes [N, 2] int64 (height, width).
    category_ids [C] int64, category_names C strings.
    ids [A] int64, image [A] and category [A] int64 indices,
    boxes [A, 4] float64 (x, y, width, height) in pixels within the image, areas [A] float64, crowd [A] bool.
    places: where the annotation of id i was read, places[i - 1]; empty where its id says enough.
    """

    file: Path
    image_ids: np.ndarray
    file_names: list[str]
    sizes: np.ndarray
    category_ids: np.ndarray
    category_names: list[str]
    ids: np.ndarray
    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    places: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    def first(self, count: int) -> Annotations:
        """The first ``count`` images with their annotations; all categories."""
        return self.of_images(np.arange(len(self)) < count)

    def of_images(self, wanted: np.ndarray) -> Annotations:
        """Some images, wanted [N] bool, with their annotations; all categories."""
        rows = wanted[self.image]
        kept = {name: getattr(self, name)[rows] for name in ("ids", "category", "boxes", "areas", "crowd")}
        return replace(
            self,
            image_ids=self.image_ids[wanted],
            file_names=[name for name, kept in zip(self.file_names, wanted.tolist()) if kept],
            sizes=self.sizes[wanted],
            image=(np.cumsum(wanted) - 1)[self.image[rows]],
            **kept,
        )

    def place(self, row: int) -> str:
        """Where an annotation is to be found, in words."""
        annotation_id = int(self.ids[row])
        if self.places:
            return self.places[annotation_id - 1]
        return f"image {int(self.image_ids[self.image[row]])}, annotation {annotation_id}"

    @property
    def ids_fit_pycocotools(self) -> np.ndarray:
        """[A] bool. pycocotools keeps annotation ids in floats, and takes 0 for "no match"."""
        return (self.ids >= 1) & (self.ids <= 2**53)

    def to_coco(self) -> dict[str, Any]:
        """The content of a COCO file for box evaluation (no segmentations).

        Annotations count from 1 where the ids of the file cannot serve pycocotools.
        """
        rows = zip(
            (self.ids if self.ids_fit_pycocotools.all() else np.arange(1, len(self.ids) + 1)).tolist(),
            self.image_ids[self.image].tolist(),
            self.category_ids[self.category].tolist(),
            self.boxes.tolist(),
            self.areas.tolist(),
            self.crowd.astype(int).tolist(),
        )
        names = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        images = zip(self.image_ids.tolist(), self.file_names, self.sizes.tolist())
        categories = zip(self.category_ids.tolist(), self.category_names)
        return {
            "info": {"description": f"checked by msdetr from {self.file.name}"},
            "images": [{"id": i, "file_name": name, "height": h, "width": w} for i, name, (h, w) in images],
            "annotations": [dict(zip(names, row)) for row in rows],
            "categories": [{"id": i, "name": name} for i, name in categories],
        }


def show(value: Any, width: int = 80) -> str:
    """A short repr of any JSON value."""
    if isinstance(value, int) and abs(value) >= 10**width:
        return f"a number of {value.bit_length()} bits"
    text = repr(value[:8] if isinstance(value, (list, str)) and len(value) > 1000 else value)
    return text if len(text) <= width else text[: width - 1] + "…"


def listing(values: Sequence) -> str:
    return ", ".join(v if isinstance(v, str) else show(v) for v in values[:LISTED]) + (
        ", …" if len(values) > LISTED else ""
    )
