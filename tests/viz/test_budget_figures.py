"""The budget of lost AP as words and pictures."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from budget_scenes import NAMES, random_data
from drawing import overlapping_texts

from msdetr.analysis.budget import Cause, Scene, budget, compare_budgets, diagnose
from msdetr.errors import InputError
from msdetr.viz.budget import budget_figure, comparison_figure, failure_figure
from msdetr.viz.budget_text import budget_text, comparison_text, told_once

SCENES = random_data(12, images=6)
ODD = ("<script>$x$\x1b[31m", "square", "_star")


def drawn_text(figure):
    figure.canvas.draw()
    texts = [text.get_text() for ax in figure.axes for text in (*ax.texts, ax.title, *ax.get_yticklabels())]
    return "\n".join(texts + [text.get_text() for legend in figure.legends for text in legend.get_texts()])


@pytest.mark.fault("F83")
def test_the_words_have_the_whole_budget_and_names_are_harmless():
    found = budget(SCENES, ODD)
    text = budget_text(found, diagnose(found))
    for one in found.whole.causes:
        assert one.cause.title in text or not one.known
    assert f"AP {found.ap:.1f} on {len(SCENES)} images" in text and "\x1b" not in text
    assert "switched: not known" in text.lower() and "longer training: not known" in text
    worst = found.images[0]
    assert f"(image {worst.image_id}): {worst.lost_ap:.1f} points" in text
    assert budget_text(budget([], NAMES)) == "AP is undefined: there are no objects that count"


def test_a_failure_is_told_from_one_side_only():
    boxes, near = [[0, 0, 100, 100]], [[0, 0, 100, 80]]
    found = budget([Scene.of_detections(1, boxes, [0], near, [0.9], [0])], NAMES)
    both = [(one.kind, one.cause) for one in found.failures]
    assert ("false", Cause.PLACED) in both and ("missed", Cause.PLACED) in both
    assert [one.kind for one in told_once(found.failures)] == ["missed"]


def test_two_runs_in_words_and_as_a_picture():
    ours, theirs = budget(SCENES, NAMES), budget([replace(one, found=empty(one.found)) for one in SCENES], NAMES)
    compared = compare_budgets(ours, theirs, ("first $run$", "second"))
    text = comparison_text(compared, objects=1)
    assert f"({-ours.ap:+.1f})" in text and "Missed by B only" in text and "Missed by A only" not in text
    assert "points, by cause" in drawn_text(comparison_figure(compared))


def empty(found):
    return replace(found, **{name: getattr(found, name)[:0] for name in ("boxes", "scores", "labels", "query")})


def test_the_pictures_show_causes_parts_and_failures():
    found = budget(SCENES, ODD)
    text = drawn_text(budget_figure(found))
    assert f"AP {found.ap:.1f}" in text and "wrong class" in text and r"\$x\$" in text
    dataset = SimpleNamespace(
        image_ids=[one.image_id for one in SCENES], pixels=lambda index: torch.zeros(3, 150, 150, dtype=torch.uint8)
    )
    figure = failure_figure(dataset, found.failures, 4, found)
    figure.canvas.draw()
    for ax, one in zip(figure.axes[:4], found.failures):
        shown = ax.get_xlim()[0] <= max(np.clip(one.box[0], 0, 149), 0) and ax.get_ylim()[1] <= one.box[3]
        assert ax.get_title().startswith(f"image {one.image_id}: ") and shown
    assert len(failure_figure(dataset, found.failures, 2).axes) == 2
    with pytest.raises(InputError, match="no failures were given"):
        failure_figure(dataset, [])
    with pytest.raises(InputError, match="no object that counts"):
        budget_figure(budget([], NAMES))


def test_of_many_classes_the_costliest_are_drawn_and_can_be_read():
    boxes = [[10 * i, 0, 10 * i + 9, 20] for i in range(30)]
    scene = Scene.of_detections(1, boxes, range(30), boxes[:5], [0.9] * 5, range(5))
    figure = budget_figure(budget([scene], [f"class {i}" for i in range(30)]))
    right = figure.axes[1]
    names = [label.get_text() for label in right.get_yticklabels()]
    assert names[1:21] == [f"class {i} (1)" for i in range(5, 25)] and "and 10 more classes" in right.get_xlabel()
    assert not overlapping_texts(figure)
