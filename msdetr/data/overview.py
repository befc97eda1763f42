"""Looking over a data set before training on it: what ``msdetr check-data`` says."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import AnnotationError, DataError, ImageError, MissingDataError
from .annotations import Annotations, Report
from .images import check_files, open_image, read_image, upright_size
from .layouts import Layout, find_layout, unknown_layout
from .parts import AUTO, Role, choose, usual_split
from .settings import settings_line
from .validate import read_annotations

SMALL, MEDIUM = 32**2, 96**2  # pixels: COCO's limits of small and medium objects
THIN = 2.0  # pixels; a box with a shorter side is suspicious
ELONGATED = 25.0  # ratio of the sides
_LISTED = 12  # lines of a section
_BARS = 100  # lines of a histogram


@dataclass(frozen=True)
class Suspicion:
    """A suspicious annotation. annotation_id is None where the whole image is meant. place: where it is, in words."""

    image_id: int
    annotation_id: int | None
    reason: str
    place: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass
class SplitReport:
    """What one annotation file and its images hold. ``errors`` would stop a run, ``notes`` would not.

    class_counts: objects per class name, crowds not counted. size_counts: objects that are small, medium and large by
    COCO's limits. objects_per_image: quantiles 0, 1/2 and 1. sides: quantiles 0, 1/4, 1/2, 3/4, 1 of the square root of the
    box area in pixels.
    """

    file: Path
    images_dir: Path
    errors: list[str] = field(default_factory=list)
    notes: Report | None = None
    images: int = 0
    empty_images: int = 0
    objects: int = 0
    crowds: int = 0
    class_counts: dict[str, int] = field(default_factory=dict)
    size_counts: dict[str, int] = field(default_factory=dict)
    objects_per_image: tuple[float, ...] = ()
    sides: tuple[float, ...] = ()
    image_sizes: tuple[int, ...] = ()
    suspicions: list[Suspicion] = field(default_factory=list)
    split: str = ""
    table: Annotations | None = field(default=None, repr=False)

    def __str__(self) -> str:
        title = f"{self.split}: " if self.split else ""
        lines = [f"{title}{self.file}  (images in {self.images_dir})"]
        if self.images:
            low_h, low_w, high_h, high_w = self.image_sizes
            lines.append(
                f"  images   {self.images}, {self.empty_images} of them without objects; "
                f"{low_w}–{high_w} × {low_h}–{high_h} pixels"
            )
            lines.append(f"  objects  {self.objects}, and {self.crowds} crowds; {len(self.class_counts)} classes")
        if self.objects:
            low, middle, high = self.objects_per_image
            lines += [
                f"  objects per image   {low:g} to {high:g}, median {middle:g}",
                "  box side, pixels    " + " · ".join(f"{side:.0f}" for side in self.sides) + "  (quartiles)",
                "  by COCO size        " + ", ".join(f"{name} {count}" for name, count in self.size_counts.items()),
                *_bars(self.class_counts),
            ]
        lines += _section("errors: these stop a run", self.errors)
        lines += _section("put right or left out", [str(note) for note in self.notes.notes] if self.notes else [])
        lines += _section("suspicious", [str(suspicion) for suspicion in self.suspicions])
        return "\n".join(lines)


@dataclass
class DataReport:
    """The reports of all splits; ``str`` renders them for a terminal.

    settings: what a recipe for photographs must be told to be trained on a folder, dotted path -> value. layout: of a
    folder. roles: what would be trained and validated on.
    """

    path: Path
    splits: list[SplitReport]
    settings: dict[str, Any] = field(default_factory=dict)
    layout: str = ""
    roles: str = ""

    @property
    def ok(self) -> bool:
        """Whether a run would accept the data as it is."""
        return not any(split.errors for split in self.splits)

    def __str__(self) -> str:
        verdict = "ready to train on" if self.ok else "NOT usable as it is: see the errors above"
        lines = [f"{self.layout or self.path}: {verdict}", *([self.roles] if self.roles else [])]
        if self.layout and self.ok:
            needed = f" {settings_line(self.settings)}" if self.settings else ""
            lines.append(
                f"to train on it, e.g.: msdetr train photos/ms-detr-c --data {shlex.quote(str(self.path))}{needed}"
            )
        return "\n\n".join([*map(str, self.splits), "\n".join(lines)])


def check(path: str | Path, images_dir: str | Path | None = None, *, decode: bool = False) -> DataReport:
    """Checks every split of a folder in a layout that is known, or one COCO annotation file with its ``images_dir``. Opens
    the header of every image, and with ``decode`` decodes it.

    Bad data never raises: the report lists it. Raises MissingDataError (a FileNotFoundError) where there is nothing to check.
    """
    path = Path(path)
    if path.is_file():
        default = path.parent.parent / path.stem.removeprefix("instances_")
        return DataReport(
            path, [_check_split(path, Path(images_dir or default), partial(read_annotations, path), decode)]
        )
    if not path.is_dir():
        raise MissingDataError(f"{path}: no such file or folder")
    try:
        layout = find_layout(path)
    except DataError as error:
        return DataReport(path, [SplitReport(path, path, [str(error)])])
    if layout is None:
        raise MissingDataError(f"{path} {unknown_layout(path)}")
    splits = [
        _check_split(
            layout.annotation_file(split),
            Path(images_dir or layout.images_dir(split)),
            partial(layout.read, split),
            decode,
            split,
        )
        for split in layout.splits
    ]
    train = usual_split(layout.splits, "train")
    settings = {} if train else {"data.train_split": layout.splits[0]}
    return DataReport(path, splits, settings, str(layout), _roles(layout))


def _roles(layout: Layout) -> str:
    """What would be trained and validated on."""
    names: dict[Role, str] = {"train": AUTO, "val": AUTO}
    train, val = choose(layout, names, "train"), choose(layout, names, "val")
    return f"trained on: {train}; validated on: {val}" if train and val else ""


def _check_split(
    file: Path, images_dir: Path, read: Callable[..., tuple[Annotations, Report]], decode: bool, split: str = ""
) -> SplitReport:
    report = SplitReport(file, images_dir, split=split)
    try:
        table, report.notes = read()
    except (DataError, OSError) as error:
        report.errors.append(str(error))
        try:
            table, report.notes = read(on_bad="drop")
        except (DataError, OSError):
            return report
    report.table = table
    _describe(table, report)
    report.suspicions += _suspicions(table)
    try:
        check_files(images_dir, table.file_names, table.image_ids.tolist(), file)
    except (AnnotationError, ImageError) as error:
        report.errors.append(str(error))
    report.errors += _check_images(table, images_dir, decode)
    return report


def _describe(table: Annotations, report: SplitReport) -> None:
    objects = ~table.crowd
    counts = np.bincount(table.category[objects], minlength=len(table.category_ids)).tolist()
    per_image = np.bincount(table.image[objects], minlength=len(table))
    areas = table.areas[objects]
    report.images, report.objects, report.crowds = len(table), int(objects.sum()), int(table.crowd.sum())
    report.empty_images = int((per_image == 0).sum())
    report.image_sizes = (*table.sizes.min(axis=0).tolist(), *table.sizes.max(axis=0).tolist())
    names = table.category_names
    unique = len(set(names)) == len(names)
    report.class_counts = {
        name if unique else f"{name} ({i})": n for name, i, n in zip(names, table.category_ids.tolist(), counts)
    }
    report.size_counts = {
        "small": int((areas < SMALL).sum()),
        "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
        "large": int((areas >= MEDIUM).sum()),
    }
    if report.objects:
        sides = np.sqrt(table.boxes[objects, 2] * table.boxes[objects, 3])
        report.objects_per_image = tuple(np.quantile(per_image, (0, 0.5, 1)).tolist())
        report.sides = tuple(np.quantile(sides, (0, 0.25, 0.5, 0.75, 1)).tolist())


def _suspicions(table: Annotations) -> list[Suspicion]:
    """The worst first within each reason."""
    found = []

    def add(mask: np.ndarray, badness: np.ndarray, describe) -> None:
        rows = np.nonzero(mask & ~table.crowd)[0]
        for row in rows[np.argsort(-badness[rows], kind="stable")].tolist():
            image_id, annotation_id = int(table.image_ids[table.image[row]]), int(table.ids[row])
            found.append(Suspicion(image_id, annotation_id, describe(row), table.place(row)))

    width, height = table.boxes[:, 2], table.boxes[:, 3]
    shorter, longer = np.minimum(width, height), np.maximum(width, height)
    add(shorter < THIN, -shorter, lambda i: f"box of {width[i]:g} × {height[i]:g} pixels, hardly visible")
    ratio = longer / shorter
    elongated = (ratio > ELONGATED) & (shorter >= THIN)
    add(elongated, ratio, lambda i: f"box of {width[i]:g} × {height[i]:g} pixels, very elongated")
    excess = table.areas / (width * height)
    add(excess > 1.05, excess, lambda i: f"area {table.areas[i]:g} exceeds that of its box, {width[i] * height[i]:g}")
    add(table.areas <= 0, shorter, lambda i: "area 0: counts as small in every evaluation")
    keys = np.concatenate([table.image[:, None], table.category[:, None], np.rint(table.boxes)], axis=1).astype(
        np.int64
    )
    _, first, inverse = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    original = first[inverse.ravel()]
    copies = original != np.arange(len(keys))
    add(copies, shorter, lambda i: f"same class and box as {table.place(original[i])}")
    names: dict[str, int] = {}
    for image_id, name in zip(table.image_ids.tolist(), table.file_names):
        if name in names:
            found.append(Suspicion(image_id, None, f"same file as image {names[name]}: {name}", f"image {image_id}"))
        names.setdefault(name, image_id)
    return found


def _check_images(table: Annotations, images_dir: Path, decode: bool) -> list[str]:
    errors = []
    for image_id, name, size in zip(table.image_ids.tolist(), table.file_names, table.sizes.tolist()):
        path = images_dir / name
        if not path.exists():
            continue  # listed already
        try:
            if decode:
                found = tuple(read_image(path)[0].shape[1:])
            else:
                with open_image(path) as image:
                    found = upright_size(image)
        except ImageError as error:
            errors.append(f"image {image_id}: {error}")
            continue
        if found != tuple(size):
            errors.append(
                f"image {image_id}: {path} is {found[1]} × {found[0]} pixels upright, annotated as {size[1]} × {size[0]}"
            )
    return errors


def _bars(counts: dict[str, int], width: int = 30) -> list[str]:
    """The class histogram, most frequent first."""
    most = max(max(counts.values()), 1)
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    column = min(max(map(len, counts)), 24)
    bars = [f"    {name[:24]:{column}} {count:>8} {'█' * -(-count * width // most)}" for name, count in ordered[:_BARS]]
    rest = ordered[_BARS:]
    if rest:
        bars.append(
            f"    … and {len(rest)} rarer classes, {sum(count == 0 for _, count in rest)} of them without objects"
        )
    return bars


def _section(title: str, lines: Sequence[str]) -> list[str]:
    if not lines:
        return []
    more = [f"    … and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return [f"  {title} ({len(lines)})", *(f"    {line}" for line in lines[:_LISTED]), *more]
