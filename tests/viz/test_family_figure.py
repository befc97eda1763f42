"""The family in one picture: what is said of a method is drawn, and can be read."""

import pytest
from drawing import overlapping_texts
from matplotlib.patches import FancyBboxPatch

from msdetr.viz.family import FAMILY, family_figure


@pytest.mark.filterwarnings("error")
def test_every_lane_is_drawn_and_only_what_training_has_is_dashed():
    figure = family_figure()
    for ax, method in zip(figure.axes, FAMILY, strict=False):
        boxes = [patch for patch in ax.patches if isinstance(patch, FancyBboxPatch)][2:]  # encoder, decoder, lanes
        assert [box.get_linestyle() for box in boxes] == ["-" if lane.stays else "--" for lane in method.lanes]
        assert {lane.name for lane in method.lanes} <= {text.get_text() for text in ax.texts}
    assert overlapping_texts(figure) == []
