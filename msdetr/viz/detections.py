"""Detections drawn into the image they were found in, at its own size."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..predictor import NamedDetections
from .style import PALETTE


def drawn(pixels: Tensor, detections: NamedDetections) -> Image.Image:
    """The image with a box, a class and a score per detection, the surest on top; a color per class.

    pixels: [3, H, W] uint8, or float in [0, 1].
    """
    if pixels.is_floating_point():
        pixels = (pixels * 255).round()
    image = Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    draw = ImageDraw.Draw(image)
    side = max(image.size)
    width, font = max(1, round(side / 300)), _font(max(10, round(side / 45)))
    rows = list(
        zip(detections.boxes.tolist(), detections.labels.tolist(), detections.names, detections.scores.tolist())
    )
    for box, label, name, score in reversed(rows):
        color = PALETTE[label % len(PALETTE)]
        draw.rectangle(box, outline=color, width=width)
        text = f"{name} {score:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        height, pad = bottom - top, 2 * width
        x = min(max(box[0], 0), max(image.width - right - 2 * pad, 0))
        y = box[1] - height - 2 * pad if box[1] >= height + 2 * pad else box[1]
        draw.rectangle((x, y, x + right - left + 2 * pad, y + height + 2 * pad), fill=color)
        draw.text((x + pad - left, y + pad - top), text, fill=_readable(color), font=font)
    return image


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Matplotlib's own font: it comes with every installation and knows more than ASCII."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _readable(color: str) -> str:
    """Black or white, whichever stands out more on a color "#rrggbb" (relative luminance of sRGB, ITU-R BT.709)."""
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "black" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "white"
