"""Pictures for work with COCO."""

import json
from types import SimpleNamespace

import pytest
import torch
from drawing import drawn, overlapping_texts
from matplotlib.colors import to_rgba

from msdetr.data import Categories, CocoDetection
from msdetr.structures import Detections
from msdetr.viz.coco import category_figure, first_steps_figure, photo_credits, thumbnail_figure
from msdetr.viz.data import detection_figure, sample_figure

SAMPLES = "data/samples"


@pytest.fixture
def samples(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    return CocoDetection(f"{SAMPLES}/val", f"{SAMPLES}/annotations/instances_val.json")


def test_credits_say_what_may_be_shown(tmp_path):
    images = [
        {"id": 1, "license": 4, "flickr_url": "http://x"},
        {"id": 2, "license": 3},
        {"id": 3},
        {"id": 4, "license": 99},
    ]
    (tmp_path / "a.json").write_text(json.dumps({"images": images}))
    found = photo_credits(tmp_path / "a.json")
    assert (found[1].licence, found[1].source, found[1].free) == ("CC BY 2.0", "http://x", True)
    assert [found[i].free for i in (2, 3, 4)] == [False, True, False]


def test_thumbnails_are_small_and_carry_their_note(samples):
    figure = thumbnail_figure(samples, [0, 2], {samples.image_ids[0]: "CC BY $2.0$"}, side=40)
    shapes = [ax.images[0].get_array().shape for ax in figure.axes]
    assert all(max(shape[:2]) == 40 for shape in shapes)
    assert [len(ax.patches) for ax in figure.axes] == [len(samples[i].labels) for i in (0, 2)]
    assert "CC BY" in figure.axes[0].get_title() and drawn(figure).std() > 0
    assert figure.axes[1].get_title() == f"image {samples.image_ids[2]}"
    with pytest.raises(ValueError, match="no image"):
        thumbnail_figure(samples, [])


def test_pictures_lie_where_their_boxes_do(samples):
    """A box of the whole image has its edges on those of the pixels, not half a pixel off."""
    height, width = samples.pixels(0).shape[-2:]
    [ax] = sample_figure(samples, count=1).axes
    assert tuple(ax.images[0].get_extent()) == (0, width, height, 0) == (*ax.get_xlim(), *ax.get_ylim())
    [ax] = thumbnail_figure(samples, [0], side=40).axes
    w, h = round(width * 40 / max(height, width)), round(height * 40 / max(height, width))
    assert tuple(ax.images[0].get_extent()) == (0, w, h, 0) == (*ax.get_xlim(), *ax.get_ylim())


def test_annotated_objects_look_as_the_legend_says(samples):
    nothing = Detections(torch.zeros(0), torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), torch.zeros(0))
    predictor = SimpleNamespace(predict=lambda pixels, min_score: nothing, class_names=samples.class_names)
    figure = detection_figure(predictor, samples, count=1)
    drawn_boxes = {(p.get_edgecolor(), p.get_linestyle(), p.get_linewidth()) for p in figure.axes[0].patches}
    entry = figure.legends[0].legend_handles[1]
    assert drawn_boxes == {(to_rgba(entry.get_color()), entry.get_linestyle(), entry.get_linewidth())}
    assert entry.get_path_effects(), "the edge that makes it visible on white"


def test_categories_show_the_gaps():
    contiguous = Categories(("a", "b", "c"), (1, 2, 5))
    raw = Categories(("-", "a", "b", "-", "-", "c"), (None, 1, 2, None, None, 5))
    figure = category_figure(contiguous, raw)
    dashed, dotted, *gaps = figure.axes[0].lines
    assert list(dashed.get_ydata()) == [1, 2, 5] and list(dotted.get_ydata()) == [0, 1, 2]
    assert [line.get_xdata()[0] for line in gaps] == [3, 4]
    assert not overlapping_texts(figure)


def test_first_steps_of_a_run_and_a_baseline():
    def run(positives):
        steps = [
            {
                "step": i,
                "terms": {"one_to_one/class": [2, 1 / (i + 1)], "one_to_one/l1": [1, 0.5]},
                "positives_per_object": positives,
            }
            for i in range(20)
        ]
        return SimpleNamespace(steps=steps)

    figure = first_steps_figure({"ours": run({"one_to_one": 1, "one_to_many": 3}), "baseline": run({"one_to_one": 1})})
    terms, boxes, positives = figure.axes
    assert list(terms.lines[0].get_ydata()) == [1 / (i + 1) for i in range(20)]
    assert len(boxes.lines) == 2 and len(positives.lines) == 1
    assert not overlapping_texts(figure)
