"""The first pictures of the course: DETR on one page, and precision over recall."""

import numpy as np
import pytest
from drawing import overlapping_texts

from msdetr.viz.overview import detr_figure, precision_recall_figure


@pytest.mark.filterwarnings("error")
def test_objects_and_levels_are_those_of_the_picture():
    picture = np.zeros((128, 96, 3), np.uint8)
    boxes = np.array([[4, 20, 40, 60], [50, 70, 90, 120]])
    figure = detr_figure(picture, boxes, ["cat", "$dog"])
    words = [text.get_text() for ax in figure.axes for text in ax.texts]
    assert {"16 × 12", "8 × 6", "4 × 3", "0 cat", "1 \\$dog"} <= set(words)
    assert overlapping_texts(figure) == []


@pytest.mark.filterwarnings("error")
def test_the_shaded_area_is_the_average_precision():
    figure = precision_recall_figure([1 / 3, 1 / 3, 2 / 3, 2 / 3], [1, 1 / 2, 2 / 3, 1 / 2], [True, False, True, False])
    [ax] = figure.axes
    assert sum(patch.get_width() * patch.get_height() for patch in ax.patches) == pytest.approx(5 / 9)
    assert overlapping_texts(figure) == []
