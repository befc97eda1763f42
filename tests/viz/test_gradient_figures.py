"""Figures of gradients draw, without overlapping text."""

import numpy as np
import pytest
from drawing import drawn, overlapping_texts

from msdetr import recipes
from msdetr.analysis.algorithm import toy_scene
from msdetr.analysis.gradients import BranchGradients, branch_pulls
from msdetr.methods import build_criterion
from msdetr.structures import DetectorOutput
from msdetr.viz.gradients import cosine_figure, focal_figure, pull_figure, reach_figure


@pytest.mark.filterwarnings("error")
def test_every_figure_draws_without_overlapping_text():
    predictions, targets = toy_scene()
    output, criterion = DetectorOutput(predictions, predictions), build_criterion(recipes.get("shapes/ms-detr-c"))
    parts = ("backbone", "layer 1: FFN", "layer 1: class predictor")
    both = BranchGradients(
        parts, ("one_to_one", "one_to_many"), np.array([np.eye(2), np.diag([1.0, 0.0]), np.ones((2, 2))])
    )
    single = BranchGradients(parts[:2], ("one_to_one",), np.ones((2, 1, 1)))
    figures = [
        pull_figure(predictions, targets, branch_pulls(criterion, output, targets)),
        reach_figure({"$both": both, "single": single}),
        cosine_figure({"(c)": [both.cosine("one_to_one", "one_to_many")] * 2}, parts),
        focal_figure(),
    ]
    for figure in figures:
        assert drawn(figure).std() > 0
        assert overlapping_texts(figure) == []


def test_a_part_that_is_not_reached_is_crossed_out():
    table = BranchGradients(("x", "y"), ("one_to_one", "one_to_many"), np.array([np.eye(2), np.diag([1.0, 0.0])]))
    ax = reach_figure({"d": table}).axes[0]
    assert [(t.get_position(), t.get_text()) for t in ax.texts] == [((1, 1), "×")]
