"""What a layout is, and what the readers of labels share."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self

from ...errors import AnnotationError, ImageError
from ..images import open_image, upright_size
from ..validate import Annotations, Report, check_content

OnBad = Literal["error", "drop"]
TEXT_BYTES = 64 * 2**20  # of one label file
_LISTED = 5  # labels named in a message
_FILES_LISTED = 1000


class Layout(ABC):
    """A folder in one of the layouts, with the splits in it.

    title: what it is called. looks_like: what it is recognized by, for messages. file: what errors about the whole name.
    """

    title: ClassVar[str]
    looks_like: ClassVar[str]
    root: Path
    file: Path

    @classmethod
    @abstractmethod
    def find(cls, root: Path) -> Self | None:
        """The layout, where the folder has it. Raises DataError where it has, with a fault."""

    @property
    @abstractmethod
    def splits(self) -> list[str]:
        """Names of the splits that are there."""

    @abstractmethod
    def annotation_file(self, split: str) -> Path:
        """What errors about a split name: the file, or the folder, with its labels."""

    @abstractmethod
    def images_dir(self, split: str) -> Path:
        """The folder that ``Annotations.file_names`` of a split start from."""

    @abstractmethod
    def read(self, split: str, on_bad: OnBad = "error") -> tuple[Annotations, Report]:
        """The checked labels of a split; see ``read_annotations`` for ``on_bad``. Raises AnnotationError, ImageError."""

    @abstractmethod
    def label_files(self, split: str) -> Iterable[Path]:
        """The files that ``read`` reads labels from."""

    def digest(self, split: str) -> str:
        """SHA-256 over the names and bytes of the files with labels."""
        total = hashlib.sha256()
        for path in sorted(self.label_files(split)):
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(self.root).as_posix()}\0{content}\n".encode(errors="surrogateescape"))
        return total.hexdigest()

    def __str__(self) -> str:
        return f"{self.title} layout ({self.file})"


@dataclass
class Collected:
    """Images, objects and problems of a split as a reader of labels finds them, to be checked as COCO content.

    file: what errors name. remedies: kind of problem -> what to do about it.
    """

    file: Path
    remedies: dict[str, str]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)  # of each annotation
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # what is told, and where
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add_image(self, name: str, size: tuple[int, int]) -> int:
        """Its id, counted from 1. size: (height, width)."""
        number = len(self.images) + 1
        self.images.append({"id": number, "file_name": name, "height": size[0], "width": size[1]})
        return number

    def add_object(
        self, image_id: int, category_id: int, box: Sequence[float], place: str, ignored: bool = False
    ) -> None:
        """box: x, y, width, height in pixels."""
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": [float(value) for value in box],
                "area": float(max(box[2], 0) * max(box[3], 0)),
                "iscrowd": int(ignored),
            }
        )
        self.places.append(place)

    def checked(self, categories: dict[int, str], on_bad: OnBad) -> tuple[Annotations, Report]:
        """The same checks as of a COCO file. Raises AnnotationError for problems, unless they are to be dropped."""
        for kind, found in self.problems.items() if on_bad == "error" else ():
            more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
            raise AnnotationError(
                f"{self.file}: label with {kind}: {'; '.join(found[:_LISTED])}{more}; {self.remedies[kind]}, or leave such "
                "labels out with data.on_bad_annotation=drop"
            )
        if not self.images:
            raise AnnotationError(f"{self.file}: no images; nothing can be trained or evaluated without any")
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": number, "name": name} for number, name in categories.items()],
        }
        table, report = check_content(content, self.file, on_bad, tuple(self.places))
        for kind, found in self.problems.items():
            report.add(f"label with {kind} dropped:", [place.partition(": ")[0] for place in found])
        for kind, found in self.notes.items():
            report.add(kind, found)
        return table, report


def header_size(path: Path) -> tuple[int, int]:
    """(height, width) of an image file, upright. Raises ImageError."""
    with open_image(path) as image:
        return upright_size(image)


def header_sizes(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """``header_size`` of many; all that cannot be read are told at once."""
    sizes, unreadable = [], []
    for path in paths:
        try:
            sizes.append(header_size(path))
        except ImageError as error:
            unreadable.append(str(error))
    if unreadable:
        raise ImageError(_all_of(f"{len(unreadable)} images cannot be read; mend or remove them", unreadable))
    return sizes


def refuse_missing(file: Path, names: Sequence[str], where: str) -> None:
    """Raises ImageError that lists labels, or entries of a list, whose images are not there."""
    if names:
        problem = f"{file}: the images of {len(names)} labels are not in {where}; fetch them, or remove the labels"
        raise ImageError(_all_of(problem, names))


def unknown_split(layout: Layout, split: str) -> NoReturn:
    raise AnnotationError(f"{layout.file}: has no split {split!r}; it has {', '.join(layout.splits) or 'none'}")


def _all_of(problem: str, names: Sequence[str]) -> str:
    more = f"\n  … and {len(names) - _FILES_LISTED} more" if len(names) > _FILES_LISTED else ""
    return f"{problem}:\n  " + "\n  ".join(names[:_FILES_LISTED]) + more
