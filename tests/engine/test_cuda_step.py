"""On a GPU: a training step waits for it once, to match. Nothing but torch itself can say so of all operators."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import small
import torch

from msdetr.engine.distributed import World
from msdetr.engine.trainer import Trainer
from msdetr.methods import build_criterion, build_detector
from msdetr.structures import ImageBatch, Targets

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@contextlib.contextmanager
def _only_on_purpose():
    """Any wait is an error, but for explicit ones on a stream, which are listed."""
    listed, wait = [], torch.cuda.Stream.synchronize

    def on_purpose(stream):
        listed.append(stream)
        torch.cuda.set_sync_debug_mode("default")
        wait(stream)
        torch.cuda.set_sync_debug_mode("error")

    torch.cuda.set_sync_debug_mode("error")
    try:
        with mock.patch.object(torch.cuda.Stream, "synchronize", on_purpose):
            yield listed
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rule", ["exclusive", "literal", "released"])
def test_a_step_waits_once_per_micro_batch(rule):
    config = small.config("c", **{"ms_detr.rule": rule, "ms_detr.merge": True})
    trainer = Trainer(
        build_detector(config), build_criterion(config), config.train, 10, 10, World(device=torch.device("cuda", 0))
    )

    def micro_batches():
        images = ImageBatch(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool))
        targets = Targets.from_list(
            [torch.tensor([1, 2]), torch.tensor([0])],
            [torch.rand(2, 4) * 0.4 + 0.2, torch.rand(1, 4) * 0.4 + 0.2],
            sizes=torch.full((2, 2), 64),
        )
        return [(images.pin_memory(), targets.pin_memory())] * 2

    trainer.step(micro_batches())  # builds kernels and optimizer state
    first, second = micro_batches(), micro_batches()
    with _only_on_purpose() as waits:
        trainer.step(first)
        trainer.step(second)
    assert len(waits) == len(first) + len(second)
    trainer.check()
