"""The important figures, pixel by pixel: each is compared with the picture of it in ``pictures/``.

After a change that is meant to be seen, renew the pictures, look at those that have changed, and commit them:

    RENEW_PICTURES=1 python -m pytest tests/viz/test_pictures.py
"""

import os
from pathlib import Path

import matplotlib.ft2font
import numpy as np
import pytest
import small
import torch
from matplotlib.testing import set_font_settings_for_testing
from matplotlib.testing.compare import compare_images
from matplotlib.testing.exceptions import ImageComparisonFailure
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from small import as_variant

from msdetr import recipes
from msdetr.analysis import CandidateQuality
from msdetr.analysis.algorithm import rules, steps, toy_scene
from msdetr.analysis.architecture import trace_layer
from msdetr.analysis.arrays import predictions_from_arrays, targets_from_arrays
from msdetr.analysis.gradients import branch_pulls
from msdetr.analysis.look import SamplingPoints
from msdetr.analysis.runs import Run
from msdetr.analysis.specimen import Specimen
from msdetr.analysis.stability import FlipRates
from msdetr.config import RunConfig
from msdetr.matching import MatchingRules, score
from msdetr.methods import build_criterion, build_detector
from msdetr.structures import DetectorOutput, ImageBatch
from msdetr.viz import algorithm, architecture, candidates, gradients, matching, runs, stability

PICTURES = Path(__file__).parent / "pictures"
RENEW = "RENEW_PICTURES=1 python -m pytest tests/viz/test_pictures.py"
# Root mean square over all pixels, of 255. The same figure drawn by matplotlib 3.11.0 and 3.11.2 differs by less than
# 0.1, one without a single pale number of a table by 0.5, with a thin box moved or two lines' colors swapped by 0.6
# and more, without its legend by 6 and more. Another minor release of matplotlib sets text otherwise: 14 and more.
TOLERANCE = 0.3
DRAWN_BY = "matplotlib {}.{}, FreeType {}.{}".format(
    *matplotlib.__version__.split(".")[:2], *matplotlib.ft2font.__freetype_version__.split(".")[:2]
)


# --- what is drawn: numbers written here, or from a seeded generator ---------------------------------------------------


def specimen():
    """Three objects on a small picture. Ten queries come closer to them from layer to layer and become surer: in the
    one-to-many branch all of them, in the one-to-one branch two for object 0, one for object 1 and none for object 2."""
    draw = np.random.default_rng(4)
    objects = np.array([[0.28, 0.40, 0.36, 0.50], [0.52, 0.55, 0.30, 0.50], [0.84, 0.30, 0.20, 0.32]])
    near = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 0])
    errors = draw.uniform(-1, 1, (10, 4)) * np.linspace(0.03, 0.16, 10)[[0, 3, 5, 8, 1, 4, 7, 2, 6, 9], None]
    boxes = np.stack([objects[near] + scale * errors for scale in (1.6, 1.0, 0.6, 0.35)])[:, None]
    scores = draw.uniform(0.02, 0.15, (2, 3, 1, 10, 3))
    sure = np.array([[0.9, 0.8, 0.2, 0.1, 0.8, 0.3, 0.2, 0.3, 0.2, 0.1], np.full(10, 0.8)])
    for scored, surest in zip(scores, sure, strict=True):
        scored[:, 0, range(10), near] = np.array([0.4, 0.7, 1.0])[:, None] * surest + 0.01 * draw.uniform(size=10)
    picture = np.full((60, 90, 3), 200, np.uint8)
    corners = np.concatenate([objects[:, :2] - objects[:, 2:] / 2, objects[:, :2] + objects[:, 2:] / 2], 1)
    shades = ((150, 170, 210), (215, 185, 140), (150, 200, 180))
    for (x0, y0, x1, y1), shade in zip((corners * [90, 60, 90, 60]).round().astype(int), shades, strict=True):
        picture[y0:y1, x0:x1] = shade
    one, many = (predictions_from_arrays(boxes[1:], scored) for scored in scores)
    output = DetectorOutput(one, many, references=torch.from_numpy(boxes[:3]))
    targets = targets_from_arrays(objects, [0, 1, 2])
    return Specimen(output, targets, MatchingRules(), picture, ("dog", "cat", "bird"))


def variants():
    """Figure 4 of the paper, as the decoder layers ran (what they compute is not drawn)."""
    batch, one_layer = ImageBatch.from_images([torch.zeros(3, 64, 64)]), {"model.decoder_layers": 1}
    detectors = {v: build_detector(small.config(v, **one_layer)) for v in ("baseline", "a", "b", "c", "d")}
    return architecture.variant_figure({name: trace_layer(model, batch) for name, model in detectors.items()})


def algorithm_steps():
    return algorithm.step_figure(steps(score(*toy_scene(), 0.3)[0].numpy(), threshold=0.4, k=3))


def matching_rules():
    return algorithm.rule_figure(score(*toy_scene(), 0.3)[0].numpy(), rules(*toy_scene(), k=3))


def assignments():
    return matching.assignment_figure(specimen().explain(k=3), specimen().picture)


def object_candidates():
    return matching.ranking_figure(specimen().explain(k=2).one_to_many, 0, layer=1, picture=specimen().picture)


def query_path():
    draw = np.random.default_rng(0)
    weights = draw.dirichlet(np.ones(4), (3, 10, 2)).reshape(3, 10, 2, 2, 2)
    points = [SamplingPoints(draw.uniform(0.1, 0.6, (10, 2, 2, 2, 2)), weight) for weight in weights]
    return matching.query_figure(specimen().explain(), 1, specimen().picture, points)


def why_not():
    return matching.why_not_figure(specimen().explain().one_to_many, 4, 0, picture=specimen().picture)


def outcomes():
    found = specimen().explain()
    return matching.outcome_figure(found, found.outcomes(0.5), specimen().picture)


def candidate_quality():
    def table(seed, error):
        draw = np.random.default_rng(seed)
        quality = CandidateQuality(top=15)
        for box in draw.uniform(0.3, 0.6, (20, 1, 4)):  # an object in every image
            boxes = box + error * np.linspace(0.1, 1, 15)[:, None] * draw.uniform(-1, 1, (15, 4))
            quality.update(predictions_from_arrays(boxes, np.full((15, 1), 0.5)), targets_from_arrays(box, [0]))
        return quality.result()

    return candidates.candidate_figure(
        {"MS-DETR (c)": [table(i, 0.15 + 0.03 * i) for i in range(3)], "baseline": table(3, 0.35)}
    )


def groups():
    def run(seed, ap, variant):
        metrics = {"AP": ap, "AP50": ap + 0.2, "AP75": ap - 0.05, "APs": ap / 2, "APm": ap, "APl": None}
        evaluations = [{"epoch": e, "AP": ap * e / (e + 2), "AP50": (ap + 0.2) * e / (e + 1)} for e in range(1, 9)]
        config = RunConfig().override({"seed": seed, **as_variant(variant)})
        return Run(Path(f"{variant}{seed}"), config, {"metrics": metrics}, [], evaluations)

    return {
        "MS-DETR (c)": [run(0, 0.50, "c"), run(1, 0.56, "c"), run(2, 0.53, "c")],
        "Deformable DETR++": [run(0, 0.41, "baseline"), run(1, 0.45, "baseline")],
    }


def learning_curves():
    return runs.learning_curve_figure(groups())


def comparison():
    return runs.comparison_figure(groups())


def flip_rates():
    epochs = np.arange(1, 13) / 2
    one = np.exp(-epochs[:, None] / np.array([6.0, 4.0, 3.0])) * (1 + 0.1 * np.sin(5 * epochs)[:, None])
    counts = np.ones_like(one)
    rates = {"one_to_one": 0.9 * one, "one_to_many": 0.5 * one}
    counted, several = dict.fromkeys(rates, counts), frozenset({"one_to_many"})
    return stability.flip_figure(FlipRates(50 * np.arange(1, 13), epochs, rates, counted, several))


def gradient_pulls():
    predictions, targets = toy_scene()
    output, criterion = DetectorOutput(predictions, predictions), build_criterion(recipes.get("shapes/ms-detr-c"))
    pulls = branch_pulls(criterion, output, targets)
    return gradients.pull_figure(predictions, targets, {"one_to_many": pulls["one_to_many"]})


FIGURES = (
    variants, algorithm_steps, matching_rules, assignments, object_candidates, query_path, why_not, outcomes,
    candidate_quality, learning_curves, comparison, flip_rates, gradient_pulls,
)  # fmt: skip


# --- comparing ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def settings():
    """Every setting that is not a figure's own is fixed."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        set_font_settings_for_testing()
        matplotlib.rcParams["text.hinting"] = "none"  # letters keep their shape, whatever FreeType makes of hints
        yield


def save(figure, path):
    """The figure as a small PNG that says what has drawn it."""
    figure.savefig(path, dpi=50)
    note = PngInfo()
    note.add_text("Software", DRAWN_BY)
    Image.open(path).convert("RGB").save(path, pnginfo=note, optimize=True)
    return path


def difference(expected, actual):
    """None, or what differs and where the picture of the differences lies."""
    try:
        found = compare_images(expected, actual, TOLERANCE, in_decorator=True)
    except ImageComparisonFailure as error:  # of another size
        return f"{expected} and {actual}: {error}"
    return found and f"{Path(actual).name}: root mean square {found['rms']:.2f} > {TOLERANCE}; look at {found['diff']}"


@pytest.mark.parametrize("draw", FIGURES, ids=lambda draw: draw.__name__)
def test_the_figure_looks_as_its_picture(draw, tmp_path):
    expected = PICTURES / f"{draw.__name__}.png"
    if os.environ.get("RENEW_PICTURES"):
        save(draw(), expected)
    assert expected.exists(), f"{expected} is missing; to draw it: {RENEW}"
    with Image.open(expected) as image:
        drawn_by = image.info.get("Software")
    if drawn_by != DRAWN_BY:
        pytest.skip(
            f"the pictures were drawn by {drawn_by}, and {DRAWN_BY} sets text otherwise; to renew them: {RENEW}"
        )
    found = difference(expected, save(draw(), tmp_path / expected.name))
    assert found is None, f"{found}\nIf the figure is meant to look so: {RENEW}"


def test_every_picture_is_of_a_figure_and_small():
    assert {path.stem for path in PICTURES.glob("*.png")} == {draw.__name__ for draw in FIGURES}
    assert max(path.stat().st_size for path in PICTURES.glob("*.png")) < 40_000


def without_legend(figure):
    figure.legends[0].set_visible(False)


def colors_swapped(figure):
    first, second = figure.axes[0].lines[:2]
    colors = first.get_color(), second.get_color()
    second.set_color(colors[0])
    first.set_color(colors[1])


def box_moved(figure):
    """By 5 % of its panel, one that is drawn thin and dashed."""
    box = next(patch for patch in figure.axes[0].patches if patch.get_linestyle() == "--")
    box.set_x(box.get_x() + 0.05 * abs(np.subtract(*figure.axes[0].get_xlim())))


def label_dropped(figure):
    """The smallest: a pale number of a table."""
    figure.axes[1].texts[-1].set_visible(False)


@pytest.mark.parametrize(
    ("draw", "damage"),
    [(learning_curves, without_legend), (learning_curves, colors_swapped), (assignments, box_moved),
     (algorithm_steps, label_dropped)],
    ids=lambda function: function.__name__,
)  # fmt: skip
def test_the_comparison_notices(draw, damage, tmp_path):
    figure = draw()
    expected = save(figure, tmp_path / "expected.png")
    figure.set_layout_engine("none")  # everything else stays in its place
    assert difference(expected, save(figure, tmp_path / "same.png")) is None
    damage(figure)
    assert "damaged-failed-diff.png" in difference(expected, save(figure, tmp_path / "damaged.png"))
