"""From a detector of other classes to one's own, in one call: a released file is as good as a run."""

import json

import pytest
import tiny
import torch

import msdetr
from msdetr.engine import checkpoint as checkpoints
from msdetr.engine import train
from msdetr.engine.transformers_folder import save_transformers
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


THEIRS = {"ms_detr": None, "two_stage.mixed_selection": False, "model.look_forward_twice": False}


@pytest.mark.fault("F133")
def test_a_folder_of_transformers_is_as_good(config, tmp_path):
    """Where its settings are others, the error has the line that makes them the same."""
    theirs = config.override(THEIRS | {"model.num_classes": 91})
    torch.manual_seed(5)
    detector = msdetr.build(theirs)
    names = [f"thing {i}" for i in range(91)]
    folder = save_transformers(msdetr.Predictor(detector.strip(), theirs, names, device="cpu"), tmp_path / "theirs")
    with pytest.raises(
        CheckpointError, match=r"is a model of other settings than mine.*: --set two_stage.mixed_selection=false$"
    ):
        train(config.override({"ms_detr": None}), tmp_path / "a", device="cpu", progress=False, init_from=folder)
    one_stage = config.override(
        {"ms_detr": None, "two_stage": None, "model.look_forward_twice": False, "model.num_queries": 9}
    )
    with pytest.raises(CheckpointError, match=r"--set two_stage.mixed_selection=false model.num_queries=20$"):
        train(one_stage, tmp_path / "b", device="cpu", progress=False, init_from=folder)
    mine = config.override(THEIRS)
    results = train(mine, tmp_path / "c", device="cpu", progress=False, init_from=folder, reset_class_head=True)
    kept, state = checkpoints.find(tmp_path / "c").weights(), detector.state_dict()
    heads = {name for name in state if "class_head" in name}
    assert (
        set(results["init_from"]["taken"]) == set(state) - heads and "[91], here [8]" in results["init_from"]["report"]
    )
    assert all(torch.equal(kept[name], state[name]) for name in results["init_from"]["taken"])


def test_a_one_stage_model_is_named_as_such(config, tmp_path):
    theirs = config.override(
        {"ms_detr": None, "two_stage": None, "model.box_refine": False, "model.look_forward_twice": False}
    )
    folder = save_transformers(msdetr.Predictor(msdetr.build(theirs), theirs, device="cpu"), tmp_path / "theirs")
    with pytest.raises(
        CheckpointError, match=r"--set two_stage=null model.box_refine=false model.look_forward_twice=false$"
    ):
        train(config.override({"ms_detr": None}), tmp_path / "a", device="cpu", progress=False, init_from=folder)


@pytest.mark.fault("F133")
def test_a_folder_that_only_looks_like_transformers(config, tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text('{"model_type": "yolos"}')
    (tmp_path / "theirs" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model_type is 'yolos'; only 'deformable_detr'"):
        train(config, tmp_path / "a", device="cpu", progress=False, init_from=tmp_path / "theirs")
