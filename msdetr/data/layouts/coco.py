"""COCO's layout: one JSON file per split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ..validate import Annotations, Report, read_annotations
from .base import Layout, OnBad, unknown_split

EXPORTED = "_annotations.coco.json"  # Roboflow's, beside the images of a split


@dataclass(frozen=True)
class CocoLayout(Layout):
    """annotations/instances_SPLIT.json, images in SPLIT/ or images/SPLIT/; or SPLIT/_annotations.coco.json beside them."""

    title = "COCO"
    looks_like = (
        "annotations/instances_SPLIT.json with the images of a split in a folder of its name beside annotations/, or "
        f"SPLIT/{EXPORTED} with the images beside it"
    )
    root: Path
    files: dict[str, Path]

    @classmethod
    def find(cls, root: Path) -> Self | None:
        named = {path.stem.removeprefix("instances_"): path for path in root.glob("annotations/instances_*.json")}
        exported = {path.parent.name: path for path in root.glob(f"*/{EXPORTED}")}
        files = named or exported
        return cls(root, dict(sorted(files.items()))) if files else None

    @property
    def file(self) -> Path:  # type: ignore[override]
        return self.root

    @property
    def splits(self) -> list[str]:
        return list(self.files)

    def annotation_file(self, split: str) -> Path:
        return self.files.get(split) or unknown_split(self, split)

    def images_dir(self, split: str) -> Path:
        if self.annotation_file(split).name == EXPORTED:
            return self.annotation_file(split).parent
        places = [self.root / split, self.root / "images" / split]
        return next((place for place in places if place.is_dir()), places[0])

    def read(self, split: str, on_bad: OnBad = "error") -> tuple[Annotations, Report]:
        return read_annotations(self.annotation_file(split), on_bad)

    def label_files(self, split: str) -> Iterable[Path]:
        return [self.annotation_file(split)]

    def digest(self, split: str) -> str:
        """SHA-256 of the annotation file."""
        with open(self.annotation_file(split), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def __str__(self) -> str:
        return f"{self.title} layout ({self.root})"
