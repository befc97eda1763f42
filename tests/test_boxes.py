import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st

from msdetr import boxes
from msdetr.structures import ImageBatch, Targets


def random_boxes(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    return torch.cat([low, low + torch.rand(*shape, 2, generator=generator, dtype=torch.float64)], -1)


@given(st.integers(0, 2**31), st.integers(0, 6), st.integers(0, 6))
def test_against_torchvision(seed, n, m):
    a, b = random_boxes(seed, n), random_boxes(seed + 1, m)
    torch.testing.assert_close(boxes.pairwise_iou(a, b), torchvision.ops.box_iou(a, b))
    torch.testing.assert_close(boxes.pairwise_giou(a, b), torchvision.ops.generalized_box_iou(a, b))
    torch.testing.assert_close(boxes.xyxy_to_cxcywh(a), torchvision.ops.box_convert(a, "xyxy", "cxcywh"))
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(boxes.xyxy_to_cxcywh(a)), a)


def test_a_negative_size_counts_as_0_in_predictions_alone():
    inverted = torch.tensor([0.5, 0.5, -0.2, 0.4])
    torch.testing.assert_close(boxes.predicted_corners(inverted), torch.tensor([0.5, 0.3, 0.5, 0.7]))
    torch.testing.assert_close(boxes.cxcywh_to_xyxy(inverted), torch.tensor([0.6, 0.3, 0.4, 0.7]))


@pytest.mark.fault("F52")
def test_degenerate_boxes_are_finite_with_finite_gradients():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    line = torch.tensor([[0.2, 0.5, 0.8, 0.5]])
    inverted = torch.tensor([[0.8, 0.8, 0.2, 0.2]])
    everything = torch.cat([point, line, inverted, torch.tensor([[0.1, 0.1, 0.9, 0.9]])]).requires_grad_()
    for function in (boxes.pairwise_iou, boxes.pairwise_giou):
        value = function(everything, everything)
        assert value.isfinite().all()
        (gradient,) = torch.autograd.grad(value.sum(), everything)
        assert gradient.isfinite().all()
    assert boxes.iou(point, point).item() == 0


def test_logit_is_the_inverse_of_sigmoid_and_bounded():
    x = torch.linspace(0.001, 0.999, 50, dtype=torch.float64)
    torch.testing.assert_close(boxes.logit(x).sigmoid(), x)
    assert boxes.logit(torch.tensor([-1.0, 0.0, 1.0, 2.0])).abs().max() < 12


def test_image_batch_pads_right_and_bottom():
    batch = ImageBatch.from_images([torch.ones(3, 2, 5), torch.ones(3, 4, 3)])
    assert batch.images.shape == (2, 3, 4, 5)
    assert (batch.images[:, 0] == (~batch.mask).float()).all()
    assert not batch.mask[0, :2].any()
    assert batch.mask[0, 2:].all()


def test_targets_are_flat_and_split_again():
    targets = Targets.from_list(
        [torch.tensor([1]), torch.tensor([]), torch.tensor([2, 3])],
        [torch.rand(1, 4), torch.rand(0, 4), torch.rand(2, 4)],
    )
    assert targets.counts.tolist() == [1, 0, 2]
    assert targets.image.tolist() == [0, 2, 2]
    assert targets.of_image(2).labels.tolist() == [2, 3]
    assert len(targets.of_image(1)) == 0
    assert targets.class_agnostic().labels.tolist() == [0, 0, 0]
