"""Duplicates with and without self-attention, drawn."""

import numpy as np
import pytest
from drawing import overlapping_texts

from msdetr.analysis.rivals import Rivals
from msdetr.viz.rivals import rivals_figure


@pytest.mark.filterwarnings("error")
def test_bars_are_what_was_measured():
    whole = Rivals(0.4, 0.5, 10, 1.9, np.array([1.1, 1.8]), np.array([0.9, 0.8]))
    cut = Rivals(0.2, 0.25, 10, 5.6, np.array([np.nan]), np.array([np.nan]))
    figure = rivals_figure({"Deformable DETR++": (whole, cut), "MS-DETR (c)": (whole, cut)})
    assert [bar.get_height() for bar in figure.axes[0].patches] == [1.9, 5.6, 1.9, 5.6]
    assert overlapping_texts(figure) == []
