import copy

import pytest
import small
import torch

from msdetr.errors import CheckpointError, ConfigError, InputError
from msdetr.methods import build_criterion, build_detector
from msdetr.model import from_released, to_released
from msdetr.modules import VARIANTS
from msdetr.structures import ImageBatch, Targets


def small_config(variant="c", **changes):
    return small.config(variant, **{"model.num_queries": 12, **changes})


def small_model(variant="c", **changes):
    torch.manual_seed(0)
    model = build_detector(small_config(variant, **changes))
    for parameter in model.parameters():  # away from zero starts, so that every path carries something
        if not parameter.abs().sum():
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def batch_of(*sizes):
    generator = torch.Generator().manual_seed(1)
    return ImageBatch.from_images([torch.randn(3, h, w, generator=generator) for h, w in sizes])


RESNET = {"model.backbone": "resnet18", "model.pretrained": "none"}
LW_DETR = {"two_stage": None, "lw_detr.groups": 2, "model.query_positions": "references"}
TARGETS = Targets.from_list(
    [torch.tensor([1, 2]), torch.tensor([3])],
    [torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.2]]), torch.tensor([[0.5, 0.5, 0.4, 0.4]])],
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_and_gradients(variant):
    """Every parameter of every variant learns from one step."""
    config = small_config(variant)
    model = small_model(variant).train()
    output = model(batch_of((64, 96), (80, 64)))
    assert output.one_to_one.logits.shape == (2, 2, 12, 8)
    assert output.references.shape == (2, 2, 12, 4)
    assert (output.one_to_many is None) == (variant == "baseline")
    config = config.override({"ms_detr.threshold": 0.0})
    build_criterion(config)(output, TARGETS).total.backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


@pytest.mark.parametrize(
    "changes",
    [
        {"two_stage": None},
        {
            "two_stage": None,
            "model.look_forward_twice": False,
            "model.box_refine": False,
        },
        {"two_stage.mixed_selection": False, "model.look_forward_twice": False},
        {"model.num_levels": 4},
        {"model.num_levels": 1},
        {"ms_detr.candidate_ffn": "without"},
        {"ms_detr.heads": "separate"},
        {"model.encoder_layers": 0},
        {"model.backbone": "resnet18", "model.backbone_norm": "group", "model.trainable_layers": 5},
    ],
    ids=lambda c: ",".join(c),
)
def test_settings_work(changes):
    model = small_model("c", **changes).train()
    output = model(batch_of((128, 160), (96, 160)))
    config = small_config("c", **changes).override({"ms_detr.threshold": 0.0})
    build_criterion(config)(output, TARGETS).total.backward()
    assert output.one_to_many.boxes.isfinite().all()


@pytest.mark.parametrize("variant", ["a", "b", "c", "d"])
def test_one_to_many_costs_nothing_at_inference(variant):
    """In eval mode the branch is not computed, and without it the answer is the same to the bit."""
    model, batch = small_model(variant).eval(), batch_of((64, 64))
    calls = []
    for module in model.decoder.one_to_many.modules():
        module.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        full = model(batch)
        assert full.one_to_many is None
        assert not calls
        assert model(batch, one_to_many=True).one_to_many is not None
        stripped = copy.deepcopy(model).strip()(batch)
    assert torch.equal(full.one_to_one.logits, stripped.one_to_one.logits)
    assert torch.equal(full.one_to_one.boxes, stripped.one_to_one.boxes)


def test_stripped_model_says_so():
    with pytest.raises(ValueError, match="no one-to-many branch"):
        small_model("baseline").eval()(batch_of((64, 64)), one_to_many=True)


def test_padding_beyond_the_largest_image_is_masked():
    """Tokens on padding are never attended to: their content does not matter."""
    model = small_model().eval()
    pyramid = model.pyramid(batch_of((64, 96), (48, 64)))
    noise = torch.randn_like(pyramid.tokens) * pyramid.mask[..., None]
    from dataclasses import replace

    with torch.no_grad():
        a = model.encoder.layers[0](pyramid, pyramid.per_level(pyramid.token_centers()))
        b = model.encoder.layers[0](
            replace(pyramid, tokens=pyramid.tokens + 100 * noise), pyramid.per_level(pyramid.token_centers())
        )
    keep = ~pyramid.mask
    torch.testing.assert_close(a.tokens[keep], b.tokens[keep])


def test_images_of_one_size_do_not_influence_each_other():
    model, batch = small_model().eval().double(), batch_of((64, 96), (64, 96), (64, 96)).to(torch.float64)
    with torch.no_grad():
        together = model(batch).one_to_one
        for i in range(3):
            alone = model(ImageBatch(batch.images[i : i + 1], batch.mask[i : i + 1])).one_to_one
            torch.testing.assert_close(alone.logits[:, 0], together.logits[:, i], atol=1e-8, rtol=0)
            torch.testing.assert_close(alone.boxes[:, 0], together.boxes[:, i], atol=1e-8, rtol=0)


def test_gradient_checkpointing_changes_nothing():
    config = small_config()
    gradients = []
    for checkpointing in (False, True):
        model = small_model().train()
        model.gradient_checkpointing = checkpointing
        build_criterion(config)(model(batch_of((64, 64), (64, 48))), TARGETS).total.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


@pytest.mark.fault("F97")
@pytest.mark.parametrize("size", [(16, 16), (1, 1)])
def test_a_small_image_has_as_many_queries_as_tokens(size):
    output = small_model().eval()(batch_of(size))
    tokens = output.encoder.predictions.logits.shape[2]
    assert tokens < 12 and output.one_to_one.logits.shape[2] == tokens
    assert output.one_to_one.logits.isfinite().all() and output.one_to_one.boxes.isfinite().all()


def test_look_forward_twice_reaches_the_layer_before():
    """The last layer's boxes teach the box head of the layer before, only with look forward twice."""
    for twice in (True, False):
        model = small_model("baseline", **{"model.look_forward_twice": twice}).train()
        boxes = model(batch_of((64, 64))).one_to_one.boxes
        boxes[-1].sum().backward()
        assert bool(model.decoder.box_heads[0].layers[2].weight.grad.any()) == twice


@pytest.mark.parametrize("variant", ["baseline", "a", "c"])
@pytest.mark.parametrize("two_stage", [True, False])
def test_released_names_and_back(variant, two_stage):
    changes = dict(RESNET) if two_stage else RESNET | {"two_stage": None}
    config = small_config(variant, **changes)
    state = small_model(variant, **changes).state_dict()
    back = from_released(to_released(state, config), config)
    assert {k: v.data_ptr() for k, v in back.items()} == {k: v.data_ptr() for k, v in state.items()}


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_last_heads_of_a_released_file_are_those_of_its_proposals(layers):
    """However many decoder layers the model has that is to start from it."""
    config = small_config("baseline", **RESNET)
    released = to_released(small_model("baseline", **RESNET).state_dict(), config)
    found = from_released(released, config.override({"model.decoder_layers": layers}))
    for kind, rest in (("class", "weight"), ("box", "layers.0.weight")):
        of_released = f"{'class' if kind == 'class' else 'bbox'}_embed"
        assert found[f"query_selection.{kind}_head.{rest}"] is released[f"{of_released}.2.{rest}"]
        assert found[f"decoder.{kind}_heads.1.{rest}"] is released[f"{of_released}.1.{rest}"]
        assert f"decoder.{kind}_heads.2.{rest}" not in found


def sizes_at_start(**changes) -> list[float]:
    """What each box head of a new model adds to sizes."""
    return [head.layers[2].bias[2].item() for head in build_detector(small_config("c", **changes)).decoder.box_heads]


def test_first_sizes_are_those_of_deformable_detr():
    """One-stage references have no size, so the first head starts with one; proposals have theirs."""
    plain = {"model.box_refine": False, "model.look_forward_twice": False}
    assert sizes_at_start(two_stage=None) == [-2, 0]
    assert sizes_at_start(two_stage=None, **plain) == [-2]
    assert sizes_at_start() == [0, 0]
    assert sizes_at_start(**plain) == [0]


@pytest.mark.parametrize("variant", ["baseline", "a", "c"])
def test_two_stage_without_refinement(variant):
    """The encoder predicts with the decoder's heads: it trains, strips, and converts as the released code names it."""
    changes = RESNET | {"model.box_refine": False, "model.look_forward_twice": False}
    config, model = small_config(variant, **changes), small_model(variant, **changes).train()
    batch = batch_of((64, 96), (80, 64))
    build_criterion(config)(model(batch, TARGETS), TARGETS).total.backward()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-4)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    before = model.decoder.class_heads[0].weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, model.decoder.class_heads[0].weight)

    state = model.state_dict()
    released = to_released(state, config)
    heads = {name.rsplit(".", 1)[0] for name in released if "class_embed" in name or "bbox_embed" in name}
    layers = config.model.decoder_layers
    of_candidates = {
        *(f"class_embed_o2m.{i}" for i in range(layers)),
        *(f"bbox_embed_o2m.{i}.layers.{j}" for i in range(layers) for j in range(3)),
    }
    assert heads == (of_candidates if variant == "a" else set()) | {
        *(f"{owner}class_embed.{i}" for owner in ("", "transformer.decoder.") for i in range(layers + 1)),
        *(f"bbox_embed.{i}.layers.{j}" for i in range(layers + 1) for j in range(3)),
    }
    for i in range(layers + 1):
        assert released[f"class_embed.{i}.weight"] is state["decoder.class_heads.0.weight"]
        assert released[f"bbox_embed.{i}.layers.2.bias"] is state["decoder.box_heads.0.layers.2.bias"]
    for i in range(layers if variant == "a" else 0):  # all layers share this one, too
        assert released[f"class_embed_o2m.{i}.weight"] is state["decoder.one_to_many.class_heads.0.weight"]
    back = from_released(released, config)
    assert {k: v.data_ptr() for k, v in back.items()} == {k: v.data_ptr() for k, v in state.items()}

    model.eval()
    with torch.no_grad():
        full, stripped = model(batch), copy.deepcopy(model).strip()(batch)
    assert torch.equal(full.one_to_one.boxes, stripped.one_to_one.boxes)
    assert full.references.shape == (layers, 2, 12, 4)


@pytest.mark.parametrize(("variant", "instead"), [("b", "a"), ("d", "c")])
def test_only_what_the_released_code_has_converts(variant, instead):
    with pytest.raises(ValueError, match="no counterpart of backbone.stem"):
        to_released(small_model().state_dict(), small_config())
    state = small_model(variant, **RESNET).state_dict()
    with pytest.raises(InputError, match=rf"not have variant \({variant}\); .* in the order of \({instead}\)"):
        to_released(state, small_config(variant, **RESNET))


def test_unknown_released_names_are_listed():
    with pytest.raises(ValueError, match="transformer.nonsense"):
        from_released({"transformer.nonsense": torch.zeros(1)}, small_config())


@pytest.mark.parametrize("methods", [{"mr_detr": True}, LW_DETR])
def test_backbone_and_neck_of_other_frameworks_do_not_convert(methods):
    """Published Mr.DETR has those of detectron2, LW-DETR a vision transformer; the message says what to do instead."""
    config = small_config("baseline", **methods)
    names = ["backbone.res2.0.conv1.weight", "neck.convs.0.conv.weight"]
    with pytest.raises(InputError, match=r"res2\.0.*which do not convert: save the other weights .*init_partial"):
        from_released(dict.fromkeys(names, torch.zeros(1)), config)
    with pytest.raises(InputError) as caught:
        from_released(dict.fromkeys([*names, "transformer.nonsense"], torch.zeros(1)), config)
    assert "do not convert" not in str(caught.value)


def test_fewer_learned_queries_than_the_configuration_has():
    """Whoever loads them compares shapes: H-DETR's second group is what is left of the rows."""
    config = small_config("baseline", **{"hybrid.queries": 3})
    for rows, (primary, second) in {15: (12, 3), 12: (12, 0), 7: (7, 0)}.items():
        found = from_released({"query_embed.weight": torch.zeros(rows, 4)}, config)
        sizes = found["query_selection.contents.weight"].shape[0], found["sources.hybrid.contents.weight"].shape[0]
        assert sizes == (primary, second)


@pytest.mark.fault("F64")
def test_released_file_with_code_in_it_is_refused(tmp_path):
    from msdetr.model.convert import load_released

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    path = tmp_path / "bomb.pth"
    torch.save({"model": {}, "args": Bomb()}, path)
    with pytest.raises(CheckpointError, match="holds more than tensors and plain values; nothing of it was executed"):
        load_released(path, small_config())
    assert not (tmp_path / "exploded").exists()


def test_released_file_with_training_arguments_is_read(tmp_path):
    import argparse

    from msdetr.model.convert import load_released

    config, state = small_config(**RESNET), small_model(**RESNET).state_dict()
    torch.save(
        {"model": to_released(state, config), "args": argparse.Namespace(lr=2e-4), "epoch": 11},
        tmp_path / "released.pth",
    )
    loaded = load_released(tmp_path / "released.pth", config)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_missing_pretrained_weights_say_how(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ConfigError, match=r"ImageNet weights of resnet18 .* put it at .*model.pretrained"):
        build_detector(small_config(**{"model.backbone": "resnet18", "model.pretrained": "imagenet"}))
    with pytest.raises(ConfigError, match="there is no file"):
        build_detector(small_config(**{"model.backbone": "resnet18", "model.pretrained": str(tmp_path / "none.pth")}))


def test_pretrained_weights_from_a_file(tmp_path):
    import torchvision

    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), tmp_path / "r18.pth")
    model = build_detector(
        small_config(**{"model.backbone": "resnet18", "model.pretrained": str(tmp_path / "r18.pth")})
    )
    torch.testing.assert_close(model.backbone.body.layer3[0].conv1.weight.data, network.layer3[0].conv1.weight.data)
    trained = {name.split(".")[1] for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
