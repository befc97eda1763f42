"""From a detector of other classes to one's own, in one call: a released file is as good as a run."""

import json

import pytest
import tiny
import torch

import msdetr
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine import train
from msdetr.errors import CheckpointError, MSDETRError
from msdetr.model import to_released

RESNET = {"model__backbone": "resnet18", "model__backbone_norm": "frozen", "train__epochs": 0}


@pytest.fixture
def config(shapes):
    return tiny.config(shapes, recipe="mine", **RESNET)


@pytest.fixture
def released(config, tmp_path):
    """A file in the released form, of 91 classes, with the repeated heads and all, and its weights under the names here."""
    of_coco = config.override({"model.num_classes": 91})
    torch.manual_seed(5)
    state = msdetr.build(of_coco).state_dict()
    torch.save({"model": to_released(state, of_coco), "epoch": 11}, tmp_path / "released.pth")
    return tmp_path / "released.pth", state


def test_everything_but_the_class_heads_is_taken_over_and_told(config, released, tmp_path):
    file, state = released
    train(config, tmp_path / "run", device="cpu", progress=False, init_from=file, reset_class_head=True)
    kept = checkpoints.find(tmp_path / "run").weights()
    heads = {name for name in kept if kept[name].shape != state[name].shape}
    assert heads and all("class_head" in name for name in heads)
    report = json.loads((tmp_path / "run" / "results.json").read_text())["init_from"]
    assert set(report["taken"]) == set(state) - heads and len(report["misshapen"]) == len(heads)
    assert "tensors taken over" in report["report"] and "[91], here [8]" in report["report"]
    assert all(torch.equal(kept[name], state[name]) for name in report["taken"])


def test_what_does_not_fit_is_told(config, released, tmp_path):
    file, _ = released
    with pytest.raises(CheckpointError, match="the model has 8 classes, the weights 91: give reset_class_head"):
        train(config, tmp_path / "a", device="cpu", progress=False, init_from=file)
    other = config.override({"model.hidden_dim": 64})
    with pytest.raises(CheckpointError, match="misshapen"):
        train(other, tmp_path / "b", device="cpu", progress=False, init_from=file, reset_class_head=True)
    (tmp_path / "none.pth").write_bytes(b"nothing")
    with pytest.raises(MSDETRError, match="is not a released checkpoint"):
        train(config, tmp_path / "c", device="cpu", progress=False, init_from=tmp_path / "none.pth")
