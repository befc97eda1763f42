"""The microscope's figures, texts, widget and command, on scenes and detectors small enough for seconds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawing import drawn, overlapping_texts

from msdetr import recipes
from msdetr.analysis.look import SamplingPoints
from msdetr.analysis.matching import Outcome
from msdetr.analysis.specimen import Specimen
from msdetr.errors import InputError
from msdetr.viz.explorer import Explorer
from msdetr.viz.matching import (
    assignment_figure,
    object_color,
    outcome_figure,
    query_figure,
    ranking_figure,
    why_not_figure,
)
from msdetr.viz.text import assignment_text, candidate_text, outcome_text, path_text

HOSTILE = ("$\\frac{$", "<script>\x1b[31m")


@pytest.fixture
def specimen():
    rng = np.random.default_rng(0)
    objects = np.array([[0.3, 0.3, 0.3, 0.3], [0.7, 0.6, 0.3, 0.4]])
    boxes = np.clip(np.repeat(objects, 5, 0)[None] + rng.normal(0, 0.04, (2, 10, 4)), 0.05, 0.95)
    return Specimen.from_arrays(
        boxes[:, None], rng.uniform(0.1, 0.9, (2, 1, 10, 2)), objects, [0, 1],
        picture=rng.integers(0, 255, (40, 60, 3), dtype=np.uint8), class_names=HOSTILE, name="toy",
    )  # fmt: skip


@pytest.mark.fault("F83")
@pytest.mark.filterwarnings("error")
def test_every_figure_draws_with_hostile_names_and_without_overlapping_text(specimen):
    found = specimen.explain()
    query = found.one_to_many.serving(0)[0]
    points = [SamplingPoints(np.random.rand(10, 2, 1, 2, 2), np.full((10, 2, 1, 2), 0.5)) for _ in range(2)]
    figures = [
        assignment_figure(found, specimen.picture),
        ranking_figure(found.one_to_many, 0, picture=specimen.picture),
        ranking_figure(found.one_to_one, 1),
        query_figure(found, query, specimen.picture, points),
        why_not_figure(found.one_to_many, query, 1, picture=specimen.picture),
        why_not_figure(found.one_to_one, query, 1),
        outcome_figure(found, found.outcomes(0.3), specimen.picture),
        Explorer.of_specimens([specimen]).figure(),
    ]
    for figure in figures:
        assert drawn(figure).std() > 0
        assert overlapping_texts(figure) == []


def test_boxes_are_drawn_where_they_are(specimen):
    """The pixels of an object's outline have the object's color."""
    found = specimen.explain(k=1)
    white = Specimen(specimen.output, specimen.targets, specimen.matching, np.full((100, 100, 3), 255, np.uint8))
    ax = assignment_figure(white.explain(k=1), white.picture, branches=["one_to_many"]).axes[0]
    solid = [p for p in ax.patches if p.get_linestyle() == "-" and p.get_linewidth() < 3]
    np.testing.assert_allclose(
        [(p.get_x() + p.get_width() / 2, p.get_y() + p.get_height() / 2) for p in solid], [[30, 30], [70, 60]]
    )
    dashed = [p for p in ax.patches if p.get_linestyle() == "--"]
    assert len(dashed) == int(found.one_to_many.matched[0].sum())
    assert {tuple(p.get_edgecolor()) for p in dashed} <= {tuple(p.get_edgecolor()) for p in solid}
    assert object_color(0) != object_color(1)


def test_matching_by_overlap_is_drawn_under_its_own_name_without_scores_and_costs(specimen):
    """DETA: what is drawn are the boxes that queries start from, of which the numbers are."""
    output = specimen.output
    output = replace(output, references=output.one_to_one.boxes.flip(2).contiguous())
    found = replace(specimen, output=output, config=recipes.get("shapes/deta")).explain()
    titles = [ax.get_title() for ax in assignment_figure(found, specimen.picture).axes]
    assert [title.split(",")[0] for title in titles] == ["decoder"] * 2 + ["one-to-many"] * 2
    for text in (assignment_text(found), candidate_text(found.one_to_one, 0)):
        assert "decoder" in text and "one-to-one" not in text
    figure = ranking_figure(found.one_to_one, 0, picture=specimen.picture)
    left, middle = figure.axes
    assert "boxes that queries start from" in left.get_title()
    assert [text.get_text() for text in middle.get_legend().get_texts()] == ["threshold = 0.6", "IoU"]
    assert drawn(figure).std() > 0 and overlapping_texts(figure) == []
    why = why_not_figure(found.one_to_one, 7, 0)
    assert why.legends[0].get_texts()[-1].get_text() == "box that query 7 starts from"
    x, _, w, _ = output.references[0, 0, 7].tolist()
    assert [p.get_x() for p in why.axes[0].patches if p.get_linestyle() == "--"] == pytest.approx([x - w / 2])
    assert not any("cost" in text.get_text() for text in why.axes[1].texts)


def test_the_legend_of_a_path_names_what_is_drawn(specimen):
    legend = query_figure(specimen.explain(), 0).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["box it predicts", "object it serves"]
    references = specimen.output.one_to_one.boxes[..., :2]
    point = replace(specimen, output=replace(specimen.output, references=references))
    assert "reference point" in query_figure(point.explain(), 0).legends[0].get_texts()[0].get_text()


def test_the_legend_names_every_level_of_the_pyramid(specimen):
    points = [SamplingPoints(np.random.rand(10, 2, 5, 2, 2), np.full((10, 2, 5, 2), 0.1)) for _ in range(2)]
    texts = [text.get_text() for text in query_figure(specimen.explain(), 0, None, points).legends[0].get_texts()]
    assert [text for text in texts if "level" in text] == [f"looks at level {level}" for level in range(5)]


def test_many_objects_leave_room_for_the_picture():
    rng = np.random.default_rng(0)
    objects = np.concatenate([rng.uniform(0.1, 0.9, (60, 2)), np.full((60, 2), 0.05)], 1)
    many = Specimen.from_arrays(objects, rng.uniform(0, 1, (60, 2)), objects, [0] * 60)
    figure = assignment_figure(many.explain())
    figure.draw_without_rendering()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(texts) == 11 and texts[8] == "and 52 more objects"
    assert figure.axes[0].get_position().width > 0.8


@pytest.mark.fault("F83")
def test_text_says_the_same_and_is_inert(specimen):
    found = specimen.explain()
    queries = found.one_to_many.serving(1, 0)
    text = assignment_text(found)
    assert ", ".join(map(str, queries)) in text and "as it would be" in text
    table = candidate_text(found.one_to_many, 0, top=3)
    assert len(table.splitlines()) == 5 and f"{found.one_to_many.candidates(0)[0].score:.3f}" in table
    assert "layer 2" in path_text(found.query_path(0), 0, specimen.class_names)
    outcomes = found.outcomes(0.99)
    assert all(o.outcome is not Outcome.FOUND for o in outcomes) and "missed" in outcome_text(outcomes)
    assert "\x1b" not in text + table + outcome_text(outcomes)


def test_settings_change_the_picture_and_unknown_ones_are_errors(specimen):
    explorer = Explorer.of_specimens([specimen])
    assert "k = 2" in explorer.figure(k=2).get_suptitle()
    assert "τ = 0.9" in explorer.figure(threshold=0.9).get_suptitle()
    with pytest.raises(ValueError, match="threshold"):
        explorer.figure(treshold=0.9)
    with pytest.raises(ValueError, match="at most 1"):
        explorer.figure(alpha=2)
    with pytest.raises(IndexError):
        explorer.figure(layer=7)
    assert "one-to-many" in explorer.text() and "rank" in explorer.text(target=1)


def test_the_widget_carries_the_images(specimen):
    pytest.importorskip("anywidget")
    widget = Explorer.of_specimens([specimen]).widget()
    (image,) = json.loads(widget.content)["images"]
    assert len(image["labels"]) == len(specimen.targets) and image["views"][0]["frame"] is not None
    assert widget.chosen == {} and "export default" in widget._esm
    specimen.output.one_to_one.boxes[:] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        Explorer.of_specimens([specimen]).widget()
