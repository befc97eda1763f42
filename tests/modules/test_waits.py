"""Nothing in a forward makes the host and a GPU wait for each other, seen in what is dispatched."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import msdetr
from msdetr.ops import backend
from msdetr.structures import ImageBatch, Targets

# New tensors from numbers of the host; numbers read from the device; results whose size the host must learn.
_WAITS = ("lift_fresh", "_local_scalar_dense", "nonzero", "masked_select", "_unique", "aten.equal.")


class _Record(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, dict]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls.append((str(function), kwargs or {}))
        return function(*args, **(kwargs or {}))


def _batch() -> ImageBatch:
    mask = torch.zeros(2, 64, 64, dtype=torch.bool)
    mask[1, :, 40:] = True
    return ImageBatch(torch.randn(2, 3, 64, 64), mask)


def test_forward_and_backward_of_a_detector():
    detector, batch = msdetr.build("shapes/ms-detr-c"), _batch()
    for training in (True, False):
        detector.train(training)
        with backend("plain"), _Record() as record:  # paths for processors alone may look at values: nobody waits there
            output = detector(batch).one_to_one
            if training:
                (output.logits.sum() + output.boxes.sum()).backward()
        assert len(record.calls) > 100
        assert not [name for name, _ in record.calls if any(wait in name for wait in _WAITS)]


def test_labels_stay_what_they_are_whatever_the_dtype_of_boxes():
    targets = Targets.from_list([torch.tensor([300, 1201])], [torch.rand(2, 4)]).to(torch.bfloat16)
    assert targets.labels.tolist() == [300, 1201] and targets.boxes.dtype == torch.bfloat16


def test_batches_move_without_blocking():
    with _Record() as record:
        _batch().to("meta", non_blocking=True)
    copies = [kwargs for name, kwargs in record.calls if "_to_copy" in name]
    assert len(copies) == 2 and all(kwargs["non_blocking"] for kwargs in copies)
