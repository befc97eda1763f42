import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from msdetr import recipes
from msdetr.config import RunConfig, TrainConfig
from msdetr.engine import MovingAverage, lr_factor, parameter_groups
from msdetr.engine.optim import build_optimizer
from msdetr.engine.start import drop_explained
from msdetr.methods import build_detector


def test_groups_are_those_of_the_paper():
    config = RunConfig().override({"model.pretrained": "none", "model.encoder_layers": 1, "model.decoder_layers": 1})
    detector = build_detector(config)
    rest, backbone, projection = parameter_groups(detector, config.train)
    assert [group["name"] for group in (rest, backbone, projection)] == ["rest", "backbone", "projection"]
    assert [group["lr"] for group in (rest, backbone, projection)] == [2e-4, 2e-5, pytest.approx(2e-5)]
    assert all(name.startswith("backbone.") for name in backbone["names"]) and len(backbone["names"]) == 42
    assert all("sampling_offsets" in name or "reference_points" in name for name in projection["names"])
    trainable = {name for name, parameter in detector.named_parameters() if parameter.requires_grad}
    assert sorted(rest["names"] + backbone["names"] + projection["names"]) == sorted(trainable)


@given(total=st.integers(2, 400), share=st.floats(0.05, 0.9))
def test_one_cycle_is_that_of_torch(total, share):
    if share * total <= 1:  # torch divides by zero there
        return
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    oracle = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=total, pct_start=share)
    config = TrainConfig(schedule="one_cycle", warmup_fraction=share)
    for step in range(total):
        assert lr_factor(config, step, total, 10) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        if step < total - 1:
            oracle.step()


@given(total=st.integers(1, 50), share=st.floats(0, 1), step=st.integers(0, 49))
def test_factors_stay_between_zero_and_one(total, share, step):
    for schedule in ("one_cycle", "step", "constant"):
        config = TrainConfig(schedule=schedule, warmup_fraction=share)
        assert 0 < lr_factor(config, min(step, total - 1), total, 5) <= 1


def test_step_schedule_drops_at_the_epoch():
    config = TrainConfig(schedule="step", drop_epoch=11)
    assert [lr_factor(config, step, 120, 10) for step in (0, 109, 110, 119)] == [1, 1, 0.1, 0.1]
    assert lr_factor(TrainConfig(schedule="constant"), 119, 120, 10) == 1


@pytest.mark.parametrize(
    ("epochs", "drop", "said"),
    [
        (6, 11, "learning rates never fall, as training ends at epoch 6; train.drop_epoch=5 suits this length"),
        (12, 12, "learning rates never fall, as training ends at epoch 12; train.drop_epoch=10 suits this length"),
        (24, 11, "13 of 24 epochs are trained at a tenth of the learning rates; train.drop_epoch=20 suits this length"),
        (0.5, 11, "learning rates never fall, as training ends at epoch 0.5; train.drop_epoch=0.417 suits this length"),
        (12, 8, None),
        (0, 11, None),
    ],
)
def test_a_drop_that_does_not_suit_the_epochs_is_told(epochs, drop, said):
    told = drop_explained(TrainConfig(epochs=epochs, drop_epoch=drop))
    assert [note.split(": ")[1].removeprefix("the ") for note in told] == ([said] if said else [])
    assert not drop_explained(TrainConfig(epochs=epochs, drop_epoch=drop, schedule="one_cycle"))


def test_no_recipe_has_a_drop_that_does_not_suit_it():
    assert not [name for name in recipes.names() if drop_explained(recipes.get(name).train)]


def test_moving_average_is_the_weighted_sum():
    layer = nn.Linear(2, 2)
    average = MovingAverage(layer, 0.9)
    expected = layer.weight.detach().clone()
    for step in range(30):
        with torch.no_grad():
            layer.weight.add_(1.0)
        average.update(layer, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * layer.weight.detach()
    torch.testing.assert_close(average.detector.weight, expected)
    assert not average.detector.weight.requires_grad


def test_optimizer_is_adamw_of_the_configuration():
    optimizer = build_optimizer(nn.Linear(2, 2), TrainConfig(betas=(0.8, 0.95), weight_decay=0.3))
    assert all(group["betas"] == (0.8, 0.95) and group["weight_decay"] == 0.3 for group in optimizer.param_groups)
