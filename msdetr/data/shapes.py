"""The embedded data set: simple shapes on cluttered backgrounds, in COCO format, made on the spot from a seed.

Eight classes that only their outline tells apart, 1 to 6 objects in a 128 x 128 image, 16 to 80 pixels long, a little turned,
squeezed, textured, partly hidden by each other and by the border, over gradients, mottle, scribbles and odd blobs that
belong to no class. As in COCO, an annotation describes what is *visible*: box and area.

The same seed gives the same pixels and the same JSON on every machine. For that nothing but integers is used: random
numbers are the raw stream of PCG64 (which NumPy guarantees, unlike that of ``Generator.integers``), coordinates are in
units of 1/64 pixel, and polygons are filled by an exact scan-line rule. Image i of a split depends on (seed, split, i)
alone, so a larger set begins with the smaller one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .. import files
from ..checks import count
from ..errors import FileError, ShapesError

VERSION = 2
IMAGE_SIZE = 128  # pixels
CLASS_NAMES = ("ellipse", "ring", "half-disc", "triangle", "rectangle", "cross", "star", "arrow")
SPLITS = ("train", "val")

_SAMPLES = 4  # sub-samples per pixel and axis: anti-aliasing, and boxes to a quarter of a pixel
_UNIT = 64  # coordinate units per pixel
_STEP = _UNIT // _SAMPLES  # coordinate units per sub-sample
_ONE = 1 << 14  # fixed-point 1 of sines and outlines
_DEGREES = 360
_MAX_OBJECTS = 6
_SIZES = (16, 24, 36, 54, 80)  # limits of the size octaves in pixels; an object's octave is drawn first
_TURN = 30  # degrees an object is turned at most, either way
_SQUEEZE = 75  # percent an object is narrowed to at most
_MIN_VISIBLE = 0.5  # an object of which less can be seen is not placed, nor one that would hide another so far
_MIN_PIXELS = 32  # visible area of an object at least
_BYTES_PER_IMAGE = 40_000  # as PNG, with its annotations
_ATTEMPTS = 20  # placements tried before an object is given up

# Rounded to 14 bits, far coarser than the last-digit differences between mathematical libraries.
_SINE = np.array([round(_ONE * math.sin(math.radians(degree))) for degree in range(_DEGREES)], dtype=np.int64)

_PALETTE = np.array(
    [
        (214, 69, 65), (235, 132, 46), (242, 196, 64), (142, 188, 72), (60, 158, 96), (58, 178, 178),
        (66, 134, 214), (84, 92, 190), (142, 84, 180), (214, 98, 152), (140, 98, 70), (236, 232, 220), (62, 66, 76),
    ],
    dtype=np.int64,
)  # fmt: skip


class _Dice:
    """Random integers from the raw PCG64 stream of one (seed, split, image)."""

    def __init__(self, *key: int):
        self.bits = np.random.PCG64(np.random.SeedSequence(key))

    def integer(self, low: int, high: int) -> int:
        """A whole number, uniform in [low, high)."""
        return low + ((self.bits.random_raw() >> 32) * (high - low) >> 32)

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> np.ndarray:
        """int64 array of this shape, uniform in [low, high)."""
        raw = self.bits.random_raw(math.prod(shape)) >> np.uint64(32)
        return low + ((raw * np.uint64(high - low)) >> np.uint64(32)).astype(np.int64).reshape(shape)

    def chance(self, percent: int) -> bool:
        return self.integer(0, 100) < percent


# --- outlines: loops of fixed-point vertices within the unit circle; a second loop is a hole -------------------------


def _polar(degrees, radius: int = _ONE) -> np.ndarray:
    """Vertices [V, 2] at these whole angles."""
    degrees = np.asarray(degrees)
    cosine, sine = _SINE[(degrees + 90) % _DEGREES], _SINE[degrees % _DEGREES]
    return np.stack([cosine, sine], axis=1) * radius // _ONE


def _outlines() -> dict[str, list[np.ndarray]]:
    def percent(*vertices):
        return np.array(vertices, dtype=np.int64) * _ONE // 100

    star = np.empty((10, 2), dtype=np.int64)
    star[0::2], star[1::2] = _polar(range(0, 360, 72)), _polar(range(36, 360, 72), _ONE * 42 // 100)
    cross = [(-33, -94), (33, -94), (33, -33), (94, -33), (94, 33), (33, 33), (33, 94), (-33, 94)]
    cross += [(-33, 33), (-94, 33), (-94, -33), (-33, -33)]
    arrow = [(-95, -22), (5, -22), (5, -70), (100, 0), (5, 70), (5, 22), (-95, 22)]
    disc = _polar(range(0, 360, 8))
    return {
        "ellipse": [disc],
        "ring": [disc, disc * 55 // 100],
        "half-disc": [_polar(range(0, 181, 6)) - percent((0, 40))],
        "triangle": [_polar((90, 210, 330))],
        "rectangle": [percent((-75, -75), (75, -75), (75, 75), (-75, 75))],
        "cross": [percent(*cross)],
        "star": [star],
        "arrow": [percent(*arrow)],
    }


_OUTLINES = _outlines()


def _place(
    loops: list[np.ndarray], center: tuple[int, int], radius: int, degrees: int, squeeze: int
) -> list[np.ndarray]:
    """Squeezed across (percent), turned, scaled to a radius and moved to a centre, both in coordinate units."""
    cosine, sine = int(_SINE[(degrees + 90) % _DEGREES]), int(_SINE[degrees % _DEGREES])
    placed = []
    for loop in loops:
        x, y = loop[:, 0] * radius // _ONE, loop[:, 1] * radius // _ONE * squeeze // 100
        turned = np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1) // _ONE
        placed.append(turned + np.array(center))
    return placed


def _fill(loops: list[np.ndarray]) -> np.ndarray:
    """Sub-samples whose centre lies inside the loops by the even-odd rule: [512, 512] bool."""
    side = IMAGE_SIZE * _SAMPLES
    inside = np.zeros((side, side), dtype=bool)
    start = np.concatenate(loops)
    end = np.concatenate([np.roll(loop, -1, axis=0) for loop in loops])
    left, top = np.clip(_sample_at(start.min(axis=0)), 0, side).tolist()
    right, bottom = np.clip(_sample_at(start.max(axis=0)), 0, side).tolist()
    height, width = bottom - top, right - left + 1
    y = (np.arange(top, bottom) * _STEP + _STEP // 2)[:, None]  # centres of the rows, against all edges
    edge_rows, edges = np.nonzero((start[:, 1] <= y) != (end[:, 1] <= y))
    (x0, y0), (x1, y1) = start[edges].T, end[edges].T
    upward = y1 < y0  # the same edge gives the same crossing in both directions
    x0, y0, x1, y1 = np.where(upward, (x1, y1, x0, y0), (x0, y0, x1, y1))
    x = x0 + (y[edge_rows, 0] - y0) * (x1 - x0) // (y1 - y0)
    columns = np.clip(_sample_at(x), left, right) - left
    crossings = np.bincount(edge_rows * width + columns, minlength=height * width).reshape(height, width) % 2 == 1
    inside[top:bottom, left:right] = np.logical_xor.accumulate(crossings[:, :-1], axis=1)
    return inside


def _sample_at(coordinate):
    """The first sub-sample whose centre is not before this coordinate."""
    return -((_STEP // 2 - coordinate) // _STEP)


# --- painting --------------------------------------------------------------------------------------------------------


def _paint(image: np.ndarray, mask: np.ndarray, color: np.ndarray, opacity: int = 100) -> None:
    """Lays a colour [3] or [128, 128, 3] over the image through a sub-sampled mask; opacity in percent."""
    parts = mask.view(np.int8)
    coverage = sum(parts[i::_SAMPLES, j::_SAMPLES] for i in range(_SAMPLES) for j in range(_SAMPLES))
    touched = coverage > 0
    weight = coverage[touched].astype(np.int64)[:, None] * opacity
    color = color[touched] if color.ndim == 3 else color
    whole = 100 * _SAMPLES**2
    image[touched] = (image[touched] * (whole - weight) + color * weight + whole // 2) // whole


def _mottle(dice: _Dice, cells: int, amplitude: int) -> np.ndarray:
    """Smooth random field [128, 128] in [-amplitude, amplitude]: bilinear between random values on a grid."""
    grid = dice.integers(-amplitude, amplitude + 1, (cells + 1, cells + 1))
    position = np.arange(IMAGE_SIZE) * cells
    cell, part = position // IMAGE_SIZE, position % IMAGE_SIZE
    rows = (grid[cell] * (IMAGE_SIZE - part)[:, None] + grid[cell + 1] * part[:, None]) // IMAGE_SIZE
    return (rows[:, cell] * (IMAGE_SIZE - part) + rows[:, cell + 1] * part) // IMAGE_SIZE


def _background(dice: _Dice) -> np.ndarray:
    """A gradient between two muted colours, mottled: [128, 128, 3] int64."""
    tones = _PALETTE[dice.integers(0, len(_PALETTE), (2,))]
    tones = (tones + 2 * dice.integers(50, 210, (2, 1))) // 3  # two thirds grey
    dx, dy = dice.integers(-16, 17, (2,))
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    ramp = x * dx + y * dy
    ramp = (ramp - ramp.min()) * 256 // max(int(ramp.max() - ramp.min()), 1)
    image = (tones[0] * (256 - ramp[..., None]) + tones[1] * ramp[..., None]) // 256
    for cells in (3, 9, 24):
        image = image + _mottle(dice, cells, dice.integer(0, 15))[..., None]
    return image


def _clutter(dice: _Dice, image: np.ndarray) -> None:
    """Scribbles, crumbs and odd blobs behind the objects: seen, but of no class."""
    extent = IMAGE_SIZE * _UNIT
    for _ in range(dice.integer(0, 3)):  # blobs
        radii = dice.integers(_ONE * 45 // 100, _ONE, (9,))
        outline = np.concatenate([_polar([40 * i], int(radius)) for i, radius in enumerate(radii)])
        center = tuple(dice.integers(0, extent, (2,)).tolist())
        loops = _place([outline], center, dice.integer(5, 22) * _UNIT, dice.integer(0, 360), dice.integer(50, 101))
        _paint(image, _fill(loops), _PALETTE[dice.integer(0, len(_PALETTE))], dice.integer(20, 75))
    for _ in range(dice.integer(0, 4)):  # scribbles
        color, opacity, width = _PALETTE[dice.integer(0, len(_PALETTE))], dice.integer(35, 90), dice.integer(30, 110)
        point, mask = dice.integers(0, extent, (2,)), False
        for _ in range(dice.integer(1, 4)):
            following = point + dice.integers(-extent // 3, extent // 3, (2,))
            along = following - point
            across = np.array([-along[1], along[0]]) * width // (2 * max(int(np.abs(along).sum()), 1))
            mask = mask | _fill([np.stack([point - across, point + across, following + across, following - across])])
            point = following
        _paint(image, mask, color, opacity)
    for _ in range(dice.integer(0, 12)):  # crumbs
        center = tuple(dice.integers(0, extent, (2,)).tolist())
        loops = _place(_OUTLINES["ellipse"], center, dice.integer(_UNIT // 2, 2 * _UNIT), 0, 100)
        _paint(image, _fill(loops), _PALETTE[dice.integer(0, len(_PALETTE))], dice.integer(40, 100))


def _texture(dice: _Dice, color: np.ndarray) -> np.ndarray:
    """The colour plain, shaded or striped: [3] or [128, 128, 3]."""
    kind = dice.integer(0, 3)
    if kind == 0:
        return color
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    dx, dy = dice.integers(-4, 5, (2,))
    wave = (x * dx + y * dy) * (1 if kind == 1 else 8)
    triangle_wave = np.abs(wave % 128 - 64) - 32  # [-32, 32]
    if kind == 2:
        triangle_wave = np.where(triangle_wave > 0, 26, -26)
    return np.clip(color + triangle_wave[..., None], 0, 255)


@dataclass(frozen=True)
class _Object:
    label: int
    mask: np.ndarray  # [512, 512] bool, the whole shape within the image
    full_area: int  # sub-samples of the whole shape, also outside the image
    rim: np.ndarray  # the same shape without its rim


def _propose(dice: _Dice, label: int, anchor: tuple[int, int] | None) -> _Object:
    """A shape of random size, angle and place; near an anchor if there is one, so that overlap is common."""
    octave = dice.integer(0, len(_SIZES) - 1)
    radius = dice.integer(_SIZES[octave] * _UNIT // 2, _SIZES[octave + 1] * _UNIT // 2)
    degrees, squeeze = dice.integer(-_TURN, _TURN + 1) % _DEGREES, dice.integer(_SQUEEZE, 101)
    margin = min(radius * 2 // 3, 30 * _UNIT)
    low, high = margin, IMAGE_SIZE * _UNIT - margin
    center = dice.integers(low, high, (2,))
    if anchor is not None:
        reach = radius + 8 * _UNIT
        center = np.clip(np.array(anchor) + dice.integers(-reach, reach + 1, (2,)), low, high)
    center = tuple(center.tolist())
    placed = _place(_OUTLINES[CLASS_NAMES[label]], center, radius, degrees, squeeze)
    full_area = (abs(_signed_area(placed[0])) - sum(abs(_signed_area(hole)) for hole in placed[1:])) // (2 * _STEP**2)
    mask = _fill(placed)
    inner = _place(_OUTLINES[CLASS_NAMES[label]][:1], center, radius - _UNIT * 5 // 4, degrees, squeeze)
    return _Object(label, mask, full_area, _fill(inner) & mask)


def _render(dice: _Dice) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One image [128, 128, 3] uint8 and its objects: (label, visible sub-samples [512, 512] bool)."""
    image = _background(dice)
    _clutter(dice, image)
    side = IMAGE_SIZE * _SAMPLES
    owner = np.full((side, side), -1, dtype=np.int8)
    placed: list[_Object] = []
    visible = np.zeros(0, dtype=np.int64)  # sub-samples of each object that can be seen
    centers: list[tuple[int, int]] = []
    least = _MIN_PIXELS * _SAMPLES**2
    for _ in range(dice.integer(1, _MAX_OBJECTS + 1)):
        label = dice.integer(0, len(CLASS_NAMES))
        for _ in range(_ATTEMPTS):
            anchor = centers[dice.integer(0, len(centers))] if centers and dice.chance(45) else None
            candidate = _propose(dice, label, anchor)
            size = int(candidate.mask.sum())
            if size < max(least, _MIN_VISIBLE * candidate.full_area):
                continue
            left = visible - np.bincount(owner[candidate.mask] + 1, minlength=len(placed) + 1)[1:]
            if all(v >= max(least, _MIN_VISIBLE * o.full_area) for v, o in zip(left, placed)):
                break
        else:
            continue
        owner[candidate.mask] = len(placed)
        placed.append(candidate)
        visible = np.append(left, size)
        rows, columns = np.nonzero(candidate.mask)
        centers.append((int(columns.sum()) // size * _STEP, int(rows.sum()) // size * _STEP))
        under = image[rows // _SAMPLES, columns // _SAMPLES].sum(axis=0) // size
        color = _contrasting(dice, under)
        rim_color = color * 55 // 100 if dice.chance(50) else color
        _paint(image, candidate.mask, rim_color)
        _paint(image, candidate.rim, _texture(dice, color))
    noise = dice.integers(0, 256, (4, IMAGE_SIZE, IMAGE_SIZE, 3)).sum(axis=0) - 510  # bell-shaped, deviation 148
    image = image + noise * dice.integer(1, 12) // 148
    return np.clip(image, 0, 255).astype(np.uint8), [(o.label, owner == i) for i, o in enumerate(placed)]


def _contrasting(dice: _Dice, under: np.ndarray) -> np.ndarray:
    """A palette colour, varied, that can be told from what lies under it."""
    while True:
        color = np.clip(_PALETTE[dice.integer(0, len(_PALETTE))] + dice.integers(-20, 21, (3,)), 0, 255)
        if int(np.abs(color - under).sum()) >= 100:
            return color


# --- annotations -----------------------------------------------------------------------------------------------------


def _signed_area(loop: np.ndarray) -> int:
    following = np.roll(loop, -1, axis=0)
    return int((loop[:, 0] * following[:, 1] - loop[:, 1] * following[:, 0]).sum())


def _annotation(mask: np.ndarray, label: int, annotation_id: int, image_id: int) -> dict:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    x, y, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    corner = mask[y:bottom, x:right]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": [v / _SAMPLES for v in (x, y, right - x, bottom - y)],
        "area": int(corner.sum()) / _SAMPLES**2,
        "iscrowd": 0,
    }


def render(seed: int, split: str, index: int) -> tuple[np.ndarray, list[dict]]:
    """Image ``index`` of a split, [128, 128, 3] uint8, with its COCO annotations (ids from 1)."""
    image, objects = _render(_Dice(seed, SPLITS.index(split), index))
    return image, [_annotation(mask, label, i + 1, index) for i, (label, mask) in enumerate(objects)]


# --- the folder ------------------------------------------------------------------------------------------------------


def generate(
    root: str | Path,
    num_train: int = 2000,
    num_val: int = 500,
    seed: int = 0,
    on_image: Callable[[int, int], None] | None = None,
) -> Path:
    """Makes the data set under ``root`` and returns the path; a folder already made from the same seed is re-used.

    Leaves ``root/{train,val}/NNNNNNNNNNNN.png``, ``root/annotations/instances_{train,val}.json`` and a manifest. The
    folder appears complete or not at all. An existing set serves if it has the same generator version and seed and at
    least as many images: image i does not depend on how many there are. ``on_image(done, total)`` is called after each image
    made, for a progress bar.

    Raises ShapesError where ``root`` holds something else, a smaller set, another seed, or has been damaged, or the disk has no
    room for so many images; InputError for counts below 0.
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
    root.parent.mkdir(parents=True, exist_ok=True)
    needed, free = (num_train + num_val) * _BYTES_PER_IMAGE, shutil.disk_usage(root.parent).free
    if needed > free:
        raise ShapesError(
            f"{root}: {num_train:,} + {num_val:,} images take about {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; "
            "ask for fewer (data.num_train, data.num_val), or choose another folder (data.root)"
        )
    unfinished = root.parent / f".{root.name}.unfinished-{os.getpid()}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
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
            os.rename(unfinished, root)
        except OSError:
            if not _occupied(root):
                raise
            _verify(root, wanted)  # another process was faster
    except OSError as error:
        raise ShapesError(
            f"{root}: the data set cannot be written: {error.strerror or error}; make room, or choose another folder (data.root)"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


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
