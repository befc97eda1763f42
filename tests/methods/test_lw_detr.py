"""LW-DETR's decoder: groups with proposals of their own, of which inference keeps one."""

import warnings

import pytest
import small
import torch

from msdetr import recipes
from msdetr.boxes import cxcywh_to_xyxy, iou
from msdetr.config import ConfigError
from msdetr.errors import InputError
from msdetr.losses import focal_loss
from msdetr.losses.lw_detr import fit_supervised_loss, weighted_varifocal_loss
from msdetr.matching import HungarianMatcher
from msdetr.methods import build_criterion, build_detector
from msdetr.model import LogitBoxes, OffsetQueries, RelativeBoxes, from_released, to_released
from msdetr.structures import Matches, Predictions, Targets

LW_DETR = {
    "two_stage": None,
    "lw_detr.groups": 3,
    "model.encoder_layers": 0,
    "model.query_positions": "references",
    "model.output_norm": True,
    "model.box_refine": False,
    "model.look_forward_twice": False,
    "loss.floor": "product",
}
REFINED = {"model.box_refine": True, "model.look_forward_twice": True, "model.shared_heads": True}


def run_of(variant="baseline", size=64, **changes):
    config = small.config(variant, **LW_DETR | changes)
    detector, _, images = small.built(config, size)
    return config, detector, images


@pytest.mark.parametrize("changes", [{}, REFINED | {"lw_detr.relative_boxes": False}, {"lw_detr.two_stage": False}])
@pytest.mark.parametrize("variant", ["baseline", "c"])
def test_one_group_is_left_at_inference(variant, changes):
    config, detector, images = run_of(variant, **changes, **({"ms_detr.groups": "all"} if variant == "c" else {}))
    targets = small.objects(2, 1)
    output = detector.train()(images, targets)
    build_criterion(config)(output, targets).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters() if p.requires_grad)
    assert output.groups["lw_detr"].predictions.boxes.shape[2] == 2 * 5
    detector.eval()
    with torch.no_grad():
        beside = detector(images, targets).one_to_one
    torch.testing.assert_close(beside.boxes, small.evaluated(detector, images).boxes, rtol=1e-12, atol=1e-12)
    one = build_detector(small.config("baseline", **LW_DETR | changes | {"lw_detr.groups": 1}))
    assert {n: p.shape for n, p in detector.named_parameters()} == {n: p.shape for n, p in one.named_parameters()}


def test_every_group_chooses_and_is_matched_by_itself():
    config, detector, images = run_of()
    targets = small.objects(2, 1)
    with torch.no_grad():
        output = detector.train()(images, targets)
        losses = build_criterion(config)(output, targets)
        memory = detector.encoder(detector.pyramid(images))
        proposals, (primary, further) = detector.query_groups(memory, targets)
    found = proposals.encoder.predictions
    assert found.boxes.shape == (3, 2, 5, 4) and further.selected.shape == (2, 10)
    assert not torch.equal(primary.selected, further.selected[:, :5])
    expected = HungarianMatcher()(found, targets)  # real labels, a group as a layer
    assert torch.equal(losses.matches["encoder"].query, expected.query)
    assert losses.terms["encoder/class"].shape == (3,)
    offsets = detector.query_selection.offsets.weight
    torch.testing.assert_close(primary.references, RelativeBoxes()(found.boxes[0], offsets))


def test_losses_are_the_mean_over_groups_or_their_sum():
    config, detector, images = run_of()
    targets = small.objects(2, 1)
    with torch.no_grad():
        output = detector.train()(images, targets)
        mean, total = (
            build_criterion(config.override({"lw_detr.group_losses": kind}))(output, targets).total
            for kind in ("mean", "sum")
        )
    torch.testing.assert_close(total, 3 * mean)


@pytest.mark.parametrize("changes", [{}, REFINED, {"lw_detr.two_stage": False}, {"lw_detr.groups": 1}])
def test_published_names_and_back(changes):
    config, detector, _ = run_of(**changes)
    state = {n: t for n, t in detector.state_dict().items() if not n.startswith(("backbone.", "projections."))}
    published = to_released(state, config)
    assert len(published["query_feat.weight"]) == 5 * config.lw_detr.groups
    assert ("transformer.decoder.bbox_embed.layers.0.weight" in published) == config.model.box_refine
    back = from_released(published, config)
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


@pytest.mark.parametrize("few_tokens", ["fewer", "learned"])
def test_an_image_of_fewer_tokens_than_queries(few_tokens):
    config, detector, images = run_of(size=16, **{"model.num_queries": 30, "lw_detr.few_tokens": few_tokens})
    targets = small.objects(1, 1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output = detector.train()(images, targets)
        losses = build_criterion(config)(output, targets)
    tokens = output.encoder.predictions.boxes.shape[2]
    size = tokens if few_tokens == "fewer" else 30
    assert tokens < 30 and output.one_to_one.boxes.shape[2] == size
    assert output.groups["lw_detr"].predictions.boxes.shape[2] == 2 * size
    assert losses.total.isfinite()


def test_a_batch_without_objects():
    config, detector, images = run_of()
    with torch.no_grad():
        losses = build_criterion(config)(detector.train()(images, small.objects(0, 0)), small.objects(0, 0))
    assert losses.total.isfinite() and not len(losses.matches["lw_detr"])


def test_a_one_stage_model_has_no_proposals_for_other_sources():
    queries = OffsetQueries(8, 3, 2, groups=2, two_stage=False, coding=RelativeBoxes())
    with pytest.raises(InputError, match="no proposals to rank"):
        queries.propose(None, 4, None, None)


def test_relative_boxes():
    reference = torch.tensor([[0.5, 0.4, 0.2, 0.1]])
    moved = RelativeBoxes()(reference, torch.tensor([[1.0, -1.0, 0.0, 2.0]]))
    torch.testing.assert_close(moved, torch.tensor([[0.7, 0.3, 0.2, 0.1 * torch.e**2]]))
    assert torch.equal(RelativeBoxes().start(reference), reference)
    torch.testing.assert_close(LogitBoxes()(reference, torch.zeros(1, 4)), reference)


def test_class_losses_that_know_the_fit():
    """By hand, on one matched query of three; without a match they are the focal losses of a negative."""
    torch.manual_seed(0)
    predictions = Predictions(torch.randn(1, 1, 3, 2).double(), torch.full((1, 1, 3, 4), 0.4).double())
    targets = Targets.from_list([torch.tensor([1])], [torch.tensor([[0.4, 0.4, 0.2, 0.4]]).double()])
    one = Matches(*torch.tensor([[0, 0, 2, 0]]).unbind(1))
    none = one.select(torch.zeros(1, dtype=torch.bool))
    for loss in (weighted_varifocal_loss, fit_supervised_loss):
        torch.testing.assert_close(loss(predictions, targets, none), focal_loss(predictions, targets, none))
    logit = predictions.logits[0, 0, 2, 1]
    p, u = logit.sigmoid(), iou(*(cxcywh_to_xyxy(b) for b in (predictions.boxes[0, 0, 2], targets.boxes[0])))
    assert u == pytest.approx(0.5)
    without = focal_loss(predictions, targets, none) + 0.75 * p**2 * (1 - p).log()
    varifocal = -u * (u * p.log() + (1 - u) * (1 - p).log())
    torch.testing.assert_close(weighted_varifocal_loss(predictions, targets, one), without + varifocal)
    supervised = -0.25 * (1 - p) ** 2 * p.log()  # the best of its image: its target is 1
    torch.testing.assert_close(fit_supervised_loss(predictions, targets, one), without + supervised)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"lw_detr.groups": 0}, "lw_detr.groups"),
        ({"model.query_positions": "once"}, "lw_detr: .*query_positions=references"),
        ({"two_stage": True}, "lw_detr: .*two_stage=null"),
        ({"group.groups": 3}, "group: .*two_stage=true"),
        ({"model.cross_heads": 5}, "model.hidden_dim: .*model.cross_heads"),
    ],
)
def test_what_does_not_go_together(changes, message):
    with pytest.raises(ConfigError, match=message):
        small.config("baseline", **LW_DETR | changes)


def test_the_recipe_is_as_published():
    config = recipes.get("coco/lw-detr")
    model = config.model
    assert (config.lw_detr.groups, model.num_queries, model.decoder_layers, model.encoder_layers) == (13, 300, 3, 0)
    assert (model.num_heads, model.cross_heads, model.num_points) == (8, 16, 2)
    train = config.train
    assert (train.batch_size, train.ema_decay, train.max_detections, train.lr_projection_factor) == (32, 0.9997, 300, 1)
    with torch.device("meta"):
        detector = build_detector(config.override({"model.pretrained": "none"}))
    assert detector.level_embedding is None and len(detector.query_selection.further_proposers) == 12
    build_criterion(config)
