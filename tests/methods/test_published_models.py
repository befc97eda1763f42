"""DN-DETR and DINO as published: their recipes, training, stripping, and weights there and back."""

import denoised
import golden
import pytest
import small
import torch
from comparison import Case
from family import dino, dn
from test_denoising import batch, losses

from msdetr import recipes
from msdetr.config import flatten
from msdetr.engine import checkpoint as checkpoints
from msdetr.errors import InputError
from msdetr.methods import build_criterion, build_detector
from msdetr.model import from_released, to_released, training_only_names

SMALL = small.SMALL | {
    "model.num_classes": 8,
    "model.backbone": "conv",
    "model.pretrained": "none",
    "model.num_queries": 8,
    "model.num_levels": 3,
}
NAMES = ["dn-deformable-detr", "dn-deformable-detr-ms-c", "dino-4scale-r50", "dino-4scale-r50-ms-c"]
SIZES = {
    f"model.{name}"
    for name in [
        "num_classes",
        "pretrained",
        "hidden_dim",
        "num_heads",
        "encoder_layers",
        "decoder_layers",
        "ffn_dim",
        "num_queries",
    ]
}
GOLDEN = denoised.Path(__file__).parent.parent / "golden_small"


def settings(name, **changes):
    return recipes.get(f"coco/{name}").override(SMALL | changes)


@pytest.mark.parametrize(("name", "system"), [("dn-deformable-detr", dn), ("dino-4scale-r50", dino)])
def test_a_recipe_is_the_model_whose_numbers_are_reproduced(name, system):
    """In everything but its sizes, how often objects are noised, and how it is optimised."""
    manifest = golden.read_json(GOLDEN / system.__name__.split(".")[-1] / "manifest.json")
    (variant,) = manifest["variants"].values()
    recipe, reproduced = (flatten(c) for c in (recipes.get(f"coco/{name}"), system.run_config(variant, {})))
    deciding = {path for path in recipe if path.split(".")[0] not in ("recipe", "data", "train", "seed")} - SIZES
    assert {p: recipe[p] for p in deciding} == {p: reproduced[p] for p in deciding}


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_strips_and_predicts_the_same(name):
    torch.manual_seed(0)
    detector, criterion = build_detector(settings(name)), build_criterion(settings(name))
    found = losses(detector, criterion, batch(1, 3))
    found.total.backward()
    assert found.total.isfinite() and {"one_to_one", "denoising"} <= {term.split("/")[0] for term in found.terms}
    assert ("one_to_many/class" in found.terms) == name.endswith("ms-c")
    unused = {n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None}
    assert not unused

    plain = build_detector(settings(name, denoising=None, ms_detr=None))
    images, _ = batch(1, 3)
    assert "sources.denoising." in training_only_names(detector)
    small.evaluated(detector, images)
    assert [n for n, _ in detector.named_parameters()] == [n for n, _ in plain.named_parameters()]


@pytest.mark.parametrize("name", ["dn-deformable-detr", "dino-4scale-r50"])
def test_the_answer_does_not_notice_the_noise(name):
    detector, data = build_detector(settings(name)), batch(2, 3)
    alone, beside = detector.eval()(data[0]).one_to_one, detector(*data).one_to_one
    torch.testing.assert_close(alone.logits, beside.logits)
    torch.testing.assert_close(alone.boxes, beside.boxes)


@pytest.mark.parametrize("name", ["dn-deformable-detr", "dino-4scale-r50"])
def test_weights_go_to_the_released_names_and_back(name):
    config = settings(name, **{"model.backbone": "resnet18"})
    state = build_detector(config).state_dict()
    released = to_released(state, config)
    back = from_released(released, config)
    assert back.keys() == state.keys() and all(torch.equal(back[n], state[n]) for n in state)
    assert "transformer.decoder.ref_point_head.layers.0.weight" in released
    if name.startswith("dino"):
        assert released["class_embed.1.weight"] is released["class_embed.0.weight"]
        assert len(released["label_enc.weight"]) == config.model.num_classes + 1
    with pytest.raises(InputError, match="unknown names: transformer.surprise"):
        from_released(released | {"transformer.surprise": torch.zeros(1)}, config)


@pytest.mark.parametrize("classes", [3, 8, 20])
@pytest.mark.parametrize("name", ["dn-deformable-detr", "dino-4scale-r50"])
def test_a_released_file_of_other_classes_is_started_from(name, classes):
    """It has as many labels as its own classes, and one more that no class is; here they start anew."""
    config = settings(name, **{"model.backbone": "resnet18", "model.decoder_layers": 6})
    released = to_released(build_detector(config).state_dict(), config)
    mine = config.override({"model.num_classes": classes})
    found = from_released(released, mine)
    label = "sources.denoising.label_embedding.weight"
    assert len(found[label]) == 8 + name.startswith("dn")
    taken = checkpoints.load_weights(build_detector(mine), found, reset_class_head=True)
    assert not taken.missing and not taken.unexpected
    assert {n for n in found if "class_head" in n} | {label} == found.keys() - set(taken.taken)
    assert label in taken.report()


def test_stable_dino_has_all_labels():
    """As many as classes, of which none is left out."""
    config = settings("stable-dino-4scale-r50", **{"model.backbone": "resnet18", "stable.memory_fusion": False})
    released = to_released(build_detector(config).state_dict(), config)
    released["label_enc.weight"] = released["label_enc.weight"][:8]
    assert len(from_released(released, config)["sources.denoising.label_embedding.weight"]) == 8
    fewer = config.override({"model.num_classes": 3})
    assert len(from_released(released, fewer)["sources.denoising.label_embedding.weight"]) == 8


@pytest.mark.parametrize(
    ("system", "flags", "tells"),
    [
        (dino, {"pe_temperatureH": 10000, "pe_temperatureW": 10000}, "logits"),
        (dino, {"use_detached_boxes_dec_out": True}, "grad"),
        (dn, {"label_noise_scale": 0.2}, "noised_labels"),
    ],
    ids=["temperature", "look forward", "label noise"],
)
def test_numbers_recorded_with_one_setting_fail_with_another(system, flags, tells):
    folder = GOLDEN / system.__name__.split(".")[-1]
    manifest = golden.read_json(folder / "manifest.json")
    ((name, spec),) = manifest["cases"].items()
    spec["flags_changed"] |= flags
    case, failed = Case(), []
    case._record = lambda ratio, report: failed.append(report) if ratio > 1 else None
    denoised.model_case(system.SYSTEM, case, folder, manifest, name, denoised.PRECISIONS["float64"])
    assert failed and tells in failed[0]


def test_a_setting_that_cannot_be_honored_is_named():
    manifest = golden.read_json(GOLDEN / "dino" / "manifest.json")
    (variant,) = manifest["variants"].values()
    for flags, message in (
        ({"num_patterns": 3}, "num_patterns = 3"),
        ({"pe_temperatureW": 10}, "pe_temperatureH"),
        ({"dropout": 0.1}, "dropout = 0.1"),
        ({"surprise": 1}, "surprise"),
        ({"dn_box_noise_scale": 3.0}, "denoising.box_noise"),
    ):
        with pytest.raises(golden.CannotHonor, match=message):
            dino.run_config(variant, {"flags_changed": flags})
