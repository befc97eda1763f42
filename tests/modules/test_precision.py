"""A whole detector in half types."""

from __future__ import annotations

import numpy as np
import pytest
import small
import torch

import msdetr
from msdetr.structures import ImageBatch


def _batch(dtype: torch.dtype) -> ImageBatch:
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[1, :, 40:] = True
    return ImageBatch(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).to(dtype), mask)


@pytest.mark.parametrize("two_stage", [True, False])
@pytest.mark.parametrize("images", [torch.float32, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_detector_in_a_half_type(dtype, images, two_stage):
    detector = msdetr.build(small.config("c", two_stage=two_stage))
    exact = detector.eval()(_batch(torch.float32)).one_to_one
    detector.to(dtype)
    found = detector(_batch(images or dtype)).one_to_one
    assert found.logits.isfinite().all() and found.boxes.isfinite().all()
    if not two_stage:  # whose ranking of tokens decides otherwise where two are nearly equal
        torch.testing.assert_close(found.boxes.float(), exact.boxes, rtol=0, atol=30 * torch.finfo(dtype).eps)
        torch.testing.assert_close(found.logits.float(), exact.logits, rtol=0, atol=60 * torch.finfo(dtype).eps)
    output = detector.train()(_batch(images or dtype)).one_to_one
    (output.logits.float().sum() + output.boxes.float().sum()).backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    assert gradients and all(g.dtype == dtype and g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_predicting_with_a_half_typed_detector(dtype):
    config = small.config("c")
    predictor = msdetr.Predictor(msdetr.build(config), config)
    predictor.detector.to(dtype)
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    detections = predictor.predict(picture, min_score=0.0)
    assert len(detections) and detections.boxes.isfinite().all() and detections.scores.isfinite().all()
