"""``train.compile``: torch.compile of backbone and transformer layers."""

import functools

import pytest
import small
import tiny
import torch
from torch import nn

import msdetr
from msdetr import recipes
from msdetr.analysis.stability import MatchRecorder
from msdetr.config import TrainConfig
from msdetr.data import build_dataset
from msdetr.engine import train
from msdetr.engine.trainer import compiling
from msdetr.errors import ConfigError
from msdetr.methods import build_detector
from msdetr.structures import ImageBatch, Targets

METHODS = ("baseline", "h-detr-ms-c", "group-detr-ms-c", "dn-detr", "dino-ms-c", "deta", "stable-dino-ms-c", "mr-detr")


@pytest.fixture
def compile_with(monkeypatch):
    """``compile_with(backend="aot_eager")``: modules are compiled like that, without torch.compile's C++."""
    torch._dynamo.reset()

    def choose(**options) -> None:
        monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, **options))

    yield choose
    torch._dynamo.reset()


@pytest.mark.slow
def test_compiled_layers_learn_the_same_from_images_of_all_sizes_and_keep_their_names(tmp_path, shapes, compile_with):
    compile_with(backend="aot_eager")
    changes = {
        "data__augment": "detr",
        "data__train_sizes": (64, 80, 96),
        "model__dropout": 0.0,
    }
    for name, compiled in (("plain", False), ("compiled", True)):
        config = tiny.config(shapes, train__epochs=2, train__compile=compiled, **changes)
        recorder = MatchRecorder.of_run(tmp_path / name, build_dataset(config, "val"), config, 4)
        with torch._dynamo.config.patch(error_on_recompile=True):  # once for all sizes and layers
            train(config, tmp_path / name, device="cpu", progress=False, on_step=recorder)
    names = [msdetr.load(tmp_path / name).detector.state_dict().keys() for name in ("plain", "compiled")]
    assert names[0] == names[1]
    losses = [[line["loss"] for line in tiny.lines(tmp_path / name, "train")] for name in ("plain", "compiled")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.fault("F138")
def test_without_a_compiler_compiling_says_what_it_needs(tmp_path, shapes, no_compiler):
    with pytest.raises(ConfigError, match=r"train\.compile: .*no-compiler.* needs a C\+\+ compiler"):
        train(tiny.config(shapes, train__compile=True), tmp_path / "run", device="cpu", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_layers_of_every_method_are_compiled_as_one_graph_for_all_sizes(method, compile_with):
    """An image of 64 x 64 pixels, whose equal sides are chance, and others; one object, and several."""
    compile_with(backend="eager", fullgraph=True)
    torch._dynamo.utils.counters.clear()
    detector = build_detector(recipes.get(f"shapes/{method}").override(small.SMALL | {"model.num_queries": 12}))
    detector.compile_layers()
    batches = [batch_of(2, 64, 64), batch_of(3, 64, 96), batch_of(2, 112, 80)]
    for batch, targets in batches:
        torch.manual_seed(0)
        with torch.compiler.set_stance("force_eager"):
            expected = detector(batch, targets).one_to_one
        torch.manual_seed(0)
        with compiling(TrainConfig(compile=True)), torch._dynamo.config.patch(error_on_recompile=True):
            found = detector(batch, targets).one_to_one
        assert torch.allclose(found.logits, expected.logits, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3  # backbone, encoder's layer, decoder's layer


def batch_of(count: int, height: int, width: int) -> tuple[ImageBatch, Targets]:
    """As many objects in an image as its number, from 1."""
    objects = range(1, count + 1)
    targets = Targets.from_list([torch.zeros(n) for n in objects], [torch.full((n, 4), 0.4) for n in objects])
    return ImageBatch.from_images(list(torch.randn(count, 3, height, width))), targets
