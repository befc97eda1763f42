"""What is in an image: background, clutter, objects that partly hide each other, and their annotations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .raster import (
    DEGREES,
    IMAGE_SIZE,
    ONE,
    OUTLINES,
    SAMPLES,
    STEP,
    UNIT,
    Dice,
    fill,
    paint,
    place,
    polar,
    signed_area,
)

CLASS_NAMES = ("ellipse", "ring", "half-disc", "triangle", "rectangle", "cross", "star", "arrow")
SPLITS = ("train", "val")

_MAX_OBJECTS = 6
_SIZES = (16, 24, 36, 54, 80)  # limits of the size octaves in pixels; an object's octave is drawn first
_TURN = 30  # degrees an object is turned at most, either way
_SQUEEZE = 75  # percent an object is narrowed to at most
_MIN_VISIBLE = 0.5  # an object of which less can be seen is not placed, nor one that would hide another so far
_MIN_PIXELS = 32  # visible area of an object at least
_ATTEMPTS = 20  # placements tried before an object is given up

_PALETTE = np.array(
    [
        (214, 69, 65), (235, 132, 46), (242, 196, 64), (142, 188, 72), (60, 158, 96), (58, 178, 178),
        (66, 134, 214), (84, 92, 190), (142, 84, 180), (214, 98, 152), (140, 98, 70), (236, 232, 220), (62, 66, 76),
    ],
    dtype=np.int64,
)  # fmt: skip


def _mottle(dice: Dice, cells: int, amplitude: int) -> np.ndarray:
    """Smooth random field [128, 128] in [-amplitude, amplitude]: bilinear between random values on a grid."""
    grid = dice.integers(-amplitude, amplitude + 1, (cells + 1, cells + 1))
    position = np.arange(IMAGE_SIZE) * cells
    cell, part = position // IMAGE_SIZE, position % IMAGE_SIZE
    rows = (grid[cell] * (IMAGE_SIZE - part)[:, None] + grid[cell + 1] * part[:, None]) // IMAGE_SIZE
    return (rows[:, cell] * (IMAGE_SIZE - part) + rows[:, cell + 1] * part) // IMAGE_SIZE


def _background(dice: Dice) -> np.ndarray:
    """A gradient between two muted colors, mottled: [128, 128, 3] int64."""
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


def _clutter(dice: Dice, image: np.ndarray) -> None:
    """Scribbles, crumbs and odd blobs behind the objects: seen, but of no class."""
    extent = IMAGE_SIZE * UNIT
    for _ in range(dice.integer(0, 3)):  # blobs
        radii = dice.integers(ONE * 45 // 100, ONE, (9,))
        outline = np.concatenate([polar([40 * i], int(radius)) for i, radius in enumerate(radii)])
        center = tuple(dice.integers(0, extent, (2,)).tolist())
        loops = place([outline], center, dice.integer(5, 22) * UNIT, dice.integer(0, 360), dice.integer(50, 101))
        paint(image, fill(loops), _PALETTE[dice.integer(0, len(_PALETTE))], dice.integer(20, 75))
    for _ in range(dice.integer(0, 4)):  # scribbles
        color, opacity, width = _PALETTE[dice.integer(0, len(_PALETTE))], dice.integer(35, 90), dice.integer(30, 110)
        point, mask = dice.integers(0, extent, (2,)), False
        for _ in range(dice.integer(1, 4)):
            following = point + dice.integers(-extent // 3, extent // 3, (2,))
            along = following - point
            across = np.array([-along[1], along[0]]) * width // (2 * max(int(np.abs(along).sum()), 1))
            mask = mask | fill([np.stack([point - across, point + across, following + across, following - across])])
            point = following
        paint(image, mask, color, opacity)
    for _ in range(dice.integer(0, 12)):  # crumbs
        center = tuple(dice.integers(0, extent, (2,)).tolist())
        loops = place(OUTLINES["ellipse"], center, dice.integer(UNIT // 2, 2 * UNIT), 0, 100)
        paint(image, fill(loops), _PALETTE[dice.integer(0, len(_PALETTE))], dice.integer(40, 100))


def _texture(dice: Dice, color: np.ndarray) -> np.ndarray:
    """The color plain, shaded or striped: [3] or [128, 128, 3]."""
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


def _propose(dice: Dice, label: int, anchor: tuple[int, int] | None) -> _Object:
    """A shape of random size, angle and place; near an anchor if there is one, so that overlap is common."""
    octave = dice.integer(0, len(_SIZES) - 1)
    radius = dice.integer(_SIZES[octave] * UNIT // 2, _SIZES[octave + 1] * UNIT // 2)
    degrees, squeeze = dice.integer(-_TURN, _TURN + 1) % DEGREES, dice.integer(_SQUEEZE, 101)
    margin = min(radius * 2 // 3, 30 * UNIT)
    low, high = margin, IMAGE_SIZE * UNIT - margin
    center = dice.integers(low, high, (2,))
    if anchor is not None:
        reach = radius + 8 * UNIT
        center = np.clip(np.array(anchor) + dice.integers(-reach, reach + 1, (2,)), low, high)
    center = tuple(center.tolist())
    placed = place(OUTLINES[CLASS_NAMES[label]], center, radius, degrees, squeeze)
    full_area = (abs(signed_area(placed[0])) - sum(abs(signed_area(hole)) for hole in placed[1:])) // (2 * STEP**2)
    mask = fill(placed)
    inner = place(OUTLINES[CLASS_NAMES[label]][:1], center, radius - UNIT * 5 // 4, degrees, squeeze)
    return _Object(label, mask, full_area, fill(inner) & mask)


def render_scene(dice: Dice) -> tuple[np.ndarray, list[tuple[int, np.ndarray]]]:
    """One image [128, 128, 3] uint8 and its objects: (label, visible sub-samples [512, 512] bool)."""
    image = _background(dice)
    _clutter(dice, image)
    side = IMAGE_SIZE * SAMPLES
    owner = np.full((side, side), -1, dtype=np.int8)
    placed: list[_Object] = []
    visible = np.zeros(0, dtype=np.int64)  # sub-samples of each object that can be seen
    centers: list[tuple[int, int]] = []
    least = _MIN_PIXELS * SAMPLES**2
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
        centers.append((int(columns.sum()) // size * STEP, int(rows.sum()) // size * STEP))
        under = image[rows // SAMPLES, columns // SAMPLES].sum(axis=0) // size
        color = _contrasting(dice, under)
        rim_color = color * 55 // 100 if dice.chance(50) else color
        paint(image, candidate.mask, rim_color)
        paint(image, candidate.rim, _texture(dice, color))
    noise = dice.integers(0, 256, (4, IMAGE_SIZE, IMAGE_SIZE, 3)).sum(axis=0) - 510  # bell-shaped, deviation 148
    image = image + noise * dice.integer(1, 12) // 148
    return np.clip(image, 0, 255).astype(np.uint8), [(o.label, owner == i) for i, o in enumerate(placed)]


def _contrasting(dice: Dice, under: np.ndarray) -> np.ndarray:
    """A palette color, varied, that can be told from what lies under it."""
    while True:
        color = np.clip(_PALETTE[dice.integer(0, len(_PALETTE))] + dice.integers(-20, 21, (3,)), 0, 255)
        if int(np.abs(color - under).sum()) >= 100:
            return color


def _annotation(mask: np.ndarray, label: int, annotation_id: int, image_id: int) -> dict:
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    x, y, right, bottom = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    corner = mask[y:bottom, x:right]
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": label + 1,
        "bbox": [v / SAMPLES for v in (x, y, right - x, bottom - y)],
        "area": int(corner.sum()) / SAMPLES**2,
        "iscrowd": 0,
    }


def render(seed: int, split: str, index: int) -> tuple[np.ndarray, list[dict]]:
    """Image ``index`` of a split, [128, 128, 3] uint8, with its COCO annotations (ids from 1)."""
    image, objects = render_scene(Dice(seed, SPLITS.index(split), index))
    return image, [_annotation(mask, label, i + 1, index) for i, (label, mask) in enumerate(objects)]
