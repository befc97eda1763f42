"""Small folders of one's own in every layout, all with the same images and objects."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 30
Objects = Mapping[str, Sequence[tuple[int, tuple[int, int, int, int]]]]  # image stem -> (class, (x, y, width, height))


def write_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    path.write_bytes(buffer.getvalue())


def objects(count: int, classes: int, seed: int = 0) -> dict[str, list]:
    """Images with one to three objects, so that every class occurs."""
    rng = np.random.default_rng(seed)
    found = {}
    for i in range(count):
        rows = [(i + j) % classes for j in range(int(rng.integers(1, 4)))]
        corners = [tuple(map(int, (rng.integers(0, 20), rng.integers(0, 12), *rng.integers(4, 16, 2)))) for _ in rows]
        found[f"photo {i}"] = list(zip(rows, corners))
    return found


def coco(root: Path, names: Sequence[str], splits: Mapping[str, Objects], ids: Sequence[int] | None = None) -> Path:
    """ids: category id of each class, in the order in which they are listed."""
    ids = list(range(1, len(names) + 1)) if ids is None else ids
    (root / "annotations").mkdir(parents=True)
    for split, content in splits.items():
        images = [
            {"id": i, "file_name": f"{stem}.png", "width": WIDTH, "height": HEIGHT} for i, stem in enumerate(content, 1)
        ]
        rows = [(i, c, box) for i, found in enumerate(content.values(), 1) for c, box in found]
        annotations = [
            {"id": n, "image_id": i, "category_id": ids[c], "bbox": list(box), "area": box[2] * box[3], "iscrowd": 0}
            for n, (i, c, box) in enumerate(rows, 1)
        ]
        categories = [{"id": i, "name": name} for i, name in zip(ids, names)]
        for i, stem in enumerate(content):
            write_image(root / split / f"{stem}.png", i)
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (root / "annotations" / f"instances_{split}.json").write_text(text)
    return root


def yolo(root: Path, names: Sequence[str], splits: Mapping[str, Objects], style: str = "ultralytics") -> Path:
    """style: "ultralytics" has images/SPLIT and labels/SPLIT, "roboflow" SPLIT/images and SPLIT/labels."""
    lines = ["path: /content/elsewhere"] if style == "ultralytics" else [f"nc: {len(names)}"]
    for split, content in splits.items():
        folder = "valid" if style == "roboflow" and split == "val" else split
        inner = (
            (f"images/{folder}", f"labels/{folder}")
            if style == "ultralytics"
            else (f"{folder}/images", f"{folder}/labels")
        )
        lines.append(f"{split}: {'../' if style == 'roboflow' else ''}{inner[0]}")
        for i, (stem, found) in enumerate(content.items()):
            write_image(root / inner[0] / f"{stem}.png", i)
            rows = [
                f"{c} {(x + w / 2) / WIDTH:.8f} {(y + h / 2) / HEIGHT:.8f} {w / WIDTH:.8f} {h / HEIGHT:.8f}"
                for c, (x, y, w, h) in found
            ]
            label = root / inner[1] / f"{stem}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(rows))
    (root / "data.yaml").write_text("\n".join([*lines, "names:", *(f"- {json.dumps(n)}" for n in names)]), "utf-8")
    return root


def xml(stem: str, names: Sequence[str], found: Sequence) -> str:
    marked = "".join(
        f"<object><name>{escape(names[c])}</name><difficult>0</difficult><bndbox><xmin>{x + 1}</xmin><ymin>{y + 1}</ymin>"
        f"<xmax>{x + w}</xmax><ymax>{y + h}</ymax></bndbox></object>"
        for c, (x, y, w, h) in found
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation><filename>{stem}.png</filename>{size}{marked}</annotation>"


def voc(root: Path, names: Sequence[str], splits: Mapping[str, Objects]) -> Path:
    for split, content in splits.items():
        for i, (stem, found) in enumerate(content.items()):
            write_image(root / "JPEGImages" / f"{split} {stem}.png", i)
            label = root / "Annotations" / f"{split} {stem}.xml"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(xml(f"{split} {stem}", names, found), "utf-8")
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        listed.write_text("".join(f"{split} {stem}\n" for stem in content))
    return root


def roboflow(root: Path, names: Sequence[str], splits: Mapping[str, Objects]) -> Path:
    return yolo(root, names, splits, "roboflow")


WRITERS: dict[str, Callable[..., Path]] = {"coco": coco, "ultralytics": yolo, "roboflow": roboflow, "voc": voc}
