"""Reading image files: one documented outcome for every kind of file.

| file | outcome |
|---|---|
| RGB, grey, palette | RGB |
| alpha or transparent palette | laid over white |
| CMYK, YCCK, Lab and other colour spaces | converted to RGB, noted |
| 16 bits per channel | rescaled to 8 bits by 255 / 65535; 32-bit integers and floats are an error |
| EXIF orientation | always applied; width and height in the annotations are those of the upright image |
| animation, several pages | first frame, noted |
| truncated, empty, no image, unknown format | ImageError |
| more than MAX_PIXELS | ImageError from the header, before anything is decoded |
"""

from __future__ import annotations

import enum
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from ..errors import AnnotationError, ImageError

MAX_PIXELS = 89_478_485  # Pillow's own limit of suspicion
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")  # none that runs another program
_LISTED = 1000
_TIFF_WIDTH, _TIFF_LENGTH = 256, 257  # tags

Image.init()  # registers every format, so that FORMATS can be asked for


class Remark(enum.IntFlag):
    """What was out of the ordinary about an image that could be read."""

    CONVERTED = 1  # from another colour space than grey or RGB
    FIRST_FRAME = 2  # of an animation
    SKIPPED = 4  # could not be read and was left out

    @property
    def text(self) -> str:
        return {
            Remark.CONVERTED: "converted from another colour space to RGB",
            Remark.FIRST_FRAME: "animated: first frame used",
            Remark.SKIPPED: "unreadable and left out",
        }[self]


def open_image(source: str | Path | BinaryIO) -> Image.Image:
    """Opens an image and checks its header; nothing is decoded yet. Raises ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about odd metadata and size: the size is checked here
            image = Image.open(source, formats=FORMATS)
    except FileNotFoundError:
        raise ImageError(f"{source}: no such image") from None
    except Exception as error:  # decoders raise anything from SyntaxError to struct.error on garbage
        raise ImageError(
            f"{source}: not a readable image ({_reason(error)}); supported: {', '.join(FORMATS)}"
        ) from error
    width, height = image.size
    if width * height > MAX_PIXELS or width < 1 or height < 1:
        image.close()
        raise ImageError(
            f"{source}: {width} × {height} pixels, the limit is {MAX_PIXELS:,} in all; scale the image down"
        )
    return image


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) of an opened image once the EXIF orientation is applied."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow turns these itself, its versions differ in when
        width, height = image.tag_v2.get(_TIFF_WIDTH, width), image.tag_v2.get(_TIFF_LENGTH, height)
    return (width, height) if orientation(image) >= 5 else (height, width)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 (upright) to 8; 5 and above swap width and height. Unreadable metadata counts as upright."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if type(value) is int and 1 <= value <= 8 else 1
    except Exception:  # noqa: BLE001 - metadata nobody can read does not make the pixels wrong
        return 1


def read_image(source: str | Path | BinaryIO) -> tuple[Tensor, Remark]:
    """Decodes an image to uint8 RGB [3, h, w], with what was remarkable about it. See the table of this module.

    Raises ImageError.
    """
    with open_image(source) as image:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                remark = (
                    Remark.FIRST_FRAME if getattr(image, "is_animated", False) and image.format != "MPO" else Remark(0)
                )
                image.load()
                turn = orientation(image)  # after loading: Pillow turns a TIFF itself, and then takes the tag away
                pixels, converted = _to_rgb(image, str(source))
                if turn != 1:
                    pixels = _upright(pixels, turn)
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(f"{source}: cannot be decoded ({_reason(error)}); replace or remove the file") from error
    array = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    return array.contiguous(), remark | converted


def _to_rgb(image: Image.Image, source: str) -> tuple[Image.Image, Remark]:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image, Remark(0)
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{source}: values beyond 16 bits; convert it to 8 bits per channel")
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB"), Remark(0)
    if mode in ("I", "F"):
        raise ImageError(f"{source}: 32-bit pixels have no defined range; convert it to 8 bits per channel")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        opaque = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB"), Remark(0)
    if mode in ("L", "P", "1"):
        return image.convert("RGB"), Remark(0)
    return image.convert("RGB"), Remark.CONVERTED


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image, turn: int) -> Image.Image:
    return image.transpose(_TURNS[turn])


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def check_files(folder: str | Path, names: Sequence[str], image_ids: Sequence[int], annotation_file: Path) -> None:
    """Raises ImageError listing every image that is missing, AnnotationError where a link leads out of the folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such image folder (for {annotation_file})")
    root = os.path.realpath(folder)
    listings: dict[str, dict[str, bool]] = {}  # directory -> file name -> whether it is a link
    escaping: dict[str, bool] = {}
    missing = []
    for name, image_id in zip(names, image_ids):
        parent, base = os.path.split(name)
        if parent not in listings:
            directory = os.path.join(root, parent)
            try:
                with os.scandir(directory) as entries:
                    listings[parent] = {entry.name: entry.is_symlink() for entry in entries}
            except OSError:
                listings[parent] = {}
            escaping[parent] = not _within(os.path.realpath(directory), root)
        is_link = listings[parent].get(base)
        path = os.path.join(root, name)
        if is_link is None or (is_link and not os.path.exists(path)):
            missing.append(f"{name} (image {image_id})")
        elif escaping[parent] or (is_link and not _within(os.path.realpath(path), root)):
            raise AnnotationError(
                f"{annotation_file}: image {image_id}: {name} is a link to {os.path.realpath(path)}, outside {root}; "
                "copy the file into the image folder, or name the folder it lies in"
            )
    if missing:
        listed = "\n  ".join(missing[:_LISTED])
        more = f"\n  … and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
        raise ImageError(
            f"{len(missing)} of the {len(names)} images of {annotation_file} are not in {folder}; "
            f"fetch them or take them out of the annotations:\n  {listed}{more}"
        )


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
