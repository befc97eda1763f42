"""Learning curves and comparisons draw the runs' own numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawing import overlapping_texts
from small import as_variant

from msdetr.analysis.runs import Run, compare
from msdetr.config import RunConfig
from msdetr.viz.runs import (
    branch_figure,
    class_figure,
    comparison_figure,
    cost_figure,
    learning_curve_figure,
    loss_figure,
)
from msdetr.viz.text import verdict_text


def run(seed, ap, variant="c"):
    config = RunConfig().override({"seed": seed, **as_variant(variant)})
    metrics = {"AP": ap, "AP50": ap + 0.2, "AP75": ap - 0.05, "APs": ap / 2, "APm": ap, "APl": None}
    results = {
        "status": "finished", "metrics": metrics, "per_class": {"cat": ap, "$<b>_dog": ap / 2, "none": None},
        "parameters": {"total": 2_000_000}, "seconds": 60.0 * (seed + 1), "steps": 20, "device": "cpu",
    }  # fmt: skip
    steps = [{"step": i, "epoch": i / 10, "loss": 9 - i / 4, "grad_norm": 3.0} for i in range(1, 21)]
    evaluations = [{"step": s, "epoch": s / 10, "AP": ap * s / 20, "AP50": ap} for s in (10, 20)]
    return Run(Path(f"run{seed}"), config, results, steps, evaluations)


@pytest.fixture
def groups():
    return {"MS-DETR (c)": [run(0, 0.5), run(1, 0.6), run(2, 0.58)], "Deformable DETR++": [run(0, 0.4, "baseline")]}


@pytest.mark.fault("F83")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", [learning_curve_figure, loss_figure, comparison_figure, cost_figure, class_figure])
def test_draws_without_overlap(groups, draw):
    assert overlapping_texts(draw(groups)) == []


def test_numbers(groups):
    ax = learning_curve_figure(groups).axes[0]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [28.0, 56.0])
    bars = comparison_figure(groups).axes[0].containers[0]
    np.testing.assert_allclose([bar.get_height() for bar in bars], [56, 76, 51, 28, 56, 0], atol=1e-9)
    assert "3 runs, mean ± std" in comparison_figure(groups).legends[0].get_texts()[0].get_text()


@pytest.mark.fault("F80")
def test_undefined_is_written_not_drawn_as_a_number(groups):
    words = [text.get_text() for text in comparison_figure(groups).axes[0].texts]
    assert words.count("undefined") == 2


@pytest.mark.fault("F80")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [0.0, 2e-4])
def test_undefined_stays_in_the_picture_beside_very_small_numbers(value):
    weak = run(0, value)
    weak.results["metrics"].update({"AP50": value, "AP75": value})
    figure = comparison_figure({"MS-DETR (c)": [weak]})
    figure.canvas.draw()
    [ax] = figure.axes
    words = [text for text in ax.texts if text.get_text() == "undefined"]
    assert words and all(ax.bbox.contains(*text.get_window_extent().p0) for text in words)
    assert overlapping_texts(figure) == []


@pytest.mark.filterwarnings("error")
def test_branches_add_up_to_what_was_logged(groups):
    terms = {f"one_to_one/{term}": [0.5, 0.5] for term in ("class", "l1", "giou")}
    terms |= {f"encoder/{term}": [1.0] for term in ("class", "l1", "giou")}
    line = {"terms": terms, "positives_per_object": {"one_to_one": 1.0, "encoder": 1.0}}
    bare = groups["Deformable DETR++"][0]
    figure = branch_figure(replace(bare, steps=[step | line for step in bare.steps]))
    weights = bare.config.loss
    drawn = {ax.get_label(): ax.get_ydata()[0] for ax in figure.axes[0].lines}
    assert drawn["one-to-one"] == pytest.approx(weights.class_weight + weights.l1_weight + weights.giou_weight)
    assert set(drawn) == {"one-to-one", "encoder"} and overlapping_texts(figure) == []


def test_a_verdict_needs_seeds_and_more_than_twice_their_scatter(groups):
    base = {"Deformable DETR++": [run(seed, 0.4 + seed / 100, "baseline") for seed in range(3)]}
    ours = {"MS-DETR (c)": groups["MS-DETR (c)"]}  # 0.5, 0.6, 0.58
    assert verdict_text(compare(base | ours)).endswith("twice the larger scatter is 10.6: this passes")
    near = {"MS-DETR (c)": [run(seed, 0.42 + seed / 100) for seed in range(3)]}
    assert "+2.0 points" in verdict_text(compare(base | near)) and "shows nothing" in verdict_text(compare(base | near))
    assert "anecdote" in verdict_text(compare({"Deformable DETR++": base["Deformable DETR++"][:1]} | ours))
    assert "undefined" in verdict_text(compare(base | ours), "APl")
