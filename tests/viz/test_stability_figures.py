"""Flip rates and the animation, from records of a tiny detector."""

import numpy as np
import pytest
import small
import torch
from PIL import Image

from msdetr.analysis.specimen import recorded
from msdetr.analysis.stability import FlipRates, MatchRecorder, load_history
from msdetr.methods import build_detector
from msdetr.structures import ImageBatch, Targets
from msdetr.viz.explorer import Explorer
from msdetr.viz.stability import animate, filmstrip_figure, flip_figure


@pytest.mark.filterwarnings("error")
def test_flip_rates_are_drawn_per_layer_and_epoch():
    rates = np.array([[0.9, 0.8], [0.5, np.nan], [0.1, 0.2]])
    figure = flip_figure(
        FlipRates(np.arange(3), np.array([0.5, 1.0, 2.0]), {"one_to_one": rates}, {"one_to_one": rates > 0})
    )
    (ax,) = figure.axes
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [0.7, 0.1])
    np.testing.assert_allclose(ax.lines[3].get_ydata(), [0.8, 0.2])
    figure.draw_without_rendering()


def test_a_branch_with_several_queries_an_object_is_not_called_one_to_one():
    steps, rates = np.arange(2), np.full((2, 1), 0.5)
    one, several = (
        flip_figure(FlipRates(steps, steps + 1.0, {"one_to_one": rates}, {"one_to_one": rates}, frozenset(names)))
        for names in ((), ("one_to_one",))
    )
    assert one.axes[0].get_title() == "one-to-one: objects whose query changed"
    assert several.axes[0].get_title() == "decoder: queries of an object that changed"


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    torch.manual_seed(0)
    config = small.config("c", **{
        "model.num_classes": 3, "model.num_queries": 12, "model.num_points": 2, "model.dropout": 0.0, "ms_detr.k": 6,
        "ms_detr.threshold": 0.0,
    })  # fmt: skip
    detector = build_detector(config)
    folder = tmp_path_factory.mktemp("matching")
    targets = Targets.from_list([torch.tensor([0])], [torch.tensor([[0.5, 0.5, 0.5, 0.5]])], image_ids=[7])
    batch = ImageBatch.from_images([torch.randn(3, 64, 64)])
    recorder = MatchRecorder(folder, batch, targets, config, every=1)
    for step in range(3):
        recorder(detector, step, step / 2)
        with torch.no_grad():
            for parameter in detector.decoder.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return load_history(folder)


def test_animation_has_a_frame_per_record(tmp_path, history):
    with Image.open(animate(history, tmp_path / "training.gif")) as gif:
        assert gif.n_frames == 3


def test_steps_of_a_training_run_can_be_explored(history):
    explorer = Explorer.of_history(history)
    assert explorer.steps == ["0", "1", "2"] and explorer.images == ["7"]
    assert "step 1" in explorer.figure(step=1).get_suptitle()
    first = recorded(history, 0, 0).output.one_to_one.boxes
    torch.testing.assert_close(first, history.states[0].one_to_one.boxes)


def test_a_filmstrip_has_two_rows_of_frames(history):
    titles = [ax.get_title() for ax in filmstrip_figure(history, most=2).axes]
    assert [title.split(":")[0] for title in titles] == ["step 0", "step 2"] * 2
