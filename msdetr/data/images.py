"""Images as bytes: one documented outcome for every kind of file, and the same pixels from PIL images, arrays and tensors.

| file or PIL image | outcome |
|---|---|
| RGB, grey, palette, black and white | RGB |
| alpha or transparent palette | laid over white |
| CMYK, YCCK, Lab and other color spaces | converted to RGB, noted |
| 16 bits per channel | the upper 8 bits; 32-bit integers and floats are an error |
| EXIF orientation | always applied; width and height in the annotations are those of the upright image |
| animation, several pages | first frame, noted (of a PIL image: the frame it stands at) |
| truncated, empty, no image, unknown format | ImageError |
| more than MAX_PIXELS | ImageError from the header, before anything is decoded |

| array [h, w], [h, w, C] or tensor [h, w], [C, h, w] | outcome |
|---|---|
| C = 1, none; 3; 2, 4 | grey; RGB; grey or RGB with alpha, laid over white |
| bool | False is 0, True is 255 |
| uint8 | as it is |
| uint16 | the upper 8 bits |
| float of any width | [0, 1] stands for black to white: floor(255.999 x), torchvision's rule; outside, or NaN, InputError |
| other types | InputError: they have no defined range |
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

from ..errors import AnnotationError, ImageError, InputError, InputTypeError

MAX_PIXELS = 89_478_485  # Pillow's own limit of suspicion
ImageLike = str | os.PathLike | np.ndarray | Tensor | Image.Image
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")  # none that runs another program
_LISTED = 1000
_TIFF_WIDTH, _TIFF_LENGTH = 256, 257  # tags

Image.init()  # registers every format, so that FORMATS can be asked for


class Remark(enum.IntFlag):
    """What was out of the ordinary about an image that could be read."""

    CONVERTED = 1  # from another color space than grey or RGB
    FIRST_FRAME = 2  # of an animation
    SKIPPED = 4  # could not be read and was left out

    @property
    def text(self) -> str:
        return {
            Remark.CONVERTED: "converted from another color space to RGB",
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
    try:
        _check_size(image, source)
    except ImageError:
        image.close()
        raise
    return image


def _check_size(image: Image.Image, source: str | Path | BinaryIO) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or width < 1 or height < 1:
        raise ImageError(
            f"{source}: {width} × {height} pixels, the limit is {MAX_PIXELS:,} in all; scale the image down"
        )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (height, width) of an opened image once the EXIF orientation is applied."""
    width, height = image.size
    if image.format == "TIFF":  # Pillow turns these itself, its versions differ in when
        width, height = image.tag_v2.get(_TIFF_WIDTH, width), image.tag_v2.get(_TIFF_LENGTH, height)
    return (width, height) if orientation(image) >= 5 else (height, width)


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 (upright) to 8; 5 and above swap width and height. Unreadable metadata counts as upright."""
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
        return _decode(image, str(source))


def _decode(image: Image.Image, source: str) -> tuple[Tensor, Remark]:
    """Decodes an opened image to its upright pixels, uint8 RGB [3, h, w]."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            animated = getattr(image, "is_animated", False) and image.format != "MPO"
            image.load()
            turn = orientation(image)  # after loading: Pillow turns a TIFF itself, and then takes the tag away
            pixels, converted = _to_rgb(image, source)
            if turn != 1:
                pixels = _upright(pixels, turn)
    except ImageError:
        raise
    except Exception as error:
        raise ImageError(f"{source}: cannot be decoded ({_reason(error)}); replace or remove the file") from error
    remark = Remark.FIRST_FRAME if animated else Remark(0)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous(), remark | converted


def to_pixels(image: ImageLike) -> Tensor:
    """Returns an image, however it is given, as uint8 RGB [3, h, w]; see the tables of this module.

    The same picture gives the same pixels as a path, a PIL image, an array or a tensor. Raises ImageError for files and PIL
    images that cannot be read, InputError for arrays and tensors of other layouts, types or ranges, and InputTypeError
    for anything else.
    """
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)[0]
    if isinstance(image, Image.Image):
        _check_size(image, "the PIL image")
        return _decode(image, "the PIL image")[0]
    if isinstance(image, np.ndarray):
        return _from_channels(_planes_of_array(image))
    if isinstance(image, Tensor):
        return _from_channels(_planes_of_tensor(image))
    raise InputTypeError(f"image: expected a path, PIL image, array or tensor, got {type(image).__name__}")


def _planes_of_array(array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "bf" and array.dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise InputError(f"an array must be uint8, uint16, bool, or float in [0, 1]; got {array.dtype}")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4):
        channels_first = array.ndim == 3 and array.shape[0] in (1, 2, 3, 4)
        hint = "; turn it with array.transpose(1, 2, 0)" if channels_first else ""
        raise InputError(f"an array must be [h, w] or [h, w, 1 to 4 channels]; got {list(array.shape)}{hint}")
    native = np.float64 if array.dtype.kind == "f" else array.dtype.newbyteorder("=")
    return torch.from_numpy(array.astype(native)).permute(2, 0, 1)


def _planes_of_tensor(tensor: Tensor) -> Tensor:
    if not (tensor.is_floating_point() or tensor.dtype in (torch.uint8, torch.uint16, torch.bool)):
        raise InputError(f"a tensor must be uint8, uint16, bool, or float in [0, 1]; got {tensor.dtype}")
    planes = tensor.detach().cpu()
    if planes.dim() == 2:
        planes = planes[None]
    if planes.dim() != 3 or planes.shape[0] not in (1, 2, 3, 4):
        hint = ""
        if planes.dim() == 4:
            hint = "; give a batch as a list of tensors: list(tensor)"
        elif planes.dim() == 3 and planes.shape[-1] in (1, 2, 3, 4):
            hint = "; turn it with tensor.permute(2, 0, 1)"
        raise InputError(f"a tensor must be [h, w] or [1 to 4 channels, h, w]; got {list(planes.shape)}{hint}")
    return planes.as_subclass(Tensor)


def _from_channels(planes: Tensor) -> Tensor:
    """uint8 RGB [3, h, w] of 1 to 4 planes [C, h, w]."""
    if not planes.numel():
        raise InputError(f"an image needs pixels; got one of {planes.shape[-1]} × {planes.shape[-2]}")
    if planes.is_floating_point():
        values = planes.double()
        if not bool(((values >= 0) & (values <= 1)).all()):
            low, high = float(values.min()), float(values.max())
            raise InputError(
                f"an image of floats must lie in [0, 1] (black to white, not normalised); found {low:g} to {high:g}"
            )
        planes = (values * 255.999).to(torch.uint8)
    elif planes.dtype == torch.uint16:
        planes = (planes.int() >> 8).to(torch.uint8)
    elif planes.dtype == torch.bool:
        planes = planes.to(torch.uint8) * 255
    if len(planes) in (1, 3):
        return planes.expand(3, -1, -1).contiguous()
    array = np.ascontiguousarray(planes.permute(1, 2, 0).numpy())
    image = Image.fromarray(array)  # [h, w, 2] is LA, [h, w, 4] RGBA
    return _decode(image, "the image")[0]


def _to_rgb(image: Image.Image, source: str) -> tuple[Image.Image, Remark]:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image, Remark(0)
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(f"{source}: values beyond 16 bits; convert it to 8 bits per channel")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB"), Remark(0)
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


SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS)


def image_files(folder: str | Path) -> list[Path]:
    """Lists the image files of a folder, by name; hidden files and folders within it are passed over. Raises ImageError for none."""
    folder = Path(folder)
    try:
        named = [path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.name[0] != "."]
        found = sorted(path for path in named if path.is_file())
    except OSError as error:
        raise ImageError(f"{folder}: cannot be listed ({error.strerror}); give a folder that may be read") from error
    if not found:
        raise ImageError(f"{folder}: no image files in this folder; supported: {', '.join(FORMATS)}")
    return found


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
        elif escaping[parent]:
            linked = _first_link(root, parent)
            raise AnnotationError(
                f"{annotation_file}: image {image_id}: {name}: the folder {linked} is a link to {os.path.realpath(linked)}, "
                f"outside {root}; put the folder itself in its place (copied, or mounted)"
            )
        elif is_link and not _within(os.path.realpath(path), root):
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


def _first_link(root: str, inner: str) -> str:
    """The outermost folder on the way from ``root`` to ``inner`` in it that is a link; else the way's end."""
    place = root
    for part in inner.split(os.sep):
        place = os.path.join(place, part)
        if os.path.islink(place):
            break
    return place


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)
