"""A folder of images and labels as it is: COCO, YOLO or Pascal VOC, told apart by what lies in it.

A layout knows its splits and reads one into ``Annotations``, the package's one form. Nothing is written into the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import DataError
from .base import Layout
from .coco import CocoLayout
from .voc import VocLayout
from .yolo import YoloLayout

LAYOUTS: tuple[type[Layout], ...] = (CocoLayout, YoloLayout, VocLayout)  # in this order where a folder has several

__all__ = ["LAYOUTS", "CocoLayout", "Layout", "VocLayout", "YoloLayout", "find_layout", "open_layout"]


def find_layout(root: str | Path) -> Layout | None:
    """The layout of a folder, None where it has none that is known. Raises DataError where it has one with a fault."""
    for kind in LAYOUTS:
        if (layout := kind.find(Path(root))) is not None:
            return layout
    return None


def open_layout(root: str | Path) -> Layout:
    """The layout of a folder. Raises DataError where there is no folder, or no data set in it."""
    root = Path(root)
    if not os.path.isdir(root):  # which also takes a name that no folder can have
        raise DataError(f"there is no folder {root}; name the folder of the data set (--data)")
    layout = find_layout(root)
    if layout is None:
        raise DataError(f"{root} {unknown_layout(root)}")
    return layout


def unknown_layout(root: Path) -> str:
    """What to say about a folder without a known layout, and where in it there is one."""
    inner = _folders_in(root)
    for folder in [*inner, *(deeper for path in inner[:20] for deeper in _folders_in(path))]:
        try:
            if find_layout(folder) is not None:
                return f"holds no data set itself, but {folder} does; name that folder"
        except DataError:
            return f"holds no data set itself, but {folder} looks like one; name that folder"
        except OSError:  # not ours to read
            continue
    wanted = "; ".join(f"{kind.title}: {kind.looks_like}" for kind in LAYOUTS)
    return f"holds no data set in a layout that is known. {wanted}"


def _folders_in(folder: Path) -> list[Path]:
    """The folders in one by name, without hidden ones; none where it may not be read."""
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    except OSError:
        return []
