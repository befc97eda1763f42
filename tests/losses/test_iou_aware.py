"""Class losses that know the IoU, against loops over every query and class, and their gradients."""

import math
from functools import partial

import oracles
import pytest
import torch
from torch.autograd import gradcheck

from msdetr.losses import (
    aligned_loss,
    focal_loss,
    giou_loss,
    l1_loss,
    position_supervised_loss,
    ranked_giou_loss,
    ranked_l1_loss,
    varifocal_loss,
)
from msdetr.losses.iou_aware import rank_weights
from msdetr.losses.lw_detr import fit_supervised_loss, weighted_varifocal_loss
from msdetr.structures import Matches, Predictions, Targets

K, B, Q, C = 2, 2, 7, 4
FOCUSED = (
    focal_loss,
    position_supervised_loss,
    varifocal_loss,
    aligned_loss,
    weighted_varifocal_loss,
    fit_supervised_loss,
)


def problem(counts=(2, 3), copies=1, seed=0):
    """Predictions near the objects, and pairs: each object has ``copies`` queries in every layer."""
    draw = torch.Generator().manual_seed(seed)
    boxes = [0.3 + 0.3 * torch.rand(n, 4, generator=draw, dtype=torch.float64) for n in counts]
    labels = [torch.randint(0, C, (n,), generator=draw) for n in counts]
    predictions = Predictions(
        torch.randn(K, B, Q, C, generator=draw, dtype=torch.float64),
        0.3 + 0.3 * torch.rand(K, B, Q, 4, generator=draw, dtype=torch.float64),
    )
    rows, start = [], 0
    for layer in range(K):
        start = 0
        for image, n in enumerate(counts):
            queries = torch.randperm(Q, generator=draw)[: n * copies].tolist()
            rows += [(layer, image, q, start + i % n) for i, q in enumerate(queries)]
            start += n
    return (
        predictions,
        Targets.from_list(labels, boxes),
        Matches(*torch.tensor(rows, dtype=torch.long).reshape(-1, 4).unbind(1)),
    )


def in_a_loop(predictions, targets, matches, positive, negative):
    """positive(p, u, layer, image) and negative(p), summed over all queries and classes of each layer."""
    pairs = {
        (layer, image, query, int(targets.labels[t])): t
        for layer, image, query, t in zip(
            *(getattr(matches, x).tolist() for x in ("layer", "image", "query", "target"))
        )
    }
    sums = []
    for layer in range(K):
        total = 0.0
        for image in range(B):
            for query in range(Q):
                box = predictions.boxes[layer, image, query].tolist()
                for label in range(C):
                    p = 1 / (1 + math.exp(-predictions.logits[layer, image, query, label].item()))
                    target = pairs.get((layer, image, query, label))
                    if target is None:
                        total += negative(p)
                    else:
                        u = oracles.iou(box, targets.boxes[target].tolist())
                        total += positive(p, u, layer, image)
        sums.append(total)
    return torch.tensor(sums, dtype=torch.float64)


def cross_entropy(p, t):
    return -t * math.log(p) - (1 - t) * math.log(1 - p)


def largest_iou(predictions, targets, matches, layer, image):
    return max(
        oracles.iou(predictions.boxes[k, b, q].tolist(), targets.boxes[t].tolist())
        for k, b, q, t in zip(*(getattr(matches, x).tolist() for x in ("layer", "image", "query", "target")))
        if (k, b) == (layer, image)
    )


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_position_supervised(power):
    given = problem()

    def positive(p, u, layer, image):
        q = (u / largest_iou(*given, layer, image)) ** power
        return 0.25 * (q - p) ** 2 * cross_entropy(p, q)

    expected = in_a_loop(*given, positive, lambda p: -0.75 * p**2 * math.log(1 - p))
    found = position_supervised_loss(*given, iou_power=power)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)  # 1e-6 in the union of IoU


def test_varifocal():
    given = problem()
    expected = in_a_loop(*given, lambda p, u, *_: u * cross_entropy(p, u), lambda p: -0.6 * p**1.5 * math.log(1 - p))
    torch.testing.assert_close(varifocal_loss(*given, alpha=0.6, gamma=1.5), expected)


def test_aligned():
    given = problem()

    def positive(p, u, *_):
        return cross_entropy(p, max(p**0.25 * u**0.75, 0.01))

    expected = in_a_loop(*given, positive, lambda p: -(p**2) * math.log(1 - p))
    torch.testing.assert_close(aligned_loss(*given), expected, rtol=1e-4, atol=0)


TERMS = {
    "position": position_supervised_loss,
    "exp": partial(position_supervised_loss, transform="exp"),
    "sin": partial(position_supervised_loss, transform="sin"),
    "probability": partial(position_supervised_loss, probability_power=0.5),
    "varifocal": varifocal_loss,
    "aligned": partial(aligned_loss, tau=1.5),
}


@pytest.mark.parametrize("name", TERMS)
def test_no_gradient_reaches_the_boxes(name):
    predictions, targets, matches = problem(copies=2)
    predictions.boxes.requires_grad_(), predictions.logits.requires_grad_()
    TERMS[name](predictions, targets, matches).sum().backward()
    assert predictions.boxes.grad is None
    assert predictions.logits.grad.isfinite().all() and (predictions.logits.grad != 0).all()


@pytest.mark.parametrize(
    "term",
    [  # with powers of 0, where nothing that depends on the logits is taken as a constant
        position_supervised_loss,
        partial(position_supervised_loss, transform="exp", iou_power=1.0),
        partial(varifocal_loss, gamma=0.0),
        partial(aligned_loss, alpha=0.0, tau=1.5),
    ],
    ids=["position", "exp", "varifocal", "aligned"],
)
def test_gradients_of_logits(term):
    predictions, targets, matches = problem(copies=2)

    def loss(logits):
        return term(Predictions(logits, predictions.boxes), targets, matches)

    assert gradcheck(loss, predictions.logits.requires_grad_())


@pytest.mark.parametrize("term", [ranked_l1_loss, ranked_giou_loss])
def test_gradients_of_boxes(term):
    predictions, targets, matches = problem(copies=2)
    constant = Predictions(predictions.logits, predictions.boxes.clone())

    def loss(boxes):
        return term(Predictions(predictions.logits, boxes), targets, matches, alpha=1.0, tau=1.5)

    assert gradcheck(loss, predictions.boxes.requires_grad_())
    plain = {ranked_l1_loss: l1_loss, ranked_giou_loss: giou_loss}[term]
    torch.testing.assert_close(term(constant, targets, matches), plain(constant, targets, matches))
    assert (term(constant, targets, matches, tau=0.5) < plain(constant, targets, matches)).all()


def test_weights_of_ranks():
    matches = Matches(*(torch.tensor(x) for x in ([0, 0, 0, 1, 0], [0] * 5, [0, 1, 2, 3, 4], [1, 0, 1, 1, 1])))
    targets = Targets.from_list([torch.tensor([0, 0])], [torch.rand(2, 4)])
    quality = torch.tensor([0.3, 0.2, 0.9, 0.1, 0.3])
    expected = [math.exp(-rank / 2) for rank in (1, 0, 0, 0, 2)]  # of a tie the earlier pair comes first
    torch.testing.assert_close(rank_weights(quality, targets, matches, tau=2.0), torch.tensor(expected))
    assert torch.equal(rank_weights(quality, targets, matches, tau=None), torch.ones(5))


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("counts", [(0, 0), (0, 2)])
def test_images_without_objects(name, counts):
    predictions, targets, matches = problem(counts)
    loss = TERMS[name](predictions, targets, matches)
    assert loss.shape == (K,) and loss.isfinite().all() and (loss > 0).all()


@pytest.mark.parametrize("name", TERMS)
def test_saturated_logits_are_finite(name):
    """In fp32, where exp(-200) is 0."""
    predictions, targets, matches = problem()
    signs = predictions.logits.sign().float()
    logits = (200 * signs).requires_grad_()
    loss = TERMS[name](Predictions(logits, predictions.boxes.float()), targets.to(torch.float32), matches)
    loss.sum().backward()
    assert loss.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", TERMS)
def test_a_query_with_two_objects_has_the_class_of_the_later_one(name):
    predictions, targets, _ = problem((2, 0))
    targets.labels[:] = torch.tensor([1, 3])
    both = Matches(*(torch.tensor(x) for x in ([0, 0], [0, 0], [2, 2], [0, 1])))
    later = Matches(*(torch.tensor(x) for x in ([0], [0], [2], [1])))
    torch.testing.assert_close(TERMS[name](predictions, targets, both), TERMS[name](predictions, targets, later))


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("loss", FOCUSED)
def test_saturated_probabilities_have_finite_gradients(loss, gamma):
    """A gamma below 1 has an infinite slope where a probability is what it should be."""
    predictions, targets, matches = problem()
    boxes = predictions.boxes.float()
    boxes[matches.layer, matches.image, matches.query] = targets.boxes[matches.target].float()
    for value in (200.0, -200.0, 20.0):
        logits = torch.full(predictions.logits.shape, value, requires_grad=True)
        found = loss(Predictions(logits, boxes), targets.to(torch.float32), matches, gamma=gamma)
        (gradient,) = torch.autograd.grad(found.sum(), logits)
        assert found.isfinite().all() and gradient.isfinite().all(), (loss.__name__, value)
