"""The registry of backbones: what it says of each is so, weights come from files, and levels are as many as one likes."""

import itertools
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import small
import torch
from safetensors.torch import save_file

from msdetr.config import ModelConfig
from msdetr.engine.optim import lr_groups
from msdetr.errors import ConfigError
from msdetr.methods import build_detector
from msdetr.model import BACKBONES, build_backbone, frozen
from msdetr.model.backbone import Backbone
from msdetr.ops import backend

SHUFFLENET = Path(
    os.environ.get(
        "MSDETR_WEIGHTS",
        Path(__file__).parents[3] / "shared" / "weights" / "shufflenet_v2_x0_5_features.safetensors",
    )
)
SMALL = ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small", "conv"]


def backbone(name, **changes):
    return build_backbone(ModelConfig(**{"backbone": name, "pretrained": "none", "trainable_layers": 5, **changes}))


@pytest.mark.parametrize("name", BACKBONES)
def test_what_the_registry_says_is_so(name):
    """On the meta device, Swin-L among them: shapes without numbers."""
    with torch.device("meta"):
        built = backbone(name, finest_stride=4)
        wanted = [(1, c, math.ceil(96 / s), math.ceil(128 / s)) for c, s in zip(built.channels, built.strides)]
        if "swin_v2" not in name and "swin" in name:
            return  # their windows are cut by values; small ones run below
        maps = built.eval()(torch.empty(1, 3, 96, 128))
    assert built.strides == (4, 8, 16, 32) and [tuple(x.shape) for x in maps] == wanted


@pytest.mark.parametrize("name", [*SMALL, "swin_t"])
@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_maps_of_odd_sizes_and_gradients(name, norm):
    if name in ("conv", "swin_t") and norm == "group":
        pytest.skip("its norm is its own")
    torch.manual_seed(0)
    built = backbone(name, backbone_norm=norm).train()
    maps = built(torch.randn(2, 3, 70, 100))
    assert [tuple(x.shape) for x in maps] == [
        (2, c, math.ceil(70 / s), math.ceil(100 / s)) for c, s in zip(built.channels, built.strides)
    ]
    sum(x.square().mean() for x in maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in built.parameters() if p.requires_grad)
    assert built.strides == (8, 16, 32) and not any(isinstance(m, torch.nn.BatchNorm2d) for m in built.modules())


@pytest.mark.parametrize(
    ("name", "stages"), [("resnet18", 5), ("shufflenet_v2_x0_5", 4), ("mobilenet_v3_small", 5), ("swin_t", 5)]
)
def test_stages_are_frozen_from_the_first(name, stages):
    with torch.device("meta"):
        trained = [
            {n for n, p in backbone(name, trainable_layers=k).named_parameters() if p.requires_grad} for k in range(6)
        ]
    assert all(not n.startswith("body.") for n in trained[0])
    for fewer, more in itertools.pairwise(trained[:stages]):
        assert fewer < more
    assert trained[5] >= trained[4] and len(trained[5]) == sum(1 for _ in backbone(name).named_parameters())


@pytest.mark.parametrize("levels", [1, 3, 4, 5])
@pytest.mark.parametrize("finest", [4, 8])
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "conv"])
def test_any_number_of_levels(name, levels, finest):
    changes = {"model.backbone": name, "model.num_levels": levels, "model.finest_stride": finest}
    detector = build_detector(small.config("c", **changes)).eval()
    pyramid = detector.pyramid(msdetr_batch(64, 96))
    assert len(pyramid.shapes) == levels
    maps = 4 if finest == 4 else 3
    first = (4 if finest == 4 else 8) * 2 ** max(maps - levels, 0)
    assert [shape[0] for shape in pyramid.shapes] == [math.ceil(64 / (first * 2**i)) for i in range(levels)]
    with torch.no_grad():
        assert detector(msdetr_batch(64, 96)).one_to_one.boxes.isfinite().all()


def msdetr_batch(height, width):
    from msdetr.structures import ImageBatch

    return ImageBatch.from_images([torch.randn(3, height, width)])


@pytest.mark.parametrize("levels", [4, 5])
def test_a_detector_on_swin_l(levels):
    """Swin-L as detectors use it, with maps from stride 4 on for five levels: built without memory for its weights."""
    changes = {"model.backbone": "swin_l", "model.num_levels": levels, "model.finest_stride": 4 if levels == 5 else 8}
    with torch.device("meta"):
        detector = build_detector(small.config("c", **changes))
    assert [p[0].in_channels for p in detector.projections] == [192, 384, 768, 1536, 1536][5 - levels :]
    assert sum(p.numel() for p in detector.backbone.parameters()) > 195e6
    groups = lr_groups(detector)
    assert {groups[n] for n in groups if n.startswith("backbone.")} == {"backbone"}


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("resnet18", ".pth"), ("shufflenet_v2_x0_5", ".safetensors"), ("mobilenet_v3_small", ".pth"), ("swin_t", ".pth")],
)
def test_weights_of_a_whole_network_from_a_file(name, suffix, tmp_path):
    torch.manual_seed(0)
    network = BACKBONES[name].build()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": network.state_dict()}, file)
    else:
        save_file(network.state_dict(), file)
    built = backbone(name, pretrained=str(file)).eval()
    image = torch.randn(1, 3, 64, 64)
    trunk = getattr(network, BACKBONES[name].trunk) if BACKBONES[name].trunk else network
    with torch.no_grad():
        x, kept = image, {}
        for child_name, child in trunk.eval().named_children():
            kept[child_name] = x = child(x)
            if child_name == BACKBONES[name].ends[-1]:
                break
        wanted = kept[BACKBONES[name].ends[-1]]
        found = built.body(image)["2"]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_weights_that_do_not_fit(tmp_path):
    file = tmp_path / "weights.safetensors"
    weights = BACKBONES["resnet18"].build().state_dict()
    for spoil, message in (
        (lambda w: w.pop("layer4.1.bn2.weight"), "has no layer4.1.bn2.weight"),
        (lambda w: w.update({"conv1.weight": torch.zeros(3)}), "has another shape of conv1.weight"),
        (lambda w: w.update({"layer4.2.conv1.weight": torch.zeros(3)}), "has an unknown layer4.2.conv1.weight"),
    ):
        spoiled = dict(weights)
        spoil(spoiled)
        save_file(spoiled, file)
        with pytest.raises(ConfigError, match=f"model.pretrained: .*{message}; does the file belong"):
            backbone("resnet18", pretrained=str(file))
    with pytest.raises(ConfigError, match="has no conv1.0.weight"):
        save_file(weights, file)
        backbone("shufflenet_v2_x0_5", pretrained=str(file))
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ConfigError, match="holds no tensors by name"):
        backbone("resnet18", pretrained=str(tmp_path / "list.pth"))
    with pytest.raises(ConfigError, match="no ImageNet weights of swin_l; give a file"), torch.device("meta"):
        backbone("swin_l", pretrained="imagenet")


def test_names_that_do_not_exist():
    with pytest.raises(ConfigError, match="model.backbone: 'resnet51' is unknown; did you mean 'resnet5?0?1?'?"):
        backbone("resnet51")
    with pytest.raises(ConfigError, match="'x' is unknown; there are conv, resnet18"):
        backbone("x")


@pytest.mark.skipif(not SHUFFLENET.is_file(), reason=f"no weights at {SHUFFLENET}; set MSDETR_WEIGHTS")
def test_a_file_with_the_features_alone():
    built = backbone("shufflenet_v2_x0_5", pretrained=str(SHUFFLENET))
    assert isinstance(built, Backbone) and sum(p.numel() for p in built.body.parameters()) > 100_000
    with torch.no_grad():
        maps = built.eval()(torch.randn(1, 3, 64, 64))
    assert 0.1 < maps[-1].std() < 10


# ---------------------------------------------------------------- timm


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize("name", ["resnet10t", "test_efficientnet", "test_convnext"])
def test_models_of_timm(name, timm):
    torch.manual_seed(0)
    for norm in ("frozen", "group"):
        built = backbone(f"timm/{name}", backbone_norm=norm).train()
        maps = built(torch.randn(2, 3, 64, 96))
        assert [tuple(x.shape) for x in maps] == [
            (2, c, 64 // s, 96 // s) for c, s in zip(built.channels, built.strides)
        ]
        assert built.strides == (8, 16, 32)
        before = {n: b.clone() for n, b in built.named_buffers()}
        built(torch.randn(2, 3, 64, 96))
        assert all(torch.equal(b, before[n]) for n, b in built.named_buffers()), "statistics stay as they are"


def test_stages_of_timm_are_frozen_from_the_first(timm):
    def trained(name, layers):
        with torch.device("meta"):
            built = backbone(f"timm/{name}", trainable_layers=layers)
        return {n for n, p in built.named_parameters() if p.requires_grad}

    none, one, two, everything = (trained("resnet10t", k) for k in (0, 1, 2, 5))
    assert not none and none < one < two < everything
    assert not trained("test_efficientnet", 0) and trained("test_efficientnet", 5)
    with pytest.raises(ConfigError, match="trainable_layers: timm/test_efficientnet cannot be divided into stages"):
        trained("test_efficientnet", 3)


def test_swin_of_timm_takes_images_of_any_size(timm):
    built = backbone("timm/swin_tiny_patch4_window7_224")
    maps = built.eval()(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape) for x in maps] == [(1, 192, 8, 12), (1, 384, 4, 6), (1, 768, 2, 3)]
    with torch.device("meta"):
        large = build_detector(
            small.config("c", **{"model.backbone": "timm/swin_large_patch4_window12_384", "model.num_levels": 5})
        )
    assert [p[0].in_channels for p in large.projections] == [384, 768, 1536, 1536, 32]


def test_weights_for_timm_from_a_file_and_images_as_it_wants_them(timm, tmp_path):
    torch.manual_seed(1)
    whole = timm.create_model("resnet10t", pretrained=False).eval()
    save_file(whole.state_dict(), tmp_path / "weights.safetensors")
    built = backbone("timm/resnet10t", pretrained=str(tmp_path / "weights.safetensors")).eval()
    image = torch.rand(1, 3, 64, 64)
    ours = (image - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor([0.229, 0.224, 0.225])[
        :, None, None
    ]
    given = whole.pretrained_cfg
    theirs = (image - torch.tensor(given["mean"])[:, None, None]) / torch.tensor(given["std"])[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(built(ours)[-1], whole.forward_features(theirs), atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="could not be had or do not fit"):
        backbone("timm/mobilenetv3_small_050", pretrained=str(tmp_path / "weights.safetensors"))
    with pytest.raises(ConfigError, match="there is no file /absent"):
        backbone("timm/resnet10t", pretrained="/absent")


def test_models_that_timm_does_not_have(timm, monkeypatch):
    with pytest.raises(ConfigError, match="timm has no model 'resnet5000'; e.g. resnet"):
        backbone("timm/resnet5000")
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm: pip install 'msdetr\[timm\]'"):
        backbone("timm/resnet10t")


def test_hooks_of_stages_and_blocks_run_where_norms_are_folded(monkeypatch):
    monkeypatch.setattr(frozen, "folds", lambda x: True)
    network, seen = Backbone(BACKBONES["resnet50"], "frozen", trainable_layers=5), []
    for module in (network.body.layer4, network.body.layer4[2]):
        module.register_forward_hook(lambda module, args, output: seen.append(output))
    last = network(torch.randn(1, 3, 32, 32))[-1]
    assert seen == [last, last]


def test_folded_norms_compile_as_one_graph(monkeypatch):
    monkeypatch.setattr(frozen, "folds", lambda x: True)
    network, images = Backbone(BACKBONES["resnet50"], "frozen", trainable_layers=5), torch.randn(1, 3, 32, 32)
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    for actual, expected in zip(compiled(images), network(images), strict=True):
        torch.testing.assert_close(actual, expected)


def test_norms_are_folded_on_a_gpu():
    on_gpu = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32)
    assert frozen.folds(on_gpu)
    with backend("plain"):  # the readable form
        assert not frozen.folds(on_gpu)


def test_folded_norms_compute_the_same_and_keep_half_types(monkeypatch):
    network = Backbone(BACKBONES["resnet50"], "frozen", trainable_layers=5, finest_stride=4).double()
    for name, buffer in network.named_buffers():
        torch.nn.init.uniform_(buffer, 0.5, 1.5) if name.endswith(("weight", "var")) else torch.nn.init.normal_(buffer)
    images = torch.randn(2, 3, 45, 37, dtype=torch.float64)

    def maps_and_gradients():
        network.zero_grad()
        maps = network(images)
        sum((x * x.detach().sin()).sum() for x in maps).backward()
        return [*maps, *(p.grad.clone() for p in network.parameters())]

    with backend("plain"):
        expected = maps_and_gradients()
        monkeypatch.setattr(frozen, "folds", lambda x: True)
        for actual, exact in zip(maps_and_gradients(), expected, strict=True):
            torch.testing.assert_close(actual, exact, rtol=1e-8, atol=1e-8 * exact.abs().max().item())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert {x.dtype for x in network.float()(images.float())} == {torch.bfloat16}
