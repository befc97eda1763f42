"""YOLO's layout, as Ultralytics documents it and Roboflow exports it: data.yaml, and a text file of boxes per image.

A line is ``class x y width height``, the center and size as fractions of the image's; ``class x1 y1 x2 y2 x3 y3 ...`` is a
polygon, of which the box is taken; where data.yaml has ``kpt_shape``, keypoints follow the box and are passed over. The labels of ``…/images/…/a.jpg`` are in ``…/labels/…/a.txt``, else beside the image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Self

from ... import files
from ...errors import AnnotationError, DataError
from ..images import SUFFIXES
from ..validate import Annotations, Report
from .base import TEXT_BYTES, Collected, Layout, OnBad, header_sizes, refuse_missing, unknown_split

USUAL_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
OVER = 0.01  # how far beyond the image a fraction may lie: rounding, not pixels
_NOT_LABELS = ("classes", "notes", "readme", "train", "val", "valid", "test")
_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}

PIXELS = "numbers that are pixels where fractions belong"
CLASS = "a class that data.yaml does not name"
COUNT = "another count of numbers than a box or a polygon has"
TEXT = "text or NaN where a number belongs"
_REMEDIES = {
    PIXELS: "x, y, width and height are fractions of the image's size: divide by its width and height",
    CLASS: "name the class in data.yaml, or correct the number; classes count from 0",
    COUNT: "a line is 'class x y width height', or 'class' and three or more points of a polygon; with keypoints, as many as "
    "kpt_shape in data.yaml says",
    TEXT: "write class and numbers, separated by spaces",
}


@dataclass(frozen=True)
class YoloLayout(Layout):
    """names: class number -> name. entries: split -> where its images are, as data.yaml says. keypoints: how many numbers of
    them follow a box; 0 where labels are boxes and polygons."""

    title = "YOLO"
    looks_like = "data.yaml with train, val and names, and a labels/…/NAME.txt for each images/…/NAME.jpg"
    root: Path
    file: Path
    names: dict[int, str]
    entries: dict[str, list[str]]
    base: str
    keypoints: int = 0

    @classmethod
    def find(cls, root: Path) -> Self | None:
        file = next((root / name for name in USUAL_FILES if (root / name).is_file()), None)
        if file is not None:
            return cls._of(root, file, files.read_yaml_text(file, AnnotationError))
        for other in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
            try:
                values = files.read_yaml_text(other, DataError)
            except DataError:
                continue
            if "train" in values and ("names" in values or "nc" in values):
                return cls._of(root, other, values)
        labels = next(iter(root.glob("labels/**/*.txt")), None) or next(iter(root.glob("*/labels/*.txt")), None)
        if labels is not None:
            raise DataError(
                f"{root}: there are YOLO labels ({labels.relative_to(root)}), but no data.yaml to say what the classes are "
                f"called; write {root / 'data.yaml'} with the lines 'train: images/train', 'val: images/val' (where the images "
                "are) and 'names: [first class, second class]'"
            )
        return None

    @classmethod
    def _of(cls, root: Path, file: Path, values: dict[str, Any]) -> Self:
        entries = {}
        for split, keys in _KEYS.items():
            value = next((values[key] for key in keys if values.get(key)), None)
            given = [value] if isinstance(value, str) else value or []
            if not isinstance(given, list) or not all(isinstance(entry, str) for entry in given):
                raise AnnotationError(
                    f"{file}: {split} must be a folder, a .txt file or a list of them; found {value!r}"
                )
            if given:
                entries[split] = given
        if "train" not in entries:
            raise AnnotationError(
                f"{file}: 'train' is missing; say where the training images are, e.g. train: images/train"
            )
        base = values.get("path", "")
        names, keypoints = _names(values, file), _keypoints(values, file)
        return cls(root, file, names, entries, base if isinstance(base, str) else "", keypoints)

    @cached_property
    def splits(self) -> list[str]:  # type: ignore[override]
        """All that data.yaml names; a test split only where it is there (exports name it in any case)."""
        return [s for s in self.entries if s != "test" or all(self._place(entry) for entry in self.entries[s])]

    def annotation_file(self, split: str) -> Path:
        return self.file if split in self.entries else unknown_split(self, split)

    def images_dir(self, split: str) -> Path:
        return self.root

    def label_files(self, split: str) -> Iterable[Path]:
        return [self.file, *filter(Path.is_file, map(self._label_of, self._images(split)))]

    def _place(self, entry: str) -> Path | None:
        """What an entry of data.yaml stands for: seen from its ``path``, or from here, never outside of the folder. Exports
        write ``../train/images`` for what lies beside data.yaml, and ``path`` is often that of another machine."""
        inside = PurePosixPath(*[part for part in PurePosixPath(entry).parts if part not in ("..", ".", "/")])
        return self._within(self.root / self.base / entry, self.root / entry, self.root / inside)

    def _within(self, *candidates: Path) -> Path | None:
        """The first of some places that is there and lies in the folder by its name (links are looked at later)."""
        root = os.path.abspath(self.root)
        for candidate in map(os.path.abspath, candidates):
            if os.path.exists(candidate) and os.path.commonpath([root, candidate]) == root:
                return self.root / os.path.relpath(candidate, root)
        return None

    def _images(self, split: str) -> list[Path]:
        """The image files of a split, by name. Raises AnnotationError where data.yaml names a place that is not there."""
        found: set[Path] = set()
        for entry in self.entries.get(split) or unknown_split(self, split):
            place = self._place(entry)
            if place is None:
                raise AnnotationError(
                    f"{self.file}: {split} is {entry!r}, but there is no such folder or file in {self.root}; correct the entry "
                    "(seen from data.yaml), or fetch the images"
                )
            if place.is_dir():
                inside = list(place.rglob("*"))
                if linked := next((path for path in inside if path.is_symlink() and path.is_dir()), None):
                    raise AnnotationError(
                        f"{self.file}: {split}: {linked} is a linked folder, into which nobody looks; put the folder itself in "
                        "its place (copied, or mounted), or take the link away"
                    )
                found |= {p for p in inside if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")}
            else:
                found |= self._listed(place)
        return sorted(found)

    def _listed(self, file: Path) -> set[Path]:
        """The images that a .txt file lists, one a line, seen from it or from the folder."""
        found, missing = set(), []
        text = files.decode(files.read_bytes(file, AnnotationError, TEXT_BYTES), file, AnnotationError)
        for line in filter(None, map(str.strip, text.splitlines())):
            image = self._within(file.parent / line, self.root / line) or self._place(line)
            if image is not None and image.is_file():
                found.add(image)
            else:
                missing.append(line)
        refuse_missing(file, missing, str(self.root))
        return found

    def _label_of(self, image: Path) -> Path:
        inner = list(image.relative_to(self.root).with_suffix(".txt").parts)
        folders = inner[:-1]
        if "images" in folders:
            inner[len(folders) - 1 - folders[::-1].index("images")] = "labels"
        return self.root.joinpath(*inner)

    def read(self, split: str, on_bad: OnBad = "error") -> tuple[Annotations, Report]:
        images = self._images(split)
        self._refuse_labels_without_image(images)
        found = Collected(self.file, _REMEDIES)
        labeled = 0
        for path, size in zip(images, header_sizes(images)):
            name, label = path.relative_to(self.root).as_posix(), self._label_of(path)
            number = found.add_image(name, size)
            if not label.is_file():
                found.notes["image without a label file, taken to have no objects:"].append(name)
                continue
            labeled += 1
            text = files.decode(files.read_bytes(label, AnnotationError, TEXT_BYTES), label, AnnotationError)
            for line, row in enumerate(text.splitlines(), 1):
                if row.strip():
                    self._add(found, row, number, size, f"{label.relative_to(self.root).as_posix()}:{line}")
        if images and not labeled:
            raise AnnotationError(
                f"{self.file}: no image of {split} has a label file; the labels of {found.images[0]['file_name']} must be "
                f"{self._label_of(images[0])}"
            )
        return found.checked(self.names, on_bad)

    def _add(self, found: Collected, row: str, image: int, size: tuple[int, int], place: str) -> None:
        """One line of a label file, as an object or a problem."""
        try:
            category, *numbers = map(float, row.split())
        except ValueError:
            return found.problems[TEXT].append(f"{place}: {row[:80]!r}")
        if self.keypoints and len(numbers) == 4 + self.keypoints:
            numbers = numbers[:4]
        problem = None
        if not all(map(math.isfinite, (category, *numbers))):
            problem = TEXT
        elif category not in self.names:
            problem = CLASS
        elif len(numbers) != 4 and (self.keypoints or len(numbers) < 6 or len(numbers) % 2):
            problem = COUNT
        elif min(numbers) < -OVER or max(numbers) > 1 + OVER:
            problem = PIXELS
        if problem:
            return found.problems[problem].append(f"{place}: {row.strip()[:80]!r}")
        height, width = size
        if len(numbers) == 4:
            x, y, w, h = numbers
            left, top = x - w / 2, y - h / 2
        else:
            left, top = min(numbers[::2]), min(numbers[1::2])
            w, h = max(numbers[::2]) - left, max(numbers[1::2]) - top
            found.notes["polygon, of which the box was taken:"].append(place)
        return found.add_object(image, int(category), (left * width, top * height, w * width, h * height), place)

    def _refuse_labels_without_image(self, images: list[Path]) -> None:
        orphans = []
        for folder in sorted({(image.parent, self._label_of(image).parent) for image in images}):
            stems = {path.stem for path in folder[0].iterdir() if path.suffix.lower() in SUFFIXES}
            for label in sorted(folder[1].glob("*.txt")):
                beside = folder[0] == folder[1] and label.stem.lower().split(".")[0] in _NOT_LABELS
                if label.stem not in stems and label.stem != "classes" and not beside:
                    orphans.append(str(label.relative_to(self.root)))
        refuse_missing(self.file, orphans, "the folder of their images")


def _keypoints(values: dict[str, Any], file: Path) -> int:
    """Numbers of keypoints on a line, from ``kpt_shape``: how many keypoints, and numbers of each. YAML is read as text."""
    given = values.get("kpt_shape")
    if given is None:
        return 0
    if not isinstance(given, list) or len(given) != 2 or not all(str(value).isdecimal() for value in given):
        raise AnnotationError(f"{file}: kpt_shape is {given!r}; expected two numbers, e.g. kpt_shape: [17, 3]")
    return int(given[0]) * int(given[1])


def _names(values: dict[str, Any], file: Path) -> dict[int, str]:
    """Class number -> name, from a list, or a mapping with numbers as keys; numbers alone where there is only ``nc``."""
    given, number = values.get("names"), values.get("nc")
    count = int(number) if isinstance(number, str) and number.isdecimal() else None
    if given is None and count:
        given = [f"class {i}" for i in range(min(count, 100_000))]
    if isinstance(given, list):
        given = {str(i): name for i, name in enumerate(given)}
        if count is not None and count != len(given):
            raise AnnotationError(f"{file}: nc is {count}, but there are {len(given)} names; correct one of them")
    if not isinstance(given, dict) or not given:
        raise AnnotationError(f"{file}: 'names' is {given!r}; list the names of the classes, e.g. names: [cat, dog]")
    names = {}
    for key, name in given.items():
        if not (isinstance(key, str) and key.isdecimal() and isinstance(name, str) and name):
            raise AnnotationError(
                f"{file}: names has {key!r}: {name!r}; expected a class number and a name that is text"
            )
        try:  # JSON, which many programs write into YAML, has two escapes for one character beyond 16 bits
            names[int(key)] = name.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            raise AnnotationError(
                f"{file}: the name of class {key}, {name!r}, is no text; write it as plain UTF-8"
            ) from None
    if count is not None and max(names) >= count:
        raise AnnotationError(f"{file}: nc is {count}, but a name is given for class {max(names)}; correct one of them")
    return dict(sorted(names.items()))
