"""train.micro_batch=auto: as many images as fit, with everything else as it was. Memory that runs out is pretended."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from torchvision import tv_tensors

from msdetr.config import DataConfig
from msdetr.data.transforms import train_transform
from msdetr.engine import Trainer, memory, train
from msdetr.engine.distributed import World
from msdetr.errors import ConfigError, OutOfMemoryError
from msdetr.methods import build_criterion, build_detector
from msdetr.structures import ImageBatch


@pytest.fixture
def trainer(shapes):
    config = tiny.config(shapes)
    return Trainer(build_detector(config), build_criterion(config), config.train, total_steps=12, steps_per_epoch=4)


def limit(trainer, images):
    """Lets memory run out in a forward pass of more images; the batches that were tried."""
    tried = []

    def check(module, given):
        batch = given[0]
        assert isinstance(batch, ImageBatch)
        tried.append(tuple(batch.images.shape))
        if len(batch) > images:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    trainer.detector.register_forward_pre_hook(check)
    return tried


def test_halves_until_it_fits_and_changes_nothing(trainer):
    tried = limit(trainer, 3)
    before = [parameter.detach().clone() for parameter in trainer.detector.parameters()]
    state = torch.get_rng_state()
    assert memory.largest_fitting(trainer, 11, 96, 64, 5) == 2
    assert tried == [(11, 3, 96, 64), (5, 3, 96, 64), (2, 3, 96, 64)]
    assert torch.equal(torch.get_rng_state(), state) and not trainer.optimizer.state
    for parameter, value in zip(trainer.detector.parameters(), before, strict=True):
        assert torch.equal(parameter, value) and parameter.grad is None


def test_images_without_objects_are_tried_too(trainer):
    assert memory.largest_fitting(trainer, 1, 64, 64, 0) == 1


@pytest.mark.fault("F136")
def test_not_even_one_image_fits(trainer):
    limit(trainer, 0)
    with pytest.raises(
        OutOfMemoryError, match=r"with 1 images padded to \(64, 64\) pixels.*gradient_checkpointing=true"
    ):
        memory.largest_fitting(trainer, 4, 64, 64, 2)


@pytest.mark.fault("F138")
def test_without_a_compiler_the_search_says_so_too(shapes, no_compiler):
    config = tiny.config(shapes, train__compile=True)
    trainer = Trainer(build_detector(config), build_criterion(config), config.train, total_steps=12, steps_per_epoch=4)
    with pytest.raises(ConfigError, match=r"train\.compile: .*needs a C\+\+ compiler"):
        memory.largest_fitting(trainer, 1, 64, 64, 2)


@pytest.mark.parametrize(("ranks", "known", "start"), [(1, None, 12), (3, None, 4), (1, 3, 3), (3, 8, 4)])
def test_a_gpu_starts_with_its_share_or_with_what_was_found_before(shapes, monkeypatch, ranks, known, start):
    config = tiny.config(shapes, train__micro_batch="auto", train__batch_size=12)
    world = World(0, ranks, torch.device("cuda"))
    dataset = SimpleNamespace(
        annotations=SimpleNamespace(sizes=np.array([[64, 48], [32, 96]]), image=np.array([0, 1, 1]))
    )
    asked = []
    monkeypatch.setattr(memory, "largest_fitting", lambda *given: asked.append(given[1:]) or given[1])
    monkeypatch.setattr(World, "gather", lambda self, value: [value, 2])  # the smallest of all ranks
    assert memory.micro_batch(config, SimpleNamespace(world=world), dataset, known) == 2
    assert asked == [(start, 64, 96, 2)]


@pytest.mark.parametrize("augment", ["detr", "flip"])
def test_no_training_image_is_larger(augment):
    config = DataConfig(augment=augment, train_sizes=(32, 48), test_size=40, max_size=72)
    sizes = np.array([[30, 40], [50, 20], [64, 64]])
    height, width = memory.largest_image(config, sizes)
    transform, seen = train_transform(config), []
    for size in sizes.tolist():
        boxes = tv_tensors.BoundingBoxes([[0, 0, 9, 9]], format="XYXY", canvas_size=tuple(size))
        image = tv_tensors.Image(torch.zeros(3, *size, dtype=torch.uint8))
        seen += [transform(image, boxes)[0].shape[-2:] for _ in range(30)]
    assert max(h for h, _ in seen) <= height <= 72 and max(w for _, w in seen) <= width <= 72
    if augment == "flip":
        assert (height, width) == (72, 53)


def test_a_processor_trains_in_small_pieces(tmp_path, shapes):
    config = tiny.config(shapes, train__micro_batch="auto", train__epochs=0.5)
    assert train(config, tmp_path, device="cpu", progress=False)["micro_batch"] == 2
    assert "micro_batch: auto" in (tmp_path / "config.yaml").read_text()


@pytest.mark.parametrize("value", ["automatic", 0, None, 1.5])
def test_other_values_are_refused(shapes, value):
    with pytest.raises(
        ConfigError, match="train.micro_batch: (expected .* or auto|must be at least 1, got 0, or auto)"
    ):
        tiny.config(shapes, train__micro_batch=value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_with_little_memory_takes_fewer_images(shapes):
    config, world = tiny.config(shapes), World(device=torch.device("cuda", 0))
    trainer = Trainer(build_detector(config), build_criterion(config), config.train, 12, 4, world)
    assert memory.largest_fitting(trainer, 2, 64, 64, 3) == 2
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + memory.SPARE * total + 2**30) / total)
    try:
        assert memory.largest_fitting(trainer, 256, 512, 512, 3) < 256
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
