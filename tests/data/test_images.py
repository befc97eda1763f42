"""F21-F30: one documented outcome for every kind of image file."""

import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from msdetr.data import AnnotationError, CocoDetection, ImageError, Remark, build_eval_loader, read_image, to_pixels
from msdetr.data.images import MAX_PIXELS, open_image, upright_size

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 16, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    buffer.seek(0)
    return buffer


def expected(pixels):
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


@pytest.mark.fault("F21")
def test_all_missing_images_are_listed_at_load(folder, content):
    images_dir, file = folder(content)
    (images_dir / "a.png").unlink()
    (images_dir / "empty.png").unlink()
    with pytest.raises(ImageError, match="2 of the 3 images") as error:
        CocoDetection(images_dir, file)
    assert "a.png (image 7)" in str(error.value) and "empty.png (image 9)" in str(error.value)
    with pytest.raises(ImageError, match="no such image folder"):
        CocoDetection(images_dir / "x", file)
    CocoDetection(images_dir, file, limit=1)  # needs only image 3


@pytest.mark.fault("F22")
@pytest.mark.parametrize("spoil", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"<html>404</html>"])
def test_unreadable_image(folder, content, spoil):
    images_dir, file = folder(content)
    path = images_dir / "a.png"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ImageError, match=r"image 7: .*a\.png"):
        CocoDetection(images_dir, file)[1]


@pytest.mark.fault("F22")
@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_unreadable_images_is_counted_and_bounded(folder, content, workers):
    images_dir, file = folder(content)
    (images_dir / "a.png").write_bytes(b"")
    dataset = CocoDetection(images_dir, file, skip_images=1)
    seen = [i for _, targets in build_eval_loader(dataset, 3, workers=workers) for i in targets.image_ids]
    assert seen == [3, 9]  # nothing in its place
    assert dataset.skipped == 1 and "unreadable" in str(dataset.remarks()) and "7" in str(dataset.remarks())
    (images_dir / "b.png").write_bytes(b"")
    dataset = CocoDetection(images_dir, file, skip_images=1)
    second = "image [37]" if workers else "image 7"  # the one that is too many: of two workers, either may come second
    with pytest.raises(ImageError, match=f"ImageError: {second}: " if workers else f"^{second}: "):
        list(build_eval_loader(dataset, 3, workers=workers))


@pytest.mark.fault("F23")
@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_and_palette(mode):
    image = RGB.convert(mode)
    pixels, remark = read_image(encoded(image, "PNG"))
    assert torch.equal(pixels, expected(image.convert("RGB"))) and not remark


@pytest.mark.fault("F24")
def test_cmyk_is_converted_and_noted(folder, content):
    pixels, remark = read_image(encoded(Image.new("CMYK", (8, 6), (0, 0, 0, 0)), "JPEG"))
    assert pixels.shape == (3, 6, 8) and (pixels > 250).all() and remark == Remark.CONVERTED
    content["images"][1]["file_name"] = "b.jpg"
    images_dir, file = folder(content)
    Image.new("CMYK", (20, 20)).save(images_dir / "b.jpg")
    dataset = CocoDetection(images_dir, file)
    assert not dataset.remarks()
    dataset[0], dataset[1]
    (note,) = dataset.remarks().notes
    assert note.ids == (3,) and "color space" in note.kind


@pytest.mark.fault("F25")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_laid_over_white(mode):
    image = Image.new("RGBA", (8, 6), (0, 0, 0, 255))
    image.putpixel((2, 3), (90, 90, 90, 0))
    options = {}
    if mode == "P":
        image = Image.new("P", (8, 6), 0)
        image.putpalette([0, 0, 0, 90, 90, 90])
        image.putpixel((2, 3), 1)
        options["transparency"] = 1
    pixels, _ = read_image(encoded(image.convert(mode), "PNG", **options))
    white = torch.zeros(6, 8, dtype=torch.bool)
    white[3, 2] = True
    assert (pixels[:, white] == 255).all() and (pixels[:, ~white] == 0).all()


@pytest.mark.fault("F25")
def test_half_transparent():
    pixels, _ = read_image(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 128)), "PNG"))
    assert pixels[:, 0, 0].tolist() == [255, 127, 127]


@pytest.mark.fault("F26")
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_rescaled(kind):
    values = np.array([[0, 257, 300, 32768, 65535]], dtype=np.uint16)
    pixels, _ = read_image(encoded(Image.fromarray(values), kind))
    assert pixels[0, 0].tolist() == [0, 1, 1, 128, 255] and torch.equal(pixels[0], pixels[2])


def given_in_every_way(path):
    """The same picture as a path, PIL image, array, tensor; floats in [0, 1] where the array has whole numbers."""
    with Image.open(path) as image:
        array = np.array(image)
        yield Image.open(path)
    yield str(path)
    yield array
    tensor = torch.from_numpy(array if array.ndim == 2 else array.transpose(2, 0, 1).copy())
    yield tensor
    if array.dtype != bool:
        yield (array / np.iinfo(array.dtype).max).astype(np.float32)
        yield tensor.double() / torch.iinfo(tensor.dtype).max
        yield array.astype(array.dtype.newbyteorder(">"))
    yield np.ascontiguousarray(array[::-1])[::-1]


@pytest.mark.fault("F96")
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "1", "I;16"])
def test_one_picture_has_one_set_of_pixels(mode, tmp_path):
    path = tmp_path / "picture.png"
    if mode == "I;16":
        Image.fromarray(RNG.integers(0, 65536, (31, 47), dtype=np.uint16)).save(path)
    else:
        image = RGB.convert(mode)
        if mode in ("RGBA", "LA"):
            image.putalpha(Image.fromarray(RNG.integers(0, 256, (12, 16), dtype=np.uint8)))
        image.save(path)
    pixels, _ = read_image(path)
    assert len(pixels.unique()) > 1
    for given in given_in_every_way(path):
        found = to_pixels(given)
        assert found.dtype == torch.uint8 and torch.equal(found, pixels)


def png_of(array):
    """A PNG of 16 bits per channel [h, w, 2 to 4], which Pillow cannot write."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, channels = array.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.fault("F96")
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bits_of_several_channels(channels, tmp_path):
    array = RNG.integers(0, 65536, (21, 34, channels), dtype=np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(png_of(array))
    pixels, _ = read_image(path)
    planes = torch.from_numpy(array.transpose(2, 0, 1).copy())
    for given in (path, Image.open(path), array, planes, array / 65535, planes.float() / 65535):
        assert torch.equal(to_pixels(given), pixels)


@pytest.mark.fault("F96")
def test_orientation_and_palette_of_pil_images_count(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    RGB.save(tmp_path / "turned.png", exif=exif)
    RGB.convert("P").save(tmp_path / "palette.png", transparency=3)
    RGB.convert("CMYK").save(tmp_path / "inks.jpg")
    for name in ("turned.png", "palette.png", "inks.jpg"):
        assert torch.equal(to_pixels(Image.open(tmp_path / name)), to_pixels(tmp_path / name))
    assert to_pixels(tmp_path / "turned.png").shape == (3, 16, 12)


@pytest.mark.fault("F96")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bytes_survive_every_float(dtype):
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    found = to_pixels((values.double() / 255).to(dtype))
    assert torch.equal(found, values.expand(3, -1, -1))


@pytest.mark.fault("F96")
def test_pil_images_that_cannot_be_read_are_image_errors(tmp_path):
    RGB.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:200])
    with pytest.raises(ImageError, match="PIL image: cannot be decoded"):
        to_pixels(Image.open(tmp_path / "cut.png"))
    with pytest.raises(ImageError, match="8 bits per channel"):
        to_pixels(Image.new("F", (3, 3)))


@pytest.mark.fault("F26")
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_an_error(dtype):
    with pytest.raises(ImageError, match="8 bits per channel"):
        read_image(encoded(Image.fromarray(np.zeros((4, 4), dtype)), "TIFF"))


@pytest.mark.fault("F27")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_applied(kind, turn, folder, content):
    upright = PIXELS
    stored = {  # how the camera stored it, from the EXIF standard: where row 0 and column 0 of the file are
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[turn]
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"PNG": {}, "JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}, "TIFF": {}}[kind]
    file = encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
    pixels = read_image(file)[0].int()
    assert (pixels - expected(upright)).abs().max() <= (4 if kind == "JPEG" else 0)
    with open_image(io.BytesIO(file.getvalue())) as image:
        assert upright_size(image) == (12, 16)
    content["images"][1] |= {"width": 16, "height": 12}
    content["annotations"] = content["annotations"][:2]
    images_dir, annotation_file = folder(content)
    (images_dir / "b.png").write_bytes(file.getvalue())
    assert CocoDetection(images_dir, annotation_file)[0].size == (12, 16)


@pytest.mark.fault("F19")
@pytest.mark.fault("F27")
def test_size_differs_from_the_annotation(folder, content):
    images_dir, file = folder(content)
    Image.new("RGB", (30, 40)).save(images_dir / "a.png")
    with pytest.raises(
        AnnotationError, match=r"image 7: .*a\.png is 30 × 40 pixels upright, its annotation says 40 × 30"
    ):
        CocoDetection(images_dir, file)[1]


@pytest.mark.fault("F28")
@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animation(kind):
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels, remark = read_image(encoded(red, kind, save_all=True, append_images=[blue], **options))
    assert pixels[:, 4, 4].tolist() == [255, 0, 0] and remark == Remark.FIRST_FRAME


def bomb(side):
    """A PNG of a few bytes that claims side × side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.fault("F29")
@pytest.mark.parametrize("side", [10_000, 20_000, 2**31 - 1])
def test_bomb_is_refused_from_its_header(side, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=f"limit is {MAX_PIXELS:,}|bomb"):
        read_image(io.BytesIO(bomb(side)))


@pytest.mark.fault("F30")
@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3, 2000)])
def test_extreme_shapes_pass_through_the_pipelines(size, folder, content, pipelines):
    content["images"][1] |= {"width": size[0], "height": size[1]}
    content["annotations"] = [
        {"id": 1, "image_id": 3, "category_id": 1, "bbox": [0, 0, *size], "area": 1, "iscrowd": 0}
    ]
    images_dir, file = folder(content)
    for transform in pipelines:
        dataset = CocoDetection(images_dir, file, transform)
        for epoch in range(6):  # both ways of the "detr" augmentation
            sample = dataset[epoch, 0]
            assert sample.image.isfinite().all() and min(sample.image.shape) >= 1
            slack = max(size) / min(size) / 2  # DETR rounds the shorter side
            assert max(sample.image.shape[1:]) <= max(1333 + slack, *size)
            assert sample.boxes.isfinite().all()


@pytest.mark.fault("F31")
def test_links_that_leave_the_folder(folder, content, tmp_path):
    images_dir, file = folder(content)
    (images_dir / "a.png").rename(tmp_path / "elsewhere.png")
    (images_dir / "a.png").symlink_to(tmp_path / "elsewhere.png")
    with pytest.raises(AnnotationError, match=r"image 7: a\.png is a link to .*elsewhere\.png"):
        CocoDetection(images_dir, file)
    (images_dir / "a.png").unlink()
    (images_dir / "a.png").symlink_to("b.png")
    CocoDetection(images_dir, file)  # within the folder
    (tmp_path / "link").symlink_to(images_dir)
    CocoDetection(tmp_path / "link", file)  # the folder itself may be one
    (images_dir / "a.png").unlink()
    (images_dir / "a.png").symlink_to("nowhere.png")
    with pytest.raises(ImageError, match=r"a\.png \(image 7\)"):
        CocoDetection(images_dir, file)


@pytest.mark.fault("F31")
def test_linked_subfolder(folder, content, tmp_path):
    images_dir, _ = folder(content)
    (tmp_path / "outside").mkdir()
    (images_dir / "a.png").rename(tmp_path / "outside" / "a.png")
    (images_dir / "sub").symlink_to(tmp_path / "outside")
    content["images"][0]["file_name"] = "sub/a.png"
    with pytest.raises(AnnotationError, match="outside"):
        CocoDetection(*folder(content, images=False))


@pytest.mark.fault("F22")
@pytest.mark.parametrize("count", [260, pytest.param(2000, marks=pytest.mark.slow)])
def test_decoder_corpus(count):
    """Run apart, so that a crash or a hang is a failure of this test and not of the whole run."""
    command = [sys.executable, str(Path(__file__).parent / "corpus.py"), str(count)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    outcomes = json.loads(result.stdout)
    assert set(outcomes) == {"decoded", "rejected"} and sum(outcomes.values()) == count
