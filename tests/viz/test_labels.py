"""Names beside boxes: inside the picture, on each other only where there is no room left."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from msdetr.viz.labels import draw_labels, place_labels, readable_on


def shared(a, b):
    return max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))


@pytest.mark.parametrize("seed", range(20))
def test_names_stay_inside_and_never_cover_more_than_above_the_box(seed):
    draw = np.random.default_rng(seed)
    low = draw.uniform(0, 80, (6, 2))
    boxes = np.concatenate([low, np.minimum(low + draw.uniform(5, 60, (6, 2)), 100)], 1).tolist()
    sizes = [(18.0, 5.0)] * 6
    places = place_labels(boxes, sizes, (0, 0, 100, 100))
    for x0, y0, x1, y1 in places:
        assert x0 >= 0 and y0 >= 0 and x1 <= 100 + 1e-9 and y1 <= 100 + 1e-9
        assert (x1 - x0, y1 - y0) == pytest.approx((18, 5))

    def covered(spots):
        return sum(shared(spots[i], spots[j]) for i in range(6) for j in range(i))

    first = [place_labels([box], [size], (0, 0, 100, 100))[0] for box, size in zip(boxes, sizes, strict=True)]
    assert covered(places) <= covered(first)


def test_boxes_alike_have_their_names_apart():
    places = place_labels([(20, 20, 60, 60)] * 4, [(15.0, 5.0)] * 4, (0, 0, 100, 100))
    assert all(shared(a, b) == 0 for i, a in enumerate(places) for b in places[:i])


def test_pale_colors_get_dark_letters():
    ax = Figure().subplots()
    ax.set(xlim=(0, 100), ylim=(100, 0))
    draw_labels(ax, [(10, 10, 30, 30), (50, 50, 90, 90)], ["cat", "$dog"], ["#ffffff", "#0173b2"])
    assert [text.get_color() for text in ax.texts] == [readable_on("#ffffff"), "white"]
    assert readable_on("#ffffff") != "white" and ax.texts[1].get_text() == "\\$dog"
