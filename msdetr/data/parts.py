"""What a run trains on and what it validates on: splits of a folder, chosen by their names, or held out where there is none."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import AnnotationError
from .annotations import Annotations, Report
from .layouts import Layout
from .layouts.base import OnBad

AUTO = "auto"
HELD_OUT = 0.2  # share of the training images that validate where there is no validation split
Role = Literal["train", "val"]


@dataclass(frozen=True)
class Part:
    """A split, or a share of one: held_out is True for the images that are held out of it, False for the others, None
    for all."""

    layout: Layout
    split: str
    held_out: bool | None = None

    def read(self, on_bad: OnBad = "error") -> tuple[Annotations, Report]:
        """Raises AnnotationError, ImageError."""
        table, report = self.layout.read(self.split, on_bad)
        if self.held_out is not None:
            if len(table) < 2:
                raise AnnotationError(
                    f"{table.file}: one image alone cannot be divided for training and validation; add images, or name a "
                    "split with data.val_split"
                )
            table = table.of_images(held_out(table.file_names) == self.held_out)
        return table, report

    def digest(self) -> str:
        """SHA-256 of the labels, another one for a share of them. Raises OSError, DataError."""
        whole = self.layout.digest(self.split)
        return (
            whole
            if self.held_out is None
            else hashlib.sha256(f"{whole} {HELD_OUT} {self.held_out}".encode()).hexdigest()
        )

    def __str__(self) -> str:
        if self.held_out is None:
            return self.split
        return f"the images held out of {self.split}" if self.held_out else f"{self.split} without the images held out"


def held_out(file_names: Sequence[str]) -> np.ndarray:
    """Which images are held out, [N] bool: the same whatever the seed, the order or the machine.

    It is the fifth (one at least) whose names have the smallest SHA-256, so an image that is added moves few others.
    """
    digests = [hashlib.sha256(name.encode(errors="surrogateescape")).digest() for name in file_names]
    chosen = sorted(range(len(digests)), key=digests.__getitem__)[: max(1, round(HELD_OUT * len(digests)))]
    mask = np.zeros(len(digests), dtype=bool)
    mask[chosen] = True
    return mask


def usual_split(splits: Sequence[str], role: Role) -> str | None:
    """The split whose name says that it is for training or validation, None where none does. A single split trains; a test
    split never does either."""
    words: tuple[str, ...] = ("train",) if role == "train" else ("val", "valid", "validation")
    for word in words:
        if exact := [split for split in splits if split.lower() == word]:
            return exact[0]
    for split in splits:
        if words[0] in split.lower() and (role == "train" or "train" not in split.lower()):
            return split
    alone = role == "train" and len(splits) == 1 and "test" not in splits[0].lower()
    return splits[0] if alone else None


def choose(layout: Layout, names: dict[Role, str], role: Role) -> Part | None:
    """The part for a role, from the names in the configuration; None where the split that is named, or a training split to
    choose by itself, is not there."""
    splits = layout.splits
    chosen = {r: usual_split(splits, r) if name == AUTO else name for r, name in names.items()}
    train, val = chosen["train"], chosen["val"]
    if names["val"] != AUTO and role == "val":
        return Part(layout, val) if val in splits else None
    holding_out = val is None or (names["val"] == AUTO and val == train)
    if train not in splits:
        return Part(layout, val) if role == "val" and not holding_out else None
    if role == "train":
        return Part(layout, train, False if holding_out else None)
    return Part(layout, train, True) if holding_out else Part(layout, val)
