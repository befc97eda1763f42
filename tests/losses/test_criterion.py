from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from msdetr import recipes
from msdetr.boxes import cxcywh_to_xyxy
from msdetr.losses import Branch, Criterion, Supervised, detection_terms, focal_loss
from msdetr.matching import HungarianMatcher
from msdetr.methods import build_criterion
from msdetr.structures import DetectorOutput, EncoderOutput, Matches, Predictions, Targets

K, B, Q, C = 2, 3, 12, 4


def make_predictions(num_layers=K, num_queries=Q, dtype=torch.float64) -> Predictions:
    boxes = torch.rand(num_layers, B, num_queries, 4, dtype=dtype) * 0.4 + 0.2
    return Predictions(torch.randn(num_layers, B, num_queries, C, dtype=dtype).requires_grad_(), boxes.requires_grad_())


def make_targets(counts=(2, 0, 3), dtype=torch.float64) -> Targets:
    labels = [torch.randint(0, C, (n,)) for n in counts]
    return Targets.from_list(labels, [torch.rand(n, 4, dtype=dtype) * 0.4 + 0.2 for n in counts])


def make_output() -> DetectorOutput:
    encoder = EncoderOutput(make_predictions(1, 30), torch.rand(B, 30, 4, dtype=torch.float64) * 0.4 + 0.2)
    return DetectorOutput(make_predictions(), make_predictions(), encoder)


def criterion_for(recipe="shapes/ms-detr-c", **changes) -> Criterion:
    return build_criterion(recipes.get(recipe).override({"ms_detr.threshold": 0.1, **changes}))


@pytest.mark.parametrize(
    "fade, progress, factor", [(0, 1, 1), (1, 0, 1), (1, 0.5, 0.5), (0.4, 0.6, 1), (0.4, 0.8, 0.5), (0.4, 1, 0)]
)
def test_fading_branch(fade, progress, factor):
    """The weights of one-to-many supervision fall over the last part of a training; terms and matches are as always."""
    output, targets = make_output(), make_targets()
    plain = criterion_for()(output, targets)
    given = criterion_for(**{"ms_detr.fade": fade})(output, targets, progress=progress)
    own = criterion_for(**{"loss.class_weight": 0, "loss.l1_weight": 0, "loss.giou_weight": 0, "two_stage": None})
    one_to_many = own(output, targets).total
    torch.testing.assert_close(given.total, plain.total - (1 - factor) * one_to_many)
    torch.testing.assert_close(given.terms, plain.terms)


def matched(criterion, output, targets):
    return criterion.match(criterion.supervised(output, targets))


def test_terms_against_torchvision():
    """Layer by layer, image by image, with torchvision's losses."""
    output, targets, criterion = make_output(), make_targets(), criterion_for()
    losses = criterion(output, targets)
    pairs = losses.matches["one_to_one"]
    for layer in range(K):
        one_hot = torch.zeros(B, Q, C, dtype=torch.float64)
        l1 = giou = 0.0
        for k, b, q, t in zip(*(getattr(pairs, f).tolist() for f in ("layer", "image", "query", "target"))):
            if k == layer:
                one_hot[b, q, targets.labels[t]] = 1
                predicted, true = output.one_to_one.boxes[layer, b, q], targets.boxes[t]
                l1 += F.l1_loss(predicted, true, reduction="sum")
                giou += 1 - generalized_box_iou(cxcywh_to_xyxy(predicted[None]), cxcywh_to_xyxy(true[None]))[0, 0]
        focal = sigmoid_focal_loss(output.one_to_one.logits[layer], one_hot, 0.25, 2.0, reduction="sum")
        for term, want in (("class", focal), ("l1", l1), ("giou", giou)):
            torch.testing.assert_close(losses.terms[f"one_to_one/{term}"][layer], (want / len(targets)).detach())


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.5, 0.0), (0.1, 1.5)])
def test_gradient_of_the_focal_loss(alpha, gamma):
    """It is computed by hand: against torchvision's by autograd."""
    predictions, targets = make_predictions(), make_targets()
    matches = HungarianMatcher()(predictions, targets)
    weights = torch.tensor([2.0, -3.0], dtype=torch.float64)
    (focal_loss(predictions, targets, matches, alpha, gamma) * weights).sum().backward()
    logits = predictions.logits.detach().requires_grad_()
    one_hot = torch.zeros_like(logits)
    one_hot[matches.layer, matches.image, matches.query, targets.labels[matches.target]] = 1
    (sigmoid_focal_loss(logits, one_hot, alpha, gamma).sum((1, 2, 3)) * weights).sum().backward()
    torch.testing.assert_close(predictions.logits.grad, logits.grad)


def test_total_is_the_weighted_sum():
    output, targets, criterion = make_output(), make_targets(), criterion_for()
    losses = criterion(output, targets)
    weights = {branch.name: branch.weights for branch in criterion.branches}
    total = sum(weights[k.split("/")[0]][k.split("/")[1]] * v.sum() for k, v in losses.terms.items())
    torch.testing.assert_close(losses.total.detach(), total)
    assert set(losses.matches) == {"one_to_one", "one_to_many", "encoder"}


def test_every_prediction_learns():
    output, targets = make_output(), make_targets()
    criterion_for()(output, targets).total.backward()
    for predictions in (output.one_to_one, output.one_to_many, output.encoder.predictions):
        assert all(predictions.logits.grad[k].abs().sum() > 0 for k in range(len(predictions.logits)))
        assert predictions.boxes.grad.abs().sum() > 0


@pytest.mark.fault("F44")
@pytest.mark.parametrize("counts", [(0, 0, 0), (0, 4, 0)])
def test_images_without_objects_give_finite_losses(counts):
    output, targets = make_output(), make_targets(counts)
    losses = criterion_for()(output, targets)
    losses.total.backward()
    assert losses.total.isfinite()
    assert output.one_to_one.boxes.grad.isfinite().all()


@pytest.mark.fault("F52")
def test_degenerate_boxes_give_finite_losses():
    output, targets = make_output(), make_targets()
    flat = output.one_to_one.boxes.detach().clone()
    flat[..., 2:] = 0
    flat.requires_grad_()
    targets.boxes[0, 2:] = 0
    losses = criterion_for()(DetectorOutput(Predictions(output.one_to_one.logits, flat)), targets)
    losses.total.backward()
    assert losses.total.isfinite()
    assert flat.grad.isfinite().all()


def test_batch_loss_is_the_sum_over_micro_batches():
    """With the normaliser of the whole batch, splitting it changes nothing; so it does for ranks, up to their average."""
    output, targets, criterion = make_output(), make_targets(), criterion_for()
    whole = criterion(output, targets).total
    parts = []
    for image in range(B):
        cut = DetectorOutput(
            *(
                Predictions(p.logits[:, image : image + 1], p.boxes[:, image : image + 1])
                for p in (output.one_to_one, output.one_to_many)
            ),
            EncoderOutput(
                Predictions(
                    *(
                        x[:, image : image + 1]
                        for x in (output.encoder.predictions.logits, output.encoder.predictions.boxes)
                    )
                ),
                output.encoder.anchors[image : image + 1],
            ),
        )
        parts.append(criterion(cut, targets.of_image(image), num_boxes=len(targets)).total)
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("given", [None, 7.5, 0.0])
def test_sums_are_divided_by_the_number_of_objects(given):
    """By that of the batch unless another is given, and by 1 at least: against the undivided sums."""
    output, targets, criterion = make_output(), make_targets(), criterion_for()
    losses = criterion(output, targets, given)
    divisor = {None: len(targets), 7.5: 7.5, 0.0: 1.0}[given]
    for branch in criterion.branches:
        supervised = branch.select(output, targets)
        for name, (_, term) in branch.terms.items():
            whole = term(supervised.predictions, supervised.targets, losses.matches[branch.name])
            torch.testing.assert_close(losses.terms[f"{branch.name}/{name}"], (whole / divisor).detach())


def test_query_in_two_pairs_takes_the_later_class():
    predictions = make_predictions(1)
    targets = Targets.from_list(
        [torch.tensor([1, 2]), torch.zeros(0), torch.zeros(0)], [torch.rand(2, 4), torch.zeros(0, 4), torch.zeros(0, 4)]
    )
    zero = torch.zeros(2, dtype=torch.long)
    both = Matches(zero, zero, zero + 5, torch.tensor([0, 1]))
    last = Matches(zero[:1], zero[:1], zero[:1] + 5, torch.tensor([1]))
    torch.testing.assert_close(focal_loss(predictions, targets, both), focal_loss(predictions, targets, last))


def test_merge_adds_one_to_one_pairs():
    output, targets = make_output(), make_targets()
    plain = matched(criterion_for(**{"ms_detr.threshold": 0.9}), output, targets)
    merged = matched(criterion_for(**{"ms_detr.threshold": 0.9, "ms_detr.merge": True}), output, targets)
    assert len(plain["one_to_many"]) < len(merged["one_to_many"]) == len(merged["one_to_one"])


def test_a_new_branch_is_an_entry_of_the_list():
    """Other predictions, repeated targets, its own divisor and terms; Criterion stays as it is."""
    extra, output, targets = make_predictions(1), make_output(), make_targets()

    def select(output, targets, divisor=1.0):
        return Supervised(extra, targets.repeated(2), divisor=divisor)

    terms = {"class": (1.0, focal_loss), "surprise": (0.5, lambda p, t, m: p.boxes.sum((1, 2, 3)))}
    losses = Criterion([Branch("extra", select, HungarianMatcher(), terms)])(output, targets)
    losses.total.backward()
    assert extra.logits.grad.abs().sum() > 0 and len(losses.matches["extra"]) == 2 * len(targets)
    want = losses.terms["extra/class"].sum() + 0.5 * losses.terms["extra/surprise"].sum()
    torch.testing.assert_close(losses.total.detach(), want)
    halved = Criterion([Branch("extra", partial(select, divisor=2.0), HungarianMatcher(), terms)])(output, targets)
    torch.testing.assert_close(2 * halved.total, losses.total)


def test_known_pairs_are_not_matched():
    output, targets = make_output(), make_targets()
    zeros = torch.zeros(K, dtype=torch.long)
    pairs = Matches(torch.arange(K), zeros, zeros + 3, zeros)
    branch = Branch("known", lambda o, t: Supervised(o.one_to_one, t, pairs=pairs), None, detection_terms(1, 1, 1))
    assert Criterion([branch])(output, targets).matches["known"] is pairs


def test_half_precision_predictions_are_widened():
    output = DetectorOutput(make_predictions(dtype=torch.float32))
    half = DetectorOutput(Predictions(output.one_to_one.logits.bfloat16(), output.one_to_one.boxes.bfloat16()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = criterion_for()(half, make_targets(dtype=torch.float32)).total
    assert total.dtype == torch.float32


@pytest.mark.parametrize(
    "recipe, branches", [("shapes/baseline", 2), ("shapes/ms-detr-a", 3), ("coco/ms-detr-pp-900", 3)]
)
def test_branches_of_recipes(recipe, branches):
    assert len(build_criterion(recipes.get(recipe)).branches) == branches
