"""Spoilt image files by the thousand: each must decode or raise ImageError, nothing else, and none may hang.

``python tests/data/corpus.py COUNT [SEED]`` prints the outcomes as one line of JSON; the test and ``make faults`` run it as
a process of its own, so that a crash or a hang of a decoder is seen from outside.
"""

import io
import json
import sys
import time
from collections import Counter

import numpy as np
from PIL import Image

from msdetr.data import ImageError, read_image
from msdetr.data.images import open_image, upright_size

SECONDS = 5.0  # an image that takes more of the processor's time counts as a hang


def sources() -> list[bytes]:
    """Small valid files in several formats and modes."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((96, 72), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    variants = [
        ("JPEG", smooth, {"quality": 80}),
        ("JPEG", smooth, {"progressive": True, "exif": exif}),
        ("JPEG", smooth.convert("CMYK"), {}),
        ("JPEG", smooth.convert("L"), {"optimize": True}),
        ("PNG", smooth, {}),
        ("PNG", smooth.convert("RGBA"), {}),
        ("PNG", smooth.convert("P"), {"transparency": 3}),
        ("PNG", Image.fromarray(rng.integers(0, 65536, (40, 50), dtype=np.uint16)), {}),
        ("PNG", smooth, {"save_all": True, "append_images": [smooth.rotate(90)]}),
        ("GIF", smooth, {"save_all": True, "append_images": [smooth.rotate(90)]}),
        ("WEBP", smooth, {}),
        ("BMP", smooth, {}),
        ("TIFF", smooth, {"compression": "tiff_deflate"}),
    ]
    files = []
    for kind, image, options in variants:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        files.append(buffer.getvalue())
    return files


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Truncated, bits flipped, bytes overwritten (often in the header), a stretch removed, doubled or zeroed."""
    spoilt = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        size = max(len(spoilt), 1)
        place = int(rng.integers(0, min(size, 200) if rng.random() < 0.5 else size))
        length = int(rng.integers(1, 64))
        match int(rng.integers(0, 6)):
            case 0:
                del spoilt[place:]
            case 1 if spoilt:
                spoilt[place] ^= 1 << int(rng.integers(0, 8))
            case 2 if spoilt:
                spoilt[place] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(0, 256))]))
            case 3:
                del spoilt[place : place + length]
            case 4:
                spoilt[place:place] = spoilt[place : place + length]
            case _:
                spoilt[place : place + length] = bytes(len(spoilt[place : place + length]))
    return bytes(spoilt)


def run(count: int, seed: int = 0) -> Counter:
    """Outcomes of this many mutations: decoded, rejected, slow, or the name of an exception that got through."""
    rng, files, outcomes = np.random.default_rng(seed), sources(), Counter()
    for data in files:
        read_image(io.BytesIO(data))  # the unspoilt ones decode
    for i in range(count):
        spoilt = mutate(files[i % len(files)], rng)
        start = time.process_time()
        try:
            with open_image(io.BytesIO(spoilt)) as image:
                upright_size(image)
            pixels, _ = read_image(io.BytesIO(spoilt))
            outcome = "decoded" if pixels.ndim == 3 and pixels.shape[0] == 3 else "misshapen"
        except ImageError:
            outcome = "rejected"
        except Exception as error:  # noqa: BLE001 - what this counts
            outcome = type(error).__name__
        outcomes["slow" if time.process_time() - start > SECONDS else outcome] += 1
    return outcomes


if __name__ == "__main__":
    sys.stdout.write(json.dumps(run(*map(int, sys.argv[1:]))) + "\n")
