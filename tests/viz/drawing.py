"""What figures are asked in tests: their pixels, and whether texts overlap."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image


def drawn(figure):
    """The figure as pixels; drawing it must give no warning."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=60)
    return np.asarray(Image.open(buffer))


def overlapping_texts(figure):
    """Pairs of texts whose boxes intersect."""
    figure.draw_without_rendering()
    renderer = FigureCanvasAgg(figure).get_renderer()
    outside = {
        label
        for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for tick in axis.get_major_ticks()
        for label in (tick.label1, tick.label2)
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }  # fmt: skip
    texts = [t for t in figure.findobj(Text) if t.get_text().strip() and t.get_visible() and t not in outside]
    boxes = [(t.get_text(), t.get_window_extent(renderer)) for t in texts]
    return [
        (a, b) for i, (a, x) in enumerate(boxes) for b, y in boxes[i + 1 :]
        if min(x.x1, y.x1) - max(x.x0, y.x0) > 1.5 and min(x.y1, y.y1) - max(x.y0, y.y0) > 1.5
    ]  # fmt: skip
