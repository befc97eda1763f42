"""On a GPU: detectors of the whole family compute there what they compute on a processor, also compiled, in a CUDA graph
and in bf16; a run trains, stops, resumes and predicts there."""

from __future__ import annotations

import json
import signal

import pytest
import small
import tiny
import torch

import msdetr
from msdetr import recipes
from msdetr.engine import NonFiniteError, StepError, Terminated, Trainer, train
from msdetr.engine.distributed import World
from msdetr.methods import build_criterion, build_detector, denoising_queries
from msdetr.structures import ImageBatch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda", 0)
NAMES = [name for name in recipes.names() if name.startswith("shapes/")] + ["coco/ms-detr-pp-300"]  # and a ResNet


@pytest.fixture(autouse=True)
def exact_products():
    """No TF32 anywhere: convolutions use it unless told otherwise."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def same_noise(monkeypatch):
    """Noise from the processor's generator for both devices."""
    draw = denoising_queries.Draws.of.__func__

    def of(cls, count, num_classes, like):
        torch.manual_seed(7)
        drawn = draw(cls, count, num_classes, like.cpu())
        return cls(*(getattr(drawn, name).to(like.device) for name in ("label", "new_label", "box", "sign")))

    monkeypatch.setattr(denoising_queries.Draws, "of", classmethod(of))


def _losses_and_gradients(detector, criterion, images, targets, device):
    detector = detector.to(device).train()
    for module in detector.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    detector.zero_grad(set_to_none=True)
    losses = criterion(detector(images.to(device), targets.to(device)), targets.to(device))
    losses.total.backward()
    gradients = {name: p.grad.cpu().clone() for name, p in detector.named_parameters() if p.grad is not None}
    return losses.total.detach().cpu(), gradients


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_a_processor(name, same_noise):
    config = recipes.get(name).override(
        {
            "model.encoder_layers": 1,
            "model.decoder_layers": 2,
            "model.dropout": 0.0,
            "model.num_queries": 30,
            "model.pretrained": "none",
        }
    )
    detector, criterion, images = small.built(config)
    targets = small.objects(3, 1)
    expected, gradients = _losses_and_gradients(detector, criterion, images, targets, torch.device("cpu"))
    actual, others = _losses_and_gradients(detector, criterion, images, targets, GPU)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    assert gradients.keys() == others.keys()
    scale = max(gradient.abs().max().item() for gradient in gradients.values())
    for parameter, gradient in gradients.items():
        torch.testing.assert_close(others[parameter], gradient, rtol=1e-6, atol=1e-9 * scale, msg=parameter)


def test_bf16_is_near_fp32():
    torch.manual_seed(0)
    detector = msdetr.build("shapes/ms-detr-c").to(GPU).eval()
    images = ImageBatch.of(torch.randn(4, 3, 128, 128, device=GPU))
    with torch.no_grad():
        # the encoder's, before a choice of queries that rounding may turn
        exact = detector(images).encoder.predictions.logits
        with torch.autocast("cuda", dtype=torch.bfloat16):
            rounded = detector(images).encoder.predictions.logits
    assert rounded.isfinite().all()
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_compiled_detector_predicts_the_same():
    torch.manual_seed(0)
    detector = msdetr.build("shapes/baseline").to(GPU).eval()
    images = torch.randn(2, 3, 96, 128, device=GPU)
    with torch.no_grad():
        expected = detector(images).one_to_one
        actual = torch.compile(detector, fullgraph=True)(images).one_to_one
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(actual.boxes, expected.boxes, rtol=1e-3, atol=1e-3)


def test_forward_and_backward_in_a_cuda_graph():
    torch.manual_seed(0)
    config = recipes.get("shapes/ms-detr-c").override({"model.dropout": 0.0})
    detector = build_detector(config).to(GPU).train()
    mask = torch.zeros(2, 96, 128, dtype=torch.bool, device=GPU)
    images = ImageBatch(torch.randn(2, 3, 96, 128, device=GPU), mask)

    def step() -> None:
        output = detector(images).one_to_one
        (output.logits.square().mean() + output.boxes.square().mean()).backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            detector.zero_grad(set_to_none=True)
            step()
    torch.cuda.current_stream().wait_stream(stream)
    detector.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    images.images.copy_(torch.randn(2, 3, 96, 128, device=GPU))  # the graph reads what lies there now
    graph.replay()
    torch.cuda.synchronize()
    replayed = {name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None}
    detector.zero_grad(set_to_none=True)
    step()
    scale = max(gradient.abs().max().item() for gradient in replayed.values())
    for name, parameter in detector.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(replayed[name], parameter.grad, rtol=1e-3, atol=1e-4 * scale, msg=name)


@pytest.mark.fault("F54")
def test_a_loss_that_is_nan_changes_nothing():
    config = small.config("c")
    trainer = Trainer(build_detector(config), build_criterion(config), config.train, 10, 10, World(device=GPU))
    images, targets = ImageBatch.from_images(list(torch.randn(2, 3, 64, 64))), small.objects(2, 1).to(torch.float32)
    trainer.step([(images, targets)])
    trainer.check()
    before = {name: value.clone() for name, value in trainer.detector.state_dict().items()}
    counts = [state["step"].clone() for state in trainer.optimizer.state.values()]
    bad = ImageBatch(torch.full_like(images.images, float("nan")), images.mask)
    with pytest.raises((NonFiniteError, StepError)):
        trainer.step([(bad, targets)])
        trainer.check()
    for name, value in trainer.detector.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(torch.equal(state["step"], n) for state, n in zip(trainer.optimizer.state.values(), counts, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_stopped_half_way_goes_on(tmp_path, shapes, precision):
    """The kernel adds gradients in any order, so the numbers are near those of a run in one go, not the same."""
    config = tiny.config(shapes, train__precision=precision, train__eval_every=3)
    whole = train(config, tmp_path / "whole", device="cuda", progress=False)
    assert whole["status"] == "finished" and whole["steps"] == 12
    parts = tmp_path / "parts"

    def stop(detector, steps: int, epoch: float) -> None:
        if steps == 6:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Terminated):
        train(config, parts, device="cuda", progress=False, on_step=stop)
    again = train(config, parts, device="cuda", progress=False)
    assert again["status"] == "finished" and again["steps"] == 12
    losses = [[line["loss"] for line in tiny.lines(tmp_path / run, "train")] for run in ("whole", "parts")]
    assert losses[1] == pytest.approx(losses[0], rel=0.02 if precision == "fp32" else 0.1)


def test_what_was_trained_on_a_gpu_predicts_on_both(tmp_path, shapes):
    config = tiny.config(shapes, train__eval_every=3)
    train(config, tmp_path, device="cuda", progress=False)
    image = next((shapes / "val").glob("*.png"), None) or next((shapes / "val").iterdir())
    here, there = (msdetr.load(tmp_path, device=device).predict(image) for device in ("cpu", "cuda"))
    torch.testing.assert_close(there.scores.cpu(), here.scores, rtol=1e-3, atol=1e-4)
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "finished"
