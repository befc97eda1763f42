"""The figures draw the tables' numbers, and say how many runs a band is made of."""

import numpy as np
import pytest
import torch
from drawing import overlapping_texts

from msdetr.analysis import CandidateQuality
from msdetr.structures import Predictions, Targets
from msdetr.viz.candidates import candidate_figure, gap_figure, layer_figure


def table(seed, queries=6, top=8):
    rng = torch.Generator().manual_seed(seed)
    targets = Targets.from_list([torch.tensor([0, 1])], [torch.rand(2, 4, generator=rng) * 0.2 + 0.3])
    boxes = torch.rand(3, 1, queries, 4, generator=rng) * 0.2 + 0.3
    quality = CandidateQuality(top=top)
    quality.update(Predictions(torch.randn(3, 1, queries, 2, generator=rng), boxes), targets)
    return quality.result()


def texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.filterwarnings("error")
def test_draws_the_numbers_of_the_tables():
    runs = [table(seed) for seed in range(3)]
    figure = candidate_figure({"MS-DETR (c)": runs, "baseline": table(9)})
    left, right = figure.axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), np.mean([t.mean_iou[-1, :6] for t in runs], 0))
    np.testing.assert_allclose(right.lines[1].get_ydata(), table(9).above[-1])
    assert texts(figure) == ["MS-DETR (c) (3 runs, mean ± std)", "baseline (1 run)"]
    assert len(left.collections) == 1, "one band: a single run has none"
    assert "2 objects" in figure.get_suptitle()
    figure.draw_without_rendering()


def test_range_is_named_and_drawn():
    runs = [table(seed) for seed in range(3)]
    figure = candidate_figure({"a": runs}, how="range")
    assert texts(figure) == ["a (3 runs, mean, min to max)"]
    band = figure.axes[1].collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(max(t.above[-1].max() for t in runs))
    with pytest.raises(ValueError, match="neither"):
        candidate_figure({"a": runs}, how="sem")


@pytest.mark.filterwarnings("error")
def test_layers_and_gap():
    groups = {"first": [table(0), table(1)], "second": [table(2)]}
    figure = layer_figure(groups, k=3, threshold=0.5)
    assert figure.axes[0].lines[1].get_ydata().tolist() == [table(2).top(3, i) for i in range(3)]
    figure = gap_figure(groups)
    np.testing.assert_allclose(figure.axes[0].lines[1].get_ydata(), table(2).gap)
    for drawn in (figure, layer_figure(groups, k=3), candidate_figure(groups)):
        assert overlapping_texts(drawn) == []


@pytest.mark.fault("F82")
@pytest.mark.filterwarnings("error")
def test_undefined_points_are_left_out():
    assert len(candidate_figure({"few queries": table(0, queries=3, top=8)}).axes[0].lines[0].get_xdata()) == 3


@pytest.mark.fault("F83")
def test_hostile_run_name_is_drawn_as_it_is():
    name = "_$\\frac{1}$ <b>"
    figure = candidate_figure({name: table(0)})
    figure.draw_without_rendering()  # mathtext would raise here
    assert "frac" in texts(figure)[0]


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="at least one run"):
        candidate_figure({})
    with pytest.raises(ValueError, match="numbers of layers, k"):
        candidate_figure({"a": [table(0), table(1, top=5)]})
    with pytest.raises(ValueError, match="other k"):
        candidate_figure({"a": table(0), "b": table(1, top=5)})
