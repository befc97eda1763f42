"""The data set as a folder in COCO's layout: complete and verified, or not there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ... import files
from ...checks import count
from ...errors import FileError, ShapesError
from .raster import IMAGE_SIZE
from .scene import CLASS_NAMES, SPLITS, render

VERSION = 2
_BYTES_PER_IMAGE = 40_000  # as PNG, with its annotations


def generate(
    root: str | Path,
    num_train: int = 2000,
    num_val: int = 500,
    seed: int = 0,
    on_image: Callable[[int, int], None] | None = None,
) -> Path:
    """Makes the data set under ``root`` and returns the path; a folder already made from the same seed is re-used.

    Leaves ``root/{train,val}/NNNNNNNNNNNN.png``, ``root/annotations/instances_{train,val}.json`` and a manifest. The
    folder appears complete or not at all; a process that is killed leaves ``.NAME.unfinished-...`` beside it, which may
    be deleted. A link to a folder is followed. An existing set serves if it has the same generator version and seed and
    at least as many images: image i does not depend on how many there are. ``on_image(done, total)`` is called after
    each image made, for a progress bar.

    Raises ShapesError where ``root`` holds something else, a smaller set, another seed, or has been damaged, where it
    is empty but must stay (something is mounted there), or the disk has no room for so many images; InputError for
    counts below 0.
    """
    root = Path(root)
    num_train, num_val = count(num_train, "num_train", least=0), count(num_val, "num_val", least=0)
    wanted = {
        "generator": "msdetr.data.shapes",
        "version": VERSION,
        "seed": seed,
        "num_train": num_train,
        "num_val": num_val,
    }
    if _occupied(root):
        _verify(root, wanted)
        return root
    place = Path(os.path.realpath(root))
    files.make_folder(place.parent)
    needed, free = (num_train + num_val) * _BYTES_PER_IMAGE, shutil.disk_usage(place.parent).free
    if needed > free:
        raise ShapesError(
            f"{root}: {num_train:,} + {num_val:,} images take about {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; "
            "ask for fewer (data.num_train, data.num_val), or choose another folder (data.root)"
        )
    _make_way(root, place)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{place.name}.unfinished-", dir=place.parent, ignore_cleanup_errors=True
        ) as staging:
            unfinished = Path(staging, place.name)  # a folder in that one, which is this user's alone
            (unfinished / "annotations").mkdir(parents=True)
            done, digests = 0, {}
            for split, images in zip(SPLITS, (num_train, num_val)):

                def report(index: int, before: int = done) -> None:
                    if on_image is not None:
                        on_image(before + index + 1, num_train + num_val)

                digests[split] = _write_split(unfinished, split, images, seed, report)
                done += images
            files.write_json(unfinished / "manifest.json", {**wanted, "sha256": digests})
            try:
                os.rename(unfinished, place)
            except OSError:
                if not _occupied(root):
                    raise
                _verify(root, wanted)  # another process was faster
    except OSError as error:
        raise ShapesError(
            f"{root}: the data set cannot be written: {error.strerror or error}; make room, or choose another folder (data.root)"
        ) from error
    return root


def _make_way(root: Path, place: Path) -> None:
    """Removes an empty folder where the data set is to be. Raises ShapesError where it must stay, e.g. as something is
    mounted there."""
    try:
        place.rmdir()
    except FileNotFoundError:
        pass
    except OSError as error:
        if _occupied(root):  # another process was faster
            return
        raise ShapesError(
            f"{root}: this empty folder cannot be replaced by the data set: {error.strerror or error}; choose a folder "
            f"in it, say {root / 'shapes'} (data.root)"
        ) from error


def _write_split(root: Path, split: str, count: int, seed: int, report: Callable[[int], None]) -> str:
    """Writes the images and the annotation file of a split; the SHA-256 of the file."""
    (root / split).mkdir()
    images, annotations = [], []
    for index in range(count):
        pixels, objects = render(seed, split, index)
        name = f"{index + 1:012d}.png"
        Image.fromarray(pixels).save(root / split / name, compress_level=1)
        images.append({"id": index + 1, "file_name": name, "width": IMAGE_SIZE, "height": IMAGE_SIZE})
        for annotation in objects:
            annotations.append({**annotation, "id": len(annotations) + 1, "image_id": index + 1})
        report(index)
    content = {
        "info": {"description": f"msdetr shapes, {split}", "version": str(VERSION), "seed": seed},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i + 1, "name": name, "supercategory": "shape"} for i, name in enumerate(CLASS_NAMES)],
    }
    data = json.dumps(content, separators=(",", ":")).encode()
    _annotation_file(root, split).write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def _annotation_file(root: Path, split: str) -> Path:
    return root / "annotations" / f"instances_{split}.json"


def _occupied(root: Path) -> bool:
    return root.exists() and not (root.is_dir() and not any(root.iterdir()))


def _verify(root: Path, wanted: dict) -> None:
    """Raises ShapesError unless the folder is a generated set that serves what is wanted."""
    remedy = "choose another folder (data.root), or delete this one to have it made anew"
    try:
        found = files.read_json(root / "manifest.json")
        digests = found["sha256"]
        counts = {split: int(found[f"num_{split}"]) for split in SPLITS}
    except (FileError, ValueError, KeyError, TypeError) as error:
        raise ShapesError(f"{root} exists but is not a complete generated data set ({error}); {remedy}") from error
    for name in ("generator", "version", "seed"):
        if found.get(name) != wanted[name]:
            raise ShapesError(f"{root} was made with {name} {found.get(name)}, wanted {wanted[name]}; {remedy}")
    for split in SPLITS:
        if counts[split] < wanted[f"num_{split}"]:
            raise ShapesError(
                f"{root} holds {counts[split]} {split} images, wanted {wanted[f'num_{split}']}; {remedy}, "
                f"or ask for {counts[split]} (data.num_{split})"
            )
        try:
            intact = hashlib.sha256(_annotation_file(root, split).read_bytes()).hexdigest() == digests[split]
            sizes = [entry.stat().st_size for entry in os.scandir(root / split) if entry.name.endswith(".png")]
        except (OSError, KeyError) as error:
            raise ShapesError(f"{root}: the {split} split cannot be read ({error}); {remedy}") from error
        if not intact or len(sizes) < counts[split] or 0 in sizes:
            raise ShapesError(f"{root}: the {split} split was changed or is incomplete; {remedy}")
