"""safetensors files: the header is checked in Python before anything else looks at it."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load as deserialize
from torch import Tensor

from ...errors import CheckpointError
from ...files import parse_json

HEADER_BYTES = 16 * 2**20
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_DIMENSIONS, MAX_LENGTH = 8, 2**40


def parse_tensors(data: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors in the contents of a safetensors file.

    Raises CheckpointError where the header is no JSON, names a tensor twice, or where the tensors' places overlap, leave
    gaps or do not fit their shapes.
    """

    def refuse(problem: str) -> CheckpointError:
        return CheckpointError(f"{path}: is not a safetensors file that can be used: {problem}")

    if len(data) < 8:
        raise refuse(f"it has {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(HEADER_BYTES, len(data) - 8):
        raise refuse("its header is longer than the file may be")
    header = parse_json(data[8 : 8 + length], f"{path}, header", CheckpointError)
    if not isinstance(header, dict):
        raise refuse("its header is no object")
    header.pop("__metadata__", None)
    places = []
    for name, entry in header.items():
        if (problem := _problem(entry)) is not None:
            raise refuse(f"tensor {name[:80]!r}: {problem}")
        places.append(tuple(entry["data_offsets"]))
    end = 0
    for begin, after in sorted(places):
        if begin != end:
            raise refuse(f"the places of its tensors overlap or leave a gap at byte {min(begin, end)}")
        end = after
    if end != len(data) - 8 - length:
        raise refuse(f"its tensors end at byte {end}, its data at {len(data) - 8 - length}")
    try:
        return deserialize(data)
    except (safetensors.SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise refuse(str(error)) from error


def _problem(entry: Any) -> str | None:
    """What is wrong with a tensor's entry in the header, None where nothing is."""
    if not isinstance(entry, dict):
        return "its entry is no object"
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        return f"dtype {str(dtype)[:40]!r} is not one of {', '.join(ITEM_BYTES)}"
    lengths = isinstance(shape, list) and len(shape) <= MAX_DIMENSIONS
    if not lengths or not all(type(n) is int and 0 <= n < MAX_LENGTH for n in shape):
        return f"shape {str(shape)[:80]} is none"
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int and n >= 0 for n in offsets):
        return f"data_offsets {str(offsets)[:80]} are none"
    if max(math.prod(n for n in shape if n), 1) >= 2**62:
        return f"shape {shape} has more elements than memory has bytes"
    if offsets[1] - offsets[0] != math.prod(shape) * ITEM_BYTES[dtype]:
        return f"{offsets[1] - offsets[0]} bytes for shape {shape} of {dtype}"
    return None
