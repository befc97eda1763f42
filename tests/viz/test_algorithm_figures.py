"""Figures of one-to-many matching draw, without overlapping text."""

import numpy as np
import pytest
from drawing import drawn, overlapping_texts

from msdetr.analysis.algorithm import rules, steps, sweep, toy_scene
from msdetr.matching import MatchingRules, class_probability, pair_iou, score
from msdetr.viz.algorithm import rule_figure, scene_figure, score_figure, step_figure, sweep_figure, table_figure


@pytest.mark.filterwarnings("error")
def test_every_figure_draws_without_overlapping_text():
    scene = toy_scene()
    table = score(*scene, 0.3)[0].numpy()
    sweeps = {rule: [sweep(*scene, "k", [1, 2, 3], MatchingRules(rule=rule))] for rule in ("exclusive", "literal")}
    figures = [
        scene_figure(*scene),
        table_figure(table),
        score_figure(class_probability(*scene)[0].numpy(), pair_iou(*scene)[0].numpy(), table, 0.3),
        step_figure(steps(table, 0.4, 3)),
        rule_figure(table, rules(*scene, k=3)),
        sweep_figure(sweeps),
    ]
    for figure in figures:
        assert drawn(figure).std() > 0
        assert overlapping_texts(figure) == []


def test_a_table_frames_what_is_matched_and_pales_what_is_out():
    table = np.array([[0.9, 0.2]])
    figure = table_figure(table, alive=table > 0.5, matched=table > 0.5)
    (ax,) = figure.axes
    assert len(ax.patches) == 1 and ax.patches[0].get_x() < 0 < ax.patches[0].get_x() + ax.patches[0].get_width()
    assert ax.images[0].get_array().mask.tolist() == [[False, True]]
