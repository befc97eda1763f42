"""Arrays and pictures as text, small: what ``numbers.js`` reads back."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

Packed = dict[str, Any]


def packed(array: np.ndarray, type: str) -> Packed:
    """An array as {type, data}, flat, little-endian, in base64.

    type: "f4" float32; "f2" float16; "q2" 65,536 equal steps between the smallest and the largest value, which are kept in
    ``low`` and ``high``; "u1" and "u2" whole numbers of 8 and 16 bits.
    """
    if type != "q2":
        kind = {"f4": "<f4", "f2": "<f2", "u1": "u1", "u2": "<u2"}[type]
        return {"type": type, "data": _text(np.ascontiguousarray(array).astype(kind))}
    values = np.asarray(array, dtype=np.float64)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    steps = np.rint((values - low) * (65535 / (high - low))) if high > low else np.zeros_like(values)
    return {"type": type, "data": _text(steps.astype("<u2")), "low": low, "high": high}


def unpacked(value: Packed) -> np.ndarray:
    """The flat array of what ``packed`` returned: the numbers that the page computes with, to the last bit."""
    kind = {"f4": "<f4", "f2": "<f2", "q2": "<u2", "u1": "u1", "u2": "<u2"}[value["type"]]
    array = np.frombuffer(base64.b64decode(value["data"]), dtype=kind)
    if value["type"] != "q2":
        return array.astype(np.float32) if value["type"] == "f2" else array
    return (value["low"] + array.astype(np.float64) * ((value["high"] - value["low"]) / 65535)).astype(np.float32)


def picture_text(picture: np.ndarray, longest: int, quality: int = 82) -> str:
    """A picture [H, W, 3] uint8 as the data URL of a JPEG with a side of at most ``longest`` pixels."""
    image = Image.fromarray(np.ascontiguousarray(picture[..., :3], dtype=np.uint8))
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _text(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()
