"""Drawing with integers: random numbers, outlines, and polygons filled at sub-sample precision."""

from __future__ import annotations

import math

import numpy as np

IMAGE_SIZE = 128  # pixels
SAMPLES = 4  # sub-samples per pixel and axis: anti-aliasing, and boxes to a quarter of a pixel
UNIT = 64  # coordinate units per pixel
STEP = UNIT // SAMPLES  # coordinate units per sub-sample
ONE = 1 << 14  # fixed-point 1 of sines and outlines
DEGREES = 360

# Rounded to 14 bits, far coarser than the last-digit differences between mathematical libraries.
SINE = np.array([round(ONE * math.sin(math.radians(degree))) for degree in range(DEGREES)], dtype=np.int64)


class Dice:
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


def polar(degrees, radius: int = ONE) -> np.ndarray:
    """Vertices [V, 2] at these whole angles."""
    degrees = np.asarray(degrees)
    cosine, sine = SINE[(degrees + 90) % DEGREES], SINE[degrees % DEGREES]
    return np.stack([cosine, sine], axis=1) * radius // ONE


def outlines() -> dict[str, list[np.ndarray]]:
    def percent(*vertices):
        return np.array(vertices, dtype=np.int64) * ONE // 100

    star = np.empty((10, 2), dtype=np.int64)
    star[0::2], star[1::2] = polar(range(0, 360, 72)), polar(range(36, 360, 72), ONE * 42 // 100)
    cross = [(-33, -94), (33, -94), (33, -33), (94, -33), (94, 33), (33, 33), (33, 94), (-33, 94)]
    cross += [(-33, 33), (-94, 33), (-94, -33), (-33, -33)]
    arrow = [(-95, -22), (5, -22), (5, -70), (100, 0), (5, 70), (5, 22), (-95, 22)]
    disc = polar(range(0, 360, 8))
    return {
        "ellipse": [disc],
        "ring": [disc, disc * 55 // 100],
        "half-disc": [polar(range(0, 181, 6)) - percent((0, 40))],
        "triangle": [polar((90, 210, 330))],
        "rectangle": [percent((-75, -75), (75, -75), (75, 75), (-75, 75))],
        "cross": [percent(*cross)],
        "star": [star],
        "arrow": [percent(*arrow)],
    }


OUTLINES = outlines()


def place(
    loops: list[np.ndarray], center: tuple[int, int], radius: int, degrees: int, squeeze: int
) -> list[np.ndarray]:
    """Squeezed across (percent), turned, scaled to a radius and moved to a centre, both in coordinate units."""
    cosine, sine = int(SINE[(degrees + 90) % DEGREES]), int(SINE[degrees % DEGREES])
    placed = []
    for loop in loops:
        x, y = loop[:, 0] * radius // ONE, loop[:, 1] * radius // ONE * squeeze // 100
        turned = np.stack([x * cosine - y * sine, x * sine + y * cosine], axis=1) // ONE
        placed.append(turned + np.array(center))
    return placed


def fill(loops: list[np.ndarray]) -> np.ndarray:
    """Sub-samples whose centre lies inside the loops by the even-odd rule: [512, 512] bool."""
    side = IMAGE_SIZE * SAMPLES
    inside = np.zeros((side, side), dtype=bool)
    start = np.concatenate(loops)
    end = np.concatenate([np.roll(loop, -1, axis=0) for loop in loops])
    left, top = np.clip(sample_at(start.min(axis=0)), 0, side).tolist()
    right, bottom = np.clip(sample_at(start.max(axis=0)), 0, side).tolist()
    height, width = bottom - top, right - left + 1
    y = (np.arange(top, bottom) * STEP + STEP // 2)[:, None]  # centres of the rows, against all edges
    edge_rows, edges = np.nonzero((start[:, 1] <= y) != (end[:, 1] <= y))
    (x0, y0), (x1, y1) = start[edges].T, end[edges].T
    upward = y1 < y0  # the same edge gives the same crossing in both directions
    x0, y0, x1, y1 = np.where(upward, (x1, y1, x0, y0), (x0, y0, x1, y1))
    x = x0 + (y[edge_rows, 0] - y0) * (x1 - x0) // (y1 - y0)
    columns = np.clip(sample_at(x), left, right) - left
    crossings = np.bincount(edge_rows * width + columns, minlength=height * width).reshape(height, width) % 2 == 1
    inside[top:bottom, left:right] = np.logical_xor.accumulate(crossings[:, :-1], axis=1)
    return inside


def sample_at(coordinate):
    """The first sub-sample whose centre is not before this coordinate."""
    return -((STEP // 2 - coordinate) // STEP)


# --- painting --------------------------------------------------------------------------------------------------------


def paint(image: np.ndarray, mask: np.ndarray, color: np.ndarray, opacity: int = 100) -> None:
    """Lays a color [3] or [128, 128, 3] over the image through a sub-sampled mask; opacity in percent."""
    parts = mask.view(np.int8)
    coverage = sum(parts[i::SAMPLES, j::SAMPLES] for i in range(SAMPLES) for j in range(SAMPLES))
    touched = coverage > 0
    weight = coverage[touched].astype(np.int64)[:, None] * opacity
    color = color[touched] if color.ndim == 3 else color
    whole = 100 * SAMPLES**2
    image[touched] = (image[touched] * (whole - weight) + color * weight + whole // 2) // whole


def signed_area(loop: np.ndarray) -> int:
    """Twice the area inside a closed outline [N, 2], in square units; its sign is the direction of travel."""
    following = np.roll(loop, -1, axis=0)
    return int((loop[:, 0] * following[:, 1] - loop[:, 1] * following[:, 0]).sum())
