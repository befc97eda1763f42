"""Folders of transformers' Deformable DETR, and its operator replaced by ours; where it is installed, against itself."""

import json
import shutil
from pathlib import Path

import pytest
import small
import torch
from safetensors.torch import load_file, save_file

import msdetr
from msdetr.errors import CheckpointError, ConfigError, InputError
from msdetr.integrations import transformers as ours
from msdetr.methods import build_detector
from msdetr.predictor import Predictor

PLAIN = {
    "model.backbone": "resnet18",
    "model.look_forward_twice": False,
    "model.num_levels": 4,
    "two_stage.mixed_selection": False,
}


def predictor(**changes) -> Predictor:
    torch.manual_seed(0)
    config = small.config("baseline", **PLAIN | changes)
    detector = build_detector(config)
    for parameter in detector.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return Predictor(detector.strip(), config, [f"thing {i}" for i in range(8)], device="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return ours.save_transformers(predictor(), tmp_path_factory.mktemp("saved") / "model")


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


MODELS = {
    "two-stage": {},
    "one-stage": {"two_stage": None},
    "one-stage without refinement": {"two_stage": None, "model.box_refine": False},
    "one level": {"two_stage": None, "model.num_levels": 1},
    "two levels": {"two_stage": None, "model.num_levels": 2},
}


@pytest.mark.parametrize("model", MODELS)
def test_what_is_written_is_read(model, tmp_path):
    saved = predictor(**MODELS[model])
    loaded = msdetr.load(ours.save_transformers(saved, tmp_path / "model"), device="cpu")
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        want, found = saved.detector(images).one_to_one, loaded.detector(images).one_to_one
    assert torch.equal(found.logits, want.logits) and torch.equal(found.boxes, want.boxes)
    assert loaded.class_names == saved.class_names
    backbone = json.loads((tmp_path / "model" / "config.json").read_text())["backbone_config"]
    levels = saved.config.model.num_levels
    assert backbone["out_indices"] == [2, 3, 4][3 - min(levels, 3) :]  # no map that no level reads
    assert len(loaded.predict(torch.rand(3, 64, 64), max_detections=3)) == 3


def test_tied_class_heads_are_read(tmp_path):
    """A one-stage model with refinement that transformers made holds one class head for all layers."""
    folder = ours.save_transformers(predictor(two_stage=None), tmp_path / "model")
    state = load_file(folder / "model.safetensors")
    del state["class_embed.1.weight"], state["class_embed.1.bias"]
    save_file(state, folder / "model.safetensors")
    first, second = msdetr.load(folder, device="cpu").detector.decoder.class_heads
    assert torch.equal(first.weight, second.weight)


def test_a_dilated_backbone_has_a_finer_last_map():
    config = small.config("baseline", **PLAIN | {"model.backbone": "resnet50", "model.dilation": True})
    maps = build_detector(config).backbone(torch.zeros(1, 3, 64, 64))
    assert [x.shape[-1] for x in maps] == [8, 4, 4]
    with pytest.raises(ConfigError, match=r"model.dilation: resnet18 cannot be dilated; resnet50"):
        small.config("baseline", **PLAIN | {"model.dilation": True})


# ---------------------------------------------------------------- bad input


def settings(**changes):
    def change(folder):
        values = json.loads((folder / "config.json").read_text())
        values |= changes
        (folder / "config.json").write_text(json.dumps(values))

    return change


def tensors(change):
    def changed(folder):
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return changed


BAD = {
    "another model": (settings(model_type="detr"), "model_type is 'detr'; only 'deformable_detr'"),
    "learned positions": (settings(position_embedding_type="learned"), "position_embedding_type = 'learned'"),
    "another activation": (settings(activation_function="gelu"), "activation_function = 'gelu'"),
    "two numbers of heads": (settings(decoder_attention_heads=2), "decoder_attention_heads = 2; here they are one"),
    "two-stage without refinement": (settings(with_box_refine=False), "two_stage without with_box_refine"),
    "another backbone": (settings(backbone_config={"model_type": "swin"}), "its backbone is a 'swin'"),
    "an unknown ResNet": (
        settings(backbone_config={"model_type": "timm_backbone", "backbone": "resnet26"}),
        "no backbone 'resnet26'",
    ),
    "names that are no mapping": (settings(id2label=["a", "b"]), "id2label must give the names"),
    "names with gaps": (settings(id2label={"0": "a", "2": "b"}), "id2label must give the names"),
    "a number that is none": (settings(d_model="wide"), "is no model here: .*hidden_dim"),
    "too few layers": (settings(decoder_layers=1), "unexpected decoder."),
    "too many layers": (settings(encoder_layers=2), "missing encoder.layers.1"),
    "another number of classes": (settings(id2label={"0": "a"}), r"class_heads.0.bias is \[8\], not \[1\]"),
    "a tensor missing": (tensors(lambda s: s.pop("model.level_embed")), "missing level_embedding"),
    "a name too many": (tensors(lambda s: s.update(x=torch.zeros(1))), "unknown names: x"),
    "a part of a projection missing": (
        tensors(lambda s: s.pop("model.decoder.layers.0.self_attn.k_proj.weight")),
        "needs q_proj, k_proj and v_proj",
    ),
    "not a number": (
        tensors(lambda s: s["model.level_embed"].fill_(torch.nan)),
        "level_embedding has values that are no",
    ),
    "one tensor twice": (
        tensors(lambda s: s.update({"bbox_embed.0.layers.0.bias": torch.ones(32)})),
        "bbox_embed.0.layers.0.bias: is given twice, with different values",
    ),
    "weights cut short": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-1000]),
        "model.safetensors: cannot be read",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors; .*max_shard_size"),
}


@pytest.mark.fault("F104")
@pytest.mark.parametrize("case", BAD)
def test_folders_that_only_look_like_transformers(case, folder):
    change, message = BAD[case]
    change(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        msdetr.load(folder, device="cpu")
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"two_stage.mixed_selection": True}, "does not have two_stage.mixed_selection"),
        ({"model.backbone": "conv", "model.num_levels": 3}, "does not have the backbone conv"),
        ({"loss.l1_weight": 2.5}, "whole numbers only for bbox_loss_coefficient; loss.l1_weight is 2.5"),
        ({"ms_detr.variant": "c"}, "does not have cross-attention before self-attention"),
        ({"mr_detr.mix_layers": True}, "does not have class scores mixed over layers"),
    ],
)
def test_models_that_transformers_does_not_have(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        ours.save_transformers(predictor(**changes), tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---------------------------------------------------------------- transformers itself


@pytest.fixture(scope="module")
def theirs():
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'msdetr[transformers]'")
    pytest.importorskip("timm", reason="timm is not installed: pip install 'msdetr[transformers]'")
    from transformers import DeformableDetrForObjectDetection

    return DeformableDetrForObjectDetection


def run(model, images):
    with torch.no_grad():
        found = model(images, pixel_mask=torch.ones(len(images), *images.shape[-2:], dtype=torch.long))
    return found.logits, found.pred_boxes


@pytest.mark.parametrize("kind", ["two-stage", "one-stage"])
def test_transformers_reads_what_is_written(theirs, kind, tmp_path):
    saved = predictor(**MODELS[kind])
    model = theirs.from_pretrained(ours.save_transformers(saved, tmp_path / "model")).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        want = saved.detector(images).one_to_one
    logits, boxes = run(model, images)
    torch.testing.assert_close(logits, want.logits[-1], rtol=0, atol=1e-4)
    torch.testing.assert_close(boxes, want.boxes[-1], rtol=0, atol=2e-5)


def test_the_operator_is_replaced_and_given_back(theirs, folder):
    from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention as Theirs

    model, images = theirs.from_pretrained(folder).eval(), torch.randn(1, 3, 64, 96)
    before, original = run(model, images), Theirs.forward
    with ours.patch():
        assert Theirs.forward is not original
        calls, inside = [], ours.ms_deform_attn
        ours.ms_deform_attn = lambda *args: (calls.append(1), inside(*args))[1]
        try:
            patched = run(model, images)
        finally:
            ours.ms_deform_attn = inside
        assert len(calls) == 3  # one encoder layer, two decoder layers
    assert Theirs.forward is original
    for found, want in zip(patched, before):
        torch.testing.assert_close(found, want, rtol=0, atol=1e-4)
    undo = ours.patch()
    undo.undo()
    undo.undo()
    assert Theirs.forward is original


def test_models_without_the_operator(theirs):
    with pytest.raises(InputError, match="detr: has no MultiScaleDeformableAttention"):
        ours.patch("detr")
    with pytest.raises(InputError, match="no_such_model cannot be imported"):
        ours.patch("no_such_model")
