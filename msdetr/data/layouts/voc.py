"""Pascal VOC's layout: an XML file per image, and lists of images as splits.

Boxes are in pixels, counted from 1 as VOC's development kit does: x = xmin - 1, width = xmax - x. Where any box of the
folder begins at 0, all are taken to count from 0: x = xmin, width = xmax - xmin. Objects marked difficult are not trained
on, and evaluation ignores detections on them, as VOC's does. Classes are numbered by name, from 1.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self

from ... import files
from ...errors import AnnotationError, DataError
from ..images import SUFFIXES
from ..validate import Annotations, Report
from .base import TEXT_BYTES, Collected, Layout, OnBad, header_size, refuse_missing, unknown_split

FIELDS = ("xmin", "ymin", "xmax", "ymax")
NAME, BOX = "no name", "no box of four numbers"
_REMEDIES = {NAME: "give each object a name", BOX: "give each object a bndbox with xmin, ymin, xmax, ymax in pixels"}


class Item(NamedTuple):
    """An image of a split. name: its file seen from the root. label: its XML file, which may be missing."""

    name: str
    label: Path


class Marked(NamedTuple):
    """What an XML file says. image: its file. size: (height, width), None where it does not say. objects: (name, corners,
    difficult)."""

    image: str
    size: tuple[int, int] | None
    objects: list[tuple[str, list[float] | None, bool]]


@dataclass(frozen=True)
class VocLayout(Layout):
    """Annotations/*.xml with JPEGImages/ and ImageSets/Main/SPLIT.txt; or SPLIT/*.xml beside the images."""

    title = "Pascal VOC"
    looks_like = "Annotations/NAME.xml with JPEGImages/NAME.jpg or images/NAME.jpg and perhaps ImageSets/Main/SPLIT.txt, or SPLIT/NAME.xml beside the images"
    root: Path

    @classmethod
    def find(cls, root: Path) -> Self | None:
        if any(root.glob("Annotations/*.xml")) or any(root.glob("*.xml")) or any(root.glob("*/*.xml")):
            layout = cls(root)
            if layout._labels_dir or layout._folders:
                return layout
        return None

    @property
    def file(self) -> Path:  # type: ignore[override]
        return self._labels_dir or self.root

    @cached_property
    def _labels_dir(self) -> Path | None:
        for folder in (self.root / "Annotations", self.root / "annotations"):
            if folder.is_dir() and (folder.name == "Annotations" or _labels_in(folder)):
                return folder
        return None

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """Split -> the folder with its images and XML files together; the whole is called "all"."""
        inner = {
            p.name: p for p in sorted(self.root.iterdir()) if p.is_dir() and _is_label(next(iter(_labels_in(p)), None))
        }
        return inner or ({"all": self.root} if _is_label(next(iter(_labels_in(self.root)), None)) else {})

    @cached_property
    def _image_dir(self) -> Path:
        for name in ("JPEGImages", "images", "Images"):
            if (self.root / name).is_dir():
                return self.root / name
        raise DataError(
            f"{self.root}: has labels in {self.file.name}/, but no JPEGImages/ with the images; put them there"
        )

    @cached_property
    def _lists(self) -> dict[str, list[str]]:
        """Split -> names without suffix, from ImageSets/Main; lists of one class's images are passed over."""
        found = {}
        for file in sorted(self.root.glob("ImageSets/Main/*.txt")):
            lines = files.decode(
                files.read_bytes(file, AnnotationError, TEXT_BYTES), file, AnnotationError
            ).splitlines()
            names = [line.strip() for line in lines if line.strip()]
            if names and not ("_" in file.stem and re.fullmatch(r".*\S\s+-?[01]", names[0])):
                found[file.stem] = names
        return found

    @property
    def splits(self) -> list[str]:
        return list(self._folders) if self._labels_dir is None else list(self._lists) or ["all"]

    def annotation_file(self, split: str) -> Path:
        if split not in self.splits:
            unknown_split(self, split)
        return self._folders[split] if self._labels_dir is None else self._labels_dir

    def images_dir(self, split: str) -> Path:
        return self.root

    def label_files(self, split: str) -> Iterable[Path]:
        return [item.label for item in self._items(split) if item.label.is_file()]

    def _items(self, split: str) -> list[Item]:
        """The images of a split. Raises ImageError that lists those which are missing."""
        labels = self.annotation_file(split)
        image_dir = self._image_dir if self._labels_dir else labels
        known = {
            p.stem: p
            for p in sorted(image_dir.iterdir())
            if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")
        }
        wanted = self._lists.get(split) if self._labels_dir else None
        if wanted is None:
            wanted = sorted({p.stem for p in _labels_in(labels)} | (set() if self._labels_dir else set(known)))
        items, missing = [], []
        for stem in dict.fromkeys(wanted):
            label = labels / f"{stem}.xml"
            image = known.get(stem) or _image_named_by(label, image_dir)
            if image is None:
                inside = label.is_relative_to(self.root)  # a list may have whole paths instead of names
                missing.append(f"{stem} ({label.relative_to(self.root) if inside else label})")
            else:
                items.append(Item(image.relative_to(self.root).as_posix(), label))
        refuse_missing(labels, missing, str(image_dir))
        return items

    @cached_property
    def _marked(self) -> dict[Path, Marked]:
        """All XML files of the folder: the classes, and where boxes count from, are those of all splits."""
        folders = [self._labels_dir] if self._labels_dir else self._folders.values()
        return {path: read_xml(path) for folder in folders for path in _labels_in(folder)}

    @cached_property
    def categories(self) -> dict[int, str]:
        """Id -> name, by name."""
        names = {name for marked in self._marked.values() for name, _, _ in marked.objects if name}
        return dict(enumerate(sorted(names), 1))

    @cached_property
    def counts_from(self) -> int:
        """The number of the first pixel."""
        firsts = (min(box[:2]) for m in self._marked.values() for _, box, _ in m.objects if box)
        return 0 if min(firsts, default=1) < 1 else 1

    def read(self, split: str, on_bad: OnBad = "error") -> tuple[Annotations, Report]:
        found = Collected(self.annotation_file(split), _REMEDIES)
        ids = {name: number for number, name in self.categories.items()}
        if not ids:
            raise AnnotationError(
                f"{found.file}: no object has a name; nothing can be trained or evaluated without classes"
            )
        for item in self._items(split):
            marked = self._marked.get(item.label)
            size = marked.size if marked and marked.size else header_size(self.root / item.name)
            image = found.add_image(item.name, size)
            if marked is None:
                found.notes["image without an XML file, taken to have no objects:"].append(item.name)
                continue
            for i, (name, box, difficult) in enumerate(marked.objects, 1):
                place = f"{item.label.relative_to(self.root).as_posix()} object {i}"
                if not name or box is None:
                    found.problems[BOX if name else NAME].append(place)
                    continue
                left, top = box[0] - self.counts_from, box[1] - self.counts_from
                found.add_object(image, ids[name], (left, top, box[2] - left, box[3] - top), place, difficult)
                if difficult:
                    found.notes["object marked difficult, ignored in training and evaluation:"].append(place)
        return found.checked(self.categories, on_bad)


def read_xml(path: Path) -> Marked:
    """What an XML file of Pascal VOC says. Raises AnnotationError where it is none; entities are never expanded."""
    data = files.read_bytes(path, AnnotationError, TEXT_BYTES)
    if b"<!DOCTYPE" in data.replace(b"\0", b""):
        raise AnnotationError(f"{path}: declares a document type, which may hide entities; remove the DOCTYPE")
    try:
        root = ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(
            f"{path}: not valid XML: {error}; the file may be truncated: fetch or write it again"
        ) from error
    if root.tag != "annotation":
        raise AnnotationError(
            f"{path}: holds <{root.tag[:80]}>, not the <annotation> of Pascal VOC; is it another file?"
        )
    sides = [_number(root.findtext(f"size/{side}")) for side in ("height", "width")]
    size = (int(sides[0]), int(sides[1])) if all(s and s >= 1 and s == int(s) for s in sides) else None
    objects = []
    for found in root.iter("object"):
        corners = [_number(found.findtext(f"bndbox/{name}")) for name in FIELDS]
        difficult = (found.findtext("difficult") or "0").strip() not in ("", "0")
        objects.append(((found.findtext("name") or "").strip(), None if None in corners else corners, difficult))
    return Marked((root.findtext("filename") or "").strip(), size, objects)


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 2**31 else None


def _labels_in(folder: Path) -> list[Path]:
    """The XML files of a folder by name, without hidden ones, which macOS puts beside every file of an archive."""
    return sorted(path for path in folder.glob("*.xml") if not path.name.startswith("."))


def _is_label(path: Path | None) -> bool:
    """Whether an XML file may be Pascal VOC's: other programs write XML, too."""
    if path is None:
        return False
    with open(path, "rb") as file:
        return b"annotation" in file.read(4096).replace(b"\0", b"")


def _image_named_by(label: Path, folder: Path) -> Path | None:
    """The image that an XML file names itself, where it lies in the folder."""
    name = Path(read_xml(label).image.replace("\\", "/")).name if label.is_file() else ""
    return folder / name if name and (folder / name).is_file() else None
