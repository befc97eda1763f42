"""Reading a COCO annotation file so that nothing in it can surprise a run later.

The file is checked once, column by column (a second or two on COCO's 860,000 annotations beside the parsing), and becomes
``Annotations``: plain arrays, sorted by image. What cannot be used is an ``AnnotationError`` that names the file, the image
or annotation, the value and the remedy; what can be put right is, and is counted in a ``Report``.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, compress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from .. import files
from ..errors import AnnotationError, InputError
from .annotations import LISTED, Annotations, Note, Report, listing, show
from .images import MAX_PIXELS

TOLERANCE = 0.02  # pixels a box may stick out without being reported: COCO rounds coordinates to hundredths
_MISSING = type("Missing", (), {"__repr__": lambda self: "missing"})()
_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
_IMAGE_FIELDS = ("id", "file_name", "height", "width")
_DRIVE = re.compile("[A-Za-z]:")
_HUGE = 1e300  # numbers below it survive float arithmetic


def read_annotations(file: str | Path, on_bad: Literal["error", "drop"] = "error") -> tuple[Annotations, Report]:
    """Reads and checks a COCO annotation file.

    An annotation that means nothing (no box, an unknown image or category, an id that is no whole number, NaN) is an error,
    or with ``on_bad="drop"`` left out and counted. Boxes without area or outside the image are left out and counted in both
    cases, boxes partly outside are clipped and counted, a missing ``area`` is computed and counted. Faults of the file as a
    whole, of images and of categories are always errors.

    Raises AnnotationError, also where the file cannot be read, and InputError for another ``on_bad``.
    """
    if on_bad not in ("error", "drop"):
        raise InputError(f"on_bad: {on_bad!r} is neither 'error' nor 'drop'")
    reader = _Reader(Path(file), on_bad)
    return reader.check(reader.parse())


def check_content(
    content: dict[str, list], file: Path, on_bad: Literal["error", "drop"], places: tuple[str, ...]
) -> tuple[Annotations, Report]:
    """As ``read_annotations``, of COCO content that was made from other files. places: of annotation 1, 2, ...; what is
    reported names them instead of ids."""
    reader = _Reader(file, on_bad)
    table, report = reader.check(content)
    told = ", annotation"
    report.notes = [
        Note(note.kind.removesuffix(told) + ":", tuple(places[i - 1] for i in note.ids))
        if note.kind.endswith(told)
        else note
        for note in report.notes
    ]
    return replace(table, places=places), report


class _Reader:
    def __init__(self, file: Path, on_bad: str):
        self.file, self.on_bad, self.report = file, on_bad, Report(file)

    def check(self, content: dict[str, list]) -> tuple[Annotations, Report]:
        image_ids, file_names, sizes = self.images(content["images"])
        category_ids, category_names = self.categories(content["categories"])
        columns = self.annotations(content["annotations"], image_ids, sizes, category_ids)
        table = Annotations(self.file, image_ids, file_names, sizes, category_ids, category_names, **columns)
        self.report.add(
            "annotation id that pycocotools would misread, all re-indexed for evaluation, id",
            table.ids[~table.ids_fit_pycocotools].tolist(),
        )
        return table, self.report

    def fail(self, problem: str, remedy: str) -> None:
        raise AnnotationError(f"{self.file}: {problem}; {remedy}")

    def parse(self) -> dict[str, Any]:
        columns = _Columns()
        with _no_garbage_collection():
            content = files.stream_json(self.file, {"images": _used_of_image, "annotations": columns.add})
            streamed = content is not None
            if not streamed:  # it is at fault, or at least unusual
                data = files.read_bytes(self.file, AnnotationError)
                content = files.parse_json(data, self.file, AnnotationError, own=False)
        if not isinstance(content, dict):
            self.fail(
                f"holds a JSON {type(content).__name__} at offset 0, not an object",
                "a COCO annotation file is an object with images, annotations and categories",
            )
        for section in ("images", "annotations", "categories"):
            if not isinstance(content.get(section), list):
                found = f"is {show(content[section])}" if section in content else "is missing"
                self.fail(f"'{section}' {found}", "it must be a list, as in COCO's instances_*.json")
        for section in ("images", "categories"):
            if not content[section]:
                self.fail(f"'{section}' is empty", "nothing can be trained or evaluated without any")
        return content | {"annotations": columns} if streamed else content

    # --- images and categories: every fault is an error

    def images(self, entries: list) -> tuple[np.ndarray, list[str], np.ndarray]:
        ids = self.unique_ids(entries, "images", "image")
        names = _column(entries, "file_name")
        self.demand(
            [type(name) is not str or _is_text(name) for name in names],
            lambda i: f"image {ids[i]}: file_name is {show(names[i])}, which is no text in UTF-8",
            "rename the image file, and write its new name",
        )
        self.demand(
            [_safe_path(name) for name in names],
            lambda i: f"image {ids[i]}: file_name is {show(names[i])}",
            "file names must be relative paths that stay inside the image folder",
        )
        sizes = np.stack([self.sides(entries, side) for side in ("height", "width")], axis=1)
        self.demand(
            sizes[:, 0] * sizes[:, 1] <= MAX_PIXELS,
            lambda i: f"image {ids[i]}: {sizes[i, 1]} × {sizes[i, 0]} pixels, the limit is {MAX_PIXELS:,} in all",
            "give the true size of the image, or scale the image down",
        )
        order = np.argsort(ids)
        return ids[order], [names[i] for i in order], sizes[order]

    def sides(self, entries: list, side: str) -> np.ndarray:
        values = _column(entries, side)
        self.demand(
            [type(v) in (int, float) and 1 <= v < 2**31 and v == int(v) for v in values],
            lambda i: f"image {show(entries[i]['id'])}: {side} is {show(values[i])}",
            "give the size of the image in whole pixels",
        )
        return np.array(values, dtype=np.int64)

    def categories(self, entries: list) -> tuple[np.ndarray, list[str]]:
        ids = self.unique_ids(entries, "categories", "category")
        names = _column(entries, "name")
        self.demand(
            [isinstance(name, str) for name in names],
            lambda i: f"category {ids[i]}: name is {show(names[i])}",
            "give each category a name",
        )
        order = np.argsort(ids)
        names = [names[i].encode("utf-8", "replace").decode() for i in order]
        self.report.add(
            "category name used twice",
            sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else [],
        )
        return ids[order], names

    def unique_ids(self, entries: list, section: str, what: str) -> np.ndarray:
        self.demand(
            [type(entry) is dict for entry in entries],
            lambda i: f"{section}[{i}] is {show(entries[i])}",
            f"each {what} must be a JSON object",
        )
        values = _column(entries, "id")
        self.demand(
            _whole(values), lambda i: f"{section}[{i}]: id is {show(values[i])}", "ids must be whole numbers (64 bits)"
        )
        ids = np.array(values, dtype=np.int64)
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) < len(ids):
            self.fail(f"{what} id used twice: {listing(unique[counts > 1].tolist())}", f"give each {what} its own id")
        return ids

    def demand(self, good: Sequence[bool], describe: Callable[[int], str], remedy: str) -> None:
        bad = np.nonzero(~np.asarray(good, dtype=bool))[0]
        if len(bad):
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            self.fail(describe(int(bad[0])) + more, remedy)

    # --- annotations: what means nothing is an error or dropped, what is harmless is put right

    def annotations(
        self, entries: list | _Columns, image_ids: np.ndarray, sizes: np.ndarray, category_ids: np.ndarray
    ) -> dict[str, np.ndarray]:
        if isinstance(entries, _Columns):
            rows = {"position": range(len(entries.columns["id"])), **entries.columns}
        else:
            objects = [type(entry) is dict for entry in entries]
            rows = {"entry": entries, "position": range(len(entries))}
            rows = self.keep(rows, objects, "entry", "not a JSON object")
            rows |= {name: _column(rows["entry"], name) for name in _FIELDS}
        rows = self.keep(rows, _whole(rows["id"]), "id", "id that is missing or no whole number")
        rows = self.keep(rows, _first_of_each(rows["id"]), "id", "id used twice")
        for name, known in (("image_id", image_ids), ("category_id", category_ids)):
            rows = self.keep(rows, _whole(rows[name]), name, f"{name} that is missing or no whole number")
            present = np.isin(np.array(rows[name], dtype=np.int64), known)
            rows = self.keep(rows, present, name, f"{name} that the file does not define")
        rows = self.keep(rows, _four_numbers(rows["bbox"]), "bbox", "bbox that is missing or not four numbers")
        finite = np.isfinite(np.array(rows["bbox"], dtype=np.float64).reshape(-1, 4)).all(axis=1)
        rows = self.keep(rows, finite, "bbox", "NaN or infinite bbox")
        measured = [_absent(v) or (type(v) in (int, float) and 0 <= v < _HUGE) for v in rows["area"]]
        rows = self.keep(rows, measured, "area", "area that is no size")
        flags = [_absent(v) or (type(v) in (int, bool, float) and v in (0, 1)) for v in rows["iscrowd"]]
        rows = self.keep(rows, flags, "iscrowd", "iscrowd that is neither 0 nor 1")

        ids = np.array(rows["id"], dtype=np.int64)
        image = np.searchsorted(image_ids, np.array(rows["image_id"], dtype=np.int64))
        category = np.searchsorted(category_ids, np.array(rows["category_id"], dtype=np.int64))
        boxes = np.array(rows["bbox"], dtype=np.float64).reshape(-1, 4)
        crowd = np.array([not _absent(v) and bool(v) for v in rows["iscrowd"]], dtype=bool)
        unknown = np.array([_absent(v) for v in rows["area"]], dtype=bool)
        areas = np.array([0 if _absent(v) else v for v in rows["area"]], dtype=np.float64)

        empty = (boxes[:, 2:] <= 0).any(axis=1)
        limits = sizes[image][:, ::-1]  # (width, height)
        low, high = np.clip(boxes[:, :2], 0, limits), np.clip(boxes[:, :2] + boxes[:, 2:], 0, limits)
        outside = ~empty & (high <= low).any(axis=1)
        overhang = np.maximum(-boxes[:, :2], boxes[:, :2] + boxes[:, 2:] - limits).max(axis=1, initial=0)
        kept = ~empty & ~outside
        clipped = kept & (overhang > TOLERANCE)
        boxes[clipped] = np.concatenate([low, high - low], axis=1)[clipped]
        areas = np.where(unknown, boxes[:, 2] * boxes[:, 3], areas)
        self.report.add("box of zero or negative size left out, annotation", ids[empty].tolist())
        self.report.add("box outside the image left out, annotation", ids[outside].tolist())
        self.report.add("box partly outside the image clipped, annotation", ids[clipped].tolist())
        self.report.add("missing area computed from the box, annotation", ids[unknown & kept].tolist())

        order = np.nonzero(kept)[0][np.argsort(image[kept], kind="stable")]
        columns = {"ids": ids, "image": image, "category": category, "boxes": boxes, "areas": areas, "crowd": crowd}
        return {name: values[order] for name, values in columns.items()}

    def keep(self, rows: dict[str, Sequence], good: Sequence[bool], field: str, kind: str) -> dict[str, Sequence]:
        """The good rows of all columns; the others raise AnnotationError or are counted as dropped."""
        good = np.asarray(good, dtype=bool)
        if good.all():
            return rows
        bad = np.nonzero(~good)[0].tolist()
        if self.on_bad == "error":
            shown = "; ".join(f"{_name(rows, i)}: {show(rows[field][i])}" for i in bad[:LISTED])
            more = f"; and {len(bad) - LISTED} more" if len(bad) > LISTED else ""
            self.fail(
                f"annotation with {kind}: {shown}{more}",
                "mend the file, or leave such annotations out with on_bad='drop' (data.on_bad_annotation=drop)",
            )
        self.report.add(f"annotation with {kind} dropped:", [_name(rows, i) for i in bad])
        return {name: list(compress(values, good)) for name, values in rows.items()}


class _Columns:
    """What is used of the entries of annotations, field by field: outlines, most of a file of COCO's, are not kept."""

    def __init__(self):
        self.columns: dict[str, list] = {name: [] for name in _FIELDS}

    def add(self, entry: Any) -> None:
        """Raises ValueError for an entry that is no JSON object."""
        if type(entry) is not dict:
            raise ValueError("an annotation that is no object")
        for name, column in self.columns.items():
            column.append(entry.get(name, _MISSING))


def _used_of_image(entry: Any) -> Any:
    return {name: entry[name] for name in _IMAGE_FIELDS if name in entry} if type(entry) is dict else entry


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Building millions of objects that all stay makes the collector search in vain, for half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _column(entries: list[dict], name: str) -> list:
    return [entry.get(name, _MISSING) for entry in entries]


def _absent(value: Any) -> bool:
    return value is _MISSING or value is None


def _name(rows: dict[str, Sequence], i: int) -> str:
    annotation_id, image_id = (rows[name][i] if name in rows else _MISSING for name in ("id", "image_id"))
    if type(annotation_id) is not int:
        return f"annotations[{rows['position'][i]}]"
    return f"annotation {show(annotation_id)}" + (f" (image {show(image_id)})" if type(image_id) is int else "")


def _first_of_each(ids: list[int]) -> np.ndarray:
    values = np.array(ids, dtype=np.int64)
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first


def _whole(values: list) -> Sequence[bool]:
    """Which values are whole numbers of 64 bits; bool, float and text are not."""
    if set(map(type, values)) <= {int} and (not values or (-(2**63) <= min(values) and max(values) < 2**63)):
        return np.ones(len(values), dtype=bool)
    return [type(v) is int and -(2**63) <= v < 2**63 for v in values]


def _four_numbers(values: list) -> Sequence[bool]:
    """Which values are lists of four numbers that a float can hold."""
    lists = set(map(type, values)) <= {list} and set(map(len, values)) <= {4}
    if lists and set(map(type, chain.from_iterable(values))) <= {float}:
        return np.ones(len(values), dtype=bool)
    return [
        type(box) is list
        and len(box) == 4
        and all(type(v) is float or (type(v) is int and abs(v) < _HUGE) for v in box)
        for box in values
    ]


def _safe_path(name: Any) -> bool:
    """Whether a file name is a relative path without '..', drive letter or characters no file system takes."""
    if type(name) is not str or not name or "\0" in name or _DRIVE.match(name):
        return False
    if "/" not in name and "\\" not in name:
        return name not in (".", "..")
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return not name.startswith(("/", "\\")) and ".." not in parts and len(parts) > 0


def _is_text(name: str) -> bool:
    """Whether UTF-8 can hold a name; half a surrogate pair, as which Python reads names in other encodings, it cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
